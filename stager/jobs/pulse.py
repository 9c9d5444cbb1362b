"""How far a job that moves bytes has come: its progress, and whether it stands still."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stager.core.events import Progress
from stager.jobs.stall import StallWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.engine.report import Reporter

_WINDOW_S = 5.0  # what the rate that is shown is an average of


class Pulse:
    """Progress of `verb` over `total` bytes in `files` files, told to `reporter`; a standstill is told, and ends the job after `stall_timeout` seconds."""

    def __init__(
        self, verb: str, total: int, files: int, reporter: Reporter, stall_timeout: float | None
    ) -> None:
        """The job begins now."""
        self._verb, self._total, self._files = verb, total, files
        self._reporter = reporter
        self._stall = StallWatch(stall_timeout, reporter)
        self._recent: list[tuple[float, int]] = []
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def beat(
        self,
        done: int,
        files_done: int,
        lanes: int,
        *,
        last: float,
        active: Sequence[str] = (),
        doing: Sequence[str] = (),
    ) -> None:
        """Tell where it stands: `done` bytes, the last of them at `last` (`time.monotonic`), with `active` files being read, or `doing` something else.

        Raises `DeadlineExceeded` after a standstill.
        """
        self.tell(done, files_done, lanes)
        self._stall.look(time.monotonic() - max(last, self.started), files=list(active), doing=list(doing))

    def tell(self, done: int, files_done: int, lanes: int) -> None:
        """Only tell."""
        now = time.monotonic()
        recent = [(at, count) for at, count in self._recent if now - at < _WINDOW_S]
        self._recent = [*(recent or [(self.started, 0)]), (now, done)]
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        rate = (after - before) / max(1e-6, last - first)
        if files_done < self._files:
            done = min(done, max(0, self._total - 1))  # it is not over before the last file is whole
        left = max(0, self._total - done)
        self._reporter.progress(
            Progress(
                self._verb,
                done,
                max(self._total, done),
                rate,
                left / rate if rate > 0 else None,
                files_done,
                self._files,
                lanes,
                None,
                now - self.started,
                now,
            )
        )
