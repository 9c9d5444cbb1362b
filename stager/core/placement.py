"""Which object names can be files below one folder. Pure.

An object store takes nearly any name; a folder does not, and a name must never lead out of it. One bad name refuses the whole
model (exit 8): a model without one of its files is not whole, and a writer of such names is either broken or hostile.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from stager.core.errors import IntegrityError
from stager.core.model import FileEntry
from stager.core.units import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_PART_MOST, _PATH_MOST = 255, 4000  # bytes; Linux takes 4,095 for the whole, the folder's own name included
_SUFFIX = len(".part")
_HINT = "rename the object, or leave it out with --exclude"


def place(names: Sequence[tuple[str, int]]) -> tuple[FileEntry, ...]:
    """An entry for each (name, size in bytes), in the same order.

    Raises `IntegrityError`, naming the first object that cannot be a file below a folder with all the others: one that would leave it
    (``..``, an absolute name), whose name no file can have (empty parts, ``.``, NUL, too long), that differs from another only by case or
    by how its characters are composed, or that is a file where another needs a folder.
    """
    entries = tuple(_entry(name, size) for name, size in names)
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for entry in entries:
        key = _folded(entry.path)
        if key in files:
            raise _refused(entry.path, f"the same file as `{shown(files[key])}` where case does not count")
        files[key] = entry.path
        for folder in _above(entry.path):
            before = folders.setdefault(_folded(folder), folder)
            if before != folder:
                raise _refused(
                    entry.path, f"in the same folder as `{shown(before)}` where case does not count"
                )
    for entry in entries:
        if (needed := folders.get(_folded(entry.path))) is not None:
            raise _refused(entry.path, f"a file, but other objects need the folder `{shown(needed)}`")
    return entries


def _entry(name: str, size: int) -> FileEntry:
    if "\0" in name:
        raise _refused(name, "contains a NUL")
    if name.startswith("/"):
        raise _refused(name, "an absolute name")
    parts = name.split("/")
    if ".." in parts:
        raise _refused(name, "would leave the folder")
    if "" in parts or "." in parts:
        raise _refused(name, "has an empty part")
    lengths = [len(part.encode("utf-8", "surrogateescape")) for part in parts]
    if max(lengths) + _SUFFIX > _PART_MOST or sum(lengths) + len(lengths) > _PATH_MOST:
        raise _refused(name[:80], "is too long for a file")
    return FileEntry(name, size)


def _refused(name: str, why: str) -> IntegrityError:
    return IntegrityError(f"object `{shown(name)}`: {why}", hint=_HINT)


def _above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: at + 1]) for at in range(len(parts))]


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
