"""What somebody knows who has counted what was seen and does not know in which order it came."""

import math
from collections.abc import Sequence

import numpy as np


def most_frequent(values: np.ndarray, counts: np.ndarray, n_values: int) -> np.ndarray:
    """The most frequent of `values` in each row, int[n, m], where `counts`, bool[n, m]; the smallest of several."""
    return (counts[:, :, None] & (values[:, :, None] == np.arange(n_values))).sum(1).argmax(1)


def most_frequent_share(most_seen: int, n_values: int) -> Sequence[float]:
    """For each number of values seen, up to `most_seen`, the expected share of the most frequent one.

    Each of `n_values` is as likely each time. Their counts are independent Poisson numbers, given their sum.
    """
    numbers = np.arange(most_seen + 1)
    factorials = np.array([math.lgamma(n + 1) for n in numbers])
    rate = max(most_seen, 1) / n_values
    one = np.exp(numbers * math.log(rate) - rate - factorials)
    total = np.exp(numbers * math.log(rate * n_values) - rate * n_values - factorials)
    expected = np.zeros(most_seen + 1)
    for limit in range(most_seen):  # E[most frequent] is the sum of P(most frequent > limit)
        none_above = np.ones(1)
        for _ in range(n_values):
            none_above = np.convolve(none_above, np.where(numbers <= limit, one, 0.0))[: most_seen + 1]
        expected += 1 - none_above / total
    return [0.0, *(expected[1:] / numbers[1:]).tolist()]  # of nothing, nothing
