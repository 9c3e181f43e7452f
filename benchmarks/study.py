"""The first study (docs/first-study.md) over all its tasks: which memory is better than which?

    python -m benchmarks.study             # seconds; reads what `compare` wrote about each task
    python -m benchmarks.study --smoke     # writes nothing

Each memory on each task with the learning rate that was chosen for it, where one was. Writes
benchmarks/results/study/all-tasks.md.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from agents.comparison.summary import common_scale
from agents.statistics import estimate, interquartile_mean, probability_of_improvement
from agents.table import markdown

RESULTS = pathlib.Path(__file__).parent / "results" / "study"


def read(results: pathlib.Path) -> list[dict[str, Any]]:
    """A row for each agent that is judged, of all tasks."""
    found = [json.loads(file.read_text()) for file in sorted(results.glob("*/comparison.json"))]
    return [row for result in found for row in result.get("best_rows", result["rows"])]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    scores = common_scale(rows, list(dict.fromkeys(row["memory"] for row in rows)))
    assert scores is not None, "a task of the study has no scale, or lacks a seed"
    seeds, tasks = len({row["seed"] for row in rows}), sorted({row["env_id"] for row in rows})
    middle = [{"memory": name, "score": str(estimate(interquartile_mean, of))} for name, of in scores.items()]
    better = [{"": name} | {other: _better(scores, name, other) for other in scores} for name in scores]
    return (
        "# All tasks of the first study\n\n"
        f"{', '.join(tasks)}; {seeds} seeds of each memory on each. Scores are success rates, or the fraction of the "
        "way from the best return without memory to the optimum; intervals are 95 % bootstrap intervals over seeds, "
        "drawn within each task. Written by `python -m benchmarks.study`.\n\n"
        f"Interquartile means:\n\n{markdown(middle)}\n\n"
        "How likely a seed of the memory of the line does better than one of that of the column (a tie counts half), "
        f"mean over tasks:\n\n{markdown(better)}\n"
    )


def _better(scores: dict[str, np.ndarray], name: str, other: str) -> str:
    return "" if name == other else str(estimate(probability_of_improvement, scores[name], scores[other]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="nothing written")
    smoke = parser.parse_args().smoke
    text = as_markdown(read(RESULTS))
    print(text)
    if not smoke:
        (RESULTS / "all-tasks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
