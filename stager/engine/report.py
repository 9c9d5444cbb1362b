"""Where events go: lines for people, JSON lines for programs, one bar on a terminal. The only owner of tqdm.

Text: results go to stdout, everything else to stderr. JSON: everything goes to stdout, one object per line, and stderr
stays empty. No stream can stop a job (``stager.engine.outlet``): one that fails is dropped without a word, and one that
nobody reads is given up after `patience` seconds.
"""

from __future__ import annotations

import json as _json
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import IO, Literal, Protocol

from stager.core.events import Event, Failure, Progress
from stager.engine.outlet import Outlet

ProgressMode = Literal["auto", "bar", "lines", "none"]

FIRST_LINE = 5.0  # seconds until the first plain line: soon enough to see life, and it spares short runs
JSON_INTERVAL = 1.0  # seconds between progress objects
LINE_INTERVAL = 15.0  # between plain lines
TICK = 0.25  # seconds between two calls of `progress`, unless more is to be shown
_SHORTEST_TICK = 0.02
PATIENCE = 1.0  # seconds; a stopped run must have exited after 2
_ERASE = "\r\x1b[K"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Reporter(Protocol):
    """Tells what happens. Every method may be called from any thread, returns soon, and never raises for a stream."""

    @property
    def tick(self) -> float:
        """How often a job is to call `progress`, in seconds."""

    @property
    def stdout_failed(self) -> bool:
        """True when something meant for stdout did not get there; final after `close`."""

    @property
    def stdout_error(self) -> int | None:
        """The errno (ENOSPC, EIO) of the write to stdout that failed; None for a reader that went away, which lacks nothing."""

    def emit(self, event: Event) -> None:
        """Show `event`; a `Progress` is treated as by `progress`."""

    def progress(self, event: Progress) -> None:
        """Take note of where a job stands (call it every `tick` seconds); it is shown when its time has come."""

    def print_now(self, otherwise: Event | None = None) -> None:
        """Show the latest progress as a line at once, whatever the mode (SIGUSR1); `otherwise` if nothing is in progress."""

    def close(self) -> None:
        """Flush, waiting at most `patience` seconds; nothing is written afterwards. May be called twice."""


def make_reporter(
    *,
    json: bool,
    progress: ProgressMode,
    quiet: bool = False,
    stdout: IO[str] | None = None,
    stderr: IO[str] | None = None,
    interval: float | None = None,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> Reporter:
    """The reporter for these options; `stdout` and `stderr` default to the process's own, which may be missing.

    `progress` ``auto`` and ``bar`` mean a bar where stderr is a terminal, else plain lines. They come every `interval` seconds, JSON objects too;
    None: `LINE_INTERVAL` and `JSON_INTERVAL`. `quiet` leaves out progress and ``info`` notes. `patience` is how many seconds an unread stream may hold up `close`
    (and `emit`, once megabytes are waiting): short for jobs, ``math.inf`` for a query whose output someone pages.
    """
    out_file = sys.stdout if stdout is None else stdout
    err_file = sys.stderr if stderr is None else stderr
    out = Outlet(out_file, patience)
    err = Outlet(err_file, patience)
    if err.same_as(out):  # one terminal, or 2>&1: one queue keeps the order
        err = out
    if json:
        cadence = _Cadence(0.0, JSON_INTERVAL if interval is None else interval, clock)
        return _JsonReporter(out, out, None if quiet or progress == "none" else cadence, quiet=quiet)
    if quiet or progress == "none":
        return _TextReporter(out, err, None, quiet=quiet)
    if progress in ("auto", "bar") and err.is_terminal:
        return _BarReporter(out, err, _Cadence(0.0, 0.0, clock), quiet=quiet)
    every = LINE_INTERVAL if interval is None else interval
    return _TextReporter(out, err, _Cadence(min(FIRST_LINE, every), every, clock), quiet=quiet)


class _Cadence:
    """When progress is due: first after `first` seconds, then every `every`, and once at 100 %."""

    def __init__(self, first: float, every: float, clock: Callable[[], float]) -> None:
        self._first = first
        self.every = every
        self._clock = clock
        self._verb: str | None = None
        self._next = 0.0
        self._finished = False

    def due(self, event: Progress) -> bool:
        now = self._clock()
        if event.verb != self._verb:
            self._verb, self._next, self._finished = event.verb, now + self._first, False
        was_finished, self._finished = self._finished, event.done >= event.total
        if self._finished:
            return not was_finished
        return now >= self._next

    def shown(self) -> None:
        self._next = self._clock() + self.every


class _Base(ABC):
    """What the reporters share: the lock, quiet, and which progress is shown."""

    def __init__(self, out: Outlet, err: Outlet, cadence: _Cadence | None, *, quiet: bool) -> None:
        self._out = out
        self._err = err
        self._cadence = cadence
        self._quiet = quiet
        self._latest: Progress | None = None
        self._shown: Progress | None = None
        self._closed = False
        self._lock = threading.RLock()

    @property
    def tick(self) -> float:
        # Half of what is to be shown, so that none comes a whole tick late; a bar shows all, and needs no more than that.
        every = self._cadence.every if self._cadence is not None else 0.0
        return max(_SHORTEST_TICK, min(TICK, every / 2)) if every else TICK

    @abstractmethod
    def _show_event(self, event: Event) -> None: ...

    @abstractmethod
    def _show_progress(self, event: Progress, *, last: bool) -> None:
        """Show `event`; unless it is the `last` of its kind, a newer one may take its place."""

    @property
    def stdout_failed(self) -> bool:
        return self._out.lost

    @property
    def stdout_error(self) -> int | None:
        return self._out.error

    def emit(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress(event)
            return
        with self._lock:
            if self._closed or (self._quiet and event.remark):
                return
            if event.result or isinstance(event, Failure):
                self._settle()
            self._show_event(event)

    def progress(self, event: Progress) -> None:
        with self._lock:
            if self._closed:
                return
            if self._latest is not None and self._latest.verb != event.verb:
                self._settle()
            self._latest = event
            # A job with nothing to read has no progress worth a line; its summary says so.
            if self._cadence is not None and event.total > 0 and self._cadence.due(event):
                self._show(event, last=event.done >= event.total)

    def print_now(self, otherwise: Event | None = None) -> None:
        with self._lock:
            event: Event | None = self._latest
            if otherwise is not None and (self._latest is None or self._latest.done >= self._latest.total):
                event = otherwise
            if event is not None and not self._closed:
                self._show_event(event)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._settle()
            self._closed = True
        deadline = time.monotonic() + self._out.patience
        for outlet in (self._out, self._err):
            outlet.close(deadline)

    def _settle(self) -> None:
        """A job that ends between two lines still shows where it got to, above its result."""
        event = self._latest
        if self._cadence is None or event is None or event.total <= 0:
            return
        shown = self._shown
        if shown is None or (event.verb, event.done, event.total) != (shown.verb, shown.done, shown.total):
            self._show(event, last=True)

    def _show(self, event: Progress, *, last: bool) -> None:
        self._shown = event
        self._show_progress(event, last=last)
        if self._cadence is not None:
            self._cadence.shown()


class _JsonReporter(_Base):
    """One JSON object per line, ASCII only, keys in the order of their definition."""

    def _show_event(self, event: Event) -> None:
        self._out.put(_json_line(event))

    def _show_progress(self, event: Progress, *, last: bool) -> None:
        self._out.put(_json_line(event), droppable=not last)


class _TextReporter(_Base):
    """Plain lines. Never a carriage return or another control character, so that any log can hold them."""

    def _show_event(self, event: Event) -> None:
        text = "" if self._quiet and event.step else event.text()
        if text:
            (self._out if event.result else self._err).put(f"{_plain(text)}\n")

    def _show_progress(self, event: Progress, *, last: bool) -> None:
        self._err.put(f"{_plain(event.text())}\n", droppable=not last)


class _BarReporter(_TextReporter):
    """One bar at the bottom of the terminal; every other line goes above it. No colours, so NO_COLOR is kept.

    tqdm only renders: the reporter writes, so that a line and the bar around it are one write and cannot tear.
    """

    _bar = ""  # the bar that stands on the terminal's last line

    def _show_event(self, event: Event) -> None:
        outlet = self._out if event.result else self._err
        if not self._bar or outlet is not self._err:
            super()._show_event(event)
        elif text := event.text():
            outlet.put(f"{_ERASE}{_plain(text)}\n{self._bar}")

    def _show_progress(self, event: Progress, *, last: bool) -> None:
        bar = _render_bar(event, self._err.columns, ascii_only=not self._err.is_unicode)
        if event.done < event.total:
            self._bar = bar
            self._err.put(f"\r{bar}\x1b[K", droppable=not last)
        else:
            self._bar = ""
            self._err.put(f"\r{bar}\x1b[K\n")

    def close(self) -> None:
        with self._lock:
            self._settle()
            if (
                self._bar and not self._closed
            ):  # unfinished: the summary or the error above it has the last word
                self._err.put(_ERASE)
                self._bar = ""
        super().close()


def _render_bar(event: Progress, columns: int, *, ascii_only: bool) -> str:
    """The plain line of `event` with a bar after the percentage, cut to one terminal line."""
    from tqdm import tqdm  # here, because it takes 70 ms to import and most runs show no bar

    verb, percent, rest = _plain(event.text()).replace("{", "{{").replace("}", "}}").split(" ", 2)
    total = max(1, event.total)
    return tqdm.format_meter(
        min(event.done, total),
        total,
        0.0,
        ncols=max(1, columns - 1),  # the last column would wrap on some terminals
        ascii=ascii_only,
        bar_format=f"{verb} {percent}|{{bar}}| {rest}",
    )


def _json_line(event: Event) -> str:
    return _json.dumps(event.as_json(), ensure_ascii=True, separators=(",", ":")) + "\n"


def _plain(text: str) -> str:
    """`text` with control characters other than newlines as escapes: a file name must not steer the terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
