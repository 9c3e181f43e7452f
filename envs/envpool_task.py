"""EnvPool (Weng et al. 2022, arXiv 2206.10558): some public environments once more, in C++.

    task = envs.make_pool("BabyAI-GoTo-v0", 16)

An engine for training alone: episodes are drawn from other random numbers than those of the original, which stays what
is evaluated and rendered. `benchmarks.envpool` measures which ids agree with their originals and how fast they are.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np

from envs.registry import MissingDependencyError, UnknownEnvironmentError, did_you_mean
from envs.task import VectorStep

_MINIGRID_PREFIXES = ("MiniGrid-", "BabyAI-")
# No view_size: EnvPool 1.2.5 writes past its memory where the view is smaller than 7.
_MINIGRID_OPTIONS = ("observation", "actions", "mission", "max_steps")
_WFC = "MiniGrid-WFC-"
_CLASSIC_CONTROL = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0")
_MISSIONS = 4096  # whose encodings are kept
_INSTALL = 'envpool is not installed: pip install -e ".[envpool]"'

_CARRYING = ("S5N2", "S6N3", "S7N4")
_MAZES = (
    "1Dlh-v0",
    "1Dlhb-v0",
    "2Dlh-v0",
    "2Dlhb-v0",
    "2Dlhb-v1",
    "1Q-v0",
    "1Q-v1",
    "2Q-v0",
    "2Q-v1",
    "Full-v0",
    "Full-v1",
)
DIFFERENT: Mapping[str, str] = MappingProxyType(
    {
        "BabyAI-ActionObjDoor-v0": "some of its doors are locked",
        **{f"BabyAI-PutNext{size}Carrying-v0": "what is carried is in its first view" for size in _CARRYING},
        "BabyAI-SynthS5R2-v0": "it never comes back from a reset",
        **{f"MiniGrid-ObstructedMaze-{name}": "its boxes are blue and not grey" for name in _MAZES},
    }
)
"""What EnvPool has under the name of something else, and how it differs."""


class EnvPoolTask:
    """`n_envs` copies of an environment, stepped by EnvPool in a thread; from outside like a `VectorTask`.

    Args:
        original: The environment itself, which says what is observed and what can be done.
        env_id: Its full name.
        n_envs: Copies.
        settings: Those of `envpool.make`.
    """

    def __init__(self, original: gymnasium.Env, env_id: str, n_envs: int, **settings: Any) -> None:
        self.n_envs = n_envs
        self.observation_space, self.action_space = original.observation_space, original.action_space
        self.has_success = env_id.startswith(_MINIGRID_PREFIXES)
        self._observe = _minigrid_observer(original.unwrapped) if self.has_success else _as_it_is
        self._make = functools.partial(_make, env_id, n_envs, settings)
        self._pool: Any = None

    def reset(self, seed: int | None = None) -> Any:
        """Start every row anew; with a seed, row i as if it were alone with `seed + i`. Returns the observations."""
        if seed is not None or self._pool is None:  # EnvPool takes seeds only here
            if seed is None:
                seed = int(np.random.SeedSequence().generate_state(1)[0] >> 2)
            self._pool = self._make(seed)
        observations, _ = self._pool.reset()
        return self._observe(observations)

    def step(self, actions: np.ndarray) -> VectorStep:
        """One step of every row; rows whose episode ends start anew in the same step.

        EnvPool itself would do so in the next one, in which it lets the action fall.
        """
        observations, rewards, terminated, truncated, _ = self._pool.step(actions)
        final = observations = self._observe(observations)
        success = terminated & (rewards > 0) if self.has_success else np.zeros(self.n_envs, bool)
        if len(ended := np.flatnonzero(terminated | truncated)):
            observations = _with_rows(final, ended, self._observe(self._pool.reset(ended)[0]))
        return VectorStep(observations, rewards.astype(np.float64), terminated, truncated, success, final)

    def render(self, row: int = 0) -> np.ndarray:
        """No picture: `RuntimeError`."""
        raise RuntimeError("EnvPool trains only; evaluate and render with the original environment")


def pool_of(original: gymnasium.Env, env_id: str, n_envs: int, options: Mapping[str, Any]) -> EnvPoolTask:
    """`n_envs` copies of `original`, which is `env_id` with `options`.

    Raises:
        MissingDependencyError: EnvPool is not installed.
        UnknownEnvironmentError: It lacks the environment, or has another one under its name.
        ValueError: It lacks an option.
    """
    if find_spec("envpool") is None:
        raise MissingDependencyError(_INSTALL)
    if env_id in DIFFERENT:
        raise UnknownEnvironmentError(f"EnvPool's {env_id} is not the original, {DIFFERENT[env_id]}: leave engine out")
    if env_id not in (ids := pool_ids()):
        raise UnknownEnvironmentError(f"EnvPool does not step {env_id}: leave engine out{did_you_mean(env_id, ids)}")
    known = _MINIGRID_OPTIONS if env_id.startswith(_MINIGRID_PREFIXES) else ()
    if unknown := [name for name in options if name not in known]:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"EnvPool's {env_id} has no option {unknown[0]!r}, {takes}: leave the option or engine out")
    settings = {"max_episode_steps": options["max_steps"]} if options.get("max_steps") else {}
    return EnvPoolTask(original, env_id, n_envs, **settings)


def pool_ids() -> list[str]:
    """The environments that EnvPool can step in the place of their originals."""
    import envpool

    ids = [env_id for env_id in envpool.list_all_envs() if env_id.startswith(_MINIGRID_PREFIXES)]
    # The originals of MiniGrid-WFC-* lack the files that they start from, so there is nothing to compare with.
    return [*_CLASSIC_CONTROL, *(each for each in ids if each not in DIFFERENT and not each.startswith(_WFC))]


def _make(env_id: str, n_envs: int, settings: dict[str, Any], seed: int) -> Any:
    import envpool

    seeds = [seed + row for row in range(n_envs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium warns that a bound of the space is rounded to float32
        pool = envpool.make(env_id, "gymnasium", num_envs=n_envs, num_threads=1, env_seed=seeds, **settings)
        pool.observation_space  # noqa: B018 (made and kept when first asked for)
    return pool


def _minigrid_observer(task: Any) -> Callable[[dict[str, np.ndarray]], Any]:
    """From EnvPool's observations of a MiniGrid task, which are the stock ones, to ours."""
    encoder = task.mission_encoder
    if encoder is None:
        return lambda stock: task.encode_views(stock["image"])

    @functools.lru_cache(_MISSIONS)
    def encode(text: bytes) -> np.ndarray:
        return encoder.encode(text.rstrip(b"\0").decode())

    return lambda stock: {
        "mission": np.stack([encode(text.tobytes()) for text in stock["mission"]]),
        "view": task.encode_views(stock["image"]),
    }


def _as_it_is(observations: np.ndarray) -> np.ndarray:
    return observations


def _with_rows(observations: Any, rows: np.ndarray, others: Any) -> Any:
    """A copy of the observations in which some rows are others."""
    if isinstance(observations, dict):
        return {name: _with_rows(part, rows, others[name]) for name, part in observations.items()}
    observations = observations.copy()
    observations[rows] = others
    return observations
