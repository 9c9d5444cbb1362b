"""Which model the files found are: formats, load order, what is provably missing, what a manifest promises."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stager.core import formats
from stager.core.manifest import PATH as MANIFEST_PATH
from stager.core.manifest import Manifest
from stager.core.model import Defect, LocalFile, ModelFormat
from stager.core.select import selected
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


def recognise(found: Found, selection: Selection) -> Recognised:
    """Recognise every root in `found`. Raises `IntegrityError` for a manifest that is broken or says `updating`.

    Judged on all files by all their names, before the selection and before links are counted once.
    """
    known = Recognised()
    for root in dict.fromkeys(file.root for file in found.files):
        below = [file for file in found.files if file.root == root]
        model = _detect(root, below, found)
        known.names += [name for name in model.names if name not in known.names]
        known.weights |= {id(below[position]) for position in model.weights}
        for position in model.order:
            known.rank[id(below[position])] = len(known.rank)
        known.defects += model.defects
        _apply_manifest(root, below, known)
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

    try:
        return formats.detect(entries, read, whole=root in found.listed)
    except OSError:
        # An unreadable index says nothing of the shards; the file itself is named when it is looked at or read.
        return ModelFormat((), tuple(range(len(entries))))


def _apply_manifest(root: str, below: list[LocalFile], known: Recognised) -> None:
    try:
        with open(os.path.join(root, MANIFEST_PATH), "rb") as file:
            raw = file.read()
    except OSError:  # no manifest: completeness is judged by index and headers
        return
    manifest = Manifest.parse(raw)
    manifest.refuse_updating(shown(root))
    known.manifest = True
    known.defects += manifest.defects(file.entry for file in below)
    known.digest = digest_of([known.digest.encode(), raw])


def _as_wanted(defect: Defect, present: set[str], selection: Selection) -> Defect:
    """A file that is missing and was not asked for proves nothing."""
    if defect.path in present or selected(defect.path, selection.include, selection.exclude):
        return defect
    return replace(defect, proven=False)


def digest_of(parts: list[bytes]) -> str:
    """The sha256 of `parts` together, in hex."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
