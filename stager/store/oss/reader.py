"""Ranges of objects, read over one kept-alive connection into one reused buffer."""

from __future__ import annotations

import http.client
from typing import Any

from stager.core.errors import Interrupted, ObjectChanged, RemoteError
from stager.net.answers import content_range
from stager.net.failures import unreachable
from stager.store.base import BLOCK, Sink, StoredObject
from stager.store.oss.answers import described
from stager.store.oss.client import Client
from stager.store.oss.wire import Line


class OssReader:
    """A `Reader` of one bucket. `read` makes one attempt, and one request."""

    def __init__(self, client: Client, prefix: str) -> None:
        """`prefix` is put before each name. Connects when it first reads."""
        self._client = client
        self._prefix = prefix
        self._line = Line(client.route)
        self._view = memoryview(bytearray(BLOCK))
        self._bucket: Any = None
        self._own: BaseException | None = None

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
        key = self._client.key(self._prefix, name)
        subject = self._client.subject(key)
        connection = self._line.connection
        self._own = None
        connection.begin()
        try:
            with self._client.translated(subject, key=key):
                found = self._ask(name, key, offset, length, etag)
            if etag is not None and found.etag != etag:
                raise ObjectChanged(f"{subject} is no longer the version that was asked for")
            if length:
                self._deliver(subject, length, sink, into)
        except BaseException as exc:
            connection.drop()
            if connection.stopped and exc is not self._own and isinstance(exc, Exception):
                raise Interrupted(f"the read of {subject} was interrupted") from exc
            raise
        else:
            return found
        finally:
            connection.end()

    def _ask(self, name: str, key: str, offset: int, length: int, etag: str | None) -> StoredObject:
        """Sends the request and checks that the answer is what was asked for, before a byte of it is used."""
        if self._bucket is None:
            self._bucket = self._client.bucket(self._line)
        headers = {} if etag is None else {"If-Match": f'"{etag}"'}
        if not length:
            result = self._bucket.head_object(key, headers=headers)
            return described(name, result.content_length or 0, result.headers)
        # Without this header OSS answers a range that is not in the object with all of it.
        headers["x-oss-range-behavior"] = "standard"
        result = self._bucket.get_object(key, byte_range=(offset, offset + length - 1), headers=headers)
        subject = self._client.subject(key)
        if result.status != http.client.PARTIAL_CONTENT:
            raise RemoteError(f"{subject}: asked for a range, the answer has status {result.status}")
        given = content_range(result.headers.get("Content-Range"))
        if given is None:
            raise RemoteError(f"{subject}: the answer does not say which bytes it has")
        if given.size < offset + length:
            raise ObjectChanged(f"{subject} has {given.size} bytes, asked for {offset}-{offset + length - 1}")
        if (given.start, given.end) != (offset, offset + length) or result.content_length != length:
            raise RemoteError(
                f"{subject}: asked for the bytes {offset}-{offset + length - 1}, the answer has {given.start}-{given.end - 1}"
            )
        return described(name, given.size, result.headers)

    def _deliver(self, subject: str, length: int, sink: Sink, into: memoryview | None) -> None:
        assert self._line.answer is not None
        connection, left = self._line.connection, length
        with connection.body(self._line.answer.response) as receive:
            while left:
                view = into[length - left :] if into is not None else self._view
                try:
                    got = receive(view[: min(BLOCK, left)])
                except (OSError, http.client.HTTPException) as exc:
                    raise unreachable(exc, subject) from exc
                if not got:
                    raise RemoteError(f"{subject}: the answer ended {left} bytes early")
                left -= got
                try:
                    sink(view[:got])
                except BaseException as exc:
                    self._own = exc
                    raise
                if connection.stopped and left:
                    raise Interrupted(f"the read of {subject} was interrupted")

    def interrupt(self) -> None:
        """As `Reader.interrupt`."""
        self._line.connection.interrupt()

    def close(self) -> None:
        """As `Reader.close`."""
        self._line.connection.drop()
