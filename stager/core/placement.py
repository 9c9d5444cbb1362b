"""Which object names can be files below one folder. Pure.

An object store takes nearly any name; a folder does not, and a name must never lead out of it. One bad name refuses the whole
model (exit 8, not 2): the command line is right and the model is not. Without one of its files it is not whole, and a writer of such
names is either broken or hostile.
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
_SUFFIX = ".part"  # of the file's name until it is whole
_HINT = "rename the object, or leave it out with --exclude"


def place(names: Sequence[tuple[str, int]]) -> tuple[FileEntry, ...]:
    """An entry for each (name, size in bytes), in the same order.

    Raises `IntegrityError`, naming the first object that cannot be a file below a folder with all the others: one that would leave it
    (``..``, an absolute name), whose name no file can have (empty parts, ``.``, NUL, too long), that differs from another only by case or
    by how its characters are composed, that is a file where another needs a folder, or that is named like another's part file.
    """
    entries = tuple(_entry(name, size) for name, size in names)
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for entry in entries:
        key = _folded(entry.path)
        if key in files:
            raise _refused(entry.path, _clash(entry.path, files[key]))
        files[key] = entry.path
        for folder in above(entry.path):
            before = folders.setdefault(_folded(folder), folder)
            if before != folder:
                raise _refused(
                    entry.path, f"in the same folder as `{shown(before)}` where case does not count"
                )
    for entry in entries:
        key = _folded(entry.path)
        if (other := folders.get(key)) is not None:
            raise _refused(entry.path, f"a file, but other objects need the folder `{shown(other)}`")
        partial = key + _SUFFIX
        if (other := files.get(partial, folders.get(partial))) is not None:
            raise _refused(other, f"has the name of the part file of `{shown(entry.path)}`")
    return entries


def fault(name: str) -> str | None:
    """Why no file below a folder can have this name, in a few words; None when one can."""
    if "\0" in name:
        return "contains a NUL"
    if name.startswith("/"):
        return "an absolute name"
    parts = name.split("/")
    if ".." in parts:
        return "would leave the folder"
    if "" in parts or "." in parts:
        return "has an empty part, or one that is a dot"
    try:
        lengths = [len(part.encode("utf-8", "surrogateescape")) for part in parts]
    except UnicodeEncodeError:
        return "has a character that no file name can hold"
    too_long = (
        max(*lengths, lengths[-1] + len(_SUFFIX)) > _PART_MOST or sum(lengths) + len(parts) > _PATH_MOST
    )
    return "is too long for a file" if too_long else None


def _entry(name: str, size: int) -> FileEntry:
    if (why := fault(name)) is not None:
        raise _refused(name, why)
    if size < 0:
        raise _refused(name, "has a negative size")
    return FileEntry(name, size)


def _clash(path: str, before: str) -> str:
    if path == before:
        return "is listed twice"
    return f"the same file as `{shown(before)}` where case does not count"


def _refused(name: str, why: str) -> IntegrityError:
    text = shown(name)
    text = text if len(text) <= 100 else f"{text[:100]}..."
    return IntegrityError(f"object `{text}`: {why}", hint=_HINT)


def above(path: str) -> list[str]:
    """The folders that the file `path` is in, outermost first: ``a`` and ``a/b`` for ``a/b/c``."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: at + 1]) for at in range(len(parts))]


def _folded(path: str) -> str:
    """The same for names that a filesystem may take for one: case folded, characters decomposed (before, as Unicode wants it)."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())
