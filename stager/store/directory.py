"""A folder as a store: NAS, local disks, tests."""

from __future__ import annotations

import errno
import os
import stat as stat_module
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace as changed

from stager.core.checksum import crc64
from stager.core.errors import (
    AccessDenied,
    Interrupted,
    NotFound,
    ObjectChanged,
    RemoteError,
    StagerError,
    UsageError,
    from_oserror,
)
from stager.core.units import shown
from stager.node.filesystems import object_store_at
from stager.store.base import BLOCK, Pace, Sink, StoredObject, Unfinished
from stager.store.directory_upload import (
    DirectoryUpload,
    exists,
    mark,
    part_paths,
    remove_part,
    started,
    stored,
    unfinished,
)
from stager.store.mounted import MountedUpload

_NAMES = 16  # of one folder in a listing: links between folders can make more names than there are files


class DirectoryStore:
    """The files below `path`. A file's etag is its inode, size and time of change; CRC and metadata are not kept.

    Symlinks are followed for reading, a folder never into itself; nothing is written or removed through a symlinked folder. Special
    files are left out, and so are the files of unfinished uploads (``.NAME.part`` beside NAME). A change of a file's bytes in place
    that leaves its size alone, within one tick of the filesystem's clock, cannot be seen.

    Where objects lie behind the folder (ossfs and its like), uploads write to the final name at once: see `MountedUpload`.
    """

    def __init__(self, path: str, *, in_place: bool | None = None) -> None:
        """The folder need not exist: it is made by the first upload. `in_place` None: the mount it lies on tells, at the first upload."""
        self._path = path
        self._in_place = in_place

    @property
    def root(self) -> str:
        """The folder's path as it was given."""
        return self._path

    def list(self, below: str = "", *, start_after: str = "") -> Iterator[StoredObject]:
        """As `Store.list`; a folder that vanishes meanwhile is passed over, one that cannot be read raises."""
        return _Listing(self._path, os.fsencode(below), os.fsencode(start_after)).folder("", ())

    def head(self, name: str) -> StoredObject:
        """As `Store.head`."""
        path = self._path_of(name)
        try:
            found = stored(name, os.stat(path))
            return changed(found, age=max(0.0, time.time() - found.modified))
        except OSError as exc:
            raise _translated(exc, path) from exc

    def reader(self) -> DirectoryReader:
        """As `Store.reader`."""
        return DirectoryReader(self)

    def upload(
        self,
        name: str,
        size: int,
        *,
        metadata: Mapping[str, str] | None = None,  # noqa: ARG002  # a folder has no place for it
        replace: bool = True,
        resume: bool | str = False,
        discard: bool = False,
        pace: Pace | None = None,
    ) -> DirectoryUpload | MountedUpload:
        """As `Store.upload`; `metadata` is dropped. What a resumed upload has is read again for its parts' CRC.

        An id is not looked at where files are written straight to their names: there is one upload of each.
        `discard` leaves the uploads alone that a running process holds.
        """
        path = self._writable(name)
        if not replace and os.path.lexists(path):
            raise exists(path)
        kind = MountedUpload if self._writes_in_place() else DirectoryUpload
        return kind(self._path, name, size, replace=replace, resume=resume, discard=discard, pace=pace)

    def _writes_in_place(self) -> bool:
        if self._in_place is None:
            try:
                self._in_place = object_store_at(self._path)
            except OSError as exc:
                raise from_oserror(exc, f"`{shown(self._path)}`") from exc
        return self._in_place

    def delete(self, names: Sequence[str]) -> None:
        """As `Store.delete`; folders left empty go too."""
        for name in names:
            path = self._writable(name)
            try:
                if stat_module.S_ISDIR(os.lstat(path).st_mode):
                    continue  # a folder is not an object
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as exc:
                raise from_oserror(exc, f"`{shown(path)}`") from exc
            self._prune(os.path.dirname(name))

    def _prune(self, folder: str) -> None:
        """Removes `folder`, and those above it, as long as they are empty."""
        with suppress(OSError):
            while folder:
                path = os.path.join(self._path, folder)
                with os.scandir(path) as there:
                    if next(there, None) is not None:
                        return  # not left to rmdir: daemons behind mounts log what they must refuse
                os.rmdir(path)
                folder = os.path.dirname(folder)

    def leftovers(self, keep: Iterable[str]) -> tuple[str, ...]:
        """Names of the files of uploads that were begun and not completed, but for uploads of the names in `keep`; ascending.

        Empty where files are written straight to their names.
        """
        if self._writes_in_place():
            return ()
        kept = {path for name in keep for path in part_paths(name)}
        found = [
            os.path.relpath(os.path.join(folder, name), self._path)
            for folder, _, names in os.walk(self._path)
            for name in names
            if unfinished(name) and not os.path.islink(os.path.join(folder, name))
        ]
        return tuple(sorted(name for name in found if name not in kept))

    def discard(self, leftovers: Iterable[str]) -> None:
        """Removes such files, but for those that a running process holds; folders left empty go too."""
        for name in leftovers:
            path = os.path.join(self._path, name)
            try:
                remove_part(path)
            except OSError as exc:
                raise from_oserror(exc, f"`{shown(path)}`") from exc
            self._prune(os.path.dirname(name))

    def unfinished(self) -> Iterator[Unfinished]:
        """The files of uploads that were begun and not completed. Where files are written straight to their names, every file may be one.

        The id changes with every byte that is written, and is the same after the next mount.
        """
        for folder, _, names in os.walk(self._path):
            for name in names:
                path = os.path.join(folder, name)
                whose = name if self._writes_in_place() else started(name)
                if whose is None:
                    continue
                with suppress(OSError):
                    stat = os.lstat(path)
                    if not stat_module.S_ISREG(stat.st_mode):
                        continue
                    below = os.path.relpath(os.path.join(folder, whose), self._path)
                    yield Unfinished(below, self._mark(below, stat), stat.st_mtime)

    def _mark(self, name: str, stat: os.stat_result) -> str:
        """The id of what may be an unfinished upload. Through a mount the time of one object is another after the next mount, but not its size."""
        if not self._writes_in_place():
            return mark(stat)
        return f"{stat.st_size:x}-{crc64(os.fsencode(name)):016x}"

    def open(self, name: str) -> int:
        """A descriptor of the file `name`, for reading. Raises as `head` does."""
        path = self._path_of(name)
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer. Regular files know no such thing.
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            raise _translated(exc, path) from exc

    def _path_of(self, name: str) -> str:
        if not _proper(name):
            raise NotFound(f"`{shown(name)}` cannot be the name of a file below `{shown(self._path)}`")
        return os.path.join(self._path, name)

    def _writable(self, name: str) -> str:
        if not _proper(name) or unfinished(name.rpartition("/")[2]):
            raise UsageError(f"`{shown(name)}` cannot be the name of a file below `{shown(self._path)}`")
        path = os.path.join(self._path, name)
        folder = os.path.dirname(name)
        expected = os.path.join(os.path.realpath(self._path), folder)
        if folder and os.path.realpath(os.path.dirname(path)) != expected:
            raise AccessDenied(
                f"`{shown(path)}`: a folder above it is a symlink, and nothing is changed through one",
                hint="name the real folder",
            )
        return path


class DirectoryReader:
    """A `Reader` of one `DirectoryStore`. A read that hangs in the kernel (a dead NFS server) cannot be interrupted."""

    def __init__(self, store: DirectoryStore) -> None:
        """Nothing is opened before the first read."""
        self._store = store
        self._view = memoryview(bytearray(BLOCK))
        self._interrupted = False

    def read(
        self,
        name: str,
        offset: int,
        length: int,
        sink: Sink,
        *,
        etag: str | None = None,
        into: memoryview | None = None,
    ) -> StoredObject:
        """As `Reader.read`."""
        self._interrupted = False  # one that came between two reads was for none
        fd = self._store.open(name)
        try:
            return self._copy(fd, name, offset, length, sink, etag, into)
        finally:
            with suppress(OSError):
                os.close(fd)

    def _copy(
        self,
        fd: int,
        name: str,
        offset: int,
        length: int,
        sink: Sink,
        etag: str | None,
        into: memoryview | None,
    ) -> StoredObject:
        subject = f"`{shown(os.path.join(self._store.root, name))}`"
        before = self._look(fd, name, subject)
        if etag is not None and etag != before.etag:
            raise ObjectChanged(f"{subject} is no longer the version that was asked for")
        start, end = offset, offset + length
        if end > before.size:
            raise RemoteError(f"{subject} has {before.size} bytes, asked for {offset}-{end}")
        with suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_SEQUENTIAL)
        while offset < end:
            if self._interrupted:
                raise Interrupted(f"the read of {subject} was interrupted")
            view = into[offset - start :] if into is not None else self._view
            try:
                moved = os.preadv(fd, [view[: min(BLOCK, end - offset)]], offset)
            except OSError as exc:
                raise from_oserror(exc, subject) from exc
            if not moved:
                break
            sink(view[:moved])
            offset += moved
        if self._look(fd, name, subject).etag != before.etag:
            raise ObjectChanged(f"{subject} changed while it was read")
        if offset < end:
            raise RemoteError(f"{subject} ended {end - offset} bytes early")
        return before

    def _look(self, fd: int, name: str, subject: str) -> StoredObject:
        try:
            return stored(name, os.fstat(fd))
        except OSError as exc:
            raise _translated(exc, subject.strip("`")) from exc

    def interrupt(self) -> None:
        """As `Reader.interrupt`."""
        self._interrupted = True

    def close(self) -> None:
        """As `Reader.close`."""


class _Listing:
    """One walk below a root, names in the order of their bytes: a folder sorts as its name with a slash."""

    def __init__(self, root: str, below: bytes, after: bytes) -> None:
        self._root, self._below, self._after = root, below, after
        self._visits: Counter[tuple[int, int]] = Counter()

    def folder(self, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[StoredObject]:
        path = os.path.join(self._root, prefix) if prefix else self._root
        try:
            stat = os.stat(path)
            me = (stat.st_dev, stat.st_ino)
            self._visits[me] += 1
            if me in above or self._visits[me] > _NAMES:
                return
            with os.scandir(path) as entries:
                found = [(name, stat) for entry in entries for name, stat in _looked_at(prefix, entry)]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            raise from_oserror(exc, f"`{shown(path)}`") from exc
        for name, stat in sorted(found, key=lambda one: os.fsencode(one[0])):
            raw = os.fsencode(name)
            if name.endswith("/"):
                if self._may_hold(raw):
                    yield from self.folder(name, (*above, me))
            elif raw.startswith(self._below) and raw > self._after:
                yield stored(name, stat)

    def _may_hold(self, folder: bytes) -> bool:
        if not folder.startswith(self._below) and not self._below.startswith(folder):
            return False
        return folder > self._after or self._after.startswith(folder)


def _looked_at(prefix: str, entry: os.DirEntry[str]) -> Iterator[tuple[str, os.stat_result]]:
    """The entry's name below the root and its status, for files and folders (with a slash); nothing for anything else."""
    try:
        stat = entry.stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # vanished, or a symlink to nothing
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        return
    if stat_module.S_ISDIR(stat.st_mode):
        yield f"{prefix}{entry.name}/", stat
    elif stat_module.S_ISREG(stat.st_mode) and not unfinished(entry.name):
        yield prefix + entry.name, stat


def _translated(exc: OSError, path: str) -> StagerError:
    if exc.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # no object can have, or be found by, such a name
        return NotFound(str(from_oserror(exc, f"`{shown(path)}`")))
    return from_oserror(exc, f"`{shown(path)}`")


def _proper(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
