"""A tree of files as models: formats, load order, and what is provably missing."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import replace

from stager.core.formats import index as index_files
from stager.core.formats import names
from stager.core.formats.check import zero_length
from stager.core.formats.folder import Folder, examine
from stager.core.formats.source import Read
from stager.core.model import Defect, FileEntry, ModelFormat

_PIPELINE = "model_index.json"
# The authors' own files beside the converted model: vLLM ignores `original/`, gpt-oss ships `metal/`.
_COPIES = ("original", "metal")

_FolderKey = tuple[tuple[int, tuple[tuple[str, int, str], ...], str], ...]


def detect(entries: Sequence[FileEntry], read: Read, *, whole: bool = True) -> ModelFormat:
    """The formats, load order and defects of the model files `entries`.

    `entries` are all files found below one root, before ``--include``, before files that are reached under two names
    are counted once: an index in one snapshot must find its shards under their own names. Give `whole` False when
    they are not all files of their folders (a PATH that is one file, a folder that could not be listed): then nothing
    is proven to be missing. Reads index and model_index files through `read`, up to 64 MiB each, and raises what it
    raises. A missing file's defect carries the path where it should lie, so that a caller can tell whether the
    selection wanted it.
    """
    tree = _Tree(entries, read)
    folders = {path: tree.folder(path) for path in tree.order()}
    defects = tree.defects + [d for folder in folders.values() for d in folder.defects]
    if not whole:
        defects = [replace(defect, proven=False) for defect in defects]
    loaded = [i for folder in folders.values() for i in folder.loaded]
    skipped = [i for folder in folders.values() for i in folder.skipped]
    defects += [zero_length(entries[i].path) for i in loaded if entries[i].size == 0]
    defects += [zero_length(entries[i].path, proven=False) for i in skipped if entries[i].size == 0]
    families = {kind for folder in folders.values() for kind in folder.families}
    formats = ["diffusers"] if tree.pipelines else []
    formats += [kind.value for kind in names.Family if kind in families]
    order = _order(entries, loaded, skipped)
    return ModelFormat(
        tuple(formats) or ("unknown",), order, tuple(dict.fromkeys(defects)), tuple(dict.fromkeys(loaded))
    )


def _order(entries: Sequence[FileEntry], loaded: list[int], skipped: list[int]) -> tuple[int, ...]:
    weights = {*loaded, *skipped}
    others = [i for i in _by_name(entries) if i not in weights]
    small = [i for i in others if names.is_small(entries[i].path, entries[i].size)]
    first = set(small)
    rest = [i for i in others if i not in first]
    return tuple(dict.fromkeys([*small, *loaded, *rest, *skipped]))


def _by_name(entries: Sequence[FileEntry]) -> Iterable[int]:
    return sorted(range(len(entries)), key=lambda i: (names.natural(entries[i].path), entries[i].path))


class _Tree:
    """The files by folder, and the pipelines among the folders."""

    def __init__(self, entries: Sequence[FileEntry], read: Read) -> None:
        self._entries, self._read = entries, read
        self._by_path = {posixpath.normpath(entry.path): at for at, entry in enumerate(entries)}
        self._files: dict[str, list[int]] = {}
        self._holds: set[str] = set()  # folders with weights in them
        self._covers: set[str] = set()  # folders with weights below them
        self._all: set[str] = {""}
        for at, entry in enumerate(entries):
            folder = posixpath.dirname(entry.path)
            self._files.setdefault(folder, []).append(at)
            above = list(_ancestors(folder))
            self._all.update(above)
            if names.is_weight(entry.path):
                self._holds.add(folder)
                self._covers.update(above[1:])
        self.defects: list[Defect] = []
        self.pipelines: dict[str, list[str]] = {}
        for folder, files in self._files.items():
            for at in files:
                if posixpath.basename(entries[at].path) == _PIPELINE:
                    self._pipeline(folder, at)

    def _pipeline(self, folder: str, at: int) -> None:
        names_here, problem = index_files.components(self._entries[at], at, self._read)
        self.pipelines[folder] = names_here
        if problem is not None:
            self.defects.append(Defect(self._entries[at].path, f"unusable pipeline index: {problem}"))
        for name in names_here:
            path = posixpath.join(folder, name)
            if path not in self._all:
                # Optional components may be left out on purpose and handed over by the program.
                self.defects.append(
                    Defect(path, f"missing: the folder that `{_PIPELINE}` names", proven=False)
                )

    def order(self) -> list[str]:
        """Folders with files in load order: by name, but a pipeline's components in its own order."""
        return sorted(self._files, key=self._key)

    def _key(self, folder: str) -> _FolderKey:
        key, above = [], ""
        for name in folder.split("/") if folder else []:
            ranks = self.pipelines.get(above, [])
            rank = ranks.index(name) if name in ranks else len(ranks)
            key.append((rank, names.natural(name), name))
            above = posixpath.join(above, name)
        return tuple(key)

    def folder(self, path: str) -> Folder:
        """The weights of one folder; all skipped where they are a copy of the model around them."""
        files, below = self._files[path], path in self._covers
        found = examine(self._entries, files, self._by_path, self._read, weights_below=below)
        if self._is_copy(path):
            found.skipped = found.loaded + found.skipped
            found.loaded, found.families = [], []
            found.defects = [replace(defect, proven=False) for defect in found.defects]
        return found

    def _is_copy(self, path: str) -> bool:
        if path in self.pipelines:
            components = (posixpath.join(path, name) for name in self.pipelines[path])
            return any(component in self._holds or component in self._covers for component in components)
        return any(
            posixpath.basename(folder) in _COPIES and posixpath.dirname(folder) in self._holds
            for folder in _ancestors(path)
        )


def _ancestors(folder: str) -> Iterable[str]:
    """`folder` and every folder above it, up to the root, which is the empty string."""
    yield folder
    while folder:
        folder = posixpath.dirname(folder)
        yield folder
