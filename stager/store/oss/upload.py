"""Objects on their way in: in one request, or in parts. Every answer's CRC is compared with that of what was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace as changed
from typing import Any

from stager.core.checksum import combine, crc64
from stager.core.errors import IntegrityError, NotFound, RemoteError, UsageError
from stager.core.ranges import part_size
from stager.core.units import shown
from stager.store.base import Pace, StoredObject, Unfinished, UploadedPart
from stager.store.oss.answers import META, described, part_page
from stager.store.oss.client import Client

LARGEST = 10_000 * (5 << 30)
"""Bytes of an object at most: 48.8 TiB."""
EMPTY_PAGES = 10
"""Pages of a listing in a row that may have nothing in them: a server that sends them for ever would be asked for ever."""
_FORBID = {"x-oss-forbid-overwrite": "true"}


def part_of(size: int) -> int:
    """Bytes of each part but the last of an object of `size` bytes. Raises `UsageError` for what OSS cannot hold."""
    if size > LARGEST:
        raise UsageError(f"an object of {size} bytes is larger than OSS takes")
    return part_size(size)


def uploads(client: Client, prefix: str) -> Iterator[Unfinished]:
    """The multipart uploads that were begun and not ended, of keys that begin with `prefix`; `name` is the whole key."""
    marker, empty = ("", ""), 0
    subject = client.subject(prefix)
    while True:
        with client.translated(subject):
            page = client.control.list_multipart_uploads(
                prefix=prefix, key_marker=marker[0], upload_id_marker=marker[1]
            )
        for one in page.upload_list:
            yield Unfinished(one.key, one.upload_id, float(one.initiation_date))
        if not page.is_truncated:
            return
        following = (page.next_key_marker, page.next_upload_id_marker)
        empty = 0 if page.upload_list else empty + 1
        if following == marker or not any(following) or empty > EMPTY_PAGES:
            raise RemoteError(f"{subject}: the list of uploads does not go on after a page")
        marker = following


class Sending:
    """What both kinds of upload share: the object and its headers."""

    def __init__(
        self, client: Client, prefix: str, name: str, size: int, metadata: Mapping[str, str], *, replace: bool
    ) -> None:
        """The object `name` below `prefix`. Raises `UsageError` for a name or metadata that OSS does not take."""
        self.client, self.name, self.size = client, name, size
        self.key = client.key(prefix, name)
        self.subject = client.subject(self.key)
        self.metadata = dict(metadata)
        self.guard = {} if replace else _FORBID
        self.headers = {**self.guard, **_headers(metadata, self.subject)}

    def bulk(self, pace: Pace | None) -> AbstractContextManager[Any]:
        """As `Client.bulk`, for this object."""
        return self.client.bulk(self.subject, self.key, pace)

    def made(self, result: Any) -> StoredObject:
        """The object that was made, by the answer that says so."""
        return changed(described(self.name, self.size, result.headers), metadata=self.metadata)


class SingleUpload:
    """An `Upload` of an object small enough for one request, which `complete` sends."""

    concurrent = False

    def __init__(self, sending: Sending) -> None:
        """Nothing is sent before `complete`."""
        self.part_size = part_of(sending.size)
        self.parts: tuple[UploadedPart, ...] = ()
        self._sending = sending
        self._data: memoryview | None = None if sending.size else memoryview(b"")
        self._crc = 0
        self._pace: Pace | None = None

    def part(
        self, number: int, data: memoryview, *, crc: int | None = None, pace: Pace | None = None
    ) -> UploadedPart:
        """As `Upload.part`; `data` is what `complete` sends."""
        _fits(number, data.nbytes, 1, self._sending.size)
        self._data, self._pace = data.cast("B"), pace
        self._crc = crc64(self._data) if crc is None else crc
        return UploadedPart(1, data.nbytes, "", self._crc)

    def complete(self) -> StoredObject:
        """As `Upload.complete`; `RemoteError` when what arrived has another CRC, for sending it again may help."""
        if self._data is None:
            raise ValueError("part 1 is missing")
        sending = self._sending
        with sending.bulk(self._pace) as bucket:
            result = bucket.put_object(sending.key, self._data, headers=sending.headers)
        _agree(result.crc, self._crc, sending.subject)
        self._data = None  # whose memory it is may want it back
        return sending.made(result)

    def abort(self) -> None:
        """As `Upload.abort`."""


class MultipartUpload:
    """An `Upload` in parts, each over a connection of its own. `upload_id` is what OSS calls it by."""

    concurrent = True

    def __init__(self, sending: Sending, upload_id: str, parts: tuple[UploadedPart, ...]) -> None:
        """`parts` are those that are there already and fit."""
        self.part_size = part_of(sending.size)
        self.parts = parts
        self.upload_id = upload_id
        self._sending = sending
        self._lock = threading.Lock()
        self._sent = {part.number: part for part in parts}
        self._count = -(-sending.size // self.part_size)
        self._ended = False

    def part(
        self, number: int, data: memoryview, *, crc: int | None = None, pace: Pace | None = None
    ) -> UploadedPart:
        """As `Upload.part`."""
        sending = self._sending
        _fits(number, data.nbytes, self._count, self._expected(number))
        crc = crc64(data) if crc is None else crc
        with sending.bulk(pace) as bucket:
            result = bucket.upload_part(sending.key, self.upload_id, number, data.cast("B"))
        _agree(result.crc, crc, f"part {number} of {sending.subject}")
        part = UploadedPart(number, data.nbytes, result.etag or "", crc)
        with self._lock:
            self._sent[number] = part
        return part

    def complete(self) -> StoredObject:
        """As `Upload.complete`."""
        import oss2  # type: ignore[import-untyped]

        sending = self._sending
        with self._lock:
            parts = [part for _, part in sorted(self._sent.items())]
        if [part.number for part in parts] != list(range(1, self._count + 1)):
            raise ValueError(f"{len(parts)} parts of {self._count} are there")
        infos = [oss2.models.PartInfo(part.number, part.etag) for part in parts]
        with sending.client.translated(sending.subject):
            result = sending.client.control.complete_multipart_upload(
                sending.key, self.upload_id, infos, headers=sending.guard
            )
        self._ended = True
        self._proven(result.crc, parts)
        return sending.made(result)

    def _proven(self, crc: int | None, parts: list[UploadedPart]) -> None:
        folded = 0
        for part in parts:
            folded = combine(folded, part.crc64, part.size)
        if crc == folded:
            return
        # An answer may be damaged while the object is not: what it has itself counts.
        with self._sending.client.translated(self._sending.subject):
            headers = self._sending.client.control.head_object(self._sending.key).headers
        crc = described(self._sending.name, self._sending.size, headers).crc64
        if crc != folded:
            raise IntegrityError(
                f"{self._sending.subject}: its CRC-64 is {crc}, that of what was sent {folded}"
            )

    def abort(self) -> None:
        """As `Upload.abort`."""
        if self._ended:
            return
        _abort(self._sending, self.upload_id)
        self._ended = True

    def _expected(self, number: int) -> int:
        return min(self.part_size, self._sending.size - (number - 1) * self.part_size)


def begin(sending: Sending, *, resume: bool | str, discard: bool) -> SingleUpload | MultipartUpload:
    """As `Store.upload`. A resumed upload keeps the metadata that it was begun with."""
    single = sending.size <= part_of(sending.size)
    if discard:
        for one in _begun(sending):
            _abort(sending, one.upload_id)
    elif resume and not single and (found := _unended(sending, which=resume)) is not None:
        return found
    if single:
        return SingleUpload(sending)
    with sending.client.translated(sending.subject):
        started = sending.client.control.init_multipart_upload(sending.key, headers=sending.headers)
    return MultipartUpload(sending, started.upload_id, ())


def _begun(sending: Sending) -> list[Unfinished]:
    """The unfinished uploads of that very key, whoever began them."""
    return [one for one in uploads(sending.client, sending.key) if one.name == sending.key]


def _abort(sending: Sending, upload_id: str) -> None:
    try:
        with sending.client.translated(sending.subject):
            sending.client.control.abort_multipart_upload(sending.key, upload_id)
    except NotFound:
        pass  # it is gone, which is what was wanted


def _unended(sending: Sending, *, which: bool | str) -> MultipartUpload | None:
    """The unfinished upload of the id `which`, or the newest; None where it has ended."""
    if isinstance(which, str):
        upload_id = which
    else:
        newest = max(_begun(sending), key=lambda one: one.begun, default=None)
        if newest is None:
            return None
        upload_id = newest.upload_id
    try:
        return MultipartUpload(sending, upload_id, tuple(_parts(sending, upload_id)))
    except NotFound:
        return None


def _parts(sending: Sending, upload_id: str) -> Iterator[UploadedPart]:
    """The parts that are there and have the sizes that this upload would give them."""
    usual, marker, empty = part_of(sending.size), "", 0
    while True:
        with sending.client.translated(sending.subject):
            result = sending.client.control.list_parts(sending.key, upload_id, marker=marker)
            page = part_page(result.resp.body)
        for part in page.parts:
            if part.size == min(usual, sending.size - (part.number - 1) * usual):
                yield part
        if page.more is None:
            return
        empty = 0 if page.parts else empty + 1
        if page.more == marker or empty > EMPTY_PAGES:
            raise RemoteError(f"{sending.subject}: the list of parts does not go on after a page")
        marker = page.more


def _fits(number: int, size: int, count: int, expected: int) -> None:
    if not 1 <= number <= count or size != expected:
        raise ValueError(f"part {number} of {count} has {size} bytes, {expected} are expected")


def _agree(theirs: int | None, ours: int, subject: str) -> None:
    if theirs != ours:
        raise RemoteError(f"{subject}: what arrived has the CRC-64 {theirs}, what was sent {ours}")


def _headers(metadata: Mapping[str, str], subject: str) -> dict[str, str]:
    for key, value in metadata.items():
        plain = all(c.isascii() and (c.isalnum() or c == "-") for c in key) and key
        if not plain or not value.isprintable() or value != value.strip():
            raise UsageError(f"{subject}: `{shown(key)}` cannot be metadata of an object")
    return {META + key.lower(): value for key, value in metadata.items()}
