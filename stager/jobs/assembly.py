"""Pieces on their way to whole files: every piece in the journal, every file proven before it gets its name."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stager.core.errors import IntegrityError
from stager.core.journal import Begun, Done, Whole
from stager.core.pieces import Piece, Pieces
from stager.core.ranges import Missing
from stager.core.units import shown
from stager.node.partfile import OpenParts

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stager.core.journal import Part
    from stager.core.model import FileEntry
    from stager.jobs.downloading import Task
    from stager.node.partfile import PartFile
    from stager.node.parts import Target
    from stager.store.base import Store

_TRIES = 5  # of a file whose checksum does not match, each from its first byte, as long as each time something else came


class _File:
    """One file being put together."""

    def __init__(self, size: int) -> None:
        self.pieces = Pieces(size)
        self.answers: set[int] = set()  # the CRCs of the object that answers claimed
        self.begun = False  # the part file is of this version
        self.tries = 0
        self.wrong: set[int] = set()  # checksums of what came before
        self.done = False


class Assembly:
    """Puts the files of `tasks` together in `target`; `entries` say what the manifest knows of each.

    `finished` files have their final names. `resumed` bytes were there from an earlier run, and have been checked.
    """

    def __init__(
        self,
        target: Target,
        store: Store,
        tasks: Sequence[Task],
        entries: Sequence[FileEntry],
        *,
        sha256: bool,
    ) -> None:
        self._target = target
        self._store = store
        self._tasks = tasks
        self._entries = entries
        self._sha256 = sha256
        self._claimed = target.read_journal().parts
        self._files = [_File(task.size) for task in tasks]
        self._parts = OpenParts(self._open)
        self._lock = threading.Lock()
        self._ready: deque[int] = deque()
        self.finished: dict[int, Whole] = {}
        self.resumed = 0
        self.mended = 0  # files that had to be fetched again because their checksum did not match

    def resume(self, checkpoint: Callable[[int], None]) -> None:
        """Take over what the journal claims of part files, as far as the bytes on disk prove it. Reads those bytes."""
        for index, task in enumerate(self._tasks):
            known = self._claim(task)
            if known is None or not known.pieces:
                continue
            with self.part(index) as part:
                proven = part.check(known.pieces, checkpoint)
            for piece in proven:
                self._files[index].pieces.add(piece)
                self.resumed += piece.length
            if self._files[index].pieces.whole:
                self._ready.append(index)

    def missing(self) -> list[Missing]:
        """What is still to be fetched; empty files are ready without."""
        found = []
        for index, file in enumerate(self._files):
            if not file.done and not file.pieces.whole:
                found.append(Missing(index, self._tasks[index].size, tuple(file.pieces.missing())))
        return found

    def room(self) -> int:
        """Bytes of disk that the files will take, beyond what their part files have."""
        have = (min(task.size, self._target.allocated(task.path)) for task in self._tasks)
        return sum(task.size for task in self._tasks) - sum(have)

    def ready(self) -> list[int]:
        """Files that became whole since the last call: `finish` each, in any thread."""
        found = []
        while self._ready:
            found.append(self._ready.popleft())
        return found

    def add_empty(self) -> None:
        """Make files of no bytes ready."""
        self._ready.extend(index for index, task in enumerate(self._tasks) if not task.size)

    def _claim(self, task: Task) -> Part | None:
        """What the journal says of the part file, if it is of this version."""
        known = self._claimed.get(task.path)
        return known if known is not None and (known.size, known.etag) == (task.size, task.etag) else None

    # `Parts`, called by lanes

    def part(self, index: int) -> AbstractContextManager[PartFile]:
        """The part file of task `index`, open within ``with``; begun in the journal when it is new."""
        return self._parts.use(index)

    def _open(self, index: int) -> PartFile:
        file, task = self._files[index], self._tasks[index]
        if file.begun:
            return self._target.part_again(task.path, task.size)
        fresh = bool(file.tries) or self._claim(task) is None
        if fresh:
            self._target.append(Begun(task.path, task.size, task.etag))
        part = self._target.part(task.path, task.size, fresh=fresh)
        file.begun = True
        return part

    def prepare(self, index: int) -> None:
        """Make the part file of task `index` without keeping it open: other processes write it."""
        with self.part(index):
            pass

    @property
    def locks(self) -> tuple[int, ...]:
        """The descriptor that keeps other fetches out, for processes that write part files: it must not be free before they end."""
        return self._target.locks

    def add(self, index: int, piece: Piece, crc64: int | None) -> None:
        """Remember a piece that is written, here and in the journal."""
        file, task = self._files[index], self._tasks[index]
        with self._lock:
            file.pieces.add(piece)
            if crc64 is not None:
                file.answers.add(crc64)
            self._target.append(Done(task.path, task.etag, piece))
            if file.pieces.whole:
                self._ready.append(index)

    # At the end of a file

    def finish(self, index: int, checkpoint: Callable[[int], None]) -> None:
        """Prove the whole file `index` and give it its name; or take back what is wrong, so that `missing` names it again.

        Raises `IntegrityError` when the same wrong bytes came twice, or wrong ones too often.
        """
        with self.part(index) as part:
            self._finish(index, part, checkpoint)

    def _finish(self, index: int, part: PartFile, checkpoint: Callable[[int], None]) -> None:
        file, task = self._files[index], self._tasks[index]
        crc = file.pieces.crc()
        if not self._proven(index, crc):
            self._take_back(index, part, crc)
            return
        stated = self._entries[index].sha256
        sha256 = stated.lower() if self._sha256 and stated is not None else None
        if sha256 is not None and part.sha256(checkpoint) != sha256:
            self._take_back(index, part, crc)
            return
        identity = part.finish()
        whole = Whole(task.path, task.size, task.etag, crc, identity.inode, identity.mtime_ns, sha256)
        self._target.append(whole)
        with self._lock:
            file.done = True
            file.pieces.clear()  # a terabyte has a quarter of a million of them
            self.finished[index] = whole

    def _proven(self, index: int, crc: int) -> bool:
        """Whether `crc` is what the manifest and the store say. Where nobody says anything, nothing speaks against it."""
        file, promised = self._files[index], self._entries[index].crc64
        claims = set(file.answers)
        if claims - {crc} or not claims:  # an answer may be wrong by itself: ask once more
            stated = self._store.head(self._tasks[index].name).crc64
            claims = {stated} if stated is not None else set()
        if promised is not None:
            claims.add(promised)
        return not claims - {crc}

    def _take_back(self, index: int, part: PartFile, crc: int) -> None:
        file, task = self._files[index], self._tasks[index]
        file.tries += 1
        stored_so = (
            crc in file.wrong
        )  # the same bytes twice: what is stored is wrong, not what became of it on the way
        file.wrong.add(crc)
        if stored_so or file.tries >= _TRIES:
            part.discard()
            raise IntegrityError(
                f"`{shown(task.path)}` has the wrong checksum, again: what `{shown(task.name)}` holds is not what was promised",
                hint="check the model where it is stored; `stager check` names its state",
            )
        with self._lock:
            self.mended += 1
            file.begun = False
            file.answers.clear()
            file.pieces.clear()

    def close(self) -> None:
        """Close what is open; the part files and the journal stay for the next run."""
        self._parts.close()
