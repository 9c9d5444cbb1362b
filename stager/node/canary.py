"""Does this mount keep a file's pages when the file is opened again? Asked on one small file, before terabytes are read."""

from __future__ import annotations

import os
import time
from enum import StrEnum

from stager.node import pagecache
from stager.node.files import opened
from stager.node.syscalls import PAGE, Mapping


class Keeps(StrEnum):
    """The canary's answer about a mount."""

    YES = "keeps"
    NO = "drops"
    DIRECT = "direct-io"  # nothing is cached at all
    UNKNOWN = "unknown"

    @property
    def hopeless(self) -> bool:
        """True when warming this mount is useless."""
        return self in (Keeps.NO, Keeps.DIRECT)


def ask(path: str, fstype: str) -> Keeps:
    """Open `path`, read its first page, close, open again: is the page still there?

    `path` is a non-empty file; its own pages are lost on a mount that drops them, so pass a small one. Exact where
    residency can be counted; otherwise by the time that re-reading the page takes, against a resident page of our own.
    Raises ``OSError`` when the file cannot be opened or read.
    """
    with opened(path) as fd:
        os.pread(fd, PAGE, 0)
        cached = min(_time_page(fd) for _ in range(9))
    with opened(path) as fd:
        exact, why = pagecache.probe(fd, fstype)
        if exact is None:
            return Keeps.DIRECT if pagecache.DIRECT in why else _by_time(fd, cached)
        if exact.count(0, PAGE).cached:
            return Keeps.YES
        os.pread(fd, PAGE, 0)
        return Keeps.NO if exact.count(0, PAGE).cached else Keeps.DIRECT


def _by_time(fd: int, cached: float) -> Keeps:
    """A first read after re-open takes as long as a resident page of our own, or a round trip to the daemon.

    `cached` is what a second read of the page through one handle took: when even that is slow, nothing is cached at all. A
    resident page answers in 1-5 us, a daemon in 30 us at best; between the two the honest answer is unknown.
    """
    again = _time_page(fd)
    own = os.memfd_create("stager-control", os.MFD_CLOEXEC)
    try:
        os.pwrite(own, b"\0" * PAGE, 0)
        control = min(_time_page(own) for _ in range(9))
    finally:
        os.close(own)
    if cached > 20 * control:
        return Keeps.DIRECT if not _can_map(fd) else Keeps.UNKNOWN
    if again <= 4 * control:
        return Keeps.YES
    return Keeps.NO if again >= 30 * control else Keeps.UNKNOWN


def _can_map(fd: int) -> bool:
    try:
        Mapping(fd, 0, PAGE).close()
    except OSError:
        return False
    return True


def _time_page(fd: int) -> float:
    start = time.perf_counter()
    os.pread(fd, 1, 0)
    return time.perf_counter() - start
