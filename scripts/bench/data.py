"""The files that are read, how they are made cold, and the proof that they are."""

import ctypes
import json
import os

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
_TRIES = 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_PROT_READ, _MAP_SHARED = 1, 1


class Stop(Exception):
    """The benchmark cannot go on; its text says why."""


def weights(folder, count, size):
    """`count` safetensors files of exactly `size` random bytes each in `folder`, made unless they are there; their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"weights-{index}.safetensors") for index in range(count)]
    for path in paths:
        if not os.path.exists(path) or os.path.getsize(path) != size:
            _write(path, size)
    _nothing_else(folder, paths)
    return paths


def sparse(folder, count, size):
    """`count` files of `size` bytes without blocks in `folder`; their paths. Reading them fills the page cache all the same."""
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"sparse-{index:04}.dat") for index in range(count)]
    for path in paths:
        if not os.path.exists(path) or os.path.getsize(path) != size:
            with open(path, "wb") as file:
                file.truncate(size)
    _nothing_else(folder, paths)
    return paths


def _nothing_else(folder, paths):
    """The rivals read whatever lies in the folder: it must be the same bytes."""
    extra = set(os.listdir(folder)) - {os.path.basename(path) for path in paths}
    for name in extra:
        os.unlink(os.path.join(folder, name))


def _write(path, size):
    body = 4096  # the header is padded, so that O_DIRECT readers find an aligned size
    shape = size - body
    header = json.dumps({"w": {"dtype": "U8", "shape": [shape], "data_offsets": [0, shape]}}).encode()
    part = f"{path}.part"
    with open(part, "wb") as file:
        file.write((body - 8).to_bytes(8, "little") + header.ljust(body - 8))
        left = shape
        while left:
            left -= file.write(os.urandom(min(left, 4 * MIB)))
        file.flush()
        os.fdatasync(file.fileno())
    os.rename(part, path)


def resident(path):
    """Bytes of `path` in the page cache, by mincore; only the file's owner is told the truth. Raises `Stop` for others."""
    fd = os.open(path, os.O_RDONLY)
    try:
        stat = os.fstat(fd)
        if stat.st_uid != os.geteuid():
            raise Stop(f"{path} belongs to another user: mincore would not tell the truth")
        if not stat.st_size:
            return 0
        address = _libc.mmap(None, stat.st_size, _PROT_READ, _MAP_SHARED, fd, 0)
        if address == ctypes.c_void_p(-1).value:
            raise Stop(f"cannot map {path}: {os.strerror(ctypes.get_errno())}")
        pages = -(-stat.st_size // PAGE)
        vector = ctypes.create_string_buffer(pages)
        failed = _libc.mincore(address, stat.st_size, vector)
        problem = ctypes.get_errno()
        _libc.munmap(address, stat.st_size)
        if failed:
            raise Stop(f"mincore of {path}: {os.strerror(problem)}")
        return min(stat.st_size, vector.raw[:pages].count(b"\x01") * PAGE)
    finally:
        os.close(fd)


def resident_sum(paths):
    """Bytes of all `paths` in the page cache."""
    return sum(resident(path) for path in paths)


def evict(paths):
    """Drop the pages of `paths` and prove that none is left. Raises `Stop` when some stay."""
    for path in paths:
        for _ in range(_TRIES):
            _drop(path)
            left = resident(path)
            if not left:
                break
        else:
            raise Stop(f"{left} bytes of {path} stay in the page cache: who has it mapped?")


def _drop(path):
    fd = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
