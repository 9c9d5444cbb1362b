"""What a sweep tries: which settings of ``stager warm``, in which order, and which of them more than once. Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.bench.plan import parse_numbers
from stager.core.bench.quick import LOOKS, Sample, sample
from stager.core.bench.setting import Setting
from stager.core.errors import UsageError
from stager.core.plan import LEAST_SPAN, WHOLE, parse_span
from stager.core.units import MIB

if TYPE_CHECKING:
    from stager.core.bench.quick import Rates
    from stager.core.bench.reports import BenchCell

_OVERHEAD_S = 0.9  # of a run beside its reading: an interpreter, the survey, pages that are counted
_NEAR = 1.25  # times the fastest median: a setting within this is measured again
_CLOSE = 1.1  # and within this the gentlest too, for the pick is the gentlest of those that are even
_FASTEST, _GENTLEST = 3, 2  # so many of each are measured again at most
_LATE = 3.0  # times the fastest: a run is stopped then,
_LATE_S, _QUICK_LATE_S = 60.0, 5.0  # but not before so many seconds
_ONE_FILE = (
    0.5  # of its time: for one file at the rate of one reader, which the settings with more lanes do not need
)
_LONG_PART = 8 * MIB  # two of the shortest pieces that a quick sweep tries

TOO_SLOW = "it took more than three times as long as the fastest so far, and was stopped"


@dataclass(frozen=True, slots=True)
class Grid:
    """The lanes and the span sizes (bytes, `WHOLE`) whose combinations a sweep tries. Without `spans`: whole files, and a quarter of the largest."""

    lanes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    spans: tuple[int, ...] = (WHOLE, 256 * MIB, 64 * MIB, 16 * MIB)


QUICK_GRID = Grid((2, 8, 32), ())
"""What --quick has time for."""
QUICK_ROUNDS = 2
"""How often --quick measures the settings that are near the best."""


def parse_lanes(text: str) -> tuple[int, ...]:
    """The numbers of lanes in a comma-separated list, ascending, each once. Raises `UsageError` unless they lie in 1..256."""
    return parse_numbers(text, "lanes")


def parse_spans(text: str) -> tuple[int, ...]:
    """The span sizes in a comma-separated list, the longest first, each once. Raises `UsageError` as `parse_span`, and for none."""
    words = [word for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"`{text}` is not a list of span sizes", hint="write it like whole,256MiB,64MiB")
    return tuple(sorted({parse_span(word) for word in words}, key=lambda span: (span != WHOLE, -span)))


def settings_of(sizes: Sequence[int], grid: Grid) -> tuple[Setting, ...]:
    """The settings of `grid` that read files of these `sizes` (bytes) each in another way.

    A span that no file is longer than is a whole file. More lanes than pieces cannot be busy: there are as many lanes as pieces then. One
    lane reads one piece after the other however long they are, so it is tried with the longest span alone. Files below 1 MiB are over at
    once and do not count as pieces, unless there are no others; nor do such tails of files.
    """
    largest = max(sizes, default=0)
    counted = [size for size in sizes if size >= LEAST_SPAN] or [size for size in sizes if size] or [1]
    found: dict[Setting, None] = {}
    spans = grid.spans or (WHOLE, _quarter(largest))
    for span in dict.fromkeys(WHOLE if span >= largest else span for span in spans):
        pieces = sum(_pieces(size, span) for size in counted)
        for lanes in grid.lanes:
            setting = Setting(min(lanes, pieces), span)
            if setting.lanes > 1 or not any(one.lanes == 1 for one in found):
                found[setting] = None
    return tuple(found)


def _pieces(size: int, span: int) -> int:
    if span == WHOLE:
        return 1
    return max(1, size // span + (size % span >= LEAST_SPAN))


def _quarter(size: int) -> int:
    """A power of two that is about a quarter of `size` bytes, from 4 to 64 MiB."""
    return int(min(64 * MIB, max(4 * MIB, 1 << max(0, (size // 4).bit_length() - 1))))


def first_pass(settings: Sequence[Setting]) -> list[Setting | None]:
    """What ``warm`` does by itself (None), which says what is too slow to wait for, and each setting once.

    The order runs along diagonals of the grid, and jumps from one to another: what slowly changes on the node or in a cache behind the mount
    then falls neither on one span size nor on few lanes alone.
    """
    spans = list(dict.fromkeys(setting.span for setting in settings))
    lanes = sorted({setting.lanes for setting in settings})
    shift = max(1, len(lanes) // max(1, len(spans)))
    there = set(settings)
    order: list[Setting | None] = [None]
    for diagonal in _jumping(len(lanes)):
        along = [Setting(lanes[(diagonal + at * shift) % len(lanes)], span) for at, span in enumerate(spans)]
        order += [setting for setting in along if setting in there]
    return order


def _jumping(number: int) -> list[int]:
    """0 to `number` - 1 so that each half, quarter, ... of the list is spread over all: in the order of their bits read backwards."""
    bits = max(1, (number - 1).bit_length())
    return sorted(range(number), key=lambda value: int(f"{value:0{bits}b}"[::-1], 2))


def worth_another(cells: Sequence[BenchCell]) -> list[Setting]:
    """The settings among `cells` that are near enough to the best to be measured again: the fastest, and the gentlest that are close to them."""
    timed = [
        (cell.seconds.median, cell.setting)
        for cell in cells
        if cell.seconds is not None and cell.setting is not None
    ]
    if not timed:
        return []
    timed.sort(key=lambda one: (one[0], one[1].gentleness))
    best = timed[0][0]
    fastest = [setting for took, setting in timed if took <= _NEAR * best][:_FASTEST]
    close = sorted((setting for took, setting in timed if took <= _CLOSE * best), key=lambda s: s.gentleness)
    return list(dict.fromkeys([*fastest, *close[:_GENTLEST]]))


def runs_at_most(settings: int, rounds: int) -> int:
    """About how many runs a sweep of so many settings makes when none is thrown away."""
    again = min(settings, _FASTEST + _GENTLEST) + 1
    return settings + 1 + (rounds - 1) * again


def patience(fastest: float, *, quick: bool) -> float:
    """After how many seconds a run is stopped as too slow to matter, when the fastest took `fastest` seconds."""
    return max(_QUICK_LATE_S if quick else _LATE_S, _LATE * fastest)


def quick_sweep_sample(
    sizes: Sequence[int], settings: int, rounds: int, rates: Rates, seconds: float
) -> Sample:
    """What a sweep reads that may take so many seconds: the files that there is time for, else a part of each of several.

    Several files show what lanes do. Where the parts would be too short to show what spans do, it is one whole file, if a single reader has it in
    half of the time.
    """
    rate = rates.read / (2 if rates.settles else 1)
    each = int(LOOKS * rates.look * rate)
    found = sample(sizes, quick_sweep_bytes(settings, rounds, rate, seconds), each)
    if found.part is not None and found.part >= _LONG_PART and len(found.chosen) > 1:
        return found
    largest = max(sizes, default=0)
    smallest = min((at for at, size in enumerate(sizes) if 4 * size >= largest), key=lambda at: sizes[at])
    late = sizes[smallest] > rates.read * _ONE_FILE * seconds
    return found if found.part is None or late else Sample((smallest,))


def quick_sweep_bytes(settings: int, rounds: int, read_rate: float, seconds: float) -> int:
    """How many bytes of a storage a sweep reads in so many seconds; `read_rate` (bytes/s) is that of one reader, which no setting should be far below."""
    runs = runs_at_most(settings, rounds) + 1  # the first read, uncounted
    work = max(seconds - runs * _OVERHEAD_S, seconds / 4)
    return int(work / (1.1 * runs) * max(1.0, read_rate))
