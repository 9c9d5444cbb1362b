"""One connection, kept alive: requests go out, bodies come in straight into the caller's memory, and any thread may end it.

Plain HTTP/1.1 over http.client, for everything that stager says to OSS and to hubs. Nothing of requests and urllib3 is used, nor their
``.netrc``, redirects and path clean-up.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote, urlsplit

from stager.core.errors import Interrupted, UsageError
from stager.core.units import shown
from stager.net.route import Origin, Proxy, Route

BLOCK = 1 << 20
"""Bytes at most that are sent or handed on at once, between two looks at the clock."""

Pace: TypeAlias = Callable[[int], None]
"""Called with the size of the next block, at most `BLOCK`, before it is sent. It may wait. What it raises ends the call and comes out of
it unchanged."""

_SLICE_S = 0.5  # a block that fills slowly is handed on in parts: a trickle must be seen as one
_LARGEST = 64 << 20  # bytes of an answer that is read whole; a page of a listing with long names has 3 MiB


class Outgoing(Protocol):
    """A request, as oss2 makes them. `params` are added to the query of `url`, whose own stays as it is."""

    method: str
    url: str
    headers: Mapping[str, str]
    params: Mapping[str, str]
    data: Any


@dataclass(slots=True)
class Request:
    """A request of stager's own."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""


class TooLong(http.client.HTTPException):
    """An answer that is read whole is larger than any that OSS sends."""


def received(response: http.client.HTTPResponse, amt: int | None, patience: float) -> bytes:
    """The next `amt` bytes of the body, or all of it.

    Raises `TooLong` for a whole body that is larger than any control answer, TimeoutError when `patience` seconds were not enough,
    and what the connection raises.
    """
    until, body = time.monotonic() + patience, bytearray()
    while amt is None or len(body) < amt:
        piece = response.read1(BLOCK if amt is None else amt - len(body))
        if not piece:
            break
        body += piece
        if amt is None and len(body) > _LARGEST:
            raise TooLong(f"more than {_LARGEST >> 20} MiB")
        if time.monotonic() > until:
            raise TimeoutError("timed out")
    if amt is None:
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # `read1` does not see that this was the end, and the connection may serve the next request
    return bytes(body)


class Connection:
    """One connection to wherever requests go, opened when needed and again after `drop`.

    One thread at a time, but for `interrupt`, which ends what happens between `begin` and `end`.
    """

    def __init__(self, route: Route) -> None:
        """Not connected yet."""
        self._route = route
        self._origin: Origin | None = None
        self._proxy: Proxy | None = None
        self._http: http.client.HTTPConnection | None = None
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()
        self._busy = False
        self.stopped = False

    def request(self, req: Outgoing, pace: Pace | None = None) -> http.client.HTTPResponse:
        """Sends a request and gives the answer, its body unread. Raises OSError and `http.client.HTTPException`.

        `pace` is called before each block of the body. A proxy on the way is noted in what is raised.
        """
        try:
            return self._request(req, pace)
        except (OSError, http.client.HTTPException) as exc:
            if self._proxy is not None:
                exc.add_note(f"through the proxy {self._proxy}")
            raise

    def _request(self, req: Outgoing, pace: Pace | None) -> http.client.HTTPResponse:
        query = "&".join(
            f"{quote(k, '')}={quote(v, '')}" if v else quote(k, "") for k, v in req.params.items()
        )
        url = f"{req.url}?{query}" if query else req.url
        wire = self._connected(Origin.of(url))
        parts = urlsplit(url)
        proxy = self._proxy if parts.scheme == "http" else None  # through a tunnel nothing is said to it
        target = url if proxy else url.removeprefix(f"{parts.scheme}://{parts.netloc}") or "/"
        body = memoryview(req.data or b"")
        wire.putrequest(req.method, target, skip_host=True, skip_accept_encoding=True)
        _put(wire, "Host", parts.netloc)
        for name, value in req.headers.items():
            if value is not None and name.lower() != "content-length":
                _put(wire, name, value)
        if proxy and proxy.authorization:
            _put(wire, "Proxy-Authorization", proxy.authorization)
        if body.nbytes or req.method in ("PUT", "POST"):
            _put(wire, "Content-Length", str(body.nbytes))
        wire.endheaders()
        refused = self._send(wire, body, pace)
        try:
            response = wire.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise refused or exc from None
        if refused is not None and response.status < 400:
            raise refused
        return response

    def _send(self, wire: http.client.HTTPConnection, body: memoryview, pace: Pace | None) -> OSError | None:
        """Sends the body in blocks; gives the error when the other side stopped listening, for it may have said why."""
        for start in range(0, body.nbytes, BLOCK):
            # One sendall for all would put one timeout over the whole body.
            block = body[start : start + BLOCK]
            if pace is not None:
                pace(len(block))
            try:
                wire.send(block)
            except (BrokenPipeError, ConnectionResetError) as exc:
                return exc
        return None

    def _connected(self, origin: Origin) -> http.client.HTTPConnection:
        if self._http is not None and (self._http.sock is None or origin != self._origin or self._stale()):
            self.drop()
        if self._http is None:
            self._proxy = self._route.proxy(origin)
            sock = self._route.open(origin, self._proxy, self._hold)
            wire = http.client.HTTPConnection(origin.host, origin.port)
            wire.auto_open = 0  # a connection that ends is ours to replace
            wire.sock = sock
            self._http, self._origin = wire, origin
        return self._http

    def _stale(self) -> bool:
        """Whether the other side closed the idle connection, or said something nobody asked for."""
        assert self._sock is not None
        poll = select.poll()
        try:
            poll.register(self._sock, select.POLLIN)
        except (OSError, ValueError):
            return True
        return bool(poll.poll(0))

    def _hold(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = sock
            if self.stopped:
                raise Interrupted("interrupted")

    @contextmanager
    def body(self, response: http.client.HTTPResponse) -> Iterator[Callable[[memoryview], int]]:
        """Gives a function that fills a view with the next bytes of the body: how many, 0 where the connection ends.

        The whole body must be asked for, and no more, if the connection is to be used again. Raises OSError.
        """
        sock = self._sock
        if sock is None or isinstance(sock, ssl.SSLSocket) or response.chunked:
            yield response.readinto
        else:
            with _blocking(sock, self._route.read_timeout):
                yield _Body(sock, response, self._route.read_timeout).fill
        response.close()

    def begin(self) -> None:
        """From now on `interrupt` means this call."""
        with self._lock:
            self._busy, self.stopped = True, False

    def end(self) -> None:
        """From now on `interrupt` does nothing. An interruption that came too late for the call leaves no broken connection."""
        with self._lock:
            self._busy = False
            stopped, self.stopped = self.stopped, False
        if stopped:
            self.drop()

    def interrupt(self) -> None:
        """From any thread: whatever waits on this connection ends. Sockets are shut down, and closed by their own thread."""
        with self._lock:
            if not self._busy:
                return
            self.stopped = True
            if self._sock is not None:
                with suppress(OSError):
                    # Not SSLSocket's own: that takes the TLS away under a reader, who would take the ciphertext for data.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def drop(self) -> None:
        """Closes; the next request connects again."""
        with self._lock:
            sock, self._sock = self._sock, None
        if self._http is not None:
            self._http.close()  # closes an answer that is half read as well
            self._http = None
        if sock is not None:
            sock.close()


def _put(wire: http.client.HTTPConnection, name: str, value: str | bytes) -> None:
    try:
        wire.putheader(name, value.encode("utf-8") if isinstance(value, str) else value)
    except ValueError:
        # What was raised has the value, which may be a signature or a token. The same request would fail again.
        raise UsageError(f"the header `{shown(str(name))}` of a request would hold a line break") from None


class _Body:
    """A body that the kernel puts straight into the caller's memory, a view at a time.

    A socket with a timeout wakes its thread for every few packets. Over a link of 8 Gbit/s with packets of 1,500 bytes, four connections took
    0.38 CPU seconds a GB through http.client's buffer and 0.30 this way; at the speed of memory both were the same.
    """

    def __init__(self, sock: socket.socket, response: http.client.HTTPResponse, patience: float) -> None:
        """`sock` blocks, for `_SLICE_S` at most. `patience` is how many seconds without a byte end it."""
        self._sock = sock
        self._response = response
        self._patience = patience
        self._ahead = len(response.fp.peek()) if response.fp is not None else 0  # came with the headers

    def fill(self, view: memoryview) -> int:
        """The next bytes, as many as `view` holds unless they are slow to come. Raises TimeoutError, OSError."""
        if self._ahead:
            got = self._response.readinto(view[: self._ahead])
            self._ahead -= got
            return got
        since = time.monotonic()
        while True:
            try:
                return self._sock.recv_into(view, 0, socket.MSG_WAITALL)
            except BlockingIOError:  # a slice of time without a byte
                if time.monotonic() - since >= self._patience:
                    raise TimeoutError("timed out") from None


@contextmanager
def _blocking(sock: socket.socket, timeout: float) -> Iterator[None]:
    """Lets `sock` block for `_SLICE_S` seconds at a time; afterwards it has its `timeout` again."""
    sock.settimeout(None)
    _limit(sock, min(_SLICE_S, timeout))
    try:
        yield
    finally:
        with suppress(OSError):  # closed meanwhile
            _limit(sock, 0)
            sock.settimeout(timeout)


def _limit(sock: socket.socket, seconds: float) -> None:
    whole = int(seconds)
    value = struct.pack("ll", whole, int((seconds - whole) * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
