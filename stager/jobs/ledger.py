"""What a pull leaves beside the model: the manifest, which says updating first, then what is finished, and complete last."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from stager import __version__
from stager.core.manifest import COMPLETE, PATH, UPDATING, Manifest
from stager.core.model import FileEntry
from stager.core.source import same_source

if TYPE_CHECKING:
    from stager.core.manifest import Begun
    from stager.hub.base import HubFile, Snapshot
    from stager.jobs.stock import Standing
    from stager.store.base import Store


def put(store: Store, name: str, content: bytes) -> None:
    """Write a small object. Blocks. Raises as the store does."""
    upload = store.upload(name, len(content))
    if content:
        upload.part(1, memoryview(content))
    upload.complete()


class Ledger:
    """Writes into `store` what a pull of `files`, of `snapshot`, makes of what is there. All methods but `entry` block."""

    def __init__(
        self, store: Store, snapshot: Snapshot, files: Iterable[HubFile], standing: Standing
    ) -> None:
        """`standing` is what was there before the pull."""
        self._store = store
        self._snapshot = snapshot
        self._files = {one.entry.path: one for one in files}
        self._before = standing.manifest
        self._begun: Manifest | None = None  # the last that said updating
        self._promised: dict[str, FileEntry] = {}
        self._doubts: frozenset[str] = frozenset()
        self._awaited: frozenset[str] = frozenset()  # paths that are promised and were not there
        self._concluded = False
        self._lock = threading.Lock()  # held while the manifest is written: nothing may come after the last
        self._rows = standing.manifest.rows() if standing.manifest is not None else {}
        self._kept = self._rows_to_keep(standing)
        self._elsewhere = self._pending_elsewhere(standing)
        self._former = standing.obsolete
        self._uploads = standing.manifest.begun if standing.manifest is not None else ()

    def _rows_to_keep(self, standing: Standing) -> dict[str, FileEntry]:
        """What earlier pulls with other selections brought, is still there, and is what this revision has."""
        before, snapshot = standing.manifest, self._snapshot
        if before is None or not same_source(before.source, snapshot.source):
            return {}
        kept = {}
        for file in snapshot.files:
            path = file.entry.path
            row, there = self._rows.get(path), standing.objects.get(path)
            if path in self._files or row is None or there is None or there.size != row.size:
                continue
            hashed = file.entry.sha256 is not None and row.sha256 == file.entry.sha256.lower()
            if not hashed and before.revision != snapshot.revision:
                continue
            if path not in before.pending:
                kept[path] = row
        return kept

    def _pending_elsewhere(self, standing: Standing) -> frozenset[str]:
        """Files of this revision that are not pulled now, where something lies of which the manifest that is there knows no better than that it is older."""
        before = standing.manifest
        if before is None:
            return frozenset()
        others = {one.entry.path for one in self._snapshot.files} - self._files.keys() - self._kept.keys()
        return before.named() & others & standing.objects.keys()

    def entry(self, file: HubFile, crc64: int | None) -> FileEntry:
        """The row of a file that was there before, with what is known of it now."""
        row, sha256 = self._rows.get(file.entry.path), file.entry.sha256
        if row is not None and row.size != file.entry.size:
            row = None
        if row is not None and sha256 is not None and (row.sha256 or "").lower() != sha256.lower():
            row = None  # other content of that size: its CRC beside the new digest would pass the old object off as the new
        crc = crc64 if crc64 is not None else (row.crc64 if row is not None else None)
        if sha256 is None and row is not None and row.crc64 == crc:
            sha256 = row.sha256
        return FileEntry(file.entry.path, file.entry.size, sha256.lower() if sha256 else None, crc)

    def unproven(self, rows: Mapping[str, FileEntry]) -> list[str]:
        """Of `rows`, of files that are there, the paths of those whose content the manifest that was there does not know to be proven."""
        doubts = frozenset(self._before.unproven) if self._before is not None else frozenset()
        return [path for path, row in rows.items() if path in doubts or self._rows.get(path) != row]

    def remember(self, uploads: Iterable[Begun]) -> None:
        """From now on write that these uploads are unfinished, and were begun by pulls: until this those that were known."""
        self._uploads = tuple(sorted(uploads, key=lambda one: (one.path, one.upload_id)))

    def begin(
        self, entries: Mapping[str, FileEntry], unproven: Iterable[str], strangers: Iterable[str] = ()
    ) -> None:
        """Say that the model is being changed: from now on nobody takes it for one.

        `entries` are the files that are there, by path; the others are promised, pending, and their rows have no CRC before they are there. `unproven`
        paths are to be read back before they count; `strangers` are ids of unfinished uploads that are nothing of this pull's.
        """
        promised = {path: _promise(file) for path, file in self._files.items()}
        with self._lock:
            self._promised, self._doubts = {**promised, **entries}, frozenset(unproven)
            self._awaited = frozenset(self._files.keys() - entries.keys())
            manifest = self._manifest(UPDATING, self._promised, self._doubts, self._awaited)
            self._begun = replace(manifest, strangers=tuple(sorted(strangers)))
            self._write(self._begun)

    def note(self, finished: Mapping[str, FileEntry], proven: Collection[str]) -> bool:
        """Say which files are there since `begin`, and which of them are proven; whether that had to be written.

        Nothing before `begin`, and nothing after `conclude`, whoever was on the way with it.
        """
        with self._lock:
            if self._begun is None or self._concluded:
                return False
            rows, doubts = {**self._promised, **finished}, self._doubts - frozenset(proven)
            manifest = self._manifest(UPDATING, rows, doubts, self._awaited - finished.keys())
            manifest = replace(manifest, strangers=self._begun.strangers)
            if manifest == self._begun:
                return False
            self._write(manifest)
            self._begun = manifest
            return True

    def conclude(
        self, entries: Mapping[str, FileEntry], unproven: Iterable[str], removed: Collection[str] = ()
    ) -> bool:
        """Say that the model is whole; `entries` are all files of the pull, by path, `removed` what is gone. Whether that had to be written."""
        manifest = self._manifest(COMPLETE, entries, unproven)
        manifest = replace(manifest, former=tuple(name for name in self._former if name not in removed))
        with self._lock:
            self._concluded = True
            if manifest == self._before and self._begun is None:
                return False
            self._write(manifest)
            return True

    def is_current(self, entries: Mapping[str, FileEntry], unproven: Iterable[str]) -> bool:
        """Whether the manifest that is there says just that."""
        return self._manifest(COMPLETE, entries, unproven) == self._before

    def _manifest(
        self,
        state: str,
        entries: Mapping[str, FileEntry],
        unproven: Iterable[str],
        awaited: Iterable[str] = (),
    ) -> Manifest:
        all_of_them = {**self._kept, **entries}
        carried = self._before.unproven if self._before is not None else ()
        doubts = {*unproven, *(path for path in carried if path in self._kept)}
        return Manifest(
            self._snapshot.source,
            self._snapshot.revision,
            state,
            tuple(all_of_them[path] for path in sorted(all_of_them)),
            unproven=tuple(sorted(doubts)),
            pending=tuple(sorted({*awaited, *self._elsewhere})),
            former=self._former,
            begun=self._uploads,
        )

    def _write(self, manifest: Manifest) -> None:
        put(self._store, PATH, manifest.dump(time=time.time(), version=__version__))


def _promise(file: HubFile) -> FileEntry:
    """The row of a file that is not there yet."""
    entry = file.entry
    return FileEntry(entry.path, entry.size, entry.sha256.lower() if entry.sha256 else None)
