"""The directory of a run: where it lies, what is in it, and how it is written so that a kill leaves nothing half done.

runs/<env>/<memory>/seed_<n>/
    run.json       resolved config, versions, machine, times, status
    metrics.jsonl  one JSON object per line: the source of truth
    events.out.*   the same numbers for TensorBoard
    model.zip      the agent
    checkpoint.zip from where a run that was cut off goes on (`agents.checkpoints`)
    .lock          held by the process that trains
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.config import ConfigError, TrainConfig, train_config_from_json
from agents.errors import RunFileError, UsageError
from fwp_rl.files import PART, replace_file

FORMAT = "fwp-run"
VERSION = 1
STATUSES = ("waiting", "running", "finished", "interrupted", "failed")

_MAX_JSON_BYTES = 1_000_000
_LONGEST_LINE = 65_536  # bytes, of metrics.jsonl


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

    @property
    def checkpoint(self) -> Path:
        """checkpoint.zip."""
        return self.directory / "checkpoint.zip"

    @property
    def lock(self) -> Path:
        """.lock."""
        return self.directory / ".lock"

    @property
    def content(self) -> list[Path]:
        """All that is there but the lock, and what a killed process left half written."""
        return [path for path in self.directory.iterdir() if path != self.lock and not path.name.startswith(PART)]


def default_directory(root: Path, env_id: str, memory: str, seed: int) -> Path:
    """`root/<env>/<memory>/seed_<n>`; what a folder name cannot hold becomes a hyphen."""
    return root / re.sub(r"[^\w.-]+", "-", env_id).strip(".-") / memory / f"seed_{seed}"


def refuse_occupied(directory: Path, *, overwrite: bool) -> None:
    """UsageError unless a new run may lie there: nothing is there, or a run and `overwrite` is asked."""
    paths = RunPaths(directory)
    if not directory.exists() or (directory.is_dir() and not paths.content):
        return
    if not overwrite:
        ways = "--resume goes on with it, --overwrite replaces it; or give another --seed or --run-dir"
        raise UsageError(f"{directory} exists already: {ways}")
    if not paths.description.is_file():
        raise UsageError(f"{directory} holds no run.json, so it is not a run and --overwrite leaves it alone")


@contextlib.contextmanager
def fresh_run_directory(directory: Path, *, overwrite: bool) -> Iterator[RunPaths]:
    """While the block runs, an empty run directory that is claimed. An existing one is refused (`refuse_occupied`), or
    emptied.
    """
    refuse_occupied(directory, overwrite=overwrite)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {directory}: {error.strerror or error}") from None
    with claimed(RunPaths(directory)) as paths:
        refuse_occupied(directory, overwrite=overwrite)  # what another process may have made of it
        for path in sorted(paths.content, key=lambda path: path == paths.description):  # without that it is no run
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield paths


@contextlib.contextmanager
def claimed(paths: RunPaths, *, patience: float = 10.0) -> Iterator[RunPaths]:
    """While the block runs, no other process may train in this directory; UsageError if one does.

    :param patience: Seconds to wait for a process that is about to save and leave.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: two processes in one directory are the user's to avoid
        yield paths
        return
    with paths.lock.open("ab") as file:  # the lock goes with the process, however it ends
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(f"another process is training in {paths.directory}") from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield paths


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path` by `data` as strict JSON."""
    replace_file(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n")


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
    if data.get("status") not in STATUSES:
        raise RunFileError(f"{path} has status {data.get('status')!r}, expected one of {', '.join(STATUSES)}")
    return data


def read_config(directory: Path) -> TrainConfig:
    """The settings of a run; RunFileError in one line if they are no settings, or would import what they name."""
    try:
        config = train_config_from_json(read_run(directory).get("config"))
    except ConfigError as error:
        raise RunFileError(f"{RunPaths(directory).description}: {error}") from None
    if ":" in config.env_id:
        raise RunFileError(f"env_id {config.env_id!r} names a module to import, which a run file may not do")
    return config


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that is still being written is left out."""
    lines: list[dict[str, Any]] = []
    content = path.read_bytes() if path.is_file() else b""
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            line = strict_json(text.decode())
        except ValueError:
            raise RunFileError(f"{path}: line {number} is not JSON") from None
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            raise RunFileError(f"{path}: line {number} says nothing about a step")
        lines.append(line)
    return lines


def last_step(path: Path) -> int:
    """The step that the last whole line of metrics.jsonl tells of; 0 if there is none that can be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
            *lines, _ = file.read().split(b"\n")
        return int(strict_json(lines[-1].decode())["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def cut_metrics(path: Path, last_step: int) -> None:
    """Take away the lines of metrics.jsonl about later steps, and one that was cut off in its middle."""
    lines = [line for line in read_metrics(path) if line["step"] <= last_step]
    replace_file(path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))


class MetricsFile:
    """metrics.jsonl: whole lines, appended. What is not a finite number is written as null."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line. A line that does not fit on the disk is taken back whole, and OSError is raised."""
        values = {key: finite(value) for key, value in line.items()}
        data = json.dumps(values, allow_nan=False).encode() + b"\n"
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


def finite(value: Any) -> Any:
    """A number of NumPy as one of Python, and None for what is not finite: what strict JSON can say."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_strict_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise RunFileError(f"{path} is larger than {_MAX_JSON_BYTES} bytes, so no run wrote it")
        return strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise RunFileError(f"{path} is damaged: it is not valid JSON") from None


def strict_json(text: str) -> Any:
    """`text` parsed; ValueError also for NaN and infinities, which Python's parser would take."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
