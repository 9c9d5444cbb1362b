"""What oss2 hands its signed requests to: `Line`, one connection for a reader or an upload, and `Pool`, a few for everything else.

oss2 builds, signs and parses; stager carries. So signatures stay in headers, which no proxy writes down as it does URLs, both kinds of
request have one transport (timeouts, proxies, certificates, source addresses), and bodies go around oss2: read straight into the reader's
buffer, sent straight from the caller's memory.
"""

from __future__ import annotations

import http.client
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

from stager.net.connection import BLOCK, Connection, Pace, received
from stager.net.route import Route

_READS = 3  # an answer that is read whole may take this many read timeouts, so that one that drips in byte by byte ends too
_MOST_IDLE = 16  # connections kept for control requests; beyond that they are closed after use


class Answer:
    """An answer as oss2 wants it. `body` is the whole body where it was read already."""

    def __init__(
        self, response: http.client.HTTPResponse, body: bytes | None = None, *, patience: float
    ) -> None:
        """`response` has its headers read. `patience` is how many seconds each `read` may take."""
        self.response = response
        self.status = response.status
        self.headers = response.headers
        self.request_id = response.headers.get("x-oss-request-id", "")
        self.body = body
        self._left = body
        self._patience = patience

    def read(self, amt: int | None = None) -> bytes:
        """The next `amt` bytes, or all that is left. Raises as `received` does."""
        if self._left is None:
            return received(self.response, amt, self._patience)
        got = self._left if amt is None else self._left[:amt]
        self._left = self._left[len(got) :]
        return got

    def __iter__(self) -> Iterator[bytes]:
        while got := self.read(BLOCK):
            yield got


class Line:
    """An oss2 session over one connection, for one reader or upload. `answer` is the latest one, its body unread.

    `pace` is called before each block that is sent; `own` is what it raised, which is nobody else's to translate.
    """

    def __init__(self, route: Route) -> None:
        """Not connected yet."""
        self.connection = Connection(route)
        self.answer: Answer | None = None
        self._patience = _READS * route.read_timeout
        self.pace: Pace | None = None
        self.own: BaseException | None = None

    def do_request(self, req: Any, timeout: Any) -> Answer:  # noqa: ARG002  # the route has the timeouts
        """What oss2 calls. Raises OSError and `http.client.HTTPException`."""
        response = self.connection.request(req, self._paced if self.pace else None)
        self.answer = Answer(response, patience=self._patience)
        return self.answer

    def _paced(self, size: int) -> None:
        assert self.pace is not None
        try:
            self.pace(size)
        except BaseException as exc:
            self.own = exc
            raise


class Pool:
    """An oss2 session for requests of any thread; bodies are read whole. Not shared with a forked child."""

    def __init__(self, route: Route) -> None:
        """No connection yet."""
        self._route = route
        self._idle: deque[Connection] = deque()
        self._pid = os.getpid()

    def do_request(self, req: Any, timeout: Any) -> Answer:  # noqa: ARG002  # the route has the timeouts
        """What oss2 calls. Raises OSError and `http.client.HTTPException`."""
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = Connection(self._route)
        try:
            response = connection.request(req)
            patience = _READS * self._route.read_timeout
            answer = Answer(response, received(response, None, patience), patience=patience)
        except BaseException:
            connection.drop()
            raise
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.drop()
        return answer
