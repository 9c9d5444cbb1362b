"""Bytes coming in: lanes read files part by part into lent memory; each file is hashed in order, and its parts are handed on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from stager.core.checksum import combine, crc64
from stager.core.errors import Interrupted, ResourceRefused
from stager.core.ranges import part_size
from stager.core.units import format_size, shown
from stager.engine.lanes import Checkpoint, Lanes, Lease
from stager.engine.pace import Controller, PaceReport
from stager.jobs.lines import Line, Lines, Pauses

if TYPE_CHECKING:
    from stager.core.model import Span
    from stager.engine.buffers import Buffer, Buffers
    from stager.store.base import Reader

_START = 8  # lanes at first: one connection to a hub or to OSS gives 50 to 200 MB/s, so fewer only cost time


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: memoryview, /) -> None:
        """Take these bytes after those before."""

    def hexdigest(self) -> str:
        """Of all bytes taken."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One file to be read: `version` is the ``etag`` that `Reader.read` takes."""

    name: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Portion:
    """Part `number` (from 0) of `stream`, whole and hashed. `buffer` is None for one that was left out: it is at its destination already.

    `crc` is its CRC-64, of the bytes as they came in; 0 where it was left out.
    """

    stream: Stream
    number: int
    buffer: Buffer | None = None
    crc: int = 0

    @property
    def last(self) -> bool:
        """Whether it is the file's last."""
        return self.number == self.stream.count - 1


class Stream:
    """One file while it comes in: its parts arrive in any order, are hashed in ascending order, and handed on in that."""

    def __init__(self, feed: Feed, digest: Digest | None = None) -> None:
        """`digest` is fed with the file's bytes; it is None where nothing is hashed, or not any more."""
        self.feed = feed
        self.step = part_size(feed.size)
        self.count = max(1, -(-feed.size // self.step))
        self.digest = digest
        self._crcs: dict[int, tuple[int, int]] = {}
        self._head = 0  # the part whose bytes come next
        self._waiting: dict[int, Portion] = {}
        self._lock = threading.Lock()

    @property
    def hexdigest(self) -> str | None:
        """Of the whole file, once its last part was handed on; None where parts were left out, or nothing is hashed."""
        return self.digest.hexdigest() if self.digest is not None else None

    @property
    def crc64(self) -> int:
        """Of the whole file, once its last part was handed on."""
        folded = 0
        for _, (crc, size) in sorted(self._crcs.items()):
            folded = combine(folded, crc, size)
        return folded

    def stop_hashing(self) -> None:
        """Parts of this file will be left out: there is no digest of the whole. Before the first of them."""
        self.digest = None

    def hash_ahead(self, number: int, view: memoryview, done: int) -> int:
        """Hash the part `number` as far as it has come, `view`, when it is its turn; how many bytes of it are hashed then, `done` so far."""
        digest = self.digest
        if digest is None or number != self._head:
            return done
        digest.update(view[done:])
        return len(view)

    def arrived(self, portion: Portion, done: int, hand_on: Callable[[Portion], None]) -> None:
        """Part `portion` is all there, `done` bytes of it hashed already. Hands on it and those that waited for it, or leaves it waiting."""
        with self._lock:
            if portion.buffer is not None:
                self._crcs[portion.number] = (portion.crc, len(portion.buffer.view))
            if portion.number != self._head:
                self._waiting[portion.number] = portion
                return
        current: Portion | None = portion
        while current is not None:
            if current.buffer is not None and (digest := self.digest) is not None:
                digest.update(current.buffer.view[done:])
            done = 0
            hand_on(current)
            with self._lock:
                self._head += 1
                current = self._waiting.pop(self._head, None)


def refuse_large(streams: Sequence[Stream], buffer: int) -> None:
    """Raise `ResourceRefused` where a part of one of `streams` would not fit into `buffer` bytes."""
    largest = max(streams, key=lambda one: one.feed.size, default=None)
    if largest is None or (needed := min(largest.step, largest.feed.size)) <= buffer:
        return
    size, part = format_size(largest.feed.size), format_size(needed)
    raise ResourceRefused(
        f"`{shown(largest.feed.name)}` of {size} goes in parts of {part}, and --buffer holds {format_size(buffer)}",
        hint=f"give `--buffer {format_size(2 * needed).replace(' ', '')}` or more",
    )


class Inflow:
    """Reads `spans` of `streams`, which are their parts in the order wanted; `hand_on` gets the index and every part, ascending within a file.

    `leave_out(index, number)` says of a part, from a lane and perhaps after a look somewhere, that it need not be read. Whoever gets a `Portion` gives
    its buffer back.
    """

    def __init__(
        self,
        open_reader: Callable[[], Reader],
        streams: Sequence[Stream],
        spans: Sequence[Span],
        buffers: Buffers,
        hand_on: Callable[[int, Portion], None],
        *,
        lanes: int,
        adapt: bool,
        pauses: Pauses,
        leave_out: Callable[[int, int], bool] = lambda _index, _number: False,
    ) -> None:
        self._streams = streams
        self._buffers = buffers
        self._hand_on = hand_on
        self._leave_out = leave_out
        self._pauses = pauses
        self._turns = {(span.index, span.offset): turn for turn, span in enumerate(spans)}
        self._lines = Lines()
        self.controller = Controller(lanes, min(_START, lanes), adapt=adapt)
        self.lanes: Lanes[Line] = Lanes(
            spans,
            read=self._read,
            kit=lambda: self._lines.open(open_reader()),
            controller=self.controller,
            rouse=lambda line: line.reader.interrupt(),
            whole=True,
        )

    @property
    def replaced(self) -> int:
        """Slow connections that were dropped."""
        return self._lines.replaced

    async def run(self) -> None:
        """Read everything. Raises the first error, bare."""
        await self.lanes.run()

    def pace(self) -> PaceReport:
        """What was found about the number of lanes."""
        return self.controller.report()

    def active(self) -> list[str]:
        """Names of the files that are being read now."""
        return [self._streams[span.index].feed.name for span, _, _ in self.lanes.active()]

    def stuck(self) -> list[str]:
        """Names of the files that lanes hang in after the run."""
        return [self._streams[index].feed.name for index in self.lanes.stuck()]

    def watch(self) -> None:
        """Drop connections that are far slower than their siblings. Call it every second or less."""
        self._lines.watch()

    # In the lanes' threads

    def _read(self, lease: Lease, line: Line, checkpoint: Checkpoint) -> None:
        span = lease.span
        stream = self._streams[span.index]
        number, turn = span.offset // stream.step, self._turns[span.index, span.offset]
        hand_on = partial(self._hand_on, span.index)
        lease.take(span.length)
        with self._pauses.ended_by(checkpoint):
            if self._leave_out(span.index, number):
                self._buffers.passed(turn, checkpoint)
                stream.arrived(Portion(stream, number), 0, hand_on)
                return
            buffer = self._buffers.take(turn, span.length, checkpoint)
            hashed, crc = self._fill(stream, span, buffer, line, checkpoint)
            stream.arrived(Portion(stream, number, buffer, crc), hashed, hand_on)

    def _fill(
        self, stream: Stream, span: Span, buffer: Buffer, line: Line, checkpoint: Checkpoint
    ) -> tuple[int, int]:
        """Read all of `span` into `buffer`: how many bytes are hashed already, and the CRC. A connection dropped as slow is followed by another."""
        number, filled, hashed, crc = span.offset // stream.step, 0, 0, 0

        def sink(block: memoryview) -> None:
            nonlocal filled, hashed, crc
            size = len(block)
            crc = crc64(block, crc)  # while the block is in the cache
            filled += size
            line.moved += size
            hashed = stream.hash_ahead(number, buffer.view[:filled], hashed)
            checkpoint(size)

        read = partial(line.reader.read, stream.feed.name, sink=sink, etag=stream.feed.version)
        while filled < span.length:
            line.begin()
            try:
                read(span.offset + filled, span.length - filled, into=buffer.view[filled:])
                self._lines.answered(line, span.length)
            except Interrupted:
                checkpoint(0)
            finally:
                line.end()
        return hashed, crc
