"""An episode for the player in the report: pictures as one PNG, matrices as one block of bytes, the rest as JSON."""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from agents.drawing import blocks
from agents.recording import Recording

_MOST_BYTES = 1_200_000
"""Of the matrices of one episode, before they are compressed: longer episodes are cut off."""
_SIDE = 320
"""Most pixels of a picture, along its longer side."""
_COLORS = 64
_COLUMNS = 8


def pack(recording: Recording, memory: str) -> dict[str, Any]:
    """What page.js shows of an episode, or of its beginning.

    Matrices are signed bytes, 127 sign(x) sqrt(|x| / largest): the root brings out what is small beside one large
    entry. What the memory holds and what a step did to it have the same scale, over all heads and steps.
    """
    matrices = _matrices(recording)
    per_step = sum(array[0].size for _, _, array in matrices)
    n_steps = min(len(recording.actions), _MOST_BYTES // max(per_step, 1))
    n_pictures = min(n_steps + 1, len(recording.frames))
    fast = recording.fast_weights
    largest = max((float(np.abs(array).max()) for _, _, array in matrices), default=0.0)
    parts = [(group, title, _bytes(array[:n_steps], largest)) for group, title, array in matrices]
    if recording.retrieval is not None:
        retrieval = recording.retrieval[:n_steps, None, :n_steps]
        parts.append(("retrieval", "", _bytes(retrieval, float(retrieval.max()))))
    return {
        "memory": memory,
        "seed": recording.seed,
        "steps": n_steps,
        "cut": n_steps < len(recording.actions),
        "outcome": recording.outcome,
        "actions": recording.action_texts[:n_steps],
        "choices": recording.action_names,
        "probabilities": _rounded(recording.action_probabilities, n_steps),
        "values": _rounded(recording.values, n_steps),
        "rewards": _rounded(recording.rewards, n_steps),
        # all that attention holds moves up by one in every step
        "changes": None if recording.attention is not None else _rounded(recording.changes, n_steps),
        "beta": None if fast is None else _rounded(fast.beta, n_steps),
        "surprise": None if fast is None else _rounded(fast.surprise, n_steps),
        "frames": _sheet(recording.frames[:n_pictures]),
        "views": None if recording.views is None else _sheet(recording.views[:n_pictures]),
        "parts": [{"group": group, "title": title, "shape": array.shape[1:]} for group, title, array in parts],
        "bytes": base64.b64encode(zlib.compress(b"".join(array.tobytes() for _, _, array in parts), 9)).decode(),
    }


def _matrices(recording: Recording) -> list[tuple[str, str, np.ndarray]]:
    """Group, title and `[T, rows, columns]` of all that the memory holds, and of what each step did to it.

    Of attention, of what each step looked at.
    """
    fast = recording.fast_weights
    if fast is not None:
        return [
            (group, f"head {head + 1}{', row i: i steps ago' if head < fast.delay_heads else ''}", array[:, head])
            for group, array in (("state", fast.matrices), ("written", fast.written))
            for head in range(array.shape[1])
        ]
    if recording.attention is not None:
        return [("attended", "a row for each head, a column for each step", recording.attention.weights)]
    folded = [[blocks(step) for step in leaf] for leaf in recording.states]
    leaves = [np.stack(block) for steps in folded for block in zip(*steps, strict=True)]
    changes = [np.diff(leaf, axis=0, prepend=np.zeros_like(leaf[:1])) for leaf in leaves]
    return [
        (group, f"part {number + 1}" if len(leaves) > 1 else "", leaf)
        for group, arrays in (("state", leaves), ("changed", changes))
        for number, leaf in enumerate(arrays)
    ]


def _bytes(values: np.ndarray, scale: float) -> np.ndarray:
    shade = np.sign(values) * np.sqrt(np.abs(values) / (scale or 1.0))
    return np.rint(127 * np.clip(np.nan_to_num(shade), -1, 1)).astype(np.int8)


def _sheet(pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """All pictures on one, row by row."""
    first = Image.fromarray(pictures[0])
    ratio = min(1.0, _SIDE / max(first.size))
    width, height = (max(1, round(side * ratio)) for side in first.size)
    columns = min(_COLUMNS, len(pictures))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for number, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % columns * width, number // columns * height))
    file = io.BytesIO()
    sheet.quantize(_COLORS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"width": width, "height": height, "columns": columns, "count": len(pictures), "source": source}


def _rounded(values: np.ndarray | None, n_steps: int) -> list[Any] | None:
    """Three decimals are enough to look at."""
    if values is None:
        return None
    kept = np.round(np.asarray(values[:n_steps], np.float64), 3).astype(object)
    kept[kept != kept] = None
    return kept.tolist()
