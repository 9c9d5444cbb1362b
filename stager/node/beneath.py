"""Names below one folder, looked up part by part so that none of them leads out of it.

Every folder is opened from the one above it and no symlink is followed, whatever somebody changes meanwhile. The folder itself may be
a symlink.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from stager.core.errors import LocalIOError
from stager.core.units import shown
from stager.node import mounts

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CANNOT_SYNC = (
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
)  # a folder, on some network filesystems


class Beneath:
    """What lies below the folder at `root`, by relative paths.

    Methods raise ``OSError``, and `LocalIOError` where a path leads out or something of another kind is in its way.
    """

    def __init__(self, root: str) -> None:
        """Nothing is opened yet."""
        self.root = root
        self._fd: int | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the descriptor back. The next call opens the folder again."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    @contextmanager
    def folder(self, path: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder `path`, the root's for the empty path; made where `make` and there is none."""
        parts = _parts(path) if path else []
        with self._lock:
            if self._fd is None:
                self._fd = os.open(self.root, _FOLDER)
            fd = os.dup(self._fd)
        try:
            for depth, name in enumerate(parts, start=1):
                if make:
                    _make(fd, name)
                try:
                    below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                except OSError as exc:
                    if exc.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    raise self._in_the_way(fd, parts[:depth]) from exc
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that `path` lies in, and its name there."""
        *above, name = _parts(path)
        with self.folder("/".join(above), make=make) as fd:
            yield fd, name

    def stat(self, path: str) -> os.stat_result:
        """What has this name; a symlink is itself."""
        with self.parent(path) as (fd, name):
            return os.stat(name, dir_fd=fd, follow_symlinks=False)

    def same_mount(self, folder: str) -> bool:
        """Whether `folder` lies on the mount that the root lies on, so that nothing is mounted on the way. False for a folder that is gone."""
        with suppress(FileNotFoundError), self.folder("") as root, self.folder(folder) as fd:
            same_device = os.fstat(fd).st_dev == os.fstat(root).st_dev
            return same_device and mounts.mount_id_of(fd) == mounts.mount_id_of(root)
        return False

    def entries(self, folder: str) -> list[tuple[str, int]]:
        """Names in a folder, ascending, and what they are (st_mode). What vanishes meanwhile is left out, the folder itself too."""
        found = []
        with suppress(FileNotFoundError), self.folder(folder) as fd:
            for name in sorted(os.listdir(fd)):
                with suppress(FileNotFoundError):
                    found.append((name, os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode))
        return found

    def open(self, path: str, flags: int) -> int:
        """A descriptor of a regular file; with O_CREAT the folders above it are made too."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO in the place would wait for a reader
        with self.parent(path, make=bool(flags & os.O_CREAT)) as (folder, name):
            fd = os.open(name, flags, 0o644, dir_fd=folder)
        if stat_module.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise self.odd(path)

    def open_new(self, path: str, flags: int) -> int:
        """A descriptor of a file that was not there before: what had the name loses it."""
        with suppress(FileNotFoundError):
            self.unlink(path)
        return self.open(path, flags | os.O_CREAT | os.O_EXCL)

    def open_own(self, path: str, flags: int) -> int:
        """A descriptor of a regular file that has no other name, made where there is none.

        A symlink, or a file that has another name as well (a hard link), is left to whom it belongs and loses this name.
        """
        try:
            fd = self.open(path, flags | os.O_CREAT)
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
        else:
            if os.fstat(fd).st_nlink == 1:
                return fd
            os.close(fd)
        return self.open_new(path, flags)

    def replace(self, path: str, data: bytes) -> None:
        """A file of `data` in place of what was there, in one step and on disk when this returns. One caller at a time."""
        temporary = f"{path}.new"
        fd = self.open_new(temporary, os.O_WRONLY)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            self.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.unlink(temporary)
            raise

    def rename(self, old: str, new: str) -> None:
        """Another name in the same folder, on disk when this returns."""
        with self.parent(old) as (fd, name):
            os.rename(name, _parts(new)[-1], src_dir_fd=fd, dst_dir_fd=fd)
            _sync(fd)

    def unlink(self, path: str) -> None:
        """Take the name away; of a symlink, its own."""
        with self.parent(path) as (fd, name):
            os.unlink(name, dir_fd=fd)

    def rmdir(self, path: str) -> None:
        """Take an empty folder away."""
        with self.parent(path) as (fd, name):
            os.rmdir(name, dir_fd=fd)

    def odd(self, path: str) -> LocalIOError:
        """The error that says that `path` is not a regular file."""
        where = f"{shown(self.root)}/{shown(path)}"
        return LocalIOError(f"`{where}` is not a regular file", hint="move it out of the way")

    def _in_the_way(self, fd: int, parts: list[str]) -> LocalIOError:
        what = "not a folder"
        with suppress(OSError):
            if stat_module.S_ISLNK(os.stat(parts[-1], dir_fd=fd, follow_symlinks=False).st_mode):
                what = "a symlink, which is not followed"
        where = f"{shown(self.root)}/{shown('/'.join(parts))}"
        return LocalIOError(f"`{where}` is {what}", hint="move it, or choose another folder")


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    if "\0" in path or not {"", ".", ".."}.isdisjoint(parts):
        raise LocalIOError(f"`{shown(path)}` is not a path below a folder")
    return parts


def _make(fd: int, name: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=fd)
        _sync(fd)


def _sync(fd: int) -> None:
    """Have the names in a folder on disk."""
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in _CANNOT_SYNC:
            raise
