"""What an answer that gives no bytes becomes: an error of stager's.

A hub's own words stay in the message. No address is told beyond its host, for a presigned one is as good as a password.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.message import Message

from stager.core.errors import AccessDenied, NotFound, ObjectChanged, RemoteError, StagerError
from stager.core.units import shown
from stager.net.answers import retry_after

_WORDS = ("Message", "message", "error", "msg")
_XML_CODE = re.compile(rb"<Code>(\w{1,60})</Code>")
NO_ACCESS = {10010200001}
"""ModelScope's codes for a model that is there, but not for whoever asked; some come with status 404."""

LATER = (
    "the hub has trouble, or gets too many requests from here: run it again later, it goes on where it was"
)
"""What to do about an answer that says: not now."""

LISTED = "run it again; where it stays so, the hub's list or its copy of the file is wrong, which its author can mend"
"""What to do about a file that is not as long as the hub says."""

_LONGEST = 200  # characters of a hub's own words
_REQUEST = ("x-request-id", "x-oss-request-id", "x-amz-request-id")


def refused(
    status: int,
    headers: Message,
    body: bytes,
    subject: str,
    *,
    at: str,
    hint: str | None,
    token: str,
    now: float,
) -> StagerError:
    """The error for an answer with a `status` other than success, from the host `at`.

    `body` is its beginning. `hint` is what to do about a missing permission, None where it is not the hub that refused; `token` is
    not told, whatever was answered; `now` in seconds since 1970.
    """
    fields = _fields(body)
    why = hidden(_why(status, headers, fields, at), token)
    if status in (401, 403) or (status == 404 and fields.get("Code") in NO_ACCESS):
        return AccessDenied(f"{subject}: access is denied ({why})", hint=hint)
    if status == 407:
        return AccessDenied(
            f"{subject}: the proxy denies access ({why})",
            hint="the proxy in http_proxy or https_proxy wants a name and a password",
        )
    if status in (404, 410):
        return NotFound(f"{subject} does not exist ({why})")
    if status == 416:
        return ObjectChanged(f"{subject} has fewer bytes than the hub listed ({why})", hint=LISTED)
    wait = retry_after(headers.get("Retry-After"), now)
    if status in (408, 429) or status >= 500:
        return RemoteError(f"{subject}: cannot be served now ({why})", hint=LATER, retry_after=wait)
    return RemoteError(f"{subject}: not an answer with its bytes ({why})", retry_after=wait)


def words(text: str) -> str:
    """What a hub says, fit for one line of a message: its first line, shortened."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return shown(first if len(first) <= _LONGEST else f"{first[:_LONGEST]}...")


def hidden(text: str, token: str) -> str:
    """`text` without the `token`."""
    return text.replace(token, "***") if token else text


def _why(status: int, headers: Message, fields: Mapping[str, object], at: str) -> str:
    parts = [f"HTTP {status} from {shown(at)}"]
    said = headers.get("X-Error-Message") or next(
        (text for key in _WORDS if isinstance(text := fields.get(key), str) and text), ""
    )
    if said:
        parts.append(words(said))
    request = next((found for name in _REQUEST if (found := headers.get(name))), "")
    if request:
        parts.append(f"request {words(request)}")
    return ", ".join(parts)


def _fields(body: bytes) -> Mapping[str, object]:
    """What a JSON answer says; of an XML one the code alone, for the rest may hold what was signed."""
    if (code := _XML_CODE.search(body)) is not None:
        return {"Message": code[1].decode("ascii")}
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
