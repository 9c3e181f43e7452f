"""Classic control with the velocities taken out: what moves how fast has to be remembered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from typing_extensions import override


@dataclass(frozen=True, kw_only=True)
class MaskedTask:
    """A Gymnasium environment and what is hidden of it."""

    id: str
    full_id: str  # the environment that sees everything
    velocities: tuple[int, ...]  # places in the observation that are taken out
    is_success: Callable[[float, bool, bool], bool] | None  # of reward, terminated and truncated at the end


MASKED_TASKS: Mapping[str, MaskedTask] = MappingProxyType(
    {
        task.id: task
        for task in (
            MaskedTask(
                id="CartPoleNoVel-v1",
                full_id="CartPole-v1",
                velocities=(1, 3),
                is_success=lambda reward, terminated, truncated: truncated and not terminated,
            ),
            MaskedTask(id="PendulumNoVel-v1", full_id="Pendulum-v1", velocities=(2,), is_success=None),
            MaskedTask(
                id="MountainCarContinuousNoVel-v0",
                full_id="MountainCarContinuous-v0",
                velocities=(1,),
                is_success=lambda reward, terminated, truncated: terminated,
            ),
            MaskedTask(
                id="LunarLanderNoVel-v3",
                full_id="LunarLander-v3",
                velocities=(2, 3, 5),
                is_success=lambda reward, terminated, truncated: terminated and reward > 0,
            ),
        )
    }
)


class WithoutVelocities(gymnasium.Wrapper):
    """A control task that shows positions and angles, never velocities.

    Description: `CartPoleNoVel-v1`, `PendulumNoVel-v1`, `MountainCarContinuousNoVel-v0` and `LunarLanderNoVel-v3`
    (needs Box2D) are Gymnasium's environments with the masks of RL Zoo's PPO-LSTM benchmark. A velocity is the
    difference of two observations: two steps of memory are enough.

    Action space: that of the full environment.

    Observation space: that of the full environment without the velocities (CartPole: cart and pole velocity; Pendulum:
    angular velocity; MountainCar: velocity; LunarLander: both linear velocities and the angular one). They are taken
    out, where RL Zoo writes zeros; to a network that is the same.

    Rewards, starting state, episode end, arguments: those of the full environment. `info["is_success"]` means for
    CartPole that the pole stood to the end, for MountainCar that the car reached the flag, for LunarLander that it came
    to rest safely. Pendulum has no end to reach.

    Anchors: the best return is that of the full environment (CartPole 500), because two observations tell all that the
    full one does.
    """

    def __init__(self, env: gymnasium.Env, task: MaskedTask) -> None:
        super().__init__(env)
        self._task = task
        full = env.observation_space
        assert isinstance(full, spaces.Box)
        self._seen = np.delete(np.arange(len(full.low)), task.velocities)
        self.observation_space = spaces.Box(full.low[self._seen], full.high[self._seen], dtype=np.float32)

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation[self._seen], info

    @override
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._task.is_success is not None:
            ended = terminated or truncated
            info["is_success"] = bool(ended and self._task.is_success(float(reward), terminated, truncated))
        return observation[self._seen], float(reward), terminated, truncated, info


def make_masked(task_id: str, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """The task of that id, with the full environment's options."""
    task = MASKED_TASKS[task_id]
    env = gymnasium.make(task.full_id, render_mode=render_mode, disable_env_checker=True, **options)
    return WithoutVelocities(env, task)
