"""Small environments, small memories and small models for the tests of the agent."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.registry import memory_configs
from fwp_rl.sb3 import MemoryPPO
from fwp_rl.state import State

SMALL = {"width": 8, "n_heads": 2, "key_size": 3, "value_size": 5, "hidden_size": 7}


class RandomEnv(gym.Env):
    """Random observations and rewards. Episodes last `lengths` in turn; every second one ends by truncation."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lengths: tuple[int, ...]) -> None:
        self.observation_space = copy.deepcopy(observation_space)  # each draws its own numbers
        self.action_space = action_space
        self.lengths = lengths
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode += 1
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.t += 1
        is_over = self.t >= self.lengths[self.episode % len(self.lengths)]
        is_cut = is_over and self.episode % 2 == 1
        return self.observation_space.sample(), float(self.np_random.normal()), is_over and not is_cut, is_cut, {}


class TapeEnv(gym.Env):
    """Observation: (episode, steps since its start). Reward: 1. Episodes last `lengths` in turn, ended by `ending`.

    Episode e of environment i is number 100 * i + e.
    """

    def __init__(self, index: int, lengths: tuple[int, ...], ending: str = "terminated") -> None:
        self.observation_space = spaces.Box(-1000.0, 1000.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.index = index
        self.lengths = lengths
        self.ending = ending
        self.episode = -1

    def _observation(self) -> np.ndarray:
        return np.array([100 * self.index + self.episode, self.t], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        is_over = self.t >= self.lengths[self.episode % len(self.lengths)]
        ends = {"terminated": (is_over, False), "truncated": (False, is_over), "both": (is_over, is_over)}
        return self._observation(), 1.0, *ends[self.ending], {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingConfig(MemoryConfig):
    """A memory that can be read: it counts the steps of the episode."""

    def build(self, input_size: int) -> Memory:
        return Counting(input_size)


class Counting(Memory):
    """Outputs the number of steps read since the start of the episode, which is also its state `[B, 1]`."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = 1

    def initial_state(self, batch_size: int) -> State:
        return torch.zeros(batch_size, 1)

    def scan(self, inputs: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        assert isinstance(state, Tensor)
        counts = []
        for starts in episode_starts:
            state = torch.where(starts[:, None], 0.0, state) + 1
            counts.append(state)
        return torch.stack(counts), state


def _small_config(name: str) -> MemoryConfig:
    config_class = memory_configs()[name]
    known = {field.name for field in dataclasses.fields(config_class)}
    return config_class(**{key: size for key, size in SMALL.items() if key in known})


@pytest.fixture
def small_config() -> Callable[[str], MemoryConfig]:
    """The config of a registered memory, a few units wide."""
    return _small_config


@pytest.fixture
def random_envs() -> Callable[..., VecEnv]:
    """Environments of any spaces, with episodes of different lengths."""

    def build(observation_space: spaces.Space, action_space: spaces.Space, n_envs: int = 3) -> VecEnv:
        lengths = [(3, 5, 4), (7, 2), (6, 1, 9)]
        return DummyVecEnv(
            [
                lambda i=i: RandomEnv(observation_space, action_space, lengths[i % len(lengths)])  # type: ignore[misc]  # bound per loop
                for i in range(n_envs)
            ]
        )

    return build


@pytest.fixture
def tape_envs() -> Callable[..., VecEnv]:
    """Environments that report which step of which episode one sees."""

    def build(*lengths: tuple[int, ...], ending: str = "terminated") -> VecEnv:
        return DummyVecEnv([lambda i=i, x=x: TapeEnv(i, x, ending) for i, x in enumerate(lengths)])  # type: ignore[misc]  # bound per loop

    return build


@pytest.fixture
def make_model(random_envs: Callable[..., VecEnv]) -> Callable[..., MemoryPPO]:
    """A small model on random environments, or on `env`."""

    def build(
        memory: str | MemoryConfig = "delta",
        env: VecEnv | gym.Env | None = None,
        *,
        policy: str = "MlpPolicy",
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> MemoryPPO:
        if env is None:
            env = random_envs(spaces.Box(-1, 1, (5,)), spaces.Discrete(4))
        defaults = {"n_steps": 16, "sequence_length": 8, "n_epochs": 2, "seed": 1, "device": "cpu"}
        return MemoryPPO(
            policy,
            env,
            policy_kwargs={"memory": _small_config(memory) if isinstance(memory, str) else memory}
            | {"net_arch": [6], "encoder_size": 10, "normalize_features": False}
            | (policy_kwargs or {}),
            **(defaults | kwargs),
        )

    return build


@pytest.fixture
def counting_model(make_model: Callable[..., MemoryPPO]) -> Callable[..., MemoryPPO]:
    """A model whose value is the sum of the observation and of the steps read since the start of the episode."""

    def build(env: VecEnv, **kwargs: Any) -> MemoryPPO:
        model = make_model(CountingConfig(), env, policy_kwargs={"net_arch": [], "encoder_size": None}, **kwargs)
        with torch.no_grad():
            model.policy.value_net.weight.fill_(1.0)
            model.policy.value_net.bias.zero_()
        return model

    return build


@pytest.fixture
def collect() -> Callable[..., None]:
    """Fill the buffer of a model with its next rollout, without training."""

    def run(model: MemoryPPO, callback: Any = None, *, is_first: bool = True) -> None:
        _, callback = model._setup_learn(model.n_steps * model.n_envs, callback, reset_num_timesteps=is_first)
        callback.on_training_start({}, {})
        assert model.env is not None
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)

    return run
