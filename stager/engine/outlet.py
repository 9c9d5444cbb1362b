"""A stream that cannot stop a job: a bounded queue and a writer thread in front of a descriptor."""

from __future__ import annotations

import errno
import math
import os
import select
import threading
import time
from collections import deque
from typing import IO

QUEUE_BYTES = 8 << 20  # about 50,000 lines of status, and little beside the 100 MiB that stager may use
_CHUNK = select.PIPE_BUF  # writes up to this size are atomic on a pipe, so lines of two processes never mix


class Outlet:
    """One stream with a bounded queue and a writer thread that starts with the first line.

    The writer uses the raw descriptor: a daemon thread that hangs in a full pipe while holding the lock of a buffered
    ``sys.stdout`` would block the interpreter's exit. The descriptor's flags are shared with other processes and stay
    as they are. A stream without a descriptor (in-memory, under test) is written through its own ``write``.
    """

    def __init__(self, file: IO[str] | None, patience: float) -> None:
        self.patience = patience
        self.lost = False
        self.error: int | None = None  # the errno that ended it; None also for a reader that went away
        self._file = file
        self._fd, self._identity = _descriptor(file)
        self._encoding = getattr(file, "encoding", None) or "utf-8"
        self._dead = file is None or self._identity is None
        self._queue: deque[tuple[bytes, bool]] = deque()
        self._size = 0  # bytes queued or being written
        self._moved = 0.0  # when the reader last took something, or the queue began to fill
        self._closed = False
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None

    @property
    def is_terminal(self) -> bool:
        """True for a terminal that can go back to the start of its line."""
        capable = os.environ.get("TERM", "dumb") != "dumb"
        return capable and not self._dead and self._fd is not None and os.isatty(self._fd)

    @property
    def is_unicode(self) -> bool:
        """True when bar characters can be written."""
        return self._encoding.lower().replace("-", "").startswith("utf")

    @property
    def columns(self) -> int:
        """The terminal's width now, 80 where it does not say."""
        try:
            return os.get_terminal_size(self._fd if self._fd is not None else -1).columns or 80
        except OSError:
            return 80

    def same_as(self, other: Outlet) -> bool:
        """True when both lead to the same file, pipe or terminal."""
        return not self._dead and not other._dead and self._identity == other._identity

    def put(self, text: str, *, droppable: bool = False) -> None:
        """Queue `text`. A droppable one gives way to a newer one, and when the queue is full."""
        data = text.encode(self._encoding, "backslashreplace")
        with self._changed:
            if droppable and self._queue and self._queue[-1][1]:
                self._size -= len(self._queue.pop()[0])
            if self._dead or self._closed or not self._make_room(len(data), wait=not droppable):
                self.lost |= not droppable
                return
            if not self._size:
                self._moved = time.monotonic()
            self._queue.append((data, droppable))
            self._size += len(data)
            if self._writer is None:
                self._start()
            self._changed.notify_all()

    def close(self, deadline: float) -> None:
        """Let the writer finish until `deadline` (``time.monotonic``), then give up what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._size and not self._dead and self._wait(deadline):
                pass
            if self._size:
                self._die()
        if self._writer is not None and not self._dead:
            self._writer.join(max(0.0, min(1.0, deadline - time.monotonic())))

    def _start(self) -> None:
        writer = threading.Thread(target=self._write_all, name="stager-report", daemon=True)
        try:
            writer.start()
            self._writer = writer
        except RuntimeError:  # no more threads allowed: this may be the line that says so, write it from here
            while self._queue:
                self._write(self._next_batch())

    def _make_room(self, size: int, *, wait: bool) -> bool:
        """True when `size` more bytes fit; waits for a reader only while that reader moves."""
        while self._size and self._size + size > QUEUE_BYTES:
            if not wait or self._dead or not self._wait(self._moved + self.patience):
                return False
        return not self._dead

    def _wait(self, until: float) -> bool:
        left = until - time.monotonic()
        if left > 0:
            self._changed.wait(None if math.isinf(left) else left)
        return left > 0

    def _die(self) -> None:
        """The stream is gone: forget what was queued. An interrupted write may have lost a line, so it counts."""
        self._dead = True
        self.lost |= self._size > sum(len(data) for data, droppable in self._queue if droppable)
        self._queue.clear()
        self._size = 0
        self._changed.notify_all()

    def _write_all(self) -> None:
        while batch := self._next_batch():
            self._write(batch)

    def _next_batch(self) -> bytes:
        """Whole lines of about one atomic write; empty when there is nothing more to do."""
        with self._changed:
            while not self._queue and not self._closed and not self._dead:
                self._changed.wait()
            batch = bytearray()
            while self._queue and (not batch or len(batch) + len(self._queue[0][0]) <= _CHUNK):
                batch += self._queue.popleft()[0]
            return bytes(batch)

    def _write(self, batch: bytes) -> None:
        # EPIPE, EBADF, ENOSPC, EIO of a lost terminal; ValueError for a closed file object.
        try:
            self._write_through(batch)
        except (OSError, ValueError) as exc:
            with self._changed:
                if isinstance(exc, OSError) and exc.errno != errno.EPIPE:
                    self.error = exc.errno
                self._die()

    def _write_through(self, batch: bytes) -> None:
        rest = memoryview(batch)
        while rest and not self._dead:
            if self._fd is None:
                assert self._file is not None
                self._file.write(batch.decode(self._encoding))
                self._file.flush()
                count = len(rest)
            else:
                count = _write_some(self._fd, rest[:_CHUNK])
            rest = rest[count:]
            with self._changed:
                self._size = max(0, self._size - count)
                self._moved = time.monotonic()
                self._changed.notify_all()


def _descriptor(file: IO[str] | None) -> tuple[int | None, object]:
    """The descriptor of `file` (None: it has none) and what identifies its target (None: it is closed)."""
    if file is None or getattr(file, "closed", False):
        return None, None
    try:
        fd = file.fileno()
    except (OSError, ValueError, AttributeError):
        return None, file
    try:
        stat = os.fstat(fd)
    except OSError:
        return fd, None
    return fd, (stat.st_dev, stat.st_ino)


def _write_some(fd: int, data: memoryview) -> int:
    """Bytes written; waits where another process has made the descriptor non-blocking."""
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll()
