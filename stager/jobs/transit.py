"""One file on its way to its destination: an upload that is begun, gone on with, proven and completed."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from stager.core.checksum import combine
from stager.core.errors import ObjectChanged, StagerError
from stager.core.model import FileEntry
from stager.engine.lanes import Checkpoint
from stager.jobs.inflow import Digest, Feed, Portion, Stream

if TYPE_CHECKING:
    from stager.hub.base import HubFile
    from stager.store.base import Store, Upload, UploadedPart

_LOOK_S = 0.1  # between two looks whether the run is over
_ALONE = (
    threading.Condition()
)  # of all files of one part, where nobody waits: one for each of 30,000 files took 41 MB


class GitBlob:
    """Git's name of a content of `size` bytes, which proves it; and its SHA-256 besides, which git does not know and a manifest states."""

    def __init__(self, size: int) -> None:
        """Nothing is taken yet."""
        self._sha1, self._sha256 = hashlib.sha1(usedforsecurity=False), hashlib.sha256()
        self._sha1.update(f"blob {size}\0".encode())

    def update(self, data: memoryview, /) -> None:
        """As `Digest.update`."""
        self._sha1.update(data)
        self._sha256.update(data)

    def hexdigest(self) -> str:
        """Git's name."""
        return self._sha1.hexdigest()

    def sha256(self) -> str:
        """The SHA-256."""
        return self._sha256.hexdigest()


def digest_for(file: HubFile) -> Digest:
    """What proves `file`: SHA-256 unless its hub states only git's name of the content."""
    if file.entry.sha256 is None and file.blob_sha1 is not None:
        return GitBlob(file.entry.size)
    return hashlib.sha256()


def stated(file: HubFile) -> str | None:
    """What `digest_for` must come to, in lower case; None where the hub states nothing."""
    known = file.entry.sha256 or file.blob_sha1
    return known.lower() if known is not None else None


def sha256_of(file: HubFile, stream: Stream) -> str | None:
    """The SHA-256 of `file`, in lower case: the hub's, else that of what came through `stream`, all of it; None where that was not hashed."""
    if file.entry.sha256 is not None:
        return file.entry.sha256.lower()
    return stream.digest.sha256() if isinstance(stream.digest, GitBlob) else stream.hexdigest


class Transit:
    """`file` on its way into `store`. `stream` is how it comes in.

    `resume`: an unfinished upload of the same content may be there. With `again_readable` the source is near: what such an upload has is read once more and
    compared; otherwise it is left out, and the file must be read back (`unproven`). With `discard`, what is unfinished is aborted first.
    """

    def __init__(
        self,
        store: Store,
        file: HubFile,
        *,
        hashed: bool,
        resume: bool = False,
        again_readable: bool = False,
        discard: bool = False,
    ) -> None:
        """Nothing is asked yet. Without `hashed` the content is not proven here."""
        entry = file.entry
        self.file = file
        self.stream = Stream(Feed(entry.path, entry.size, file.version), digest_for(file) if hashed else None)
        self._store = store
        self._hashed = hashed
        self._resume = resume and self.stream.count > 1  # what is sent in one request leaves nothing behind
        self._again_readable = again_readable
        self._discard = discard
        self._upload: Upload | None = None
        self._there: dict[int, UploadedPart] = {}  # by number from 1, as stores count
        self._crcs: dict[int, tuple[int, int]] = {}
        self._sent = self._landed = 0  # parts, and their bytes
        self._opening = threading.Lock()
        self._changed = threading.Condition() if self.stream.count > 1 else _ALONE
        self.resumed = 0  # bytes that were there from an earlier run
        self.done: FileEntry | None = None
        """The file as it is at its destination; None until it is complete."""
        self.wrong = (
            False  # what came, or what was there of it, is not what the hub promised: nothing was completed
        )
        self.lost = False  # wrong, and only because what was there could not be gone on with

    @property
    def unproven(self) -> bool:
        """Whether a completed file's content was not held against what the hub states, though it states something."""
        return stated(self.file) is not None and self.stream.hexdigest is None

    @property
    def landed(self) -> int:
        """Bytes that are at the destination now, whole file or not; none of a file that was wrong, for that was taken back."""
        return 0 if self.wrong else self._landed

    def retract(self) -> None:
        """Say that the completed file was read back, found wrong, and removed."""
        self.wrong, self.done, self.resumed = True, None, 0

    def has(self, number: int) -> bool:
        """Whether part `number` (from 0) is at the destination already, and will not be read. In a lane; may ask the store."""
        if self.wrong:
            return True  # it begins anew, and no more of it is of use here
        if not self._resume:
            return False
        self._opened()
        return number + 1 in self._there and not self._again_readable

    def send(self, portion: Portion, checkpoint: Checkpoint) -> None:
        """Send what `portion` holds, and complete the file after its last part. Raises as `Upload.part` and `Upload.complete`."""
        self._wait_for_turn(portion, checkpoint)
        if self.wrong:
            return
        if portion.last and not self._agrees():
            self._refuse()
            return
        upload = self._opened()
        made = self._sent_part(upload, portion, checkpoint)
        if made is None:
            self._refuse()
            return
        self._crcs[portion.number] = made
        with self._changed:
            self._sent += 1
            self._landed += made[1]
            self._changed.notify_all()
        if portion.last:
            self._complete(upload)

    def _wait_for_turn(self, portion: Portion, checkpoint: Checkpoint) -> None:
        """Until the parts before are sent, where they may not go side by side; and the last one until all the others are."""
        if portion.number == 0 or (not portion.last and self._opened().concurrent):
            return
        with self._changed:
            while self._sent < portion.number and not self.wrong:
                self._changed.wait(_LOOK_S)
                checkpoint(0)

    def _sent_part(self, upload: Upload, portion: Portion, checkpoint: Checkpoint) -> tuple[int, int] | None:
        """The part's CRC and size, once the destination has it. None where it cannot go on there.

        It has another part that cannot be replaced, as parts only ascend there; or it takes none after those of an earlier run.
        """
        there, buffer = self._there.get(portion.number + 1), portion.buffer
        if there is not None and (buffer is None or there.crc64 == portion.crc):
            with self._changed:
                self.resumed += there.size
            return there.crc64, there.size
        if there is not None and not upload.concurrent:
            return None
        assert buffer is not None  # only what is there is left out
        try:
            made = upload.part(portion.number + 1, buffer.view, crc=portion.crc, pace=checkpoint)
        except ObjectChanged:
            if not self._resume:
                raise
            self.lost = True
            return None
        return made.crc64, made.size

    def _refuse(self) -> None:
        self.abort()
        with self._changed:
            self.wrong, self.resumed = True, 0
            self._changed.notify_all()

    def _agrees(self) -> bool:
        """Whether what was hashed is what the hub states. Where one of both is missing, nothing speaks against it."""
        found, promised = self.stream.hexdigest, stated(self.file)
        return found is None or promised is None or found == promised

    def _opened(self) -> Upload:
        """The upload; begun by whoever needs it first."""
        with self._opening:
            if self._upload is None:
                sha256 = self._sha256()
                self._upload = self._store.upload(
                    self.file.entry.path,
                    self.file.entry.size,
                    metadata={"sha256": sha256} if sha256 is not None else None,
                    resume=self._resume,
                    discard=self._discard,
                )
                self._there = {part.number: part for part in self._upload.parts}
                if self._there and not self._again_readable:
                    self.stream.stop_hashing()
            return self._upload

    def _sha256(self) -> str | None:
        """As far as it is known now: the hub's, or that of a file whose bytes have all come."""
        if self.file.entry.sha256 is None and self.stream.count > 1:
            return None
        return sha256_of(self.file, self.stream)

    def _complete(self, upload: Upload) -> None:
        crc = 0
        for _, (part, size) in sorted(self._crcs.items()):
            crc = combine(crc, part, size)
        try:
            upload.complete()
        except StagerError:
            self._remove_wrong(crc)
            raise
        entry = self.file.entry
        self.done = FileEntry(entry.path, entry.size, sha256_of(self.file, self.stream), crc)
        # Many thousand files would keep these until the end.
        self._upload, self._there, self._crcs = None, {}, {}

    def _remove_wrong(self, crc: int) -> None:
        """Remove an object that carries our promise and holds something else: the next run would take it at its word."""
        with suppress(StagerError):
            there, sha256 = self._store.head(self.file.entry.path), self._sha256()
            if (
                sha256 is not None
                and there.metadata.get("sha256") == sha256
                and there.crc64 not in (None, crc)
            ):
                self._store.delete([self.file.entry.path])

    def abort(self) -> None:
        """Take back what was sent."""
        if self._upload is not None:
            self._upload.abort()
