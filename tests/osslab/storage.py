"""Buckets, objects and unfinished uploads. Small contents are held in memory, others in files of one folder."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import os
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.osslab import checksum

SMALL = 64 << 10
ARCHIVES = frozenset({"Archive", "ColdArchive", "DeepColdArchive"})


class Blob:
    """Bytes that do not change: in memory, or in a file that goes with the blob when it is `owned`.

    They are `size` bytes from `start` on. A blob made `of` another one has some of its bytes.
    """

    def __init__(
        self,
        size: int,
        *,
        data: bytes = b"",
        path: str = "",
        owned: bool = False,
        start: int = 0,
        of: Blob | None = None,
    ) -> None:
        self.size, self.data, self.path, self._owned = size, data, path, owned
        self.start, self._of = start, of

    def __del__(self) -> None:
        if self._owned:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


@dataclass(frozen=True)
class Content:
    """Blobs one after the other."""

    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(blob.size for blob in self.blobs)

    def pieces(self, offset: int, length: int) -> Iterator[tuple[Blob, int, int]]:
        """(blob, offset in its data or file, bytes) that make up [offset, offset + length)."""
        for blob in self.blobs:
            if length <= 0:
                return
            if offset < blob.size:
                take = min(length, blob.size - offset)
                yield blob, blob.start + offset, take
                length -= take
                offset = 0
            else:
                offset -= blob.size

    def cut(self, offset: int, length: int) -> Content:
        """A part of the same bytes."""
        pieces = self.pieces(offset, length)
        return Content(
            tuple(Blob(size, data=blob.data, path=blob.path, start=at, of=blob) for blob, at, size in pieces)
        )


class Written:
    """Takes bytes in, hashes them, and gives a blob."""

    def __init__(self, room: str) -> None:
        self._room, self._small, self._fd, self._path = room, bytearray(), -1, ""
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.crc = self.size = 0

    def add(self, piece: memoryview | bytes) -> None:
        """Some more bytes."""
        self._md5.update(piece)
        self.crc = checksum.crc64(piece, self.crc)
        self.size += len(piece)
        self.keep(piece)

    def keep(self, piece: memoryview | bytes) -> None:
        """Bytes that are hashed and counted already."""
        if self._fd < 0 and self.size <= SMALL:
            self._small += piece
            return
        if self._fd < 0:
            self._path = os.path.join(self._room, secrets.token_hex(12))
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._put(memoryview(self._small))
            self._small = bytearray()
        self._put(memoryview(piece))

    def _put(self, left: memoryview) -> None:
        while left:
            left = left[os.write(self._fd, left) :]

    @property
    def md5(self) -> bytes:
        """The digest of everything so far."""
        return self._md5.digest()

    @property
    def etag(self) -> str:
        """As OSS gives it to what was sent in one request."""
        return self._md5.hexdigest().upper()

    def blob(self) -> Blob:
        """The bytes, kept."""
        if self._fd < 0:
            return Blob(self.size, data=bytes(self._small))
        os.close(self._fd)
        self._fd = -2
        return Blob(self.size, path=self._path, owned=True)

    def drop(self) -> None:
        """Forget them. Harmless after `blob`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -2
            os.unlink(self._path)


@dataclass
class StoredObject:
    """One object. `crc` is None while nobody asked for it (files served in place); see `Storage.crc_of`."""

    key: str
    content: Content
    etag: str
    crc: int | None
    modified: float
    kind: str = "Normal"
    storage_class: str = "Standard"
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)
    md5: bytes | None = None
    restore: str = ""  # "", "ongoing" or "done", for archive classes

    @property
    def size(self) -> int:
        """Bytes."""
        return self.content.size

    @property
    def readable(self) -> bool:
        """False for an archived object that was not restored."""
        return self.storage_class not in ARCHIVES or self.restore == "done"

    @property
    def content_md5(self) -> str | None:
        """For the Content-MD5 header."""
        return base64.b64encode(self.md5).decode() if self.md5 is not None else None


@dataclass(frozen=True)
class Part:
    """One part of an unfinished upload."""

    number: int
    content: Content
    etag: str
    crc: int
    modified: float


@dataclass
class Pending:
    """A multipart upload that was begun."""

    key: str
    id: str
    begun: float
    headers: dict[str, str]
    parts: dict[int, Part] = field(default_factory=dict)


class Bucket:
    """One bucket. Callers hold `lock` while they change it or look twice."""

    def __init__(self, name: str, *, acl: str = "private", listable: bool = True) -> None:
        self.name, self.acl, self.listable = name, acl, listable
        self.created = time.time()
        self.storage_class = "Standard"
        self.lock = threading.RLock()
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[str, Pending] = {}
        self._sorted: list[bytes] | None = None

    def set(self, found: StoredObject) -> None:
        """Add or replace an object."""
        with self.lock:
            if found.key not in self.objects:
                self._sorted = None
            self.objects[found.key] = found

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self.lock:
            if self.objects.pop(key, None) is not None:
                self._sorted = None

    def names(self) -> list[bytes]:
        """All keys in ascending order of their bytes; not to be changed."""
        with self.lock:
            if self._sorted is None:
                self._sorted = sorted(key.encode("utf-8", "surrogateescape") for key in self.objects)
            return self._sorted

    def page(
        self, prefix: str, delimiter: str, after: str, most: int
    ) -> tuple[list[StoredObject], list[str], str]:
        """Objects and common prefixes that come after `after`, at most so many together, and where to go on ("": the end)."""
        start, cut, last = prefix.encode(), delimiter.encode(), after.encode("utf-8", "surrogateescape")
        objects: list[StoredObject] = []
        folders: list[str] = []
        latest = b""
        with self.lock:
            names = self.names()
            at = bisect_left(names, max(start, last))
            while at < len(names) and names[at].startswith(start):
                name = names[at]
                end = name.find(cut, len(start)) if cut else -1
                entry = name[: end + len(cut)] if end >= 0 else name
                following = bisect_left(names, entry + b"\xff" * 4, at) if end >= 0 else at + 1
                if entry > last:
                    if len(objects) + len(folders) == most:
                        return objects, folders, latest.decode("utf-8", "surrogateescape")
                    latest = entry
                    if end >= 0:
                        folders.append(entry.decode("utf-8", "surrogateescape"))
                    else:
                        objects.append(self.objects[name.decode("utf-8", "surrogateescape")])
                at = max(following, at + 1)
        return objects, folders, ""


class Storage:
    """All buckets, and the folder for their contents. `incoming` makes what takes in the body of a request; it may be replaced.

    `copying` is told of the bytes that the store is about to copy by itself, and may take its time.
    """

    def __init__(self, room: str) -> None:
        self.room = room
        self.incoming: Callable[[], Written] = functools.partial(Written, room)
        self.copying: Callable[[int], None] = lambda _: None
        self.buckets: dict[str, Bucket] = {}
        self._slow = threading.Lock()
        self._ids = itertools.count(1)

    def bucket(self, name: str, *, acl: str = "private", listable: bool = True) -> Bucket:
        """A new bucket, in place of an older one with that name."""
        self.buckets[name] = Bucket(name, acl=acl, listable=listable)
        return self.buckets[name]

    def upload_id(self) -> str:
        """A new id; later ones are greater."""
        return f"{next(self._ids):08X}{secrets.token_hex(12).upper()}"

    def keep(self, data: bytes | memoryview) -> Written:
        """`data`, written and hashed."""
        written = Written(self.room)
        view = memoryview(data)
        for at in range(0, len(view), 1 << 20):
            written.add(view[at : at + (1 << 20)])
        return written

    def place(self, key: str, path: str) -> StoredObject:
        """A file served where it lies. Its ETag is that of a multipart upload: no one can say from which content."""
        found = os.stat(path)
        told = f"{path}\0{found.st_size}\0{found.st_mtime_ns}".encode("utf-8", "surrogateescape")
        etag = hashlib.md5(told, usedforsecurity=False).hexdigest().upper() + "-1"
        content = Content((Blob(found.st_size, path=path),))
        return StoredObject(key, content, etag, None, found.st_mtime, kind="Multipart")

    def sparse(self, key: str, size: int) -> StoredObject:
        """An object of `size` zero bytes that needs no room."""
        path = os.path.join(self.room, secrets.token_hex(12))
        with open(path, "xb") as file:
            file.truncate(size)
        blob = Blob(size, path=path, owned=True)
        etag = hashlib.md5(f"zeros {size}".encode(), usedforsecurity=False).hexdigest().upper() + "-1"
        return StoredObject(key, Content((blob,)), etag, checksum.zeros(size), time.time(), kind="Multipart")

    def crc_of(self, found: StoredObject) -> int:
        """The object's CRC, computed now if nobody did yet."""
        with self._slow:
            if found.crc is None:
                crc = 0
                for piece in read(found.content, 0, found.size):
                    crc = checksum.crc64(piece, crc)
                found.crc = crc
            return found.crc


def assembled(key: str, parts: Iterable[Part]) -> tuple[Content, str, int]:
    """What parts make together: content, ETag, CRC."""
    kept = list(parts)
    digest = hashlib.md5(usedforsecurity=False)
    crc = 0
    for part in kept:
        digest.update(bytes.fromhex(part.etag))
        crc = checksum.join(crc, part.crc, part.content.size)
    etag = f"{digest.hexdigest().upper()}-{len(kept)}"
    return Content(tuple(blob for part in kept for blob in part.content.blobs)), etag, crc


def read(content: Content, offset: int, length: int) -> Iterator[bytes]:
    """The bytes of a range, in pieces of at most 1 MiB."""
    for blob, start, count in content.pieces(offset, length):
        if not blob.path:
            yield blob.data[start : start + count]
            continue
        with open(blob.path, "rb", buffering=0) as file:
            for at in range(start, start + count, 1 << 20):
                yield os.pread(file.fileno(), min(1 << 20, start + count - at), at)
