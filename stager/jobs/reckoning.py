"""Before a fetch: which files the model has, which of them are here and proven, what is left to fetch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core import formats
from stager.core.budget import Policy, admit
from stager.core.errors import IntegrityError, MustRestore, NotFound, StagerError, UsageError, from_oserror
from stager.core.journal import Whole
from stager.core.location import Scheme
from stager.core.manifest import COMPLETE, Manifest, Origin
from stager.core.manifest import PATH as MANIFEST_PATH
from stager.core.model import Defect
from stager.core.placement import place
from stager.core.plan import Candidate, make_plan
from stager.core.select import left_out, selected
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs.downloading import Task
from stager.jobs.options import Verify
from stager.jobs.remote import Ranges
from stager.node.files import opened
from stager.node.parts import Target

if TYPE_CHECKING:
    from stager.core.journal import Journal
    from stager.core.model import Admission, FileEntry
    from stager.jobs.options import FetchOptions
    from stager.jobs.remote import Model
    from stager.node.memory import Gauge
    from stager.store.base import Store, StoredObject

_LOOKERS = 8


def read_manifest(folder: str) -> Manifest | None:
    """The manifest in `folder`; None when there is none that can be read."""
    try:
        with opened(os.path.join(folder, MANIFEST_PATH)) as fd, open(fd, "rb", closefd=False) as file:
            return Manifest.parse(file.read())
    except (OSError, StagerError):
        return None


def origin_of(options: FetchOptions) -> Origin:
    """What a fetch with `options` is asked for, as its manifest says it."""
    source, selection = options.source, options.warm.selection
    location = os.path.realpath(source.prefix) if source.scheme is Scheme.FILE else str(source)
    return Origin(location, selection.include, selection.exclude)


def is_whole(options: FetchOptions) -> bool:
    """Whether the folder has all that `options` ask for, as a fetch, this or an earlier one, has finished it. The store is not asked.

    The manifest must be of the same location and selection, and name files that are all there with their sizes. Blocks.
    """
    manifest, asked = read_manifest(options.folder), origin_of(options)
    if manifest is None or manifest.state != COMPLETE:
        return False
    if manifest.fetched is None or not manifest.fetched.covers(asked):
        return False
    target = Target(options.folder)
    try:
        wanted = [one for one in manifest.files if selected(one.path, asked.include, asked.exclude)]
        found = ((one.size, target.stat(one.path)) for one in wanted)
        return bool(wanted) and all(there is not None and there.size == size for size, there in found)
    except StagerError:
        return False
    finally:
        target.close()


def refuse_mirror(target: Target) -> None:
    """Raise `UsageError` unless the folder is empty or missing, or a fetch has filled it before: ``--mirror`` removes files. Blocks."""
    if not target.exists():
        return
    manifest = read_manifest(target.folder)
    if (manifest is None or manifest.fetched is None) and next(iter(target.names()), None) is not None:
        raise UsageError(
            f"--mirror would remove files from `{shown(target.folder)}`, which no fetch has filled so far",
            hint="fetch once without --mirror first, or choose an empty folder",
        )


@dataclass
class Reckoning:
    """`entries` and `objects` run in parallel: what each file is to be, and the object that holds it.

    `whole` are indexes of files that are here and proven, `tasks` what the others need (`wanted` are their indexes). `names` are all names that
    the source has, selected or not: ``--mirror`` spares them. `trusted` counts those in `whole` that were proven before and not read now.
    """

    model: Model
    entries: list[FileEntry]
    objects: list[StoredObject]
    names: frozenset[str]
    whole: dict[int, Whole] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    trusted: int = 0
    admission: Admission | None = None

    @property
    def total(self) -> int:
        """Bytes of all selected files."""
        return sum(entry.size for entry in self.entries)

    @property
    def present(self) -> int:
        """Bytes of the files that are whole."""
        return sum(self.entries[index].size for index in self.whole)

    @property
    def absent(self) -> int:
        """Bytes of the files that are not."""
        return sum(task.size for task in self.tasks)


def choose(model: Model, options: FetchOptions) -> Reckoning:
    """The files to be had: those of the manifest, else of the listing, as the selection wants them.

    Raises `IntegrityError` for names that cannot be files below one folder and for a model that is provably incomplete,
    `NotFound` when nothing is selected, `MustRestore`, and `UsageError` for ``--verify sha256`` that nothing can satisfy.
    """
    if model.single and options.mirror:
        raise UsageError(
            "--mirror with a single object would remove all other files", hint="name the model's folder"
        )
    promised = {entry.path: entry for entry in model.manifest.files} if model.manifest else None
    objects = [one for one in model.objects if promised is None or one.name in promised]
    placed = place([(_target(model, one.name), one.size) for one in objects])
    if promised is not None and model.manifest is not None:
        _refuse_defects(model.manifest.defects([_as_entry(one) for one in objects]), options)
        placed = tuple(
            replace(entry, sha256=promised[one.name].sha256, crc64=promised[one.name].crc64)
            for entry, one in zip(placed, objects, strict=True)
        )
    selection = options.warm.selection
    kept = [
        (entry, one)
        for entry, one in zip(placed, objects, strict=True)
        if selected(entry.path, selection.include, selection.exclude)
    ]
    if not kept:
        raise NotFound(
            f"no object in `{shown(model.location)}` matches", hint="check --include and --exclude"
        )
    reckoning = Reckoning(
        model,
        [entry for entry, _ in kept],
        [one for _, one in kept],
        frozenset(entry.path for entry in placed),
    )
    _refuse_unprovable(reckoning, options)
    return reckoning


def _target(model: Model, name: str) -> str:
    return name.rsplit("/", 1)[-1] if model.single else name


def _as_entry(one: StoredObject) -> FileEntry:
    (entry,) = place([(one.name, one.size)])
    return entry


def _refuse_defects(defects: tuple[Defect, ...], options: FetchOptions) -> None:
    selection = options.warm.selection
    wanted = [
        defect
        for defect in defects
        if defect.proven
        and left_out(defect.path) is None
        and selected(defect.path, selection.include, selection.exclude)
    ]
    if wanted and not options.warm.allow_incomplete:
        more = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
        raise IntegrityError(
            f"incomplete model: {shown(wanted[0].path)}: {wanted[0].what}{more}",
            hint="pull it again; `--allow-incomplete` fetches it as it is",
        )


def _refuse_unprovable(reckoning: Reckoning, options: FetchOptions) -> None:
    if options.verify is Verify.SHA256:
        lacking = [entry.path for entry in reckoning.entries if entry.sha256 is None]
        if lacking:
            raise UsageError(
                f"--verify sha256: no manifest states the sha256 of `{shown(lacking[0])}`",
                hint="`--verify crc` compares with the store's own CRC-64",
            )


def judge(reckoning: Reckoning, store: Store, options: FetchOptions) -> dict[str, int]:
    """The load order by path, from the names and the small files. Blocks. Raises `IntegrityError` for missing shards."""
    entries = reckoning.entries
    source = Ranges(store, reckoning.objects)
    try:
        whole = not reckoning.model.single and len(entries) == len(reckoning.names)
        model = formats.detect(entries, source.read, whole=whole)
    finally:
        source.close()
    _refuse_defects(model.defects, options)
    return {entries[index].path: rank for rank, index in enumerate(model.order)}


async def compare(
    reckoning: Reckoning, target: Target, journal: Journal, store: Store, *, sha256: bool
) -> None:
    """Fill `whole`, `wanted` and `trusted`: look at what is here. Files without a record are read and held against the store's CRC.

    With `sha256`, files whose record has none are read and held against the manifest's.
    """
    look = partial(_look, reckoning, target, journal, store, sha256=sha256)
    answers = await runtime.in_threads(
        lambda index: f"looking at {shown(reckoning.entries[index].path)}",
        look,
        range(len(reckoning.entries)),
        _LOOKERS,
    )
    for index, (whole, was_read) in enumerate(answers):
        if whole is None:
            reckoning.wanted.append(index)
        else:
            reckoning.whole[index] = whole
            reckoning.trusted += not was_read
    _refuse_archived(reckoning, store)


def _look(
    reckoning: Reckoning, target: Target, journal: Journal, store: Store, index: int, *, sha256: bool
) -> tuple[Whole | None, bool]:
    """The record of the file when it is here and provably the object, else None; and whether it was read for that."""
    entry, one = reckoning.entries[index], reckoning.objects[index]
    identity = target.stat(entry.path)
    if identity is None or identity.size != one.size:
        return None, False
    known, was_read = journal.whole.get(entry.path), False
    now = (identity.size, identity.inode, identity.mtime_ns)
    if known is not None and (known.size, known.inode, known.mtime_ns) != now:
        known = None
    crc, sha = (known.crc64, known.sha256) if known is not None else (None, None)
    if crc is None or known is None or known.etag != one.etag:
        stated = entry.crc64 if entry.crc64 is not None else store.head(one.name).crc64
        if stated is None:
            return None, False
        if crc is None:
            crc, was_read = target.crc_of(entry.path, lambda _count: None), True
        if crc != stated:
            return None, was_read
    if sha256 and entry.sha256 is not None:
        if sha is None:
            sha, was_read = _sha256_of(os.path.join(target.folder, entry.path)), True
        if sha != entry.sha256.lower():
            return None, was_read
    whole = Whole(entry.path, one.size, one.etag, crc, identity.inode, identity.mtime_ns, sha)
    return whole, was_read


def _sha256_of(path: str) -> str:
    """The sha256 of the file, in lower case, read whole. Raises `StagerError`."""
    try:
        with opened(path) as fd, open(fd, "rb", buffering=0, closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise from_oserror(exc, f"`{shown(path)}`") from exc


def _refuse_archived(reckoning: Reckoning, store: Store) -> None:
    """Raise `MustRestore` when an object that is needed cannot be read yet: better now than after hours."""
    objects = [reckoning.objects[index] for index in reckoning.wanted]
    suspects = [one for one in objects if "archive" in one.storage_class.lower()]
    source = Ranges(store, suspects)
    try:
        for at, one in enumerate(suspects):
            readable = store.head(one.name).readable
            try:
                if readable is False:
                    raise MustRestore("")
                if readable is None:  # a bucket may let archived objects be read directly: only trying tells
                    source.read(at, 0, 1)
            except MustRestore:
                others = f" and {len(suspects) - 1} more of its kind" if len(suspects) > 1 else ""
                raise MustRestore(
                    f"`{shown(one.name)}`{others}: class {one.storage_class}, must be restored before it can be read",
                    hint=f"`ossutil restore {shown(reckoning.model.address(one.name))}`, then fetch again once it is restored",
                ) from None
    finally:
        source.close()


def make_tasks(
    reckoning: Reckoning, rank: dict[str, int], resident: dict[int, int], options: FetchOptions, gauge: Gauge
) -> None:
    """Fill `admission` and `tasks`: what memory has room for stays in the cache, in load order; the rest is dropped as it goes.

    `resident` are the bytes of files that are here and in the cache, by index.
    """
    policy = Policy(
        reserve=options.warm.memory.reserve,
        budget=options.warm.memory.budget,
        footprint=64 * 2**20 + options.lanes * 2**20,
        engine_shares_own=options.warm.memory.engine_shares_own,
    )
    candidates = []
    for index, entry in enumerate(reckoning.entries):
        missing = entry.size - resident.get(index, 0)
        holes = ((0, missing),) if missing else ()
        weight = formats.is_weight(entry.path)
        candidates.append(
            Candidate(index, entry.path, entry.size, holes, rank.get(entry.path, index), weight)
        )
    need = sum(candidate.need for candidate in candidates)
    reckoning.admission = admit(gauge.read(), policy, need, sum(resident.values()))
    chosen = (
        frozenset(make_plan(candidates, reckoning.admission.granted).chosen) if options.cache else frozenset()
    )
    reckoning.tasks = [
        Task(entry.path, one.name, entry.size, one.etag, keep=index in chosen)
        for index in reckoning.wanted
        for entry, one in [(reckoning.entries[index], reckoning.objects[index])]
    ]
