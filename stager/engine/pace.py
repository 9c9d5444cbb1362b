"""How many lanes at once: found while running, from total throughput alone.

The controller is pure: no clock, no threads; it is told what happened and says how many lanes may be busy. It climbs:
measure the setting in force (the base), try another for a moment, keep it if total throughput clearly grew, else go
back. While lanes keep paying it doubles them; when a doubling does not pay it tries the middle and fewer lanes, and
settles. Later it looks again now and then, and at once when the rate falls or rises for good.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stager.engine.meter import Meter
from stager.engine.ramp import Ramp

# After a change the first moments belong to nobody: lanes start, files open, daemons widen their prefetch.
_SETTLE_S = 0.2
# A lane that did not start within this time after a change will not start.
_START_S = 1.0
# An epoch is long enough when every lane passed a few blocks; a lane counts in blocks of 1 to 4 MiB.
_BYTES_PER_LANE = 8 << 20
_SHORTEST_S = 0.3
_BASE_S = 0.5
_TRIAL_S = 6.0  # on storage so slow that even this is not enough bytes, the verdict is a guess
# The bars a trial must pass, as a factor on the base's rate. They come from tests/simulation.py with 10 to 20 % of
# noise: higher ones left a tenth of the throughput on storages that grow slowly, lower ones wandered on flat ones.
_GROWTH = 1.05  # for more lanes
_SPLIT_GROWTH = 1.08  # for a second handle on a file, which daemons may pay for by fetching more than once
_RELIEF = 1.02  # for fewer lanes while many spans wait
_RESCUE = 1.10  # for fewer lanes when most spans are in flight: putting some back makes stragglers
_HARMLESS = 0.96  # for taking all the spans that are left at once
_HARMFUL = 0.9  # below this share of the base's rate a setting is not looked at again
# A split that grew by less than this much more than its bar is measured twice.
_PLAIN = 0.2
# Growth by this share of the lanes added is linear: go on by four instead of two.
_STEEP = 0.85
# How many standard errors a verdict needs before time is up.
_SURE = 2.0
# While settled, rates are compared in blocks of this length; two in a row outside these bounds are a change.
_BLOCK_S = 1.5
_FALL = 0.75
_RISE = 1.3
# Looking again costs a second of a worse setting: first after this long, then ever more rarely.
_FIRST_LOOK_S = 6.0
_LAST_LOOK_S = 60.0


@dataclass(frozen=True, slots=True)
class Decision:
    """How many lanes may be busy, and whether idle lanes may take over the tail of the biggest span in flight."""

    lanes: int
    split: bool


@dataclass(frozen=True, slots=True)
class Epoch:
    """One judged stretch of a run: seconds since the first tick at its end, the setting, bytes per second."""

    at: float
    lanes: int
    split: bool
    rate: float


@dataclass(frozen=True, slots=True)
class PaceReport:
    """What the controller found: lanes in force, the most it ever allowed, whether splitting was kept."""

    lanes: int
    peak: int
    split: bool
    epochs: tuple[Epoch, ...]


@dataclass(slots=True)
class _Base:
    """The setting in force and what it gave."""

    setting: Decision
    width: int = 0
    rate: float = 0.0
    error: float = math.inf


class Controller:
    """Says how many lanes may be busy, told by ticks what they moved.

    `ceiling` is the most it ever says (``-P``), `start` where it begins. With `may_split` it may find that idle lanes
    should take over tails. `ramp`: it goes up quickly at first, for as long as every lane pays (see `stager.engine.ramp`).
    Without `adapt` the answer is always ``(ceiling, may_split)``.
    """

    def __init__(
        self, ceiling: int, start: int, *, adapt: bool = True, may_split: bool = False, ramp: bool = False
    ) -> None:
        """Raises ValueError when `ceiling` or `start` is below 1."""
        if ceiling < 1 or start < 1:
            raise ValueError(f"ceiling {ceiling} and start {start} must be at least 1")
        self.ceiling = ceiling
        self._adapt = adapt
        self._may_split = may_split
        first = Decision(min(start, ceiling), split=False) if adapt else Decision(ceiling, may_split)
        self._decision = first
        self._ramp = Ramp(first.lanes, ceiling, may_split=may_split) if adapt and ramp else None
        self._base = _Base(first)
        self._trial: Decision | None = None
        self._tried_at = 0.0
        self._settled = False
        self._tried: dict[Decision, float] = {}
        self._refused = False
        self._steep = False
        self._downward = False
        self._meter = Meter()
        self._width = 0
        self._began: float | None = None
        self._backlog = 0
        self._level: float | None = None
        self._strange = 0
        self._look_at = math.inf
        self._look_every = _FIRST_LOOK_S
        self._bar = _GROWTH
        self._looks = 0
        self._split_again = 0.0
        self._doubted = False
        self._peak = first.lanes
        self._epochs: list[Epoch] = []

    def observe(self, now: float, done: int, *, busy: int, backlog: int) -> Decision:
        """The setting to run at from now on.

        `now` in seconds on any steady clock, `done` the bytes moved so far by all lanes, `busy` the lanes reading
        at this moment, `backlog` the whole spans nobody has taken.
        """
        if self._began is None:
            self._began = now
        if not self._adapt or not busy:
            return self._decision
        self._backlog = backlog
        # Fewer lanes than allowed, and nothing for more of them to take: what is measured is that smaller number.
        width = self._decision.lanes if backlog else min(busy, self._decision.lanes)
        if self._ramp is not None:
            self._climb_quickly(self._ramp, now, done, width)
        elif width != self._width or busy > self._decision.lanes:
            if width != self._width:
                self._supply_changed(width, now, done)
            self._meter.restart(now, done, _SETTLE_S)
        else:
            self._meter.add(now, done)
            self._judge(now, done)
        return self._decision

    @property
    def ramping(self) -> bool:
        """True in the first moments, when it is worth asking twice as often."""
        return self._ramp is not None

    def report(self) -> PaceReport:
        """What was found so far."""
        setting = self._base.setting
        return PaceReport(setting.lanes, self._peak, setting.split, tuple(self._epochs))

    def _climb_quickly(self, ramp: Ramp, now: float, done: int, width: int) -> None:
        look = ramp.observe(now, done, width=width, backlog=self._backlog)
        if look is not None:
            assert self._began is not None
            self._epochs.append(Epoch(now - self._began, look.width, look.split, look.rate))
            if not ramp.over:  # lanes beyond these paid in full: fewer cannot be better
                self._tried[Decision(look.width, look.split)] = look.rate
        setting = Decision(ramp.lanes, ramp.split)
        self._set(setting, now, done)
        if ramp.over:
            self._ramp = None
            self._base = _Base(setting)
            if ramp.useless_split:
                self._split_again = now + 2 * _FIRST_LOOK_S

    # What the meter says

    def _supply_changed(self, width: int, now: float, done: int) -> None:
        """The number of busy lanes moved by itself: epochs of before say nothing about what comes."""
        self._width = width
        self._level = None
        self._strange = 0
        if self._trial is not None and now > self._tried_at + _START_S:
            trial, self._trial, self._doubted = self._trial, None, False
            if self._begins_split(trial):
                self._split_again = now + 2 * _FIRST_LOOK_S
            self._set(self._base.setting, now, done)

    def _judge(self, now: float, done: int) -> None:
        enough = self._meter.moved >= _BYTES_PER_LANE * self._width
        if self._trial is not None:
            self._judge_trial(now, done, enough=enough)
        elif not self._settled:
            if (
                self._meter.seconds >= _BASE_S
                and enough
                and (self._climbing or self._meter.sharp or self._meter.exhausted)
            ):
                self._note(now)
                self._base = _Base(self._base.setting, self._width, self._meter.rate, self._meter.error)
                self._tried[self._as_wide(self._base.setting)] = self._meter.rate
                self._next(now, done)
        elif self._meter.seconds >= _BLOCK_S and enough:
            self._note(now)
            self._judge_block(now, done)

    @property
    def _climbing(self) -> bool:
        """Nothing was refused yet. The next setting is likely the better one, so do not dwell on this one."""
        return not self._refused and not self._settled

    def _as_wide(self, setting: Decision) -> Decision:
        return Decision(self._width, setting.split)

    def _judge_trial(self, now: float, done: int, *, enough: bool) -> None:
        meter, base, trial = self._meter, self._base, self._trial
        assert trial is not None
        if (meter.seconds < _SHORTEST_S or not enough) and meter.seconds < _TRIAL_S:
            return
        margin = meter.rate - self._bar * base.rate
        if abs(margin) < _SURE * math.hypot(meter.error, base.error) and not meter.exhausted:
            return
        self._note(now)
        self._trial = None
        if self._begins_split(trial) and 0 < margin < _PLAIN * base.rate and not self._doubted:
            self._doubted = self._refused = True
            self._settled = False
            self._set(base.setting, now, done)
            return
        self._doubted = False
        self._tried[trial] = self._tried[self._as_wide(trial)] = meter.rate
        if margin > 0:
            self._accept(trial, now, done)
        else:
            self._refuse(trial, now, done)

    def _begins_split(self, trial: Decision) -> bool:
        return trial.split and not self._base.setting.split

    def _accept(self, trial: Decision, now: float, done: int) -> None:
        rate, base = self._meter.rate, self._base
        # Where more lanes were refused before, splitting only fills those that the files no longer fill.
        filled = self._settled and self._refused and self._begins_split(trial)
        last_wave = self._bar == _HARMLESS and rate < _GROWTH * base.rate
        linear = base.rate * trial.lanes / max(1, base.width)
        self._steep = not self._refused and rate > _STEEP * linear
        self._downward = trial.lanes < base.width
        self._base = _Base(trial, self._width, rate, self._meter.error)
        self._look_every = _FIRST_LOOK_S
        self._settled = False
        if filled or last_wave:
            self._settle(now, done)
        else:
            self._next(now, done)

    def _refuse(self, trial: Decision, now: float, done: int) -> None:
        self._refused = True
        self._steep = False
        if self._begins_split(trial):
            self._split_again = now + 2 * _FIRST_LOOK_S
        self._set(self._base.setting, now, done)

    def _judge_block(self, now: float, done: int) -> None:
        rate, error = self._meter.rate, self._meter.error
        level = self._level = rate if self._level is None else self._level
        self._meter.restart(now, done, 0.0)
        self._strange = self._strange + 1 if not _FALL * level < rate < _RISE * level else 0
        if self._strange >= 2:
            self._explore(downward=rate < level)
        elif not self._strange:
            self._level = level + 0.3 * (rate - level)
            self._base = _Base(self._base.setting, self._width, self._level, error)
            candidate = self._last_wave() or self._split_candidate(now)
            if candidate is None and now >= self._look_at:
                candidate = self._look_candidate()
                self._look_at = now + self._look_every
                self._look_every = min(_LAST_LOOK_S, 2 * self._look_every)
            if candidate is not None:
                self._try(candidate, now, done)

    # What to try

    def _explore(self, *, downward: bool) -> None:
        """The storage is not what it was: begin again from here."""
        self._tried.clear()
        self._refused = self._steep = False
        self._downward = downward
        self._settled = False
        self._split_again = 0.0
        self._look_every = _FIRST_LOOK_S

    def _next(self, now: float, done: int) -> None:
        """Tries the next setting, or settles at the base."""
        candidate = next((c for c in self._candidates(now) if c not in self._tried), None)
        if candidate is None:
            self._settle(now, done)
        else:
            self._try(candidate, now, done)

    def _settle(self, now: float, done: int) -> None:
        self._settled = True
        self._level = None
        self._strange = 0
        self._look_at = now + self._look_every
        self._set(self._base.setting, now, done)

    def _try(self, candidate: Decision, now: float, done: int) -> None:
        # The last spans decide when the run is over: better all of them at once than lanes idle at the end. As long
        # as many wait, or tails can be shared, fewer lanes at the same rate are a relief to the daemon.
        if candidate.lanes == self._width + self._backlog and 0 < self._backlog < self._width:
            self._bar = _HARMLESS
        elif candidate.split and not self._base.setting.split:
            self._bar = _SPLIT_GROWTH
        elif candidate.lanes > self._width:
            self._bar = _GROWTH
        else:
            many = candidate.split or self._backlog >= 2 * self._width
            self._bar = _RELIEF if many else _RESCUE
        self._trial, self._tried_at = candidate, now
        self._set(candidate, now, done)

    def _candidates(self, now: float) -> Iterator[Decision]:
        width, split = self._width, self._base.setting.split
        half, low = Decision(width // 2, split), Decision((width + width // 2) // 2, split)
        if self._downward:
            yield from self._fewer(half, low)
        most = self.ceiling if split else min(self.ceiling, width + self._backlog)
        double = Decision(min(2 * width, most), split)
        if double.lanes > width:
            if self._steep:
                yield Decision(min(4 * width, most), split)
            yield double
        if split_up := self._split_candidate(now):
            yield split_up
        yield from self._fewer(half)
        middle = Decision((width + double.lanes) // 2, split)
        if middle.lanes > width:
            yield middle
        yield from self._fewer(low)

    def _fewer(self, *settings: Decision) -> Iterator[Decision]:
        for setting in settings:
            if 1 <= setting.lanes < self._width and self._hopeful(setting):
                yield setting

    def _hopeful(self, fewer: Decision) -> bool:
        """Lanes at best add up: whether `fewer` lanes could beat the base, judged by even fewer of them."""
        known = [(t.lanes, rate) for t, rate in self._tried.items() if t.lanes < fewer.lanes]
        return all(rate * fewer.lanes / lanes > _GROWTH * self._base.rate for lanes, rate in known)

    def _split_candidate(self, now: float) -> Decision | None:
        """Splitting, when lanes idle for want of spans although more of them were not found to be useless."""
        setting, width = self._base.setting, self._width
        if not self._may_split or setting.split or self._backlog or width >= self.ceiling:
            return None
        if now < self._split_again:
            return None
        settled = self._settled and width < setting.lanes  # how many lanes are good is known then
        wider = Decision(setting.lanes if settled else min(2 * width, self.ceiling), split=True)
        refused = any(t.lanes > width and rate < _GROWTH * self._base.rate for t, rate in self._tried.items())
        return None if refused and width >= setting.lanes else wider

    def _look_candidate(self) -> Decision | None:
        """A neighbour, a few lanes more or fewer in turn; not fewer when that was found to be far worse."""
        self._looks += 1
        width, split = self._width, self._base.setting.split
        if width < self._base.setting.lanes:
            return None  # nothing left to hand out: too late to learn anything
        step = max(1, width // 3)
        most = self.ceiling if split else min(self.ceiling, width + self._backlog)
        more, fewer = Decision(min(width + step, most), split), Decision(max(1, width - step), split)
        choice = [more, fewer] if self._looks % 2 else [fewer, more]
        far_worse = [t.lanes for t, rate in self._tried.items() if rate < _HARMFUL * self._base.rate]
        hopeless = max((lanes for lanes in far_worse if lanes < width), default=0)
        return next((c for c in choice if c.lanes != width and c.lanes > hopeless), None)

    def _last_wave(self) -> Decision | None:
        """All spans left at once, where the last ones would else leave lanes idle; harmless is good enough then."""
        width = self._width
        everything = Decision(width + self._backlog, self._base.setting.split)
        if not 0 < self._backlog < width or everything.lanes > self.ceiling:
            return None
        known = [rate for t, rate in self._tried.items() if width < t.lanes <= 2 * width]
        return None if any(rate < _HARMFUL * self._base.rate for rate in known) else everything

    def _set(self, setting: Decision, now: float, done: int) -> None:
        if setting != self._decision:
            self._decision = setting
            self._width = setting.lanes
            self._peak = max(self._peak, setting.lanes)
            self._meter.restart(now, done, _SETTLE_S)

    def _note(self, now: float) -> None:
        assert self._began is not None
        epoch = Epoch(now - self._began, self._width, self._decision.split, self._meter.rate)
        self._epochs.append(epoch)
