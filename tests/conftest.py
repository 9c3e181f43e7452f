"""What every test starts from: one thread, fixed seeds, and shapes that are checked."""

import os
import random
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

LONG = {"test_benchmarks.py", "test_comparison.py", "test_readme.py", "test_rnn_triton.py", "test_triton.py"}
"""Files of tests that start processes of their own or interpret kernels."""
PACKAGE = Path(__file__).resolve().parents[1] / "fwp_rl"


def modules_with_checked_shapes() -> list[str]:
    """All modules of `fwp_rl` but the private kernels: the hook decorates every function, which no compiler takes."""
    public = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("_")]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in public]


# Here, before anything imports fwp_rl; users never pay for it.
jaxtyping.install_import_hook(modules_with_checked_shapes(), "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    # Tests run in parallel processes; more threads in them, or in what they start, would only fight over the cores.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels once, before parallel processes would each compile them."""
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        script = Path(__file__).with_name("compile_kernels.py")
        processes = [subprocess.Popen([sys.executable, script, dtype]) for dtype in ("float32", "float64")]
        codes = [process.wait() for process in processes]
        if any(codes):
            pytest.exit(f"{script.name} failed", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # First what takes long, so that at the end no process waits for another one.
    items.sort(key=lambda item: item.path.name not in LONG)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests had to say, by `record_property("summary", ...)`; printed lines of parallel processes are lost."""
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            if name == "summary" and report.when == "call":
                terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries below us still read the global generator
    torch.manual_seed(0)
