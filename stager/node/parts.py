"""The folder that a fetch fills: part files, final names, the journal. Everything that touches it goes through here.

Nothing is written, read or removed outside of it, whatever symlinks and hard links somebody puts there (`stager.node.beneath`).
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
from stager.core.errors import LocalIOError, NotFound, StagerError
from stager.core.journal import Journal, Record
from stager.core.model import FileIdentity
from stager.core.units import shown
from stager.node import mounts, syscalls
from stager.node.beneath import Beneath
from stager.node.files import identity_of
from stager.node.partfile import FULL, PART, PartFile, blocks, failure

__all__ = ["Checkpoint", "PartFile", "Target"]

_OWN = ".stager"
_LOST = "lost+found"
_LOCK = f"{_OWN}/fetch.lock"
_MEMORY_FS = ("tmpfs", "ramfs", "hugetlbfs")
_UNSTATED = 1 << 62  # bytes: what a filesystem has that states no size
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

Checkpoint = Callable[[int], None]


class Target:
    """The folder at `folder`. Paths given to methods are relative, as `stager.core.placement` lets them pass.

    All methods raise `StagerError`, with the path named, for what the kernel refuses.
    """

    def __init__(self, folder: str) -> None:
        """Nothing is touched yet."""
        self.folder = os.path.abspath(folder)
        self._below = Beneath(self.folder)
        self._journal: int | None = None
        self._torn = True  # the journal may end in the middle of a line
        self._lock_fd: int | None = None
        self._lock = threading.RLock()
        self._fstype: str | None = None
        self._refusal: StagerError | None = None
        self.unlocked = False
        """Whether the filesystem has no locks, so that `try_lock` kept nobody out."""

    # The folder

    def exists(self) -> bool:
        """Whether the folder is there."""
        return os.path.isdir(self.folder)

    @property
    def read_only(self) -> bool:
        """Whether `prepare` found that nothing can be written here: what is here already may do. Nobody is kept out then."""
        return self._refusal is not None

    def prepare(self) -> None:
        """Make the folder, with those above it, and stager's own in it.

        A folder that is there and cannot be written is no error yet: `read_only` says so, and what has to write raises it.
        """
        with self._forgiving():
            self._prepare()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Turns the error that says that nothing can be written in the folder into `read_only`."""
        try:
            yield
        except StagerError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _READ_ONLY or not self.exists():
                raise
            self._refusal = error

    def _prepare(self) -> None:
        with _named(self.folder):
            try:
                os.makedirs(self.folder, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as exc:
                raise LocalIOError(
                    f"`{shown(self.folder)}`: not a folder, or not below one", hint="choose another folder"
                ) from exc
            with self._below.folder(_OWN, make=True):
                pass
            try:
                os.close(self._below.open(_LOCK, os.O_RDWR))
            except (OSError, LocalIOError) as exc:  # of what else is wrong with it `try_lock` tells
                if getattr(exc, "errno", None) in _READ_ONLY:
                    raise

    def _must_write(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    def close(self) -> None:
        """Close what is open, and let the next fetch have the folder."""
        with self._lock:
            for fd in (self._journal, self._lock_fd):
                if fd is not None:
                    os.close(fd)
            self._journal = self._lock_fd = None
            self._below.close()

    def free(self) -> int:
        """Bytes that can still be written, those kept for root not counted; 2^62 where the filesystem states no size (ramfs)."""
        found = self._statvfs()
        return found.f_bavail * found.f_frsize if found.f_blocks else _UNSTATED

    def size(self) -> int:
        """Bytes of the whole filesystem; 0 where it states no size."""
        found = self._statvfs()
        return found.f_blocks * found.f_frsize

    def filesystem(self) -> str:
        """Its type, as ``ext4`` or ``tmpfs``; of the nearest folder that exists."""
        if self._fstype is None:
            with _named(self.folder):
                mount = mounts.read().get(mounts.mount_id(self._nearest()))
            self._fstype = mount.fstype if mount is not None else "unknown"
        return self._fstype

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
        """Keep other fetches out, until `close` or the end of this process; None when that is done, else words for who is in.

        Where the filesystem has no locks nobody can be kept out: that counts as done, and `unlocked` says so.
        So does a folder that is `read_only`.
        """
        holder = None
        if not self.read_only:
            with self._forgiving():
                holder = self._try_lock()
        return holder

    def _try_lock(self) -> str | None:
        with _named(f"{self.folder}/{_LOCK}"):
            fd = self._below.open(_LOCK, os.O_RDWR | os.O_CREAT)
            try:
                self.unlocked = not _flock(fd)
                if os.fstat(fd).st_nlink == 1:  # otherwise it is somebody else's file as well
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            except BlockingIOError:
                holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
                os.close(fd)
                return shown(holder) or "somebody"
            except OSError as exc:
                if exc.errno not in FULL:  # the lock is what counts, not the words in it
                    os.close(fd)
                    raise
        self._lock_fd = fd
        return None

    @property
    def locks(self) -> tuple[int, ...]:
        """The descriptor with the lock; whoever has it open has the lock too. Empty without one."""
        return () if self._lock_fd is None else (self._lock_fd,)

    # The journal

    def read_journal(self) -> Journal:
        """What earlier runs, and this one, have noted; empty when there is nothing."""
        with _named(f"{self.folder}/{journal_text.PATH}"):
            try:
                fd = self._below.open(journal_text.PATH, os.O_RDONLY)
            except FileNotFoundError:
                return Journal()
            with open(fd, "rb") as file:
                return journal_text.parse(file.read())

    def append(self, record: Record) -> None:
        """Note `record`; from any thread. It is not on disk before the system likes: what it claims is checked when it is read."""
        self._must_write()
        with self._lock, _named(f"{self.folder}/{journal_text.PATH}"):
            if self._journal is None:
                self._journal = self._open_journal()
                self._torn = True
            line = (b"\n" if self._torn else b"") + journal_text.line(record)
            self._torn = True  # until it is there: a full disk takes a line in part
            if os.write(self._journal, line) < len(line):
                raise OSError(errno.ENOSPC, "no room for a whole line")
            self._torn = False

    def _open_journal(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        fd = self._below.open(journal_text.PATH, flags)
        if os.fstat(fd).st_nlink == 1:
            return fd
        os.close(fd)  # `cp -al` of the folder, say: from here on it is ours alone
        self.write_small(journal_text.PATH, journal_text.compact(self.read_journal()))
        return self._below.open(journal_text.PATH, flags)

    def rewrite(self, journal: Journal) -> None:
        """Replace the journal, in one step and on disk. No other process may be appending."""
        with self._lock:
            if self._journal is not None:
                os.close(self._journal)
                self._journal = None
        self.write_small(journal_text.PATH, journal_text.compact(journal))

    def write_small(self, path: str, data: bytes) -> None:
        """Replace a small file in one step, on disk when this returns."""
        self._must_write()
        with _named(f"{self.folder}/{path}"):
            self._below.replace(path, data)

    # Files

    def stat(self, path: str) -> FileIdentity | None:
        """The regular file with this name, None when there is nothing. Raises `LocalIOError` when something else is in its place."""
        with _named(f"{self.folder}/{path}"):
            try:
                found = self._below.stat(path)
            except FileNotFoundError:
                return None
        if not stat_module.S_ISREG(found.st_mode):
            raise self._below.odd(path)
        return identity_of(found)

    def crc_of(self, path: str, checkpoint: Checkpoint) -> int:
        """The CRC-64 of a file, read whole; `checkpoint` is called with the bytes of each block."""
        with _named(f"{self.folder}/{path}"):
            fd = self._below.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                crc = 0
                for block in blocks(fd, 0, None, checkpoint):
                    crc = crc64(block, crc)
                return crc
            finally:
                os.close(fd)

    def part(self, path: str, size: int, *, fresh: bool) -> PartFile:
        """The part file of `path`, made where there is none; `fresh` takes another's place. Raises `ResourceRefused` when the disk is full.

        A symlink in its place, or a file that has another name too, is taken away, and the part file begins empty. Raises
        `LocalIOError` when something other than a file has the final name.
        """
        name = f"{path}{PART}"
        self._must_write()
        self.stat(path)
        with _named(f"{self.folder}/{name}"):
            fd = self._below.open_own(name, os.O_RDWR)
            if fresh and os.fstat(fd).st_size:
                # Not emptied: a worker that outlives a killed fetch for a moment may still be writing another version into it.
                os.close(fd)
                fd = self._below.open_new(name, os.O_RDWR)
            try:
                self._allocate(fd, size)
            except BaseException:
                os.close(fd)
                raise

        return self._part_file(fd, path, size)

    def part_again(self, path: str, size: int) -> PartFile:
        """The part file that `part` has made, opened once more. Raises `LocalIOError` when it is not that any more."""
        name = f"{path}{PART}"
        try:
            with _named(f"{self.folder}/{name}"):
                fd = self._below.open(name, os.O_RDWR)
        except NotFound:
            pass
        else:
            found = os.fstat(fd)
            if (found.st_size, found.st_nlink) == (size, 1):
                return self._part_file(fd, path, size)
            os.close(fd)
        raise LocalIOError(
            f"`{shown(self.folder)}/{shown(name)}` was changed or removed by somebody else while it was being fetched",
            hint="run it again once nobody else writes there",
        )

    def _part_file(self, fd: int, path: str, size: int) -> PartFile:
        name = f"{path}{PART}"

        def name_it() -> None:
            self.stat(path)  # a symlink, a device or a folder keeps its name
            self._below.rename(name, path)

        return PartFile(fd, f"{self.folder}/{path}", size, name_it, lambda: self._below.unlink(name))

    def _allocate(self, fd: int, size: int) -> None:
        """Room for `size` bytes. On disks they are reserved: better no room now than half way."""
        before = os.fstat(fd).st_size
        if before > size:
            os.ftruncate(fd, size)
        if not size:
            return
        try:
            if self.filesystem() not in _MEMORY_FS:  # there it would fill pages twice
                syscalls.allocate(fd, size)
                return
        except OSError as exc:
            if exc.errno in FULL:
                os.ftruncate(fd, min(before, size))  # gives back what it took until the disk was full
                raise
        os.ftruncate(fd, size)

    def allocated(self, path: str) -> int:
        """Bytes of disk that the part file of `path` has already."""
        try:
            return self._below.stat(f"{path}{PART}").st_blocks * 512
        except OSError:
            return 0

    def names(self) -> Iterator[str]:
        """Every regular file and symlink below the folder, without what is stager's own. Symlinks are named, not followed.

        What is mounted somewhere below is not looked into, nor ``lost+found``: a fetch did not bring it.
        """
        waiting = [""]
        while waiting:
            below = waiting.pop()
            with _named(f"{self.folder}/{below}"):
                if below and not self._below.same_mount(below):
                    continue
                entries = self._below.entries(below)
            for name, kind in entries:
                path = f"{below}/{name}" if below else name
                if stat_module.S_ISDIR(kind) and path != _OWN and name != _LOST:
                    waiting.append(path)
                elif stat_module.S_ISREG(kind) or stat_module.S_ISLNK(kind):
                    yield path

    def remove(self, path: str) -> None:
        """Unlink `path`, and the folders that it leaves empty. What is gone already is no error.

        Raises `LocalIOError` when it lies on another mount than the folder.
        """
        self._must_write()
        with _named(f"{self.folder}/{path}"), suppress(FileNotFoundError):
            self._below.stat(path)
            if not self._below.same_mount(path.rpartition("/")[0]):
                raise LocalIOError(
                    f"`{shown(self.folder)}/{shown(path)}` lies on another mount: it is not removed"
                )
            self._below.unlink(path)
            while "/" in path:
                path = path.rpartition("/")[0]
                try:
                    self._below.rmdir(path)
                except OSError:  # others are left in it
                    return


def _flock(fd: int) -> bool:
    """Whether the file is locked now; False where there are no locks. Raises ``BlockingIOError`` when somebody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns ``OSError`` into the error that says what to do about `path`."""
    try:
        yield
    except OSError as exc:
        error = failure(exc, path)
        if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):  # ENXIO: a FIFO or a socket
            error = LocalIOError(
                error.message, hint="something is in the way; move it, or choose another folder"
            )
        raise error from exc
