"""The termination message: one JSON object that says how a run ended, never longer than the kubelet reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stager.core.record import Record

LIMIT = 4096  # bytes; the kubelet reads no more
_CUT = "..."


def last_words(record: Record) -> str:
    """`record` as one JSON object in ASCII, at most `LIMIT` bytes: ``{"v":1,"command","result","exit","reason",...}``.

    `result` is the record's state; bytes and seconds are whole numbers and floats, null where unknown. Where it would be too long the longest
    texts are cut, and end with ``...``; it stays JSON.
    """
    resident = [row.residency.resident for row in record.pages.values()]
    body: dict[str, Any] = {
        "v": 1,
        "command": record.command,
        "result": record.state.value,
        "exit": record.exit_code,
        "reason": record.reason,
    }
    body |= {name: text for name, text in (("error", record.error), ("hint", record.hint)) if text}
    body["model"] = ", ".join(record.models)
    if record.source:
        body["source"] = record.source
    body |= {"files": record.files, "bytes": record.size}
    for verb, stage in record.stages.items():
        body[f"{verb}_bytes"] = stage.read if stage.read is not None else stage.done
        body[f"{verb}_seconds"] = round(stage.seconds, 3)
    if resident:
        body["resident"] = None if None in resident else sum(one or 0 for one in resident)
    if record.ended is not None:
        body["seconds"] = round(record.ended - record.started, 3)
    return fitting(body)


def failed(command: str, exit_code: int, slug: str, reason: str, hint: str | None) -> str:
    """The termination message of a command that could not begin its work."""
    body = {
        "v": 1,
        "command": command,
        "result": "failed",
        "exit": exit_code,
        "reason": reason,
        "error": slug,
    }
    return fitting({**body, **({"hint": hint} if hint else {})})


def fitting(body: dict[str, Any], limit: int = LIMIT) -> str:
    """`body` as compact JSON in ASCII, its longest texts cut until it has at most `limit` characters."""
    body = dict(body)
    while len(text := json.dumps(body, separators=(",", ":"))) > limit:
        name = max(
            (name for name in body if isinstance(body[name], str)),
            key=lambda name: len(json.dumps(body[name])),
        )
        longest: str = body[name]
        if len(longest) <= len(_CUT):
            return "{}"  # nothing left to cut: cannot happen with the names used here
        # A character takes 1 to 12 places in JSON: cut what must go in any case, then look again.
        keep = max(0, len(longest) - len(_CUT) - max(1, (len(text) - limit) // 12))
        body[name] = longest[:keep] + _CUT
    return text
