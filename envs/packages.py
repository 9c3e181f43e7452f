"""Environments of other packages, made ready for an agent."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator
from gymnasium.wrappers import AtariPreprocessing
from typing_extensions import override

from envs.registry import check_options, option_names


def make_popgym(env_id: str, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """A POPGym task (Morad et al. 2023).

    Args:
        env_id: Such as "popgym-RepeatPreviousEasy-v0".
        render_mode: None; the tasks draw no pictures.
        options: `antialias` adds whether this is the first step of the episode, as in the published experiments (which
            also feed the previous action: a setting of the run); `full_state` shows the hidden state instead of the
            observation. All others are the task's own.
    """
    from popgym.core.observability import Observability
    from popgym.wrappers import Antialias, Markovian

    check_options(env_id, options, ["antialias", "full_state", *(option_names(env_id) or ())])
    if render_mode is not None:
        raise ValueError(f"{env_id} draws no pictures")
    antialias, full_state = options.pop("antialias", False), options.pop("full_state", False)
    env = gymnasium.make(env_id, disable_env_checker=True, **options).unwrapped  # POPGym wraps only its own
    if full_state:
        env = Markovian(env, Observability.FULL)
    return Antialias(env) if antialias else env


_ATARI_GAME = ("mode", "difficulty", "repeat_action_probability", "full_action_space", "max_num_frames_per_episode")
_ATARI_SCREEN = ("noop_max", "frame_skip", "screen_size", "terminal_on_life_loss", "grayscale_obs")


def make_atari(env_id: str, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """An Atari game with the usual preprocessing: 84 x 84 grey pixels, of every fourth frame the largest of two.

    Args:
        env_id: Such as "ALE/Pong-v5".
        render_mode: None or "rgb_array".
        options: Those of `gymnasium.wrappers.AtariPreprocessing` and, without sticky actions unless asked for
            (`repeat_action_probability`), those of the game.
    """
    check_options(env_id, options, [*_ATARI_SCREEN, *_ATARI_GAME])
    screen = {name: options.pop(name) for name in _ATARI_SCREEN if name in options}
    game = {"repeat_action_probability": 0.0, **options}
    env = gymnasium.make(env_id, render_mode=render_mode, disable_env_checker=True, frameskip=1, **game)
    return AtariPreprocessing(env, grayscale_newaxis=True, **screen)


def make_memory_gym(env_id: str, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """A task of Memory Gym (Pleines et al. 2023); `options` are its reset parameters, a number for a list of one."""
    env_class: Any = load_env_creator(str(gymnasium.spec(env_id).entry_point))
    defaults = env_class.default_reset_parameters
    check_options(env_id, options, list(defaults))
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(driver, "dummy")  # it opens a window and a sound device
    env = gymnasium.make(env_id, render_mode=render_mode, disable_env_checker=True)
    chosen = {name: [value] if isinstance(defaults[name], list) else value for name, value in options.items()}
    return _WithResetOptions(env, chosen) if chosen else env


class _WithResetOptions(gymnasium.Wrapper):
    """Gives the same options to every reset."""

    def __init__(self, env: gymnasium.Env, options: dict[str, Any]) -> None:
        super().__init__(env)
        self._options = options

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={**self._options, **(options or {})})


MAKERS: Mapping[str, Callable[..., gymnasium.Env]] = MappingProxyType(
    {"popgym": make_popgym, "ale_py": make_atari, "memory_gym": make_memory_gym}
)
"""By package: from id, render mode and options to an environment."""
