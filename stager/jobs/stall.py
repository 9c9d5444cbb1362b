"""When nothing moves: a warning after a while, an end after the stall timeout."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from stager.core.errors import DeadlineExceeded
from stager.core.events import Stall
from stager.core.units import format_duration, shown
from stager.engine import runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.engine.report import Reporter

_TICK_S = 0.25
_WARNING_S = 15.0


class StallWatch:
    """Tells `reporter` once about each standstill of 15 s, and ends one of `limit` seconds (None: never)."""

    def __init__(self, limit: float | None, reporter: Reporter) -> None:
        self._limit = limit
        self._reporter = reporter
        self._warned = False

    def look(self, still: float, *, files: Sequence[str] = (), doing: Sequence[str] = ()) -> None:
        """Nothing has moved for `still` seconds in `files` that are being read, or in calls that are `doing` something.

        Raises `DeadlineExceeded`, naming them, when that is too long.
        """
        if self._limit is not None and still >= self._limit:
            names = ", ".join(shown(name) for name in list(dict.fromkeys(files or doing))[:4])
            what = "no bytes" if files else "no answer"
            raise DeadlineExceeded(
                f"{what} for {format_duration(still)} while {'reading ' if files else ''}{names}",
                hint="does the server, a proxy or the mount's daemon still answer? `--stall-timeout` sets how long to wait",
            )
        if still < _WARNING_S:
            self._warned = False
        elif not self._warned:
            self._warned = True
            self._reporter.emit(Stall(still, tuple(files), tuple(doing)))


def watched(limit: float | None, reporter: Reporter) -> AbstractAsyncContextManager[None]:
    """While the body runs, hold the calls that `runtime` has made in threads against `limit`; see `StallWatch`."""
    watch = StallWatch(limit, reporter)

    def tick() -> None:
        still = runtime.still()
        watch.look(still, doing=runtime.hanging())

    return runtime.ticking(_TICK_S, tick)
