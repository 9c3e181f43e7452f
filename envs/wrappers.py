"""Wrappers that make any environment harder or easier to see, from a closed registry, so that a run can name them.

    env = envs.make("CartPole-v1", wrappers=["mask:hide=1,3", "flicker:probability=0.5"])

The first is the innermost. The previous action and reward are no wrappers here: `fwp_rl.sb3.PreviousInputs` adds them.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TransformObservation
from gymnasium.wrappers.utils import create_zero_array
from typing_extensions import override

from envs.registry import check_options, did_you_mean


def wrap(env: gymnasium.Env, wrappers: Iterable[str]) -> gymnasium.Env:
    """`env` inside the wrappers, each `name` or `name:option=value:option=value`, the first innermost.

    Raises:
        ValueError: a name or an option that does not exist, a value of the wrong kind, or an observation that the
            wrapper has no use for.
    """
    for text in wrappers:
        name, *settings = text.split(":")
        if name not in WRAPPERS:
            known = f"; there are {', '.join(WRAPPERS)}"
            if name in ("previous_action", "previous_reward"):
                known = f"; it is an input of the memory, set by --{name.replace('_', '-')}"
            raise ValueError(f"unknown wrapper {name!r}{did_you_mean(name, WRAPPERS)}{known}")
        env = WRAPPERS[name](env, **_options(name, settings))
    return env


def mask(env: gymnasium.Env, *, hide: tuple[int, ...]) -> gymnasium.Env:
    """Takes the numbers at the places `hide` out of a flat observation."""
    space = _box_of(env, "mask")
    if len(space.shape) != 1:
        raise ValueError(f"wrapper 'mask' takes flat observations, got shape {space.shape}")
    size = space.shape[0]
    outside = [place for place in hide if not 0 <= place < size]
    if outside or not hide or len(set(hide)) == size:
        raise ValueError(f"wrapper 'mask': hide must name some of the places 0..{size - 1}, not all, got {hide}")
    seen = np.delete(np.arange(size), hide)
    shown = spaces.Box(space.low[seen], space.high[seen], dtype=space.dtype.type)
    return TransformObservation(env, lambda observation: observation[seen], shown)


def flicker(env: gymnasium.Env, *, probability: float = 0.5) -> gymnasium.Env:
    """Shows zeros instead of the observation with that probability, each step anew (Hausknecht & Stone 2015)."""
    if not 0 <= probability <= 1:
        raise ValueError(f"wrapper 'flicker': probability must lie in [0, 1], got {probability}")
    space = _with_zeros(env.observation_space)
    nothing = create_zero_array(space)

    def change(observation: Any, rng: np.random.Generator) -> Any:
        return nothing if rng.random() < probability else observation

    return RandomObservation(env, space, change)


def noise(env: gymnasium.Env, *, std: float = 0.1) -> gymnasium.Env:
    """Adds independent Gaussian noise of that standard deviation to every number of the observation."""
    if not std >= 0:
        raise ValueError(f"wrapper 'noise': std must be at least 0, got {std}")
    space = _box_of(env, "noise")
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"wrapper 'noise' takes observations of floating point, got {space.dtype}")
    dtype = space.dtype.type

    def change(observation: Any, rng: np.random.Generator) -> Any:
        return (observation + std * rng.standard_normal(space.shape)).astype(dtype)

    return RandomObservation(env, spaces.Box(-np.inf, np.inf, space.shape, dtype), change)


def frame_stack(env: gymnasium.Env, *, size: int = 4) -> gymnasium.Env:
    """Shows the last `size` observations, the newest last; the first of an episode stands for those before it.

    Flat observations are joined to one, images along their channels, parts of a dict each for itself.
    """
    if size < 2:
        raise ValueError(f"wrapper 'frame_stack': size must be at least 2, got {size}")
    stacked = FrameStackObservation(env, size)
    space = stacked.observation_space
    return TransformObservation(stacked, _joined, _joined_space(space))


def time(env: gymnasium.Env, *, scale: int = 100) -> gymnasium.Env:
    """Adds the number of steps since the start of the episode, divided by `scale`, as "time" to a dict.

    Gymnasium's `TimeAwareObservation` has to know the longest episode, which few of these tasks tell.
    """
    if scale < 1:
        raise ValueError(f"wrapper 'time': scale must be at least 1, got {scale}")
    return _Time(env, scale)


WRAPPERS: Mapping[str, Callable[..., gymnasium.Env]] = MappingProxyType(
    {function.__name__: function for function in (mask, flicker, noise, frame_stack, time)}
)


class RandomObservation(gymnasium.Wrapper):
    """Shows `change(observation, rng)`; the seed of `reset` settles the random stream.

    The stream is the wrapper's own: the environment inside lives the same life as without it.
    """

    def __init__(
        self, env: gymnasium.Env, space: spaces.Space, change: Callable[[Any, np.random.Generator], Any]
    ) -> None:
        super().__init__(env)
        self.observation_space = space
        self._change = change
        self._depth = 1
        while isinstance(env, gymnasium.Wrapper):
            self._depth += isinstance(env, RandomObservation)
            env = env.env
        self._rng = np.random.default_rng()

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._rng = np.random.default_rng((seed, self._depth))
        return self._change(observation, self._rng), info

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._change(observation, self._rng), reward, terminated, truncated, info


class _Time(gymnasium.Wrapper):
    def __init__(self, env: gymnasium.Env, scale: int) -> None:
        super().__init__(env)
        self._scale = scale
        self._steps = 0
        space = env.observation_space
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        self.observation_space = spaces.Dict({**parts, "time": spaces.Box(0.0, np.inf, (1,), np.float32)})

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._steps = 0
        return self._with_time(observation), info

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        return self._with_time(observation), reward, terminated, truncated, info

    def _with_time(self, observation: Any) -> dict[str, Any]:
        parts = observation if isinstance(observation, dict) else {"observation": observation}
        return {**parts, "time": np.array([self._steps / self._scale], np.float32)}


def with_supported_spaces(env: gymnasium.Env) -> gymnasium.Env:
    """`env` with an observation that Stable-Baselines3 takes: flattened where it is not one already.

    Raises:
        ValueError: text, graphs and sequences have no flat form of one size, and actions are not converted.
    """
    actions = env.action_space
    if not (
        isinstance(actions, spaces.Box | spaces.MultiBinary)
        or (isinstance(actions, spaces.Discrete) and actions.start == 0)
        or (isinstance(actions, spaces.MultiDiscrete) and actions.nvec.ndim == 1 and not actions.start.any())
    ):
        raise ValueError(f"its actions must be Box, MultiBinary, or Discrete or MultiDiscrete from 0, got {actions}")
    space = env.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
    if all(_is_supported(part) for part in parts):
        return env
    if _has_text(space) or not space.is_np_flattenable:
        raise ValueError(f"its observations must be numbers of one shape, got {space}")
    return FlattenObservation(env)


def _is_supported(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Discrete):
        return bool(space.start == 0)
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ndim == 1 and not space.start.any()
    return isinstance(space, spaces.Box | spaces.MultiBinary)


def _has_text(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Dict):
        return any(map(_has_text, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return any(map(_has_text, space.spaces))
    return isinstance(space, spaces.Text)


def _box_of(env: gymnasium.Env, wrapper: str) -> spaces.Box:
    space = env.observation_space
    if not isinstance(space, spaces.Box):
        raise ValueError(f"wrapper {wrapper!r} takes Box observations, got {space}")
    return space


def _with_zeros(space: spaces.Space) -> spaces.Space:
    """The space, widened to hold zeros."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _with_zeros(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box):
        return spaces.Box(np.minimum(space.low, 0), np.maximum(space.high, 0), dtype=space.dtype.type)
    raise ValueError(f"wrapper 'flicker' takes observations in which 0 can mean nothing, got {space}")


def _joined_space(space: spaces.Space) -> spaces.Space:
    """The space of `_joined`, for the space of a stack."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _joined_space(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box):
        return spaces.Box(_joined(space.low), _joined(space.high), dtype=space.dtype.type)
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.ravel())
    raise ValueError(f"wrapper 'frame_stack' takes Box, Discrete and MultiDiscrete observations, got {space}")


def _joined(stack: Any) -> Any:
    """Observations `[size, ...]` as one: images `[H, W, C]` along their last axis, the rest flat."""
    if isinstance(stack, dict):
        return {key: _joined(part) for key, part in stack.items()}
    return np.concatenate(stack, axis=-1) if stack.ndim == 4 else stack.ravel()


def _options(name: str, settings: list[str]) -> dict[str, Any]:
    """`option=value` pairs as arguments of the wrapper."""
    parameters = [item for item in inspect.signature(WRAPPERS[name]).parameters.values() if item.name != "env"]
    kinds = typing.get_type_hints(WRAPPERS[name])
    options = dict(setting.partition("=")[::2] for setting in settings)
    check_options(f"wrapper {name!r}", options, [item.name for item in parameters])
    for item in parameters:
        if item.default is item.empty and item.name not in options:
            raise ValueError(f"wrapper {name!r} needs {item.name}, for instance {name}:{item.name}=1,3")
    return {option: _value(name, option, text, kinds[option]) for option, text in options.items()}


def _value(wrapper: str, option: str, text: str, kind: Any) -> Any:
    words = {int: "a whole number", float: "a number"}.get(kind, "whole numbers with commas")
    try:
        return kind(text) if kind in (int, float) else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"wrapper {wrapper!r}: {option} must be {words}, got {text!r}") from None
