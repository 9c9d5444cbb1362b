"""The destination as the files of a pull come down on it: which uploads go on, and those that cannot be taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import StagerError
from stager.core.events import Note
from stager.core.units import shown

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.lines import Pauses
    from stager.store.base import Pace, Reader, Store, StoredObject, Upload

_TOLD = 5  # uploads that could not be taken back are told one by one up to here: all have the same reason


class Landing:
    """`store`, whose uploads with ``resume`` go on with the one in `begun` (ids by name), and with no other.

    What is read of such an upload counts as movement, and ends with the run. Uploads whose abort fails are told to `reporter` and stay:
    an upload is aborted for a reason, and that is what the run must end with.
    """

    def __init__(self, store: Store, begun: Mapping[str, str], reporter: Reporter, pauses: Pauses) -> None:
        """Nothing is asked yet."""
        self._store, self._begun = store, begun
        self._reporter, self._pauses = reporter, pauses
        self._lock = threading.Lock()
        self._left = 0

    @property
    def root(self) -> str:
        """That of the store."""
        return self._store.root

    def list(self, below: str = "", *, start_after: str = "") -> Iterator[StoredObject]:
        """As `Store.list`."""
        return self._store.list(below, start_after=start_after)

    def head(self, name: str) -> StoredObject:
        """As `Store.head`."""
        return self._store.head(name)

    def reader(self) -> Reader:
        """As `Store.reader`."""
        return self._store.reader()

    def upload(
        self,
        name: str,
        size: int,
        *,
        metadata: Mapping[str, str] | None = None,
        replace: bool = True,
        resume: bool | str = False,
        discard: bool = False,
        pace: Pace | None = None,
    ) -> Upload:
        """As `Store.upload`, with the id and the pace that are known here."""

        def read(size: int) -> None:
            self._pauses.moved()
            if pace is not None:
                pace(size)

        upload = self._store.upload(
            name,
            size,
            metadata=metadata,
            replace=replace,
            resume=resume and self._begun.get(name, False),
            discard=discard,
            pace=read,
        )
        return _Landed(upload, partial(self._tell_left, name))

    def delete(self, names: Sequence[str]) -> None:
        """As `Store.delete`."""
        self._store.delete(names)

    def _tell_left(self, name: str, error: StagerError) -> None:
        with self._lock:
            self._left += 1
            number = self._left
        if number <= _TOLD:
            message = (
                f"the unfinished upload of {shown(name)} could not be aborted and stays: {error.message}"
            )
            hint = "its parts cost storage until somebody aborts it, or a lifecycle rule of the bucket does"
            self._reporter.emit(Note("warning", "upload_left", message, hint))


class _Landed:
    """An `Upload` whose abort never fails."""

    def __init__(self, upload: Upload, failed: Callable[[StagerError], None]) -> None:
        self.concurrent, self.part_size, self.parts = upload.concurrent, upload.part_size, upload.parts
        self.part, self.complete = upload.part, upload.complete
        self._upload, self._failed = upload, failed

    def abort(self) -> None:
        try:
            self._upload.abort()
        except StagerError as error:
            self._failed(error)
