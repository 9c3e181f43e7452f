"""Copy: the same symbols, in the same order or backwards."""

import numpy as np
import pytest

from envs import _drawing as draw
from envs.copy_sequence import _CARD, _GAP, Copy
from envs.task import TaskEnv


@pytest.mark.parametrize(("reverse", "next_note"), [(False, 0), (True, -1)], ids=["a list", "a stack"])
def test_a_list_solves_it_and_a_stack_solves_it_backwards(reverse, next_note):
    """Red if another order than the one asked for is right, or an answer counts while the sequence is shown."""
    env = TaskEnv(Copy(1, length=5, n_symbols=3, reverse=reverse))
    observation, _ = env.reset(seed=1)
    for _ in range(20):
        notes, rewards, done = [], [], False
        while not done:
            assert observation.sum() == 1
            if observation[3]:
                action = notes.pop(next_note)
            else:
                action = int(observation[:3].argmax())
                notes.append(action)
            observation, reward, done, _, info = env.step(action)
            rewards.append(reward)
        assert rewards == [0.0] * 5 + [1 / 5] * 5
        assert info["is_success"]
        assert not observation.any()
        observation, _ = env.reset()


@pytest.mark.parametrize("reverse", [False, True])
def test_one_wrong_answer_costs_its_share_and_the_success(reverse):
    """Red if a success is given away."""
    task = Copy(1, length=4, n_symbols=3, reverse=reverse)
    task.reset(0)
    steps = [task.step((task.oracle_actions() + (index in (1, 6))) % 3) for index in range(8)]
    assert sum(step.rewards[0] for step in steps) == pytest.approx(0.75)
    assert steps[-1].terminated.all()
    assert not steps[-1].success.any()


def test_what_is_shown_is_the_same_in_both_directions():
    """Red if the option changes the sequence or the space of observations, and not only what is right."""
    forwards, backwards = Copy(3, length=5, n_symbols=4), Copy(3, length=5, n_symbols=4, reverse=True)
    assert forwards.observation_space == backwards.observation_space
    np.testing.assert_array_equal(forwards.reset(2), backwards.reset(2))
    for _ in range(23):
        actions = forwards.oracle_actions()
        np.testing.assert_array_equal(forwards.step(actions).observations, backwards.step(actions).observations)


@pytest.mark.parametrize("reverse", [False, True])
def test_who_remembers_one_observation_has_the_first_answer_backwards_and_no_other(reverse):
    """Red if the answer due first is not the symbol seen last, or one of the later answers is in view, too."""
    task = Copy(2000, length=6, n_symbols=3, reverse=reverse)
    last = task.reset(4)
    observations = last
    right = np.zeros(12)
    for index in range(12):
        step = task.step(last[:, :3].argmax(1) if index == 6 else np.zeros(2000, np.int64))
        right[index] = 6 * step.rewards.mean()
        last, observations = observations, step.observations
    expected = [0.0] * 6 + [1.0 if reverse else 1 / 3] + [1 / 3] * 5
    assert right == pytest.approx(expected, abs=5 * np.sqrt(2 / 9 / 2000))


@pytest.mark.parametrize("reverse", [False, True])
def test_an_answer_appears_below_the_card_that_it_names(reverse):
    """Red if the frame marks another card than the one that is due, or an answer is drawn below another card."""
    task = Copy(2, length=5, n_symbols=3, reverse=reverse)
    task.reset(3)

    def frames():
        """The colors to the left of each card, and of each answer below it."""
        picture = task.render(row=1)
        lefts = _GAP + np.arange(5) * (_CARD + _GAP) - 2
        return [[tuple(picture[y, x]) for x in lefts] for y in (_GAP + _CARD // 2, 2 * _GAP + _CARD + _CARD // 2)]

    nothing = [draw.PAPER] * 5
    for _ in range(5):
        assert frames() == [nothing, nothing]
        task.step(task.oracle_actions())
    answers = list(nothing)
    for index, place in enumerate([4, 3, 2, 1, 0] if reverse else [0, 1, 2, 3, 4]):
        assert frames() == [[draw.INK if other == place else draw.PAPER for other in range(5)], answers]
        wrong = index == 1
        answers[place] = draw.BAD if wrong else draw.GOOD
        task.advance((task.oracle_actions() + wrong) % 3)  # no step, which would begin the next episode
    assert frames() == [nothing, answers]


def test_options_are_checked():
    """Red if a wrong option is taken, or answered with something else than what was wrong."""
    with pytest.raises(ValueError, match="length must be a whole number, at least 1, got 0"):
        Copy(1, length=0)
    with pytest.raises(ValueError, match="n_symbols must be a whole number, at least 2, got 1"):
        Copy(1, n_symbols=1)
    for value in ("yes", 1, None):
        with pytest.raises(ValueError, match=f"reverse must be True or False, got {value!r}$"):
            Copy(1, reverse=value)
