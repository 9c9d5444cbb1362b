"""The report of ``stager bench``: well-formed whatever the paths are called, and every number that of its JSON lines.

The numbers are computed again from ``results.jsonl`` alone, by what each number's title says of it.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import stat
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stager.core.bench import charts as bench_charts
from stager.core.bench import page_parts, page_tables, page_units
from stager.core.bench import svg as bench_svg
from stager.core.bench.reports import BenchResults, BenchRun
from stager.core.bench.stats import make_cell, runs_of
from stager.core.errors import LocalIOError, StagerError
from stager.jobs.bench.report import prepare_folder, write_report
from tests import bench_samples
from tests.bench_page import Field, Grid, Page, markdown_tables
from tests.harness import Box, files_below

SAMPLES = {
    "realistic": bench_samples.realistic,
    "awkward": bench_samples.awkward,
    "empty": bench_samples.empty,
    "swept": bench_samples.swept,
}
Line = dict[str, Any]
Rule = Callable[[list[Line], list[Field]], object]


@pytest.fixture(params=SAMPLES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / str(request.param) / "report"
    write_report(SAMPLES[request.param](), str(folder))
    return folder


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text("utf-8"))


def lines_of(folder: Path) -> list[Line]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


# What it is made of


def test_the_page_is_whole_and_needs_nothing_else(written: Path) -> None:
    page = page_of(written)
    assert len(page.ids) == len(set(page.ids))
    links = [a["href"] for tag, a in page.tags if tag in ("a", "link")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(page.ids)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not {"script", "img", "iframe", "object", "foreignObject"} & {tag for tag, _ in page.tags}
    loads = [
        value
        for _, a in page.tags
        for name, value in a.items()
        if name in ("src", "srcset", "xlink:href", "data")
    ]
    assert loads == []
    handlers = [name for _, a in page.tags for name in a if name.startswith("on")]
    assert handlers == []
    text = (written / "report.html").read_text("utf-8")
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_a_tag_out_of_place_is_seen() -> None:
    for wrong in ("<p><b></p></b>", "<table>", "</p>"):
        with pytest.raises(AssertionError):
            Page(wrong)


def test_every_drawing_is_xml(written: Path) -> None:
    text = (written / "report.html").read_text("utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 2
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.get("aria-label")
        width, height = (float(root.get(name) or 0) for name in ("width", "height"))
        for text_ in root.iter("{http://www.w3.org/2000/svg}text"):
            assert 0 <= float(text_.get("x") or -1) <= width
            assert 0 <= float(text_.get("y") or -1) <= height


def test_there_is_no_empty_chart_of_loaders(written: Path) -> None:
    figures = re.findall(
        r'<figure id="loaders-.*?</figure>', (written / "report.html").read_text("utf-8"), re.DOTALL
    )
    assert all(drawing.count("#run-") for figure in figures for drawing in figure.split("</svg>")[:-1])
    assert len(figures) == {"realistic": 5, "awkward": 1, "empty": 0, "swept": 0}[written.parent.name]


def test_the_numbers_of_a_column_have_one_unit(tmp_path: Path) -> None:
    write_report(bench_samples.realistic(), str(tmp_path))
    units: dict[tuple[str, str], set[str]] = {}
    for grid in page_of(tmp_path).grids:
        for row in grid.rows if re.match(r"loads|loaders|time|files|within", grid.id) else ():
            for name, (text, value, _, _) in zip(grid.columns, row, strict=True):
                if value is not None and name != "size":
                    units.setdefault((grid.id, name), set()).add(text.partition(" ")[2])
    assert len(units) > 60
    assert {key: found for key, found in units.items() if len(found) > 1} == {}
    assert {*units["loads-1", "median"], *units["loads-2", "median"]} == {"s", "ms"}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0004, 2.0, 3.0], ["0.400 ms", "2.00 s", "3.00 s"]),
        ([0.0034, 0.0, 2.0, 3.0], ["0.00340 s", "0 s", "2.00 s", "3.00 s"]),
        ([0.25, 0.5, 38.0, 120.0], ["0.250 s", "0.500 s", "38.0 s", "120 s"]),
        ([0.25, 0.5, 9.0], ["250 ms", "500 ms", "9000 ms"]),
        ([0.0], ["0 s"]),
    ],
)
def test_what_is_far_from_the_others_keeps_its_unit(values: list[float], texts: list[str]) -> None:
    rows = tuple((page_tables.seconds(value, "how", ()),) for value in values)
    (table,) = [page_units.in_one_unit(page_parts.Table("t", ("a",), rows, 0), ("a",))]
    assert [row[0].text for row in table.rows if isinstance(row[0], page_parts.Entry)] == texts


def test_storages_of_different_amounts_have_scales_of_their_own_and_it_is_said(tmp_path: Path) -> None:
    whole = bench_samples.realistic()
    first, *others = whole.summary.storages
    other = replace(whole, summary=replace(whole.summary, storages=(replace(first, bytes=1 << 30), *others)))
    seen = []
    for name, results in (("same", whole), ("other", other)):
        write_report(results, str(tmp_path / name))
        text = (tmp_path / name / "report.html").read_text("utf-8")
        seen.append(
            ("Different amounts are read" in text, "a scale of its own" in text, 'id="compared"' not in text)
        )
    assert seen == [(False, False, False), (True, True, True)]


def test_a_node_that_pages_out_by_itself_is_told(tmp_path: Path) -> None:
    results = bench_samples.realistic()
    for shown_by, should in (("", "no, as far as can be seen"), ("/sys/x/action", "yes: /sys/x/action")):
        machine = replace(results.summary.machine, pages_out=shown_by)
        write_report(replace(results, summary=replace(results.summary, machine=machine)), str(tmp_path))
        (grid,) = [grid for grid in page_of(tmp_path).grids if grid.id == "machine"]
        assert ["pages out idle memory by itself", should] in grid.texts()


def test_the_first_chart_has_the_numbers_of_the_first_table(tmp_path: Path) -> None:
    results = bench_samples.realistic()
    write_report(results, str(tmp_path / "three"))
    text = (tmp_path / "three" / "report.html").read_text("utf-8")
    (figure,) = re.findall(r'<figure id="compared">.*?</figure>', text, re.DOTALL)
    wide = figure.split("</svg>")[0]
    drawn = re.findall(r'class="(?:head halo|says)">([^<]+)</text>', wide)
    (grid,) = [grid for grid in page_of(tmp_path / "three").grids if grid.id == "in-short"]
    columns = [
        grid.columns.index(name)
        for name in ("storage", "read, cold", "fastest cold load", "fastest second load")
    ]
    words = [row[at][0].split(" by ") for row in grid.rows for at in columns if row[at][0]]
    assert drawn == [one[0] for one in words]
    methods = {one[1] for one in words if len(one) > 1}
    assert methods <= set(re.findall(r'text-anchor="end">([^<]+)</text>', wide))
    few = replace(results, summary=replace(results.summary, storages=results.summary.storages[:1]))
    write_report(few, str(tmp_path / "one"))
    assert '<figure id="compared">' not in (tmp_path / "one" / "report.html").read_text("utf-8")


def test_what_paths_say_is_no_markup(tmp_path: Path) -> None:
    write_report(bench_samples.awkward(), str(tmp_path))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "\x1b" not in text
    evil = r'/mnt/<script>alert(1)</script>&"|`*_[x](http://e.invalid)\x1b[31m\xff/模型'
    assert any(grid.storage == evil for grid in page_of(tmp_path).grids)
    twin = (tmp_path / "report.md").read_text("utf-8")
    unfenced = re.sub(r"^(```+)\n.*?^\1$", "", twin, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", unfenced.replace("\\`", "'"))
    assert "script" not in outside
    assert r"\<b\>nothing\</b\> \| \`much\`" in twin
    assert "\x1b" not in twin


def test_the_twin_has_the_same_tables(written: Path) -> None:
    found = [grid.texts() for grid in page_of(written).grids]
    assert markdown_tables((written / "report.md").read_text("utf-8")) == found
    widths = {len(row) == len(rows[0]) for rows in found for row in rows}
    assert widths == {True}


def test_the_lines_are_the_results_and_lie_in_the_page_too(tmp_path: Path) -> None:
    results = bench_samples.realistic()
    write_report(results, str(tmp_path))
    raw = (tmp_path / "results.jsonl").read_bytes()
    events = [*results.runs, *results.cells, results.summary]
    assert [json.loads(line) for line in raw.splitlines()] == [
        json.loads(json.dumps(one.as_json())) for one in events
    ]
    page = page_of(tmp_path)
    (link,) = [a["href"] for tag, a in page.tags if tag == "a" and "download" in a]
    assert base64.b64decode(link.partition(",")[2]) == raw
    words = "".join(page.words)
    assert all(line in words for line in raw.decode().splitlines())


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(bench_samples.realistic(), str(tmp_path / name))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    text = (tmp_path / "a" / "report.html").read_text("utf-8")
    visible = text.split("<details>")[0]
    assert len(re.findall(r"\d{4}-\d\d-\d\dT\d\d", re.sub(r"base64,[\w+/=]+", "", visible))) == 1


# Every number


def spread(key: str, how: Callable[[list[float]], float]) -> Rule:
    def values(runs: list[Line]) -> list[float]:
        return [v for run in runs for v in (run[key] if isinstance(run[key], list) else [run[key]])]

    return lambda runs, _: how(values(runs))


def against(runs: list[Line], row: list[Field]) -> float:
    cold = [r for r in runs if (r["method"], r["state"]) == ("read", "cold")]
    mine = [r for r in runs if (r["method"], r["state"]) == method_of(row)]
    return statistics.median(r["seconds"] for r in cold) / statistics.median(r["seconds"] for r in mine)


def method_of(row: list[Field]) -> tuple[str, str]:
    at = next(at for at, one in enumerate(row) if one[0] in ("cold", "second"))
    return row[at - 1][0], "cold" if row[at][0] == "cold" else "warm"


def rate(runs: list[Line], _: list[Field]) -> float:
    return float(runs[0]["bytes"] / statistics.median(r["seconds"] for r in runs))


def by_setting(runs: list[Line], *, first: bool) -> float:
    """The median of the runs with the first run's setting, or of those with another, which are the best's; of all where there is no other."""
    mine = [r["seconds"] for r in runs if (r["setting"] == runs[0]["setting"]) == first]
    return statistics.median(mine or [r["seconds"] for r in runs])


def file_values(key: str) -> Rule:
    def found(runs: list[Line], row: list[Field]) -> list[float]:
        return [file[key] for run in runs for file in run["files"] if file["path"] == row[0][0]]

    return lambda runs, row: statistics.median(found(runs, row))


def on_the_line(at: int) -> Rule:
    """A point of the timeline; the beginning, where nothing has come, need not be among them."""
    return lambda runs, _: {0, *(point[at] for point in runs[0]["timeline"])}


def file_rate(runs: list[Line], row: list[Field]) -> float:
    return float(file_values("bytes")(runs, row)) / float(file_values("seconds")(runs, row))  # type: ignore[arg-type]


MEDIAN = statistics.median
RULES: dict[str, Rule] = {
    **{
        f"{word} of {key}": spread(key, how)
        for key in ("seconds", "loader_seconds")
        for word, how in {
            "median": MEDIAN,
            "mean": statistics.fmean,
            "least": min,
            "greatest": max,
            "standard deviation": statistics.stdev,
        }.items()
    },
    "median of cpu_seconds": spread("cpu_seconds", MEDIAN),
    "median of device_bytes": lambda runs, _: int(
        MEDIAN(r["device_bytes"] for r in runs if r["device_bytes"] is not None)
    ),
    "bytes / median of seconds": rate,
    "median of read, cold / median": against,
    "median / median of the best": lambda runs, _: (
        by_setting(runs, first=True) / by_setting(runs, first=False)
    ),
    "runs in the numbers": lambda runs, _: len(runs),
    "runs left out, disturbed or failed": lambda runs, _: sum(
        bool(r["disturbed"] or r["failed"]) for r in runs
    ),
    "loaders": lambda runs, row: runs[0]["loaders"] if runs else float(row[2][0]),
    "bytes": lambda runs, _: runs[0]["bytes"],
    "bytes of the file": file_values("bytes"),
    "median of the file's seconds": file_values("seconds"),
    "bytes / median of the file's seconds": file_rate,
    "timeline, seconds": on_the_line(0),
    "timeline, bytes": on_the_line(1),
    "timeline, lanes": on_the_line(2),
}
SINCE = "bytes since the row above / seconds since the row above"
STORED = "bytes of the storage in the line of type bench"
HEADS = {  # what a column's name promises; in tables of several loaders it is each loader's time
    "median": "median", "mean": "mean", "fastest": "least", "slowest": "greatest", "st. dev.": "standard deviation",
    "all loaded": "median of seconds", "throughput": "bytes", "CPU": "median of cpu_seconds", "from below": "median of device_bytes",
    "against read": "median of read, cold / median", "rounds": "runs in", "left out": "runs left out", "loaders": "loaders",
    "size": "bytes", "bytes": "bytes", "read, cold": "median of seconds", "fastest cold load": "median of seconds",
    "fastest second load": "median of seconds", "since the run began": "timeline, seconds", "bytes so far": "timeline, bytes",
    "lanes, P": "timeline, lanes", "best": "median of seconds", "adaptive": "median of seconds", "against best": "median / median of the best",
}  # fmt: skip
FACTS = ("machine", "storages")  # tables of what is no measurement
UNITS = {
    "s": 1.0,
    "ms": 0.001,
    "B": 1.0,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "TiB": 2.0**40,
    "x": 1.0,
    "": 1.0,
}


def read_back(text: str) -> float:
    """The number that `text` says."""
    found = re.fullmatch(r"([\d.e+-]+) ?([a-zA-Z]*)(?:/s)?(?: by \S+)?", text)
    assert found, text
    return float(found[1]) * UNITS[found[2]]


def wrong_numbers(folder: Path) -> list[str]:
    """Every number of the page's tables that is not what its JSON lines give."""
    lines = lines_of(folder)
    by_id = {line["run"]: line for line in lines if line["type"] == "bench_run"}
    summary = lines[-1]
    sizes = {bench_svg.shown(one["path"]): one["bytes"] for one in summary["storages"]}
    bad = []
    for grid in page_of(folder).grids:
        for at, row in enumerate(grid.rows):
            for name, (text, value, title, _) in zip(grid.columns, row, strict=True):
                if value is None:
                    if grid.id not in FACTS and re.fullmatch(r"[\d.]+ ?(s|ms|x|[KMGT]i?B(/s)?)", text):
                        bad.append(f"{grid.id} {name}: {text} has no value")
                    continue
                how, _, ids = title.partition("; ")
                runs = [by_id[one] for one in ids.split()[1:]]
                if not how.startswith(HEADS[name]) or ("loader_seconds" in how) != of_each(grid, name):
                    bad.append(f"{grid.id} {name}: it is the {how}")
                if how == STORED:
                    should: object = sizes[row[0][0]]
                elif how == SINCE:
                    before = grid.rows[at - 1]
                    should = (row[1][1] - before[1][1]) / (row[0][1] - before[0][1])  # type: ignore[operator]
                else:
                    should = RULES[how](runs, row)
                if not close(value, should) or not right_runs(grid, row, how, runs, lines):
                    bad.append(f"{grid.id} {name}: {value} is not {should}")
                if abs(read_back(text) - value) > 0.0051 * abs(value) + 0.0000006:
                    bad.append(f"{grid.id} {name}: {text} is not {value}")
    return bad


def of_each(grid: Grid, column: str) -> bool:
    """Whether the numbers of `column` are those of each loader."""
    return grid.id.startswith("loaders-") and column in ("median", "mean", "fastest", "slowest", "st. dev.")


def close(value: float, should: object) -> bool:
    if isinstance(should, set):
        return any(close(value, one) for one in should) or value in should
    return math.isclose(value, float(should), rel_tol=1e-9, abs_tol=1e-12)  # type: ignore[arg-type]


def right_runs(grid: Grid, row: list[Field], how: str, runs: list[Line], lines: list[Line]) -> bool:
    """Whether `runs` are all those that the row is about, and no others."""
    kind = grid.id.split("-")[0]
    if kind not in ("loads", "loaders") or how == "median of read, cold / median":
        return True
    method, state = method_of(row)
    loaders = (
        {int(row[2][0])}
        if kind == "loaders"
        else {min(c["loaders"] for c in lines if c["type"] == "bench_cell" and not c["file"])}
    )
    left = how.startswith("runs left out")
    mine = [
        r
        for r in lines
        if r["type"] == "bench_run"
        and (bench_svg.shown(r["storage"]), r["file"], r["method"], r["state"])
        == (grid.storage, "", method, state)
        and r["loaders"] in loaders
        and bool(r["disturbed"] or r["failed"]) == left
    ]
    links = {link for one in row for link in one[3]}
    return mine == runs and (left or links == {f"#run-{r['run']}" for r in mine})


def test_every_number_follows_from_its_lines(written: Path) -> None:
    assert wrong_numbers(written) == []


def test_a_wrong_number_is_seen(tmp_path: Path) -> None:
    write_report(bench_samples.realistic(), str(tmp_path))
    page = tmp_path / "report.html"
    text = page.read_text("utf-8")
    values = list(re.finditer(r'data-value="([^"]+)"', text))
    assert len(values) > 500
    for at in (0, 40, 300, len(values) - 1):
        found = values[at]
        wrong = f'data-value="{float(found[1]) * 1.02 + 1e-3}"'
        page.write_text(text[: found.start()] + wrong + text[found.end() :], "utf-8")
        assert wrong_numbers(tmp_path) != []


TIMES = st.floats(1e-6, 5e4, allow_nan=False)
NAMES = st.text(max_size=12).map(lambda text: f"/mnt/{text}")


def ascending(points: list[tuple[float, int, int]]) -> tuple[tuple[float, int, int], ...]:
    """Times and bytes never go back."""
    times, sizes = sorted(point[0] for point in points), sorted(point[1] for point in points)
    return tuple((when, size, point[2]) for when, size, point in zip(times, sizes, points, strict=True))


@st.composite
def benchmarks(draw: st.DrawFn) -> BenchResults:
    """Any results: odd names, few or many runs, cells without one."""
    places = tuple(
        bench_samples.storage(path, draw(st.sampled_from(["ext4", "fuse.x"])))
        for path in draw(st.lists(NAMES, min_size=1, max_size=2, unique_by=bench_svg.shown))
    )
    runs: list[BenchRun] = []
    cells = []
    kinds = st.tuples(
        st.sampled_from(["read", "warm", "mmap-names"]),
        st.sampled_from(["cold", "warm"]),
        st.sampled_from([1, 4]),
    )
    for place in places:
        for method, state, loaders in draw(st.lists(kinds, unique=True, max_size=5)):
            size = draw(st.integers(1, 1 << 42))
            for number in range(draw(st.integers(0, 3))):
                each = tuple(draw(st.lists(TIMES, min_size=loaders, max_size=loaders)))
                fate = draw(st.sampled_from(["", "", "", "disturbed", "failed"]))
                points = draw(
                    st.lists(st.tuples(TIMES, st.integers(0, 1 << 42), st.integers(0, 99)), max_size=30)
                )
                runs.append(
                    replace(
                        bench_samples.realistic_run(),
                        storage=place.path,
                        method=method,
                        state=state,
                        loaders=loaders,
                        round=number + 1,
                        run=f"r{len(runs)}",
                        bytes=size,
                        seconds=max(each),
                        loader_seconds=each,
                        cpu_seconds=draw(TIMES),
                        device_bytes=draw(st.none() | st.integers(0, 1 << 42)),
                        disturbed=fate == "disturbed",
                        failed=fate and draw(st.text(min_size=1, max_size=9)) if fate == "failed" else "",
                        reason=draw(st.text(max_size=9)),
                        timeline=ascending(points) if method == "warm" else (),
                    )
                )
            mine = runs_of(runs, place.path, method, state, loaders, "")
            cells.append(make_cell(place.path, place.filesystem, method, state, loaders, file="", runs=mine))
    made = bench_samples.Maker()
    made.runs, made.cells = runs, cells
    return made.results(places)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(results=benchmarks())
def test_any_benchmark_gives_a_sound_report(results: BenchResults, tmp_path: Path) -> None:
    write_report(results, str(tmp_path))
    page = page_of(tmp_path)
    assert len(page.ids) == len(set(page.ids))
    for drawing in re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text("utf-8"), re.DOTALL):
        ET.fromstring(drawing)
    found = [grid.texts() for grid in page.grids]
    seen = markdown_tables((tmp_path / "report.md").read_text("utf-8"))
    assert [[[" ".join(one.split()) for one in row] for row in rows] for rows in seen] == [
        [[" ".join(one.split()) for one in row] for row in rows] for rows in found
    ]
    assert wrong_numbers(tmp_path) == []


# Charts


@given(st.floats(1e-9, 1e15))
def test_ticks_are_round_few_and_reach_the_top(top: float) -> None:
    found = bench_svg.ticks(top)
    assert found[0] == 0
    assert found[-2] < top <= found[-1] * (1 + 1e-9)
    assert 3 <= len(found) <= 8
    mantissas = {f"{value / 10 ** math.floor(math.log10(found[1])):.6g}" for value in found[1:2]}
    assert mantissas <= {"1", "2", "2.5", "5", "10"}


def test_ticks_of_nothing() -> None:
    assert bench_svg.ticks(0) == [0, 1]
    assert bench_svg.ticks(math.inf) == [0, 1]


@given(TIMES)
def test_times_keep_three_digits(value: float) -> None:
    text = bench_svg.seconds_text(value)
    assert abs(read_back(text) - value) <= 0.0051 * value + 6e-7
    assert len(re.sub(r"\D", "", text).lstrip("0")) <= max(3, len(str(round(value))))


@given(st.integers(0, 1 << 48))
def test_sizes_keep_three_digits(value: int) -> None:
    assert abs(read_back(bench_svg.size_text(value)) - value) <= 0.0051 * value


@given(st.lists(st.lists(st.floats(0, 1e4), max_size=20), max_size=8), st.sampled_from([760.0, 340.0]))
def test_marks_lie_within_their_drawing(rows: list[list[float]], width: float) -> None:
    made = [
        bench_charts.Row("a method" if at % 2 else "", tuple(v), "1.00 s", "t", second=at % 2 == 0)
        for at, v in enumerate(rows)
    ]
    for draw in (bench_charts.bars, bench_charts.strips):
        root = ET.fromstring(draw(made, width=width, name="x", axis="time", label="l"))
        height = float(root.get("height") or 0)
        for mark in root.iter():
            x = [float(mark.get(name) or 0) for name in ("x", "x1", "x2")]
            y = [float(mark.get(name) or 0) for name in ("y", "y1", "y2")]
            assert min(x) >= 0
            assert max(x) + float(mark.get("width") or 0) * ("x" in mark.attrib) <= width
            assert min(y) >= 0
            assert max(y) <= height


def test_a_bar_is_as_long_as_its_median() -> None:
    row = bench_charts.Row("m", (2.0, 4.0, 9.0), "4.00 s", "t")
    root = ET.fromstring(bench_charts.bars([row], width=760, name="x", axis="time", label="l"))
    space = "{http://www.w3.org/2000/svg}"
    bar = next(
        one
        for one in root.iter(f"{space}rect")
        if one.get("class") == "cold-bar" and float(one.get("y") or 0) > 20
    )
    grid = [
        float(one.get("x1") or 0) for one in root.iter(f"{space}line") if one.get("class") in ("base", "grid")
    ]
    top = bench_svg.ticks(9.0)[-1]
    assert float(bar.get("width") or 0) == pytest.approx((grid[-1] - grid[0]) * 4 / top, abs=0.11)
    whisker = next(one for one in root.iter(f"{space}line") if one.get("class") == "whisker")
    ends = [(float(whisker.get(name) or 0) - grid[0]) / (grid[-1] - grid[0]) * top for name in ("x1", "x2")]
    assert ends == pytest.approx([2.0, 9.0], abs=0.01)


def test_a_run_over_time_is_drawn_whole() -> None:
    points = [(0.5, 0, 0), (1.0, 1 << 30, 4), (1.5, 2 << 30, 4)]
    drawn = bench_charts.timeline(points, seconds=2.0, width=760, label="l")
    root = ET.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    ladder = next(one for one in root.iter(f"{space}line") if one.get("class") == "base")
    left, right = (float(ladder.get(name) or 0) for name in ("x1", "x2"))
    shades = {
        (float(one.get("x") or 0), float(one.get("width") or 0))
        for one in root.iter(f"{space}rect")
        if one.get("class") == "phase"
    }
    parts = sorted(
        ((x - left) / (right - left) * 2, (x + wide - left) / (right - left) * 2) for x, wide in shades
    )
    assert [pytest.approx(part, abs=0.01) for part in parts] == [(0, 0.5), (1.5, 2)]
    words = [one.text for one in root.iter(f"{space}text")]
    assert {"starting", "verifying"} <= set(words)
    line = next(one for one in root.iter(f"{space}path") if one.get("class") == "rate-line")
    assert (line.get("d") or "").startswith(f"M{left + (right - left) / 4:.1f} ")


# Writing


def test_files_are_replaced_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_report(bench_samples.empty(), str(tmp_path))
        before = (tmp_path / "report.html").read_text("utf-8")
        write_report(bench_samples.awkward(), str(tmp_path))
    finally:
        os.umask(old)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.md", "results.jsonl"]
    assert (tmp_path / "report.html").read_text("utf-8") != before
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}


def test_where_it_cannot_be_written_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nowhere")):
        for attempt in (
            lambda f=folder: write_report(bench_samples.empty(), str(f)),
            lambda f=folder: prepare_folder(str(f)),
        ):
            with pytest.raises(StagerError) as caught:
                attempt()
            assert caught.value.message.startswith(f"cannot write the report into `{folder}`: ")
            assert "\n" not in caught.value.message
            assert caught.value.hint == "give `--report` a folder that can be written"
            assert caught.value.exit_code in (6, 7, 9)


def test_what_was_begun_is_removed_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(LocalIOError):
        write_report(bench_samples.empty(), str(tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


# The real thing


def test_a_real_benchmark_is_reported_number_by_number(box: Box) -> None:
    model, folder = box.model(), Path(box.path("report"))
    words = [
        "--methods",
        "read,mmap-names,warm",
        "--loaders",
        "1,2",
        "--rounds",
        "2",
        "--per-file",
        "--report",
        str(folder),
    ]
    done = box.run("bench", model, "--yes", "--json", *words)
    assert done.code == 0, str(done)
    grids = {grid.id.split("-")[0]: grid for grid in page_of(folder).grids}
    assert len(grids["loads"].rows) == 6
    assert len(grids["loaders"].rows) == 8
    assert {"in", "files", "within", "machine", "storages"} <= set(grids)
    assert wrong_numbers(folder) == []
    there = lines_of(folder)[-1]["folder"]
    assert there == os.getcwd()
    assert f"run in {there}; relative names begin there" in "".join(page_of(folder).words)
    said = [
        line
        for line in done.out.splitlines()
        if json.loads(line)["type"] in ("bench_run", "bench_cell", "bench")
    ]
    kept = (folder / "results.jsonl").read_text("utf-8").splitlines()
    assert sorted(map(json.loads, said), key=json.dumps) == sorted(map(json.loads, kept), key=json.dumps)


def test_a_report_that_cannot_be_written_is_known_before_anything_is_read(box: Box) -> None:
    model = box.model()
    for folder, code in ((f"{model}/report", 2), (f"{model}/config.json/report", 2), ("/dev/null/report", 7)):
        done = box.run("bench", model, "--yes", "--json", "--report", folder)
        assert done.code == code, str(done)
        assert [line["type"] for line in map(json.loads, done.out.splitlines())] == ["error"]
    assert sorted(os.listdir(model)) == sorted(os.path.basename(path) for path in files_below(model))
