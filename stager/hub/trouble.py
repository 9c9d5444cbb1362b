"""Trouble on the way to a hub, as an error with what to do; also where a library that SDKs are built on wrapped it."""

from __future__ import annotations

import http.client
import socket
import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stager.core.errors import AccessDenied, StagerError, UsageError
from stager.core.units import shown
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


def on_the_way(exc: BaseException, subject: str, endpoint: str) -> StagerError:
    """The error for an `exc` of requests, httpx or an SDK around them, which wrap the system's own several times.

    `endpoint` is the URL of the hub; the proxy that the environment names for it is told.
    """
    for one in _within(exc):
        if isinstance(one, (ssl.SSLError, socket.gaierror)) or type(one) in _SYSTEM:
            return _told(_noted(one, endpoint), subject)
    name = type(exc).__name__.lower()
    plain = TimeoutError("timed out") if "timeout" in name else ConnectionError(0, type(exc).__name__)
    return unreached(_noted(plain, endpoint), subject)


def unsent(exc: BaseException, subject: str, endpoint: str) -> UsageError | None:
    """The error where a library of an SDK could not even send the request, by what the user has set; None where it is not that.

    `endpoint` names the variable that says where the hub is. Nothing of this heals when it is tried again.
    """
    name, text = type(exc).__name__, str(exc).lower()
    if "socks" in text and name in ("InvalidSchema", "ImportError"):
        said = f"{_proxies('socks')} names a SOCKS proxy, which is not spoken here"
        return UsageError(f"{subject}: {said}", hint=_PROXY)
    if name == "InvalidProxyURL" or ("proxy" in text and isinstance(exc, ValueError)):
        return UsageError(f"{subject}: {_proxies()} names a proxy that cannot be used", hint=_PROXY)
    if name not in _UNSENT:
        return None
    what = "a header" if name in ("InvalidHeader", "LocalProtocolError") else "an address"
    return UsageError(
        f"{subject}: {what} cannot be sent ({name})",
        hint=f"check {endpoint}, the token, http_proxy and https_proxy: quotes, blanks and a missing http:// are common",
    )


_PROXY = "set http_proxy and https_proxy to a proxy that speaks http, like http://proxy:3128, or add the hub to no_proxy"
_UNSENT = {
    "InvalidHeader",
    "InvalidSchema",
    "InvalidURL",
    "LocalProtocolError",
    "MissingSchema",
    "UnsupportedProtocol",
}


def _proxies(beginning: str = "") -> str:
    """The names of the variables by which the environment names proxies whose addresses begin so."""
    known = {f"{kind}_proxy": text for kind, text in getproxies().items() if kind != "no"}
    named = sorted(name for name, text in known.items() if text.lower().startswith(beginning))
    return " or ".join(named) or "http_proxy"


def _noted(exc: OSError, endpoint: str) -> OSError:
    """`exc` with a note of the proxy that the SDK's request to `endpoint` went through, as a connection of stager's has it."""
    parts, proxies = urlsplit(endpoint), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not getattr(exc, "__notes__", ()) and not proxy_bypass(parts.netloc.rpartition("@")[2]):
        host = urlsplit(proxy if "://" in proxy else f"http://{proxy}").netloc.rpartition("@")[2]
        exc.add_note(f"through the proxy {shown(host)}")  # without what may be a password
    return exc


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
