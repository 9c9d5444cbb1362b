"""Whether a folder has room for what is to be fetched into it, and what to do when it has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stager.core.budget import binding_text
from stager.core.units import format_size, shown
from stager.jobs.reckoning import read_manifest

if TYPE_CHECKING:
    from stager.jobs.reckoning import Reckoning
    from stager.node.parts import Target

MEMORY_FS = ("tmpfs", "ramfs")
"""Filesystems whose files are memory, and nothing but memory."""


def keep_free(target: Target, wanted: float) -> int:
    """Bytes of the filesystem that must stay free: `wanted`, or that share of it (float)."""
    return int(wanted * target.size()) if isinstance(wanted, float) else wanted


def refusal(target: Target, reckoning: Reckoning, need: int, keep: int) -> str:
    """Why `need` more bytes cannot be had with `keep` to stay free; empty when they can."""
    if not need:
        return ""
    free, where = target.free(), f"`{shown(target.folder)}`"
    if need + keep > free:
        return (
            f"{format_size(need)} are to be fetched and {format_size(keep)} to stay free, "
            f"but {where} has {format_size(free)}"
        )
    admission = reckoning.admission
    if target.filesystem() in MEMORY_FS and admission is not None and admission.granted < need:
        limit = f": {binding_text(admission.binding)}" if admission.binding else ""
        return f"{where} is memory, and {format_size(need - admission.granted)} do not fit{limit}"
    return ""


def way_out(target: Target, reckoning: Reckoning) -> str:
    """The hint for a refusal: an older version in the folder is named, because it stays until the new one is whole. Blocks."""
    before = read_manifest(target.folder)
    gone = {one.path for one in before.files if one.path not in reckoning.names} if before else set()
    replaced = {reckoning.entries[index].path for index in reckoning.wanted}
    found = (target.stat(path) for path in gone | replaced)
    old = sum(there.size for there in found if there is not None)
    if not old:
        return "make room, or choose another folder; `--keep-free` says how much must stay"
    return (
        f"an older version of these files takes {format_size(old)} and stays until the new one is whole: "
        "make room, choose another folder, or remove the old files first"
    )
