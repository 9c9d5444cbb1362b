"""The fetching phase: rounds of downloading until every file is whole, proven and named; progress and standstill."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from stager.core.ranges import spread
from stager.core.units import GIB, shown
from stager.engine import runtime
from stager.engine.beside import beside
from stager.jobs.downloading import Downloading
from stager.jobs.pulse import Pulse
from stager.jobs.retrying import again
from stager.jobs.sharing import Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.core.model import Span
    from stager.engine.beside import Submit
    from stager.engine.report import Reporter
    from stager.jobs.assembly import Assembly
    from stager.jobs.downloading import Download, Task
    from stager.jobs.options import FetchOptions

_TICK_S = 0.25
_FINISHERS = 8  # files being flushed and named at once
_MOST_PROCESSES = 4  # 12.5 GB/s, a card of 100 Gbit/s, are three processes' work
_CORES_EACH = 8
_WORTH_A_PROCESS = 16 * GIB  # starting one takes half a second
_TOLD = 5  # retries that are told one by one; all are counted


def processes_for(total: int) -> int:
    """How many processes fetch `total` bytes: one moves several GB/s, so more only where cores and work are plenty."""
    return max(
        1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)) // _CORES_EACH, total // _WORTH_A_PROCESS)
    )


class Fetching:
    """Fetches `tasks` into `assembly`. What it did is in its attributes, also after it was cut short.

    `seconds` and `rate` (bytes per second) are of the whole phase, flushing included; `lanes` is what the controller settled on, `peak` its most.
    """

    def __init__(
        self, options: FetchOptions, tasks: Sequence[Task], assembly: Assembly, reporter: Reporter
    ) -> None:
        self._options = options
        self._tasks = tasks
        self._assembly = assembly
        self._reporter = reporter
        self._total = sum(one.need for one in assembly.missing())
        self._pulse = Pulse("fetch", self._total, len(tasks), reporter, options.warm.stall_timeout)
        self._rounds: list[Download] = []
        self._told = 0
        self.retried = 0
        self.replaced = 0
        self.seconds = 0.0
        self.lanes = 0
        self.peak = 0
        self.processes = options.processes or processes_for(self._total)

    @property
    def fetched(self) -> int:
        """Bytes that came from the store so far."""
        return sum(one.done for one in self._rounds)

    @property
    def rate(self) -> float:
        """Bytes per second on the whole."""
        return self.fetched / self.seconds if self.seconds > 0 else 0.0

    def stuck(self) -> list[str]:
        """Names of objects that lanes still hang in after the run."""
        return self._rounds[-1].stuck() if self._rounds else []

    async def run(self) -> None:
        """Fetch until all files have their names. Raises the first error; part files and the journal stay for the next run."""
        self._pulse.started = time.monotonic()
        try:
            self._assembly.add_empty()
            while True:
                async with beside(_FINISHERS) as submit:
                    if missing := self._assembly.missing():
                        await self._fetch(spread(missing, self._options.lanes), submit)
                    self._finish_ready(submit)
                if not self._assembly.missing():
                    return
        finally:
            self.seconds = self._pulse.seconds
            if self._total:
                self._tell()

    async def _fetch(self, spans: Sequence[Span], submit: Submit) -> None:
        download = self._download(spans)
        self._rounds.append(download)
        try:
            async with (
                runtime.ticking(_TICK_S, partial(self._tick, download, submit)),
                runtime.ticking(self._reporter.tick, self._tell),
            ):
                await download.run()
        finally:
            pace = download.pace()
            self.lanes, self.peak = pace.lanes, max(self.peak, pace.peak)
            self.retried += download.retried
            self.replaced += download.replaced

    def _download(self, spans: Sequence[Span]) -> Download:
        options = self._options
        several = min(self.processes, len(spans))
        make = partial(Shared, processes=several, folder=options.folder) if several > 1 else Downloading
        return make(
            options.source,
            options.store,
            self._tasks,
            spans,
            self._assembly,
            lanes=options.lanes,
            adapt=options.adapt,
            on_retry=self._tell_retry,
        )

    def _finish_ready(self, submit: Submit) -> None:
        for index in self._assembly.ready():
            label = f"proving and naming {shown(self._tasks[index].path)}"
            submit(label, partial(self._assembly.finish, index, lambda _count: None))

    def _tick(self, download: Download, submit: Submit) -> None:
        self._finish_ready(submit)
        download.watch()
        finished = len(self._assembly.finished)
        last, active = download.last_progress, download.active()
        self._pulse.beat(self.fetched, finished, self._lanes_now(), last=last, active=active)

    def _tell(self) -> None:
        self._pulse.tell(self.fetched, len(self._assembly.finished), self._lanes_now())

    def _tell_retry(self, doing: str, error: Exception) -> None:
        self._told += 1
        if self._told <= _TOLD:
            self._reporter.emit(again(doing, error))

    def _lanes_now(self) -> int:
        return (self._rounds[-1].busy if self._rounds else 0) or self.lanes
