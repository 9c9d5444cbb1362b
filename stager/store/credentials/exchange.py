"""One small HTTP exchange with who gives credentials, and what such answers mean. Nothing of a body ever gets into an error."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stager.core.errors import RemoteError, UsageError
from stager.core.units import shown
from stager.store.credentials.base import Credentials

if TYPE_CHECKING:
    import ssl

_LARGEST = 64 << 10  # bytes of an answer; credentials are 2 KiB
_READS = 3  # an answer may take this many timeouts in all, so that one that drips in byte by byte ends too


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in lower case) and the whole body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The body, stripped; empty when it is not UTF-8."""
        try:
            return self.body.decode().strip()
        except UnicodeDecodeError:
            return ""

    def json(self) -> dict[str, Any]:
        """The JSON object in the body; empty when it holds anything else."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def retry_after(self) -> float | None:
        """Seconds that the other side asks to wait, where it says so in seconds."""
        text = self.headers.get("retry-after", "").strip()
        return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


class Silence(OSError):
    """No answer came. `connected` says whether there was anybody to give one."""

    def __init__(self, why: str, *, connected: bool) -> None:
        super().__init__(why)
        self.connected = connected


def exchange(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    timeout: float,
    proxies: bool,
) -> Answer:
    """The answer to one request, whatever its status; redirects are not followed, for a secret may be in the request.

    `timeout` is in seconds, for connecting and for each wait after that. With `proxies` the proxies and CA bundles of the environment
    are used. Raises `Silence`; `UsageError` for a CA bundle that cannot be read.
    """
    import http.client
    import urllib.error
    import urllib.request

    opener = (
        urllib.request.OpenerDirector()
    )  # bare: without the handlers that follow redirects and raise for a status
    opener.add_handler(urllib.request.ProxyHandler(None if proxies else {}))
    opener.add_handler(urllib.request.HTTPHandler())
    if url.startswith("https:"):
        opener.add_handler(urllib.request.HTTPSHandler(context=_trust(os.environ)))
    request = urllib.request.Request(url, data=body, headers=dict(headers), method=method)  # noqa: S310
    try:
        response = opener.open(request, timeout=timeout)
        if response is None:
            raise Silence(
                "the proxy in the environment is not one that is spoken to over http", connected=False
            )
        with response:
            named = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, named, _whole(response, time.monotonic() + _READS * timeout))
    except Silence:
        raise
    # What these say may repeat what was sent or received, so only their kind is told, and they are not chained.
    except urllib.error.URLError as exc:  # comes from connecting and sending alone
        raise Silence(_reason(exc.reason), connected=False) from None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise Silence(_reason(exc), connected=True) from None


def _whole(response: Any, until: float) -> bytes:
    body = bytearray()
    while piece := response.read1(_LARGEST):
        body += piece
        if len(body) > _LARGEST:
            raise Silence("the answer is too long", connected=True)
        if time.monotonic() > until:
            raise Silence("the answer takes too long", connected=True)
    return bytes(body)


def _reason(exc: object) -> str:
    import ssl

    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {exc.verify_message}"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return type(exc).__name__


def _trust(environ: Mapping[str, str]) -> ssl.SSLContext:
    import ssl

    bundle = environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE")
    try:
        if not bundle:
            return ssl.create_default_context()  # OpenSSL itself looks at SSL_CERT_FILE and SSL_CERT_DIR
        if os.path.isdir(bundle):
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as exc:
        raise UsageError(
            f"cannot read the CA certificates in `{shown(bundle or '')}`: {exc.strerror or exc}"
        ) from exc


def issued(fields: Mapping[str, Any], source: str) -> Credentials:
    """The credentials in the JSON that STS and the metadata service give. `RemoteError` when they are not there."""
    key_id, secret, token = (
        _word(fields.get(name)) for name in ("AccessKeyId", "AccessKeySecret", "SecurityToken")
    )
    try:
        when = datetime.fromisoformat(str(fields.get("Expiration")))
    except ValueError:
        when = None
    if not (key_id and secret and token and when):
        raise RemoteError(f"{source}: the answer holds no credentials")
    return Credentials(key_id, secret, token, when.replace(tzinfo=when.tzinfo or UTC).timestamp(), source)


def _word(value: object) -> str:
    """`value` when it can stand in a header, else nothing."""
    return (
        value
        if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
        else ""
    )
