"""Running a job for a command: reporter, signals, the last error line."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from stager.core.errors import LocalIOError, StagerError, from_oserror
from stager.core.events import Failure, Note
from stager.core.units import shown
from stager.engine import runtime
from stager.engine.recording import Account, Recorder
from stager.engine.report import PATIENCE, ProgressMode, Reporter, make_reporter


@dataclass(frozen=True, slots=True)
class Output:
    """How a command reports."""

    json: bool = False
    progress: ProgressMode = "auto"
    quiet: bool = False
    verbose: int = 0
    every: float | None = None  # seconds between lines or objects of progress


class Job(Protocol):
    """What `conduct` runs."""

    async def run(self) -> int:
        """Do it; the exit code."""
        ...

    def withdraw(self, reason: str) -> None:
        """A signal came: take back what must not outlive the run. At once, whatever else is going on."""
        ...

    def stuck(self) -> list[str]:
        """Names of files in which a read hangs."""
        ...


class Plain:
    """A job that has nothing to take back."""

    def __init__(self, run: Callable[[], Awaitable[int]]) -> None:
        self._run = run

    async def run(self) -> int:
        """Do it; the exit code."""
        return await self._run()

    def withdraw(self, reason: str) -> None:
        """Nothing to take back."""

    def stuck(self) -> list[str]:
        """Nothing known beyond `runtime.hanging`."""
        return []


def conduct(
    output: Output,
    make: Callable[[Reporter], Job],
    *,
    account: Account | None = None,
    patience: float = PATIENCE,
    query: bool = False,
) -> int:
    """Run the job that `make` gives; its exit code, or that of the error or signal that ended it.

    With an `account` a record of the run is kept, for metrics and for the container's termination message; `make` gets a `Recorder` then.
    `patience` is how long a stream that nobody reads may hold up the end: endless only for a query that someone pages. A `query` is
    run for what it prints: where that could not be written (a full disk), it does not end with 0.
    """
    reporter = make_reporter(
        json=output.json,
        progress=output.progress,
        quiet=output.quiet,
        interval=output.every,
        patience=patience,
    )
    recorder = Recorder(reporter, account) if account is not None else None
    if recorder is not None:
        reporter = recorder
    job: Job | None = None
    code = StagerError.exit_code  # that of a bug: nothing else gets past the errors below

    def stop(signum: int) -> None:
        assert job is not None
        try:
            job.withdraw(f"stopped by {signal.Signals(signum).name}")
        except StagerError as error:  # the place of the marker is gone; the run ends all the same
            reporter.emit(Failure.of(error))

    def poke() -> None:
        doing = ", ".join(shown(label) for label in runtime.hanging()[:4]) or "between two steps"
        reporter.print_now(Note("info", "where", f"now: {doing}"))

    try:
        if recorder is not None:
            recorder.begin()
        job = make(reporter)
        code = runtime.run(job.run, on_stop=stop, on_poke=poke)
    except StagerError as error:
        reporter.emit(Failure.of(error))
        code = error.exit_code
    finally:
        hanging = sorted({*(job.stuck() if job else []), *runtime.hanging()})
        if hanging:
            names = ", ".join(shown(name) for name in hanging[:4])
            reporter.emit(Note("warning", "hanging", f"still busy and left behind: {names}"))
        if recorder is not None:
            recorder.ended(code)
        reporter.close()
    return _printed(reporter, code) if query else code


def _printed(reporter: Reporter, code: int) -> int:
    """`code`, or that of a local error, which is said on stderr, when what was printed is lost and `code` would hide it."""
    number = reporter.stdout_error
    if number is None:
        return code
    error = from_oserror(OSError(number, ""), "standard output")
    last = make_reporter(json=False, progress="none")  # stdout is what failed
    last.emit(Failure.of(error))
    last.close()
    return code or LocalIOError.exit_code
