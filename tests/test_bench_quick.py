"""``stager bench --quick`` and what its runs read: parts of files by every method alike, within its time; and what `read` asks of a mount."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.bench.plan import Trial, methods_for, trials_of
from stager.core.bench.quick import (
    Rates,
    beyond,
    first_bytes,
    in_turns,
    quick_bytes,
    quick_seconds,
    sample,
    whole_sample,
    work_left,
)
from stager.core.units import GIB
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, V1_MEMORY, Box, Cgroup, Done, files_below

rates = st.builds(Rates, st.floats(1, 1e10), st.floats(1, 1e10), st.booleans())
sizes_of_models = st.lists(st.integers(0, 10**12), min_size=1, max_size=40)


def drop(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# What is read


@given(sizes_of_models, st.integers(0, 10**12))
def test_a_sample_keeps_to_its_budget_and_to_the_largest_files(sizes: list[int], budget: int) -> None:
    found = sample(sizes, budget)
    chosen = [sizes[at] for at in found.chosen]
    assert len(set(found.chosen)) == len(chosen) > 0
    assert max(chosen) == max(sizes)
    read = sum(min(size, found.part or size) for size in chosen)
    assert read <= max(budget, MIB)
    if found.part is None:
        assert chosen == sizes or sum(sizes) > budget
    else:
        assert found.part % MIB == 0 < found.part < max(chosen)
        left = [size for at, size in enumerate(sizes) if at not in found.chosen]
        assert min(chosen) >= max(left, default=0)


@given(st.integers(1, 40), st.integers(64 * MIB, 10**11), st.integers(64 * MIB, 10**12))
def test_as_many_files_are_read_as_several_readers_read_at_once(files: int, size: int, budget: int) -> None:
    """One file is one stream: by it a method that reads many at once looks no better than `cat`."""
    assert len(sample([size] * files, budget).chosen) >= min(files, 16)


@pytest.mark.parametrize("budget", [4 * MIB, 7 * MIB, 16 * MIB])
def test_files_are_cut_before_any_is_left_out(budget: int) -> None:
    """Two of four would halve what those methods can show that read all four at once."""
    assert sample([24 * MIB] * 4, budget).chosen == (0, 1, 2, 3)


def test_several_loaders_wait_where_time_is_short() -> None:
    slow, fast = Rates(3e6, 3e6), Rates(3e9, 3e9)
    both = trials_of(0, ("read", "mmap-names", "warm", "recipe"), (1, 4))
    one = [trial for trial in both if trial.loaders == 1]
    sizes = [24 * MIB] * 4
    assert first_bytes(both, sizes, slow, 1, 60) == min(quick_bytes(one, slow, 1, 60), 32 * MIB)
    assert first_bytes(both, sizes, slow, 1, 60) > quick_bytes(both, slow, 1, 60)
    assert first_bytes(both, sizes, fast, 1, 60) == quick_bytes(both, fast, 1, 60)


def test_what_a_part_cannot_show_is_said() -> None:
    assert "2 files of 4 large ones cannot show" in beyond(MIB, 2, 4)
    assert "cannot show" not in beyond(MIB, 16, 40)


def test_shards_that_do_not_fit_are_read_in_part_each_by_the_same_part() -> None:
    assert sample([4 * GIB] * 8 + [1000], 232 * MIB) == sample([4 * GIB] * 8 + [1], 232 * MIB)
    assert sample([4 * GIB] * 8, 232 * MIB).part == 29 * MIB
    assert sample([1, 2, 3], None).chosen == (0, 1, 2)
    assert sample([100, 50 * MIB, 1000], 8 * MIB).part == 8 * MIB
    assert sample([2 * MIB] * 100, 20 * MIB) == sample([2 * MIB] * 10 + [MIB] * 90, 20 * MIB)
    for nothing in (0, 1):  # a storage so slow that its first look brought nothing
        assert sample([200 * MIB], nothing) == sample([200 * MIB], MIB)


@given(sizes_of_models, st.integers(0, 10**12))
def test_objects_are_fetched_whole_or_not_at_all(sizes: list[int], budget: int) -> None:
    found = whole_sample(sizes, budget)
    assert found.part is None
    read = sum(sizes[at] for at in found.chosen)
    assert read <= budget
    assert not found.chosen or read == sum(sizes) or 2 * read >= min(budget, max(sizes))


@given(rates, st.integers(1, 5), st.floats(10, 75), st.booleans())
def test_a_quick_benchmark_plans_for_no_more_than_its_time(
    found: Rates, rounds: int, seconds: float, per_file: bool
) -> None:
    files = [str(at) for at in range(8)] if per_file else []
    trials = trials_of(0, methods_for((), store=False, to=""), (1, 4), files)
    overhead = quick_seconds(trials, found, 0, rounds)
    size = quick_bytes(trials, found, rounds, seconds)
    planned = quick_seconds(trials, found, size, rounds)
    assert planned <= max(seconds, overhead + seconds / 4) * 1.001
    passes = 1 / found.read + rounds * sum(
        (1 / 8 if one.file else 1) / max(found.read, found.mapped) for one in trials
    )
    assert size * passes <= seconds


def test_the_time_that_looking_has_taken_is_gone() -> None:
    assert work_left(108, 5) == 75
    assert work_left(108, 60) < 40
    assert work_left(20, 5) <= 15
    assert work_left(20, 500) > 0


trials_of_some = st.lists(
    st.builds(Trial, st.integers(0, 3), st.sampled_from(["read", "warm"]), st.integers(1, 3))
)


@given(trials_of_some)
def test_storages_take_turns_and_one_loader_comes_first(trials: list[Trial]) -> None:
    turns = in_turns(trials)
    assert sorted(turns, key=repr) == sorted(trials, key=repr)
    for storage in range(4):
        mine = [one for one in turns if one.storage == storage]
        assert mine == sorted((one for one in trials if one.storage == storage), key=lambda one: one.loaders)
    for at in range(len(turns)):
        begun = [sum(one.storage == storage for one in turns[:at]) for storage in range(4)]
        over = [sum(one.storage == storage for one in turns[at:]) == 0 for storage in range(4)]
        waiting = [number for number, ended in zip(begun, over, strict=True) if not ended]
        assert max(waiting) - min(waiting) <= 1


# Runs


def quick(box: Box, *words: str) -> Done:
    return box.run("bench", "--yes", "--json", "--quick", *words)


@pytest.mark.root
def test_a_part_of_each_shard_shows_what_reads_them_at_once(box: Box, fuse_mount: MountFactory) -> None:
    """Four streams of 8 MB/s: a method that opens all four is up to four times as fast, and nothing reads a whole file."""
    model = box.model(size=512 * MIB, shards=4)
    mount = fuse_mount(source=model, keep_cache="always", stream_rate=8_000_000)
    methods = "read,mmap-names,recipe,vmtouch,warm,warm+mmap"
    done = quick(box, mount.path, "--methods", methods, "--loaders", "1", "--timeout", "44s")
    storage = done.event("bench")["storages"][0]
    assert storage["files"] == 4 < storage["of_files"], str(done)
    assert MIB <= storage["part"] < 32 * MIB
    assert storage["bytes"] == 4 * storage["part"]
    runs = [one for one in done.all("bench_run") if not one["disturbed"] and one["state"] != "first"]
    assert {one["failed"] for one in runs} <= {"", "no time left"}
    for run in runs:
        assert run["bytes"] == storage["bytes"]
        if not run["failed"]:
            assert run["resident_after"] == storage["bytes"]
            assert run["resident_before"] == (0 if run["state"] == "cold" else storage["bytes"])
    took = {one["method"]: one["seconds"] for one in runs if one["state"] == "cold" and not one["failed"]}
    assert {"read", "recipe", "warm"} <= set(took), str(done)
    assert took["recipe"] < 0.6 * took["read"]
    assert took["warm"] < took["read"]
    for path in files_below(model):
        name, size = os.path.relpath(path, model), os.path.getsize(path)
        if size > 32 * MIB:
            served = mount.counters()["files"][name]
            assert storage["part"] <= served["served"] / (len(runs) / 2) < size / 2


@pytest.mark.root
def test_storages_that_are_too_slow_are_said_to_be_and_are_measured_all_the_same(
    box: Box, fuse_mount: MountFactory
) -> None:
    """The first look at the rates brings nothing; what is read then is the least there can be, not nothing."""
    slow = [
        fuse_mount(synthetic={"m.bin": 64 * MIB}, keep_cache="always", total_rate=300_000) for _ in range(2)
    ]
    done = quick(box, *(one.path for one in slow), "--methods", "read,recipe", "--timeout", "14s")
    assert [one["bytes"] for one in done.event("bench")["storages"]] == [MIB, MIB], str(done)
    assert "short_of_time" in [one["code"] for one in done.all("note")]
    assert {one["storage"] for one in done.all("bench_run")} >= {slow[0].path}
    assert done.code in (0, 10)


@pytest.mark.root
def test_what_does_not_fit_into_memory_is_read_in_part(box: Box) -> None:
    if not os.path.isdir(V1_MEMORY):
        pytest.skip("needs the memory controller of cgroup v1")
    model = os.path.dirname(box.sparse("huge/a.bin", 900 * MIB))
    group = Cgroup(f"quick-{os.path.basename(box.folder)}")
    try:
        group.limit(300 * MIB)
        words = ["--yes", "--json", "--quick", "--methods", "read", "--loaders", "1"]
        done = box.run("bench", model, *words, before=group.inside())
    finally:
        group.remove()
    assert done.code == 0, str(done)
    assert 16 * MIB <= done.event("bench")["storages"][0]["bytes"] <= 240 * MIB


# The baseline


@pytest.mark.root
def test_read_asks_a_mount_for_no_more_requests_than_cat_does(fuse_mount: MountFactory) -> None:
    """One that gives no advice needs twice as many, and is half as fast where each takes its time."""
    mount = fuse_mount(synthetic={"a.bin": 16 * MIB}, keep_cache="always", read_ahead_kb=128, latency=1)
    path = os.path.join(mount.path, "a.bin")
    subprocess.run(["cat", path], check=True, stdout=subprocess.DEVNULL)
    by_cat = mount.counters()["files"]["a.bin"]["reads"]
    drop(path)
    loader = "import sys; from stager.jobs.bench.loader import read_file; print(read_file(sys.argv[1], None, bytearray(4 << 20)))"
    done = subprocess.run([sys.executable, "-c", loader, path], check=True, capture_output=True, text=True)
    assert int(done.stdout) == 16 * MIB
    assert mount.counters()["files"]["a.bin"]["reads"] - by_cat <= 1.2 * by_cat
