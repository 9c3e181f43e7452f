"""Say what was shown k steps ago: a delay line, where order and capacity count."""

from collections.abc import Callable, Mapping

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs._order_blind import most_frequent, most_frequent_share
from envs.task import Outcome, VectorTask

_CARD, _GAP = 56, 10
_MAX_CARDS = 12


class RepeatPrevious(VectorTask):
    """Name the symbol that was shown `k` steps ago.

    Description: every step shows a symbol, drawn independently and uniformly, so that nothing but memory helps (a deck
    of cards, as in POPGym, can be counted). The agent has to hold the last `k` symbols in order, and to overwrite one
    every step.

    Action space: `Discrete(n_symbols)`: the symbol of `k` steps ago.

    Observation space: `Box(0, 1, (n_symbols,))`: the symbol one-hot; zeros after the last step.

    Rewards: 1 / (episode_length - k) for each right answer from step `k` on, so that a perfect episode returns 1.

    Starting state: the first symbol.

    Episode end: terminated after `episode_length` steps; a success if every answer was right.

    Arguments: `k` (default 4), `n_symbols` (default 4), `episode_length` (default 32).

    Anchors: optimal 1; memoryless and random 1 / n_symbols, because the symbol asked for is independent of the one in
    view, and of the step. "order_blind": whoever knows how often each symbol was shown before the one in view, and not
    when, names the most frequent one: each of those before is as likely to be the one of `k` steps ago.
    """

    def __init__(self, n_envs: int, *, k: int = 4, n_symbols: int = 4, episode_length: int = 32) -> None:
        super().__init__(n_envs)
        for name, value, least in (("k", k, 1), ("n_symbols", n_symbols, 2), ("episode_length", episode_length, 2)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
        if episode_length <= k:
            raise ValueError(f"episode_length={episode_length} must exceed k={k}: nothing would ever be asked")
        self.k, self.n_symbols, self.episode_length = k, n_symbols, episode_length
        self.observation_space = spaces.Box(0.0, 1.0, (n_symbols,), np.float32)
        self.action_space = spaces.Discrete(n_symbols)
        self._rows = np.arange(n_envs)
        self._one_hot = np.vstack([np.eye(n_symbols), np.zeros(n_symbols)]).astype(np.float32)
        # k blanks, the symbols, one blank: what was shown k steps ago is at [step], what is shown now at [step + k]
        self._symbols = np.full((n_envs, k + episode_length + 1), n_symbols)
        self._step = np.zeros(n_envs, np.int64)
        self._n_right = np.zeros(n_envs, np.int64)
        self._answer = np.full(n_envs, -1)  # the last answer, for the picture

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform_draws(rows, self.episode_length)
        self._symbols[rows, self.k : -1] = (draws * self.n_symbols).astype(np.int64)
        self._step[rows] = 0
        self._n_right[rows] = 0
        self._answer[rows] = -1

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        right = actions == self._symbols[self._rows, self._step]  # never before step k: the blanks are no action
        self._n_right += right
        self._answer = np.array(actions)
        self._step += 1
        n_questions = self.episode_length - self.k
        terminated = self._step == self.episode_length
        success = terminated & (self._n_right == n_questions)
        return Outcome(self.observe(), right / n_questions, terminated, np.zeros(self.n_envs, bool), success)

    @override
    def observe(self) -> np.ndarray:
        return self._one_hot[self._symbols[self._rows, self._step + self.k]]

    @override
    def anchors(self) -> dict[str, float]:
        chance = 1 / self.n_symbols
        shares = most_frequent_share(self.episode_length - 1, self.n_symbols)[self.k :]  # by the step, from k on
        return {"optimal": 1.0, "memoryless": chance, "random": chance, "order_blind": float(np.mean(shares))}

    @override
    def oracle_actions(self) -> np.ndarray:
        return self._symbols[self._rows, self._step] % self.n_symbols

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        return np.zeros(len(observations), np.int64)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return {"order_blind": self._order_blind_actions}

    @override
    def render(self, row: int = 0) -> np.ndarray:
        n_cards = min(self.k + 1, _MAX_CARDS)
        canvas = draw.Canvas(n_cards * (_CARD + _GAP) + _GAP, 3 * _CARD + 4 * _GAP)
        step = int(self._step[row])
        for place in range(n_cards):  # the newest card on the right
            shown = step - (n_cards - 1 - place)
            is_now, is_asked = place == n_cards - 1, shown == step - self.k
            if 0 <= shown <= self.episode_length:
                self._draw_card(
                    canvas, place, int(self._symbols[row, shown + self.k]), is_now=is_now, is_asked=is_asked
                )
        self._draw_answer(canvas, row, n_cards)
        share = step / self.episode_length
        draw.progress(canvas, _GAP, 3 * _CARD + 3 * _GAP, n_cards * (_CARD + _GAP) - _GAP, share)
        return canvas.picture()

    def _order_blind_actions(self, observations: np.ndarray) -> np.ndarray:
        before = np.arange(self._symbols.shape[1]) < self.k + self._step[:, None]
        return most_frequent(self._symbols, before, self.n_symbols)  # the blanks are none of them

    def _draw_card(self, canvas: draw.Canvas, place: int, symbol: int, *, is_now: bool, is_asked: bool) -> None:
        """The card in view is in color, those before it lie face down, seen only through the paper."""
        left, top = _GAP + place * (_CARD + _GAP), _GAP
        if is_asked:
            canvas.rectangle(left - 4, top - 4, left + _CARD + 4, top + _CARD + 4, draw.INK, radius=10)
        self._draw_face(canvas, left, top, symbol, faint=not is_now)

    def _draw_answer(self, canvas: draw.Canvas, row: int, n_cards: int) -> None:
        """Below, the last answer in a frame that says whether it was right."""
        answer, asked = int(self._answer[row]), int(self._step[row]) - 1
        if answer < 0:
            return
        left, top = _GAP + (n_cards - 1) * (_CARD + _GAP) // 2, 2 * _GAP + _CARD + _CARD // 2
        frame = draw.FAINT
        if asked >= self.k:
            frame = draw.GOOD if answer == self._symbols[row, asked] else draw.BAD
        canvas.rectangle(left - 5, top - 5, left + _CARD + 5, top + _CARD + 5, frame, radius=11)
        self._draw_face(canvas, left, top, answer, faint=False)

    def _draw_face(self, canvas: draw.Canvas, left: float, top: float, symbol: int, *, faint: bool) -> None:
        if symbol == self.n_symbols:  # the blank behind the last symbol
            canvas.rectangle(left, top, left + _CARD, top + _CARD, draw.FLOOR, radius=7)
            return
        draw.card(canvas, left, top, _CARD, symbol, self.n_symbols, faint=faint)
