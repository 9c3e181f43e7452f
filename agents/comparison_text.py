"""What a comparison found, as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.progress import format_seconds
from agents.statistics import Estimate, estimate, interquartile_mean, probability_of_improvement
from agents.table import markdown

ENOUGH_SEEDS = 5

Rows = list[dict[str, Any]]


def report(result: dict[str, Any]) -> str:
    """Tables: one for each task, and over all tasks if they have a common scale; then those of the best rates."""
    rows = result["rows"]
    lines = ["# Comparison\n"]
    n_seeds = min(len(of) for each in _scores(rows).values() for of in each)
    if n_seeds < ENOUGH_SEEDS:
        lines.append(f"**Only {n_seeds} seed{'s' * (n_seeds != 1)}: too few to call anything better.**\n")
    for sentence in result.get("mixed", ()):
        lines.append(f"**Not made alike: {sentence}.**\n")
    budget = result.get("equal_time")
    lines.append(
        f"Equal {result['equal']}; {f'{format_seconds(budget)} of training for each; ' if budget else ''}"
        f"{result['episodes']} unseen episodes for each agent, the same for all. Means over seeds with a 95 % "
        "bootstrap interval; steps and time until training ended, and until the last episodes of training, or an "
        "evaluation, scored 0.9.\n"
    )
    lines += _tables(rows)
    if result.get("best_rows"):
        lines += ["# Each with its best learning rate\n", _choices(result["trials"], result["best_rows"])]
        lines += _tables(result["best_rows"])
    lines += _test_tables(result.get("tests", []))  # played by the agents with the best rates, where those were sought
    lines.append("![learning curves](comparison.png)\n")
    if result.get("origin"):
        lines.append(f"Made with: {result['origin']}.\n")
    return "\n".join(lines)


def common_scale(rows: Rows) -> dict[str, np.ndarray] | None:
    """Scores `[tasks, seeds]` of each memory; None if a task has no scale, or a seed is missing."""
    scores = _scores(rows)
    complete = all(len({len(of) for of in each}) == 1 and each[0] for each in scores.values())
    if not complete or any(row["scale"] is None for row in rows):
        return None
    return {name: np.array(each, dtype=float) for name, each in scores.items()}


def _scores(rows: Rows) -> dict[str, list[list[float]]]:
    env_ids, memories = (list(dict.fromkeys(row[key] for row in rows)) for key in ("env_id", "memory"))
    return {
        name: [[row["score"] for row in rows if (row["env_id"], row["memory"]) == (env_id, name)] for env_id in env_ids]
        for name in memories
    }


def _tables(rows: Rows) -> list[str]:
    lines = []
    memories = list(dict.fromkeys(row["memory"] for row in rows))
    for env_id in dict.fromkeys(row["env_id"] for row in rows):
        of_task = [row for row in rows if row["env_id"] == env_id]
        table = [_task_line([row for row in of_task if row["memory"] == name], name) for name in memories]
        told = [key for key in table[0] if any(line[key] for line in table)]
        lines += [f"## {env_id}\n", markdown([{key: line[key] for key in told} for line in table]), ""]
    scores = common_scale(rows)
    if scores is not None:
        scales = " or ".join(sorted({row["scale"] for row in rows}))
        lines += ["## All tasks\n", f"Scores are {scales}.\n", markdown(_overall(scores)), ""]
    return lines


def _task_line(of: Rows, name: str) -> dict[str, str]:
    success = [row["success_rate"] for row in of if row["success_rate"] is not None]
    may_learn = any(row["scale"] is not None and "steps_to_threshold" in row for row in of)
    return {
        "memory": name,
        "parameters": f"{of[0]['parameters']:,}" if of else "",
        "success": str(_mean(success)) if success else "",
        "return": str(_mean([row["return_mean"] for row in of])) if of else "",
        "score by seed": ", ".join(f"{row['score']:.2f}" for row in of),
        "steps": ", ".join(_thousands(row["steps"]) for row in of),
        "time": format_seconds(sum(row["seconds"] for row in of) / len(of)) if of else "",
        "steps to 0.9": ", ".join(_thousands(row["steps_to_threshold"]) for row in of) if may_learn else "",
        "time to 0.9": ", ".join(_seconds(row["seconds_to_threshold"]) for row in of) if may_learn else "",
    }


def _test_tables(tests: Rows) -> list[str]:
    """Success (or score) with options that the agents were not trained with: one table for each task and option."""
    lines = []
    for env_id, option in dict.fromkeys((row["env_id"], row["option"]) for row in tests):
        of = [row for row in tests if (row["env_id"], row["option"]) == (env_id, option)]
        table = []
        for name in dict.fromkeys(row["memory"] for row in of):
            line = {"memory": name}
            for value in dict.fromkeys(row["value"] for row in of):
                seeds = [outcome(row) for row in of if (row["memory"], row["value"]) == (name, value)]
                line[f"{option} {value}"] = str(_mean(seeds))
            table.append(line)
        lines += [f"## {env_id}, played with another {option}\n", markdown(table), ""]
    return lines


def outcome(row: Mapping[str, Any]) -> float:
    """The success rate of a row, or the score of a task that knows no success."""
    return float(row["score"] if row["success_rate"] is None else row["success_rate"])


def _choices(trials: Rows, best_rows: Rows) -> str:
    """Which learning rate each memory got, and what the others scored."""
    lines = []
    for env_id, name in dict.fromkeys((row["env_id"], row["memory"]) for row in best_rows):
        of = [row for row in trials if (row["env_id"], row["memory"]) == (env_id, name)]
        scores = {
            rate: np.mean([row["score"] for row in of if row["learning_rate"] == rate])
            for rate in dict.fromkeys(row["learning_rate"] for row in of)
        }
        (chosen,) = {row["learning_rate"] for row in best_rows if (row["env_id"], row["memory"]) == (env_id, name)}
        tried = ", ".join(f"{score:.2f} with {rate:g}" for rate, score in scores.items())
        lines.append({"task": env_id, "memory": name, "learning rate": f"{chosen:g}", "score on other seeds": tried})
    return markdown(lines) + "\n"


def _overall(scores: dict[str, np.ndarray]) -> list[dict[str, str]]:
    first, *_ = scores
    return [
        {
            "memory": name,
            "interquartile mean": str(estimate(interquartile_mean, of)),
            f"better than {first}": ""
            if name == first
            else str(estimate(probability_of_improvement, of, scores[first])),
        }
        for name, of in scores.items()
    ]


def _thousands(steps: int | None) -> str:
    return "never" if steps is None else f"{steps / 1000:.0f}k"


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else format_seconds(seconds)


def _mean(values: Sequence[float]) -> Estimate:
    return estimate(lambda x: float(x.mean()), np.array([values]))
