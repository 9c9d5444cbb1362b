"""PyTorch's zip container: whole when its end-of-central-directory record is there."""

from __future__ import annotations

from stager.core.formats.source import Head, Read, read_range

_LOCAL_FILE = b"PK\x03\x04"
_END = b"PK\x05\x06"
_END_SIZE = 22
_TAIL = _END_SIZE + 0xFFFF  # the record and the longest comment that may follow it


def judge(head: Head, read: Read, index: int) -> tuple[str, bool] | None:
    """What is wrong with this zip, and True as it is proven; None when nothing is, or when it is no zip.

    Older files are a bare pickle, whose length nothing states. Reads the last 64 KiB, beside the head.
    """
    if not head.data.startswith(_LOCAL_FILE):
        return None
    start = max(0, head.size - _TAIL)
    tail = read_range(read, index, start, head.size - start)
    at = tail.rfind(_END)
    while at >= 0:
        comment = int.from_bytes(tail[at + 20 : at + _END_SIZE], "little")
        if at + _END_SIZE + comment <= len(tail):
            return None
        at = tail.rfind(_END, 0, at)
    return "truncated: the zip directory that should end this PyTorch file is not there", True
