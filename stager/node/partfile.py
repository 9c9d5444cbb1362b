"""One file on its way: written by several lanes at once, checked, and given its name when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from stager.core.checksum import crc64
from stager.core.errors import LocalIOError, ResourceRefused, StagerError, from_oserror
from stager.core.model import FileIdentity
from stager.core.pieces import Piece
from stager.core.units import shown
from stager.node import syscalls
from stager.node.files import identity_of

PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 1 << 20
_NO_SUCH_CALL = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE)


def failure(exc: OSError, path: str) -> StagerError:
    """The error that ``OSError`` becomes, about the file `path`: `ResourceRefused` when the disk or a quota is full."""
    subject = f"`{shown(path)}`"
    if exc.errno in FULL:
        return ResourceRefused(
            f"{subject}: {os.strerror(exc.errno).lower()} ({errno.errorcode[exc.errno]})",
            hint="make room and run it again: it goes on where it was",
        )
    return from_oserror(exc, subject)


def blocks(
    fd: int, offset: int, length: int | None, checkpoint: Callable[[int], None]
) -> Iterator[memoryview]:
    """The bytes from `offset` on, at most `length`, in blocks that are valid until the next is asked for. Raises ``OSError``.

    Ends early where the file does. `checkpoint` is called with the size of each block.
    """
    buffer = memoryview(bytearray(_BLOCK if length is None else min(_BLOCK, length)))
    while length is None or length > 0:
        count = os.preadv(fd, [buffer if length is None else buffer[:length]], offset)
        if not count:
            return
        yield buffer[:count]
        offset += count
        length = None if length is None else length - count
        checkpoint(count)


class OpenParts:
    """Part files by number, each open as long as somebody uses it: a model may have more files than a process has descriptors."""

    def __init__(self, opener: Callable[[int], PartFile]) -> None:
        """`opener` is called by the first of a file's users, whatever is done to other files meanwhile."""
        self._opener = opener
        self._lock = threading.Lock()
        self._open: dict[int, _Used] = {}

    @contextmanager
    def use(self, index: int) -> Iterator[PartFile]:
        """The part file, which the last of its users closes. Raises what the opener raises."""
        with self._lock:
            used = self._open.setdefault(index, _Used())
            used.users += 1
        try:
            with used.lock:
                if used.part is None:
                    used.part = self._opener(index)
            yield used.part
        finally:
            with self._lock:
                used.users -= 1
                last = not used.users and self._open.get(index) is used
                if last:
                    del self._open[index]
            if last and used.part is not None:
                used.part.close()

    def close(self) -> None:
        """Close them all, each at the latest when a write that is under way has ended."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        for used in left:
            if used.part is not None:
                used.part.close()


class _Used:
    """One file of `OpenParts`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.part: PartFile | None = None
        self.users = 0


class PartFile:
    """The part file open as `fd`, of `size` bytes and the final name `path`. Disjoint stretches may be written from several threads.

    All methods raise `StagerError`, naming the file; `ResourceRefused` when the disk is full.
    """

    def __init__(
        self, fd: int, path: str, size: int, name_it: Callable[[], None], unlink: Callable[[], None]
    ) -> None:
        """Takes the descriptor over. `name_it` renames it to its final name, `unlink` removes it."""
        self._fd = fd
        self._path = path
        self._size = size
        self._name_it = name_it
        self._unlink = unlink
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False

    @contextmanager
    def _use(self) -> Iterator[int]:
        """The descriptor, which stays open meanwhile: a lane left behind must not write where its number belongs to another file."""
        with self._lock:
            if self._closing:
                raise StagerError(f"`{shown(self._path)}` is closed")
            self._users += 1
        try:
            yield self._fd
        except OSError as exc:
            raise failure(exc, self._path) from exc
        finally:
            with self._lock:
                self._users -= 1
                last = self._closing and not self._users
            if last:
                self._close()

    def write(self, view: memoryview, offset: int) -> None:
        """All of `view`, which is of bytes, at `offset`."""
        with self._use() as fd:
            done = os.pwrite(fd, view, offset)
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)

    def flush(self, offset: int, length: int) -> None:
        """Start writing the stretch to the disk, so that little is left to do at the end. Only a hint; errors come from `finish`."""
        with self._use() as fd, suppress(OSError):
            syscalls.start_writeback(fd, offset, length)

    def drop(self, offset: int, length: int) -> None:
        """Write the stretch to the disk and give its pages back.

        Linux keeps what one write brought as one folio, up to the size of the write, and drops folios that lie in the range as a
        whole. So the range is widened to the blocks that are written; what neighbours have in them is read again where it is needed.
        """
        start = offset - offset % _BLOCK
        length = -(-(offset + length) // _BLOCK) * _BLOCK - start
        with self._use() as fd:
            try:
                syscalls.finish_writeback(fd, start, length)
            except OSError as exc:
                if exc.errno not in _NO_SUCH_CALL:
                    raise  # said once: a later fsync(2) would not know of it
                os.fdatasync(fd)
            os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)

    def check(self, pieces: Sequence[Piece], checkpoint: Callable[[int], None]) -> list[Piece]:
        """Those of `pieces` whose bytes on disk still have their CRC, ascending, none of them overlapping. Reads them all."""
        good: list[Piece] = []
        with self._use() as fd:
            size = os.fstat(fd).st_size
            for piece in sorted(pieces):
                if piece.length <= 0 or piece.end > size or (good and piece.offset < good[-1].end):
                    continue
                crc = 0
                for block in blocks(fd, piece.offset, piece.length, checkpoint):
                    crc = crc64(block, crc)
                if crc == piece.crc:
                    good.append(piece)
        return good

    def sha256(self, checkpoint: Callable[[int], None]) -> str:
        """The sha256 of the file, in hex. Reads it all."""
        found = hashlib.sha256()
        with self._use() as fd:
            for block in blocks(fd, 0, None, checkpoint):
                found.update(block)
        return found.hexdigest()

    def finish(self) -> FileIdentity:
        """The final name for the file, which is on disk when this returns; closes it. The identity under that name.

        Raises `LocalIOError` when the file no longer has its size, or when something other than a file has the final name.
        """
        with self._use() as fd:
            os.fsync(fd)
            if (size := os.fstat(fd).st_size) != self._size:
                raise LocalIOError(
                    f"`{shown(self._path)}{PART}` has {size} bytes, {self._size} were written: somebody else changed it",
                    hint="run it again once nobody else writes there",
                )
            self._name_it()
            identity = identity_of(os.fstat(fd))
        self.close()
        return identity

    def discard(self) -> None:
        """Close and remove it."""
        self.close()
        with suppress(OSError):
            self._unlink()

    def close(self) -> None:
        """Close it, at the latest when the last of those who are writing has done so; it stays for the next run. May be called twice."""
        with self._lock:
            first, self._closing = not self._closing, True
            idle = not self._users
        if first and idle:
            self._close()

    def _close(self) -> None:
        with suppress(OSError):
            os.close(self._fd)
