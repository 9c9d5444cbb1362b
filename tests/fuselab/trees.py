"""What the server shows: a real directory, or files that exist only as a size."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from dataclasses import dataclass
from typing import Protocol

MAX_READ = 1 << 20
_PERIOD = 64 << 10
_NOISE = random.Random(20).randbytes(_PERIOD)
_PATTERN = memoryview(_NOISE * (MAX_READ // _PERIOD + 1))


def synthetic_bytes(offset: int, size: int) -> bytes:
    """What every synthetic file holds at `offset`: noise that repeats each 64 KiB."""
    start = offset % _PERIOD
    return (_NOISE * (size // _PERIOD + 2))[start : start + size]


@dataclass(frozen=True)
class Attributes:
    """What stat() tells: inode, type and permissions, bytes, times in ns, owner."""

    ino: int
    mode: int
    size: int
    mtime_ns: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1


class Blob(Protocol):
    """An open file."""

    def attributes(self) -> Attributes: ...
    def read(self, offset: int, size: int, buffer: bytearray) -> memoryview:
        """Up to `size` bytes at `offset`, perhaps in `buffer`; shorter only at the end."""

    def close(self) -> None: ...


class Tree(Protocol):
    """Names below a root; paths are bytes, relative, ``b""`` for the root. All raise `OSError`."""

    def attributes(self, path: bytes) -> Attributes: ...
    def names(self, path: bytes) -> list[bytes]: ...
    def link(self, path: bytes) -> bytes: ...
    def open(self, path: bytes) -> Blob: ...


def _from_stat(st: os.stat_result) -> Attributes:
    return Attributes(st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns, st.st_uid, st.st_gid, st.st_nlink)


class _SourceBlob:
    def __init__(self, path: bytes) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def attributes(self) -> Attributes:
        return _from_stat(os.fstat(self._fd))

    def read(self, offset: int, size: int, buffer: bytearray) -> memoryview:
        view = memoryview(buffer)[:size]
        return view[: os.preadv(self._fd, [view], offset)]

    def close(self) -> None:
        os.close(self._fd)


class SourceTree:
    """A directory, shown as it is at each request: change the source to change it behind the kernel's back."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(os.path.realpath(root))

    def attributes(self, path: bytes) -> Attributes:
        return _from_stat(os.lstat(os.path.join(self._root, path)))

    def names(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(os.path.join(self._root, path)))

    def link(self, path: bytes) -> bytes:
        return os.readlink(os.path.join(self._root, path))

    def open(self, path: bytes) -> Blob:
        return _SourceBlob(os.path.join(self._root, path))


class _SyntheticBlob:
    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes

    def attributes(self) -> Attributes:
        return self._attributes

    def read(self, offset: int, size: int, buffer: bytearray) -> memoryview:
        size = max(0, min(size, self._attributes.size - offset, MAX_READ))
        start = offset % _PERIOD
        return _PATTERN[start : start + size]

    def close(self) -> None: ...


class SyntheticTree:
    """Files given by name and size; folders follow from the names. Content costs no disk and no copy."""

    def __init__(self, sizes: dict[str, int]) -> None:
        born = time.time_ns()
        self._entries = {b"": Attributes(1, stat.S_IFDIR | 0o755, 0, born, nlink=2)}
        self._children: dict[bytes, set[bytes]] = {b"": set()}
        for name, size in sizes.items():
            path = os.fsencode(name)
            parts = path.split(b"/")
            for depth in range(1, len(parts)):
                self._add(b"/".join(parts[:depth]), stat.S_IFDIR | 0o755, 0, born)
            self._add(path, stat.S_IFREG | 0o644, size, born)

    def _add(self, path: bytes, mode: int, size: int, born: int) -> None:
        if path in self._entries:
            return
        self._entries[path] = Attributes(len(self._entries) + 1, mode, size, born)
        parent, _, name = path.rpartition(b"/")
        self._children[parent].add(name)
        if stat.S_ISDIR(mode):
            self._children[path] = set()

    def attributes(self, path: bytes) -> Attributes:
        try:
            return self._entries[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such synthetic file", path) from None

    def names(self, path: bytes) -> list[bytes]:
        return sorted(self._children[path])

    def link(self, path: bytes) -> bytes:
        raise OSError(errno.EINVAL, "not a link", path)

    def open(self, path: bytes) -> Blob:
        return _SyntheticBlob(self.attributes(path))
