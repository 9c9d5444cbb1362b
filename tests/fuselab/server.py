"""The server: one connection, several threads reading requests from it, and the habits under test."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuselab import wire
from tests.fuselab.habits import Habits
from tests.fuselab.pacing import Pool, Rate, Stream, crowding
from tests.fuselab.trees import MAX_READ, Attributes, Blob, Tree
from tests.fuselab.writing import Writing

MAX_THREADS = 128


@dataclass
class Node:
    """A name the kernel knows. `seen` is (mtime, size) at the last open, for auto-cache."""

    path: bytes
    lookups: int = 0
    seen: tuple[int, int] | None = None


@dataclass
class Tally:
    """Per file: opens and reads, bytes given to the kernel, bytes asked of the store behind."""

    opens: int = 0
    reads: int = 0
    served: int = 0
    fetched: int = 0


@dataclass
class Handle:
    """An open file and what paces it."""

    path: bytes
    blob: Blob
    tally: Tally
    rate: Rate | None
    stream: Stream | None


class Server:
    """Serves `tree` on a mounted device; `run` returns at once, `stopped` is called when the connection ends."""

    def __init__(
        self,
        device: int,
        tree: Tree,
        habits: Habits,
        stopped: Callable[[], None],
        *,
        source: str | None = None,
        live: str | None = None,
    ) -> None:
        self._device, self._tree, self._habits, self._stopped = device, tree, habits, stopped
        self._lock = threading.Lock()
        self._serial = threading.Lock()
        self._nodes = {wire.ROOT_ID: Node(b"", lookups=1)}
        self._by_path = {b"": wire.ROOT_ID}
        self._next_node = wire.ROOT_ID
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, list[bytes]] = {}
        self._next_handle = 0
        self._files: dict[bytes, Tally] = {}
        self._max_handles = self._max_reads = self._reads = self._hung = self._served = 0
        self._threads = self._idle = self._dumps = self._fetched = 0
        self._live = (
            os.open(live, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644) if live else -1
        )
        self._count_live(0)
        self._total = Rate(habits.total_rate) if habits.total_rate and not habits.pool else None
        self._pool = Pool(habits.pool) if habits.pool else None
        self._ops: dict[int, Callable[[int, memoryview], tuple[bytes | memoryview, ...]]] = {
            wire.LOOKUP: self._lookup,
            wire.GETATTR: self._getattr,
            wire.READLINK: self._readlink,
            wire.OPEN: self._open,
            wire.RELEASE: self._release,
            wire.FLUSH: lambda node, body: (),
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._readdir,
            wire.RELEASEDIR: self._releasedir,
            wire.STATFS: self._statfs,
        }
        self._writing = Writing(source, habits, self) if habits.writes and source else None
        if self._writing:
            self._ops |= self._writing.ops
        self._max_write = wire.MAX_WRITE_WRITABLE if self._writing else wire.MAX_WRITE
        self._room = max(wire.BUFFER, self._max_write + 4096)

    def run(self, threads: int) -> None:
        """Answer INIT, then start `threads` workers."""
        self._init()
        for _ in range(threads):
            self._spawn()

    def counters(self) -> dict[str, object]:
        """Everything counted so far, fit for JSON. Handles lag behind close(): the kernel releases later."""
        with self._lock:
            self._dumps += 1
            pool = self._pool.counts if self._pool else None
            totals = {key: sum(getattr(t, key) for t in self._files.values()) for key in vars(Tally())}
            return {
                "dump": self._dumps,
                **totals,
                "handles": len(self._handles),
                "max_handles": self._max_handles,
                "max_reads_at_once": self._max_reads,
                "hung": self._hung,
                "max_chunks_used": pool.max_chunks_used if pool else 0,
                "crawled_reads": pool.crawled_reads if pool else 0,
                **(
                    {
                        "writing": dict(self._writing.counts),
                        "written": dict(self._writing.written),
                        "writers": self._writing.handles,
                    }
                    if self._writing
                    else {}
                ),
                "files": {os.fsdecode(path): vars(tally).copy() for path, tally in self._files.items()},
            }

    def dump(self, path: str) -> None:
        """Write the counters to `path`, whole or not at all."""
        with open(path + ".new", "w", encoding="utf-8", errors="surrogateescape") as out:
            json.dump(self.counters(), out)
        os.replace(path + ".new", path)

    # threads

    def _init(self) -> None:
        buffer = bytearray(self._room)
        os.readv(self._device, [buffer])
        header = wire.IN_HEADER.unpack_from(buffer)
        _, minor, readahead, offered = wire.INIT_IN.unpack_from(buffer, wire.IN_HEADER.size)
        if header[1] != wire.INIT or minor < wire.MINOR:
            raise OSError(errno.EPROTO, f"the kernel speaks FUSE 7.{minor}; this server needs 7.{wire.MINOR}")
        habits = self._habits
        wanted = wire.ASYNC_READ | wire.PARALLEL_DIROPS | wire.MAX_PAGES | wire.ABORT_ERROR
        if habits.auto_inval:
            wanted |= wire.AUTO_INVAL_DATA
        if self._writing:
            wanted |= wire.BIG_WRITES | wire.ATOMIC_O_TRUNC
        background = habits.max_background
        answer = wire.INIT_OUT.pack(
            7,
            wire.MINOR,
            habits.max_readahead or readahead,
            wanted & offered,
            background,
            background * 3 // 4,
            self._max_write,
            1,
            habits.max_pages,
            0,
            0,
        )
        wire.reply(self._device, header[2], answer)

    def _spawn(self) -> None:
        with self._lock:
            if self._threads >= MAX_THREADS:
                return
            self._threads += 1
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        device = wire.clone(self._device)
        request, data = bytearray(self._room), bytearray(MAX_READ)
        view = memoryview(request)
        while True:
            with self._lock:
                self._idle += 1
            try:
                length = os.readv(device, [request])
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                self._stopped()  # ENODEV: unmounted; ECONNABORTED: aborted
                return
            finally:
                with self._lock:
                    self._idle -= 1
            _, opcode, unique, node, *_ = wire.IN_HEADER.unpack_from(request)
            try:
                self._answer(device, opcode, unique, node, view[wire.IN_HEADER.size : length], data)
            except Exception as exc:  # a defect here must show as EIO at the reader, not as a hang
                sys.excepthook(type(exc), exc, exc.__traceback__)
                wire.reply(device, unique, error=errno.EIO)

    def _answer(
        self, device: int, opcode: int, unique: int, node: int, body: memoryview, data: bytearray
    ) -> None:
        if opcode == wire.READ:
            self._read(device, unique, body, data)
        elif opcode in (wire.FORGET, wire.BATCH_FORGET):
            self._forget(opcode, node, body)
        elif opcode == wire.DESTROY:
            wire.reply(device, unique)
        elif (
            opcode != wire.INTERRUPT
        ):  # a daemon that is stuck does not hear interrupts; neither does this one
            self._sleep(self._habits.meta_latency)
            try:
                operation = self._ops.get(opcode)
                if operation is None:
                    wire.reply(device, unique, error=errno.ENOSYS)
                    return
                parts = operation(node, body)
            except OSError as exc:
                wire.reply(device, unique, error=exc.errno or errno.EIO)
                return
            wire.reply(device, unique, *parts)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._make_room()
            time.sleep(seconds)

    def _make_room(self) -> None:
        """Before this thread waits: see that another one listens."""
        if self._idle == 0:
            self._spawn()

    # names

    def path_of(self, node: int) -> bytes:
        """Where the node lies."""
        with self._lock:
            try:
                return self._nodes[node].path
            except KeyError:
                raise OSError(errno.ESTALE, "unknown node") from None

    def _attributes(self, path: bytes, found: Attributes | None = None) -> bytes:
        draft = self._writing.attributes(path) if self._writing else None
        found = draft or found or self._tree.attributes(path)
        habits = self._habits
        mode = found.mode
        if habits.mode is not None and not stat.S_ISLNK(mode):
            search = (habits.mode & 0o444) >> 2 if stat.S_ISDIR(mode) else 0
            mode = stat.S_IFMT(mode) | habits.mode | search
        seconds, ns = divmod(found.mtime_ns, 10**9)
        uid = found.uid if habits.uid is None else habits.uid
        gid = found.gid if habits.gid is None else habits.gid
        blocks = -(-found.size // 512)
        times = (seconds, seconds, seconds, ns, ns, ns)
        ino = found.ino + habits.inodes
        return wire.ATTR.pack(ino, found.size, blocks, *times, mode, found.nlink, uid, gid, 0, 4096, 0)

    def _lookup(self, parent: int, body: memoryview) -> tuple[bytes, ...]:
        folder, name = self.path_of(parent), bytes(body).rstrip(b"\0")
        return self.entry(folder + b"/" + name if folder else name)

    def entry(self, path: bytes) -> tuple[bytes, bytes]:
        """The answer that tells the kernel of a name. Raises ``OSError`` when there is nothing of that name."""
        attributes = self._attributes(path)
        with self._lock:
            number = self._by_path.get(path)
            if number is None:
                self._next_node += 1
                number = self._by_path[path] = self._next_node
                self._nodes[number] = Node(path)
            self._nodes[number].lookups += 1
        entry, entry_ns = _timeout(self._habits.entry_timeout)
        attr, attr_ns = _timeout(self._habits.attr_timeout)
        return (wire.ENTRY_OUT.pack(number, 0, entry, attr, entry_ns, attr_ns), attributes)

    def _forget(self, opcode: int, node: int, body: memoryview) -> None:
        if opcode == wire.FORGET:
            ones = [(node, wire.U64.unpack_from(body)[0])]
        else:
            ones = list(wire.FORGET_ONE.iter_unpack(body[8:]))
        with self._lock:
            for number, count in ones:
                known = self._nodes.get(number)
                if known is None or number == wire.ROOT_ID:
                    continue
                known.lookups -= count
                if known.lookups <= 0:
                    del self._nodes[number]
                    if self._by_path.get(known.path) == number:
                        del self._by_path[known.path]

    def _getattr(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        return self.attributes_of(node)

    def renamed(self, old: bytes, new: bytes) -> None:
        """What had the name `old`, and what was below it, has the name `new`."""
        with self._lock:
            gone = self._by_path.pop(new, None)
            if gone is not None:
                self._nodes[gone].path = b""  # replaced: nobody finds it by name any more
            for path in [one for one in self._by_path if one == old or one.startswith(old + b"/")]:
                number = self._by_path.pop(path)
                to = new + path[len(old) :]
                self._by_path[to], self._nodes[number].path = number, to

    def handle_number(self) -> int:
        """A number that no other handle has."""
        with self._lock:
            self._next_handle += 1
            return self._next_handle

    def attributes_of(self, node: int) -> tuple[bytes, ...]:
        """The answer that tells the kernel of a node."""
        seconds, ns = _timeout(self._habits.attr_timeout)
        return (wire.ATTR_OUT.pack(seconds, ns, 0), self._attributes(self.path_of(node)))

    def _readlink(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        return (self._tree.link(self.path_of(node)),)

    def _statfs(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        # an object store has no end: 16 PiB free, as such daemons say
        blocks = 1 << 42
        return (wire.STATFS_OUT.pack(blocks, blocks, blocks, 1 << 32, 1 << 32, 4096, 255, 4096),)

    # folders

    def _opendir(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        names = self._tree.names(self.path_of(node))
        with self._lock:
            self._next_handle += 1
            self._listings[self._next_handle] = [b".", b"..", *names]
            return (wire.OPEN_OUT.pack(self._next_handle, 0, 0),)

    def _readdir(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        handle, offset, size = wire.READ_IN.unpack_from(body)
        folder = self.path_of(node)
        out = bytearray()
        for index, name in enumerate(self._listings[handle][offset:], start=offset + 1):
            ino, kind = 1, stat.S_IFDIR
            if name not in (b".", b".."):
                try:
                    found = self._tree.attributes(folder + b"/" + name if folder else name)
                except OSError:
                    continue
                ino, kind = found.ino, stat.S_IFMT(found.mode)
            record = wire.DIRENT.pack(ino, index, len(name), kind >> 12) + name
            record += b"\0" * (-len(record) % 8)
            if len(out) + len(record) > size:
                break
            out += record
        return (bytes(out),)

    def _releasedir(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        with self._lock:
            self._listings.pop(wire.U64.unpack_from(body)[0], None)
        return ()

    # files

    def _open(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        path, habits = self.path_of(node), self._habits
        flags = wire.OPEN_IN.unpack_from(body)[0]
        if self._writing and flags & os.O_ACCMODE != os.O_RDONLY:
            return (wire.OPEN_OUT.pack(self._writing.open(path, flags), 0, 0),)
        blob = self._tree.open(path)
        attributes = blob.attributes()
        seen = (attributes.mtime_ns, attributes.size)
        with self._lock:
            known = self._nodes[node]
            keep = habits.keep_cache == "always" or (habits.keep_cache == "auto" and known.seen == seen)
            known.seen = seen
            tally = self._files.setdefault(path, Tally())
            tally.opens += 1
            rate = Rate(habits.stream_rate) if habits.stream_rate and not self._pool else None
            stream = self._pool.open(attributes.size) if self._pool else None
            self._next_handle += 1
            number = self._next_handle
            self._handles[number] = Handle(path, blob, tally, rate, stream)
            self._max_handles = max(self._max_handles, len(self._handles))
            self._crowd()
        flags = wire.FOPEN_KEEP_CACHE * keep | wire.FOPEN_DIRECT_IO * habits.direct_io
        return (wire.OPEN_OUT.pack(number, flags, 0),)

    def _release(self, node: int, body: memoryview) -> tuple[bytes, ...]:
        if self._writing and self._writing.release(wire.U64.unpack_from(body)[0]):
            return ()
        with self._lock:
            handle = self._handles.pop(wire.U64.unpack_from(body)[0])
            self._crowd()
        if self._pool and handle.stream:
            self._pool.close(handle.stream)
        handle.blob.close()
        return ()

    def _crowd(self) -> None:
        slower = crowding(len(self._handles), self._habits.crowd)
        if self._total:
            self._total.slower = slower
        if self._pool:
            self._pool.slower = slower

    def _read(self, device: int, unique: int, body: memoryview, data: bytearray) -> None:
        number, offset, size = wire.READ_IN.unpack_from(body)
        handle, habits = self._handles[number], self._habits
        if handle.path in habits.hang_files or (
            habits.hang_after is not None and self._served >= habits.hang_after
        ):
            with self._lock:
                self._hung += 1
            return
        for place, code in habits.errors.get(handle.path, ()):
            if offset <= place < offset + size:
                wire.reply(device, unique, error=code)
                return
        end = habits.shrink.get(handle.path)
        if end is not None:
            size = max(0, min(size, end - offset))
        with self._lock:
            self._reads += 1
            self._max_reads = max(self._max_reads, self._reads)
        try:
            if habits.serial:
                self._make_room()
                with self._serial:
                    fetched, content = self._fetch(handle, offset, size, data)
            else:
                fetched, content = self._fetch(handle, offset, size, data)
        except OSError as exc:
            wire.reply(device, unique, error=exc.errno or errno.EIO)
            return
        finally:
            with self._lock:
                self._reads -= 1
        with self._lock:
            handle.tally.reads += 1
            handle.tally.served += len(content)
            handle.tally.fetched += fetched
            self._served += len(content)
            self._count_live(fetched)
        wire.reply(device, unique, content)

    def _count_live(self, fetched: int) -> None:
        """Bytes asked of the store behind, in a file that is right before the kernel has the answer; with the lock."""
        self._fetched += fetched
        if self._live >= 0:
            os.pwrite(self._live, f"{self._fetched}\n".encode(), 0)

    def _fetch(self, handle: Handle, offset: int, size: int, data: bytearray) -> tuple[int, memoryview]:
        """The content, no earlier than the habits allow, and what the store behind gave for it."""
        content = handle.blob.read(offset, size, data)
        if self._pool and handle.stream:
            self._make_room()
            fetched = self._pool.read(handle.stream, offset, len(content))
            self._sleep(self._habits.latency if fetched else 0)
            return fetched, content
        due = time.monotonic() if self._habits.latency else 0.0
        if handle.rate:
            due = max(due, handle.rate.due(len(content)))
        if self._total:
            due = max(due, self._total.due(len(content)))
        self._sleep(due + self._habits.latency - time.monotonic() if due else 0)
        return len(content), content


def _timeout(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * 1e9)
