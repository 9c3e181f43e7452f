"""Wrappers by name: what they show, that seeds settle it, and what is said about wrong ones."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

import envs
from envs.wrappers import with_supported_spaces

CART_POLE = "CartPole-v1"


class Fake(gymnasium.Env):
    """Shows samples of any observation space."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def episode(env: gymnasium.Env, seed: int, n_steps: int = 8) -> list[Any]:
    """Observations under one fixed sequence of actions."""
    return [env.reset(seed=seed)[0], *(env.step(step % 2)[0] for step in range(n_steps))]


def test_mask_takes_numbers_out():
    """Red if another place is hidden than the one named."""
    masked = episode(envs.make(CART_POLE, wrappers=["mask:hide=1,3"]), 3)
    np.testing.assert_array_equal(masked, np.array(episode(envs.make(CART_POLE), 3))[:, [0, 2]])


def test_flicker_shows_all_or_nothing_as_often_as_asked():
    """Red if part of an observation stays, if the share is wrong, or if what is inside lives another life."""
    env, plain = (
        envs.make("fwp/Copy-v0", wrappers=["flicker:probability=0.3"], length=500),
        envs.make("fwp/Copy-v0", length=500),
    )
    seen, full = np.array(episode(env, 1, 998)), np.array(episode(plain, 1, 998))
    shown = seen.any(axis=1)
    np.testing.assert_array_equal(seen[shown], full[shown])
    assert 0.25 < 1 - shown.mean() < 0.35


def test_flicker_blanks_every_part_of_a_dict():
    """Red if the mission can be read while the view is gone."""
    env = envs.make("BabyAI-GoToLocal-v0", wrappers=["flicker:probability=1"])
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"view", "mission"}
    assert not any(part.any() for part in observation.values())


def test_noise_is_added_with_its_spread():
    """Red if the spread is that of a variance, or if noise is drawn once and kept."""
    env = envs.make("fwp/Copy-v0", wrappers=["noise:std=0.5"], length=500)
    noise = np.array(episode(env, 2, 998)) - np.array(episode(envs.make("fwp/Copy-v0", length=500), 2, 998))
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.05


def test_frames_are_stacked_newest_last():
    """Red if the order is another, or an image does not stay one."""
    plain = episode(envs.make(CART_POLE), 5)
    stacked = episode(envs.make(CART_POLE, wrappers=["frame_stack:size=3"]), 5)
    np.testing.assert_array_equal(stacked[0], np.tile(plain[0], 3))
    np.testing.assert_array_equal(stacked[4], np.concatenate(plain[2:5]))
    options = {"observation": "rgb", "view_size": 3}
    images = envs.make("MiniGrid-MemoryS7-v0", wrappers=["frame_stack:size=2"], **options)
    assert images.observation_space.shape == (36, 36, 6)
    views = episode(envs.make("MiniGrid-MemoryS7-v0", **options), 0)
    np.testing.assert_array_equal(episode(images, 0)[3], np.concatenate(views[2:4], axis=-1))


def test_time_counts_the_steps_of_an_episode():
    """Red if the clock goes on over the start of an episode."""
    env = envs.make(CART_POLE, wrappers=["time:scale=4"])
    for _ in range(2):
        np.testing.assert_array_equal([sight["time"][0] for sight in episode(env, 0, 3)], [0, 0.25, 0.5, 0.75])


def test_wrappers_apply_in_their_order():
    """Red if the first is the outermost: the clock would flicker with the rest."""
    env = envs.make(CART_POLE, wrappers=["flicker:probability=1", "time:scale=1"])
    last = episode(env, 0, 3)[-1]
    assert not last["observation"].any()
    assert last["time"] == 3


CHAIN = ["mask:hide=1", "flicker:probability=0.5", "noise", "frame_stack:size=2", "time"]


def test_a_chain_passes_the_checker_and_its_seed_settles_it():
    """Red if a wrapper draws from a stream that no seed reaches, or if two wrappers share theirs."""
    check_env(envs.make(CART_POLE, wrappers=CHAIN), warn=False)
    once, again, other = (episode(envs.make(CART_POLE, wrappers=CHAIN), seed) for seed in (1, 1, 2))
    np.testing.assert_equal(once, again)
    assert not np.array_equal(once[1]["observation"], other[1]["observation"])
    plain, twice = (
        np.array(episode(envs.make("fwp/Copy-v0", wrappers=wrappers, length=200), 1, 300))
        for wrappers in ([], ["noise:std=1", "noise:std=1"])
    )
    assert (twice - plain).std() == pytest.approx(2**0.5, rel=0.1)  # one stream for both would make it 2


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("flickr", "unknown wrapper 'flickr'; did you mean flicker"),
        ("previous_action", "it is an input of the memory, set by --previous-action"),
        ("flicker:probabilty=1", "wrapper 'flicker' has no option 'probabilty'; did you mean probability"),
        ("flicker:probability=much", "probability must be a number, got 'much'"),
        ("flicker:probability=2", r"probability must lie in \[0, 1\], got 2"),
        ("noise:std=nan", "std must be at least 0, got nan"),
        ("mask", "wrapper 'mask' needs hide, for instance mask:hide=1,3"),
        ("mask:hide=1,x", "hide must be whole numbers with commas, got '1,x'"),
        ("mask:hide=4", r"hide must name some of the places 0\.\.3, not all, got \(4,\)"),
        ("mask:hide=0,1,2,3", "not all"),
        ("frame_stack:size=1", "size must be at least 2, got 1"),
        ("frame_stack:size=2.5", "size must be a whole number, got '2.5'"),
        ("time:scale=0", "scale must be at least 1, got 0"),
    ],
)
def test_a_wrong_wrapper_is_answered_in_one_line(wrapper, message):
    with pytest.raises(ValueError, match=message) as error:
        envs.make(CART_POLE, wrappers=[wrapper])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrapper", ["mask:hide=1", "noise"])
def test_what_a_wrapper_has_no_use_for_is_refused(wrapper):
    with pytest.raises(ValueError, match="takes "):
        envs.make("BabyAI-GoToLocal-v0", wrappers=[wrapper])


def test_inside_wrappers_a_task_is_one_of_many_environments():
    """Red if a run of a NumPy task silently loses its wrappers."""
    assert envs.make_vector("fwp/TMaze-v0", 3, wrappers=["flicker"]) is None


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple((spaces.Discrete(2), spaces.Discrete(4))),
        spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(3)}), "c": spaces.Box(0, 1, (2, 2))}),
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([[2, 3], [3, 2]]),
    ],
    ids=["tuple", "nested dict", "discrete from 1", "grid of choices"],
)
def test_observations_that_the_learner_does_not_take_are_flattened(space):
    """Red if one of them reaches Stable-Baselines3, which refuses it or reads it wrongly."""
    env = with_supported_spaces(Fake(space))
    assert isinstance(env.observation_space, spaces.Box)
    check_env(env, warn=False)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(4),
        spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 1, (2,))}),
    ],
    ids=["discrete", "multi-discrete", "multi-binary", "dict"],
)
def test_observations_that_the_learner_takes_stay(space):
    """Red if a Dict is flattened, whose images a network should see as images."""
    env = Fake(space)
    assert with_supported_spaces(env) is env


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Fake(spaces.Text(5)), "its observations must be numbers of one shape, got Text"),
        (Fake(spaces.Sequence(spaces.Discrete(2))), "its observations must be numbers of one shape, got Sequence"),
        (Fake(spaces.Discrete(2), spaces.Dict({"a": spaces.Discrete(2)})), "its actions must be Box"),
        (Fake(spaces.Discrete(2), spaces.Discrete(2, start=1)), "its actions must be Box"),
    ],
    ids=["text", "sequence", "dict of actions", "actions from 1"],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(env, message):
    with pytest.raises(ValueError, match=message):
        with_supported_spaces(env)
