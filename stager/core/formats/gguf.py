"""The GGUF header: metadata, tensor directory, and where the tensor data must end."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from stager.core.formats.source import Head, PastEnd, Unjudged

LIMIT = 256 << 20  # a 150,000-token vocabulary with its merges takes about 10 MB

_MAGIC = b"GGUF"
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_DEPTH = 8  # arrays in arrays; llama.cpp knows none at all

# Elements of one block -> ggml type -> bytes of one block. Types from 40 on are left out: forks gave these numbers to types of
# their own before upstream did, and a wrong size here would call a sound file truncated.
_SIZES = {
    1: {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2},
    32: {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 9: 40, 20: 18, 39: 17},
    256: {
        10: 84,
        11: 110,
        12: 144,
        13: 176,
        14: 210,
        15: 292,
        16: 66,
        17: 74,
        18: 98,
        19: 50,
        21: 110,
        22: 82,
    }
    | {23: 136, 29: 56, 34: 54, 35: 66},
}
_BLOCKS = {kind: (elements, size) for elements, sizes in _SIZES.items() for kind, size in sizes.items()}


def judge(head: Head) -> tuple[str, bool] | None:
    """What is wrong with this GGUF file, and whether that is proven; None when nothing is.

    Only versions 2 and 3 are judged, in both byte orders. Raises as `Head.ensure`, except `PastEnd`.
    """
    try:
        magic = head.take(0, 4)
        if magic == b"\0\0\0\0":
            return "starts with zero bytes, as an unfinished download does", True
        if magic != _MAGIC:
            return "not a GGUF file: its first bytes are not `GGUF`", True
        directory = _Walk(head).directory()
    except PastEnd:
        return f"truncated: its {head.size} bytes end inside its own header", True
    return _judge_size(head.size, directory)


@dataclass(frozen=True, slots=True)
class _Directory:
    header_end: int
    alignment: int
    tensors: list[
        tuple[int, int | None]
    ]  # offset into the data, bytes (None: a type that is not in the table)


def _judge_size(size: int, found: _Directory) -> tuple[str, bool] | None:
    if not found.tensors:  # the first part of a split may hold metadata alone
        return _extra(size, _aligned(found.header_end, found.alignment))
    data = _aligned(found.header_end, found.alignment)
    tensors = sorted(found.tensors, key=lambda tensor: tensor[0])
    # Where one tensor would reach into the next, the table does not fit this file: then only offsets count.
    fits = all(start + (count or 0) <= after for (start, count), (after, _) in pairwise(tensors))
    last, count = tensors[-1]
    known = count if fits else None
    needed = data + last + (known or 0)
    if size < needed:
        return f"truncated: its tensors end at byte {needed} and it has {size}", True
    return None if known is None else _extra(size, data + _aligned(last + known, found.alignment))


def _extra(size: int, end: int) -> tuple[str, bool] | None:
    """llama.cpp ignores what follows the last tensor, so it is worth a remark and no more."""
    return (f"{size - end} bytes follow the last tensor", False) if size > end else None


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class _Walk:
    """One pass over the header, ascending."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._at = 4
        version = int.from_bytes(head.take(4, 4), "little")
        order = "<"
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            version, order = int.from_bytes(head.take(4, 4), "big"), ">"
        if version not in (2, 3):
            raise Unjudged
        self._at = 8
        self._u32 = struct.Struct(order + "I")
        self._u64 = struct.Struct(order + "Q")
        self._alignment = 32

    def directory(self) -> _Directory:
        tensors = self._count(at_least=24)
        for _ in range(self._count(at_least=12)):
            self._pair()
        found = [self._tensor() for _ in range(tensors)]
        return _Directory(self._at, self._alignment, found)

    def _number(self, kind: struct.Struct) -> int:
        self._head.ensure(self._at + kind.size)
        (value,) = kind.unpack_from(self._head.data, self._at)
        self._at += kind.size
        return int(value)

    def _count(self, at_least: int) -> int:
        """A count of items that take `at_least` bytes each, so that an absurd one ends here and not in a loop."""
        count = self._number(self._u64)
        if self._at + count * at_least > self._head.size:
            raise PastEnd
        return count

    def _skip(self, count: int) -> None:
        self._head.ensure(self._at + count)
        self._at += count

    def _pair(self) -> None:
        length = self._count(at_least=1)
        self._skip(length)
        key = bytes(memoryview(self._head.data)[self._at - length : self._at])
        kind = self._number(self._u32)
        if key == b"general.alignment":
            if kind != _UINT32:
                raise Unjudged
            self._alignment = self._number(self._u32)
            if self._alignment == 0 or self._alignment & (self._alignment - 1):
                raise Unjudged
        else:
            self._value(kind, _DEPTH)

    def _value(self, kind: int, depth: int) -> None:
        if kind in _SCALARS:
            self._skip(_SCALARS[kind])
        elif kind == _STRING:
            self._skip(self._number(self._u64))
        elif kind == _ARRAY and depth:
            self._array(depth)
        else:
            raise Unjudged

    def _array(self, depth: int) -> None:
        kind = self._number(self._u32)
        if kind in _SCALARS:
            self._skip(self._number(self._u64) * _SCALARS[kind])
        elif kind == _STRING:
            self._skip_strings(self._count(at_least=8))
        else:
            for _ in range(self._count(at_least=12)):
                self._value(kind, depth - 1)

    def _skip_strings(self, count: int) -> None:
        # A vocabulary and its merges are 400,000 strings: no calls in this loop but the one that decodes a length.
        head, at, decode = self._head, self._at, self._u64.unpack_from
        data, have = head.data, len(head.data)
        for _ in range(count):
            if at + 8 > have:
                head.ensure(at + 8)
                have = len(data)
            at += 8 + decode(data, at)[0]
            if at > have:
                head.ensure(at)
                have = len(data)
        self._at = at

    def _tensor(self) -> tuple[int, int | None]:
        self._skip(self._count(at_least=1))
        dimensions = self._number(self._u32)
        if dimensions > 8:  # llama.cpp allows 4; more than 8 is no format anybody has announced
            raise Unjudged
        shape = [self._number(self._u64) for _ in range(dimensions)]
        kind, offset = self._number(self._u32), self._number(self._u64)
        elements, size = _BLOCKS.get(kind, (0, 0))
        row = shape[0] if shape else 1
        if not elements or row % elements:
            return offset, None
        return offset, prod(shape) // elements * size
