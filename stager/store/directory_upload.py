"""Objects on their way into a folder: a file beside the final name, renamed when it is whole."""

from __future__ import annotations

import errno
import fcntl
import os
import stat as stat_module
from contextlib import suppress
from itertools import count

from stager.core.checksum import crc64
from stager.core.errors import ObjectExists, from_oserror
from stager.core.ranges import part_size
from stager.core.units import shown
from stager.node.partfile import failure
from stager.store.base import BLOCK, Pace, StoredObject, UploadedPart

_NAME_MAX = 255  # bytes, on every Linux filesystem in use
_FOLDER_TRIES = 5  # a folder may be removed as empty between its making and the first file in it
_UPLOADS = 8  # of one name at a time, that `discard` looks for
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def stored(name: str, stat: os.stat_result) -> StoredObject:
    """The object `name` that `stat` describes. Raises FileNotFoundError for what is not a regular file: it is no object."""
    if not stat_module.S_ISREG(stat.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    etag = f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    return StoredObject(name, stat.st_size, etag, modified=stat.st_mtime)


def mark(stat: os.stat_result) -> str:
    """What tells the file of an unfinished upload from what it was before: its size and time of change, and no inode.

    Many FUSE daemons number files anew at each mount.
    """
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}"


def exists(path: str) -> ObjectExists:
    """The error that says so."""
    return ObjectExists(f"`{shown(path)}` is there already")


def unfinished(base: str) -> bool:
    """Whether a file of this base name is an upload that was not completed."""
    return base.startswith(".") and base.endswith(".part")


def started(base: str) -> str | None:
    """The base name of the file that the upload in a file of this base name was to become; None where it is no upload."""
    return base[1:].removesuffix(".part") if unfinished(base) else None


class DirectoryUpload:
    """An `Upload`: a file ``.NAME.part`` beside NAME, locked while it is written, synced and renamed by `complete`.

    Of two uploads of one name at a time the second takes ``.NAME.1.part``, and so on; a later one finds them again by these names.
    """

    concurrent = False

    def __init__(
        self,
        root: str,
        name: str,
        size: int,
        *,
        replace: bool,
        resume: bool | str,
        discard: bool = False,
        pace: Pace | None = None,
    ) -> None:
        """Opens the file; with `resume` keeps what is in it, `pace` as for `Store.upload`. `discard` removes first what uploads that have ended left behind.

        Raises `StagerError` where it cannot be made.
        """
        self.part_size = part_size(size)
        self._name, self._size, self._replace = name, size, replace
        self._root, self._final = root, os.path.join(root, name)
        try:
            if discard:
                _discard(self._final)
            self._fd, self._part = _claim(self._final)
        except OSError as exc:
            raise from_oserror(exc, f"`{shown(self._final)}`") from exc
        self._done: dict[int, UploadedPart] = {}
        try:
            if not discard and self._is(resume=resume):
                self._recall(pace or (lambda _: None))
            else:
                os.ftruncate(self._fd, 0)
        except OSError as exc:
            self._close()
            raise from_oserror(exc, f"`{shown(self._part)}`") from exc
        except BaseException:
            self._close()
            raise
        self.parts = tuple(self._done.values())

    def _expected(self, number: int) -> int:
        """The size of part `number`; negative when there is no such part."""
        at = (number - 1) * self.part_size
        return min(self.part_size, self._size - at) if number == 1 or 0 < at < self._size else -1

    def _is(self, *, resume: bool | str) -> bool:
        """Whether the file is what to go on with."""
        return resume == mark(os.fstat(self._fd)) if isinstance(resume, str) else resume

    def _recall(self, pace: Pace) -> None:
        left = os.fstat(self._fd).st_size
        for number in count(1):
            expected = self._expected(number)
            if expected <= 0 or left < expected:
                return
            left -= expected
            crc, at, end = 0, (number - 1) * self.part_size, (number - 1) * self.part_size + expected
            while at < end:
                pace(size := min(BLOCK, end - at))
                block = os.pread(self._fd, size, at)
                if not block:
                    return
                crc = crc64(block, crc)
                at += len(block)
            self._done[number] = UploadedPart(number, expected, f"{crc:016x}", crc)

    def part(
        self, number: int, data: memoryview, *, crc: int | None = None, pace: Pace | None = None
    ) -> UploadedPart:
        """As `Upload.part`. Raises ValueError for a part that is not of the plan."""
        if len(data) != self._expected(number):
            raise ValueError(f"part {number} of {len(data)} bytes, expected {self._expected(number)}")
        at = (number - 1) * self.part_size
        self._done.pop(number, None)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            if pace is not None:
                pace(len(block))
            self._write(block, at + start)
        crc = crc64(data) if crc is None else crc
        self._done[number] = made = UploadedPart(number, len(data), f"{crc:016x}", crc)
        return made

    def _write(self, block: memoryview, at: int) -> None:
        try:
            while block:
                written = os.pwrite(self._fd, block, at)
                at += written
                block = block[written:]
        except OSError as exc:
            raise failure(exc, self._part) from exc

    def complete(self) -> StoredObject:
        """As `Upload.complete`: the bytes are on disk and the name is, when it returns. Raises ValueError when parts are missing."""
        if sum(part.size for part in self._done.values()) != self._size:
            raise ValueError(f"`{shown(self._name)}`: not all parts are there")
        try:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
            self._rename()
            self._sync_folders()
            return stored(self._name, os.fstat(self._fd))
        except FileExistsError as exc:
            self.abort()
            raise exists(self._final) from exc
        except OSError as exc:
            raise failure(exc, self._final) from exc
        finally:
            self._close()

    def _rename(self) -> None:
        if self._replace:
            os.rename(self._part, self._final)
            return
        try:
            os.link(self._part, self._final, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            # No hard links here (some FUSE mounts, vfat): the moment between the look and the rename stays open.
            if os.path.lexists(self._final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from exc
            os.rename(self._part, self._final)
        else:
            os.unlink(self._part)

    def _sync_folders(self) -> None:
        """All up to the root: some of them may be new."""
        folder = os.path.dirname(self._name)
        while folder:
            _sync_folder(os.path.join(self._root, folder))
            folder = os.path.dirname(folder)
        _sync_folder(self._root)

    def abort(self) -> None:
        """As `Upload.abort`."""
        if self._fd >= 0:
            with suppress(OSError):
                os.unlink(self._part)
        self._close()

    def _close(self) -> None:
        """Closing drops the lock. What was written stays, for the next upload that resumes."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self._close()


def _claim(final: str) -> tuple[int, str]:
    """A descriptor of the first ``.part`` of `final` that nobody else has locked, and its path."""
    folder = os.path.dirname(final)
    for number in count():
        path = _part_path(final, number)
        for _ in range(_FOLDER_TRIES):
            os.makedirs(folder or ".", exist_ok=True)
            fd = _locked(path)
            if fd is None:
                break
            if fd >= 0:
                return fd, path
    raise AssertionError("unreachable")


def _part_path(final: str, number: int) -> str:
    """Where the upload `number` of those that write `final` at a time keeps its bytes."""
    folder, base = os.path.split(final)
    suffix = f".{number}.part" if number else ".part"
    stem = os.fsdecode(os.fsencode(f".{base}")[: _NAME_MAX - len(suffix)])
    return os.path.join(folder, stem + suffix)


def _discard(final: str) -> None:
    """Removes the ``.part`` files of `final` that nobody has locked: one that is being written may yet be renamed by who does."""
    for path in part_paths(final):
        remove_part(path)


def part_paths(final: str) -> list[str]:
    """Where the uploads that write `final` keep their bytes."""
    return [_part_path(final, number) for number in range(_UPLOADS)]


def remove_part(path: str) -> None:
    """Removes the ``.part`` file `path`, if it is there and nobody has it locked. Raises OSError."""
    if not os.path.lexists(path):
        return
    fd = _locked(path)
    if fd is not None and fd >= 0:
        try:
            os.unlink(path)
        finally:
            os.close(fd)


def _locked(path: str) -> int | None:
    """A locked descriptor of `path`; None when somebody else has it; -1 when it or its folder went away meanwhile."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        pass  # no locks on this filesystem
    try:
        mine = os.fstat(fd)
        if os.path.samestat(mine, os.stat(path, follow_symlinks=False)):
            if mine.st_nlink == 1:
                return fd
            os.unlink(path)  # a run that ended between link and unlink: these bytes are those of the object
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return -1


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EROFS):  # FUSE mounts without fsyncdir
            raise
    finally:
        os.close(fd)
