"""The report of a sweep: the chart is drawn to scale, and every number is that of the JSON lines."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.bench.setting import Setting
from stager.core.bench.sweep_chart import Line, Point, by_lanes, spread_out
from stager.jobs.bench.report import write_report
from tests import bench_samples
from tests.harness import MIB, Box
from tests.test_bench_report import lines_of, page_of, wrong_numbers

SVG = "{http://www.w3.org/2000/svg}"
points = st.builds(
    lambda lanes, some: Point(lanes, sorted(some)[1], min(some), max(some), "t", "run-r1", "best"),
    st.integers(1, 256),
    st.lists(st.floats(0, 1e11), min_size=3, max_size=3),
)
lines = st.builds(
    lambda label, some: Line(label, tuple(sorted(some, key=lambda one: one.lanes))),
    st.sampled_from(["whole", "256MiB", "1000001"]),
    st.lists(points, min_size=1, max_size=7, unique_by=lambda one: one.lanes),
)


@given(st.lists(lines, max_size=8), st.none() | points, st.sampled_from([760.0, 340.0]))
def test_marks_and_words_lie_within_the_drawing(made: list[Line], across: Point | None, width: float) -> None:
    root = ET.fromstring(by_lanes(made, across, width=width, label="l"))
    height = float(root.get("height") or 0)
    for mark in root.iter():
        for name, most in (
            ("x", width),
            ("x1", width),
            ("x2", width),
            ("y", height),
            ("y1", height),
            ("y2", height),
        ):
            assert 0 <= float(mark.get(name) or 0) <= most + 0.05
    drawn = [mark for mark in root.iter(f"{SVG}path") if (mark.get("class") or "").startswith("mark-")]
    assert len(drawn) == sum(len(line.points) for line in made) + len(made)  # and one beside each label


def test_marks_lie_where_their_numbers_say() -> None:
    """Heights are in proportion to rates, and doubling the lanes is the same step everywhere."""
    rates = {1: 1e8, 2: 2e8, 4: 3e8, 8: 6e8}
    line = Line("whole", tuple(Point(lanes, rate, rate, rate, "t", "") for lanes, rate in rates.items()))
    root = ET.fromstring(by_lanes([line], Point(1, 3e8, 3e8, 3e8, "t", ""), width=760, label="l"))
    path = next(mark for mark in root.iter(f"{SVG}path") if mark.get("class") == "line-0").get("d") or ""
    places = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    steps = [b[0] - a[0] for a, b in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.11)
    across = next(mark for mark in root.iter(f"{SVG}line") if mark.get("class") == "across")
    assert float(across.get("y1") or 0) == places[2][1]
    heights = [_floor(root) - y for _, y in places]
    for rate, height in zip(rates.values(), heights, strict=True):
        assert height / heights[-1] == pytest.approx(rate / 6e8, abs=0.002)


def _floor(root: ET.Element) -> float:
    """Where nothing would be."""
    across = [mark for mark in root.iter(f"{SVG}line") if mark.get("class") == "base"]
    return next(float(m.get("y1") or 0) for m in across if m.get("y1") == m.get("y2"))


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_never_touch_and_stay_in_order(wanted: list[float]) -> None:
    places = spread_out(sorted(wanted), 15, 20, 250)
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(places))
    assert all(place <= 250 for place in places)
    alone = spread_out([100.0], 15, 20, 250)
    assert alone == [100.0]


def test_lines_are_told_apart_by_more_than_hue() -> None:
    made = [Line(str(at), (Point(1, 1e8, 1e8, 1e8, "t", ""),)) for at in range(6)]
    root = ET.fromstring(by_lanes(made, None, width=760, label="l"))
    drawn = [mark for mark in root.iter(f"{SVG}path") if (mark.get("class") or "").startswith("mark-")]
    assert len({mark.get("d") for mark in drawn[:6]}) == len({mark.get("class") for mark in drawn}) == 6
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert {str(at) for at in range(6)} <= words


def test_the_page_says_what_the_verdicts_say(tmp_path: Path) -> None:
    write_report(bench_samples.swept(), str(tmp_path))
    verdicts = [line for line in lines_of(tmp_path) if line["type"] == "bench_sweep"]
    grids = {grid.id: grid for grid in page_of(tmp_path).grids}
    assert len(verdicts) == 3
    for at, (verdict, short) in enumerate(zip(verdicts, grids["in-short"].rows, strict=True), start=1):
        if verdict["best"] is None:
            assert f"sweep-{at}" not in grids
            assert short[3][0] == ""
            continue
        best = verdict["best"]
        assert short[4][1] == best["seconds"]
        assert math.isclose(short[7][1] or 0, verdict["ratio"])
        told = {row[0][0]: row[1][0] for row in grids[f"sweep-{at}"].rows}
        assert [name for name, says in told.items() if says == "best"] == [short[3][0]]
        assert sum(says == "even" for says in told.values()) == len(verdict["even"])
        assert sum(says == "measured once" for says in told.values()) == len(verdict["once"])


def test_a_real_sweep_is_reported_number_by_number(box: Box) -> None:
    model, folder = box.model(size=24 * MIB, shards=3), Path(box.path("report"))
    words = ["--sweep-lanes", "1,4", "--sweep-spans", "whole,4MiB", "--rounds", "2", "--report", str(folder)]
    done = box.run("bench", "--sweep", model, "--yes", "--json", *words)
    assert done.code == 0, str(done)
    assert wrong_numbers(folder) == []
    kinds = ("bench_run", "bench_cell", "bench_sweep", "bench")
    said = [line for line in map(json.loads, done.out.splitlines()) if line["type"] in kinds]
    assert sorted(said, key=json.dumps) == sorted(lines_of(folder), key=json.dumps)
    page = page_of(folder)
    assert {"in-short", "sweep-1", "machine", "storages"} <= {grid.id for grid in page.grids}
    assert not [grid for grid in page.grids if grid.id.startswith(("loads", "loaders", "files", "within"))]


def test_each_storage_is_warmed_by_hand_with_its_own_best_setting(tmp_path: Path) -> None:
    write_report(bench_samples.swept(), str(tmp_path))
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    best = [line["best"] for line in lines_of(tmp_path) if line["type"] == "bench_sweep" and line["best"]]
    assert len(best) > 1
    for one in best:
        setting = Setting(one["setting"]["lanes"], one["setting"]["span"])
        assert f"cold; time by_warm {setting} --no-adapt" in page


def test_the_best_setting_is_marked_in_the_chart(tmp_path: Path) -> None:
    write_report(bench_samples.swept(), str(tmp_path))
    page = next(tmp_path.glob("*.html")).read_text(encoding="utf-8")
    best = [line for line in lines_of(tmp_path) if line["type"] == "bench_sweep" and line["best"]]
    charts = [
        root for root in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "by lanes and span size" in root
    ]
    wide = [chart for chart in charts if ">best<" in chart]
    assert len(wide) == len(charts) >= len(best) > 0
