"""Geometry of the figures in the report: data in, coordinates of an SVG out. How they look is the page's affair."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agents.curves import Band
from agents.statistics import Estimate


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low..high` to the pixels `start..end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """Pixels and labels of round values, roughly so many."""
        return [(self(value), number(value)) for value in _round_values(self.low, self.high, about)]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines with bands on common axes."""

    width: int
    height: int
    x: Axis
    y: Axis
    lines: list["Line"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One memory: SVG paths of its seeds, its mean and its band."""

    memory: str
    color: str
    seeds: list[str]
    mean: str
    band: str


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate as a dot on its interval, with the seeds behind it; pixels."""

    value: float
    low: float
    high: float
    seeds: list[float]


def band_chart(bands: Mapping[str, Band], colors: Mapping[str, str]) -> Chart:
    """Thin lines for seeds, a thick one for their mean, and the band of the mean, for each memory."""
    width, height = 980, 320
    values = np.concatenate([part.ravel() for band in bands.values() for part in (band.seeds, band.low, band.high)])
    steps = next(iter(bands.values())).steps
    x = Axis(min(0.0, float(steps[0])), float(steps[-1]), 44, width - 10)
    y = Axis(*spread([*values, 0.0], 0.04), height - 34, 10)

    def path(values: np.ndarray, backwards: bool = False) -> str:
        points = [f"{x(step)} {y(value)}" for step, value in zip(steps, values, strict=True)]
        return "L".join(points[::-1] if backwards else points)

    lines = [
        Line(
            memory=name,
            color=colors[name],
            seeds=["M" + path(seed) for seed in band.seeds],
            mean="M" + path(band.mean),
            band=f"M{path(band.low)}L{path(band.high, backwards=True)}Z",
        )
        for name, band in bands.items()
    ]
    return Chart(width=width, height=height, x=x, y=y, lines=lines)


def interval(estimate: Estimate, seeds: Sequence[float], axis: Axis) -> Interval:
    """On an axis that all rows of a table share."""
    return Interval(
        value=axis(estimate.value),
        low=axis(estimate.low),
        high=axis(estimate.high),
        seeds=[axis(seed) for seed in seeds],
    )


def spread(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The least and the largest, with a margin of that fraction on both sides; never empty."""
    low, high = float(min(values)), float(max(values))
    room = (high - low or abs(high) or 1.0) * margin
    return low - room, high + room


def number(value: float) -> str:
    """Short, for axes and tables: 0.25, 20k, 1.5M."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def short(value: float) -> str:
    """For tables of results: at most three decimals, or four digits of a large number."""
    if abs(value) >= 10:
        return f"{value:.4g}"
    return f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")  # + 0.0: no minus before a zero


def _round_values(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]
