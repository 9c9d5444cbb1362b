"""From the runs of a benchmark to the cells of its table. Disturbed and failed runs are counted, and count for nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING

from stager.core.bench.reports import BenchCell, BenchRun, BenchStorage, Spread

if TYPE_CHECKING:
    from stager.core.bench.setting import Setting

_AS_MANY = 0.01  # a method that leaves configuration files out is still compared with one that reads them


def spread(values: Sequence[float]) -> Spread:
    """How `values` lie. Raises ``ValueError`` for none."""
    if not values:
        raise ValueError("no values")
    low, high = min(values), max(values)
    # The sum of equal floats divided by their number can lie a hair outside of them.
    mean = min(high, max(low, fmean(values)))
    return Spread(mean, median(values), low, high, stdev(values) if len(values) > 1 else None)


def make_cell(
    storage: str,
    filesystem: str,
    method: str,
    state: str,
    loaders: int,
    *,
    file: str,
    runs: Sequence[BenchRun],
    unmeasured: str = "",
    setting: Setting | None = None,
) -> BenchCell:
    """The cell of `runs`, which are all of one kind. Where none of them counts, `unmeasured` says why, else the runs themselves do."""
    good = [run for run in runs if run.counts]
    seconds = spread([run.seconds for run in good]) if good else None
    each = [one for run in good for one in run.loader_seconds]
    size = good[0].bytes if good else next((run.bytes for run in runs), 0)
    counted = [run.device_bytes for run in good if run.device_bytes is not None]
    fast = seconds is not None and seconds.median > 0
    return BenchCell(
        storage=storage,
        filesystem=filesystem,
        method=method,
        state=state,
        loaders=loaders,
        file=file,
        bytes=size,
        rounds=len(good),
        disturbed=sum(run.disturbed for run in runs),
        failed=sum(bool(run.failed) for run in runs),
        seconds=seconds,
        loader_seconds=spread(each) if each else None,
        throughput=size / seconds.median if seconds is not None and fast else None,
        cpu_seconds=median(run.cpu_seconds for run in good) if good else None,
        device_bytes=int(median(counted)) if counted else None,
        runs=tuple(run.run for run in good),
        before_seconds=median(befores)
        if (befores := [run.before_seconds for run in good if run.before_seconds])
        else None,
        caveat=next((run.caveat for run in good if run.caveat), ""),
        unmeasured="" if good else unmeasured or _why_none(runs),
        device_bytes_by=next((run.device_bytes_by for run in good if run.device_bytes is not None), ""),
        setting=setting,
    )


def _why_none(runs: Sequence[BenchRun]) -> str:
    failed = next((run.failed for run in runs if run.failed), "")
    disturbed = next((run.reason for run in runs if run.disturbed), "")
    return failed or (f"every run was disturbed: {disturbed}" if disturbed else "no run was made")


def runs_of(
    runs: Iterable[BenchRun],
    storage: str,
    method: str,
    state: str,
    loaders: int,
    file: str,
    setting: Setting | None = None,
) -> list[BenchRun]:
    """Those of `runs` that belong to one cell, in their order."""
    key = (storage, file, method, state, loaders, setting)
    return [run for run in runs if run.key == key]


def amounts_differ(storages: Sequence[BenchStorage]) -> bool:
    """Whether so different amounts are read of `storages` that their seconds say nothing about each other."""
    sizes = [storage.bytes for storage in storages]
    return bool(sizes) and max(sizes) - min(sizes) > _AS_MANY * max(sizes)


def times_as_fast(cell: BenchCell, than: BenchCell | None) -> float | None:
    """How many times less the median of `cell` is than that of `than`; None where either has no number, or they read other bytes."""
    if than is None or cell.seconds is None or than.seconds is None or cell.seconds.median <= 0:
        return None
    if abs(cell.bytes - than.bytes) > _AS_MANY * than.bytes:
        return None
    found = than.seconds.median / cell.seconds.median
    return found if math.isfinite(found) else None
