"""A store that fails by a script: a wrapper around a real one, so that what comes through is real."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import fastcrc

from stager.core.errors import NotFound, ObjectExists, RemoteError, StagerError
from stager.store.base import Pace, Reader, Sink, Store, StoredObject, Upload, UploadedPart


class _Cut(Exception):
    """Ends a read of the store below, whose connection is then as gone as after a real reset."""


@dataclass
class Fault:
    """What goes wrong in the next `times` calls of `call`: ``read``, ``list``, ``head``, ``upload``, ``part``, ``complete``, ``delete``,
    ``abort``. `after` is how many bytes (of a read or part) or names (of a list) get through first; with `lost` the call is done and
    only its answer is missing."""

    call: str
    after: int = 0
    times: int = 1
    lost: bool = False
    name: str = "*"
    error: Callable[[], StagerError] = lambda: RemoteError("connection reset by peer")


@dataclass(frozen=True)
class Call:
    """One attempt that reached the store. `offset` and `given` are a read's: where it began, and the bytes that came."""

    call: str
    name: str
    offset: int = 0
    given: int = 0


@dataclass
class Faulty:
    """`store`, with `faults`. `log` has every attempt. With `crc` the store knows the CRC-64 of its objects, as OSS does."""

    store: Store
    faults: list[Fault] = field(default_factory=list)
    crc: bool = False
    log: list[Call] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attempts(self, call: str) -> int:
        """How often `call` reached the store."""
        return sum(one.call == call for one in self.log)

    def given(self) -> int:
        """Bytes that readers were given, by all attempts together."""
        return sum(one.given for one in self.log)

    def begin(self, call: str, name: str) -> Fault | None:
        """Logs the attempt, and gives the fault that it meets. Those without a middle are raised here."""
        with self.lock:
            if call != "read":
                self.log.append(Call(call, name))
            for fault in self.faults:
                if fault.call == call and fault.times and fnmatch.fnmatch(name, fault.name):
                    fault.times -= 1
                    break
            else:
                return None
        if call in ("head", "upload", "complete", "delete", "abort") and not fault.lost:
            raise fault.error()
        return fault

    @property
    def root(self) -> str:
        return self.store.root

    def list(self, below: str = "", *, start_after: str = "") -> Iterator[StoredObject]:
        fault = self.begin("list", start_after)
        for given, one in enumerate(self.store.list(below, start_after=start_after)):
            if fault is not None and given == fault.after:
                raise fault.error()
            yield one
        if fault is not None:
            raise fault.error()

    def head(self, name: str) -> StoredObject:
        self.begin("head", name)
        return self.known(self.store.head(name))

    def known(self, stored: StoredObject) -> StoredObject:
        """What the store knows of the object."""
        if not self.crc:
            return stored
        content = bytearray()
        self.store.reader().read(stored.name, 0, stored.size, content.extend)
        return replace(stored, crc64=fastcrc.crc64.xz(bytes(content)))

    def reader(self) -> FaultyReader:
        return FaultyReader(self, self.store.reader())

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
    ) -> FaultyUpload:
        fault = self.begin("upload", name)
        made = self.store.upload(
            name, size, metadata=metadata, replace=replace, resume=resume, discard=discard, pace=pace
        )
        if fault is not None:
            raise fault.error()
        return FaultyUpload(self, made, name, gone=NotFound if replace else ObjectExists)

    def delete(self, names: Sequence[str]) -> None:
        fault = self.begin("delete", " ".join(names))
        self.store.delete(names)
        if fault is not None:
            raise fault.error()


class FaultyReader:
    def __init__(self, faulty: Faulty, reader: Reader) -> None:
        self._faulty, self._reader = faulty, reader

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
        fault = self._faulty.begin("read", name)
        given = 0

        def counted(block: memoryview) -> None:
            nonlocal given
            if fault is not None and given + len(block) > fault.after:
                block = block[: fault.after - given]
                if block:
                    given += len(block)
                    sink(block)
                raise _Cut
            given += len(block)
            sink(block)

        try:
            stored = self._reader.read(name, offset, length, counted, etag=etag, into=into)
            if fault is not None:  # all of it came, and then it went wrong
                raise _Cut
        except _Cut:
            assert fault is not None
            raise fault.error() from None
        finally:
            with self._faulty.lock:
                self._faulty.log.append(Call("read", name, offset, given))
        return stored

    def interrupt(self) -> None:
        self._reader.interrupt()

    def close(self) -> None:
        self._reader.close()


class FaultyUpload:
    """As in OSS, an upload that was completed is gone: a second `complete` is `NotFound`, or finds
    the object there."""

    def __init__(self, faulty: Faulty, upload: Upload, name: str, gone: type[StagerError]) -> None:
        self._faulty, self._upload, self._name, self._gone = faulty, upload, name, gone
        self._completed: StagerError | None = None
        self.concurrent, self.part_size, self.parts = upload.concurrent, upload.part_size, upload.parts

    def part(
        self, number: int, data: memoryview, *, crc: int | None = None, pace: Pace | None = None
    ) -> UploadedPart:
        fault = self._faulty.begin("part", f"{self._name} {number}")
        sent = 0

        def counted(size: int) -> None:
            nonlocal sent
            if fault is not None and not fault.lost and sent >= fault.after:
                raise fault.error()
            if pace is not None:
                pace(size)
            sent += size

        made = self._upload.part(number, data, crc=crc, pace=counted)
        if fault is not None:
            raise fault.error()
        return made

    def complete(self) -> StoredObject:
        fault = self._faulty.begin("complete", self._name)
        if self._completed is not None:
            raise self._completed
        stored = self._faulty.known(self._upload.complete())
        if fault is not None:
            self._completed = self._gone("after a lost answer")
            raise fault.error()
        return stored

    def abort(self) -> None:
        fault = self._faulty.begin("abort", self._name)
        self._upload.abort()
        if fault is not None:
            raise fault.error()
