import contextlib
import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agents import runs
from agents.errors import RunFileError, UsageError
from agents.runs import (
    FORMAT,
    VERSION,
    MetricsFile,
    RunPaths,
    claimed,
    default_directory,
    fresh_run_directory,
    last_step,
    read_metrics,
    read_run,
    refuse_occupied,
    write_json,
)
from fwp_rl.files import PART

GOOD = {"format": FORMAT, "version": VERSION, "config": {}}


def test_default_directory_is_safe_for_any_id() -> None:
    assert default_directory(Path("runs"), "fwp/TMaze-v0", "delta", 3) == Path("runs/fwp-TMaze-v0/delta/seed_3")
    assert default_directory(Path("runs"), "../../etc", "delta", 0) == Path("runs/etc/delta/seed_0")


def test_an_existing_run_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with fresh_run_directory(tmp_path / "run", overwrite=False) as paths:
        write_json(paths.description, GOOD)
    with pytest.raises(
        UsageError, match="exists already: --resume goes on with it, --overwrite replaces it; or give another"
    ):
        refuse_occupied(tmp_path / "run", overwrite=False)
    with fresh_run_directory(tmp_path / "run", overwrite=True) as paths:
        assert not paths.content


def test_overwrite_leaves_alone_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not a run"), fresh_run_directory(tmp_path, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_was_made_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if of two processes that begin at once the second trains over what the first has finished."""

    @contextlib.contextmanager
    def late(paths: RunPaths) -> Iterator[RunPaths]:
        write_json(paths.description, GOOD)
        with claimed(paths):
            yield paths

    monkeypatch.setattr(runs, "claimed", late)
    with pytest.raises(UsageError, match="exists already"), fresh_run_directory(tmp_path, overwrite=False):
        pass
    assert RunPaths(tmp_path).description.exists()


def test_what_a_killed_process_left_half_written_is_no_run(tmp_path: Path) -> None:
    """Red if nobody could train there any more."""
    (tmp_path / f"{PART}json").write_text("{")
    with fresh_run_directory(tmp_path, overwrite=False) as paths:
        assert not paths.content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"format": "fwp-run", "version": 1', "not valid JSON"),
        ('{"format": "fwp-run", "version": 1, "steps": NaN}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": "other"}', "does not describe a run"),
        ("[]", "does not describe a run"),
        ('{"format": "fwp-run", "version": 99}', "version 99"),
        (" " * 1_000_001, "larger"),
    ],
)
def test_a_damaged_description_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFileError, match=message) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_metrics_are_whole_strict_lines(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1, "a": math.nan, "b": np.float32(0.5), "c": np.int64(3)})
    metrics.append({"step": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "half')  # as a reader sees a line that is being written
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": 0.5, "c": 3}, {"step": 2}]
    metrics.close()


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ("", 0),
        ('{"step": 3}\n{"step": 7}\n', 7),
        ('{"step": 3}\n{"step": 7, "x":', 3),
        ("nonsense\n", 0),
        ("{}\n", 0),
        ("[7]\n", 0),
        (f'{{"x": "{"y" * 100_000}"}}\n{{"step": 5}}\n', 5),
    ],
)
def test_the_last_step_is_that_of_the_last_whole_line(content: str, step: int, tmp_path: Path) -> None:
    """Red if a run that writes, or whose file is damaged, stopped those that only look how far it is."""
    (tmp_path / "metrics.jsonl").write_text(content)
    assert last_step(tmp_path / "metrics.jsonl") == step
    assert last_step(tmp_path / "none.jsonl") == 0


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1})
    file = metrics._file

    class FullDisk:
        def write(self, data: bytes) -> int:
            return file.write(data[:5])

        def __getattr__(self, name: str) -> object:
            return getattr(file, name)

    monkeypatch.setattr(metrics, "_file", FullDisk())
    with pytest.raises(OSError, match="No space") as caught:
        metrics.append({"step": 2})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    metrics.append({"step": 3})
    metrics.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 3}]


def test_write_json_keeps_the_old_file_if_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, GOOD)
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"steps": math.inf})
    assert json.loads(path.read_text()) == GOOD
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]
