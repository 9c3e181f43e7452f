"""bsuite's memory chain: bits, a delay, and a question about one of them."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs.task import Outcome, VectorTask

_CARD, _GAP = 40, 12


class MemoryChain(VectorTask):
    """See `n_bits` bits, wait, and tell the one that is asked for.

    Description: the environment of the experiments `memory_len` (one bit, delays up to 100) and `memory_size` (up to 40
    bits, delay 2) of bsuite (Osband et al. 2020, "Behaviour suite for reinforcement learning"), by its code: the first
    observation is shown twice, and the number of the bit that is asked for is one number, not one-hot.

    Action space: `Discrete(2)`: the bit; without effect before the last step.

    Observation space: `Box((n_bits + 2,))`: the share of the time that is left, from 1 to 0; the number of the bit that
    is asked for, when the answer is due, and else 0; the bits as -1 and 1 in the first two steps, and else 0.

    Rewards: 1 for the right bit and -1 for the wrong one, at the end, so that a perfect episode returns 1.

    Starting state: bits and question uniform and independent.

    Episode end: terminated after memory_length + 1 steps; a success if the answer was right.

    Arguments: `memory_length`, steps from the first sight of the bits to the question (default 10; with 1 no memory is
    needed); `n_bits` (default 1).

    Anchors: optimal 1; memoryless and random 0, because what is seen last says nothing of the bits. "previous_action":
    nothing that is done before the end has an effect, so an agent that sees what it did last can hold one bit. Best is
    the majority of the bits, E|sum of bits| / n_bits, because every bit is as likely to be asked for: of one bit 1, of
    three 1/2.
    """

    def __init__(self, n_envs: int, *, memory_length: int = 10, n_bits: int = 1) -> None:
        super().__init__(n_envs)
        for name, value in (("memory_length", memory_length), ("n_bits", n_bits)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        self.memory_length, self.n_bits = memory_length, n_bits
        low = np.array([0, 0, *[-1] * n_bits], np.float32)
        high = np.array([1, max(1, n_bits - 1), *[1] * n_bits], np.float32)
        self.observation_space = spaces.Box(low, high)
        self.action_space = spaces.Discrete(2)
        self._rows = np.arange(n_envs)
        self._bits = np.zeros((n_envs, n_bits), np.int64)
        self._asked = np.zeros(n_envs, np.int64)  # the number of the bit that is asked for
        self._steps = np.zeros(n_envs, np.int64)
        self._action = np.full(n_envs, -1)  # the last one

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform_draws(rows, self.n_bits + 1)
        self._bits[rows] = draws[:, 1:] < 0.5
        self._asked[rows] = (draws[:, 0] * self.n_bits).astype(np.int64)
        self._steps[rows] = 0
        self._action[rows] = -1

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        self._steps += 1
        terminated = self._steps == self.memory_length + 1
        self._action = np.array(actions)
        success = terminated & (actions == self._due())
        rewards = np.where(terminated, np.where(success, 1.0, -1.0), 0.0)
        return Outcome(self.observe(), rewards, terminated, np.zeros(self.n_envs, bool), success)

    @override
    def observe(self) -> np.ndarray:
        time = self._time()
        observations = np.zeros((self.n_envs, self.n_bits + 2), np.float32)
        observations[:, 0] = 1 - time / self.memory_length
        observations[:, 1] = self._asked * (time == self.memory_length - 1)
        observations[:, 2:] = (2 * self._bits - 1) * (time == 0)[:, None]
        return observations

    @override
    def anchors(self) -> dict[str, float]:
        anchors = {"optimal": 1.0, "memoryless": float(self.memory_length == 1), "random": 0.0}
        if self.memory_length == 1:
            return anchors
        n_others = self.n_bits - 1
        return anchors | {"previous_action": math.comb(n_others, n_others // 2) / 2**n_others}

    @override
    def oracle_actions(self) -> np.ndarray:
        return self._due()

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        asked = observations[:, 1].astype(np.int64)
        return (observations[np.arange(len(observations)), 2 + asked] > 0).astype(np.int64)

    @override
    def other_policies(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return {"previous_action": self._previous_action_actions} if self.memory_length > 1 else {}

    @override
    def render(self, row: int = 0) -> np.ndarray:
        width = max(self.n_bits, 3) * (_CARD + _GAP) + _GAP
        canvas = draw.Canvas(width, _CARD + 5 * _GAP)
        time, is_over = int(self._time()[row]), self._steps[row] > self.memory_length
        is_asked = time >= self.memory_length - 1
        for place, bit in enumerate(self._bits[row].tolist()):
            left = _GAP + place * (_CARD + _GAP)
            if is_asked and place == self._asked[row]:
                color = draw.INK if not is_over else draw.GOOD if self._action[row] == bit else draw.BAD
                draw.frame(canvas, left, _GAP, _CARD, _CARD, color)
            draw.card(canvas, left, _GAP, _CARD, bit, 2, faint=time > 0)
        draw.progress(canvas, _GAP, _CARD + 3 * _GAP, width - 2 * _GAP, time / self.memory_length)
        return canvas.picture()

    def _previous_action_actions(self, observations: np.ndarray) -> np.ndarray:
        bits = observations[:, 2:]
        return np.where(bits.any(1), bits.sum(1) > 0, self._action.clip(0)).astype(np.int64)

    def _time(self) -> np.ndarray:
        """bsuite's clock, which starts with the second step."""
        return np.maximum(self._steps - 1, 0)

    def _due(self) -> np.ndarray:
        return self._bits[self._rows, self._asked]
