"""The store behind the hub: URLs that say for themselves what they open and until when."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import secrets
import time
from urllib.parse import quote

from tests.hublab.asked import Asked, Refused, bytes_of, span
from tests.hublab.repos import File
from tests.osslab.operations import Sent
from tests.osslab.wire import Answer, Request

_WHAT = {
    "AccessDenied": (403, "Request has expired."),
    "SignatureDoesNotMatch": (403, "The request signature we calculated does not match the signature you provided."),
    "NoSuchKey": (404, "The specified key does not exist."),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold."),
    "InvalidRange": (416, "The requested range cannot be satisfied."),
}  # fmt: skip


class Signer:
    """Makes URLs and knows them again."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(20)

    def url(self, base: str, file: File, lifetime: float) -> str:
        """A URL below `base` for the bytes of a file, good for `lifetime` seconds."""
        path = f"/lfs-objects/{file.id}/{file.path}"
        until = time.time() + lifetime
        expires = f"{math.ceil(until)}" if float(lifetime).is_integer() else f"{until:.3f}"
        signature = quote(self._signature(path, expires), safe="")
        told = f"Expires={expires}&OSSAccessKeyId=hublab&Signature={signature}"
        return f"{base}{quote(path, errors='surrogateescape')}?{told}"

    def check(self, request: Request) -> None:
        """Raises `Refused` when the URL is not one of ours, or is too old."""
        expires = request.query.get("Expires", "")
        wanted = self._signature(request.plain_path, expires)
        if not hmac.compare_digest(wanted.encode(), request.query.get("Signature", "").encode()):
            raise refused("SignatureDoesNotMatch")
        if float(expires) < time.time():
            raise refused("AccessDenied")

    def _signature(self, path: str, expires: str) -> str:
        told = f"GET\n{expires}\n{path}".encode("utf-8", "surrogateescape")
        return base64.b64encode(hmac.digest(self._secret, told, hashlib.sha1)).decode()


def refused(code: str, **headers: str) -> Refused:
    """An error as OSS words it."""
    status, message = _WHAT[code]
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>\n  <Code>{code}</Code>\n  <Message>{message}</Message>\n</Error>\n'
    return Refused(Answer(status, {"Content-Type": "application/xml", **headers}, body.encode()), code)


def answer(asked: Asked, operation: str, signer: Signer) -> Sent:
    """The bytes, or the range that was asked for. Raises `Refused`."""
    _, _, key, path = (
        asked.request.plain_path.split("/", 3) if asked.request.path.count("/") > 2 else [""] * 4
    )
    repo, file = asked.hub.version(key) or (None, None)
    asked.told(operation, repo.id if repo else "", path)
    asked.record.presigned = "Signature" in asked.request.query
    signer.check(asked.request)
    if file is None:
        raise refused("NoSuchKey")
    headers = {"ETag": file.etag, "Accept-Ranges": "bytes", "X-Linked-ETag": f'"{file.sha256}"'}
    if asked.request.headers.get("if-match", file.etag) not in (file.etag, "*"):
        raise refused("PreconditionFailed")
    return ranged(asked, file, headers)


def ranged(asked: Asked, file: File, headers: dict[str, str]) -> Sent:
    """A file or a part of it, as the Range header says. Raises `Refused` (416)."""
    wanted = asked.request.headers.get("range")
    try:
        found = span(wanted, file.size) if wanted is not None else None
    except ValueError:
        raise refused("InvalidRange", **{"Content-Range": f"bytes */{file.size}"}) from None
    if found is None:
        return bytes_of(file, 200, headers)
    start, end = found
    told = {"Content-Range": f"bytes {start}-{end - 1}/{file.size}"}
    return bytes_of(file, 206, headers | told, start, end - start)
