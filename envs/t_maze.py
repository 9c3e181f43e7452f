"""T-mazes in a row: retention of one bit over a corridor, and overwriting it in the next."""

from collections.abc import Callable, Mapping

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs._maze_picture import ACTION_NAMES, FORWARD, LEFT, RIGHT, t_maze_picture
from envs.task import Outcome, VectorTask


class TMaze(VectorTask):
    """Read a cue, walk down a corridor, turn to the side that the cue told; `n_corridors` times.

    Description: the passive T-maze (Bakker 2001; Ni et al. 2023). With several corridors every correct turn leads into
    the next corridor with a new cue, and the old one has to be overwritten, as in the endless T-maze, whose published
    rules `EndlessTMaze` follows; here junctions can be seen, so that lengths that differ stay fair. The first cell of a
    corridor shows the cue, its last one is the junction.

    Action space: `Discrete(3)`: forward, left, right. Turning does nothing before the junction, and going forward does
    nothing at it.

    Observation space: `Box(0, 1, (4,))`: cue left, cue right, junction, and a constant 1. The cue is on only in the
    first cell.

    Rewards: 1 / n_corridors for a correct turn, so that a perfect episode returns 1.

    Starting state: the first cell of the first corridor; each cue left or right with equal probability; with `uniform`
    each corridor's length uniform in 1..length, else `length`.

    Episode end: terminated by a wrong turn or by the last correct one (success); truncated after
    2 * n_corridors * (length + 1) steps, twice what is needed.

    Arguments: `length`, steps from the first cell to the junction (default 10); `n_corridors` (default 1); `uniform`
    (default False).

    Anchors: optimal 1. Memoryless (1 - 2**-n_corridors) / n_corridors: all junctions look alike, so each turn is right
    half of the time, and any return beyond that needs the turns before it to have been right. Random: `anchors()`
    computes it. "clock" 1, where the lengths are equal or there is but one corridor: whoever waits in the first cell
    for an even or an odd step, as the cue tells, knows the side by the step at which the junction is reached. (With one
    corridor of unknown length: who leaves at once or after `length` steps.) With several corridors "order_blind": who
    knows how many cues were left and how many right, and not which came last, goes right in the first corridors and
    takes the first left turn when there has been a left cue. Of the 2**j sequences of j cues that leads through one for
    each number of left cues, j + 1, and no policy of the counts through more.
    """

    action_names = ACTION_NAMES

    def __init__(self, n_envs: int, *, length: int = 10, n_corridors: int = 1, uniform: bool = False) -> None:
        super().__init__(n_envs)
        for name, value in (("length", length), ("n_corridors", n_corridors)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        self.length, self.n_corridors, self.uniform = length, n_corridors, uniform
        self.max_steps = 2 * n_corridors * (length + 1)
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(3)
        self._sides = np.zeros((n_envs, n_corridors), np.int64)  # the correct turn of each corridor
        self._lengths = np.full((n_envs, n_corridors), length)
        self._corridor = np.zeros(n_envs, np.int64)
        self._side = np.zeros(n_envs, np.int64)  # of the present corridor
        self._junction = np.zeros(n_envs, np.int64)
        self._position = np.zeros(n_envs, np.int64)
        self._steps = np.zeros(n_envs, np.int64)
        self._turn = np.zeros(n_envs, np.int64)  # the last turn taken, FORWARD for none: for the picture

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform_draws(rows, 2 * self.n_corridors)
        self._sides[rows] = np.where(draws[:, : self.n_corridors] < 0.5, LEFT, RIGHT)
        if self.uniform:
            self._lengths[rows] = 1 + (draws[:, self.n_corridors :] * self.length).astype(np.int64)
        self._corridor[rows] = 0
        self._steps[rows] = 0
        self._turn[rows] = 0
        self._enter_corridor(rows)

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        self._steps += 1
        at_junction = self._position == self._junction
        turned = at_junction & (actions != FORWARD)
        correct = turned & (actions == self._side)
        self._turn = np.where(turned, actions, FORWARD)
        success = correct & (self._corridor == self.n_corridors - 1)
        self._position += ~at_junction & (actions == FORWARD)
        moves_on = np.flatnonzero(correct & ~success)
        if len(moves_on):
            self._corridor[moves_on] += 1
            self._enter_corridor(moves_on)
        terminated = success | (turned & ~correct)
        truncated = ~terminated & (self._steps >= self.max_steps)
        return Outcome(self.observe(), correct / self.n_corridors, terminated, truncated, success)

    @override
    def observe(self) -> np.ndarray:
        observations = np.zeros((self.n_envs, 4), np.float32)
        at_start = self._position == 0
        observations[:, 0] = at_start & (self._side == LEFT)
        observations[:, 1] = at_start & (self._side == RIGHT)
        observations[:, 2] = self._position == self._junction
        observations[:, 3] = 1.0
        return observations

    @override
    def anchors(self) -> dict[str, float]:
        n = self.n_corridors
        anchors = {"optimal": 1.0, "memoryless": (1 - 0.5**n) / n, "random": self._random_return()}
        if self._clock_tells_all:
            anchors["clock"] = 1.0
        if n > 1:
            anchors["order_blind"] = (3 - (n + 3) * 0.5**n) / n  # the sum of (j + 1) / 2**j for j = 1..n
        return anchors

    @override
    def oracle_actions(self) -> np.ndarray:
        return np.where(self._position == self._junction, self._side, FORWARD)

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        return np.where(observations[:, 2] == 1, LEFT, FORWARD)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        clock = {"clock": self._clock_actions} if self._clock_tells_all else {}
        return clock | ({"order_blind": self._order_blind_actions} if self.n_corridors > 1 else {})

    @override
    def render(self, row: int = 0) -> np.ndarray:
        return t_maze_picture(
            longest=self.length,
            junction=int(self._junction[row]),
            position=int(self._position[row]),
            side=int(self._side[row]),
            turn=int(self._turn[row]),
            corridor=int(self._corridor[row]),
            n_corridors=self.n_corridors,
        )

    @property
    def _clock_tells_all(self) -> bool:
        return not self.uniform or self.n_corridors == 1

    def _clock_actions(self, observations: np.ndarray) -> np.ndarray:
        left, right, at_junction = observations[:, :3].T > 0
        if self.uniform:
            waits, side = right & (self._steps < self.length), np.where(self._steps > self.length, RIGHT, LEFT)
        else:
            is_odd, has_left_at_odd = self._steps % 2 == 1, (self._steps - self.length) % 2 == 1
            waits, side = (left & is_odd) | (right & ~is_odd), np.where(has_left_at_odd, RIGHT, LEFT)
        return np.where(at_junction, side, np.where(waits, LEFT, FORWARD))

    def _order_blind_actions(self, observations: np.ndarray) -> np.ndarray:
        so_far = np.arange(self.n_corridors) <= self._corridor[:, None]
        side = np.where(((self._sides == LEFT) & so_far).any(1), LEFT, RIGHT)
        return np.where(observations[:, 2] > 0, side, FORWARD)

    def _enter_corridor(self, rows: np.ndarray) -> None:
        corridors = self._corridor[rows]
        self._side[rows] = self._sides[rows, corridors]
        self._junction[rows] = self._lengths[rows, corridors]
        self._position[rows] = 0

    def _random_return(self) -> float:
        """Exact, over the probability of each (corridor, steps left to the junction)."""
        start = np.zeros(self.length + 1)
        start[1:] = 1 / self.length if self.uniform else 0.0
        start[self.length] += 0.0 if self.uniform else 1.0
        reached = np.zeros((self.n_corridors, self.length + 1))
        reached[0] = start
        expected = 0.0
        for _ in range(self.max_steps):
            correct = reached[:, 0] / 3
            expected += correct.sum() / self.n_corridors
            after = reached * 2 / 3
            after[:, :-1] += reached[:, 1:] / 3
            after[:, 0] -= reached[:, 0] / 3  # at the junction only forward stays
            after[1:] += correct[:-1, None] * start
            reached = after
        return float(expected)
