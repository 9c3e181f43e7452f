"""The anchors of those who count and do not know the order, found a second time by trying everything."""

import itertools

import numpy as np
import pytest

from envs.copy_sequence import Copy
from envs.endless_t_maze import EndlessTMaze
from envs.repeat_previous import RepeatPrevious
from envs.t_maze import TMaze


def test_no_policy_of_the_counts_gets_further_through_the_corridors():
    """Red if another choice of turns by (cues, left cues) is worth more than the anchor, or none as much."""
    n = 3
    counts = [(j, left) for j in range(1, n + 1) for left in range(j + 1)]
    best = 0.0
    for turns in itertools.product([0, 1], repeat=len(counts)):
        policy = dict(zip(counts, turns, strict=True))
        right = [
            sum(all(policy[j, sum(cues[:j])] == cues[j - 1] for j in range(1, k + 1)) for k in range(1, n + 1))
            for cues in itertools.product([0, 1], repeat=n)  # 1 is left
        ]
        best = max(best, float(np.mean(right)))
    assert TMaze(1, n_corridors=n).anchors()["order_blind"] == pytest.approx(best / n)
    endless = EndlessTMaze(1, n_corridors=n).anchors()["order_blind"]
    assert endless == pytest.approx(best - 0.01 * (1 - (n + 1) / 2**n))


@pytest.mark.parametrize("reverse", [False, True])
def test_who_counts_gains_nothing_by_knowing_the_turn_in_a_copy(reverse):
    """Red if some turn of either direction can be answered better from the counts than by the most frequent symbol."""
    length, n = 5, 3
    sequences = np.array(list(itertools.product(range(n), repeat=length)))
    task = Copy(len(sequences), length=length, n_symbols=n, reverse=reverse)
    task.reset(0)
    task._shown[:, :length] = sequences
    _, group = np.unique((sequences[:, :, None] == np.arange(n)).sum(1), axis=0, return_inverse=True)
    best = 0
    for index in range(2 * length):
        due = task.oracle_actions()
        if index >= length:
            best += sum(np.bincount(due[group.ravel() == counts]).max() for counts in range(group.max() + 1))
        task.advance(due)
    assert task.anchors()["order_blind"] == pytest.approx(best / (length * len(sequences)))


def test_who_counts_names_the_most_frequent_symbol():
    """Red if the share is not that of the symbols that the count may hold when a symbol is asked for."""

    def share(length, n_symbols):
        draws = itertools.product(range(n_symbols), repeat=length)
        return np.mean([np.bincount(draw).max() / length for draw in draws])

    assert Copy(1, length=5, n_symbols=3).anchors()["order_blind"] == pytest.approx(share(5, 3))
    assert Copy(1, length=6, n_symbols=3, reverse=True).anchors()["order_blind"] == pytest.approx(share(6, 3))
    task = RepeatPrevious(1, k=2, n_symbols=3, episode_length=7)
    assert task.anchors()["order_blind"] == pytest.approx(np.mean([share(seen, 3) for seen in (2, 3, 4, 5, 6)]))
