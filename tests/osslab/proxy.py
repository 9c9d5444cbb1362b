"""A forward proxy that leads every name to one server: for proxies from the environment, and for names without DNS."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from typing import Self

from tests.osslab.wire import SLICE, Connection, Gone, Listener


class Proxy:
    """Passes on bytes to `target`, whatever host was asked for. `asked` holds "METHOD TARGET" of each connection's first request.

    With `credentials` ("user:password"), whoever does not give them gets 407.
    """

    def __init__(self, target: tuple[str, int], *, credentials: str | None = None) -> None:
        self._target, self._credentials = target, credentials
        self.asked: list[str] = []
        self.listener = Listener(self._serve)

    @property
    def url(self) -> str:
        """For http_proxy and https_proxy."""
        user = f"{self._credentials}@" if self._credentials else ""
        return f"http://{user}{self.listener.host}:{self.listener.port}"

    def __enter__(self) -> Self:
        self.listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.stop()

    def _serve(self, connection: Connection) -> None:
        lines = [connection.read_line()]
        while line := connection.read_line():
            lines.append(line)
        method, target, _ = lines[0].decode().split(" ")
        self.asked.append(f"{method} {target}")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(b":") for x in lines[1:])
        }
        if self._credentials is not None:
            wanted = b"Basic " + base64.b64encode(self._credentials.encode())
            if headers.get(b"proxy-authorization") != wanted:
                connection.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n"
                                b"Proxy-Authenticate: Basic\r\nConnection: close\r\n\r\n")  # fmt: skip
                return
        with socket.create_connection(self._target, 10) as onward:
            onward.settimeout(None)
            if method == "CONNECT":
                connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                onward.sendall(b"\r\n".join([*lines, b"", b""]))
            back = threading.Thread(target=_pour, args=(onward, connection.sock), daemon=True)
            back.start()
            with contextlib.suppress(Gone, OSError):
                while True:
                    onward.sendall(connection.read_some(SLICE))
            with contextlib.suppress(OSError):
                onward.shutdown(socket.SHUT_RDWR)
            back.join(5)


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(SLICE):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
