"""How many lanes at once: found while running, from total throughput alone."""

from __future__ import annotations

from dataclasses import dataclass


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
    """What the controller found: settled lanes, the most it ever allowed, whether splitting was kept."""

    lanes: int
    peak: int
    split: bool
    epochs: tuple[Epoch, ...]


class Controller:
    """Pure: no clock, no threads; fed by ticks."""

    def __init__(self, ceiling: int, start: int, *, adapt: bool = True, may_split: bool = False) -> None:
        """`ceiling` is ``-P``; `start` is where to begin; without `adapt` the answer is always (ceiling, may_split)."""
        if ceiling < 1 or start < 1:
            raise ValueError(f"ceiling {ceiling} and start {start} must be at least 1")
        self.ceiling = ceiling
        self._decision = Decision(ceiling, may_split) if not adapt else Decision(min(start, ceiling), False)

    def observe(self, now: float, done: int, *, busy: int, backlog: int) -> Decision:
        """The setting to run at from now on, given total bytes moved, lanes reading, and whole spans waiting."""
        return self._decision

    def report(self) -> PaceReport:
        """What was found so far."""
        return PaceReport(self._decision.lanes, self._decision.lanes, self._decision.split, ())
