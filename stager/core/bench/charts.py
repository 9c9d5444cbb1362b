"""The charts of a benchmark's report: bars of loading times, strips of every loader's time, a warm run over time.

Each is a string of SVG for one width. Two kinds of load are told apart by hue (Okabe and Ito's, which every kind of colour blindness
leaves apart), by a hatching, and by words; every mark has a title with its figures and leads to its JSON line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

from stager.core.bench.svg import SIZE, Canvas, clipped, number, seconds_text, ticks, width_of
from stager.core.units import GIB, KIB, MIB

_HEAD = 26.0  # the legend
_FOOT = 38.0  # numbers and name of the axis below
_PITCH = 17.0  # from one row to the next
_GAP = 7.0  # before the first row of a group
_BAR = 12.0  # the height of a bar or box
_PANEL = {"rate": 150.0, "lanes": 70.0}
_RATES = ((GIB, "GiB/s"), (MIB, "MiB/s"), (KIB, "KiB/s"), (1, "B/s"))


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a chart: `values` in seconds, all that were measured; none: `says` says why, in place of a mark.

    `label` stands on the left, `says` on the right of the mark; `first` rows begin a group. `title` has the figures in words, `link` names an element
    of the page. A `head` is a line of words, its `label`, above the rows that follow.
    """

    label: str
    values: tuple[float, ...]
    says: str
    title: str
    second: bool = False
    link: str = ""
    first: bool = True
    head: bool = False


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the rows lie: from `left` to `left` + `span` for 0 to `top` seconds."""

    left: float
    span: float
    top: float

    def at(self, value: float) -> float:
        return self.left + self.span * min(1.0, value / self.top)


def bars(
    rows: Sequence[Row], *, width: float, name: str, axis: str, label: str, like: Sequence[Row] = ()
) -> str:
    """A bar for each row's median, with whiskers to its least and greatest value; laid out so that the rows of `like` fit as well."""

    def mark(canvas: Canvas, frame: _Frame, row: Row, y: float) -> float:
        end = frame.at(median(row.values)) - frame.left
        css = "second-bar" if row.second else "cold-bar"
        canvas.box(frame.left, y, end, _BAR, css, f"hatch-{name}" if row.second else "")
        low, high = frame.at(min(row.values)), frame.at(max(row.values))
        if high > low:
            middle = y + _BAR / 2
            ends = ((x, middle - 3, x, middle + 3) for x in (low, high))
            strokes = ((low, middle, high, middle), *ends)
            for css in ("whisker-edge", "whisker"):  # the edge keeps it apart from the bar that it lies on
                for stroke in strokes:
                    canvas.line(*stroke, css)
        return max(high, frame.left + end)

    return _rows(rows, mark, width=width, name=name, axis=axis, label=label, like=like, boxes=True)


def strips(rows: Sequence[Row], *, width: float, name: str, axis: str, label: str) -> str:
    """A dot for each value of each row, over a box from the first to the third quartile (of four values or more); the median is a line."""

    def mark(canvas: Canvas, frame: _Frame, row: Row, y: float) -> float:
        values = sorted(row.values)
        if len(values) > 3:
            first, _, third = (frame.at(value) for value in quantiles(values, n=4, method="inclusive"))
            canvas.box(first, y, third - first, _BAR, "quartiles")
        spread = [(frame.at(value), y + 3 + (index * 7 % 4) * 2) for index, value in enumerate(values)]
        canvas.dots(spread, "second-dots" if row.second else "cold-dots")
        middle = frame.at(median(values))
        canvas.line(middle, y - 1, middle, y + _BAR + 1, "median")
        return frame.at(values[-1])

    return _rows(rows, mark, width=width, name=name, axis=axis, label=label, like=(), boxes=False)


_Mark = Callable[[Canvas, _Frame, Row, float], float]
_Panel = tuple[float, float, list[float], str]  # top, height, scale, name


def _rows(
    rows: Sequence[Row],
    mark: _Mark,
    *,
    width: float,
    name: str,
    axis: str,
    label: str,
    like: Sequence[Row],
    boxes: bool,
) -> str:
    """Rows with their labels, marks and sayings, over an axis of seconds."""
    canvas = Canvas(width)
    if any(row.second for row in rows) and boxes:
        canvas.hatch(f"hatch-{name}", "second-hatch")
    together = [*rows, *like]
    marked = [row for row in together if row.values]
    longest = max((max(row.values) for row in marked), default=1.0)
    scale = ticks(longest, 6 if width > 500 else 3)
    left = min(width * 0.42, max((width_of(row.label) for row in together if not row.head), default=0) + 12)
    right = max((width_of(row.says) for row in marked), default=0) + 12
    frame = _Frame(left, max(40.0, width - left - right), scale[-1])
    places, bottom = _places(rows, _HEAD)
    _axis(canvas, frame, scale, bottom, axis)
    _legend(canvas, rows, f"hatch-{name}", boxes=boxes)
    for row, y in zip(rows, places, strict=True):
        base = y + _BAR - 2
        if row.head:
            canvas.text(0, base, clipped(row.label, width), css="head halo")
            continue
        canvas.text(left - 8, base, clipped(row.label, left - 8), anchor="end")
        canvas.begin(row.title, row.link)
        if row.values:
            canvas.text(mark(canvas, frame, row, y) + 6, base, row.says, css="says")
        else:
            canvas.text(left + 4, base, clipped(row.says, width - left - 4), css="muted halo")
        canvas.end()
    return canvas.svg(bottom + _FOOT, label, "wide" if width > 500 else "narrow")


def _places(rows: Sequence[Row], y: float) -> tuple[list[float], float]:
    """The top of each row, and the end of the last."""
    places = []
    for row in rows:
        y += _GAP if row.first else 0
        places.append(y)
        y += _PITCH
    return places, y + 2


def _axis(canvas: Canvas, frame: _Frame, scale: list[float], bottom: float, axis: str) -> None:
    factor, unit = (1, "s") if frame.top >= 1 else (1000, "ms")
    for value in scale:
        x = frame.at(value)
        canvas.line(x, _HEAD, x, bottom, "grid" if value else "base")
        canvas.text(x, bottom + 14, number(value * factor), anchor="middle", css="muted")
    words = f"{axis} ({unit})"
    half = width_of(words) / 2
    middle = min(max(frame.left + frame.span / 2, half), canvas.width - half)
    canvas.text(middle, bottom + 31, clipped(words, canvas.width), anchor="middle", css="muted")


def _legend(canvas: Canvas, rows: Sequence[Row], hatch: str, *, boxes: bool) -> None:
    x = 0.0
    for second, words in ((False, "cold"), (True, "second load")):
        if not any(row.second == second for row in rows):
            continue
        kind = "second" if second else "cold"
        if boxes:
            canvas.box(x, 4, 18, _BAR, f"{kind}-bar", hatch if second else "")
        else:
            canvas.dots([(x + 4, 10), (x + 13, 10)], f"{kind}-dots")
        canvas.text(x + 24, 14, words)
        x += 24 + width_of(words) + 16


def timeline(points: Sequence[tuple[float, int, int]], *, seconds: float, width: float, label: str) -> str:
    """Two panels over one axis of the run's `seconds`: the throughput between each two of `points` (seconds, bytes so far, lanes), and the lanes.

    What of the run is before the first point and after the last is shaded, and named where there is room.
    """
    canvas = Canvas(width)
    pieces = rates(points)
    fastest = max((rate for _, _, rate in pieces), default=0.0)
    factor, unit = next(((factor, unit) for factor, unit in _RATES if fastest >= factor), _RATES[-1])
    rate_scale = ticks(fastest / factor, 4)
    lane_scale = [value for value in ticks(max((p[2] for p in points), default=1), 3) if value == int(value)]
    time_scale = ticks(max((p[0] for p in points), default=seconds), 6 if width > 500 else 3)
    if seconds > time_scale[-1]:
        time_scale = ticks(seconds, 6 if width > 500 else 3)
    names = [number(value) for value in (*rate_scale, *lane_scale)]
    frame = _Frame(max(width_of(name) for name in names) + 26, 0, time_scale[-1])
    frame = _Frame(frame.left, width - frame.left - 16, frame.top)
    panels = (
        (8.0, _PANEL["rate"], rate_scale, f"throughput ({unit})"),
        (8.0 + _PANEL["rate"] + 14, _PANEL["lanes"], lane_scale, "lanes, P"),
    )
    bottom = panels[1][0] + panels[1][1]
    if points:
        _phase(canvas, frame, (0.0, points[0][0]), panels, "starting")
        _phase(canvas, frame, (points[-1][0], seconds), panels, "verifying")
    for y, height, scale, words in panels:
        _ladder(canvas, frame, scale, (y, height), words)
    for value in time_scale:
        x = frame.at(value)
        canvas.line(x, bottom, x, bottom + 4, "base")
        canvas.text(x, bottom + 17, number(value), anchor="middle", css="muted")
    middle = frame.left + frame.span / 2
    canvas.text(middle, bottom + 34, "since the run began (s)", anchor="middle", css="muted")
    _steps(canvas, frame, [(a, b, rate / factor) for a, b, rate in pieces], (panels[0], "rate"))
    lanes = [(a[0], b[0], float(b[2])) for a, b in pairwise(points)]
    _steps(canvas, frame, lanes, (panels[1], "lanes"))
    return canvas.svg(bottom + 42, label, "wide" if width > 500 else "narrow")


def _phase(
    canvas: Canvas, frame: _Frame, part: tuple[float, float], panels: Sequence[_Panel], words: str
) -> None:
    """A shade over the part of the run (from, to; seconds) in which nothing is read, with `words` where they fit, lying or standing."""
    left, right = (frame.at(value) for value in part)
    if right <= left:
        return
    for y, height, _, _ in panels:
        canvas.box(left, y, right - left, height, "phase")
    y, height, scale, _ = panels[0]
    middle = (left + right) / 2
    if right - left >= width_of(words) + 8:
        between = y + height * (1 - (scale[-1] + scale[-2]) / 2 / scale[-1])  # the two upmost lines
        canvas.text(middle, between + SIZE / 3, words, anchor="middle", css="muted")
    elif right - left >= SIZE + 4:
        canvas.upright(middle + SIZE / 3, y + height / 2, words)


def rates(points: Sequence[tuple[float, int, int]]) -> list[tuple[float, float, float]]:
    """(from, to, bytes/s) between each two neighbours of `points` that are not at the same second."""
    return [(a[0], b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in pairwise(points) if b[0] > a[0]]


def _ladder(
    canvas: Canvas, frame: _Frame, scale: list[float], place: tuple[float, float], words: str
) -> None:
    y, height = place
    for value in scale:
        level = y + height * (1 - value / scale[-1])
        canvas.line(frame.left, level, frame.left + frame.span, level, "grid" if value else "base")
        canvas.text(frame.left - 6, level + SIZE / 3, number(value), anchor="end", css="muted")
    canvas.upright(SIZE, y + height / 2, clipped(words, height + 24))


def _steps(
    canvas: Canvas, frame: _Frame, pieces: list[tuple[float, float, float]], into: tuple[_Panel, str]
) -> None:
    """A stair over `pieces` (from, to, value); what lies below is shaded."""
    (y, height, scale, _), css = into
    if not pieces:
        return
    moves: list[str] = []
    for start, end, value in pieces:
        level = y + height * (1 - max(0.0, value) / scale[-1])
        moves.append(f"{'L' if moves else 'M'}{frame.at(start):.1f} {level:.1f}H{frame.at(end):.1f}")
    floor = f"L{frame.at(pieces[-1][1]):.1f} {y + height:.1f}H{frame.at(pieces[0][0]):.1f}Z"
    canvas.path("".join(moves) + floor, f"{css}-area")
    canvas.path("".join(moves), f"{css}-line")


def says(values: Sequence[float]) -> str:
    """The median of `values` as it stands beside a mark."""
    return seconds_text(median(values))
