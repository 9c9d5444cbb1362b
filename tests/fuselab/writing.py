"""Writing as a daemon over an object store has it: one writer, ascending, uploaded by the time close returns, and a rename that copies."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from tests.fuselab import wire
from tests.fuselab.habits import Habits
from tests.fuselab.trees import Attributes

Answer = tuple[bytes | memoryview, ...]


class Host(Protocol):
    """What the server does for the writer: names of nodes, entries for the kernel, numbers for handles."""

    def path_of(self, node: int) -> bytes: ...
    def entry(self, path: bytes) -> tuple[bytes, bytes]: ...
    def attributes_of(self, node: int) -> Answer: ...
    def handle_number(self) -> int: ...
    def renamed(self, old: bytes, new: bytes) -> None: ...


class Draft:
    """A file that is being written: what is new of it is in memory, until a flush puts it behind the first `base` bytes of the object."""

    def __init__(self, path: bytes, base: int, *, adding: bool) -> None:
        self.path, self.base, self.adding = path, base, adding
        self.fd = os.memfd_create("draft")
        self.new = 0
        self.flushed = -1  # of `new`; -1 before the first flush
        self.lock = threading.Lock()

    @property
    def size(self) -> int:
        return self.base + self.new

    def attributes(self) -> Attributes:
        """What stat tells of it."""
        return Attributes(1 << 40 | self.fd, stat.S_IFREG | 0o644, self.size, time.time_ns())


class Writing:
    """The operations that change something in the folder `root`, and what they were: `counts`, and bytes `written` by name."""

    def __init__(self, root: str, habits: Habits, host: Host) -> None:
        self._root, self._habits, self._host = os.fsencode(root), habits, host
        self._lock = threading.Lock()
        self._open: dict[bytes, Draft] = {}
        self._handles: dict[int, Draft] = {}
        self._close_errors = habits.close_errors
        self.counts: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.ops: dict[int, Callable[[int, memoryview], Answer]] = {
            wire.CREATE: self._create,
            wire.WRITE: self._write,
            wire.FLUSH: self._flush,
            wire.FSYNC: lambda node, body: self._counted("fsync"),
            wire.SETATTR: self._setattr,
            wire.FALLOCATE: self._fallocate,
            wire.MKDIR: self._mkdir,
            wire.UNLINK: self._unlink,
            wire.RMDIR: self._rmdir,
            wire.RENAME: lambda node, body: self._rename(node, body, 8),
            wire.RENAME2: lambda node, body: self._rename(node, body, 16),
        }

    def _counted(self, what: str, count: int = 1) -> Answer:
        with self._lock:
            self.counts[what] += count
        return ()

    def _behind(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)

    def _child(self, node: int, name: bytes) -> bytes:
        folder = self._host.path_of(node)
        return folder + b"/" + name if folder else name

    def attributes(self, path: bytes) -> Attributes | None:
        """Those of a file that is being written."""
        with self._lock:
            draft = self._open.get(path)
        return draft.attributes() if draft else None

    # files

    def open(self, path: bytes, flags: int) -> int:
        """A handle to write with."""
        if self.attributes(path) is not None:
            raise OSError(errno.EBUSY, "one writer at a time")
        base = 0 if flags & os.O_TRUNC else os.stat(self._behind(path)).st_size
        adding = bool(flags & os.O_APPEND) and base > 0
        if adding and (code := self._habits.append_errors.get("open")):
            raise OSError(code, "append")
        return self._begin(Draft(path, base, adding=adding), "truncated" if not base else "reopened")

    def _begin(self, draft: Draft, how: str) -> int:
        with self._lock:
            if draft.path in self._open:
                raise OSError(errno.EBUSY, "one writer at a time")
            self.counts[how] += 1
            self._open[draft.path] = draft
            number = self._host.handle_number()
            self._handles[number] = draft
        return number

    def _create(self, node: int, body: memoryview) -> Answer:
        path = self._child(node, bytes(body[16:]).rstrip(b"\0"))
        if not os.path.isdir(os.path.dirname(self._behind(path))):
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        number = self._begin(Draft(path, 0, adding=False), "created")
        return (*self._host.entry(path), wire.OPEN_OUT.pack(number, 0, 0))

    def _write(self, node: int, body: memoryview) -> Answer:
        number, offset, size = wire.READ_IN.unpack_from(body)
        data = body[wire.WRITE_IN_SIZE : wire.WRITE_IN_SIZE + size]
        draft = self._handles[number]
        for place, code in self._habits.write_errors.get(draft.path, ()):
            if offset <= place < offset + size:
                raise OSError(code, "write")
        if draft.adding and (code := self._habits.append_errors.get("write")):
            raise OSError(code, "append")
        with self._lock:
            if self._open.setdefault(draft.path, draft) is not draft:
                raise OSError(errno.EBUSY, "one writer at a time")
        with draft.lock:
            if offset != draft.size:
                raise OSError(errno.EINVAL, "ascending only")
            os.pwrite(draft.fd, data, draft.new)
            draft.new += size
        with self._lock:
            self.counts["writes"] += 1
            self.written[os.fsdecode(draft.path)] += size
        return (wire.WRITE_OUT.pack(size, 0),)

    def _flush(self, node: int, body: memoryview) -> Answer:
        draft = self._handles.get(wire.U64.unpack_from(body)[0])
        if draft is None:
            return ()
        with self._lock:
            self.counts["closed"] += 1
            if self._open.get(draft.path) is draft:
                del self._open[draft.path]
            if self._habits.close_error and self._close_errors:
                self._close_errors -= 1
                draft.flushed = draft.new
                raise OSError(self._habits.close_error, "close")
        with draft.lock:
            self._upload(draft)
        return ()

    def _upload(self, draft: Draft) -> None:
        if draft.flushed == draft.new:
            return
        fresh = draft.flushed < 0 and not draft.base
        how = os.O_TRUNC if fresh else 0
        fd = os.open(self._behind(draft.path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o644)
        try:
            done = max(0, draft.flushed)
            os.lseek(fd, draft.base + done, os.SEEK_SET)
            while done < draft.new:
                done += os.sendfile(fd, draft.fd, done, draft.new - done)
        finally:
            os.close(fd)
        draft.flushed = draft.new

    def release(self, number: int) -> bool:
        """Whether that was a handle to write with; it is gone now."""
        with self._lock:
            draft = self._handles.pop(number, None)
            if draft is None:
                return False
            if self._open.get(draft.path) is draft:
                del self._open[draft.path]
        os.close(draft.fd)
        return True

    @property
    def handles(self) -> int:
        """How many are open to write."""
        return len(self._handles)

    def _setattr(self, node: int, body: memoryview) -> Answer:
        valid, _, size = wire.SETATTR_IN.unpack_from(body)
        if valid & wire.SET_SIZE:
            if size:
                self._counted("ftruncate")
                raise OSError(errno.EOPNOTSUPP, "ftruncate")
            self._emptied(self._host.path_of(node))
        if valid & (wire.SET_ATIME | wire.SET_MTIME):
            self._counted("utimens")
        if valid & (wire.SET_MODE | wire.SET_UID | wire.SET_GID):
            self._counted("chmod")
        return self._host.attributes_of(node)

    def _emptied(self, path: bytes) -> None:
        with self._lock:
            draft = self._open.get(path)
        if draft is None:
            os.truncate(self._behind(path), 0)
            return
        with draft.lock:
            os.ftruncate(draft.fd, 0)
            draft.base = draft.new = 0
            draft.flushed = -1

    def _fallocate(self, node: int, body: memoryview) -> Answer:
        self._counted("fallocate")
        raise OSError(errno.EINVAL, "fallocate")

    # names

    def _mkdir(self, node: int, body: memoryview) -> Answer:
        path = self._child(node, bytes(body[8:]).rstrip(b"\0"))
        os.mkdir(self._behind(path))
        self._counted("mkdir")
        return self._host.entry(path)

    def _unlink(self, node: int, body: memoryview) -> Answer:
        path = self._child(node, bytes(body).rstrip(b"\0"))
        with self._lock:
            if path in self._open:
                raise OSError(errno.EBUSY, "it is being written")
        os.unlink(self._behind(path))
        return self._counted("unlink")

    def _rmdir(self, node: int, body: memoryview) -> Answer:
        os.rmdir(self._behind(self._child(node, bytes(body).rstrip(b"\0"))))
        return self._counted("rmdir")

    def _rename(self, node: int, body: memoryview, fixed: int) -> Answer:
        """As CopyObject and DeleteObject. RENAME2's flags would need more than that."""
        target = wire.U64.unpack_from(body)[0]
        if fixed > 8 and any(body[8:12]):
            raise OSError(errno.EINVAL, "flags of rename")
        name, to = bytes(body[fixed:]).split(b"\0")[:2]
        old, new = self._child(node, name), self._child(target, to)
        with self._lock:
            if old in self._open or new in self._open:
                raise OSError(errno.EBUSY, "it is being written")
        source, place = self._behind(old), self._behind(new)
        if os.path.isdir(source):
            os.rename(source, place)
        else:
            self._counted("copied", os.stat(source).st_size)
            shutil.copyfile(source, place)
            os.unlink(source)
        self._host.renamed(old, new)
        return self._counted("rename")
