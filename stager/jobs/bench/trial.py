"""Trials of a benchmark: a cold run and a second load, each proven before and after, thrown away and repeated when disturbed."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core.bench.counting import FETCH
from stager.core.bench.evidence import charges
from stager.core.bench.plan import ENGINES, FETCH_ENGINE, FETCH_MMAP, NAMES, READ, Trial, repeats
from stager.core.bench.reports import COLD, FIRST, WARM, BenchRun
from stager.core.bench.sweep import TOO_SLOW
from stager.core.units import format_size, shown
from stager.engine import runtime
from stager.jobs.bench.children import ChildFailed
from stager.jobs.bench.ground import Ground, StoreGround, look_at, new_folder
from stager.jobs.bench.inventory import Inventory
from stager.jobs.bench.methods import Disturbed, Took, read_by
from stager.jobs.bench.proof import Proof, stored, within
from stager.jobs.bench.proof import counted as _counted
from stager.jobs.bench.proof import lost as _lost
from stager.jobs.bench.pulse import Pulse, held_up
from stager.jobs.bench.quiet import Quiet
from stager.jobs.options import Selection

if TYPE_CHECKING:
    from stager.core.bench.reports import BenchStorage
    from stager.jobs.bench.methods import Methods

_IN_PART = "the engine reads the whole model, and --quick has time for a part"


@dataclass(frozen=True, slots=True)
class _Pages:
    """Bytes resident (None: unknown) at one moment, and why a run beside it proves nothing; empty when it does."""

    resident: int | None
    wrong: str = ""


@dataclass
class Trials:
    """Runs trials on `grounds`. `rounds` bounds how often each cell is repeated; `until` (monotonic) ends everything, `patience` (seconds) a run that is too slow to matter.

    `told` gets every run as soon as it has ended; `runs` has them all. `cut`: time ran out where a run was still to be made, or in one. `refused` says of
    storages (by index) why the engine is started there no more, `too_large` of trials why they are not begun; `inventories` are of the storages that an engine is started on. `tidy` removes what was fetched.
    """

    methods: Methods
    grounds: list[Ground | StoreGround]
    rounds: int
    told: Callable[[BenchRun], None]
    until: float | None = None
    patience: float | None = None
    cut: bool = False
    runs: list[BenchRun] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    too_large: dict[Trial, str] = field(default_factory=dict)
    inventories: dict[int, Inventory] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)
    _again: Counter[tuple[Trial, str]] = field(default_factory=Counter)
    _failures: dict[tuple[Trial, str], str] = field(default_factory=dict)
    _hopeless: set[tuple[Trial, str]] = field(default_factory=set)
    _charging: set[str] = field(default_factory=set)
    _left: Ground | None = None  # whose pages the last run has left behind
    _quiet: Quiet = field(default_factory=Quiet)

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.until is not None and time.monotonic() >= self.until

    async def begin(self, planned: Sequence[Trial]) -> None:
        """Read each mount's files once, uncounted, where any of what is `planned` can be measured: memory that a virtual machine has never touched is slow the first time.

        What that took is told: it is the only read before which nothing of this benchmark has filled the caches behind the mount.
        """
        wanted = {trial.storage for trial in planned if not self.why_not(trial, COLD)}
        for index, ground in enumerate(self.grounds):
            if isinstance(ground, Ground) and self.methods.engine is not None:
                look = partial(Inventory, ground)
                self.inventories[index] = await runtime.in_thread(
                    f"listing {shown(ground.storage.path)}", look
                )
            if isinstance(ground, Ground) and index in wanted and not self.over:
                label = f"reading {shown(ground.storage.path)} once, uncounted"
                await runtime.in_thread(label, partial(self._first, index, ground))

    def _first(self, index: int, ground: Ground) -> None:
        proof = Proof(ground, FIRST, lambda: None, watching=False)
        took = self._fill(ground)
        brought = proof.end()
        self._learn(ground, took)
        self._quiet.ended(ground, took.seconds)
        run = _made(ground.storage, Trial(index, READ, 1), FIRST, 0, took, ground.total)
        by = ground.counter.by if brought is not None else ""
        self._keep(replace(run, device_bytes=brought, device_bytes_by=by))

    def why_not(self, trial: Trial, state: str) -> str:
        """Why there is no such run; empty where there may be."""
        ground = self.grounds[trial.storage]
        why = ""
        if trial.method in ENGINES:
            why = self.refused.get(trial.storage, "") or (_IN_PART if ground.storage.sampled else "")
        if isinstance(ground, StoreGround):
            return ground.why_not or why
        why = (ground.why_not_cold if state == COLD else ground.why_not_warm) or why
        return why or self.too_large.get(trial, "") or self.methods.why_not(trial.method, ground)

    async def run(self, trial: Trial, number: int, states: Sequence[str] = (COLD, WARM)) -> None:
        """`trial` in round `number` (from 1), in each of `states`; from a store in both."""
        ground = self.grounds[trial.storage]
        if isinstance(ground, StoreGround):
            await self.give_back()
            await self._repeat(trial, WARM, partial(self._fetch, ground, trial, number))
            return
        only = read_by(trial.method, ground.only(trial.file) if trial.file else ground)
        if self._left is not None and (self._left.files != only.files or COLD not in states):
            await self.give_back()  # else this run makes them cold itself
        for state in states:
            await self._repeat(trial, state, partial(self._on_mount, only, trial, state, number))
        self._left = None if ground.why_not_cold else ground

    async def give_back(self) -> None:
        """Drop the pages that the last run has left: other files are read next, or none."""
        left, self._left = self._left, None
        if left is not None:
            await runtime.in_thread(f"evicting {shown(left.storage.path)}", partial(_chilled, left))

    async def _repeat(self, trial: Trial, state: str, once: Callable[[], Awaitable[BenchRun]]) -> None:
        """Run `once` until a run counts, at most as often again as there are rounds. What failed is tried in the next round, and when it fails alike in none after that."""
        while not (self.why_not(trial, state) or (trial, state) in self._hopeless):
            if self.over:
                self.cut = True
                return
            made = await once()
            if made.failed:
                self.cut = self.cut or self.over
                if made.failed in (self._failures.get((trial, state)), TOO_SLOW):
                    self._hopeless.add((trial, state))
            self._failures[trial, state] = made.failed
            if not made.disturbed or self._again[trial, state] >= repeats(self.rounds):
                return
            self._again[trial, state] += 1

    def _keep(self, run: BenchRun) -> BenchRun:
        run = replace(run, run=f"r{len(self.runs) + 1:03d}")
        self.runs.append(run)
        self.told(run)
        return run

    # On a mount

    async def _on_mount(self, ground: Ground, trial: Trial, state: str, number: int) -> BenchRun:
        if state == COLD:
            await self._quiet.wait(ground, self.until)
        label = f"measuring {trial.method} of {shown(ground.storage.path)}"
        once = partial(self._measure, ground, trial, state, number)
        made = await runtime.in_thread(label, once)
        if state == COLD:
            self._quiet.ended(ground, made.seconds)
        return self._keep(made)

    def _measure(self, ground: Ground, trial: Trial, state: str, number: int) -> BenchRun:
        inventory = self.inventories.get(trial.storage) if trial.method in ENGINES else None
        if inventory is not None and state == COLD:
            inventory.chill()
        before = _chilled(ground) if state == COLD else self._filled(ground)
        watching = trial.method not in ENGINES and ground.storage.path not in self._charging
        took, proof = Took(), Proof(ground, state, partial(self._fill, ground), watching)
        try:
            if not before.wrong:
                watched = replace(ground, at_start=proof.at_start, between=proof.between)
                took = self._timed(watched, trial)
        finally:
            brought = proof.end()
        after = _counted(ground)
        wrong, caveats = before.wrong or took.disturbed, [took.caveat]
        if inventory is not None:
            took.failed = took.failed or inventory.changed()
            caveats.append(inventory.added())
        if not wrong and not took.failed:
            if trial.method in ENGINES and not proof.dropped:
                caveats.append(_of_engine(ground, after) if _lost(ground, after, dropped=False) else "")
            else:
                wrong = proof.after(after) or self._within(ground, trial, state, took) or proof.meanwhile
        run = _made(ground.storage, trial, state, number, took, ground.total)
        return replace(
            run,
            device_bytes=brought,
            device_bytes_by=ground.counter.by if brought is not None else "",
            resident_before=before.resident if proof.resident is None else proof.resident,
            resident_after=after,
            disturbed=bool(wrong),
            reason=wrong,
            caveat="; ".join(filter(None, caveats)),
            resident_least=proof.least,
        )

    def _within(self, ground: Ground, trial: Trial, state: str, took: Took) -> str:
        if state == COLD:
            self._learn(ground, took)
        return within(ground, trial, state, took, charging=ground.storage.path in self._charging)

    def _learn(self, ground: Ground, took: Took) -> None:
        """Whether storage charges processes for what they read shows in the first cold run that nobody helped."""
        new = ground.storage.path not in self._charging
        if new and took.used is not None and charges(took.used, stored(ground)):
            self._charging.add(ground.storage.path)

    def _timed(self, ground: Ground, trial: Trial) -> Took:
        until = self.until
        if self.patience is not None:
            until = min(time.monotonic() + self.patience, math.inf if until is None else until)
        way = partial(self.methods.on_mount, trial.method, ground, trial.loaders, until)
        took = timed(partial(way, setting=trial.setting))
        if took.failed and until is not None and time.monotonic() >= until and not self.over:
            took.failed = TOO_SLOW
        return took

    def _filled(self, ground: Ground) -> _Pages:
        """Everything resident: so it is after a run that nobody disturbed, else it is read once more before."""
        if not ground.counted:
            return _Pages(0)  # opening the files drops what there may be
        found = _counted(ground)
        if found is not None and found < ground.total:
            filled = self._fill(ground)
            found = _counted(ground)
            if filled.failed:
                return _Pages(found, f"it could not be read in full before: {filled.failed}")
        return _Pages(found, _lost(ground, found, dropped=False))

    def _fill(self, ground: Ground) -> Took:
        return tried(partial(self.methods.load, READ, ground, 1, self.until))

    # From a store

    async def _fetch(self, store: StoreGround, trial: Trial, number: int) -> BenchRun:
        """A fetch into a new folder, and once more into the same; the run that counts least of the two."""
        try:
            folder = await runtime.in_thread(
                f"making a folder in {shown(store.into)}", partial(self._folder, store)
            )
            first = await self._fetch_once(store, trial, COLD, number, folder)
            return first if not first.counts else await self._fetch_once(store, trial, WARM, number, folder)
        finally:
            with runtime.sheltered(10.0):
                await runtime.in_thread("removing what was fetched", self.tidy)

    def _folder(self, store: StoreGround) -> str:
        folder = new_folder(store.into)
        self._folders.add(folder)
        self.methods.children.remove(folder)
        return folder

    def tidy(self) -> None:
        """Remove what was fetched. Blocks."""
        for folder in list(self._folders):
            shutil.rmtree(folder, ignore_errors=True)
            self._folders.discard(folder)

    async def _fetch_once(
        self, store: StoreGround, trial: Trial, state: str, number: int, folder: str
    ) -> BenchRun:
        before = _Pages(0)
        if state == WARM:
            there = await look_at(folder, Selection(paths=(folder,)))
            before = await runtime.in_thread("counting pages", partial(self._filled, there))
        fetch = partial(timed, partial(self.methods.fetch, store, folder, self.until))
        took = await runtime.in_thread(f"fetching {shown(str(store.location))}", fetch)
        if took.failed:
            run = _made(store.storage, trial, state, number, took, store.total)
            return self._keep(replace(run, resident_before=before.resident))
        ground = await look_at(folder, Selection(paths=(folder,)))
        if trial.method == FETCH_MMAP:
            load = partial(timed, partial(self.methods.load, NAMES, ground, trial.loaders, self.until))
            took = (await runtime.in_thread("loading what was fetched", load)).follows(took)
        if trial.method == FETCH_ENGINE:
            start = partial(timed, partial(self.methods.start, folder, ground.total, self.until))
            took = (await runtime.in_thread("starting the engine", start)).follows(took)
        after = await runtime.in_thread("counting pages", partial(_counted, ground))
        lost = "" if took.failed else _lost(ground, after, dropped=False)
        own = trial.method == FETCH_ENGINE
        wrong = before.wrong or took.disturbed or ("" if own else lost)
        caveats = [took.caveat, _of_engine(ground, after) if lost and own else ""]
        run = _made(store.storage, trial, state, number, replace(took, size=ground.total), ground.total)
        return self._keep(
            replace(
                run,
                resident_before=before.resident,
                resident_after=after,
                residency_by=ground.storage.residency_by,
                disturbed=bool(wrong),
                reason=wrong,
                caveat="; ".join(filter(None, caveats)),
            )
        )


def _made(storage: BenchStorage, trial: Trial, state: str, number: int, took: Took, total: int) -> BenchRun:
    return BenchRun(
        storage=storage.path,
        filesystem=storage.filesystem,
        method=trial.method,
        state=state,
        loaders=trial.loaders,
        round=number,
        run="",
        file=trial.file,
        bytes=total if took.size is None else took.size,
        seconds=took.seconds,
        loader_seconds=took.each,
        files=took.files,
        cpu_seconds=took.cpu,
        device_bytes=took.brought,
        device_bytes_by=FETCH if took.brought is not None else "",
        resident_before=None,
        resident_after=None,
        residency_by=storage.residency_by,
        failed=took.failed,
        timeline=took.timeline,
        setting=trial.setting,
        pace=took.pace,
        before_seconds=took.before,
        charged_bytes=took.used.charged if took.used else None,
    )


def timed(call: Callable[[], Took]) -> Took:
    """What `call` gives, as `tried`; disturbed when the clock beside it did not run all the time."""
    pulse = Pulse()
    try:
        took = tried(call)
    finally:
        missed = pulse.end()
    if not took.failed:
        took.disturbed = took.disturbed or held_up(missed, took.seconds)
    return took


def tried(call: Callable[[], Took]) -> Took:
    """What `call` gives; a failure of its process as a run that failed."""
    try:
        return call()
    except ChildFailed as exc:
        return Took(failed=str(exc))
    except Disturbed as exc:
        return Took(disturbed=str(exc))
    except OSError as exc:
        return Took(failed=f"it could not be started: {exc.strerror}")


def _chilled(ground: Ground) -> _Pages:
    try:
        return _Pages(*ground.chill())
    except OSError as exc:
        return _Pages(None, f"it could not be made cold: {exc.strerror}")


def _of_engine(ground: Ground, found: int | None) -> str:
    """The same after a start of an engine, which need not touch every page, and whose own memory may push pages out."""
    if found is None:
        return "its pages could not be counted when the engine was ready"
    return f"when the engine was ready {format_size(ground.total - found)} of {format_size(ground.total)} were not resident"
