"""Key-value recall: what is asked, what is right, and how far one gets without knowing the order."""

import itertools

import numpy as np
import pytest

from envs.key_value_recall import KeyValueRecall
from envs.task import TaskEnv
from envs.testing import play

SIZES = {"n_keys": 3, "n_values": 4, "n_writes": 7, "n_queries": 5}
MODES = ("write_then_query", "interleaved")


def _split(observation):
    """Key, value (None if asked), by the documented layout."""
    key, value, asked = observation[:3], observation[3:7], observation[7]
    assert key.sum() == 1
    assert value.sum() + asked == 1
    return int(key.argmax()), None if asked else int(value.argmax())


@pytest.mark.parametrize("mode", MODES)
def test_a_dictionary_solves_it(mode):
    """Red if what counts is not the last value that was shown under the key, or is not shown at all."""
    env = TaskEnv(KeyValueRecall(1, **SIZES, mode=mode, skew=1.0))
    observation, _ = env.reset(seed=3)
    for _ in range(40):
        notes, asked_keys, total, done = {}, [], 0.0, False
        while not done:
            key, value = _split(observation)
            if value is None:
                asked_keys.append(key)
            else:
                notes[key] = value
            observation, reward, done, _, info = env.step(notes[key])  # only what was written is asked for
            assert reward == (1 / 5 if value is None else 0.0)
            total += reward
        assert total == pytest.approx(1.0)
        assert info["is_success"]
        assert not observation.any()
        assert len(asked_keys) == 5
        if mode == "write_then_query":
            assert sorted(asked_keys[:3]) == [0, 1, 2]
        observation, _ = env.reset()


@pytest.mark.parametrize("mode", MODES)
def test_one_wrong_answer_costs_its_share_and_the_success(mode):
    """Red if a success is given away, or a right answer counts in a step that asks nothing."""
    task = KeyValueRecall(1, **SIZES, mode=mode)
    task.reset(0)
    total, n_asked = 0.0, 0
    for _ in range(12):
        asked = bool(task.observe()[0, 7])
        n_asked += asked
        wrong = asked and n_asked == 2
        step = task.step((task.oracle_actions() + wrong) % 4)
        total += step.rewards[0]
    assert total == pytest.approx(0.8)
    assert step.terminated.all()
    assert not step.success.any()


def test_questions_may_come_between_the_writes():
    """Red if interleaved episodes are not interleaved, or ask before anything is written."""
    task = KeyValueRecall(200, n_keys=3, n_values=4, n_writes=6, n_queries=6, mode="interleaved")
    tape = [task.reset(0)[:, 7]]
    for _ in range(11):
        tape.append(task.step(task.oracle_actions()).final_observations[:, 7])
    asked = np.stack(tape)
    assert not asked[0].any()
    assert asked.sum(0).tolist() == [6.0] * 200
    np.testing.assert_allclose(asked[1:].mean(1), 6 / 11, atol=0.15)


@pytest.mark.parametrize(("skew", "counts"), [(0.0, [4, 4, 3]), (1.0, [6, 3, 2]), (3.0, [9, 1, 1]), (50.0, [9, 1, 1])])
def test_skew_says_how_often_keys_are_written(skew, counts):
    """Red if the writes are not shared out as documented, or it is always the same key that is frequent."""
    task = KeyValueRecall(300, n_keys=3, n_values=4, n_writes=11, n_queries=1, skew=skew)
    assert task.counts == counts
    written = np.zeros((300, 3), np.int64)
    observations = task.reset(4)
    for _ in range(11):
        written += observations[:, :3].astype(np.int64)
        observations = task.step(np.zeros(300, np.int64)).observations
    assert np.sort(written, 1)[:, ::-1].tolist() == [counts] * 300
    for count in (counts[0], counts[-1]):
        assert (written == count).any(0).all()


class _OrderBlind:
    """Answers with the value that was written under the key most often, the smallest of them."""

    def __init__(self, task):
        self.written = np.zeros((task.n_envs, task.n_keys, task.n_values), np.int64)

    def __call__(self, task, observations):
        self.written[task._step == 0] = 0
        keys = observations[:, : task.n_keys].astype(np.int64)
        values = observations[:, task.n_keys : -1].astype(np.int64)
        self.written += keys[:, :, None] * values[:, None]
        return (self.written * keys[:, :, None]).sum(1).argmax(1)


@pytest.mark.parametrize(
    ("mode", "n_writes", "skew"),
    [("write_then_query", 9, 0.0), ("write_then_query", 14, 1.3), ("interleaved", 9, 0.0), ("interleaved", 14, 1.3)],
)
def test_the_order_blind_anchor_is_what_counting_returns(mode, n_writes, skew):
    """Red if the anchor counts the writes of the whole episode, or forgets how often a key was written."""
    task = KeyValueRecall(200, n_keys=3, n_values=4, n_writes=n_writes, n_queries=5, mode=mode, skew=skew)
    scores = play(task, _OrderBlind(task), n_episodes=20_000, seed=1)
    assert scores.returns.mean() == pytest.approx(task.anchors()["order_blind"], abs=0.01)


@pytest.mark.parametrize("n_values", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_order_blind_anchor_by_trying_all_values(n_values, count):
    """Red if the distribution of the most frequent value is not that of equally likely values."""
    share = np.mean([np.bincount(v).max() / count for v in itertools.product(range(n_values), repeat=count)])
    task = KeyValueRecall(1, n_keys=4, n_values=n_values, n_writes=4 * count)
    assert task.anchors()["order_blind"] == pytest.approx(share)


def test_the_order_blind_anchor_stays_finite_in_long_episodes():
    """Red if the counts of a long episode overflow."""
    for mode in MODES:
        anchor = KeyValueRecall(1, n_writes=600, n_queries=9, skew=2.0, mode=mode).anchors()["order_blind"]
        assert 1 / 8 < anchor < 1


def test_the_picture_of_a_new_episode_does_not_show_the_old_one():
    """Red if what was held at the end of an episode stays on the shelf."""
    task = KeyValueRecall(1, **SIZES)
    task.reset(0)
    for _ in range(12):
        task.step(task.oracle_actions())
    fresh = KeyValueRecall(1, **SIZES)
    fresh.reset(0)
    fresh.begin(np.array([0]))
    np.testing.assert_array_equal(task.observe(), fresh.observe())
    np.testing.assert_array_equal(task.render(), fresh.render())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_keys": 0}, "n_keys must be a whole number, at least 1, got 0"),
        ({"n_values": 1}, "n_values must be a whole number, at least 2, got 1"),
        ({"n_queries": 1.5}, "n_queries must be a whole number, at least 1, got 1.5"),
        ({"n_keys": 9, "n_writes": 8}, "n_writes must be a whole number, at least n_keys=9, got 8"),
        ({"mode": "mixed"}, "mode must be 'write_then_query' or 'interleaved', got 'mixed'"),
        ({"skew": -1.0}, "skew must be a finite number, at least 0, got -1.0"),
        ({"skew": float("nan")}, "skew must be a finite number, at least 0, got nan"),
    ],
)
def test_options_are_checked(options, message):
    """Red if a wrong option is taken, or answered with something else than what was wrong."""
    with pytest.raises(ValueError, match=message):
        KeyValueRecall(1, **options)
