"""Every benchmark runs through in its smoke mode, so that none rots."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HELPERS = ("__init__", "floor", "machine")
SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in HELPERS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout  # a table came out
