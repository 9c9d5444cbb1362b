"""The one place where what goes wrong with OSS becomes an error of stager's.

OSS's own words stay in the message, with its error code, the request id and the EC code that its support asks for. No URL, no header
and no part of a signature does: the details of a refused signature hold the security token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from stager.core.errors import (
    AccessDenied,
    CredentialsExpired,
    IntegrityError,
    MustRestore,
    NotFound,
    ObjectChanged,
    ObjectExists,
    RemoteError,
    ResourceRefused,
    StagerError,
    UsageError,
)
from stager.core.units import shown
from stager.net.answers import retry_after, seconds
from stager.store.credentials import Credentials

_EXPIRED = {"SecurityTokenExpired", "InvalidSecurityToken", "RequestExpired"}
_SKEWED = "RequestTimeTooSkewed"
_TEMPORARY = {"InvalidAccessKeyId"}  # temporary credentials that ran out are forgotten by some servers
_TRANSIENT = {
    "RequestTimeout",
    "InvalidDigest",
    "IncompleteBody",
    "OperationAborted",
    "RequestIsNotMultiPartContent",
}
# A signature or what it stands in: the headers of both versions, the query of a URL, the details of a refusal.
_SIGNED = re.compile(
    r"((?:signature(?:provided)?|authorization)[\"']?\s*(?:[=:>]|%3D)\s*[\"']?|\bOSS [\w.-]+:)[\w+/=%-]{8,}",
    re.IGNORECASE | re.ASCII,
)
_BETWEEN = "something in between answered; check the endpoint and http_proxy, https_proxy, no_proxy"
_FULL = {"QuotaExceeded", "BucketQuotaExceeded", "StorageCapacityExceeded"}
_BROKEN_UPLOAD = {"InvalidPart", "InvalidPartOrder", "EntityTooSmall"}


def refused(
    exc: Any, subject: str, *, used: Credentials | None = None, restore: str = "", now: float
) -> StagerError:
    """The error that an answer of OSS becomes; `exc` is oss2's `OssError` with a status, `subject` what it was about.

    `used` are the credentials that signed the request, `restore` the ``oss://`` name to write after ``ossutil restore``, `now` seconds
    since 1970.
    """
    status, code = int(exc.status), exc.code or ""
    why = _hidden(_words(exc, code), used)
    denied = status == 403
    if not exc.request_id and status not in (401, 403, 407):
        # An ingress without a backend says 404, a portal redirects: nothing is known about the object, and it may pass.
        wait = retry_after(exc.headers.get("Retry-After"), now)
        return RemoteError(f"{subject}: no answer of OSS ({why})", hint=_BETWEEN, retry_after=wait)
    if status == 412:
        return ObjectChanged(f"{subject} is no longer the version that was asked for ({why})")
    if status == 416:
        return ObjectChanged(f"{subject} has fewer bytes than were asked for ({why})")
    if denied and code == "InvalidObjectState":
        hint = f"restore it first: `ossutil restore {shown(restore)}`" if restore else "restore it first"
        return MustRestore(
            f"{subject} is archived and has to be restored before it can be read ({why})", hint=hint
        )
    stale = _stale(exc, code, subject, why, used, now)
    if stale is not None:
        return stale
    if status == 404:
        return NotFound(f"{subject} does not exist ({why})", hint=_missing(code))
    if status == 409 and code in ("FileAlreadyExists", "ObjectAlreadyExists"):
        return ObjectExists(f"{subject} is there already, and was not to be replaced ({why})")
    if status == 507 or code in _FULL:
        hint = "make room in the bucket, or have its quota or the account's raised"
        return ResourceRefused(f"{subject}: there is no room left ({why})", hint=hint)
    if status in (401, 403, 407) or code in ("FileImmutable", "AccessForbidden"):
        return AccessDenied(f"{subject}: access is denied ({why})", hint=_permission(exc, code, status))
    if code in _BROKEN_UPLOAD:
        return IntegrityError(f"{subject}: the parts of the upload are not those that were sent ({why})")
    if status >= 500 or status in (408, 409, 429) or code in _TRANSIENT or 200 <= status < 300:
        wait = retry_after(exc.headers.get("Retry-After"), now)
        return RemoteError(f"{subject}: OSS cannot answer now ({why})", retry_after=wait)
    return UsageError(f"{subject}: OSS does not accept the request ({why})", hint=_request(exc, code))


def stranger(subject: str) -> RemoteError:
    """The error for an answer that looks like success and is none of OSS: the page of a portal, perhaps."""
    return RemoteError(f"{subject}: no answer of OSS (no ETag)", hint=_BETWEEN)


def _stale(
    exc: Any, code: str, subject: str, why: str, used: Credentials | None, now: float
) -> StagerError | None:
    """The error for credentials that ran out and for clocks that differ; None for anything else."""
    if code in _EXPIRED or (code == "AccessDenied" and "expired" in (exc.message or "").lower()):
        return CredentialsExpired(f"{subject}: the credentials have run out ({why})")
    if code == _SKEWED:
        return AccessDenied(
            f"{subject}: the clock of this node {_clock(exc.headers, now)} ({why})",
            hint="set the clock (chrony, ntpd)",
        )
    if exc.status == 403 and code in _TEMPORARY and used is not None and used.token:
        return CredentialsExpired(f"{subject}: the temporary credentials are not known any more ({why})")
    return None


def _words(exc: Any, code: str) -> str:
    headers: Mapping[str, str] = exc.headers
    ec = exc.ec or headers.get("x-oss-ec", "")
    said = f"{code}: {exc.message}" if code and exc.message else code or f"HTTP {exc.status}"
    parts = [said]
    if exc.request_id:
        parts.append(f"request {exc.request_id}")
    else:
        parts.append("by something that is not OSS: no request id")
    if ec:
        parts.append(f"EC {ec}")
    return shown(", ".join(parts))


def _hidden(text: str, used: Credentials | None) -> str:
    """`text` without what must not be shown, should another server put it into its answer: as it is, and as URLs have it."""
    for secret in (used.secret, used.token) if used is not None else ():
        if secret:
            for form in (secret, quote(secret), quote(secret, ""), quote(quote(secret, ""), "")):
                text = re.sub(re.escape(form), "***", text, flags=re.IGNORECASE)
    return _SIGNED.sub(r"\1***", text)


def _clock(headers: Mapping[str, str], now: float) -> str:
    there = seconds(headers.get("Date"))
    if there is None:
        return "differs from that of OSS"
    return f"is {abs(now - there):.0f} s {'ahead of' if now > there else 'behind'} that of OSS"


def _missing(code: str) -> str | None:
    if code == "NoSuchBucket":
        return "check the bucket's name, and that the endpoint is in its region"
    return None


def _permission(exc: Any, code: str, status: int) -> str | None:
    elsewhere = (exc.details or {}).get("Endpoint")
    if elsewhere:
        return f"the bucket is in another region: use `--endpoint {shown(elsewhere)}`"
    if status == 407:
        return "the proxy in http_proxy or https_proxy wants a name and a password"
    if not exc.request_id:
        return _BETWEEN
    return {
        "SignatureDoesNotMatch": "the secret does not belong to the key id, or the region is wrong (`--region`)",
        "InvalidAccessKeyId": "the key id is unknown or disabled",
        "UserDisable": "the account is disabled or has bills to pay",
    }.get(code)


def _request(exc: Any, code: str) -> str | None:
    elsewhere = (exc.details or {}).get("Endpoint")
    if elsewhere:
        return f"use `--endpoint {shown(elsewhere)}`"
    if "region" in (exc.message or "").lower():
        return "the region that requests are signed for is wrong: give `--region`"
    if code == "InvalidArgument" and "signature" in (exc.message or "").lower():
        return "try `--signature v1` or `--signature v4`"
    return None


def garbled(exc: Exception, subject: str) -> RemoteError:
    """The error that an answer which cannot be parsed becomes. Only its kind is told: the words may repeat what was sent."""
    return RemoteError(f"{subject}: the answer is not what OSS sends ({type(exc).__name__})")
