"""The bytes of a fetch on their way: lanes that read ranges from the store and write them where they belong.

One object is one process's share of a fetch. Its data path is plain synchronous code in the lanes' threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Protocol

from stager.core.checksum import crc64
from stager.core.errors import Interrupted, ObjectChanged
from stager.core.pieces import Piece
from stager.core.units import shown
from stager.engine.lanes import Checkpoint, Lanes, Lease, LeaseReturned
from stager.engine.pace import Controller, PaceReport
from stager.store.opening import open_store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stager.core.location import Location
    from stager.core.model import Span
    from stager.node.partfile import PartFile
    from stager.store.base import Reader, Store
    from stager.store.opening import StoreOptions

_START = 8  # lanes at first: one connection to OSS gives 50 to 200 MB/s, so fewer only cost time
# A connection below this share of its siblings' median, for so many seconds, hangs on a slow replica or a lossy path: a
# new one is likely to be served by another. Connections that share one line differ by a factor of two or so.
_SLOW_SHARE = 0.2
_SLOW_S = 3.0
_SIBLINGS = 3  # fewer do not tell what is normal
_REMEMBERED = 32  # requests, so that the last ones of a fetch have somebody to be compared with
_TELLING = 4 << 20  # bytes; a shorter request is mostly waiting
_STALE_ANSWERS = (
    20  # 412s in a row about an object that is what it was, before that is believed to be an error
)
_PAUSE_S = 0.1
_NOTED = 4 << 20  # bytes between two lines in the journal, of one lane; a killed run loses that much
_NOTED_S = 5.0  # and as much time, on a slow line


@dataclass(frozen=True, slots=True)
class Task:
    """One object that becomes one file. `etag` is the version wanted; `keep` whether its pages are to stay."""

    path: str
    name: str
    size: int
    etag: str
    keep: bool = True


class Parts(Protocol):
    """Where the bytes go."""

    def part(self, index: int) -> AbstractContextManager[PartFile]:
        """The part file of task `index`, open within ``with``. From any thread, by several at once."""

    def add(self, index: int, piece: Piece, crc64: int | None) -> None:
        """`piece` is written. From any thread.

        `crc64` comes with the last piece of an answer: what that said of the whole object. None with the others, or where it said nothing.
        """


class Download(Protocol):
    """Spans being fetched, by this process (`Downloading`) or by others (`stager.jobs.sharing.Shared`).

    All but `run` may be asked at any time.
    """

    @property
    def retried(self) -> int:
        """Attempts that were made again."""

    @property
    def replaced(self) -> int:
        """Slow connections that were dropped."""

    @property
    def done(self) -> int:
        """Bytes that came from the store so far."""

    @property
    def busy(self) -> int:
        """Lanes that fetch something now."""

    @property
    def last_progress(self) -> float:
        """`time.monotonic` of the last byte, or of the start."""

    async def run(self) -> None:
        """Fetch everything. Raises the first error, bare; what was written by then has been added to the parts."""

    def pace(self) -> PaceReport:
        """What was found about the number of lanes."""

    def active(self) -> list[str]:
        """Names of the objects that are being read now."""

    def stuck(self) -> list[str]:
        """Names of the objects that lanes hang in after the run."""

    def watch(self) -> None:
        """Drop connections that are far slower than their siblings: their ranges are taken over. Call it every second or less."""


class Line:
    """What a lane keeps: its connection, and how fast that is."""

    def __init__(self, reader: Reader, close: Callable[[Line], None]) -> None:
        self.reader = reader
        self.moved = 0  # bytes over all requests
        self._reading = False
        self._strikes = 0  # connections in a row that were dropped
        self._close = close
        self._marks: list[tuple[float, int]] = []

    def begin(self) -> None:
        """A request begins."""
        self._marks = [(time.monotonic(), self.moved)]
        self._reading = True

    def end(self) -> float:
        """The request is over; bytes per second of all of it."""
        self._reading = False
        began, before = self._marks[0]
        return (self.moved - before) / max(1e-6, time.monotonic() - began)

    def good(self) -> None:
        """The connection did what was asked."""
        self._strikes = 0

    def rate(self, now: float) -> float | None:
        """Bytes per second lately; None until the request has lasted long enough to tell."""
        patience = _SLOW_S * 2**self._strikes
        if not self._reading or now - self._marks[0][0] < patience:
            return None
        self._marks = [self._marks[0], *self._marks[-64:], (now, self.moved)]
        then, before = [mark for mark in self._marks if now - mark[0] >= patience][-1]
        return (self.moved - before) / (now - then)

    def strike(self) -> None:
        """Drop the connection. Its successor is given twice the time, in case the store is like that."""
        self._strikes += 1
        self.begin()
        self.reader.interrupt()

    def close(self) -> None:
        """Give the connection back."""
        self._close(self)
        self.reader.close()


class _Trail:
    """What one answer has brought so far: written, and noted piece by piece, so that a kill costs a few megabytes in each lane."""

    def __init__(
        self, part: PartFile, start: int, add: Callable[[Piece, int | None], None], *, keep: bool
    ) -> None:
        self._part = part
        self._add = add
        self._keep = keep
        self._dropped = self._start = self._position = start
        self._crc = 0
        self._noted_at = time.monotonic()

    def write(self, view: memoryview) -> None:
        """The next bytes."""
        self._part.write(view, self._position)
        self._crc = crc64(view, self._crc)
        self._position += len(view)

    def note_now_and_then(self) -> None:
        """Note what was written since the last time, when that is enough or long ago."""
        length = self._position - self._start
        if length >= _NOTED or (length and time.monotonic() - self._noted_at >= _NOTED_S):
            self._drop(self._start)  # what was noted the last time has been on its way to the disk since
            self._note(None)

    def end(self, answered: int | None) -> None:
        """Note the rest; `answered` is what the answer said of the whole object's CRC."""
        if self._position > self._start:
            self._note(answered)
        self._drop(self._position)

    def _note(self, answered: int | None) -> None:
        piece = Piece(self._start, self._position - self._start, self._crc)
        self._part.flush(piece.offset, piece.length)
        self._start, self._crc, self._noted_at = piece.end, 0, time.monotonic()
        self._add(piece, answered)

    def _drop(self, end: int) -> None:
        if not self._keep and end > self._dropped:
            self._part.drop(self._dropped, end - self._dropped)
            self._dropped = end


class Downloading:
    """`Download` in this process: fetches `spans` of `tasks`, indexed by the spans, into `parts`."""

    def __init__(
        self,
        location: Location,
        options: StoreOptions,
        tasks: Sequence[Task],
        spans: Sequence[Span],
        parts: Parts,
        *,
        lanes: int,
        adapt: bool = True,
        on_retry: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self._tasks = tasks
        self._parts = parts
        self._on_retry = on_retry
        self._local = threading.local()
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        # Bytes per second of requests that were answered in full.
        self._usual: deque[float] = deque(maxlen=_REMEMBERED)
        self._doubts = [0] * len(tasks)
        self.retried = 0
        self.replaced = 0
        self._store: Store = open_store(location, options, pause=self._pause, on_retry=self._retry)
        self.controller = Controller(lanes, min(_START, lanes), adapt=adapt)
        self.lanes: Lanes[Line] = Lanes(
            spans,
            read=self._read,
            kit=self._line,
            controller=self.controller,
            rouse=lambda line: line.reader.interrupt(),
        )

    @property
    def done(self) -> int:
        """Bytes that came from the store so far."""
        return self.lanes.done

    @property
    def busy(self) -> int:
        """Lanes that fetch something now."""
        return self.lanes.busy

    @property
    def last_progress(self) -> float:
        """`time.monotonic` of the last byte, or of the start."""
        return self.lanes.last_progress

    async def run(self) -> None:
        """Fetch everything. Raises the first error, bare; what was written by then has been added to the parts."""
        await self.lanes.run()

    def pace(self) -> PaceReport:
        """What was found about the number of lanes."""
        return self.controller.report()

    def active(self) -> list[str]:
        """Names of the objects that are being read now."""
        return [self._tasks[span.index].name for span, _, _ in self.lanes.active()]

    def stuck(self) -> list[str]:
        """Names of the objects that lanes hang in after the run."""
        return [self._tasks[index].name for index in self.lanes.stuck()]

    def watch(self) -> None:
        """Drop connections that are far slower than others were or are: their ranges are taken over. Call it every second or less."""
        now = time.monotonic()
        with self._lock:
            rates = [(rate, line) for line in self._lines if (rate := line.rate(now)) is not None]
            usual = list(self._usual)
        # When all are slow now, it is not the connections. When few are left, what was usual before tells.
        siblings = [rate for rate, _ in rates]
        known = [median(some) for some in (siblings, usual) if len(some) > _SIBLINGS]
        normal = min(known, default=0.0)
        for rate, line in rates:
            if rate < _SLOW_SHARE * normal:
                line.strike()
                self.replaced += 1

    # In the lanes' threads

    def _line(self) -> Line:
        line = Line(self._store.reader(), self._forget)
        with self._lock:
            self._lines.append(line)
        return line

    def _forget(self, line: Line) -> None:
        with self._lock:
            self._lines.remove(line)

    def _retry(self, doing: str, error: Exception) -> None:
        with self._lock:
            self.retried += 1
        if self._on_retry is not None:
            self._on_retry(doing, error)

    def _pause(self, seconds: float) -> None:
        """Wait in a lane, but not beyond the end of the run."""
        checkpoint: Checkpoint | None = getattr(self._local, "checkpoint", None)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _PAUSE_S))
            if checkpoint is not None:
                checkpoint(0)

    def _read(self, lease: Lease, line: Line, checkpoint: Checkpoint) -> None:
        """One range: read, written, its CRC taken on the way. What was written counts, however the read ended."""
        self._local.checkpoint = checkpoint
        with self._parts.part(lease.span.index) as part:
            self._read_into(part, lease, line, checkpoint)

    def _read_into(self, part: PartFile, lease: Lease, line: Line, checkpoint: Checkpoint) -> None:
        task, start, answered = self._tasks[lease.span.index], lease.position, None
        length = lease.take(lease.end - start)  # all of it: a request cannot be cut
        trail = _Trail(part, start, partial(self._parts.add, lease.span.index), keep=task.keep)

        def sink(view: memoryview) -> None:
            size = len(view)
            trail.write(view)
            lease.advance(size, keep=True)
            line.moved += size
            if lease.position < start + length:  # the last piece waits for what the answer says
                trail.note_now_and_then()
            checkpoint(size)

        line.begin()
        try:
            answered = line.reader.read(task.name, start, length, sink, etag=task.etag).crc64
            self._answered(line, length)
        except Interrupted:
            raise LeaseReturned from None
        except ObjectChanged:
            self._doubt(lease.span.index)
            raise LeaseReturned from None
        finally:
            line.end()
            trail.end(answered)

    def _answered(self, line: Line, length: int) -> None:
        rate = line.end()
        line.good()
        if length >= _TELLING:
            with self._lock:
                self._usual.append(rate)

    def _doubt(self, index: int) -> None:
        """The store says that an object has changed. Raise `ObjectChanged` when it really has."""
        task = self._tasks[index]
        now = self._store.head(task.name)
        with self._lock:
            self._doubts[index] += 1
            self.retried += 1
        if (now.etag, now.size) != (task.etag, task.size) or self._doubts[index] > _STALE_ANSWERS:
            raise ObjectChanged(
                f"`{shown(task.name)}` was replaced while it was being fetched",
                hint="fetch again once whoever writes the model has finished",
            )
        self._pause(_PAUSE_S)
