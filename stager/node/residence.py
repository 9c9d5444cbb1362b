"""What is resident now of the files that a marker names. For ``stager ready``: no event loop, no threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stager.node import pagecache

if TYPE_CHECKING:
    from stager.core.marker import ReadyMarker


def resident_now(marker: ReadyMarker) -> tuple[int | None, int]:
    """(bytes resident, bytes in all) of the marker's files; None when one of them cannot be counted exactly.

    Files on mounts that drop pages at open are not opened: nothing of them is resident.
    """
    total = sum(file.size for file in marker.files)
    if any(path.keeps in ("drops", "direct-io") for path in marker.paths):
        return None, total
    overlay = any(path.fstype == "overlay" for path in marker.paths)
    resident = 0
    for file in marker.files:
        if not file.size:
            continue
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None, total
        try:
            found = pagecache.residency(fd, "overlay" if overlay else "")
        finally:
            os.close(fd)
        if found.resident is None:
            return None, total
        resident += found.resident
    return resident, total
