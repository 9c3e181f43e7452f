"""Keep track of a state that every step changes: running products in a group."""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs.task import Outcome, VectorTask

GROUPS = ("parity", "cyclic", "cups", "S3", "S5")
QUESTIONS = ("always", "end")
_N_CUPS = 5
_CELL, _GAP = 44, 8


class GroupTracking(VectorTask):
    """See a state once, then moves that change it; say where it stands.

    Description: the first step shows the state, every later one a move, drawn independently and uniformly, that acts
    on it. One lost move makes all that comes after it a guess, so nothing may be forgotten, and where moves do not
    commute nothing may be added up. The groups: "parity", a bit that is flipped or not; "cyclic", a counter modulo
    `order` that goes on by any number of places; "cups", the shell game: five cups, of which none or any two change
    places, and a ball under one of them; "S3" and "S5", the word problem of all permutations of three or five things:
    the state is a permutation, and so is the move.

    Action space: `Discrete(n_states)`: the state after the move in view; 2, `order`, 5, 6 or 120.

    Observation space: `Box(0, 1, (n_states + n_moves,))`: the state one-hot in the first step and zeros later; the
    move one-hot from the second step on; all zeros after the last one.

    Rewards: 1 / (episode_length - 1) for each right answer from the second step on, so that a perfect episode returns
    1; with `asked` "end", 1 for a right answer in the last step.

    Starting state: each state with equal probability.

    Episode end: terminated after `episode_length` steps; a success if every answer that counts was right.

    Arguments: `group` (default "cups"); `order` (default 5), of the cyclic group only; `episode_length` (default 16);
    `asked` (default "always").

    Anchors: optimal 1; memoryless and random 1 / n_states: whatever the move in view, the state after it is uniform.
    "previous_action" 1: the last answer is the state that the move acts on, so that an agent that sees what it did last
    needs no memory.
    """

    def __init__(
        self, n_envs: int, *, group: str = "cups", order: int = 5, episode_length: int = 16, asked: str = "always"
    ) -> None:
        super().__init__(n_envs)
        for name, value in (("order", order), ("episode_length", episode_length)):
            if not isinstance(value, int) or value < 2:
                raise ValueError(f"{name} must be a whole number, at least 2, got {value!r}")
        for name, choice, choices in (("group", group, GROUPS), ("asked", asked, QUESTIONS)):
            if choice not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")
        self.group, self.order, self.episode_length, self.asked = group, order, episode_length, asked
        self.moves = _moves(group, order)
        self.n_moves, self.n_states = self.moves.table.shape
        self.observation_space = spaces.Box(0.0, 1.0, (self.n_states + self.n_moves,), np.float32)
        self.action_space = spaces.Discrete(self.n_states)
        self._rows = np.arange(n_envs)
        self._sights = np.eye(self.n_states + self.n_moves + 1, self.n_states + self.n_moves, dtype=np.float32)
        # the state, then moves counted from n_states on, then a blank
        self._shown = np.full((n_envs, episode_length + 1), self.n_states + self.n_moves)
        # The blank stands still: one row more than there are moves.
        self._table = np.vstack([self.moves.table, np.arange(self.n_states)])
        self._state = np.zeros(n_envs, np.int64)
        self._step = np.zeros(n_envs, np.int64)
        self._n_right = np.zeros(n_envs, np.int64)
        self._answer = np.full(n_envs, -1)  # the last answer and what was right, for the picture
        self._asked_state = np.full(n_envs, -1)
        self._n_questions = episode_length - 1 if asked == "always" else 1

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform_draws(rows, self.episode_length)
        states = (draws[:, 0] * self.n_states).astype(np.int64)
        self._shown[rows, 0] = states
        self._shown[rows, 1:-1] = self.n_states + (draws[:, 1:] * self.n_moves).astype(np.int64)
        self._state[rows] = states
        self._step[rows] = 0
        self._n_right[rows] = 0
        self._answer[rows] = -1

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        counts = self._step >= self.episode_length - self._n_questions
        right = counts & (actions == self._state)
        self._n_right += right
        self._answer, self._asked_state = np.array(actions), self._state
        self._step += 1
        self._state = self._table[self._shown[self._rows, self._step] - self.n_states, self._state]
        terminated = self._step == self.episode_length
        success = terminated & (self._n_right == self._n_questions)
        return Outcome(self.observe(), right / self._n_questions, terminated, np.zeros(self.n_envs, bool), success)

    @override
    def observe(self) -> np.ndarray:
        return self._sights[self._shown[self._rows, self._step]]

    @override
    def anchors(self) -> dict[str, float]:
        chance = 1 / self.n_states
        return {"optimal": 1.0, "memoryless": chance, "random": chance, "previous_action": 1.0}

    @override
    def oracle_actions(self) -> np.ndarray:
        return self._state.copy()

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        return np.zeros(len(observations), np.int64)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return {"previous_action": self._previous_action_actions}

    @override
    def render(self, row: int = 0) -> np.ndarray:
        n_columns = min(self.n_states, 12)
        n_rows = -(-self.n_states // n_columns)
        cell = _CELL if n_rows == 1 else _CELL // 2
        width = max(n_columns * (cell + _GAP), 5 * (_CELL + _GAP)) + _GAP
        below = 2 * _GAP + n_rows * (cell + _GAP)
        canvas = draw.Canvas(width, below + _CELL + 3 * _GAP)
        step, shown = int(self._step[row]), int(self._shown[row, self._step[row]])
        for state in range(self.n_states):
            left = _GAP + state % n_columns * (cell + _GAP)
            top = 2 * _GAP + state // n_columns * (cell + _GAP)
            if state == self._answer[row]:
                color = draw.GOOD if state == self._asked_state[row] else draw.BAD
                counts = step > self.episode_length - self._n_questions
                draw.frame(canvas, left, top, cell, cell, color if counts else draw.FAINT)
            canvas.rectangle(left, top, left + cell, top + cell, draw.FLOOR, radius=cell / 4)
            if state == self._state[row]:  # in view in the first step only
                color = draw.AGENT if step == 0 else draw.FAINT
                canvas.disc(left + cell / 2, top + cell / 2, 0.3 * cell, color)
        if self.n_states <= shown < self.n_states + self.n_moves:
            self._draw_move(canvas, below, shown - self.n_states)
        draw.progress(canvas, _GAP, below + _CELL + _GAP, width - 2 * _GAP, step / self.episode_length)
        return canvas.picture()

    def _previous_action_actions(self, observations: np.ndarray) -> np.ndarray:
        states, moves = np.split(observations, [self.n_states], axis=1)
        return np.where(states.any(1), states.argmax(1), self._table[moves.argmax(1), self._answer])

    def _draw_move(self, canvas: draw.Canvas, top: float, move: int) -> None:
        """One tile for each thing that the move permutes, colored by the place that it goes to."""
        images = self.moves.images[move]
        for place, image in enumerate(images):
            left = _GAP + place * (_CELL + _GAP)
            canvas.rectangle(left, top, left + _CELL, top + _CELL, draw.FLOOR, radius=6)
            distance = (image - place) * (_CELL + _GAP)
            color = draw.CUE if distance else draw.FAINT
            x, y = left + _CELL / 2, top + _CELL / 2
            if distance:
                canvas.arrow(x, y, _CELL * 0.6, (1 if distance > 0 else -1, 0), color)
                for dot in range(abs(int(image) - place)):  # so many places
                    canvas.disc(left + 8 + 7 * dot, top + _CELL - 6, 2.2, color)
            else:
                canvas.disc(x, y, 4, color)


class _Moves(NamedTuple):
    """What can happen to a state."""

    table: np.ndarray  # int[n_moves, n_states]: the state after it
    images: np.ndarray  # int[n_moves, n_places]: where each place goes, for the picture


def _moves(group: str, order: int) -> _Moves:
    if group in ("parity", "cyclic"):
        n_states = 2 if group == "parity" else order
        steps = np.arange(n_states)
        table = (steps[:, None] + steps) % n_states
        return _Moves(table, table)
    if group == "cups":
        still = np.arange(_N_CUPS)
        moves = [still]
        for one, other in itertools.combinations(range(_N_CUPS), 2):
            swap = still.copy()
            swap[[one, other]] = other, one
            moves.append(swap)
        return _Moves(np.array(moves), np.array(moves))
    elements = np.array(list(itertools.permutations(range(int(group[1:])))))
    digits = len(elements[0]) ** np.arange(len(elements[0]))
    index = {int(element @ digits): number for number, element in enumerate(elements)}
    products = elements[:, elements] @ digits  # [move, state]: first the state, then the move
    return _Moves(np.vectorize(index.__getitem__)(products), elements)
