"""What the small services beside OSS have in common: requests in, whole answers out, everything noted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from tests.osslab.wire import Answer, Connection, Gone, Listener, Request


@dataclass(frozen=True)
class Asked:
    """One request that a service got, and the status it gave. Names of headers are in lower case."""

    method: str
    path: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    status: int


class Service:
    """Answers each request by `answer`. `failures` are given first, one per request; `delay` is waited before each answer."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.failures: list[Answer] = []
        self.delay = 0.0
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self.listener = Listener(self._serve, host=host, port=port)

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"{self.listener.host}:{self.listener.port}"

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://{self.address}"

    def start(self) -> Self:
        """Begin to serve."""
        self.listener.start()
        return self

    def stop(self) -> None:
        """End. May be called twice."""
        self.listener.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def parameters(self, request: Request) -> dict[str, str]:
        """What the request says; its query here."""
        return request.query

    def answer(self, request: Request, parameters: Mapping[str, str]) -> Answer:
        """The answer to one request; may be called by several threads."""
        raise NotImplementedError

    def _serve(self, connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            parameters = self.parameters(request)
            request.body.drain()
            if self.delay and self.listener.stopping.wait(self.delay):
                raise Gone("stopping")
            with self._lock:
                failure = self.failures.pop(0) if self.failures else None
            answer = failure or self.answer(request, parameters)
            with self._lock:
                self.asked.append(
                    Asked(request.method, request.path, parameters, request.headers, answer.status)
                )
            connection.send_head(
                answer.status, {**answer.headers, "Content-Length": str(len(answer.body))}, more=True
            )
            connection.send(answer.body)
