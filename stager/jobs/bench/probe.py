"""Before a benchmark: giving pages back as ``stager evict`` does, and for --quick a first look at how fast the storage is."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core.bench.plan import OFFSETS, READ
from stager.core.bench.quick import Rates, Sample
from stager.core.reports import EvictSummary
from stager.core.units import MIB, shown
from stager.engine import runtime
from stager.engine.report import TICK
from stager.jobs.bench.children import ChildFailed
from stager.jobs.bench.quiet import goes_on
from stager.jobs.evict import evict

if TYPE_CHECKING:
    from stager.core.events import Event, Progress
    from stager.jobs.bench.ground import Ground, StoreGround
    from stager.jobs.bench.methods import Methods

_FIRST = MIB // 2
_LONG_ENOUGH_S = 0.4  # then the rate is known well enough
_FETCH_AT_LEAST = 4 * MIB
_LOOKED_AT = 256


async def give_back(ground: Ground, marker: str) -> Ground:
    """Evict what `ground` names as ``stager evict`` does, a marker that vouches for it withdrawn; the ground with the reason why pages stayed."""
    said = _Listener()
    await evict(ground.selection, said, marker=marker)
    stayed = [why for event in said.events if isinstance(event, EvictSummary) for _, _, why in event.stayed]
    return replace(ground, stayed=stayed[0] if stayed else "")


class _Listener:
    """A reporter that keeps what it is told."""

    tick = TICK
    stdout_failed = False
    stdout_error = None

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, event: Progress) -> None:
        """Nothing."""

    def print_now(self, otherwise: Event | None = None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


async def rates(ground: Ground, methods: Methods, seconds: float) -> Rates:
    """How fast the largest file is, cold; each way measured for a moment, both in about so many seconds."""
    largest = max(range(len(ground.files)), key=lambda index: ground.files[index].size)
    found = []
    for how in (READ, OFFSETS):
        look = partial(_rate, ground, methods, how, largest, seconds / 2)
        found.append(await runtime.in_thread(f"probing {shown(ground.storage.path)}", look))
    each = await runtime.in_thread(f"looking at {shown(ground.storage.path)}", partial(_look_s, ground))
    return Rates(found[0], found[1], drops=ground.facts.keeps.hopeless, look=each, settles=goes_on(ground))


def _look_s(ground: Ground) -> float:
    """Seconds for each file that is looked at, when many are at once."""
    few = replace(ground, files=ground.files[:_LOOKED_AT])
    began = time.monotonic()
    with suppress(OSError):
        few.chill()
    return (time.monotonic() - began) / len(few.files)


def _rate(ground: Ground, methods: Methods, how: str, index: int, seconds: float) -> float:
    """From the beginning of the file, longer stretches until one takes long enough; where not even the first came in time, a bound."""
    size, stretch, rate = ground.files[index].size, _FIRST, 0.0
    ends = time.monotonic() + seconds
    while True:
        part = ground.sampled(Sample((index,), min(stretch, size)))
        began = time.monotonic()
        try:
            part.chill()
            took = methods.load(how, part, 1, ends)
        except (ChildFailed, OSError):
            return rate or part.total / max(1e-3, time.monotonic() - began)
        rate = part.total / max(1e-6, took.seconds)
        if took.seconds >= _LONG_ENOUGH_S or stretch >= size or time.monotonic() + 4 * took.seconds > ends:
            return rate
        stretch *= 8 if took.seconds < _LONG_ENOUGH_S / 8 else 4


async def fetch_rate(store: StoreGround, methods: Methods, folder: str, seconds: float) -> float:
    """Bytes/s of fetching one object that is large enough to say something, into `folder`; 0.0 when it does not come in so many seconds."""
    order = sorted(range(len(store.sizes)), key=lambda index: store.sizes[index][1])
    enough = [index for index in order if store.sizes[index][1] >= _FETCH_AT_LEAST] or order[-1:]
    one = store.sampled(Sample((enough[0],)))

    def fetch() -> float:
        try:
            took = methods.fetch(one, folder, time.monotonic() + seconds)
        except (ChildFailed, OSError):
            return 0.0
        return 0.0 if took.failed else one.total / max(1e-6, took.seconds)

    return await runtime.in_thread(f"probing {shown(store.storage.path)}", fetch)
