"""``stager fetch``: from a store into a folder, proven, and then warm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core.budget import binding_text
from stager.core.errors import DeadlineExceeded, ResourceRefused, StagerError, UsageError
from stager.core.events import Note
from stager.core.fetch_reports import FetchForecast, FetchSummary
from stager.core.journal import Journal, Whole
from stager.core.location import Scheme
from stager.core.model import Known, Residency
from stager.core.outcome import MarkerState
from stager.core.select import left_out, selected
from stager.core.units import count, format_size, shown
from stager.engine import runtime
from stager.jobs import reckoning as reckon
from stager.jobs import remote
from stager.jobs.assembly import Assembly
from stager.jobs.fetching import Fetching
from stager.jobs.gate import Gate
from stager.jobs.imprint import Imprint
from stager.jobs.options import Selection, Verify
from stager.jobs.stall import watched
from stager.jobs.warm import Warm
from stager.node import hugepages, notify, pagecache
from stager.node.files import opened
from stager.node.memory import Gauge
from stager.node.parts import Target
from stager.node.processes import more_descriptors
from stager.store.opening import credentials_of, open_store

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.options import FetchOptions
    from stager.jobs.reckoning import Reckoning

_MEMORY_FS = ("tmpfs", "ramfs")
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
            self._say_unfinished(error)
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
        notify.write_termination_log(summary.text())
        return await self._warm_up()

    async def forecast(self) -> int:
        """Say what `run` would do; the exit code it would begin with. Writes nothing."""
        _refuse_nonsense(self._options)
        reckoning = await self._survey()
        journal = await self._compare(reckoning)
        claimed = (journal.parts.get(task.path) for task in reckoning.tasks)
        resumable = sum(piece.length for part in claimed if part is not None for piece in part.pieces)
        refusal = self._refusal(reckoning.absent - resumable)
        self._reporter.emit(
            FetchForecast(
                source=reckoning.model.location,
                folder=self._options.folder,
                files=len(reckoning.entries),
                total=reckoning.total,
                present=reckoning.present,
                resumable=resumable,
                to_fetch=reckoning.absent,
                removes=tuple(self._superfluous()) if self._target.exists() else (),
                free=self._target.free(),
                keep_free=self._keep_free(),
                refusal=refusal,
            )
        )
        return ResourceRefused.exit_code if refusal else 0

    # The steps

    async def _survey(self) -> Reckoning:
        """What the store has of it. Nothing is touched here before that is known."""
        options = self._options
        where = str(options.source)
        self._store, model = await runtime.in_thread(
            f"listing {shown(where)}",
            partial(remote.open_model, options.source, lambda at: open_store(at, options.store)),
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
            await reckon.compare(reckoning, self._target, journal, self._store)
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
        await self._lock()
        journal = await self._compare(reckoning)
        self._note_findings(reckoning)
        for whole in reckoning.whole.values():
            if journal.whole.get(whole.path) != whole:
                self._target.append(whole)
        entries = [reckoning.entries[index] for index in reckoning.wanted]
        assembly = self._assembly = Assembly(
            self._target, self._store, reckoning.tasks, entries, sha256=options.verify is Verify.SHA256
        )
        await runtime.in_thread("checking part files", partial(assembly.resume, lambda _count: None))
        if refusal := self._refusal(assembly.room()):
            raise ResourceRefused(
                refusal, hint="make room, or choose another folder; `--keep-free` says how much must stay"
            )
        imprint = Imprint(self._target, options)
        superfluous = self._superfluous() if options.mirror else []
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

    async def _lock(self) -> None:
        """Wait for another fetch into the same folder: what it fetches need not be fetched twice."""
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

    def _keep_free(self) -> int:
        """Bytes that must stay free."""
        wanted = self._options.keep_free
        return int(wanted * self._target.size()) if isinstance(wanted, float) else wanted

    def _refusal(self, need: int) -> str:
        """Why `need` more bytes cannot be had; empty when they can."""
        if not need:
            return ""
        free, keep = self._target.free(), self._keep_free()
        where = f"`{shown(self._options.folder)}`"
        if need + keep > free:
            return (
                f"{format_size(need)} are to be fetched and {format_size(keep)} to stay free, "
                f"but {where} has {format_size(free)}"
            )
        admission = self._reckoning.admission if self._reckoning else None
        if self._target.filesystem() in _MEMORY_FS and admission is not None and admission.granted < need:
            limit = f": {binding_text(admission.binding)}" if admission.binding else ""
            return f"{where} is memory, and {format_size(need - admission.granted)} do not fit{limit}"
        return ""

    # What is said

    def _note_findings(self, reckoning: Reckoning) -> None:
        model = reckoning.model
        beyond = [
            one for one in model.objects if one.name not in reckoning.names and left_out(one.name) is None
        ]
        if beyond and model.manifest is not None:
            what = f"{count(len(beyond), 'object')} that the manifest does not name left out, first {shown(beyond[0].name)}"
            self._reporter.emit(Note("info", "beyond_manifest", what))
        if (advice := hugepages.advice(self._options.folder)) is not None:
            self._reporter.emit(
                Note(
                    "info", "huge_pages", f"`{shown(self._options.folder)}` is a tmpfs of 4 KiB pages", advice
                )
            )
        admission = reckoning.admission
        if self._options.cache and admission is not None and not admission.fits:
            message = f"only {format_size(admission.granted)} of {format_size(admission.need)} fit in memory: the rest is dropped as it goes"
            self._reporter.emit(Note("warning", "partial", message, admission.advice or None))

    def _say_unfinished(self, error: StagerError) -> None:
        if self._fetching is not None and self._reckoning is not None:
            self._reporter.emit(self._summary(complete=False, reason="run it again to go on"))
        notify.write_termination_log(f"failed: {error.message}")

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
            reason = "fetched and verified, pages dropped as asked (--no-cache)"
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
    if not options.cache and options.warm.mode.value == "strict":
        raise UsageError("--no-cache and --strict contradict each other", hint="choose one")
    if options.source.scheme is Scheme.FILE:
        source, folder = (os.path.realpath(path) for path in (options.source.prefix, options.folder))
        if source == folder or folder.startswith(f"{source}/") or source.startswith(f"{folder}/"):
            raise UsageError(
                f"`{shown(options.folder)}` and the source lie within each other",
                hint="`stager warm` is for models that are on this node already",
            )
