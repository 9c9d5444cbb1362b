"""Pages counted again and again while a run is made that must find them resident: what goes in the middle has often come back at its end."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from stager.jobs.bench import pages
from stager.node import pagecache
from stager.node.filesystems import Pattern

if TYPE_CHECKING:
    from stager.core.model import LocalFile
    from stager.jobs.bench.ground import Ground

_PAUSE_S = 0.02
_SHARE = 20  # so many times as long as a count took is waited for the next: a run must not pay for it
_MOST_FILES = 256  # the largest; they are kept open, for opening a file asks its daemon or server


class Watch:
    """Looks from now on until `end`, in a thread of its own."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._over = threading.Event()
        self._missing = 0
        self._fds: list[int] = []
        if ground.facts.traits.pattern is not Pattern.MEMORY:
            largest = sorted(ground.files, key=lambda one: -one.size)[:_MOST_FILES]
            with suppress(OSError):
                pages.of_each(self._open, largest)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """The least bytes of the ground that were resident at any look. Blocks until the last look is over."""
        self._over.set()
        self._thread.join()
        for fd in self._fds:
            with suppress(OSError):  # a dead daemon
                os.close(fd)
        self._fds = []
        return self._ground.total - self._missing

    def _work(self) -> None:
        pause = _PAUSE_S
        while not self._over.wait(pause):
            began = time.monotonic()
            with suppress(OSError):
                self._missing = max(self._missing, sum(self._gone(fd) for fd in self._fds))
            pause = max(_PAUSE_S, _SHARE * (time.monotonic() - began))

    def _open(self, file: LocalFile) -> None:
        self._fds.append(os.open(file.path, os.O_RDONLY | os.O_CLOEXEC))

    def _gone(self, fd: int) -> int:
        size = os.fstat(fd).st_size
        wanted = min(size, self._ground.part or size)
        probe, _ = pagecache.probe(fd, self._ground.facts.mount.fstype)
        return 0 if probe is None else wanted - (pagecache.count_bytes(probe, wanted).resident or 0)
