"""Whether this node pages out memory that nobody touches, pressure or not: then warmed pages go by themselves."""

from __future__ import annotations

import glob

_SCHEMES = "sys/kernel/mm/damon/admin/kdamonds/*/contexts/*/schemes/*/action"
_MODULE = "sys/module/damon_reclaim/parameters/enabled"


def proactive(root: str = "/") -> str | None:
    """The file that shows DAMON paging out idle memory; None when nothing does, or this user may not look."""
    for action in sorted(glob.glob(root.rstrip("/") + "/" + _SCHEMES)):
        kdamond = action.split("/contexts/")[0]
        if _text(action) == "pageout" and _text(f"{kdamond}/state") == "on":
            return action
    module = root.rstrip("/") + "/" + _MODULE
    return module if _text(module) == "Y" else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
