"""A limit on bytes per second that all connections of a server share, so that it is slower than the machine by a known amount."""

from __future__ import annotations

import threading
import time


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
