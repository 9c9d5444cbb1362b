"""What became of a model's pages after warming: counted look after look, what was lost in between added up, PATH by PATH."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.model import Residency, sum_residency
from stager.core.reports import Held, PathPages
from stager.jobs.survey import measure
from stager.node.canary import Keeps
from stager.node.files import opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.core.model import LocalFile
    from stager.jobs.survey import Survey

Stretches = list[tuple[int, int]]


def by_path(
    files: Sequence[LocalFile], residencies: Sequence[Residency], paths: Sequence[str]
) -> tuple[PathPages, ...]:
    """The residency of `files`, which are parallel to `residencies`, for each of the PATHs under which they were found."""
    grouped: dict[str, list[Residency]] = {}
    asked = frozenset(os.path.abspath(path) for path in paths)
    for file, one in zip(files, residencies, strict=True):
        grouped.setdefault(_path_of(file, asked), []).append(one)
    return tuple(PathPages(path, len(rows), sum_residency(rows)) for path, rows in grouped.items())


def _path_of(file: LocalFile, asked: frozenset[str]) -> str:
    """The PATH that `file` was found under: itself, where a file was named."""
    itself = os.path.join(file.root, file.entry.path)
    return itself if itself in asked else file.root


@dataclass
class _Seen:
    """One file at the last look."""

    residency: Residency
    holes: Stretches | None = None  # None: not looked at yet, or not told
    held: int = 0
    lost: int = 0
    brought_back: int = 0


class Vigil:
    """Looks at the files of `survey` from time to time. `lost` are the bytes that went between two looks, all together.

    What it has not looked at stays as it was found.
    """

    def __init__(self, survey: Survey, paths: Sequence[str], residencies: Sequence[Residency] = ()) -> None:
        """`residencies` are what was found of the files last, parallel to those of `survey`."""
        self._survey = survey
        self._asked = frozenset(os.path.abspath(path) for path in paths)
        known = residencies or [Residency.unknown(file.size, "not looked at yet") for file in survey.files]
        self._seen = {file.path: _Seen(one) for file, one in zip(survey.files, known, strict=True)}
        self._told = 0

    @property
    def lost(self) -> int:
        """Bytes."""
        return sum(one.lost for one in self._seen.values())

    def look(self, file: LocalFile) -> tuple[int | None, Stretches]:
        """(bytes resident, stretches missing) of `file` now; None and everything where the kernel does not tell. Raises ``OSError``."""
        seen = self._seen[file.path]
        try:
            with opened(file.path) as fd:
                found, missing = measure(fd, self._survey.facts(file), self._survey.first)
        except OSError:
            seen.residency, seen.holes = Residency.unknown(file.size, "it cannot be opened"), None
            raise
        holes = list(missing)
        if found.known.exact:
            if seen.holes is not None:
                seen.lost += sum(length for _, length in without(holes, seen.holes))
            seen.holes = holes
        seen.residency = found
        return found.resident, holes

    def look_at_all(self) -> None:
        """Look at every file where that costs no pages: on a mount that may drop them, opening a file would."""
        for file in self._survey.files:
            if file.size and self._survey.facts(file).keeps is Keeps.YES:
                try:
                    self.look(file)
                except OSError:
                    continue  # gone or unreadable by now: unknown, and said so

    def keeps(self, file: LocalFile, held: int) -> None:
        """`held` bytes of `file` are being held from now on."""
        self._seen[file.path].held = held

    def came_back(self, file: LocalFile, count: int) -> None:
        """`count` bytes of `file` that had been lost were read again."""
        self._seen[file.path].brought_back += count

    def rows(self) -> tuple[PathPages, ...]:
        """As of the last look at each file."""
        grouped: dict[str, list[_Seen]] = {}
        for file in self._survey.files:
            grouped.setdefault(_path_of(file, self._asked), []).append(self._seen[file.path])
        return tuple(
            PathPages(
                path,
                len(rows),
                sum_residency([one.residency for one in rows]),
                sum(one.held for one in rows),
                sum(one.lost for one in rows),
                sum(one.brought_back for one in rows),
            )
            for path, rows in grouped.items()
        )

    def report(self, *, tell: bool) -> Held:
        """The last look as an event; `tell`: what was lost since it was last told is news."""
        news = self.lost - self._told if tell else 0
        self._told += news
        return Held(self.rows(), news)


def without(stretches: Stretches, others: Stretches) -> Stretches:
    """What of `stretches` does not lie in `others`; both ascending and disjoint."""
    left = []
    for offset, length in stretches:
        at, end = offset, offset + length
        for start, size in others:
            if start >= end or start + size <= at:
                continue
            if start > at:
                left.append((at, start - at))
            at = start + size
        if at < end:
            left.append((at, end - at))
    return left
