"""What the rows of a comparison come to: means, intervals and chances, for its text, its page and its picture alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.statistics import Estimate, estimate, interquartile_mean, probability_of_improvement

ENOUGH_SEEDS = 5
Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A memory on a task, or on all."""

    memory: str
    scores: np.ndarray
    """`[tasks, seeds]`."""
    score: Estimate
    """Mean over the seeds of a task; interquartile mean over all tasks."""
    better: Estimate | None
    """How probably a seed scores higher than one of the reference; None for the reference, and where it has none."""


@dataclass(frozen=True, kw_only=True)
class TaskLine(Line):
    """A memory on a task, with all that was measured."""

    rows: Rows
    """One for each seed."""
    success: Estimate | None
    """None where a task knows no success."""
    mean_return: Estimate


@dataclass(frozen=True, kw_only=True)
class Table:
    """Lines that can be compared, of the memories that have any seed, in the order in which they were asked for."""

    title: str
    scale: str | None
    """What scores are; None for returns, which mean nothing on another task."""
    lines: Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class TaskTable(Table):
    """One task."""

    lines: Sequence[TaskLine]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All tasks, one after the other and together."""

    tasks: Sequence[TaskTable]
    together: Table | None
    """None if the tasks have no common scale, or a seed is missing."""
    n_seeds: int
    """The fewest that a line has."""


def summarize(rows: Rows, memories: Sequence[str]) -> Summary:
    """:param memories: In the order in which they were asked for; the first is the reference."""
    of_tasks: dict[str, Rows] = {}
    for row in rows:
        of_tasks.setdefault(row["env_id"], []).append(row)
    tasks = [_task(env_id, of, memories) for env_id, of in of_tasks.items()]
    scores = common_scale(rows, memories)
    return Summary(
        tasks=tasks,
        together=None if scores is None else _together(scores, " or ".join(sorted({row["scale"] for row in rows}))),
        n_seeds=min(line.scores.shape[1] for task in tasks for line in task.lines),
    )


def summaries(result: Mapping[str, Any]) -> tuple[Summary, Summary | None]:
    """Of the runs with the preset's learning rate, and of those with the best, if that was sought.

    :param result: What comparison.json holds.
    """
    best_rows = result.get("best_rows")
    return summarize(result["rows"], result["memories"]), (
        summarize(best_rows, result["memories"]) if best_rows else None
    )


def common_scale(rows: Rows, memories: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Scores `[tasks, seeds]` of each memory; None if a task has no scale, or a seed is missing."""
    env_ids = dict.fromkeys(row["env_id"] for row in rows)
    scores = {
        name: [[row["score"] for row in rows if (row["env_id"], row["memory"]) == (env_id, name)] for env_id in env_ids]
        for name in memories
    }
    complete = all(len({len(of) for of in each}) == 1 and each[0] for each in scores.values())
    if not complete or any(row["scale"] is None for row in rows):
        return None
    return {name: np.array(each, dtype=float) for name, each in scores.items()}


def outcome(row: Mapping[str, Any]) -> float:
    """The success rate of a row, or the score of a task that knows no success."""
    return float(row["score"] if row["success_rate"] is None else row["success_rate"])


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """With its interval."""
    return estimate(lambda x: float(x.mean()), np.array([values], dtype=float))


def _task(env_id: str, rows: Rows, memories: Sequence[str]) -> TaskTable:
    of_memory = {name: [row for row in rows if row["memory"] == name] for name in memories}
    scores = {name: np.array([[row["score"] for row in of]], dtype=float) for name, of in of_memory.items() if of}
    lines = []
    for name, of in scores.items():
        seeds = of_memory[name]
        successes = [row["success_rate"] for row in seeds if row["success_rate"] is not None]
        line = TaskLine(
            memory=name,
            scores=of,
            score=mean_over_seeds([row["score"] for row in seeds]),
            better=_better(scores, name, memories[0]),
            rows=seeds,
            success=mean_over_seeds(successes) if successes else None,
            mean_return=mean_over_seeds([row["return_mean"] for row in seeds]),
        )
        lines.append(line)
    return TaskTable(title=env_id, scale=rows[0]["scale"], lines=lines)


def _together(scores: Mapping[str, np.ndarray], scale: str) -> Table:
    reference, *_ = scores
    lines = [
        Line(memory=name, scores=of, score=estimate(interquartile_mean, of), better=_better(scores, name, reference))
        for name, of in scores.items()
    ]
    return Table(title="All tasks", scale=scale, lines=lines)


def _better(scores: Mapping[str, np.ndarray], name: str, reference: str) -> Estimate | None:
    if name == reference or reference not in scores:
        return None
    return estimate(probability_of_improvement, scores[name], scores[reference])
