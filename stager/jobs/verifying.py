"""After reading: what is resident now, by file; holes are read once more."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core.events import FileProblem
from stager.core.model import Residency
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs.reading import problem_of
from stager.jobs.survey import measure
from stager.node import pagecache
from stager.node.files import identity_of, opened
from stager.node.touch import ReadKit

if TYPE_CHECKING:
    from stager.jobs.survey import Survey

_LOOKERS = 8


@dataclass(frozen=True, slots=True)
class Verified:
    """One file after warming; `brought_back` bytes were missing at the first look and were read once more."""

    residency: Residency
    brought_back: int = 0
    problem: FileProblem | None = None


async def verify(survey: Survey, *, again: frozenset[int], estimate: bool = True) -> list[Verified]:
    """Look at every file of `survey`; read the holes of those in `again` once more.

    Files on mounts that drop pages are not opened. `estimate`: sample where the kernel gives no exact answer.
    """
    look = partial(_verify, survey, again=again, estimate=estimate)
    return await runtime.in_threads(
        lambda index: f"verifying {shown(survey.files[index].path)}", look, range(len(survey.files)), _LOOKERS
    )


def _verify(survey: Survey, index: int, *, again: frozenset[int], estimate: bool) -> Verified:
    file, facts = survey.files[index], survey.facts(survey.files[index])
    if facts.keeps.hopeless:
        return Verified(Residency.unknown(file.size, "its mount drops pages at open"))
    if survey.looks[index].problem is not None:
        return Verified(survey.looks[index].residency)
    try:
        with opened(file.path) as fd:
            return _verify_open(fd, survey, index, again=index in again, estimate=estimate)
    except OSError as exc:
        return Verified(
            Residency.unknown(file.size, "could not be read"), problem=problem_of(file, None, exc)
        )


def _verify_open(fd: int, survey: Survey, index: int, *, again: bool, estimate: bool) -> Verified:
    file, facts, first = survey.files[index], survey.facts(survey.files[index]), survey.first
    residency, holes = measure(fd, facts, first)
    back = 0
    if again and residency.missing:
        back = _fill(fd, holes)
        residency, _ = measure(fd, facts, first)
    if residency.resident is None and estimate and first is None:
        residency = pagecache.estimate(fd, because=residency.why, seed=file.identity.inode)
    if not identity_of(os.fstat(fd)).same_content(replace(file.identity, etag=None)):
        changed = FileProblem(file.entry.path, None, "ESTALE", "changed while it was being warmed")
        return Verified(Residency.unknown(file.size, "changed"), back, changed)
    return Verified(residency, back)


def _fill(fd: int, holes: tuple[tuple[int, int], ...]) -> int:
    kit, total = ReadKit(), 0
    try:
        for offset, length in holes:
            end = offset + length
            while offset < end and (moved := kit.touch(fd, offset, end - offset)):
                offset += moved
                total += moved
    finally:
        kit.close()
    return total
