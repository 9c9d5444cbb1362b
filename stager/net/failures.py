"""What trouble on the way to a server becomes: an error of stager's, worth a retry or not."""

from __future__ import annotations

import http.client
import socket
import ssl

from stager.core.errors import AccessDenied, RemoteError, StagerError, UsageError
from stager.net.connection import TooLong


def unreachable(exc: OSError | http.client.HTTPException, subject: str) -> StagerError:
    """The error that trouble on the way becomes: worth a retry, but for certificates and protocols, which do not heal."""
    # A connection notes the proxy that it went through.
    via = "".join(f", {note}" for note in getattr(exc, "__notes__", ()))
    if isinstance(exc, ssl.SSLCertVerificationError):
        return AccessDenied(
            f"{subject}: the server's certificate is not trusted ({exc.verify_message}){via}",
            hint="set SSL_CERT_FILE to the CA certificates that it should be checked against",
        )
    if isinstance(exc, ssl.SSLError) and exc.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return UsageError(
            f"{subject}: the server does not speak https{via}", hint="write the endpoint with http://"
        )
    hint = "check http_proxy, https_proxy and no_proxy" if via else None
    if isinstance(exc, socket.gaierror):
        if not via:
            hint = "check the endpoint and the bucket's name"
        whose = "proxy" if via else "endpoint"
        return RemoteError(f"{subject}: the {whose}'s name is not known ({exc.strerror}){via}", hint=hint)
    return RemoteError(f"{subject}: {_trouble(exc)}{via}", hint=hint)


def _trouble(exc: OSError | http.client.HTTPException) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, OSError):
        return f"the connection failed ({exc.strerror or type(exc).__name__})"
    if isinstance(exc, TooLong):
        return f"the answer is longer than any that is expected ({exc})"
    if isinstance(exc, http.client.IncompleteRead):
        return "the answer ended early"
    return f"the answer is not HTTP ({type(exc).__name__})"
