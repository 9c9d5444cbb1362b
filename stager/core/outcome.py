"""What a run's result means: one table from (result, mode) to exit code and marker state.

The README shows the same table; ``tests/test_outcome.py`` holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """How strictly a result is judged."""

    DEFAULT = "default"
    FAIL_OPEN = "fail-open"
    STRICT = "strict"


class MarkerState(StrEnum):
    """What the ready marker claims. Only `READY` is ready without ``--accept``."""

    READY = "ready"
    PARTIAL = "partial"
    UNVERIFIED = "unverified"
    RELEASED = "released"
    FAILED = "failed"


class Result(StrEnum):
    """How a warm run ended, from best to worst: of several, the last one counts."""

    RESIDENT = "resident"  # every byte verified resident
    UNKNOWN = "unknown"  # all read, residency cannot be known here
    LOST = "lost"  # all read, but some pages did not stay
    PARTIAL = "partial"  # memory holds only a part
    BELOW_MINIMUM = "below_minimum"  # less resident than --min-resident asks
    DROPPED = "dropped"  # the mount drops pages at open; nothing read
    UNREADABLE = "unreadable"  # files without permission; the rest was read
    IO_ERROR = "io_error"  # read errors; the rest was read
    DEADLINE = "deadline"  # --timeout or --stall-timeout
    EMPTY = "empty"  # nothing there
    CORRUPT = "corrupt"  # provably incomplete or corrupt model

    @property
    def severity(self) -> int:
        """Position in the order above, 0 for the best."""
        return list(Result).index(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The exit code and the marker state that a result earns in a mode."""

    exit_code: int
    state: MarkerState


_F = MarkerState.FAILED
_TABLE: dict[Result, dict[Mode, Verdict]] = {
    result: dict(
        zip((Mode.DEFAULT, Mode.FAIL_OPEN, Mode.STRICT), (Verdict(*cell) for cell in cells), strict=True)
    )
    for result, cells in {
        Result.RESIDENT: ((0, MarkerState.READY), (0, MarkerState.READY), (0, MarkerState.READY)),
        Result.UNKNOWN: ((0, MarkerState.UNVERIFIED), (0, MarkerState.UNVERIFIED), (3, _F)),
        Result.LOST: ((0, MarkerState.PARTIAL), (0, MarkerState.PARTIAL), (3, _F)),
        Result.PARTIAL: ((0, MarkerState.PARTIAL), (0, MarkerState.PARTIAL), (4, _F)),
        Result.BELOW_MINIMUM: ((3, _F), (0, MarkerState.RELEASED), (3, _F)),
        Result.DROPPED: ((0, MarkerState.RELEASED), (0, MarkerState.RELEASED), (11, _F)),
        Result.UNREADABLE: ((6, _F), (0, MarkerState.RELEASED), (6, _F)),
        Result.IO_ERROR: ((9, _F), (0, MarkerState.RELEASED), (9, _F)),
        Result.DEADLINE: ((10, _F), (0, MarkerState.RELEASED), (10, _F)),
        Result.EMPTY: ((7, _F), (0, MarkerState.RELEASED), (7, _F)),
        Result.CORRUPT: ((8, _F), (8, _F), (8, _F)),
    }.items()
}


def verdict(result: Result, mode: Mode) -> Verdict:
    """The exit code and marker state for `result` under `mode`."""
    return _TABLE[result][mode]


def worst(results: list[Result]) -> Result:
    """The result that counts when several apply; `Result.RESIDENT` when none does."""
    return max(results, key=lambda r: r.severity, default=Result.RESIDENT)
