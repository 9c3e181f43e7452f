"""With the answer in view no memory is needed; out of step, everything else is as it was."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

import envs
from envs.masked_control import MASKED_TASKS
from envs.task import VectorTask
from envs.tasks import VECTOR_TASKS
from envs.testing import check_anchors, check_faces_agree, check_rows_are_strangers, check_spaces, play
from envs.variants import TaskVariant


def _make(env_id, **options):
    return lambda n_envs: envs.make_vector(env_id, n_envs, **options)


@pytest.mark.parametrize("env_id", VECTOR_TASKS)
def test_with_the_answer_in_view_a_memoryless_policy_is_optimal(env_id):
    """Red if the answer that is shown belongs to another step, row or episode."""
    task = envs.make_vector(env_id, 30, oracle=True)
    scores = play(task, lambda task, observations: task.memoryless_actions(observations), n_episodes=300, seed=1)
    assert scores.successes.all()
    anchors = task.anchors()
    assert anchors["memoryless"] == anchors["optimal"] == pytest.approx(scores.returns.mean(), rel=0.1)
    if scores.returns.std() < 1e-9:  # else the optimum depends on where an episode starts
        assert scores.returns == pytest.approx(anchors["optimal"])


@pytest.mark.parametrize("options", [{"oracle": True}, {"longest_wait": 7}, {"oracle": True, "longest_wait": 5}])
@pytest.mark.parametrize("env_id", VECTOR_TASKS)
def test_variants_keep_the_promises_of_a_task(env_id, options):
    """Red if a variant breaks the independence of the rows, or its two faces differ."""
    for check in (check_spaces, check_rows_are_strangers, check_faces_agree):
        check(_make(env_id, **options))
    if "oracle" not in options:
        check_anchors(_make(env_id, **options), n_episodes=1500)


def test_the_answer_follows_what_the_task_shows():
    """Red if the observation of the task is changed, or its best action is not what follows."""
    shown, plain = envs.make_vector("fwp/TMaze-v0", 4, oracle=True), envs.make_vector("fwp/TMaze-v0", 4)
    assert shown.observation_space == spaces.Box(0.0, 1.0, (4 + 3,), np.float32)
    observations, expected = shown.reset(2), plain.reset(2)
    for _ in range(25):
        np.testing.assert_array_equal(observations[:, :4], expected)
        np.testing.assert_array_equal(observations[:, 4:], np.eye(3)[plain.oracle_actions()])
        actions = plain.oracle_actions()
        observations, expected = shown.step(actions).observations, plain.step(actions).observations


def test_rows_wait_and_then_live_the_same_life():
    """Red if a wait is paid, ends an episode, shows something, or comes back in later episodes."""
    task = envs.make_vector("fwp/Copy-v0", 40, longest_wait=6)
    observations = [task.reset(3)]
    steps = [task.step(task.oracle_actions()) for _ in range(6 + 3 * 8)]
    observations = np.stack([*observations, *(step.observations for step in steps)])
    rewards = np.stack([step.rewards for step in steps])
    ended = np.stack([step.terminated for step in steps])
    waits = observations.any(2).argmax(0)
    assert set(waits) == set(range(7))
    for row, wait in enumerate(waits):
        assert not rewards[: wait + 4, row].any()
        assert rewards[wait : wait + 8, row].sum() == 1.0
        assert np.flatnonzero(ended[:, row])[:3].tolist() == [wait + 7, wait + 15, wait + 23]
        assert observations[wait:, row].any(1).all()


def test_only_a_reset_with_a_seed_waits():
    """Red if every episode of an evaluation began with a wait of its own."""
    env = envs.make("fwp/Copy-v0", longest_wait=30)
    assert not env.reset(seed=0)[0].any()
    assert all(env.reset()[0].any() for _ in range(20))


def test_variants_are_options_of_every_numpy_task_and_of_no_other():
    """Red if the options are lost on one of the ways to make an environment."""
    for env in (
        envs.make("fwp/Copy-v0", oracle=True, length=3),
        gymnasium.make("fwp/Copy-v0", oracle=True, length=3),
    ):
        assert env.observation_space.shape == (5 + 4,)
        check_env(env, warn=False)
    with pytest.raises(ValueError, match="has no option 'oracl'; did you mean oracle"):
        envs.make("fwp/Copy-v0", oracl=True)
    with pytest.raises(ValueError, match="has no option 'oracle'"):
        envs.make(next(iter(MASKED_TASKS)), oracle=True)
    with pytest.raises(ValueError, match="longest_wait must be a whole number, at least 0, got -1"):
        envs.make_vector("fwp/Copy-v0", 2, longest_wait=-1)


class _ManyActions(VECTOR_TASKS["fwp/Copy-v0"]):
    def __init__(self, n_envs):
        super().__init__(n_envs)
        self.action_space = spaces.MultiDiscrete([2, 3])


def test_a_task_whose_answers_cannot_be_shown_is_refused():
    """Red if a task without a list of answers fails later and less clearly."""
    assert issubclass(_ManyActions, VectorTask)
    with pytest.raises(ValueError, match="actions that are Discrete or in a Box of one axis, got MultiDiscrete"):
        TaskVariant(_ManyActions(2), oracle=True)
