"""The bytes of a fetch on their way: lanes that read ranges from the store and write them where they belong.

One object is one process's share of a fetch. Its data path is plain synchronous code in the lanes' threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from stager.core.checksum import crc64
from stager.core.errors import Interrupted, ObjectChanged
from stager.core.pieces import Piece
from stager.core.units import shown
from stager.engine.lanes import Checkpoint, Lanes, Lease, LeaseReturned
from stager.engine.pace import Controller, PaceReport
from stager.jobs.lines import Line, Lines, Pauses
from stager.store.opening import open_store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stager.core.location import Location
    from stager.core.model import Span
    from stager.node.partfile import PartFile
    from stager.store.base import Store
    from stager.store.opening import StoreOptions

_START = 8  # lanes at first: one connection to OSS gives 50 to 200 MB/s, so fewer only cost time
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
        self._pauses = Pauses()
        self._lines = Lines()
        self._lock = threading.Lock()
        self._doubts = [0] * len(tasks)
        self.retried = 0
        self._store: Store = open_store(location, options, pause=self._pauses, on_retry=self._retry)
        self.controller = Controller(lanes, min(_START, lanes), adapt=adapt)
        self.lanes: Lanes[Line] = Lanes(
            spans,
            read=self._read,
            kit=self._line,
            controller=self.controller,
            rouse=lambda line: line.reader.interrupt(),
        )

    @property
    def replaced(self) -> int:
        """Slow connections that were dropped."""
        return self._lines.replaced

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
        self._lines.watch()

    # In the lanes' threads

    def _line(self) -> Line:
        return self._lines.open(self._store.reader())

    def _retry(self, doing: str, error: Exception) -> None:
        with self._lock:
            self.retried += 1
        if self._on_retry is not None:
            self._on_retry(doing, error)

    def _read(self, lease: Lease, line: Line, checkpoint: Checkpoint) -> None:
        """One range: read, written, its CRC taken on the way. What was written counts, however the read ended."""
        with self._pauses.ended_by(checkpoint), self._parts.part(lease.span.index) as part:
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
            self._lines.answered(line, length)
        except Interrupted:
            raise LeaseReturned from None
        except ObjectChanged:
            self._doubt(lease.span.index)
            raise LeaseReturned from None
        finally:
            line.end()
            trail.end(answered)

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
        self._pauses(_PAUSE_S)
