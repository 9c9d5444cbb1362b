"""Ways to bring a file's pages into the cache, each a kit that one lane owns.

How pages enter decides two things: the CPU it costs, and whether the pages outlive the next stream of reads.

* `SpliceKit`: file -> pipe -> /dev/null. Nothing is copied; a tenth of the CPU of read(2). Pages enter as by a read.
* `PopulateKit`: MADV_POPULATE_READ through a mapping. Pages enter by a fault, which MGLRU and the classic LRU both treat
  as used: the only single pass that survives a stream under either. What ``--protect`` uses.
* `ReadKit`: preadv(2) into one reused buffer. Works everywhere.

A kit's ``touch(fd, offset, length)`` makes one step, brings in at most `length` bytes ascending from `offset`, and
returns how many: less than asked is normal, 0 means the file ends there. ``OSError`` carries the errno of the read that failed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Protocol

from stager.core.units import MIB
from stager.node.syscalls import PAGE, Mapping

STEP = MIB  # 1-4 MiB cost the same CPU per byte, 128 KiB two to three times as much, 16 MiB falls out of the L2 cache


class Kit(Protocol):
    """What one lane uses to touch pages; see the module's docstring for the contract of `touch`."""

    name: str

    def touch(self, fd: int, offset: int, length: int) -> int:
        """Bring in up to `length` bytes from `offset`; the number brought in."""
        ...

    def close(self) -> None:
        """Give descriptors and buffers back."""
        ...


class ReadKit:
    """preadv into one reused buffer of `STEP` bytes."""

    name = "read"

    def __init__(self) -> None:
        self._buffers = [bytearray(STEP)]
        self._view = memoryview(self._buffers[0])

    def touch(self, fd: int, offset: int, length: int) -> int:
        """One preadv."""
        return os.preadv(fd, [self._view[: min(length, STEP)]], offset)

    def close(self) -> None:
        """Drop the buffer."""
        self._view.release()
        self._buffers.clear()


class SpliceKit:
    """Copy-free read: file to pipe to /dev/null. Falls back to preadv where a file cannot be spliced."""

    name = "splice"

    def __init__(self) -> None:
        self._out, self._into = os.pipe()
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self._fallback: ReadKit | None = None
        try:
            self._step = fcntl.fcntl(self._into, fcntl.F_SETPIPE_SZ, STEP)
        except OSError:  # beyond the user's pipe quota: the default of 64 KiB works, at more CPU
            self._step = fcntl.fcntl(self._into, fcntl.F_GETPIPE_SZ)

    def touch(self, fd: int, offset: int, length: int) -> int:
        """One splice in, as many out as it takes."""
        if self._fallback is not None:
            return self._fallback.touch(fd, offset, length)
        try:
            moved = left = os.splice(fd, self._into, min(length, self._step), offset_src=offset)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self._fallback = ReadKit()
            self.name = ReadKit.name
            return self._fallback.touch(fd, offset, length)
        while left:
            left -= os.splice(self._out, self._null, left)
        return moved

    def close(self) -> None:
        """Close the pipe."""
        for fd in (self._out, self._into, self._null):
            os.close(fd)
        if self._fallback is not None:
            self._fallback.close()


class PopulateKit:
    """MADV_POPULATE_READ, `passes` times over, each through a mapping of its own.

    Under the classic LRU a second touch makes pages active; under MGLRU the first fault decides and one pass is enough. Populating
    again what is mapped already is no touch: a kernel 6.18 counts the second one when the pages were unmapped in between (256 of
    256 MB outlived a stream of 4 GB through a memory cgroup of 1 GB, 40 without), for 25 ms of CPU a GB.
    Falls back to preadv for files that cannot be mapped (FUSE with direct_io) and kernels before 5.14.
    """

    name = "populate"

    def __init__(self, passes: int = 1) -> None:
        self._passes = passes
        self._reader: ReadKit | None = None

    def touch(self, fd: int, offset: int, length: int) -> int:
        """Fault up to 4 steps in."""
        if self._reader is not None and self.name == ReadKit.name:
            return self._reader.touch(fd, offset, length)
        start = offset - offset % PAGE
        count = min(length + offset - start, 4 * STEP)
        try:
            for _ in range(self._passes):
                with Mapping(fd, start, count) as mapping:
                    mapping.populate(start, count)
        except OSError as exc:
            return self._explain(exc, fd, offset, length)
        return count - (offset - start)

    def _explain(self, exc: OSError, fd: int, offset: int, length: int) -> int:
        """A fault says only EFAULT: read the same bytes to learn the real errno, or that the file has shrunk."""
        if exc.errno not in (errno.EFAULT, errno.EINVAL, errno.ENODEV, errno.ENOSYS):
            raise exc
        if self._reader is None:
            self._reader = ReadKit()
        if exc.errno != errno.EFAULT:
            self.name = ReadKit.name
        return self._reader.touch(fd, offset, length)

    def close(self) -> None:
        """Drop the buffer."""
        if self._reader is not None:
            self._reader.close()
