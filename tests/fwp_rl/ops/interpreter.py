"""Kernels interpreted: a process that Triton's interpreter owns, and copies of kernels that are broken."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]


def interpret(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments. Triton decides on import whether it interprets: hence another process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment.pop("FWP_RL_BACKEND", None)
    environment |= {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def load(path: Path) -> ModuleType:
    """A module from a file, past the hook that checks shapes in tests."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
