"""The connections that lanes read over: how fast each is, which ones hang, and waits that end with the run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stager.engine.lanes import Checkpoint
    from stager.store.base import Reader

# A connection below this share of its siblings' median, for so many seconds, hangs on a slow replica or a lossy path: a
# new one is likely to be served by another. Connections that share one line differ by a factor of two or so.
_SLOW_SHARE = 0.2
_SLOW_S = 3.0
_SIBLINGS = 3  # fewer do not tell what is normal
_REMEMBERED = 32  # requests, so that the last ones of a job have somebody to be compared with
_TELLING = 4 << 20  # bytes; a shorter request is mostly waiting
_PAUSE_S = 0.1


class Line:
    """What a lane keeps: its connection, and how fast that is."""

    def __init__(self, reader: Reader, close: Callable[[Line], None]) -> None:
        self.reader = reader
        self.moved = 0  # bytes over all requests
        self._reading = False
        self._strikes = 0  # connections in a row that were dropped
        self._close = close
        self._marks: list[tuple[float, int]] = []

    def begin(self) -> None:
        """A request begins."""
        self._marks = [(time.monotonic(), self.moved)]
        self._reading = True

    def end(self) -> float:
        """The request is over; bytes per second of all of it."""
        self._reading = False
        began, before = self._marks[0]
        return (self.moved - before) / max(1e-6, time.monotonic() - began)

    def good(self) -> None:
        """The connection did what was asked."""
        self._strikes = 0

    def rate(self, now: float) -> float | None:
        """Bytes per second lately; None until the request has lasted long enough to tell."""
        patience = _SLOW_S * 2**self._strikes
        if not self._reading or now - self._marks[0][0] < patience:
            return None
        self._marks = [self._marks[0], *self._marks[-64:], (now, self.moved)]
        then, before = [mark for mark in self._marks if now - mark[0] >= patience][-1]
        return (self.moved - before) / (now - then)

    def strike(self) -> None:
        """Drop the connection. Its successor is given twice the time, in case the store is like that."""
        self._strikes += 1
        self.begin()
        self.reader.interrupt()

    def close(self) -> None:
        """Give the connection back."""
        self._close(self)
        self.reader.close()


class Lines:
    """The lines of one job. `replaced` counts connections that were dropped because they were slow."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._usual: deque[float] = deque(maxlen=_REMEMBERED)  # bytes per second of requests answered in full
        self.replaced = 0

    def open(self, reader: Reader) -> Line:
        """A line over `reader`, known until it is closed."""
        line = Line(reader, self._forget)
        with self._lock:
            self._lines.append(line)
        return line

    def _forget(self, line: Line) -> None:
        with self._lock:
            self._lines.remove(line)

    def answered(self, line: Line, length: int) -> None:
        """Say that a request for `length` bytes was answered in full over `line`."""
        rate = line.end()
        line.good()
        if length >= _TELLING:
            with self._lock:
                self._usual.append(rate)

    def watch(self) -> None:
        """Drop connections that are far slower than others were or are. Call it every second or less."""
        now = time.monotonic()
        with self._lock:
            rates = [(rate, line) for line in self._lines if (rate := line.rate(now)) is not None]
            usual = list(self._usual)
        # When all are slow now, it is not the connections. When few are left, what was usual before tells.
        siblings = [rate for rate, _ in rates]
        known = [median(some) for some in (siblings, usual) if len(some) > _SIBLINGS]
        normal = min(known, default=0.0)
        for rate, line in rates:
            if rate < _SLOW_SHARE * normal:
                line.strike()
                self.replaced += 1


class Pauses:
    """Waits in lanes, which end with the run; in other threads they are plain ones."""

    def __init__(self) -> None:
        """For any number of threads."""
        self._local = threading.local()
        self.last_move = 0.0
        """`time.monotonic` of the last call of `moved`; 0 before the first."""

    @contextmanager
    def ended_by(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Within, waits of this thread call `checkpoint` often, and raise what that raises."""
        self._local.checkpoint = checkpoint
        try:
            yield
        finally:
            self._local.checkpoint = None

    def moved(self) -> None:
        """Say that what this thread does gets on, though no byte of the job has moved. Raises what a wait raises."""
        self.last_move = time.monotonic()
        if (checkpoint := self._checkpoint()) is not None:
            checkpoint(0)

    def _checkpoint(self) -> Checkpoint | None:
        """That of this thread; None outside lanes."""
        found: Checkpoint | None = getattr(self._local, "checkpoint", None)
        return found

    def __call__(self, seconds: float) -> None:
        """Wait so many seconds."""
        checkpoint = self._checkpoint()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _PAUSE_S))
            if checkpoint is not None:
                checkpoint(0)
