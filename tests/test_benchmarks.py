"""Every benchmark runs through in its smoke mode, so that none rots."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import study
from benchmarks.bsuite import Regret
from benchmarks.learning import as_markdown
from benchmarks.questions import QUESTIONS

ROOT = Path(__file__).parent.parent
HELPERS = ("__init__", "floor", "gpu_recurrent", "gpu_timing", "machine", "questions")
SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in HELPERS)


# These only train, from the command line or not, as other tests do.
LONG = ("ablation", "bsuite", "delay_heads", "envpool", "packages", "unlearning")
# In processes of their own: one registers memories, for the other Triton decides at import that it interprets.
APART = ("ablation", "gpu")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SCRIPTS]
)
def test_smoke(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name in APART:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        out = done.stdout
    else:
        monkeypatch.setattr(sys, "argv", [name, "--smoke"])
        importlib.import_module(f"benchmarks.{name}").main()
        out = capsys.readouterr().out
    assert "|" in out  # a table came out


def test_learning_puts_published_numbers_beside_ours() -> None:
    """Red if a memory gets the number of another, or a table without published numbers an empty column."""
    row = {"seed": 0, "parameters": 7, "steps": 5000, "success_rate": 0.5, "return_mean": 1.0, "machine": "a machine"}
    for name, ending in (("endless-t-maze-10", " 0.83 |"), ("t-maze", " 0 of 1 reach 0.98 |")):
        rows = [{"memory": memory, **row} for memory in ("delta", "lstm")]
        *_, delta, lstm, _, _ = as_markdown(name, QUESTIONS[name], {"rows": rows}).splitlines()
        assert delta.startswith("| delta | 7 | 0.500 | 5 |")
        assert lstm.endswith(ending)


def test_study_over_all_tasks_is_that_of_its_results() -> None:
    """Red if a task was added or done again, and the page that pools them was not."""
    page = (study.RESULTS / "all-tasks.md").read_text(encoding="utf-8")
    assert page == study.as_markdown(study.read(study.RESULTS))


@pytest.mark.parametrize("share_wrong", [0.2, 0.36, 0.375, 0.39, 0.5])
def test_bsuite_stops_early_only_where_the_verdict_is_certain(share_wrong: float) -> None:
    """Red if an agent that is stopped would have had another verdict at the end, or if the bar is not below 0.375."""
    wrong = np.random.default_rng(0).permutation(1000) < 1000 * share_wrong
    regret = Regret(1000)
    for is_wrong in wrong:
        regret.locals = {"infos": [{}, {"episode": {}, "is_success": not is_wrong}]}
        if not regret._on_step():
            break
    assert regret.left > 0
    assert regret.is_solved == (share_wrong < 0.375)


def test_gpu_benchmark_times_nothing_where_a_kernel_is_wrong(tmp_path: Path) -> None:
    """Red if its comparison with the definition lets a broken kernel pass."""
    for folder in ("benchmarks", "fwp_rl"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    kernels = tmp_path / "fwp_rl" / "ops" / "_triton.py"
    right, wrong = "erasing + tl.trans(erasing)", "erasing"
    source = kernels.read_text(encoding="utf-8")
    assert right in source
    kernels.write_text(source.replace(right, wrong), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the kernels are wrong: off by" in done.stderr
    assert "gradient of k" in done.stderr
    assert "|" not in done.stdout
