"""Uploads that were begun at a destination and not ended: which of them are an earlier pull's, and what becomes of those."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import StagerError
from stager.core.events import Note
from stager.core.manifest import UPDATING, Begun
from stager.core.units import count, shown
from stager.engine import runtime
from stager.jobs.remains import adapter_of, is_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stager.core.manifest import Manifest
    from stager.engine.report import Reporter
    from stager.hub.base import HubFile, Snapshot
    from stager.jobs.stock import Standing
    from stager.store.base import Store, Unfinished


@dataclass(frozen=True, slots=True)
class Uploads:
    """The unfinished uploads at a destination, as far as a pull can tell whose they are.

    `ours` hold the beginning of files of this pull, one of each; `kept` of other files of the revision; `stale` of what
    the revision does not have. The ids in `strangers` are of uploads of which nobody knows what they hold.
    """

    ours: tuple[Begun, ...] = ()
    kept: tuple[Begun, ...] = ()
    stale: tuple[Begun, ...] = ()
    strangers: frozenset[str] = frozenset()

    def going_on(self, wanted: Iterable[HubFile]) -> Uploads:
        """Where only files in `wanted` are sent: what was begun of others of this pull is of no use any more."""
        paths = {one.entry.path for one in wanted}
        useless = tuple(one for one in self.ours if one.path not in paths)
        ours = tuple(one for one in self.ours if one.path in paths)
        return Uploads(ours, self.kept, (*self.stale, *useless), self.strangers)


def whose(
    listed: Sequence[Unfinished], standing: Standing, snapshot: Snapshot, files: Iterable[HubFile]
) -> Uploads:
    """Sort `listed`, the uploads at the destination of a pull of `files`, which are of `snapshot`.

    An upload does not say what it holds. It is a pull's if the manifest says so, by its id, or if it was begun while the manifest promised
    the file, and was not there before that. Of several such of one path nobody can tell which it is: none, and all are let alone.
    """
    before = standing.manifest
    if before is None:
        return Uploads(strangers=frozenset(one.upload_id for one in listed))
    noted = {(one.path, one.upload_id): one for one in before.begun}
    known = [noted[at] for one in listed if (at := (one.name, one.upload_id)) in noted]
    later = _begun_since(listed, before, known)
    sums = {one.entry.path: one.entry.sha256.lower() for one in snapshot.files if one.entry.sha256}
    paths = {one.entry.path for one in files}
    ours: dict[str, Begun] = {}
    kept, stale = [], []
    for one in (*later, *known):
        same = one.sha256 is not None and sums.get(one.path) == one.sha256.lower()
        if one.path in paths - ours.keys() and (same or (one in later and one.path in standing.resumable)):
            ours[one.path] = one
        elif same and one.path not in paths:
            kept.append(one)
        else:
            stale.append(one)
    sorted_out = {one.upload_id for one in (*later, *known)}
    strangers = frozenset(one.upload_id for one in listed) - sorted_out
    return Uploads(tuple(ours.values()), tuple(kept), tuple(stale), strangers)


def _begun_since(listed: Iterable[Unfinished], before: Manifest, known: Iterable[Begun]) -> list[Begun]:
    """Those of `listed` that were begun since `before` promised a file there, and not yet brought."""
    if before.state != UPDATING:
        return []
    rows, ids = before.rows(), {*before.strangers, *(one.upload_id for one in before.begun)}
    rows = {path: rows[path] for path in before.pending if path in rows}
    for one in known:
        if one.path in rows and one.sha256 is not None and one.sha256 == rows[one.path].sha256:
            del rows[one.path]  # what was begun of that is known: another is not ours
    later = [one for one in listed if one.upload_id not in ids and one.name in rows]
    number = Counter(one.name for one in later)
    return [
        Begun(one.name, one.upload_id, rows[one.name].size, rows[one.name].sha256)
        for one in later
        if number[one.name] == 1
    ]


async def look(store: Store, standing: Standing, snapshot: Snapshot, files: Iterable[HubFile]) -> Uploads:
    """As `whose`, of what is there now. In a folder nothing is `stale`: the next upload of a name takes the place of the last.

    Raises as a listing does.
    """
    listed = await runtime.in_thread("listing unfinished uploads", partial(_unfinished, store))
    found = whose(listed, standing, snapshot, files)
    return Uploads(found.ours, found.kept, (), found.strangers) if is_folder(store) else found


def _unfinished(store: Store) -> list[Unfinished]:
    adapter = adapter_of(store)
    retried = getattr(store, "call", lambda _what, call: call())
    return list(retried("list of unfinished uploads", lambda: list(adapter.unfinished())))


async def end(store: Store, stale: Sequence[Begun], reporter: Reporter, *, mirror: bool) -> tuple[Begun, ...]:
    """With `mirror` abort `stale`. Those that stay, which is told."""
    if mirror and stale:
        label = f"aborting {count(len(stale), 'unfinished upload')}"
        stale = await runtime.in_thread(label, partial(_abort, store, stale))
        why, hint = "could not be aborted and stay", "a lifecycle rule of the bucket ends them"
    else:
        why, hint = "stay: their parts cost storage", "`--mirror` aborts them"
    if stale:
        number = count(len(stale), "unfinished upload")
        what = f"{number} of earlier pulls that nothing goes on with, first of {shown(stale[0].path)}"
        reporter.emit(Note("warning", "uploads_left", f"{what}, {why}", hint))
    return tuple(stale)


def _abort(store: Store, stale: Iterable[Begun]) -> list[Begun]:
    """Those that could not be."""
    left = []
    for one in stale:
        try:
            store.upload(one.path, one.size, resume=one.upload_id).abort()
        except StagerError:
            left.append(one)
    return left
