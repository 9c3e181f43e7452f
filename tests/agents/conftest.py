"""One tiny run for all tests that need a trained agent."""

from pathlib import Path

import pytest

import train


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug preset, trained end to end; its path has a space and a letter beyond ASCII."""
    directory = tmp_path_factory.mktemp("rüns with space") / "run"
    assert train.main(["--preset", "debug", "--run-dir", str(directory), "--quiet"]) == directory
    return directory
