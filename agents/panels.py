"""One picture of a recorded episode: environment, actions, memory, and what is read from it.

    sheet = Sheet(recording, title, scales, overlay="memory")
    sheet.picture(t)

Every memory gets the same panels. Fast weights are drawn head by head, with what the step wrote below; delay heads
come first, and one line says that their rows are times. Of attention its maps are drawn, and activations with how they
changed. Only fast weights and attention have a retrieval map. Colours mean the same in all pictures of a recording.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from agents.drawing import (
    ACCENT,
    BAD,
    FAINT,
    GOOD,
    INK,
    LINE,
    PAGE,
    SECOND,
    Color,
    amount_colors,
    blocks,
    fit,
    font,
    signed_colors,
)
from agents.recording import Recording

Overlay = Literal["memory", "none"]

# Layout, in pixels.
_MARGIN, _COLUMN_GAP, _GAP, _LABEL = 16, 24, 8, 20
_TOP, _BODY, _CAPTION = 48, 444, 64
_LEFT, _MIDDLE, _RIGHT = 280, 416, 224
_CELLS = 240
_STRIP, _STRIP_PITCH = 34, 58
_BAR = 5
_ROW = 18
_THUMBNAIL = 104
_MOST_ACTIONS = 8


@dataclass(frozen=True)
class Scales:
    """What is full colour or full height; one for all pictures, so that they can be compared over time."""

    state: float
    surprise: float
    retrieval: float

    @staticmethod
    def of(recordings: Sequence[Recording]) -> "Scales":
        """The largest of everything, at least a little."""
        parts = [r.fast_weights for r in recordings if r.fast_weights is not None]
        states = [array for part in parts for array in (part.matrices, part.written)]
        states += [r.attention.weights for r in recordings if r.attention is not None]
        states = states or [leaf for r in recordings for leaf in r.states]
        return Scales(
            state=_largest(states),
            surprise=_largest(p.surprise for p in parts),
            retrieval=_largest(r.retrieval for r in recordings if r.retrieval is not None),
        )


class Sheet:
    """The pictures of one recording."""

    def __init__(self, recording: Recording, title: str, scales: Scales, overlay: Overlay = "memory") -> None:
        self.recording = recording
        self.title = title
        self.scales = scales
        self.overlay = overlay
        self.n_steps = len(recording.actions)
        self.returns = np.concatenate([[0.0], np.cumsum(recording.rewards)])
        self.changes = recording.changes
        self.width = 2 * _MARGIN + _LEFT
        if overlay == "memory":
            self.width += _COLUMN_GAP + _MIDDLE + (0 if recording.retrieval is None else _COLUMN_GAP + _RIGHT)
        else:
            self.width += _LEFT

    def picture(self, t: int) -> Image.Image:
        """The moment before action t, with the memory after it has read; t = T is the end."""
        image = Image.new("RGB", (self.width, _TOP + _BODY + _CAPTION), PAGE)
        page = _Page(image, min(t, self.n_steps - 1), ImageDraw.Draw(image))
        page.text(_MARGIN, 14, self.title, size=17, fill=INK)
        page.text(self.width - _MARGIN, 17, f"seed {self.recording.seed}", anchor="ra")
        if self.overlay == "memory":
            self._draw_environment(page, t, _LEFT, _BODY - self._draw_actions(page, t))
            x = _MARGIN + _LEFT + _COLUMN_GAP
            self._draw_cells(page, x, _TOP)
            self._draw_strips(page, t, x, _TOP + _CELLS + 2 * _LABEL)
            if self.recording.retrieval is not None:
                self._draw_retrieval(page, self.recording.retrieval, x + _MIDDLE + _COLUMN_GAP, _TOP)
        else:
            self._draw_environment(page, t, 2 * _LEFT, _BODY)
        self._draw_caption(page, t)
        return image

    def _draw_environment(self, page: "_Page", t: int, width: int, height: int) -> None:
        page.text(_MARGIN, _TOP, "environment")
        views = self.recording.views
        least = 0 if views is None else 140 + _GAP + _LABEL  # room for the view
        frame = fit(self.recording.frames[t], width, height - _LABEL - least)
        page.image.paste(frame, (_MARGIN, _TOP + _LABEL))
        if views is None:
            return
        y = _TOP + _LABEL + frame.height + _GAP
        side = min(width, _TOP + height - y - _LABEL)
        page.text(_MARGIN, y, "what the agent sees")
        page.image.paste(fit(views[t], side, side), (_MARGIN, y + _LABEL))

    def _draw_actions(self, page: "_Page", t: int) -> int:
        """Bars of probability at the foot of the left column; returns their height."""
        recording = self.recording
        if recording.action_names is None or recording.action_probabilities is None:
            return 0
        rows = list(enumerate(recording.action_names))[:_MOST_ACTIONS]
        height = _LABEL + _ROW * len(rows)
        y = _TOP + _BODY - height
        page.text(_MARGIN, y, "probability of the actions")
        for row, name in rows:
            top = y + _LABEL + row * _ROW
            probability = float(recording.action_probabilities[page.now, row]) if t < self.n_steps else 0.0
            chosen = t < self.n_steps and name == recording.action_texts[t]
            page.text(_MARGIN, top, name, fill=INK if chosen else FAINT)
            page.bar(_MARGIN + 70, top + 3, _LEFT - 70 - 44, 9, probability, ACCENT if chosen else FAINT)
            if t < self.n_steps:
                page.text(_MARGIN + _LEFT, top, f"{probability:.2f}", anchor="ra", fill=INK if chosen else FAINT)
        return height + _GAP

    def _draw_cells(self, page: "_Page", x: int, y: int) -> None:
        """Every matrix of the memory with its change below, or every attention map."""
        weights = self.recording.fast_weights
        stacks = self._stacks(page.now)
        if not stacks:
            page.text(x, y, "memory")
            page.pen.rectangle((x, y + _LABEL, x + _MIDDLE, y + _LABEL + _CELLS), outline=LINE)
            page.text(x + 14, y + _LABEL + 12, "this agent has no memory", size=13)
            return
        colors = signed_colors
        if self.recording.attention is not None:
            colors = amount_colors
            page.text(x, y, "attention map of each head")
        else:
            above, below = (
                ("fast weights", "written in this step") if weights else ("activations", "change in this step")
            )
            page.text(x, y, f"{above}; below: {below}")
            page.scale(x + _MIDDLE, y, self.scales.state)
        y += _LABEL
        bars = 2 * (_BAR + 2) + 2 if weights else 0
        columns, width, height = _grid(stacks, bars)
        for number, stack in enumerate(stacks):
            left = x + number % columns * (width + _GAP)
            top = y + number // columns * (len(stack) * height + bars + 2 * _GAP)
            for matrix in stack:
                image = fit(colors(matrix, self.scales.state), width - 2, height - 2)
                page.framed(image, left, top)
                top += image.height + 4
            if weights:
                page.bar(left, top, image.width + 2, _BAR, float(weights.beta[page.now, number]), ACCENT)
                surprise = float(weights.surprise[page.now, number]) / self.scales.surprise
                page.bar(left, top + _BAR + 2, image.width + 2, _BAR, surprise, SECOND)
        if weights:
            page.text(x, y + _CELLS, "bars: write strength", fill=ACCENT)
            page.text(x + 126, y + _CELLS, "surprise", fill=SECOND)
            if weights.delay_heads:
                heads = "head 1" if weights.delay_heads == 1 else f"heads 1 to {weights.delay_heads}"
                page.text(x + _MIDDLE, y + _CELLS, f"row i of {heads}: i steps ago", anchor="ra")

    def _stacks(self, now: int) -> list[tuple[np.ndarray, ...]]:
        """Matrices, and what the step did to each; attention maps so far."""
        weights, attention = self.recording.fast_weights, self.recording.attention
        if attention is not None:
            maps = attention.weights.swapaxes(0, 1).copy()
            maps[:, now + 1 :] = 0.0
            return [(map_of_head,) for map_of_head in maps]
        if weights is not None:
            parts = [(weights.matrices[now], weights.written[now])]
        else:
            parts = [(leaf[now], leaf[now] - (leaf[now - 1] if now else 0.0)) for leaf in self.recording.states]
        return [pair for part, change in parts for pair in zip(blocks(part), blocks(change), strict=True)]

    def _draw_strips(self, page: "_Page", t: int, x: int, y: int) -> None:
        """Numbers over time, with the present one marked."""
        weights = self.recording.fast_weights
        if weights is not None:
            strips = [("write strength", weights.beta.mean(1), ACCENT), ("surprise", weights.surprise.mean(1), SECOND)]
        elif self.recording.attention is not None:
            strips = [("steps looked back", self.recording.attention.steps_back.mean(1), ACCENT)]
        else:
            strips = [("change of the memory", self.changes, ACCENT)]
        for number, (name, values, color) in enumerate([*strips, ("value", self.recording.values, INK)]):
            top = y + number * _STRIP_PITCH
            of_heads = self.recording.retrieval is not None and name != "value"
            page.text(x, top, name + (", mean of the heads" if of_heads else ""))
            if t < self.n_steps:
                page.text(x + _MIDDLE, top, f"{values[page.now]:.2f}", anchor="ra", fill=color)
            self._draw_strip(page, values, color, x, top + _LABEL)

    def _draw_strip(self, page: "_Page", values: np.ndarray, color: Color, x: int, y: int) -> None:
        high, low = max(float(values.max()), 0.0), min(float(values.min()), 0.0)
        unit = (_STRIP - 2) / ((high - low) or 1.0)
        zero = y + round(high * unit)
        pitch = _MIDDLE / max(len(values), 12)
        for step, value in enumerate(values):
            left = x + round(step * pitch)
            right = max(left, x + round((step + 1) * pitch) - (2 if pitch >= 5 else 1))
            top, bottom = sorted((zero, zero - round(float(value) * unit)))
            page.pen.rectangle(
                (left, top, right, bottom), fill=color if step == page.now else FAINT if step < page.now else LINE
            )
        page.pen.line((x, zero, x + _MIDDLE, zero), fill=LINE)

    def _draw_retrieval(self, page: "_Page", retrieval: np.ndarray, x: int, y: int) -> None:
        """The retrieval map so far, and what was seen when most of the present read was written."""
        retrieval = retrieval.copy()
        row = retrieval[page.now].copy()
        retrieval[page.now + 1 :] = 0.0
        page.text(x, y, "retrieval map")
        image = fit(amount_colors(retrieval, self.scales.retrieval), _RIGHT - 2, _RIGHT - 2)
        page.framed(image, x, y + _LABEL)
        pitch = image.height / len(retrieval)
        top = y + _LABEL + 1 + round(page.now * pitch)
        page.pen.rectangle((x - 1, top - 1, x + image.width + 2, top + max(round(pitch), 1)), outline=INK)
        page.text(x, y + _LABEL + image.height + 4, "row: step that reads, column: that wrote")
        y += _LABEL + _RIGHT + 24
        past = row[: page.now]
        if not past.any():
            return
        page.text(x, y, f"what step {page.now} reads was mostly written at")
        pictures = self.recording.views or self.recording.frames
        for slot, step in enumerate(np.argsort(past)[::-1][:2].tolist()):
            left, top = x + slot * (_THUMBNAIL + 16), y + _LABEL
            picture = fit(pictures[step], _THUMBNAIL, _THUMBNAIL)
            page.framed(picture, left, top)
            page.text(left, top + picture.height + 6, f"step {step}", fill=INK)
            page.bar(left, top + picture.height + 24, _THUMBNAIL, _BAR, float(past[step] / row.max()), BAD)

    def _draw_caption(self, page: "_Page", t: int) -> None:
        recording = self.recording
        x, y, width = _MARGIN, _TOP + _BODY + _CAPTION - 44, self.width - 2 * _MARGIN
        page.pen.line((x, y - 8, x + width, y - 8), fill=LINE)
        playing = t < self.n_steps
        facts = [
            (0, "step", str(t)),
            (80, "action", recording.action_texts[t] if playing else ""),
            (300, "return", f"{self.returns[t]:.2f}"),
            (380, "value", f"{recording.values[t]:+.2f}" if playing else ""),
        ]
        for slot, name, value in facts:
            if value:
                page.text(x + slot, y, name)
                page.text(x + slot, y + 15, value, size=17, fill=INK)
        if not playing and recording.outcome:
            color = {"success": GOOD, "failure": BAD}.get(recording.outcome, INK)
            page.text(x + width, y + 8, recording.outcome, size=22, fill=color, anchor="ra")


def still_pictures(recording: Recording) -> dict[str, np.ndarray]:
    """What the memory holds at the end of an episode, and the retrieval map of all of it, uint8 `[y, x, 3]`.

    Of attention, the maps of the heads instead of what it holds.
    """
    scales, weights, attention = Scales.of([recording]), recording.fast_weights, recording.attention
    leaves = [weights.matrices] if weights is not None else recording.states
    drawn = [signed_colors(matrix, scales.state) for leaf in leaves for matrix in blocks(leaf[-1])]
    if attention is not None:
        drawn = [amount_colors(weights_of_head, scales.state) for weights_of_head in attention.weights.swapaxes(0, 1)]
    pictures = {}
    if drawn:
        pictures["state"] = _side_by_side(drawn)
    if recording.retrieval is not None:
        pictures["retrieval_map"] = _enlarged(amount_colors(recording.retrieval, scales.retrieval))
    return pictures


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """At one height each, with lines between them."""
    large = [_enlarged(picture) for picture in pictures]
    height = max(len(picture) for picture in large)
    framed = [np.pad(x, ((0, height - len(x)), (0, 0), (0, 0)), constant_values=255) for x in large]
    line = np.full((height, 4, 3), LINE, np.uint8)
    return np.concatenate([part for picture in framed for part in (picture, line)][:-1], axis=1)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """Each entry a square, the whole of about `_RIGHT` pixels."""
    factor = max(1, _RIGHT // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


@dataclass(frozen=True)
class _Page:
    """A picture that is being drawn, of the step `now`."""

    image: Image.Image
    now: int
    pen: ImageDraw.ImageDraw

    def text(self, x: int, y: int, text: str, *, size: int = 12, fill: Color = FAINT, anchor: str = "la") -> None:
        self.pen.text((x, y), text, font=font(size), fill=fill, anchor=anchor)

    def framed(self, image: Image.Image, x: int, y: int) -> None:
        self.pen.rectangle((x, y, x + image.width + 1, y + image.height + 1), outline=LINE)
        self.image.paste(image, (x + 1, y + 1))

    def bar(self, x: int, y: int, width: int, height: int, part: float, color: Color) -> None:
        """A bar that is full at 1."""
        self.pen.rectangle((x, y, x + width - 1, y + height - 1), fill=LINE)
        length = round(width * min(max(part, 0.0), 1.0))
        if length:
            self.pen.rectangle((x, y, x + length - 1, y + height - 1), fill=color)

    def scale(self, right: int, y: int, scale: float) -> None:
        """The colours of signed numbers, up to the right edge."""
        ramp = signed_colors(np.linspace(-scale, scale, 64)[None].repeat(10, axis=0), scale)
        self.text(right, y, f"{scale:+.2g}", anchor="ra")
        self.framed(Image.fromarray(ramp), right - 102, y + 2)
        self.text(right - 108, y, f"{-scale:.2g}", anchor="ra")


def _grid(stacks: Sequence[tuple[np.ndarray, ...]], bars: int) -> tuple[int, int, int]:
    """The number of columns that lets the matrices be largest, and their width and height."""
    matrices = [stack[0] for stack in stacks]
    ratio = float(np.mean([matrix.shape[1] / matrix.shape[0] for matrix in matrices]))

    def sizes(columns: int) -> tuple[int, int]:
        rows = -(-len(stacks) // columns)
        width = (_MIDDLE - _GAP * (columns - 1)) // columns
        return width, ((_CELLS - 2 * _GAP * (rows - 1)) // rows - bars - _GAP) // len(stacks[0])

    columns = max(range(1, len(stacks) + 1), key=lambda n: min(sizes(n)[0] / ratio, sizes(n)[1]))
    width, height = sizes(columns)
    # as large as the sharp squares will be
    most_columns, most_rows = max(m.shape[1] for m in matrices), max(m.shape[0] for m in matrices)
    factor = min(width / most_columns, height / most_rows)
    if factor >= 1:
        width = int(factor) * most_columns + 2
        height = int(factor) * most_rows + 2
    return columns, width, height


def _largest(arrays: Iterable[np.ndarray]) -> float:
    return max((float(np.abs(array).max()) for array in arrays if array.size), default=0.0) or 1.0
