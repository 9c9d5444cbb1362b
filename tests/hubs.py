"""A hub for tests below the command: a folder whose digests are stated as hubs state them, and whose bytes may come damaged."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stager.core.events import Event, Progress
from stager.core.location import Location
from stager.core.model import FileEntry
from stager.core.source import Source
from stager.hub.base import HubFile, Snapshot
from stager.jobs.options import PullOptions
from stager.store.base import Reader, Sink, StoredObject
from stager.store.directory import DirectoryStore
from stager.store.opening import StoreOptions

MIB = 1 << 20


@dataclass
class StatingHub:
    """The files below `path`. `states` is what it says of their content: ``sha256``, ``blob`` (git's name) or nothing.

    The next `damaged[name]` reads of a file come with their first byte changed. `given` counts the bytes that were given of each file.
    """

    path: Path
    states: str = "sha256"
    source: str = "ms://owner/name"
    revision: str = "c0ffee"
    credentials: str = ""
    damaged: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.source, self.revision, tuple(self.file(one.name) for one in self.store().list()))

    def store(self) -> DirectoryStore:
        return DirectoryStore(str(self.path))

    def file(self, name: str) -> HubFile:
        """What the hub says of one file."""
        content, version = (self.path / name).read_bytes(), self.store().head(name).etag
        if self.states == "sha256":
            return HubFile(
                FileEntry(name, len(content), hashlib.sha256(content).hexdigest().upper()), version
            )
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return HubFile(
            FileEntry(name, len(content)), version, blob_sha1=blob if self.states == "blob" else None
        )

    def reader(self) -> Reader:
        return _Reader(self, self.store().reader())


class _Reader:
    def __init__(self, hub: StatingHub, reader: Reader) -> None:
        self._hub, self._reader = hub, reader

    def read(
        self,
        name: str,
        offset: int,
        length: int,
        sink: Sink,
        *,
        etag: str | None = None,
        into: memoryview | None = None,
    ) -> StoredObject:
        hub = self._hub
        with hub.lock:
            damage = hub.damaged[name] > 0
            hub.damaged[name] -= damage

        def passed(block: memoryview) -> None:
            nonlocal damage
            if damage:
                block[0] ^= 1
                damage = False
            with hub.lock:
                hub.given[name] += len(block)
            sink(block)

        return self._reader.read(name, offset, length, passed, etag=etag, into=into)

    def interrupt(self) -> None:
        self._reader.interrupt()

    def close(self) -> None:
        self._reader.close()


class Quiet:
    """A reporter that only remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.last: Progress | None = None

    def stdout_failed(self) -> bool:
        return False

    def stdout_error(self) -> int | None:
        return None

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, event: Progress) -> None:
        self.last = event

    def print_now(self, otherwise: Event | None = None) -> None:
        pass

    def close(self) -> None:
        pass


def options_for(**given: object) -> PullOptions:
    """Options of a pull, of which only those matter that are `given`: what moves bytes is handed its hub and its store."""
    source, dest = Source.parse("owner/name"), Location.parse("oss://models/r1")
    return PullOptions(source=source, dest=dest, store=StoreOptions(), **given)  # type: ignore[arg-type]
