"""What a run's events add up to: where it stands, how it ended. The metrics and the termination message are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from stager.core.errors import Stopped
from stager.core.events import Event, Failure, FileProblem, Note, Progress
from stager.core.fetch_reports import FetchSummary
from stager.core.outcome import MarkerState
from stager.core.pull_reports import PullSummary
from stager.core.reports import Held, HoldSummary, PathPages, Surveyed, WarmSummary

_LIVE = ("warm", "fetch")  # stages whose progress counts just the bytes that were read


class State(StrEnum):
    """How a run stands: under way, or what it ended with. All but three are the ready marker's."""

    RUNNING = "running"
    READY = MarkerState.READY
    PARTIAL = MarkerState.PARTIAL
    UNVERIFIED = MarkerState.UNVERIFIED
    RELEASED = MarkerState.RELEASED
    COMPLETE = "complete"  # a pull's: the destination has it all
    FAILED = MarkerState.FAILED
    STOPPED = "stopped"  # by a signal


@dataclass(slots=True)
class Stage:
    """One stage of a run (``pull``, ``fetch``, ``warm``, ...): bytes, seconds, bytes per second.

    `read` are the bytes read from where the model lay; None where that is not known yet.
    """

    total: int = 0
    done: int = 0
    files: int = 0
    rate: float = 0.0
    seconds: float = 0.0
    lanes: int = 0
    read: int | None = None


@dataclass(slots=True)
class Record:
    """One run of `command` over `models` (PATHs, or a destination), begun at `started` (seconds since 1970).

    `source` is where the model comes from, empty for warming. Feed it every event by `note`, and the exit code by `end`.
    """

    command: str
    models: tuple[str, ...]
    source: str
    started: float
    state: State = State.RUNNING
    exit_code: int | None = None
    ended: float | None = None
    error: str = ""  # the slug of what went wrong
    reason: str = ""
    hint: str = ""
    file_errors: int = 0
    size: int | None = None  # bytes of the whole model
    files: int | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    pages: dict[str, PathPages] = field(default_factory=dict)
    looked: float | None = None  # when `pages` were last counted

    def note(self, event: Event, now: float) -> bool:
        """Take `event` into account; True when it says how the run ended."""
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, (Surveyed, WarmSummary, Held, HoldSummary)):
            self._count(event.by_path, now)
        elif isinstance(event, FileProblem):
            self.file_errors += 1
        if isinstance(event, (FetchSummary, PullSummary)):
            self._moved(event)
        return self._judge(event)

    def end(self, code: int, now: float) -> None:
        """The run is over, with exit code `code`. What no event has said before follows from that."""
        self.exit_code, self.ended = code, now
        if code > 128:
            self.state = State.STOPPED
        elif code and self.state is not State.STOPPED:
            self.state = State.FAILED
        elif self.state is State.RUNNING:
            self.state = State.RELEASED

    def _judge(self, event: Event) -> bool:
        if isinstance(event, WarmSummary):
            self.state, self.exit_code, self.reason = State(event.state), event.exit_code, event.reason
            self.size, self.files = event.residency.total, event.files
            self._settle("warm", event.read, event.rate, event.seconds, event.lanes)
        elif isinstance(event, PullSummary) and event.complete:
            self.state, self.exit_code = State.COMPLETE, 0
        elif isinstance(event, Failure):
            self.state = State.STOPPED if event.slug == Stopped.slug else State.FAILED
            self.exit_code, self.error = event.exit_code, event.slug
            self.reason, self.hint = event.message, event.hint or ""
        elif (
            isinstance(event, Note) and event.code == State.RELEASED
        ):  # the gate opens, and nothing was found
            self.state, self.exit_code, self.reason = State.RELEASED, 0, event.message
        else:
            return False
        return True

    def _progress(self, event: Progress) -> None:
        stage = self.stages.setdefault(event.verb, Stage())
        stage.total, stage.done, stage.files = event.total, event.done, event.files_done
        stage.rate, stage.seconds, stage.lanes = event.rate, event.elapsed, event.lanes
        if event.verb in _LIVE:
            stage.read = max(stage.read or 0, event.done)

    def _count(self, rows: tuple[PathPages, ...], now: float) -> None:
        if rows:
            self.pages, self.looked = {row.path: row for row in rows}, now

    def _moved(self, event: FetchSummary | PullSummary) -> None:
        self.size, self.files = event.total, event.files
        verb, moved = ("pull", event.pulled) if isinstance(event, PullSummary) else ("fetch", event.fetched)
        self._settle(verb, moved, event.rate, event.seconds, event.lanes)

    def _settle(self, verb: str, read: int, rate: float, seconds: float, lanes: int) -> None:
        """The last word on a stage: its rate is now that of the whole of it."""
        stage = self.stages.setdefault(verb, Stage())
        stage.read = max(stage.read or 0, read)
        stage.rate, stage.seconds, stage.lanes = rate, seconds, lanes
