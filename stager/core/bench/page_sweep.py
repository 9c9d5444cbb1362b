"""The part of a report that is about a sweep: the verdict, the chart of throughput by lanes, the table behind it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from stager.core.bench import sweep_chart
from stager.core.bench.page_by_hand import by_hand
from stager.core.bench.page_parts import (
    Block,
    Bullets,
    Code,
    Entry,
    Figure,
    Heading,
    Mono,
    Prose,
    Runs,
    Table,
)
from stager.core.bench.page_proof import PROOF
from stager.core.bench.page_tables import Results, rate, seconds, size
from stager.core.bench.reports import BenchCell
from stager.core.bench.setting import Setting
from stager.core.bench.svg import seconds_text, size_text
from stager.core.bench.sweep_chart import Line, Point
from stager.core.bench.sweep_table import ended_text, verdict_lines
from stager.core.bench.verdict import BenchSweep
from stager.core.plan import span_text
from stager.core.units import count, shown

_NONE = Entry("")
_RULES: tuple[Prose, ...] = (
    (
        "Every run is the command ",
        Mono("stager warm"),
        (
            " as a fresh process on cold files, from its start to its end: the program, a look at the files, the reading, the proof that every page is resident. All but "
            "the reading takes as long with every setting, and weighs the more the smaller the model is."
        ),
    ),
    *PROOF,
    (
        "A setting is a number of lanes (",
        Mono("-P"),
        ") that stays as it is (",
        Mono("--no-adapt"),
        "), and a span size (",
        Mono("--span"),
        (
            "): the files are read in pieces of that size, each through a handle of its own, in ascending order. More lanes than there are pieces are not tried, "
            "nor spans that no file is longer than; one lane is tried with the longest span alone."
        ),
    ),
    (
        "One read of all files comes first and counts nowhere, then a run without a setting, then every setting once, in an order that jumps through the grid. "
        "A run that takes three times as long as the fastest so far is stopped, but not before 60 s (5 s with --quick). What a daemon or a server "
        "keeps behind the page cache may make later runs faster than earlier ones; the order sees to it that this favours no span size and no number of lanes."
    ),
    (
        "What is near the best or even with it is measured again, and with it the run that has no setting, in turns, every second time backwards: the three fastest within 25 % "
        "of the best, and the two gentlest within 10 %. The others are measured once, which says about where they lie and no more: they cannot become the best."
    ),
    (
        "The best is the gentlest of all that are even with the fastest: fewest lanes first, then longest spans. Even are medians that differ by no more than "
        "noise, which is 2.5 times the standard deviation of repeated runs (of their logarithms, the median of all settings', so that one run that was held up is not the noise of all), times the root of 2 / runs, from 2 % to 50 %; 10 % "
        "where nothing was measured twice. The same holds for warming by itself beside the best."
    ),
    "Throughput is the bytes of the files by the median of the seconds. Against best: a median divided by that of the best.",
)


def in_short(results: Results) -> Table:
    """A line a storage: the best setting, and what ``stager warm`` does by itself beside it."""
    columns = (
        "storage",
        "filesystem",
        "bytes",
        "best setting",
        "best",
        "throughput",
        "adaptive",
        "against best",
    )
    rows: list[tuple[Entry | Runs, ...]] = []
    for sweep in results.sweeps:
        best, adaptive = sweep.best, sweep.adaptive
        fields = [_NONE, _NONE, _NONE]
        if best is not None:
            fields = [
                Entry(Mono(str(best.setting))),
                seconds(best.seconds, "median of seconds", best.runs),
                rate(best.rate, "bytes / median of seconds", best.runs),
            ]
        rows.append(
            (
                Entry(Mono(sweep.storage)),
                Entry(Mono(sweep.filesystem)),
                size(sweep.bytes, "bytes of the storage in the line of type bench", ()),
                *fields,
                seconds(adaptive.seconds, "median of seconds", adaptive.runs) if adaptive else _NONE,
                _against(sweep, adaptive.seconds, adaptive.runs) if adaptive else _NONE,
            )
        )
    return Table("in-short", columns, tuple(rows), 2)


def _against(sweep: BenchSweep, took: float, runs: Sequence[str]) -> Entry:
    """How many times as long as the best."""
    if sweep.best is None or sweep.best.seconds <= 0:
        return _NONE
    value = took / sweep.best.seconds
    both = tuple(dict.fromkeys((*runs, *sweep.best.runs)))
    return Entry(
        f"{value:.3g}x" if value < 100 else f"{value:.0f}x", value, "median / median of the best", both
    )


def blocks(results: Results) -> list[Block]:
    """For each storage what was found, the chart, and the table."""
    found: list[Block] = [Heading(2, "The best lanes and span")]
    for at, sweep in enumerate(results.sweeps, start=1):
        cells = [cell for cell in results.cells if cell.storage == sweep.storage]
        storage = next(one for one in results.storages if one.path == sweep.storage)
        found.append(Heading(3, (Mono(sweep.storage), f" ({sweep.filesystem})")))
        found.append(
            " ".join(f"{line[0].upper()}{line[1:]}." for line in verdict_lines(storage, cells, sweep))
        )
        if sweep.command:
            found.append(Code((sweep.command,)))
        if any(cell.seconds for cell in cells):
            found += [
                _figure(results, sweep, cells, f"sweep-{at}-chart"),
                _table(results, sweep, cells, f"sweep-{at}"),
            ]
    return found


def method(results: Results) -> list[Block]:
    """How it was measured, and how to repeat it by hand."""
    summary = results.summary
    rounds = f"What is near the best was to be measured {count(summary.rounds, 'time')}."
    listed: list[Block] = [
        Heading(2, "How it was measured"),
        ("The command line was ", Mono(shown(summary.command)), "."),
        Bullets((*_RULES, rounds)),
        Heading(3, "Each number by hand"),
    ]
    return [*listed, *by_hand(results)]


def _figure(results: Results, sweep: BenchSweep, cells: Sequence[BenchCell], name: str) -> Figure:
    lines = []
    for span in dict.fromkeys(cell.setting.span for cell in cells if cell.setting):
        mine = [cell for cell in cells if cell.setting and cell.setting.span == span and cell.throughput]
        points = [_point(results, sweep, cell) for cell in mine]
        if points:
            label = span_text(span)
            lines.append(Line(label, tuple(sorted(points, key=lambda point: point.lanes))))
    itself = next((cell for cell in cells if cell.setting is None and cell.throughput), None)
    across = _point(results, sweep, itself) if itself is not None else None
    caption = (
        "Throughput of cold runs by lanes (P), a line for each span size: the mark is the median, the whiskers are the slowest and the fastest run where there "
        "are several. The line across is what warming does by itself, with lanes that it finds while running."
    )
    return Figure(
        name,
        caption,
        lambda width, _: sweep_chart.by_lanes(
            lines, across, width=width, label=f"throughput of {shown(sweep.storage)} by lanes and span size"
        ),
    )


def _point(results: Results, sweep: BenchSweep, cell: BenchCell) -> Point:
    took = [results.by_id[run].seconds for run in cell.runs]
    speeds = [cell.bytes / value for value in took if value > 0]
    middle = cell.throughput or 0.0
    what = str(cell.setting) if cell.setting else "adaptive"
    title = f"{what}: median {seconds_text(median(took))}, {size_text(middle)}/s; {_named(cell.runs)}"
    best = sweep.best is not None and cell.setting is not None and cell.setting == sweep.best.setting
    low, high = min([*speeds, middle]), max([*speeds, middle])
    lanes = cell.setting.lanes if cell.setting else 1
    return Point(lanes, middle, low, high, title, f"run-{cell.runs[0]}", "best" if best else "")


def _named(runs: Sequence[str]) -> str:
    return f"{'run' if len(runs) == 1 else 'runs'} {' '.join(runs)}"


def _table(results: Results, sweep: BenchSweep, cells: Sequence[BenchCell], name: str) -> Table:
    """Every setting that was measured, the fastest first."""
    timed = [cell for cell in cells if cell.seconds]
    rows: list[tuple[Entry | Runs, ...]] = []
    for cell in sorted(timed, key=lambda cell: cell.seconds.median if cell.seconds else 0.0):
        assert cell.seconds is not None
        spread = [
            (cell.seconds.median, "median"),
            (cell.seconds.min, "least"),
            (cell.seconds.max, "greatest"),
        ]
        left = results.left_out(cell)
        rows.append(
            (
                Entry(Mono(str(cell.setting)))
                if cell.setting
                else Entry(f"adaptive{ended_text(sweep.ended_lanes)}"),
                Entry(_says(sweep, cell.setting)),
                *(seconds(value, f"{word} of seconds", cell.runs) for value, word in spread),
                rate(cell.throughput, "bytes / median of seconds", cell.runs) if cell.throughput else _NONE,
                _against(sweep, cell.seconds.median, cell.runs),
                Entry(str(cell.rounds), cell.rounds, "runs in the numbers", cell.runs),
                Entry(str(len(left)), len(left), "runs left out, disturbed or failed", left),
                Runs(cell.runs),
            )
        )
    columns = (
        "setting",
        "",
        "median",
        "fastest",
        "slowest",
        "throughput",
        "against best",
        "rounds",
        "left out",
        "runs",
    )
    return Table(name, columns, tuple(rows), 2)


def _says(sweep: BenchSweep, setting: Setting | None) -> str:
    if setting is None:
        return ""
    if sweep.best is not None and sweep.best.setting == setting:
        return "best"
    if any(one.setting == setting for one in sweep.even):
        return "even"
    return "measured once" if setting in sweep.once else ""
