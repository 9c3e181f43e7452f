"""See a sequence, then say it again, forwards or backwards: how much fits, and in which order."""

from collections.abc import Callable, Mapping

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs._order_blind import most_frequent, most_frequent_share
from envs.task import Outcome, VectorTask

_CARD, _GAP = 48, 10
_MAX_COLUMNS = 12


class Copy(VectorTask):
    """See `length` symbols, one after the other, then name them in the same order, or backwards.

    Description: the symbols are drawn independently and uniformly. While they are named nothing new is seen: the agent
    has to hold all of them, and to know how many it has already named. With `reverse` the symbol seen last is named
    first: a stack instead of a queue. Symbols are then named 1, 3, 5, ... steps after they were seen, instead of all
    of them after `length` steps.

    Action space: `Discrete(n_symbols)`: the next symbol; without effect while the sequence is shown.

    Observation space: `Box(0, 1, (n_symbols + 1,))`: the symbol one-hot, or a 1 at the end when it is the agent's turn;
    zeros after the last step.

    Rewards: 1 / length for each right answer, so that a perfect episode returns 1.

    Starting state: the first symbol.

    Episode end: terminated after 2 * length steps; a success if every answer was right.

    Arguments: `length` (default 4); `n_symbols` (default 4); `reverse`, the last one first (default False).

    Anchors: optimal 1; memoryless and random 1 / n_symbols, because all of the agent's turns look alike, and to know
    which of them it is tells nothing of the symbols. "order_blind": whoever knows how often each symbol was shown, and
    not when, names the most frequent one at each turn and is right as often as it was shown. `reverse` changes none of
    them: the symbols are drawn alike, so that none is easier to guess for its place. With `reverse` the first answer
    was in view one step before, and whoever also remembers the last observation returns
    (1 + (length - 1) / n_symbols) / length; that is a memory, and no anchor.
    """

    def __init__(self, n_envs: int, *, length: int = 4, n_symbols: int = 4, reverse: bool = False) -> None:
        super().__init__(n_envs)
        for name, value, least in (("length", length, 1), ("n_symbols", n_symbols, 2)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
        if not isinstance(reverse, bool):
            raise ValueError(f"reverse must be True or False, got {reverse!r}")
        self.length, self.n_symbols, self.reverse = length, n_symbols, reverse
        self.episode_length = 2 * length
        self.observation_space = spaces.Box(0.0, 1.0, (n_symbols + 1,), np.float32)
        self.action_space = spaces.Discrete(n_symbols)
        self._rows = np.arange(n_envs)
        self._sights = np.eye(n_symbols + 2, n_symbols + 1, dtype=np.float32)
        self._shown = np.full((n_envs, self.episode_length + 1), n_symbols)  # the symbols, the turns, a blank
        self._shown[:, -1] = n_symbols + 1
        self._step = np.zeros(n_envs, np.int64)
        self._n_right = np.zeros(n_envs, np.int64)
        self._answers = np.full((n_envs, length), -1)  # by the place of the symbol that was due, for the picture

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform_draws(rows, self.length)
        self._shown[rows, : self.length] = (draws * self.n_symbols).astype(np.int64)
        self._step[rows] = 0
        self._n_right[rows] = 0
        self._answers[rows] = -1

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        asked = self._step >= self.length
        right = asked & (actions == self._due())
        self._n_right += right
        answering = np.flatnonzero(asked)
        self._answers[answering, self._place()[answering]] = actions[answering]
        self._step += 1
        terminated = self._step == self.episode_length
        success = terminated & (self._n_right == self.length)
        return Outcome(self.observe(), right / self.length, terminated, np.zeros(self.n_envs, bool), success)

    @override
    def observe(self) -> np.ndarray:
        return self._sights[self._shown[self._rows, self._step]]

    @override
    def anchors(self) -> dict[str, float]:
        chance, order_blind = 1 / self.n_symbols, most_frequent_share(self.length, self.n_symbols)[-1]
        return {"optimal": 1.0, "memoryless": chance, "random": chance, "order_blind": order_blind}

    @override
    def oracle_actions(self) -> np.ndarray:
        return self._due()

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        return np.zeros(len(observations), np.int64)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return {"order_blind": self._order_blind_actions}

    @override
    def render(self, row: int = 0) -> np.ndarray:
        n_columns = min(self.length, _MAX_COLUMNS)
        n_lines = -(-self.length // n_columns)
        line = 2 * (_CARD + _GAP) + _GAP
        width = max(n_columns, 3) * (_CARD + _GAP) + _GAP
        canvas = draw.Canvas(width, n_lines * line + 3 * _GAP)
        step, due = int(self._step[row]), int(self._place()[row])
        asked = self.length <= step < self.episode_length
        for place in range(self.length):
            left, top = _GAP + place % n_columns * (_CARD + _GAP), _GAP + place // n_columns * line
            symbol, answer = int(self._shown[row, place]), int(self._answers[row, place])
            if asked and place == due:
                draw.frame(canvas, left, top, _CARD, _CARD, draw.INK)
            if place <= step:
                draw.card(canvas, left, top, _CARD, symbol, self.n_symbols, faint=place != step)
            below = top + _CARD + _GAP
            if answer >= 0:
                draw.frame(canvas, left, below, _CARD, _CARD, draw.GOOD if answer == symbol else draw.BAD)
                draw.card(canvas, left, below, _CARD, answer, self.n_symbols)
        draw.progress(canvas, _GAP, n_lines * line + _GAP, width - 2 * _GAP, step / self.episode_length)
        return canvas.picture()

    def _order_blind_actions(self, observations: np.ndarray) -> np.ndarray:
        return most_frequent(self._shown, self._shown < self.n_symbols, self.n_symbols)

    def _due(self) -> np.ndarray:
        """The symbol to be named now; in the first half and at the end, any."""
        return self._shown[self._rows, self._place()]

    def _place(self) -> np.ndarray:
        """The place in the sequence of the symbol that is due."""
        n_named = self._step % self.length
        return self.length - 1 - n_named if self.reverse else n_named
