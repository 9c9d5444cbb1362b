"""The interface to a place that holds models; its docstrings are the contract.

An adapter (`stager.store.oss`, `stager.store.directory`) makes one attempt at each call and translates errors once, into
those of `stager.core.errors`. Retry and limits are wrappers around an adapter (`stager.store.retry`, `stager.store.limit`).
``tests/test_store_contract.py`` holds every adapter to what is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from stager.net.connection import BLOCK, Pace

__all__ = ["BLOCK", "Pace", "Reader", "Sink", "Store", "StoredObject", "Unfinished", "Upload", "UploadedPart"]

Sink: TypeAlias = Callable[[memoryview], None]
"""Gets the bytes of a read, in order, at most `BLOCK` at once. The view is valid only during the call. What it raises ends the read
and comes out of it unchanged; the reader stays usable."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object. `name` is relative to the store's root, as the store has it: nothing guarantees that it is a safe path.

    `etag` is without quotes. `crc64` is OSS's CRC-64 of the content (CRC-64/XZ); None where the answer does not carry it (listings
    never do). `modified` is in seconds since 1970. `readable` is False for an object of an archive class that must be restored
    first; None when the answer does not tell (a listing shows the class but not whether the object was restored). `age` is how many seconds ago it
    was modified by the store's own clock, from `Store.head` alone; None where that is not known.
    """

    name: str
    size: int
    etag: str
    crc64: int | None = None
    modified: float = 0.0
    storage_class: str = "Standard"
    readable: bool | None = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    age: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part that the store has: numbers from 1, ascending; size in bytes."""

    number: int
    size: int
    etag: str
    crc64: int


class Reader(Protocol):
    """One lane's connection and its one reused buffer. Not for two threads at once, but for `interrupt`."""

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
        """Gives `sink` exactly the bytes [offset, offset + length) and returns what the answer said of the whole object.

        With `into`, a writable view of `length` bytes, they are put there, and what `sink` gets are views of it: a copy saved for who wants to keep them.
        With `etag`, the bytes are of that version: `ObjectChanged` when it is no longer there. `length` 0 asks for nothing and
        gives `sink` nothing. Raises `NotFound`, `AccessDenied` (`MustRestore` for archived objects), `RemoteError` for what may pass,
        a body that ends early or an answer that is not the range asked for among it; nothing beyond the range ever
        reaches `sink`. After any error the next read begins on a fresh connection.
        """

    def interrupt(self) -> None:
        """From any thread: the read under way ends soon with `Interrupted`; without one, nothing happens."""

    def close(self) -> None:
        """Gives everything back. May be called twice."""


class Upload(Protocol):
    """An object on its way in: parts in ascending order, then `complete`. The object appears whole or not at all.

    `parts` are those that the store has already: after ``resume`` perhaps some from an earlier process. One thread at a time; where it is
    `concurrent`, `part` may be called from several at once, with different numbers in any order. Where it is not, parts must come in ascending order,
    each once, beginning after the last of `parts`.
    """

    concurrent: bool
    part_size: int
    parts: tuple[UploadedPart, ...]

    def part(
        self, number: int, data: memoryview, *, crc: int | None = None, pace: Pace | None = None
    ) -> UploadedPart:
        """Sends part `number` (from 1): `part_size` bytes, the last one fewer. Repeating a number replaces the part.

        The bytes of a part that is the only one must stay as they are until `complete` has returned.
        `crc` is the CRC-64 of `data` where the caller has it, and is believed; otherwise it is taken here.

        `pace` is called before each block of `data` is sent, in whatever call sends it (`complete`, for an object of one part). What the
        store says it got is compared with the CRC of `data`: `RemoteError` when they differ.
        """

    def complete(self) -> StoredObject:
        """Makes the object of the parts 1..n, which must be all there. Its CRC is compared with the parts': `IntegrityError`.

        `ObjectExists` when the object must not be replaced and is there. The handle is used up then, but not after `RemoteError`: it may be
        called again. When only the answer was lost, the second call may find the upload gone (`NotFound`) or the object there.
        """

    def abort(self) -> None:
        """Takes the parts back. Harmless when repeated and after `complete`."""


class Store(Protocol):
    """A place that holds one model: names are relative to its root, ``/`` between their parts.

    All methods but the readers' may be called from any thread.
    """

    @property
    def root(self) -> str:
        """The place in words, for messages: ``oss://bucket/models/r1``, ``/mnt/nas/r1``."""

    def list(self, below: str = "", *, start_after: str = "") -> Iterator[StoredObject]:
        """Every object whose name begins with `below`, ascending by the names' bytes, fetched page by page.

        With `start_after` only the names after that one, whether it exists or not: a listing that failed goes on there.
        Names that end in a slash (placeholders for folders) are not listed. A root that does not exist has no objects; a bucket that
        does not exist is `NotFound`. Never gives a page twice and never ends before the last: `RemoteError` instead.
        """

    def head(self, name: str) -> StoredObject:
        """One object, with everything known of it. Raises `NotFound`."""

    def reader(self) -> Reader:
        """A new reader; connects when it first reads."""

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
        """Begins the object `name` of `size` bytes. Small ones are one part, and sent in one request by `complete`.

        `part_size` is what `stager.core.ranges.part_size` says. With `resume` the newest unfinished upload of that name goes on where there is one, or, given an
        `Unfinished.upload_id`, that very one if it is still there; with `discard` all unfinished uploads of that name are aborted first.
        Where what an upload has must be read to be known, `pace` is called with the size of each block of that; what it raises ends the call, and
        the upload stays as it was.
        Without `replace` an object that is there is not touched (`ObjectExists`, at the latest from `complete`).
        """

    def delete(self, names: Sequence[str]) -> None:
        """Removes objects; those that are not there count as removed. Raises for the first that could not be."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was begun and neither completed nor aborted: it costs storage and nobody sees it."""

    name: str
    upload_id: str
    begun: float  # seconds since 1970
