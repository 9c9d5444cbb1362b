"""A rate in bytes per second, shared by threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_SAVED_S = 0.1  # unused time that is saved up: the longest burst


class Throttle:
    """A token bucket. It says how long to wait and leaves the waiting to the caller."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`rate` bytes per second; at most a tenth of a second of unused time is saved up."""
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_until = clock()

    def delay(self, count: int) -> float:
        """Seconds to wait for `count` bytes, 0 or less for none. Bytes that wait before they move never exceed the rate."""
        with self._lock:
            now = self._clock()
            self._paid_until = max(self._paid_until, now - _SAVED_S) + count / self._rate
            return self._paid_until - now

    def refund(self, count: int) -> None:
        """Gives back `count` bytes that were asked for and did not move."""
        with self._lock:
            self._paid_until -= count / self._rate
