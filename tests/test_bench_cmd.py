"""``stager bench`` on real files, mounts and a look-alike of OSS: what it measures, throws away, refuses, and leaves behind."""

from __future__ import annotations

import mmap
import os
import signal
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fetchbed import Bed
from tests.fuselab.fixtures import MountFactory
from tests.harness import (
    MIB,
    STRANGER,
    V1_MEMORY,
    Box,
    Cgroup,
    Done,
    environment,
    files_below,
    resident,
    until,
)
from tests.osslab.faults import Fault

METHODS = "read,mmap-names,recipe,vmtouch,warm+mmap"


def bench(box: Box, *words: str, **options: Any) -> Done:
    """``stager bench --yes --json`` to its end."""
    return box.run("bench", "--yes", "--json", *words, **options)


def good(box: Box, *words: str, **options: Any) -> Done:
    done = bench(box, *words, **options)
    assert done.code == 0, str(done)
    return done


def cell(done: Done, method: str, state: str = "cold", loaders: int = 1, file: str = "") -> dict[str, Any]:
    found = [
        one
        for one in done.all("bench_cell")
        if (one["method"], one["state"], one["loaders"], one["file"]) == (method, state, loaders, file)
    ]
    assert len(found) == 1, str(done)
    return found[0]


def stamps(folder: str) -> dict[str, tuple[int, int, int]]:
    """What would tell of a write."""
    return {
        path: (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for path in files_below(folder)
        for status in [os.stat(path)]
    }


def with_word(word: str) -> list[int]:
    """Processes that have `word` in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if word.encode() in Path("/proc", pid, "environ").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found


@contextmanager
def evicting(*paths: str) -> Iterator[threading.Event]:
    """Somebody else, who drops the pages of `paths` all the time until the block ends or the event is set."""
    over = threading.Event()
    fds = [os.open(path, os.O_RDONLY) for path in paths]

    def work() -> None:
        while not over.is_set():
            for fd in fds:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()
        for fd in fds:
            os.close(fd)


# What it measures


def test_every_number_of_a_cell_follows_from_the_lines_of_its_runs(box: Box) -> None:
    model = box.model()
    before = stamps(model)
    done = good(box, model, "--methods", METHODS, "--loaders", "2", "--rounds", "2")
    size = sum(os.path.getsize(path) for path in files_below(model))
    runs = {one["run"]: one for one in done.all("bench_run")}
    assert len(runs) == len(done.all("bench_run"))
    cells = done.all("bench_cell")
    assert sorted({one["method"] for one in cells}) == sorted(METHODS.split(","))
    for one in cells:
        if one["unmeasured"]:
            assert one["method"] == "vmtouch"
            continue
        mine = [runs[name] for name in one["runs"]]
        assert one["rounds"] == len(mine) == 2
        assert {(run["method"], run["state"], run["loaders"]) for run in mine} == {
            (one["method"], one["state"], one["loaders"])
        }
        seconds = [run["seconds"] for run in mine]
        assert one["seconds"]["median"] == statistics.median(seconds)
        assert one["seconds"]["max"] == max(seconds)
        assert one["seconds"]["mean"] == pytest.approx(statistics.fmean(seconds))
        assert one["seconds"]["stdev"] == pytest.approx(statistics.stdev(seconds))
        each = [value for run in mine for value in run["loader_seconds"]]
        assert len(each) == 2 * one["loaders"]
        assert one["loader_seconds"]["max"] == max(each) <= one["seconds"]["max"] + 1e-9
        assert one["throughput"] == pytest.approx(size / one["seconds"]["median"])
        for run in mine:
            assert run["bytes"] == run["resident_after"] == size
            assert run["resident_before"] == (0 if one["state"] == "cold" else size)
            assert run["cpu_seconds"] > 0
    last = done.events[-1]
    assert (last["type"], last["rounds"], last["loaders"]) == ("bench", 2, [2])
    assert last["storages"][0]["bytes"] == size
    assert last["machine"]["cores"] == os.cpu_count()
    assert stamps(model) == before
    assert resident(*files_below(model)) == 0


def test_loaders_tell_of_every_file_and_the_device_of_what_it_delivered(box: Box) -> None:
    model = box.model()
    done = good(box, model, "--methods", "mmap-names", "--loaders", "2", "--rounds", "1")
    names = {os.path.relpath(path, model): os.path.getsize(path) for path in files_below(model)}
    for run in done.all("bench_run"):
        assert {row["path"]: row["bytes"] for row in run["files"]} == names
        assert sum(row["seconds"] for row in run["files"]) <= 2 * run["seconds"]
    if done.event("bench")["storages"][0]["device"]:
        assert cell(done, "mmap-names", loaders=2)["device_bytes"] >= sum(names.values())


def test_warm_tells_how_it_went_and_files_are_measured_one_by_one(box: Box) -> None:
    model = box.model(shards=2)
    done = good(
        box, model, "--methods", "warm,read,mmap-offsets", "--loaders", "1", "--rounds", "1", "--per-file"
    )
    warmed = next(run for run in done.all("bench_run") if (run["method"], run["state"]) == ("warm", "cold"))
    assert warmed["timeline"]
    (began, nothing, none), (ended, size, lanes) = warmed["timeline"][0], warmed["timeline"][-1]
    assert 0 < began <= ended < warmed["seconds"]
    assert (nothing, none) == (0, 0)
    assert 0 <= size <= warmed["bytes"]
    assert lanes >= 1
    for path in [path for path in files_below(model) if path.endswith(".safetensors")]:
        one = cell(done, "read", file=os.path.relpath(path, model))
        assert (one["bytes"], one["rounds"]) == (os.path.getsize(path), 1)


@pytest.mark.root
def test_a_run_of_two_seconds_has_a_curve(box: Box, fuse_mount: MountFactory) -> None:
    slow = fuse_mount(synthetic={"a.bin": 16 * MIB}, keep_cache="always", total_rate=8_000_000)
    done = good(box, slow.path, "--methods", "warm", "--loaders", "1", "--rounds", "1")
    run = next(run for run in done.all("bench_run") if run["state"] == "cold")
    assert run["seconds"] > 1.5
    assert len(run["timeline"]) >= 10
    assert run["timeline"] == sorted(run["timeline"])
    assert run["timeline"][-1][1] == run["bytes"]


def test_people_get_a_table_on_stdout_and_the_runs_on_stderr(box: Box) -> None:
    model = box.model()
    done = box.run("bench", "--yes", model, "--methods", "read,warm", "--loaders", "1", "--rounds", "1")
    assert done.code == 0, str(done)
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{model}: ")
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["read", "cold"],
        ["read", "second"],
        ["warm", "cold"],
        ["warm", "second"],
    ]
    assert lines[2].split()[3] == "1.0x"
    assert "GPU" in done.out
    assert "r001" in done.err


@pytest.mark.root
def test_a_mount_that_keeps_pages_and_one_that_drops_them(box: Box, fuse_mount: MountFactory) -> None:
    model = box.model(size=4 * MIB)
    keeps = fuse_mount(source=model, keep_cache="always", latency=3)
    drops = fuse_mount(source=model, latency=3)
    done = good(box, keeps.path, drops.path, "--methods", "read,warm", "--loaders", "2", "--rounds", "1")
    by_storage = {(one["storage"], one["method"], one["state"]): one for one in done.all("bench_cell")}
    assert by_storage[keeps.path, "read", "warm"]["rounds"] == 1
    assert by_storage[keeps.path, "warm", "cold"]["rounds"] == 1
    first, *dropping = [run for run in done.all("bench_run") if run["storage"] == drops.path]
    assert (first["state"], first["round"], first["method"]) == ("first", 0, "read")
    assert [
        (run["method"], run["residency_by"], run["resident_before"], run["resident_after"])
        for run in dropping
    ] == [("read", "canary", 0, None)] * 2
    assert "drops pages" in by_storage[drops.path, "warm", "cold"]["unmeasured"]
    assert all(run["device_bytes"] is None for run in done.all("bench_run"))


def test_files_in_memory_are_never_cold(box: Box) -> None:
    folder = Path("/dev/shm", os.path.basename(box.folder))
    folder.mkdir()
    try:
        (folder / "a.bin").write_bytes(os.urandom(MIB))
        done = good(box, str(folder), "--methods", "read", "--loaders", "1", "--rounds", "1")
        assert "memory" in cell(done, "read")["unmeasured"]
        assert cell(done, "read", "warm")["rounds"] == 1
    finally:
        (folder / "a.bin").unlink()
        folder.rmdir()


def test_a_store_is_measured_through_fetch_and_nothing_stays(bed: Bed, source: str) -> None:
    bed.serve(source)
    into = bed.box.path("into")
    os.mkdir(into)
    words = [bed.url, "--into", into, "--loaders", "2", "--rounds", "1"]
    done = good(bed.box, *words, env=bed.oss.env())
    size = sum(os.path.getsize(path) for path in files_below(source))
    for method, loaders in (("fetch", 1), ("fetch+mmap", 2)):
        for state in ("cold", "warm"):
            one = cell(done, method, state, loaders)
            assert (one["rounds"], one["bytes"], one["disturbed"]) == (1, size, 0), str(done)
    run = next(run for run in done.all("bench_run") if run["loaders"] == 2)
    assert len(run["loader_seconds"]) == 2
    assert min(run["loader_seconds"]) > 0
    cold = next(run for run in done.all("bench_run") if (run["method"], run["state"]) == ("fetch", "cold"))
    (began, *_), (ended, brought, _) = cold["timeline"][0], cold["timeline"][-1]
    assert 0 < began <= ended < cold["seconds"]
    assert brought == size
    assert os.listdir(into) == []
    assert bed.sent >= 2 * size
    assert not [record for record in bed.oss.log.records() if record.method not in ("GET", "HEAD")]


# What it throws away


def test_a_run_whose_pages_somebody_drops_is_thrown_away_and_counted(box: Box) -> None:
    model = box.model(size=32 * MIB)
    running = box.start(
        "bench", "--yes", "--json", model, "--methods", "read", "--loaders", "1", "--rounds", "2"
    )
    with evicting(*files_below(model)) as over:
        running.await_text('"disturbed":true')
        over.set()
    done = running.finish()
    assert done.code == 0, str(done)
    runs = done.all("bench_run")
    thrown = [run for run in runs if run["disturbed"]]
    assert thrown
    reasons = ("not resident", "stay in the page cache", "pages were dropped meanwhile")
    assert all(any(reason in run["reason"] for reason in reasons) for run in thrown)
    for one in done.all("bench_cell"):
        assert one["disturbed"] == sum(run["disturbed"] for run in runs if run["state"] == one["state"])
        assert not {run["run"] for run in thrown} & set(one["runs"])
    assert done.event("bench")["disturbed"] == len(thrown)


def test_when_every_run_is_disturbed_nothing_is_claimed(box: Box) -> None:
    model = box.model(size=24 * MIB)
    with evicting(*files_below(model)):
        done = bench(box, model, "--methods", "read", "--loaders", "1", "--rounds", "1")
    assert done.code == 3, str(done)
    one = cell(done, "read")
    assert (one["rounds"], one["seconds"], one["runs"]) == (0, None, [])
    assert one["disturbed"] == 3  # a run, and two more for it
    assert one["unmeasured"].startswith("every run was disturbed")


def test_pages_that_somebody_has_mapped_make_no_cold_run(box: Box) -> None:
    model = box.model(size=4 * MIB)
    path = max(files_below(model), key=os.path.getsize)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sum(mapped[:: mmap.PAGESIZE])
        done = good(box, model, "--methods", "read", "--loaders", "1", "--rounds", "1")
    one = cell(done, "read")
    assert one["seconds"] is None
    assert f"pid {os.getpid()}" in one["unmeasured"]
    assert cell(done, "read", "warm")["rounds"] == 1


# What it refuses


def test_without_a_terminal_it_needs_yes(box: Box) -> None:
    model = box.model(size=MIB)
    done = box.run("bench", model)
    assert done.code == 2
    assert "--yes" in done.err
    assert (
        box.run("bench", "oss://bucket/r1", "--into", "/nowhere").code == 7
    )  # nothing is evicted for a store


@pytest.mark.parametrize(("answer", "code"), [("n", 3), ("y", 0)])
def test_on_a_terminal_it_asks(box: Box, answer: str, code: int) -> None:
    model = box.model(size=MIB)
    ours, theirs = os.openpty()
    words = ["bench", model, "--methods", "read", "--loaders", "1", "--rounds", "1"]
    try:
        running = box.start(*words, stdin=theirs)
        os.write(ours, f"{answer}\n".encode())
        done = running.finish()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.code == code, str(done)
    assert "evicts" in done.err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["/nowhere/at/all"], 7, "/nowhere/at/all"),
        (["MODEL", "--methods", "read,teleport"], 2, "teleport"),
        (["MODEL", "--loaders", "0"], 2, "loaders"),
        (["MODEL", "--methods", "fetch"], 2, "--methods fetch"),
        (["MODEL", "--to", "cpu", "--python", "/bin/false"], 2, "torch"),
        (["MODEL", "--to", "cpu", "--python", "/nowhere"], 2, "/nowhere"),
        (["oss://bucket/r1", "--into", "/nowhere"], 7, "/nowhere"),
        (["MODEL", "--include", "nothing*"], 7, "matches"),
    ],
)
def test_what_cannot_be_done_is_one_line(box: Box, words: list[str], code: int, text: str) -> None:
    model = box.model(size=MIB)
    done = box.run("bench", "--yes", *[model if word == "MODEL" else word for word in words])
    assert done.code == code, str(done)
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert text in errors[0]
    assert "Traceback" not in done.err


def test_pages_that_nobody_may_count_are_not_guessed_at(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    model = box.model(size=MIB)
    done = bench(
        box,
        model,
        "--methods",
        "read",
        "--loaders",
        "1",
        "--rounds",
        "1",
        uid=STRANGER,
        env={"TMPDIR": "/tmp"},
    )
    assert done.code == 3, str(done)
    assert not done.all("bench_run")
    assert "cannot be known" in cell(done, "read")["unmeasured"]


@pytest.mark.root
def test_at_the_timeout_it_says_what_there_is(box: Box, fuse_mount: MountFactory) -> None:
    slow = fuse_mount(synthetic={"a.bin": 64 * MIB}, keep_cache="always", stream_rate=8 * MIB)
    done = bench(box, slow.path, "--methods", "read", "--loaders", "1", "--rounds", "1", "--timeout", "1s")
    assert done.code == 10, str(done)
    assert cell(done, "read")["seconds"] is None
    assert done.event("bench")["unmeasured"] == 2


def test_the_first_read_is_told_and_in_no_number(box: Box) -> None:
    done = good(box, box.model(size=4 * MIB), "--methods", "read", "--loaders", "1", "--rounds", "1")
    first = done.all("bench_run")[0]
    assert (first["run"], first["state"], first["round"], first["seconds"] > 0) == ("r001", "first", 0, True)
    assert all("r001" not in one["runs"] for one in done.all("bench_cell"))
    assert done.event("bench")["runs"] == len(done.all("bench_run")) - 1


@pytest.mark.root
def test_one_failure_leaves_the_other_rounds_to_a_cell(box: Box, fuse_mount: MountFactory) -> None:
    slow = fuse_mount(synthetic={"a.bin": 4 * MIB}, keep_cache="always", stream_rate=4 * MIB)
    word = f"BENCH_TEST={os.path.basename(box.folder)}"
    name, _, value = word.partition("=")
    words = ["bench", "--yes", "--json", slow.path, "--methods", "read", "--loaders", "1", "--rounds", "2"]
    running = box.start(*words, env={name: value})
    running.await_text('"state":"first"', 30)
    file = os.path.join(slow.path, "a.bin")
    readers: list[int] = []

    def reading() -> bool:
        readers[:] = [pid for pid in with_word(word) if pid != running.pid and has_open(pid, file)]
        return bool(readers)

    until(reading, "a reader", 20)
    os.kill(readers[0], signal.SIGKILL)
    done = running.finish(60)
    assert done.code == 0, str(done)
    one = cell(done, "read")
    assert (one["failed"], one["rounds"]) == (1, 1), str(done)


def test_a_file_that_is_gone_is_named(box: Box) -> None:
    model = box.model(size=2 * MIB)
    running = box.start(
        "bench", "--yes", "--json", model, "--methods", "read", "--loaders", "1", "--rounds", "60"
    )
    running.await_text('"state":"cold"', 30)
    gone = next(path for path in files_below(model) if path.endswith(".safetensors"))
    os.unlink(gone)
    done = running.finish(120)
    reasons = {
        run["reason"] or run["failed"] for run in done.all("bench_run") if run["disturbed"] or run["failed"]
    }
    assert any(os.path.basename(gone) in reason for reason in reasons), str(reasons)


# What it leaves behind


@pytest.mark.root
@pytest.mark.parametrize(
    ("number", "method"),
    [(number, method) for number in (signal.SIGTERM, signal.SIGKILL) for method in ("read", "recipe")],
)
def test_nothing_outlives_it(box: Box, fuse_mount: MountFactory, number: int, method: str) -> None:
    # A throw-away read comes before the first run: its reader will do, but where another command is to be met.
    size = 12 * MIB if method == "recipe" else 200 * MIB
    slow = fuse_mount(synthetic={"a.bin": size}, keep_cache="always", stream_rate=4 * MIB)
    scratch = box.path("scratch")
    os.mkdir(scratch)
    word = f"BENCH_TEST={os.path.basename(box.folder)}"
    name, _, value = word.partition("=")
    words = ["bench", "--yes", slow.path, "--methods", method, "--loaders", "2"]
    running = box.start(*words, env={name: value, "TMPDIR": scratch})
    file = os.path.join(slow.path, "a.bin")
    if method == "recipe":
        until(lambda: b"cat" in comms(with_word(word)), "the recipe", 20)
    until(lambda: sum(has_open(pid, file) for pid in with_word(word)), "a reader", 20)
    running.signal(number)
    done = running.finish(15)
    assert done.code == (143 if number == signal.SIGTERM else -9), str(done)
    until(lambda: not with_word(word), "the end of the readers", 1.5)
    until(lambda: os.listdir(scratch) == [], "the end of temporary files", 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_being_fetched_does_not_stay_in_memory(bed: Bed, source: str, number: int) -> None:
    """Files in a tmpfs that no process owns are memory that nobody gets back."""
    bed.serve(source)
    bed.oss.faults.add(Fault("slow", times=10_000, rate=64 << 10))
    into = bed.box.path("into")
    os.mkdir(into)
    words = ["bench", bed.url, "--into", into, "--methods", "fetch", "--rounds", "1"]
    running = bed.box.start(*words, env=bed.oss.env())
    until(lambda: any(path.endswith(".part") for path in files_below(into)), "a part of a file", 20)
    running.signal(number)
    running.finish(20)
    until(lambda: os.listdir(into) == [], "the end of what was fetched", 5)


def comms(pids: list[int]) -> set[bytes]:
    """The names of processes."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found.add(Path("/proc", str(pid), "comm").read_bytes().strip())
    return found


def has_open(pid: int, path: str) -> bool:
    """Whether the process has the file open."""
    try:
        return path in {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
    except OSError:
        return False


def test_a_marker_for_files_that_are_evicted_is_withdrawn(box: Box) -> None:
    model = box.model(size=MIB)
    assert box.warm(model).code == 0
    assert box.ready()
    assert box.run("bench", "--yes", model, "--methods", "read", "--loaders", "1", "--rounds", "1").code == 0
    assert not box.ready()


def test_quick_is_one_round_of_the_whole_where_that_is_small(box: Box) -> None:
    model = box.model(size=8 * MIB)
    done = good(box, model, "--quick", "--methods", "read,recipe")
    last = done.event("bench")
    assert (last["quick"], last["rounds"], last["loaders"]) == (True, 1, [1, 4])
    assert last["storages"][0]["files"] == last["storages"][0]["of_files"]
    assert cell(done, "read", loaders=4)["rounds"] == 1


# Where rights, memory or torch are missing


def test_a_file_that_may_not_be_read_is_said_at_once(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    model = box.model(size=MIB)
    os.chmod(files_below(model)[0], 0)
    done = box.run("bench", "--yes", model, uid=STRANGER, env={"TMPDIR": "/tmp"})
    assert done.code == 6, str(done)
    assert files_below(model)[0] in done.err


@pytest.mark.root
def test_without_a_folder_for_temporary_files_the_hint_names_tmpdir(box: Box) -> None:
    """As in a container whose root is read-only; its own working directory is the last place that is tried."""
    # Each as it is, but read-only: the checkout may lie below one of them.
    fix = "for at in /tmp /var/tmp /usr/tmp; do [ ! -d $at ] || mount --bind -o ro $at $at || exit 99; done; "
    hide = fix + 'cd /proc; exec "$@"'
    done = box.run("bench", "--yes", "/etc", before=["unshare", "--mount", "sh", "-c", hide, "sh"])
    assert done.code in (6, 7, 9), str(done)
    assert "TMPDIR" in done.err


@pytest.mark.root
def test_what_does_not_fit_into_memory_is_refused(box: Box) -> None:
    if not os.path.isdir(V1_MEMORY):
        pytest.skip("needs the memory controller of cgroup v1")
    model = os.path.dirname(box.sparse("huge/a.bin", 600 * MIB))
    group = Cgroup(f"bench-{os.path.basename(box.folder)}")
    try:
        group.limit(300 * MIB)
        words = ["--methods", "read", "--loaders", "1", "--rounds", "1", "--timeout", "20s"]  # were it begun
        done = box.run("bench", "--yes", model, *words, before=group.inside())
    finally:
        group.remove()
    assert done.code == 4, str(done)
    assert "do not fit into memory" in done.err


@pytest.mark.root
def test_copies_that_do_not_fit_into_memory_are_not_begun(box: Box) -> None:
    """Each loader keeps all tensors: as many as fit are measured, the others said."""
    if not os.path.isdir(V1_MEMORY):
        pytest.skip("needs the memory controller of cgroup v1")
    model = box.model(size=64 * MIB)
    words = [model, "--methods", "safetensors", "--loaders", "1,16", "--rounds", "1", "--to", "cpu"]
    group = Cgroup(f"bench-{os.path.basename(box.folder)}")
    try:
        group.limit(900 * MIB)
        done = good(box, *words, env=with_stand_ins(box), before=group.inside())
    finally:
        group.remove()
    assert cell(done, "safetensors", loaders=1)["rounds"] == 1, str(done)
    for state in ("cold", "warm"):
        one = cell(done, "safetensors", state, loaders=16)
        assert (one["rounds"], one["failed"]) == (0, 0), str(done)
        assert "16 copies of 64.0 MiB" in one["unmeasured"]
        assert "do not fit into memory" in one["unmeasured"]
    assert not [run for run in done.all("bench_run") if run["loaders"] == 16]


def test_a_loader_that_is_killed_is_told_with_its_signal(box: Box) -> None:
    model = box.model(size=MIB)
    env = with_stand_ins(box, torch=TORCH + "import os; kill = lambda: os.kill(os.getpid(), 9)\n")
    Path(box.path("safetensors.py")).write_text("def safe_open(*_, **__):\n    import torch; torch.kill()\n")
    words = [model, "--methods", "safetensors", "--loaders", "1", "--rounds", "1", "--to", "cpu"]
    done = bench(box, *words, env=env)
    assert {run["failed"] for run in done.all("bench_run") if run["state"] != "first"} == {
        "a loader was ended by signal 9, as it is when memory runs out"
    }, str(done)


TORCH = """
class cuda:
    @staticmethod
    def is_available(): return False
class zeros:
    def __init__(self, count, device): pass
    def clone(self): pass
def set_num_threads(count): assert count == 1
"""
SAFETENSORS = """
class Tensor:
    def __init__(self, data): self.data = data
    def clone(self): return Tensor(bytes(self.data))
    def numel(self): return len(self.data)
    def element_size(self): return 1
class safe_open:
    def __init__(self, path, framework, device):
        assert (framework, device) == ("pt", "cpu")
        with open(path, "rb") as file:
            self.data = file.read()
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def keys(self): return ["all"]
    def get_tensor(self, name): return Tensor(self.data)
"""


def with_stand_ins(box: Box, torch: str = TORCH) -> dict[str, str]:
    """The environment in which modules of those names stand in for torch and safetensors."""
    Path(box.path("torch.py")).write_text(torch)
    Path(box.path("safetensors.py")).write_text(SAFETENSORS)
    return {"PYTHONPATH": os.pathsep.join([box.folder, environment()["PYTHONPATH"]])}


def test_the_loader_of_safetensors_is_run_by_the_interpreter_that_has_it(box: Box) -> None:
    """Modules of those names stand in for torch and safetensors: only the conversation is tested here."""
    model = box.model(size=4 * MIB)
    env = with_stand_ins(box)
    words = [model, "--methods", "safetensors", "--loaders", "2", "--rounds", "1", "--to", "cpu"]
    done = good(box, *words, env=env)
    size = sum(os.path.getsize(name) for name in files_below(model) if name.endswith(".safetensors"))
    assert size < sum(os.path.getsize(name) for name in files_below(model))
    for state in ("cold", "warm"):
        one = cell(done, "safetensors", state, loaders=2)
        assert (one["rounds"], one["bytes"], one["disturbed"]) == (1, size, 0)
    assert not [line for line in done.event("bench")["limits"] if "engine's own memory: loaders" in line]
    people = box.run("bench", "--yes", *words, env=env)
    assert "safetensors: reads " in people.out
    refused = bench(box, *words[:-1], "cuda", env=env)
    assert refused.code == 2
    assert "no GPU" in refused.out
