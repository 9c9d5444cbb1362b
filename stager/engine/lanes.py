"""The only worker threads: lanes that read spans, as many at once as the controller says.

A lane is one call in one thread for its whole life. It takes a lease, hands it to the job's `read` with its kit (a
reused buffer or pipe), and takes the next. The event loop ticks the controller, starts lanes, and makes lanes give
their rest back when there are too many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeAlias, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from stager.core.model import Span
from stager.engine.pace import Controller, Decision
from stager.engine.supply import Lease, Supply, Worth
from stager.node.throttle import Throttle

__all__ = ["Checkpoint", "Kit", "LaneStopped", "Lanes", "Lease", "LeaseReturned"]

# How often the controller is asked. Starting a lane may lag by this much, ending the run does not.
_TICK_S = 0.1
# After a cancellation or an error, how long lanes may take to reach their next checkpoint before they count as stuck.
_GRACE_S = 1.0
# A lane below this share of the median rate crawls: it is the first to be retired. Handles that found ossfs 2's
# prefetch pool empty ran at 32 MB/s where others ran at 800.
_CRAWL = 0.25

Checkpoint: TypeAlias = Callable[[int], None]
"""Called by `read` after every block with the bytes moved (1-4 MiB is right). Sleeps for ``--max-rate``; raises
`LaneStopped` when the run is over, which `read` must let pass. 0 bytes only ask whether it is over, and are no progress."""


class Kit(Protocol):
    """What a lane reuses from span to span: a buffer, a pipe."""

    def close(self) -> None:
        """Gives everything back; called once, in the lane's thread."""


K = TypeVar("K", bound=Kit)


class LaneStopped(Exception):
    """Raised by a checkpoint to unwind a lane: the run was cancelled, failed or was stopped. Never reaches `run`."""


class LeaseReturned(Exception):
    """Raised by `read` to give the rest of its lease to whichever lane is free next, this one included."""


class _Lane:
    """One worker. `moved` and `last` are written by its thread only, and read by everybody."""

    __slots__ = ("began", "kit", "last", "lease", "moved", "rate", "retired", "seen")

    def __init__(self) -> None:
        self.moved = 0
        self.last = time.monotonic()
        self.lease: Lease | None = None
        self.kit: Kit | None = None
        self.began = False
        self.retired = False
        self.seen = 0  # `moved` at the last tick
        self.rate = 0.0  # bytes per tick, smoothed


class Lanes(Generic[K]):
    """A run over `spans` in the given order. One object is one run.

    `read(lease, kit, checkpoint)` reads one lease as `Lease` shows and handles errors of single files itself: any
    other exception it lets out, but for `LeaseReturned`, ends the run. Returning early (a file that shrank) completes the lease. `kit` makes
    the per-lane equipment, in the lane's thread; `rouse` ends a read that blocks in one, for a run that is over. `max_rate` is bytes per second for all lanes together. `min_piece`
    is the smallest tail in bytes that an idle lane takes over when the controller allows splitting; slow lanes take smaller ones (`Worth`). `whole`: a lane keeps what it was
    handed, to the end, and nothing is split.

    Everything public except `run` may be called from any thread.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        read: Callable[[Lease, K, Checkpoint], None],
        kit: Callable[[], K],
        controller: Controller,
        max_rate: int | None = None,
        min_piece: int = 64 << 20,
        rouse: Callable[[K], None] | None = None,
        whole: bool = False,
    ) -> None:
        """Nothing starts before `run`."""
        self._supply = Supply(spans, min_piece, whole=whole)
        self._worth = Worth(min_piece)
        self._read = read
        self._kit = kit
        self._rouse = rouse
        self._controller = controller
        self._throttle = Throttle(max_rate) if max_rate else None
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._moved_before = 0  # by lanes that have ended
        self._last_before = time.monotonic()
        self._split = False
        self._over = threading.Event()
        self._reason: str | None = None
        self._failure: BaseException | None = None
        self._ended = anyio.Event()

    # What others see

    @property
    def done(self) -> int:
        """Bytes counted by checkpoints so far."""
        with self._lock:
            return self._moved_before + sum(lane.moved for lane in self._lanes)

    @property
    def lanes(self) -> int:
        """Worker threads alive."""
        with self._lock:
            return len(self._lanes)

    @property
    def busy(self) -> int:
        """Lanes that hold a lease now."""
        with self._lock:
            return sum(lane.lease is not None for lane in self._lanes)

    def active(self) -> list[tuple[Span, int, float]]:
        """For each lane that is reading: its span as it was taken, the next file offset, seconds since its last byte."""
        now = time.monotonic()
        with self._lock:
            held = [(lane.lease, lane.last) for lane in self._lanes]
        return [(lease.span, lease.position, now - last) for lease, last in held if lease is not None]

    @property
    def finished(self) -> frozenset[int]:
        """Indexes of the files of which every span is complete."""
        return self._supply.finished

    @property
    def last_progress(self) -> float:
        """`time.monotonic` of the last byte by any lane, or of the start."""
        with self._lock:
            return max([self._last_before, *(lane.last for lane in self._lanes if lane.moved)])

    @property
    def stopped(self) -> str | None:
        """The reason given to `stop`, or None."""
        return self._reason

    def stop(self, reason: str) -> None:
        """Makes every lane end at its next checkpoint and `run` return normally. The first reason is kept."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
        self._over.set()

    def stuck(self) -> list[int]:
        """Indexes of the files that lanes are still reading after the run is over: their threads hang in a read."""
        if not self._over.is_set():
            return []
        return sorted({span.index for span, _, _ in self.active()})

    # The event loop's side

    async def run(self) -> None:
        """Reads everything, or until `stop`. Raises what `read` or `kit` raised first, bare.

        When cancelled, lanes see it at their next checkpoint; those that have not ended after a second are left
        behind and named by `stuck`. Spans not yet read stay unread.
        """
        limiter = anyio.CapacityLimiter(self._controller.ceiling)
        self._last_before = time.monotonic()
        try:
            async with anyio.create_task_group() as group:
                try:
                    await self._supervise(group, limiter)
                finally:
                    self._over.set()
                group.cancel_scope.cancel()
        finally:
            self._over.set()
            self._rouse_all()
            with anyio.move_on_after(_GRACE_S, shield=True):
                while self.lanes:
                    await anyio.sleep(0.005)
        if self._failure is not None:
            raise self._failure

    def _rouse_all(self) -> None:
        if self._rouse is None:
            return
        with self._lock:
            kits = [lane.kit for lane in self._lanes if lane.kit is not None]
        for kit in kits:
            self._rouse(kit)  # type: ignore[arg-type]

    async def _supervise(self, group: anyio.abc.TaskGroup, limiter: anyio.CapacityLimiter) -> None:
        while self._failure is None:
            decision = self._decide()
            if not self._over.is_set():
                self._adjust(decision, group, limiter)
            if not self.lanes:
                return
            self._ended = anyio.Event()
            with anyio.move_on_after(_TICK_S / 2 if self._controller.ramping else _TICK_S):
                await self._ended.wait()

    def _decide(self) -> Decision:
        backlog = self._supply.backlog(split=self._split)
        now, done, busy = time.monotonic(), self.done, self.busy
        self._supply.min_piece = self._worth.observe(now, done, busy)
        decision = self._controller.observe(now, done, busy=busy, backlog=backlog)
        if self._split and not decision.split:
            self._supply.rejoin()
        self._split = decision.split
        return decision

    def _adjust(self, decision: Decision, group: anyio.abc.TaskGroup, limiter: anyio.CapacityLimiter) -> None:
        with self._lock:
            for lane in self._lanes:
                lane.rate += 0.3 * (lane.moved - lane.seen - lane.rate)
                lane.seen = lane.moved
            working = [lane for lane in self._lanes if not lane.retired]
        for lane in self._superfluous(working, len(working) - decision.lanes):
            lane.retired = True
            if lane.lease is not None:
                self._supply.put_back(lane.lease)
        # A retired lane that has not ended yet still holds a handle, so it counts.
        missing = min(decision.lanes - self.lanes, self._startable())
        for _ in range(missing):
            lane = _Lane()
            with self._lock:
                self._lanes.append(lane)
            group.start_soon(self._host, lane, limiter)

    def _startable(self) -> int:
        if self._split:
            return self._controller.ceiling if self._supply.work_for_more(split=True) else 0
        return self._supply.backlog(split=False)

    def _superfluous(self, working: list[_Lane], count: int) -> list[_Lane]:
        """The lanes to retire: those that crawl first, then the newest, whose handles have fetched ahead the least."""
        if count <= 0:
            return []
        median = sorted(lane.rate for lane in working)[len(working) // 2]
        order = {id(lane): at for at, lane in enumerate(working)}
        return sorted(working, key=lambda lane: (lane.rate >= _CRAWL * median, -order[id(lane)]))[:count]

    async def _host(self, lane: _Lane, limiter: anyio.CapacityLimiter) -> None:
        try:
            await anyio.to_thread.run_sync(self._work, lane, abandon_on_cancel=True, limiter=limiter)
        except Exception as exc:  # a thread that could not be started
            self._fail(exc)
        finally:
            if not lane.began:
                self._retire(lane)
            self._ended.set()

    # The threads' side

    def _work(self, lane: _Lane) -> None:
        lane.began = True
        try:
            lane.kit = kit = self._kit()
            try:
                self._serve(lane, kit)
            finally:
                lane.kit = None
                kit.close()
        except LaneStopped:
            pass
        except BaseException as exc:  # carried to `run`, which raises it
            self._fail(exc)
        finally:
            self._retire(lane)

    def _serve(self, lane: _Lane, kit: K) -> None:
        checkpoint = self._checkpoint(lane)
        while not lane.retired and not self._over.is_set():
            lease = self._supply.next(split=self._split)
            if lease is None:
                return
            lane.last = time.monotonic()
            lane.lease = lease
            if lane.retired:  # retired between the two lines above, when there was nothing to cut yet
                self._supply.put_back(lease)
            try:
                self._read(lease, kit, checkpoint)
            except LeaseReturned:
                lane.lease = None
                self._supply.give_back(lease)
                continue
            except BaseException:
                self._supply.abandon(lease)
                raise
            lane.lease = None
            self._supply.complete(lease)

    def _checkpoint(self, lane: _Lane) -> Checkpoint:
        """A closure, and plain attributes without locks: 16 lanes call it for every block of a hot cache."""
        over, throttle, clock = self._over, self._throttle, time.monotonic

        def checkpoint(count: int) -> None:
            if count:
                lane.moved += count
                lane.last = clock()
            if throttle is not None and (delay := throttle.delay(count)) > 0:
                over.wait(delay)
            if over.is_set():
                raise LaneStopped

        return checkpoint

    def _fail(self, exc: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = exc
        self._over.set()

    def _retire(self, lane: _Lane) -> None:
        with self._lock:
            if lane in self._lanes:
                self._lanes.remove(lane)
                self._moved_before += lane.moved
                self._last_before = max(self._last_before, lane.last)
