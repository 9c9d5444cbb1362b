"""What is said of a call that is made again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stager.core.errors import DeadlineExceeded
from stager.core.events import Note
from stager.core.units import format_duration

if TYPE_CHECKING:
    from stager.engine.report import Reporter

_TOLD = 5  # retries that are told one by one; all are counted
_RECENT_S = 60.0  # between two attempts lie a wait and a read timeout at most
_OF = re.compile(r"(?P<call>.+?) of (?P<what>`.+`|\S+)", re.DOTALL)


def again(doing: str, error: Exception) -> Note:
    """That `doing` (``read of `NAME```, ``list of ms://owner/name``) met `error` and is tried again. What it is about is said once."""
    found = _OF.fullmatch(doing)
    if found is not None and found["what"].strip("`") in str(error):
        doing = found["call"]
    return Note("info", "retry", f"{doing}: {error}; trying again")


class Troubles:
    """What a job met and tried again: `count` in all, the first of them told to `reporter`. Any thread may use it."""

    def __init__(self, reporter: Reporter) -> None:
        """None so far."""
        self._reporter = reporter
        self._lock = threading.Lock()
        self._last: tuple[float, Exception] | None = None
        self.count = 0

    def tell(self, doing: str, error: Exception) -> None:
        """As `stager.store.retry.OnRetry`."""
        with self._lock:
            self.count += 1
            number = self.count
            self._last = time.monotonic(), error
        if number <= _TOLD:
            self._reporter.emit(again(doing, error))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within, who runs out of time is told what was in the way last, if that was a moment ago."""
        try:
            yield
        except DeadlineExceeded as late:
            with self._lock:
                last = self._last
            ago = time.monotonic() - last[0] if last is not None else _RECENT_S
            if last is None or ago >= _RECENT_S:
                raise
            trouble = f"the last trouble was {format_duration(ago)} ago: {last[1]}"
            raise DeadlineExceeded(f"{late.message}; {trouble}", hint=late.hint) from late
