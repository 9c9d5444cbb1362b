"""The ready marker through a run's life: withdrawn at the start, written once at the end, withdrawn on a signal."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from stager import __version__
from stager.core.errors import StagerError
from stager.core.events import Note
from stager.core.marker import ReadyMarker, WarmedFile, WarmedPath
from stager.core.outcome import MarkerState
from stager.node import marker as marker_file
from stager.node import mounts

if TYPE_CHECKING:
    from collections.abc import Collection

    from stager.core.model import Residency
    from stager.engine.report import Reporter
    from stager.jobs.options import Selection
    from stager.jobs.survey import Survey


class Gate:
    """The marker at `path`. A default path that cannot be written costs a warning, a `named` one an error.

    `before` is the last run's marker once `load` has read it. Until then the gate is as that run left it, for this one has done
    nothing yet, and `withdraw` leaves it so.
    """

    def __init__(self, path: str, *, named: bool, reporter: Reporter) -> None:
        self.path = path
        self._named = named
        self._reporter = reporter
        self._usable = True
        self._loaded = False
        self.before: ReadyMarker | None = None
        self._last = ReadyMarker(MarkerState.FAILED, "")

    def load(self) -> None:
        """Read what the last run wrote; one that cannot be read counts as none. May block for as long as the file does."""
        with suppress(StagerError):
            self.before = marker_file.read(self.path)
        self._last = self.before or self._last
        self._loaded = True

    @property
    def written(self) -> str:
        """Where the marker is; empty when it cannot be written."""
        return self.path if self._usable else ""

    def asks(self, asked: Selection) -> None:
        """From now on the marker speaks of what is `asked`, and of no mount before `surveyed`.

        Who the files warmed before were stays in it: a later run tells by that whose pages are in the cache. Touches no mount.
        """
        self._last = replace(
            self._last,
            paths=(),
            asked=tuple(_spelled(path) for path in asked.paths),
            include=asked.include,
            exclude=asked.exclude,
            digest="",
        )

    def withdraw(self, reason: str) -> None:
        """Say `failed`. What is known of files and mounts stays in it: their pages are still in the cache."""
        if self._loaded:
            self._write(
                replace(self._last, state=MarkerState.FAILED, reason=reason, resident=None, known="unknown")
            )

    def written_anew(self, paths: Collection[str]) -> None:
        """Forget who the files at `paths` were (absolute, symlinks resolved): what is cached of them was written just now."""
        kept = tuple(file for file in self._last.files if file.path not in paths)
        self._last = replace(self._last, files=kept)

    def surveyed(self, survey: Survey, asked: Selection) -> None:
        """Remember the identities of the files found by what was `asked`: from now on cached pages belong to these."""
        self._last = replace(
            self._last,
            files=_files(survey, {file.path: file for file in self._last.files}),
            paths=_paths(survey),
            asked=tuple(os.path.realpath(path) for path in asked.paths),
            include=asked.include,
            exclude=asked.exclude,
            digest=survey.digest,
        )

    def open(self, state: MarkerState, reason: str, residency: Residency) -> None:
        """Write the final marker, `failed` included."""
        self._write(
            replace(
                self._last,
                state=state,
                reason=reason,
                total=residency.total,
                resident=residency.resident,
                known=residency.known.value,
            )
        )

    def _write(self, marker: ReadyMarker) -> None:
        if not self._usable:
            return
        self._last = replace(
            marker, boot_id=marker_file.boot_id(), time=time.time(), version=__version__, pid=os.getpid()
        )
        try:
            marker_file.write(self.path, self._last)
        except StagerError as error:
            if self._named:
                raise
            self._usable = False
            message = f"no ready marker: {error.message}"
            self._reporter.emit(Note("warning", "marker_unwritable", message, error.hint))


def _spelled(path: str) -> str:
    """`path` made absolute by its letters alone: looking a link up may hang."""
    try:
        return os.path.abspath(path)
    except OSError:  # the working folder is gone, and so is what lay in it
        return path


def _files(survey: Survey, before: dict[str, WarmedFile]) -> tuple[WarmedFile, ...]:
    """One row a file. One that could not be looked at keeps its row of `before`: its pages are still that file's."""
    rows = []
    for at, file in enumerate(survey.files):
        look = survey.looks[at] if at < len(survey.looks) else None
        if look is not None and look.problem is not None and file.path in before:
            rows.append(before[file.path])
            continue
        one = file.identity
        rows.append(
            WarmedFile(
                file.path,
                one.inode,
                one.size,
                one.mtime_ns,
                one.ctime_ns,
                one.etag,
                vouched=look is None or look.origin_known,
            )
        )
    return tuple(rows)


def _paths(survey: Survey) -> tuple[WarmedPath, ...]:
    """One entry per root and mount: a folder may hold symlinks to files on another mount."""
    rows: dict[tuple[str, int], WarmedPath] = {}
    for file in survey.files:
        facts = survey.mounts.get(file.mount_id)
        on_root_mount = (file.root, file.mount_id) in rows
        if facts is None or on_root_mount:
            continue
        anchor = file.root if _on(file.root, file.mount_id) else file.path
        try:
            now = mounts.identity(anchor)
        except OSError:
            continue
        rows[(file.root, file.mount_id)] = WarmedPath(
            anchor,
            facts.mount.fstype,
            now.device,
            now.mount_id,
            now.unique_id,
            now.namespace,
            facts.keeps.value,
        )
    return tuple(rows.values())


def _on(path: str, mount_id: int) -> bool:
    try:
        return mounts.mount_id(path) == mount_id
    except OSError:
        return False
