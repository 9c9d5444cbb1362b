"""What jobs say at their end: the results on stdout, each with a text and a JSON face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stager.core.events import Event, residency_columns
from stager.core.marker import answer_text
from stager.core.model import Residency, sum_residency
from stager.core.units import count, format_duration, format_percent, format_size, shown


def resident_text(residency: Residency) -> str:
    """``2.0/2.0 GiB resident (cachestat)``, or what else can be said."""
    whole = format_size(residency.total)
    if residency.resident is None:
        why = f" ({residency.why})" if residency.why else ""
        return f"unknown how much of {whole} is resident{why}"
    part = format_size(residency.resident)
    if part.split()[1] == whole.split()[1]:
        part = part.split()[0]
    if not residency.known.exact:
        return f"at least {part}/{whole} resident ({residency.known.value}, an estimate)"
    percent = "" if residency.complete else f", {format_percent(residency.resident, residency.total)}"
    return f"{part}/{whole} resident ({residency.known.value}{percent})"


def in_columns(sections: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    """(label, lines) as lines: a label in the first column, its lines in the second."""
    width = max(len(label) for label, _ in sections) + 2
    lines = []
    for label, body in sections:
        lines += [f"{label if at == 0 else '':<{width}}{line}" for at, line in enumerate(body)]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class PathPages:
    """What of one PATH is in the page cache. Bytes; `residency` as it was last counted.

    While pages are kept or watched: `held` are those that are kept, `lost` those that went since warming, `brought_back` those of them that were
    read again.
    """

    path: str
    files: int
    residency: Residency
    held: int = 0
    lost: int = 0
    brought_back: int = 0


@dataclass(frozen=True)
class Surveyed(Event):
    """What was found before the first byte is read, PATH by PATH. For programs: people are told what follows from it."""

    type: ClassVar[str] = "surveyed"
    by_path: tuple[PathPages, ...]

    @property
    def remark(self) -> bool:
        """Always."""
        return True

    def text(self) -> str:
        """Nothing."""
        return ""


@dataclass(frozen=True)
class WarmSummary(Event):
    """How a warm run ended. Sizes in bytes, times in seconds.

    `read` are the bytes this run brought in, `already` those it found resident; `brought_back` the holes it read once more
    after looking. `touch` is how pages were brought in, `lanes` what the controller settled on (`peak` its most).
    `missing` lists (path, bytes) of what is not resident. `binding` names the limit that bound, by file and number. `by_path` is the residency of
    each PATH.
    """

    type: ClassVar[str] = "warm_summary"
    result: ClassVar[bool] = True
    outcome: str
    state: str
    exit_code: int
    reason: str
    paths: tuple[str, ...]
    files: int
    files_resident: int
    residency: Residency
    read: int
    already: int
    brought_back: int
    seconds: float
    rate: float
    lanes: int
    peak: int
    split: bool
    touch: str
    skipped: int
    missing: tuple[tuple[str, int], ...]
    replaced: int
    unknown_origin: int
    binding: str
    marker: str
    by_path: tuple[PathPages, ...] = ()

    def text(self) -> str:
        """What is missing, then one self-contained line."""
        return "\n".join([*self._missing_lines(), self.last_line()])

    def _missing_lines(self) -> list[str]:
        lines = [f"  missing {format_size(size):>10}  {shown(path)}" for path, size in self.missing[:10]]
        if len(self.missing) > 10:
            lines.append(f"  and {len(self.missing) - 10} more files with missing pages")
        return lines

    def last_line(self) -> str:
        """The summary on one line, for logs and /dev/termination-log."""
        head = f"{self.state}: " if self.state != "ready" else "ready: "
        parts = [resident_text(self.residency), count(self.files, "file")]
        if self.read:
            how = count(self.lanes, "lane")
            parts.append(
                f"read {format_size(self.read)} in {format_duration(self.seconds)} ({format_size(self.rate)}/s, {how}, {self.touch})"
            )
        else:
            parts.append("nothing read")
        if self.reason:
            parts.append(self.reason)
        return head + ", ".join(parts)


@dataclass(frozen=True)
class Forecast(Event):
    """What ``check`` and ``--dry-run`` say: (label, lines) sections, and how a real run would end."""

    type: ClassVar[str] = "forecast"
    result: ClassVar[bool] = True
    outcome: str
    state: str
    exit_code: int
    formats: tuple[str, ...]
    files: int
    total: int
    to_read: int
    residency: Residency
    defects: tuple[str, ...]
    sections: tuple[tuple[str, tuple[str, ...]], ...]

    def text(self) -> str:
        """A label in the first column, its lines in the second."""
        return in_columns(self.sections)


@dataclass(frozen=True)
class StatusTotal(Event):
    """The last line of ``status``."""

    type: ClassVar[str] = "status_total"
    result: ClassVar[bool] = True
    files: int
    residency: Residency
    resident_exact: int

    def text(self) -> str:
        """The total in the columns of the files; what is certain even when the total is not."""
        line = f"{residency_columns(self.residency)}  total of {count(self.files, 'file')}"
        if self.residency.resident is None and self.resident_exact:
            line += f" ({format_size(self.resident_exact)} of it certainly resident)"
        return line


@dataclass(frozen=True)
class EvictSummary(Event):
    """What ``evict`` gave back; `stayed` lists (path, bytes, why)."""

    type: ClassVar[str] = "evict_summary"
    result: ClassVar[bool] = True
    files: int
    before: int | None
    after: int | None
    stayed: tuple[tuple[str, int, str], ...]

    def text(self) -> str:
        """What stayed and why, then the total."""
        lines = [
            f"  stayed {format_size(count):>10}  {shown(path)}: {why}"
            for path, count, why in self.stayed[:20]
        ]
        if len(self.stayed) > 20:
            lines.append(f"  and {len(self.stayed) - 20} more files with pages that stayed")
        if self.before is None or self.after is None:
            return "\n".join(
                [
                    *lines,
                    f"asked the kernel to drop {count(self.files, 'file')}; what was resident is unknown here",
                ]
            )
        gone = format_size(self.before - self.after)
        return "\n".join(
            [*lines, f"gave back {gone} of {format_size(self.before)} in {count(self.files, 'file')}"]
        )


@dataclass(frozen=True)
class Held(Event):
    """A look at the pages after warming, while they are kept or watched. `news` are bytes lost since a line last said so."""

    type: ClassVar[str] = "held"
    by_path: tuple[PathPages, ...]
    news: int = 0

    @property
    def remark(self) -> bool:
        """Always."""
        return True

    def text(self) -> str:
        """One line when pages were lost, else nothing."""
        if not self.news:
            return ""
        residency = sum_residency([row.residency for row in self.by_path])
        return f"{format_size(self.news)} were dropped from the page cache, now {resident_text(residency)}"


@dataclass(frozen=True)
class HoldSummary(Event):
    """What holding cost: `brought_back` bytes that had been dropped and were populated again. `by_path` is the last look."""

    type: ClassVar[str] = "hold_summary"
    seconds: float
    held: int
    brought_back: int
    why: str
    by_path: tuple[PathPages, ...] = ()

    def text(self) -> str:
        """One line."""
        return (
            f"held {format_size(self.held)} for {format_duration(self.seconds)} ({self.why}), "
            f"brought back {format_size(self.brought_back)}"
        )


@dataclass(frozen=True)
class Readiness(Event):
    """The answer of ``ready`` and ``wait``."""

    type: ClassVar[str] = "readiness"
    result: ClassVar[bool] = True
    ready: bool
    state: str
    why: str

    def text(self) -> str:
        """One line, see `answer_text`."""
        return answer_text(self.state, self.why)
