"""A reporter that also keeps the record of the run: for metrics, and for the container's termination message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager import __version__
from stager.core.errors import StagerError
from stager.core.events import Event, Note, Progress
from stager.core.last_words import last_words
from stager.core.record import Record, State
from stager.node import notify
from stager.node.replacing import replace

if TYPE_CHECKING:
    from stager.engine.exposition import MetricsFile, MetricsServer
    from stager.engine.report import Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is kept of a run of `command` over `models`, and who is told.

    `file` gets the metrics, `listen` is the address where they are served, both None when not asked for. `name` is what the models are called in
    them. `ready` answers for the gate: it gets the states to accept, comma-separated, and gives yes or no, and why.
    """

    command: str
    models: tuple[str, ...]
    source: str = ""
    file: str | None = None
    listen: tuple[str, int] | None = None
    name: str = ""
    ready: Callable[[str], tuple[bool, str]] = lambda _accept: (False, "not ready: nobody knows")

    @property
    def wanted(self) -> bool:
        """Whether anybody is to get metrics."""
        return self.file is not None or self.listen is not None


class Recorder:
    """Hands every event on to `inner`, and remembers what they add up to. A `stager.engine.report.Reporter`.

    Termination message and metrics file are written when the result is known, and again at the end: a process that holds pages may be killed.
    """

    def __init__(self, inner: Reporter, account: Account) -> None:
        self._inner = inner
        self._account = account
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._record = Record(account.command, account.models, account.source, time.time())
        self._file: MetricsFile | None = None
        self._server: MetricsServer | None = None
        self._speaks = True

    def begin(self) -> None:
        """Open the file and the port that were asked for. Raises `StagerError` for a port that cannot be had; a file costs a warning."""
        if not self._account.wanted:
            return
        from stager.engine.exposition import MetricsFile, MetricsServer  # 15 ms, and most runs need neither

        if self._account.listen is not None:
            self._server = MetricsServer(self._account.listen, self._render, self._account.ready)
            self._server.start()
            self._inner.emit(Note("info", "metrics", f"metrics at {self._server.url}"))
        if self._account.file is not None:
            self._file = MetricsFile(self._account.file, self._render, self._warn)
            self._file.start()

    def hand_over(self) -> None:
        """The container's last words are another's from now on."""
        self._speaks = False

    def ended(self, code: int) -> None:
        """The run is over, with exit code `code`."""
        with self._lock:
            self._record.end(code, self._now())
        self._say()
        if self._file is not None:
            self._file.close()
        if self._server is not None:
            self._server.close()

    @property
    def stdout_failed(self) -> bool:
        """As of the reporter behind this."""
        return self._inner.stdout_failed

    @property
    def stdout_error(self) -> int | None:
        """As of the reporter behind this."""
        return self._inner.stdout_error

    def emit(self, event: Event) -> None:
        """Remember `event` and hand it on."""
        with self._lock:
            concluded = self._record.note(event, self._now())
        if concluded:
            self._say()
            if self._file is not None:
                self._file.write_soon()
        self._inner.emit(event)

    @property
    def tick(self) -> float:
        """As of the reporter behind this."""
        return self._inner.tick

    def progress(self, event: Progress) -> None:
        """Remember where the job stands and hand it on."""
        with self._lock:
            self._record.note(event, self._now())
        self._inner.progress(event)

    def print_now(self, otherwise: Event | None = None) -> None:
        """As of the reporter behind this."""
        self._inner.print_now(otherwise)

    def close(self) -> None:
        """Close the reporter behind this; what is remembered stays."""
        self._inner.close()

    def _now(self) -> float:
        """Seconds since 1970, without the jumps of a clock that is set."""
        return self._record.started + (time.monotonic() - self._began)

    def _render(self) -> str:
        with self._lock:
            return _rendered(self._record, self._now(), self._account)

    def _say(self) -> None:
        if self._speaks:
            with self._lock:
                words = last_words(self._record)
            notify.write_termination_log(words)

    def _warn(self, error: StagerError) -> None:
        self._inner.emit(Note("warning", "metrics_unwritable", f"no metrics: {error.message}", error.hint))


def posthumous(account: Account, state: State, code: int, reason: str) -> None:
    """Say how a run ended whose process was killed, in the termination message and the metrics file: it cannot any more."""
    now = time.time()
    record = Record(account.command, account.models, account.source, now, state=state, reason=reason)
    record.end(code, now)
    notify.write_termination_log(last_words(record))
    if account.file is not None:
        with suppress(OSError, StagerError):
            replace(account.file, _rendered(record, now, account).encode(), "metrics")


def _rendered(record: Record, now: float, account: Account) -> str:
    from stager.core.metrics import render  # most runs are not asked for metrics

    return render(record, now, version=__version__, name=account.name)
