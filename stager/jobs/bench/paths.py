"""The PATHs of a benchmark before anything is asked or evicted: that they are there, and each only once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from stager.core.errors import NotFound, from_oserror
from stager.core.location import Location, is_remote
from stager.core.units import shown
from stager.engine import runtime


async def look_for(paths: Sequence[str]) -> int:
    """0 when every one of `paths` that is no store's is there. Raises as ``os.stat`` of the first that is not, as a `StagerError`."""
    for path in paths:
        if not is_remote(path):
            await runtime.in_thread(f"looking for {shown(path)}", partial(_look, path))
    return 0


def _look(path: str) -> None:
    try:
        os.stat(path)
    except OSError as exc:
        error = from_oserror(exc, f"`{shown(path)}`")
        if isinstance(error, NotFound):
            error.hint = "give the folder that holds the model's files"
        raise error from exc


async def each_once(paths: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """(`paths` without those that an earlier one names by another spelling or link, [(one that was left out, the earlier one)])."""
    kept: dict[str, str] = {}
    again = []
    for path in paths:
        found = partial(_real, path)
        real = await runtime.in_thread(f"looking for {shown(path)}", found)
        if real in kept:
            again.append((path, kept[real]))
        kept.setdefault(real, path)
    return tuple(kept.values()), again


def _real(path: str) -> str:
    return str(Location.parse(path)).rstrip("/") if is_remote(path) else os.path.realpath(path)
