"""``stager pull``: from a hub into a store, streaming, proven, and marked complete last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import DeadlineExceeded, StagerError
from stager.core.location import Scheme
from stager.core.placement import place
from stager.core.pull_reports import PullForecast, PullSummary
from stager.core.source import Hub as HubKind
from stager.core.units import count, shown
from stager.engine import runtime
from stager.hub.opening import HubOptions, open_hub
from stager.jobs import lease, remains, uploads
from stager.jobs.beforehand import Sample, explained, into, refuse_dest, refuse_parts
from stager.jobs.choosing import chosen
from stager.jobs.evidence import Evidence
from stager.jobs.judging import Judgement
from stager.jobs.landing import Landing
from stager.jobs.ledger import Ledger
from stager.jobs.lines import Pauses
from stager.jobs.noting import noted
from stager.jobs.options import Proof
from stager.jobs.retrying import Troubles
from stager.jobs.room import refuse_pull
from stager.jobs.stall import watched
from stager.jobs.stock import Standing, take_stock
from stager.jobs.transfer import Transfer
from stager.jobs.transit import Transit, stated
from stager.node.processes import more_descriptors
from stager.store.opening import credentials_of, open_store

if TYPE_CHECKING:
    from stager.core.manifest import Begun
    from stager.core.model import FileEntry
    from stager.engine.report import Reporter
    from stager.hub.base import Hub, HubFile, Snapshot
    from stager.jobs.options import PullOptions
    from stager.jobs.uploads import Uploads


class Pull:
    """One pull. `run` gives 0 once the destination has all files, proven, and a manifest that says so."""

    def __init__(self, options: PullOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._pauses = Pauses()
        self._troubles = Troubles(reporter)
        self._snapshot: Snapshot | None = None
        self._files: list[HubFile] = []
        self._left_out: list[tuple[str, str]] = []
        self._transfer: Transfer | None = None
        self._evidence: Evidence | None = None
        self._rows: dict[str, FileEntry] = {}  # of files that the destination has, proven as far as was asked
        self._confirmed: dict[str, FileEntry] = {}  # of files that went on with parts, and were read back
        self._already = 0  # bytes of those that were there before
        self._removed = 0
        self._sample = Sample()
        self._judgement = Judgement(options, reporter)

    def withdraw(self, reason: str) -> None:
        """Say how far it came. What was sent stays for the next run."""
        if self._transfer is not None:
            self._reporter.emit(self._summary(complete=False, reason=f"{reason}; run it again to go on"))

    def stuck(self) -> list[str]:
        """Names of files in which a read or an upload hangs."""
        return [name for one in (self._transfer, self._evidence) if one is not None for name in one.stuck()]

    async def run(self) -> int:
        """Pull; 0. Raises `StagerError` when the destination does not have it all in the end."""
        try:
            await self._in_time(self._pull, "run it again: it goes on where it was")
        except StagerError:
            if self._transfer is not None:
                self._reporter.emit(self._summary(complete=False, reason="run it again to go on"))
            raise
        summary = self._summary(complete=True, reason="")
        self._reporter.emit(summary)
        return 0

    async def forecast(self) -> int:
        """Say what `run` would do; 0. Writes nothing. Raises `StagerError` when that cannot be said."""
        await self._in_time(self._foresee, "give it more time")
        return 0

    async def _in_time(self, step: Callable[[], Awaitable[None]], hint: str) -> None:
        """Do `step` within the limits of time; what to do when they do not suffice is in `hint`."""
        with self._troubles.named(), explained(lambda: credentials_of(self._store)):
            with runtime.deadline(self._options.timeout) as expired:
                async with watched(self._options.stall_timeout, self._reporter):
                    await step()
            if expired():
                raise DeadlineExceeded("--timeout ran out", hint=hint)

    async def _foresee(self) -> None:
        standing = await self._survey()
        files, options = self._files, self._options
        missing = [*standing.wanted, *standing.doubtful, *standing.compare]
        refuse_parts((files[index] for index in missing), options.buffer)
        if missing:
            await self._judge()
            await self._look_at_dest(standing)
        found = (await self._uploads(standing)).going_on(files[at] for at in missing)
        leftovers = await self._leftovers(standing)
        self._tell_surplus(standing)
        assert self._snapshot is not None
        self._reporter.emit(
            PullForecast(
                source=self._snapshot.source,
                revision=self._snapshot.revision,
                dest=str(options.dest),
                files=len(files),
                total=sum(one.entry.size for one in files),
                present=sum(files[index].entry.size for index in standing.proven),
                to_pull=sum(files[index].entry.size for index in missing),
                resumable=0 if options.restart else len(found.ours),
                left_out=tuple(self._left_out),
                removes=(*standing.obsolete, *leftovers) if options.mirror else (),
                verdict="a run would begin" if missing else "all is there",
                defects=self._judgement.defects,
            )
        )

    # The steps

    async def _survey(self) -> Standing:
        """What the hub has, what of that is wanted, and what the destination has of it. Nothing is touched."""
        options = self._options
        more_descriptors()
        self._hub = await runtime.in_thread(f"opening {shown(str(options.source))}", self._open_hub)
        self._store = open_store(
            options.dest, options.store, pause=self._pauses, on_retry=self._troubles.tell
        )
        label = f"listing {shown(self._hub.source)}"
        self._snapshot = await runtime.in_thread(
            label, self._hub.snapshot, by_word=options.source.kind is not HubKind.DIRECTORY
        )
        self._files, self._left_out = chosen(self._snapshot, options)
        if options.dest.scheme is Scheme.FILE:  # where names must fit beside each other
            place([(one.entry.path, one.entry.size) for one in self._files])
        standing = await self._take_stock()
        await self._sample.take(self._hub, [self._files[index] for index in standing.wanted])
        return standing

    def _open_hub(self) -> Hub:
        options = self._options
        return open_hub(
            options.source,
            HubOptions.of(options.store, on_answer=runtime.moved),
            pause=self._pauses,
            on_retry=self._troubles.tell,
        )

    async def _take_stock(self) -> Standing:
        assert self._snapshot is not None
        standing = await take_stock(self._store, self._snapshot, self._files, self._options.verify)
        if self._options.restart:
            standing.start_over(len(self._files))
        mirror = self._options.mirror
        remains.refuse_other(self._store, standing, self._snapshot, mirror=mirror)
        await self._in_the_way(standing)
        return standing

    async def _pull(self) -> None:
        standing = await self._survey()
        if self._is_done(standing) and not await self._leftovers(standing):
            stale = await self._stale(standing)
            if not stale or not self._options.mirror:
                await uploads.end(self._store, stale, self._reporter, mirror=False)
                return
        await self._judge()
        await self._look_at_dest(standing)
        with into(self._options.dest):
            tenure = await lease.acquire(self._store, wait=self._options.wait, reporter=self._reporter)
        try:
            async with tenure.kept():
                await self._fill(await self._take_stock(), lambda: tenure.held)
        finally:
            await tenure.release()

    async def _judge(self) -> None:
        assert self._snapshot is not None
        await self._judgement.take(self._hub, self._snapshot, self._files, self._left_out)

    async def _look_at_dest(self, standing: Standing) -> None:
        options = self._options
        entries = [self._files[index].entry for index in standing.wanted]
        label = f"looking at {shown(str(options.dest))}"
        await runtime.in_thread(label, partial(refuse_dest, options.dest))
        await runtime.in_thread(label, partial(refuse_pull, options, entries, standing.objects))

    def _is_done(self, standing: Standing) -> bool:
        """Whether a run would change nothing: all proven, and the manifest says so."""
        if len(standing.proven) < len(self._files) or (self._options.mirror and standing.obsolete):
            return False
        ledger = self._ledger(standing)
        self._remember(standing, ledger)
        return ledger.is_current(self._rows, self._unproven(ledger))

    def _ledger(self, standing: Standing) -> Ledger:
        assert self._snapshot is not None
        return Ledger(self._store, self._snapshot, self._files, standing)

    def _remember(self, standing: Standing, ledger: Ledger) -> None:
        """The rows of what is there and proven."""
        proven = [(self._files[index], crc) for index, crc in standing.proven.items()]
        self._rows = {one.entry.path: ledger.entry(one, crc) for one, crc in proven}
        self._already = sum(row.size for row in self._rows.values())

    def _unproven(self, ledger: Ledger) -> list[str]:
        """Of the files that are there, those whose content was never held against what the hub states."""
        return [] if self._options.verify is Proof.SHA256 else ledger.unproven(self._rows)

    async def _fill(self, standing: Standing, held: Callable[[], bool]) -> None:
        """Bring what is missing, and the manifest up to date; `held` says whether nobody has taken the destination over."""
        options, files = self._options, self._files
        ledger = self._ledger(standing)
        self._evidence = Evidence(self._hub, self._store, options, self._reporter, pauses=self._pauses)
        self._remember(standing, ledger)
        wanted = await self._doubts(standing)
        obsolete = standing.obsolete if options.mirror else ()
        # What was read and is wrong cannot be gone on with.
        read = {files[index].entry.path for index in (*standing.doubtful, *standing.compare)}
        new = [one for one in wanted if not options.restart and one.entry.path not in read]
        found = (await self._uploads(standing)).going_on(new)
        begun = {one.path: one.upload_id for one in found.ours}
        ledger.remember((*found.kept, *found.stale))
        if wanted or obsolete:
            refuse_parts(wanted, options.buffer)
            await self._sample.take(self._hub, wanted)
            unhashed = options.verify is not Proof.SHA256
            doubts = [one.entry.path for one in wanted if unhashed or one.entry.path in begun]
            begin = partial(ledger.begin, self._rows, [*self._unproven(ledger), *doubts], found.strangers)
            await runtime.in_thread("writing the manifest", begin)
        if blocking := await self._in_the_way(standing):
            await runtime.in_thread("making room", partial(self._store.delete, blocking))
        if wanted:
            async with noted(ledger, self._finished, held):
                await self._move(wanted, begun)
        await self._clear(standing, obsolete)
        aborted = {one.entry.path for one in files} if options.restart else set()
        stale = [one for one in found.stale if one.path not in aborted]
        left = await uploads.end(self._store, stale, self._reporter, mirror=options.mirror)
        ledger.remember((*found.kept, *left))
        conclude = partial(ledger.conclude, self._rows, self._unproven(ledger), obsolete)
        await runtime.in_thread("writing the manifest", conclude)

    async def _clear(self, standing: Standing, obsolete: Sequence[str]) -> None:
        """Remove what is `obsolete`, and what earlier pulls left of that; tell what stays."""
        if obsolete:
            label = f"removing {count(len(obsolete), 'file')}"
            await runtime.in_thread(label, partial(self._store.delete, obsolete))
            self._removed = len(obsolete)
        self._tell_surplus(standing)
        if leftovers := await self._leftovers(standing):
            label = f"removing {count(len(leftovers), 'unfinished file')}"
            await runtime.in_thread(label, partial(remains.discard, self._store, leftovers))
            self._removed += len(leftovers)

    async def _doubts(self, standing: Standing) -> list[HubFile]:
        """Read what only reading can prove; what must be pulled is what is left, in the order of the files."""
        assert self._evidence is not None
        files = self._files
        if not self._options.restart:
            doubtful = [files[index] for index in sorted(standing.doubtful)]
            compare = {files[index].entry.path: crc for index, crc in standing.compare.items()}
            rows = await self._evidence.of_objects(doubtful)
            sources = [one for one in files if one.entry.path in compare]
            rows |= await self._evidence.of_sources(sources, compare)
            self._already += sum(row.size for row in rows.values())
            self._rows |= rows
        return [one for one in files if one.entry.path not in self._rows]

    async def _move(self, wanted: Sequence[HubFile], begun: Mapping[str, str]) -> None:
        """Pull what is wanted. Files that went on with an earlier run's parts (`begun`) are read back; those that are wrong then are pulled anew."""
        assert self._evidence is not None
        self._landing = Landing(self._store, begun, self._reporter, self._pauses)
        transfer = self._transfer = Transfer(
            self._hub,
            self._store,
            self._options,
            self._reporter,
            pauses=self._pauses,
            side_by_side=self._options.dest.scheme is Scheme.OSS,
        )
        transits = [self._transit(one, resume=one.entry.path in begun) for one in wanted]
        moved = await transfer.run(transits, lambda one: self._transit(one.file))
        doubted = [one for one in moved if one.unproven and self._options.verify is Proof.SHA256]
        proven = self._confirmed = await self._evidence.of_objects([one.file for one in doubted])
        wrong = [one for one in doubted if one.file.entry.path not in proven]
        if wrong:
            paths = [one.file.entry.path for one in wrong]
            await runtime.in_thread("removing what is wrong", partial(self._store.delete, paths))
            for one in wrong:
                one.retract()
            transfer.mended += len(wrong)
            moved += await transfer.run([self._transit(one.file) for one in wrong], None)
        for one in moved:
            if one.done is not None:
                self._rows[one.file.entry.path] = one.done

    def _finished(self) -> tuple[dict[str, FileEntry], set[str]]:
        """The rows of what this run has brought so far, and the paths of those among them whose content is proven. From any thread."""
        moved = self._transfer.finished() if self._transfer is not None else []
        rows = {one.file.entry.path: one.done for one in moved if one.done is not None}
        hashed = self._options.verify is Proof.SHA256
        proven = {one.file.entry.path for one in moved if hashed and not one.unproven}
        return rows, proven | self._confirmed.keys()

    def _transit(self, file: HubFile, *, resume: bool = False) -> Transit:
        return Transit(
            self._landing,
            file,
            hashed=self._options.verify is Proof.SHA256,
            resume=resume,
            again_readable=self._options.source.kind is HubKind.DIRECTORY,
            discard=self._options.restart,
        )

    async def _uploads(self, standing: Standing) -> Uploads:
        """As `uploads.look`."""
        assert self._snapshot is not None
        return await uploads.look(self._store, standing, self._snapshot, self._files)

    async def _stale(self, standing: Standing) -> tuple[Begun, ...]:
        """Where all files are there: the uploads that earlier pulls have left. Nothing is asked where none is known of."""
        known = standing.manifest is not None and standing.manifest.begun
        return (await self._uploads(standing)).going_on(()).stale if known else ()

    async def _in_the_way(self, standing: Standing) -> tuple[str, ...]:
        """As `remains.in_the_way`."""
        paths = [one.entry.path for one in self._files]
        look = partial(remains.in_the_way, self._store, standing, paths, mirror=self._options.mirror)
        return await runtime.in_thread("looking for what is in the way", look)

    async def _leftovers(self, standing: Standing) -> tuple[str, ...]:
        """As `remains.leftovers`; none that may be removed without --mirror."""
        if not self._options.mirror:
            return ()
        assert self._snapshot is not None
        look = partial(remains.leftovers, self._store, standing, self._snapshot)
        return await runtime.in_thread("looking for what earlier pulls left", look)

    # What is said

    def _tell_surplus(self, standing: Standing) -> None:
        dest, mirror = str(self._options.dest), self._options.mirror
        for note in remains.surplus(standing, dest, mirror=mirror):
            self._reporter.emit(note)

    def _summary(self, *, complete: bool, reason: str) -> PullSummary:
        snapshot, transfer, options = self._snapshot, self._transfer, self._options
        assert snapshot is not None
        seconds = transfer.seconds if transfer else 0.0
        # A folder states no checksums: its bytes are compared with what has arrived.
        near = options.source.kind is HubKind.DIRECTORY
        proof = Proof.CRC if near and options.verify is Proof.SHA256 else options.verify
        pulled = transfer.pulled if transfer else 0
        return PullSummary(
            source=snapshot.source,
            revision=snapshot.revision,
            dest=str(options.dest),
            complete=complete,
            reason=reason,
            files=len(self._files),
            total=sum(one.entry.size for one in self._files),
            pulled=pulled,
            landed=transfer.landed if transfer else 0,
            resumed=transfer.resumed if transfer else 0,
            already=self._already,
            read_back=self._evidence.read_back if self._evidence else 0,
            seconds=seconds,
            rate=pulled / seconds if seconds > 0 else 0.0,
            lanes=transfer.lanes if transfer else 0,
            peak=transfer.peak if transfer else 0,
            verified={Proof.SHA256: "sha256", Proof.CRC: "crc64", Proof.NONE: ""}[proof],
            unproven=0 if near else sum(stated(one) is None for one in self._files),
            retried=self._troubles.count,
            replaced=transfer.replaced if transfer else 0,
            mended=transfer.mended if transfer else 0,
            removed=self._removed,
            left_out=len(self._left_out),
            credentials=credentials_of(self._store),
            defects=self._judgement.defects,
        )
