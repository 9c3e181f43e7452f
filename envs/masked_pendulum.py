"""Swing a pendulum up without seeing how fast it turns."""

import functools

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs._physical import Sensor, simulated_anchors
from envs.task import Outcome, VectorTask

_GRAVITY, _DT, _LARGEST_TORQUE, _LARGEST_SPEED = 10.0, 0.05, 2.0, 8.0  # mass 1, length 1
_UPRIGHT = 0.95  # cosine of the angle
_MEMORYLESS_GAIN = 8.0
_SIZE, _ROD = 240, 84


class MaskedPendulum(VectorTask):
    """Turn a pendulum with a weak motor so that it stands up, seeing its angle and no velocity.

    Description: the dynamics, rewards and length of Gymnasium's `Pendulum-v1`, many pendulums at once. The motor cannot
    lift the pendulum at once: it has to swing, and to push in the direction in which it already moves. The velocity is
    the difference of two observations, so two steps of memory are enough without noise; with noise it takes longer
    averages.

    Action space: `Box(-2, 2, (1,))`: the torque; clipped.

    Observation space: `Box((2,))`: cosine and sine of the angle, which is 0 upright, with noise.

    Rewards: -(angle**2 + 0.1 velocity**2 + 0.001 torque**2), the angle in -pi..pi.

    Starting state: angle uniform in -pi..pi, velocity in -1..1.

    Episode end: truncated after `episode_length` steps; a success if the pendulum then stands.

    Arguments: `noise` (default 0), the standard deviation of what is added to each number shown; `episode_length`
    (default 200).

    Anchors: all simulated. Optimal: value iteration on a grid of 81 angles and 61 velocities; one eight times as fine
    gains 0.2 % of the way from random to optimal. Memoryless: the best that a search over torques as a function of the
    angle has found, which is to push upwards, less so close to upright.
    """

    def __init__(self, n_envs: int, *, noise: float = 0.0, episode_length: int = 200) -> None:
        super().__init__(n_envs)
        self._sensor = Sensor(n_envs, n_seen=2, noise=noise, episode_length=episode_length)
        self.noise, self.episode_length = noise, episode_length
        bound = np.inf if noise else 1.0
        self.observation_space = spaces.Box(-bound, bound, (2,), np.float32)
        self.action_space = spaces.Box(-_LARGEST_TORQUE, _LARGEST_TORQUE, (1,), np.float32)
        self._angle, self._speed = np.zeros((2, n_envs))
        self._step = np.zeros(n_envs, np.int64)

    @override
    def begin(self, rows: np.ndarray) -> None:
        draws = 2 * self.uniform_draws(rows, 2) - 1
        self._angle[rows], self._speed[rows] = np.pi * draws[:, 0], draws[:, 1]
        self._step[rows] = 0
        self._sensor.begin(rows, self.rngs)

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        torques = actions[:, 0].clip(-_LARGEST_TORQUE, _LARGEST_TORQUE)
        self._angle, self._speed, costs = _turn(self._angle, self._speed, torques)
        self._step += 1
        truncated = self._step == self.episode_length
        success = truncated & (np.cos(self._angle) > _UPRIGHT)
        return Outcome(self.observe(), -costs, np.zeros(self.n_envs, bool), truncated, success)

    @override
    def observe(self) -> np.ndarray:
        return self._sensor.read(np.stack([np.cos(self._angle), np.sin(self._angle)], axis=1), self._step)

    @override
    def anchors(self) -> dict[str, float]:
        return dict(simulated_anchors(type(self), noise=self.noise, episode_length=self.episode_length))

    @override
    def oracle_actions(self) -> np.ndarray:
        return _Grid().look_up(_best_torques(), self._angle, self._speed).astype(np.float32)[:, None]

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        return (-_MEMORYLESS_GAIN * observations[:, 1:]).clip(-_LARGEST_TORQUE, _LARGEST_TORQUE)

    @override
    def render(self, row: int = 0) -> np.ndarray:
        canvas = draw.Canvas(_SIZE, _SIZE)
        middle = _SIZE / 2
        angle, speed = -self._angle[row], -self._speed[row]  # Gymnasium's angles go to the left
        for moment, color in ((0.1, draw.FAINT), (0.0, draw.CUE)):  # grey: where the pendulum came from
            draw.rod(canvas, middle, middle - 6, angle - moment * speed, _ROD, 16, color)
        canvas.disc(middle, middle - 6, 6, draw.INK)
        draw.progress(canvas, 12, _SIZE - 14, _SIZE - 24, int(self._step[row]) / self.episode_length)
        return canvas.picture()


def _turn(angle: np.ndarray, speed: np.ndarray, torque: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angle and speed after one step, and what the step cost."""
    from_upright = (angle + np.pi) % (2 * np.pi) - np.pi
    costs = from_upright**2 + 0.1 * speed**2 + 0.001 * torque**2
    speed = (speed + (1.5 * _GRAVITY * np.sin(angle) + 3.0 * torque) * _DT).clip(-_LARGEST_SPEED, _LARGEST_SPEED)
    return angle + speed * _DT, speed, costs


class _Grid:
    """States of a pendulum on a grid, between which values are interpolated."""

    n_angles, n_speeds = 81, 61

    def states(self) -> tuple[np.ndarray, np.ndarray]:
        """Angle and speed of each point, [n_angles, n_speeds]."""
        angles = np.linspace(-np.pi, np.pi, self.n_angles)
        speeds = np.linspace(-_LARGEST_SPEED, _LARGEST_SPEED, self.n_speeds)
        angle, speed = np.meshgrid(angles, speeds, indexing="ij")
        return angle, speed

    def look_up(self, values: np.ndarray, angle: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """`values` [n_angles, n_speeds] at any states, all of one shape."""
        row = (angle + np.pi) % (2 * np.pi) / (2 * np.pi) * (self.n_angles - 1)
        column = (speed + _LARGEST_SPEED) / (2 * _LARGEST_SPEED) * (self.n_speeds - 1)
        above, left = row.astype(int).clip(max=self.n_angles - 2), column.astype(int).clip(max=self.n_speeds - 2)
        down, right = row - above, column - left
        upper = (1 - right) * values[above, left] + right * values[above, left + 1]
        lower = (1 - right) * values[above + 1, left] + right * values[above + 1, left + 1]
        return (1 - down) * upper + down * lower


@functools.cache
def _best_torques(*, n_sweeps: int = 100, n_torques: int = 9) -> np.ndarray:
    """The torque of least cost from each state of the grid on, by value iteration; to stand costs nothing."""
    grid = _Grid()
    torques = np.linspace(-_LARGEST_TORQUE, _LARGEST_TORQUE, n_torques)
    angle, speed, costs = _turn(*grid.states(), torques[:, None, None])
    to_go = np.zeros(costs.shape[1:])
    for _ in range(n_sweeps):
        totals = costs + grid.look_up(to_go, angle, speed)
        to_go = totals.min(0)
    return torques[totals.argmin(0)]
