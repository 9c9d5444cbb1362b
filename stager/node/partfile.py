"""One file on its way: written by several lanes at once, checked, and given its name when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from stager.core.checksum import crc64
from stager.core.errors import ResourceRefused, StagerError, from_oserror
from stager.core.model import FileIdentity
from stager.core.pieces import Piece
from stager.core.units import shown
from stager.node import syscalls
from stager.node.files import identity_of

PART = ".part"
_BLOCK = 1 << 20


class PartFile:
    """The part file open as `fd`, of the final name `path`. Disjoint stretches may be written from several threads.

    All methods raise `StagerError`, naming the file; `ResourceRefused` when the disk is full.
    """

    def __init__(self, fd: int, path: str, name_it: Callable[[], None], unlink: Callable[[], None]) -> None:
        """Takes the descriptor over. `name_it` renames it to its final name, `unlink` removes it."""
        self._fd: int | None = fd
        self._path = path
        self._name_it = name_it
        self._unlink = unlink
        self._lock = threading.Lock()

    @property
    def fd(self) -> int:
        """The descriptor; raises `StagerError` when it is closed."""
        fd = self._fd
        if fd is None:
            raise StagerError(f"`{shown(self._path)}` is closed")
        return fd

    def write(self, view: memoryview, offset: int) -> None:
        """All of `view` at `offset`."""
        fd = self.fd
        try:
            done = os.pwrite(fd, view, offset)
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
        except OSError as exc:
            raise self._error(exc) from exc

    def flush(self, offset: int, length: int) -> None:
        """Start writing the stretch to the disk, so that little is left to do at the end. Only a hint."""
        with suppress(OSError):
            syscalls.start_writeback(self.fd, offset, length)

    def drop(self, offset: int, length: int) -> None:
        """Write the stretch to the disk and give its pages back."""
        try:
            syscalls.finish_writeback(self.fd, offset, length)
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)
        except OSError as exc:
            raise self._error(exc) from exc

    def check(self, pieces: Sequence[Piece], checkpoint: Callable[[int], None]) -> list[Piece]:
        """Those of `pieces` whose bytes on disk still have their CRC, ascending, none of them overlapping. Reads them all."""
        good: list[Piece] = []
        buffer = memoryview(bytearray(_BLOCK))
        try:
            size = os.fstat(self.fd).st_size
            for piece in sorted(pieces):
                if piece.length <= 0 or piece.end > size or (good and piece.offset < good[-1].end):
                    continue
                if self._crc(piece.offset, piece.length, buffer, checkpoint) == piece.crc:
                    good.append(piece)
        except OSError as exc:
            raise self._error(exc) from exc
        return good

    def _crc(self, offset: int, length: int, buffer: memoryview, checkpoint: Callable[[int], None]) -> int:
        crc, end = 0, offset + length
        while offset < end:
            count = os.preadv(self.fd, [buffer[: end - offset]], offset)
            if not count:
                return -1
            crc = crc64(buffer[:count], crc)
            offset += count
            checkpoint(count)
        return crc

    def sha256(self, checkpoint: Callable[[int], None]) -> str:
        """The sha256 of the file, in hex. Reads it all."""
        found, buffer, offset = hashlib.sha256(), memoryview(bytearray(_BLOCK)), 0
        try:
            while count := os.preadv(self.fd, [buffer], offset):
                found.update(buffer[:count])
                offset += count
                checkpoint(count)
        except OSError as exc:
            raise self._error(exc) from exc
        return found.hexdigest()

    def finish(self) -> FileIdentity:
        """The final name for the file, which is on disk when this returns; closes it. The identity under that name."""
        try:
            with self._lock:
                os.fsync(self.fd)
                self._name_it()
                identity = identity_of(os.fstat(self.fd))
        except OSError as exc:
            raise self._error(exc) from exc
        self.close()
        return identity

    def discard(self) -> None:
        """Close and remove it."""
        self.close()
        with suppress(OSError):
            self._unlink()

    def close(self) -> None:
        """Close it; it stays for the next run. May be called twice."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)

    def _error(self, exc: OSError) -> StagerError:
        subject = f"`{shown(self._path)}`"
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceRefused(
                f"{subject}: {os.strerror(exc.errno).lower()} ({errno.errorcode[exc.errno]})",
                hint="make room and run it again: it goes on where it was",
            )
        return from_oserror(exc, subject)
