"""One tiny run for all tests that need a trained agent, and one tiny comparison."""

import functools
import shutil
from pathlib import Path

import pytest

import train
from agents.comparison import summary
from agents.comparison.presentation import present
from agents.runs import default_directory, read_run
from agents.statistics import estimate


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug preset, trained end to end; its path has a space and a letter beyond ASCII."""
    directory = tmp_path_factory.mktemp("rüns with space") / "run"
    assert train.main(["--preset", "debug", "--run-dir", str(directory), "--quiet"]) == directory
    return directory


@pytest.fixture(scope="session")
def presented(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of three memories, with all that is written of it to be looked at."""
    root = tmp_path_factory.mktemp("cömparison of three")
    rows = []
    for memory in ("delta", "lstm", "none"):
        directory = default_directory(root, "fwp/RepeatPrevious-v0", memory, 0)
        if memory == "delta":
            shutil.copytree(run_directory, directory)
        else:
            train.main(["--preset", "debug", "--run-dir", str(directory), "--quiet", f"memory:{memory}"])
        run = read_run(directory)
        scores = {"success_rate": None, "return_mean": 0.5, "score": 0.25, "scale": None}
        costs = {"parameters": 1234, "steps": run["steps"], "seconds": run["seconds"], "steps_to_threshold": None}
        who = {"env_id": run["config"]["env_id"], "memory": memory, "seed": 0, "learning_rate": 0.5}
        rows.append(who | scores | costs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "estimate", functools.partial(estimate, resamples=50))
        about = {"equal": "parameters", "equal_time": None, "mixed": [], "left_out": {}, "episodes": 7}
        result = {"memories": ["delta", "lstm", "none"], "rows": rows} | about
        present(root, result, *summary.summaries(result))
    return root
