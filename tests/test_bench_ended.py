"""``stager bench`` that does not get to its end: what was measured until then is told and written; and what it refuses before it begins."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fetchbed import Bed
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, Box, cold, files_below, resident, until

ONE = ("--methods", "read", "--loaders", "1")


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_before_a_signal_is_told_and_written(
    box: Box, fuse_mount: MountFactory, number: int
) -> None:
    slow = fuse_mount(synthetic={"a.bin": 4 * MIB}, keep_cache="always", stream_rate=8 * MIB)
    report = box.path("report")
    running = box.start("bench", "--yes", slow.path, *ONE, "--rounds", "50", "--report", report)
    running.await_text("r004 ", 30)
    running.signal(number)
    done = running.finish(15)
    name = signal.Signals(number).name
    assert done.code == 128 + number, str(done)
    assert f"ended early: stopped by {name}" in done.out
    assert [line.split()[:2] for line in done.out.splitlines()[2:4]] == [["read", "cold"], ["read", "second"]]
    lines = [json.loads(line) for line in Path(report, "results.jsonl").read_text().splitlines()]
    assert [one["run"] for one in lines if one["type"] == "bench_run"][:3] == ["r001", "r002", "r003"]
    assert lines[-1]["ended"] == f"stopped by {name}"
    assert lines[-1]["runs"] >= 3
    for twin in ("report.html", "report.md"):
        assert f"stopped by {name}" in Path(report, twin).read_text().replace("\\", "")


@pytest.mark.root
def test_a_signal_before_the_first_run_leaves_an_earlier_report_alone(
    box: Box, fuse_mount: MountFactory
) -> None:
    slow = fuse_mount(synthetic={"a.bin": 64 * MIB}, keep_cache="always", stream_rate=2 * MIB)
    os.mkdir(box.path("report"))
    Path(box.path("report"), "results.jsonl").write_text("earlier")
    running = box.start("bench", "--yes", slow.path, *ONE, "--report", box.path("report"))
    running.await_text("at most", 20)
    running.signal(signal.SIGTERM)
    done = running.finish(15)
    assert (done.code, done.out) == (143, "")
    assert files_below(box.path("report")) == [box.path("report", "results.jsonl")]
    assert Path(box.path("report"), "results.jsonl").read_text() == "earlier"


def taken_away(folder: str) -> bool:
    """Removes `folder` if it can be caught empty, which it is between two runs."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        with suppress(OSError):
            os.rmdir(folder)
            return True
    return False


def test_what_was_measured_before_an_error_is_told_and_written(bed: Bed, source: str) -> None:
    """The folder that models are fetched into is taken away in the middle."""
    bed.serve(source)
    into, report = bed.box.path("into"), bed.box.path("report")
    os.mkdir(into)
    words = ["bench", "--yes", bed.url, "--into", into, "--methods", "fetch", "--rounds", "50"]
    running = bed.box.start(*words, "--report", report, env=bed.oss.env())
    running.await_text("r002 ", 30)
    until(lambda: taken_away(into), "a moment between two runs", 90)
    done = running.finish(30)
    assert done.code == 7, str(done)
    assert done.err.count("error: ") == 1
    assert "ended early: " in done.out
    last = json.loads(Path(report, "results.jsonl").read_text().splitlines()[-1])
    assert last["type"] == "bench"
    assert last["ended"]
    assert last["runs"] >= 2


def test_a_fetch_that_is_stopped_leaves_its_numbers_and_no_files(bed: Bed, source: str) -> None:
    bed.serve(source)
    into = bed.box.path("into")
    os.mkdir(into)
    words = ["bench", "--yes", bed.url, "--into", into, "--methods", "fetch", "--rounds", "50"]
    running = bed.box.start(*words, env=bed.oss.env())
    running.await_text("r002 ", 30)
    until(lambda: any(files_below(into)), "a fetch under way", 30)
    running.signal(signal.SIGTERM)
    done = running.finish(15)
    assert done.code == 143, str(done)
    assert "ended early: stopped by SIGTERM" in done.out
    assert os.listdir(into) == []


@pytest.mark.root
def test_a_report_that_can_no_longer_be_written_costs_the_report_alone(
    box: Box, fuse_mount: MountFactory
) -> None:
    slow = fuse_mount(synthetic={"a.bin": 4 * MIB}, keep_cache="always", stream_rate=8 * MIB)
    report = box.path("report")
    running = box.start("bench", "--yes", slow.path, *ONE, "--rounds", "2", "--report", report)
    running.await_text("r001 ", 30)
    os.rmdir(report)
    Path(report).touch()
    done = running.finish(30)
    assert done.code == 9, str(done)
    assert done.out.startswith(f"{slow.path}: ")
    assert "report in" not in done.out
    assert done.err.count("error: ") == 1


@pytest.mark.root
def test_at_the_timeout_the_whole_says_that_it_ended_early(box: Box, fuse_mount: MountFactory) -> None:
    slow = fuse_mount(synthetic={"a.bin": 4 * MIB}, keep_cache="always", stream_rate=8 * MIB)
    words = ["--yes", "--json", slow.path, *ONE, "--rounds", "50", "--timeout", "3s"]
    done = box.run("bench", *words)
    assert done.code == 10, str(done)
    assert done.event("bench")["ended"] == "--timeout ran out"
    whole = box.run("bench", *words[:-4], "--rounds", "1", "--timeout", "1m")
    assert whole.code == 0, str(whole)
    assert whole.event("bench")["ended"] == ""


def test_a_path_that_is_not_there_is_said_before_anything_else(box: Box) -> None:
    model = box.model(size=MIB)
    done = box.run("bench", model, "/nowhere/at/all")
    assert done.code == 7, str(done)
    assert "--yes" not in done.err
    for path in files_below(model):
        Path(path).read_bytes()
    report = box.path("report")
    assert box.run("bench", "--yes", model, "/nowhere/at/all", "--report", report).code == 7
    assert resident(*files_below(model)) > 0  # the kernel may have taken some
    assert not os.path.exists(report)


def test_a_path_that_is_named_twice_is_measured_once(box: Box) -> None:
    model = box.model(size=MIB)
    os.symlink(model, box.path("link"))
    cold(*files_below(model))
    words = [model, f"{model}/.", box.path("link"), *ONE, "--rounds", "1"]
    done = box.run("bench", "--yes", "--json", *words)
    assert done.code == 0, str(done)
    assert [one["storage"] for one in done.all("bench_cell")] == [model, model]
    notes = [note["message"] for note in done.all("note") if note["code"] == "same_path"]
    assert [note.split(" is ")[0] for note in notes] == [f"{model}/.", box.path("link")]


def test_quiet_leaves_the_table_and_for_programs_every_run(box: Box) -> None:
    model = box.model(size=MIB)
    words = ["bench", "--yes", model, *ONE, "--rounds", "1", "-q"]
    done = box.run(*words)
    assert done.code == 0, str(done)
    assert "r001" not in done.err
    assert done.out.startswith(f"{model}: ")
    assert [run["run"] for run in box.run(*words, "--json").all("bench_run")] == ["r001", "r002", "r003"]


@pytest.mark.root
@pytest.mark.parametrize("quick", [False, True])
def test_a_file_that_does_not_answer_before_the_first_run_is_not_waited_for(
    box: Box, fuse_mount: MountFactory, quick: bool
) -> None:
    """The canary reads the smallest file; that hangs."""
    hangs = fuse_mount(synthetic={"a.bin": MIB, "b.json": 4096}, keep_cache="always", hang_file=["b.json"])
    words = ["--quick"] if quick else []
    done = box.run("bench", "--yes", hangs.path, *ONE, "--timeout", "2s", *words)
    assert done.code == 10, str(done)
    assert "error: --timeout ran out before anything was measured" in done.err
    assert "b.json" in done.err
