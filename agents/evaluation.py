"""How good an agent is on episodes that it has never seen.

    rows = evaluate_policy_on(policy, config, episodes=200)
    summarize(rows)

Reads the portable part of model.zip and run.json only: nothing is unpickled, nothing is imported by name.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np

from agents.config import OptionValue, TrainConfig
from agents.episodes import EVALUATION_SEED, EpisodeQueue, QueuedEpisodes, make_env
from agents.errors import RunFileError, UsageError
from agents.runs import RunPaths, read_config

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from fwp_rl.sb3 import MemoryActorCriticPolicy

_CONFIDENCE_Z = 1.959963984540054  # 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished episode."""

    seed: int
    episode_return: float
    length: int
    is_success: bool | None
    """None where the task does not define success."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Many episodes in a few numbers."""

    episodes: int
    success_rate: float | None
    success_low: float | None
    """Lower end of the 95 % Wilson interval of the success rate."""
    success_high: float | None
    return_mean: float
    return_std: float
    length_mean: float


class Player(Protocol):
    """What is needed of an agent to let it play; a `MemoryActorCriticPolicy` is one."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    def predict(
        self, observation: Any, state: Any, episode_start: np.ndarray, deterministic: bool
    ) -> tuple[np.ndarray, Any]:
        """Actions, and the state to pass to the next call; see `MemoryActorCriticPolicy.predict`."""


def evaluate_policy_on(
    policy: Player,
    config: TrainConfig,
    *,
    episodes: int = 200,
    first_seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    n_envs: int = 16,
) -> list[Episode]:
    """Play episode i with seed `first_seed + i`, for all i, and return them in order.

    The list is fixed beforehand and every episode is played to its end, so short episodes are not over-represented.
    The memory starts empty in each. The random numbers of the caller are left alone.
    """
    from agents.seeding import own_random_numbers  # and with it torch

    if episodes < 1:
        raise UsageError(f"episodes={episodes} must be at least 1")
    seeds = range(first_seed, first_seed + episodes)
    venv = make_episode_env(config, EpisodeQueue(seeds), n_envs=min(n_envs, episodes))
    try:
        check_spaces(policy, venv)
        with own_random_numbers(first_seed):
            return _play(policy, venv, seeds, deterministic)
    finally:
        venv.close()


def summarize(rows: Sequence[Episode]) -> Summary:
    """Means, and the interval in which the success rate lies with 95 % confidence."""
    returns = np.array([row.episode_return for row in rows])
    outcomes = [row.is_success for row in rows if row.is_success is not None]
    successes = sum(outcomes)
    low, high = wilson_interval(successes, len(outcomes)) if outcomes else (None, None)
    return Summary(
        episodes=len(rows),
        success_rate=successes / len(outcomes) if outcomes else None,
        success_low=low,
        success_high=high,
        return_mean=float(returns.mean()),
        return_std=float(returns.std(ddof=1)) if len(rows) > 1 else 0.0,
        length_mean=float(np.mean([row.length for row in rows])),
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a success probability after `successes` in `trials` (Wilson 1927)."""
    z2 = _CONFIDENCE_Z**2
    rate = successes / trials
    center = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _CONFIDENCE_Z / (1 + z2 / trials) * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    return max(0.0, center - half), min(1.0, center + half)


def load_run(directory: Path) -> tuple[TrainConfig, "MemoryActorCriticPolicy"]:
    """Config and policy of a run, without unpickling; RunFileError in one line if either cannot be trusted."""
    config = read_config(directory)
    model = RunPaths(directory).model
    if not model.is_file():
        raise RunFileError(f"{directory} holds no model.zip: the run has not saved a model yet")

    from fwp_rl.sb3 import ModelFileError, load_policy

    try:
        return config, load_policy(model)
    except ModelFileError as error:
        raise RunFileError(str(error)) from None


def evaluate_run(
    directory: Path,
    *,
    episodes: int,
    deterministic: bool,
    env_options: Mapping[str, OptionValue] = MappingProxyType({}),
) -> tuple[TrainConfig, list[Episode]]:
    """The agent of a run on the episodes that every agent gets, in the task of its training but for `env_options`."""
    config, policy = load_run(directory)
    config = dataclasses.replace(config, env_options={**config.env_options, **env_options})
    return config, evaluate_policy_on(policy, config, episodes=episodes, deterministic=deterministic)


def summary_lines(summary: Summary) -> list[str]:
    """The summary for people."""
    lines = [f"episodes   {summary.episodes}"]
    if summary.success_rate is not None:
        low, high = summary.success_low, summary.success_high
        lines.append(f"success    {summary.success_rate:.3f}   (95 % interval {low:.3f} to {high:.3f})")
    lines.append(f"return     {summary.return_mean:.3f}   (standard deviation {summary.return_std:.3f})")
    lines.append(f"length     {summary.length_mean:.1f} steps")
    return lines


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary for programs."""
    return dataclasses.asdict(summary)


def make_episode_env(
    config: TrainConfig,
    queue: EpisodeQueue,
    *,
    n_envs: int,
    render_mode: str | None = None,
    at_end: Callable[[gymnasium.Env], None] | None = None,
) -> "VecEnv":
    """Environments that play the queue, with the inputs that the agent was trained with."""
    from agents.vec_env import vectorize

    def make() -> QueuedEpisodes:
        return QueuedEpisodes(make_env(config.env_id, config.env_options, config.wrappers, render_mode), queue, at_end)

    return vectorize([make] * n_envs, config.previous_action, config.previous_reward)


def check_spaces(policy: Player, venv: "VecEnv") -> None:
    """RunFileError if the agent was trained on other spaces than those of the task."""
    for name in ("observation_space", "action_space"):
        agent, task = getattr(policy, name), getattr(venv, name)
        if agent != task:
            raise RunFileError(f"the model has {name} {agent}, the task has {task}: they do not belong together")


def _play(policy: Player, venv: "VecEnv", seeds: Sequence[int], deterministic: bool) -> list[Episode]:
    rows: dict[int, Episode] = {}
    returns, lengths = np.zeros(venv.num_envs), np.zeros(venv.num_envs, dtype=int)
    observations: Any = venv.reset()
    state: Any = None
    episode_starts = np.ones(venv.num_envs, dtype=bool)
    while len(rows) < len(seeds):
        actions, state = policy.predict(observations, state, episode_starts, deterministic=deterministic)
        observations, rewards, episode_starts, infos = venv.step(actions)
        returns += rewards
        lengths += 1
        for index in np.flatnonzero(episode_starts):
            number = infos[index]["episode_number"]
            is_success = infos[index].get("is_success")
            rows[number] = Episode(
                seed=seeds[number],
                episode_return=float(returns[index]),
                length=int(lengths[index]),
                is_success=None if is_success is None else bool(is_success),
            )
        returns[episode_starts] = 0.0
        lengths[episode_starts] = 0
    return [rows[number] for number in range(len(seeds))]
