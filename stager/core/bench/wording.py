"""How the figures of a benchmark are written for a terminal."""

from __future__ import annotations

import math

from stager.core.units import format_duration

LOADS = {True: "cold", False: "second"}
"""What a load is called, by whether it is cold."""
_MOST_PLACES = 6  # a clock has no more to say than microseconds


def seconds_text(seconds: float) -> str:
    """`seconds` with three significant digits: ``0.000369s``, ``0.0123s``, ``1.24s``, ``38.1s``, ``4m10s``."""
    if seconds >= 99.95:
        return format_duration(seconds)
    return f"{seconds:.{_places(seconds, 3)}f}s"


def times_text(times: float) -> str:
    """How many times as fast: ``0.0033x``, ``0.21x``, ``2.8x``, ``103x``."""
    if times >= 99.5:
        return f"{times:.0f}x"
    return f"{times:.{max(1, _places(times, 2))}f}x"


def _places(value: float, digits: int) -> int:
    """How many decimal places show `digits` significant ones."""
    rounded = float(f"{value:.{digits - 1}e}")
    return min(_MOST_PLACES, digits - 1 - math.floor(math.log10(rounded))) if rounded > 0 else digits - 1
