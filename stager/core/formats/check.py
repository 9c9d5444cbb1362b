"""One weight file judged by its own bytes."""

from __future__ import annotations

from stager.core.formats import gguf, safetensors, torchzip
from stager.core.formats.names import Family, family
from stager.core.formats.source import Head, Read, Shrunk, Unjudged
from stager.core.model import Defect, FileEntry

_LFS = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype html", b"<html", b"<?xml", b"<error>")


def zero_length(path: str, *, proven: bool = True) -> Defect:
    """The defect of a weight without a byte; equal wherever it is found, so that it is reported once."""
    return Defect(path, "zero length", proven)


def check_weight(entry: FileEntry, index: int, read: Read) -> tuple[Defect, ...]:
    """What is wrong with the weight `entry`, read through ``read(index, offset, length)``; empty when nothing is.

    Reads ascending from offset 0, as little as the header needs (one read of at most 256 KiB for most files, several
    MB for a GGUF vocabulary), and the last 64 KiB of a zipped PyTorch file. Files that are no weights are not read.
    Raises what the reader raises. Safe to call from several threads.
    """
    kind = family(entry.path)
    if kind is None:
        return ()
    if entry.size == 0:
        return (zero_length(entry.path),)
    limit = 8 + safetensors.MAX_HEADER if kind is Family.SAFETENSORS else gguf.LIMIT
    try:
        head = Head(read, index, entry.size, limit)
        found = _impostor(bytes(head.data[:512])) or _judge(kind, head, read, index)
    except Shrunk as shrunk:
        text = f"ended at byte {shrunk.end} though it had {entry.size} when it was found: it is being changed"
        return (Defect(entry.path, text, proven=False),)
    except Unjudged:
        return ()
    return () if found is None else (Defect(entry.path, *found),)


def _judge(kind: Family, head: Head, read: Read, index: int) -> tuple[str, bool] | None:
    if kind is Family.SAFETENSORS:
        return safetensors.judge(head)
    if kind is Family.GGUF:
        return gguf.judge(head)
    return torchzip.judge(head, read, index)


def _impostor(start: bytes) -> tuple[str, bool] | None:
    """Text that a failed download left under the name of a weight."""
    if start.startswith(_LFS):
        return "a git-lfs pointer, not the file itself; `git lfs pull` fetches it", True
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_MARKUP):
        return "a web page or an error message, not the file itself; download it again", True
    return None
