"""Environments of other packages: every one of them runs, and a package that is missing is named with its cure."""

import importlib.util
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

import envs
from envs.registry import PACKAGES, known_ids

# SDL_* and an old way of NumPy: nothing that we could change
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

POPGYM = pytest.mark.skipif(importlib.util.find_spec("popgym") is None, reason="needs the extra popgym")
ATARI = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs the extra atari")
MEMORY_GYM = pytest.mark.skipif(importlib.util.find_spec("memory_gym") is None, reason="needs memory-gym, see envs")


def ids_of(name: str) -> Iterator[str]:
    prefixes = next(package.prefixes for package in PACKAGES if package.name == name)
    return (env_id for env_id in known_ids() if env_id.startswith(prefixes))


def play(env: gymnasium.Env, n_steps: int, seed: int = 0) -> list[float]:
    """Rewards of random actions; every observation lies in its space."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    rewards = []
    for _ in range(n_steps):
        assert env.observation_space.contains(observation), observation
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rewards.append(float(reward))
        if terminated or truncated:
            observation, _ = env.reset()
    return rewards


@POPGYM
def test_every_popgym_task_runs_and_is_settled_by_its_seed():
    """Red if POPGym adds a task that the adapter cannot show to the learner, or one draws from a global stream."""
    env_ids = list(ids_of("popgym"))
    assert len(env_ids) >= 42
    for env_id in env_ids:
        env = envs.make(env_id, antialias=True)
        assert not isinstance(env.observation_space, spaces.Tuple)
        check_env(env, warn=False)
        assert play(env, 60) == play(envs.make(env_id, antialias=True), 60), env_id


@POPGYM
def test_options_of_popgyms_protocol():
    """Red if the flag of the first step is lost, or the hidden state is not what is shown."""
    env = envs.make("popgym-RepeatPreviousEasy-v0", antialias=True)
    assert env.observation_space.shape == (6,)
    assert env.reset(seed=0)[0][-2:].tolist() == [0, 1]
    assert env.step(0)[0][-2:].tolist() == [1, 0]
    full = envs.make("popgym-RepeatPreviousEasy-v0", full_state=True)
    assert full.observation_space.shape == (4 * 4 + 4,)
    assert envs.make("popgym-RepeatPreviousEasy-v0").observation_space == spaces.Discrete(4)
    assert envs.make("popgym-CountRecallHard-v0").observation_space == spaces.MultiDiscrete([13, 13])


@POPGYM
def test_the_rules_of_popgym_arrive_unchanged():
    """Red if the adapter delays or drops something: the card of three steps ago scores 1."""
    env = envs.make("popgym-RepeatPreviousEasy-v0")
    cards, total, ended = [env.reset(seed=4)[0]], 0.0, False
    while not ended:
        card, reward, ended, _, _ = env.step(cards[-4] if len(cards) > 3 else 0)
        cards.append(card)
        total += reward
    assert total == pytest.approx(1.0)


@POPGYM
def test_popgym_says_what_it_cannot():
    with pytest.raises(ValueError, match="popgym-BattleshipEasy-v0 draws no pictures"):
        envs.make("popgym-BattleshipEasy-v0", render_mode="rgb_array")
    with pytest.raises(ValueError, match="has no option 'antialais'; did you mean antialias"):
        envs.make("popgym-BattleshipEasy-v0", antialais=True)


@ATARI
def test_atari_with_flicker_is_what_the_papers_show():
    """Red if the screen is not 84 x 84 and grey, if frames are skipped twice, or a blank frame is not blank."""
    env = envs.make("ALE/Pong-v5", wrappers=["flicker:probability=0.5", "frame_stack:size=4"], noop_max=1)
    assert env.observation_space == spaces.Box(0, 255, (84, 84, 4), np.uint8)
    env.reset(seed=0)
    blank = [not env.step(0)[0][:, :, -1].any() for _ in range(40)]
    assert 8 < sum(blank) < 32
    first = env.unwrapped.ale.getEpisodeFrameNumber()
    env.step(0)
    assert env.unwrapped.ale.getEpisodeFrameNumber() == first + 4
    with pytest.raises(ValueError, match="has no option 'frameskip'; did you mean frame_skip"):
        envs.make("ALE/Pong-v5", frameskip=2)


@MEMORY_GYM
def test_every_task_of_memory_gym_runs():
    """Red if a task needs a window, or reset parameters do not arrive."""
    for env_id in ids_of("memory_gym"):
        env = envs.make(env_id)
        assert len(play(env, 20)) == 20
        env.close()
    few = envs.make("MortarMayhem-Grid-v0", command_count=1, command_show_duration=1)
    few.reset(seed=0)
    assert few.unwrapped.reset_params["command_count"] == [1]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_that_is_missing_is_named_with_its_cure(package, monkeypatch):
    """Red if a missing package ends in "unknown environment", which sends people looking for a typing error."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(envs.MissingDependencyError, match="is not installed: pip install") as error:
        envs.resolve(f"{package.prefixes[0]}Anything-v0")
    assert package.name in str(error.value)
    assert package.install in str(error.value)
