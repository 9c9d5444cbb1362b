"""What only reading can prove, before and after a pull: objects at the destination, sources that state no checksum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stager.core.errors import NotFound, RemoteError
from stager.core.model import FileEntry
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs.inflow import Feed, Stream
from stager.jobs.proving import Proving
from stager.jobs.transit import digest_for, sha256_of, stated

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.hub.base import Hub, HubFile
    from stager.jobs.lines import Pauses
    from stager.jobs.options import PullOptions
    from stager.store.base import Reader, Store, StoredObject

_LOOKERS = 32
_TRIES = 3  # of a read whose CRC is not the one that the store states for the object


class Evidence:
    """Reads for a pull from `hub` into `store`. `read_back` counts the bytes that came from the store for it."""

    def __init__(
        self, hub: Hub, store: Store, options: PullOptions, reporter: Reporter, *, pauses: Pauses
    ) -> None:
        self._hub, self._store = hub, store
        self._options, self._reporter, self._pauses = options, reporter, pauses
        self._rounds: list[Proving] = []
        self._counted: list[Proving] = []

    @property
    def read_back(self) -> int:
        """Bytes that were read from the destination."""
        return sum(one.read for one in self._counted)

    def stuck(self) -> list[str]:
        """Names of files in which a read hangs."""
        return self._rounds[-1].stuck() if self._rounds else []

    async def of_objects(self, files: Sequence[HubFile]) -> dict[str, FileEntry]:
        """The rows of those of `files` that the destination has as the hub states them, by path; the others are wrong, or gone."""
        rows: dict[str, FileEntry] = {}
        left = list(files)
        for _ in range(_TRIES):
            found = await runtime.in_threads(
                lambda one: f"looking at {shown(one.entry.path)}", self._head, left, _LOOKERS
            )
            pairs = [(one, there) for one, there in zip(left, found, strict=True) if there is not None]
            streams = [_stream(one, there.etag) for one, there in pairs]
            await self._read(self._store.reader, streams, "verify", counted=True)
            left = []
            for (one, there), stream in zip(pairs, streams, strict=True):
                if there.crc64 not in (None, stream.crc64):
                    left.append(one)  # it came differently from what is stored
                elif stated(one) in (None, stream.hexdigest):
                    rows[one.entry.path] = _row(one, stream)
            if not left:
                return rows
        raise RemoteError(
            f"`{shown(left[0].entry.path)}` does not come as it is stored: its CRC-64 is another each time"
        )

    async def of_sources(self, files: Sequence[HubFile], crcs: Mapping[str, int]) -> dict[str, FileEntry]:
        """The rows of those of `files` whose content, read at the source, has the CRC-64 in `crcs`."""
        streams = [_stream(one, one.version) for one in files]
        await self._read(self._hub.reader, streams, "compare")
        pairs = zip(files, streams, strict=True)
        return {
            one.entry.path: _row(one, stream) for one, stream in pairs if stream.crc64 == crcs[one.entry.path]
        }

    def _head(self, file: HubFile) -> StoredObject | None:
        try:
            there = self._store.head(file.entry.path)
        except NotFound:
            return None
        return there if there.size == file.entry.size else None

    async def _read(
        self,
        open_reader: Callable[[], Reader],
        streams: Sequence[Stream],
        verb: str,
        *,
        counted: bool = False,
    ) -> None:
        if not streams:
            return
        options = self._options
        proving = Proving(
            open_reader,
            streams,
            self._reporter,
            verb=verb,
            lanes=options.lanes,
            adapt=options.adapt,
            buffer=options.buffer,
            stall_timeout=options.stall_timeout,
            pauses=self._pauses,
        )
        self._rounds.append(proving)
        if counted:
            self._counted.append(proving)
        await proving.run()


def _stream(file: HubFile, version: str) -> Stream:
    return Stream(Feed(file.entry.path, file.entry.size, version), digest_for(file))


def _row(file: HubFile, stream: Stream) -> FileEntry:
    entry = file.entry
    return FileEntry(entry.path, entry.size, sha256_of(file, stream), stream.crc64)
