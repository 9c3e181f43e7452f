"""A comparison in TensorBoard, and TensorBoard opened on a directory of runs.

Every training run writes its own events, with the same tags for every memory, so curves overlay at once. A comparison
adds what no single run knows:

    root/_comparison/<memory>       bands of the learning curves (Custom Scalars), pictures of an episode (Images)
    root/<env>/<memory>/seed_<n>    settings and final scores of each run (HParams)

Events are a view: everything here is written anew by each comparison, from comparison.json and metrics.jsonl.
"""

import io
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard import program
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from torch.utils.tensorboard.writer import SummaryWriter

from agents.animation import write_animation
from agents.curves import bands
from agents.errors import UsageError
from agents.panels import still_pictures
from agents.recording import Recording
from agents.rendering import draw
from agents.runs import read_run

_SUFFIX = ".comparison"  # of event files, to tell those of the comparison from those of the training run
_METRICS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "score": lambda row: row["score"],
    "success": lambda row: row["success_rate"],
    "return": lambda row: row["return_mean"],
    "steps per second": lambda row: row["steps"] / row["seconds"],
}
"""The columns of the table of HParams, from a row of the comparison."""


def write_events(
    root: Path, rows: Sequence[Mapping[str, Any]], directories: Sequence[Path], episodes: Mapping[str, Recording]
) -> None:
    """Write the events of a comparison, in place of those of an earlier one.

    :param rows: Those of comparison.json.
    :param directories: The run of each row.
    :param episodes: One episode for each memory that can be watched, on the first task.
    """
    shutil.rmtree(root / "_comparison", ignore_errors=True)
    _write_table(root, rows, directories)
    _write_bands(root, rows, directories)
    for memory, recording in episodes.items():
        _write_pictures(root / "_comparison" / memory, rows[0]["env_id"], recording)


def _write_table(root: Path, rows: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> None:
    """HParams: the lines of the table are the runs themselves, so that their curves are one click away."""
    settings = [
        {key: row[key] for key in ("env_id", "memory", "seed", "parameters")}
        | {"learning_rate": read_run(path)["config"]["ppo"]["learning_rate"]}
        for row, path in zip(rows, directories, strict=True)
    ]
    columns = [hparams.HParam(key, hparams.Discrete({of[key] for of in settings})) for key in settings[0]]
    metrics = [hparams.Metric(f"comparison/{name}", display_name=name) for name in _METRICS]
    with SummaryWriter(str(root / "_comparison")) as writer:
        writer.file_writer.add_summary(hparams.hparams_config_pb(columns, metrics))
    for row, directory, of in zip(rows, directories, settings, strict=True):
        for old in directory.glob(f"events.*{_SUFFIX}"):
            old.unlink()
        with SummaryWriter(str(directory), filename_suffix=_SUFFIX) as writer:
            writer.file_writer.add_summary(
                hparams.hparams_pb(of, trial_id="{env_id} {memory} seed {seed}".format(**of))
            )
            for name, metric in _METRICS.items():
                if (value := metric(row)) is not None:
                    writer.add_scalar(f"comparison/{name}", value, row["steps"])


def _write_bands(root: Path, rows: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> None:
    memories, env_ids = (list(dict.fromkeys(row[key] for row in rows)) for key in ("memory", "env_id"))
    writers = {name: SummaryWriter(str(root / "_comparison" / name)) for name in memories}
    charts = {}
    for env_id in env_ids:
        of_task = {
            name: [
                path
                for row, path in zip(rows, directories, strict=True)
                if (row["env_id"], row["memory"]) == (env_id, name)
            ]
            for name in memories
        }
        tags = [f"comparison/{env_id}/{part}" for part in ("mean", "low", "high")]
        charts[env_id] = {"return in training, mean over seeds and 95 % interval": ["Margin", tags]}
        for name, band in bands(of_task, "rollout/ep_rew_mean").items():
            for tag, values in zip(tags, (band.mean, band.low, band.high), strict=True):
                for step, value in zip(band.steps, values, strict=True):
                    writers[name].add_scalar(tag, value, int(step))
    writers[memories[0]].add_custom_scalars(charts)  # for the charts of all
    for writer in writers.values():
        writer.close()


def _write_pictures(directory: Path, env_id: str, recording: Recording) -> None:
    """An episode as it was played, and what the memory made of it."""
    clip = directory / "episode.gif"
    write_animation(clip, list(draw([recording], f"{env_id}   {directory.name}")))
    pictures = {"episode": clip.read_bytes()}  # a GIF moves in the browser
    pictures |= {name: _png(picture) for name, picture in still_pictures(recording).items()}
    with SummaryWriter(str(directory)) as writer:
        for name, data in pictures.items():
            image = Summary.Image(encoded_image_string=data)
            writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=f"{env_id}/{name}", image=image)]))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def open_tensorboard(root: Path, port: int | None) -> None:
    """Serve `root` on the loopback address until Ctrl-C or SIGTERM.

    :param port: None: the first free one from 6006 on.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a directory; give one that holds runs, such as runs")
    if port is not None and not 0 <= port < 65536:
        raise UsageError(f"port={port} must lie in 0..65535")
    board = program.TensorBoard()
    # Without samples_per_plugin, TensorBoard keeps ten images and a thousand points of each curve.
    options = ["--logdir", str(root), "--host", "127.0.0.1", "--samples_per_plugin", "images=200,scalars=5000"]
    board.configure(argv=["tensorboard", *options, *([] if port is None else ["--port", str(port)])])
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            url = board.launch()
        except program.TensorBoardServerException as error:
            raise UsageError(str(error)) from None
        print(f"TensorBoard of {root}: {url} (Ctrl-C ends it)", flush=True)
        stopped.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
