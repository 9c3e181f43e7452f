"""Learning curves of several seeds on common steps, with the interval in which their mean lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.runs import RunPaths, read_metrics
from agents.statistics import CONFIDENCE

_OF_EVALUATIONS = {"rollout/ep_rew_mean": "eval/return_mean", "rollout/success_rate": "eval/success_rate"}
_RESAMPLES = 2_000  # the ends of a band are drawn, not quoted


@dataclass(frozen=True, kw_only=True)
class Band:
    """Learning curves of one memory on one task."""

    steps: np.ndarray
    """Environment steps, `[points]`."""
    seeds: np.ndarray
    """One curve for each seed, `[seeds, points]`."""
    mean: np.ndarray
    """Mean over seeds, `[points]`."""
    low: np.ndarray
    """Lower end of the 95 % bootstrap interval of the mean, `[points]`."""
    high: np.ndarray
    """Upper end."""


def bands(directories: Mapping[str, Sequence[Path]], metric: str, n_points: int = 100) -> dict[str, Band]:
    """The band of each memory on one task, all on the same steps.

    :param directories: The runs of each memory, by its name. One in which the metric was never written is left out.
    :param metric: A key of metrics.jsonl, such as "rollout/ep_rew_mean".
    """
    curves = {
        name: found
        for name, of in directories.items()
        if (found := [curve for path in of if (curve := _curve(path, metric)) is not None])
    }
    if not curves:
        return {}
    first = min(steps[0] for of in curves.values() for steps, _, _ in of)
    last = max(steps[-1] for of in curves.values() for steps, _, _ in of)
    grid = np.linspace(first, last, n_points)
    return {
        name: band(grid, np.stack([np.interp(grid, steps, values, right=end) for steps, values, end in of]))
        for name, of in curves.items()
    }


def band(grid: np.ndarray, seeds: np.ndarray) -> Band:
    """Mean and interval at each point of `grid`; `seeds` is `[seeds, points]`."""
    rng, tail = np.random.default_rng(0), (1 - CONFIDENCE) / 2
    drawn = rng.integers(len(seeds), size=(_RESAMPLES, len(seeds)))  # whole curves are drawn
    low, high = np.quantile(seeds[drawn].mean(axis=1), [tail, 1 - tail], axis=0)
    return Band(steps=grid, seeds=seeds, mean=seeds.mean(axis=0), low=low, high=high)


def _curve(directory: Path, metric: str) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Steps, values, and the value after the last of them; None where the metric was never written.

    A run ends early because an evaluation found all learned that there was. It stays at what that evaluation found: the
    last episodes of training began before that, and some before anything was learned.
    """
    lines = read_metrics(RunPaths(directory).metrics)
    of_training = [line for line in lines if line.get(metric) is not None]
    if not of_training:
        return None
    steps, values = [line["step"] for line in of_training], [line[metric] for line in of_training]
    key = _OF_EVALUATIONS.get(metric, metric)
    evaluated = [line[key] for line in lines if line.get(key) is not None]
    return np.array(steps), np.array(values), (evaluated or values)[-1]
