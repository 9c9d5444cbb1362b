"""The table that a benchmark prints: by storage, method and state, a column for each number of loaders."""

from __future__ import annotations

from collections.abc import Sequence

from stager.core.bench.plan import ENGINE, ENGINES, READ, measured_against
from stager.core.bench.reports import COLD, BenchCell, BenchStorage, step_before
from stager.core.bench.stats import amounts_differ, times_as_fast
from stager.core.bench.wording import LOADS, seconds_text, times_text
from stager.core.units import count, format_size, shown


def table(storages: Sequence[BenchStorage], cells: Sequence[BenchCell]) -> str:
    """One block for each storage, and what is to be known before they are compared."""
    measured = [one for one in storages if any(cell.storage == one.path for cell in cells)]
    blocks = [_block(one, [cell for cell in cells if cell.storage == one.path]) for one in measured]
    if amounts_differ(measured):
        sizes = ", ".join(f"{shown(one.path)} {format_size(one.bytes)}" for one in measured)
        blocks.append(f"different amounts are read ({sizes}): compare bytes/s, not seconds")
    return "\n\n".join(blocks)


def _block(storage: BenchStorage, cells: list[BenchCell]) -> str:
    loaders = sorted({cell.loaders for cell in cells})
    lines = [head(storage)]
    rows = [["method", "load", *(count(number, "loader") for number in loaders), "bytes/s", "CPU", "below"]]
    rows += [
        _row(cells, file, method, state, loaders)
        for file, method, state in dict.fromkeys((cell.file, cell.method, cell.state) for cell in cells)
    ]
    counted = any(row[-1] for row in rows[1:])
    rows = rows if counted else [row[:-1] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        texts = [
            f"{text:<{width}}" if at < 2 else f"{text:>{width}}"
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(texts).rstrip())
    cold = {cell.method for cell in cells if cell.state == COLD and cell.seconds}
    against = ["a cold `read` with as many loaders"] if READ in cold else []
    against += ["engines as a cold `engine`" if against else "a cold `engine`"] if ENGINE in cold else []
    if against:
        lines.append(f"  Nx: times as fast as {', '.join(against)}.")
    lines.append(
        f"  bytes/s, CPU{', below' if counted else ''}: of the first column that has a number."
        f"{f' below: bytes that {_who(storage)}.' if counted else ''}"
    )
    lines += [
        f"  {method}: reads {format_size(size)} of this"
        for method, size in {
            cell.method: cell.bytes for cell in cells if cell.seconds and not cell.file
        }.items()
        if size < storage.bytes
    ]
    lines += [_of_it(cell) for cell in cells if cell.method in ENGINES and cell.before_seconds]
    lines += [f"  {cell.method} {LOADS[cell.state == COLD]}: {cell.caveat}" for cell in cells if cell.caveat]
    lines += [f"  not measured: {line}" for line in _reasons(storage, cells)]
    return "\n".join(lines)


def _who(storage: BenchStorage) -> str:
    """Who counted the bytes from below."""
    if storage.kind == "store":
        return "the fetch took from the store, by its own count"
    return f"{shown(storage.counter)} counted meanwhile, for anybody"


def head(storage: BenchStorage) -> str:
    """The line above a storage's table: what it is, and what of it is read."""
    whole = f"{count(storage.of_files, 'file')}, {format_size(storage.of_bytes)}"
    parts = [storage.filesystem, whole]
    if storage.part is not None:
        each = f"of each of {storage.files} " if storage.files > 1 else ""
        all_of_it = f" ({format_size(storage.bytes)})" if storage.files > 1 else ""
        parts.append(f"{each}the first {format_size(storage.part)}{all_of_it} read")
    elif storage.sampled:
        parts.append(f"{storage.files} of them, {format_size(storage.bytes)}, read")
    if storage.keeps in ("drops", "direct-io"):
        parts.append("pages are dropped when a file is opened")
    elif storage.residency_by:
        parts.append(f"pages counted by {storage.residency_by}")
    if storage.target:
        parts.append(f"fetched into {shown(storage.target)}")
    return f"{shown(storage.path)}: {', '.join(parts)}"


def _row(cells: list[BenchCell], file: str, method: str, state: str, loaders: list[int]) -> list[str]:
    mine = {
        cell.loaders: cell for cell in cells if (cell.file, cell.method, cell.state) == (file, method, state)
    }
    first = next((mine[number] for number in loaders if number in mine and mine[number].seconds), None)
    label = f"{method} {shown(file)}" if file else method
    load = LOADS[state == COLD]
    rate = f"{format_size(first.throughput)}/s" if first is not None and first.throughput else ""
    cpu = seconds_text(first.cpu_seconds) if first is not None and first.cpu_seconds is not None else ""
    below = format_size(first.device_bytes) if first is not None and first.device_bytes is not None else ""
    return [label, load, *(_figure(cells, mine.get(number)) for number in loaders), rate, cpu, below]


def _figure(cells: list[BenchCell], cell: BenchCell | None) -> str:
    if cell is None:
        return ""
    if cell.seconds is None:
        return "unknown"
    base = (cell.storage, cell.file, measured_against(cell.method), COLD, cell.loaders, None)
    times = times_as_fast(cell, next((one for one in cells if one.key == base), None))
    return f"{seconds_text(cell.seconds.median)} {'' if times is None else times_text(times):>5}"


def _of_it(cell: BenchCell) -> str:
    """How much of a start is the step before it."""
    what = f"{cell.method} {LOADS[cell.state == COLD]}"
    return f"  {what}: {seconds_text(cell.before_seconds or 0.0)} of it is {step_before(cell.method)}"


def _reasons(storage: BenchStorage, cells: list[BenchCell]) -> list[str]:
    """Why cells are empty, each reason once with the methods it is about."""
    about: dict[str, list[str]] = {}
    for cell in cells:
        if cell.unmeasured:
            what = f"{cell.method} {LOADS[cell.state == COLD]}"
            about.setdefault(cell.unmeasured, [])
            if what not in about[cell.unmeasured]:
                about[cell.unmeasured].append(what)
    named = [f"{', '.join(what)}: {why}" for why, what in about.items()]
    return [*storage.limits, *named]
