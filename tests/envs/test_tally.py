"""Tally: what counts as seen, which answers are right, and how far the clock alone leads."""

import collections

import numpy as np
import pytest

from envs.tally import Tally
from envs.task import TaskEnv
from envs.testing import play


@pytest.mark.parametrize("question", ["count", "more_frequent"])
def test_counting_solves_it(question):
    """Red if the symbol in view does not count, an episode inherits counts, or a tie has one right answer only."""
    task = Tally(1, n_symbols=3, episode_length=7, question=question)
    env, n_ties = TaskEnv(task), 0
    observation, _ = env.reset(seed=1)
    for _ in range(40):
        counts, total, done = collections.Counter(), 0.0, False
        while not done:
            parts = observation.reshape(-1, 3)
            assert parts.sum(1).tolist() == [1.0] * len(parts)
            symbol, *asked = parts.argmax(1).tolist()
            counts[symbol] += 1
            if question == "count":
                answer = counts[asked[0]]
            else:
                first, second = asked
                assert first != second
                answer = 0 if counts[first] > counts[second] else 1  # the other way round than the oracle at ties
                n_ties += counts[first] == counts[second]
            observation, reward, done, _, info = env.step(answer)
            total += reward
        assert total == pytest.approx(1.0)
        assert info["is_success"]
        assert not observation.any()
        observation, _ = env.reset()
    assert question == "count" or n_ties > 20


def test_one_wrong_answer_costs_its_share_and_the_success():
    """Red if a success is given away."""
    task = Tally(1, n_symbols=3, episode_length=5)
    task.reset(0)
    steps = [task.step((task.oracle_actions() + (index == 2)) % 6) for index in range(5)]
    assert sum(step.rewards[0] for step in steps) == pytest.approx(0.8)
    assert steps[-1].terminated.all()
    assert not steps[-1].success.any()


@pytest.mark.parametrize(("n_symbols", "episode_length"), [(2, 12), (4, 9)])
def test_the_clock_anchor_is_the_best_answer_to_each_step_and_sight(n_symbols, episode_length):
    """Red if the formula and the best table of answers, found by counting in 20,000 episodes, disagree."""
    task = Tally(500, n_symbols=n_symbols, episode_length=episode_length)
    tallies = np.zeros((episode_length, 2, episode_length + 1), np.int64)

    def sight(observations):
        parts = observations.reshape(len(observations), 2, -1)
        return (parts[:, 0] * parts[:, 1]).sum(1).astype(np.int64)

    observations = task.reset(7)
    for _ in range(40 * episode_length):
        np.add.at(tallies, (task._step, sight(observations), task.oracle_actions()), 1)
        observations = task.step(task.oracle_actions()).observations
    best = tallies.argmax(2)
    scores = play(task, lambda task, seen: best[task._step, sight(seen)], n_episodes=20_000, seed=8)
    assert scores.returns.mean() == pytest.approx(task.anchors()["clock"], abs=0.01)


def test_the_clock_does_not_help_to_compare():
    """Red if knowing the step were worth something after all: the best answers of all steps are then not the same."""
    task = Tally(500, n_symbols=3, episode_length=6, question="more_frequent")
    right = np.zeros((6, 3, 3, 3, 2), np.int64)
    observations = task.reset(7)
    for _ in range(240):
        symbol, first, second = observations.reshape(500, 3, 3).argmax(2).T
        counts = task._counts[np.arange(500)[:, None], np.stack([first, second], 1)]
        at = task._step, symbol, first, second
        np.add.at(right, (*at, 0), counts[:, 0] >= counts[:, 1])
        np.add.at(right, (*at, 1), counts[:, 1] >= counts[:, 0])
        observations = task.step(task.oracle_actions()).observations
    clock = right.max(4).sum() / (500 * 240)
    assert clock == pytest.approx(task.anchors()["clock"], abs=0.01)
    assert task.anchors()["clock"] == task.anchors()["memoryless"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_symbols": 1}, "n_symbols must be a whole number, at least 2, got 1"),
        ({"episode_length": 1}, "episode_length must be a whole number, at least 2, got 1"),
        ({"question": "which"}, "question must be 'count' or 'more_frequent', got 'which'"),
    ],
)
def test_options_are_checked(options, message):
    """Red if a wrong option is taken, or answered with something else than what was wrong."""
    with pytest.raises(ValueError, match=message):
        Tally(1, **options)
