"""The `hub` fixture (a server in threads of the test process, on free ports) and its companion in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.hublab.process import HubProcess, client_env
from tests.hublab.server import HubServer


class HubLab(HubServer):
    """The server, with what a test hands to its clients."""

    def env(self, *, token: bool | str = False) -> dict[str, str]:
        """The environment of a child process; with `token` (True: the hub's own) it may read what is private."""
        return client_env(self.endpoint, self.token if token is True else token or "")


@pytest.fixture
def hub() -> Iterator[HubLab]:
    """A fresh `HubLab`: ``hub.repo("owner/name").commit({"a.bin": b"..."})``, ``hub.endpoint``, ``hub.env()``,
    ``hub.faults.add(Fault("reset", host="cdn"))``, ``hub.log``.
    """  # fmt: skip
    with HubLab() as server:
        yield server


@pytest.fixture
def hub_process() -> Iterator[Callable[..., HubProcess]]:
    """``hub_process(serve="DIR=owner/name", faults=JSON)``: the server as a process, ended with the test."""
    started: list[HubProcess] = []

    def start(**options: Any) -> HubProcess:
        started.append(HubProcess(**options))
        return started[-1]

    yield start
    for process in started:
        process.stop()
