"""The published rules of the Endless T-Maze, to the letter, where they differ from those of our T-maze."""

import numpy as np
import pytest

from envs.endless_t_maze import EndlessTMaze

FORWARD, LEFT, RIGHT = range(3)


def test_the_published_rules_step_by_step():
    """Red if a reward, what is seen, or where an episode goes on or ends differs from the published code."""
    task = EndlessTMaze(1, length=2, n_corridors=2)
    task.reset(0)
    task._sides[:], task._side[:] = [LEFT, RIGHT], LEFT
    tape = [  # action, observation after it, reward
        (RIGHT, [0.0, 1, 0], -0.01),  # a turn in the corridor costs and does nothing
        (FORWARD, [0.5, 0, 0], 0.0),
        (FORWARD, [1.0, 0, 0], 0.0),
        (LEFT, [0.0, 0, 1], 1.0),
        (FORWARD, [0.5, 0, 0], 0.0),
        (LEFT, [0.5, 0, 0], -0.01),
        (FORWARD, [1.0, 0, 0], 0.0),
    ]
    np.testing.assert_array_equal(task.observe(), [[0, 1, 0]])
    for action, observation, reward in tape:
        step = task.step(np.array([action]))
        np.testing.assert_array_equal(step.observations, [observation])
        assert step.rewards.tolist() == [reward]
        assert not (step.terminated | step.truncated).any()
    step = task.step(np.array([RIGHT]))
    assert (step.rewards.tolist(), step.terminated.tolist(), step.success.tolist()) == ([1.0], [True], [True])
    np.testing.assert_array_equal(step.final_observations, [[1.0, 0, 0]])


@pytest.mark.parametrize("mistake", ["the other side", "forward"])
def test_anything_but_the_correct_turn_ends_the_episode(mistake):
    """Red if going on at a junction does nothing, as it does in our T-maze."""
    task = EndlessTMaze(1, length=1, n_corridors=3)
    task.reset(4)
    task.step(np.array([FORWARD]))
    step = task.step(LEFT + RIGHT - task._side if mistake == "the other side" else np.array([FORWARD]))
    assert (step.rewards.tolist(), step.terminated.tolist(), step.success.tolist()) == ([-0.01], [True], [False])


def test_standing_still_is_cut_off_after_six_times_the_way():
    """Red if the limit is that of our T-maze."""
    task = EndlessTMaze(1, length=3, n_corridors=2)
    task.reset(0)
    truncated = [bool(task.step(np.array([LEFT])).truncated[0]) for _ in range(6 * 2 * 4)]
    assert truncated == [False] * 47 + [True]


def test_lengths_are_fixed_or_uniform():
    """Red if a length of 0 or of more than `length` comes up, or if the corridors of an episode share one."""
    fixed, uniform = (EndlessTMaze(4000, length=4, n_corridors=2, uniform=uniform) for uniform in (False, True))
    fixed.reset(0)
    uniform.reset(0)
    assert (fixed._junctions == 4).all()
    np.testing.assert_allclose(np.bincount(uniform._junctions.ravel(), minlength=5) / 8000, [0, *[0.25] * 4], atol=0.02)
    assert 0.7 < (uniform._junctions[:, 0] != uniform._junctions[:, 1]).mean() < 0.8


def test_who_cannot_see_the_junction_tries_a_turn_at_every_place():
    """Red if the anchor "junction_unseen" is not what that policy returns."""
    task = EndlessTMaze(2000, length=5, n_corridors=3, uniform=True)
    task.reset(1)
    side, has_tried, total, running = task._side.copy(), np.zeros(2000, bool), np.zeros(2000), np.ones(2000, bool)
    for _ in range(40):
        seen = task.observe()
        at_start = seen[:, 0] == 0
        side = np.where(at_start, np.where(seen[:, 1] == 1, LEFT, RIGHT), side)
        walks = at_start | has_tried
        step = task.step(np.where(walks, FORWARD, side))
        has_tried = ~walks & (step.observations[:, 0] > 0)
        total += step.rewards * running
        running &= ~step.terminated
    assert not running.any()
    assert total.mean() == pytest.approx(task.anchors()["junction_unseen"], abs=0.002)
