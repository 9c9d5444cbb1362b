"""Before a pull: what the destination has of a snapshot already, and how far that is proven."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import IntegrityError, NotFound, StagerError
from stager.core.manifest import COMPLETE, PATH, Manifest
from stager.core.select import left_out
from stager.core.source import same_source
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs.options import Proof
from stager.jobs.remote import OF_ONE_OBJECT, manifest_at, states_checksums

if TYPE_CHECKING:
    from stager.core.model import FileEntry
    from stager.hub.base import HubFile, Snapshot
    from stager.store.base import Store, StoredObject

_SHA256 = re.compile("[0-9a-fA-F]{64}")
_LOOKERS = 32  # requests for one object each, at once: they are answered from the bucket's index, and nothing is read


@dataclass
class Standing:
    """What a destination has of the files that are to be pulled.

    `proven`, `doubtful`, `compare` and `wanted` divide the indexes of these files among them. `objects` are all that lie below the root, by
    name, without stager's own and without what it never takes. `manifest` is the one that is there, whatever its state; None where there is
    none, and where `problem` says why it cannot be used. Of a file in `proven` nothing is left to do; its CRC-64 is given where it is known.
    One in `doubtful` has the right size, and only reading it back can prove it. One in `compare` is proven if the CRC-64 of its source,
    which nobody states, is this one. The unfinished uploads of `resumable` paths hold the same content and may be gone on with.
    `obsolete` are files, ascending, that earlier pulls have brought and the whole revision no longer has; `foreign` are those
    that neither has. Files of another model, in a folder with a manifest of its own, are none of both.
    """

    objects: dict[str, StoredObject]
    manifest: Manifest | None = None
    problem: StagerError | None = None
    others: tuple[str, ...] = ()  # folders of other models, each with a slash at its end
    proven: dict[int, int | None] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)
    compare: dict[int, int] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    resumable: frozenset[str] = frozenset()
    obsolete: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    def start_over(self, number: int) -> None:
        """All `number` files are wanted: nothing that is there counts."""
        self.proven, self.doubtful, self.compare, self.wanted = {}, set(), {}, list(range(number))


async def take_stock(store: Store, snapshot: Snapshot, files: Sequence[HubFile], proof: Proof) -> Standing:
    """What `store` has of `files`, those of `snapshot` that are to be pulled; `proof` says what counts as proven.

    One request for every 1,000 objects, one for the manifest, and one for each file of the right size where the store states checksums.
    Reads no other content. Raises as the store does, but for a manifest that cannot be used.
    """
    root = shown(store.root)
    standing, listed = await runtime.in_thread(f"listing {root}", partial(_listed, store))
    if listed is not None:
        await runtime.in_thread(f"reading the manifest in {root}", partial(_recall, standing, store, listed))
    judge = _Judge(standing, snapshot, proof, listed.modified if listed is not None else 0.0)
    standing.resumable = frozenset(one.entry.path for one in files if judge.same_source_content(one))
    surplus = standing.objects.keys() - {one.entry.path for one in snapshot.files}
    unlisted = sorted(name for name in surplus if not name.startswith(standing.others))
    named = standing.manifest.named() if standing.manifest is not None else frozenset()
    standing.obsolete = tuple(name for name in unlisted if name in named)
    standing.foreign = tuple(name for name in unlisted if name not in named)
    stated = states_checksums(store.root)
    found = {
        index: there
        for index, one in enumerate(files)
        if (there := standing.objects.get(one.entry.path)) is not None and there.size == one.entry.size
    }
    if stated and proof is not Proof.NONE:
        heads = await runtime.in_threads(
            lambda index: f"looking at {shown(files[index].entry.path)}",
            lambda index: _head(store, files[index].entry),
            found,
            _LOOKERS,
        )
        found = {index: head for index, head in zip(found, heads, strict=True) if head is not None}
    for index, one in enumerate(files):
        if index in found:
            judge.file(index, one, found[index], stated=stated)
        else:
            standing.wanted.append(index)
    return standing


def _listed(store: Store) -> tuple[Standing, StoredObject | None]:
    """What lies there, and the manifest among it."""
    objects, listed, others = {}, None, []
    for one in store.list():
        if one.name == PATH:
            listed = one
        elif one.name.endswith(f"/{PATH}"):
            others.append(one.name.removesuffix(PATH))
        elif left_out(one.name) is None:
            objects[one.name] = one
    return Standing(objects, others=tuple(others)), listed


def _recall(standing: Standing, store: Store, listed: StoredObject) -> None:
    try:
        standing.manifest = manifest_at(store, listed)
    except NotFound:
        return  # gone since it was listed
    except (IntegrityError, *OF_ONE_OBJECT) as error:
        standing.problem = error


def _head(store: Store, entry: FileEntry) -> StoredObject | None:
    """The object with its checksum; None when it went away, or became another, after it was listed."""
    try:
        found = store.head(entry.path)
    except NotFound:
        return None
    return found if found.size == entry.size else None


class _Judge:
    """Files the indexes of `standing`, one at a time. Pure; `written` is when the manifest was, by the store's clock."""

    def __init__(self, standing: Standing, snapshot: Snapshot, proof: Proof, written: float) -> None:
        self._standing, self._snapshot, self._proof, self._written = standing, snapshot, proof, written
        manifest = standing.manifest
        self._rows = manifest.rows() if manifest is not None else {}
        # Whether what is there is what was sent is never in doubt: these matter only to who wants them read back.
        by_hash = manifest is not None and proof is Proof.SHA256
        self._unproven = frozenset(manifest.unproven) if manifest is not None and by_hash else frozenset()
        self._same_revision = (
            manifest is not None
            and manifest.revision == snapshot.revision
            and same_source(manifest.source, snapshot.source)
        )
        self._complete = manifest is not None and manifest.state == COMPLETE
        self._older = (
            frozenset((*manifest.pending, *manifest.former)) if manifest is not None else frozenset()
        )

    def _row(self, entry: FileEntry) -> FileEntry | None:
        """What the manifest says of this very file; None where it speaks of one of another size."""
        row = self._rows.get(entry.path)
        return row if row is not None and row.size == entry.size else None

    def same_source_content(self, one: HubFile) -> bool:
        """Whether the last pull, ended or not, pulled this content to this path."""
        if "://" not in self._snapshot.source:
            return True  # a folder: nobody knows what it held then, and each part is compared
        row = self._row(one.entry)
        if row is None:
            return False
        return _same(row.sha256, one.entry.sha256) or (one.entry.sha256 is None and self._same_revision)

    def file(self, index: int, one: HubFile, found: StoredObject, *, stated: bool) -> None:
        """Files `index`, whose object `found` has the right size; `stated`: with all that the store says of it, its CRC-64 among that."""
        standing = self._standing
        if self._proof is Proof.NONE:
            if self._is_older(one.entry) or self._is_other(one.entry, found, stated=False):
                standing.wanted.append(index)
            else:
                standing.proven[index] = None
            return
        if stated:
            proven, crc = self._proven_by_store(one, found)
        else:
            proven, crc = self._proven_by_time(one, found)
        undigested = one.entry.sha256 is None and one.blob_sha1 is None
        if proven:
            standing.proven[index] = crc
        elif undigested and crc is not None:
            standing.compare[index] = crc
        elif undigested or self._proof is Proof.CRC or self._is_other(one.entry, found, stated=stated):
            standing.wanted.append(index)
        else:
            standing.doubtful.add(index)

    def _proven_by_store(self, one: HubFile, found: StoredObject) -> tuple[bool, int | None]:
        """Whether the object is proven to be the file, and its CRC-64, where the store states that."""
        entry, crc = one.entry, found.crc64
        row = self._row(entry)
        if entry.path in self._unproven:
            return False, crc
        recalled = row is not None and crc is not None and row.crc64 == crc
        if entry.sha256 is not None:
            same = row is not None and _same(row.sha256, entry.sha256)
            # The metadata is what was promised when the upload began, and what became of it only the manifest knows.
            noted = self._proof is Proof.CRC and _same(found.metadata.get("sha256"), entry.sha256)
            return (recalled and same) or noted, crc
        told = one.blob_sha1 is not None and self._same_revision and self._complete
        return recalled and told, crc

    def _proven_by_time(self, one: HubFile, found: StoredObject) -> tuple[bool, int | None]:
        """As `_proven_by_store`, where it states none: what was not touched since the manifest was written is what that says."""
        entry = one.entry
        row = self._row(entry)
        if (
            row is None
            or row.crc64 is None  # nobody has read it: its size was enough for whoever noted it
            or not self._complete
            or entry.path in self._unproven
            or found.modified > self._written
        ):
            return False, None
        if entry.sha256 is not None:
            return _same(row.sha256, entry.sha256), row.crc64
        return one.blob_sha1 is not None and self._same_revision, row.crc64

    def _is_older(self, entry: FileEntry) -> bool:
        """Whether the manifest knows no better of what lies there than that an earlier pull brought it, of whatever revision."""
        if entry.path in self._older:
            return True
        row = self._row(entry)
        return row is not None and not self._same_revision and None in (row.sha256, entry.sha256)

    def _is_other(self, entry: FileEntry, found: StoredObject, *, stated: bool) -> bool:
        """Whether the object is known to have other content, so that nothing need be read: shards of two revisions are often of one size."""
        noted, row = found.metadata.get("sha256", ""), self._row(entry)
        if entry.sha256 is not None and _SHA256.fullmatch(noted) and not _same(noted, entry.sha256):
            return True
        if row is None or row.sha256 is None or entry.sha256 is None or _same(row.sha256, entry.sha256):
            return False
        if stated:
            return row.crc64 is not None and row.crc64 == found.crc64
        known = self._complete or self._proof is Proof.NONE  # who wants no proof is not read back in doubt
        return known and found.modified <= self._written


def _same(one: str | None, other: str | None) -> bool:
    """Whether both are known, and one digest; hubs and tools write them in either case."""
    return one is not None and other is not None and one.lower() == other.lower()
