"""Group tracking: the moves are groups, and what is asked is what they lead to."""

import itertools

import numpy as np
import pytest

from envs.group_tracking import GROUPS, GroupTracking
from envs.task import TaskEnv

SIZES = {"parity": (2, 2), "cyclic": (7, 7), "cups": (5, 11), "S3": (6, 6), "S5": (120, 120)}


@pytest.mark.parametrize("group", GROUPS)
def test_moves_can_be_undone_and_one_of_them_does_nothing(group):
    """Red if a move loses the state, or two moves are the same."""
    task = GroupTracking(1, group=group, order=7)
    assert (task.n_states, task.n_moves) == SIZES[group]
    assert task.action_space.n == task.n_states
    assert task.observation_space.shape == (sum(SIZES[group]),)
    table = task.moves.table
    states = np.arange(task.n_states)
    np.testing.assert_array_equal(np.sort(table, 1), np.tile(states, (task.n_moves, 1)))
    assert (table == states).all(1).sum() == 1
    assert len(np.unique(table, axis=0)) == task.n_moves


@pytest.mark.parametrize("group", ["parity", "cyclic", "S3", "S5"])
def test_two_moves_in_a_row_are_a_move(group):
    """Red if the moves are no group: then the answer would be no running product of them."""
    table = GroupTracking(1, group=group, order=7).moves.table
    moves = {tuple(move) for move in table.tolist()}
    assert all(tuple(second[first]) in moves for first in table for second in table)
    commutes = all((second[first] == first[second]).all() for first in table for second in table)
    assert commutes == (group in ("parity", "cyclic"))


def _by_hand(group):
    """What a state and a move mean: the state after the move, written without the table."""
    if group in ("parity", "cyclic"):
        return lambda state, move: (state + move) % (2 if group == "parity" else 7)
    if group == "cups":
        swaps = [(0, 0), *itertools.combinations(range(5), 2)]
        return lambda state, move: {swaps[move][0]: swaps[move][1], swaps[move][1]: swaps[move][0]}.get(state, state)
    permutations = list(itertools.permutations(range(int(group[1:]))))

    def apply(state, move):
        return permutations.index(tuple(permutations[move][image] for image in permutations[state]))

    return apply


@pytest.mark.parametrize("asked", ["always", "end"])
@pytest.mark.parametrize("group", GROUPS)
def test_following_the_moves_solves_it(group, asked):
    """Red if the answer lags behind the move in view, or a move acts from the wrong side."""
    task = GroupTracking(1, group=group, order=7, episode_length=9, asked=asked)
    env, apply = TaskEnv(task), _by_hand(group)
    observation, _ = env.reset(seed=2)
    for _ in range(20):
        state, rewards, done = None, [], False
        while not done:
            start, move = observation[: task.n_states], observation[task.n_states :]
            assert observation.sum() == 1
            assert start.any() == (state is None)
            state = int(start.argmax()) if state is None else apply(state, int(move.argmax()))
            observation, reward, done, _, info = env.step(state)
            rewards.append(reward)
        assert rewards == ([0.0] + [1 / 8] * 8 if asked == "always" else [0.0] * 8 + [1.0])
        assert info["is_success"]
        assert not observation.any()
        observation, _ = env.reset()


def test_one_wrong_answer_costs_its_share_and_the_success():
    """Red if a success is given away, or the answer in the first step counts."""
    task = GroupTracking(1, group="cyclic", order=3, episode_length=6)
    task.reset(0)
    total = 0.0
    for index in range(6):
        step = task.step((task.oracle_actions() + (index in (0, 3))) % 3)
        total += step.rewards[0]
    assert total == pytest.approx(4 / 5)
    assert not step.success.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order must be a whole number, at least 2, got 1"),
        ({"episode_length": 1}, "episode_length must be a whole number, at least 2, got 1"),
        ({"group": "S4"}, "group must be one of parity, cyclic, cups, S3, S5, got 'S4'"),
        ({"asked": "never"}, "asked must be one of always, end, got 'never'"),
    ],
)
def test_options_are_checked(options, message):
    """Red if a wrong option is taken, or answered with something else than what was wrong."""
    with pytest.raises(ValueError, match=message):
        GroupTracking(1, **options)
