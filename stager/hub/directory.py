"""A folder as a hub: a model that was made here."""

from __future__ import annotations

import os

from stager.core.errors import NotFound, ObjectChanged, from_oserror
from stager.core.manifest import PATH, Manifest
from stager.core.units import shown
from stager.hub.base import Snapshot
from stager.hub.listing import Listed, snapshot
from stager.store.base import Reader
from stager.store.directory import DirectoryStore

_LARGEST = 64 << 20  # bytes of a manifest; one of 100,000 files has 20 MiB


class DirectoryHub:
    """The files below the folder `path`, as they are now. There is no revision, and no sha256 is known before a file was read."""

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
        """As `Hub.snapshot`. Raises `IntegrityError` while the folder's own manifest says that it is being written."""
        try:
            os.listdir(self._path)
        except OSError as exc:
            raise from_oserror(exc, f"`{shown(self._path)}`") from exc
        self._refuse_updating()
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
        return self._store.reader()
