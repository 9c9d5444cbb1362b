"""What a sweep found: the best setting, those that are even with it, and how far from it ``stager warm`` is by itself."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, stdev
from typing import ClassVar

from stager.core.bench.reports import BenchCell, BenchPace, BenchRun, BenchStorage
from stager.core.bench.setting import Setting
from stager.core.bench.sweep import TOO_SLOW
from stager.core.events import Event

UNREPEATED = 0.1
"""The share that counts as noise where nothing was measured twice."""
_LEAST_NOISE = 0.02
_MOST_NOISE = 0.5  # what is further apart is never called even, whatever the runs did
UNSTEADY = 0.25
"""A noise above this share says more of the machine than of the settings."""
_SURELY = 1.5  # times as long: what single runs must be apart for a setting to be advised
_TIMES = 2.5  # two standard errors of a difference of medians, which are a quarter wider than means


@dataclass(frozen=True, slots=True)
class SweepFigure:
    """One setting (None: what ``stager warm`` does by itself): the median of its runs in seconds, bytes/s by it, the runs' ids."""

    setting: Setting | None
    seconds: float
    rate: float
    runs: tuple[str, ...]


@dataclass(frozen=True)
class BenchSweep(Event):
    """What the sweep of one storage found. Sizes in bytes, times in seconds; a span of 0 is a whole file.

    `best` is the gentlest setting (fewest lanes, then longest spans) of those that are as fast as the fastest within `noise`; `even` has the
    others of those, the gentlest first. `noise` is a share of a median: 2.5 times the standard deviation of repeated runs (the median of all settings': one run that
    was held up is not the noise of all), times the root of 2 / runs, from 0.02 to 0.5; `assumed` when nothing was repeated and it is 0.1. `adaptive` is the run without any
    setting, `ended_lanes` the lanes in force at the end of each of its runs, in their order. `ratio` is the seconds of `adaptive` by those of `best`,
    `beyond_noise` whether that is more than noise. `once` are the settings that were measured once only, while others were repeated. `untried` are the
    settings that have no number, but for those that were stopped as too slow: the best of the others need not be the best then. `command` is what to run.
    Where there is no best setting `unmeasured` says why: one of one setting is none.
    """

    type: ClassVar[str] = "bench_sweep"
    result: ClassVar[bool] = False
    storage: str
    filesystem: str
    bytes: int
    best: SweepFigure | None
    even: tuple[SweepFigure, ...]
    adaptive: SweepFigure | None
    ended_lanes: tuple[int, ...]
    ratio: float | None
    beyond_noise: bool | None
    noise: float
    assumed: bool
    once: tuple[Setting, ...]
    untried: tuple[Setting, ...]
    command: str
    unmeasured: str = ""

    def text(self) -> str:
        """Nothing: the table says it."""
        return ""


def judge(
    storage: BenchStorage, cells: Sequence[BenchCell], runs: Sequence[BenchRun], warm: Sequence[str]
) -> BenchSweep:
    """The verdict on one storage from its `cells` and `runs`; `warm` are the words that warm it, without a setting."""
    by_id = {run.run: run for run in runs}
    noise = noise_of([[by_id[name].seconds for name in cell.runs] for cell in cells])
    figures = [_figure(cell) for cell in cells if cell.seconds is not None]
    adaptive = next((one for one in figures if one.setting is None), None)
    fixed = [one for one in figures if one.setting is not None]
    most = max((len(one.runs) for one in fixed), default=0)
    repeated = [one for one in fixed if len(one.runs) > 1 or most == 1]
    untried = _untried(cells)
    fewer = sum(cell.setting is not None for cell in cells) - len(untried) < 2
    even = [] if fewer else even_with_the_fastest(repeated, UNREPEATED if noise is None else noise)
    best = even[0] if even else None
    ratio = adaptive.seconds / best.seconds if adaptive and best and best.seconds > 0 else None
    share = UNREPEATED if noise is None else noise
    beyond = None if ratio is None else not 1 / (1 + share) <= ratio <= 1 + share
    slower = ratio is not None and ratio > (1 if noise is not None else _SURELY) and bool(beyond)
    words = [*warm, *(best.setting.words if best and best.setting and (slower or ratio is None) else ())]
    paces = [by_id[name].pace for name in adaptive.runs] if adaptive else []
    return BenchSweep(
        storage=storage.path,
        filesystem=storage.filesystem,
        bytes=storage.bytes,
        best=best,
        even=tuple(even[1:]),
        adaptive=adaptive,
        ended_lanes=tuple(pace.lanes for pace in paces if isinstance(pace, BenchPace)),
        ratio=ratio,
        beyond_noise=beyond,
        noise=share,
        assumed=noise is None,
        once=tuple(one.setting for one in fixed if one.setting and len(one.runs) == 1 and most > 1),
        untried=untried,
        command=shlex.join(words) if best else "",
        unmeasured="" if best else _why(cells, fixed),
    )


def _figure(cell: BenchCell) -> SweepFigure:
    assert cell.seconds is not None
    return SweepFigure(cell.setting, cell.seconds.median, cell.throughput or 0.0, cell.runs)


def _untried(cells: Sequence[BenchCell]) -> tuple[Setting, ...]:
    missing = [cell for cell in cells if cell.seconds is None and cell.unmeasured != TOO_SLOW]
    return tuple(cell.setting for cell in missing if cell.setting is not None)


def _why(cells: Sequence[BenchCell], fixed: Sequence[SweepFigure]) -> str:
    """Why there is no best setting: only the one of `fixed` was measured, or not even that."""
    number = sum(cell.setting is not None for cell in cells)
    if fixed and number == 1:
        return f"{fixed[0].setting} is the only way to read this that was to be tried, so there is nothing to choose"
    if fixed:
        return (
            f"only {fixed[0].setting} of {number} settings was measured, so there is nothing to choose from"
        )
    return next((cell.unmeasured for cell in cells if cell.unmeasured), "no setting was tried")


def even_with_the_fastest(figures: Sequence[SweepFigure], noise: float) -> list[SweepFigure]:
    """Those of `figures` whose median is within `noise` (a share) of the least, the gentlest setting first."""
    if not figures:
        return []
    bound = min(one.seconds for one in figures) * (1 + noise)
    even = [one for one in figures if one.seconds <= bound]
    return sorted(even, key=lambda one: (one.setting.gentleness if one.setting else (0, 0), one.seconds))


def noise_of(groups: Sequence[Sequence[float]]) -> float | None:
    """By which share two medians may differ by chance; None where nothing was repeated.

    `groups` are the seconds of the runs of each setting. From the logarithms of repeated runs, so that a share means the same for slow
    settings and for fast ones.
    """
    logs = [[math.log(max(1e-9, value)) for value in group] for group in groups if len(group) > 1]
    if not logs:
        return None
    wide = _TIMES * median(_deviation(group) for group in logs) * math.sqrt(2 / min(map(len, logs)))
    return min(_MOST_NOISE, max(_LEAST_NOISE, math.expm1(min(wide, 1.0))))


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of `values`, so that half of such estimates lie above the true one; of few values most lie below it."""
    freedom = len(values) - 1
    return stdev(values) / math.sqrt(
        (1 - 2 / (9 * freedom)) ** 3
    )  # Wilson and Hilferty's median of chi squared
