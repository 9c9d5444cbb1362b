"""A question to an engine's health URL that waits as long as the engine lets it: one that listens before it serves answers what came first."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPSHandler, ProxyHandler, Request, build_opener

# A full queue drops the first packet, which the kernel repeats after 1, 3, 7 s: a new connection comes sooner.
_CONNECT_S = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """The `status` of an answer, None without one. `waited`: somebody had the question until the end, and did not answer."""

    status: int | None
    waited: bool = False


class Question:
    """Asks one URL again and again, one question at a time. `drop` may be called from another thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._socket: socket.socket | None = None
        self._dropped = False
        # Directly: a proxy of the environment knows nothing of an engine beside us.
        self._opener = build_opener(ProxyHandler({}), _Http(self), _Https(self))

    def ask(self, patience: float) -> Answer:
        """What the URL answers within `patience` seconds. Blocks; never raises."""
        self._socket = None
        try:
            with self._opener.open(self._url, timeout=patience) as response:
                return Answer(int(response.status))
        except HTTPError as error:
            error.close()
            return Answer(error.code)
        except TimeoutError:
            return Answer(None, waited=self._socket is not None)
        except (HTTPException, OSError, ValueError):
            return Answer(None)

    def drop(self) -> None:
        """Ask no more; whoever waits for an answer comes back."""
        self._dropped = True
        if self._socket is not None:
            with suppress(OSError):  # it has ended meanwhile
                self._socket.shutdown(socket.SHUT_RDWR)

    def has(self, connected: socket.socket) -> None:
        """`connected` leads to who is asked. Raises ``OSError`` when nobody wants to know any more."""
        self._socket = connected
        if self._dropped:
            raise ConnectionAbortedError


class _Connection(HTTPConnection):
    """Gives up soon where nobody takes the connection, and not before its timeout where somebody has."""

    def __init__(self, *args: Any, question: Question, **named: Any) -> None:
        self._question = question
        super().__init__(*args, **named)

    def connect(self) -> None:
        patience = self.timeout
        self.timeout = min(_CONNECT_S, patience or _CONNECT_S)
        try:
            super().connect()
        finally:
            self.timeout = patience
        self.sock.settimeout(patience)
        self._question.has(self.sock)


class _SecureConnection(HTTPSConnection, _Connection):
    """The same below TLS."""


class _Http(HTTPHandler):
    def __init__(self, question: Question) -> None:
        super().__init__()
        self._question = question

    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(_Connection, question=self._question), request)


class _Https(HTTPSHandler):
    def __init__(self, question: Question) -> None:
        super().__init__()
        self._question = question

    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(_SecureConnection, question=self._question), request)
