"""The tables of a benchmark's report that have no measured number: the machine, the storages, the runs left out."""

from __future__ import annotations

from stager.core.bench.page_parts import Entry, Mono, Runs, Table
from stager.core.bench.page_tables import Results
from stager.core.bench.reports import COLD, FIRST, BenchRun, BenchStorage
from stager.core.bench.svg import seconds_text
from stager.core.bench.wording import LOADS
from stager.core.units import format_size


def runs_left_out(results: Results) -> Table:
    """The runs that count nowhere, and why."""
    rows = tuple(
        (
            Runs((run.run,)),
            Entry(Mono(run.storage)),
            Entry(Mono(" ".join(str(part) for part in (run.method, run.setting, run.file) if part))),
            Entry(FIRST if run.state == FIRST else LOADS[run.state == COLD]),
            Entry(str(run.loaders)),
            Entry(str(run.round)),
            Entry(_why_not(run)),
        )
        for run in results.all_runs
        if not run.counts
    )
    return Table("left-out", ("run", "storage", "method", "load", "loaders", "round", "why"), rows, 7)


def _why_not(run: BenchRun) -> str:
    if run.failed:
        return f"failed: {run.failed}"
    if run.state == FIRST:
        return f"the first read, with what caches behind the page cache had then: {seconds_text(run.seconds)}"
    return f"disturbed: {run.reason}"


def machine(results: Results) -> Table:
    """The node."""
    node = results.summary.machine
    facts = {
        "kernel": node.kernel,
        "cores": str(node.cores),
        "memory": f"{format_size(node.memory)}, {format_size(node.available)} of it available at the start",
        "page reclaim": node.page_reclaim,
        "pages out idle memory by itself": f"yes: {node.pages_out}"
        if node.pages_out
        else "no, as far as can be seen",
        "load average at the start": f"{node.load:.2f}",
        "Python": node.python,
        "stager": node.stager,
    }
    rows = tuple((Entry(name), Entry(fact)) for name, fact in facts.items())
    return Table("machine", ("what", "this machine"), rows, 2)


def storages(results: Results) -> Table:
    """What is known of each storage."""
    columns = tuple(_facts(storage) for storage in results.storages)
    names = list(columns[0]) if columns else []
    rows = tuple(
        (Entry(name), *(Entry(Mono(facts[name]) if facts[name] else "") for facts in columns))
        for name in names
    )
    heads = tuple(f"storage {at}" for at in range(1, len(columns) + 1))
    return Table("storages", ("what", *heads), rows, 1 + len(columns))


def _facts(storage: BenchStorage) -> dict[str, str]:
    part = f", the first {format_size(storage.part)} of each" if storage.part is not None else ""
    return {
        "path": storage.path,
        "kind": storage.kind,
        "filesystem": storage.filesystem,
        "mounted from": storage.mount_source,
        "mount options": storage.mount_options,
        "read-ahead": "" if storage.read_ahead_kb is None else f"{storage.read_ahead_kb} KiB",
        "read in each run": f"{storage.files} files, {format_size(storage.bytes)}{part}",
        "of what is there": f"{storage.of_files} files, {format_size(storage.of_bytes)}",
        "pages after an open": storage.keeps,
        "residency by": storage.residency_by,
        "block device": storage.device,
        "bytes from below by": storage.counter,
        "fetched into": storage.target,
    }
