"""The tables of a benchmark's report. Every number is one of a JSON line, or follows from such by what its title says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from statistics import median

from stager.core.bench.charts import rates
from stager.core.bench.page_parts import Entry, Mono, Runs, Table
from stager.core.bench.page_units import in_one_unit
from stager.core.bench.plan import ENDING_MAPPED, ENGINES, FETCH, READ, WARMING, measured_against
from stager.core.bench.reports import COLD, BenchCell, BenchResults, BenchRun, BenchStorage, Spread
from stager.core.bench.stats import times_as_fast
from stager.core.bench.svg import seconds_text, size_text
from stager.core.bench.wording import LOADS

MOST_FILES = 40  # rows of a table of files
MOST_POINTS = 24  # rows of a table of a run over time
_UNKNOWN = Entry("")


class Results:
    """The results of a benchmark, with what the report asks of them again and again."""

    def __init__(self, results: BenchResults) -> None:
        self.summary = results.summary
        self.cells = results.cells
        self.sweeps = results.sweeps
        self.all_runs = results.runs

    @cached_property
    def by_id(self) -> dict[str, BenchRun]:
        """The runs by their ids."""
        return {run.run: run for run in self.all_runs}

    @cached_property
    def least(self) -> int:
        """The smallest number of loaders that any cell of whole models has; 1 without cells."""
        return min((cell.loaders for cell in self.cells if not cell.file), default=1)

    @property
    def storages(self) -> tuple[BenchStorage, ...]:
        """The storages, in the order asked for."""
        return self.summary.storages

    def whole(self, storage: str) -> list[BenchCell]:
        """The cells of the whole model on `storage`, by method, load and loaders."""
        return self._ordered(cell for cell in self.cells if cell.storage == storage and not cell.file)

    def several(self, storage: str) -> list[BenchCell]:
        """Those of `whole` whose method had several loaders at once."""
        cells = self.whole(storage)
        methods = {cell.method for cell in cells if cell.loaders != self.least}
        return [cell for cell in cells if cell.method in methods]

    def single(self, storage: str) -> list[BenchCell]:
        """The cells of single files on `storage`."""
        return self._ordered(cell for cell in self.cells if cell.storage == storage and cell.file)

    def _ordered(self, cells: Iterable[BenchCell]) -> list[BenchCell]:
        rank = {method: at for at, method in enumerate(self.summary.methods)}
        last = len(rank)
        return sorted(
            cells,
            key=lambda c: (c.file, rank.get(c.method, last), c.method, c.state != COLD, c.loaders),
        )

    def left_out(self, cell: BenchCell) -> tuple[str, ...]:
        """The ids of the runs of `cell` that count nowhere."""
        return tuple(run.run for run in self.all_runs if not run.counts and run.key == cell.key)

    def reference(self, cell: BenchCell) -> BenchCell | None:
        """The cell that `cell` is held against: ``read``, for a start ``engine``, cold, with as many loaders, of the same bytes; None without it."""
        key = (cell.storage, cell.file, measured_against(cell.method), COLD, cell.loaders, None)
        return next((one for one in self.cells if one.key == key and one.seconds), None)

    def over_time(self, storage: str) -> BenchRun | None:
        """The run to be shown over time: of those of ``warm`` (else ``fetch``) from cold with the fewest loaders the one in the middle."""
        for method in (WARMING, FETCH):
            found = [
                run
                for run in self.all_runs
                if run.key == (storage, "", method, COLD, self.least, None)
                and run.counts
                and len(run.timeline) > 1
            ]
            if found:
                return sorted(found, key=lambda run: run.seconds)[(len(found) - 1) // 2]
        return None

    def too_short(self, storage: str) -> bool:
        """Whether there are such runs, but none with a timeline."""
        there = any(c.method in (WARMING, FETCH) and c.state == COLD and c.runs for c in self.whole(storage))
        return there and self.over_time(storage) is None


def seconds(value: float, how: str, runs: tuple[str, ...]) -> Entry:
    """A time."""
    return Entry(seconds_text(value), value, how, runs)


def size(value: float, how: str, runs: tuple[str, ...]) -> Entry:
    """A number of bytes."""
    return Entry(size_text(value), value, how, runs)


def rate(value: float, how: str, runs: tuple[str, ...]) -> Entry:
    """A throughput."""
    return Entry(f"{size_text(value)}/s", value, how, runs)


def _spread(spread: Spread, of: str, names: Sequence[str], runs: tuple[str, ...]) -> list[Entry]:
    words = {
        "median": "median",
        "mean": "mean",
        "min": "least",
        "max": "greatest",
        "stdev": "standard deviation",
    }
    values = ((name, getattr(spread, name)) for name in names)
    return [
        Entry("-") if value is None else seconds(value, f"{words[name]} of {of}", runs)
        for name, value in values
    ]


def _cell_rate(cell: BenchCell) -> Entry:
    return (
        rate(cell.throughput, "bytes / median of seconds", cell.runs)
        if cell.throughput is not None
        else _UNKNOWN
    )


def _cell_cpu(cell: BenchCell) -> Entry:
    return (
        seconds(cell.cpu_seconds, "median of cpu_seconds", cell.runs)
        if cell.cpu_seconds is not None
        else _UNKNOWN
    )


def _cell_device(cell: BenchCell) -> Entry:
    if cell.device_bytes is None:
        return Entry("?")
    return size(cell.device_bytes, "median of device_bytes", cell.runs)


def _times(results: Results, cell: BenchCell) -> Entry:
    """How many times faster than the reference."""
    against = results.reference(cell)
    value = times_as_fast(cell, against)
    if value is None or against is None:
        return _UNKNOWN
    runs = tuple(dict.fromkeys((*against.runs, *cell.runs)))
    return Entry(
        f"{value:.3g}x" if value < 100 else f"{value:.0f}x",
        value,
        f"median of {against.method}, cold / median",
        runs,
    )


def _counted(results: Results, cell: BenchCell) -> list[Entry]:
    left = cell.disturbed + cell.failed
    return [
        Entry(str(cell.rounds), cell.rounds, "runs in the numbers", cell.runs),
        Entry(str(left), left, "runs left out, disturbed or failed", results.left_out(cell)),
    ]


def _method(cell: BenchCell) -> list[Entry]:
    return [Entry(Mono(cell.method)), Entry(LOADS[cell.state == COLD])]


def loads(results: Results, storage: str, name: str) -> Table:
    """Every method with the fewest loaders."""
    columns = (
        "method",
        "load",
        "median",
        "fastest",
        "slowest",
        "mean",
        "st. dev.",
        "throughput",
        "CPU",
        "from below",
    )
    rows: list[tuple[Entry | Runs, ...]] = []
    for cell in results.whole(storage):
        if cell.loaders != results.least:
            continue
        fields = [Entry("not measured"), *[_UNKNOWN] * 8]
        if cell.seconds:
            names = ("median", "min", "max", "mean", "stdev")
            fields = _spread(cell.seconds, "seconds", names, cell.runs)
            fields += [_cell_rate(cell), _cell_cpu(cell), _cell_device(cell), _times(results, cell)]
        rows.append((*_method(cell), *fields, *_counted(results, cell), Runs(cell.runs)))
    table = Table(name, (*columns, _against(results), "rounds", "left out", "runs"), tuple(rows), 2)
    times = ("median", "fastest", "slowest", "mean", "st. dev.")
    return in_one_unit(table, times, ("throughput",), ("CPU",), ("from below",))


def _against(results: Results) -> str:
    """What the column of ratios is called: where nothing but starts has a reference, after that."""
    only = READ not in results.summary.methods and results.summary.engine is not None
    return "against engine" if only else "against read"


def crowd(results: Results, storage: str, name: str) -> Table:
    """Every measured cell of the methods that had several loaders: each loader's time, and the time until the last had ended."""
    columns = (
        "method",
        "load",
        "loaders",
        "median",
        "mean",
        "fastest",
        "slowest",
        "st. dev.",
        "all loaded",
        "CPU",
    )
    rows: list[tuple[Entry | Runs, ...]] = []
    for cell in results.several(storage):
        if not (cell.loader_seconds and cell.seconds):
            continue
        number = Entry(str(cell.loaders), cell.loaders, "loaders", cell.runs)
        names = ("median", "mean", "min", "max", "stdev")
        fields = _spread(cell.loader_seconds, "loader_seconds", names, cell.runs)
        fields += [*_spread(cell.seconds, "seconds", ("median",), cell.runs), _cell_cpu(cell)]
        rows.append((*_method(cell), number, *fields, *_counted(results, cell), Runs(cell.runs)))
    table = Table(name, (*columns, "rounds", "left out", "runs"), tuple(rows), 2)
    return in_one_unit(table, ("median", "mean", "fastest", "slowest", "st. dev.", "all loaded"), ("CPU",))


def over_time(run: BenchRun, name: str) -> Table:
    """A run over time: at most `MOST_POINTS` of its points, the last among them."""
    points = moments(run)
    step = -(-len(points) // MOST_POINTS)
    chosen = [point for at, point in enumerate(points) if (len(points) - 1 - at) % step == 0]
    speeds = [None, *(found[2] for found in rates(chosen))] if len(rates(chosen)) == len(chosen) - 1 else []
    rows: list[tuple[Entry | Runs, ...]] = []
    for at, (when, done, lanes) in enumerate(chosen):
        speed = speeds[at] if speeds else None
        since = "bytes since the row above / seconds since the row above"
        rows.append(
            (
                seconds(when, "timeline, seconds", (run.run,)),
                size(done, "timeline, bytes", (run.run,)),
                _UNKNOWN if speed is None else rate(speed, since, (run.run,)),
                Entry(str(lanes), lanes, "timeline, lanes", (run.run,)),
            )
        )
    columns = ("since the run began", "bytes so far", "throughput", "lanes, P")
    return in_one_unit(Table(name, columns, tuple(rows), 0), *((column,) for column in columns[:-1]))


def moments(run: BenchRun) -> tuple[tuple[float, int, int], ...]:
    """The timeline of `run`; two points at one second are one."""
    points = {when: (when, done, lanes) for when, done, lanes in run.timeline}
    return tuple(points[when] for when in sorted(points))


def single_files(results: Results, storage: str, name: str) -> Table:
    """The measured cells of single files; without rows where none was read by itself."""
    rows: list[tuple[Entry | Runs, ...]] = []
    for cell in results.single(storage):
        if not cell.seconds:
            continue
        fields = [*_spread(cell.seconds, "seconds", ("median", "min", "max"), cell.runs), _cell_rate(cell)]
        what = size(cell.bytes, "bytes", cell.runs)
        rows.append((Entry(Mono(cell.file)), *_method(cell), what, *fields, Runs(cell.runs)))
    columns = ("file", "method", "load", "size", "median", "fastest", "slowest", "throughput", "runs")
    return in_one_unit(
        Table(name, columns, tuple(rows), 3), ("median", "fastest", "slowest"), ("throughput",)
    )


def files_within(results: Results, storage: str, name: str) -> Table:
    """Each file's time within the runs of ``read`` from cold with the fewest loaders; the largest `MOST_FILES`."""
    key = (storage, "", READ, COLD, results.least, None)
    cell = next((cell for cell in results.cells if cell.key == key), None)
    found: dict[str, list[tuple[int, float, str]]] = {}
    for run in cell.runs if cell else ():
        for file in results.by_id[run].files:
            found.setdefault(file.path, []).append((file.bytes, file.seconds, run))
    largest = sorted(found, key=lambda path: (-found[path][0][0], path))[:MOST_FILES]
    rows: list[tuple[Entry | Runs, ...]] = []
    for path in largest:
        runs = tuple(run for _, _, run in found[path])
        took = median(each for _, each, _ in found[path])
        what = found[path][0][0]
        speed = rate(what / took, "bytes / median of the file's seconds", runs) if took > 0 else _UNKNOWN
        took_entry = seconds(took, "median of the file's seconds", runs)
        rows.append((Entry(Mono(path)), size(what, "bytes of the file", runs), took_entry, speed, Runs(runs)))
    columns = ("file", "size", "median", "throughput", "runs")
    return in_one_unit(Table(name, columns, tuple(rows)), ("median",), ("throughput",))


def in_short(results: Results) -> Table:
    """A line a storage: reading one file after the other, the fastest load from cold, and the fastest second one; a load is one of `ENDING_MAPPED`."""
    # The answer comes first: a narrow screen shows the first columns.
    columns = (
        "storage",
        "read, cold",
        "fastest cold load",
        "throughput",
        "fastest second load",
        "bytes",
        "filesystem",
    )
    rows: list[tuple[Entry | Runs, ...]] = []
    for storage in results.storages:
        plain, cold, second = headline(results, storage)
        rows.append(
            (
                Entry(Mono(storage.path)),
                _median(plain),
                _median(cold, named=True),
                _cell_rate(cold) if cold else _UNKNOWN,
                _median(second, named=True),
                size(storage.bytes, "bytes of the storage in the line of type bench", ()),
                Entry(Mono(storage.filesystem)),
            )
        )
    return Table("in-short", columns, tuple(rows))


def headline(
    results: Results, storage: BenchStorage
) -> tuple[BenchCell | None, BenchCell | None, BenchCell | None]:
    """The cold read, the fastest load from cold, and the fastest second load, with the fewest loaders; None where there is none."""
    cells = [c for c in results.whole(storage.path) if c.loaders == results.least and c.seconds]
    plain = next((c for c in cells if c.method == READ and c.state == COLD), None)
    cold, second = (_fastest([c for c in cells if (c.state == COLD) == now]) for now in (True, False))
    return plain, cold, second


def _fastest(cells: list[BenchCell]) -> BenchCell | None:
    """Of the cells whose methods end as an engine's load does; loaders before an engine, which does more."""
    loads = [cell for cell in cells if cell.method in ENDING_MAPPED]
    loads = loads or [cell for cell in cells if cell.method in ENGINES]
    return min(loads, key=lambda cell: cell.seconds.median if cell.seconds else 0, default=None)


def _median(cell: BenchCell | None, *, named: bool = False) -> Entry:
    if not (cell and cell.seconds):
        return _UNKNOWN
    text = seconds_text(cell.seconds.median)
    return Entry(
        f"{text} by {cell.method}" if named else text, cell.seconds.median, "median of seconds", cell.runs
    )
