"""What a pull and a proof of its result say; each with a text and a JSON face."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from stager.core.events import Event
from stager.core.units import count, format_duration, format_size, shown

_SHOWN = 20  # lines of one kind that a person reads
_COMMIT = re.compile("[0-9a-f]{40,64}")


@dataclass(frozen=True)
class PullForecast(Event):
    """What a pull would do. Sizes in bytes.

    `files` and `total` are those of the revision that are wanted, `present` the bytes that are at the destination and proven, `to_pull` the rest;
    `resumable` counts unfinished uploads that hold some of it. `left_out` are paths of the hub's that are not wanted and why, `removes` names that
    ``--mirror`` would remove. `verdict` says whether a run would begin. `defects` prove the model incomplete at the hub, which the user allows.
    """

    type: ClassVar[str] = "pull_forecast"
    result: ClassVar[bool] = True
    source: str
    revision: str
    dest: str
    files: int
    total: int
    present: int
    to_pull: int
    resumable: int
    left_out: tuple[tuple[str, str], ...]
    removes: tuple[str, ...]
    verdict: str
    defects: tuple[str, ...] = ()

    def text(self) -> str:
        """A few lines in columns."""
        there = f", {format_size(self.present)} of it already there" if self.present else ""
        uploads = count(self.resumable, "unfinished upload")
        parts = f", {uploads} to go on with" if self.resumable else ""
        return "\n".join(
            [
                f"source  {_named(self.source, self.revision)}",
                f"model   {count(self.files, 'file')}, {format_size(self.total)}{there}",
                f"pull    {format_size(self.to_pull)}{parts}",
                f"into    {shown(self.dest)}",
                *_rows("without", [f"{shown(path)}: {shown(why)}" for path, why in self.left_out]),
                *_rows("remove ", [shown(name) for name in self.removes]),
                *_rows("defect ", list(self.defects)),
                f"verdict {self.verdict}",
            ]
        )


@dataclass(frozen=True)
class PullSummary(Event):
    """How a pull ended. Sizes in bytes, times in seconds.

    `revision` is the commit. `pulled` bytes came from the hub in this run; `landed` are at the destination now, of which `resumed` were in unfinished
    uploads before; `already` were in finished files,
    `read_back` were read from the destination to prove them. `verified` is ``sha256``, ``crc64`` (as of a folder, which states no checksums), or
    empty where nothing was; `unproven` counts files for which the hub states none. `retried` requests were made again, `replaced` connections were dropped because
    they were slow, `mended` files had the wrong checksum at first, `removed` files are no longer in the revision, `left_out` ones were not wanted.
    `reason` says why it did not finish, `credentials` in words where those of the destination came from. `defects` prove the model
    incomplete at the hub, which the user allows.
    """

    type: ClassVar[str] = "pull_summary"
    result: ClassVar[bool] = True
    source: str
    revision: str
    dest: str
    complete: bool
    reason: str
    files: int
    total: int
    pulled: int
    landed: int
    resumed: int
    already: int
    read_back: int
    seconds: float
    rate: float
    lanes: int
    peak: int
    verified: str
    unproven: int
    retried: int
    replaced: int
    mended: int
    removed: int
    left_out: int
    credentials: str
    defects: tuple[str, ...] = ()

    def text(self) -> str:
        """One self-contained line."""
        if not self.complete:
            done = format_size(min(self.total, self.landed + self.already))
            return f"not pulled: {done} of {format_size(self.total)} are in {shown(self.dest)}, {self.reason}"
        source, dest = _named(self.source, self.revision), shown(self.dest)
        parts = [f"pulled: {format_size(self.total)} in {count(self.files, 'file')} from {source} to {dest}"]
        if self.pulled:
            rate = f"{format_size(self.rate)}/s, {count(self.lanes, 'lane')}"
            parts.append(f"streamed {format_size(self.pulled)} in {format_duration(self.seconds)} ({rate})")
        else:
            parts.append("nothing pulled")
        if not self.pulled and not self.resumed:
            parts.append("all there")
        if self.resumed:
            parts.append(f"{format_size(self.resumed)} from an earlier run")
        parts += [*self._proof(), *self._trouble(), *self._flaws()]
        return ", ".join(parts)

    def _proof(self) -> list[str]:
        back = [f"{format_size(self.read_back)} read back"] if self.read_back else []
        if not self.verified:
            return [*back, "not verified"] if self.pulled or self.resumed else back
        but = (
            f" but for {count(self.unproven, 'file')} without a checksum at the hub" if self.unproven else ""
        )
        return [*back, f"verified by {self.verified}{but}"]

    def _flaws(self) -> list[str]:
        more = f" and {len(self.defects) - 1} more" if len(self.defects) > 1 else ""
        return [f"warning: incomplete at the hub: {self.defects[0]}{more}"] if self.defects else []

    def _trouble(self) -> list[str]:
        told = [
            (self.retried, "request", "retried"),
            (self.replaced, "slow connection", "replaced"),
            (self.mended, "file", "pulled again for a wrong checksum"),
            (self.removed, "file", "removed"),
            (self.left_out, "file", "left out"),
        ]
        return [f"{count(number, noun)} {what}" for number, noun, what in told if number]


@dataclass(frozen=True)
class VerifySummary(Event):
    """What reading a model against its manifest has shown. Sizes in bytes, times in seconds.

    `ok` says that every file is proven as was asked for. `read` bytes were read, `by` is ``crc64`` or ``sha256``. `wrong` are paths and what is
    wrong with each. `unproven` counts files for which the manifest states no such checksum; of those, `bare` have none at all there, so that only
    their sizes could be compared.
    """

    type: ClassVar[str] = "verify_summary"
    result: ClassVar[bool] = True
    location: str
    ok: bool
    files: int
    total: int
    read: int
    seconds: float
    rate: float
    by: str
    wrong: tuple[tuple[str, str], ...]
    unproven: int
    bare: int

    def text(self) -> str:
        """One self-contained line; before it one for each file that is wrong."""
        rows = _rows("wrong ", [f"{shown(path)}: {shown(why)}" for path, why in self.wrong])
        return "\n".join([*rows, self._verdict()])

    def _verdict(self) -> str:
        files, where = count(self.files, "file"), shown(self.location)
        if self.wrong:
            verb = "is" if len(self.wrong) == 1 else "are"
            return f"not verified: {len(self.wrong)} of {files} {verb} wrong in {where}"
        took = f"{format_duration(self.seconds)} ({format_size(self.rate)}/s)"
        if not self.ok:
            return f"not all verified: nothing is wrong in {where}, but {self._missing()}, in {took}"
        return f"verified: {format_size(self.total)} in {files} of {where} by {self.by} in {took}"

    def _missing(self) -> str:
        """What could not be proven, and what was held against it instead."""
        files, parts = count(self.files, "file"), []
        if self.bare:
            verb, their = ("has", "its size was") if self.bare == 1 else ("have", "their sizes were")
            parts.append(f"{self.bare} of {files} {verb} no checksum in the manifest: only {their} compared")
        if by_crc := self.unproven - self.bare:
            verb = "was" if by_crc == 1 else "were"
            parts.append(f"{by_crc} of {files} {verb} proven by crc64, which is all that the manifest states")
        return "; ".join(parts)


def _named(source: str, revision: str) -> str:
    """The source with its revision; of a commit as much as people write."""
    short = revision[:8] if _COMMIT.fullmatch(revision) else shown(revision)
    return f"{shown(source)}@{short}" if short else shown(source)


def _rows(word: str, lines: list[str]) -> list[str]:
    more = [f"{word} and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"{word} {line}" for line in lines[:_SHOWN]] + more
