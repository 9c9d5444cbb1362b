"""The bandwidth limit: a wrapper around a store, one rate for all its readers and uploads together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from stager.core.errors import Interrupted
from stager.core.units import shown
from stager.node.throttle import Throttle
from stager.store.base import BLOCK, Pace, Reader, Sink, Store, StoredObject, Upload, UploadedPart

_SLICE_S = 0.1  # the longest wait before the next look whether the read was interrupted


class Limited:
    """`store` with a limit on the bytes of its objects; what listings and headers take is not counted.

    A block is paid for before it is received or sent, so the rate is not exceeded by more than the tenth of a second that is saved up,
    however many readers there are.
    """

    def __init__(
        self,
        store: Store,
        rate: int,
        pause: Callable[[float], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rate` in bytes per second. `pause` waits for so many seconds; what it raises ends the call."""
        self.adapter = store
        self._throttle = Throttle(rate, clock)
        self._pause = pause

    @property
    def root(self) -> str:
        """That of the store."""
        return self.adapter.root

    def list(self, below: str = "", *, start_after: str = "") -> Iterator[StoredObject]:
        """As `Store.list`."""
        return self.adapter.list(below, start_after=start_after)

    def head(self, name: str) -> StoredObject:
        """As `Store.head`."""
        return self.adapter.head(name)

    def reader(self) -> LimitedReader:
        """As `Store.reader`."""
        return LimitedReader(self.adapter.reader(), self._throttle, self._pause)

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
    ) -> LimitedUpload:
        """As `Store.upload`."""
        upload = self.adapter.upload(
            name,
            size,
            metadata=metadata,
            replace=replace,
            resume=resume,
            discard=discard,
            pace=_paid(pace, self._throttle, self._pause),
        )
        return LimitedUpload(upload, self._throttle, self._pause)

    def delete(self, names: Sequence[str]) -> None:
        """As `Store.delete`."""
        self.adapter.delete(names)


class LimitedReader:
    """A `Reader` that waits before each block."""

    def __init__(self, reader: Reader, throttle: Throttle, pause: Callable[[float], None]) -> None:
        """`throttle` is shared by all readers and uploads of the store."""
        self._reader, self._throttle, self._pause = reader, throttle, pause
        self._lock = threading.Lock()
        self._reading = False
        self._interrupted = False

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
        """As `Reader.read`."""
        with self._lock:
            self._reading, self._interrupted = True, False
        left, paid = length, 0

        def pay() -> None:
            nonlocal paid
            due = min(BLOCK, left) - paid  # the next block may be that large
            if due > 0:
                paid += due
                self._wait(self._throttle.delay(due), name)

        def paced(block: memoryview) -> None:
            nonlocal left, paid
            left -= len(block)
            paid -= len(block)
            sink(block)
            pay()

        try:
            pay()
            return self._reader.read(name, offset, length, paced, etag=etag, into=into)
        finally:
            with self._lock:
                self._reading = False
            self._throttle.refund(paid)

    def _wait(self, seconds: float, name: str) -> None:
        while seconds > 0:
            if self._interrupted:
                raise Interrupted(f"the read of `{shown(name)}` was interrupted")
            self._pause(min(seconds, _SLICE_S))
            seconds -= _SLICE_S

    def interrupt(self) -> None:
        """As `Reader.interrupt`."""
        with self._lock:  # held meanwhile, so that it cannot hit the next read
            if self._reading:
                self._interrupted = True
                self._reader.interrupt()

    def close(self) -> None:
        """As `Reader.close`."""
        self._reader.close()


class LimitedUpload:
    """An `Upload` that waits before each block."""

    def __init__(self, upload: Upload, throttle: Throttle, pause: Callable[[float], None]) -> None:
        """`throttle` is shared by all readers and uploads of the store."""
        self._upload, self._throttle, self._pause = upload, throttle, pause
        self.concurrent = upload.concurrent
        self.part_size = upload.part_size
        self.parts = upload.parts

    def part(
        self, number: int, data: memoryview, *, crc: int | None = None, pace: Pace | None = None
    ) -> UploadedPart:
        """As `Upload.part`."""
        return self._upload.part(number, data, crc=crc, pace=_paid(pace, self._throttle, self._pause))

    def complete(self) -> StoredObject:
        """As `Upload.complete`."""
        return self._upload.complete()

    def abort(self) -> None:
        """As `Upload.abort`."""
        self._upload.abort()


def _paid(pace: Pace | None, throttle: Throttle, pause: Callable[[float], None]) -> Pace:
    """`pace`, and a wait until the block is paid for."""

    def paid(size: int) -> None:
        if pace is not None:
            pace(size)
        if (delay := throttle.delay(size)) > 0:
            pause(delay)

    return paid
