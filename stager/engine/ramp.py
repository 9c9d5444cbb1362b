"""The first moments of a run: lanes are doubled for as long as each doubling pays nearly in full.

Where requests take their time and nothing else is short, every lane adds what the first one gave. Looks of a fifth of
a second see that, and a small model is read before the careful measurements of `stager.engine.pace` have begun. The
first doubling that pays less ends the ramp. Pure, as the controller is.
"""

from __future__ import annotations

from dataclasses import dataclass

from stager.engine.meter import Meter

# After a change: threads start, files open, the first answers come.
_SETTLE_S = 0.1
# A look is over when every lane moved this much in this time; fast lanes need less of it.
_LOOK_S = 0.2
_LOOK_BYTES = 4 << 20
_GLANCE_S = 0.1
_GLANCE_BYTES = 16 << 20
# Lanes too slow for that are measured with patience, by the controller.
_LONGEST_S = 1.5
# A step pays nearly in full when it gives this share of what the lanes added would give at best. Short looks are off
# by a quarter on a noisy storage; a step that pays nothing passes this bar one time in a hundred.
_STEEP = 0.6
# A step that pays less but this much, as a factor, is where the controller goes on from.
_WORTHWHILE = 1.15
# Where a lane moves this many bytes a second its daemon may well fetch ahead of it, and several handles on one file make it fetch some
# of them twice: with 32 to 64 MiB ahead and 800 MB/s in all, sixteen were no faster than eight and fetched 1.9 times the
# file instead of 1.4. There the ramp ends at eight, and a step must pay more to be kept.
_FETCHED_AHEAD = 50_000_000
_ENOUGH = 8
_WORTHWHILE_SPLIT = 1.5
_USELESS = 1.2  # below this, splitting is not tried again for a while
# A step that adds less than this, as a factor, to the lanes at work proves little: it is the last one.
_LEAST_STEP = 1.5


@dataclass(frozen=True, slots=True)
class Look:
    """A setting of the ramp, how many lanes were at work in it, and what they gave in bytes per second."""

    lanes: int
    split: bool
    width: int
    rate: float


class Ramp:
    """Goes up from `lanes` to at most `ceiling`; `may_split`: idle lanes may take over tails when no spans wait."""

    def __init__(self, lanes: int, ceiling: int, *, may_split: bool) -> None:
        """Nothing measured yet."""
        self.lanes, self.split = lanes, False
        self.over = False
        self.useless_split = False
        self._ceiling = ceiling
        self._may_split = may_split
        self._meter = Meter()
        self._width = 0
        self._changed_at: float | None = None
        self._before: Look | None = None

    def observe(self, now: float, done: int, *, width: int, backlog: int) -> Look | None:
        """What was just measured, or None; `lanes`, `split` and `over` say how to go on.

        `width` is the number of lanes at work, `backlog` the spans that wait. When it is over, `lanes` and `split` are where to go on
        from, and `useless_split` says that the last step was to split and gave next to nothing.
        """
        if self._changed_at is None:
            self._changed_at = now - _SETTLE_S  # a lane that is seen at work has begun
        if width != self._width:
            self._width = width
            self._meter.restart(now, done, max(0.0, self._changed_at + _SETTLE_S - now))
        self._meter.add(now, done)
        look = None
        if self._seen:
            look = Look(self.lanes, self.split, width, self._meter.rate)
            self._judge(look, backlog)
            self._changed_at = now
            self._meter.restart(now, done, _SETTLE_S)
        elif now > self._changed_at + _LONGEST_S:
            self._end()
        return look

    @property
    def _seen(self) -> bool:
        seconds, each = self._meter.seconds + 1e-6, self._meter.moved / self._width
        return (seconds >= _LOOK_S and each >= _LOOK_BYTES) or (
            seconds >= _GLANCE_S and each >= _GLANCE_BYTES
        )

    def _judge(self, look: Look, backlog: int) -> None:
        before = self._before
        if before is not None:
            wider = look.width / before.width
            gain = look.rate / before.rate
            if gain < 1 + _STEEP * (wider - 1):
                begins = look.split and not before.split
                self.useless_split = begins and gain < _USELESS
                costly = begins or self._costly(before)
                self._end(stay=gain >= (_WORTHWHILE_SPLIT if costly else _WORTHWHILE))
                return
            if wider < _LEAST_STEP:
                self._end(stay=True)
                return
        self._before = look
        self._step(look, backlog)

    @staticmethod
    def _costly(look: Look) -> bool:
        return look.split and look.rate >= _FETCHED_AHEAD * look.width

    def _step(self, look: Look, backlog: int) -> None:
        """The next setting: the lanes that are allowed already but idle for want of spans, if they are many, else twice as many."""
        idle = self.lanes >= _LEAST_STEP * look.width
        most = min(_ENOUGH, self._ceiling) if self._costly(look) else self._ceiling
        lanes = min(self.lanes if idle else 2 * look.width, most)
        if lanes > look.width + backlog:
            if self._may_split:
                self.split = True
            else:
                lanes = look.width + backlog
        if lanes < _LEAST_STEP * look.width:
            self._end(stay=True)
        else:
            self.lanes = lanes

    def _end(self, *, stay: bool = False) -> None:
        self.over = True
        if not stay and self._before is not None:
            self.lanes, self.split = self._before.lanes, self._before.split
