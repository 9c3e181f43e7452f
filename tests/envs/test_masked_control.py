"""What is hidden is the velocities, and nothing else changes."""

import gymnasium
import numpy as np
import pytest

import envs
from envs.masked_control import MASKED_TASKS

# Box2D's SWIG types warn while they are made; as an error, that crashes the interpreter
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")

SEEN = {
    "CartPoleNoVel-v1": [0, 2],
    "PendulumNoVel-v1": [0, 1],
    "MountainCarContinuousNoVel-v0": [0],
    "LunarLanderNoVel-v3": [0, 1, 4, 6, 7],
}


@pytest.mark.parametrize("env_id", SEEN)
def test_positions_are_seen_and_velocities_are_not(env_id):
    env, full = envs.make(env_id), gymnasium.make(MASKED_TASKS[env_id].full_id)
    seen = SEEN[env_id]
    np.testing.assert_array_equal(env.observation_space.high, full.observation_space.high[seen])
    full.action_space.seed(1)
    np.testing.assert_array_equal(env.reset(seed=2)[0], full.reset(seed=2)[0][seen])
    for _ in range(150):
        action = full.action_space.sample()
        ours, theirs = env.step(action), full.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0][seen])
        assert ours[1:4] == theirs[1:4]
        if ours[2] or ours[3]:
            np.testing.assert_array_equal(env.reset(seed=3)[0], full.reset(seed=3)[0][seen])


def balance(env, gain):
    """Push towards where the pole falls, by the difference of two angles; no gain, no balance."""
    (position, angle), _ = env.reset(seed=0)
    previous, ended, total = (position, angle), False, 0.0
    while not ended:
        moved, turned = 50 * (position - previous[0]), 50 * (angle - previous[1])
        previous = (position, angle)
        push = gain * (10 * angle + 2 * turned + 0.4 * position + 0.8 * moved)
        (position, angle), reward, terminated, truncated, info = env.step(int(push > 0))
        ended, total = terminated or truncated, total + reward
        assert info["is_success"] == (truncated and not terminated)
    return total, info["is_success"]


def test_two_observations_are_enough_to_balance_the_pole():
    env = envs.make("CartPoleNoVel")
    assert balance(env, gain=1.0) == (500.0, True)
    total, is_success = balance(env, gain=-1.0)
    assert total < 50
    assert not is_success


def test_success_is_named_only_where_there_is_one():
    env = envs.make("PendulumNoVel-v1")
    env.reset(seed=0)
    assert "is_success" not in env.step(np.zeros(1, np.float32))[4]
    env = envs.make("MountainCarContinuousNoVel-v0")
    env.reset(seed=0)
    assert env.step(np.zeros(1, np.float32))[4]["is_success"] is False


def test_options_of_the_full_environment_are_taken():
    env = envs.make("CartPoleNoVel-v1", sutton_barto_reward=True)
    env.reset(seed=0)
    assert env.step(0)[1] == 0.0
