"""The memory chain is bsuite's, step by step."""

import itertools

import numpy as np
import pytest

from envs.memory_chain import MemoryChain


def test_an_episode_is_that_of_bsuite():
    """Red if the clock, the question or the bits are seen at another step than in bsuite.

    Of four bits the number 2 is asked for, in a chain of length 3: worked out by hand from the code of bsuite.
    """
    task = MemoryChain(60, memory_length=3, n_bits=4)
    first = task.reset(1)
    asked = np.stack([task.step(task.oracle_actions()).observations for _ in range(3)])[-1][:, 1]
    row = int(np.flatnonzero(asked == 2)[0])
    bits = first[row, 2:]
    assert set(bits) <= {-1, 1}
    seen = [task.reset(1)[row]]
    rewards, ended = [], []
    for _ in range(4):
        step = task.step(task.oracle_actions())
        seen.append(step.final_observations[row])
        rewards.append(step.rewards[row])
        ended.append(bool(step.terminated[row]))
    nothing = [0, 0, 0, 0]
    np.testing.assert_allclose(
        seen, [[1, 0, *bits], [1, 0, *bits], [2 / 3, 0, *nothing], [1 / 3, 2, *nothing], [0, 0, *nothing]], rtol=1e-6
    )
    assert rewards == [0, 0, 0, 1]
    assert ended == [False, False, False, True]


def test_a_wrong_answer_costs_one():
    """Red if a wrong answer returns 0, as in other tasks."""
    task = MemoryChain(5, memory_length=2)
    task.reset(0)
    steps = [task.step(1 - task.oracle_actions()) for _ in range(3)]
    np.testing.assert_array_equal(sum(step.rewards for step in steps), -np.ones(5))
    assert not steps[-1].success.any()


def test_the_shortest_chain_needs_no_memory():
    """Red if the anchors claim that memory is worth something where the bit is still in view."""
    task = MemoryChain(8, memory_length=1, n_bits=3)
    observations = task.reset(0)
    for _ in range(2):
        step = task.step(task.memoryless_actions(observations))
        observations = step.observations
    assert step.success.all()
    assert task.anchors()["memoryless"] == 1


def test_the_majority_is_the_best_bit_to_hold():
    """Red if a function of the bits tells more of the one that will be asked for than the anchor says."""
    chains = np.array(list(itertools.product([-1, 1], repeat=3)))
    held = np.array(list(itertools.product([-1, 1], repeat=len(chains))))
    best = np.abs(held @ chains / len(chains)).mean(1).max()  # of each bit asked for, by what is held
    assert MemoryChain(1, n_bits=3).anchors()["previous_action"] == pytest.approx(best)


def test_options_are_checked():
    """Red if a wrong option is taken."""
    with pytest.raises(ValueError, match="memory_length must be a positive whole number, got 0"):
        MemoryChain(1, memory_length=0)
