"""The reading phase of a warm run: lanes over the plan's spans, under the eye of the memory sentinel."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

from stager.core.budget import margin, used_share
from stager.core.events import FileProblem, Progress
from stager.core.model import LevelRoom, LocalFile
from stager.core.plan import wanted
from stager.engine import runtime
from stager.engine.lanes import Checkpoint, Lanes, Lease
from stager.engine.pace import Controller
from stager.jobs.stall import StallWatch
from stager.jobs.survey import Survey, policy_of, resident_bytes
from stager.node.files import opened, read_in_order
from stager.node.filesystems import Pattern, Traits
from stager.node.touch import STEP, Kit, PopulateKit, SpliceKit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.engine.report import Reporter
    from stager.jobs.options import WarmOptions
    from stager.node.memory import Gauge

_TICK_S = 0.25
_BLOCK = 4 * STEP
# Where reading takes its time it is counted in smaller steps: lanes that began together deliver together, and over a fifth of a
# second eight of them at 17 MB/s each were off by a quarter when they counted whole MiB.
_LEAST_STEP = STEP // 4
_LONG_S = 0.03


def controller_for(traits: Sequence[Traits], options: WarmOptions) -> Controller:
    """The controller for reading from filesystems of these `traits`.

    It starts as the most cautious of them asks, and splits only where none forbids it and no ``--span`` was given. A daemon that takes
    harm from a second handle on a file takes harm from many handles: there it does not ramp up either.
    """
    handles = [t for t in traits if t.pattern is Pattern.HANDLE]
    tolerant = all(t.may_split for t in handles)
    return Controller(
        options.lanes,
        max((t.start for t in handles or traits), default=2),
        adapt=options.adapt,
        may_split=options.span is None and bool(handles) and tolerant,
        ramp=tolerant,
    )


def step_after(step: int, moved: int, seconds: float) -> int:
    """How many bytes to ask for at once after `moved` of `step` took so long."""
    if seconds > _LONG_S and moved > _LEAST_STEP:
        return max(_LEAST_STEP, moved // 2)
    return min(_BLOCK, 2 * step) if seconds < _LONG_S / 4 else step


class Reading:
    """One pass over the plan of `survey`. What it did is in its attributes, also after it was cut short.

    `problems` are files that could not be read to their end and `failed` their indexes, `stopped` is the limit that ended the run early (None when none
    did), `touches` the names of the touches that were used.
    """

    def __init__(self, survey: Survey, options: WarmOptions, gauge: Gauge, reporter: Reporter) -> None:
        assert survey.plan is not None
        self._survey = survey
        self._plan = survey.plan
        self._options = options
        self._gauge = gauge
        self._reporter = reporter
        # A window, which is twice the mount's for a file read in order, and the next one, which the kernel starts when the
        # reader enters the first.
        self._windows = {number: 4 * facts.mount.readahead for number, facts in survey.mounts.items()}
        self._policy = policy_of(survey, options, allocated=True)
        self._resident_before = resident_bytes(survey)
        self._holes = {index: survey.looks[index].holes for index in self._plan.chosen}
        self._lock = threading.Lock()
        self.failed: set[int] = set()
        self._lru = gauge.read().lru
        self._stall = StallWatch(options.stall_timeout, reporter)
        self._recent: list[tuple[float, int]] = []
        self.problems: list[FileProblem] = []
        self.touches: set[str] = set()
        self.stopped: LevelRoom | None = None
        used = {survey.files[index].mount_id for index in self._plan.chosen}
        self.controller = controller_for([survey.mounts[number].traits for number in used], options)
        self.lanes: Lanes[Kit] = Lanes(
            self._plan.spans,
            read=self._read,
            kit=self._make_kit,
            controller=self.controller,
            max_rate=options.max_rate,
        )
        self._started = time.monotonic()
        self.seconds = 0.0

    def _make_kit(self) -> Kit:
        if not self._options.protect:
            return SpliceKit()
        # Under the classic LRU one fault leaves pages inactive; a second one over resident pages costs next to nothing.
        return PopulateKit(passes=2 if self._lru == "classic" else 1)

    async def run(self) -> None:
        """Read the plan. Raises `DeadlineExceeded` when nothing moves for the stall timeout."""
        self._started = time.monotonic()
        try:
            async with (
                runtime.ticking(_TICK_S, self._tick),
                runtime.ticking(self._reporter.tick, self._tell),
            ):
                await self.lanes.run()
        finally:
            self.seconds = time.monotonic() - self._started
            if self._plan.read:
                self._reporter.progress(self._progress())

    def stuck(self) -> list[str]:
        """Paths that lanes still hang in after the run."""
        return [self._survey.files[index].path for index in self.lanes.stuck()]

    # In the lanes' threads

    def _read(self, lease: Lease, kit: Kit, checkpoint: Checkpoint) -> None:
        index = lease.span.index
        file = self._survey.files[index]
        if index in self.failed:
            return
        offset = None
        try:
            with opened(file.path) as fd:
                offset = lease.position
                read_in_order(fd)
                self._read_open(fd, lease, kit, checkpoint)
        except OSError as exc:
            self._fail(index, offset if offset is None else lease.position, exc)
        finally:
            self.touches.add(kit.name)

    def _read_open(self, fd: int, lease: Lease, kit: Kit, checkpoint: Checkpoint) -> None:
        holes = self._holes[lease.span.index]
        step, clock = _BLOCK, time.monotonic
        while block := lease.take(step):
            skip, count = wanted(holes, lease.position, lease.position + block)
            if skip:
                lease.advance(skip)
                continue
            began = clock()
            moved = kit.touch(fd, lease.position, count)
            if not moved:
                self._fail(
                    lease.span.index, lease.position, OSError(errno.ENODATA, "file ends here: it has shrunk")
                )
                return
            lease.advance(moved)
            step = step_after(step, moved, clock() - began)
            checkpoint(moved)

    def _fail(self, index: int, offset: int | None, exc: OSError) -> None:
        with self._lock:
            if index in self.failed:
                return
            self.failed.add(index)
            problem = problem_of(self._survey.files[index], offset, exc)
            self.problems.append(problem)
        self._reporter.emit(problem)

    # In the event loop

    def _tell(self) -> None:
        self._reporter.progress(self._progress())

    def _tick(self) -> None:
        self._watch_memory()
        self._watch_stall()

    def _watch_memory(self) -> None:
        """Stop before the next look could find that our own first pages were evicted for our last ones."""
        done, ahead = self.lanes.done, self._read_ahead()
        left, binding = margin(self._gauge.read(), self._policy, self._resident_before + done + ahead)
        if binding is None or self._plan.read - done - ahead <= left:
            return
        if left <= self._rate() * _TICK_S + self._next_windows() and self.stopped is None:
            self.stopped = binding
            self.lanes.stop("memory")

    def _read_ahead(self) -> int:
        """Bytes that the kernel may have brought in beyond what the lanes have counted: ours, not other people's cache."""
        return sum(
            min(span.end - position, self._windows[self._survey.files[span.index].mount_id])
            for span, position, _ in self.lanes.active()
        )

    def _next_windows(self) -> int:
        """Bytes that the kernel may bring in at once when lanes go on to their next files.

        With 8 MiB of readahead two lanes went from 11 MiB below a limit to 1 MiB of lost pages between two looks.
        """
        largest = max((self._survey.files[index].size for index in self._plan.chosen), default=0)
        return self.lanes.busy * min(largest, max(self._windows.values(), default=0))

    def _watch_stall(self) -> None:
        still = time.monotonic() - max(self.lanes.last_progress, self._started)
        self._stall.look(
            still, files=[self._survey.files[span.index].path for span, _, _ in self.lanes.active()]
        )

    def _rate(self) -> float:
        """Bytes per second over the last few seconds."""
        (first_time, first_done), (last_time, last_done) = self._recent[0], self._recent[-1]
        return (last_done - first_done) / max(1e-6, last_time - first_time)

    def _progress(self) -> Progress:
        now, done = time.monotonic(), self.lanes.done
        self._recent = [(at, count) for at, count in self._recent if now - at < 5.0] or [(self._started, 0)]
        self._recent.append((now, done))
        rate, left = self._rate(), max(0, self._plan.read - done)
        room = self.stopped
        snapshot = self._gauge.read()
        admission = self._survey.admission
        binding = room or (admission.binding if admission else None)
        return Progress(
            "warm",
            done,
            self._plan.read,
            rate,
            left / rate if rate > 0 else None,
            len(self.lanes.finished),
            len({span.index for span in self._plan.spans}),
            self.lanes.busy or self.controller.report().lanes,
            used_share(snapshot, binding),
            now - self._started,
            now,
        )


def problem_of(file: LocalFile, offset: int | None, exc: OSError) -> FileProblem:
    """The event for an error while reading `file` at `offset` (None: while opening it)."""
    code = exc.errno or 0
    text = exc.strerror if code == errno.ENODATA else os.strerror(code).lower()
    return FileProblem(file.entry.path, offset, errno.errorcode.get(code, str(code)), text or str(exc))
