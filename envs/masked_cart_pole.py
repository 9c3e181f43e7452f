"""Balance a pole without seeing how fast it moves."""

import math

import numpy as np
from gymnasium import spaces
from typing_extensions import override

from envs import _drawing as draw
from envs._physical import Sensor, simulated_anchors
from envs.task import Outcome, VectorTask

_GRAVITY, _CART_MASS, _POLE_MASS, _HALF_POLE, _FORCE, _DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_MASS = _CART_MASS + _POLE_MASS
_LARGEST_POSITION, _LARGEST_ANGLE = 2.4, math.radians(12)
_START = 0.05  # the largest of all four numbers at the start
# The best policy found that sees position and angle alone pushes right with probability sigmoid of their sum with these
_MEMORYLESS_WEIGHTS = (-2.3, 25.8)
_WIDTH, _HEIGHT = 480, 200


class MaskedCartPole(VectorTask):
    """Push a cart left or right so that the pole on it stays up, seeing positions and no velocities.

    Description: the dynamics, rewards and limits of Gymnasium's `CartPole-v1` (Barto, Sutton & Anderson 1983), many
    carts at once. A velocity is the difference of two observations, so two steps of memory are enough without noise;
    with noise it takes longer averages.

    Action space: `Discrete(2)`: push left, push right.

    Observation space: `Box((2,))`: position of the cart and angle of the pole, with noise.

    Rewards: 1 for each step, that in which the pole falls included.

    Starting state: positions and velocities uniform in -0.05..0.05.

    Episode end: terminated when the cart is further than 2.4 from the middle or the pole further than 12 degrees from
    the vertical; truncated after `episode_length` steps, which is a success.

    Arguments: `noise` (default 0), the standard deviation of what is added to each number shown; `episode_length`
    (default 500).

    Anchors: all simulated, optimal with a controller that knows the velocities. Memoryless is the best that a search
    has found: push by chance, more likely towards the side to which the pole leans. To push always towards it is worse
    (45 steps), since the pole then swings more and more.
    """

    action_names = ("push left", "push right")

    def __init__(self, n_envs: int, *, noise: float = 0.0, episode_length: int = 500) -> None:
        super().__init__(n_envs)
        self._sensor = Sensor(n_envs, n_seen=2, noise=noise, episode_length=episode_length)
        self.noise, self.episode_length = noise, episode_length
        bounds = np.full(2, np.inf) if noise else np.array([2 * _LARGEST_POSITION, 2 * _LARGEST_ANGLE])
        self.observation_space = spaces.Box(-bounds.astype(np.float32), bounds.astype(np.float32), dtype=np.float32)
        self.action_space = spaces.Discrete(2)
        self._state = np.zeros((n_envs, 4))  # position, velocity, angle, angular velocity
        self._step = np.zeros(n_envs, np.int64)
        self._luck = np.random.default_rng(0)  # of the memoryless policy

    @override
    def begin(self, rows: np.ndarray) -> None:
        self._state[rows] = _START * (2 * self.uniform_draws(rows, 4) - 1)
        self._step[rows] = 0
        self._sensor.begin(rows, self.rngs)

    @override
    def advance(self, actions: np.ndarray) -> Outcome:
        position, velocity, angle, turning = self._state.T
        cosine, sine = np.cos(angle), np.sin(angle)
        push = (_FORCE * (2 * actions - 1) + _POLE_MASS * _HALF_POLE * turning**2 * sine) / _MASS
        inertia = _HALF_POLE * (4 / 3 - _POLE_MASS / _MASS * cosine**2)
        turning_change = (_GRAVITY * sine - cosine * push) / inertia
        velocity_change = push - _POLE_MASS * _HALF_POLE / _MASS * turning_change * cosine
        position += _DT * velocity  # in place, and before the velocity changes
        velocity += _DT * velocity_change
        angle += _DT * turning
        turning += _DT * turning_change
        self._step += 1
        terminated = (np.abs(position) > _LARGEST_POSITION) | (np.abs(angle) > _LARGEST_ANGLE)
        truncated = ~terminated & (self._step == self.episode_length)
        return Outcome(self.observe(), np.ones(self.n_envs), terminated, truncated, truncated.copy())

    @override
    def observe(self) -> np.ndarray:
        return self._sensor.read(self._state[:, ::2], self._step)

    @override
    def anchors(self) -> dict[str, float]:
        return dict(simulated_anchors(type(self), noise=self.noise, episode_length=self.episode_length))

    @override
    def oracle_actions(self) -> np.ndarray:
        return (self._state @ (0.4, 0.8, 10.0, 2.0) > 0).astype(np.int64)

    @override
    def memoryless_actions(self, observations: np.ndarray) -> np.ndarray:
        odds = np.exp(-(observations @ _MEMORYLESS_WEIGHTS).clip(-50, 50))
        return (self._luck.random(len(odds)) * (1 + odds) < 1).astype(np.int64)

    @override
    def render(self, row: int = 0) -> np.ndarray:
        canvas = draw.Canvas(_WIDTH, _HEIGHT)
        position, velocity, angle, turning = self._state[row]
        ground, scale = _HEIGHT - 40, _WIDTH / (2 * _LARGEST_POSITION + 0.8)
        canvas.rectangle(0, ground + 12, _WIDTH, ground + 15, draw.FLOOR)
        for moment, color in ((0.1, draw.FAINT), (0.0, draw.CUE)):  # grey: where the pole came from
            x = _WIDTH / 2 + scale * (position - moment * velocity)
            draw.rod(canvas, x, ground - 10, angle - moment * turning, 120, 9, color)
        x = _WIDTH / 2 + scale * position
        canvas.rectangle(x - 28, ground - 14, x + 28, ground + 12, draw.INK, radius=5)
        canvas.disc(x, ground - 10, 5, draw.PAPER)
        draw.progress(canvas, 12, _HEIGHT - 14, _WIDTH - 24, int(self._step[row]) / self.episode_length)
        return canvas.picture()
