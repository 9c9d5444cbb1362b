"""Whether a folder has room for what is to be fetched or pulled into it, and what to do when it has not."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from stager.core.budget import binding_text
from stager.core.errors import ResourceRefused
from stager.core.location import Scheme
from stager.core.units import format_size, shown
from stager.jobs.reckoning import read_manifest
from stager.node.filesystems import object_store_at
from stager.node.parts import Target
from stager.store.directory_upload import part_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stager.core.model import FileEntry
    from stager.jobs.options import PullOptions
    from stager.jobs.reckoning import Reckoning
    from stager.store.base import StoredObject

MEMORY_FS = ("tmpfs", "ramfs")
"""Filesystems whose files are memory, and nothing but memory."""

_MAKE_ROOM = "make room, or choose another folder; `--keep-free` says how much must stay"


def keep_free(target: Target, wanted: float) -> int:
    """Bytes of the filesystem that must stay free: `wanted`, or that share of it (float)."""
    return int(wanted * target.size()) if isinstance(wanted, float) else wanted


def refusal(target: Target, reckoning: Reckoning, need: int, keep: int) -> str:
    """Why `need` more bytes cannot be had with `keep` to stay free; empty when they can."""
    if not need:
        return ""
    if short := _shortage(target, need, keep, "fetched"):
        return short
    where, admission = f"`{shown(target.folder)}`", reckoning.admission
    if target.filesystem() in MEMORY_FS and admission is not None and admission.granted < need:
        limit = f": {binding_text(admission.binding)}" if admission.binding else ""
        return f"{where} is memory, and {format_size(need - admission.granted)} do not fit{limit}"
    return ""


def _shortage(target: Target, need: int, keep: int, done: str) -> str:
    free = target.free()
    if need + keep <= free:
        return ""
    return (
        f"{format_size(need)} are to be {done} and {format_size(keep)} to stay free, "
        f"but `{shown(target.folder)}` has {format_size(free)}"
    )


def refuse_pull(options: PullOptions, wanted: Iterable[FileEntry], there: Mapping[str, StoredObject]) -> None:
    """Raise `ResourceRefused` where a pull of `wanted` into a folder would leave less free than is to stay.

    `there` is what is in it, by name: an older file stays until the new one beside it is whole, one for each lane at most. What unfinished uploads
    hold is not needed again. Where objects lie behind the folder nobody knows how much they may take. Blocks; raises as `Target.free`.
    """
    if options.dest.scheme is not Scheme.FILE:
        return
    folder = options.dest.prefix
    need, replaced = 0, []
    for entry in wanted:
        old = there[entry.path].size if entry.path in there else 0
        replaced.append(old)
        need += max(0, entry.size - old - _begun(os.path.join(folder, entry.path)))
    need += sum(heapq.nlargest(options.lanes, replaced))
    if not need or object_store_at(folder):
        return
    target = Target(folder)
    if short := _shortage(target, need, keep_free(target, options.keep_free), "pulled"):
        raise ResourceRefused(short, hint=_MAKE_ROOM)


def _begun(path: str) -> int:
    """Bytes that an unfinished upload of the file `path` holds."""
    with suppress(OSError):
        return os.lstat(part_paths(path)[0]).st_size
    return 0


def way_out(target: Target, reckoning: Reckoning) -> str:
    """The hint for a refusal: an older version in the folder is named, because it stays until the new one is whole. Blocks."""
    before = read_manifest(target.folder)
    gone = {one.path for one in before.files if one.path not in reckoning.names} if before else set()
    replaced = {reckoning.entries[index].path for index in reckoning.wanted}
    found = (target.stat(path) for path in gone | replaced)
    old = sum(there.size for there in found if there is not None)
    if not old:
        return _MAKE_ROOM
    return (
        f"an older version of these files takes {format_size(old)} and stays until the new one is whole: "
        "make room, choose another folder, or remove the old files first"
    )
