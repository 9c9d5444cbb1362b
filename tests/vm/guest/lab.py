"""What the guest's tests work with: memory cgroups, model files, residency by cachestat, the stager command."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MB = 1 << 20
CGROUPS = "/sys/fs/cgroup"
LRU_SWITCH = "/sys/kernel/mm/lru_gen/enabled"
CACHESTAT = 451
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_JOIN = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


class Group:
    """A memory cgroup. `knobs` are file names with ``_`` for ``.``: ``memory_max="100M"``."""

    def __init__(self, path: str, **knobs: str) -> None:
        self.path = path
        os.mkdir(path)
        for name, value in knobs.items():
            self.write(name.replace("_", ".", 1), value)

    def child(self, name: str, **knobs: str) -> Group:
        """A group below this one."""
        self.write("cgroup.subtree_control", "+memory")
        return Group(f"{self.path}/{name}", **knobs)

    def write(self, name: str, value: str) -> None:
        with open(f"{self.path}/{name}", "w", encoding="ascii") as file:
            file.write(value)

    def number(self, name: str) -> int:
        with open(f"{self.path}/{name}", encoding="ascii") as file:
            return int(file.read())

    def table(self, name: str) -> dict[str, int]:
        """A file of ``key value`` lines, such as memory.stat or memory.events."""
        with open(f"{self.path}/{name}", encoding="ascii") as file:
            return {key: int(value) for key, value in map(str.split, file)}

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` prefixed so that it runs inside this group."""
        return ["/bin/sh", "-c", _JOIN, self.path, *argv]

    def settle(self) -> None:
        """Bring the kernel's counters for this group up to date, as two seconds of waiting would.

        Reclaim in Linux 6.12 works with counters that may be that old. In a group that was filled within two seconds it
        takes the lists for empty: it then deactivates what is active and forgets what it evicted. Loads that matter last
        longer; reading memory.stat makes the counters exact.
        """
        self.table("memory.stat")

    def start(self, work: Callable[[], object]) -> int:
        """Begin `work` in a forked process inside this group; gives its process id."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.write("cgroup.procs", "0")
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        return pid

    def call(self, work: Callable[[], object]) -> None:
        """Run `work` in a forked process inside this group; fails when it raises."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.start(work), 0)[1])
        assert code == 0, f"{work} failed in {self.path} ({code})"

    def remove(self) -> None:
        """Remove the group and those below it; processes in them are ended first."""
        for name in sorted(os.listdir(self.path)):
            if os.path.isdir(f"{self.path}/{name}"):
                Group.remove(_existing(f"{self.path}/{name}"))
        self.write("cgroup.kill", "1")
        for _ in range(100):
            try:
                os.rmdir(self.path)
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(f"{self.path} cannot be removed")


def _existing(path: str) -> Group:
    group = Group.__new__(Group)
    group.path = path
    return group


def fill(path: str, size: int, head: bytes = b"") -> str:
    """A file of `size` bytes beginning with `head`, on disk and with no page in the cache."""
    block = bytes(range(256)) * (MB // 256)
    with open(path, "wb", buffering=0) as file:
        file.write(head)
        left = size - len(head)
        while left > 0:
            left -= file.write(block[: min(left, MB)])
    evict(path)
    assert resident(path) == 0
    return path


def evict(path: str) -> None:
    """Write the file's dirty pages and drop all of them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def cachestat(fd: int) -> tuple[int, int]:
    """(cached, evicted) pages of the whole file, by a call of our own: stager must not be the judge of stager.

    Right for root on ext4. On NFS stale pages count as well, on overlayfs nothing does.
    """
    everything = (ctypes.c_uint64 * 2)(0, 0)
    counts = (ctypes.c_uint64 * 5)()
    if _libc.syscall(CACHESTAT, fd, everything, counts, 0):
        raise OSError(ctypes.get_errno(), "cachestat")
    return counts[0], counts[3]


def resident(path: str) -> int:
    """Bytes of the file in the page cache, whole pages; see `cachestat`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return cachestat(fd)[0] * mmap.PAGESIZE
    finally:
        os.close(fd)


def mincore(fd: int, size: int) -> int:
    """Resident bytes of the file as mincore(2) tells this process, which for strangers to the file is a lie."""
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert not _libc.mincore(address, size, pages)
    _libc.munmap(address, size)
    return pages.raw.count(1) * mmap.PAGESIZE


def read(path: str, offset: int = 0, length: int | None = None) -> None:
    """Read a file as the recipes do, or `length` bytes of it from `offset`."""
    buffer = bytearray(MB)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        left = os.fstat(file.fileno()).st_size - offset if length is None else length
        while left > 0:
            left -= file.readinto(buffer) or left


def safetensors(path: str, size: int) -> str:
    """A valid safetensors file of `size` bytes with one tensor, cold."""
    length = size - 512
    header = {"weight": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}
    text = json.dumps(header).encode().ljust(504)
    return fill(path, size, (504).to_bytes(8, "little") + text)


def model(folder: str, shards: int, shard_size: int) -> list[str]:
    """A sharded model with index, config and tokenizer; gives the paths of the shards in load order."""
    os.makedirs(folder)
    names = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    index = {"metadata": {}, "weight_map": {f"layer.{n}": name for n, name in enumerate(names)}}
    for name, body in (("model.safetensors.index.json", index), ("config.json", {}), ("tokenizer.json", {})):
        fill(f"{folder}/{name}", 1, json.dumps(body).encode())
    return [safetensors(f"{folder}/{name}", shard_size) for name in names]


def stager(
    *argv: str, group: Group | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the stager command to its end, inside `group` if given; what it printed is shown when the test fails."""
    command = [*prefix, sys.executable, "-m", "stager", *argv]
    if group is not None:
        command = group.command(command)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    print(f"$ stager {' '.join(argv)}\n{done.stdout}{done.stderr}[exit {done.returncode}]")
    return done


def status(*argv: str, prefix: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What ``stager status --json`` says of each file: its path, and resident, total (bytes) and known."""
    done = stager("status", "--json", *argv, prefix=prefix)
    assert done.returncode == 0
    rows = [row for row in map(json.loads, done.stdout.splitlines()) if row["type"] == "file_residency"]
    assert rows
    return [{"path": row["path"], **row["residency"]} for row in rows]


def marker(path: str) -> dict[str, Any]:
    """The ready marker's JSON."""
    with open(path, encoding="utf-8") as file:
        body: dict[str, Any] = json.load(file)
    return body


@contextmanager
def lru(kind: str) -> Iterator[None]:
    """Run with ``mglru`` or ``classic`` page reclaim."""
    with open(LRU_SWITCH, encoding="ascii") as file:
        before = file.read()
    with open(LRU_SWITCH, "w", encoding="ascii") as file:
        file.write({"mglru": "y", "classic": "n"}[kind])
    try:
        yield
    finally:
        with open(LRU_SWITCH, "w", encoding="ascii") as file:
            file.write(before)
