"""The options of metrics, for the commands that may run in a container of their own, and what is kept of such a run."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from stager.cli.options import PATH, Parsed, option
from stager.cli.quick import accepted
from stager.core.errors import UsageError
from stager.core.marker import answer_text
from stager.engine.recording import Account
from stager.jobs.ready import Answer, Question

F = TypeVar("F", bound=Callable[..., Any])

_PATIENCE_S = 5.0  # for a mount that hangs; a prober that waits longer is rare


def _address(text: str) -> tuple[str, int]:
    """The IP address and port in ``ADDR:PORT``; without ADDR all addresses. Raises `UsageError`."""
    host, colon, port = text.strip().rpartition(":")
    host = {"": "0.0.0.0", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104 - a scraper comes from outside
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
        if (
            not colon
            or not port.isascii()
            or not port.isdigit()
            or int(port) > 65535
            or (address.version == 6) == (bare == host)
        ):
            raise ValueError
    except ValueError as exc:
        hint = "write an IP address and a port, like 0.0.0.0:9105 or [::]:9105"
        raise UsageError(f"`{text}` is not ADDR:PORT", hint=hint) from exc
    return bare, int(port)


_FILE = option("--metrics", metavar="FILE", type=PATH, help="Write metrics for Prometheus to FILE (FILE.prom for node-exporter), every 15 s and at the end.")  # fmt: skip
_NAME = option("--metrics-model", metavar="NAME", default="", help="What the model is called in metrics. [default: its PATH, DIR or DEST]")  # fmt: skip
_LISTEN = option("--metrics-listen", metavar="ADDR:PORT", type=Parsed("ADDR:PORT", _address), help="Serve metrics on http://ADDR:PORT/metrics while this runs, and /ready, /healthz.")  # fmt: skip


def with_metrics(*, listen: bool = False) -> Callable[[F], F]:
    """Adds the options of metrics; the command gets ``account``, a callable from (command, models, source) to `Account`.

    `listen` adds --metrics-listen.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def command(*args: Any, metrics: str | None, metrics_model: str, **given: Any) -> Any:
            address = given.pop("metrics_listen", None)

            def account(name: str, models: Sequence[str], source: str = "") -> Account:
                return Account(
                    command=name,
                    models=tuple(models),
                    source=source,
                    file=metrics,
                    listen=address,
                    name=metrics_model,
                )

            return function(*args, account=account, **given)

        for decorator in (*((_LISTEN,) if listen else ()), _NAME, _FILE):
            command = decorator(command)
        return command  # type: ignore[return-value]

    return decorate


def gate_of(marker: str) -> Callable[[str], tuple[bool, str]]:
    """What `Account.ready` is to be where the gate is the marker at `marker`."""
    return _Gate(marker).answer


class _Gate:
    """Answers as ``stager ready`` does, asked by several at once."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._lock = threading.Lock()
        self._questions: dict[frozenset[str], Question] = {}

    def answer(self, accept: str) -> tuple[bool, str]:
        """Whether the gate is open, and the line that says so; `accept` names states that count beside ready."""
        try:
            states = accepted(accept)
        except UsageError as error:
            return False, error.message
        with self._lock:  # one question for each set of states: a mount that hangs holds one thread, however often it is asked
            question = self._questions.setdefault(states, Question(self._marker, accept=states))
            found: Answer = question.ask(_PATIENCE_S)
        return found.ready, answer_text(found.state, found.why)
