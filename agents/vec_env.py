"""Environments side by side, as Stable-Baselines3 wants them.

    venv = make_vec_env("MiniGrid-MemoryS11-v0", 16, seed=0, options={"actions": "moves"})

Own tasks that are vectorised in NumPy run as one object (`NativeVecEnv`); everything else runs one environment after
the other (DummyVecEnv). Training seeds start at 10 000 000 and evaluation seeds at 1 000 000, so they never meet (see
`agents.episodes`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

import envs
from agents.config import OptionValue
from agents.episodes import make_env, training_seed
from envs.task import VectorTask
from fwp_rl.sb3 import PreviousInputs


def make_vec_env(
    env_id: str,
    n_envs: int,
    *,
    seed: int = 0,
    options: Mapping[str, OptionValue] | None = None,
    wrappers: Sequence[str] = (),
    previous_action: bool = False,
    previous_reward: bool = False,
) -> VecEnv:
    """`n_envs` training environments of the run `seed`, with episode statistics in the infos as Monitor gives them."""
    options = dict(options or {})
    make_env(env_id, options, wrappers).close()  # says in one line what is wrong with id and options
    task = envs.make_vector(env_id, n_envs, wrappers=wrappers, **options)
    venv: VecEnv
    if task is not None:
        venv = add_inputs(NativeVecEnv(task), previous_action, previous_reward)
    else:
        makers = [lambda: Monitor(make_env(env_id, options, wrappers))] * n_envs
        venv = vectorize(makers, previous_action, previous_reward)
    seed_training(venv, seed)
    return venv


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
    if any(is_image_space(part) and not is_image_space_channels_first(part) for part in parts):  # type: ignore[arg-type]
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
    `is_success`. The rows are not separate objects: `get_attr`, `set_attr` and `env_method` reach the one task, and
    `get_attr` and `env_method` answer once for each row asked for. Only the first of the seeds counts, since the task
    derives the random streams of all rows from one seed.
    """

    def __init__(self, task: VectorTask) -> None:
        self.task = task
        self._started = time.monotonic()
        self._returns = np.zeros(task.n_envs)
        self._lengths = np.zeros(task.n_envs, dtype=np.int64)
        self._actions: np.ndarray | None = None
        super().__init__(task.n_envs, task.observation_space, task.action_space)

    def reset(self) -> np.ndarray:
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
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False, "is_success": False} for _ in dones]
        for row in np.flatnonzero(dones):
            infos[row] = {
                "TimeLimit.truncated": bool(step.truncated[row] and not step.terminated[row]),
                "is_success": bool(step.success[row]),
                "terminal_observation": step.final_observations[row],
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
