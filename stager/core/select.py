"""Which files a run takes: what is always left out, and the globs of ``--include`` and ``--exclude``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

_FOLDERS = {
    ".stager": "stager's own folder",
    ".git": "git's own folder",
    "lost+found": "the filesystem's own folder",  # at the root of ext4, and nobody but root may look into it
    ".locks": "a folder of lock files",
    "._____temp": "an unfinished download",  # ModelScope's
    ".ossutil_checkpoint": "an unfinished download",
}
_PARTIAL = (".incomplete", ".part", ".partial", ".aria2", ".crdownload")


def left_out(path: str) -> str | None:
    """Why the file at the relative POSIX `path` is never taken, in a few words; None when it may be."""
    parts = path.split("/")
    for part in parts:
        if part in _FOLDERS:
            return _FOLDERS[part]
    if any(pair == (".cache", "huggingface") for pair in pairwise(parts)):
        return "the hub client's own folder"
    name = parts[-1].lower()
    if name.endswith(".lock"):
        return "a lock file"
    return "an unfinished download" if is_partial_download(path) else None


def is_partial_download(path: str) -> bool:
    """True when the name says that a download tool has not finished this file."""
    return "._____temp" in path.split("/") or path.lower().endswith(_PARTIAL)


def selected(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """True when the relative POSIX `path` is wanted: it matches `include` (empty: everything) and no `exclude`.

    A glob is matched against the whole path and against the base name, with regard to case. ``*`` and ``?`` also
    match ``/``, as in the hub clients' own ``--include``; ``**/`` matches any number of folders, none included; a
    glob that ends in ``/`` means all below that folder. `exclude` wins.
    """
    if any(_matches(path, glob) for glob in exclude):
        return False
    return not include or any(_matches(path, glob) for glob in include)


def _matches(path: str, glob: str) -> bool:
    pattern = _compiled(glob)
    return bool(pattern.fullmatch(path) or pattern.fullmatch(path.rpartition("/")[2]))


@lru_cache(maxsize=256)
def _compiled(glob: str) -> re.Pattern[str]:
    glob = glob.removeprefix("./").lstrip("/")
    if glob.endswith("/"):
        glob += "*"
    out, at = [], 0
    while at < len(glob):
        if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
            out.append("(?:.*/)?")
            at += 3
        elif glob[at] == "*":
            out.append(".*")
            at += 1
            while at < len(glob) and glob[at] == "*":
                at += 1
        elif glob[at] == "[" and (close := glob.find("]", at + 2)) > 0:
            out.append(_char_class(glob[at + 1 : close]))
            at = close + 1
        else:
            out.append("." if glob[at] == "?" else re.escape(glob[at]))
            at += 1
    return re.compile("".join(out), re.DOTALL)


def _char_class(body: str) -> str:
    """The regular expression for ``[body]``; ``!`` negates, and a range that runs backwards matches nothing."""
    negate = body[0] == "!"
    body = body[1:] if negate else body
    out, at = [], 0
    while at < len(body):
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            low, high = body[at], body[at + 2]
            if low <= high:
                out.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            out.append(re.escape(body[at]))
            at += 1
    if not out:
        return "." if negate else "(?!)"
    return f"[{'^' if negate else ''}{''.join(out)}]"
