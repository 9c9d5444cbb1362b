"""What lies where an engine is started: a command that is not stager's may change the files that are measured, and write others beside them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stager.core.units import count, shown
from stager.node import pagecache
from stager.node.files import identity_of, opened

if TYPE_CHECKING:
    from stager.jobs.bench.ground import Ground


@dataclass
class Inventory:
    """The files of `ground`, and the names in its folder, as they were before the engine was started for the first time. Blocks, as all of it does."""

    ground: Ground
    _there: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._there = frozenset(self._names())

    def changed(self) -> str:
        """Which of the files that are measured is no longer what it was; empty when all are."""
        for file in self.ground.files:
            name = shown(file.entry.path)
            try:
                now = identity_of(os.stat(file.path))
            except OSError as exc:
                return f"{name} has changed since the engine was first started: {exc.strerror}"
            was = file.identity
            if (now.inode, now.size, now.mtime_ns) != (was.inode, was.size, was.mtime_ns):
                return f"{name} has changed since the engine was first started"
        return ""

    def chill(self) -> None:
        """Drop the pages of files that have come since, as far as they can be."""
        for name in self._new():
            with suppress(OSError), opened(name) as fd:
                pagecache.evict(fd)

    def added(self) -> str:
        """What a reader must know of files that have come since; empty when there are none."""
        new = self._new()
        if not new:
            return ""
        name = shown(os.path.relpath(new[0], self.ground.storage.path))
        more = f" and {count(len(new) - 1, 'more file')}" if len(new) > 1 else ""
        return f"{name}{more} came into the folder since the engine was first started, and is not among what is proven cold or resident"

    def _new(self) -> list[str]:
        return sorted(set(self._names()) - self._there)

    def _names(self) -> list[str]:
        return [
            os.path.join(at, name) for at, _, names in os.walk(self.ground.storage.path) for name in names
        ]
