"""Previous action and reward in the observation: the exact tape."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from fwp_rl.sb3 import MemoryPPO, PreviousInputs

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
ACTIONS = {
    "discrete": (spaces.Discrete(3), [2, 0, 1], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "discrete_from_5": (spaces.Discrete(2, start=5), [6, 5, 6], [[0, 1], [1, 0], [0, 1]]),
    "multi_discrete": (
        spaces.MultiDiscrete([2, 3]),
        [[1, 2], [0, 0], [1, 1]],
        [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0]],
    ),
    "multi_discrete_from_1": (
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        [[2, 1], [1, -1], [2, 0]],
        [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0]],
    ),
    "multi_binary": (spaces.MultiBinary(3), [[1, 0, 1], [0, 0, 0], [1, 1, 1]], [[1, 0, 1], [0, 0, 0], [1, 1, 1]]),
    "box": (spaces.Box(-2, 2, (2,)), [[0.5, -2], [1, 2], [0, 0.25]], [[0.5, -2], [1, 2], [0, 0.25]]),
    "box_matrix": (spaces.Box(-2, 2, (1, 2)), [[[0.5, -2]], [[1, 2]], [[0, 0.25]]], [[0.5, -2], [1, 2], [0, 0.25]]),
}


class Script(gym.Env):
    """Observation: (index, steps so far). Reward: 10 * index + steps so far. Ends by truncation."""

    def __init__(self, index: int, length: int, action_space: spaces.Space, is_dict: bool = False) -> None:
        self.observation_space = spaces.Dict({"a": BOX, "b": BOX}) if is_dict else BOX
        self.action_space, self.index, self.length, self.is_dict = action_space, index, length, is_dict

    def _observation(self) -> Any:
        obs = np.array([self.index, self.t], dtype=np.float32)
        return {"a": obs, "b": -obs} if self.is_dict else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(np.asarray(action, dtype=self.action_space.dtype))
        self.t += 1
        return self._observation(), 10.0 * self.index + self.t, False, self.t == self.length, {}


def envs(action_space: spaces.Space, **kwargs: Any) -> DummyVecEnv:
    lengths = (9, 2)
    return DummyVecEnv(
        [lambda i=i, n=n: Script(i, n, action_space, **kwargs) for i, n in enumerate(lengths)]  # type: ignore[misc]  # bound per loop
    )


# Red if an input came one step late, survived the end of an episode, was missing in the terminal observation (which
# the bootstrap reads), or came from another environment.
@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("actions", ACTIONS)
def test_tape_of_previous_actions_and_rewards(actions: str, is_dict: bool) -> None:
    space, sent, encoded = ACTIONS[actions]
    env = PreviousInputs(envs(space, is_dict=is_dict))
    nothing = [0] * len(encoded[0])
    key = "a" if is_dict else "observation"

    def check(obs: dict[str, np.ndarray], steps: list[int], action: list[Any], reward: list[float]) -> None:
        assert obs.keys() == env.observation_space.keys()
        for part, array in obs.items():
            assert array.shape == (2, *env.observation_space[part].shape), part
            assert array.dtype == env.observation_space[part].dtype, part
        assert obs[key].tolist() == [[0, steps[0]], [1, steps[1]]]
        assert obs["previous_action"].tolist() == action
        assert obs["previous_reward"].tolist() == [[reward[0]], [reward[1]]]

    check(env.reset(), [0, 0], [nothing, nothing], [0, 0])
    # The environments act differently: the second is one action ahead.
    obs, _, _, _ = env.step(np.array([sent[0], sent[1]]))
    check(obs, [1, 1], [encoded[0], encoded[1]], [1, 11])
    obs, _, dones, infos = env.step(np.array([sent[1], sent[2]]))
    assert dones.tolist() == [False, True]
    check(obs, [2, 0], [encoded[1], nothing], [2, 0])
    terminal = infos[1]["terminal_observation"]
    assert terminal.keys() == obs.keys()
    assert terminal[key].tolist() == [1, 2]
    assert terminal["previous_action"].tolist() == encoded[2]
    assert terminal["previous_reward"].tolist() == [12]
    assert all(array.shape == env.observation_space[part].shape for part, array in terminal.items())
    obs, _, _, _ = env.step(np.array([sent[2], sent[0]]))
    check(obs, [3, 1], [encoded[2], encoded[0]], [3, 11])
    check(env.reset(), [0, 0], [nothing, nothing], [0, 0])


@pytest.mark.parametrize(("action", "reward"), [(True, False), (False, True)])
def test_one_of_the_two(action: bool, reward: bool) -> None:
    env = PreviousInputs(envs(spaces.Discrete(3)), action=action, reward=reward)
    expected = {"observation"} | ({"previous_action"} if action else set()) | ({"previous_reward"} if reward else set())
    assert set(env.reset()) == expected == set(env.observation_space.keys())
    obs, _, _, infos = env.step(np.array([1, 2]))
    obs, _, _, infos = env.step(np.array([1, 2]))
    assert set(obs) == set(infos[1]["terminal_observation"]) == expected


def test_discrete_observations(random_envs: Callable) -> None:
    env = PreviousInputs(random_envs(spaces.Discrete(6), spaces.Discrete(3)))
    obs = env.reset()
    for _ in range(12):
        obs, _, dones, infos = env.step(np.zeros(3, dtype=int))
        assert obs["observation"].shape == (3,)
        for i in np.flatnonzero(dones):
            assert infos[i]["terminal_observation"]["observation"].shape == ()


class SeesActions(BaseCallback):
    """The previous action in an observation is the one that was taken."""

    def _on_step(self) -> bool:
        actions, obs = self.locals["actions"], self.locals["new_obs"]
        for i, is_over in enumerate(self.locals["dones"]):
            expected = np.zeros(4) if is_over else np.eye(4)[actions[i]]
            np.testing.assert_array_equal(obs["previous_action"][i], expected)
        return True


# Red if the agent's actions and those in its next observation were different things.
def test_agent_sees_its_own_actions(make_model: Callable, random_envs: Callable) -> None:
    env = PreviousInputs(random_envs(spaces.Box(-1, 1, (5,)), spaces.Discrete(4)))
    model = make_model("delta", env, policy="MultiInputPolicy").learn(96, SeesActions())
    assert model.num_timesteps == 96


@pytest.mark.parametrize("actions", ["multi_discrete_from_1", "multi_binary", "box"])
def test_agent_learns_with_them(actions: str, make_model: Callable, random_envs: Callable, tmp_path: Any) -> None:
    space = ACTIONS[actions][0]
    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 3), np.uint8), "vector": BOX})
    env = VecNormalize(PreviousInputs(random_envs(observation_space, space, 2)), norm_obs_keys=["vector"])
    kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 9}}
    model = make_model("lstm", env, policy="MultiInputPolicy", policy_kwargs=kwargs).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = MemoryPPO.load(tmp_path / "model.zip", env, device="cpu").learn(32)
    assert all(np.isfinite(tensor.numpy()).all() for tensor in loaded.policy.state_dict().values())
