"""Shapes on a NumPy canvas, drawn at three times the size and averaged, so that edges are smooth."""

import colorsys

import numpy as np

Color = tuple[int, int, int]

PAPER: Color = (250, 249, 246)
INK: Color = (55, 60, 72)
FLOOR: Color = (226, 228, 234)
FAINT: Color = (203, 207, 216)
AGENT: Color = (214, 64, 69)
GOOD: Color = (52, 160, 100)
BAD: Color = (205, 70, 70)
CUE: Color = (53, 106, 196)

_SAMPLES = 3


class Canvas:
    """Coordinates are pixels of the finished picture; (0, 0) is its upper left corner."""

    def __init__(self, width: int, height: int, background: Color = PAPER) -> None:
        self._pixels = np.empty((height * _SAMPLES, width * _SAMPLES, 3), np.uint8)
        self._pixels[:] = background

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, color: Color, *, radius: float = 0
    ) -> None:
        """A box, with rounded corners if a radius is given."""
        patch, x, y = self._patch(left, top, right, bottom)
        across = np.maximum(np.maximum(left + radius - x, x - (right - radius)), 0)
        down = np.maximum(np.maximum(top + radius - y, y - (bottom - radius)), 0)
        patch[across**2 + down**2 <= max(radius, 1e-9) ** 2] = color

    def disc(self, x_center: float, y_center: float, radius: float, color: Color) -> None:
        """A filled circle."""
        patch, x, y = self._patch(x_center - radius, y_center - radius, x_center + radius, y_center + radius)
        patch[(x - x_center) ** 2 + (y - y_center) ** 2 <= radius**2] = color

    def polygon(self, corners: list[tuple[float, float]], color: Color) -> None:
        """A convex polygon, corners in clockwise order on the screen."""
        columns, rows = zip(*corners, strict=True)
        patch, x, y = self._patch(min(columns), min(rows), max(columns), max(rows))
        inside = np.ones(patch.shape[:2], bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
        patch[inside] = color

    def arrow(self, x: float, y: float, size: float, direction: tuple[int, int], color: Color) -> None:
        """An arrow of length `size` centred on (x, y), along one of the axes."""
        along_x, along_y = direction
        side_x, side_y = -along_y, along_x

        def at(along: float, aside: float) -> tuple[float, float]:
            return x + size * (along * along_x + aside * side_x), y + size * (along * along_y + aside * side_y)

        self.polygon([at(-0.5, -0.12), at(0.05, -0.12), at(0.05, 0.12), at(-0.5, 0.12)], color)
        self.polygon([at(0.0, -0.36), at(0.5, 0.0), at(0.0, 0.36)], color)

    def picture(self) -> np.ndarray:
        """The finished picture, uint8[height, width, 3]."""
        height, width, _ = self._pixels.shape
        samples = self._pixels.reshape(height // _SAMPLES, _SAMPLES, width // _SAMPLES, _SAMPLES, 3)
        return samples.mean(axis=(1, 3)).round().astype(np.uint8)

    def _patch(self, left: float, top: float, right: float, bottom: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The part of the canvas around a box, and the coordinates of its samples."""
        height, width, _ = self._pixels.shape
        columns = slice(max(0, int(left * _SAMPLES)), min(width, int(right * _SAMPLES) + 1))
        rows = slice(max(0, int(top * _SAMPLES)), min(height, int(bottom * _SAMPLES) + 1))
        x = (np.arange(columns.start, columns.stop) + 0.5) / _SAMPLES
        y = (np.arange(rows.start, rows.stop) + 0.5) / _SAMPLES
        return self._pixels[rows, columns], x[None, :], y[:, None]


def card(canvas: Canvas, left: float, top: float, size: float, symbol: int, count: int, *, faint: bool = False) -> None:
    """A card with `symbol` + 1 dots, in the color of the `symbol`-th of `count`; faint if the agent does not see it."""
    face, dot = (FLOOR, FAINT) if faint else (hue(symbol, count), PAPER)
    canvas.rectangle(left, top, left + size, top + size, face, radius=size / 8)
    dots = pips(symbol + 1)
    radius = size * (0.1 if len(dots) <= 6 else 0.055)
    for x, y in dots:
        canvas.disc(left + size / 2 + x * size / 4, top + size / 2 + y * size / 4, radius, dot)


def rod(canvas: Canvas, x: float, y: float, angle: float, length: float, width: float, color: Color) -> None:
    """A bar from (x, y), upwards and then `angle` to the right, with a round end."""
    along_x, along_y = np.sin(angle), -np.cos(angle)
    end_x, end_y = x + length * along_x, y + length * along_y
    side_x, side_y = -along_y * width / 2, along_x * width / 2
    corners = [(x - side_x, y - side_y), (end_x - side_x, end_y - side_y), (end_x + side_x, end_y + side_y)]
    canvas.polygon([*corners, (x + side_x, y + side_y)], color)
    canvas.disc(end_x, end_y, width / 2, color)


def frame(canvas: Canvas, left: float, top: float, width: float, height: float, color: Color) -> None:
    """A colored border, to be drawn before what it frames."""
    canvas.rectangle(left - 4, top - 4, left + width + 4, top + height + 4, color, radius=10)


def progress(canvas: Canvas, left: float, top: float, width: float, share: float) -> None:
    """A thin bar that says how much of the episode is over."""
    canvas.rectangle(left, top, left + width, top + 4, FLOOR, radius=2)
    canvas.rectangle(left, top, left + max(4.0, width * share), top + 4, INK, radius=2)


def hue(index: int, count: int) -> Color:
    """The `index`-th of `count` colors, evenly round the wheel."""
    red, green, blue = colorsys.hsv_to_rgb(index / count, 0.62, 0.82)
    return round(red * 255), round(green * 255), round(blue * 255)


def pips(count: int) -> list[tuple[float, float]]:
    """Places of `count` dots on a card as on a die, between -1 and 1; rows of three beyond six."""
    layouts = {
        1: [(0, 0)],
        2: [(-1, -1), (1, 1)],
        3: [(-1, -1), (0, 0), (1, 1)],
        4: [(-1, -1), (1, -1), (-1, 1), (1, 1)],
        5: [(-1, -1), (1, -1), (0, 0), (-1, 1), (1, 1)],
        6: [(-1, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (1, 1)],
    }
    if count in layouts:
        return [(float(x), float(y)) for x, y in layouts[count]]
    n_rows = -(-count // 3)
    return [(index % 3 - 1.0, 2.0 * (index // 3) / (n_rows - 1) - 1.0) for index in range(count)]
