"""With what a run is made: versions, machine, commit, time."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "numba", "numpy", "gymnasium", "minigrid", "stable-baselines3", "fwp-rl")


def versions() -> dict[str, str]:
    """Python and the packages that decide what comes out of a run."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def changed_versions(earlier: Mapping[str, str]) -> str:
    """`torch 2.10 -> 2.11, numpy ...`: what differs from `earlier` now; empty if nothing does."""
    now_installed = versions()
    return ", ".join(
        f"{name} {version} -> {now_installed.get(name)}"
        for name, version in earlier.items()
        if now_installed.get(name) != version
    )


def machine() -> dict[str, str | int | None]:
    """System, processor and number of cores."""
    return {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}


def git_commit() -> str | None:
    """The commit of this checkout; None where there is none."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
