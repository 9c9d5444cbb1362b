"""Drawing in SVG by strings: marks, words whose width is known beforehand, axes with round numbers. Colours are CSS classes of the page."""

from __future__ import annotations

import math
from html import escape
from unicodedata import east_asian_width

from stager.core.units import shown

SIZE = 12.0  # of all letters, in SVG units; a chart is drawn for its width and not scaled
_LETTERS = (
    (" fijlrtI.,:;'|!()[]-/", 0.42),
    ("mwMW@%+<>=~—…", 1.0),
)  # widths as shares of SIZE, in DejaVu Sans, the widest of the usual fonts
_LOWER, _UPPER = 0.645, 0.79  # those of all others
# From where on so many decimals are three digits.
_DIGITS = ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3), (0.009995, 4), (0.0009995, 5))
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_LEAST = 1e-12  # what is not above it is nothing
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def escaped(text: str) -> str:
    """`text` fit for HTML, SVG and their attributes: control characters and what is no Unicode as backslash escapes."""
    return escape(shown(text), quote=True)


def width_of(text: str) -> float:
    """About how wide `text` is drawn; rather too much than too little."""
    return SIZE * sum(_share(letter) for letter in text)


def _share(letter: str) -> float:
    if east_asian_width(letter) in "WF":
        return 1.0
    other = _UPPER if letter.isupper() else _LOWER
    return next((share for letters, share in _LETTERS if letter in letters), other)


def clipped(text: str, width: float) -> str:
    """`text` as far as it fits `width`, with an ellipsis where it was cut."""
    text = shown(text)
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - SIZE:
        text = text[:-1]
    return f"{text.rstrip()}…"


def seconds_text(value: float) -> str:
    """`value` seconds with three digits that count: ``1.25 s``, ``12.5 s``, ``125 ms``, ``0.125 ms``, ``0 s``."""
    if value == 0:
        return "0 s"
    unit, scaled = ("s", value) if value >= 0.9995 else ("ms", value * 1000)
    return f"{digits(scaled)} {unit}"


def size_text(count: float) -> str:
    """`count` bytes with three digits that count, in binary units: ``0 B``, ``512 MiB``, ``1.62 GiB``."""
    value, power = float(count), 0
    while value >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{digits(value) if power or value % 1 else int(value)} {_UNITS[power]}"


def digits(value: float) -> str:
    """`value` with three digits that count, and all those of a number from a thousand on."""
    decimals = next((count for least, count in _DIGITS if value >= least), None)
    return f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"


def ticks(top: float, wanted: int = 6) -> list[float]:
    """Round numbers from 0 to the first that is not below `top`, about `wanted` of them; ``[0, 1]`` where `top` is nothing."""
    if not (top > _LEAST and math.isfinite(top)):
        return [0.0, 1.0]
    rough = top / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in _STEPS if power * factor >= rough * 0.999), power * 10)
    return [round(step * index, 12) for index in range(math.ceil(top / step - 1e-9) + 1)]


def number(value: float) -> str:
    """A coordinate or a tick's number, as short as it may be."""
    return f"{value:.10g}"


class Canvas:
    """Marks in a box of `width`, on white paper or black glass; `svg` gives them all."""

    def __init__(self, width: float) -> None:
        self.width = width
        self._marks: list[str] = []

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", css: str = "") -> None:
        """`words` with their baseline at `y`; `anchor` says what lies at `x`: ``start``, ``middle`` or ``end``."""
        named = f' class="{css}"' if css else ""
        self._marks.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escaped(words)}</text>'
        )

    def upright(self, x: float, y: float, words: str) -> None:
        """`words` from the bottom to the top, their middle at (`x`, `y`)."""
        turned = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
        self._marks.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {turned}>{escaped(words)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self._marks.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def box(self, x: float, y: float, width: float, height: float, css: str, fill: str = "") -> None:
        """A rectangle, filled with the pattern `fill` where one is named."""
        filled = f' fill="url(#{fill})"' if fill else ""
        size = f'width="{max(0.0, width):.1f}" height="{height:.1f}"'
        self._marks.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{css}"{filled}/>')

    def path(self, moves: str, css: str) -> None:
        """A path of SVG's path language."""
        self._marks.append(f'<path d="{moves}" class="{css}"/>')

    def dots(self, points: list[tuple[float, float]], css: str) -> None:
        """A dot at each of `points`: one path of lines without length, which round ends make visible."""
        self.path("".join(f"M{x:.1f} {y:.1f}h0" for x, y in points), css)

    def hatch(self, name: str, css: str) -> None:
        """A pattern of slanted lines of the class `css`, to be named as the `fill` of a `box`."""
        shape = 'width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"'
        self._marks.append(
            f'<defs><pattern id="{name}" {shape}><rect width="5" height="5" class="paper"/>'
            f'<line x1="1" y1="0" x2="1" y2="5" class="{css}"/></pattern></defs>'
        )

    def begin(self, title: str, link: str = "") -> None:
        """What is drawn until `end` says `title` when pointed at, and leads to `link` within the page."""
        linked = f'<a href="#{escaped(link)}">' if link else "<g>"
        self._marks.append(f"{linked}<title>{escaped(title)}</title>")
        self._open = "</a>" if link else "</g>"

    def end(self) -> None:
        """The end of what `begin` began."""
        self._marks.append(self._open)

    def svg(self, height: float, label: str, css: str) -> str:
        """The drawing, `height` high; `label` is read to those who do not see it."""
        size = f'width="{self.width:g}" height="{height:g}" viewBox="0 0 {self.width:g} {height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" class="chart {css}"'
        return f'{head} aria-label="{escaped(label)}">{"".join(self._marks)}</svg>'
