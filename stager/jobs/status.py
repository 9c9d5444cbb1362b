"""``stager status``: what is resident now, by file, and how that is known."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from stager.core.events import FileResidency, Note
from stager.core.model import Residency, sum_residency
from stager.core.reports import StatusTotal
from stager.core.units import MIB, shown
from stager.engine import runtime
from stager.jobs.survey import Survey, Surveyor, measure
from stager.node import pagecache
from stager.node.canary import Keeps
from stager.node.files import opened

if TYPE_CHECKING:
    from stager.core.model import LocalFile
    from stager.engine.report import Reporter
    from stager.jobs.options import Selection

_SACRIFICE = (
    MIB  # the largest file whose pages the canary may cost: a config, never a weight an engine has mapped
)
_LOOKERS = 8


async def status(selection: Selection, reporter: Reporter, *, min_resident: float | None) -> int:
    """Print every file's residency and the total; 0, or 3 when it is below `min_resident` or cannot be known.

    Nothing is read but on NFS (one byte a file, without which a changed file would show as resident) and where the kernel
    gives no exact answer (random pages, an estimate). Weights on a mount that drops pages at open are not opened.
    """
    surveyor = Surveyor(selection, refuse=False)
    survey = await surveyor.find()
    await surveyor.ask_mounts(survey, smallest_only=_SACRIFICE)
    found = await runtime.in_threads(
        lambda file: f"looking at {shown(file.path)}", partial(_residency, survey), survey.files, _LOOKERS
    )
    for file, residency in zip(survey.files, found, strict=True):
        reporter.emit(FileResidency(file.entry.path, residency))
    for facts in survey.mounts.values():
        if facts.keeps is not Keeps.YES:
            why = f" ({facts.why})" if facts.why else ""
            message = f"{shown(facts.mount.point)} ({facts.traits.name}) pages after a second open: {facts.keeps.value}{why}"
            reporter.emit(Note("warning", "mount", message, facts.traits.remedy or None))
    total = sum_residency(found)
    exact = sum(one.resident or 0 for one in found if one.known.exact)
    reporter.emit(StatusTotal(len(found), total, exact))
    if min_resident is None:
        return 0
    return 0 if total.resident is not None and total.resident >= min_resident * total.total else 3


def _residency(survey: Survey, file: LocalFile) -> Residency:
    facts = survey.facts(file)
    if facts.keeps is not Keeps.YES:
        return Residency.unknown(file.size, "not opened: opening it may drop its pages")
    try:
        with opened(file.path) as fd:
            residency, _ = measure(fd, facts)
            return (
                pagecache.estimate(fd, because=residency.why, seed=file.identity.inode)
                if residency.resident is None
                else residency
            )
    except OSError as exc:
        return Residency.unknown(file.size, os.strerror(exc.errno or 0).lower())
