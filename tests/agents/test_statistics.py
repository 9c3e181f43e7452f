"""The statistics of a comparison against numbers known from elsewhere."""

import numpy as np
import pytest

from agents.statistics import (
    estimate,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    profile_band,
    resampled,
)

SCORES = np.array([[0.1, 0.9, 0.4, 0.5, 0.7], [1.0, 0.2, 0.3, 0.8, 0.6]])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (SCORES, 0.55),  # scipy.stats.trim_mean(scores, 0.25, axis=None), which rliable takes
        (np.array([[3.0]]), 3.0),
        (np.array([[0.0, 1.0, 5.0, 100.0]]), 3.0),
        (np.array([[-50.0, 1.0, 2.0, 3.0, 100.0]]), 2.0),
    ],
)
def test_interquartile_mean(scores: np.ndarray, expected: float) -> None:
    """Catches a quarter that is rounded up, a mean of means over tasks, and outliers that count."""
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_probability_of_improvement() -> None:
    """Catches ties that count as wins, and pairs of seeds with the same number only. By hand: of the nine pairs of the
    first task we win five and tie one, of the second task we win all."""
    ours, theirs = np.array([[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]), np.array([[0.0, 2.0, 2.5], [1.0, 2.0, 3.0]])
    assert probability_of_improvement(ours, theirs) == pytest.approx((5.5 / 9 + 1) / 2)
    assert probability_of_improvement(theirs, ours) == pytest.approx(1 - (5.5 / 9 + 1) / 2)


def test_resampling_keeps_tasks_apart() -> None:
    """Catches a bootstrap that mixes the scores of tasks, or draws the same seeds for all of them."""
    rng = np.random.default_rng(3)
    scores = np.arange(20.0).reshape(2, 10)
    draws = np.array([resampled(scores, rng) for _ in range(200)])
    assert (draws[:, 0] < 10).all()
    assert (draws[:, 1] >= 10).all()
    assert not np.array_equal(draws[:, 0], draws[:, 1] - 10)
    assert set(np.unique(draws)) == set(scores.flatten())


def test_the_interval_holds_the_mean_in_95_of_100_cases() -> None:
    """Catches a quantile of the wrong tail and a bootstrap without replacement. Of normal scores of 20 seeds; the
    percentile bootstrap is known to be a little too narrow."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        found = estimate(lambda x: float(x.mean()), rng.normal(size=(1, 20)), resamples=300)
        assert found.low <= found.value <= found.high
        inside += found.low <= 0 <= found.high
    assert 0.87 <= inside / 200 <= 0.98


def test_an_estimate_is_the_same_every_time() -> None:
    """Catches intervals that change from one report to the next."""
    assert estimate(interquartile_mean, SCORES) == estimate(interquartile_mean, SCORES)


# What rliable 1.2.0 (Agarwal et al. 2021) says of these arrays; intervals from 50 000 resamples, 20 000 for the
# probability of improvement.
OURS = np.array(
    [
        [0.73, 0.70, 0.91, 0.66, 0.42, 0.56, 0.81],
        [0.62, 0.87, 0.83, 0.91, 0.66, 0.88, 0.85],
        [0.54, 0.48, 0.43, 0.40, 0.69, 0.40, 0.85],
    ]
)
THEIRS = np.array([[0.43, 0.41, 0.70, 0.20, 0.81], [0.53, 0.89, 0.62, 0.60, 0.56], [0.63, 0.72, 0.75, 0.92, 0.76]])
THRESHOLDS = np.array([0.0, 0.3, 0.5, 0.62, 0.8, 1.0])


def test_statistics_are_those_of_the_reference_implementation() -> None:
    """Catches a definition of our own: a mean over tasks first, ties, a threshold that counts as passed."""
    assert interquartile_mean(OURS) == pytest.approx(0.6954545454545454)
    assert interquartile_mean(THEIRS) == pytest.approx(0.6522222222222221)
    assert probability_of_improvement(OURS, THEIRS) == pytest.approx(0.557142857142857)
    assert probability_of_improvement(THEIRS, OURS) == pytest.approx(0.44285714285714284)
    expected = [1.0, 1.0, 0.7619047619047619, 0.6190476190476191, 0.38095238095238093, 0.0]
    assert performance_profile(OURS, THRESHOLDS) == pytest.approx(expected)


def test_intervals_are_those_of_the_reference_implementation() -> None:
    """Catches a bootstrap over all scores at once, and one that draws ours and theirs together."""
    assert estimate(interquartile_mean, OURS)[1:] == pytest.approx((0.6018, 0.7782), abs=0.005)
    found = estimate(probability_of_improvement, OURS, THEIRS)
    assert found[1:] == pytest.approx((0.3810, 0.7143), abs=0.01)
    low, high = profile_band(OURS, THRESHOLDS)
    assert low == pytest.approx([1.0, 1.0, 0.6190, 0.4286, 0.1905, 0.0], abs=1e-4)
    assert high == pytest.approx([1.0, 1.0, 0.9048, 0.8095, 0.5714, 0.0], abs=1e-4)
