"""A finished comparison for the eye: report.html, events for TensorBoard, and the episodes that both show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.comparison.report import write_report
from agents.comparison.summary import Summary
from agents.episodes import EVALUATION_SEED
from agents.errors import EnvironmentFaultError
from agents.evaluation import load_run
from agents.recording import Recording, record
from agents.runs import default_directory
from agents.tensorboard import write_events


def present(root: Path, result: Mapping[str, Any], summary: Summary, best: Summary | None) -> Path:
    """Write all of it into `root`, where the runs are, and return the report.

    :param result: What comparison.json holds.
    """
    rows = result["rows"]
    directories = [default_directory(root, row["env_id"], row["memory"], row["seed"]) for row in rows]
    episodes = _episodes(rows, directories)
    write_events(root, rows, directories, episodes)
    return write_report(root, result, summary, best, directories, episodes)


def _episodes(rows: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> dict[str, Recording]:
    """The first unseen episode, by the first seed of each memory on the first task; none if it draws no pictures."""
    episodes: dict[str, Recording] = {}
    for row, directory in zip(rows, directories, strict=True):
        if row["env_id"] == rows[0]["env_id"] and row["memory"] not in episodes:
            config, policy = load_run(directory)
            try:
                (episodes[row["memory"]],) = record(policy, config, seeds=[EVALUATION_SEED])
            except EnvironmentFaultError:
                return {}
    return episodes
