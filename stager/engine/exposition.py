"""Where a run's metrics go: a file for node-exporter's textfile collector, and an HTTP port for a scraper."""

from __future__ import annotations

import errno
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stager.core.errors import LocalIOError, StagerError, from_oserror
from stager.core.metrics import CONTENT_TYPE
from stager.core.units import shown
from stager.node.replacing import replace

INTERVAL = 15.0  # seconds between two writes of the file
_PATIENCE = 0.5  # seconds for the last write; a stopped run must have exited after 2
_REQUEST_S = 5.0  # seconds for a client to say what it wants, and as many to take the answer
_CLIENTS = 16  # at once; a scraper needs one

Render = Callable[[], str]
Ready = Callable[[str], tuple[bool, str]]


class MetricsFile:
    """Writes what `render` gives to `path` every `interval` seconds, in a thread of its own: the filesystem may hang.

    The first error is told to `on_error`, once; it is tried again all the same.
    """

    def __init__(
        self,
        path: str,
        render: Render,
        on_error: Callable[[StagerError], None],
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._path = path
        self._render = render
        self._on_error = on_error
        self._interval = interval
        self._told = False
        self._due = threading.Event()
        self._closed = False
        self._writer = threading.Thread(target=self._write_on, name="stager-metrics", daemon=True)

    def start(self) -> None:
        """Write now, and from now on."""
        self._writer.start()

    def write_soon(self) -> None:
        """Something important has happened: do not wait for the interval."""
        self._due.set()

    def close(self) -> None:
        """Write once more, waiting at most half a second for it."""
        self._closed = True
        self._due.set()
        if self._writer.is_alive():
            self._writer.join(_PATIENCE)

    def _write_on(self) -> None:
        while True:
            last = self._closed
            self._write()
            if last:
                return
            self._due.wait(self._interval)
            self._due.clear()

    def _write(self) -> None:
        subject = f"`{shown(self._path)}`"
        try:
            replace(self._path, self._render().encode(), subject)
        except OSError as exc:
            self._tell(from_oserror(exc, subject))
        except StagerError as error:
            self._tell(error)

    def _tell(self, error: StagerError) -> None:
        if not self._told:
            self._told = True
            error.hint = "choose a FILE in a writable folder with --metrics; the run goes on without"
            self._on_error(error)


class MetricsServer:
    """Answers GET /metrics by `render`, /ready by `ready` (which gets the states to accept), and /healthz while it lives.

    Listens on `address`, an IP address and a port (0: any), from the start; `url` says where. Raises `StagerError` when it cannot.
    """

    def __init__(self, address: tuple[str, int], render: Render, ready: Ready) -> None:
        try:
            self._server = _Server(address, render, ready)
        except OSError as exc:
            raise _unbound(address, exc) from exc
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="stager-scrapes",
            daemon=True,
        )

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self._server.server_address[:2]
        return f"http://{_written(str(host))}:{port}/metrics"

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; answers under way are left to themselves."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _unbound(address: tuple[str, int], exc: OSError) -> StagerError:
    where = f"{_written(address[0])}:{address[1]}"
    subject = f"cannot listen on `{where}` for metrics"
    error = from_oserror(exc, subject)
    if exc.errno == errno.EADDRINUSE:
        error = LocalIOError(f"{subject}: the port is in use", hint="choose another with --metrics-listen")
    elif exc.errno == errno.EADDRNOTAVAIL:
        hint = "`--metrics-listen 0.0.0.0:PORT` listens on all of its addresses"
        error = LocalIOError(f"{subject}: not an address of this machine", hint=hint)
    elif exc.errno == errno.EACCES:
        error.hint = "ports below 1024 need a privilege; choose a higher one"
    return error


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One daemon thread a client, and no more than `_CLIENTS` of them, none of which may take its time.

    A deadline for each read would be none: a byte now and then keeps a place for ever.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 16
    patience = _REQUEST_S

    def __init__(self, address: tuple[str, int], render: Render, ready: Ready) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.render, self.ready = render, ready
        self._places = threading.BoundedSemaphore(_CLIENTS)
        self._ends: dict[Any, float] = {}
        self._ending = threading.Lock()  # a socket that is closed meanwhile may be another one by now
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """One more client, or one too many."""
        if self._places.acquire(blocking=False):
            self.expect(request)
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the client's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def expect(self, request: Any) -> None:
        """It is the client's turn on the socket `request`: it has so many seconds from now."""
        with self._ending:
            self._ends[request] = time.monotonic() + self.patience

    def heard(self, request: Any) -> None:
        """It is our turn: an answer takes as long as it takes."""
        with self._ending:
            self._ends.pop(request, None)

    def service_actions(self) -> None:
        """Ten times a second: an end for whom time has run out."""
        now = time.monotonic()
        with self._ending:
            for request in [one for one, end in self._ends.items() if end < now]:
                del self._ends[request]
                with suppress(OSError):  # gone by itself
                    request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Done with it, answered or not."""
        self.heard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's business."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.heard(self.request)
        asked = urlsplit(self.path)
        if asked.path == "/metrics":
            self._answer(200, self.server.render(), CONTENT_TYPE)
        elif asked.path == "/ready":
            accept = ",".join(parse_qs(asked.query).get("accept", []))
            yes, why = self.server.ready(accept)
            self._answer(200 if yes else 503, f"{why}\n")
        elif asked.path == "/healthz":
            self._answer(200, "alive\n")
        else:
            self._answer(404, "here are /metrics, /ready and /healthz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode("utf-8", "backslashreplace")
        self.server.expect(self.request)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """What the Server header says."""
        return "stager"

    def log_message(self, *_args: object) -> None:
        """Say nothing: a scrape every few seconds is no news."""
