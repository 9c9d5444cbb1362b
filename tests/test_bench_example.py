"""The example of ``stager bench`` in the README: its table and its numbers come from the JSON lines that are kept beside its picture."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from stager.core.bench.reports import COLD, WARM, BenchCell, BenchResults, BenchRun, BenchSummary
from stager.core.bench.setting import Setting
from stager.core.bench.stats import make_cell
from stager.core.bench.table import table

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "scripts" / "bench" / "example"
README = (ROOT / "README.md").read_text("utf-8")


def built(kind: Any, body: Any) -> Any:
    """The object of type `kind` that was told as the JSON value `body`."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind, localns={"Setting": Setting})
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: built(hints[name], value) for name, value in body.items() if name in names})
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if body is None or origin is None:
        return body
    if origin in (types.UnionType, typing.Union):
        return built(next(one for one in inner if one is not types.NoneType), body)
    if origin is tuple:
        each = [inner[0]] * len(body) if len(inner) == 2 and inner[1] is Ellipsis else inner
        return tuple(built(one, value) for one, value in zip(each, body, strict=True))
    return body


@pytest.fixture(scope="module")
def results() -> BenchResults:
    """The benchmark of the example."""
    lines = [json.loads(line) for line in (EXAMPLE / "results.jsonl").read_text("utf-8").splitlines()]
    of: dict[str, list[Any]] = {}
    for line in lines:
        of.setdefault(line["type"], []).append(line)
    runs = tuple(built(BenchRun, line) for line in of["bench_run"])
    cells = tuple(built(BenchCell, line) for line in of["bench_cell"])
    return BenchResults(built(BenchSummary, {**of["bench"][0], "table": ""}), runs, cells)


def test_the_lines_are_read_back_as_they_were_told(results: BenchResults) -> None:
    lines = [json.loads(line) for line in (EXAMPLE / "results.jsonl").read_text("utf-8").splitlines()]
    again = [*results.runs, *results.cells, results.summary]
    assert [json.loads(json.dumps(one.as_json())) for one in again] == lines


def test_every_cell_follows_from_its_runs(results: BenchResults) -> None:
    for cell in results.cells:
        runs = [run for run in results.runs if run.key == cell.key]
        if not runs:
            continue
        assert make_cell(
            cell.storage, cell.filesystem, cell.method, cell.state, cell.loaders, file=cell.file, runs=runs,
            unmeasured=cell.unmeasured, setting=cell.setting,
        ) == cell  # fmt: skip


def test_three_kinds_of_storage_were_measured_with_nothing_left_out(results: BenchResults) -> None:
    assert [storage.filesystem for storage in results.summary.storages] == ["ext4", "fuse.lab", "oss"]
    assert not results.summary.quick
    assert not results.summary.ended
    assert results.summary.rounds >= 3
    measured = {(cell.storage, cell.state) for cell in results.cells if cell.seconds is not None}
    assert measured == {
        (storage.path, state) for storage in results.summary.storages for state in (COLD, WARM)
    }


def test_the_table_in_the_readme_is_that_of_the_lines(results: BenchResults) -> None:
    assert table(results.summary.storages, results.cells) in README


def test_the_picture_is_shown() -> None:
    picture = EXAMPLE / "report.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"]({picture.relative_to(ROOT)})" in README
