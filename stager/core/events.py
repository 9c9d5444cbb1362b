"""Everything stager tells anybody: each event has a text and a JSON face, defined together.

``as_json`` gives one object per event, ``{"v": 1, "type": ...}`` first, sizes in bytes, times in seconds.
``text`` gives the lines a person reads. Reporters (``stager.engine.report``) decide where they go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, ClassVar

from stager.core.errors import StagerError
from stager.core.model import Residency
from stager.core.units import format_duration, format_percent, format_size, shown


def jsonable(value: Any) -> Any:
    """`value` with dataclasses, enums, tuples and sets turned into what JSON knows; infinities and NaN become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (set, frozenset)):
        return sorted(jsonable(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    type: ClassVar[str] = "event"
    result: ClassVar[bool] = False  # True: part of the result, belongs on stdout; else stderr
    step: ClassVar[bool] = (
        False  # True: for people a step on the way, which --quiet leaves out; programs always get it
    )

    @property
    def remark(self) -> bool:
        """True for what may be left out where only results, warnings and errors are wanted."""
        return False

    def text(self) -> str:
        """Lines for a person, without a trailing newline; empty when there is nothing to say."""
        raise NotImplementedError

    def as_json(self) -> dict[str, Any]:
        """One JSON object."""
        body: dict[str, Any] = {"v": 1, "type": self.type}
        for f in fields(self):
            body[f.name] = jsonable(getattr(self, f.name))
        return body


@dataclass(frozen=True)
class Note(Event):
    """A remark on the way: ``info`` or ``warning``, a stable `code` for programs, an optional hint."""

    type: ClassVar[str] = "note"
    level: str
    code: str
    message: str
    hint: str | None = None

    @property
    def remark(self) -> bool:
        return self.level == "info"

    def text(self) -> str:
        head = f"warning: {self.message}" if self.level == "warning" else self.message
        return f"{head}\nhint: {self.hint}" if self.hint else head


@dataclass(frozen=True)
class Progress(Event):
    """Where a job stands. `rate` in bytes/s, `eta` in seconds (None: unknown), `memory` the used share of the binding level 0..1.

    `elapsed` is seconds since the reading began; `clock` is what ``CLOCK_MONOTONIC``, the same for all processes of a node, says at that moment.
    """

    type: ClassVar[str] = "progress"
    verb: str
    done: int
    total: int
    rate: float
    eta: float | None
    files_done: int
    files_total: int
    lanes: int
    memory: float | None = None
    elapsed: float = 0.0
    clock: float = 0.0

    def text(self) -> str:
        whole = format_size(self.total)
        part = format_size(self.done)
        if part.split()[1] == whole.split()[1]:
            part = part.split()[0]
        percent = "100" if self.done >= self.total else f"{min(99, int(100 * self.done / self.total))}"
        eta = f" eta {format_duration(self.eta)}" if self.eta is not None and self.done < self.total else ""
        memory = f" mem {round(100 * self.memory)}%" if self.memory is not None else ""
        files = f" files {self.files_done}/{self.files_total}"
        return f"{self.verb} {percent}% {part}/{whole} {format_size(self.rate)}/s{eta}{files} lanes {self.lanes}{memory}"


@dataclass(frozen=True)
class FileProblem(Event):
    """One file that could not be read, at which offset (None: could not be opened) and with which errno name."""

    type: ClassVar[str] = "file_problem"
    path: str
    offset: int | None
    errno: str
    message: str

    def text(self) -> str:
        where = f" at offset {self.offset}" if self.offset is not None else ""
        return f"error: {shown(self.path)}: {self.message}{where} ({self.errno})"


@dataclass(frozen=True)
class Stall(Event):
    """Nothing has moved for `seconds`; `files` are the ones being read, else `doing` says what hangs."""

    type: ClassVar[str] = "stall"
    seconds: float
    files: tuple[str, ...]
    doing: tuple[str, ...] = ()

    def text(self) -> str:
        names = [shown(name) for name in self.files or self.doing]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        what = "no bytes" if self.files else "no answer"
        reading = "reading " if self.files else ""
        where = f"{reading}{', '.join(names[:4])}{more}"
        return f"warning: {what} for {format_duration(self.seconds)} while {where}"


@dataclass(frozen=True)
class FileResidency(Event):
    """One file's residency, a line of ``status``."""

    type: ClassVar[str] = "file_residency"
    result: ClassVar[bool] = True
    path: str
    residency: Residency

    def text(self) -> str:
        return f"{residency_columns(self.residency)}  {shown(self.path)}"


def residency_columns(residency: Residency) -> str:
    """The columns ``resident  total  percent  how`` for one residency."""
    if residency.resident is None:
        part, percent = "unknown", "?"
    else:
        part = format_size(residency.resident)
        percent = format_percent(residency.resident, residency.total)
        if not residency.known.exact:
            part, percent = f">={part}", f"~{percent}"
    return f"{part:>11} {format_size(residency.total):>10} {percent:>6}  {residency.known.value:<9}"


@dataclass(frozen=True)
class Failure(Event):
    """An error as the last word of a command."""

    type: ClassVar[str] = "error"
    slug: str
    message: str
    hint: str | None
    exit_code: int
    retryable: bool

    @staticmethod
    def of(error: StagerError) -> Failure:
        """The event for `error`."""
        return Failure(error.slug, error.message, error.hint, error.exit_code, error.retryable)

    def text(self) -> str:
        head = f"error: {self.message}"
        return f"{head}\nhint: {self.hint}" if self.hint else head
