"""Say what was last written under a key: associative recall, and overwriting."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs._order_blind import most_frequent, most_frequent_share
from envs.task import Outcome, VectorTask

MODES = ("write_then_query", "interleaved")
_CARD, _GAP = 40, 12


class KeyValueRecall(VectorTask):
    """Read pairs of key and value; when asked for a key, name the value that was written under it last.

    Description: a step either writes a pair or asks for a key. The values are independent and uniform; every key is
    written, most of them several times, in random order, so that the agent has to overwrite what it holds under one
    key and to leave the others alone. A memory that only adds knows the values of a key and not which one came last.
    With `skew` a few keys are written most of the time: the others, written once and often long ago, are lost to a
    memory that forgets by time alone.

    Action space: `Discrete(n_values)`: the value; without effect while a pair is written.

    Observation space: `Box(0, 1, (n_keys + n_values + 1,))`: the key one-hot, the value one-hot, and a 1 when the key
    is asked for, in which case there is no value; zeros after the last step.

    Rewards: 1 / n_queries for each right answer, so that a perfect episode returns 1.

    Starting state: the first pair. Which keys are written often is drawn anew for each episode.

    Episode end: terminated after `n_writes` + `n_queries` steps; a success if every answer was right.

    Arguments: `n_keys` (default 4); `n_values` (default 8); `n_writes` (default 12), at least one for each key;
    `n_queries` (default 4); `mode` (default "write_then_query"): first all pairs, then the questions, each key before
    any is asked for again; or "interleaved": questions at any time, about keys that are written by then, each equally
    likely; `skew` (default 0): the i-th key is written in proportion to i**-skew, at least once.

    Anchors: optimal 1; memoryless and random 1 / n_values. "order_blind" is the best return of somebody who knows how
    often each value was written under the key so far, but not in which order: the expected share of the most frequent
    one, since each of the writes is as likely to be the last.
    """

    def __init__(
        self,
        n_envs: int,
        *,
        n_keys: int = 4,
        n_values: int = 8,
        n_writes: int = 12,
        n_queries: int = 4,
        mode: str = "write_then_query",
        skew: float = 0.0,
    ) -> None:
        super().__init__(n_envs)
        for name, value, least in (("n_keys", n_keys, 1), ("n_values", n_values, 2), ("n_queries", n_queries, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
        if not isinstance(n_writes, int) or n_writes < n_keys:
            raise ValueError(f"n_writes must be a whole number, at least n_keys={n_keys}, got {n_writes!r}")
        if mode not in MODES:
            raise ValueError(f"mode must be {' or '.join(map(repr, MODES))}, got {mode!r}")
        if not 0 <= skew < math.inf:
            raise ValueError(f"skew must be a finite number, at least 0, got {skew!r}")
        self.n_keys, self.n_values, self.n_writes, self.n_queries = n_keys, n_values, n_writes, n_queries
        self.mode, self.skew = mode, skew
        self.episode_length = n_writes + n_queries
        self.counts = _counts(n_keys, n_writes, skew)
        self.observation_space = spaces.Box(0.0, 1.0, (n_keys + n_values + 1,), np.float32)
        self.action_space = spaces.Discrete(n_values)
        self._rows = np.arange(n_envs)
        self._sights = _sights(n_keys, n_values)
        self._ranks = np.repeat(np.arange(n_keys), self.counts)
        # What each step shows, and a blank: the key n_keys. The value n_values means that the key is asked for.
        self._keys = np.full((n_envs, self.episode_length + 1), n_keys)
        self._values = np.zeros((n_envs, self.episode_length + 1), np.int64)
        self._key = np.zeros(n_envs, np.int64)  # in view
        self._value = np.zeros(n_envs, np.int64)
        self._held = np.full((n_envs, n_keys + 1), -1)  # the last value of each key, -1 for none
        self._step = np.zeros(n_envs, np.int64)
        self._n_right = np.zeros(n_envs, np.int64)
        self._answer = np.full(n_envs, -1)  # the last answer and what was right, -1 for a write: for the picture
        self._due = np.full(n_envs, -1)

    @override
    def begin(self, rows: np.ndarray) -> None:
        n_keys, n_writes, n_queries = self.n_keys, self.n_writes, self.n_queries
        n_chances = n_queries * n_keys + self.episode_length if self.mode == "interleaved" else n_keys
        draws = self.uniform_draws(rows, n_keys + 2 * n_writes + n_chances)
        labels, order, values, chances = np.split(draws, np.cumsum([n_keys, n_writes, n_writes]), axis=1)
        written = np.take_along_axis(labels.argsort(1), self._ranks[order.argsort(1)], 1)
        written_values = (values * self.n_values).astype(np.int64)
        if self.mode == "interleaved":
            self._interleave(rows, written, written_values, chances)
        else:
            self._keys[rows, :n_writes], self._values[rows, :n_writes] = written, written_values
            self._keys[rows, n_writes:-1] = chances.argsort(1)[:, np.arange(n_queries) % n_keys]
            self._values[rows, n_writes:-1] = self.n_values
        self._step[rows] = 0
        self._n_right[rows] = 0
        self._due[rows] = -1
        self._held[rows] = -1
        key, value = self._keys[rows, 0], self._values[rows, 0]
        self._key[rows], self._value[rows], self._held[rows, key] = key, value, value

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        self._due = np.where(self._value == self.n_values, self._held[self._rows, self._key], -1)
        right = actions == self._due
        self._n_right += right
        self._answer = np.array(actions)
        self._step += 1
        self._key, self._value = self._keys[self._rows, self._step], self._values[self._rows, self._step]
        writes = np.flatnonzero(self._value < self.n_values)
        self._held[writes, self._key[writes]] = self._value[writes]
        terminated = self._step == self.episode_length
        success = terminated & (self._n_right == self.n_queries)
        return Outcome(self.observe(), right / self.n_queries, terminated, np.zeros(self.n_envs, bool), success)

    @override
    def observe(self) -> np.ndarray:
        return self._sights[self._key * (self.n_values + 1) + self._value]

    @override
    def anchors(self) -> dict[str, float]:
        chance = 1 / self.n_values
        return {"optimal": 1.0, "memoryless": chance, "random": chance, "order_blind": self._order_blind_return()}

    @override
    def oracle_actions(self) -> np.ndarray:
        return self._held[self._rows, self._key].clip(0)

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        return np.zeros(len(observations), np.int64)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return {"order_blind": self._order_blind_actions}

    @override
    def render(self, row: int = 0) -> np.ndarray:
        n_columns = min(self.n_keys, 8)
        n_shelves = -(-self.n_keys // n_columns)
        width = max(n_columns, 4) * (_CARD + _GAP) + _GAP
        shelf = 2 * _CARD + _GAP
        canvas = draw.Canvas(width, n_shelves * (shelf + _GAP) + _CARD + 5 * _GAP)
        step, key = int(self._step[row]), int(self._key[row])
        for index in range(self.n_keys):
            left = _GAP + index % n_columns * (_CARD + _GAP)
            top = _GAP + index // n_columns * (shelf + _GAP)
            asked = index == key and self._value[row] == self.n_values
            if index == key:
                color = draw.INK if asked else draw.CUE
                draw.frame(canvas, left, top, _CARD, shelf - _GAP, color)
            self._draw_key(canvas, left, top, index)
            held = int(self._held[row, index])
            if held < 0:
                canvas.rectangle(left, top + _CARD, left + _CARD, top + 2 * _CARD, draw.FLOOR, radius=5)
            else:
                faint = index != key or asked
                draw.card(canvas, left, top + _CARD, _CARD, held, self.n_values, faint=faint)
        top = n_shelves * (shelf + _GAP) + 2 * _GAP
        if self._due[row] >= 0:
            answer = int(self._answer[row])
            draw.frame(canvas, _GAP, top, _CARD, _CARD, draw.GOOD if answer == self._due[row] else draw.BAD)
            draw.card(canvas, _GAP, top, _CARD, answer, self.n_values)
        draw.progress(canvas, _GAP, top + _CARD + _GAP, width - 2 * _GAP, step / self.episode_length)
        return canvas.picture()

    def _draw_key(self, canvas: draw.Canvas, left: float, top: float, index: int) -> None:
        """A drawer front with dots that number it."""
        canvas.rectangle(left, top, left + _CARD, top + _CARD, draw.PAPER, radius=5)
        for x, y in draw.pips(index + 1):
            canvas.disc(left + _CARD / 2 + x * 9, top + _CARD / 2 + y * 9, 2.5, draw.INK)

    def _interleave(self, rows: np.ndarray, written: np.ndarray, values: np.ndarray, chances: np.ndarray) -> None:
        """Mix the writes with questions about keys that were written before; the first step is a write."""
        n_writes = self.n_writes
        order = 1 + chances[:, : self.episode_length - 1].argsort(1)
        times = np.sort(order[:, : n_writes - 1], 1)
        times = np.concatenate([np.zeros((len(rows), 1), np.int64), times], 1)  # of the writes
        query_times = order[:, n_writes - 1 :]
        first_write = (written[:, :, None] == np.arange(self.n_keys)).argmax(1)
        known_since = np.take_along_axis(times, first_write, 1)
        luck = chances[:, self.episode_length :].reshape(len(rows), self.n_queries, self.n_keys)
        queried = np.where(known_since[:, None] < query_times[:, :, None], luck, -1.0).argmax(2)
        at = rows[:, None]
        self._keys[at, times], self._values[at, times] = written, values
        self._keys[at, query_times], self._values[at, query_times] = queried, self.n_values

    def _order_blind_actions(self, observations: np.ndarray) -> np.ndarray:
        so_far = np.arange(self.episode_length + 1) <= self._step[:, None]
        written = so_far & (self._keys == self._key[:, None]) & (self._values < self.n_values)
        return most_frequent(self._values, written, self.n_values)

    def _order_blind_return(self) -> float:
        """Exact, over how often each key has been written when it is asked for.

        When `w` writes are over, all sets of `w` among the writes are equally likely. `ways[w, d]` counts those in
        which `d` keys have been written, `shares[w, d]` adds up the shares of the most frequent values in them.
        """
        share = most_frequent_share(max(self.counts), self.n_values)
        ways = np.zeros((self.n_writes + 1, self.n_keys + 1))
        ways[0, 0] = 1.0
        shares = np.zeros_like(ways)
        for count in self.counts:
            ways_after, shares_after = np.zeros_like(ways), np.zeros_like(ways)
            total = sum(math.comb(count, n) for n in range(count + 1))  # keeps the numbers small
            for n in range(count + 1):
                weight, seen = math.comb(count, n) / total, int(n > 0)
                upto_w, upto_d = self.n_writes + 1 - n, self.n_keys + 1 - seen
                ways_after[n:, seen:] += weight * ways[:upto_w, :upto_d]
                shares_after[n:, seen:] += weight * (shares + share[n] * ways)[:upto_w, :upto_d]
            ways, shares = ways_after, shares_after
        mean = (shares[1:, 1:] / np.arange(1, self.n_keys + 1)).sum(1) / ways[1:, 1:].sum(1)
        return float(mean.mean() if self.mode == "interleaved" else mean[-1])


def _counts(n_keys: int, n_writes: int, skew: float) -> list[int]:
    """How often the keys are written, most often first; together `n_writes`."""
    counts = [1] * n_keys
    weights = [rank**-skew for rank in range(1, n_keys + 1)]
    for _ in range(n_writes - n_keys):  # to the key that is furthest below its share
        neediest = max(range(n_keys), key=lambda index: weights[index] / counts[index])
        counts[neediest] += 1
    return sorted(counts, reverse=True)


def _sights(n_keys: int, n_values: int) -> np.ndarray:
    """The observation of every (key, value or question), and of nothing."""
    keys = np.repeat(np.eye(n_keys), n_values + 1, axis=0)
    values = np.tile(np.eye(n_values + 1), (n_keys, 1))
    seen = np.hstack([keys, values])
    return np.vstack([seen, np.zeros((n_values + 1, seen.shape[1]))]).astype(np.float32)
