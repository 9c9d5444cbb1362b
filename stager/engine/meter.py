"""A rate measured by ticks, with its error: when two rates may be compared."""

from __future__ import annotations

import itertools
import math

# How long to measure at most: as long as it takes for one setting to lose a few percent of a run of half a minute;
# longer where bytes come in bursts.
_LONGEST_S = 2.0
_LONGEST_BURSTY_S = 5.0
# The relative error at which a rate can stand for its setting.
_SHARP = 0.08
# Until it is seen, single ticks are believed to scatter by this much, as if seen in this many ticks: three ticks that
# happen to agree prove nothing.
_TICK_SCATTER = 0.2
_BELIEF = 5


class Meter:
    """The rate in bytes per second since the last restart, and how far off it may be."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.restart(0.0, 0, 0.0)

    def restart(self, now: float, done: int, settle: float) -> None:
        """Forgets everything; what moves in the next `settle` seconds does not count."""
        self._ready_at = now + settle
        self._from = self._last = (now, done)
        self._rates: list[float] = []

    def add(self, now: float, done: int) -> None:
        """One tick: `done` is the total so far. A clock that stands still is ignored."""
        then, before = self._last
        if now <= then:
            return
        self._last = (now, done)
        if now <= self._ready_at + 1e-6:
            self._from = self._last
        else:
            self._rates.append((done - before) / (now - then))

    @property
    def seconds(self) -> float:
        """How long it has measured."""
        return self._last[0] - self._from[0]

    @property
    def moved(self) -> int:
        """Bytes while it measured."""
        return self._last[1] - self._from[1]

    @property
    def rate(self) -> float:
        """Bytes per second; 0 before anything was measured."""
        return self.moved / self.seconds if self.seconds > 0 else 0.0

    @property
    def error(self) -> float:
        """The standard error of `rate`, in bytes per second; wider when ticks in a row resemble each other."""
        count = len(self._rates)
        if count < 3 or not self.rate:
            return math.inf
        mean = sum(self._rates) / count
        off = [rate - mean for rate in self._rates]
        variance = sum(x * x for x in off) / (count - 1)
        follows = sum(a * b for a, b in itertools.pairwise(off)) / (sum(x * x for x in off) or 1.0)
        # Regular bursts even out, which a few ticks cannot tell from luck.
        follows = min(0.8, max(-0.5 if count >= 10 else 0.0, follows))
        variance *= (1 + follows) / (1 - follows)
        believed = (_TICK_SCATTER * self.rate) ** 2
        return math.sqrt((variance * (count - 1) + believed * _BELIEF) / (count - 1 + _BELIEF) / count)

    @property
    def sharp(self) -> bool:
        """Measured well enough to compare others with."""
        return self.error <= _SHARP * self.rate

    @property
    def exhausted(self) -> bool:
        """Measured for so long that more would not help; bursts are given more time."""
        longest = _LONGEST_S if self.error <= 2 * _SHARP * self.rate else _LONGEST_BURSTY_S
        return self.seconds >= longest
