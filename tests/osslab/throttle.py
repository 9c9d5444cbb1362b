"""Limits on bytes per second and time to an answer, so that a server is slower than the machine by a known amount."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass


class Throttle:
    """`rate` bytes per second in all. After a pause there is no more than `burst` seconds' worth at once."""

    def __init__(self, rate: float, stopping: threading.Event, *, burst: float = 0.02) -> None:
        self.rate, self._stopping, self._burst = rate, stopping, burst
        self._lock = threading.Lock()
        self._free = 0.0  # when what was taken so far is paid for

    def take(self, count: int) -> None:
        """Wait until these bytes are paid for. Who comes first is served first, whatever the others want."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - self._burst) + count / self.rate
            early = self._free - now
        if early > 0:
            self._stopping.wait(early)


@dataclass(frozen=True)
class Link:
    """How far away a server is: `latency` seconds before each answer, and `rate` bytes per second of each connection, each way.

    A store copies by itself at `copying` bytes per second, each copy on its own. None: no limit.
    """

    latency: float = 0.0
    rate: float | None = None
    copying: float | None = None

    def throttle(self, stopping: threading.Event) -> Throttle | None:
        """The limit of one direction of one connection."""
        return Throttle(self.rate, stopping) if self.rate else None

    def copy(self, count: int, stopping: threading.Event) -> None:
        """Wait as long as one copy of so many bytes takes."""
        if self.copying:
            stopping.wait(count / self.copying)


NEAR = Link()  # as fast as the machine
