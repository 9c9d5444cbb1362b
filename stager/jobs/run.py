"""``stager run``: warm in a child, then become the engine, at the latest at the deadline."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from stager.core.errors import (
    AnswerNo,
    DeadlineExceeded,
    IntegrityError,
    MountDropsPages,
    NotFound,
    StagerError,
    Stopped,
    UsageError,
)
from stager.core.events import Note
from stager.core.loaders import bypass
from stager.core.model import Residency
from stager.core.outcome import Result, verdict
from stager.core.record import State
from stager.core.units import format_duration, shown
from stager.engine.escort import Release
from stager.engine.launch import Outcome, become, resolve_command, supervise
from stager.engine.recording import posthumous
from stager.jobs.gate import Gate
from stager.jobs.reckoning import is_whole
from stager.node import notify

if TYPE_CHECKING:
    from stager.engine.recording import Account
    from stager.engine.report import Reporter
    from stager.jobs.options import FetchOptions, WarmOptions

# The engine could not load such a model either, or was never meant to start: no --on-failure changes that.
_FINAL = (UsageError.exit_code, NotFound.exit_code, IntegrityError.exit_code)
_WARM_ONLY = (
    AnswerNo.exit_code,
    MountDropsPages.exit_code,
)  # no fetch ends so: the files came, and are proven
_WIND_DOWN_S = (
    2.0  # from the warm run's own deadline to ours: it writes its marker and summary in well under one
)

WarmRun = Callable[["WarmOptions", Release], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What to warm, what to become, and whether a failed warm run keeps us from becoming it.

    `fetched` is what is fetched first: without all of it in its folder nothing is started. `account` is who is told of a warm run that was killed.
    """

    account: Account
    warm: WarmOptions
    fetched: FetchOptions | None = None
    command: tuple[str, ...]
    start_anyway: bool = True


def note_bypass(command: tuple[str, ...], reporter: Reporter) -> None:
    """Say so when the engine's loader is known not to read through the page cache."""
    reason = bypass(command, os.environ)
    if reason is not None:
        hint = "leave `stager run` out, or choose a loader that reads files"
        reporter.emit(Note("warning", "loader_bypasses_cache", reason, hint))


def run(options: RunOptions, warm: WarmRun, make_reporter: Callable[[], Reporter]) -> int:
    """Warm with `warm` in a child process, then become the command: this returns only when that is not to be.

    `warm` gets the options to use (their deadline leaves time to wind down) and a function to call with its exit code
    once pages are warm and are only being held: the command then starts beside the holder. It runs with stdin and stdout
    away from the command's. `make_reporter` is called afterwards, because a reporter may start threads.

    Returns the exit code to leave with. Raises `StagerError`, before anything is warmed when the command cannot be started.
    """
    path = resolve_command(options.command)
    notify.sd_notify(status="warming")
    launch = _Launch(options, path, make_reporter)
    code = launch.warm(warm)
    if code is None:
        launch.become()
    launch.close()
    return code


def _warm(options: WarmOptions, warm: WarmRun, release: Release) -> int:
    # Readiness is told by the process that becomes the engine: systemd listens to the main process only by default.
    os.environ.pop("NOTIFY_SOCKET", None)
    if options.timeout is not None:
        options = replace(options, timeout=max(options.timeout - _WIND_DOWN_S, options.timeout / 2))
    return warm(options, release)


class _Launch:
    """The warm run seen from outside, and what follows from how it ended."""

    def __init__(self, options: RunOptions, path: str, make_reporter: Callable[[], Reporter]) -> None:
        self._options = options
        self._path = path
        self._name = shown(options.command[0])
        self._make_reporter = make_reporter
        self._made: Reporter | None = None

    @property
    def _reporter(self) -> Reporter:
        if self._made is None:
            self._made = self._make_reporter()
        return self._made

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def warm(self, work: WarmRun) -> int | None:
        """Warm in a child; the exit code to leave with, or None when the command is to start."""
        options = self._options
        try:
            outcome = supervise(
                lambda release: _warm(options.warm, work, release), deadline=options.warm.timeout
            )
        except StagerError as error:  # no process can be made, so nobody else closes the gate
            self._withdraw(error.message)
            if not options.start_anyway:
                raise
            self._warn("warm_failed", f"{error.message}: starting `{self._name}` all the same")
            return None
        return self._judge(outcome)

    def _warn(self, code: str, message: str) -> None:
        self._reporter.emit(Note("warning", code, message))

    def _judge(self, outcome: Outcome) -> int | None:
        self._name_stuck(outcome)
        if outcome.stopped_by is not None:
            error = Stopped(outcome.stopped_by)
            # The worker may have had no chance to, or have opened the gate already.
            self._withdraw(error.message)
            return error.exit_code
        code = self._give_up(outcome) if outcome.exit_code is None else outcome.exit_code
        if code > 128:
            posthumous(self._options.account, State.FAILED, code, f"warming {_manner(outcome)}")
        if code == 0:
            return None
        fetched = self._options.fetched
        what = "warming" if fetched is None or code in _WARM_ONLY else "fetching"
        after = f"{what} {_manner(outcome)} after {format_duration(outcome.elapsed)}"
        if fetched is not None and not is_whole(fetched):
            self._warn("not_started", f"{after}, the model is not all there: `{self._name}` is not started")
            return code
        if code in _FINAL or not self._options.start_anyway:
            self._warn("not_started", f"{after}: `{self._name}` is not started")
            return code
        on = "" if fetched is None or code in _WARM_ONLY else _older(fetched)
        self._warn("warm_failed", f"{after}: starting `{self._name}` all the same{on}")
        return None

    def _name_stuck(self, outcome: Outcome) -> None:
        if outcome.stuck is not None:
            files = ", ".join(shown(file) for file in outcome.stuck.files) or "no file that it had opened yet"
            self._warn("unkillable", f"process {outcome.stuck.pid} cannot be killed; it hangs in {files}")

    def _give_up(self, outcome: Outcome) -> int:
        """The exit code of a warm run that had to be killed at the deadline, whose marker is ours to write."""
        found = verdict(Result.DEADLINE, self._options.warm.mode)
        reason = f"--timeout ran out after {format_duration(outcome.elapsed)}, and the warm run did not end by itself"
        with suppress(StagerError):
            self._gate().open(found.state, reason, Residency.unknown(0, reason))
        posthumous(self._options.account, State(found.state), found.exit_code, reason)
        return found.exit_code

    def _withdraw(self, reason: str) -> None:
        with suppress(StagerError):
            self._gate().withdraw(reason)

    def _gate(self) -> Gate:
        warm = self._options.warm
        gate = Gate(warm.marker, named=warm.marker_named, reporter=self._reporter)
        gate.load()
        return gate

    def become(self) -> NoReturn:
        """Become the command. Raises `StagerError` when it cannot be started, or a stop signal came first."""
        notify.sd_notify(ready=True, status=f"starting {self._name}")
        notify.write_termination_log("")  # the container's last words are the engine's, not the warm run's
        self.close()
        try:
            become(self._path, self._options.command)
        except StagerError as error:
            self._withdraw(error.message)
            notify.sd_notify(status=error.message)
            self.close()
            raise


def _older(fetched: FetchOptions) -> str:
    return (
        f", on the copy that is in `{shown(fetched.folder)}`: it may be older than what "
        f"`{shown(str(fetched.source))}` holds now"
    )


def _manner(outcome: Outcome) -> str:
    if outcome.exit_code is None:
        return "was ended at the deadline"
    if outcome.exit_code == DeadlineExceeded.exit_code:
        return f"ran out of time (exit {outcome.exit_code})"
    if outcome.exit_code > 128:
        return f"was killed by signal {outcome.exit_code - 128}"
    return f"failed (exit {outcome.exit_code})"
