"""The table of a sweep: for each storage a row for each span size, a column for each number of lanes, and the verdict below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stager.core.bench.reports import BenchCell, BenchStorage
from stager.core.bench.setting import Setting
from stager.core.bench.sweep import TOO_SLOW
from stager.core.bench.table import head
from stager.core.bench.verdict import UNSTEADY
from stager.core.bench.wording import seconds_text
from stager.core.plan import LEAST_SPAN, WHOLE, span_text
from stager.core.units import count, format_size

if TYPE_CHECKING:
    from stager.core.bench.verdict import BenchSweep, SweepFigure

_BEST, _EVEN, _ONCE = "*", "=", "~"
_FAR_APART = 1.5
_MOST_LANES = 256
_NAMED = 3  # so many settings that are even with the best are named in a line


def sweep_table(
    storages: Sequence[BenchStorage], cells: Sequence[BenchCell], sweeps: Sequence[BenchSweep]
) -> str:
    """One block for each storage."""
    blocks = []
    for sweep in sweeps:
        storage = next(one for one in storages if one.path == sweep.storage)
        blocks.append(_block(storage, [cell for cell in cells if cell.storage == sweep.storage], sweep))
    return "\n\n".join(blocks)


def _block(storage: BenchStorage, cells: list[BenchCell], sweep: BenchSweep) -> str:
    lines = [head(storage), *_grid(cells, sweep)] if any(cell.seconds for cell in cells) else [head(storage)]
    lines += [f"  {line}" for line in verdict_lines(storage, cells, sweep)]
    if sweep.command:
        lines.append(f"  {'so, of those tried' if sweep.untried else 'so'}: {sweep.command}")
    return "\n".join([*lines, *(f"  not measured: {line}" for line in (*storage.limits, *_reasons(cells)))])


def verdict_lines(storage: BenchStorage, cells: Sequence[BenchCell], sweep: BenchSweep) -> list[str]:
    """All that is to be said of one storage: the verdict, and what speaks against relying on it."""
    lines = [*sweep_lines(sweep), *_held_up(cells)]
    if sweep.best is None:
        return lines
    if storage.sampled:
        files = f"{storage.files} of {count(storage.of_files, 'file')}"
        if storage.part is not None:
            files = f"the first {format_size(storage.part)} of {files}"
        lines.append(
            f"by {files} only: for the whole another setting may be better, which shows without --quick"
        )
    if more := _beyond(cells, sweep.best.setting):
        lines.append(f"it lies at the edge of what was tried: {' or '.join(more)} may find a better one")
    return lines


def _beyond(cells: Sequence[BenchCell], best: Setting | None) -> list[str]:
    """The options that try what lies beyond the most lanes and the shortest spans among `cells`, where `best` is one of these."""
    fixed = [cell.setting for cell in cells if cell.setting is not None]
    found = []
    if best is not None and best.lanes == max(one.lanes for one in fixed) <= _MOST_LANES // 2:
        found.append(f"--sweep-lanes {best.lanes},{2 * best.lanes}")
    short = min((one.span for one in fixed if one.span != WHOLE), default=0)
    if best is not None and best.span and best.span == short >= 2 * LEAST_SPAN:
        found.append(f"--sweep-spans {span_text(short)},{span_text(short // 2)}")
    return found


def _held_up(cells: Sequence[BenchCell]) -> list[str]:
    """The settings of which one run took far longer than another: a median of three hides one such run, not two."""
    found = []
    for cell in cells:
        if cell.seconds is not None and cell.seconds.max > _FAR_APART * cell.seconds.min:
            between = f"{seconds_text(cell.seconds.min)} and {seconds_text(cell.seconds.max)}"
            found.append(f"runs of {cell.setting or 'adaptive'} lay between {between}")
    return found


def _reasons(cells: list[BenchCell]) -> list[str]:
    """Why settings have no number, each reason once with the settings it is about; without them where it is about all."""
    about: dict[str, list[str]] = {}
    for cell in cells:
        if cell.unmeasured:
            about.setdefault(cell.unmeasured, []).append(str(cell.setting or "adaptive"))
    return [why if len(what) == len(cells) else f"{', '.join(what)}: {why}" for why, what in about.items()]


def _grid(cells: list[BenchCell], sweep: BenchSweep) -> list[str]:
    by_setting = {cell.setting: cell for cell in cells}
    fixed = [setting for setting in by_setting if setting is not None]
    lanes = sorted({setting.lanes for setting in fixed})
    marks = _marks(sweep)
    rows = [["cold", *(f"-P {number}" for number in lanes)]]
    for span in dict.fromkeys(setting.span for setting in fixed):
        texts = [_time(by_setting.get(Setting(number, span)), marks) for number in lanes]
        rows.append([span_text(span), *texts])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    widths[0] = max(widths[0], len("adaptive"))
    lines = [
        "  " + "  ".join([f"{row[0]:<{widths[0]}}", *(f"{t:>{w}}" for t, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]  # fmt: skip
    if sweep.adaptive is not None:
        took = seconds_text(sweep.adaptive.seconds)
        lines.append(f"  {'adaptive':<{widths[0]}}  {took}{ended_text(sweep.ended_lanes)}")
    legend = [f"{_BEST} the best"]
    legend += [f"{_EVEN} even with it"] if sweep.even else []
    legend += [f"{_ONCE} measured once, so no candidate"] if sweep.once else []
    what = "each was measured once" if sweep.assumed else "times are medians"
    return [*lines, f"  {', '.join(legend)}; {what}"] if sweep.best else lines


def _marks(sweep: BenchSweep) -> dict[Setting | None, str]:
    marks: dict[Setting | None, str] = dict.fromkeys(sweep.once, _ONCE)
    marks |= {one.setting: _EVEN for one in sweep.even}
    return marks | ({sweep.best.setting: _BEST} if sweep.best else {})


def _time(cell: BenchCell | None, marks: dict[Setting | None, str]) -> str:
    if cell is None:
        return ""
    mark = marks.get(cell.setting, " ")
    if cell.seconds is None:
        return "slow " if cell.unmeasured == TOO_SLOW else "unknown "
    return f"{seconds_text(cell.seconds.median)}{mark}"


def ended_text(lanes: Sequence[int]) -> str:
    """With how many lanes the adaptive runs ended: `` (ended at -P 8)``; empty where nothing is known."""
    if not any(lanes):
        return ""  # there was nothing to read
    low, high = min(lanes), max(lanes)
    return f" (ended at -P {low})" if low == high else f" (ended at -P {low} to {high})"


def sweep_lines(sweep: BenchSweep) -> list[str]:
    """The verdict in words: the best setting, those even with it, how far from it ``stager warm`` is by itself, and what counts as even."""
    if sweep.best is None:
        return [f"no best setting: {sweep.unmeasured}"]
    best = "best"
    if sweep.untried:
        best = f"best of those tried (all but {count(len(sweep.untried), 'setting')})"
    lines = [f"{best}: {figure_text(sweep.best)}; {adaptive_text(sweep)}"]
    if sweep.even:
        named = ", ".join(figure_text(one, rate=False) for one in sweep.even)
        lines.append(f"even with it: {named if len(sweep.even) <= _NAMED else f'{len(sweep.even)} settings'}")
    share = f"{100 * sweep.noise:.0f}%"
    if sweep.assumed:
        lines.append(f"nothing was measured twice: what is within {share} is taken for even")
    else:
        lines.append(f"even is what is within {share}, by how far repeated runs of one setting lay apart")
    if sweep.noise > UNSTEADY:
        lines.append(
            "unsteady: runs of one setting lay that far apart; measure again while nobody else uses the machine, or with more --rounds"
        )
    return lines


def figure_text(figure: SweepFigure, *, rate: bool = True) -> str:
    """``-P 16 --span 64MiB: 0.75s (533.3 MiB/s)``."""
    speed = f" ({format_size(figure.rate)}/s)" if rate else ""
    return f"{figure.setting or 'adaptive'}: {seconds_text(figure.seconds)}{speed}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1.95 else f"{ratio:.1f}"


def adaptive_text(sweep: BenchSweep) -> str:
    """How ``stager warm`` by itself compares with the best: ``adaptive: 2.40s, 3.2 times as long``, or ``within the noise of it``."""
    if sweep.adaptive is None or sweep.ratio is None:
        return "adaptive: not measured"
    took = f"adaptive: {seconds_text(sweep.adaptive.seconds)}"
    if not sweep.beyond_noise:
        return f"{took}, within the noise of it"
    times = f"{took}, {_times(sweep.ratio)} times as long"
    if sweep.ratio > 1:
        return times
    return (
        f"{times}, which none of those tried reaches"
        if sweep.untried
        else f"{times}, which no setting reaches"
    )
