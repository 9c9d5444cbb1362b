"""Between two cold runs on a FUSE mount: its daemon goes on with what the first has asked for, and the second would pay for it."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from stager.core.units import shown
from stager.engine import runtime

if TYPE_CHECKING:
    from stager.jobs.bench.ground import Ground

MOST_S = 10.0
"""So long is waited at most."""
_STILL_S = 0.5  # a counter that has not moved for so long stands still
_POLL_S = 0.1


def goes_on(ground: Ground) -> bool:
    """Whether a daemon may go on fetching behind the mount of `ground` when nobody reads any more."""
    return ground.facts.mount.fstype.startswith("fuse")


class Quiet:
    """Waits before a cold run until what the last one has set going is over.

    By the counter of bytes from below, until it stands still. Where there is none, as long as the last run has taken: a daemon that fetched ahead has hardly
    more to do than it had then. At most `MOST_S` seconds.
    """

    def __init__(self) -> None:
        self._since = 0.0  # (monotonic) when the last run ended
        self._took = 0.0

    def ended(self, ground: Ground, seconds: float) -> None:
        """A run on `ground` that took so many seconds has ended now."""
        if goes_on(ground):
            self._since, self._took = time.monotonic(), seconds

    async def wait(self, ground: Ground, until: float | None) -> None:
        """Until it is quiet, or `until` (monotonic)."""
        if not self._took or not goes_on(ground):
            return
        ends = self._since + (MOST_S if ground.counter.by else min(MOST_S, self._took))
        if until is not None:
            ends = min(ends, until)
        label = f"waiting for {shown(ground.storage.path)}"
        if ground.counter.by:
            await self._until_still(ground, ends, label)
        elif (left := ends - time.monotonic()) > 0:
            await runtime.sleep(left, label)
        self._took = 0.0

    async def _until_still(self, ground: Ground, ends: float, label: str) -> None:
        read = partial(runtime.in_thread, label, ground.counter.read)
        seen, since = await read(), time.monotonic()
        while (now := time.monotonic()) < ends and now - since < _STILL_S:
            await runtime.sleep(_POLL_S, label)
            if (found := await read()) != seen:
                seen, since = found, time.monotonic()
