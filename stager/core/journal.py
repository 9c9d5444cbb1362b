"""What a fetch notes beside the files, line by line, so that the next run can go on. Pure text.

Nothing in it is trusted by itself: a piece counts when the bytes on disk still have its CRC, a whole file when it still has the
identity noted. So lines that a crash tore or zeroed cost a download at worst, and are passed over, as are names that `place`
would refuse: whoever can write here shall not lead anybody out of the folder.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stager.core.pieces import Piece
from stager.core.placement import fault

PATH = ".stager/fetch.journal"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Begun:
    """A part file was begun for this version of an object."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Done:
    """These bytes of the part file are written."""

    path: str
    etag: str
    piece: Piece


@dataclass(frozen=True, slots=True)
class Whole:
    """The final name held this version, proven, and was this file."""

    path: str
    size: int
    etag: str
    crc64: int
    inode: int
    mtime_ns: int
    sha256: str | None = None  # in lower case, where it was proven too


Record: TypeAlias = Begun | Done | Whole


@dataclass
class Part:
    """What is claimed of one part file: pieces inside it, ascending, none of them overlapping."""

    size: int
    etag: str
    pieces: list[Piece] = field(default_factory=list)


@dataclass
class Journal:
    """All claims, by path: of part files, and of files with their final names."""

    parts: dict[str, Part] = field(default_factory=dict)
    whole: dict[str, Whole] = field(default_factory=dict)


def line(record: Record) -> bytes:
    """`record` as one line, its newline included. Names that are not UTF-8 survive."""
    if isinstance(record, Begun):
        row: list[Any] = ["begun", record.path, record.size, record.etag]
    elif isinstance(record, Done):
        piece = record.piece
        row = ["done", record.path, record.etag, piece.offset, piece.length, piece.crc]
    else:
        row = ["whole", record.path, record.size, record.etag, record.crc64, record.inode, record.mtime_ns]
        row += [record.sha256] if record.sha256 is not None else []
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def parse(raw: bytes) -> Journal:
    """Every claim that still stands at the end of `raw`.

    A later beginning of a file discards its pieces, a whole file its part, a later piece those that it was written over.
    """
    journal = Journal()
    for text in raw.split(b"\n"):
        record = _record(text)
        if isinstance(record, Begun):
            journal.parts[record.path] = Part(record.size, record.etag)
        elif isinstance(record, Done):
            part = journal.parts.get(record.path)
            if part is not None and part.etag == record.etag:
                _note(part, record.piece)
        elif record is not None:
            journal.parts.pop(record.path, None)
            journal.whole[record.path] = record
    return journal


def compact(journal: Journal) -> bytes:
    """`journal` in as few lines as it takes."""
    lines = [line(whole) for whole in journal.whole.values()]
    for path, part in journal.parts.items():
        lines.append(line(Begun(path, part.size, part.etag)))
        lines += [line(Done(path, part.etag, piece)) for piece in part.pieces]
    return b"".join(lines)


def _note(part: Part, piece: Piece) -> None:
    if not piece.length or piece.end > part.size:
        return
    pieces = part.pieces
    first = bisect_right(pieces, piece.offset, key=lambda one: one.end)
    beyond = bisect_left(pieces, piece.end, key=lambda one: one.offset)
    pieces[first:beyond] = [piece]


def _record(text: bytes) -> Record | None:
    try:
        kind, path, *rest = json.loads(text)
        if not isinstance(path, str) or fault(path) is not None:
            return None
        if kind == "begun":
            size, etag = rest
            return Begun(path, _number(size), _text(etag))
        if kind == "done":
            etag, offset, length, crc = rest
            return Done(path, _text(etag), Piece(_number(offset), _number(length), _number(crc)))
        if kind == "whole":
            size, etag, crc, inode, mtime, *more = rest
            numbers = _number(crc), _number(inode), _number(mtime)
            return Whole(path, _number(size), _text(etag), *numbers, _sha256(more))
    except (ValueError, TypeError, RecursionError):
        pass
    return None


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("not a number")
    return value


def _sha256(more: list[object]) -> str | None:
    if not more:
        return None
    (value,) = more
    if _SHA256.fullmatch(_text(value)) is None:
        raise ValueError("not a sha256")
    return _text(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
