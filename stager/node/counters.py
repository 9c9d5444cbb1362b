"""What is counted: bytes that came from below a mount, by the kernel or in a file somebody named, and how often the page cache was dropped."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.bench.counting import COUNTER, DISKSTATS, NFS
from stager.node.mounts import unescape

if TYPE_CHECKING:
    from stager.node.mounts import Mount

_NFS = ("nfs", "nfs4")
_MOUNTSTATS = "/proc/self/mountstats"
_MOUNTED = re.compile(r"device .* mounted on (\S+) with fstype (\S+)")
_FROM_SERVER = 4  # of the numbers after "bytes:", that of bytes which READ calls brought from the server
_LONGEST = 64  # characters of a number


@dataclass(frozen=True, slots=True)
class Counter:
    """What counts the bytes from below a mount: `by` one of the words in ``core.bench.counting``, empty for nothing.

    `what` is the block device, the mount point, or the file.
    """

    by: str = ""
    what: str = ""

    def read(self) -> int | None:
        """Bytes so far, for anybody; None where nothing counts them, or not any more."""
        if self.by == DISKSTATS:
            return delivered(self.what)
        try:
            if self.by == NFS:
                with open(_MOUNTSTATS, encoding="utf-8", errors="surrogateescape") as file:
                    return from_server(file.read(), self.what)
            return number_in(self.what) if self.by == COUNTER else None
        except (OSError, ValueError):
            return None

    def __str__(self) -> str:
        """Where anybody can read it; empty for nothing."""
        if self.by == DISKSTATS:
            return f"/proc/diskstats, {self.what}"
        return f"{_MOUNTSTATS}, {self.what}" if self.by == NFS else self.what


def counter_of(mount: Mount) -> Counter:
    """The kernel's own counter of what comes from below `mount`."""
    if name := block_device(mount.device):
        return Counter(DISKSTATS, name)
    found = Counter(NFS, mount.point) if mount.fstype in _NFS else Counter()
    return found if found.read() is not None else Counter()


def number_in(path: str) -> int:
    """The one number, 0 or more, that the file holds. Raises ``OSError``, and ``ValueError`` when it holds anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold it up
    try:
        text = os.read(fd, _LONGEST + 1).strip()
    finally:
        os.close(fd)
    if not text.isdigit() or len(text) > _LONGEST:
        raise ValueError("it does not hold one number")
    return int(text)


def from_server(text: str, point: str) -> int | None:
    """Bytes that READ calls have brought to the NFS mount at `point`, from the text of ``/proc/self/mountstats``; None without it."""
    found, here = None, False
    for line in text.splitlines():
        if match := _MOUNTED.match(line):
            here = unescape(match[1]) == point and match[2] in _NFS
        elif here and line.split()[:1] == ["bytes:"]:
            numbers = line.split()[1:]
            if len(numbers) > _FROM_SERVER and _decimal(numbers[_FROM_SERVER]):
                found = int(numbers[_FROM_SERVER])  # of several on one point the last lies on top
    return found


def _decimal(text: str) -> bool:
    return text.isascii() and text.isdigit()


def block_device(number: str) -> str:
    """The name of the block device ``major:minor`` that counts what is read from it; empty where there is none."""
    return next((name for found, name, _ in _diskstats() if found == number), "")


def delivered(device: str) -> int | None:
    """Bytes that the block device of this name has read since boot, for anybody; None where there is none."""
    return next((size for _, name, size in _diskstats() if name == device), None) if device else None


def cache_drops() -> int:
    """How often anybody dropped the whole page cache since boot; 0 where the kernel does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("drop_pagecache ")), 0)
    except OSError:
        return 0


def _diskstats() -> list[tuple[str, str, int]]:
    """(``major:minor``, name, bytes read) of every block device."""
    found = []
    try:
        with open("/proc/diskstats", encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                found.append((f"{words[0]}:{words[1]}", words[2], int(words[5]) * 512))
    except (OSError, ValueError, IndexError):
        return []
    return found
