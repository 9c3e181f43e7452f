"""Cart and pendulum move as Gymnasium's do, and what is seen of them is positions alone, with noise if asked for."""

import gymnasium
import numpy as np
import pytest

from envs.masked_cart_pole import MaskedCartPole
from envs.masked_pendulum import MaskedPendulum
from envs.testing import play


def test_carts_move_as_gymnasiums_do():
    """Red if a constant, the order of the integration or an end differs from `CartPole-v1`."""
    task, env, rng = MaskedCartPole(3), gymnasium.make("CartPole-v1"), np.random.default_rng(0)
    observations, n_ended = task.reset(1), 0
    for _ in range(5):
        theirs, _ = env.reset(seed=1)
        env.unwrapped.state = task._state[1].copy()
        ended = False
        while not ended:
            actions = rng.integers(2, size=3)
            step = task.step(actions)
            theirs, reward, terminated, truncated, _ = env.step(int(actions[1]))
            np.testing.assert_allclose(step.final_observations[1], theirs[[0, 2]], rtol=1e-6, atol=1e-9)
            assert (step.rewards[1], step.terminated[1], step.truncated[1]) == (reward, terminated, truncated)
            ended = terminated or truncated
        n_ended += ended
    assert n_ended == 5
    assert observations.shape == (3, 2)


def test_a_cart_that_is_balanced_to_the_end_is_a_success_after_500_steps():
    """Red if the limit differs from Gymnasium's, or if its end counts as a fall."""
    task = MaskedCartPole(20)
    scores = play(task, lambda task, observations: task.oracle_actions(), n_episodes=20)
    assert (scores.returns == 500).all()
    assert scores.successes.all()


def test_pendulums_move_as_gymnasiums_do():
    """Red if a constant, a limit or the cost differs from `Pendulum-v1`."""
    task, env, rng = MaskedPendulum(2), gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
    task.reset(2)
    env.reset(seed=0)
    env.unwrapped.state = np.array([task._angle[1], task._speed[1]])
    for number in range(200):
        torques = (3 * rng.standard_normal((2, 1))).astype(np.float32)  # some beyond the limit
        step = task.step(torques)
        theirs, reward, terminated, truncated, _ = env.step(torques[1])
        np.testing.assert_allclose(step.final_observations[1], theirs[:2], atol=2e-5)
        assert step.rewards[1] == pytest.approx(reward, abs=1e-4)
        assert (step.terminated[1], step.truncated[1]) == (terminated, truncated) == (False, number == 199)


@pytest.mark.parametrize("task_class", [MaskedCartPole, MaskedPendulum])
def test_noise_has_the_size_asked_for_and_is_new_in_every_step(task_class):
    """Red if noise is added to the state itself, shared between numbers or kept for an episode."""
    noisy, plain = task_class(400, noise=0.3), task_class(400)
    seen = [noisy.reset(5)]
    plain.begin = lambda rows: None  # it is given the other's states
    plain.reset(5)
    actions = noisy.oracle_actions()
    for name in ("_state",) if task_class is MaskedCartPole else ("_angle", "_speed"):
        getattr(plain, name)[:] = getattr(noisy, name)
    expected = [plain.observe()]
    for _ in range(5):
        seen.append(noisy.step(actions).observations)
        expected.append(plain.step(actions).observations)
    errors = np.stack(seen) - np.stack(expected)
    assert errors.std((0, 1)) == pytest.approx([0.3, 0.3], rel=0.06)
    correlations = np.corrcoef(errors[:2].transpose(0, 2, 1).reshape(4, 400))
    np.testing.assert_allclose(correlations, np.eye(4), atol=0.2)


@pytest.mark.parametrize("task_class", [MaskedCartPole, MaskedPendulum])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, "noise must be a finite number, at least 0, got -0.1"),
        ({"noise": float("inf")}, "noise must be a finite number"),
        ({"episode_length": 0}, "episode_length must be a positive whole number, got 0"),
    ],
)
def test_impossible_options_are_named(task_class, options, message):
    """Red if they fail later and less clearly."""
    with pytest.raises(ValueError, match=message):
        task_class(2, **options)
