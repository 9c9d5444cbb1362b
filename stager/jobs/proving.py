"""Files read where they lie, to be held against what is promised of them. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from stager.core.ranges import in_parts
from stager.engine import runtime
from stager.engine.buffers import Buffers
from stager.jobs.inflow import Inflow, refuse_large
from stager.jobs.pulse import Pulse

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.inflow import Portion, Stream
    from stager.jobs.lines import Pauses
    from stager.store.base import Reader

_TICK_S = 0.25
_ABREAST = 8  # files under way at once, at least as many as there are cores to hash them


class Proving:
    """Reads `streams` through, all of each, with connections from `open_reader`; afterwards their digests and CRCs are known.

    `lanes`, `adapt` and `buffer` (bytes) as for a pull. `verb` is what progress calls it.
    """

    def __init__(
        self,
        open_reader: Callable[[], Reader],
        streams: Sequence[Stream],
        reporter: Reporter,
        *,
        verb: str,
        lanes: int,
        adapt: bool,
        buffer: int,
        stall_timeout: float | None,
        pauses: Pauses,
    ) -> None:
        self._streams = streams
        self._files_read: set[int] = set()
        sizes = {at: one.feed.size for at, one in enumerate(streams)}
        spans = in_parts(sizes, min(_ABREAST, lanes))
        self._buffer = buffer
        self._buffers = Buffers(buffer)
        self._inflow = Inflow(
            open_reader, streams, spans, self._buffers, self._read, lanes=lanes, adapt=adapt, pauses=pauses
        )
        self._pulse = Pulse(verb, sum(sizes.values()), len(streams), reporter, stall_timeout)
        self.seconds = 0.0

    @property
    def read(self) -> int:
        """Bytes so far."""
        return self._inflow.lanes.done

    @property
    def lanes(self) -> int:
        """What the controller settled on."""
        return self._inflow.pace().lanes

    def stuck(self) -> list[str]:
        """Names of files that lanes still hang in after the run."""
        return self._inflow.stuck()

    async def run(self) -> None:
        """Read everything. Raises the first error, bare; `ResourceRefused` for parts larger than `buffer`."""
        if not self._streams:
            return
        refuse_large(self._streams, self._buffer)
        self._pulse.started = started = time.monotonic()
        try:
            async with runtime.ticking(_TICK_S, partial(self._tick)):
                await self._inflow.run()
        finally:
            self._buffers.close()
            self.seconds = time.monotonic() - started
            self._pulse.tell(self.read, len(self._files_read), self.lanes)

    def _read(self, index: int, portion: Portion) -> None:
        assert portion.buffer is not None
        self._buffers.give(portion.buffer)
        if portion.last:
            self._files_read.add(index)

    def _tick(self) -> None:
        self._inflow.watch()
        lanes = self._inflow.lanes
        last, active = lanes.last_progress, self._inflow.active()
        self._pulse.beat(self.read, len(self._files_read), lanes.busy, last=last, active=active)
