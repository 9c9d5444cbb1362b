"""A folder as a hub: a model that was made here."""

from __future__ import annotations

import os
from collections.abc import Iterator

from stager.core.errors import IntegrityError, NotFound, ObjectChanged, from_oserror
from stager.core.manifest import PATH, Manifest
from stager.core.select import left_out
from stager.core.units import shown
from stager.hub.base import Snapshot
from stager.hub.listing import Listed, snapshot
from stager.store.base import Reader, Sink, StoredObject
from stager.store.directory import DirectoryReader, DirectoryStore

_LARGEST = 64 << 20  # bytes of a manifest; one of 100,000 files has 20 MiB


class DirectoryHub:
    """The files below the folder `path`, as they are now. There is no revision, and no sha256 is known before a file was read.

    Links are followed, those to folders too, but never into a folder from within it.
    """

    def __init__(self, path: str) -> None:
        """``~`` is the user's home."""
        self._path = os.path.expanduser(path)
        self._source = os.path.realpath(self._path)  # one model, however its path is written
        self._store = DirectoryStore(self._path)

    @property
    def source(self) -> str:
        """The folder's real path."""
        return self._source

    @property
    def credentials(self) -> str:
        """None are needed."""
        return ""

    def snapshot(self) -> Snapshot:
        """As `Hub.snapshot`. Raises `IntegrityError` for a link that leads nowhere, and while the folder's own manifest says that it is being written."""
        try:
            os.listdir(self._path)
        except OSError as exc:
            raise from_oserror(exc, f"`{shown(self._path)}`") from exc
        self._refuse_updating()
        for name in _leading_nowhere(self._path):
            raise IntegrityError(
                f"`{shown(name)}` in `{shown(self._path)}` is a link that leads nowhere: the model lacks a file",
                hint="remove the link, or put in place what it should lead to",
            )
        rows = (Listed(one.name, one.size, one.etag) for one in self._store.list())
        found = snapshot(self.source, "", rows)
        self._refuse_updating()
        return found

    def _refuse_updating(self) -> None:
        try:
            stored = self._store.head(PATH)
            raw = bytearray()
            self._store.reader().read(PATH, 0, min(stored.size, _LARGEST), raw.extend, etag=stored.etag)
        except NotFound:
            return
        except ObjectChanged:
            raise ObjectChanged(
                f"`{shown(self._path)}` is being updated: its manifest changed just now"
            ) from None
        Manifest.parse(bytes(raw)).refuse_updating(shown(self._path))

    def reader(self) -> Reader:
        """As `Hub.reader`."""
        return _Reader(self._store)


class _Reader(DirectoryReader):
    """Nobody asked for a version of a folder: it is what it was when the pull listed it."""

    def read(
        self,
        name: str,
        offset: int,
        length: int,
        sink: Sink,
        *,
        etag: str | None = None,
        into: memoryview | None = None,
    ) -> StoredObject:
        try:
            return super().read(name, offset, length, sink, etag=etag, into=into)
        except ObjectChanged as exc:
            raise ObjectChanged(
                f"`{shown(os.path.join(self._store.root, name))}` was changed while it was being pulled",
                hint="run it again once nobody writes there any more",
            ) from exc


def _leading_nowhere(root: str) -> Iterator[str]:
    """Names of links that lead to nothing, or to themselves. A folder is looked at once, however many links lead to it."""
    seen, waiting = set(), [""]
    while waiting:
        prefix = waiting.pop()
        folder = os.path.join(root, prefix)
        try:
            found = os.stat(folder)
            names = os.listdir(folder) if (me := (found.st_dev, found.st_ino)) not in seen else []
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            raise from_oserror(exc, f"`{shown(folder)}`") from exc
        seen.add(me)
        for name in sorted(names, reverse=True):
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                waiting.append(f"{prefix}{name}/")
            elif left_out(prefix + name) is None and os.path.islink(path) and not os.path.exists(path):
                yield prefix + name
