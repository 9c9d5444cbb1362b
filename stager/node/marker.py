"""The ready marker on disk, and what is true of this node now."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from typing import TYPE_CHECKING

from stager.core.errors import LocalIOError, StagerError, from_oserror
from stager.core.marker import ReadyMarker
from stager.core.units import shown
from stager.node import mounts
from stager.node.replacing import replace

if TYPE_CHECKING:
    from stager.core.marker import WarmedFile, WarmedPath

_NETWORK = ("nfs", "nfs4")
_MOST = 256 << 20  # bytes; a marker of 100,000 files has 20 MB


def boot_id() -> str:
    """This boot's id; empty where /proc does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def write(path: str, marker: ReadyMarker) -> None:
    """Replace the marker at `path` in one step (rename), its folder made if needed. Raises `StagerError`."""
    folder = os.path.dirname(os.path.abspath(path))
    subject = f"marker `{shown(path)}`"
    try:
        os.makedirs(folder, exist_ok=True)
        # Two containers on one emptyDir may both be PID 1, and a name that can be guessed can be a symlink to elsewhere.
        replace(path, marker.to_json().encode() + b"\n", subject)
    except OSError as exc:
        error = from_oserror(exc, subject)
        error.hint = "choose a writable place with --marker, for instance on an emptyDir"
        raise error from exc


def read(path: str) -> ReadyMarker:
    """The marker at `path`. Raises `StagerError` when there is none, or it cannot be read, or is no marker."""
    try:
        return ReadyMarker.from_json(_content(path).decode("ascii"))
    except OSError as exc:
        raise from_oserror(exc, f"marker `{shown(path)}`") from exc
    except ValueError as exc:
        raise StagerError(f"marker `{shown(path)}`: {exc}") from exc


def _content(path: str) -> bytes:
    # A FIFO would wait for a writer, a device may have no end.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat_module.S_ISREG(found.st_mode):
            raise LocalIOError(f"marker `{shown(path)}`: not a regular file")
        if found.st_size > _MOST:
            raise LocalIOError(f"marker `{shown(path)}`: too big for one")
        return file.read(_MOST)


def reboot(marker: ReadyMarker) -> str | None:
    """What speaks against `marker` being of this boot, in one phrase; None when it is."""
    now = boot_id()
    if not now or not marker.boot_id:
        return "whether the node has rebooted since cannot be known"
    return "the node has rebooted since" if marker.boot_id != now else None


def contradiction(marker: ReadyMarker) -> str | None:
    """What on this node speaks against `marker` now, in one phrase; None when nothing does.

    A reboot, a PATH that is gone or lies on another mount than then, a FUSE daemon that is gone, a file that is gone or
    is no longer the same. Only looks up names: nothing is opened. A daemon that hangs makes this hang: callers bound it.
    """
    if (why := reboot(marker)) is not None:
        return why
    if not (marker.files and marker.paths):
        return "the marker names no files"
    for path in marker.paths:
        if (why := _mount_changed(path)) is not None:
            return why
    network = any(path.fstype in _NETWORK for path in marker.paths)
    for file in marker.files:
        if (why := _file_changed(file, network=network)) is not None:
            return why
    return None


def _mount_changed(then: WarmedPath) -> str | None:
    try:
        now = mounts.identity(then.path)
        if then.fstype.startswith("fuse"):
            _ask_daemon(then.path)
    except OSError as exc:
        return f"`{shown(then.path)}`: {os.strerror(exc.errno or 0).lower()}"
    changed = now.device != then.device
    if now.namespace == then.namespace:  # mount ids mean nothing in another mount namespace
        changed = changed or now.mount_id != then.mount_id
        if now.unique_id is not None and then.unique_id is not None:
            changed = changed or now.unique_id != then.unique_id
    return f"`{shown(then.path)}` has been mounted again since" if changed else None


def _ask_daemon(path: str) -> None:
    """Raise ``OSError`` when the daemon is gone. Names and attributes may come from the kernel's memory of a dead one."""
    try:
        os.statvfs(path)  # never answered from a cache
    except OSError as exc:
        if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise


def _file_changed(then: WarmedFile, *, network: bool) -> str | None:
    try:
        stat = os.stat(then.path)
    except OSError as exc:
        return f"`{shown(then.path)}`: {os.strerror(exc.errno or 0).lower()}"
    same = (stat.st_ino, stat.st_size, stat.st_mtime_ns) == (then.inode, then.size, then.mtime_ns)
    if network:  # any change of attributes makes an NFS client drop the file, at its next read
        same = same and stat.st_ctime_ns == then.ctime_ns
    return None if same else f"`{shown(then.path)}` is not the file that was warmed"
