"""Who sent a request: signatures V1 and V4, in headers and presigned, checked as OSS documents them."""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from tests.osslab.errors import OssError
from tests.osslab.keys import AccessKey, Keyring
from tests.osslab.wire import Request

SKEW_S = 15 * 60
V4 = "OSS4-HMAC-SHA256"
_SUBRESOURCES = frozenset({
    "acl", "append", "bucketInfo", "callback", "callback-var", "cname", "comp", "continuation-token",
    "cors", "delete", "encryption", "endTime", "img", "inventory", "inventoryId", "lifecycle", "live",
    "location", "logging", "metaQuery", "objectMeta", "partNumber", "policy", "position", "qos",
    "referer", "replication", "replicationLocation", "replicationProgress", "requestPayment",
    "response-cache-control", "response-content-disposition", "response-content-encoding",
    "response-content-language", "response-content-type", "response-expires", "restore", "security-token",
    "sequential", "startTime", "stat", "status", "style", "styleName", "symlink", "tagging",
    "transferAcceleration", "uploadId", "uploads", "versionId", "versioning", "versions", "vod",
    "website", "worm", "wormExtend", "wormId", "x-oss-process", "x-oss-request-payer",
    "x-oss-traffic-limit", "x-oss-ac-source-ip", "x-oss-ac-subnet-mask", "x-oss-ac-vpc-id",
    "x-oss-ac-forward-allow", "asyncFetch",
})  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """The outcome: the key that signed (None: anonymous), how ("v1", "v4" or ""), and whether by URL."""

    key: AccessKey | None
    version: str = ""
    presigned: bool = False


def identify(request: Request, bucket: str, key: str, keys: Keyring, region: str) -> Caller:
    """Check the signature of a request for that bucket and key. Raises `OssError` in OSS's words."""
    header = request.headers.get("authorization", "")
    by_url = {"x-oss-signature", "Signature"} & request.query.keys()
    if header and by_url:
        raise OssError("InvalidArgument", "Only one auth mechanism allowed: header or query.")
    if header.startswith(V4 + " "):
        return _v4_header(request, bucket, key, keys, region, header)
    if header.startswith("OSS "):
        return _v1_header(request, bucket, key, keys, header)
    if header:
        raise OssError("InvalidArgument", "Unsupported Authorization Type", ArgumentName="Authorization")
    if "x-oss-signature" in request.query:
        return _v4_url(request, bucket, key, keys, region)
    if "Signature" in request.query:
        return _v1_url(request, bucket, key, keys)
    return Caller(None)


def _known(key_id: str, token: str, keys: Keyring) -> AccessKey:
    key = keys.find(key_id)
    if key is None:
        raise OssError("InvalidAccessKeyId", OSSAccessKeyId=key_id)
    if key.token is not None and not token:
        raise OssError("InvalidAccessKeyId", OSSAccessKeyId=key_id)
    if (key.token or "") != token:
        raise OssError("InvalidSecurityToken")
    if key.expired:
        raise OssError("SecurityTokenExpired")
    return key


def _near(moment: float, told: str) -> None:
    now = time.time()
    if abs(now - moment) > SKEW_S:
        raise OssError(
            "RequestTimeTooSkewed",
            MaxAllowedSkewMilliseconds=str(SKEW_S * 1000),
            RequestTime=told,
            ServerTime=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now)),
        )


def _same(signed: str, provided: str, key: AccessKey, text: bytes, canonical: bytes = b"") -> None:
    if not hmac.compare_digest(signed.encode(), provided.encode("utf-8", "surrogateescape")):
        raise OssError(
            "SignatureDoesNotMatch",
            OSSAccessKeyId=key.id,
            SignatureProvided=provided,
            StringToSign=text.decode("utf-8", "replace"),
            StringToSignBytes=text.hex(" ").upper(),
            CanonicalRequest=canonical.decode("utf-8", "replace"),
        )


# V1: HMAC-SHA1 over method, MD5, type, date, x-oss- headers, and the resource with its sub-resources


def _v1(request: Request, bucket: str, key: str, date: str, secret: str) -> tuple[str, bytes]:
    """The signature and the text that was signed."""
    lines = [request.method, *(request.headers.get(h, "") for h in ("content-md5", "content-type")), date]
    lines += [
        f"{name}:{value}" for name, value in sorted(request.headers.items()) if name.startswith("x-oss-")
    ]
    pairs = sorted(
        (n, v) for n, v in request.query.items() if n in _SUBRESOURCES or n.startswith("x-oss-ac-")
    )
    resource = f"/{bucket}/{key}" if bucket else "/"
    if pairs:
        resource += "?" + "&".join(f"{n}={v}" if v else n for n, v in pairs)
    text = "\n".join([*lines, resource]).encode("utf-8", "surrogateescape")
    return base64.b64encode(hmac.digest(secret.encode(), text, "sha1")).decode(), text


def _v1_header(request: Request, bucket: str, key: str, keys: Keyring, header: str) -> Caller:
    key_id, colon, provided = header[4:].strip().partition(":")
    if not colon:
        raise OssError("InvalidArgument", "Authorization header is invalid.", ArgumentName="Authorization")
    known = _known(key_id, request.headers.get("x-oss-security-token", ""), keys)
    date = request.headers.get("x-oss-date") or request.headers.get("date", "")
    try:
        moment = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        raise OssError("AccessDenied", "OSS authentication requires a valid Date.") from None
    _near(moment, date)
    signed, text = _v1(request, bucket, key, date, known.secret)
    _same(signed, provided, known, text)
    return Caller(known, "v1")


def _v1_url(request: Request, bucket: str, key: str, keys: Keyring) -> Caller:
    query = request.query
    known = _known(query.get("OSSAccessKeyId", ""), query.get("security-token", ""), keys)
    expires = query.get("Expires", "")
    if not expires.isdigit():
        raise OssError("AccessDenied", "Query-string authentication requires the Signature, Expires and"
                       " OSSAccessKeyId parameters.")  # fmt: skip
    _not_over(int(expires))
    signed, text = _v1(request, bucket, key, expires, known.secret)
    _same(signed, query["Signature"], known, text)
    return Caller(known, "v1", presigned=True)


def _not_over(end: float) -> None:
    now = time.time()
    if now > end:
        stamp = "%Y-%m-%dT%H:%M:%S.000Z"
        raise OssError("AccessDenied", "Request has expired.", Expires=time.strftime(stamp, time.gmtime(end)),
                       ServerTime=time.strftime(stamp, time.gmtime(now)))  # fmt: skip


# V4: HMAC-SHA256 over the canonical request, with a key made of the secret, the day, the region and the product


def _encode(text: str, safe: str = "") -> str:
    return quote(text, safe=safe, errors="surrogateescape")


def _v4_canonical(request: Request, bucket: str, key: str, additional: list[str], payload: str) -> bytes:
    pairs = sorted((_encode(n), _encode(v)) for n, v in request.query.items() if n != "x-oss-signature")
    headers = [
        (name, value)
        for name, value in sorted(request.headers.items())
        if name.startswith("x-oss-") or name in ("content-type", "content-md5") or name in additional
    ]
    return "\n".join(
        [
            request.method,
            _encode(f"/{bucket}/{key}" if bucket else "/", safe="/"),
            "&".join(f"{n}={v}" if v else n for n, v in pairs),
            *(f"{name}:{value}" for name, value in headers),
            "",
            ";".join(additional),
            payload,
        ]
    ).encode("utf-8", "surrogateescape")


def _v4_check(
    request: Request, bucket: str, key: str, known: AccessKey, scope: list[str], stamp: str, additional: list[str],
    payload: str, provided: str,
) -> None:  # fmt: skip
    canonical = _v4_canonical(request, bucket, key, additional, payload)
    text = "\n".join([V4, stamp, "/".join(scope), hashlib.sha256(canonical).hexdigest()]).encode()
    signing = ("aliyun_v4" + known.secret).encode()
    for step in scope:
        signing = hmac.digest(signing, step.encode(), "sha256")
    signed = hmac.digest(signing, text, "sha256").hex()
    _same(signed, provided, known, text, canonical)


def _scope(credential: str, stamp: str, region: str, place: str) -> tuple[str, list[str]]:
    """The key id, and (day, region, product, aliyun_v4_request)."""
    key_id, *scope = credential.split("/")
    if len(scope) != 4 or scope[3] != "aliyun_v4_request":
        raise OssError(
            "InvalidArgument", f"The Credential of the {place} is malformed.", ArgumentName="Credential"
        )
    if scope[0] != stamp[:8]:
        raise OssError("InvalidArgument", f"Invalid signing date in {place}.", ArgumentValue=scope[0])
    if scope[1] != region:
        raise OssError("InvalidArgument", f"Invalid signing region in {place}.", Region=region,
                       ArgumentValue=scope[1])  # fmt: skip
    if scope[2] != "oss":
        raise OssError("InvalidArgument", f"Invalid signing product in {place}.", ArgumentValue=scope[2])
    return key_id, scope


def _moment(stamp: str) -> float:
    try:
        return calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        raise OssError("AccessDenied", "OSS authentication requires a valid Date.") from None


def _additional(text: str, request: Request) -> list[str]:
    names = [name for name in text.split(";") if name]
    if names != sorted(name.lower() for name in names):
        raise OssError("InvalidArgument", "Additional headers must be in lower case and sorted.")
    if missing := [name for name in names if name not in request.headers]:
        raise OssError("InvalidArgument", "An additional header is missing.", ArgumentValue=";".join(missing))
    return names


def _v4_header(request: Request, bucket: str, key: str, keys: Keyring, region: str, header: str) -> Caller:
    fields: dict[str, str] = {}
    for part in header[len(V4) + 1 :].split(","):
        name, _, value = part.strip().partition("=")
        fields[name] = value
    stamp = request.headers.get("x-oss-date", "")
    moment = _moment(stamp)
    key_id, scope = _scope(fields.get("Credential", ""), stamp, region, "Authorization header")
    known = _known(key_id, request.headers.get("x-oss-security-token", ""), keys)
    _near(moment, stamp)
    payload = request.headers.get("x-oss-content-sha256", "")
    if payload != "UNSIGNED-PAYLOAD":
        raise OssError("InvalidArgument", "Invalid payload hash: x-oss-content-sha256 must be UNSIGNED-PAYLOAD.",
                       ArgumentName="x-oss-content-sha256")  # fmt: skip
    additional = _additional(fields.get("AdditionalHeaders", ""), request)
    provided = fields.get("Signature", "")
    _v4_check(request, bucket, key, known, scope, stamp, additional, payload, provided)
    return Caller(known, "v4")


def _v4_url(request: Request, bucket: str, key: str, keys: Keyring, region: str) -> Caller:
    query = request.query
    if query.get("x-oss-signature-version") != V4:
        raise OssError(
            "InvalidArgument", "Unsupported signature version.", ArgumentName="x-oss-signature-version"
        )
    stamp = query.get("x-oss-date", "")
    moment = _moment(stamp)
    key_id, scope = _scope(query.get("x-oss-credential", ""), stamp, region, "query")
    known = _known(key_id, query.get("x-oss-security-token", ""), keys)
    expires = query.get("x-oss-expires", "")
    if not expires.isdigit() or not 1 <= int(expires) <= 7 * 86400:
        raise OssError(
            "InvalidArgument", "x-oss-expires must be between 1 and 604800.", ArgumentValue=expires
        )
    if moment > time.time() + SKEW_S:
        _near(moment, stamp)
    _not_over(moment + int(expires))
    additional = _additional(query.get("x-oss-additional-headers", ""), request)
    payload = request.headers.get("x-oss-content-sha256", "UNSIGNED-PAYLOAD")
    _v4_check(request, bucket, key, known, scope, stamp, additional, payload, query["x-oss-signature"])
    return Caller(known, "v4", presigned=True)
