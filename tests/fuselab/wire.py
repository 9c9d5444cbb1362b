"""The kernel's FUSE protocol: opcodes, structures, and the few system calls around them.

Names and layouts follow ``linux/fuse.h``, protocol 7.31.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct

ROOT_ID = 1
MINOR = 31
BUFFER = 64 << 10  # the device wants room for max_write plus headers
MAX_WRITE = 4096  # for a mount that takes no writes
MAX_WRITE_WRITABLE = 1 << 20

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 25, 26, 27, 28, 29
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
SETATTR, MKDIR, UNLINK, RMDIR, RENAME, WRITE, FSYNC = 4, 9, 10, 11, 12, 16, 20
CREATE, FALLOCATE, RENAME2 = 35, 43, 45

FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE = 1 << 0, 1 << 1
ATOMIC_O_TRUNC, BIG_WRITES = 1 << 3, 1 << 5
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
ASYNC_READ, AUTO_INVAL_DATA, PARALLEL_DIROPS = 1 << 0, 1 << 12, 1 << 18
ABORT_ERROR, MAX_PAGES = 1 << 21, 1 << 22

IN_HEADER = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid extlen pad
OUT_HEADER = struct.Struct("<IiQ")  # len error unique
INIT_IN = struct.Struct("<IIII")  # major minor max_readahead flags
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ATTR_OUT = struct.Struct("<QII")  # followed by ATTR
ENTRY_OUT = struct.Struct("<QQQQII")  # followed by ATTR
OPEN_OUT = struct.Struct("<QII")
OPEN_IN = struct.Struct("<II")  # flags, then open_flags
READ_IN = struct.Struct("<QQI")  # fh offset size, then fields of no use here; WRITE begins so too
WRITE_IN_SIZE = 40
WRITE_OUT = struct.Struct("<II")
SETATTR_IN = struct.Struct("<I4xQQ")  # valid fh size, then the rest
STATFS_OUT = struct.Struct("<QQQQQIII28x")
DIRENT = struct.Struct("<QQII")
U64 = struct.Struct("<Q")
FORGET_ONE = struct.Struct("<QQ")

_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_FORCE, MNT_DETACH = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, subject: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), subject)


def mount(mountpoint: str, fsname: str, subtype: str, *, writable: bool = False) -> int:
    """Mount `mountpoint`, read-only unless `writable`, as ``fuse.<subtype>`` and return the device descriptor that serves it."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={device},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,default_permissions,allow_other"
    kind = f"fuse.{subtype}" if subtype else "fuse"
    flags = MS_NOSUID | MS_NODEV | (0 if writable else MS_RDONLY)
    result = _libc.mount(
        os.fsencode(fsname), os.fsencode(mountpoint), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, mountpoint)
    return device


def clone(device: int) -> int:
    """A second descriptor of the same connection, with a reply queue of its own."""
    twin = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(twin, _CLONE, struct.pack("<I", device))
    return twin


def umount(mountpoint: str, flags: int = 0) -> None:
    """Unmount, raising `OSError` (EBUSY, EINVAL when nothing is mounted there)."""
    _check(_libc.umount2(os.fsencode(mountpoint), flags), mountpoint)


def umount_lazily(mountpoint: str) -> None:
    """Take every mount off `mountpoint`, busy or dead; does nothing when there is none."""
    for _ in range(8):
        try:
            umount(mountpoint, MNT_DETACH)
        except OSError:
            return


def mount_minor(mountpoint: str) -> int:
    """The minor device number of the mount at `mountpoint`, read without touching it."""
    wanted = os.fsencode(mountpoint).replace(b"\\", b"\\134").replace(b" ", b"\\040")
    found = -1
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split(b" ")
            if fields[4] == wanted:
                found = int(fields[2].split(b":")[1])
    if found < 0:
        raise OSError(errno.ENOENT, "not mounted", mountpoint)
    return found


def reply(device: int, unique: int, *parts: bytes | memoryview, error: int = 0) -> None:
    """Answer one request with data, or with the positive errno `error`."""
    length = OUT_HEADER.size + sum(len(part) for part in parts)
    # ENOENT: the asker was interrupted or the connection aborted meanwhile; nobody waits for this answer
    with contextlib.suppress(FileNotFoundError):
        os.writev(device, [OUT_HEADER.pack(length, -error, unique), *parts])
