"""``stager bench --sweep`` on real files and mounts: what each setting does to the storage, what is found, what is refused."""

from __future__ import annotations

import os
import shlex
import signal
from typing import Any

import anyio
import pytest

from stager.core.bench.plan import Trial
from stager.core.bench.reports import BenchRun
from stager.core.bench.setting import Setting
from stager.core.bench.sweep import TOO_SLOW
from stager.jobs.bench.children import Children
from stager.jobs.bench.ground import look_at
from stager.jobs.bench.methods import Methods
from stager.jobs.bench.trial import Trials
from stager.jobs.options import Selection
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, Box, Done, files_below, resident
from tests.test_bench_cmd import stamps


def sweep(box: Box, *words: str, **options: Any) -> Done:
    """``stager bench --sweep --yes --json`` to its end, which must be a good one."""
    done = box.run("bench", "--sweep", "--yes", "--json", *words, **options)
    assert done.code == 0, str(done)
    return done


def named(setting: dict[str, int] | None) -> str:
    return "adaptive" if setting is None else f"{setting['lanes']}/{setting['span'] // MIB}"


@pytest.mark.root
def test_a_mount_of_latency_wants_many_lanes(box: Box, fuse_mount: MountFactory) -> None:
    """60 ms for every request and no daemon that fetches ahead: two files in pieces of 2 MiB by 8 lanes are far faster than whole."""
    mount = fuse_mount(synthetic={"a.bin": 8 * MIB, "b.bin": 8 * MIB}, keep_cache="always", latency=60)
    done = sweep(box, mount.path, "--sweep-lanes", "8", "--sweep-spans", "whole,2MiB", "--rounds", "2")
    cells = {named(one["setting"]): one for one in done.all("bench_cell")}
    assert sorted(cells) == ["2/0", "8/2", "adaptive"]
    verdict = done.event("bench_sweep")
    runs = {one["run"]: one for one in done.all("bench_run") if not one["disturbed"]}
    assert runs.pop("r001")["state"] == "first"
    assert verdict["best"]["setting"] == {"lanes": 8, "span": 2 * MIB}
    assert verdict["once"] == [{"lanes": 2, "span": 0}]
    assert [cells[name]["rounds"] for name in ("8/2", "adaptive", "2/0")] == [2, 2, 1]
    for name in ("best", "adaptive"):
        mine = [runs[one]["seconds"] for one in verdict[name]["runs"]]
        assert verdict[name]["seconds"] == pytest.approx(sum(mine) / 2)
        assert verdict[name]["rate"] == pytest.approx(16 * MIB / verdict[name]["seconds"])
    assert verdict["ratio"] == pytest.approx(verdict["adaptive"]["seconds"] / verdict["best"]["seconds"])
    assert verdict["ended_lanes"] == [runs[one]["pace"]["lanes"] for one in verdict["adaptive"]["runs"]]
    for one in runs.values():
        assert (one["method"], one["state"], one["resident_before"], one["resident_after"]) == (
            "warm",
            "cold",
            0,
            16 * MIB,
        )
        if one["setting"]:
            assert one["pace"] == {
                "lanes": one["setting"]["lanes"],
                "peak": one["setting"]["lanes"],
                "split": False,
            }
    order = [named(one["setting"]) for one in runs.values()]
    assert len(order) == 5
    assert order[0] == "adaptive"
    assert sorted(order[3:]) == ["8/2", "adaptive"]


def test_a_local_folder_is_swept_and_left_as_it_was(box: Box) -> None:
    model = box.model(size=24 * MIB, shards=3)
    before = stamps(model)
    words = [model, "--sweep-lanes", "1,2,16", "--sweep-spans", "whole,4MiB", "--rounds", "1"]
    done = box.run("bench", "--sweep", "--yes", *words)
    assert done.code == 0, str(done)
    lines = done.out.splitlines()
    assert lines[1].split() == ["cold", "-P", "1", "-P", "2", "-P", "3", "-P", lines[1].split()[-1]]
    assert [line.split()[0] for line in lines[2:5]] == ["whole", "4MiB", "adaptive"]
    assert any(line.startswith("  best: -P ") for line in lines)
    assert "nothing was measured twice" in done.out
    assert f"  so: stager warm {model}" in done.out
    assert stamps(model) == before
    assert resident(*files_below(model)) == 0


def test_the_command_that_it_gives_works(box: Box) -> None:
    model = box.model(size=8 * MIB, shards=2)
    words = [
        model,
        "--sweep-lanes",
        "2,3",
        "--sweep-spans",
        "1MiB",
        "--include",
        "*.safetensors",
        "--rounds",
        "1",
    ]
    found = sweep(box, *words).event("bench_sweep")
    lanes = found["best"]["setting"]["lanes"]
    assert lanes in (2, 3)
    setting = ["-P", str(lanes), "--span", "1MiB", "--no-adapt"]
    given = shlex.split(found["command"])
    assert given[:4] == ["stager", "warm", model, "--include=*.safetensors"]
    assert given[4:] in ([], setting)
    done = box.run(*given[1:], *setting[len(given) - 4 :])
    assert done.code == 0, str(done)


def test_a_quick_sweep_does_less(box: Box) -> None:
    done = sweep(box, box.model(size=24 * MIB, shards=3), "--quick")
    assert {named(one["setting"]) for one in done.all("bench_cell")} == {
        "2/0",
        "3/0",
        "2/4",
        "6/4",
        "adaptive",
    }
    assert done.event("bench")["rounds"] == 2
    assert done.event("bench")["seconds"] < 120


@pytest.mark.root
def test_a_run_that_is_too_slow_is_stopped_and_said_to_be(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.bin": 8 * MIB}, keep_cache="always", stream_rate=2 * MIB)
    heard: list[BenchRun] = []
    methods = Methods(Children(), box.folder)

    async def work() -> None:
        ground = await look_at(mount.path, Selection(paths=(mount.path,)))
        trials = Trials(methods, [ground], 1, heard.append, patience=0.8)
        trial = Trial(0, "warm", 1, setting=Setting(1, 0))
        await trials.run(trial, 1, states=("cold",))
        await trials.run(trial, 2, states=("cold",))
        assert not trials.cut

    anyio.run(work)
    (run,) = heard  # what is too slow is too slow in every round
    assert (run.failed, run.counts, run.setting) == (TOO_SLOW, False, Setting(1, 0))
    assert resident(os.path.join(mount.path, "a.bin")) < 8 * MIB


@pytest.mark.root
def test_what_a_stop_leaves_of_a_sweep_is_told(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.bin": 4 * MIB, "b.bin": 4 * MIB}, keep_cache="always", latency=20)
    running = box.start(
        "bench", "--sweep", "--yes", "--json", mount.path, "--rounds", "50", "--sweep-spans", "1MiB,whole"
    )
    running.await_text('"round":2')
    done = running.stop(signal.SIGTERM, 12)
    assert done.code == 143, str(done)
    found = done.event("bench_sweep")
    assert found["best"]["setting"] is not None
    assert "SIGTERM" in done.event("bench")["ended"]
    assert done.event("bench")["runs"] == len(
        [run for run in done.all("bench_run") if run["state"] != "first"]
    )


@pytest.mark.root
def test_a_mount_that_drops_pages_has_no_best_setting(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.bin": 2 * MIB})
    done = box.run("bench", "--sweep", "--yes", "--json", mount.path)
    assert done.code == 3, str(done)
    found = done.event("bench_sweep")
    assert (found["best"], found["command"]) == (None, "")
    assert "drops pages" in found["unmeasured"]
    assert done.all("bench_run") == []  # nothing was to be learnt by reading it


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["oss://bucket/r1", "--sweep"], "mounts and disks"),
        (["--sweep", "--methods", "read"], "--methods"),
        (["--sweep", "--loaders", "4"], "--loaders"),
        (["--sweep", "--per-file"], "--per-file"),
        (["--sweep", "--to", "cpu"], "--to"),
        (["--sweep", "--sweep-spans", "4KiB"], "1 MiB"),
        (["--sweep", "--sweep-lanes", "1,x"], "lanes"),
        (["--sweep-lanes", "4"], "--sweep"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_evicted(
    box: Box, words: list[str], text: str
) -> None:
    path = box.file("m/a.bin", MIB)
    with open(path, "rb") as file:
        file.read()
    where = [] if words[0].startswith("oss:") else [os.path.dirname(path)]
    done = box.run("bench", "--yes", *where, *words)
    assert done.code == 2, str(done)
    (error,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert text in error
    assert resident(path) == MIB
