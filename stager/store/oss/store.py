"""A prefix of a bucket as a store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as changed
from typing import Any

from stager.core.errors import RemoteError
from stager.core.location import Location
from stager.core.units import shown
from stager.store.base import Pace, StoredObject, Unfinished
from stager.store.credentials import Source, find
from stager.store.opening import StoreOptions
from stager.store.oss.answers import age, described, readable_in_listing
from stager.store.oss.client import Client
from stager.store.oss.endpoint import Endpoint
from stager.store.oss.failures import stranger
from stager.store.oss.reader import OssReader
from stager.store.oss.upload import (
    EMPTY_PAGES,
    LARGEST,
    MultipartUpload,
    Sending,
    SingleUpload,
    begin,
    uploads,
)

_PAGE = 1000  # names in one request, for listings and for deletion: the most that OSS takes


class OssStore:
    """The objects of a bucket below a prefix. One attempt at each call; `stager.store.retry` makes more of it.

    Nothing is asked before the first call. Where the bucket lies is found then, unless endpoint and region are known.
    """

    def __init__(
        self,
        location: Location,
        options: StoreOptions,
        *,
        source: Source | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`source` gives the credentials, by default whatever is found in the environment.

        Raises `UsageError` for options that cannot be, `AccessDenied` when there are no credentials.
        """
        self._location = location
        self._prefix = f"{location.prefix}/" if location.prefix else ""
        self.credentials = source or find(anonymous=options.anonymous, environ=environ)
        self._client = Client(location, options, environ, self.credentials)

    @property
    def root(self) -> str:
        """As `Store.root`."""
        return str(self._location)

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go. May ask the bucket for it, and raise as any request does."""
        return self._client.endpoint

    def list(self, below: str = "", *, start_after: str = "") -> Iterator[StoredObject]:
        """As `Store.list`."""
        prefix = self._prefix + below
        last = (self._prefix + start_after).encode("utf-8", "surrogateescape") if start_after else b""
        token, empty = "", 0
        while True:
            with self._client.translated(self._client.subject(prefix)):
                page = self._client.control.list_objects_v2(
                    prefix,
                    continuation_token=token,
                    start_after=self._prefix + start_after if start_after and not token else "",
                    max_keys=_PAGE,
                )
            for one in page.object_list:
                raw = one.key.encode("utf-8", "surrogateescape")
                if raw <= last or not one.key.startswith(prefix):
                    raise RemoteError(
                        f"{self._client.subject(prefix)}: the listing is out of order at `{shown(one.key)}`"
                    )
                last = raw
                if not one.key.endswith("/"):
                    yield self._listed(one)
            if not page.is_truncated:
                return
            empty = 0 if page.object_list else empty + 1
            if page.next_continuation_token in ("", token) or empty > EMPTY_PAGES:
                raise RemoteError(
                    f"{self._client.subject(prefix)}: the listing does not go on after `{shown(os.fsdecode(last))}`"
                )
            token = page.next_continuation_token

    def _listed(self, one: Any) -> StoredObject:
        """What an `oss2.models.SimplifiedObjectInfo` says. Raises `RemoteError` for a size that no object has."""
        if not 0 <= one.size <= LARGEST:
            raise RemoteError(f"{self._client.subject(one.key)}: the listing gives it {one.size} bytes")
        return StoredObject(
            name=one.key[len(self._prefix) :],
            size=one.size,
            etag=one.etag,
            modified=float(one.last_modified),
            storage_class=one.storage_class,
            readable=readable_in_listing(one.storage_class, one.restore_info),
        )

    def head(self, name: str) -> StoredObject:
        """As `Store.head`."""
        key = self._client.key(self._prefix, name)
        with self._client.translated(self._client.subject(key), key=key):
            result = self._client.control.head_object(key)
            found = described(name, result.content_length or 0, result.headers)
        if not found.etag:
            raise stranger(self._client.subject(key))
        return changed(found, age=age(result.headers))

    def reader(self) -> OssReader:
        """As `Store.reader`."""
        return OssReader(self._client, self._prefix)

    def upload(
        self,
        name: str,
        size: int,
        *,
        metadata: Mapping[str, str] | None = None,
        replace: bool = True,
        resume: bool | str = False,
        discard: bool = False,
        pace: Pace | None = None,  # noqa: ARG002  # nothing is read: OSS tells what it has
    ) -> SingleUpload | MultipartUpload:
        """As `Store.upload`. A resumed upload keeps the metadata that it was begun with."""
        sending = Sending(self._client, self._prefix, name, size, metadata or {}, replace=replace)
        return begin(sending, resume=resume, discard=discard)

    def delete(self, names: Sequence[str]) -> None:
        """As `Store.delete`."""
        keys = [self._client.key(self._prefix, name) for name in names]
        plain = [key for key in keys if key.isprintable()]
        for start in range(0, len(plain), _PAGE):
            self._remove(plain[start : start + _PAGE])
        for key in keys:
            if not key.isprintable():  # XML has no way to write most control characters
                with self._client.translated(self._client.subject(key), key=key):
                    self._client.control.delete_object(key)

    def _remove(self, keys: Sequence[str]) -> None:
        with self._client.translated(self._client.subject(self._prefix)):
            gone = set(self._client.control.batch_delete_objects([*keys]).deleted_keys)
        for key in keys:
            if key not in gone:
                raise RemoteError(f"{self._client.subject(key)} was not deleted")

    def unfinished(self) -> Iterator[Unfinished]:
        """The multipart uploads below the root that were begun and neither completed nor aborted, page by page."""
        for one in uploads(self._client, self._prefix):
            yield changed(one, name=one.name[len(self._prefix) :])
