"""What is said of a call that is made again."""

from __future__ import annotations

import re

from stager.core.events import Note

_OF = re.compile(r"(?P<call>.+?) of (?P<what>`.+`|\S+)", re.DOTALL)


def again(doing: str, error: Exception) -> Note:
    """That `doing` (``read of `NAME```, ``list of ms://owner/name``) met `error` and is tried again. What it is about is said once."""
    found = _OF.fullmatch(doing)
    if found is not None and found["what"].strip("`") in str(error):
        doing = found["call"]
    return Note("info", "retry", f"{doing}: {error}; trying again")
