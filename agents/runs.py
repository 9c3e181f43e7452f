"""The directory of a run: where it lies, what is in it, and how it is written so that a kill leaves nothing half done.

runs/<env>/<memory>/seed_<n>/
    run.json       resolved config, versions, machine, times, status
    metrics.jsonl  one JSON object per line: the source of truth
    events.out.*   the same numbers for TensorBoard
    model.zip      the agent
"""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.errors import RunFileError, UsageError

FORMAT = "fwp-run"
VERSION = 1

_MAX_JSON_BYTES = 1_000_000


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    directory: Path

    @property
    def description(self) -> Path:
        """run.json."""
        return self.directory / "run.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.directory / "metrics.jsonl"

    @property
    def model(self) -> Path:
        """model.zip."""
        return self.directory / "model.zip"


def default_directory(root: Path, env_id: str, memory: str, seed: int) -> Path:
    """`root/<env>/<memory>/seed_<n>`; what a folder name cannot hold becomes a hyphen."""
    return root / re.sub(r"[^\w.-]+", "-", env_id).strip(".-") / memory / f"seed_{seed}"


def create_run_directory(directory: Path, *, overwrite: bool) -> RunPaths:
    """A fresh, empty run directory. An existing one is refused, or replaced if it is a run and `overwrite` is asked."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not overwrite:
            raise UsageError(f"{directory} exists already: pass --overwrite, another --seed or another --run-dir")
        if not RunPaths(directory).description.is_file():
            raise UsageError(f"{directory} holds no run.json, so it is not a run and --overwrite leaves it alone")
        shutil.rmtree(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {directory}: {error.strerror or error}") from None
    return RunPaths(directory)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path` by `data` as strict JSON: the old file or the new one, never a part."""
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_run(directory: Path) -> dict[str, Any]:
    """The content of run.json; RunFileError in one line if it is missing, damaged or of another kind."""
    path = RunPaths(directory).description
    if not directory.is_dir():
        raise RunFileError(f"{directory} is not a directory; give the directory of a run, such as runs/.../seed_0")
    if not path.is_file():
        raise RunFileError(f"{directory} holds no run.json, so it is not the directory of a run")
    data = _read_strict_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RunFileError(f"{path} does not describe a run (format is not {FORMAT!r})")
    if data.get("version") != VERSION:
        raise RunFileError(f"{path} has version {data.get('version')!r}, this program reads version {VERSION}")
    return data


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that is still being written is left out."""
    lines: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line, parse_constant=_refuse_constant))
        except ValueError:
            raise RunFileError(f"{path}: line {number} is not JSON") from None
    return lines


class MetricsFile:
    """metrics.jsonl: whole lines, appended. What is not a finite number is written as null."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line. A line that does not fit on the disk is taken back whole, and OSError is raised."""
        finite = {key: _finite(value) for key, value in line.items()}
        data = json.dumps(finite, allow_nan=False).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finite(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_strict_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise RunFileError(f"{path} is larger than {_MAX_JSON_BYTES} bytes, so no run wrote it")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise RunFileError(f"{path} is damaged: it is not valid JSON") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
