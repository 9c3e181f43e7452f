"""The NumPy tasks keep their promises, and the check notices those that do not."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import envs
from envs.copy_sequence import Copy
from envs.endless_t_maze import EndlessTMaze
from envs.group_tracking import GroupTracking
from envs.key_value_recall import KeyValueRecall
from envs.masked_cart_pole import MaskedCartPole
from envs.masked_pendulum import MaskedPendulum
from envs.memory_chain import MemoryChain
from envs.repeat_previous import RepeatPrevious
from envs.t_maze import TMaze
from envs.tally import Tally
from envs.task import Outcome, TaskVectorEnv
from envs.tasks import VECTOR_TASKS
from envs.testing import check_task, play, reference_policies

TASKS = {
    "one corridor": lambda n_envs: TMaze(n_envs, length=4),
    "one corridor of any length": lambda n_envs: TMaze(n_envs, length=4, uniform=True),
    "three corridors": lambda n_envs: TMaze(n_envs, length=3, n_corridors=3),
    "corridors of any length": lambda n_envs: TMaze(n_envs, length=5, n_corridors=2, uniform=True),
    "endless corridors": lambda n_envs: EndlessTMaze(n_envs, length=4, n_corridors=2),
    "endless corridors of any length": lambda n_envs: EndlessTMaze(n_envs, length=5, n_corridors=3, uniform=True),
    "repeat previous": lambda n_envs: RepeatPrevious(n_envs, k=3, n_symbols=5, episode_length=11),
    "write, then query": lambda n_envs: KeyValueRecall(n_envs, n_keys=3, n_values=4, n_writes=7, n_queries=5),
    "interleaved": lambda n_envs: KeyValueRecall(
        n_envs, n_keys=3, n_values=5, n_writes=8, n_queries=4, mode="interleaved", skew=1.5
    ),
    "parity": lambda n_envs: GroupTracking(n_envs, group="parity", episode_length=6),
    "counter": lambda n_envs: GroupTracking(n_envs, group="cyclic", order=3, episode_length=7, asked="end"),
    "cups": lambda n_envs: GroupTracking(n_envs, group="cups", episode_length=8),
    "S3": lambda n_envs: GroupTracking(n_envs, group="S3", episode_length=7),
    "S5": lambda n_envs: GroupTracking(n_envs, group="S5", episode_length=9, asked="end"),
    "count": lambda n_envs: Tally(n_envs, n_symbols=3, episode_length=8),
    "more frequent": lambda n_envs: Tally(n_envs, n_symbols=4, episode_length=7, question="more_frequent"),
    "more frequent of two": lambda n_envs: Tally(n_envs, n_symbols=2, episode_length=6, question="more_frequent"),
    "copy": lambda n_envs: Copy(n_envs, length=5, n_symbols=3),
    "copy, backwards": lambda n_envs: Copy(n_envs, length=6, n_symbols=3, reverse=True),
    "cart and pole": lambda n_envs: MaskedCartPole(n_envs, episode_length=90),
    "cart and pole with noise": lambda n_envs: MaskedCartPole(n_envs, noise=0.2, episode_length=70),
    "pendulum with noise": lambda n_envs: MaskedPendulum(n_envs, noise=0.1, episode_length=120),
    "memory chain": lambda n_envs: MemoryChain(n_envs, memory_length=4, n_bits=3),
}


@pytest.mark.parametrize("make_task", TASKS.values(), ids=TASKS)
def test_tasks_keep_their_promises(make_task):
    check_task(make_task, n_episodes=1500)


@pytest.mark.parametrize("env_id", VECTOR_TASKS)
def test_the_anchors_of_the_defaults_hold_within_a_percent_of_the_best_return(env_id):
    """Red if a default was changed and its anchors were not, or if a formula is a little off."""
    task, rng = VECTOR_TASKS[env_id](1000), np.random.default_rng(1)
    anchors = task.anchors()
    # fewer where they are longer, for as many steps; more where each is a toss of a coin
    n_episodes = 4000 if hasattr(task, "noise") else 100_000 if isinstance(task, MemoryChain) else 20_000
    for name, policy in reference_policies(task, rng).items():
        mean = play(task, policy, n_episodes=n_episodes, seed=2).returns.mean()
        assert mean == pytest.approx(anchors[name], abs=0.01 * (anchors["optimal"] - anchors["random"]))


class _ForgetsToReset(RepeatPrevious):
    def begin(self, rows):
        super().begin(rows)
        self._symbols[rows] = self._symbols[0]


class _LeaksTheCue(TMaze):
    def memoryless_actions(self, observations):
        return self.oracle_actions()


class _EndsInBothWays(TMaze):
    def advance(self, actions):
        outcome = super().advance(actions)
        return Outcome(*outcome[:3], outcome.terminated, outcome.success)


class _PaysTooMuch(TMaze):
    def advance(self, actions):
        outcome = super().advance(actions)
        return outcome._replace(rewards=2 * outcome.rewards)


class _PromisesTheClockTooMuch(TMaze):
    def anchors(self):
        return super().anchors() | {"clock": 0.98}


class _KeepsAPolicyToItself(TMaze):
    def other_policies(self):
        return {}


class _SharesOneStream(TMaze):
    def begin(self, rows):
        self.rngs = [self.rngs[0]] * self.n_envs
        super().begin(rows)


class _IgnoresTheSeed(TMaze):
    def begin(self, rows):
        self.rngs = [np.random.default_rng(0)] * self.n_envs
        super().begin(rows)


@pytest.mark.parametrize(
    "wrong",
    [
        _ForgetsToReset,
        _LeaksTheCue,
        _EndsInBothWays,
        _PaysTooMuch,
        _PromisesTheClockTooMuch,
        _KeepsAPolicyToItself,
        _SharesOneStream,
        _IgnoresTheSeed,
    ],
)
def test_the_check_has_teeth(wrong):
    with pytest.raises(AssertionError):
        check_task(wrong, n_episodes=500)


def test_t_maze_step_by_step():
    task = TMaze(1, length=2, n_corridors=2)
    task.reset(0)
    task._sides[:], task._side[:] = [1, 2], 1  # left, then right
    left, right, junction, nothing = [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]
    forward, turn_left, turn_right = np.array([0]), np.array([1]), np.array([2])
    tape = [  # action, observation after it, reward
        (turn_left, left, 0.0),  # nothing happens in the corridor
        (forward, nothing, 0.0),
        (forward, junction, 0.0),
        (forward, junction, 0.0),  # nor does going on at the junction
        (turn_left, right, 0.5),
        (forward, nothing, 0.0),
        (forward, junction, 0.0),
    ]
    assert task.observe().tolist() == [left]
    for action, observation, reward in tape:
        step = task.step(action)
        assert step.observations.tolist() == [observation]
        assert step.rewards.tolist() == [reward]
        assert not step.terminated.any()
        assert not step.truncated.any()
    step = task.step(turn_right)
    assert (step.rewards.tolist(), step.terminated.tolist(), step.success.tolist()) == ([0.5], [True], [True])
    assert step.final_observations.tolist() == [junction]
    assert step.observations.tolist() in ([left], [right])  # the next episode has begun


def test_a_wrong_turn_ends_the_episode_and_standing_still_is_cut_off():
    task = TMaze(2, length=3, n_corridors=2)
    task.reset(0)
    for _ in range(3):
        task.step(np.array([0, 1]))
    step = task.step(np.array([3 - task._side[0], 1]))
    assert step.terminated.tolist() == [True, False]
    assert step.rewards.tolist() == [0.0, 0.0]
    assert not step.success.any()
    truncated = [task.step(np.array([1, 1])).truncated[1] for _ in range(12)]
    assert truncated == [False] * 11 + [True]  # 2 * 2 * (3 + 1) = 16 steps in all


def test_repeat_previous_step_by_step():
    task = RepeatPrevious(1, k=2, n_symbols=3, episode_length=5)
    shown = [task.reset(7)[0].argmax()]
    rewards = []
    for offset in (None, None, 0, 1, 0):  # how far the answer is from the right one, once there is one
        action = 0 if offset is None else (shown[-3] + offset) % 3
        step = task.step(np.array([action]))
        rewards.append(float(step.rewards[0]))
        shown.append(step.final_observations[0].argmax())
    assert rewards == [0.0, 0.0, 1 / 3, 0.0, 1 / 3]
    assert step.terminated.all()
    assert not step.success.any()
    assert not step.final_observations.any()
    assert step.observations.sum() == 1


def test_success_means_every_answer_was_right():
    task = RepeatPrevious(3, k=2, n_symbols=4, episode_length=6)
    task.reset(1)
    for _ in range(6):
        step = task.step(task.oracle_actions())
    assert step.success.all()


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")  # torques are those of Gymnasium's Pendulum
@pytest.mark.parametrize("env_id", VECTOR_TASKS)
def test_gymnasium_checks_the_plain_face(env_id):
    check_env(envs.make(env_id, render_mode="rgb_array").unwrapped)


def test_the_vector_face_follows_gymnasium():
    env = gymnasium.make_vec("fwp/TMaze-v0", num_envs=4, vectorization_mode="vector_entry_point", length=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert isinstance(env.unwrapped, TaskVectorEnv)
    task = TMaze(4, length=3)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(env.reset(seed=5)[0], task.reset(5))
    assert env.observation_space.contains(task.observe())
    n_ended = 0
    for _ in range(80):
        actions = rng.integers(3, size=4)
        expected = task.step(actions)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        np.testing.assert_array_equal(observations, expected.observations)
        np.testing.assert_array_equal(rewards, expected.rewards)
        ended = terminated | truncated
        n_ended += ended.sum()
        for row in np.flatnonzero(ended):
            np.testing.assert_array_equal(infos["final_obs"][row], expected.final_observations[row])
            assert infos["final_info"]["is_success"][row] == expected.success[row]
        assert bool(infos) == ended.any()
    assert n_ended > 5


def test_actions_are_checked_at_the_door():
    task = TMaze(2)
    with pytest.raises(RuntimeError, match="reset the environment"):
        task.step(np.array([0, 0]))
    task.reset(0)
    for actions, message in [([0], "must have shape"), ([0, 3], r"0\.\.2"), ([0.0, 1.0], "whole numbers")]:
        with pytest.raises(ValueError, match=message):
            task.step(np.array(actions))


def test_pictures_show_where_the_agent_is():
    task = TMaze(1, length=6)
    task.reset(0)
    before = task.render()
    task.step(np.array([0]))
    after = task.render()
    assert before.shape == after.shape
    assert (before != after).any(axis=-1).mean() > 0.01
