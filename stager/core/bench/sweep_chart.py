"""The chart of a sweep: throughput by lanes, a line for each span size, and what warming does by itself as a line across.

Lines are told apart by hue, by the shape of their marks, by their dashes, and by a label at their end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stager.core.bench.svg import SIZE, Canvas, clipped, number, ticks, width_of
from stager.core.units import GIB, KIB, MIB

STYLES = 6
"""So many kinds of lines there are; the seventh looks as the first again, and its label tells."""
_HEIGHT, _HEAD, _FOOT = 230.0, 26.0, 42.0
_APART = SIZE + 3  # from one label to the next
_SAMPLE = 22.0  # a piece of line before a label
_RATES = ((GIB, "GiB/s"), (MIB, "MiB/s"), (KIB, "KiB/s"), (1, "B/s"))
_MARK = 4.2  # half the size of a mark


@dataclass(frozen=True, slots=True)
class Point:
    """One setting: its lanes, its median in bytes/s, the slowest and the fastest run. `says` stands above it; `title` and `link` as of a row."""

    lanes: int
    rate: float
    low: float
    high: float
    title: str
    link: str
    says: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """The settings of one span size, by lanes ascending."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where a number of lanes and a rate lie."""

    left: float
    right: float
    lowest: int
    highest: int
    top: float

    def x(self, lanes: int) -> float:
        if self.highest == self.lowest:
            return (self.left + self.right) / 2
        share = math.log2(lanes / self.lowest) / math.log2(self.highest / self.lowest)
        return self.left + 14 + (self.right - self.left - 28) * share

    def y(self, rate: float) -> float:
        return _HEAD + _HEIGHT * (1 - min(1.0, max(0.0, rate / self.top)))


def by_lanes(lines: Sequence[Line], across: Point | None, *, width: float, label: str) -> str:
    """The chart of `lines`; `across` is a rate that no number of lanes belongs to: that of warming by itself, which chose them."""
    canvas = Canvas(width)
    points = [point for line in lines for point in line.points]
    fastest = max((one.high for one in [*points, *([across] if across else [])]), default=0.0)
    factor, unit = next(((factor, unit) for factor, unit in _RATES if fastest >= factor), _RATES[-1])
    scale = ticks(fastest / factor, 5)
    labels = [line.label for line in lines] + ["adaptive"] * (across is not None)
    left = max(width_of(number(value)) for value in scale) + 26
    right = width - max((width_of(text) for text in labels), default=0) - _SAMPLE - 18
    lanes = sorted({point.lanes for point in points}) or [1]
    plot = _Plot(left, right, lanes[0], lanes[-1], scale[-1] * factor)
    _axes(canvas, plot, scale, factor, f"throughput ({unit})", lanes)
    ends = []
    if across is not None:
        y = plot.y(across.rate)
        canvas.begin(across.title, across.link)
        canvas.line(left, y, right, y, "across")
        canvas.end()
        ends.append((y, right, -1, "adaptive"))
    for at, line in enumerate(lines):
        _line(canvas, plot, line, at % STYLES)
        last = line.points[-1]
        ends.append((plot.y(last.rate), plot.x(last.lanes), at % STYLES, line.label))
    _labels(canvas, right, ends)
    return canvas.svg(_HEAD + _HEIGHT + _FOOT, label, "wide" if width > 500 else "narrow")


def _axes(
    canvas: Canvas, plot: _Plot, scale: Sequence[float], factor: float, words: str, lanes: Sequence[int]
) -> None:
    for value in scale:
        y = plot.y(value * factor)
        canvas.line(plot.left, y, plot.right, y, "grid" if value else "base")
        canvas.text(plot.left - 6, y + SIZE / 3, number(value), anchor="end", css="muted")
    canvas.upright(SIZE, _HEAD + _HEIGHT / 2, clipped(words, _HEIGHT))
    bottom, free = _HEAD + _HEIGHT, 0.0
    for value in lanes:
        x, half = plot.x(value), width_of(str(value)) / 2
        canvas.line(x, bottom, x, bottom + 4, "base")
        if x - half > free:
            canvas.text(x, bottom + 17, str(value), anchor="middle", css="muted")
            free = x + half + 4
    middle = (plot.left + plot.right) / 2
    canvas.text(middle, bottom + 35, "lanes, P (logarithmic)", anchor="middle", css="muted")


def _line(canvas: Canvas, plot: _Plot, line: Line, style: int) -> None:
    places = [(plot.x(point.lanes), plot.y(point.rate)) for point in line.points]
    canvas.path(
        "".join(f"{'L' if at else 'M'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(places)), f"line-{style}"
    )
    for point, (x, y) in zip(line.points, places, strict=True):
        canvas.begin(point.title, point.link)
        if point.high > point.low:
            canvas.line(x, plot.y(point.high), x, plot.y(point.low), "whisker")
        canvas.path(_shape(style, x, y), f"mark-{style}")
        if point.says:
            above = min(y, plot.y(point.high)) - 9
            half = width_of(point.says) / 2
            middle = min(max(x, half), plot.right + 8 - half)
            canvas.text(middle, above, point.says, anchor="middle", css="halo")
        canvas.end()


def _shape(style: int, x: float, y: float) -> str:
    """The outline of a mark: circle, square, triangle, diamond, triangle on its tip, cross."""
    m = _MARK
    if style == 0:
        return f"M{x - m:.1f} {y:.1f}a{m} {m} 0 1 0 {2 * m} 0a{m} {m} 0 1 0 {-2 * m} 0Z"
    corners = {
        1: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        2: ((0, -1.25), (1.15, 0.85), (-1.15, 0.85)),
        3: ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
        4: ((0, 1.25), (1.15, -0.85), (-1.15, -0.85)),
    }.get(style, ((-0.35, -1.2), (0.35, -1.2), (0.35, -0.35), (1.2, -0.35), (1.2, 0.35), (0.35, 0.35),
                  (0.35, 1.2), (-0.35, 1.2), (-0.35, 0.35), (-1.2, 0.35), (-1.2, -0.35), (-0.35, -0.35)))  # fmt: skip
    return "M" + "L".join(f"{x + a * m:.1f} {y + b * m:.1f}" for a, b in corners) + "Z"


def _labels(canvas: Canvas, right: float, ends: Sequence[tuple[float, float, int, str]]) -> None:
    """Labels beside the plot, as near to the ends of their lines as they can be without touching each other."""
    ordered = sorted(ends)
    places = spread_out([end[0] for end in ordered], _APART, _HEAD, _HEAD + _HEIGHT)
    for (y, x, style, words), place in zip(ordered, places, strict=True):
        css = "across" if style < 0 else f"line-{style}"
        if x > right - 2 * _SAMPLE:  # a longer one would look like a line of the chart
            canvas.path(f"M{x + 6:.1f} {y:.1f}L{right + 6:.1f} {place:.1f}", "leader")
        canvas.line(right + 8, place, right + 8 + _SAMPLE, place, css)
        if style >= 0:
            canvas.path(_shape(style, right + 8 + _SAMPLE / 2, place), f"mark-{style}")
        canvas.text(right + 12 + _SAMPLE, place + SIZE / 3, words)


def spread_out(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places near the ascending `wanted`, at least `apart` from each other and within `low` to `high` as far as there is room."""
    places: list[float] = []
    for value in wanted:
        places.append(max(value, places[-1] + apart) if places else max(low, value))
    above = high
    for at in range(len(places) - 1, -1, -1):
        places[at] = min(places[at], above)
        above = places[at] - apart
    return places
