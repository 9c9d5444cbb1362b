"""What a fetch says: its plan, and its end; each with a text and a JSON face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stager.core.events import Event
from stager.core.units import count, format_duration, format_size, shown


@dataclass(frozen=True)
class FetchForecast(Event):
    """What a fetch would do. Sizes in bytes.

    `files` and `total` are the model's, `present` the bytes that have their final names and are proven, `resumable` those claimed by
    part files of an earlier run, `to_fetch` the rest. `removes` are names that ``--mirror`` would remove. `free` is the space of the folder's
    filesystem, `keep_free` what must stay. `refusal` says why it would not begin; empty when it would.
    """

    type: ClassVar[str] = "fetch_forecast"
    result: ClassVar[bool] = True
    source: str
    folder: str
    files: int
    total: int
    present: int
    resumable: int
    to_fetch: int
    removes: tuple[str, ...]
    free: int
    keep_free: int
    refusal: str

    def text(self) -> str:
        """A few lines in columns."""
        here = f", {format_size(self.present)} of it already here" if self.present else ""
        part = f", {format_size(self.resumable)} of it in part files" if self.resumable else ""
        lines = [
            f"model   {count(self.files, 'file')}, {format_size(self.total)}{here}",
            f"fetch   {format_size(self.to_fetch)}{part}",
            f"disk    {shown(self.folder)}: {format_size(self.free)} free, {format_size(self.keep_free)} to be kept free",
        ]
        lines += [f"remove  {shown(name)}" for name in self.removes[:20]]
        if len(self.removes) > 20:
            lines.append(f"remove  and {len(self.removes) - 20} more")
        return "\n".join([*lines, f"verdict {self.refusal or 'a run would begin'}"])


@dataclass(frozen=True)
class FetchSummary(Event):
    """How a fetch ended. Sizes in bytes, times in seconds.

    `fetched` bytes came from the store in this run, `resumed` were in part files, `already` in files that were whole. `verified` is
    ``crc64``, ``sha256``, or empty where the source states no checksum; `unproven` counts files without one, `trusted` those that an earlier run has
    proven, that are unchanged, and that this run has not read. `retried` requests were made again, `replaced`
    connections were dropped because they were slow, `mended` files had the wrong checksum at first. `reason` says why it did not finish,
    `credentials` in words where they came from.
    """

    type: ClassVar[str] = "fetch_summary"
    result: ClassVar[bool] = True
    source: str
    folder: str
    complete: bool
    reason: str
    files: int
    total: int
    fetched: int
    resumed: int
    already: int
    seconds: float
    rate: float
    lanes: int
    peak: int
    processes: int
    verified: str
    unproven: int
    trusted: int
    retried: int
    replaced: int
    mended: int
    removed: int
    skipped: int
    credentials: str

    def text(self) -> str:
        """One self-contained line."""
        if not self.complete:
            done = format_size(self.fetched + self.resumed + self.already)
            return (
                f"not fetched: {done} of {format_size(self.total)} are in {shown(self.folder)}, {self.reason}"
            )
        parts = [
            f"fetched: {format_size(self.total)} in {count(self.files, 'file')} from {shown(self.source)}"
        ]
        if self.fetched:
            lanes = count(self.lanes, "lane") + (
                f", {self.processes} processes" if self.processes > 1 else ""
            )
            took = f"{format_duration(self.seconds)} ({format_size(self.rate)}/s, {lanes})"
            parts.append(f"downloaded {format_size(self.fetched)} in {took}")
        else:
            parts.append("nothing downloaded")
        if self.resumed:
            parts.append(f"{format_size(self.resumed)} from an earlier run")
        parts.append(self._proof())
        for number, what in ((self.retried, "request retried"), (self.replaced, "slow connection replaced")):
            if number:
                noun, verb = what.rsplit(" ", 1)
                parts.append(f"{count(number, noun)} {verb}")
        if self.mended:
            parts.append(f"{count(self.mended, 'file')} fetched again for a wrong checksum")
        if self.removed:
            parts.append(f"{count(self.removed, 'file')} removed")
        return ", ".join(parts)

    def _proof(self) -> str:
        if not self.verified:
            return "the source states no checksum to verify"
        but = f" but for {count(self.unproven, 'file')} without a checksum" if self.unproven else ""
        if self.trusted >= self.files:
            return f"verified by {self.verified} before{but}"
        before = f", {count(self.trusted, 'file')} of them before" if self.trusted else ""
        return f"verified by {self.verified}{before}{but}"
