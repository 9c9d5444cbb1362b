"""``stager bench``: how fast this storage loads this model, cold and again, by every way there is."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core.bench.counting import CounterFiles
from stager.core.bench.plan import (
    ENGINES,
    Trial,
    in_round,
    methods_for,
    trials_of,
)
from stager.core.bench.quick import QUICK_S, in_turns
from stager.core.budget import Policy, admit, binding_text
from stager.core.errors import (
    AnswerNo,
    DeadlineExceeded,
    NotFound,
    ResourceRefused,
    StagerError,
)
from stager.core.events import Failure, Note
from stager.core.location import Location, is_remote
from stager.core.marker import DEFAULT_PATH
from stager.core.units import count, format_size, shown
from stager.engine import runtime
from stager.jobs.bench.children import Children
from stager.jobs.bench.conclusion import conclusion
from stager.jobs.bench.copies import too_many_copies
from stager.jobs.bench.engine import Engine
from stager.jobs.bench.ground import (
    Ground,
    StoreGround,
    check_counters,
    look_at,
    look_at_store,
    new_folder,
)
from stager.jobs.bench.machine import this_machine
from stager.jobs.bench.methods import Methods
from stager.jobs.bench.paths import each_once, keep_out, look_for, refuse_methods
from stager.jobs.bench.probe import give_back
from stager.jobs.bench.quick import Quick
from stager.jobs.bench.rehearsal import rehearse
from stager.jobs.bench.sweep import Sweep
from stager.jobs.bench.trial import Trials
from stager.jobs.options import Selection
from stager.node.memory import Gauge
from stager.store.opening import StoreOptions

if TYPE_CHECKING:
    from stager.core.bench.reports import BenchResults
    from stager.core.bench.sweep import Grid
    from stager.engine.report import Reporter
    from stager.jobs.bench.engine import EngineOptions

_LOOK_S = 5.0  # beyond the time, for a run to be ended and looked at
_CLOSING_S = 8.0  # for the end of one that is stopped: the process may live for 10 s after a signal


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Everything ``stager bench`` can be told. `methods` empty: all. `to` is ``cpu``, ``cuda`` or empty; `python` the interpreter for it.

    `counters` are files that count bytes from below where the kernel does not. `into` is where models are fetched to, None for /dev/shm. `report` is
    the folder of the report, None for none. `sweep` are the settings of a sweep, None for no sweep. `engine` is the real command to be started,
    None for none. `command` is the command line, for the report.
    """

    selection: Selection
    store: StoreOptions
    methods: tuple[str, ...] = ()
    loaders: tuple[int, ...] = (1, 4, 8, 16)
    rounds: int = 3
    quick: bool = False
    per_file: bool = False
    to: str = ""
    python: str = ""
    counters: CounterFiles = field(default_factory=CounterFiles)
    into: str | None = None
    report: str | None = None
    sweep: Grid | None = None
    timeout: float | None = None
    marker: str = DEFAULT_PATH
    command: str = ""
    engine: EngineOptions | None = None


class Bench:
    """One benchmark. `run` gives the exit code; the storage is read and never written."""

    def __init__(self, options: BenchOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._children = Children()
        self._methods = Methods(self._children, "", options.to, options.python)
        if options.engine is not None:
            self._methods.engine = Engine(self._children, options.engine)
        self._trials = Trials(self._methods, [], options.rounds, reporter.emit)
        self._sweep = (
            Sweep(options.sweep, self._trials, options.rounds, options.quick) if options.sweep else None
        )
        self._planned: list[Trial] = []
        self._paths: tuple[str, ...] = ()
        self._stopped = ""
        self._began = time.monotonic()
        self._date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._machine = this_machine(0.0)

    def withdraw(self, reason: str) -> None:
        """Ends what runs; nothing outlives the benchmark."""
        self._stopped = reason
        self._children.close()

    def stuck(self) -> list[str]:
        """Nothing known beyond `runtime.hanging`."""
        return []

    async def run(self) -> int:
        """Measure; 0, or raises `AnswerNo` when nothing could be measured, `DeadlineExceeded` when --timeout came first.

        Raises `NotFound`, `AccessDenied` for what is not there, `ResourceRefused` for what does not fit into memory.
        Stopped, or with an error, in the middle it still tells and writes what was measured until then.
        """
        try:
            return await self._run()
        finally:
            self._children.close()
            with runtime.sheltered(20.0):
                await runtime.in_thread("removing temporary files", self._tidy)

    def _tidy(self) -> None:
        self._trials.tidy()
        if self._methods.scratch:
            shutil.rmtree(self._methods.scratch, ignore_errors=True)

    async def _run(self) -> int:
        options = self._options
        plain = tuple(f"./{path}" if path.startswith("-") else path for path in options.selection.paths)
        self._paths, again = await each_once(plain)  # what begins with a dash would be an option of its runs
        for path, first in again:
            same = f"{shown(path)} is {shown(first)} again: it is measured once"
            self._reporter.emit(Note("warning", "same_path", same))
        await look_for(self._paths)
        refuse_methods(self._paths, options.methods, options.to, engine=options.engine is not None)
        kept_out = partial(keep_out, self._paths, options.report, options.into)
        await runtime.in_thread("looking where files will be written", kept_out)
        self._methods.scratch = await runtime.in_thread("making a temporary folder", new_folder)
        limits = [options.timeout, QUICK_S if options.quick else None]
        if ends := [self._began + limit for limit in limits if limit is not None]:
            self._trials.until = min(ends)
        with runtime.deadline(self._left()) as expired:
            await self._make_ready()
        if expired():
            raise DeadlineExceeded(
                f"{self._short_of_time()} before anything was measured",
                hint="see above what did not answer, or leave it out",
            )
        try:
            through = await self._measure()
        except BaseException as exc:  # a stop is none of Exception
            await self._rescue(self._stopped or str(exc) or type(exc).__name__)
            raise
        return await self._conclude("" if through else self._short_of_time())

    def _left(self) -> float | None:
        """Seconds until nothing more is to be started; None without such a time."""
        until = self._trials.until
        return None if until is None else max(0.0, until - time.monotonic())

    async def _make_ready(self) -> None:
        """Look at everything, refuse what must be refused, then evict and plan."""
        options = self._options
        self._machine = this_machine(os.getloadavg()[0])
        if options.to:
            await runtime.in_thread("looking for torch", self._methods.check_safetensors)
        await runtime.in_thread("reading --counter", partial(check_counters, options.counters))
        grounds = [await self._ground(path) for path in self._paths]
        used = {ground.counter.what for ground in grounds if isinstance(ground, Ground)}
        for name in options.counters.all:
            if name not in used:
                text = f"--counter {shown(name)} is not read: no mount that is measured needs it"
                self._reporter.emit(Note("warning", "counter", text))
        if options.report:
            await self._prepare(options.report)
        if self._methods.engine is not None:
            check = partial(self._methods.engine.check, self._paths[0])
            await runtime.in_thread("looking for the engine", check)
        await runtime.in_thread("starting a lifeline", partial(self._children.begin, self._methods.env))
        self._children.remove(self._methods.scratch)
        # Nothing is evicted before all that can be refused has been.
        self._trials.grounds = [await self._given_back(ground) for ground in grounds]
        if options.quick:
            until = self._trials.until or self._began + QUICK_S
            quick = Quick(self._methods, options.rounds, self._began, until, self._reporter, self._sweep)
            of = partial(self._trials_of, per_file=options.per_file)
            self._trials.grounds = await quick.sampled(self._trials.grounds, of)
        self._trials.grounds = [self._fitting(ground) for ground in self._trials.grounds]
        self._plan()
        self._trials.too_large = too_many_copies(self._planned, self._trials.grounds, self._methods)

    async def _rescue(self, why: str) -> None:
        """Tell what was measured before `why` ended it. What goes wrong here is told, for the first error is the one to be raised."""
        if not any(run.counts for run in self._trials.runs):
            return  # an earlier report is worth more than an empty one
        self._children.close()
        with runtime.sheltered(_CLOSING_S):
            try:
                await self._tell(why)
            except StagerError as error:
                self._reporter.emit(Failure.of(error))

    # Before

    async def _ground(self, path: str) -> Ground | StoreGround:
        options = self._options
        selection = replace(options.selection, paths=(path,))
        if not is_remote(path):
            return await look_at(path, selection, options.counters)
        into = options.into or _shm()
        if not os.path.isdir(into):
            raise NotFound(f"`{shown(into)}`: no such folder", hint="name a folder to fetch into with --into")
        found = await look_at_store(Location.parse(path), options.store, selection, into, self._reporter)
        if not found.sizes:
            raise NotFound(f"nothing in `{shown(path)}` matches", hint="check --include and --exclude")
        return found

    async def _given_back(self, ground: Ground | StoreGround) -> Ground | StoreGround:
        if isinstance(ground, StoreGround) or ground.why_not_cold:
            return ground
        return await give_back(ground, self._options.marker)

    def _fitting(self, ground: Ground | StoreGround) -> Ground | StoreGround:
        """`ground`, or the same with the reason why its model does not fit into memory. Raises `ResourceRefused` for the only one."""
        if isinstance(ground, StoreGround) or ground.why_not_cold:
            return ground  # a fetch looks for itself
        admission = admit(Gauge().read(), Policy(reserve=0), ground.total, 0)
        if admission.fits:
            return ground
        bound = f": {binding_text(admission.binding)}" if admission.binding else ""
        why = (
            f"{format_size(admission.shortfall)} of {format_size(ground.total)} do not fit into memory{bound}"
        )
        if len(self._trials.grounds) == 1:
            raise ResourceRefused(
                f"`{shown(ground.storage.path)}`: {why}",
                hint="choose some of its files with --include, or use --quick",
            )
        return replace(ground, why_not_cold=why, why_not_warm=why)

    def _trials_of(self, index: int, ground: Ground | StoreGround, *, per_file: bool) -> list[Trial]:
        options = self._options
        methods = methods_for(
            options.methods, store=ground.store, to=options.to, engine=options.engine is not None
        )
        files = (
            [file.entry.path for file in ground.files if file.size]
            if isinstance(ground, Ground) and per_file
            else []
        )
        return trials_of(index, methods, options.loaders, files, named=bool(options.methods))

    def _plan(self) -> None:
        options = self._options
        if self._sweep is not None:
            self._planned = self._sweep.plan()
        else:
            for index, ground in enumerate(self._trials.grounds):
                self._planned += self._trials_of(index, ground, per_file=options.per_file)
        if self._machine.load > self._machine.cores / 2:
            busy = f"load average {self._machine.load:.1f} on {count(self._machine.cores, 'core')}: others use this machine"
            self._reporter.emit(Note("warning", "busy", busy))
        if self._machine.pages_out:
            pages = f"this node pages out memory by itself ({self._machine.pages_out}): more runs than elsewhere will be thrown away"
            self._reporter.emit(Note("info", "proactive_reclaim", pages))
        runs = 2 * options.rounds * len(self._planned)
        rounds = count(options.rounds, "round")
        plan = f"at most {count(runs, 'run')} in {rounds}, each cold and again"
        if self._sweep is not None:
            plan = f"{count(len(self._planned), 'setting')}, about {count(self._sweep.at_most(), 'cold run')}"
        self._reporter.emit(Note("info", "plan", plan))

    # Measuring

    async def _measure(self) -> bool:
        """Whether all rounds were gone through before the time was up. A look at pages that hangs is left behind."""
        left = self._left()
        with runtime.deadline(None if left is None else left + _LOOK_S) as expired:
            through = await self._rounds()
            await self._trials.give_back()
        return not expired() and through

    async def _rounds(self) -> bool:
        await self._trials.begin(self._planned)
        if self._sweep is not None:
            return await self._sweep.measure()
        if self._methods.engine is not None:
            await rehearse(self._trials, self._planned, self._reporter)
        for number in range(self._options.rounds):
            trials = in_turns(self._planned) if self._options.quick else self._planned
            for trial in in_round(trials, number):
                if self._trials.over:
                    return False
                await self._trials.run(trial, number + 1)
        return not self._trials.cut

    # After

    def _short_of_time(self) -> str:
        timeout = self._options.timeout
        quick = self._options.quick and (timeout is None or timeout > QUICK_S)
        return "--quick had no time left" if quick else "--timeout ran out"

    async def _tell(self, ended: str) -> BenchResults:
        """Tell the cells and the whole, and write the report. `ended` is why it ended early."""
        options = self._options
        results = conclusion(
            options,
            self._trials,
            self._planned,
            self._machine,
            began=self._date,
            seconds=time.monotonic() - self._began,
            ended=ended,
        )
        for event in (*results.cells, *results.sweeps):
            self._reporter.emit(event)
        summary = results.summary
        try:
            if options.report:
                await self._report(results, options.report)
        except StagerError:  # a disk that is full takes the page, not the table
            summary = replace(summary, report="")
            raise
        finally:
            self._reporter.emit(summary)
        return results

    async def _conclude(self, ended: str) -> int:
        results = await self._tell(ended)
        options, timeout = self._options, self._options.timeout
        if ended and timeout is not None and time.monotonic() - self._began >= timeout:
            short = options.quick or options.engine is not None
            shorter = "give it longer" if short else "give it longer, or use --quick"
            hint = "what was measured until then is above" if results.summary.runs else shorter
            raise DeadlineExceeded("--timeout ran out", hint=hint)
        if not results.summary.runs:
            why = next((cell.unmeasured for cell in results.cells if cell.unmeasured), "")
            raise AnswerNo("nothing could be measured", hint=why or None)
        if options.engine is not None and not any(run.method in ENGINES for run in results.runs):
            why = next(cell.unmeasured for cell in results.cells if cell.method in ENGINES)
            raise AnswerNo("the engine was not started", hint=why)
        return 0

    async def _prepare(self, folder: str) -> None:
        from stager.jobs.bench.report import prepare_folder

        await runtime.in_thread(f"writing {shown(folder)}", partial(prepare_folder, folder))

    async def _report(self, results: BenchResults, folder: str) -> None:
        from stager.jobs.bench.report import write_report

        await runtime.in_thread(f"writing {shown(folder)}", partial(write_report, results, folder))


def _shm() -> str:
    return "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()  # noqa: S108 - memory, and new folders in it
