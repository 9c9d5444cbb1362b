"""The way to a host: source address, proxy, TLS. Opens sockets; what goes over them is others' business.

Proxies come from ``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, which may name
networks (``10.0.0.0/8``) too; this node itself is reached without one.
Certificates are checked against ``REQUESTS_CA_BUNDLE`` or ``CURL_CA_BUNDLE``, else ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``, else
those of the system.
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from stager.core.errors import AccessDenied, RemoteError, UsageError
from stager.core.units import shown

_turn = (
    itertools.count()
)  # one for the whole process, so that all stores together use the source addresses evenly
_HEAD_LIMIT = 64 << 10  # bytes at most of a proxy's answer to CONNECT, as http.client allows for a line

Hold = Callable[[socket.socket], None]
"""Gets each socket as soon as there is one, before anything on it can block, so that another thread can shut it down."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what one connection is for."""

    https: bool
    host: str
    port: int

    @staticmethod
    def of(url: str) -> Origin:
        """The origin of an absolute URL."""
        parts = urlsplit(url)
        https = parts.scheme == "https"
        return Origin(https, parts.hostname or "", parts.port or (443 if https else 80))


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that speaks http. `authorization` is the value of a ``Proxy-Authorization`` header."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return _netloc(self.host, self.port)


class Route:
    """How this process reaches servers. Any thread may use it."""

    def __init__(
        self,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 20.0,
        source_ips: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Timeouts in seconds; `source_ips` are bound in turn. Raises `UsageError` for a source address that is none."""
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self._sources = tuple(_address(text) for text in source_ips)
        self._environ = environ
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def proxy(self, origin: Origin) -> Proxy | None:
        """The proxy that the environment names for `origin`. Raises `UsageError` for one of a kind that is not spoken here."""
        if _here(origin.host) or proxy_bypass(f"{origin.host}:{origin.port}"):
            return None
        proxies = getproxies()
        if _in_networks(origin.host, proxies.get("no", "")):
            return None
        kind = "https" if origin.https else "http"
        kind = kind if proxies.get(kind) else "all"
        text = proxies.get(kind)
        return _proxy(text, f"{kind}_proxy") if text else None

    def open(self, origin: Origin, proxy: Proxy | None, hold: Hold) -> socket.socket:
        """A connected socket, over TLS for https, with the read timeout set. Raises OSError, `UsageError` for bad settings."""
        target = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
        sock = self._dial(*target, hold)
        try:
            if proxy and origin.https:
                _tunnel(sock, origin, proxy)
            if origin.https:
                sock = self._trusted().wrap_socket(
                    sock, server_hostname=origin.host, do_handshake_on_connect=False
                )
                hold(sock)
                sock.do_handshake()
            sock.settimeout(self.read_timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def _dial(self, host: str, port: int, hold: Hold) -> socket.socket:
        source = self._sources[next(_turn) % len(self._sources)] if self._sources else None
        failure: OSError | None = None
        for kind in _addresses(host, port, source):
            sock = socket.socket(kind[0], kind[1], kind[2])
            try:
                sock.settimeout(self.connect_timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                hold(sock)
                if source:
                    _bind(sock, source[1])
                sock.connect(kind[4])
            except OSError as exc:
                sock.close()
                failure = exc
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure or OSError(f"{host} has no address")

    def _trusted(self) -> ssl.SSLContext:
        with self._lock:  # made once: reading a system's certificates takes tens of milliseconds
            if self._context is None:
                self._context = _context(self._environ)
            return self._context


def _address(text: str) -> tuple[socket.AddressFamily, str]:
    try:
        version = ipaddress.ip_address(text).version
    except ValueError:
        raise UsageError(
            f"`{shown(text)}` is not an address to send from",
            hint="give `--source-ip` addresses of this node",
        ) from None
    return (socket.AF_INET6 if version == 6 else socket.AF_INET), text


def _addresses(host: str, port: int, source: tuple[socket.AddressFamily, str] | None) -> list[Any]:
    """As `socket.getaddrinfo`, of the family that can be reached from `source`."""
    if source is None:
        return socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
    try:
        return socket.getaddrinfo(host, port, source[0], socket.SOCK_STREAM)
    except socket.gaierror as exc:
        if exc.errno == socket.EAI_AGAIN:
            raise
        socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)  # which tells what else is wrong
        version = "IPv6" if source[0] is socket.AF_INET6 else "IPv4"
        raise UsageError(
            f"cannot send from {source[1]} to `{shown(host)}`, which has no {version} address",
            hint="give `--source-ip` addresses of the endpoint's kind",
        ) from None


def _bind(sock: socket.socket, address: str) -> None:
    try:
        sock.bind((address, 0))
    except OSError as exc:
        raise UsageError(
            f"cannot send from {address}: {exc.strerror}",
            hint="give `--source-ip` addresses of this node (`ip addr`)",
        ) from exc


def _context(environ: Mapping[str, str]) -> ssl.SSLContext:
    bundle = environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE")
    try:
        if not bundle:
            return ssl.create_default_context()  # OpenSSL itself looks at SSL_CERT_FILE and SSL_CERT_DIR
        if os.path.isdir(bundle):
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as exc:  # ssl.SSLError is one
        reason = exc.strerror or exc
        raise UsageError(f"cannot read the CA certificates in `{shown(bundle or '')}`: {reason}") from exc


def _here(host: str) -> bool:
    """Whether `host` is this node, which no proxy elsewhere can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_networks(host: str, exceptions: str) -> bool:
    """Whether `host` is an address within one of the networks (``10.0.0.0/8``) among the comma-separated `exceptions`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for text in exceptions.split(","):
        try:
            network = ipaddress.ip_network(text.strip().replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            continue
        if address in network:
            return True
    return False


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _proxy(text: str, variable: str) -> Proxy:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme != "http" or not host:
        # The text may hold a password: it is not repeated.
        raise UsageError(
            f"{variable} names a proxy that is not spoken to over http",
            hint="write it like http://proxy:3128",
        )
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(host, port or 80, authorization)


def _tunnel(sock: socket.socket, origin: Origin, proxy: Proxy) -> None:
    """Asks the proxy for a way through. What it says after its headers belongs to TLS, which has not begun yet."""
    where = _netloc(origin.host, origin.port)
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(4096)
        if not more or len(head) > _HEAD_LIMIT:
            raise RemoteError(f"the proxy {proxy} ended the connection to {where}")
        head += more
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    status = words[1] if len(words) > 1 else ""
    if status.startswith("2"):
        return
    message = f"the proxy {proxy} refused the way to {where} ({shown(' '.join(words[1:]))})"
    if status in ("401", "403", "407"):
        raise AccessDenied(message, hint="check https_proxy and no_proxy")
    raise RemoteError(message)
