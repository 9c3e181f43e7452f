"""Pictures as a GIF, an animated PNG or an mp4."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agents.drawing import PALETTE

SUFFIXES = (".gif", ".png", ".apng", ".mp4")

_FRAMES_PER_SECOND = 5
_LAST_FRAME_SECONDS = 1.6


def write_animation(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Write GIF, animated PNG or mp4, as the name of the file says. The last picture stands longer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        _write_mp4(path, pictures)
        return
    durations = [1000 // _FRAMES_PER_SECOND] * (len(pictures) - 1) + [int(1000 * _LAST_FRAME_SECONDS)]
    if path.suffix.lower() == ".gif":
        # One palette for all pictures: with one for each, colours would flicker.
        palette = _common_palette(pictures)
        pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
        # Pillow joins equal pictures and adds their times, which is right for a viewer.
        options: dict[str, Any] = {"disposal": 1, "optimize": False}
        kind = "GIF"
    else:
        options, kind = {}, "PNG"
    pictures[0].save(
        path, format=kind, save_all=True, append_images=list(pictures[1:]), duration=durations, loop=0, **options
    )


def can_encode_mp4() -> bool:
    """Whether the extra 'video' is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def _common_palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """Our own colours exactly, and as many of the environment's as still fit."""
    picked = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, 6).astype(int))]
    sheet = Image.new("RGB", (picked[0].width, picked[0].height * len(picked)))
    for number, picture in enumerate(picked):
        sheet.paste(picture, (0, number * picture.height))
    found = sheet.quantize(colors=256 - len(PALETTE), method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for color in PALETTE for channel in color] + found[: 3 * (256 - len(PALETTE))])
    return palette


def _write_mp4(path: Path, pictures: Sequence[Image.Image]) -> None:
    import imageio_ffmpeg

    width, height = (size - size % 2 for size in pictures[0].size)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=_FRAMES_PER_SECOND,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", "18"],
    )
    writer.send(None)
    still = [pictures[-1]] * round(_LAST_FRAME_SECONDS * _FRAMES_PER_SECOND)
    for picture in [*pictures, *still]:
        writer.send(np.ascontiguousarray(np.asarray(picture.crop((0, 0, width, height)))))
    writer.close()
