"""What several seeds on several tasks tell about a memory (Agarwal et al. 2021, arXiv 2108.13264).

Scores are arrays `[tasks, seeds]`. Intervals are percentiles of a bootstrap that resamples seeds within each task: the
tasks are the ones that were asked about, the seeds stand for all that could have been drawn.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores `[tasks, seeds]`: as robust as a median, and far less noisy.

    A quarter of the scores is cut off at each end, rounded down to whole scores.
    """
    ordered = np.sort(scores, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How likely a seed of ours beats one of theirs on the same task, a tie counting half; mean over tasks.

    :param ours: `[tasks, seeds]`.
    :param theirs: `[tasks, seeds]`; the number of seeds may differ.
    """
    difference = ours[:, :, None] - theirs[:, None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(1, 2)).mean())


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The fraction of all runs `[..., tasks, seeds]` that score more than each threshold `[n]`: `[..., n]`.

    A memory whose profile lies above that of another one everywhere is better whatever score one asks for.
    """
    return (scores[..., None] > thresholds).mean(axis=(-3, -2))


def profile_band(
    scores: np.ndarray, thresholds: np.ndarray, *, resamples: int = 2_000
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends `[n]` of the 95 % interval of `performance_profile` at each threshold."""
    rng = np.random.default_rng(0)
    profiles = np.array([performance_profile(resampled(scores, rng), thresholds) for _ in range(resamples)])
    low, high = np.quantile(profiles, _TAILS, axis=0)
    return low, high


def estimate(statistic: Callable[..., float], *scores: np.ndarray, resamples: int = RESAMPLES) -> Estimate:
    """The statistic of the scores, with a stratified bootstrap interval; the same every time."""
    rng = np.random.default_rng(0)
    values = np.empty(resamples)
    for i in range(resamples):
        values[i] = statistic(*(resampled(x, rng) for x in scores))
    low, high = np.quantile(values, _TAILS)
    return Estimate(statistic(*scores), float(low), float(high))


def resampled(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Seeds drawn with replacement, in each task by themselves."""
    n_tasks, n_seeds = scores.shape
    return scores[np.arange(n_tasks)[:, None], rng.integers(n_seeds, size=(n_tasks, n_seeds))]
