"""The bytes of a pull: files stream from the hub into the destination through memory, and what comes wrong is asked for once more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import IntegrityError
from stager.core.ranges import in_parts
from stager.core.units import MIB, shown
from stager.engine import runtime
from stager.engine.buffers import Buffers
from stager.jobs.inflow import Inflow, refuse_large
from stager.jobs.outflow import Outflow
from stager.jobs.pulse import Pulse
from stager.jobs.transit import Transit

if TYPE_CHECKING:
    from collections.abc import Callable

    from stager.engine.lanes import Checkpoint
    from stager.engine.report import Reporter
    from stager.hub.base import Hub
    from stager.jobs.inflow import Portion
    from stager.jobs.lines import Pauses
    from stager.jobs.options import PullOptions
    from stager.store.base import Store

_TICK_S = 0.25
_ABREAST = 8  # files under way at once where parts of one may go side by side; each is hashed by one core at 1.8 GB/s


class Transfer:
    """Moves files from `hub` into `store`. What it did is in its attributes, also after it was cut short.

    `pulled` bytes came from the hub; `resumed` were at the destination from an earlier run. `mended` files came wrong at first.
    A file that cannot be gone on with begins anew in the same run, and does not count as wrong.
    """

    def __init__(
        self,
        hub: Hub,
        store: Store,
        options: PullOptions,
        reporter: Reporter,
        *,
        pauses: Pauses,
        side_by_side: bool,
    ) -> None:
        """`side_by_side`: the destination takes parts of one file over several connections."""
        self._hub = hub
        self._store = store
        self._options = options
        self._reporter = reporter
        self._pauses = pauses
        self._abreast = min(_ABREAST, options.lanes) if side_by_side else options.lanes
        self._inflows: list[Inflow] = []
        self._outflows: list[Outflow] = []
        self._transits: list[Transit] = []
        self.seconds = 0.0
        self.lanes = 0
        self.peak = 0
        self.mended = 0

    @property
    def pulled(self) -> int:
        """Bytes that came from the hub so far."""
        return sum(one.lanes.done for one in self._inflows)

    @property
    def resumed(self) -> int:
        """Bytes that were at the destination from an earlier run."""
        return sum(one.resumed for one in self._transits)

    @property
    def landed(self) -> int:
        """Bytes that are at the destination, resumed ones among them, and none of a file that came wrong."""
        return sum(one.landed for one in self._transits)

    @property
    def replaced(self) -> int:
        """Slow connections that were dropped."""
        return sum(one.replaced for one in self._inflows)

    def finished(self) -> list[Transit]:
        """The files that are complete at the destination so far. From any thread."""
        return [one for one in list(self._transits) if one.done is not None]

    def stuck(self) -> list[str]:
        """Names of files that lanes still hang in after the run."""
        if not self._inflows:
            return []
        return [*self._inflows[-1].stuck(), *self._outflows[-1].stuck()]

    async def run(
        self, transits: Sequence[Transit], again: Callable[[Transit], Transit] | None
    ) -> list[Transit]:
        """Move all files of `transits`; those that came wrong once more, as `again` gives them (None: not again). The transits that ended well.

        Raises the first error, `IntegrityError` for a file that came wrong twice; what was sent stays for the next run.
        """
        refuse_large([one.stream for one in transits], self._options.buffer)
        started = time.monotonic()
        try:
            await self._round(transits)
            wrong = [one for one in transits if one.wrong]
            right = [one for one in transits if not one.wrong]
            if again is None:
                _refuse_wrong(wrong)
            elif wrong:
                self.mended += sum(not one.lost for one in wrong)
                repeated = [again(one) for one in wrong]
                await self._round(repeated)
                _refuse_wrong(repeated)
                right += repeated
        finally:
            self.seconds += time.monotonic() - started
        return right

    async def _round(self, transits: Sequence[Transit]) -> None:
        if not transits:
            return
        self._transits += transits
        options = self._options
        spans = in_parts({at: one.file.entry.size for at, one in enumerate(transits)}, self._abreast)
        largest = max(min(one.stream.step, one.file.entry.size) for one in transits)
        # One part for each lane on either side is all that helps: more would only be memory to clear.
        buffers = Buffers(min(options.buffer, max(MIB, largest) * 2 * options.lanes))
        index_of = {id(one.stream): at for at, one in enumerate(transits)}

        def send(portion: Portion, checkpoint: Checkpoint) -> None:
            transits[index_of[id(portion.stream)]].send(portion, checkpoint)

        outflow = Outflow(spans, buffers, send, lanes=options.lanes, pauses=self._pauses)
        inflow = Inflow(
            self._hub.reader,
            [one.stream for one in transits],
            spans,
            buffers,
            outflow.hand_on,
            lanes=options.lanes,
            adapt=options.adapt,
            pauses=self._pauses,
            leave_out=lambda index, number: transits[index].has(number),
        )
        self._inflows.append(inflow)
        self._outflows.append(outflow)
        total = sum(one.file.entry.size for one in transits)
        pulse = Pulse("pull", total, len(transits), self._reporter, options.stall_timeout)
        try:
            async with runtime.ticking(_TICK_S, partial(self._tick, pulse, transits, inflow, outflow)):
                await runtime.together(inflow.run, outflow.run)
        finally:
            buffers.close()
            pace = inflow.pace()
            self.lanes, self.peak = pace.lanes, max(self.peak, pace.peak)
            pulse.tell(outflow.lanes.done, _done(transits), pace.lanes)

    def _tick(self, pulse: Pulse, transits: Sequence[Transit], inflow: Inflow, outflow: Outflow) -> None:
        inflow.watch()
        last = max(inflow.lanes.last_progress, outflow.lanes.last_progress, self._pauses.last_move)
        # Where something waits for the destination, lanes that read may wait only for the memory that it holds.
        sending = [f"sending {name}" for name in outflow.sending()]
        active = [] if sending else inflow.active()
        pulse.beat(
            outflow.lanes.done,
            _done(transits),
            inflow.lanes.busy or inflow.pace().lanes,
            last=last,
            active=active,
            doing=sending,
        )


def _done(transits: Sequence[Transit]) -> int:
    return sum(one.done is not None for one in transits)


def _refuse_wrong(repeated: Sequence[Transit]) -> None:
    wrong = [one.file.entry.path for one in repeated if one.wrong]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise IntegrityError(
            f"`{shown(wrong[0])}`{more} came with the wrong checksum, twice: what the hub sends is not what it promises",
            hint="nothing of it was completed; try again later, or tell whoever keeps the model",
        )
