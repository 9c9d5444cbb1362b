"""A pulse: whether this process was running all the time. One that was stopped, starved or frozen tells its own pause as somebody's time."""

from __future__ import annotations

import threading
import time

_BEAT_S = 0.02
_MISSED_S = 0.25  # a beat that comes later by so much was held up
_SHARE = 0.05  # of what was timed: less than this is no harm


class Pulse:
    """Beats from now on until `end`, in a thread of its own."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._missed = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """The seconds in which this process did not run, in pauses of a quarter of a second and more."""
        self._over.set()
        self._thread.join()
        return self._missed

    def _work(self) -> None:
        last = time.monotonic()
        while not self._over.wait(_BEAT_S):
            last = self._beat(last)
        self._beat(last)

    def _beat(self, last: float) -> float:
        now = time.monotonic()
        late = now - last - _BEAT_S
        self._missed += late if late > _MISSED_S else 0.0
        return now


def held_up(missed: float, seconds: float) -> str:
    """Why a time of `seconds` proves nothing when its clock did not run for `missed` of them; empty when that is little."""
    if missed <= _SHARE * seconds:
        return ""
    return f"stager itself did not run for {missed:.3g} s meanwhile: it was stopped, or had no processor"
