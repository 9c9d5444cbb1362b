"""What a benchmark says: each run, each cell of its table, and the whole with the machine; each with a text and a JSON face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from stager.core.bench.wording import LOADS, seconds_text
from stager.core.events import Event
from stager.core.units import count, format_duration, format_size, shown

if TYPE_CHECKING:
    from stager.core.bench.setting import Setting
    from stager.core.bench.verdict import BenchSweep

COLD, WARM, FIRST = "cold", "warm", "first"
"""States of a run. The first read of a storage, before everything else, is in no cell."""
Key: TypeAlias = "tuple[str, str, str, str, int, Setting | None]"
"""Storage, file, method, state, loaders, setting: what tells one cell from another."""


def step_before(method: str) -> str:
    """What `before_seconds` of a run by `method` went by with."""
    return "fetching" if method.startswith("fetch") else "warming"


@dataclass(frozen=True, slots=True)
class Spread:
    """How some numbers lie. `stdev` is that of a sample (n - 1); None of a single number."""

    mean: float
    median: float
    min: float
    max: float
    stdev: float | None


@dataclass(frozen=True, slots=True)
class BenchFile:
    """One file in one run: its path below the storage, the bytes read of it, and the seconds that took, the median over the loaders."""

    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BenchPace:
    """How a run of ``stager warm`` was paced: the lanes in force at its end, the most it allowed, whether it split files of itself."""

    lanes: int
    peak: int
    split: bool


@dataclass(frozen=True)
class BenchRun(Event):
    """One timed run. Sizes in bytes, times in seconds.

    `run` is its id, `round` counts from 1. `file` is empty for the whole model, else the only file that was read. `bytes` is what one loader
    reads. `seconds` is the wall time from the start to the end of the last loader, `loader_seconds` each loader's own (the steps
    before the loaders, like warming, count in both). `files` is known for the methods that read with loaders of stager's
    own. `cpu_seconds` is that of all processes the run started. `device_bytes` are those that came from below meanwhile, and
    `device_bytes_by` says who counted them: ``diskstats`` (the block device), ``nfs`` (what READ calls on that mount brought), ``counter`` (a file that the user
    named), all for anybody; or ``fetch`` (what its summary says came from the store). None and empty where nobody did. `resident_before` and `resident_after` are bytes in the page cache,
    None where that cannot be known; `residency_by` says how they were counted: ``cachestat``, ``mincore``, ``memory-fs``, or ``canary`` on a mount that
    drops pages when a file is opened (there, nothing is ever resident at the start of a run, and nobody can look afterwards).
    A `disturbed` run counts nowhere; `reason` says what disturbed it. So it is with the run in state ``first``, of round 0, that reads everything once before all others. `failed` says why it did not end well; it counts nowhere either.
    `before_seconds` is the part of `seconds` that went by before the loaders or the engine were started: the warming of ``warm+mmap`` and ``warm+engine``, the fetch of
    ``fetch+mmap`` and ``fetch+engine``; 0 without such a step. A start of an engine ends when it is ready: its seconds and CPU seconds count until then. `caveat` says what a reader must know of a run that
    counts: that pages were gone when an engine was ready, which may be its own doing.
    `timeline` has (seconds since the run began, bytes so far, lanes) of a run of ``stager warm`` or ``stager fetch``: first where it began to read, last
    where it had read all; what is before is its start, what comes after until `seconds` its proof and its end. `setting` is what ``stager warm`` was told in a
    sweep (a span of 0 is a whole file), None for what it does by itself; `pace` what came of it. `charged_bytes` are those that the run's own processes had
    a block device read (``ru_inblock``), None for a run that was not begun. `resident_least` are the least bytes that were resident at any
    look while loaders or commands ran that were to find all of them; None where nobody looked, because the storage charges processes for what they read.
    """

    type: ClassVar[str] = "bench_run"
    result: ClassVar[bool] = False
    step: ClassVar[bool] = True
    storage: str
    filesystem: str
    method: str
    state: str
    loaders: int
    round: int
    run: str
    file: str
    bytes: int
    seconds: float
    loader_seconds: tuple[float, ...]
    files: tuple[BenchFile, ...]
    cpu_seconds: float
    device_bytes: int | None
    resident_before: int | None
    resident_after: int | None
    residency_by: str
    disturbed: bool = False
    reason: str = ""
    failed: str = ""
    timeline: tuple[tuple[float, int, int], ...] = ()
    device_bytes_by: str = ""
    setting: Setting | None = None
    pace: BenchPace | None = None
    before_seconds: float = 0.0
    caveat: str = ""
    charged_bytes: int | None = None
    resident_least: int | None = None

    @property
    def key(self) -> Key:
        """The key of the cell that the run belongs to."""
        return (self.storage, self.file, self.method, self.state, self.loaders, self.setting)

    @property
    def counts(self) -> bool:
        """Whether the run belongs to its cell's numbers."""
        return not self.disturbed and not self.failed and self.state != FIRST

    def text(self) -> str:
        """One line."""
        method = f"{self.method} {self.setting}" if self.setting else self.method
        what = f"{shown(self.storage)}: {method}, {FIRST if self.state == FIRST else LOADS[self.state == COLD]}, {count(self.loaders, 'loader')}"
        if self.file:
            what += f", {shown(self.file)}"
        if self.failed:
            return f"{self.run}  {what}: failed: {self.failed}"
        rate = f" ({format_size(self.bytes / self.seconds)}/s)" if self.seconds > 0 else ""
        took = f"{seconds_text(self.seconds)}{rate}"
        if self.before_seconds:
            took += f", {seconds_text(self.before_seconds)} of it {step_before(self.method)}"
        if self.caveat:
            took += f", {self.caveat}"
        if self.state == FIRST:
            took += ", not counted"
        return f"{self.run}  {what}: {took}" + (f", thrown away: {self.reason}" if self.disturbed else "")


@dataclass(frozen=True)
class BenchCell(Event):
    """The runs of one method in one state with so many loaders, together.

    `rounds` counts the runs in the numbers, `disturbed` and `failed` those left out; `runs` has the ids of those in the numbers.
    `seconds` is over the runs' wall times, `loader_seconds` over every loader of every run. `throughput` is bytes/s that
    one loader sees: `bytes` by the median of `seconds`. All are None in a cell without a run: `unmeasured` says why. `setting` is that of the runs. `before_seconds` is the median of the
    runs', None where no run has such a step. `caveat` is that of the first run that has one.
    """

    type: ClassVar[str] = "bench_cell"
    result: ClassVar[bool] = False
    storage: str
    filesystem: str
    method: str
    state: str
    loaders: int
    file: str
    bytes: int
    rounds: int
    disturbed: int
    failed: int
    seconds: Spread | None
    loader_seconds: Spread | None
    throughput: float | None
    cpu_seconds: float | None
    device_bytes: int | None
    runs: tuple[str, ...]
    unmeasured: str = ""
    device_bytes_by: str = ""
    setting: Setting | None = None
    before_seconds: float | None = None
    caveat: str = ""

    @property
    def key(self) -> Key:
        """What tells one cell from another."""
        return (self.storage, self.file, self.method, self.state, self.loaders, self.setting)

    def text(self) -> str:
        """Nothing: the table says it."""
        return ""


@dataclass(frozen=True, slots=True)
class BenchStorage:
    """One PATH that was measured. Sizes in bytes.

    `files` and `bytes` are what the runs read, `of_files` and `of_bytes` what there is: with --quick they may differ. `part` is how much of
    each file is read at most, from its beginning, where that is not all, else None. `mount_options` are without secrets. `keeps` says whether
    pages outlive an open (``keeps``, ``drops``, ``direct-io``, ``unknown``); it and `residency_by` are empty for a store.
    `target` is the folder that a store's files are fetched into, with its filesystem, else empty.
    `limits` are the lines that say what cannot be measured there. `counter` is where bytes from below are counted, empty where nowhere.
    `root` is the folder that the names of files in the runs lie in, empty for a store; `words` are what ``stager fetch`` is told beside the store's path and the folder.
    """

    path: str
    kind: str  # "mount" or "store"
    filesystem: str
    mount_source: str
    mount_options: str
    read_ahead_kb: int | None
    files: int
    bytes: int
    of_files: int
    of_bytes: int
    part: int | None
    keeps: str
    residency_by: str
    device: str
    target: str
    limits: tuple[str, ...] = ()
    counter: str = ""
    root: str = ""
    words: tuple[str, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether less than the whole is read."""
        return self.part is not None or self.files < self.of_files


@dataclass(frozen=True, slots=True)
class BenchMachine:
    """The node, as far as a reader of the numbers needs it. `memory` and `available` in bytes; `load` the one-minute average at the start.

    `pages_out` is the file that shows that the node pages out idle memory by itself; empty where nothing does, or nobody may look.
    """

    kernel: str
    cores: int
    memory: int
    available: int
    page_reclaim: str  # "classic" or "MGLRU"
    load: float
    python: str
    stager: str
    pages_out: str = ""


@dataclass(frozen=True, slots=True)
class BenchEngine:
    """The command whose starts were timed. `ready` says in words when it is; each start had `patience` seconds. Secrets among its words are hidden."""

    command: tuple[str, ...]
    ready: str
    url: str
    log: str
    patience: float


@dataclass(frozen=True)
class BenchSummary(Event):
    """The whole benchmark, without its runs and cells. `rounds` is what was asked for, `quick` whether it was to be short.

    `began` is a UTC time like ``2026-01-31T12:00:00Z``. `methods` and `loaders` are in the order asked for. `runs` counts the runs in the
    numbers, `disturbed` and `failed` those left out, `unmeasured` the cells without a number. `limits` are the lines that say what no cell of this
    benchmark can say. `command` is the command line, `folder` where it was run (empty: it is gone). `report` is the folder of the report, empty without one. `ended` says why it ended
    before every round was gone through, empty when none is missing. `engine` is the command whose starts were timed, None without.
    `table` is for people: programs have the cells.
    """

    type: ClassVar[str] = "bench"
    result: ClassVar[bool] = True
    machine: BenchMachine
    storages: tuple[BenchStorage, ...]
    methods: tuple[str, ...]
    loaders: tuple[int, ...]
    rounds: int
    quick: bool
    to: str
    began: str
    seconds: float
    runs: int
    disturbed: int
    failed: int
    unmeasured: int
    limits: tuple[str, ...]
    command: str
    folder: str = ""
    report: str = ""
    ended: str = ""
    engine: BenchEngine | None = None
    table: str = ""

    def as_json(self) -> dict[str, Any]:
        """One JSON object, without the table."""
        body = super().as_json()
        del body["table"]
        return body

    def text(self) -> str:
        """The table, what cannot be said, then one line."""
        left = [f"{count(self.disturbed, 'run')} thrown away as disturbed"] if self.disturbed else []
        left += [f"{count(self.failed, 'run')} failed"] if self.failed else []
        left += [f"{count(self.unmeasured, 'cell')} not measured"] if self.unmeasured else []
        last = ", ".join([f"{count(self.runs, 'run')} in {format_duration(self.seconds)}", *left])
        report = [f"report in {shown(self.report)}"] if self.report else []
        if self.ended:
            last += f"; ended early: {self.ended}"
        table = [self.table, ""] if self.table else []
        return "\n".join([*table, *(f"not measured: {line}" for line in self.limits), *report, last])


@dataclass(frozen=True, slots=True)
class BenchResults:
    """Everything of one benchmark, for a report: every number of `cells` follows from `runs`, and `sweeps` from both."""

    summary: BenchSummary
    runs: tuple[BenchRun, ...]
    cells: tuple[BenchCell, ...]
    sweeps: tuple[BenchSweep, ...] = ()

    def run(self, run: str) -> BenchRun:
        """The run with this id. Raises ``KeyError``."""
        for one in self.runs:
            if one.run == run:
                return one
        raise KeyError(run)
