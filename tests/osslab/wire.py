"""HTTP/1.1 by hand: one connection, its requests, and bytes on their way out, so that faults can strike anywhere."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote, unquote_plus, urlsplit

from tests.osslab.throttle import Throttle

SLICE = 1 << 20
MAX_HEAD = 1 << 17
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends RST


class Gone(Exception):
    """The client is away, or said something that is no HTTP: nothing can be answered."""


class Body:
    """A request's body, read at most once. `length` is None when it comes in chunks."""

    def __init__(self, connection: Connection, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._expects = headers.get("expect", "").lower() == "100-continue"
        self.chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self.told = self.chunked or "content-length" in headers
        self.length = None if self.chunked else int(headers.get("content-length") or 0)
        self.got = 0
        self._source = self._chunks() if self.chunked else self._plain()

    def __iter__(self) -> Iterator[memoryview]:
        """Pieces of at most `SLICE` bytes, each valid until the next. Raises `Gone` when the body ends early."""
        if self._expects:
            self._expects = False
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        for piece in self._source:
            self.got += len(piece)
            yield piece

    def whole(self, limit: int = 16 << 20) -> bytes:
        """All of it; `Gone` when it is larger than `limit`."""
        data = bytearray()
        for piece in self:
            data += piece
            if len(data) > limit:
                raise Gone("body too large")
        return bytes(data)

    @property
    def unasked(self) -> bool:
        """The client waits for 100 (Continue) and did not get it: the body may come or not, so the connection cannot go on."""
        return self._expects

    def drain(self) -> None:
        """Read what is left, so that the next request begins where it should."""
        if self.unasked:
            return
        for _ in self:
            pass

    def _plain(self) -> Iterator[memoryview]:
        left = self.length or 0
        while left:
            piece = self._connection.read_some(min(left, SLICE))
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[memoryview]:
        while size := int(self._connection.read_line().split(b";")[0], 16):
            left = size
            while left:
                piece = self._connection.read_some(min(left, SLICE))
                left -= len(piece)
                yield piece
            self._connection.read_line()
        while self._connection.read_line():
            pass


@dataclass
class Request:
    """One request. `path` is as sent (percent-encoded), header names are in lower case, `query` is decoded."""

    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Body
    absolute: bool = False  # the target was a whole URL: sent to us as to a proxy

    @property
    def host(self) -> str:
        """The Host header without the port."""
        host = self.headers.get("host", "")
        return host[: host.rindex("]") + 1] if host.startswith("[") else host.partition(":")[0]

    @property
    def plain_path(self) -> str:
        """The path decoded; what is no UTF-8 is kept as surrogates."""
        return unquote(self.path, errors="surrogateescape")


def parse_query(text: str) -> dict[str, str]:
    """Names and values, decoded; a name without a value has the empty one."""
    found: dict[str, str] = {}
    for pair in filter(None, text.split("&")):
        name, _, value = pair.partition("=")
        found[unquote_plus(name, errors="surrogateescape")] = unquote_plus(value, errors="surrogateescape")
    return found


@dataclass
class Answer:
    """What goes back. `body` is bytes, or a function that sends `length` bytes by itself."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None  # Content-Length when it is not that of `body`


class Connection:
    """One client's connection, read and written by one thread."""

    def __init__(self, sock: socket.socket, address: tuple[str, int], number: int) -> None:
        self.sock, self.address, self.number = sock, address, number
        self._held = bytearray()
        self._room = bytearray(SLICE)
        self.dead = False
        self.incoming: Throttle | None = None  # of the bodies of requests

    # reading

    def _more(self) -> None:
        try:
            got = self.sock.recv_into(self._room)
        except (OSError, ssl.SSLError) as error:
            raise Gone(str(error)) from error
        if not got:
            raise Gone("end of stream")
        self._held += memoryview(self._room)[:got]

    def read_line(self) -> bytes:
        """One line without its end."""
        while (end := self._held.find(b"\r\n")) < 0:
            if len(self._held) > MAX_HEAD:
                raise Gone("line too long")
            self._more()
        line = bytes(self._held[:end])
        del self._held[: end + 2]
        return line

    def read_some(self, most: int) -> memoryview:
        """Between 1 and `most` bytes (at most `SLICE`)."""
        piece = self._some(most)
        if self.incoming is not None:
            self.incoming.take(len(piece))
        return piece

    def _some(self, most: int) -> memoryview:
        if self._held:
            got = min(most, len(self._held), SLICE)
            self._room[:got] = self._held[:got]
            del self._held[:got]
            return memoryview(self._room)[:got]
        try:
            got = self.sock.recv_into(memoryview(self._room)[:most])
        except (OSError, ssl.SSLError) as error:
            raise Gone(str(error)) from error
        if not got:
            raise Gone("end of stream")
        return memoryview(self._room)[:got]

    def read_request(self) -> Request | None:
        """The next request, or None when the client is through."""
        try:
            while not (line := self.read_line()):
                pass
            method, target, _ = line.decode("ascii", "surrogateescape").split(" ", 2)
            headers: dict[str, str] = {}
            while header := self.read_line():
                name, _, value = header.decode("utf-8", "surrogateescape").partition(":")
                headers[name.strip().lower()] = value.strip()
            body = Body(self, headers)
        except (Gone, ValueError):
            return None
        absolute = "://" in target.partition("?")[0]
        path, _, query = target.partition("?")
        if absolute:
            path = urlsplit(path).path or "/"
        return Request(method, target, path, parse_query(query), headers, body, absolute)

    # writing

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """All of `data`; with `more`, something follows at once and shares its packets."""
        try:
            if more and not isinstance(self.sock, ssl.SSLSocket):
                self.sock.sendall(data, socket.MSG_MORE)
            else:
                self.sock.sendall(data)
        except OSError as error:
            self.dead = True
            raise Gone(str(error)) from error

    def send_file(self, fd: int, offset: int, count: int, sent: Callable[[int], None]) -> None:
        """Bytes of a file, without passing through Python where there is no TLS; `sent` hears of each slice."""
        end = offset + count
        while offset < end:
            step = min(SLICE, end - offset)
            try:
                if isinstance(self.sock, ssl.SSLSocket):
                    data = os.pread(fd, step, offset)
                    self.sock.sendall(data)
                    done = len(data)
                else:
                    done = os.sendfile(self.sock.fileno(), fd, offset, step)
            except OSError as error:
                self.dead = True
                raise Gone(str(error)) from error
            if not done:
                self.dead = True
                raise Gone("the file is shorter than it was")
            offset += done
            sent(done)

    def send_head(self, status: int, headers: Mapping[str, str], *, more: bool = False) -> None:
        """Status line and headers."""
        phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape"), more=more)

    def reset(self) -> None:
        """End with RST: what the client has not read yet may be lost to it."""
        self.dead = True
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close_raw()

    def close(self) -> None:
        """End with FIN."""
        self.dead = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._close_raw()

    def interrupt(self) -> None:
        """From another thread: whatever this connection waits for ends."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def _close_raw(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()


class Listener:
    """Accepts connections on one address and gives each its thread; `serve` handles one until it ends."""

    def __init__(
        self,
        serve: Callable[[Connection], None],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._serve, self._tls = serve, tls
        self._sock = socket.create_server((host, port), backlog=512)
        self.host, self.port = self._sock.getsockname()[:2]
        self._lock = threading.Lock()
        self._live: dict[int, tuple[Connection, threading.Thread]] = {}
        self.accepted = 0
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"listener-{self.port}", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """End every connection and forget the port. May be called twice."""
        self.stopping.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self._thread.is_alive():
            self._thread.join(5)
        with self._lock:
            live = list(self._live.values())
        for connection, _ in live:
            connection.interrupt()
        for _, thread in live:
            thread.join(5)

    def cut(self) -> int:
        """End the connections that are open now, in mid-sentence; new ones are welcome. Gives their number."""
        with self._lock:
            live = [connection for connection, _ in self._live.values()]
        for connection in live:
            connection.interrupt()
        return len(live)

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        with self._lock:
            return len(self._live)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, address = self._sock.accept()
            except OSError:
                if self.stopping.is_set():
                    return
                self.stopping.wait(0.01)  # out of descriptors, or the client left at once
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                connection = Connection(sock, address[:2], self.accepted)
                thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
                self._live[connection.number] = (connection, thread)
            thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            if self._tls is not None:
                connection.sock.settimeout(10)
                connection.sock = self._tls.wrap_socket(connection.sock, server_side=True)
                connection.sock.settimeout(None)
            self._serve(connection)
        except (Gone, OSError):
            pass
        finally:
            connection.close()
            with self._lock:
                self._live.pop(connection.number, None)
