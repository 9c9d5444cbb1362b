"""Which bytes of a file are in the page cache, how that is known, and how to drop them.

The kernel has two exact answers and both can lie. cachestat(2) always says 0 on overlayfs, and refuses strangers. mincore(2)
says 100 % of any file to a reader who neither owns it nor may write it. `probe` hands out one of them only where it can be
trusted; elsewhere there are estimates, marked as such, or `Known.UNKNOWN`.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from stager.core.estimate import lower_bound, sample_pages
from stager.core.model import Known, Residency
from stager.core.units import MIB
from stager.node import syscalls
from stager.node.syscalls import PAGE, Mapping

if TYPE_CHECKING:
    from collections.abc import Iterator

_WINDOW = 1024 * MIB  # mincore writes a byte a page: 256 KiB for this much
GRAIN = 2 * MIB  # holes are found at this grain: re-reading less than a readahead window saves nothing
_OVERFLOW_UID = 65534
DIRECT = "direct I/O"  # in the reason of `probe` when a file bypasses the page cache


class Probe(Protocol):
    """An exact count of resident pages of one open file."""

    known: Known

    def count(self, offset: int, length: int) -> syscalls.CacheCount:
        """Pages of bytes [offset, offset + length); both page-aligned, but for the end of the file."""
        ...


class _CachestatProbe:
    known = Known.CACHESTAT

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def count(self, offset: int, length: int) -> syscalls.CacheCount:
        return syscalls.cachestat(self._fd, offset, length)


class _MincoreProbe:
    known = Known.MINCORE

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._start = -1
        self._vector = b""

    def count(self, offset: int, length: int) -> syscalls.CacheCount:
        total, at, end = 0, offset, offset + length
        while at < end:
            self._load(at)
            stop = min(end, self._start + _WINDOW)
            total += self._vector.count(b"\x01", (at - self._start) // PAGE, -(-(stop - self._start) // PAGE))
            at = stop
        return syscalls.CacheCount(total, 0)

    def _load(self, offset: int) -> None:
        start = offset - offset % _WINDOW
        if start != self._start:
            length = min(_WINDOW, self._size - start)
            with Mapping(self._fd, start, length) as mapping:
                self._vector = mapping.resident_pages(start, length)
            self._start = start


@cache
def _uid_map() -> tuple[tuple[int, int], ...]:
    """The (first, count) ranges of uids that exist in this user namespace."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return tuple((int(line.split()[0]), int(line.split()[2])) for line in file)


@cache
def _has_cap_fowner() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 3 & 1)
    return False


def _may_ask(path_fd: int, owner: int) -> bool:
    """Whether mincore(2) answers this process truthfully about a file of `owner`.

    True for the owner, for whoever may write the file, and for CAP_FOWNER over an owner that exists in this user namespace.
    In a namespace that does not map every uid, owners that do not exist in it all show as the overflow uid: no trust there.
    """
    full = _uid_map() == ((0, 4294967295),)
    if not full and owner == _OVERFLOW_UID:
        return False
    if os.geteuid() == owner:
        return True
    if os.access(f"/proc/self/fd/{path_fd}", os.W_OK, effective_ids=True) and not _has_cap_fowner():
        return True
    return _has_cap_fowner() and (full or any(first <= owner < first + count for first, count in _uid_map()))


def probe(fd: int, fstype: str) -> tuple[Probe | None, str]:
    """An exact probe for the open file `fd` on a filesystem of type `fstype`, or None and why there is none."""
    stat = os.fstat(fd)
    why = ""
    if fstype != "overlay":
        try:
            syscalls.cachestat(fd, 0, PAGE)
        except OSError as exc:
            why = "not the owner" if exc.errno == errno.EPERM else "no cachestat"
        else:
            return _CachestatProbe(fd), ""
    if not _may_ask(fd, stat.st_uid):
        return None, "not the owner: the kernel does not say which pages are resident"
    try:
        candidate = _MincoreProbe(fd, stat.st_size)
        if stat.st_size:
            candidate.count(0, min(PAGE, stat.st_size))
    except OSError as exc:
        if exc.errno == errno.ENODEV:
            return None, f"opened with {DIRECT}: nothing is cached"
        return None, why or f"mincore failed ({errno.errorcode.get(exc.errno or 0, '?')})"
    return candidate, ""


def residency(fd: int, fstype: str) -> Residency:
    """The exact residency of the open file `fd`, or `Known.UNKNOWN` with the reason. Raises ``OSError`` from fstat only."""
    size = os.fstat(fd).st_size
    found, why = probe(fd, fstype)
    if found is None:
        return Residency.unknown(size, why)
    return count_bytes(found, size)


def count_bytes(found: Probe, size: int) -> Residency:
    """The residency of a whole file of `size` bytes by `found`."""
    if size == 0:
        return Residency(0, 0, found.known, 0)
    counted = found.count(0, size)
    pages = -(-size // PAGE)
    resident = size if counted.cached >= pages else min(size, counted.cached * PAGE)
    evicted = min(size, counted.evicted * PAGE) if found.known is Known.CACHESTAT else None
    return Residency(resident, size, found.known, evicted)


def holes(found: Probe, size: int) -> list[tuple[int, int]]:
    """(offset, length) of the stretches that hold missing pages, ascending, merged, at a grain of `GRAIN` bytes."""
    merged: list[tuple[int, int]] = []
    for offset, length in _holes(found, 0, size):
        if merged and merged[-1][0] + merged[-1][1] == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((offset, length))
    return merged


def _holes(found: Probe, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Bisect: a stretch that is all there or all missing is asked about once, whatever its size."""
    if length <= 0:
        return
    cached = found.count(offset, length).cached
    if cached >= -(-length // PAGE):
        return
    if cached == 0 or length <= GRAIN:
        yield offset, length
        return
    half = max(GRAIN, (length // 2) // GRAIN * GRAIN)
    yield from _holes(found, offset, half)
    yield from _holes(found, offset + half, length - half)


def evict(fd: int) -> None:
    """Ask the kernel to drop the pages of `fd`, written back first. What another process has mapped or locked stays."""
    with suppress(OSError):  # dirty pages cannot be dropped; where they cannot be written either, they stay
        os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class _Clock:
    """How long a page that is certainly resident takes, in seconds: median and worst of a few reads."""

    median: float
    worst: float


def estimate(fd: int, *, because: str, samples: int = 512, seed: int = 0) -> Residency:
    """An estimate by reading `samples` random pages: marked `SAMPLED` or `TIMED`, never complete.

    `because` says why there is no exact count; it is kept in the answer.

    First choice is preadv2 with RWF_NOWAIT, which says outright whether a page was there. Where the filesystem does not
    support it (FUSE), each read is timed against a page known to be resident; if hits and misses do not separate
    clearly, because a daemon answers from its own memory, the answer is `Known.UNKNOWN`. A miss brings that one page in.
    """
    size = os.fstat(fd).st_size
    pages = -(-size // PAGE)
    if pages == 0:
        return Residency(0, 0, Known.SAMPLED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # a miss must not start readahead into other samples
    # From the end to the start: touching a resident page that carries the kernel's readahead mark brings in what comes
    # after it whatever the advice says: 4 MiB in one case, with 8 MiB of readahead. No sample must come upon those.
    chosen = sample_pages(pages, samples, seed)[::-1]
    try:
        hits = sum(_there(fd, page * PAGE) for page in chosen)
        known = Known.SAMPLED
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            return Residency.unknown(
                size, f"{because}; sampling failed: {os.strerror(exc.errno or 0).lower()}"
            )
        timed = _timed_hits(fd, chosen)
        if timed is None:
            return Residency.unknown(size, f"{because}; resident and missing pages read about as fast")
        hits, known = timed, Known.TIMED
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    # When every page was asked there is no sampling error, but pages come and go: still an estimate, still below all.
    share = hits / pages if len(chosen) == pages else lower_bound(hits, len(chosen))
    return Residency(min(int(size * share), size - 1), size, known, None, because)


def _there(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) >= 0
    except BlockingIOError:
        return False


def _timed_hits(fd: int, chosen: list[int]) -> int | None:
    """How many of `chosen` pages answered as fast as a resident one; None when the two kinds cannot be told apart."""
    control = _control(fd, chosen[0] * PAGE)
    hits = unclear = 0
    for page in chosen:
        took = _time_read(fd, page * PAGE)
        if took <= max(3 * control.median, control.worst):
            hits += 1
        elif took < 10 * control.median:
            unclear += 1
    return None if unclear * 10 > len(chosen) else hits


def _control(fd: int, offset: int) -> _Clock:
    _time_read(fd, offset)
    times = sorted(_time_read(fd, offset) for _ in range(15))
    return _Clock(times[7], times[12])  # the two worst are scheduling noise


def _time_read(fd: int, offset: int) -> float:
    start = time.perf_counter()
    os.pread(fd, 1, offset)
    return time.perf_counter() - start
