"""``stager verify``: reads a model where it lies and holds every byte against its manifest."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import AnswerNo, DeadlineExceeded, IntegrityError, NotFound
from stager.core.events import Note
from stager.core.pull_reports import VerifySummary
from stager.core.select import selected
from stager.core.units import count, shown
from stager.engine import runtime
from stager.jobs import remote
from stager.jobs.inflow import Feed, Stream
from stager.jobs.lines import Pauses
from stager.jobs.proving import Proving
from stager.jobs.retrying import again
from stager.jobs.stall import watched
from stager.node.processes import more_descriptors
from stager.store.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.core.location import Location
    from stager.core.model import FileEntry
    from stager.engine.report import Reporter
    from stager.jobs.options import VerifyOptions
    from stager.store.base import Store, StoredObject

_TRIES = 2  # of a file that came wrong over a network: what was damaged on the way comes right the next time


class Verify:
    """One proof. `run` gives 0 when every file that the manifest names is what it says, 8 when one is not, 3 when it says too little of one."""

    def __init__(self, options: VerifyOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._pauses = Pauses()
        self._rounds: list[Proving] = []
        self._retry_told = False

    def withdraw(self, reason: str) -> None:
        """Nothing was changed, so there is nothing to take back."""

    def stuck(self) -> list[str]:
        """Names of files in which a read hangs."""
        return self._rounds[-1].stuck() if self._rounds else []

    async def run(self) -> int:
        """Read and compare; the exit code. Raises `StagerError` when there is nothing to hold it against, or it cannot be read."""
        with runtime.deadline(self._options.timeout) as expired:
            async with watched(self._options.stall_timeout, self._reporter):
                summary = await self._verify()
        if expired():
            raise DeadlineExceeded(
                "--timeout ran out", hint="give it more time, or choose files with `--include`"
            )
        self._reporter.emit(summary)
        if summary.wrong:
            return IntegrityError.exit_code
        return 0 if summary.ok else AnswerNo.exit_code

    async def _verify(self) -> VerifySummary:
        options = self._options
        more_descriptors()
        where = shown(str(options.location))
        label = f"listing {where}"
        store, model = await runtime.in_thread(
            label, partial(remote.open_model, options.location, self._open)
        )
        if model.manifest is None:
            raise NotFound(
                f"`{where}` has no manifest to be held against",
                hint="`stager pull` writes one; `stager check` judges by indexes and headers",
            )
        rows = [one for one in model.manifest.files if selected(one.path, options.include, options.exclude)]
        if not rows:
            raise NotFound(
                f"the manifest of `{where}` names no such file", hint="check --include and --exclude"
            )
        if model.manifest.unproven:
            files = count(len(model.manifest.unproven), "file")
            message = f"{files} pulled without holding the content against the hub's sha256"
            self._reporter.emit(Note("info", "unproven", message))
        there = {one.name: one for one in model.objects}
        wrong = dict(_without_reading(rows, there))
        readable = [row for row in rows if row.path not in wrong]
        by_sha256 = [
            row for row in readable if row.sha256 is not None and (options.sha256 or row.crc64 is None)
        ]
        by_crc = [row for row in readable if row.crc64 is not None]
        known = {*by_sha256, *by_crc}
        unproven = len(readable) - len(by_sha256 if options.sha256 else known)
        wrong |= await self._read(store, [row for row in readable if row in known], there)
        read, seconds = sum(one.read for one in self._rounds), sum(one.seconds for one in self._rounds)
        return VerifySummary(
            location=str(options.location),
            ok=not wrong and not unproven,
            files=len(rows),
            total=sum(row.size for row in rows),
            read=read,
            seconds=seconds,
            rate=read / seconds if seconds > 0 else 0.0,
            by="sha256" if options.sha256 else "crc64",
            wrong=tuple(sorted(wrong.items())),
            unproven=unproven,
            bare=len(readable) - len(known),
        )

    def _open(self, location: Location) -> Store:
        return open_store(location, self._options.store, pause=self._pauses, on_retry=self._tell_retry)

    async def _read(
        self, store: Store, rows: Sequence[FileEntry], there: dict[str, StoredObject]
    ) -> dict[str, str]:
        """What is wrong with the content of `rows`, by path. What came wrong is read again, in case the way was bad."""
        left, why = list(rows), dict[str, str]()
        for _ in range(_TRIES if remote.states_checksums(store.root) else 1):
            streams = [self._stream(row, there[row.path]) for row in left]
            await self._prove(store, streams)
            why = {
                row.path: reason
                for row, stream in zip(left, streams, strict=True)
                if (reason := _differs(row, stream))
            }
            left = [row for row in left if row.path in why]
            if not left:
                break
        return why

    def _stream(self, row: FileEntry, there: StoredObject) -> Stream:
        hashed = row.sha256 is not None and (self._options.sha256 or row.crc64 is None)
        return Stream(Feed(row.path, row.size, there.etag), hashlib.sha256() if hashed else None)

    async def _prove(self, store: Store, streams: Sequence[Stream]) -> None:
        options = self._options
        proving = Proving(
            store.reader,
            streams,
            self._reporter,
            verb="verify",
            lanes=options.lanes,
            adapt=options.adapt,
            buffer=options.buffer,
            stall_timeout=options.stall_timeout,
            pauses=self._pauses,
        )
        self._rounds.append(proving)
        await proving.run()

    def _tell_retry(self, doing: str, error: Exception) -> None:
        if not self._retry_told:
            self._retry_told = True
            self._reporter.emit(again(doing, error))


def _without_reading(rows: Sequence[FileEntry], there: dict[str, StoredObject]) -> list[tuple[str, str]]:
    """Rows that are wrong by their names and sizes alone."""
    found = []
    for row in rows:
        one = there.get(row.path)
        if one is None:
            found.append((row.path, "missing"))
        elif one.size != row.size:
            found.append((row.path, f"{one.size} bytes, the manifest says {row.size}"))
    return found


def _differs(row: FileEntry, stream: Stream) -> str:
    """What is wrong with what was read; empty when nothing is."""
    if row.crc64 is not None and stream.crc64 != row.crc64:
        return f"CRC-64 {stream.crc64}, the manifest says {row.crc64}"
    if row.sha256 is not None and stream.hexdigest not in (None, row.sha256.lower()):
        return f"sha256 {stream.hexdigest}, the manifest says {row.sha256.lower()}"
    return ""
