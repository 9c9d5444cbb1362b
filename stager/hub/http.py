"""Files of a hub, read by ranges over HTTP: the hub says where the bytes are, and mostly that is somewhere else.

A hub answers with a redirect to a presigned address at its CDN, which expires. That address is kept for all readers of the hub
and asked for again when it is refused. No credential and no region goes to any host but the hub's own.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from stager import __version__
from stager.core.errors import Interrupted, NotFound, ObjectChanged, RemoteError, StagerError
from stager.core.units import shown
from stager.hub.answers import checked, redirected, same_host
from stager.hub.base import HubFile
from stager.hub.refusals import LISTED, refused
from stager.hub.trouble import unreached
from stager.net.connection import Connection, Request, received
from stager.net.route import Origin, Route
from stager.store.base import BLOCK, Sink, StoredObject

USER_AGENT = f"stager/{__version__}"
REGION_HEADER = "x-aliyun-region-id"
_HOPS = 5  # redirects after which it is a circle
_REDIRECTS = {301, 302, 303, 307, 308}
_REFUSALS = {
    401,
    403,
    404,
    410,
}  # what a presigned address that has expired, or whose object moved, is answered with
_HEAD = 64 << 10  # bytes of an answer that is no file


@dataclass(frozen=True, slots=True)
class Address:
    """How a hub is asked for a file. `private` are headers for the hub's host alone: who asks."""

    url: str
    private: Mapping[str, str]


class Shelf:
    """The files of one snapshot and where their bytes were found last: what all readers of a hub share.

    `region` is the cloud region that the hub is told, so that it redirects to an internal address; it is dropped for good when that cannot be
    reached from here. Any thread may use it.
    """

    def __init__(
        self,
        source: str,
        route: Route,
        files: Iterable[HubFile],
        address: Callable[[str], Address],
        *,
        denied: str | None,
        token: str = "",
        region: str = "",
    ) -> None:
        """`address` says how a path is asked for; `denied` is the hint for a missing permission. `token` is kept out of messages."""
        self.source, self.route, self.denied = source, route, denied
        self.address, self.token = address, token
        self._files = {file.entry.path: file for file in files}
        self._lock = threading.Lock()
        self._targets: dict[str, str] = {}  # URLs as secret as passwords
        self._region = region
        self._reached: set[Origin] = set()

    def file(self, path: str) -> HubFile:
        """The file of that path. Raises `NotFound`."""
        try:
            return self._files[path]
        except KeyError:
            raise NotFound(f"{self.subject(path)} is not in the snapshot") from None

    def subject(self, path: str) -> str:
        """The file in words, for messages."""
        return f"`{shown(path)}` of {shown(self.source)}"

    def region(self) -> dict[str, str]:
        """The header that tells the hub in which region this is; none where that leads nowhere."""
        with self._lock:
            return {REGION_HEADER: self._region} if self._region else {}

    def target(self, path: str) -> str | None:
        """The URL where the bytes of `path` were found last."""
        with self._lock:
            return self._targets.get(path)

    def found(self, path: str, url: str) -> None:
        """Remembers that the bytes of `path` are at `url`."""
        with self._lock:
            self._targets[path] = url

    def forget(self, path: str, url: str | None) -> None:
        """`url` does not give the bytes of `path` any more; one that was found meanwhile stays."""
        with self._lock:
            if url is not None and self._targets.get(path) == url:
                del self._targets[path]

    def answered(self, origin: Origin) -> None:
        """A request to `origin` was answered."""
        with self._lock:
            self._reached.add(origin)

    def leave_region(self, origin: Origin, region: Mapping[str, str]) -> bool:
        """Whether the hub is to be asked again without a `region`, which led to `origin`, from where never an answer came."""
        with self._lock:
            if not region or origin in self._reached:
                return False
            self._region = ""
            return True


class HttpReader:
    """A `Reader` of a hub's files. `read` makes one attempt, of as many requests as there are redirects."""

    def __init__(self, shelf: Shelf) -> None:
        """Connects when it first reads: once to the hub, and once to wherever it redirects to."""
        self._shelf = shelf
        self._hub, self._elsewhere = Connection(shelf.route), Connection(shelf.route)
        self._scratch: memoryview | None = None
        self._own: BaseException | None = None
        self._used: str | None = None  # where the bytes of this read come from

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
        file = self._shelf.file(name)
        subject = self._shelf.subject(name)
        if etag is not None and etag != file.version:
            raise ObjectChanged(f"{subject} is no longer the version that was asked for")
        size = file.entry.size
        if offset + length > size:
            raise ObjectChanged(f"{subject} has {size} bytes, asked for {offset}-{offset + length - 1}")
        if length:
            self._attempt(name, offset, length, size, sink, into)
        return StoredObject(name, size, file.version)

    def _attempt(
        self, name: str, offset: int, length: int, size: int, sink: Sink, into: memoryview | None
    ) -> None:
        subject = self._shelf.subject(name)
        self._own = None
        self._hub.begin()
        self._elsewhere.begin()
        try:
            connection, response = self._open(name, offset, length)
            skip, rest = checked(response, offset, length, size, subject)
            self._deliver(connection, response, skip, length, rest, sink, into, subject)
        except BaseException as exc:
            self._drop()
            if exc is not self._own and isinstance(exc, Exception):
                if self._stopped():
                    raise Interrupted(f"the read of {subject} was interrupted") from exc
                # Whoever serves it now may be the trouble: the next attempt asks the hub.
                self._shelf.forget(name, self._used)
            raise
        finally:
            self._hub.end()
            self._elsewhere.end()

    def _open(self, name: str, offset: int, length: int) -> tuple[Connection, http.client.HTTPResponse]:
        """The answer that has the bytes, or all of the file; its body unread."""
        ranged = {
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            "Range": f"bytes={offset}-{offset + length - 1}",
        }
        self._used = self._shelf.target(name)
        if self._used is not None:
            try:
                return self._follow(name, self._used, {}, ranged)
            except _Refused as exc:
                if exc.status not in _REFUSALS:
                    raise exc.error from None
                self._shelf.forget(name, self._used)
            except _Unreached as exc:
                raise exc.error from exc.error.__cause__
        region = self._shelf.region()
        try:
            return self._ask(name, region, ranged)
        except _Unreached as exc:
            if self._stopped() or not self._shelf.leave_region(exc.origin, region):
                raise exc.error from exc.error.__cause__
        try:
            return self._ask(name, {}, ranged)
        except _Unreached as exc:
            raise exc.error from exc.error.__cause__

    def _ask(
        self, name: str, region: Mapping[str, str], ranged: Mapping[str, str]
    ) -> tuple[Connection, http.client.HTTPResponse]:
        """The answer, beginning at the hub. What the hub refuses is refused; an address that it has just given may be a stale one of its own cache."""
        asked = self._shelf.address(name)
        try:
            return self._follow(name, asked.url, {**asked.private, **region}, ranged)
        except _Refused as exc:
            if exc.at_hub or exc.status not in _REFUSALS:
                raise exc.error from None
            raise RemoteError(f"{exc.error.message}; the hub has just given that address") from None

    def _follow(
        self, name: str, url: str, private: Mapping[str, str], ranged: Mapping[str, str]
    ) -> tuple[Connection, http.client.HTTPResponse]:
        """The answer at `url`, or wherever that redirects to. `private` is said only while it is the same host."""
        home, start = Origin.of(self._shelf.address(name).url), url
        subject = self._shelf.subject(name)
        for _ in range(_HOPS + 1):
            origin = Origin.of(url)
            connection = self._hub if origin == home else self._elsewhere
            try:
                response = connection.request(Request("GET", url, {**ranged, **private}))
            except (OSError, http.client.HTTPException) as exc:
                error = unreached(exc, f"{subject}, at {shown(origin.host)}")
                error.__cause__ = exc
                raise _Unreached(error, origin) from exc
            self._shelf.answered(origin)
            if response.status not in _REDIRECTS:
                break
            url = redirected(url, response, subject)
            if not same_host(origin, Origin.of(url)):
                private = {}
            _spend(connection, response, self._shelf.route.read_timeout)
        else:
            raise RemoteError(f"{subject}: more than {_HOPS} redirects")
        if response.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
            raise self._refusal(connection, response, subject, origin, at_hub=origin == home)
        if url != start and origin != home:  # what the hub serves itself needs its credentials
            self._shelf.found(name, url)
            self._used = url
        return connection, response

    def _refusal(
        self,
        connection: Connection,
        response: http.client.HTTPResponse,
        subject: str,
        origin: Origin,
        *,
        at_hub: bool,
    ) -> _Refused:
        body = b""
        with suppress(OSError, http.client.HTTPException):  # the status says enough
            body = received(response, _HEAD, self._shelf.route.read_timeout)
        connection.drop()
        error = refused(
            response.status,
            response.headers,
            body,
            subject,
            at=origin.host,
            hint=self._shelf.denied if at_hub else None,
            token=self._shelf.token,
            now=time.time(),
        )
        return _Refused(error, response.status, at_hub=at_hub)

    def _deliver(
        self,
        connection: Connection,
        response: http.client.HTTPResponse,
        skip: int,
        length: int,
        rest: int,
        sink: Sink,
        into: memoryview | None,
        subject: str,
    ) -> None:
        """Gives `sink` the `length` bytes of the body after the first `skip`; `rest` come after them."""
        left = skip + length
        with connection.body(response) as receive:
            while left:
                wanted = min(BLOCK, left - length if left > length else left)
                view = into[length - left :] if into is not None and left <= length else self._block()
                try:
                    got = receive(view[:wanted])
                except (OSError, http.client.HTTPException) as exc:
                    raise unreached(exc, subject) from exc
                if not got:
                    raise RemoteError(f"{subject}: the answer ended {left + rest} bytes early")
                left -= got
                if left + got <= length:
                    try:
                        sink(view[:got])
                    except BaseException as exc:
                        self._own = exc
                        raise
                if self._stopped() and left:
                    raise Interrupted(f"the read of {subject} was interrupted")
            if not rest and response.length is None and _more(receive, self._block(), subject):
                raise ObjectChanged(f"{subject} has more bytes than the hub listed", hint=LISTED)
        if rest:
            connection.drop()  # what is left of the body is nobody's

    def _block(self) -> memoryview:
        """Memory for bytes that go nowhere else; most readers need none: a lane brings its own, and there may be 128."""
        if self._scratch is None:
            self._scratch = memoryview(bytearray(BLOCK))
        return self._scratch

    def _stopped(self) -> bool:
        return self._hub.stopped or self._elsewhere.stopped

    def _drop(self) -> None:
        self._hub.drop()
        self._elsewhere.drop()

    def interrupt(self) -> None:
        """As `Reader.interrupt`."""
        self._hub.interrupt()
        self._elsewhere.interrupt()

    def close(self) -> None:
        """As `Reader.close`."""
        self._drop()


class _Refused(Exception):
    """An answer that says no. Within this module: `error` is what leaves it."""

    def __init__(self, error: StagerError, status: int, *, at_hub: bool) -> None:
        super().__init__(status)
        self.error, self.status, self.at_hub = error, status, at_hub


class _Unreached(Exception):
    """No answer from `origin`. Within this module: `error` is what leaves it."""

    def __init__(self, error: StagerError, origin: Origin) -> None:
        super().__init__(origin)
        self.error, self.origin = error, origin


def _spend(connection: Connection, response: http.client.HTTPResponse, patience: float) -> None:
    """Reads the body of a redirect, so that the connection serves the next request; a long one is not worth it."""
    try:
        if response.length is not None and response.length <= _HEAD:
            received(response, None, patience)
            return
    except (OSError, http.client.HTTPException):
        pass
    connection.drop()


def _more(receive: Callable[[memoryview], int], view: memoryview, subject: str) -> bool:
    """Whether a body that does not say its length goes on."""
    try:
        return receive(view[:1]) > 0
    except (OSError, http.client.HTTPException) as exc:
        raise unreached(exc, subject) from exc
