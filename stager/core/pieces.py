"""The stretches of one file that are written, each with its CRC-64, until they are the whole."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.checksum import combine

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Bytes [offset, offset + length) of a file, and their CRC-64."""

    offset: int
    length: int
    crc: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.offset + self.length


class Pieces:
    """Disjoint pieces of a file of `size` bytes, in any order of arrival."""

    def __init__(self, size: int) -> None:
        """None yet."""
        self._size = size
        self._pieces: list[Piece] = []
        self.done = 0

    def add(self, piece: Piece) -> None:
        """One more. Raises ValueError when it is empty, reaches beyond the file, or overlaps another."""
        at = bisect_left(self._pieces, piece)
        before = self._pieces[at - 1].end if at else 0
        after = self._pieces[at].offset if at < len(self._pieces) else self._size
        if piece.length <= 0 or piece.offset < before or piece.end > after:
            raise ValueError(
                f"bytes {piece.offset} to {piece.end} do not fit in between {before} and {after}"
            )
        self._pieces.insert(at, piece)
        self.done += piece.length

    def missing(self) -> list[tuple[int, int]]:
        """(offset, length) of what no piece covers, ascending."""
        found, position = [], 0
        for piece in self._pieces:
            if piece.offset > position:
                found.append((position, piece.offset - position))
            position = piece.end
        if position < self._size:
            found.append((position, self._size - position))
        return found

    @property
    def whole(self) -> bool:
        """True when every byte is covered; a file of no bytes always is."""
        return self.done == self._size

    def crc(self) -> int:
        """The CRC-64 of the whole file. Raises ValueError when it is not whole."""
        if not self.whole:
            raise ValueError(f"{self._size - self.done} bytes are missing")
        crc = 0
        for piece in self._pieces:
            crc = combine(crc, piece.crc, piece.length)
        return crc

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def clear(self) -> None:
        """Begin again."""
        self._pieces.clear()
        self.done = 0
