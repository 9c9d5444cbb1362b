"""The section of a benchmark's report on starts of an engine: what was started, and what of each start was the engine's own."""

from __future__ import annotations

import shlex
from statistics import median

from stager.core.bench.page_parts import Block, Code, Entry, Heading, Mono, Prose, Runs, Table
from stager.core.bench.page_tables import Results, seconds, size
from stager.core.bench.plan import ENGINE, ENGINES, FETCH_ENGINE, WARM_ENGINE
from stager.core.bench.reports import COLD, BenchCell
from stager.core.bench.stats import times_as_fast
from stager.core.bench.wording import LOADS
from stager.core.units import format_duration, shown

WHAT: dict[str, Prose] = {
    ENGINE: "the command is started and timed until it is ready. Cold, it finds nothing of the files in the page cache; the second start finds all of them there.",
    WARM_ENGINE: (Mono("stager warm"), ", then the same start; the time is that of both."),
    FETCH_ENGINE: (
        Mono("stager fetch"),
        " into an empty folder, then a start on what came; the time is that of both.",
    ),
}
RULE = (
    "A start of the engine begins with its process and ends when it is ready; CPU is what its process group had used by then. It is ended before the next run begins, and so "
    "are its children. One start that is not counted comes first, for the engine's own program, its libraries and what it compiles and keeps. "
    "Pages that are gone when an engine is ready do not make a run a disturbed one, for its own memory may have pushed them out: that is said instead. "
    "Starts are held against a cold start, also where that column is named after read."
)


def starts(results: Results) -> list[Block]:
    """The section; nothing where no engine was started."""
    engine = results.summary.engine
    if engine is None:
        return []
    ready = f"Ready: {engine.ready}. A start that is not ready after {format_duration(engine.patience)} has failed. "
    return [
        Heading(2, "Starts of the engine"),
        Code((shown(shlex.join(engine.command)),)),
        (
            ready,
            Mono("{}"),
            " stands for the storage's path, or for the folder that a store was fetched into.",
        ),
        _table(results),
    ]


def _table(results: Results) -> Table:
    columns = (
        "storage",
        "method",
        "load",
        "median",
        "before it",
        "the engine's own",
        "from below",
        "times as fast",
    )
    rows: list[tuple[Entry | Runs, ...]] = []
    for storage in results.storages:
        for cell in results.whole(storage.path):
            if cell.method in ENGINES and cell.seconds:
                what = [Entry(Mono(storage.path)), Entry(Mono(cell.method)), Entry(LOADS[cell.state == COLD])]
                rows.append((*what, *_figures(results, cell), Runs(cell.runs)))
    return Table("engine", (*columns, "runs"), tuple(rows), 3)


def _figures(results: Results, cell: BenchCell) -> list[Entry]:
    assert cell.seconds is not None
    runs = [results.by_id[run] for run in cell.runs]
    own = median(run.seconds - run.before_seconds for run in runs)
    before = median(run.before_seconds for run in runs)
    against = results.reference(cell)
    times = times_as_fast(cell, against)
    both = tuple(dict.fromkeys((*(against.runs if against else ()), *cell.runs)))
    return [
        seconds(cell.seconds.median, "median of seconds", cell.runs),
        seconds(before, "median of before_seconds", cell.runs),
        seconds(own, "median of seconds - before_seconds", cell.runs),
        Entry("?")
        if cell.device_bytes is None
        else size(cell.device_bytes, "median of device_bytes", cell.runs),
        Entry("")
        if times is None
        else Entry(f"{times:.3g}x", times, "median of engine, cold / median", both),
    ]
