"""Which byte ranges of which objects are fetched, in which order. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.model import Span
from stager.core.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# One request costs a round trip and one signature; a range is also what a killed run loses in each lane.
SMALLEST = 16 * MIB
LARGEST = 64 * MIB
_RANGES_PER_LANE = 8  # so that lanes which finish early find something left to do
_MOST_PARTS = 10_000  # of one upload, as OSS has it
_TINY = MIB  # configs and tokenizers: first, whatever the order of the weights


@dataclass(frozen=True, slots=True)
class Missing:
    """What is still to be fetched of one object: `holes` are (offset, length), ascending, disjoint, not empty."""

    index: int
    size: int
    holes: tuple[tuple[int, int], ...]

    @property
    def need(self) -> int:
        """Bytes."""
        return sum(length for _, length in self.holes)


def range_size(total: int, lanes: int) -> int:
    """The most bytes of one request when `total` are fetched over `lanes`: 16 to 64 MiB, a multiple of 1 MiB."""
    even = total // (max(1, lanes) * _RANGES_PER_LANE)
    return max(SMALLEST, min(LARGEST, even - even % MIB))


def spread(missing: Sequence[Missing], lanes: int) -> tuple[Span, ...]:
    """Spans over everything `missing`: tiny files first, then the largest, lanes spread over files.

    The files of one window, as many as there are lanes, take turns range by range: several writers of one file wait for each
    other at its inode, and a window keeps few files half done. Within a file ranges ascend.
    """
    most = range_size(sum(one.need for one in missing), lanes)
    wanted = [one for one in missing if one.holes]
    tiny = [one for one in wanted if one.size <= _TINY]
    big = sorted((one for one in wanted if one.size > _TINY), key=lambda one: (-one.need, one.index))
    spans = [span for one in tiny for span in _cut(one, most)]
    for start in range(0, len(big), max(1, lanes)):
        spans += _in_turn([list(_cut(one, most)) for one in big[start : start + lanes]])
    return tuple(spans)


def _cut(one: Missing, most: int) -> Iterator[Span]:
    for offset, length in one.holes:
        for at in range(offset, offset + length, most):
            yield Span(one.index, at, min(most, offset + length - at))


def _in_turn(rows: list[list[Span]]) -> list[Span]:
    longest = max(len(row) for row in rows)
    return [row[at] for at in range(longest) for row in rows if at < len(row)]


def deal(spans: Sequence[Span], hands: int) -> list[tuple[Span, ...]]:
    """`spans` dealt out to `hands` processes in turn, so that all of them work on all files; a hand may be empty."""
    return [tuple(spans[hand::hands]) for hand in range(hands)]


def part_size(size: int) -> int:
    """Bytes of each part but the last of an upload of `size` bytes: whole MiB, at least 16, and at most 10,000 parts.

    Follows from `size` alone, so that another process can go on with an upload.
    """
    return max(SMALLEST, -(-size // (_MOST_PARTS * MIB)) * MIB)


def in_parts(sizes: Mapping[int, int], abreast: int) -> tuple[Span, ...]:
    """Every part of the files of these `sizes`, by index: tiny files first, then the largest, `abreast` files taking turns part by part.

    The next file begins when one has no part left, so few are half done at any moment. Within a file parts ascend. An empty file is one empty span.
    """
    order = sorted(sizes, key=lambda index: (sizes[index] > _TINY, -sizes[index], index))
    waiting = deque(_parts(index, sizes[index]) for index in order)
    under_way: deque[deque[Span]] = deque()
    spans = []
    while waiting or under_way:
        if waiting and len(under_way) < max(1, abreast):
            under_way.append(waiting.popleft())
        file = under_way.popleft()
        spans.append(file.popleft())
        if file:
            under_way.append(file)
    return tuple(spans)


def _parts(index: int, size: int) -> deque[Span]:
    step = part_size(size)
    return deque(Span(index, at, min(step, size - at)) for at in range(0, max(1, size), step))
