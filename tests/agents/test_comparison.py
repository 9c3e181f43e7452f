"""`python -m agents compare`: what it trains, what it keeps, what it refuses, and what it says."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agents.comparison import compare, equal_config, report
from agents.errors import UsageError
from agents.runs import read_run
from fwp_rl import memory_size

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {
    "n_seeds": 1,
    "equal": "parameters",
    "total_timesteps": 2048,
    "episodes": 4,
    "n_processes": 2,
}


def numbers_of(root: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((root / "comparison.json").read_text())
    for row in result["rows"]:
        del row["seconds"]
    return result


def test_a_comparison_that_was_killed_comes_to_the_same_numbers(tmp_path: Path) -> None:
    """Catches a run that is trained twice or left half done, an orphan that goes on writing, and anything that depends
    on what ran before."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    compare(["fwp/TMaze-v0"], ["delta"], root=whole, **SETTINGS)
    options = ["--env-id", "fwp/TMaze-v0", "--memory", "delta", "--seeds", "1", "--total-timesteps", "2048"]
    command = [sys.executable, "-m", "agents", "compare", *options, "--episodes", "4", "--jobs", "1"]
    first, deadline = killed / "fwp-TMaze-v0" / "delta" / "seed_0", time.monotonic() + 120
    with subprocess.Popen([*command, "--root", str(killed)], cwd=ROOT) as process:
        while not (first / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    while read_run(first)["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)  # its child saves and leaves
    compare(["fwp/TMaze-v0"], ["delta"], root=killed, **SETTINGS)
    assert numbers_of(killed) == numbers_of(whole)
    assert (whole / "comparison.png").stat().st_size > 10_000
    times = {path: path.stat().st_mtime_ns for path in whole.rglob("model.zip")}
    compare(["fwp/TMaze-v0"], ["delta"], root=whole, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("model.zip")} == times
    with pytest.raises(UsageError, match=r"delta/seed_0 is a run with another total_timesteps; give another --root"):
        compare(["fwp/TMaze-v0"], ["delta"], root=whole, **SETTINGS | {"total_timesteps": 4096})


@pytest.mark.parametrize("equal", ["parameters", "state"])
def test_memories_are_made_as_large_as_the_first(equal: Any) -> None:
    """Catches a comparison of unequal ones."""
    sizes = [getattr(memory_size(equal_config(name, "delta", equal), 128), equal) for name in ("delta", "gru", "srwm")]
    assert max(sizes) / min(sizes) < 1.05
    assert equal_config("gru", "delta", "nothing") == equal_config("gru", "gru", "parameters")


def row(env_id: str, memory: str, seed: int, score: float, scale: str | None = "success rates") -> dict[str, Any]:
    return {
        "env_id": env_id,
        "memory": memory,
        "seed": seed,
        "parameters": 1234,
        "steps": 5000,
        "seconds": 61.0,
        "success_rate": score,
        "return_mean": 2 * score,
        "score": score,
        "scale": scale,
    }


def test_the_report_says_who_wins_and_how_sure_that_is() -> None:
    """Catches tasks or memories that are mixed up."""
    scores = {("A", "delta"): 0.9, ("A", "lstm"): 0.5, ("B", "delta"): 0.8, ("B", "lstm"): 0.7}
    rows = [row(env, name, seed, x + seed / 100) for (env, name), x in scores.items() for seed in range(5)]
    text = report({"equal": "state", "episodes": 7, "rows": rows})
    assert "Equal state; 7 unseen episodes" in text
    assert "too few" not in text
    assert text.index("## A") < text.index("## B") < text.index("## All tasks")
    assert "| lstm | 1,234 | 0.520 (0.508 to 0.532) | 1.040 (1.016 to 1.064) | 0.50, 0.51, 0.52, 0.53, 0.54 |" in text
    assert "| lstm | 0.620 (0." in text
    assert "| 0.000 (0.000 to 0.000) |" in text.split("## All tasks")[1]


def test_the_report_warns_of_few_seeds_and_of_scores_that_cannot_be_pooled() -> None:
    """Catches a mean over a return of 500 and a success rate of 1."""
    rows = [row("A", "delta", seed, 0.5) for seed in range(2)] + [row("B", "delta", s, 480.0, None) for s in range(2)]
    text = report({"equal": "nothing", "episodes": 7, "rows": rows})
    assert "**Only 2 seeds: too few to call anything better.**" in text
    assert "## All tasks" not in text


@pytest.mark.parametrize(
    ("env_ids", "memories", "changes", "message"),
    [
        (["fwp/TMaze-v0"], ["detla"], {}, "unknown memory 'detla': nearest are delta"),
        (["fwp/TMase-v0"], ["delta"], {}, "unknown environment 'fwp/TMase-v0'.*fwp/TMaze-v0"),
        (["fwp/TMaze-v0"], ["delta"], {"n_seeds": 0}, "seeds=0 must be at least 1"),
        (["fwp/TMaze-v0"], ["none", "delta"], {"equal": "state"}, "delta cannot have the state of none"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    env_ids: list[str], memories: list[str], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Catches a misspelt name that is noticed after an hour."""
    with pytest.raises(UsageError, match=message):
        compare(env_ids, memories, root=tmp_path / "runs", **SETTINGS | changes)
    assert not (tmp_path / "runs").exists()
