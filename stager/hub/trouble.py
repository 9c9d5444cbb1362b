"""Trouble on the way to a hub, as an error with what to do; also where a library that SDKs are built on wrapped it."""

from __future__ import annotations

import http.client
import socket
import ssl

from stager.core.errors import AccessDenied, StagerError
from stager.net.failures import unreachable

_SILENT = "check whether the hub can be reached from here, and the proxies; `--read-timeout` says how long to wait for an answer"
_UNREACHED = (
    "check the hub's endpoint (MODELSCOPE_ENDPOINT, HF_ENDPOINT), and whether it can be reached from here"
)


def unreached(exc: OSError | http.client.HTTPException, subject: str) -> StagerError:
    """As `stager.net.failures.unreachable`, with a hint that fits a hub."""
    error = unreachable(exc, subject)
    if isinstance(exc, socket.gaierror) and not getattr(exc, "__notes__", ()):
        error.hint = _UNREACHED  # there is no bucket
    elif error.hint is None:
        error.hint = _SILENT if isinstance(exc, TimeoutError) else _UNREACHED
    return error


def on_the_way(exc: BaseException, subject: str) -> StagerError:
    """The error for an `exc` of requests, httpx or an SDK around them, which wrap the system's own several times."""
    for one in _within(exc):
        if isinstance(one, (ssl.SSLError, socket.gaierror)) or type(one) in _SYSTEM:
            return _told(one, subject)
    name = type(exc).__name__.lower()
    plain = TimeoutError("timed out") if "timeout" in name else ConnectionError(0, type(exc).__name__)
    return unreached(plain, subject)


_SYSTEM = {
    OSError,
    ConnectionRefusedError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    TimeoutError,
}


def _told(exc: OSError, subject: str) -> StagerError:
    error = unreached(exc, subject)
    if isinstance(error, AccessDenied):
        error.hint = "set REQUESTS_CA_BUNDLE and SSL_CERT_FILE to the CA certificates that it should be checked against"
    return error


def _within(exc: BaseException) -> list[OSError]:
    """The system's errors in `exc`, wherever they are kept; the innermost first."""
    seen: dict[int, BaseException] = {}
    waiting: list[object] = [exc]
    while waiting and len(seen) < 50:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen[id(one)] = one
            waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return [one for one in reversed(seen.values()) if isinstance(one, OSError)]
