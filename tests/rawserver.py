"""A server that answers each path with given bytes, as they are: for answers that no honest server gives."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Self


class RawServer:
    """``answers[path]`` is sent for that path, head and all; then the connection is closed unless the answer says its length. `asked` are the requests."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while head := self._head():
                    outer.asked.append(head)
                    sent = outer.answers[head.split(" ")[1]]
                    try:
                        self.wfile.write(sent)
                    except OSError:
                        return
                    if b"Content-Length" not in sent:
                        return

            def _head(self) -> str:
                lines = []
                try:
                    while (line := self.rfile.readline().decode("latin-1").strip()) != "":
                        lines.append(line)
                except OSError:
                    return ""
                return "\n".join(lines)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            address_family = socket.AF_INET

        self._server = Server((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(status: str, *headers: str, body: bytes = b"", length: bool = True) -> bytes:
    """The bytes of an answer; `length` adds Content-Length."""
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
