"""Both faces of every event, held by golden files; names that are not UTF-8 or hold newlines stay on one line.

After a wanted change: ``UPDATE_GOLDEN=1 pytest tests/test_events.py``, then read the difference.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stager.core
from stager.core import errors
from stager.core.bench.reports import BenchEngine, BenchFile, BenchMachine, BenchPace, BenchRun, BenchSummary
from stager.core.bench.setting import Setting
from stager.core.bench.stats import make_cell
from stager.core.bench.verdict import BenchSweep, SweepFigure
from stager.core.events import Event, Failure, FileProblem, FileResidency, Note, Progress, Stall, jsonable
from stager.core.fetch_reports import FetchForecast, FetchSummary
from stager.core.model import Known, Residency
from stager.core.pull_reports import PullForecast, PullSummary, VerifySummary
from stager.core.reports import (
    EvictSummary,
    Forecast,
    Held,
    HoldSummary,
    PathPages,
    Readiness,
    StatusTotal,
    Surveyed,
    WarmSummary,
)
from stager.core.store_reports import Listing, ManifestFacts, Permission, StoredFile, StoreForecast
from stager.core.units import GIB, MIB

GOLDEN = Path(__file__).parent / "golden" / "report"

AWKWARD = os.fsdecode(b"/m/two\nlines-\xff.bin")

WARMED = WarmSummary(
    outcome="resident",
    state="ready",
    exit_code=0,
    reason="",
    paths=("/m",),
    files=17,
    files_resident=17,
    residency=Residency(64 * GIB, 64 * GIB, Known.CACHESTAT, 0),
    read=64 * GIB,
    already=0,
    brought_back=0,
    seconds=30.5,
    rate=2.1 * GIB,
    lanes=4,
    peak=6,
    split=True,
    touch="populate",
    skipped=0,
    missing=(),
    replaced=0,
    unknown_origin=0,
    binding="",
    marker="/run/stager/ready.json",
)

LISTED = Listing(
    location="oss://bucket/models/r1",
    files=17,
    total=64 * GIB,
    skipped=1,
    formats=("safetensors",),
    complete="yes",
    reasons=("yes, by manifest, names and indexes",),
    manifest=ManifestFacts("org/r1", "v2", "complete", 17),
    broken=False,
)

REACHED = StoreForecast(
    location="oss://bucket/models/r1",
    exit_code=0,
    reason="",
    endpoint="http://oss-cn-hangzhou-internal.aliyuncs.com",
    region="cn-hangzhou",
    style="virtual",
    credentials="RRSA role acs:ram::1:role/reader",
    expires=1767225600.0,
    answered_in=0.004,
    permissions=(
        Permission("list", allowed=True, needed=True, why=""),
        Permission("put", allowed=None, needed=False, why="--put tries it"),
        Permission("list uploads", allowed=False, needed=False, why="AccessDenied"),
    ),
    files=17,
    total=64 * GIB,
    formats=("safetensors",),
    complete="yes",
    manifest=ManifestFacts("org/r1", "v2", "complete", 17),
    archived=(),
    unfinished=2,
    oldest=259200.0,
    sections=(("where", ("oss://bucket/models/r1",)), ("verdict", ("a fetch would begin, exit 0",))),
)

FETCHED = FetchSummary(
    source="oss://bucket/models/r1",
    folder="/models/r1",
    complete=True,
    reason="",
    files=17,
    total=64 * GIB,
    fetched=60 * GIB,
    resumed=3 * GIB,
    already=GIB,
    seconds=30.5,
    rate=2.1 * GIB,
    lanes=16,
    peak=24,
    processes=1,
    verified="crc64",
    unproven=0,
    trusted=0,
    retried=3,
    replaced=1,
    mended=0,
    removed=0,
    skipped=1,
    credentials="RRSA role acs:ram::1:role/models",
)

PULLED = PullSummary(
    source="ms://deepseek-ai/DeepSeek-R1-0528",
    revision="4236a6af538feda4548eca9ab308586007567f52",
    dest="oss://bucket/models/r1",
    complete=True,
    reason="",
    files=163,
    total=int(688.6 * GIB),
    pulled=int(688.6 * GIB),
    landed=739_462_057_984,
    resumed=0,
    already=0,
    read_back=0,
    seconds=312.0,
    rate=2.2 * GIB,
    lanes=16,
    peak=24,
    verified="sha256",
    unproven=0,
    retried=0,
    replaced=0,
    mended=0,
    removed=0,
    left_out=0,
    credentials="RRSA role acs:ram::1:role/models",
)

FLAWS = ("b.gguf: truncated", "c.gguf: zero length")

WOULD_PULL = PullForecast(
    source="hf://org/r1",
    revision="4236a6af538feda4548eca9ab308586007567f52",
    dest="oss://bucket/models/r1",
    files=17,
    total=64 * GIB,
    present=GIB,
    to_pull=63 * GIB,
    resumable=2,
    left_out=(("pytorch_model.bin", "a PyTorch copy of the safetensors"), (AWKWARD, "a picture or a video")),
    removes=(AWKWARD,),
    verdict="a run would begin",
)

VERIFIED = VerifySummary(
    location="oss://bucket/models/r1",
    ok=True,
    files=163,
    total=int(688.6 * GIB),
    read=int(688.6 * GIB),
    seconds=300.0,
    rate=2.2 * GIB,
    by="sha256",
    wrong=(),
    unproven=0,
    bare=0,
)

BENCH_RUN = BenchRun(
    storage="/mnt/oss/r1",
    filesystem="fuse.ossfs2",
    method="read",
    state="cold",
    loaders=2,
    round=1,
    run="r1",
    file="",
    bytes=2 << 30,
    seconds=4.0,
    loader_seconds=(3.5, 4.0),
    files=(BenchFile("model-00001-of-00002.safetensors", 1 << 30, 1.75),),
    cpu_seconds=0.5,
    device_bytes=None,
    resident_before=0,
    resident_after=2 << 30,
    residency_by="cachestat",
    timeline=((1.0, 1 << 29, 4),),
)
BENCH = BenchSummary(
    machine=BenchMachine("6.18", 4, 23 << 30, 20 << 30, "classic", 0.5, "3.11.7", "0.1.0"),
    storages=(),
    methods=("read",),
    loaders=(2,),
    rounds=1,
    quick=True,
    to="",
    began="2026-01-31T12:00:00Z",
    seconds=14.0,
    runs=1,
    disturbed=1,
    failed=1,
    unmeasured=0,
    limits=("copies into a GPU or an engine's own memory",),
    command="stager bench /mnt/oss/r1 --quick --yes",
    folder="/root",
    report="bench-r1",
    table="the table",
)

BENCH_SWEEP = BenchSweep(
    storage="/mnt/oss/r1",
    filesystem="fuse.ossfs2",
    bytes=2 << 30,
    best=SweepFigure(Setting(16, 64 << 20), 4.0, float(1 << 29), ("r1", "r4")),
    even=(SweepFigure(Setting(32, 64 << 20), 4.0, float(1 << 29), ("r2", "r5")),),
    adaptive=SweepFigure(None, 6.0, (2 << 30) / 6.0, ("r3", "r6")),
    ended_lanes=(8, 12),
    ratio=1.5,
    beyond_noise=True,
    noise=0.05,
    assumed=False,
    once=(Setting(1, 0),),
    untried=(),
    command="stager warm /mnt/oss/r1 -P 16 --span 64MiB --no-adapt",
)
STARTED = replace(
    BENCH_RUN,
    run="r5",
    method="warm+engine",
    loaders=1,
    before_seconds=3.0,
    caveat="when the engine was ready 1.0 GiB of 2.0 GiB were not resident",
)

SAMPLES: dict[str, Event] = {
    "note-info": Note("info", "second_run", "everything is resident already"),
    "note-warning": Note("warning", "marker", "/run/stager: read-only", hint="name one with `--marker`"),
    "progress": Progress("warm", int(26.4 * GIB), 64 * GIB, 2.1 * GIB, 18.0, 7, 17, 4, 0.61, 13.2),
    "progress-start": Progress("warm", 0, 64 * GIB, 0.0, None, 0, 17, 4),
    "progress-almost": Progress("warm", 64 * GIB - 1, 64 * GIB, 2.1 * GIB, 0.0, 16, 17, 1, 0.615, 40.0),
    "progress-done": Progress("warm", 64 * GIB, 64 * GIB, 2.1 * GIB, None, 17, 17, 0, 0.9, 40.0),
    "progress-units": Progress("warm", 700 * MIB, 64 * GIB, 900.5 * MIB, 72.0, 0, 17, 4),
    "progress-empty": Progress("warm", 0, 0, 0.0, None, 0, 0, 0),
    "problem-read": FileProblem("/m/a.safetensors", 4096, "EIO", "input/output error"),
    "problem-open": FileProblem(AWKWARD, None, "EACCES", "permission denied"),
    "stall": Stall(61.0, ("/m/a", AWKWARD)),
    "stall-many": Stall(600.0, tuple(f"/m/{i}" for i in range(7))),
    "stall-call": Stall(61.0, (), ("looking at /m/a",)),
    "residency": FileResidency("/m/a.safetensors", Residency(4 * GIB, 4 * GIB, Known.CACHESTAT, 0)),
    "residency-part": FileResidency(AWKWARD, Residency(4 * GIB - 1, 4 * GIB, Known.MINCORE)),
    "residency-estimate": FileResidency(
        "/m/b", Residency(3 * GIB, 4 * GIB, Known.SAMPLED, None, "not owner")
    ),
    "residency-unknown": FileResidency("/m/c", Residency.unknown(4 * GIB, "overlayfs")),
    "residency-zero": FileResidency("/m/empty", Residency(0, 0, Known.CACHESTAT, 0)),
    "warm": WARMED,
    "warm-again": replace(WARMED, read=0, already=64 * GIB, seconds=0.2, rate=0.0, lanes=0, peak=0),
    "warm-partial": replace(
        WARMED,
        outcome="partial",
        state="partial",
        reason="does not fit below memory.max of /kubepods/pod1 (40.0 GiB)",
        files_resident=9,
        residency=Residency(40 * GIB, 64 * GIB, Known.MINCORE),
        missing=((AWKWARD, 8 * GIB), *((f"/m/{i}", 2 * GIB) for i in range(12))),
        lanes=1,
    ),
    "warm-unverified": replace(
        WARMED, state="unverified", residency=Residency.unknown(64 * GIB, "overlayfs")
    ),
    "warm-estimated": replace(
        WARMED, residency=Residency(63 * GIB, 64 * GIB, Known.SAMPLED, None, "not owner")
    ),
    "forecast": Forecast(
        outcome="resident",
        state="ready",
        exit_code=0,
        formats=("safetensors",),
        files=17,
        total=64 * GIB,
        to_read=64 * GIB,
        residency=Residency(0, 64 * GIB, Known.CACHESTAT, 0),
        defects=(),
        sections=(("files", ("17 files, 64.0 GiB", "safetensors, complete")), ("memory", ("fits",))),
    ),
    "fetch": FETCHED,
    "fetch-again": replace(
        FETCHED, fetched=0, resumed=0, already=64 * GIB, retried=0, replaced=0, trusted=163
    ),
    "fetch-unfinished": replace(FETCHED, complete=False, reason="run it again to go on"),
    "fetch-unproven": replace(FETCHED, verified="", unproven=17, processes=4, mended=1, removed=2),
    "fetch-forecast": FetchForecast(
        source="oss://bucket/models/r1",
        folder="/models/r1",
        files=17,
        total=64 * GIB,
        present=GIB,
        resumable=3 * GIB,
        to_fetch=63 * GIB,
        removes=(AWKWARD,),
        free=100 * GIB,
        keep_free=GIB,
        refusal="",
    ),
    "pull": PULLED,
    "pull-again": replace(PULLED, pulled=0, already=PULLED.total, lanes=0, peak=0),
    "pull-again-unverified": replace(PULLED, pulled=0, already=PULLED.total, verified=""),
    "pull-resumed": replace(
        PULLED, pulled=GIB, resumed=7 * GIB, read_back=8 * GIB, unproven=3, retried=3, replaced=1, mended=1
    ),
    "pull-completed": replace(PULLED, pulled=0, resumed=GIB, already=PULLED.total - GIB, read_back=GIB),
    "pull-unverified": replace(PULLED, verified="", removed=2, left_out=40, lanes=1),
    "pull-directory": replace(PULLED, source=AWKWARD, revision="", dest="/mnt/nas/r1", verified="crc64"),
    "pull-branch": replace(PULLED, revision="master"),
    "pull-incomplete": replace(PULLED, defects=FLAWS),
    "pull-forecast-incomplete": replace(WOULD_PULL, defects=FLAWS),
    "pull-unfinished": replace(
        PULLED,
        complete=False,
        reason="run it again to go on",
        pulled=62 * GIB,
        landed=63 * GIB,
        resumed=3 * GIB,
        already=GIB,
    ),
    "pull-forecast": WOULD_PULL,
    "pull-forecast-bare": replace(
        WOULD_PULL, present=0, to_pull=64 * GIB, resumable=0, left_out=(), removes=()
    ),
    "pull-forecast-many": replace(WOULD_PULL, removes=tuple(f"{i}.bin" for i in range(22)), left_out=()),
    "verify": VERIFIED,
    "verify-unproven": replace(VERIFIED, ok=False, unproven=2, bare=2, by="crc64"),
    "verify-wrong": replace(
        VERIFIED, ok=False, wrong=((AWKWARD, "missing"), ("a.safetensors", "its sha256 is another"))
    ),
    "verify-one-wrong": replace(
        VERIFIED, ok=False, wrong=(("a.safetensors", "5 bytes, the manifest says 6"),)
    ),
    "verify-nothing-stated": replace(VERIFIED, ok=False, unproven=163),
    "verify-some-unproven": replace(VERIFIED, ok=False, unproven=2, bare=1),
    "object": StoredFile("model-00001-of-00003.safetensors", 4 * GIB, "Standard", ""),
    "object-odd": StoredFile(AWKWARD, 7, "Archive", "a lock file"),
    "listing": LISTED,
    "listing-incomplete": replace(
        LISTED, complete="no", reasons=("no", "b.safetensors: missing"), manifest=None, formats=("unknown",)
    ),
    "listing-broken": replace(LISTED, manifest=None, broken=True, complete="unknown", reasons=("unknown",)),
    "store-forecast": REACHED,
    "store-forecast-unreachable": replace(
        REACHED,
        exit_code=5,
        reason="no route",
        answered_in=None,
        permissions=(),
        unfinished=None,
        oldest=None,
    ),
    "status-total": StatusTotal(17, Residency(4 * GIB, 64 * GIB, Known.MINCORE), 4 * GIB),
    "status-total-unknown": StatusTotal(2, Residency.unknown(64 * GIB, "overlayfs"), 4 * GIB),
    "evict": EvictSummary(17, 64 * GIB, 0, ()),
    "evict-stayed": EvictSummary(1, 4 * GIB, GIB, ((AWKWARD, GIB, "mapped by pid 7"),)),
    "evict-unknown": EvictSummary(2, None, None, ()),
    "hold": HoldSummary(600.0, 64 * GIB, 3 * GIB, "the time is over"),
    "surveyed": Surveyed((PathPages("/m", 17, Residency(0, 64 * GIB, Known.CACHESTAT, 0)),)),
    "held": Held((PathPages("/m", 17, Residency(64 * GIB, 64 * GIB, Known.CACHESTAT), 64 * GIB, GIB, GIB),)),
    "held-news": Held((PathPages("/m", 17, Residency(63 * GIB, 64 * GIB, Known.CACHESTAT), 0, GIB),), GIB),
    "readiness": Readiness(ready=True, state="ready", why=""),
    "readiness-not": Readiness(ready=False, state="partial", why="40.0 of 64.0 GiB resident"),
    "error": Failure.of(
        errors.MountDropsPages("/mnt/oss drops pages at open", hint="mount with `-o kernel_cache`")
    ),
    "error-bare": Failure.of(errors.Stopped(15)),
    "bench-run": BENCH_RUN,
    "bench-run-disturbed": replace(BENCH_RUN, run="r2", disturbed=True, reason="3.0 MiB of it are gone"),
    "bench-run-failed": replace(BENCH_RUN, run="r3", failed="it ended with 9"),
    "bench-cell": make_cell("/mnt/oss/r1", "fuse.ossfs2", "read", "cold", 2, file="", runs=(BENCH_RUN,)),
    "bench-run-of-an-engine": STARTED,
    "bench-cell-of-an-engine": make_cell(
        "/mnt/oss/r1", "fuse.ossfs2", "warm+engine", "cold", 1, file="", runs=(STARTED,)
    ),
    "bench-of-an-engine": replace(
        BENCH,
        methods=("warm+engine",),
        engine=BenchEngine(
            ("vllm", "serve", "{}"),
            "http://localhost:8000/health answers 2xx",
            "http://localhost:8000/health",
            "",
            1800.0,
        ),
    ),
    "bench-run-of-a-sweep": replace(
        BENCH_RUN, run="r4", method="warm", setting=Setting(16, 64 << 20), pace=BenchPace(16, 16, split=False)
    ),
    "bench-sweep": BENCH_SWEEP,
    "bench": BENCH,
}


def event_types(base: type[Event] = Event) -> set[type[Event]]:
    """Every event that core defines, in whichever module."""
    for module in pkgutil.walk_packages(stager.core.__path__, "stager.core."):
        importlib.import_module(module.name)
    direct = {c for c in base.__subclasses__() if c.__module__.startswith("stager.")}
    return direct.union(*(event_types(c) for c in direct))


def json_line(event: Event) -> str:
    return json.dumps(event.as_json(), separators=(",", ":"))


def test_every_event_has_a_sample() -> None:
    assert {type(event) for event in SAMPLES.values()} == event_types()


def text_lines(event: Event) -> str:
    """The text face; blanks at the end of a line do not count, because editors strip them from golden files."""
    return "\n".join(line.rstrip() for line in event.text().splitlines())


@pytest.mark.parametrize(
    ("face", "render"), [("events-text.txt", text_lines), ("events-json.txt", json_line)]
)
def test_golden(face: str, render: Callable[[Event], str]) -> None:
    found = "".join(f"# {name}\n{render(event)}\n" for name, event in SAMPLES.items())
    golden = GOLDEN / face
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found, "utf-8")
    assert found == golden.read_text("utf-8")


@pytest.mark.parametrize("name", SAMPLES)
def test_json_is_typed_and_complete(name: str) -> None:
    event = SAMPLES[name]
    line = json_line(event)
    assert line.isascii()
    assert "\n" not in line
    body = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert list(body)[:2] == ["v", "type"]
    assert (body["v"], body["type"]) == (1, event.type)
    faces = {("bench", "table")}  # drawn for people: programs have the cells
    assert list(body)[2:] == [f.name for f in fields(event) if (event.type, f.name) not in faces]


def test_every_type_word_is_used_once() -> None:
    words = [t.type for t in event_types()]
    assert len(set(words)) == len(words)
    assert "event" not in words


@given(st.binary(min_size=1, max_size=30))
def test_any_file_name_survives_json_and_stays_on_one_line(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    exact = Residency(1, 2, Known.MINCORE)
    for event in (FileProblem(name, 1, "EIO", "m"), Stall(1.0, (name,)), FileResidency(name, exact)):
        assert len(event.text().splitlines()) == 1
        assert event.text().isprintable()
        body = json.loads(json_line(event))
        back = body["files"][0] if "files" in body else body["path"]
        assert back.encode("utf-8", "surrogateescape") == raw


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_progress_says_100_only_at_the_end(done: int, total: int) -> None:
    text = Progress("warm", done, total, 0.0, None, 0, 1, 1).text()
    assert (" 100% " in text) == (done >= total)


def test_jsonable_leaves_only_what_json_knows() -> None:
    odd = {
        "rate": float("inf"),
        "eta": float("nan"),
        "set": {"b", "a"},
        "enum": Known.MINCORE,
        "pair": (1, None),
    }
    assert jsonable(odd) == {
        "rate": None,
        "eta": None,
        "set": ["a", "b"],
        "enum": "mincore",
        "pair": [1, None],
    }


def test_progress_without_a_finite_end_can_be_told() -> None:
    event = Progress("warm", 1, 2, 0.0, float("inf"), 0, 1, 1)
    assert " eta ? " in event.text()
    assert event.as_json()["eta"] is None


def test_a_failure_takes_everything_from_its_error() -> None:
    error = errors.DeadlineExceeded("no bytes for 60s", hint="look at the daemon")
    event = Failure.of(error)
    assert event.as_json() == {
        "v": 1,
        "type": "error",
        "slug": "deadline",
        "message": "no bytes for 60s",
        "hint": "look at the daemon",
        "exit_code": 10,
        "retryable": True,
    }
