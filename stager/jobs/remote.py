"""A model in a store: its objects, its manifest, and whether it is whole. What ``ls``, ``check`` and ``fetch`` have in common."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from stager.core import formats
from stager.core.errors import (
    AccessDenied,
    IntegrityError,
    LocalIOError,
    NotFound,
    ObjectChanged,
    StagerError,
    UsageError,
)
from stager.core.location import Location, Scheme
from stager.core.manifest import COMPLETE, PATH, Manifest
from stager.core.model import Defect, FileEntry, ModelFormat, Skipped
from stager.core.select import left_out
from stager.core.units import count, format_size, shown
from stager.jobs.retrying import again
from stager.store.opening import open_store

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.hub.base import Hub
    from stager.store.base import Reader, Store, StoredObject
    from stager.store.opening import StoreOptions

_LIMIT = 64 << 20  # bytes of a manifest; one of 100,000 files has about 15 MB
_OWN = ".stager/"
_NEIGHBOURS = 20  # folders beside a prefix where nothing is, looked at for the hint: a request each
OF_ONE_OBJECT = (AccessDenied, NotFound, ObjectChanged, LocalIOError)
"""Errors that say something of one object, and nothing of the store as a whole."""

_LINES = 20
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Model:
    """What lies at a location. `objects` are the model's files, ascending by name; names are relative to the store's root.

    `skipped` are objects that stager never takes, without its own folder beside the model. `single`: the location is one object, and the store's
    root the folder around it. `manifest` is None where there is none, and where `manifest_problem` says why it cannot be used.
    `location` is what the user named; `address` gives the full name of an object.
    """

    location: str
    root: str
    objects: list[StoredObject]
    skipped: list[Skipped] = field(default_factory=list)
    manifest: Manifest | None = None
    manifest_problem: StagerError | None = None
    single: bool = False

    @property
    def total(self) -> int:
        """Bytes of all objects of the model."""
        return sum(one.size for one in self.objects)

    @property
    def states_checksums(self) -> bool:
        """Whether the store itself states a CRC-64 for each object, in answers but not in listings."""
        return states_checksums(self.root)

    def target(self, name: str) -> str:
        """The path, below the folder it is fetched into, of the object `name`."""
        return name.rpartition("/")[2] if self.single else name

    def address(self, name: str) -> str:
        """The full name of the object `name`, as other tools take it."""
        return f"{self.root.rstrip('/')}/{name}"


def states_checksums(root: str) -> bool:
    """Whether the store with this root states a CRC-64 for each object."""
    return root.startswith(f"{Scheme.OSS.value}://")


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether a model is whole: `answer` is ``yes``, ``no`` or ``unknown``, `lines` say it to people, the reason first.

    `formats` are the names of the formats found. Every defect is in `defects`; only proven ones make a ``no``.
    """

    answer: str
    lines: tuple[str, ...]
    formats: tuple[str, ...]
    defects: tuple[Defect, ...]


def opener(options: StoreOptions, reporter: Reporter) -> Callable[[Location], Store]:
    """Opens stores for a query: someone waits for the answer, so what fails is tried again for a few seconds only, and told."""
    hasty = replace(options, give_up_after=min(options.give_up_after, _PATIENCE_S))

    told: set[str] = set()

    def tell(what: str, error: Exception) -> None:
        if str(error) not in told:
            told.add(str(error))
            reporter.emit(again(what, error))

    return lambda location: open_store(location, hasty, on_retry=tell)


def open_model(
    location: Location, open_at: Callable[[Location], Store], *, refuse: bool = True
) -> tuple[Store, Model]:
    """The store and the model at `location`; of a single object, the store is the folder around it. Blocks.

    `open_at` gives a store. Raises as `survey`, with the names nearby in the hint when nothing is there.
    """
    store = open_at(location)
    try:
        return store, survey(store, location=str(location), refuse=refuse)
    except NotFound as error:
        try:
            return _single(location, open_at, refuse=refuse)
        except OF_ONE_OBJECT:
            error.hint = _near(location, open_at) or error.hint
            raise error from None


def survey(store: Store, *, location: str = "", refuse: bool = True) -> Model:
    """Everything below the store's root, and the manifest. Blocks: one request for every 1,000 objects, and one for the manifest.

    Raises `NotFound` when nothing is there. With `refuse`, raises `IntegrityError` for a manifest that is broken or says that the model is
    being updated, and what keeps it from being read; without, these are in `Model.manifest_problem`, and in the manifest.
    """
    objects, skipped, listed = [], [], None
    for one in store.list():
        if one.name == PATH:
            listed = one
        elif one.name.startswith(_OWN):
            continue
        elif (reason := left_out(one.name)) is not None:
            skipped.append(Skipped(one.name, one.size, reason))
        else:
            objects.append(one)
    if not objects and listed is None:
        but = f" but {count(len(skipped), 'name')} that stager leaves out" if skipped else ""
        raise NotFound(
            f"nothing in `{shown(location or store.root)}`{but}", hint="is this the model's folder?"
        )
    objects.sort(key=lambda one: one.name)
    model = Model(location or store.root, store.root, objects, skipped)
    if listed is None:
        return model
    try:
        manifest = manifest_at(store, listed)
        if refuse:
            manifest.refuse_updating(shown(model.location))
    except (IntegrityError, *OF_ONE_OBJECT) as error:
        if refuse:
            raise
        return replace(model, manifest_problem=error)
    return replace(model, manifest=manifest)


def manifest_at(store: Store, listed: StoredObject) -> Manifest:
    """The manifest that was `listed`, read as one version: a writer may replace it at any moment. Blocks. Raises `IntegrityError` for a broken one."""
    try:
        return Manifest.parse(_whole(store, listed))
    except ObjectChanged:
        return Manifest.parse(_whole(store, store.head(PATH)))


def _whole(store: Store, one: StoredObject) -> bytes:
    if one.size > _LIMIT:
        raise IntegrityError(
            f"`{PATH}` has {format_size(one.size)}: no manifest is that long", hint="pull the model again"
        )
    content = bytearray()
    reader = store.reader()
    try:
        reader.read(one.name, 0, one.size, content.extend, etag=one.etag)
    finally:
        reader.close()
    return bytes(content)


def _single(location: Location, open_at: Callable[[Location], Store], *, refuse: bool) -> tuple[Store, Model]:
    """The model that is one object. Raises `NotFound` when there is none, `IntegrityError` when the model around it is being updated."""
    parent = location.parent
    if parent is None:
        raise NotFound(f"`{shown(str(location))}` is no object")
    store = open_at(parent)
    one = store.head(location.name)
    if refuse:
        with suppress(NotFound):
            manifest_at(store, store.head(PATH)).refuse_updating(shown(str(parent)))
    return store, Model(str(location), store.root, [one], single=True)


def _near(location: Location, open_at: Callable[[Location], Store]) -> str:
    """A hint with names like the one that is not there, in the nearest folder that has any; empty when they cannot be listed."""
    missing, parent = location.name, location.parent
    while parent is not None:
        try:
            if location.scheme is Scheme.FILE:
                names = sorted(os.listdir(parent.prefix))
            else:
                names = _folders(open_at(parent), missing)
        except FileNotFoundError:
            names = []
        except (StagerError, OSError):
            return ""
        if close := difflib.get_close_matches(missing, names, n=3, cutoff=0.5) or names[:3]:
            return f"in `{shown(str(parent))}` there is {', '.join(f'`{shown(name)}`' for name in close)}"
        missing, parent = parent.name, parent.parent
    return ""


def _folders(store: Store, name: str) -> list[str]:
    """Names one level below the store's root, those that begin with `name` first: a few, not all of a large bucket."""
    found = dict.fromkeys(one.name.split("/")[0] for one in islice(store.list(name), 1000))
    after = ""
    for _ in range(_NEIGHBOURS):
        one = next(store.list(start_after=after), None)
        if one is None:
            break
        first = one.name.split("/")[0]
        after = f"{first}/\U0010ffff" if "/" in one.name else first  # nothing below it sorts later
        found[first] = None
    return list(found)


# Whether it is whole


class Ranges:
    """Small reads of a model's objects, from any thread; each thread has a connection of its own."""

    def __init__(self, store: Store | Hub, objects: Sequence[StoredObject]) -> None:
        self._store = store
        self._objects = objects
        self._local = threading.local()
        self._readers: list[Reader] = []

    def read(self, index: int, offset: int, length: int) -> bytes:
        """At most `length` bytes of object `index`, of the version that was listed. Raises as `Reader.read`."""
        one = self._objects[index]
        length = max(0, min(length, one.size - offset))
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = self._store.reader()
            self._readers.append(reader)
        content = bytearray()
        reader.read(one.name, offset, length, content.extend, etag=one.etag)
        return bytes(content)

    def close(self) -> None:
        """Gives the connections back; a read that somebody left behind ends."""
        for reader in self._readers:
            reader.interrupt()
            reader.close()


@contextmanager
def ranges(store: Store, model: Model) -> Iterator[formats.Read]:
    """A reader of the model's objects by index, for `completeness`."""
    source = Ranges(store, model.objects)
    try:
        yield source.read
    finally:
        source.close()


Header: TypeAlias = tuple[Defect, ...] | StagerError
"""What a weight's header says is wrong with it, or why it could not be read."""

Wanted: TypeAlias = Callable[[str], bool]
"""Whether the file of that path counts."""


def header(read: formats.Read, weight: tuple[int, FileEntry]) -> Header:
    """What the header of one of `weights` says, as far as it could be read. Raises `RemoteError` when the store is in trouble. Blocks."""
    index, entry = weight
    try:
        return formats.check_weight(entry, index, read)
    except OF_ONE_OBJECT as error:
        return error


def completeness(
    model: Model,
    read: formats.Read,
    headers: Sequence[Header] | None = None,
    wanted: Wanted = lambda _path: True,
) -> Completeness:
    """Whether `model` is whole: by its manifest's sizes, by the names of its files, and by its indexes, which `read` gives. Blocks.

    `headers` are what the weights' own headers say, where somebody has read them. Only defects of files that are `wanted`, by name, count.
    Without a manifest, nothing but a missing or damaged file makes it a ``no``. Raises `RemoteError` when the store is in trouble.
    """
    places, entries = _entries(model)
    unread = [one for one in headers or () if isinstance(one, StagerError)]
    found = _detect(places, entries, read, unread, whole=not model.single)
    defects = list(found.defects)
    if model.manifest is not None and not model.single:
        defects += [one for one in model.manifest.defects(entries) if left_out(one.path) is None]
    defects += [defect for one in headers or () if not isinstance(one, StagerError) for defect in one]
    defects = [one if wanted(one.path) else replace(one, proven=False) for one in dict.fromkeys(defects)]
    answer, lines = _judged(model, found.names, defects, unread, headers=headers is not None)
    return Completeness(answer, tuple(lines), found.names, tuple(defects))


def weights(model: Model) -> list[tuple[int, FileEntry]]:
    """The weights of `model` with their indexes: those of which `stager.core.formats.check_weight` can say more."""
    places, entries = _entries(model)
    pairs = zip(places, entries, strict=True)
    return [(place, entry) for place, entry in pairs if formats.is_weight(entry.path)]


def _entries(model: Model) -> tuple[list[int], list[FileEntry]]:
    """The objects that can be files, and their indexes in `model.objects`."""
    places, entries = [], []
    for index, one in enumerate(model.objects):
        try:
            entries.append(FileEntry(one.name, one.size))
        except UsageError:  # a name that leaves its folder: whoever writes files refuses it
            continue
        places.append(index)
    return places, entries


def _detect(
    places: list[int], entries: list[FileEntry], read: formats.Read, unread: list[StagerError], *, whole: bool
) -> ModelFormat:
    """`formats.detect` without the indexes that cannot be read: they say nothing of their shards. Errors go to `unread`."""
    kept = list(range(len(entries)))
    while True:
        asked = [-1]

        def read_kept(
            index: int, offset: int, length: int, kept: list[int] = kept, asked: list[int] = asked
        ) -> bytes:
            asked[0] = kept[index]
            return read(places[kept[index]], offset, length)

        try:
            return formats.detect(
                [entries[at] for at in kept], read_kept, whole=whole and len(kept) == len(entries)
            )
        except OF_ONE_OBJECT as error:
            unread.append(error)
            kept = [at for at in kept if at != asked[0]]


def _judged(
    model: Model, names: Sequence[str], defects: list[Defect], unread: list[StagerError], *, headers: bool
) -> tuple[str, list[str]]:
    lines = [f"{shown(defect.path)}: {defect.what}" for defect in defects[:_LINES]]
    if len(defects) > _LINES:
        lines.append(f"and {len(defects) - _LINES} more")
    if any(defect.proven for defect in defects):
        return "no", ["no", *lines]
    if model.manifest_problem is not None:
        return "unknown", [f"unknown: {model.manifest_problem.message}", *lines]
    if model.manifest is not None and model.manifest.state != COMPLETE:
        return "no", [f"no: a writer is at it, its manifest says `{shown(model.manifest.state)}`", *lines]
    if unread:
        told = [error.message for error in unread[:_LINES]]
        return "unknown", ["unknown: not everything could be read", *told, *lines]
    if defects:
        return "unknown", ["nothing proves it incomplete, but", *lines]
    judges = "names, indexes and headers" if headers else "names and indexes"
    if model.manifest is not None:
        return "yes", [f"yes, by manifest, {judges}"]
    if "pytorch" in names:
        return "unknown", ["nothing speaks against it, but a pickle has no header to judge; no manifest"]
    if all(name == "unknown" for name in names):
        return "unknown", ["unknown: no manifest, and no format that could tell"]
    return "yes", [f"yes, by {judges}; no manifest"]
