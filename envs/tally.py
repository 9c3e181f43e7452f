"""Count how often each symbol was seen: the task for which adding is enough."""

from collections.abc import Callable, Mapping

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs.task import Outcome, VectorTask

QUESTIONS = ("count", "more_frequent")
_CARD, _GAP = 48, 12


class Tally(VectorTask):
    """Every step shows a symbol and asks how often a symbol was seen, or which of two was seen more often.

    Description: symbols and questions are drawn independently and uniformly. Nothing is ever overwritten and the order
    does not matter: a memory that adds up is all that it takes.

    Action space: with `question` "count", `Discrete(episode_length + 1)`: how often the symbol asked for was seen in
    this episode, the one in view included. With "more_frequent", `Discrete(2)`: whether the first (0) or the second (1)
    of two different symbols was seen more often; if both as often, either is right.

    Observation space: `Box(0, 1, (n * n_symbols,))`: the symbol one-hot, then what is asked for: one symbol one-hot,
    or two; zeros after the last step. n is 2 or 3.

    Rewards: 1 / episode_length for each right answer, so that a perfect episode returns 1.

    Starting state: the first symbol and question.

    Episode end: terminated after `episode_length` steps; a success if every answer was right.

    Arguments: `n_symbols` (default 4); `episode_length` (default 16); `question` (default "count").

    Anchors: optimal 1. Memoryless: the symbol in view counts itself, and its absence says nothing; `anchors()` computes
    the best fixed answer to each of the two cases. "clock" is the same of somebody who also knows the step: since every
    recurrent network learns to tell the time, this is the floor that memory has to be measured from. Random
    1 / (episode_length + 1), or one half and half of the ties.
    """

    def __init__(self, n_envs: int, *, n_symbols: int = 4, episode_length: int = 16, question: str = "count") -> None:
        super().__init__(n_envs)
        for name, value, least in (("n_symbols", n_symbols, 2), ("episode_length", episode_length, 2)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
        if question not in QUESTIONS:
            raise ValueError(f"question must be {' or '.join(map(repr, QUESTIONS))}, got {question!r}")
        self.n_symbols, self.episode_length, self.question = n_symbols, episode_length, question
        self._n_parts = 2 if question == "count" else 3
        self.observation_space = spaces.Box(0.0, 1.0, (self._n_parts * n_symbols,), np.float32)
        self.action_space = spaces.Discrete(episode_length + 1 if question == "count" else 2)
        self._rows = np.arange(n_envs)
        self._one_hot = np.eye(n_symbols + 1, n_symbols, dtype=np.float32)
        # of each step the symbol and what is asked for, and a blank at the end
        self._shown = np.full((n_envs, episode_length + 1, self._n_parts), n_symbols)
        self._counts = np.zeros((n_envs, n_symbols + 1), np.int64)  # with the symbol in view
        self._step = np.zeros(n_envs, np.int64)
        self._n_right = np.zeros(n_envs, np.int64)
        self._answer = np.full(n_envs, -1)  # the last answer and whether it was right, for the picture
        self._right = np.zeros(n_envs, bool)

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform_draws(rows, self.episode_length * self._n_parts)
        shown = (draws * self.n_symbols).astype(np.int64).reshape(len(rows), self.episode_length, self._n_parts)
        if self.question == "more_frequent":  # the second is any but the first
            others = draws[:, 2 :: self._n_parts] * (self.n_symbols - 1)
            shown[:, :, 2] = (shown[:, :, 1] + 1 + others.astype(np.int64)) % self.n_symbols
        self._shown[rows, :-1] = shown
        self._counts[rows] = 0
        self._counts[rows, shown[:, 0, 0]] = 1
        self._step[rows] = 0
        self._n_right[rows] = 0
        self._answer[rows] = -1

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        counts = self._counts[self._rows[:, None], self._shown[self._rows, self._step, 1:]]
        if self.question == "count":
            right = actions == counts[:, 0]
        else:
            right = np.where(actions == 0, counts[:, 0] >= counts[:, 1], counts[:, 1] >= counts[:, 0])
        self._n_right += right
        self._answer, self._right = np.array(actions), right
        self._step += 1
        self._counts[self._rows, self._shown[self._rows, self._step, 0]] += 1
        terminated = self._step == self.episode_length
        success = terminated & (self._n_right == self.episode_length)
        rewards = right / self.episode_length
        return Outcome(self.observe(), rewards, terminated, np.zeros(self.n_envs, bool), success)

    @override
    def observe(self) -> np.ndarray:
        return self._one_hot[self._shown[self._rows, self._step]].reshape(self.n_envs, -1)

    @override
    def anchors(self) -> dict[str, float]:
        return self._count_anchors() if self.question == "count" else self._more_frequent_anchors()

    @override
    def oracle_actions(self) -> np.ndarray:
        counts = self._counts[self._rows[:, None], self._shown[self._rows, self._step, 1:]]
        return counts[:, 0] if self.question == "count" else (counts[:, 1] > counts[:, 0]).astype(np.int64)

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        in_view = self._in_view(observations)
        if self.question == "more_frequent":
            return in_view[:, 1].astype(np.int64)
        unseen, seen = self._count_distributions()
        return np.where(in_view[:, 0], seen.sum(0).argmax(), unseen.sum(0).argmax())

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return {"clock": self._clock_actions if self.question == "count" else self.memoryless_actions}

    @override
    def render(self, row: int = 0) -> np.ndarray:
        unit = min(10.0, 160 / self.episode_length)
        rack = self.episode_length * unit
        width = max(self.n_symbols, 4) * (_CARD + _GAP) + _GAP
        canvas = draw.Canvas(width, round(rack + 2 * _CARD + 6 * _GAP))
        step = int(self._step[row])
        symbol, *asked = self._shown[row, step].tolist()
        top = rack + 2 * _GAP
        for index in range(self.n_symbols):
            left = _GAP + index * (_CARD + _GAP)
            if index in asked:
                draw.frame(canvas, left, top, _CARD, _CARD, draw.INK)
            draw.card(canvas, left, top, _CARD, index, self.n_symbols, faint=index != symbol)
            for number in range(int(self._counts[row, index])):  # what the agent has to remember
                bottom = rack + _GAP - number * unit
                color = draw.hue(index, self.n_symbols) if index in asked else draw.FAINT
                canvas.rectangle(left + 8, bottom - unit + 2, left + _CARD - 8, bottom, color, radius=2)
        if step:
            self._draw_answer(canvas, row, top + _CARD + 2 * _GAP)
        draw.progress(canvas, _GAP, top + 2 * _CARD + 2 * _GAP, width - 2 * _GAP, step / self.episode_length)
        return canvas.picture()

    def _in_view(self, observations: np.ndarray) -> np.ndarray:
        """Whether what is asked for is the symbol in view, bool[n_envs, 1] or, of two, bool[n_envs, 2]."""
        parts = observations.reshape(len(observations), self._n_parts, self.n_symbols)
        return (parts[:, :1] * parts[:, 1:]).sum(2) > 0

    def _clock_actions(self, observations: np.ndarray) -> np.ndarray:
        unseen, seen = (counts.argmax(1)[self._step] for counts in self._count_distributions())
        return np.where(self._in_view(observations)[:, 0], seen, unseen)

    def _draw_answer(self, canvas: draw.Canvas, row: int, top: float) -> None:
        """The last answer as so many dots, or as the card that was named; its color says whether it was right."""
        answer, color = int(self._answer[row]), draw.GOOD if self._right[row] else draw.BAD
        if self.question == "more_frequent":
            size = _CARD - _GAP
            draw.frame(canvas, _GAP, top, size, size, color)
            draw.card(canvas, _GAP, top, size, int(self._shown[row, self._step[row] - 1, 1 + answer]), self.n_symbols)
            return
        canvas.rectangle(_GAP, top, _GAP + 3, top + _CARD / 2, color)
        for number in range(answer):
            canvas.disc(_GAP + 14 + number % 12 * 14, top + 6 + number // 12 * 14, 5, color)

    def _count_distributions(self) -> tuple[np.ndarray, np.ndarray]:
        """P(count), [step, count], of a symbol that is not in view and of one that is."""
        before = np.zeros((self.episode_length, self.episode_length + 1))
        before[0, 0] = 1.0
        for step in range(1, self.episode_length):
            before[step] = before[step - 1] * (1 - 1 / self.n_symbols)
            before[step, 1:] += before[step - 1, :-1] / self.n_symbols
        return before, np.roll(before, 1, axis=1)  # the last count is beyond reach before the last step

    def _count_anchors(self) -> dict[str, float]:
        unseen, seen = self._count_distributions()
        chance = 1 / self.n_symbols
        memoryless = chance * seen.mean(0).max() + (1 - chance) * unseen.mean(0).max()
        clock = chance * seen.max(1).mean() + (1 - chance) * unseen.max(1).mean()
        random = 1 / (self.episode_length + 1)
        return {"optimal": 1.0, "memoryless": float(memoryless), "random": random, "clock": float(clock)}

    def _more_frequent_anchors(self) -> dict[str, float]:
        """Over the lead of the first symbol before each step, 0 at the index `zero`; a clock does not help."""
        zero, chance = self.episode_length, 1 / self.n_symbols
        lead = np.zeros(2 * self.episode_length + 1)
        lead[zero] = 1.0
        memoryless = ties = 0.0
        for _ in range(self.episode_length):
            memoryless += 2 * chance * lead[zero - 1 :].sum() + (1 - 2 * chance) * lead[zero:].sum()
            lead = (1 - 2 * chance) * lead + chance * (np.roll(lead, 1) + np.roll(lead, -1))
            ties += lead[zero]
        memoryless, ties = float(memoryless) / self.episode_length, float(ties) / self.episode_length
        return {"optimal": 1.0, "memoryless": memoryless, "random": (1 + ties) / 2, "clock": memoryless}
