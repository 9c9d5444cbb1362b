"""Before a quick benchmark: how fast each storage is, and from that, how much of each is read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stager.core.bench.quick import (
    Rates,
    file_bytes,
    first_bytes,
    probe_seconds,
    quick_bytes,
    quick_seconds,
    sample,
    whole_sample,
    work_left,
)
from stager.core.budget import Policy, admit
from stager.core.events import Note
from stager.core.units import count, format_duration, format_size, shown
from stager.engine import runtime
from stager.jobs.bench.ground import StoreGround, new_folder
from stager.jobs.bench.probe import fetch_rate, rates
from stager.node.memory import Gauge

if TYPE_CHECKING:
    from stager.core.bench.plan import Trial
    from stager.engine.report import Reporter
    from stager.jobs.bench.ground import Ground
    from stager.jobs.bench.methods import Methods
    from stager.jobs.bench.sweep import Sweep

_MARGIN = 0.8  # of the room that memory has, where not all fits: the processes of the runs want some too


@dataclass
class Quick:
    """Chooses what a quick benchmark reads that `began` and must end `until` (monotonic), in so many rounds. `sweep` is the sweep that it is, if it is one."""

    methods: Methods
    rounds: int
    began: float
    until: float
    reporter: Reporter
    sweep: Sweep | None = None

    async def sampled(
        self,
        grounds: Sequence[Ground | StoreGround],
        trials_of: Callable[[int, Ground | StoreGround], list[Trial]],
    ) -> list[Ground | StoreGround]:
        """As much of each of `grounds` as there is time for, which is shared out evenly; `trials_of` are one storage's. Says what is left out."""
        whole = self.until - self.began
        each = probe_seconds(whole, len(grounds))
        found = [await self._rates(ground, each) for ground in grounds]
        known = sum(one is not None for one in found)
        work = work_left(whole, time.monotonic() - self.began)
        chosen, takes = [], 0.0
        for at, (ground, rate) in enumerate(zip(grounds, found, strict=True)):
            if rate is None:
                chosen.append(ground)
                continue
            trials = trials_of(at, ground)
            chosen.append(self._cut(ground, rate, trials, work / known))
            cut = chosen[-1]
            takes += quick_seconds(trials, rate, cut.total, self.rounds, cut.storage.files)
        if takes > 1.2 * work and self.sweep is None:
            self._warn(len(grounds), takes)
        return chosen

    def _warn(self, storages: int, takes: float) -> None:
        what = f"{count(storages, 'storage')} of this speed"
        text = f"--quick: the runs on {what} would take about {format_duration(takes)}, so the last methods will be missing"
        hint = "choose --methods, name fewer PATHs, or leave out --quick"
        self.reporter.emit(Note("warning", "short_of_time", text, hint))

    async def _rates(self, ground: Ground | StoreGround, seconds: float) -> Rates | None:
        """How fast it is, known after about so many seconds; None where nothing can be measured."""
        if not isinstance(ground, StoreGround):
            return None if ground.why_not_cold else await rates(ground, self.methods, seconds)
        folder = new_folder(ground.into)
        self.methods.children.remove(folder)
        try:
            rate = await fetch_rate(ground, self.methods, folder, seconds)
        finally:
            with runtime.sheltered(10.0):
                remove = partial(shutil.rmtree, folder, ignore_errors=True)
                await runtime.in_thread("removing what was fetched", remove)
        return Rates(rate, rate)

    def _cut(
        self, ground: Ground | StoreGround, rate: Rates, trials: Sequence[Trial], seconds: float
    ) -> Ground | StoreGround:
        found: Ground | StoreGround
        if isinstance(ground, StoreGround):
            budget = quick_bytes(trials, rate, self.rounds, seconds)
            found = ground.sampled(whole_sample([size for _, size in ground.sizes], budget))
        else:
            sizes, room = [file.size for file in ground.files], _room(ground.total)
            if self.sweep is not None:
                found = ground.sampled(self.sweep.quick_sample(sizes, rate, seconds))
            else:
                budget = first_bytes(trials, sizes, rate, self.rounds, seconds)
                each = file_bytes(trials, rate, self.rounds)
                found = ground.sampled(sample(sizes, budget, each))
            if found.total > room:  # what does not stay in memory cannot be proven
                found = ground.sampled(sample(sizes, room))
        if found.storage.sampled:
            part = found.storage.part
            files = count(found.storage.files, "file")
            if part is not None:
                files = (
                    f"of {files} the first {format_size(part)}{' each' if found.storage.files > 1 else ''}"
                )
            if found.storage.files < found.storage.of_files and part is not None:
                files = f"of {found.storage.files} of {count(found.storage.of_files, 'file')} the first {format_size(part)} each"
            text = f"--quick: {format_size(found.total)} of {format_size(ground.total)} are read ({files}) of {shown(ground.storage.path)}"
            self.reporter.emit(Note("info", "sampled", text))
        return found


def _room(size: int) -> int:
    """How many of `size` bytes fit into memory now, with a margin where not all do."""
    admission = admit(Gauge().read(), Policy(reserve=0), size, 0)
    return size if admission.fits else int(_MARGIN * admission.granted)
