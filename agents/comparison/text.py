"""What a comparison found, as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.comparison.summary import ENOUGH_SEEDS, Rows, Summary, TaskLine, mean_over_seeds, outcome
from agents.model import WINDOW
from agents.progress import format_seconds
from agents.table import markdown


def as_markdown(result: Mapping[str, Any], summary: Summary, best: Summary | None) -> str:
    """Tables: one for each task, and over all tasks if they have a common scale; then those of the best rates.

    :param result: What comparison.json holds.
    """
    memories = result["memories"]
    lines = ["# Comparison\n"]
    if summary.n_seeds < ENOUGH_SEEDS:
        s = "s" * (summary.n_seeds != 1)
        lines.append(f"**Only {summary.n_seeds} seed{s}: too few to call anything better.**\n")
    lines += [f"**Not made alike: {sentence}.**\n" for sentence in result["mixed"]]
    lines += [f"**Left out: {name}: {reason}.**\n" for name, reason in result["left_out"].items()]
    budget = result["equal_time"]
    lines.append(
        f"Equal {result['equal']}; {f'{format_seconds(budget)} of training for each; ' if budget else ''}"
        f"{result['episodes']} unseen episodes for each agent, the same for all. Means over seeds with a 95 % "
        f"bootstrap interval; steps and time until training ended, and until the last {WINDOW} episodes of training, "
        "or an evaluation, scored 0.9.\n"
    )
    lines += _tables(summary, memories)
    if best is not None:
        lines += ["# Each with its best learning rate\n", _choices(result["trials"], result["best_rows"])]
        lines += _tables(best, memories)
    lines += _test_tables(result.get("tests", []))  # played by the agents with the best rates, where those were sought
    lines.append("![learning curves](comparison.png)\n")
    if result["origin"]:
        lines.append(f"Made with: {result['origin']}.\n")
    return "\n".join(lines)


def _tables(summary: Summary, memories: Sequence[str]) -> list[str]:
    lines = []
    for task in summary.tasks:
        table = [_task_line(line) for line in task.lines]
        told = [key for key in table[0] if any(line[key] for line in table)]
        lines += [f"## {task.title}\n", markdown([{key: line[key] for key in told} for line in table]), ""]
    if summary.together is not None:
        table = [
            {
                "memory": line.memory,
                "interquartile mean": str(line.score),
                f"better than {memories[0]}": "" if line.better is None else str(line.better),
            }
            for line in summary.together.lines
        ]
        lines += [f"## {summary.together.title}\n", f"Scores are {summary.together.scale}.\n", markdown(table), ""]
    return lines


def _task_line(line: TaskLine) -> dict[str, str]:
    of = line.rows
    may_learn = any(row["scale"] is not None for row in of)
    return {
        "memory": line.memory,
        "parameters": f"{of[0]['parameters']:,}",
        "success": "" if line.success is None else str(line.success),
        "return": str(line.mean_return),
        "score by seed": ", ".join(f"{row['score']:.2f}" for row in of),
        "steps": ", ".join(_thousands(row["steps"]) for row in of),
        "time": format_seconds(sum(row["seconds"] for row in of) / len(of)),
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
                line[f"{option} {value}"] = str(mean_over_seeds(seeds)) if seeds else ""
            table.append(line)
        lines += [f"## {env_id}, played with another {option}\n", markdown(table), ""]
    return lines


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


def _thousands(steps: int | None) -> str:
    return "never" if steps is None else f"{steps / 1000:.0f}k"


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else format_seconds(seconds)
