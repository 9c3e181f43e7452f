"""With what a run is made: versions, machine, commit, time."""

import contextlib
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numba", "numpy", "gymnasium", "minigrid", "stable-baselines3", "fwp-rl")


def versions(also: Iterable[str] = ()) -> dict[str, str]:
    """Python and the packages that decide what comes out of a run, `also` among them."""
    found = {"python": platform.python_version()}
    for name in dict.fromkeys((*_PACKAGES, *also)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def changed_versions(earlier: Mapping[str, str]) -> str:
    """`torch 2.10 -> 2.11, numpy ...`: what differs from `earlier` now; empty if nothing does."""
    now_installed = versions(earlier)
    return ", ".join(
        f"{name} {version} -> {now_installed.get(name)}"
        for name, version in earlier.items()
        if now_installed.get(name) != version
    )


def mixture(descriptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What runs (their run.json) were not all made with, one sentence each: `torch 2.10 (3 runs), 2.11 (2 runs)`."""
    made_with = [
        {**run.get("versions", {}), "commit": run.get("git_commit"), "device": run.get("machine", {}).get("device")}
        for run in descriptions
    ]
    sentences = []
    for name in dict.fromkeys(name for made in made_with for name in made):
        counts = Counter(made.get(name) for made in made_with)
        if len(counts) > 1:
            parts = [f"{value} ({count} run{'s' * (count > 1)})" for value, count in counts.most_common()]
            sentences.append(f"{name} {', '.join(parts)}")
    return sentences


def origin(descriptions: Sequence[Mapping[str, Any]]) -> str:
    """When, on what and with what runs (their run.json) were made, in a line; of what is mixed, what most have."""
    days = sorted({str(run["ended"])[:10] for run in descriptions if run.get("ended")})
    dated = [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    parts = [f"{len(descriptions)} run{'s' * (len(descriptions) != 1)}", *dated]
    made_with = [{**run.get("machine", {}), **run.get("versions", {})} for run in descriptions]
    for name in dict.fromkeys(name for made in made_with for name in made):
        value, _ = Counter(made.get(name) for made in made_with).most_common(1)[0]
        parts.append(f"{name} {value}")
    return ", ".join(parts)


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
