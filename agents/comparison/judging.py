"""What came out of a training run that is compared: a row of comparison.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import envs
from agents.config import OptionValue, TrainConfig
from agents.errors import RunFileError
from agents.evaluation import Episode, evaluate_policy_on, evaluate_run, load_run, summarize
from agents.model import WINDOW
from agents.run_callback import EPISODES
from agents.runs import RunPaths, read_metrics, read_run
from agents.side_by_side import Job

Option = tuple[str, OptionValue]
"""Of an environment: its name and a value."""
THRESHOLD = 0.9
"""Score from which a task counts as learned."""
WAY = "the fraction of the way from the best return without memory to the optimum"
SUCCESS = "success rates"
"""The two scales on which tasks can be compared."""


@dataclass(frozen=True)
class ComparedRun(Job):
    """A run, and what it is compared as: several tasks may be of one environment."""

    task: str
    memory: str

    @property
    def identity(self) -> dict[str, Any]:
        """How its row begins."""
        return {"env_id": self.task, "memory": self.memory, "seed": self.config.seed}


def judge(run: ComparedRun, episodes: int) -> dict[str, Any]:
    """The row of a run that is finished.

    :raises RunFileError: it is damaged.
    :raises EnvironmentFaultError: its task breaks.
    """
    paths, description = RunPaths(run.directory), read_run(run.directory)
    try:
        costs = {
            "parameters": description["parameters"]["memory"],
            "steps": description["steps"],
            "seconds": description["seconds"],
        }
    except (KeyError, TypeError) as error:
        raise RunFileError(f"{paths.description} lacks {error}") from None
    if not (lines := read_metrics(paths.metrics)):
        raise RunFileError(f"{paths.metrics} is missing or empty")
    _, played = evaluate_run(run.directory, episodes=episodes, deterministic=True)
    summary, (score, scale) = summarize(played), _score(run.config, played)
    first = learned(run.config, scale, lines)
    return {
        **run.identity,
        "learning_rate": run.config.ppo.learning_rate,
        **costs,
        "steps_to_threshold": first["step"] if first else None,
        "seconds_to_threshold": first["seconds"] if first else None,
        "success_rate": summary.success_rate,
        "return_mean": summary.return_mean,
        "score": score,
        "scale": scale,
    }


def judge_with_options(run: ComparedRun, options: Sequence[Option], episodes: int) -> list[dict[str, Any]]:
    """How its agent does with each of these options, with which it was not trained. Raises what `judge` does."""
    _, policy = load_run(run.directory)
    rows = []
    for name, value in options:
        config = with_option(run.config, name, value)
        played = evaluate_policy_on(policy, config, episodes=episodes)
        score, _ = _score(config, played)
        success = summarize(played).success_rate
        rows.append({**run.identity, "option": name, "value": value, "success_rate": success, "score": score})
    return rows


def with_option(config: TrainConfig, name: str, value: OptionValue) -> TrainConfig:
    """The same settings with another option of the environment."""
    return replace(config, env_options={**config.env_options, name: value})


def learned(config: TrainConfig, scale: str | None, lines: list[dict[str, Any]]) -> Mapping[str, Any] | None:
    """The first line of the metrics in which the last episodes of training, or those of an evaluation, score THRESHOLD;
    None if there is none.

    Both, since a run may end with the evaluation in which its agent makes no mistake any more. Of training only lines
    about a full window of episodes count: the first ones to end are the short ones, which may be the successful ones.
    """
    anchors = _anchors(config)
    for line in lines:
        of = "rollout/ep_rew_mean", "rollout/success_rate"
        if line.get(EPISODES, 0) < WINDOW:
            of = "eval/return_mean", "eval/success_rate"
        mean_return, success = (line.get(key) for key in of)
        if scale == WAY and anchors is not None and mean_return is not None:
            score = _way(anchors, mean_return)
        elif scale == SUCCESS and success is not None:
            score = success
        else:
            continue
        if score >= THRESHOLD:
            return line
    return None


def best_rate(trials: list[dict[str, Any]], env_id: str, memory: str, n_seeds: int) -> float | None:
    """The learning rate with the best mean score; of equal ones, that with which the task was learned sooner.

    One with which not all of the `n_seeds` runs came to their end is no candidate: those may be the lucky ones.
    """
    of = [row for row in trials if (row["env_id"], row["memory"]) == (env_id, memory)]

    def merit(rate: float) -> tuple[float, float]:
        with_rate = [row for row in of if row["learning_rate"] == rate]
        needed = [row["steps"] if row["steps_to_threshold"] is None else row["steps_to_threshold"] for row in with_rate]
        return float(np.mean([row["score"] for row in with_rate])), -float(np.mean(needed))

    rates = [row["learning_rate"] for row in of]
    return max((rate for rate in dict.fromkeys(rates) if rates.count(rate) == n_seeds), key=merit, default=None)


def _score(config: TrainConfig, played: list[Episode]) -> tuple[float, str | None]:
    """What is compared, and on what scale: None where no other task can be measured by it."""
    mean = float(np.mean([episode.episode_return for episode in played]))
    anchors = _anchors(config)
    if anchors is not None:
        return _way(anchors, mean), WAY
    outcomes = [episode.is_success for episode in played]
    if None not in outcomes:
        return float(np.mean(np.array(outcomes, dtype=float))), SUCCESS
    return mean, None


def _way(anchors: Mapping[str, float], mean_return: float) -> float:
    return (mean_return - anchors["memoryless"]) / (anchors["optimal"] - anchors["memoryless"])


def _anchors(config: TrainConfig) -> Mapping[str, float] | None:
    task = envs.make_vector(config.env_id, 1, wrappers=config.wrappers, **config.env_options)
    return None if task is None else task.anchors()
