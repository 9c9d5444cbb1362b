"""What a pull finds out before it changes anything: whether parts fit into memory, and whether the hub gives what it lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stager.core.units import shown
from stager.engine import runtime
from stager.hub.answers import SKIPPED
from stager.hub.directory import DirectoryHub
from stager.jobs.inflow import Feed, Stream, refuse_large

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stager.hub.base import Hub, HubFile


def refuse_parts(files: Iterable[HubFile], buffer: int) -> None:
    """As `refuse_large`, of files that nobody has begun to read."""
    refuse_large([Stream(Feed(one.entry.path, one.entry.size, one.version)) for one in files], buffer)


class Sample:
    """One byte of one file. Some hubs list a model for everybody, and give its files to few."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._taken = False

    async def take(self, hub: Hub, files: Sequence[HubFile]) -> None:
        """Read one byte of the largest of `files`: it lies where most of the bytes will come from. Raises as `Reader.read`.

        Of a file that is too large to be read from a server that ignores ranges, it is the last: that tells. Only once, and nothing where all
        are empty, or in a folder.
        """
        largest = max(files, key=lambda one: one.entry.size, default=None)
        near = isinstance(getattr(hub, "adapter", hub), DirectoryHub)
        if self._taken or near or largest is None or not largest.entry.size:
            return
        path, size, version, reader = largest.entry.path, largest.entry.size, largest.version, hub.reader()
        at = size - 1 if size > SKIPPED + 1 else 0

        def one_byte() -> None:
            try:
                reader.read(path, at, 1, lambda _: None, etag=version)
            finally:
                reader.close()

        try:
            await runtime.in_thread(f"asking for {shown(path)} of {shown(hub.source)}", one_byte)
        finally:
            reader.interrupt()  # for one that was left behind
        self._taken = True
