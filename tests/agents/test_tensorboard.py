"""TensorBoard of a finished comparison, asked as a browser asks it, and `python -m agents tensorboard`."""

import io
import json
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agents.errors import UsageError
from agents.tensorboard import open_tensorboard, write_events

ROOT = Path(__file__).resolve().parents[2]
ENV = "fwp/RepeatPrevious-v0"
PICTURES = {"delta": ("episode", "state", "retrieval_map"), "lstm": ("episode", "state"), "none": ("episode",)}
MEMORIES = tuple(PICTURES)


@pytest.fixture(scope="module")
def server(presented: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "agents", "tensorboard", str(presented), "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        yield process, next(word for word in process.stdout.readline().split() if word.startswith("http"))
        process.kill()


def ask(url: str, plugin: str, content: Any = None, **query: str) -> Any:
    """The answer of a plugin."""
    address = f"{url}data/plugin/{plugin}?{urllib.parse.urlencode(query)}"
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        data = answer.read()
    return json.loads(data) if answer.headers.get_content_type() == "application/json" else data


def test_a_comparison_is_served(server: tuple[subprocess.Popen[str], str]) -> None:
    """Catches tags that differ between memories, bands without a chart, a table without scores, and pictures that are
    no pictures."""
    process, url = server
    assert urllib.parse.urlsplit(url).hostname == "127.0.0.1"
    runs = [f"fwp-RepeatPrevious-v0/{name}/seed_0" for name in MEMORIES]
    deadline = time.monotonic() + 60  # it reads files after it has begun to serve
    while len(tags := ask(url, "scalars/tags")) < 2 * len(MEMORIES) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert all("rollout/ep_rew_mean" in tags[run] for run in runs)
    points = ask(url, "scalars/scalars", run=f"_comparison/{MEMORIES[1]}", tag=f"comparison/{ENV}/mean")
    assert len(points) == 100

    (category,) = ask(url, "custom_scalars/layout")["category"]
    (series,) = category["chart"][0]["margin"]["series"]
    assert category["title"] == ENV
    assert all(set(series.values()) <= set(tags[f"_comparison/{name}"]) for name in MEMORIES)

    assert {info["name"] for info in ask(url, "hparams/experiment", {})["hparamInfos"]} >= {"memory", "seed", "env_id"}
    columns = [{"metric": {"tag": "comparison/score", "group": ""}}]
    wanted = {"colParams": columns, "startIndex": 0, "sliceSize": 9, "allowedStatuses": ["STATUS_UNKNOWN"]}
    groups = ask(url, "hparams/session_groups", wanted)["sessionGroups"]
    scores = {group["hparams"]["memory"]: group["metricValues"][0]["value"] for group in groups}
    assert scores == dict.fromkeys(MEMORIES, 0.25)

    kinds = {"episode": "GIF", "state": "PNG", "retrieval_map": "PNG"}
    for memory in MEMORIES:
        shown = {name: kind for name, kind in kinds.items() if name in PICTURES[memory]}
        assert set(ask(url, "images/tags")[f"_comparison/{memory}"]) == {f"{ENV}/{name}" for name in shown}
        for name, kind in shown.items():
            of = {"run": f"_comparison/{memory}", "tag": f"{ENV}/{name}", "sample": "0"}
            (info,) = ask(url, "images/images", **of)
            picture = Image.open(
                io.BytesIO(ask(url, "images/individualImage", **dict(urllib.parse.parse_qsl(info["query"]))))
            )
            assert (picture.format, getattr(picture, "n_frames", 1) > 4) == (kind, kind == "GIF")

    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_events_are_replaced_by_those_of_the_next_comparison(tmp_path: Path, presented: Path) -> None:
    """Catches scores of two comparisons in the events of one run."""
    (directory,) = presented.glob("*/none/seed_0")
    before = sorted(directory.glob("events.*"))
    row = {"env_id": ENV, "memory": "none", "seed": 0, "parameters": 1, "steps": 2, "seconds": 3.0, "score": 0.5}
    write_events(tmp_path, [row | {"return_mean": 0.5, "success_rate": None}], [directory], {})
    assert len(sorted(directory.glob("events.*"))) == len(before) == 2


@pytest.mark.parametrize(
    ("name", "port", "message"),
    [
        ("missing", None, "missing is not a directory; give one that holds runs"),
        (".", 99999, r"port=99999 must lie in"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, name: str, port: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_tensorboard(tmp_path / name, port)
