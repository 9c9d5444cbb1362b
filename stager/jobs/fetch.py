"""``stager fetch``: from a store into a folder, proven, and then warm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import DeadlineExceeded, ResourceRefused, StagerError, UsageError
from stager.core.events import Note
from stager.core.fetch_reports import FetchForecast, FetchSummary
from stager.core.journal import Journal, Whole
from stager.core.location import Scheme
from stager.core.model import Known, Residency
from stager.core.outcome import MarkerState, Mode
from stager.core.select import selected
from stager.core.units import count, format_size, shown
from stager.engine import runtime
from stager.jobs import reckoning as reckon
from stager.jobs import remarks, remote, room
from stager.jobs.assembly import Assembly
from stager.jobs.fetching import Fetching
from stager.jobs.gate import Gate
from stager.jobs.imprint import Imprint
from stager.jobs.options import Selection, Verify
from stager.jobs.retrying import again
from stager.jobs.stall import watched
from stager.jobs.warm import Warm
from stager.node import notify, pagecache
from stager.node.files import opened
from stager.node.memory import Gauge
from stager.node.parts import Target
from stager.node.processes import more_descriptors
from stager.store.opening import credentials_of, open_store

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.options import FetchOptions
    from stager.jobs.reckoning import Reckoning

_LOCK_LOOK_S = 0.5


class Fetch:
    """One fetch. `run` gives the exit code: that of warming, once all files are there and proven.

    `concluded` is called with the exit code once the gate has its answer, before pages are held.
    """

    def __init__(
        self, options: FetchOptions, reporter: Reporter, *, concluded: Callable[[int], None] | None = None
    ) -> None:
        self._options = options
        self._reporter = reporter
        self._concluded = concluded
        self._gate = Gate(options.warm.marker, named=options.warm.marker_named, reporter=reporter)
        self._target = Target(options.folder)
        self._started = time.monotonic()
        self._reckoning: Reckoning | None = None
        self._fetching: Fetching | None = None
        self._assembly: Assembly | None = None
        self._warm: Warm | None = None
        self._rank: dict[str, int] = {}
        self._removed = 0
        self._retry_told = False

    def withdraw(self, reason: str) -> None:
        """Close the gate now; safe at any moment."""
        (self._warm or self._gate).withdraw(reason)
        if self._warm is None and self._fetching is not None:
            self._reporter.emit(self._summary(complete=False, reason=f"{reason}; run it again to go on"))

    def stuck(self) -> list[str]:
        """Names of objects and files in which a read hangs."""
        return [
            *(self._fetching.stuck() if self._fetching else []),
            *(self._warm.stuck() if self._warm else []),
        ]

    async def run(self) -> int:
        """Fetch, then warm; the exit code. Raises `StagerError` when the files are not all there in the end."""
        _refuse_nonsense(self._options)
        await runtime.in_thread(f"reading {shown(self._options.warm.marker)}", self._gate.load)
        self._gate.asks(Selection(paths=(self._options.folder,)))
        self._gate.withdraw("a fetch is under way")
        notify.sd_notify(status="fetching")
        try:
            with runtime.deadline(self._options.warm.timeout) as expired:
                async with watched(self._options.warm.stall_timeout, self._reporter):
                    await self._fetch()
            if expired():
                raise DeadlineExceeded("--timeout ran out", hint="run it again: it goes on where it was")
        except StagerError as error:
            self._gate.withdraw(error.message)
            self._say_unfinished()
            raise
        finally:
            if self._assembly is not None:
                self._assembly.close()
            self._target.close()
        summary = self._summary(complete=True, reason="")
        self._reporter.emit(summary)
        folder = os.path.realpath(self._options.folder)
        self._gate.written_anew({os.path.join(folder, whole.path) for whole in self._fetched()})
        self._gate.withdraw("fetched, not warm yet")
        return await self._warm_up()

    async def forecast(self) -> int:
        """Say what `run` would do; the exit code it would begin with. Writes nothing."""
        options = self._options
        _refuse_nonsense(options)
        reckoning = await self._survey()
        journal = await self._compare(reckoning)
        claimed = (journal.parts.get(task.path) for task in reckoning.tasks)
        resumable = sum(piece.length for part in claimed if part is not None for piece in part.pieces)
        refusal = self._refusal(reckoning.absent - resumable)
        self._reporter.emit(
            FetchForecast(
                source=reckoning.model.location,
                folder=options.folder,
                files=len(reckoning.entries),
                total=reckoning.total,
                present=reckoning.present,
                resumable=resumable,
                to_fetch=reckoning.absent,
                removes=tuple(self._superfluous()) if options.mirror and self._target.exists() else (),
                free=self._target.free(),
                keep_free=room.keep_free(self._target, options.keep_free),
                refusal=refusal,
            )
        )
        return ResourceRefused.exit_code if refusal else 0

    # The steps

    async def _survey(self) -> Reckoning:
        """What the store has of it. Nothing is touched here before that is known."""
        options = self._options
        where = str(options.source)
        if options.mirror:
            await runtime.in_thread(
                f"looking at {shown(options.folder)}", partial(reckon.refuse_mirror, self._target)
            )
        self._store, model = await runtime.in_thread(
            f"listing {shown(where)}",
            partial(
                remote.open_model,
                options.source,
                lambda at: open_store(at, options.store, on_retry=self._tell_retry),
            ),
        )
        reckoning = self._reckoning = reckon.choose(model, options)
        self._rank = await runtime.in_thread(
            f"reading indexes in {shown(where)}", partial(reckon.judge, reckoning, self._store, options)
        )
        return reckoning

    async def _compare(self, reckoning: Reckoning) -> Journal:
        """What the folder has of it, and what memory has room for. The journal, as it is now."""
        options, journal = self._options, Journal()
        if self._target.exists():
            journal = await runtime.in_thread("reading the journal", self._target.read_journal)
            sha256 = options.verify is Verify.SHA256
            await reckon.compare(reckoning, self._target, journal, self._store, sha256=sha256)
        else:
            reckoning.wanted = list(range(len(reckoning.entries)))
        resident = await runtime.in_thread("looking at the page cache", partial(self._resident, reckoning))
        gauge = Gauge(limit=options.warm.memory.limit)
        reckon.make_tasks(reckoning, self._rank, resident, options, gauge)
        return journal

    async def _fetch(self) -> None:
        options = self._options
        more_descriptors()
        reckoning = await self._survey()
        await runtime.in_thread(f"preparing {shown(options.folder)}", self._target.prepare)
        if await self._lock():  # it may have waited for hours: what was listed is not what is there now
            reckoning = await self._survey()
        journal = await self._compare(reckoning)
        self._remark(remarks.findings(reckoning, self._target, options))
        if self._target.read_only:
            await self._do_without_writing(reckoning)
            return
        for whole in reckoning.whole.values():
            if journal.whole.get(whole.path) != whole:
                self._target.append(whole)
        entries = [reckoning.entries[index] for index in reckoning.wanted]
        assembly = self._assembly = Assembly(
            self._target, self._store, reckoning.tasks, entries, sha256=options.verify is Verify.SHA256
        )
        await runtime.in_thread("checking part files", partial(assembly.resume, lambda _count: None))
        if refusal := self._refusal(assembly.room()):
            way_out = await runtime.in_thread(
                "looking at what is replaced", partial(room.way_out, self._target, reckoning)
            )
            raise ResourceRefused(refusal, hint=way_out)
        imprint = Imprint(self._target, options)
        superfluous = await runtime.in_thread(
            f"looking for files in {shown(options.folder)}", self._superfluous
        )
        if not options.mirror:
            if not reckoning.model.single:
                self._remark(remarks.obsolete(superfluous, options))
            superfluous = []
        changes = bool(reckoning.tasks or superfluous)
        if changes:
            await runtime.in_thread("writing the manifest", partial(imprint.begin, reckoning))
        if reckoning.tasks:
            source = options.source.parent if reckoning.model.single else None
            wanted = replace(options, source=source or options.source)
            self._fetching = Fetching(wanted, reckoning.tasks, assembly, self._reporter)
            await self._fetching.run()
            for at, index in enumerate(reckoning.wanted):
                reckoning.whole[index] = assembly.finished[at]
        for name in superfluous:
            await runtime.in_thread(f"removing {shown(name)}", partial(self._target.remove, name))
            self._removed += 1
        await runtime.in_thread("writing the manifest", partial(imprint.conclude, reckoning, changed=changes))

    async def _do_without_writing(self, reckoning: Reckoning) -> None:
        """Be content with a folder that cannot be written when all is there. Raises why it cannot be written when it is not."""
        options, folder = self._options, shown(self._options.folder)
        label = f"looking for files in {folder}"
        superfluous = await runtime.in_thread(label, self._superfluous) if options.mirror else []
        if not reckoning.tasks and not superfluous:
            what = f"`{folder}` cannot be written, but has all of the model: nothing is noted there"
            self._reporter.emit(Note("info", "read_only", what))
            return
        try:
            await runtime.in_thread(
                "writing the manifest", partial(Imprint(self._target, options).begin, reckoning)
            )
        except StagerError as error:
            fetched = f"{count(len(reckoning.tasks), 'file')} to be fetched ({format_size(reckoning.absent)})"
            removed = f", {count(len(superfluous), 'file')} to be removed" if superfluous else ""
            error.hint = f"{fetched}{removed}: make the folder writable, or choose another"
            raise

    async def _lock(self) -> bool:
        """Wait for another fetch into the same folder: what it fetches need not be fetched twice. Whether there was one."""
        told = False
        while (holder := await runtime.in_thread("locking", self._target.try_lock)) is not None:
            if not told:
                self._reporter.emit(
                    Note("info", "waiting", f"waiting for another fetch into this folder: {holder}")
                )
                told = True
            await runtime.sleep(_LOCK_LOOK_S, f"waiting for {holder}")
        if self._target.unlocked:
            message = f"`{shown(self._options.folder)}` is on a filesystem without locks: let no two fetches fill it at once"
            self._reporter.emit(Note("warning", "unlocked", message))
        return told

    def _resident(self, reckoning: Reckoning) -> dict[int, int]:
        """Bytes in the page cache of the files that are whole, by index; those that cannot be counted are left out."""
        found = {}
        for index, whole in reckoning.whole.items():
            try:
                with opened(os.path.join(self._options.folder, whole.path)) as fd:
                    residency = pagecache.residency(fd, "")
            except OSError:
                continue
            if residency.known.exact and residency.resident:
                found[index] = residency.resident
        return found

    def _superfluous(self) -> list[str]:
        """Selected names below the folder that the source does not have, but for the part files of this very fetch."""
        reckoning, selection = self._reckoning, self._options.warm.selection
        assert reckoning is not None
        keep = {*reckoning.names, *(one.path for one in reckoning.model.skipped)}
        keep |= {f"{task.path}.part" for task in reckoning.tasks}
        found = (name for name in self._target.names() if name not in keep)
        return sorted(name for name in found if selected(name, selection.include, selection.exclude))

    def _refusal(self, need: int) -> str:
        """Why `need` more bytes cannot be had; empty when they can."""
        assert self._reckoning is not None
        keep = room.keep_free(self._target, self._options.keep_free)
        return room.refusal(self._target, self._reckoning, need, keep)

    # What is said

    def _remark(self, notes: Iterable[Note]) -> None:
        for note in notes:
            self._reporter.emit(note)

    def _tell_retry(self, doing: str, error: Exception) -> None:
        """Say once that the store does not answer as it should: it is tried again for minutes."""
        if not self._retry_told:
            self._retry_told = True
            self._reporter.emit(again(doing, error))

    def _say_unfinished(self) -> None:
        if self._fetching is not None and self._reckoning is not None:
            self._reporter.emit(self._summary(complete=False, reason="run it again to go on"))

    def _summary(self, *, complete: bool, reason: str) -> FetchSummary:
        reckoning, assembly, fetching = self._reckoning, self._assembly, self._fetching
        assert reckoning is not None
        stated = reckoning.model.states_checksums
        unproven = 0 if stated else sum(entry.crc64 is None for entry in reckoning.entries)
        verified = "sha256" if self._options.verify is Verify.SHA256 else "crc64"
        return FetchSummary(
            source=reckoning.model.location,
            folder=self._options.folder,
            complete=complete,
            reason=reason,
            files=len(reckoning.entries),
            total=reckoning.total,
            fetched=fetching.fetched if fetching else 0,
            resumed=assembly.resumed if assembly else 0,
            already=reckoning.total - reckoning.absent,
            seconds=fetching.seconds if fetching else 0.0,
            rate=fetching.rate if fetching else 0.0,
            lanes=fetching.lanes if fetching else 0,
            peak=fetching.peak if fetching else 0,
            processes=fetching.processes if fetching else 1,
            verified=verified if unproven < len(reckoning.entries) else "",
            unproven=unproven,
            trusted=reckoning.trusted,
            retried=fetching.retried if fetching else 0,
            replaced=fetching.replaced if fetching else 0,
            mended=assembly.mended if assembly else 0,
            removed=self._removed,
            skipped=len(reckoning.model.skipped),
            credentials=credentials_of(self._store),
        )

    def _fetched(self) -> list[Whole]:
        """The files that this run has brought."""
        return list(self._assembly.finished.values()) if self._assembly is not None else []

    # Afterwards

    async def _warm_up(self) -> int:
        options, reckoning = self._options, self._reckoning
        assert reckoning is not None
        if not options.cache:
            memory = self._target.filesystem() in room.MEMORY_FS
            dropped = (
                "in memory, which --no-cache cannot drop" if memory else "pages dropped as asked (--no-cache)"
            )
            reason = f"fetched and verified, {dropped}"
            self._gate.open(
                MarkerState.RELEASED, reason, Residency(0, reckoning.total, Known.UNKNOWN, None, "--no-cache")
            )
            notify.sd_notify(ready=True, status="released")
            return 0
        single = reckoning.model.single
        path = os.path.join(options.folder, reckoning.entries[0].path) if single else options.folder
        selection = Selection(
            paths=(path,), include=options.warm.selection.include, exclude=options.warm.selection.exclude
        )
        left = options.warm.timeout
        if left is not None:
            left = max(1.0, left - (time.monotonic() - self._started))
        warm = replace(options.warm, selection=selection, timeout=left)
        self._warm = Warm(warm, self._reporter, concluded=self._concluded)
        return await self._warm.run()


def _refuse_nonsense(options: FetchOptions) -> None:
    if not options.cache and options.warm.mode is Mode.STRICT:
        raise UsageError("--no-cache and --strict contradict each other", hint="choose one")
    hold = options.warm.hold
    for name, asked in (
        ("--min-resident", options.warm.min_resident is not None),
        ("--hold", hold.seconds is not None or hold.url is not None),
        ("--idle", hold.idle),
    ):
        if asked and not options.cache:
            raise UsageError(
                f"--no-cache and {name} contradict each other: nothing is warm afterwards", hint="choose one"
            )
    if options.source.scheme is Scheme.FILE:
        source, folder = (os.path.realpath(path) for path in (options.source.prefix, options.folder))
        if os.path.commonpath((source, folder)) in (source, folder):
            raise UsageError(
                f"`{shown(options.folder)}` and the source lie within each other",
                hint="`stager warm` is for models that are on this node already",
            )
