"""Objects on their way into a mounted object store: written once, straight to the final name."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from stager.core.checksum import crc64
from stager.core.errors import LocalIOError, ObjectChanged, StagerError
from stager.core.ranges import part_size
from stager.core.units import shown
from stager.node import partfile
from stager.store.base import BLOCK, Pace, StoredObject, UploadedPart
from stager.store.directory_upload import exists, stored

_OF_THE_PLACE = (
    *partfile.FULL,
    errno.EIO,
    errno.ENOTCONN,
    errno.EACCES,
    errno.EROFS,
    errno.EFBIG,
    errno.EBUSY,
)
"""What is not said of adding to a file. That is refused in any other words: EPERM by ossfs, ESPIPE by rclone."""
_HINTS = {
    errno.EFBIG: "the mount's parts are too small for such a file: raise its upload buffer (ossfs 2: `upload_buffer_size`)",
    errno.EBUSY: "another writer has it open, perhaps a run that was killed and whose file the mount still uploads: wait for it to end",
}


class MountedUpload:
    """An `Upload` for mounts where a rename is a copy: ascending writes to the final name, and nothing else that such mounts refuse.

    Nothing is touched before the first byte. From then on what was there is gone, and what is there may be less than the object: only
    a manifest can tell others that it is whole. What close says is the proof that the mount has taken it. A file that is there and
    shorter than the object is what an earlier upload left; `resume` goes on at its end, in the middle of a part too. One that is as long
    may as well be the object that was there before: it is written anew.
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
        """With `resume`, reads what is there, `pace` as for `Store.upload`. Raises `StagerError` where that fails."""
        self.part_size = part_size(size)
        self._name, self._size, self._replace = name, size, replace
        self._final = os.path.join(root, name)
        self._fd = -1
        self._begun = False  # the file at the final name is this upload's
        self._adding = False  # to what was there, and the mount has not taken a byte yet
        self._parts: list[UploadedPart] = []
        self._there = self._crc = 0  # of the part after `_parts`: bytes that are in the file, and their CRC
        if resume and replace and not discard:
            try:
                self._recall(pace or (lambda _: None))
            except OSError as exc:
                self._close()
                raise self._failure(exc) from exc
        self.parts = tuple(self._parts)

    def _recall(self, pace: Pace) -> None:
        try:
            fd = os.open(self._final, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            found = stored(self._name, os.fstat(fd)).size
            if not 0 < found < self._size:
                return
            for block in partfile.blocks(fd, 0, found, pace):
                self._took(block)
        finally:
            os.close(fd)
        self._begun = self._append(found)
        if not self._begun:
            self._parts, self._there, self._crc = [], 0, 0

    def _append(self, found: int) -> bool:
        """Opens the file to go on after its `found` bytes; False where it cannot be gone on with."""
        if sum(part.size for part in self._parts) + self._there != found:
            return False  # it shrank while it was read
        try:
            self._fd = os.open(self._final, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno in _OF_THE_PLACE:
                raise
            return False
        self._adding = os.fstat(self._fd).st_size == found
        if not self._adding:
            self._close()
        return self._adding

    def _expected(self) -> int:
        """Bytes of the part that comes next."""
        return min(self.part_size, self._size - len(self._parts) * self.part_size)

    def _took(self, block: memoryview) -> None:
        """Counts bytes that are in the file: of the next part, and of those after it."""
        while block:
            count = min(len(block), self._expected() - self._there)
            self._crc = crc64(block[:count], self._crc)
            self._there += count
            if self._there == self._expected():
                self._end_part()
            block = block[count:]

    def _end_part(self) -> UploadedPart:
        made = UploadedPart(len(self._parts) + 1, self._there, f"{self._crc:016x}", self._crc)
        self._parts.append(made)
        self._there = self._crc = 0
        return made

    def part(
        self,
        number: int,
        data: memoryview,
        *,
        crc: int | None = None,  # noqa: ARG002  summed up block by block here, as the file takes them
        pace: Pace | None = None,
    ) -> UploadedPart:
        """As `Upload.part`, for the next part alone; what of it is there already is compared and not written again.

        `ObjectChanged` when it is something else, or when the mount turns out not to add to files: the file is removed then, and a new
        upload begins anew. Raises ValueError for any other part; `LocalIOError` and the like when a write fails.
        """
        if number != len(self._parts) + 1 or len(data) != self._expected():
            raise ValueError(
                f"part {number} of {len(data)} bytes, expected {len(self._parts) + 1} of {self._expected()}"
            )
        if not data:
            return self._end_part()
        if crc64(data[: self._there]) != self._crc:
            raise self._abandoned("holds something else than what is to come")
        while True:
            block = data[self._there : self._there + BLOCK]
            if pace is not None:
                pace(len(block))
            self._write(block)
            if len(self._parts) == number:
                return self._parts[-1]

    def _write(self, block: memoryview) -> None:
        try:
            self._open()
            while block:
                written = os.write(self._fd, block)
                self._adding = False
                self._took(block[:written])
                block = block[written:]
        except OSError as exc:
            if self._adding and exc.errno not in _OF_THE_PLACE:
                raise self._abandoned("cannot be added to on this mount") from exc
            self._close()  # this handle is good for nothing any more, and other writers wait for it
            raise self._failure(exc) from exc

    def _open(self) -> None:
        """Makes the file, or empties it; does nothing when it is this upload's already."""
        if self._begun:
            return
        os.makedirs(os.path.dirname(self._final) or ".", exist_ok=True)
        how = os.O_TRUNC if self._replace else os.O_EXCL
        self._fd = os.open(self._final, os.O_WRONLY | os.O_CREAT | how | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._begun = True

    def complete(self) -> StoredObject:
        """As `Upload.complete`: the mount has said that it has all bytes. Raises ValueError when some are missing."""
        if sum(part.size for part in self._parts) != self._size:
            raise ValueError(f"`{shown(self._name)}`: not all parts are there")
        try:
            self._open()
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
        except OSError as exc:
            raise self._failure(exc) from exc
        return self._seen()

    def _seen(self) -> StoredObject:
        """The object as the mount shows it."""
        try:
            found = stored(self._name, os.stat(self._final, follow_symlinks=False))
        except FileNotFoundError:
            found = None
        except OSError as exc:
            raise self._failure(exc) from exc
        if found is None or found.size != self._size:
            there = "nothing" if found is None else f"{found.size} bytes"
            raise LocalIOError(
                f"`{shown(self._final)}`: {self._size} bytes were written and closed, and the mount shows {there}",
                hint="the log of the mount's daemon may say why",
            )
        self._begun = False
        return found

    def abort(self) -> None:
        """As `Upload.abort`: what this upload wrote, or went on with, is removed."""
        self._close()
        if self._begun:
            self._begun = False
            with suppress(OSError):
                os.unlink(self._final)

    def _abandoned(self, why: str) -> ObjectChanged:
        """The error for a file that cannot be gone on with, which is gone then."""
        self.abort()
        return ObjectChanged(f"`{shown(self._final)}` {why}", hint="run it again: this file begins anew")

    def _failure(self, exc: OSError) -> StagerError:
        if isinstance(exc, FileExistsError):
            return exists(self._final)
        found = partfile.failure(exc, self._final)
        found.hint = _HINTS.get(exc.errno or 0, found.hint)
        return found

    def _close(self) -> None:
        """Closing without looking: nothing that was written counts. What the mount took stays, for the next upload that resumes."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self._close()
