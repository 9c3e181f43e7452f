"""What the physical tasks share: a view with noise, and anchors that are measured because no formula tells them."""

import functools
import math

import numpy as np

from envs.task import VectorTask
from envs.testing import play, reference_policies


class Sensor:
    """Shows numbers of a state, each with Gaussian noise of standard deviation `noise`.

    The noise of a whole episode is drawn from the random streams of its rows when it begins.
    """

    def __init__(self, n_envs: int, *, n_seen: int, noise: float, episode_length: int) -> None:
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise must be a finite number, at least 0, got {noise!r}")
        if not isinstance(episode_length, int) or episode_length < 1:
            raise ValueError(f"episode_length must be a positive whole number, got {episode_length!r}")
        self.noise = noise
        self._rows = np.arange(n_envs)
        self._errors = np.zeros((n_envs, episode_length + 1, n_seen)) if noise else None

    def begin(self, rows: np.ndarray, rngs: list[np.random.Generator]) -> None:
        """Draw the noise of an episode for each of `rows`, int[n]."""
        if self._errors is not None:
            for row in rows.tolist():
                rngs[row].standard_normal(out=self._errors[row])

    def read(self, numbers: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """What is shown of `numbers` [n_envs, n_seen] after `steps` of each row, int[n_envs]; float32."""
        if self._errors is not None:
            numbers = numbers + self.noise * self._errors[self._rows, steps]
        return numbers.astype(np.float32)


@functools.cache
def simulated_anchors(
    task_class: type[VectorTask], *, n_envs: int = 500, n_episodes: int = 2000, **options: float
) -> dict[str, float]:
    """Mean returns of the oracle, the memoryless and the random policy of a task, always of the same episodes."""
    task, rng = task_class(n_envs, **options), np.random.default_rng(0)
    policies = reference_policies(task, rng)
    return {name: float(play(task, policy, n_episodes=n_episodes).returns.mean()) for name, policy in policies.items()}
