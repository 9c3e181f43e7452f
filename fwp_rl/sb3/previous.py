"""Previous action and reward as inputs of the memory."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn, VecEnvWrapper


class PreviousInputs(VecEnvWrapper):
    """Adds the previous action and the previous reward to the observation.

    They are memory, too: a policy without any other memory can use its last action as a note to itself. So say when
    you use them, and give them to the control as well.

    The observation becomes a Dict with the keys of the old one (or "observation"), "previous_action" (one-hot for
    discrete actions, the action itself for Box; zeros at the start of an episode) and "previous_reward" (0 at the
    start). Use "MultiInputPolicy".

    :param action: Add the previous action.
    :param reward: Add the previous reward.
    """

    def __init__(self, venv: VecEnv, action: bool = True, reward: bool = True) -> None:
        old = venv.observation_space
        parts: dict[str, spaces.Space[Any]] = dict(old.spaces) if isinstance(old, spaces.Dict) else {"observation": old}
        if action:
            bound = np.inf if isinstance(venv.action_space, spaces.Box) else 1.0
            low = -bound if isinstance(venv.action_space, spaces.Box) else 0.0
            parts["previous_action"] = spaces.Box(low, bound, (spaces.flatdim(venv.action_space),), np.float32)
        if reward:
            parts["previous_reward"] = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        super().__init__(venv, observation_space=spaces.Dict(parts))
        self._with_action = action
        self._with_reward = reward
        self._actions: np.ndarray | None = None

    def reset(self) -> VecEnvObs:
        """Reset all environments; nothing came before."""
        return self._extend(self.venv.reset(), np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool))

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions, and pass them on."""
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """The step, with this action and reward added to its observation; rows that start anew see zeros."""
        obs, rewards, dones, infos = self.venv.step_wait()
        if dones.any():
            known = np.ones(1, dtype=bool)
            for i in np.flatnonzero(dones).tolist():
                if "terminal_observation" in infos[i]:
                    row = self._extend(_batch_of_one(infos[i]["terminal_observation"]), rewards[i : i + 1], known, i)
                    infos[i]["terminal_observation"] = {key: array[0] for key, array in row.items()}
        return self._extend(obs, rewards, ~dones), rewards, dones, infos

    def _extend(
        self, obs: Any, rewards: np.ndarray, known: np.ndarray, row: int | None = None
    ) -> dict[str, np.ndarray]:
        extended = dict(obs) if isinstance(obs, dict) else {"observation": obs}
        if self._with_action:
            size = self.observation_space["previous_action"].shape[0]  # type: ignore[index]  # a Dict with boxes
            encoded = np.zeros((len(known), size), dtype=np.float32)
            if self._actions is not None and known.any():
                actions = self._actions if row is None else self._actions[row : row + 1]
                encoded[known] = _encode(self.action_space, actions)[known]
            extended["previous_action"] = encoded
        if self._with_reward:
            extended["previous_reward"] = np.where(known, rewards, 0.0).astype(np.float32)[:, None]
        return extended


def _batch_of_one(obs: Any) -> Any:
    return (
        {key: np.asarray(value)[None] for key, value in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
    )


def _encode(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Actions `[N, ...]` as float32 `[N, size]`."""
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[actions - int(space.start)]
    if isinstance(space, spaces.MultiDiscrete):
        actions = (actions - space.start).reshape(len(actions), -1)
        columns = [np.eye(int(n), dtype=np.float32)[actions[:, i]] for i, n in enumerate(space.nvec.flatten())]
        return np.concatenate(columns, axis=1)
    return actions.reshape(len(actions), -1).astype(np.float32)
