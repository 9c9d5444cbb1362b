"""Which model the files found are: formats, load order, what is provably missing, what a manifest promises."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stager.core import formats
from stager.core.manifest import PATH as MANIFEST_PATH
from stager.core.manifest import Manifest
from stager.core.model import Defect, FileEntry, LocalFile, ModelFormat
from stager.core.select import left_out, selected
from stager.core.units import shown
from stager.node.files import opened

if TYPE_CHECKING:
    from stager.jobs.options import Selection
    from stager.node.files import Found


@dataclass
class Recognised:
    """What is known of the files by their names and small files alone.

    `rank` is a file's position in the load order, by ``id``; `weights` are the files that engines load as weights, by ``id``:
    others (a second copy in an older format) are not held against the model.
    """

    names: list[str] = field(default_factory=list)
    rank: dict[int, int] = field(default_factory=dict)
    weights: set[int] = field(default_factory=set)
    defects: list[Defect] = field(default_factory=list)
    manifest: bool = False
    digest: str = ""


def recognise(found: Found, selection: Selection, *, refuse: bool = True) -> Recognised:
    """Recognise every root in `found`.

    Raises `IntegrityError` for a manifest that is broken or says `updating`, of a model in `found` or of one around it,
    unless `refuse` is False.

    Judged on all files by all their names, before the selection and before links are counted once.
    """
    known = Recognised()
    for root in dict.fromkeys(file.root for file in found.files):
        below = [file for file in found.files if file.root == root]
        model = _detect(root, below, found)
        known.names += [name for name in model.names if name not in known.names]
        known.weights |= {id(below[position]) for position in model.weights}
        # Files that were named one by one are wanted in that order: the checkpoint that is served first comes first.
        for position in model.order if root in found.listed else range(len(below)):
            known.rank[id(below[position])] = len(known.rank)
        known.defects += model.defects
        if refuse:
            _apply_manifests(root, below, found, known)
    present = {file.entry.path for file in found.files}
    known.defects = [_as_wanted(defect, present, selection) for defect in dict.fromkeys(known.defects)]
    return known


def _detect(root: str, below: list[LocalFile], found: Found) -> ModelFormat:
    entries = [file.entry for file in below]

    def read(index: int, offset: int, length: int) -> bytes:
        path = below[index].path
        with opened(path) as fd:
            found.before_reading(path, fd)
            return os.pread(fd, length, offset)

    return _detect_readable(entries, read, whole=root in found.listed)


def _detect_readable(entries: list[FileEntry], read: formats.Read, *, whole: bool) -> ModelFormat:
    """`formats.detect` without the small files that cannot be read: they are named when they are looked at.

    An index that cannot be read says nothing of its shards, so nothing is proven to be missing then.
    """
    unreadable: list[int] = []
    while True:
        kept = [position for position in range(len(entries)) if position not in unreadable]
        asked: list[int] = []

        def read_kept(
            index: int, offset: int, length: int, kept: list[int] = kept, asked: list[int] = asked
        ) -> bytes:
            asked.append(kept[index])
            return read(kept[index], offset, length)

        try:
            model = formats.detect([entries[i] for i in kept], read_kept, whole=whole and not unreadable)
        except OSError:
            unreadable.append(asked[-1])
            continue
        return replace(
            model,
            order=(*unreadable, *(kept[i] for i in model.order)),
            weights=tuple(kept[i] for i in model.weights),
        )


def _apply_manifests(root: str, below: list[LocalFile], found: Found, known: Recognised) -> None:
    """Hold the files against every manifest below `root`; a model around `root` must at least not be changing."""
    folders = [folder for owner, folder in found.manifested if owner == root]
    for folder in folders:
        place = os.path.join(root, folder) if folder else root
        raw = _manifest_in(place)
        if raw is None:
            continue
        manifest = Manifest.parse(raw)
        manifest.refuse_updating(shown(place))
        known.manifest = True
        known.digest = _digest([known.digest.encode(), raw])
        prefix = f"{folder}/" if folder else ""
        defects = manifest.defects(
            replace(file.entry, path=file.entry.path.removeprefix(prefix))
            for file in below
            if file.entry.path.startswith(prefix)
        )
        known.defects += [
            replace(defect, path=prefix + defect.path, proven=root in found.listed)
            for defect in defects
            if left_out(defect.path) is None
        ]
    around = [root] if root not in found.listed and not folders else []
    around += [os.path.dirname(root)] if os.path.dirname(root) != root else []
    for outer in around:
        raw = _manifest_in(outer)
        if raw is not None:
            Manifest.parse(raw).refuse_updating(shown(outer))


def _manifest_in(folder: str) -> bytes | None:
    """The manifest's bytes; None without one: completeness is then judged by index and headers."""
    try:
        with open(os.path.join(folder, MANIFEST_PATH), "rb") as file:
            return file.read()
    except OSError:
        return None


def _as_wanted(defect: Defect, present: set[str], selection: Selection) -> Defect:
    """A file that is missing and was not asked for proves nothing."""
    if defect.path in present or selected(defect.path, selection.include, selection.exclude):
        return defect
    return replace(defect, proven=False)


def _digest(parts: list[bytes]) -> str:
    """The sha256 of `parts` together, in hex."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def digest_of_names(files: list[LocalFile]) -> str:
    """The sha256 of the paths and sizes of `files`, in hex."""
    return _digest([f"{f.entry.path}\0{f.size}\n".encode("utf-8", "surrogateescape") for f in files])
