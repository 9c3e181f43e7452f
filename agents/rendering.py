"""An episode as a moving picture: the environment, what the agent sees of it, and its memory at work.

render_run(Path("runs/..."), Path("episode.gif"))
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from agents.animation import SUFFIXES, can_encode_mp4, write_animation
from agents.episodes import EVALUATION_SEED
from agents.errors import UsageError
from agents.evaluation import load_run
from agents.panels import Overlay, Scales, Sheet
from agents.recording import Recording, record
from agents.runs import RunPaths
from fwp_rl.registry import memory_name

_MOST_PICTURES = 240  # of a longer recording, evenly spaced ones are drawn


def render_run(
    directory: Path,
    out: Path | None = None,
    *,
    episodes: int = 1,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    overlay: Overlay = "memory",
    block: int = 0,
) -> tuple[Path, str | None]:
    """Play episodes of a run and write them to `out`.

    Returns the file that was written and a note if it is not the one that was asked for (no mp4 encoder).
    """
    out = out or RunPaths(directory).directory / "episode.gif"
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"cannot write {out.name!r}: the name must end in one of {', '.join(SUFFIXES)}")
    if episodes < 1:
        raise UsageError(f"episodes={episodes} must be at least 1")
    note = None
    if out.suffix.lower() == ".mp4" and not can_encode_mp4():
        out = out.with_suffix(".gif")
        note = "mp4 needs the extra 'video' (pip install imageio-ffmpeg); wrote a GIF instead"
    config, policy = load_run(directory)
    if not 0 <= block < policy.n_blocks:
        raise UsageError(f"block={block}: the agent has {policy.n_blocks}, counted from 0")
    recordings = record(policy, config, seeds=range(seed, seed + episodes), deterministic=deterministic, block=block)
    title = f"{config.env_id}   {memory_name(config.memory)}"
    if policy.n_blocks > 1:
        title += f"   block {block}"
    try:
        write_animation(out, list(draw(recordings, title, overlay)))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from None
    return out, note


def draw(recordings: Sequence[Recording], title: str, overlay: Overlay = "memory") -> Iterator[Image.Image]:
    """One picture for each step and each end, or for the ends and evenly spaced steps of a long recording."""
    scales = Scales.of(recordings)
    sheets = [Sheet(recording, title, scales, overlay) for recording in recordings]
    moments = [(sheet, t) for sheet in sheets for t in range(sheet.n_steps + 1)]
    drawn = np.unique(np.linspace(0, len(moments) - 1, min(len(moments), _MOST_PICTURES)).round().astype(int))
    ends = np.cumsum([sheet.n_steps + 1 for sheet in sheets]) - 1
    for index in sorted({*drawn.tolist(), *ends.tolist()}):
        sheet, t = moments[index]
        yield sheet.picture(t)
