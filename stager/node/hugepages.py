"""Whether a tmpfs gives huge pages: filling one costs half as much as filling 4 KiB pages."""

from __future__ import annotations

import shlex

from stager.core.units import shown
from stager.node import mounts

_SWITCH = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


def advice(path: str) -> str | None:
    """What to do for `path`, on a tmpfs without huge pages; None where nothing can be gained. Raises ``OSError`` for no path."""
    mount = mounts.read().get(mounts.mount_id(path))
    if mount is None or mount.fstype != "tmpfs":
        return None
    switch = _switch()
    if switch in (None, "deny", "force"):
        return None  # the kernel has none, forbids them, or gives them everywhere
    option = next((one for one in mount.options.split(",") if one.startswith("huge=")), "huge=never")
    if option in ("huge=always", "huge=within_size"):
        return None
    point = shown(shlex.quote(mount.point))
    return (
        f"`mount -o remount,huge=always {point}` on the node (an emptyDir cannot have it) gives huge pages: "
        "files are written and mapped with less work"
    )


def _switch() -> str | None:
    try:
        with open(_SWITCH, encoding="ascii") as file:
            words = file.read().split()
    except OSError:
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)
