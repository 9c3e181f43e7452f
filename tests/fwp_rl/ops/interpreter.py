"""Kernels interpreted: their tests in a process that Triton's interpreter owns, and copies of them that are broken."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]


def run_tests(file: str, *options: str) -> None:
    """Triton decides on import whether it interprets: hence another process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file, *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    finished = subprocess.run(
        command, env=environment | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout[-10_000:]
    assert "skipped" in finished.stdout.splitlines()[-1]
    assert " passed" in finished.stdout


def load(path: Path) -> ModuleType:
    """A module from a file, past the hook that checks shapes in tests."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
