"""Bytes going out: lanes send what came in, part by part, in the order in which it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stager.engine.lanes import Checkpoint, Lanes, Lease
from stager.engine.pace import Controller

if TYPE_CHECKING:
    from stager.core.model import Span
    from stager.engine.buffers import Buffers
    from stager.jobs.inflow import Portion
    from stager.jobs.lines import Pauses

_LOOK_S = 0.1  # between two looks whether the run is over


class _NoKit:
    """Lanes that send need nothing of their own: connections belong to uploads."""

    def close(self) -> None:
        """Nothing to give back."""


class Outflow:
    """Sends every part of `spans` with `send`, once `hand_on` has brought it, and gives its memory back.

    As many lanes as the incoming side may have, each waiting for the part that is next in the order: which of both sides is the slower one shows by
    itself, in memory that is lent out or lanes that wait.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        buffers: Buffers,
        send: Callable[[Portion, Checkpoint], None],
        *,
        lanes: int,
        pauses: Pauses,
    ) -> None:
        """`send(portion, checkpoint)` is called in a lane; it may wait if it calls `checkpoint` meanwhile."""
        self._buffers = buffers
        self._send = send
        self._pauses = pauses
        self._ready: dict[tuple[int, int], Portion] = {}
        self._names: dict[int, str] = {}
        self._in_hand: dict[tuple[int, int], str] = {}
        self._awaited: dict[tuple[int, int], threading.Event] = {}
        self._lock = threading.Lock()
        self.lanes: Lanes[_NoKit] = Lanes(
            spans,
            read=self._write,
            kit=_NoKit,
            controller=Controller(lanes, lanes, adapt=False),
            whole=True,
        )

    def hand_on(self, index: int, portion: Portion) -> None:
        """`portion` of file `index` may be sent. From any thread."""
        key = (index, portion.number * portion.stream.step)
        with self._lock:
            self._names[index] = portion.stream.feed.name
            self._ready[key] = portion
            if (awaited := self._awaited.pop(key, None)) is not None:
                awaited.set()

    async def run(self) -> None:
        """Send everything. Raises the first error, bare."""
        await self.lanes.run()

    def sending(self) -> list[str]:
        """Names of the files that are being sent now: what has come in of them waits for the destination alone."""
        with self._lock:
            return sorted(set(self._in_hand.values()))

    def stuck(self) -> list[str]:
        """Names of the files that lanes hang in after the run."""
        return [self._names[index] for index in self.lanes.stuck() if index in self._names]

    def _write(self, lease: Lease, _kit: _NoKit, checkpoint: Checkpoint) -> None:
        span = lease.span
        lease.take(span.length)
        portion, key = self._wait(span, checkpoint), (span.index, span.offset)
        with self._lock:
            self._in_hand[key] = portion.stream.feed.name
        counted = 0

        def progress(size: int) -> None:
            """Bytes count as they go out, those that go out again only once."""
            nonlocal counted
            size = min(size, span.length - counted)
            counted += size
            checkpoint(size)

        try:
            with self._pauses.ended_by(checkpoint):
                self._send(portion, progress)
        finally:
            with self._lock:
                del self._in_hand[key]
            if portion.buffer is not None:
                self._buffers.give(portion.buffer)
        checkpoint(span.length - counted)

    def _wait(self, span: Span, checkpoint: Checkpoint) -> Portion:
        key, came = (span.index, span.offset), threading.Event()
        with self._lock:
            if key in self._ready:
                came.set()
            else:
                self._awaited[key] = came
        while not came.wait(_LOOK_S):
            checkpoint(0)
        with self._lock:
            return self._ready.pop(key)
