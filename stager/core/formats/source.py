"""Bytes of model files, read from the front in growing steps."""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[int, int, int], bytes]
"""``read(index, offset, length)`` gives at most `length` bytes of file `index`; empty at its end. May raise OSError."""

FIRST = 256 << 10  # holds the whole header of nearly every safetensors shard
STEP = 4 << 20  # so that a FUSE daemon sees ordinary ascending reads


class PastEnd(Exception):
    """The header asks for bytes beyond the end of the file."""


class Unjudged(Exception):
    """Nothing can be proven about this file."""


class Shrunk(Exception):
    """The file ended before the size it had when it was found."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


class Head:
    """The first bytes of one file, kept in `data` and extended on demand, always ascending.

    `size` is the file's size when it was found. `limit` bounds what is ever kept.
    """

    def __init__(self, read: Read, index: int, size: int, limit: int) -> None:
        self.size = size
        self.data = bytearray()
        self._read = read
        self._index = index
        self._limit = limit
        self.ensure(min(size, FIRST))

    def ensure(self, end: int) -> None:
        """Make `data` hold at least `end` bytes.

        Raises `PastEnd` when the file has fewer, `Unjudged` beyond the limit, `Shrunk` when the file ends early, and
        whatever the reader raises.
        """
        if end <= len(self.data):
            return
        if end > self.size:
            raise PastEnd
        if end > self._limit:
            raise Unjudged
        while len(self.data) < end:
            have = len(self.data)
            wanted = min(max(FIRST, have), STEP, self.size - have)
            chunk = self._read(self._index, have, wanted)
            if not chunk:
                raise Shrunk(have)
            self.data += chunk

    def take(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; raises as `ensure`."""
        self.ensure(offset + length)
        return bytes(memoryview(self.data)[offset : offset + length])


def read_range(read: Read, index: int, offset: int, length: int) -> bytes:
    """The bytes [offset, offset + length) of file `index`, fewer when it ends before."""
    out = bytearray()
    while len(out) < length:
        chunk = read(index, offset + len(out), min(STEP, length - len(out)))
        if not chunk:
            break
        out += chunk
    return bytes(out)
