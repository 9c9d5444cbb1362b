"""The folder that a fetch fills: part files, final names, the journal. Everything that touches it goes through here.

No symlink below the folder is ever followed: every folder is opened from the one above it, so nothing is written, read or removed
outside, whatever somebody changes meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat as stat_module
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from stager.core import journal as journal_text
from stager.core.checksum import crc64
from stager.core.errors import LocalIOError, ResourceRefused, StagerError, from_oserror
from stager.core.journal import Journal, Record
from stager.core.model import FileIdentity
from stager.core.units import shown
from stager.node import mounts, syscalls
from stager.node.files import identity_of
from stager.node.partfile import PART, PartFile

_OWN = ".stager"
_LOCK = f"{_OWN}/fetch.lock"
_BLOCK = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)

Checkpoint = Callable[[int], None]


class Target:
    """The folder at `folder`. Paths given to methods are relative, as `stager.core.placement` lets them pass.

    All methods raise `StagerError`, with the path named, for what the kernel refuses.
    """

    def __init__(self, folder: str) -> None:
        """Nothing is touched yet."""
        self.folder = os.path.abspath(folder)
        self._root: int | None = None
        self._journal: int | None = None
        self._lock_fd: int | None = None
        self._lock = threading.RLock()

    # The folder

    def exists(self) -> bool:
        """Whether the folder is there."""
        return os.path.isdir(self.folder)

    def prepare(self) -> None:
        """Make the folder, and stager's own in it."""
        with _named(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            os.close(self._folder(_OWN, make=True))

    def close(self) -> None:
        """Close what is open, and let the next fetch have the folder."""
        with self._lock:
            for fd in (self._journal, self._lock_fd, self._root):
                if fd is not None:
                    os.close(fd)
            self._journal = self._lock_fd = self._root = None

    def free(self) -> int:
        """Bytes that can still be written."""
        found = self._statvfs()
        return found.f_bavail * found.f_frsize

    def size(self) -> int:
        """Bytes of the whole filesystem."""
        found = self._statvfs()
        return found.f_blocks * found.f_frsize

    def filesystem(self) -> str:
        """Its type, as ``ext4`` or ``tmpfs``; of the nearest folder that exists."""
        with _named(self.folder):
            mount = mounts.read().get(mounts.mount_id(self._nearest()))
        return mount.fstype if mount is not None else "unknown"

    def _statvfs(self) -> os.statvfs_result:
        with _named(self.folder):
            return os.statvfs(self._nearest())

    def _nearest(self) -> str:
        path = self.folder
        while not os.path.isdir(path) and path != "/":
            path = os.path.dirname(path)
        return path

    # One fetch at a time

    def try_lock(self) -> str | None:
        """Keep other fetches out; None when that is done, else words for who is in.

        Where the filesystem has no locks nobody can be kept out: that counts as done.
        """
        with _named(f"{self.folder}/{_LOCK}"):
            fd = self._open(_LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
            os.close(fd)
            return holder or "somebody"
        except OSError:  # no locks here
            os.close(fd)
            return None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock_fd = fd
        return None

    # The journal

    def read_journal(self) -> Journal:
        """What earlier runs, and this one, have noted; empty when there is nothing."""
        try:
            fd = self._open(journal_text.PATH, os.O_RDONLY)
        except FileNotFoundError:
            return Journal()
        except OSError as exc:
            raise self._error(exc, journal_text.PATH) from exc
        with open(fd, "rb") as file:
            return journal_text.parse(file.read())

    def append(self, record: Record) -> None:
        """Note `record`; from any thread."""
        with self._lock, _named(f"{self.folder}/{journal_text.PATH}"):
            if self._journal is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._journal = self._open(journal_text.PATH, flags)
                os.write(self._journal, b"\n")  # ends a line that a crash tore
            os.write(self._journal, journal_text.line(record))

    def rewrite(self, journal: Journal) -> None:
        """Replace the journal."""
        with self._lock:
            if self._journal is not None:
                os.close(self._journal)
                self._journal = None
        self.write_small(journal_text.PATH, journal_text.compact(journal))

    def write_small(self, path: str, data: bytes) -> None:
        """Replace a small file in one step, on disk when this returns."""
        temporary = f"{path}.new"
        with _named(f"{self.folder}/{path}"):
            fd = self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, make=True)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            self._rename(temporary, path)

    # Files

    def stat(self, path: str) -> FileIdentity | None:
        """The regular file with this name, None when there is nothing. Raises `LocalIOError` when something else is in its place."""
        try:
            with self._parent(path) as (fd, name):
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._error(exc, path) from exc
        if not stat_module.S_ISREG(found.st_mode):
            raise LocalIOError(
                f"`{shown(self.folder)}/{shown(path)}` is not a regular file", hint="move it out of the way"
            )
        return identity_of(found)

    def crc_of(self, path: str, checkpoint: Checkpoint) -> int:
        """The CRC-64 of a file, read whole; `checkpoint` is called with the bytes of each block."""
        with _named(f"{self.folder}/{path}"):
            fd = self._open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                crc, view = 0, memoryview(bytearray(_BLOCK))
                while count := os.readv(fd, [view]):
                    crc = crc64(view[:count], crc)
                    checkpoint(count)
                return crc
            finally:
                os.close(fd)

    def part(self, path: str, size: int, *, fresh: bool) -> PartFile:
        """The part file of `path`, made where there is none; `fresh` empties it. Raises `ResourceRefused` when the disk is full."""
        name = f"{path}{PART}"
        with _named(f"{self.folder}/{path}"):
            fd = self._open(name, os.O_RDWR | os.O_CREAT, make=True)
            try:
                if not stat_module.S_ISREG(os.fstat(fd).st_mode):
                    raise LocalIOError(f"`{shown(self.folder)}/{shown(name)}` is not a regular file")
                if fresh:
                    os.ftruncate(fd, 0)
                self._allocate(fd, size)
            except BaseException:
                os.close(fd)
                raise
        return PartFile(
            fd, f"{self.folder}/{path}", lambda: self._rename(name, path), lambda: self._unlink(name)
        )

    def _allocate(self, fd: int, size: int) -> None:
        """Room for `size` bytes. On disks they are reserved: better no room now than half way."""
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
        if not size:
            return
        try:
            if self.filesystem() not in ("tmpfs", "ramfs"):  # there it would fill pages twice
                syscalls.allocate(fd, size)
                return
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        os.ftruncate(fd, size)

    def allocated(self, path: str) -> int:
        """Bytes of disk that the part file of `path` has already."""
        try:
            with self._parent(f"{path}{PART}") as (fd, name):
                return os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
        except OSError:
            return 0

    def names(self) -> Iterator[str]:
        """Everything below the folder that is no folder, without what is stager's own; symlinks are named, not followed."""
        with _named(self.folder):
            yield from self._names("")

    def _names(self, below: str) -> Iterator[str]:
        fd = self._folder(below, make=False)
        try:
            with os.scandir(fd) as entries:
                found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        finally:
            os.close(fd)
        for name, is_folder in found:
            path = f"{below}/{name}" if below else name
            if path == _OWN:
                continue
            if is_folder:
                yield from self._names(path)
            else:
                yield path

    def remove(self, path: str) -> None:
        """Unlink `path`, and the folders that it leaves empty. What is gone already is no error."""
        with _named(f"{self.folder}/{path}"), suppress(FileNotFoundError):
            self._unlink(path)
            while "/" in path:
                path = path.rpartition("/")[0]
                with self._parent(path) as (fd, name):
                    try:
                        os.rmdir(name, dir_fd=fd)
                    except OSError:
                        return

    # By descriptors

    def _folder(self, path: str, *, make: bool) -> int:
        """A descriptor of the folder `path` below the root, the caller's to close."""
        with self._lock:
            if self._root is None:
                self._root = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fd = os.dup(self._root)
        for name in path.split("/") if path else []:
            try:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=fd)
                below = os.open(name, _FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    @contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        folder, _, name = path.rpartition("/")
        fd = self._folder(folder, make=make)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def _open(self, path: str, flags: int, *, make: bool = False) -> int:
        with self._parent(path, make=make) as (fd, name):
            # A FIFO in the place would wait for a reader.
            flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(name, flags, 0o644, dir_fd=fd)

    def _rename(self, old: str, new: str) -> None:
        """Rename within one folder, on disk when this returns."""
        with self._parent(old) as (fd, name):
            os.rename(name, new.rpartition("/")[2], src_dir_fd=fd, dst_dir_fd=fd)
            with suppress(OSError):  # some network filesystems cannot
                os.fsync(fd)

    def _unlink(self, path: str) -> None:
        with self._parent(path) as (fd, name):
            os.unlink(name, dir_fd=fd)

    def _error(self, exc: OSError, path: str) -> StagerError:
        return _translated(exc, f"{self.folder}/{path}")


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns ``OSError`` into the error that says what to do about `path`."""
    try:
        yield
    except OSError as exc:
        raise _translated(exc, path) from exc


def _translated(exc: OSError, path: str) -> StagerError:
    subject = f"`{shown(path)}`"
    if exc.errno in _FULL:
        return ResourceRefused(
            f"{subject}: {os.strerror(exc.errno or 0).lower()} ({errno.errorcode[exc.errno or 0]})",
            hint="make room and run it again: it goes on where it was",
        )
    error = from_oserror(exc, subject)
    if exc.errno in (errno.ELOOP, errno.ENOTDIR):
        return LocalIOError(
            error.message, hint="a symlink or a file is in the way; move it, or fetch into another folder"
        )
    return error
