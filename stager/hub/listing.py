"""From what a hub lists to the files of a snapshot. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from stager.core.errors import IntegrityError, NotFound
from stager.core.model import FileEntry
from stager.core.placement import fault
from stager.core.select import left_out
from stager.core.units import shown
from stager.hub.base import HubFile, Snapshot

_NOT_OF_THE_MODEL = (".stager", ".git")  # what tools keep beside a model in a folder; nobody misses it


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of a hub's list: a path as the hub has it, size in bytes, and what else it says of the content."""

    path: str
    size: int
    version: str
    sha256: str | None = None
    blob_sha1: str | None = None


def snapshot(source: str, revision: str, rows: Iterable[Listed]) -> Snapshot:
    """The files of one revision, and those that are never taken, apart.

    Raises `IntegrityError` for a list that cannot be a folder's: a name that would leave it, one that no file can have, two files of one
    name, a file where another needs a folder. Names that differ only by case are two files here; who puts them into a folder judges that.
    """
    files: dict[str, HubFile] = {}
    never: dict[str, str] = {}
    for row in rows:
        if (never_why := left_out(row.path)) is not None:
            if row.path.partition("/")[0] not in _NOT_OF_THE_MODEL:
                never[row.path] = never_why
            continue
        if (why := fault(row.path)) is not None:
            raise _refused(source, row.path, why)
        if row.size < 0:
            raise _refused(source, row.path, "has a negative size")
        if row.path in files:
            raise _refused(source, row.path, "is listed twice")
        files[row.path] = HubFile(FileEntry(row.path, row.size, row.sha256), row.version, row.blob_sha1)
    for path in files:
        above = path.rpartition("/")[0]
        while above:
            if above in files:
                raise _refused(source, above, "is a file, but others need a folder of that name")
            above = above.rpartition("/")[0]
    if not files:
        raise NotFound(f"{shown(source)} holds no files")
    return Snapshot(
        source, revision, tuple(files[path] for path in sorted(files)), tuple(sorted(never.items()))
    )


def unknown_revision(source: str, revision: str, known: Iterable[str]) -> NotFound:
    """The error for a revision that is not among those that are `known`, with the nearest names in its hint."""
    names = sorted(set(known))
    near = difflib.get_close_matches(revision, names, n=3, cutoff=0.5) or names[:5]
    hint = "its revisions: " + ", ".join(f"`{shown(name)}`" for name in near) if near else None
    return NotFound(f"{shown(source)} has no revision `{shown(revision)}`", hint=hint)


def _refused(source: str, path: str, why: str) -> IntegrityError:
    name = shown(path)
    return IntegrityError(
        f"`{name if len(name) <= 100 else name[:100] + '...'}` of {shown(source)}: {why}",
        hint="the hub's list is damaged or hostile; its owner can mend the file, another revision may do without it",
    )
