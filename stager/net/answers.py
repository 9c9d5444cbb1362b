"""What headers of HTTP answers say. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The bytes [`start`, `end`) of an object of `size` bytes."""

    start: int
    end: int
    size: int


def content_range(text: str | None) -> ContentRange | None:
    """What a ``Content-Range`` header says; None for a missing or strange one."""
    match = _RANGE.fullmatch(text or "")
    return ContentRange(int(match[1]), int(match[2]) + 1, int(match[3])) if match else None


def seconds(date: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date; None for a missing or strange one."""
    try:
        parsed = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()  # noqa: UP017


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a ``Retry-After`` header, which is a number of seconds or a date; `now` in seconds since 1970."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    date = seconds(value)
    return None if date is None else max(0.0, date - now)
