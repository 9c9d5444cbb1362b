"""``stager evict``: give pages back, and say which stayed and why."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import StagerError
from stager.core.outcome import MarkerState
from stager.core.reports import EvictSummary
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs.gate import Gate
from stager.jobs.survey import Survey, Surveyor, measure
from stager.node import pagecache
from stager.node.files import opened
from stager.node.filesystems import Pattern

if TYPE_CHECKING:
    from stager.core.model import LocalFile
    from stager.engine.report import Reporter
    from stager.jobs.options import Selection

_LOOKERS = 8


@dataclass(frozen=True, slots=True)
class _Evicted:
    before: int | None
    after: int | None
    why: str = ""


async def evict(selection: Selection, reporter: Reporter, *, marker: str) -> int:
    """Drop the pages of the selected files; 0 also when some stayed, for that is a finding, not a failure.

    A ready marker that vouches for one of these files is withdrawn first.
    """
    surveyor = Surveyor(selection, refuse=False)
    survey = await surveyor.find()
    await surveyor.ask_mounts(survey)
    gate = Gate(marker, named=False, reporter=reporter)
    await runtime.in_thread(f"reading {shown(marker)}", gate.load)
    _withdraw(survey, gate)
    results = await runtime.in_threads(
        lambda file: f"evicting {shown(file.path)}", partial(_evict, survey), survey.files, _LOOKERS
    )
    mapped = await runtime.in_thread("looking for mappings", lambda: _mapped_by(survey, results))
    known = [one for one in results if one.before is not None and one.after is not None]
    exact = len(known) == len(results)
    stayed = [
        (file.entry.path, one.after or 0, one.why or mapped.get(file.path, "dirty, locked or mapped"))
        for file, one in zip(survey.files, results, strict=True)
        if one.after or one.why
    ]
    reporter.emit(
        EvictSummary(
            len(results),
            sum(one.before or 0 for one in known) if exact else None,
            sum(one.after or 0 for one in known) if exact else None,
            tuple(stayed),
        )
    )
    return 0


def _withdraw(survey: Survey, gate: Gate) -> None:
    before = gate.before
    if before is None or before.state is MarkerState.FAILED:
        return
    mine = {file.path for file in survey.files}
    if any(file.path in mine for file in before.files):
        gate.withdraw("its pages were evicted")


def _evict(survey: Survey, file: LocalFile) -> _Evicted:
    facts = survey.facts(file)
    if facts.traits.pattern is Pattern.MEMORY:
        return _Evicted(file.size, file.size, "the file is memory; delete it to give it back")
    try:
        with opened(file.path) as fd:
            before, _ = measure(fd, facts)
            pagecache.evict(fd)
            after, _ = measure(fd, facts)
            return _Evicted(before.resident, after.resident)
    except OSError as exc:
        return _Evicted(None, None, os.strerror(exc.errno or 0).lower())


def _mapped_by(survey: Survey, results: list[_Evicted]) -> dict[str, str]:
    """For files whose pages stayed: which processes have them mapped, as far as this user may see."""
    wanted = {
        (os.major(f.identity.device), os.minor(f.identity.device), f.identity.inode): f.path
        for f, one in zip(survey.files, results, strict=True)
        if one.after
    }
    holders: dict[str, list[str]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")) if wanted else ():
        with suppress(OSError, StagerError):
            for path in _mappings(pid) & wanted.keys():
                holders.setdefault(wanted[path], []).append(f"{_name(pid)} (pid {pid})")
    return {path: f"mapped by {', '.join(names[:3])}" for path, names in holders.items()}


def _mappings(pid: str) -> set[tuple[int, int, int]]:
    found = set()
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(None, 5)
            if fields[4] != "0":
                major, _, minor = fields[3].partition(":")
                found.add((int(major, 16), int(minor, 16), int(fields[4])))
    return found


def _name(pid: str) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
