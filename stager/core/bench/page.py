"""The report of a benchmark as strings: an HTML page that needs nothing else, its Markdown twin, and the JSON lines behind both."""

from __future__ import annotations

import json
from base64 import b64encode

from stager.core.bench import page_engine
from stager.core.bench import page_facts as facts
from stager.core.bench import page_figures as figures
from stager.core.bench import page_sweep as sweep
from stager.core.bench import page_tables as tables
from stager.core.bench.page_method import method
from stager.core.bench.page_parts import (
    Block,
    Bullets,
    Figure,
    Heading,
    Mono,
    Prose,
    Table,
    blocks_as_html,
    blocks_as_markdown,
    escaped_lines,
)
from stager.core.bench.page_style import STYLE
from stager.core.bench.page_tables import Results
from stager.core.bench.reports import COLD, BenchResults, BenchRun, BenchStorage
from stager.core.bench.stats import amounts_differ
from stager.core.bench.svg import escaped, seconds_text
from stager.core.bench.wording import LOADS
from stager.core.units import count, format_duration

LINES = "results.jsonl"
TITLE = "How fast the model loads"
_SHORT = " say where they stand ten times a second, and no cold run of them said anything"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def json_lines(results: BenchResults) -> list[tuple[str, str]]:
    """(name, JSON) of every run, every cell, every verdict of a sweep and the whole, in this order; the names are those of the page's anchors."""
    named = [(f"run-{run.run}", run.as_json()) for run in results.runs]
    named += [(f"cell-{at}", cell.as_json()) for at, cell in enumerate(results.cells, start=1)]
    named += [(f"verdict-{at}", one.as_json()) for at, one in enumerate(results.sweeps, start=1)]
    named.append(("bench", results.summary.as_json()))
    return [(name, json.dumps(body)) for name, body in named]


def markdown(results: BenchResults) -> str:
    """The report in Markdown: the same words and tables, without the charts and what is written under them."""
    body = [block for block in _blocks(Results(results)) if not isinstance(block, Figure)]
    lines: list[Block] = [
        Heading(2, "The JSON lines"),
        (
            "Every run, every cell and the whole are in ",
            Mono(LINES),
            " beside this file; a run's id is its ",
            Mono("run"),
            ".",
        ),
    ]
    return f"# {TITLE}\n\n{blocks_as_markdown([*body, *lines])}"


def html(results: BenchResults) -> str:
    """The report as one HTML page: no script, and nothing that is loaded from anywhere."""
    lines = json_lines(results)
    raw = "".join(f"{line}\n" for _, line in lines)
    data = b64encode(raw.encode()).decode()
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}">'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{TITLE}</title>'
    )
    listed = "\n".join(f'<span id="{escaped(name)}">{escaped_lines([line])}</span>' for name, line in lines)
    evidence = (
        '<h2>The JSON lines</h2><p>Every run, every cell and the whole, as they lie in <a download="results.jsonl" '
        f'href="data:application/x-ndjson;base64,{data}">{LINES}</a> beside this page; the link holds a copy.</p>'
        f'<details><summary>{len(lines)} lines</summary><pre class="lines">{listed}</pre></details>'
    )
    body = f"<main><h1>{TITLE}</h1>\n{blocks_as_html(_blocks(Results(results)))}\n{evidence}</main>"
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>{body}</body></html>\n'


def _blocks(results: Results) -> list[Block]:
    return [
        *_opening(results),
        *page_engine.starts(results),
        *(sweep.blocks(results) if results.sweeps else [*_loads(results), *_crowds(results)]),
        *_over_time(results),
        *([] if results.sweeps else _files(results)),
        *_not_measured(results),
        *(sweep.method(results) if results.sweeps else method(results)),
        Heading(2, "The machine and the storages"),
        facts.machine(results),
        facts.storages(results),
    ]


def _opening(results: Results) -> list[Block]:
    summary = results.summary
    several = f"{count(len(summary.storages), 'storage')}, {count(summary.runs, 'run')}"
    took = f"begun {summary.began}, ended after {format_duration(summary.seconds)}"
    left = [
        f"{count(number, 'run')} {why}"
        for number, why in ((summary.disturbed, "thrown away as disturbed"), (summary.failed, "failed"))
        if number
    ]
    named = "Every number names the runs it comes from, in its row or above its table; those of the first table stand in the tables after it."
    runs = "Each run is a JSON line at the end."
    blocks: list[Block] = [f"{'; '.join([several, *left])}; {took}. {named} {runs}"]
    if summary.ended:
        blocks.append(
            f"It ended early: {summary.ended}. Cells may have fewer rounds than asked for, or none."
        )
    if any(storage.sampled for storage in summary.storages):
        quick = " (--quick)" if summary.quick else ""
        blocks.append(
            f"Only a part of the files was read{quick}; how much, is said of each storage at the end."
        )
    if amounts_differ(summary.storages):
        blocks.append(
            "Different amounts are read of the storages: compare their throughputs, not their seconds."
        )
    if results.sweeps:
        return [*blocks, sweep.in_short(results)]
    return [*blocks, tables.in_short(results), *figures.compared(results)]


def _places(results: Results) -> list[tuple[int, BenchStorage]]:
    return list(enumerate(results.storages, start=1))


def _named(storage: BenchStorage) -> Prose:
    return (Mono(storage.path), f" ({storage.filesystem})")


def _loads(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading(2, f"By storage and method, {count(results.least, 'loader')}")]
    for at, storage in _places(results):
        blocks += [
            Heading(3, _named(storage)),
            figures.loads(results, storage.path, f"loads-{at}-chart"),
            tables.loads(results, storage.path, f"loads-{at}"),
        ]
    return blocks


def _crowds(results: Results) -> list[Block]:
    blocks: list[Block] = []
    for at, storage in _places(results):
        found = figures.crowds(results, storage.path, f"loaders-{at}-chart")
        if found:
            blocks += [
                Heading(3, _named(storage)),
                *found,
                tables.crowd(results, storage.path, f"loaders-{at}"),
            ]
    return [Heading(2, "Several loaders at once"), *blocks] if blocks else []


def _over_time(results: Results) -> list[Block]:
    blocks: list[Block] = []
    for at, storage in _places(results):
        run = results.over_time(storage.path)
        if run is not None:
            blocks += [
                Heading(3, _named(storage)),
                _which(run),
                figures.over_time(run, f"time-{at}-chart"),
                tables.over_time(run, f"time-{at}"),
            ]
    return [Heading(2, "One run over time"), *blocks] if blocks else []


def _which(run: BenchRun) -> Prose:
    points = tables.moments(run)
    some = (
        f" Of its {len(points)} points the table has at most {tables.MOST_POINTS}."
        if len(points) > tables.MOST_POINTS
        else ""
    )
    parts = (points[0][0], points[-1][0] - points[0][0], max(0.0, run.seconds - points[-1][0]))
    start, reading, rest = (seconds_text(part) for part in parts)
    took = f"{seconds_text(run.seconds)} in all: {start} until it began to read, {reading} of reading, {rest} after it"
    return (f"Run {run.run}: ", Mono(run.method), f", cold, {took}.{some}")


def _files(results: Results) -> list[Block]:
    blocks: list[Block] = []
    for at, storage in _places(results):
        within = tables.files_within(results, storage.path, f"within-{at}")
        single = tables.single_files(results, storage.path, f"files-{at}")
        if within.rows:
            most = f" (the {tables.MOST_FILES} largest)" if len(within.rows) == tables.MOST_FILES else ""
            blocks += [
                Heading(3, _named(storage)),
                ("Within the cold runs of ", Mono("read"), f"{most}:"),
                within,
            ]
        if single.rows:
            blocks += [*([] if within.rows else [Heading(3, _named(storage))]), "Each by itself:", single]
    return [Heading(2, "File by file"), *blocks] if blocks else []


def _not_measured(results: Results) -> list[Block]:
    items: list[Prose] = list(results.summary.limits)
    for storage in results.storages:
        items += [(Mono(storage.path), f": {line}") for line in storage.limits]
    items += [
        (
            Mono(storage.path),
            ": throughput over time: ",
            Mono("stager warm"),
            " and ",
            Mono("stager fetch"),
            _SHORT,
        )
        for storage in results.storages
        if results.too_short(storage.path)
    ]
    why: dict[tuple[str, str], list[str]] = {}
    for cell in results.cells:
        if cell.seconds is None:
            way = f"{cell.method} {cell.setting}" if cell.setting else cell.method
            what = (
                f"{way} {cell.file}".rstrip()
                + f", {LOADS[cell.state == COLD]}, {count(cell.loaders, 'loader')}"
            )
            why.setdefault((cell.storage, cell.unmeasured), []).append(what)
    items += [(Mono(storage), f": {reason}: {'; '.join(cells)}") for (storage, reason), cells in why.items()]
    blocks: list[Block] = [Heading(2, "What was not measured")]
    blocks.append(Bullets(tuple(items)) if items else "Nothing that was asked for was left out.")
    left: Table = facts.runs_left_out(results)
    if left.rows:
        blocks += ["These runs are in no number:", left]
    return blocks
