"""Metrics as text: whatever a run goes through, Prometheus' own parser reads back what the record says; the dashboard knows every name."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from stager.core.errors import NotFound, Stopped
from stager.core.events import Event, Failure, FileProblem, Note, Progress
from stager.core.metrics import FAMILIES, render
from stager.core.model import Known, Residency
from stager.core.record import Record, State
from stager.core.reports import Held, PathPages, Surveyed, WarmSummary
from stager.core.units import shown
from tests.test_events import SAMPLES, WARMED

DASHBOARD = Path(__file__).parent.parent / "k8s" / "dashboards" / "stager.json"
START = 1_700_000_000.0
_NAME = re.compile(r"\bstager_[a-z0-9_]+")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> tuple[list[Metric], Samples]:
    """The families and samples in `text`, by Prometheus' own parser; no series twice."""
    families = list(text_string_to_metric_families(text))
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return families, found


def value(found: Samples, name: str, **labels: str) -> float | None:
    """The value of the one series of `name` that has all of `labels`; None without one."""
    hits = [
        v
        for (one, given), v in found.items()
        if one == f"stager_{name}" and labels.items() <= dict(given).items()
    ]
    assert len(hits) <= 1, f"{name} {labels}: {hits}"
    return hits[0] if hits else None


def warmed(**changes: object) -> WarmSummary:
    return replace(WARMED, **changes)  # type: ignore[arg-type]


texts = st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
sizes = st.integers(0, 1 << 60)
residencies = st.builds(
    lambda total, share: Residency(int(total * share), total, Known.CACHESTAT), sizes, st.floats(0, 1)
) | st.builds(lambda total: Residency.unknown(total, "not the owner"), sizes)
pages = st.builds(PathPages, texts, st.integers(0, 10**6), residencies, sizes, sizes, sizes)
rows = st.lists(pages, max_size=4, unique_by=lambda row: row.path).map(tuple)
progress = st.builds(
    Progress,
    st.sampled_from(["warm", "fetch", "pull", "verify"]),
    sizes, sizes, st.floats(), st.none(), st.integers(0, 99), st.integers(0, 99), st.integers(0, 256), st.none(), st.floats(0, 1e9),
)  # fmt: skip
events = st.one_of(
    progress,
    st.builds(Surveyed, rows),
    st.builds(Held, rows, sizes),
    st.builds(lambda by_path: warmed(by_path=by_path), rows),
    st.sampled_from(list(SAMPLES.values())),
    st.builds(FileProblem, texts, st.none(), st.just("EIO"), texts),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(events, max_size=12),
    st.lists(texts, min_size=1, max_size=3),
    texts,
    texts,
    st.none() | st.integers(0, 255),
)
def test_whatever_happens_prometheus_can_read_it(
    happened: list[Event], models: list[str], source: str, name: str, code: int | None
) -> None:
    record = Record("warm", tuple(models), source, START)
    for at, event in enumerate(happened):
        record.note(event, START + at)
    if code is not None:
        record.end(code, START + 100)
    text = render(record, START + 200, version="1.2.3", name=name)
    text.encode()  # UTF-8, whatever the names were
    families, found = read(text)
    kinds = {family.name.removesuffix("_total"): family.kind for family in FAMILIES}
    assert all(kinds[family.name] == family.type for family in families)
    assert all(family.documentation for family in families)
    states = [v for (one, _), v in found.items() if one == "stager_state"]
    assert set(states) <= {0.0, 1.0}
    names = {name} if name else set(models)
    assert sum(states) == len({shown(one) for one in names}) == len(states) / len(State)
    labelled = {dict(labels)["model"] for (one, labels) in found if one == "stager_run_info"}
    assert labelled == {shown(one) for one in names}


def test_names_follow_the_conventions() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"stager_[a-z]+(_[a-z]+)*", family.name)
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert family.help.endswith(".")
        assert "\n" not in family.help
        assert "\\" not in family.help
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_a_run_from_begin_to_end() -> None:
    record = Record("warm", ("/m",), "", START)

    def now(at: float) -> Samples:
        return read(render(record, START + at, version="1"))[1]

    first = now(1)
    assert value(first, "state", state="running") == 1
    assert value(first, "run_exit_code") is None
    assert value(first, "resident_bytes") is None
    record.note(Surveyed((PathPages("/m", 3, Residency(10, 100, Known.CACHESTAT)),)), START + 2)
    record.note(Progress("warm", 40, 90, 20.0, 2.5, 1, 3, 4, None, 2.0), START + 4)
    half = now(5)
    assert value(half, "model_bytes", model="/m", command="warm") == 100
    assert (value(half, "resident_bytes"), value(half, "resident_checked_timestamp_seconds")) == (
        10,
        START + 2,
    )
    assert (value(half, "stage_done_bytes", stage="warm"), value(half, "stage_bytes")) == (40, 90)
    assert (value(half, "throughput_bytes_per_second"), value(half, "read_bytes_total")) == (20, 40)
    assert value(half, "run_seconds") == 5
    full = PathPages("/m", 3, Residency(100, 100, Known.CACHESTAT))
    record.note(warmed(read=90, rate=30.0, seconds=3.0, by_path=(full,)), START + 6)
    ready = now(7)
    assert (value(ready, "state", state="ready"), value(ready, "state", state="running")) == (1, 0)
    assert (
        value(ready, "resident_bytes"),
        value(ready, "run_exit_code"),
        value(ready, "read_bytes_total"),
    ) == (100, 0, 90)
    assert value(ready, "run_ended_timestamp_seconds") is None, "pages may still be held"
    record.note(Held((PathPages("/m", 3, Residency(60, 100, Known.CACHESTAT), 100, 40, 5),)), START + 8)
    held = now(9)
    assert [
        value(held, name)
        for name in ("resident_bytes", "held_bytes", "evicted_bytes_total", "brought_back_bytes_total")
    ] == [60, 100, 40, 5]
    record.note(Failure.of(Stopped(15)), START + 9)
    record.end(143, START + 10)
    last = now(99)
    assert (value(last, "state", state="stopped"), value(last, "run_exit_code")) == (1, 143)
    assert (value(last, "run_ended_timestamp_seconds"), value(last, "run_seconds")) == (START + 10, 10)


def test_numbers_are_written_as_prometheus_does() -> None:
    record = Record("warm", ("/m",), "", START)
    for verb, rate in (("warm", math.inf), ("fetch", math.nan), ("pull", 2.5e9), ("verify", -math.inf)):
        record.note(Progress(verb, 1 << 60, 1 << 60, rate, None, 0, 1, 1), START)
    lines = [line for line in render(record, START, version="1").splitlines() if "{" in line]
    rates = [line.split()[-1] for line in lines if line.startswith("stager_throughput")]
    assert rates == ["+Inf", "NaN", "2500000000.0", "-Inf"]
    assert {line.split()[-1] for line in lines if line.startswith("stager_stage_bytes")} == {str(1 << 60)}


def test_several_models_have_their_own_sizes_and_are_read_together() -> None:
    record = Record("warm", ("/a", "/b"), "", START)
    rows = tuple(
        PathPages(path, 1, Residency(size, size, Known.CACHESTAT)) for path, size in (("/a", 10), ("/b", 30))
    )
    record.note(Progress("warm", 5, 40, 1.0, None, 0, 2, 1), START)
    record.note(warmed(by_path=rows), START)
    found = read(render(record, START, version="1"))[1]
    assert (value(found, "resident_bytes", model="/a"), value(found, "resident_bytes", model="/b")) == (
        10,
        30,
    )
    assert value(found, "state", model="/b", state="ready") == 1
    assert value(found, "stage_bytes", model="/a,/b") == 40
    together = read(render(record, START, version="1", name="both"))[1]
    assert value(together, "resident_bytes", model="both") == 40
    assert value(together, "state", model="both", state="ready") == 1


@pytest.mark.parametrize(
    ("command", "happened", "code", "state"),
    [
        ("warm", [], 1, State.FAILED),
        ("warm", [Failure.of(NotFound("`/m`: nothing"))], 7, State.FAILED),
        ("warm", [Note("warning", "released", "released: nothing there")], 0, State.RELEASED),
        ("fetch", [SAMPLES["fetch"]], 0, State.RELEASED),  # --no-cache: the gate is open, and nothing is warm
        ("pull", [SAMPLES["pull"]], 0, State.COMPLETE),
        ("warm", [], 143, State.STOPPED),
        ("warm", [], 137, State.STOPPED),
    ],
)
def test_how_a_run_is_said_to_have_ended(
    command: str, happened: list[Event], code: int, state: State
) -> None:
    record = Record(command, ("/m",), "", START)
    for event in happened:
        record.note(event, START)
    record.end(code, START)
    assert (record.state, record.exit_code) == (state, code)


# The dashboard


def queries(dashboard: dict[str, object]) -> list[str]:
    """Every PromQL expression in it, variables' queries included."""
    found: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            found.extend(
                text
                for key, text in node.items()
                if key in ("expr", "query", "definition") and isinstance(text, str)
            )
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(dashboard)
    return found


def test_the_dashboard_shows_what_stager_writes_and_nothing_else() -> None:
    used = {name for query in queries(json.loads(DASHBOARD.read_text())) for name in _NAME.findall(query)}
    written = {family.name for family in FAMILIES}
    assert used - written == set(), "in the dashboard, and written by nobody"
    assert written - used == set(), "written, and in no panel"


def test_the_dashboard_asks_for_labels_and_states_that_exist() -> None:
    text = "\n".join(queries(json.loads(DASHBOARD.read_text())))
    labels = {"command", "model", "stage", "state", "source", "version", "instance", "__name__"}
    assert set(re.findall(r"[{,]\s*([a-z_]+)\s*(?:=~|!=|!~|=)", text)) <= labels
    assert {word for group in re.findall(r'state=~?"([a-z|]+)"', text) for word in group.split("|")} <= {
        s.value for s in State
    }


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "stager"
    assert board["id"] is None
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        assert panel["title"]
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(one["datasource"]["uid"] == "${datasource}" for one in (panel, *panel["targets"]))
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie on each other"
