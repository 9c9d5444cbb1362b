"""One unit for what stands in a column, so that its numbers can be compared at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from stager.core.bench.page_parts import Entry, Runs, Table
from stager.core.bench.svg import digits
from stager.core.units import GIB, KIB, MIB

_SIZES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_UNITS = {"s": 1.0, "ms": 1e-3, **_SIZES, **{f"{name}/s": size for name, size in _SIZES.items()}}
# What is less in its column's unit keeps its own.
_LEAST_TIME, _LEAST_SIZE = 0.001, 0.01
_MOST = 9_999.5  # five digits are no longer read at a glance


def in_one_unit(table: Table, *groups: Sequence[str]) -> Table:
    """`table` with the numbers of each of `groups` of columns in the unit of the one in the middle of the group's first column.

    Where the greatest would have five digits in it, they are in the greatest's.
    """
    rows = [list(row) for row in table.rows]
    for group in groups:
        columns = [table.columns.index(name) for name in group]
        unit = _common([row[columns[0]] for row in rows])
        for row in rows:
            for at in columns:
                row[at] = _written(row[at], unit)
    return replace(table, rows=tuple(tuple(row) for row in rows))


def _common(column: Sequence[Entry | Runs]) -> str:
    """The unit for `column`; empty without numbers. Nothing is nothing in every unit."""
    found = [(one.value, _unit(one)) for one in column if isinstance(one, Entry) and one.value and _unit(one)]
    if not found:
        return ""
    greatest, middle = max(found), median_low(found)
    return middle[1] if greatest[0] < _MOST * _UNITS[middle[1]] else greatest[1]


def _unit(entry: Entry) -> str:
    last = entry.text.rpartition(" ")[2] if isinstance(entry.text, str) else ""
    return last if last in _UNITS else ""


def _written(entry: Entry | Runs, unit: str) -> Entry | Runs:
    if isinstance(entry, Runs) or entry.value is None or not unit or not _unit(entry):
        return entry
    scaled = entry.value / _UNITS[unit]
    if scaled and scaled < (_LEAST_TIME if unit in ("s", "ms") else _LEAST_SIZE):
        return entry
    return replace(entry, text=f"{digits(scaled)} {unit}" if scaled else f"0 {unit}")
