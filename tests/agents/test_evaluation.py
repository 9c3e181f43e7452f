import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest

from agents.config import TrainConfig
from agents.episodes import EpisodeQueue, QueuedEpisodes
from agents.evaluation import Episode, evaluate_policy_on, summarize, wilson_interval

SEEDS: list[int] = []


class Countdown(gymnasium.Env):
    """An episode that lasts as long as its seed says; tells its own step. Success for even seeds."""

    observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        assert seed is not None, "every episode of an evaluation has its own seed"
        SEEDS.append(seed)
        self.seed, self.left = seed, seed % 7 + 1
        return self._see(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        done = self.left == 0
        info = {"is_success": self.seed % 2 == 0} if done else {}
        return self._see(), 1.0, done, False, info

    def _see(self) -> np.ndarray:
        return np.array([self.left], np.float32)


class Recorder:
    """A policy that notes where episodes start, and carries a count of steps as its state."""

    observation_space, action_space = Countdown.observation_space, Countdown.action_space
    deterministic: list[bool]

    def __init__(self) -> None:
        self.deterministic = []
        self.starts: list[np.ndarray] = []

    def predict(
        self, observation: np.ndarray, state: Any, episode_start: np.ndarray, deterministic: bool
    ) -> tuple[np.ndarray, Any]:
        self.deterministic.append(deterministic)
        self.starts.append(episode_start.copy())
        count = np.where(episode_start, 1, 1 if state is None else state + 1)
        return np.zeros(len(observation), int), count


@pytest.fixture
def countdown(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEDS.clear()
    monkeypatch.setattr("envs.make", lambda *_, **__: Countdown())


@pytest.mark.usefixtures("countdown")
@pytest.mark.parametrize("n_envs", [1, 3, 50])
def test_every_episode_is_played_once_with_its_own_seed(n_envs: int) -> None:
    policy: Any = Recorder()
    rows = evaluate_policy_on(policy, TrainConfig(env_id="x"), episodes=11, first_seed=1_000_000, n_envs=n_envs)
    assert [row.seed for row in rows] == list(range(1_000_000, 1_000_011))
    assert [row.length for row in rows] == [seed % 7 + 1 for seed in range(1_000_000, 1_000_011)]
    assert [row.episode_return for row in rows] == [row.length for row in rows]
    assert [row.is_success for row in rows] == [row.seed % 2 == 0 for row in rows]
    assert sorted(SEEDS) == [row.seed for row in rows]
    assert all(policy.deterministic)
    assert policy.starts[0].all()
    assert sum(int(starts.sum()) for starts in policy.starts) >= 11


def test_a_queue_that_is_empty_lets_environments_rest() -> None:
    env = QueuedEpisodes(Countdown(), EpisodeQueue([6]))
    env.reset()
    while not env.step(0)[2]:
        pass
    _, info = env.reset()
    assert info == {"episode_number": None}
    assert env.step(0)[1:4] == (0.0, False, False)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval_gives_the_published_numbers(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_summary_counts_what_the_rows_say() -> None:
    rows = [Episode(seed=i, episode_return=float(i), length=i + 2, is_success=i > 0) for i in range(4)]
    summary = summarize(rows)
    assert (summary.episodes, summary.success_rate, summary.return_mean, summary.length_mean) == (4, 0.75, 1.5, 3.5)
    assert summary.return_std == pytest.approx(np.std([0, 1, 2, 3], ddof=1))
    without = summarize([dataclasses.replace(row, is_success=None) for row in rows])
    assert without.success_rate is without.success_low is without.success_high is None
