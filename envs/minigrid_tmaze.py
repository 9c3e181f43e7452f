"""A T-maze on MiniGrid's engine, in which memory is the only way to know where to turn."""

from typing import Any, SupportsFloat

import numpy as np
from gymnasium import spaces
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Goal, Key
from minigrid.minigrid_env import MiniGridEnv
from typing_extensions import override

_START, _CORRIDOR, _LEFT_ARM, _RIGHT_ARM = 1, 2, 1, 3  # column of the start; rows of the corridor and of its arms


class MiniGridTMaze(MiniGridEnv):
    """Read the cue at the start, walk down a corridor, turn to the side that the cue told.

    Description: the agent stands at the closed end of a corridor, one cell wide. An object lies in a niche on its
    left: a key means left, a ball means right. `length` cells further the corridor ends in a T. Both arms look alike.

    Action space: `Discrete(3)`: turn left, turn right, move forward. (Nothing can be picked up: carrying the cue would
    be a memory outside of the agent.)

    Observation space: MiniGrid's partial view, by default 3 cells wide; see `envs.minigrid.MiniGridOptions`. The cue is
    in view at the start, and from the first cells of the corridor to an agent that turns round. It is in view from no
    place from which an arm can be entered.

    Rewards: 1 for entering the arm that the cue told, else 0.

    Starting state: the agent at the closed end, looking down the corridor; key or ball with equal probability.

    Episode end: terminated in either arm; truncated after `max_steps` (default 10 * (length + 4)).

    Arguments: `length`, cells from the start to the junction, at least `view_size` (default 7).

    Anchors: optimal 1, in `length + 2` steps. Memoryless 0.5, exactly: the corridor can only be walked looking forward,
    so every way into an arm leads through one state, the junction seen from the corridor, and whatever is seen from
    there on until the agent walks back to the cue is the same for both cues. Let a policy that arrives there with
    t steps left enter the left and the right arm in time with probability l(t) and r(t). Both grow with t and
    l(t) + r(t) <= 1, so whatever arrival times its view of the cue brought about,
    (l(t) + r(t')) / 2 <= (l(max) + r(max)) / 2 <= 1/2. Random: `anchors()` computes it.
    "clock" 1: whoever turns away and back at the start after one of the two cues reaches the junction two steps later
    than after the other, and knows the side by the step.
    """

    def __init__(
        self, length: int = 7, max_steps: int | None = None, *, agent_view_size: int = 3, **minigrid_options: Any
    ) -> None:
        if not isinstance(length, int) or length < agent_view_size:
            raise ValueError(
                f"length must be at least view_size = {agent_view_size}, got {length!r}: "
                "in a shorter corridor the cue could be read from the junction"
            )
        self.length = length
        super().__init__(
            mission_space=MissionSpace(mission_func=_mission),
            width=length + 3,
            height=5,
            max_steps=10 * (length + 4) if max_steps is None else max_steps,
            agent_view_size=agent_view_size,
            **minigrid_options,
        )
        self.action_space = spaces.Discrete(3)

    @override
    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        for row in range(height):
            self.grid.horz_wall(0, row)
        for column in range(_START, self._junction + 1):
            self.grid.set(column, _CORRIDOR, None)
        cue = self._rand_elem([Key, Ball])
        self.put_obj(cue("yellow"), _START, _CORRIDOR - 1)
        self.put_obj(Goal(), self._junction, _LEFT_ARM)
        self.put_obj(Goal(), self._junction, _RIGHT_ARM)
        self.success_row = _LEFT_ARM if cue is Key else _RIGHT_ARM
        self.agent_pos, self.agent_dir = (_START, _CORRIDOR), 0
        self.mission = _mission()

    @override
    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            reward = float(self.agent_pos[1] == self.success_row)
        return observation, reward, terminated, truncated, info

    def anchors(self) -> dict[str, float]:
        """Expected return of the best policy, of the best one without memory and of uniformly random actions."""
        return {"optimal": 1.0, "memoryless": 0.5, "random": self._random_return(), "clock": 1.0}

    @property
    def _junction(self) -> int:
        return _START + self.length

    def _random_return(self) -> float:
        """Half the probability of reaching an arm in time: the sides are equally likely."""
        cells = np.zeros((self.length + 1, 4))  # probability by cell of the corridor and direction (east first)
        cells[0, 0] = 1.0
        arrived = 0.0
        for _ in range(self.max_steps):
            turned = (np.roll(cells, 1, axis=1) + np.roll(cells, -1, axis=1)) / 3
            walked = cells / 3
            arrived += walked[-1, 1] + walked[-1, 3]
            walked[-1, [1, 3]] = 0.0
            east, west = walked[:, 0].copy(), walked[:, 2].copy()
            walked[:, 0], walked[:, 2] = 0.0, 0.0
            walked[1:, 0] += east[:-1]
            walked[-1, 0] += east[-1]
            walked[:-1, 2] += west[1:]
            walked[0, 2] += west[0]
            cells = turned + walked
        return float(arrived / 2)


def _mission() -> str:
    return "walk down the corridor, then turn left if there was a key at the start, right if there was a ball"
