"""Whether an answer has what was asked for, before a byte of it is used; and where a redirect leads."""

from __future__ import annotations

import http.client
from contextlib import suppress
from urllib.parse import quote, urljoin, urlsplit

from stager.core.errors import CannotServe, ObjectChanged, RemoteError
from stager.core.units import format_size, shown
from stager.hub.refusals import LISTED
from stager.net.answers import content_range
from stager.net.route import Origin

SKIPPED = 64 << 20
"""Bytes that are read for nothing, at most, where a server ignores ranges."""

_SENT_AS_IS = "%/:?#[]@!$&'()*+,;=-._~"  # what a URL is made of; all else must be escaped
_NO_RANGES = (
    "a cache in between may do that: check http_proxy, https_proxy and the hub's endpoint; or take the model from another hub "
    "(ms://, hf://), or download it with the hub's own tool and pull that folder"
)
_BETWEEN = "something in between answered; check http_proxy, https_proxy, no_proxy"


def checked(
    response: http.client.HTTPResponse, offset: int, length: int, size: int, subject: str
) -> tuple[int, int]:
    """How many bytes of the body come before those that were asked for, and how many after. Raises for an answer that has not exactly those."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise RemoteError(f"{subject}: the answer is encoded ({shown(encoding)}), which was not asked for")
    if response.status == http.client.OK:
        return _skipping(response, offset, length, size, subject)
    given = content_range(response.headers.get("Content-Range"))
    if given is None:
        raise RemoteError(f"{subject}: the answer does not say which bytes it has")
    if given.size != size:
        raise ObjectChanged(f"{subject} has {given.size} bytes, the hub listed {size}", hint=LISTED)
    if (given.start, given.end) != (offset, offset + length) or response.length not in (None, length):
        raise RemoteError(
            f"{subject}: asked for the bytes {offset}-{offset + length - 1}, the answer has {given.start}-{given.end - 1}"
        )
    return 0, 0


def _skipping(
    response: http.client.HTTPResponse, offset: int, length: int, size: int, subject: str
) -> tuple[int, int]:
    """As `checked`, for a server that ignores ranges and sends everything."""
    if response.length not in (None, size):
        if response.headers.get_content_type() == "text/html":
            raise RemoteError(f"{subject}: the answer is a page and not the file", hint=_BETWEEN)
        raise ObjectChanged(f"{subject} has {response.length} bytes, the hub listed {size}", hint=LISTED)
    if offset > SKIPPED:
        raise CannotServe(
            f"{subject}: this server ignores ranges, and a file of {format_size(size)} is only pulled in ranges",
            hint=_NO_RANGES,
        )
    return offset, size - offset - length


def redirected(url: str, response: http.client.HTTPResponse, subject: str) -> str:
    """Where a redirect leads: an absolute URL, with nothing in it that cannot be sent."""
    location = response.headers.get("Location", "")
    try:
        raw = location.encode("latin-1")  # as http.client decodes headers
    except UnicodeEncodeError:
        raw = location.encode("utf-8", "surrogateescape")
    there, usable = "", False
    with suppress(ValueError):
        there = urljoin(url, quote(raw, safe=_SENT_AS_IS))
        parts = urlsplit(there)
        plain = parts.scheme in ("http", "https") and parts.port != 0 and parts.username is None
        usable = plain and bool(location and parts.hostname)
    if not usable:
        raise RemoteError(f"{subject}: a redirect that leads nowhere (HTTP {response.status})")
    return there.partition("#")[0]


def same_host(before: Origin, after: Origin) -> bool:
    """Whether what `before` may know is safe with `after`: the same host, on its way to TLS at most."""
    if before == after:
        return True
    return before.host == after.host and (before.port, after.port, after.https) == (80, 443, True)
