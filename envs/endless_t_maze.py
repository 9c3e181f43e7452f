"""The Endless T-Maze by its published rules: a cue that every corridor replaces by the next."""

from collections.abc import Callable, Mapping

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs._maze_picture import ACTION_NAMES, FORWARD, LEFT, RIGHT, t_maze_picture
from envs.task import Outcome, VectorTask

_PENALTY = 0.01


class EndlessTMaze(VectorTask):
    """Read a cue, walk down a corridor, turn to the side that the cue told; in `n_corridors`, one after the other.

    Description: the Endless T-Maze (Shchendrigin, Cherepanov, Kovalev & Panov 2026, arXiv 2601.15086) by the rules of
    its published code, so that results can stand beside theirs. Each correct turn leads into the next corridor, whose
    cue replaces the last one.

    Action space: `Discrete(3)`: forward, left, right.

    Observation space: `Box(0, 1, (3,))`: position / length, cue left, cue right. The cue is on only in the first cell.
    The junction is not marked: with `uniform` it cannot be seen.

    Rewards: 1 for a correct turn; -0.01 for a turn before the junction, which does nothing, and for a wrong turn (in
    the code; the paper says -1).

    Starting state: the first cell of the first corridor; each cue left or right with equal probability; with `uniform`
    each corridor's length uniform in 1..length, else `length`.

    Episode end: terminated by the last correct turn (success), and at a junction by anything but the correct turn,
    going forward included; truncated after 6 * n_corridors * (length + 1) steps.

    Arguments: `length` (default 10); `n_corridors` (default 3); `uniform` (default False).

    Anchors: optimal n_corridors, for somebody who knows where the junction is. Memoryless: walk to the end and turn to
    one side; with `uniform`, where no place tells the junction, turn or walk on by chance, with the best probability
    for each place (to within the grid that it is searched on). With `uniform` also "junction_unseen": the best with a
    memory and without knowing the length, who tries a turn at every place, and for whom every vain one costs 0.01.
    Without it also "clock", 0.995 n_corridors: whoever waits in the first cell for an even or an odd step, as the cue
    tells, knows the side by the step at which the junction is reached; one of two cues costs a vain turn, and without
    one the junction is reached at the same step after both. And with several corridors "order_blind", as of `TMaze`:
    who knows how many cues were left and how many right.
    """

    action_names = ACTION_NAMES

    def __init__(self, n_envs: int, *, length: int = 10, n_corridors: int = 3, uniform: bool = False) -> None:
        super().__init__(n_envs)
        for name, value in (("length", length), ("n_corridors", n_corridors)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        self.length, self.n_corridors, self.uniform = length, n_corridors, uniform
        self.max_steps = 6 * n_corridors * (length + 1)
        self.observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(3)
        # How likely the junction is at each place, for somebody who has just come there
        self._hazard = 1 / (length + 1 - np.arange(length + 1)) if uniform else np.eye(length + 1)[length]
        self._hazard[0] = 0.0
        self._chance_to_walk = self._memoryless_policy()
        self._luck = np.random.default_rng(0)  # of the memoryless policy
        self._rows = np.arange(n_envs)
        self._sides = np.full((n_envs, n_corridors), LEFT)  # the correct turn of each corridor
        self._junctions = np.full((n_envs, n_corridors), length)
        self._corridor = np.zeros(n_envs, np.int64)
        self._side = np.full(n_envs, LEFT)  # of the present corridor
        self._junction = np.full(n_envs, length)
        self._position = np.zeros(n_envs, np.int64)
        self._steps = np.zeros(n_envs, np.int64)
        self._in_vain = np.zeros(n_envs, bool)  # the last step was a turn before the junction
        self._turn = np.zeros(n_envs, np.int64)  # the last turn taken at a junction, FORWARD for none: for the picture

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform_draws(rows, 2 * self.n_corridors)
        self._sides[rows] = np.where(draws[:, : self.n_corridors] < 0.5, LEFT, RIGHT)
        if self.uniform:
            self._junctions[rows] = 1 + (draws[:, self.n_corridors :] * self.length).astype(np.int64)
        self._corridor[rows] = 0
        self._steps[rows] = 0
        self._turn[rows] = FORWARD
        self._enter_corridor(rows)

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        self._steps += 1
        at_junction = self._position == self._junction
        walks = actions == FORWARD
        correct = at_junction & (actions == self._side)
        self._turn = np.where(at_junction, actions, FORWARD)
        self._in_vain = ~(at_junction | walks)
        success = correct & (self._corridor == self.n_corridors - 1)
        failure = at_junction & ~correct
        rewards = correct - _PENALTY * (failure | ~(at_junction | walks))
        self._position += walks & ~at_junction
        moves_on = np.flatnonzero(correct & ~success)
        if len(moves_on):
            self._corridor[moves_on] += 1
            self._enter_corridor(moves_on)
        terminated = success | failure
        return Outcome(self.observe(), rewards, terminated, ~terminated & (self._steps >= self.max_steps), success)

    @override
    def observe(self) -> np.ndarray:
        observations = np.zeros((self.n_envs, 3), np.float32)
        observations[:, 0] = self._position / self.length
        observations[self._rows, self._side] = self._position == 0
        return observations

    @override
    def anchors(self) -> dict[str, float]:
        anchors = {
            "optimal": float(self.n_corridors),
            "memoryless": self._blind_return(self._chance_to_walk),
            "random": self._blind_return(np.full(self.length + 1, 1 / 3)),
        }
        if self.uniform:
            return anchors | {"junction_unseen": self._junction_unseen()[0]}
        n = self.n_corridors
        anchors["clock"] = (1 - _PENALTY / 2) * n
        if n > 1:
            all_right = (n + 1) * 0.5**n
            anchors["order_blind"] = 3 - (n + 3) * 0.5**n - _PENALTY * (1 - all_right)
        return anchors

    @override
    def oracle_actions(self) -> np.ndarray:
        return np.where(self._position == self._junction, self._side, FORWARD)

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        chance = self._chance_to_walk[np.rint(observations[:, 0] * self.length).astype(np.int64)]
        return np.where(self._luck.random(len(chance)) < chance, FORWARD, LEFT)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        if self.uniform:
            return {"junction_unseen": self._junction_unseen_actions}
        order_blind = {"order_blind": self._order_blind_actions} if self.n_corridors > 1 else {}
        return {"clock": self._clock_actions, **order_blind}

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

    def _enter_corridor(self, rows: np.ndarray) -> None:
        corridors = self._corridor[rows]
        self._side[rows] = self._sides[rows, corridors]
        self._junction[rows] = self._junctions[rows, corridors]
        self._position[rows] = 0

    def _blind_return(self, walk: np.ndarray) -> float:
        """Exact return of walking with probability `walk[place]` and else turning to a side that the cue does not set.

        Over the probabilities of (corridor, place), apart for those who have just come there and for those who have
        turned there in vain, and know that it is no junction.
        """
        arrived, stayed = np.zeros((2, self.n_corridors, self.length + 1))
        arrived[0, 0] = 1.0
        expected = 0.0
        for _ in range(self.max_steps):
            at_junction, elsewhere = arrived * self._hazard, arrived * (1 - self._hazard) + stayed
            correct = at_junction * (1 - walk) / 2
            expected += correct.sum() - _PENALTY * ((at_junction - correct).sum() + (elsewhere * (1 - walk)).sum())
            stayed = elsewhere * (1 - walk)
            arrived = np.zeros_like(arrived)
            arrived[:, 1:] = (elsewhere * walk)[:, :-1]
            arrived[1:, 0] = correct.sum(1)[:-1]
        return float(expected)

    def _memoryless_policy(self) -> np.ndarray:
        """The best probability of walking on at each place, [length + 1], for somebody who turns left otherwise.

        A turn at a place of hazard h gains h w / 2, with w for what lies behind the junction, and each walk on costs
        (1 - h) 0.01 / walk in vain turns before it: their sum is best where walk = sqrt(0.02 (1 - h) / (h w)). All
        corridors look alike, so the best w is a compromise between them. The limit of steps is left out.
        """
        hazard = self._hazard[1:]
        if not self.uniform:
            return 1.0 - self._hazard

        def value(walk: np.ndarray) -> float:
            reached = np.cumprod(np.append(1.0, 1 - hazard))[:-1]
            correct = (reached * hazard * (1 - walk) / 2).sum()
            vain = (reached * (1 - hazard) * (1 / np.maximum(walk, 1e-12) - 1)).sum()
            gain = correct - _PENALTY * (1 - correct + vain)
            return float(gain * (correct ** np.arange(self.n_corridors)).sum())

        policies = [np.sqrt(2 * _PENALTY * (1 - hazard) / (hazard * w)).clip(0, 1) for w in np.geomspace(0.02, 4, 400)]
        return np.append(1.0, max(policies, key=value))

    def _junction_unseen(self) -> tuple[float, np.ndarray]:
        """Backwards from the last corridor: at each place turn or walk on, whichever is worth more.

        Returns what it is worth, and where to try a turn, bool[n_corridors, length + 1].
        """
        value, tries = 0.0, np.zeros((self.n_corridors, self.length + 1), bool)
        tries[:, -1] = True  # the end of the longest corridor, which is known
        for corridor in reversed(range(self.n_corridors)):
            value = behind = 1.0 + value  # the junction
            for place in range(self.length - 1, 0, -1):
                hazard = self._hazard[place]
                turn = hazard * behind + (1 - hazard) * (value - _PENALTY)
                walk = (1 - hazard) * value - hazard * _PENALTY
                value, tries[corridor, place] = max(turn, walk), turn >= walk
        return float(value), tries

    def _junction_unseen_actions(self, observations: np.ndarray) -> np.ndarray:
        tries = self._junction_unseen()[1][self._corridor, self._position]
        return np.where(tries & ~self._in_vain, self._side, FORWARD)

    def _clock_actions(self, observations: np.ndarray) -> np.ndarray:
        places, left, right = observations.T
        is_odd, has_left_at_odd = self._steps % 2 == 1, (self._steps - self.length) % 2 == 1
        waits = np.where(is_odd, left > 0, right > 0)
        return np.where(places == 1, np.where(has_left_at_odd, RIGHT, LEFT), np.where(waits, LEFT, FORWARD))

    def _order_blind_actions(self, observations: np.ndarray) -> np.ndarray:
        so_far = np.arange(self.n_corridors) <= self._corridor[:, None]
        side = np.where(((self._sides == LEFT) & so_far).any(1), LEFT, RIGHT)
        return np.where(observations[:, 0] == 1, side, FORWARD)
