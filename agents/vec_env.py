"""Environments side by side, as Stable-Baselines3 wants them.

    venv = make_vec_env("MiniGrid-MemoryS11-v0", 16, seed=0, options={"actions": "moves"})

Own tasks that are vectorised in NumPy, and what EnvPool steps, run as one object (`NativeVecEnv`). Everything else runs
one environment after the other (DummyVecEnv), in several processes where that is faster (`WorkerVecEnv`,
`best_workers`). Training seeds
start at 10 000 000 and evaluation seeds at 1 000 000, so they never meet (see `agents.episodes`).
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

import envs
from agents.config import Engine, OptionValue
from agents.episodes import make_env, making, training_seed
from agents.errors import EnvironmentFaultError, UsageError
from envs.envpool_task import EnvPoolTask
from envs.task import VectorTask
from fwp_rl.sb3 import PreviousInputs, WorkerVecEnv

MEASURED_SECONDS = 0.1
START_SECONDS = 5.0
"""Starting workers: they import what we have imported."""
MESSAGE_SECONDS = 2e-4
"""Telling a worker to take a step, and its answer (`benchmarks.workers`)."""
SHARE_FACTOR = 1.1
"""A share takes longer than it would alone: the slowest one counts, and caches have grown cold (the same)."""


def make_vec_env(
    env_id: str,
    n_envs: int,
    *,
    seed: int = 0,
    options: Mapping[str, OptionValue] | None = None,
    wrappers: Sequence[str] = (),
    previous_action: bool = False,
    previous_reward: bool = False,
    workers: int = 0,
    engine: Engine = "original",
) -> VecEnv:
    """`n_envs` training environments of the run `seed`, with episode statistics in the infos as Monitor gives them.

    `workers` processes help this one to step them, which changes no result. The engine "envpool" has them stepped by
    EnvPool, where other episodes happen than in the original, of the same distribution.
    """
    options = dict(options or {})
    make_env(env_id, options, wrappers).close()  # says in one line what is wrong with id and options
    if engine == "envpool":
        with making(env_id):
            task: VectorTask | EnvPoolTask | None = envs.make_pool(env_id, n_envs, wrappers=wrappers, **options)
    else:
        task = envs.make_vector(env_id, n_envs, wrappers=wrappers, **options)
    makers = [functools.partial(_make_monitored, env_id, options, wrappers)] * n_envs
    venv: VecEnv
    if task is not None and workers:
        what = "is stepped by EnvPool" if engine == "envpool" else "is written in NumPy"
        raise UsageError(f"workers={workers}: {env_id} {what} and runs in one process; leave workers out")
    if task is not None:
        venv = add_inputs(NativeVecEnv(task), previous_action, previous_reward)
    elif workers:
        venv = add_inputs(WorkerVecEnv(makers, workers), previous_action, previous_reward)
    else:
        venv = vectorize(makers, previous_action, previous_reward)
    seed_training(venv, seed)
    return venv


def best_workers(
    env_id: str,
    n_envs: int,
    n_steps: int,
    options: Mapping[str, OptionValue] | None = None,
    wrappers: Sequence[str] = (),
) -> int:
    """How many workers should bring `n_steps` steps of all environments together to an end soonest.

    Decided by the time that a step takes, over a tenth of a second of random actions.
    """
    options = dict(options or {})
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.closing(_make_monitored(env_id, options, wrappers)) as env:
        if min(n_cores, n_envs) < 2 or envs.make_vector(env_id, 1, wrappers=wrappers, **options) is not None:
            return 0
        try:
            return soonest(_seconds_of_step(env), n_envs, n_steps, n_cores)
        except EnvironmentFaultError:
            return 0  # the run itself will meet the fault, and can tell more


def soonest(seconds_of_step: float, n_envs: int, n_steps: int, n_cores: int) -> int:
    """The number of workers of a run of `n_steps` steps by the model of `benchmarks.workers`; 0 if none pay."""

    def seconds(workers: int) -> float:
        share = -(-n_envs // (workers + 1)) * seconds_of_step
        round_ = share if workers == 0 else SHARE_FACTOR * share + MESSAGE_SECONDS * workers
        return n_steps / n_envs * round_ + (START_SECONDS if workers else 0.0)

    return min(range(min(n_cores, n_envs)), key=seconds)


def _seconds_of_step(env: gymnasium.Env) -> float:
    env.action_space.seed(0)
    env.reset(seed=training_seed(0))
    env.step(env.action_space.sample())  # compiles
    n_steps, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < MEASURED_SECONDS:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        n_steps += 1
        if terminated or truncated:
            env.reset()
    return taken / n_steps


def _make_monitored(env_id: str, options: dict[str, OptionValue], wrappers: Sequence[str]) -> gymnasium.Env:
    return Monitor(make_env(env_id, options, wrappers))


def seed_training(venv: VecEnv, seed: int) -> None:
    """Give the environments the training seeds of the run `seed`; they take effect at the next reset."""
    venv.seed(training_seed(seed))


def vectorize(makers: Sequence[Callable[[], gymnasium.Env]], previous_action: bool, previous_reward: bool) -> VecEnv:
    """The environments one after the other, with the inputs that the agent gets besides the observation."""
    return add_inputs(DummyVecEnv(list(makers)), previous_action, previous_reward)


def add_inputs(venv: VecEnv, previous_action: bool, previous_reward: bool) -> VecEnv:
    """`venv` with previous action and reward if asked for, and images with their channels first, as networks want."""
    if previous_action or previous_reward:
        venv = PreviousInputs(venv, action=previous_action, reward=previous_reward)
    space = venv.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if any(is_image_space(part) and not is_image_space_channels_first(part) for part in parts):  # type: ignore[arg-type]  # parts of a Dict
        venv = VecTransposeImage(venv)
    return venv


class NormalizedRewards(VecNormalize):
    """`venv` with rewards divided by the running standard deviation of their discounted sum; the rest is untouched.

    The infos and a previous reward that the memory reads stay raw. Unlike in SB3's class, a reward that is NaN or
    infinite comes out as it went in and does not enter the statistics: else it would turn the rewards of all
    environments into NaN, and nobody could say which one is broken.
    """

    def __init__(self, venv: VecEnv, gamma: float) -> None:
        super().__init__(venv, norm_obs=False, gamma=gamma)

    def _update_reward(self, reward: np.ndarray) -> None:
        if np.isfinite(reward).all():
            super()._update_reward(reward)

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        """The rewards as the learner gets them."""
        return np.where(np.isfinite(reward), super().normalize_reward(reward), reward).astype(np.float32)


def policy_name(venv: VecEnv) -> str:
    """The alias of the policy that fits the observations."""
    if isinstance(venv.observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(venv.observation_space) else "MlpPolicy"


class NativeVecEnv(VecEnv):
    """A vectorised task of `envs` behind SB3's interface; it restarts finished episodes in the same step.

    Infos are those of DummyVecEnv around Monitor: `episode`, `terminal_observation`, `TimeLimit.truncated`, and
    `is_success` where the task tells it. The rows are not separate objects: `get_attr`, `set_attr` and `env_method`
    reach the one task, and `get_attr` and `env_method` answer once for each row asked for. Only the first of the seeds
    counts, since the task derives the random streams of all rows from one seed.
    """

    def __init__(self, task: VectorTask | EnvPoolTask) -> None:
        self.task = task
        self._started = time.monotonic()
        self._returns = np.zeros(task.n_envs)
        self._lengths = np.zeros(task.n_envs, dtype=np.int64)
        self._actions: np.ndarray | None = None
        super().__init__(task.n_envs, task.observation_space, task.action_space)

    def reset(self) -> VecEnvObs:
        """Start every row anew."""
        observations = self.task.reset(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions; the work is done in `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One step of every row."""
        if self._actions is None:
            raise RuntimeError("step_wait without step_async")
        step = self.task.step(self._actions)
        self._actions = None
        self._returns += step.rewards
        self._lengths += 1
        dones = step.terminated | step.truncated
        goes_on = {"TimeLimit.truncated": False, **({"is_success": False} if self.task.has_success else {})}
        infos: list[dict[str, Any]] = [goes_on.copy() for _ in dones]
        for row in np.flatnonzero(dones).tolist():
            if self.task.has_success:
                infos[row]["is_success"] = bool(step.success[row])
            infos[row] |= {
                "TimeLimit.truncated": bool(step.truncated[row] and not step.terminated[row]),
                "terminal_observation": _row(step.final_observations, row),
                "episode": {
                    "r": round(float(self._returns[row]), 6),
                    "l": int(self._lengths[row]),
                    "t": round(time.monotonic() - self._started, 6),
                },
            }
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        return step.observations, step.rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing to give back."""

    def get_images(self) -> Sequence[np.ndarray]:
        """A picture of each row."""
        return [self.task.render(row) for row in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the task, once for each row."""
        value = "rgb_array" if attr_name == "render_mode" else getattr(self.task, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute of the task, for all rows at once."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError("the rows of a vectorised task share their attributes; set them for all rows")
        setattr(self.task, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call the method of the task once; its answer stands for each row."""
        answer = getattr(self.task, method_name)(*method_args, **method_kwargs)
        return [answer for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Only Monitor can be said to be there: the infos carry its episode statistics."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _row(observations: Any, row: int) -> Any:
    if isinstance(observations, dict):
        return {name: part[row] for name, part in observations.items()}
    return observations[row]
