"""The figures of a benchmark's report: which cells and runs each chart shows, and what is written under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from stager.core.bench import charts as bench_charts
from stager.core.bench.charts import Row
from stager.core.bench.page_parts import Figure
from stager.core.bench.page_tables import Results, headline, moments
from stager.core.bench.reports import COLD, WARM, BenchCell, BenchRun
from stager.core.bench.stats import amounts_differ
from stager.core.bench.svg import seconds_text, size_text
from stager.core.bench.wording import LOADS
from stager.core.units import count, shown

_APART = 15  # times: slower storages than this would leave the others' bars without a visible length


def compared(results: Results) -> list[Figure]:
    """The storages on one scale: the cold read and the fastest loads of each. None where fewer than two have a number, or so different amounts."""
    if amounts_differ(results.storages):
        return []
    rows: list[Row] = []
    for storage in results.storages:
        mine = [
            replace(_bar(results, cell, first=True), first=False)
            for cell in headline(results, storage)
            if cell
        ]
        if mine:
            rows += [Row(storage.path, (), "", "", head=True), *mine]
    if sum(row.head for row in rows) < 2:
        return []
    caption = (
        "All storages on one scale, each with the cold read, the fastest cold load, and the fastest second load; bars are medians of the rounds, whiskers the fastest and the slowest. "
        "A load ends with every page of the tensors touched in a process, and may begin with a command that brings them into the page cache."
    )
    label = "loading times of the storages beside each other"
    return [
        Figure(
            "compared",
            caption,
            lambda width, id_: bench_charts.bars(
                rows, width=width, name=id_, axis="median of the rounds", label=label
            ),
        )
    ]


def loads(results: Results, storage: str, name: str) -> Figure:
    """Bars of every method with the fewest loaders; the same scale for all storages, unless one is far slower than another, or they hold different amounts."""
    rows = _bars(results, storage)
    own = _far_apart(results) or amounts_differ(results.storages)
    others = [one.path for one in results.storages if one.path != storage and not own]
    like = [row for other in others for row in _bars(results, other)]
    scale = "Each storage has a scale of its own." if own else "The scale is the same for all storages."
    caption = (
        f"Seconds from the beginning to the end, with {count(results.least, 'loader')}: the bar is the median of the rounds, the whiskers are the fastest "
        f"and the slowest. {scale if len(results.storages) > 1 else ''}"
    )
    return Figure(
        name,
        caption.rstrip(),
        lambda width, id_: bench_charts.bars(
            rows,
            width=width,
            name=id_,
            axis="median of the rounds",
            label=f"loading times of {shown(storage)} by method",
            like=like,
        ),
    )


def _bars(results: Results, storage: str) -> list[Row]:
    cells = [cell for cell in results.whole(storage) if cell.loaders == results.least]
    return [_bar(results, cell, first=first) for cell, first in _grouped(cells)]


def _far_apart(results: Results) -> bool:
    """Whether one axis would leave the bars of some storage without a visible length."""
    tops = [top for top in (_longest(results, one.path) for one in results.storages) if top > 0]
    return bool(tops) and max(tops) > _APART * min(tops)


def _longest(results: Results, storage: str) -> float:
    return max(
        (c.seconds.max for c in results.whole(storage) if c.loaders == results.least and c.seconds),
        default=0.0,
    )


def _grouped(cells: Sequence[BenchCell]) -> list[tuple[BenchCell, bool]]:
    """Each cell, and whether it is the first of its method."""
    return [(cell, not at or cell.method != cells[at - 1].method) for at, cell in enumerate(cells)]


def _bar(results: Results, cell: BenchCell, *, first: bool) -> Row:
    load = LOADS[cell.state == COLD]
    values = tuple(results.by_id[run].seconds for run in cell.runs)
    if not values:
        why = f"{load}: not measured: {cell.unmeasured}"
        return Row(cell.method if first else "", (), why, why, second=cell.state != COLD, first=first)
    rate = f", {size_text(cell.throughput)}/s" if cell.throughput is not None else ""
    title = f"{cell.method}, {load}: {_figures(values)}{rate}; {_named(cell.runs)}"
    return Row(
        cell.method if first else "",
        values,
        bench_charts.says(values),
        title,
        second=cell.state != COLD,
        link=f"run-{cell.runs[0]}",
        first=first,
    )


def _figures(values: Sequence[float]) -> str:
    low, middle, high = min(values), median(values), max(values)
    return f"median {seconds_text(middle)}, {seconds_text(low)} to {seconds_text(high)}"


def _named(runs: Sequence[str]) -> str:
    return f"{'run' if len(runs) == 1 else 'runs'} {' '.join(runs)}"


def crowds(results: Results, storage: str, name: str) -> list[Figure]:
    """For cold and second loads: every loader's own time, by method and number of loaders. None where only one number was measured."""
    figures = []
    for state in (COLD, WARM):
        chosen = [cell for cell in results.several(storage) if cell.state == state]
        if any(cell.runs for cell in chosen):
            figures.append(_crowd(results, storage, chosen, f"{name}-{state}"))
    return figures


def _crowd(results: Results, storage: str, cells: list[BenchCell], name: str) -> Figure:
    rows = [_strip(results, cell, first=first) for cell, first in _grouped(cells)]
    cold = cells[0].state == COLD
    caption = (
        f"{'Cold loads' if cold else 'Second loads'} by several loaders at once: a dot is one loader of one round, the box holds the middle half of them, "
        "the line is the median, which stands on the right."
    )
    return Figure(
        name,
        caption,
        lambda width, id_: bench_charts.strips(
            rows,
            width=width,
            name=id_,
            axis="each loader's time",
            label=f"each loader's time on {shown(storage)}, {'cold' if cold else 'second load'}",
        ),
    )


def _strip(results: Results, cell: BenchCell, *, first: bool) -> Row:
    label = f"{cell.method} by {cell.loaders}" if first else f"by {cell.loaders}"
    second = cell.state != COLD
    values = tuple(each for run in cell.runs for each in results.by_id[run].loader_seconds)
    if not values:
        why = f"not measured: {cell.unmeasured}"
        return Row(label, (), why, why, second=second, first=first)
    title = f"{cell.method}, {count(cell.loaders, 'loader')}, {LOADS[not second]}: {_figures(values)}; {_named(cell.runs)}"
    link = f"run-{cell.runs[0]}"
    return Row(label, values, bench_charts.says(values), title, second=second, link=link, first=first)


def over_time(run: BenchRun, name: str) -> Figure:
    """One run over time: throughput above, lanes below."""
    points = moments(run)
    caption = (
        "Above what came between each two reports of progress, below the lanes (P) that the controller had open. Shaded is what of the run is no reading: "
        "before it the command starts and finds its files, after it every page is proven to be resident, and the command ends."
    )
    label = f"throughput and lanes of run {run.run} over time"
    return Figure(
        name,
        caption,
        lambda width, _: bench_charts.timeline(points, seconds=run.seconds, width=width, label=label),
    )
