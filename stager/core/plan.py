"""Which files are warmed, in which order, cut into which spans. Pure: takes what was found, does no I/O."""

from __future__ import annotations

import sys
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from stager.core.errors import UsageError
from stager.core.model import Skipped, Span
from stager.core.units import GIB, KIB, MIB, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

# Pieces of big files on filesystems that like many readers: large enough for full readahead, small enough that the last
# ones to finish leave no lane idle for long.
PIECE = 128 * MIB
WHOLE = 0
"""A span size: as long as the file, whatever its length."""
LEAST_SPAN = MIB
"""The least span size in bytes that can be asked for: below it a file is opened more often than it is read."""
_SMALL = 64 * MIB  # tokenizers and configs: read first, whatever the order of the weights


class Order(StrEnum):
    """The order of files: `AUTO` is largest first when everything fits and load order when not."""

    AUTO = "auto"
    LARGEST = "largest"
    LOAD = "load"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One file that could be warmed. `holes` are the (offset, length) stretches to read, ascending, disjoint.

    `load` is the file's position in the engine's load order. `weight` is false for tokenizers and configs. `whole` files are
    read through one handle and never cut. Others are cut at every multiple of `piece` bytes, or by None hole by hole into pieces of `PIECE`.
    """

    index: int
    path: str
    size: int
    holes: tuple[tuple[int, int], ...]
    load: int
    weight: bool = True
    whole: bool = False
    piece: int | None = None

    @property
    def need(self) -> int:
        """Bytes that must be read."""
        return sum(length for _, length in self.holes)


@dataclass(frozen=True, slots=True)
class Plan:
    """Spans in reading order, the bytes in them that must be read, and the files left out for want of room."""

    spans: tuple[Span, ...]
    chosen: tuple[int, ...]  # indexes of the files that will be resident afterwards, in reading order
    read: int
    skipped: tuple[Skipped, ...]

    @property
    def partial(self) -> bool:
        """True when something was left out for want of room."""
        return bool(self.skipped)


def make_plan(candidates: Sequence[Candidate], granted: int, order: Order = Order.AUTO) -> Plan:
    """The plan that reads at most `granted` bytes.

    When everything fits: small files first, then largest first (the shortest makespan), unless `order` says load order. When
    not: whole files from the head of the order (load order under AUTO) until the next does not fit. A loader starts at the
    head, and a page it finds saves it a read; half a file at the tail would not.
    """
    fits = sum(c.need for c in candidates) <= granted
    by_load = order is Order.LOAD or (order is Order.AUTO and not fits)
    ranked = sorted(candidates, key=_by_load if by_load else _by_size)
    chosen, left_out, room = [], [], granted
    for position, candidate in enumerate(ranked):
        if candidate.need > room:
            rest = ranked[position:]
            left_out = [c for c in rest if c.need]
            chosen += [c for c in rest if not c.need]  # resident already, or empty: they take no room
            break
        room -= candidate.need
        chosen.append(candidate)
    return Plan(
        spans=tuple(span for candidate in chosen for span in _spans(candidate)),
        chosen=tuple(candidate.index for candidate in chosen),
        read=granted - room,
        skipped=tuple(Skipped(c.path, c.size, "does not fit in memory") for c in left_out),
    )


def _by_load(candidate: Candidate) -> tuple[int, ...]:
    return (candidate.load,)


def _by_size(candidate: Candidate) -> tuple[int, ...]:
    first = not candidate.weight and candidate.size <= _SMALL
    return (0, candidate.load) if first else (1, -candidate.size, candidate.load)


def _spans(candidate: Candidate) -> list[Span]:
    """The candidate's holes as spans: one from the first hole to the last for a whole file, else pieces."""
    if not candidate.holes:
        return []
    if candidate.whole:
        start = candidate.holes[0][0]
        last_offset, last_length = candidate.holes[-1]
        return [Span(candidate.index, start, last_offset + last_length - start)]
    if candidate.piece is not None:
        return _cut(candidate, candidate.piece)
    return [
        Span(candidate.index, at, min(PIECE, offset + length - at))
        for offset, length in candidate.holes
        for at in range(offset, offset + length, PIECE)
    ]


def _cut(candidate: Candidate, piece: int) -> list[Span]:
    """The pieces between multiples of `piece` in which something is missing, each from there on: its reader skips what is not."""
    spans = []
    last = sum(candidate.holes[-1])
    for at in range(candidate.holes[0][0] // piece * piece, last, piece):
        end = min(at + piece, last)
        skip, missing = wanted(candidate.holes, at, end)
        if missing:
            spans.append(Span(candidate.index, at + skip, end - at - skip))
    return spans


def parse_span(text: str) -> int:
    """The span size in `text`: bytes, or `WHOLE` for ``whole``. Raises `UsageError` for what is no size, or less than `LEAST_SPAN`."""
    if text.strip().lower() == "whole":
        return WHOLE
    try:
        size = parse_size(text)
    except UsageError as exc:
        raise UsageError(f"`{text}` is no span size", hint="write it like 64MiB, or `whole`") from exc
    if size < LEAST_SPAN:
        raise UsageError(
            f"`{text}` is less than 1 MiB", hint="spans of 16 MiB and more are usual; or `whole`"
        )
    return size


def span_text(span: int) -> str:
    """`span` as `parse_span` reads it: ``whole``, ``64MiB``; never rounded."""
    if span == WHOLE:
        return "whole"
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if not span % unit:
            return f"{span // unit}{name}"
    return str(span)


def wanted(holes: Sequence[tuple[int, int]], position: int, end: int) -> tuple[int, int]:
    """What to do next at `position` of a span that ends at `end`: (bytes to skip, bytes to read after them).

    (0, n): read n bytes; (n, 0): nothing more is missing before `end`, skip n. `holes` ascend and are disjoint.
    """
    at = bisect_right(holes, (position, sys.maxsize)) - 1
    if at < 0 or sum(holes[at]) <= position:
        at += 1
    if at == len(holes) or holes[at][0] >= end:
        return end - position, 0
    start = max(holes[at][0], position)
    return start - position, min(sum(holes[at]), end) - start
