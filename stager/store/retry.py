"""Retry: what failed and may pass is made again. A wrapper around a store, and what others need to wrap something else."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

from stager.core.checksum import combine
from stager.core.errors import (
    CannotServe,
    CredentialsExpired,
    Interrupted,
    NotFound,
    ObjectChanged,
    ObjectExists,
    RemoteError,
    StagerError,
)
from stager.core.units import shown
from stager.store.base import Pace, Reader, Sink, Store, StoredObject, Upload, UploadedPart
from stager.store.limit import Limited

_FIRST_S = 0.1  # the longest wait before the second attempt; it doubles with each further one
_LONGEST_S = 10.0
_EXPIRED = 3  # attempts in a row that may find the credentials expired: fresh ones come at once or not at all
_SLICE_S = 0.1  # the longest wait before the next look whether the read was interrupted

T = TypeVar("T")
OnRetry: TypeAlias = Callable[[str, Exception], None]


class Retries:
    """Calls, each made again while it fails with `RemoteError`, but for `ObjectChanged`, `CannotServe` and `Interrupted`.

    The waits double from 0.1 s to 10 s, of which a random share is waited (so that many clients do not come back together), and are
    never shorter than the other side asked for. A call is given up, with its last error, when nothing moved for `give_up_after`
    seconds. Any thread may use it.
    """

    def __init__(
        self,
        *,
        give_up_after: float,
        pause: Callable[[float], None] = time.sleep,
        on_retry: OnRetry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pause` waits for so many seconds; what it raises ends the call. `on_retry` is told what is made again, and why."""
        self._give_up_after = give_up_after
        self._pause = pause
        self._on_retry = on_retry
        self._clock = clock

    def call(self, what: str, call: Callable[[], T]) -> T:
        """What `call` gives, by as many attempts as it takes; `what` names it in messages (``list of uploads``)."""
        patience = self.patience(what)
        while True:
            try:
                return call()
            except RemoteError as exc:
                patience.after(exc)

    def patience(self, what: str) -> Patience:
        """The patience for one call that can resume."""
        return Patience(what, self._give_up_after, self._pause, self._on_retry, self._clock)


class Retrying:
    """`store`, each call made again as `Retries` says.

    What counts as movement is a byte that was not there before, or a name of a listing. What has arrived is not asked for again.

    `adapter` is the store below all wrappers.
    """

    def __init__(
        self,
        store: Store,
        *,
        give_up_after: float,
        pause: Callable[[float], None] = time.sleep,
        on_retry: OnRetry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The last four as for `Retries`."""
        self.adapter: Store = store.adapter if isinstance(store, Limited) else store
        self._store = store
        self.retries = Retries(give_up_after=give_up_after, pause=pause, on_retry=on_retry, clock=clock)
        self.call, self.patience = self.retries.call, self.retries.patience

    @property
    def root(self) -> str:
        """That of the store."""
        return self._store.root

    def list(self, below: str = "", *, start_after: str = "") -> Iterator[StoredObject]:
        """As `Store.list`; goes on after the last name that was given."""
        patience = self.patience(f"list of `{shown(self.root)}`")
        found: Iterator[StoredObject] | None = None
        while True:
            try:
                if found is None:
                    found = iter(self._store.list(below, start_after=start_after))
                one = next(found, None)
            except RemoteError as exc:
                patience.after(exc)
                found = None
                continue
            if one is None:
                return
            start_after = one.name
            yield one
            patience.moved()

    def head(self, name: str) -> StoredObject:
        """As `Store.head`."""
        return self.call(f"head of `{shown(name)}`", lambda: self._store.head(name))

    def reader(self) -> RetryingReader:
        """As `Store.reader`."""
        return RetryingReader(self.retries, self._store.reader(), self.head)

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
    ) -> RetryingUpload:
        """As `Store.upload`. An answer that is lost leaves an unfinished upload behind at the store."""

        def begin() -> Upload:
            return self._store.upload(
                name, size, metadata=metadata, replace=replace, resume=resume, discard=discard, pace=pace
            )

        return RetryingUpload(self, self.call(f"upload of `{shown(name)}`", begin), name, size)

    def delete(self, names: Sequence[str]) -> None:
        """As `Store.delete`."""
        self.call("delete", lambda: self._store.delete(names))


class Patience:
    """How one call has fared: what its failures have in common is that they are counted here."""

    def __init__(
        self,
        what: str,
        give_up_after: float,
        pause: Callable[[float], None],
        on_retry: OnRetry | None,
        clock: Callable[[], float],
    ) -> None:
        """The call `what` begins now."""
        self._what, self._give_up_after = what, give_up_after
        self._pause, self._on_retry, self._clock = pause, on_retry, clock
        self._failures = self._expired = 0
        self._since = clock()

    def moved(self) -> None:
        """Says that the call has come further than ever before: its patience is new."""
        self._failures = self._expired = 0
        self._since = self._clock()

    def after(self, exc: RemoteError, check: Callable[[], None] = lambda: None) -> None:
        """Waits before the next attempt, or raises `exc` when there shall be none. `check` is called often and may raise."""
        if isinstance(exc, (ObjectChanged, CannotServe, Interrupted)):
            raise exc
        self._failures += 1
        self._expired = self._expired + 1 if isinstance(exc, CredentialsExpired) else 0
        longest = min(_LONGEST_S, _FIRST_S * 2.0 ** min(self._failures - 1, 30))
        left = self._since + self._give_up_after - self._clock()
        if self._failures == 1 and self._give_up_after > 0:
            left = max(left, longest)  # a low rate may have eaten all of the time before anything failed
        asked = exc.retry_after or 0.0
        if left <= 0 or asked > left or self._expired >= _EXPIRED:
            raise exc
        wait = min(asked + random.uniform(0, longest), left)  # noqa: S311  # no secret
        if self._on_retry is not None:
            self._on_retry(self._what, exc)
        check()
        while wait > 0:
            self._pause(min(wait, _SLICE_S))
            wait -= _SLICE_S
            check()


class RetryingReader:
    """A `Reader` that goes on at the first byte not yet given, on a fresh connection.

    All bytes of one read are of one version: without an etag in the call the object is looked at first.
    """

    def __init__(self, retries: Retries, reader: Reader, head: Callable[[str], StoredObject]) -> None:
        """`reader` is closed with this one. `head` looks at an object."""
        self._retries, self._reader, self._head = retries, reader, head
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
        try:
            if etag is None and length:
                etag = self._head(name).etag
            return self._read(name, offset, length, sink, etag, into)
        finally:
            with self._lock:
                self._reading = False

    def _read(
        self, name: str, offset: int, length: int, sink: Sink, etag: str | None, into: memoryview | None
    ) -> StoredObject:
        start, end = offset, offset + length
        patience = self._retries.patience(f"read of `{shown(name)}`")
        own: BaseException | None = None

        def check() -> None:
            if self._interrupted:
                raise Interrupted(f"the read of `{shown(name)}` was interrupted")

        def taken(block: memoryview) -> None:
            nonlocal offset, own
            try:
                check()
                sink(block)
            except BaseException as exc:
                own = exc
                raise
            offset += len(block)
            patience.moved()

        while True:
            try:
                check()
                rest = into[offset - start :] if into is not None else None
                return self._reader.read(name, offset, end - offset, taken, etag=etag, into=rest)
            except RemoteError as exc:
                if exc is own:
                    raise
                patience.after(exc, check)

    def interrupt(self) -> None:
        """As `Reader.interrupt`; a wait between two attempts ends too."""
        with self._lock:  # held meanwhile, so that it cannot hit the next read
            if self._reading:
                self._interrupted = True
                self._reader.interrupt()

    def close(self) -> None:
        """As `Reader.close`."""
        self._reader.close()


class RetryingUpload:
    """An `Upload` that sends a part again from memory, and finds out whether an answer was lost."""

    def __init__(self, store: Retrying, upload: Upload, name: str, size: int) -> None:
        """`upload` is that of the object `name` of `size` bytes."""
        self._store, self._upload, self._name, self._size = store, upload, name, size
        self.concurrent = upload.concurrent
        self.part_size = upload.part_size
        self.parts = upload.parts
        self._done = {part.number: part for part in upload.parts}

    def part(
        self, number: int, data: memoryview, *, crc: int | None = None, pace: Pace | None = None
    ) -> UploadedPart:
        """As `Upload.part`; `ObjectChanged` when the upload is gone. `pace` sees every byte that is sent, those that are sent again too."""
        patience = self._store.patience(f"upload of `{shown(self._name)}`")
        own: BaseException | None = None
        furthest = sent = 0

        def paced(size: int) -> None:
            nonlocal furthest, own, sent
            if sent > furthest:
                furthest = sent
                patience.moved()
            try:
                if pace is not None:
                    pace(size)
            except BaseException as exc:
                own = exc
                raise
            sent += size

        while True:
            sent = 0
            try:
                self._done[number] = made = self._upload.part(number, data, crc=crc, pace=paced)
            except NotFound as exc:
                if exc is own:
                    raise
                raise self._gone(exc) from None
            except RemoteError as exc:
                if exc is own:
                    raise
                patience.after(exc)
            else:
                return made

    def complete(self) -> StoredObject:
        """As `Upload.complete`. After a lost answer the object that is there counts, if it has the CRC of the parts.

        `ObjectChanged` when the upload is gone, and nothing has come of it.
        """
        patience = self._store.patience(f"completion of `{shown(self._name)}`")
        asked_before = False
        while True:
            try:
                return self._upload.complete()
            except (NotFound, ObjectExists) as exc:
                if asked_before and (made := self._made()) is not None:
                    return made
                if isinstance(exc, NotFound):
                    raise self._gone(exc) from None
                raise
            except RemoteError as exc:
                patience.after(exc)
                asked_before = True

    def _gone(self, exc: NotFound) -> StagerError:
        """The error for an upload that was begun and is not there any more; `exc` for what goes in one request, which begins nothing."""
        if self._size <= self.part_size:
            return exc
        return ObjectChanged(
            f"the upload of `{shown(self._name)}` is gone, ended perhaps by a lifecycle rule of the bucket: {exc.message}",
            hint="run it again: this file begins anew",
        )

    def _made(self) -> StoredObject | None:
        try:
            found = self._store.head(self._name)
        except NotFound:
            return None
        crc = 0
        for _, part in sorted(self._done.items()):
            crc = combine(crc, part.crc64, part.size)
        return found if (found.size, found.crc64) == (self._size, crc) else None

    def abort(self) -> None:
        """As `Upload.abort`."""
        self._store.call(f"abort of the upload of `{shown(self._name)}`", self._upload.abort)
