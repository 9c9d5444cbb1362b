"""Kernel calls that Python lacks.

cachestat(2), mincore(2), MADV_POPULATE_READ, statx(2)'s unique mount id, fallocate(2) without glibc's emulation, sync_file_range(2).

All go through ctypes, which releases the GIL: ``mmap.madvise`` does not, and one fault that hangs in a FUSE daemon would
then stop the whole process, its signal handling included. Every call raises ``OSError`` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from functools import cache
from typing import NamedTuple, Self

PAGE = mmap.PAGESIZE
MADV_POPULATE_READ = 22  # Linux 5.14; same number on every architecture
_SYS_CACHESTAT = 451  # Linux 6.5; same number on every architecture
_SYS_STATX = {"x86_64": 332, "aarch64": 291}
_STATX_MNT_ID_UNIQUE = 0x4000  # Linux 6.8
_AT_EMPTY_PATH = 0x1000
_SYNC_WAIT, _SYNC_WRITE, _SYNC_WAIT_AFTER = 1, 2, 4
_MAP_FAILED = ctypes.c_void_p(-1).value


class _CachestatRange(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recent"))


class CacheCount(NamedTuple):
    """Pages of a range: in the cache, and evicted under memory pressure since they were last there."""

    cached: int
    evicted: int


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    libc.syscall.restype = ctypes.c_long
    return libc


def _fail(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def allocate(fd: int, size: int) -> None:
    """fallocate(2) the first `size` bytes; EOPNOTSUPP where the filesystem cannot (posix_fallocate(3) would then write them)."""
    while _libc().fallocate(fd, 0, 0, size):
        if ctypes.get_errno() != errno.EINTR:
            raise _fail("fallocate")


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the dirty pages of the range written, without waiting (sync_file_range(2))."""
    if _libc().sync_file_range(fd, offset, length, _SYNC_WRITE):
        raise _fail("sync_file_range")


def finish_writeback(fd: int, offset: int, length: int) -> None:
    """Write the dirty pages of the range and wait for the disk; metadata is not written."""
    if _libc().sync_file_range(fd, offset, length, _SYNC_WAIT | _SYNC_WRITE | _SYNC_WAIT_AFTER):
        raise _fail("sync_file_range")


def cachestat(fd: int, offset: int, length: int) -> CacheCount:
    """Counts of bytes [offset, offset + length) of `fd`; ENOSYS before Linux 6.5, EPERM for strangers to the file."""
    area = _CachestatRange(offset, length)
    out = _Cachestat()
    call = _libc().syscall
    if call(
        ctypes.c_long(_SYS_CACHESTAT),
        ctypes.c_uint(fd),
        ctypes.byref(area),
        ctypes.byref(out),
        ctypes.c_uint(0),
    ):
        raise _fail("cachestat")
    return CacheCount(out.cache, out.evicted)


def unique_mount_id(fd: int) -> int | None:
    """The never reused id of the mount `fd` lies on; None before Linux 6.8 or on an architecture not listed here."""
    number = _SYS_STATX.get(os.uname().machine)
    if number is None:
        return None
    buffer = ctypes.create_string_buffer(256)
    call = _libc().syscall
    if call(
        ctypes.c_long(number),
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(_AT_EMPTY_PATH),
        ctypes.c_uint(_STATX_MNT_ID_UNIQUE),
        buffer,
    ):
        return None
    mask = int.from_bytes(buffer.raw[0:4], "little")
    return int.from_bytes(buffer.raw[144:152], "little") if mask & _STATX_MNT_ID_UNIQUE else None


class Mapping:
    """A shared read-only mapping of bytes [offset, offset + length) of a file; `offset` is page-aligned.

    Raises ``OSError``: ENODEV where the file cannot be mapped (FUSE with direct_io). The pages are never touched by this
    process itself, so a file that shrinks cannot raise SIGBUS.
    """

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length
        address = _libc().mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
        if address == _MAP_FAILED:
            raise _fail("mmap")
        self._address: int | None = address

    def _at(self, offset: int) -> int:
        assert self._address is not None, "mapping is closed"
        return self._address + offset - self.offset

    def populate(self, offset: int, length: int) -> None:
        """Fault bytes [offset, offset + length) in; EFAULT past the end of the file or on a read error, EINVAL before 5.14."""
        while _libc().madvise(self._at(offset), length, MADV_POPULATE_READ):
            if ctypes.get_errno() != errno.EINTR:
                raise _fail("madvise")

    def resident_pages(self, offset: int, length: int) -> bytes:
        """One byte a page, 1 for resident, of bytes [offset, offset + length)."""
        pages = -(-length // PAGE)
        vector = ctypes.create_string_buffer(pages)
        if _libc().mincore(self._at(offset), length, vector):
            raise _fail("mincore")
        return vector.raw[:pages]

    def lock(self) -> None:
        """mlock(2) the mapping; ENOMEM beyond RLIMIT_MEMLOCK, EPERM without the right."""
        if _libc().mlock(self._at(self.offset), self.length):
            raise _fail("mlock")

    def close(self) -> None:
        """Unmap; harmless when repeated."""
        if self._address is not None:
            _libc().munmap(self._address, self.length)
            self._address = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
