"""Files that the plan leaves out stay as cold as they were: their headers were read, and no budget grants even that."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from stager.core.units import shown
from stager.engine import runtime
from stager.node import pagecache
from stager.node.files import opened

if TYPE_CHECKING:
    from stager.core.model import LocalFile
    from stager.jobs.survey import Look, Survey

_LOOKERS = 8


async def forget(survey: Survey, *, keep: frozenset[int]) -> None:
    """Drop the pages of files not in `keep` of which nothing was resident before they were looked at."""
    paths = [
        file.path
        for index, (file, look) in enumerate(zip(survey.files, survey.looks, strict=True))
        if index not in keep and _was_cold(survey, file, look) and not survey.facts(file).keeps.hopeless
    ]
    await runtime.in_threads(lambda path: f"looking at {shown(path)}", _drop, paths, _LOOKERS)


def _was_cold(survey: Survey, file: LocalFile, look: Look) -> bool:
    """Indexes and the canary's file are read before they are looked at; the others are not."""
    return survey.found.was_cold.get(file.path, look.residency.resident == 0 and not look.stale)


def _drop(path: str) -> None:
    with suppress(OSError), opened(path) as fd:
        pagecache.evict(fd)
