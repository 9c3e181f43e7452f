"""`python -m agents compare`: what it trains, what it keeps, what it refuses, and what it says."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agents import comparison
from agents.command_line import run
from agents.comparison import _Plan, compare, equal_config, judging
from agents.comparison.judging import SUCCESS, WAY, ComparedRun, best_rate, learned
from agents.comparison.summary import summaries
from agents.comparison.text import _choices, as_markdown
from agents.errors import EnvironmentFaultError, UsageError
from agents.model import WINDOW
from agents.presets import preset_config
from agents.progress import Progress
from agents.provenance import mixture, origin
from agents.runs import read_metrics, read_run
from agents.side_by_side import Job
from agents.training import resume
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
        del row["seconds"], row["seconds_to_threshold"]
    return result


def test_a_comparison_that_was_killed_comes_to_the_same_numbers(tmp_path: Path) -> None:
    """Catches a run that is trained twice or left half done, an orphan that goes on writing, and anything that depends
    on what ran before."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = SETTINGS | {"tests": [("length", 3)]}
    compare(["fwp/TMaze-v0"], ["delta"], root=whole, **settings)
    options = ["--env-id", "fwp/TMaze-v0", "--memory", "delta", "--seeds", "1", "--total-timesteps", "2048"]
    command = [sys.executable, "-m", "agents", "compare", *options, "--episodes", "4", "--jobs", "1"]
    first, deadline = killed / "fwp-TMaze-v0" / "delta" / "seed_0", time.monotonic() + 120
    with subprocess.Popen([*command, "--root", str(killed)], cwd=ROOT) as process:
        while not (first / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    while read_run(first)["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)  # its child saves and leaves
    compare(["fwp/TMaze-v0"], ["delta"], root=killed, **settings)
    assert numbers_of(killed) == numbers_of(whole)
    (test,) = numbers_of(whole)["tests"]
    assert (test["env_id"], test["memory"], test["option"], test["value"]) == ("fwp/TMaze-v0", "delta", "length", 3)
    assert (whole / "comparison.png").stat().st_size > 10_000
    assert "Inside the memory" in (whole / "report.html").read_text(encoding="utf-8")
    assert list(whole.glob("_comparison/delta/events.*"))
    times = {path: path.stat().st_mtime_ns for path in whole.rglob("model.zip")}
    compare(["fwp/TMaze-v0"], ["delta"], root=whole, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("model.zip")} == times
    with pytest.raises(
        UsageError, match=r"seed_0 is a run with another total_timesteps \(2048, not 4096\); give another"
    ):
        compare(["fwp/TMaze-v0"], ["delta"], root=whole, **SETTINGS | {"total_timesteps": 4096})


def train_here(jobs: list[Job], n_processes: int, show: Any, *, again: str) -> dict[str, int]:
    for job in jobs:
        resume(job.directory, quiet=True)
        show(job, True)
    return {job.name: 0 for job in jobs}


def test_damaged_runs_are_named_and_the_rest_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a damaged file that spoils forty runs, one passed over in silence, and one that is trained over."""
    monkeypatch.setattr(comparison, "train_side_by_side", train_here)
    settings = SETTINGS | {"root": tmp_path, "total_timesteps": 64}
    runs = tmp_path / "fwp-TMaze-v0" / "none"
    for seed, name in ((2, "run.json"), (3, "thesis.tex")):
        (runs / f"seed_{seed}").mkdir(parents=True)
        (runs / f"seed_{seed}" / name).write_text("years of work")
    compare(["fwp/TMaze-v0"], ["none"], **settings | {"n_seeds": 2})
    (runs / "seed_1" / "model.zip").write_bytes(b"PK")
    code = run(lambda: compare(["fwp/TMaze-v0"], ["none"], **settings | {"n_seeds": 4}))
    out, err = capsys.readouterr()
    assert code == 4
    for seed, reason in ((1, "model.zip: truncated or not"), (2, "it is not valid JSON"), (3, "holds no run.json")):
        assert re.search(rf"^error: left out: fwp/TMaze-v0 none seed {seed}: .*{reason}", err, flags=re.MULTILINE)
    assert "4 runs in" in out
    assert "2 are finished, 0 to train, 2 damaged" in out
    assert [row["seed"] for row in json.loads((tmp_path / "comparison.json").read_text())["rows"]] == [0]
    assert (runs / "seed_3" / "thesis.tex").exists()


def test_what_fails_on_the_way_leaves_the_rest_to_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a run that failed and is trained once more with the rates, a task that breaks in one evaluation and takes
    all others along, a run without metrics that has "never" learned, and a picture that counts other seeds."""
    failing, broken, emptied = ("fwp/TMaze-v0 none seed " + str(seed) for seed in (1, 2, 3))
    trained: list[str] = []

    def train_most(jobs: list[Job], n_processes: int, show: Any, *, again: str) -> dict[str, int]:
        trained.extend(job.name for job in jobs)
        train_here([job for job in jobs if job.name != failing], n_processes, show, again=again)
        return {job.name: 5 * (job.name == failing) for job in jobs}

    def judge(run: ComparedRun, episodes: int) -> dict[str, Any]:
        if run.name == broken:
            raise EnvironmentFaultError("it is broken")
        if run.name == emptied:
            (run.directory / "metrics.jsonl").write_text("")
        return judging.judge(run, episodes)

    monkeypatch.setattr(comparison, "train_side_by_side", train_most)
    monkeypatch.setattr(comparison, "judge", judge)
    settings = SETTINGS | {"root": tmp_path, "total_timesteps": 64, "n_seeds": 5, "learning_rates": [5e-4]}
    assert run(lambda: compare(["fwp/TMaze-v0"], ["none"], **settings)) == 4
    assert trained.count(failing) == 1
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["seed"] for row in result["rows"]] == [row["seed"] for row in result["best_rows"]] == [0, 4]
    assert list(result["left_out"]) == [failing, broken, emptied]
    assert "metrics.jsonl is missing or empty" in (tmp_path / "comparison.md").read_text()
    assert f"<strong>Left out:</strong> {failing}: training failed with exit code 5." in (
        tmp_path / "report.html"
    ).read_text(encoding="utf-8")
    capsys.readouterr()
    (tmp_path / "fwp-TMaze-v0" / "none" / "seed_0" / "run.json").write_text("{")
    assert run(lambda: compare(["fwp/TMaze-v0"], ["none"], **settings, prepare_only=True)) == 4
    assert "error: left out: fwp/TMaze-v0 none seed 0: " in capsys.readouterr().err


def test_a_task_that_breaks_with_another_option_costs_only_that_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches hours of training that end in a fault of the last test, and a run that is shown as left out."""

    def judge_with_options(run: ComparedRun, *_: Any) -> Any:
        raise EnvironmentFaultError("it is broken")

    monkeypatch.setattr(comparison, "train_side_by_side", train_here)
    monkeypatch.setattr(comparison, "judge_with_options", judge_with_options)
    settings = SETTINGS | {"root": tmp_path, "total_timesteps": 64, "tests": [("length", 3)]}
    assert run(lambda: compare(["fwp/TMaze-v0"], ["none"], **settings)) == 4
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert len(result["rows"]) == 1
    assert result["left_out"] == {"fwp/TMaze-v0 none seed 0, played with other options": "it is broken"}


def test_a_run_that_was_trained_on_another_device_is_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a scheduler whose runs nobody can compare."""
    settings = SETTINGS | {"root": tmp_path, "total_timesteps": 64}
    compare(["fwp/TMaze-v0"], ["none"], **settings, prepare_only=True)
    resume(tmp_path / "fwp-TMaze-v0" / "none" / "seed_0", device="auto", quiet=True)
    monkeypatch.setattr(comparison, "train_side_by_side", None)
    compare(["fwp/TMaze-v0"], ["none"], **settings)
    runs = [{"machine": {"device": device}} for device in ("cpu", "cuda", "cpu")]
    assert mixture(runs) == ["device cpu (2 runs), cuda (1 run)"]


def test_the_best_learning_rate_is_chosen_on_other_seeds() -> None:
    """Catches a choice by the seeds that are reported, a memory that gets the rate of another one, and a run that is
    trained twice because the preset's rate is the best."""
    plan = _Plan(root=Path("runs"), total_timesteps=None, equal_time=None)
    memory = equal_config("none", "none", "nothing")
    fixed, trial, best = (plan.job("fwp/TMaze-v0", "none", memory, *rest) for rest in ((0,), (1000, 5e-4), (0, 1e-3)))
    assert fixed.directory == Path("runs/fwp-TMaze-v0/none/seed_0")
    assert plan.job("fwp/TMaze-v0", "none", memory, 0, 5e-4) == fixed  # the preset's
    assert trial.directory == Path("runs/learning_rates/0.0005/fwp-TMaze-v0/none/seed_1000")
    assert best.directory == Path("runs/learning_rates/0.001/fwp-TMaze-v0/none/seed_0")
    assert (fixed.config.ppo.learning_rate, best.config.ppo.learning_rate) == (5e-4, 1e-3)
    scores = {
        ("delta", 1e-4): 0.6,
        ("delta", 1e-3): 0.9,
        ("delta", 1e-2): 0.9,
        ("lstm", 1e-4): 0.8,
        ("lstm", 1e-3): 0.7,
    }
    trials = [
        row("A", name, seed, score) | {"learning_rate": rate, "steps_to_threshold": 100 if rate == 1e-2 else None}
        for (name, rate), score in scores.items()
        for seed in (1000, 1001)
    ]
    trials.append(row("A", "lstm", 1000, 1.0) | {"learning_rate": 1e-2})  # the other seed diverged
    assert [best_rate(trials, "A", name, n_seeds=2) for name in ("delta", "lstm", "gru")] == [1e-2, 1e-4, None]
    del trials[-1]
    rows = [row("A", name, seed, 0.5) | {"learning_rate": 1e-4} for name in ("delta", "lstm") for seed in range(5)]
    assert "| A | lstm | 0.0001 | 0.80 with 0.0001, 0.70 with 0.001 |" in _choices(trials, rows)


def test_time_left_is_not_flattered_by_what_was_done_before(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches steps of an earlier day that count as the speed of this one."""
    progress = Progress(["all runs"], 1000, already=900)
    progress._started -= 10
    progress._next_refresh["all runs"] = 0
    progress.update("all runs", 950)
    assert "950 of 1,000 steps  5 steps/s  10 s left" in capsys.readouterr().err


def test_versions_that_are_mixed_are_said() -> None:
    """Catches a difference that comes from another release of torch, and tables that nobody can date."""
    old, new = (
        {"versions": {"torch": number, "numpy": "2"}, "git_commit": "c0ffee", "ended": f"2026-0{month}-01T00:00:00"}
        for number, month in (("2.10", 1), ("2.11", 2))
    )
    assert origin([old, new, new]) == "3 runs, 2026-01-01 to 2026-02-01, torch 2.11, numpy 2"
    assert origin([new]) == "1 run, 2026-02-01, torch 2.11, numpy 2"
    assert mixture([old, new, new]) == ["torch 2.11 (2 runs), 2.10 (1 run)"]
    assert mixture([new, new]) == []
    rows = [row("A", "delta", seed, 0.5) for seed in range(5)]
    text = text_of(rows, mixed=mixture([old, new, new]), origin=origin([new]))
    assert "Made with: 1 run, 2026-02-01, torch 2.11" in text
    assert "**Not made alike: torch 2.11 (2 runs), 2.10 (1 run).**" in text


def test_a_task_is_learned_when_its_last_episodes_score_enough() -> None:
    """Catches a return that is taken for a score: the way of the T-maze begins at 0.5. And an agent that has "never"
    learned what its last evaluation says it can do."""
    config = preset_config("fwp/TMaze-v0", None)
    lines = [
        {"step": n, "rollout/ep_rew_mean": x, "rollout/success_rate": x, "rollout/episodes": 100}
        for n, x in enumerate((0.0, 0.92, 0.96))
    ]
    evaluation = {"step": 9, "eval/return_mean": 1.0}
    assert learned(config, WAY, [{"step": 8}, *lines[:2], evaluation]) is evaluation
    assert [line["step"] for line in (learned(config, WAY, lines), learned(config, SUCCESS, lines)) if line] == [2, 1]
    assert learned(config, None, lines) is None


def test_the_first_episodes_to_end_do_not_count() -> None:
    """Catches an agent that has learned at once, since those that fail take longer than those that succeed."""
    config = preset_config("MiniGrid-Empty-8x8-v0", None)
    lines = [{"step": n, "rollout/success_rate": 1.0, "rollout/episodes": n} for n in (7, 99, 100)]
    assert learned(config, SUCCESS, lines) is lines[-1]
    assert learned(config, SUCCESS, lines[:2]) is None


def test_every_line_of_a_run_tells_how_many_episodes_it_is_about(run_directory: Path) -> None:
    """Catches a training in which nothing ever counts as learned."""
    lines = [line for line in read_metrics(run_directory / "metrics.jsonl") if "rollout/ep_rew_mean" in line]
    counts = [line["rollout/episodes"] for line in lines]
    assert counts == sorted(counts)
    assert 0 < counts[-1] <= WINDOW


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
        "steps_to_threshold": None,
        "seconds_to_threshold": None,
        "success_rate": score,
        "return_mean": 2 * score,
        "score": score,
        "scale": scale,
    }


def text_of(rows: list[dict[str, Any]], **changes: Any) -> str:
    memories = list(dict.fromkeys(row["memory"] for row in rows))
    about = {"equal": "state", "equal_time": None, "episodes": 7, "mixed": [], "left_out": {}, "origin": ""}
    result = {"memories": memories, "rows": rows, **about, **changes}
    return as_markdown(result, *summaries(result))


def test_the_report_says_who_wins_and_how_sure_that_is() -> None:
    """Catches tasks or memories that are mixed up."""
    scores = {("A", "delta"): 0.9, ("A", "lstm"): 0.5, ("B", "delta"): 0.8, ("B", "lstm"): 0.7}
    rows = [row(env, name, seed, x + seed / 100) for (env, name), x in scores.items() for seed in range(5)]
    text = text_of(rows)
    assert "Equal state; 7 unseen episodes" in text
    assert "too few" not in text
    assert text.index("## A") < text.index("## B") < text.index("## All tasks")
    assert "| lstm | 1,234 | 0.520 (0.508 to 0.532) | 1.040 (1.016 to 1.064) | 0.50, 0.51, 0.52, 0.53, 0.54 |" in text
    assert "| lstm | 0.620 (0." in text
    assert "| 0.000 (0.000 to 0.000) |" in text.split("## All tasks")[1]


def test_the_report_tells_of_tests_with_other_options_apart() -> None:
    """Catches values of an option, or agents, that are mixed up, and a score of 0.1 where success is known."""
    rows = [row("A", name, seed, 0.5) for name in ("delta", "lstm") for seed in range(5)]
    tests = [
        {**row("A", name, seed, 0.1), "success_rate": success, "option": "length", "value": value}
        for name, value, success in (("delta", 14, 0.9), ("delta", 28, 0.8), ("lstm", 14, 0.7), ("lstm", 28, None))
        for seed in range(5)
    ]
    with_rates = [{**each, "learning_rate": 1e-3} for each in rows]
    text = text_of(rows, tests=tests, trials=with_rates, best_rows=with_rates)
    # It is the agents with the best rates who play them.
    assert text.index("# Each with its best learning rate") < text.index("played with another")
    text = text.split("## A, played with another length")[1]
    assert "| memory | length 14 | length 28 |" in text
    assert "| delta | 0.900 (0.900 to 0.900) | 0.800 (0.800 to 0.800) |" in text
    assert "| lstm | 0.700 (0.700 to 0.700) | 0.100 (0.100 to 0.100) |" in text


def test_the_report_warns_of_few_seeds_and_of_scores_that_cannot_be_pooled() -> None:
    """Catches a mean over a return of 500 and a success rate of 1."""
    rows = [row("A", "delta", seed, 0.5) for seed in range(2)] + [row("B", "delta", s, 480.0, None) for s in range(2)]
    text = text_of(rows, left_out={"A delta seed 2": "it is damaged"})
    assert "**Only 2 seeds: too few to call anything better.**" in text
    assert "**Left out: A delta seed 2: it is damaged.**" in text
    assert "## All tasks" not in text


@pytest.mark.parametrize(
    ("env_ids", "memories", "changes", "message"),
    [
        (["fwp/TMaze-v0"], ["detla"], {}, "unknown memory 'detla': nearest are delta"),
        (["fwp/TMase-v0"], ["delta"], {}, "unknown environment 'fwp/TMase-v0'.*fwp/TMaze-v0"),
        (["fwp/TMaze-v0"], [], {}, "--memory needs at least one name"),
        ([], ["delta"], {}, "--env-id needs at least one name"),
        (["fwp/TMaze-v0"], ["delta"], {"n_seeds": 0}, "seeds=0 must be at least 1"),
        (["fwp/TMaze-v0"], ["delta"], {"total_timesteps": 0}, "total_timesteps=0 must be at least 1"),
        (["fwp/TMaze-v0"], ["delta"], {"tests": [("lenght", 9)]}, "'?lenght.*length"),
        (["fwp/KeyValueRecall-v0"], ["delta"], {"tests": [("n_keys", 9)]}, "n_keys=9 has other spaces"),
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
