"""Copy: the same symbols, in the same order."""

import pytest

from envs.copy_sequence import Copy
from envs.task import TaskEnv


def test_a_list_solves_it():
    """Red if another order than that of the sequence is right, or an answer counts while the sequence is shown."""
    env = TaskEnv(Copy(1, length=5, n_symbols=3))
    observation, _ = env.reset(seed=1)
    for _ in range(20):
        notes, rewards, done = [], [], False
        while not done:
            assert observation.sum() == 1
            if observation[3]:
                action = notes.pop(0)
            else:
                action = int(observation[:3].argmax())
                notes.append(action)
            observation, reward, done, _, info = env.step(action)
            rewards.append(reward)
        assert rewards == [0.0] * 5 + [1 / 5] * 5
        assert info["is_success"]
        assert not observation.any()
        observation, _ = env.reset()


def test_one_wrong_answer_costs_its_share_and_the_success():
    """Red if a success is given away."""
    task = Copy(1, length=4, n_symbols=3)
    task.reset(0)
    steps = [task.step((task.oracle_actions() + (index in (1, 6))) % 3) for index in range(8)]
    assert sum(step.rewards[0] for step in steps) == pytest.approx(0.75)
    assert steps[-1].terminated.all()
    assert not steps[-1].success.any()


def test_options_are_checked():
    """Red if a wrong option is taken, or answered with something else than what was wrong."""
    with pytest.raises(ValueError, match="length must be a whole number, at least 1, got 0"):
        Copy(1, length=0)
    with pytest.raises(ValueError, match="n_symbols must be a whole number, at least 2, got 1"):
        Copy(1, n_symbols=1)
