"""The storages of ``scripts/test-engines``: FUSE mounts by tests/fuselab that are as slow as an object store far away."""

import contextlib
import os
from dataclasses import dataclass, field

from bench import data, engine_room
from bench.data import MIB, Stop

_LIFETIME_S = 1800
_KEEPS = {"keep_cache": "always", "attr_timeout": 60, "entry_timeout": 60, "lifetime": _LIFETIME_S}


@dataclass(frozen=True)
class Storage:
    """A mount's manner: `words` for the reader, `options` of ``python -m tests.fuselab``."""

    words: str
    options: dict = field(default_factory=dict)


AHEAD = Storage(
    "a daemon that reads ahead of each open file, 32 to 64 MiB as long as it is read in order: 30 ms for each request to the"
    " store, 100 MB/s a stream (an open file), 800 MB/s in all. What it read ahead and nobody wanted counts as fetched",
    {
        "latency": 30,
        "stream_rate": "100MB",
        "total_rate": "800MB",
        "pool": 4096,  # never empty: what an empty pool does is scripts/bench-adaptive's
        "pool_hold": 64,
        "pool_window": "32MiB:64MiB",
    },
)
BARE = Storage(
    "a daemon that asks the store for just what the kernel asks it, with the kernel's read-ahead of 128 KiB: 30 ms for each"
    " request, 100 MB/s a stream, 800 MB/s in all",
    {"latency": 30, "stream_rate": "100MB", "total_rate": "800MB"},
)


class Mounted:
    """A new mount of `folder` with nothing of it in memory, until `close`. Raises `Stop` when something is."""

    def __init__(self, storage, folder):
        self._mount = _mount(source=folder, **_KEEPS, **storage.options)
        self.path = self._mount.path
        try:
            paths = [os.path.join(self.path, os.path.basename(path)) for path in engine_room.files(folder)]
            if left := data.resident_sum(paths):
                raise Stop(f"{left} bytes of a new mount are resident already")
            if served := self.served():
                raise Stop(f"{served} bytes of a new mount were read already")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def served(self):
        """Bytes that the kernel was given so far."""
        return self._mount.counters()["served"]

    def fetched(self):
        """Bytes that the store was asked for so far."""
        counters = self._mount.counters()
        return counters["fetched"]

    def close(self):
        """Unmount, whoever still has files open there. May be called twice."""
        with contextlib.suppress(FileNotFoundError):
            self._mount.close()


def _mount(**options):
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        raise Stop("a FUSE mount needs root and /dev/fuse")
    from tests.fuselab.fixtures import FuseMount

    try:
        return FuseMount(**options)
    except (OSError, RuntimeError) as error:
        raise Stop(f"cannot mount: {error}") from error


def mib(count):
    """`count` bytes as MiB, for a table."""
    return f"{count / MIB:.0f} MiB"
