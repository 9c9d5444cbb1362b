"""Sizes, percentages, durations and names, as people write and read them."""

from __future__ import annotations

import math
import re

from stager.core.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}i"] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power
_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?)"  # bounded, so that no number overflows
_SIZE = re.compile(rf"\s*{_NUMBER}\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_PERCENT = re.compile(rf"\s*{_NUMBER}\s*%?\s*", re.ASCII)
_DURATION = re.compile(rf"{_NUMBER}(ms|s|m|h|d|)", re.ASCII)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes in `text`: ``64GiB``, ``64G`` and ``64Gi`` are binary, ``64GB`` is decimal, a bare number is bytes.

    Raises `UsageError` for anything else.
    """
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"`{text}` is not a size", hint="write it like 64GiB, 512M or 1048576")
    whole, _, decimals = match[1].partition(".")
    scale: int = 10 ** len(decimals)
    return int(whole + decimals) * factor // scale  # exact; a float is not above 8 PiB


def parse_rate(text: str) -> int:
    """Bytes per second in `text`: a size, with or without ``/s``. Raises `UsageError` for anything else."""
    return parse_size(re.sub(r"\s*/s\s*$", "", text, flags=re.IGNORECASE))


def parse_percent(text: str) -> float:
    """The fraction 0..1 in `text` (``90%``, or ``90``); raises `UsageError` outside 0..100."""
    match = _PERCENT.fullmatch(text)
    if match is None or not 0 <= float(match[1]) <= 100:
        raise UsageError(f"`{text}` is not a percentage", hint="write it like 90%")
    return float(match[1]) / 100


def parse_size_or_percent(text: str, whole: int | None = None) -> int | float:
    """Bytes (int) for a size; for ``N%`` the fraction (float), or bytes when `whole` is given."""
    if "%" not in text:
        return parse_size(text)
    fraction = parse_percent(text)
    return fraction if whole is None else int(fraction * whole)


def parse_duration(text: str) -> float:
    """Seconds in `text`: ``90``, ``90s``, ``10m``, ``1h30m``; raises `UsageError` for anything else."""
    compact = text.strip().lower()
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UsageError(f"`{text}` is not a duration", hint="write it like 90s, 10m or 1h30m")
    if len(parts) > 1 and any(unit == "" for _, unit in parts):
        raise UsageError(f"`{text}` is not a duration", hint="every part needs a unit, as in 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_size(count: float) -> str:
    """`count` bytes in binary units with three significant places: ``0 B``, ``4.0 KiB``, ``26.4 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1023.95 or unit == "TiB":
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_percent(part: int, whole: int) -> str:
    """`part` of `whole` in percent; never rounded up to 100 % nor down to 0 %. An empty whole is ``100%``."""
    if whole <= 0 or part >= whole:
        return "100%"
    if part <= 0:
        return "0%"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f}%"


def format_duration(seconds: float) -> str:
    """`seconds` in the two largest units that matter: ``0.4s``, ``18s``, ``4m10s``, ``2h05m``; ``?`` if not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: int, noun: str) -> str:
    """``1 file``, ``3 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown(path: str) -> str:
    """A file name fit for one line of output: control characters and undecodable bytes as backslash escapes."""
    if path.isprintable():
        return path
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that no file name has, but a JSON index can
        raw = path.encode("utf-8", "backslashreplace")
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
