"""What the pictures of agents are drawn with: one set of colours, fonts, and matrices as sharp squares.

A diverging map, white at zero, shows signed numbers; a sequential one shows amounts. Both take few levels, so that a
GIF of 256 colours has room for the environment.
"""

import functools
from typing import Any

import numpy as np
from PIL import Image, ImageFont

Color = tuple[int, int, int]

PAGE, INK, FAINT, LINE = (250, 250, 248), (32, 36, 44), (122, 128, 138), (206, 210, 216)
ACCENT, SECOND, GOOD, BAD = (214, 96, 77), (67, 147, 195), (34, 120, 70), (178, 24, 43)

_BLUE_TO_RED = """053061 2166ac 4393c3 92c5de d1e5f0 ffffff fddbc7 f4a582 d6604d b2182b 67001f"""  # ColorBrewer RdBu
_LIGHT_TO_DARK = """ffffff fee8c8 fdbb84 ef6548 b30000 4a0000"""  # ColorBrewer OrRd, white at zero


def _ramp(anchors: str, levels: int) -> np.ndarray:
    """uint8 `[levels, 3]`, evenly along the anchors."""
    colors = np.array([list(bytes.fromhex(anchor)) for anchor in anchors.split()], np.float64)
    position = np.linspace(0, len(colors) - 1, levels)
    return np.stack([np.interp(position, np.arange(len(colors)), c) for c in colors.T], axis=-1).astype(np.uint8)


_SIGNED = _ramp(_BLUE_TO_RED, 41)
_AMOUNT = _ramp(_LIGHT_TO_DARK, 24)

PALETTE: list[Color] = [
    *(PAGE, INK, FAINT, LINE, ACCENT, SECOND, GOOD, BAD),
    *(tuple(color) for ramp in (_SIGNED, _AMOUNT) for color in ramp.tolist()),
]
"""All colours that are ours."""


def signed_colors(values: np.ndarray, scale: float) -> np.ndarray:
    """Blue for negative, white for zero, red for positive, uint8 `[..., 3]`; `scale` is full colour."""
    # The root brings out what is small beside one large entry, and keeps sign and order.
    shade = np.sign(values) * np.sqrt(np.abs(values) / scale)
    return _SIGNED[np.rint((np.clip(shade, -1, 1) + 1) / 2 * (len(_SIGNED) - 1)).astype(int)]


def amount_colors(values: np.ndarray, scale: float) -> np.ndarray:
    """White for zero, dark red for `scale`, uint8 `[..., 3]`."""
    return _AMOUNT[np.rint(np.clip(values / scale, 0, 1) * (len(_AMOUNT) - 1)).astype(int)]


def fit(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    """Scaled to fit; enlarged by whole numbers so that each entry of a matrix stays a sharp square."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    ratio = min(width / image.width, height / image.height)
    if ratio >= 1:
        return image.resize((image.width * int(ratio), image.height * int(ratio)), Image.Resampling.NEAREST)
    size = (max(1, int(image.width * ratio)), max(1, int(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS)


def blocks(leaf: np.ndarray) -> list[np.ndarray]:
    """Matrices that are about square: those of a leaf `[..., K, V]` one by one, a vector folded."""
    if leaf.size == 0:
        return []
    if leaf.ndim >= 2:
        return [_squared(matrix) for matrix in leaf.reshape(-1, *leaf.shape[-2:])]
    size = leaf.size
    rows = max(divisor for divisor in range(1, int(size**0.5) + 1) if size % divisor == 0)
    if rows * rows * 8 < size:  # a prime, or nearly: pad instead
        rows = int(size**0.5)
        leaf = np.pad(leaf.reshape(-1), (0, -size % rows))
    return [leaf.reshape(rows, -1)]


def _squared(matrix: np.ndarray) -> np.ndarray:
    """A tall matrix in pieces side by side."""
    rows, columns = matrix.shape
    pieces = max(n for n in range(1, max(round((rows / columns) ** 0.5), 1) + 1) if rows % n == 0)
    return np.concatenate(np.split(matrix, pieces), axis=1)


@functools.cache
def font(size: int) -> Any:
    """The one typeface, in pixels."""
    return ImageFont.load_default(size)
