"""Storages that exist only as arithmetic, and a run of lanes over them in simulated time.

The bookkeeping of spans is the real one (`stager.engine.supply`); threads, clock and storage are not. Rates in bytes
per second, sizes in bytes, times in seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from stager.core.model import Span
from stager.engine.pace import Controller, Decision
from stager.engine.supply import Lease, Supply, Worth

MB = 1_000_000
GB = 1000 * MB
MIB = 1 << 20
STEP_S = 0.05
TICK_S = 0.1
BLOCK = 4 * MIB  # lanes count what they moved in blocks of this


@dataclass(eq=False)
class Handle:
    """An open file and when it was opened."""

    opened: float


class Storage:
    """How fast handles are served. `total` says what `count` handles get together at `now`, shared evenly."""

    latency = 0.03  # from open to the first byte

    def total(self, count: int, now: float) -> float:
        raise NotImplementedError

    def serve(self, handles: Sequence[Handle], now: float, dt: float) -> list[float]:
        """Bytes for each handle in the next `dt` seconds."""
        ready = [h for h in handles if now - h.opened >= self.latency]
        share = self.total(len(ready), now) * dt / len(ready) if ready else 0.0
        return [share if now - h.opened >= self.latency else 0.0 for h in handles]


@dataclass
class Disk(Storage):
    """Saturates at `knee` lanes."""

    cap: float = 2.6 * GB
    knee: float = 3
    latency = 0.0

    def total(self, count: int, now: float) -> float:
        return self.cap * min(1.0, count / self.knee)


@dataclass
class SoftDisk(Storage):
    """Grows ever more slowly, without a knee: cap * n / (n + half)."""

    cap: float = 2.6 * GB
    half: float = 1.0

    def total(self, count: int, now: float) -> float:
        return self.cap * count / (count + self.half)


@dataclass
class PerStream(Storage):
    """A bandwidth for each stream, and one for all."""

    stream: float = 60 * MB
    cap: float = 941 * MB

    def total(self, count: int, now: float) -> float:
        return min(self.cap, self.stream * count)


@dataclass
class LatencyBound(Storage):
    """What one handle has in flight comes every `latency` seconds; the kernel lets a FUSE mount have `most` in flight.

    `cap` is what the daemon itself can do.
    """

    latency: float = 0.03
    in_flight: int = 512 << 10  # two requests of 256 KiB
    most: int = 3 * MIB  # twelve of them
    cap: float = 2 * GB

    def total(self, count: int, now: float) -> float:
        return min(self.cap, min(self.most, count * self.in_flight) / self.latency)


@dataclass
class Collapse(Storage):
    """Total throughput by handles, as measured on ossfs 2 with 16 x 384 MiB; between the points geometric."""

    points: dict[int, float] = field(
        default_factory=lambda: {
            1: 900 * MB,
            2: 1546 * MB,
            4: 2476 * MB,
            8: 1973 * MB,
            16: 1055 * MB,
            32: 900 * MB,
        }
    )

    def total(self, count: int, now: float) -> float:
        if count in self.points:
            return self.points[count]
        low = max((p for p in self.points if p < count), default=1)
        high = min((p for p in self.points if p > count), default=low)
        if high == low:
            return self.points[low]
        part = math.log(count / low) / math.log(high / low)
        return self.points[low] * (self.points[high] / self.points[low]) ** part


@dataclass
class OneAtATime(Storage):
    """One request at a time; each further handle costs a little for switching."""

    rate: float = 400 * MB
    switch: float = 0.0

    def total(self, count: int, now: float) -> float:
        return self.rate / (1 + self.switch * (count - 1))


@dataclass
class Changing(Storage):
    """Becomes another storage at `at` seconds, and stays it."""

    first: Storage
    second: Storage
    at: float = 12.0

    def total(self, count: int, now: float) -> float:
        return (self.first if now < self.at else self.second).total(count, now)


@dataclass
class Noise:
    """A factor around 1: deviation `sd`, correlated over `memory` seconds; `burst` bytes arrive at once per handle."""

    sd: float = 0.1
    memory: float = 0.1
    burst: int = 0


@dataclass
class _SimLane:
    lease: Lease | None = None
    handle: Handle | None = None
    uncounted: float = 0.0
    retired: bool = False
    spare: float = 0.0


@dataclass
class Outcome:
    """What a run gave: seconds until done (or the limit), bytes, mean rate, and what was decided when."""

    seconds: float
    moved: int
    decisions: list[tuple[float, Decision]]

    @property
    def rate(self) -> float:
        return self.moved / self.seconds


class Run:
    """Simulated lanes over `sizes` on `storage`, driven by `controller`."""

    def __init__(
        self,
        sizes: Sequence[int],
        storage: Storage,
        controller: Controller,
        *,
        seed: int = 0,
        noise: Noise | None = None,
        min_piece: int = 64 * MIB,
        step: float = STEP_S,
        block: int = BLOCK,
    ) -> None:
        self.step, self.block = step, block
        self.supply = Supply([Span(i, 0, size) for i, size in enumerate(sizes)], min_piece)
        self.worth = Worth(min_piece)
        self.total = sum(sizes)
        self.storage, self.controller = storage, controller
        self.noise = noise or Noise(0.0)
        self.weather = random.Random(seed)  # the same for every controller
        self.phases = random.Random(seed + 1)
        self.lanes: list[_SimLane] = []
        self.moved = self.counted = 0
        self.split = False
        self.drift = 0.0

    def run(self, limit: float = 30.0) -> Outcome:
        decisions: list[tuple[float, Decision]] = []
        now, next_tick = 0.0, 0.0
        while now < limit and self.moved < self.total:
            if now >= next_tick:
                decision = self._tick(now)
                if not decisions or decisions[-1][1] != decision:
                    decisions.append((now, decision))
                next_tick += TICK_S / 2 if self.controller.ramping else TICK_S
            self._step(now)
            now += self.step
        return Outcome(now, self.moved, decisions)

    def _tick(self, now: float) -> Decision:
        backlog = self.supply.backlog(split=self.split)
        busy = sum(lane.lease is not None for lane in self.lanes)
        self.supply.min_piece = self.worth.observe(now, self.counted, busy)
        decision = self.controller.observe(now, self.counted, busy=busy, backlog=backlog)
        assert 1 <= decision.lanes <= self.controller.ceiling
        if self.split and not decision.split:
            self.supply.rejoin()
        self.split = decision.split
        working = [lane for lane in self.lanes if not lane.retired]
        for lane in working[decision.lanes :]:
            lane.retired = True
            if lane.lease is not None:
                self.supply.put_back(lane.lease)
        for _ in range(decision.lanes - len(self.lanes)):
            lane = _SimLane()
            self._next(lane, now)
            if lane.lease is None:
                break
            self.lanes.append(lane)
        return decision

    def _next(self, lane: _SimLane, now: float) -> None:
        lane.lease = None if lane.retired else self.supply.next(split=self.split)
        lane.handle = Handle(now) if lane.lease else None
        lane.spare = self.phases.random() * self.noise.burst

    def _factor(self) -> float:
        keep = math.exp(-self.step / self.noise.memory)
        self.drift = keep * self.drift + math.sqrt(1 - keep * keep) * self.weather.gauss(0, self.noise.sd)
        return max(0.05, 1 + self.drift)

    def _step(self, now: float) -> None:
        factor = self._factor()
        handles = [lane.handle for lane in self.lanes if lane.handle is not None]
        served = self.storage.serve(handles, now, self.step)
        for lane, given in zip([x for x in self.lanes if x.handle is not None], served, strict=True):
            self._read(lane, given * factor, now)
        self.lanes = [lane for lane in self.lanes if lane.lease is not None]

    def _read(self, lane: _SimLane, given: float, now: float) -> None:
        if not given:
            return  # not open yet
        lane.spare += given
        if lane.spare < self.noise.burst:
            return
        budget = int(lane.spare)
        lane.spare -= budget
        while lane.lease is not None:
            size = lane.lease.take(budget)
            lane.lease.advance(size)
            self.moved += size
            lane.uncounted += size
            budget -= size
            if lane.lease.remaining():
                break
            self.counted += int(lane.uncounted)
            lane.uncounted = 0.0
            self.supply.complete(lane.lease)
            self._next(lane, now)
        blocks = int(lane.uncounted // self.block) * self.block
        self.counted += blocks
        lane.uncounted -= blocks
