"""``stager warm`` on real files: what becomes resident, what is said of it, and how every result ends in every mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stager.core.outcome import MarkerState, Mode, Result, verdict
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, STRANGER, V1_MEMORY, Box, Done, cold, files_below, resident, until

MODES = {Mode.DEFAULT: (), Mode.FAIL_OPEN: ("--fail-open",), Mode.STRICT: ("--strict",)}
EXACT = ("cachestat", "mincore")
HEADER = 256 * 1024  # the first look at a safetensors file


def size_of(folder: str) -> int:
    return sum(os.path.getsize(path) for path in files_below(folder))


# Cold, warm, and the second run


def test_cold_files_become_resident_and_the_gate_opens(box: Box) -> None:
    model = box.model()
    total = size_of(model)
    done = box.warm(model)
    assert done.code == 0, str(done)
    assert resident(*files_below(model)) == total
    summary = done.summary
    assert (summary["outcome"], summary["state"], summary["files"]) == ("resident", "ready", 8)
    assert summary["residency"]["resident"] == summary["residency"]["total"] == total
    assert summary["residency"]["known"] in EXACT
    assert summary["missing"] == []
    assert total - 8 * HEADER < summary["read"] <= total
    assert box.ready()
    assert box.ready(model)
    assert not box.ready(box.folder)


def test_a_second_run_reads_nothing_and_says_so(box: Box) -> None:
    model = box.model()
    box.warm(model)
    second = box.warm(model)
    assert second.code == 0
    assert (second.summary["read"], second.summary["brought_back"]) == (0, 0)
    assert second.summary["already"] == size_of(model)
    assert box.ready()
    text = box.run("warm", model)
    assert text.out.startswith("ready: ")
    assert "nothing read" in text.out
    remarks = [
        line for line in text.err.splitlines() if "pages out memory" not in line and "--hold" not in line
    ]
    assert not remarks


def test_only_what_is_missing_is_read_again(box: Box) -> None:
    big = box.file("big.bin.data", 32 * MIB)
    small = box.file("small.data", 8 * MIB)
    box.warm(big, small)
    cold(small)
    fd = os.open(big, os.O_RDONLY)
    os.posix_fadvise(fd, 8 * MIB, 4 * MIB, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    gone = 40 * MIB - resident(big, small)
    assert gone > 11 * MIB
    done = box.warm(big, small)
    assert gone <= done.summary["read"] <= gone + 4 * MIB  # holes are read at a grain of 2 MiB
    assert resident(big, small) == 40 * MIB


def test_every_touch_brings_everything_in(box: Box) -> None:
    path = box.file("weights.data", 16 * MIB + 777)
    for words, touch in (((), "splice"), (("--protect",), "populate")):
        cold(path)
        done = box.warm(path, *words)
        assert done.code == 0
        assert resident(path) == 16 * MIB + 777
        assert (done.summary["touch"], done.summary["read"]) == (touch, 16 * MIB + 777)
    assert any(note["code"] == "protect" and "kubelet" in note["message"] for note in done.all("note"))


def test_fresh_drops_and_reads_everything(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    box.warm(path)
    done = box.warm(path, "--fresh")
    assert (done.code, done.summary["read"], done.summary["already"]) == (0, 8 * MIB, 0)


def test_lanes_and_rate_are_bounds(box: Box) -> None:
    for number in range(6):
        box.file(f"m/{number}.data", 4 * MIB)
    done = box.warm(box.path("m"), "-P", "2", "--max-rate", "24MiB")
    assert done.code == 0
    assert done.summary["peak"] <= 2
    assert done.summary["seconds"] >= 0.8 * 24 / 24  # a tenth of a second of saved-up time comes on top
    assert done.all("progress"), "more than a second of reading shows progress"


@pytest.mark.root
def test_a_span_is_a_handle_and_nothing_is_split_further(box: Box, fuse_mount: MountFactory) -> None:
    """A file of 12 MiB is opened twice more in pieces of 4 MiB than as a whole; in pieces that are longer than it, as a whole."""
    mount = fuse_mount(synthetic={"a.data": 12 * MIB}, keep_cache="always", latency=1)
    opens = {}
    for span in ("whole", "4MiB", "256MiB"):
        mount.remount()
        done = box.warm(mount.path, "--span", span, "-P", "8", "--no-adapt", "--marker", box.path(span))
        assert (done.code, done.summary["outcome"], done.summary["read"]) == (0, "resident", 12 * MIB)
        assert done.summary["split"] is False
        opens[span] = mount.counters()["opens"]
    assert (opens["4MiB"] - opens["whole"], opens["256MiB"] - opens["whole"]) == (2, 0)
    said = box.run("check", mount.path, "--span", "4MiB", "--fresh").out
    assert "pieces of 4MiB, a handle each" in said


def test_a_span_below_a_mib_is_refused(box: Box) -> None:
    done = box.warm(box.path("m"), "--span", "512KiB")
    assert done.code == 2
    assert "1 MiB" in done.event("error")["message"]


# Only a part


@pytest.mark.parametrize("lanes", ["1", "8"])
def test_only_the_first_bytes_of_each_file_and_the_gate_knows(box: Box, lanes: str) -> None:
    large, small = box.file("m/large.data", 24 * MIB), box.file("m/small.data", 2 * MIB)
    done = box.warm(box.path("m"), "--first", "5MiB", "-P", lanes)
    assert (done.code, done.summary["outcome"], done.summary["state"]) == (0, "partial", "partial")
    assert done.summary["residency"]["resident"] == done.summary["residency"]["total"] == 7 * MIB
    assert done.summary["read"] == 7 * MIB
    assert "first 5.0 MiB of each file" in done.summary["reason"]
    assert resident(small) == 2 * MIB
    assert 5 * MIB <= resident(large) < 16 * MIB, "what is read ahead comes on top"
    assert not box.ready()
    again = box.warm(box.path("m"), "--first", "5MiB", "--fresh")
    assert (again.summary["read"], again.summary["already"]) == (7 * MIB, 0)
    whole = box.warm(box.path("m"))
    assert (whole.summary["outcome"], whole.summary["residency"]["total"]) == ("resident", 26 * MIB)
    assert box.ready()


def test_the_first_bytes_of_small_files_are_all_of_them(box: Box) -> None:
    box.file("m/a.data", 2 * MIB)
    done = box.warm(box.path("m"), "--first", "5MiB")
    assert (done.summary["outcome"], done.summary["read"]) == ("resident", 2 * MIB)
    assert box.warm(box.path("m"), "--first", "0").code == 2


def test_under_a_budget_whole_files_from_the_head_of_the_load_order(box: Box) -> None:
    model = box.model(size=40 * MIB, shards=5)
    shards = sorted(path for path in files_below(model) if path.endswith(".safetensors"))
    small = [path for path in files_below(model) if path not in shards]
    budget = sum(map(os.path.getsize, small + shards[:2])) + os.path.getsize(shards[2]) // 2
    done = box.warm(model, "--budget", str(budget))
    assert (done.code, done.summary["state"], done.summary["outcome"]) == (0, "partial", "partial")
    assert done.summary["skipped"] == 3
    assert "--budget" in done.summary["binding"]
    for path in (*small, *shards[:2]):
        assert resident(path) == os.path.getsize(path)
    assert resident(*shards[2:]) == 0  # their headers were read, and given back
    assert done.summary["read"] + done.summary["already"] <= budget
    assert resident(*files_below(model)) <= budget
    assert not box.ready()
    assert box.ready("--accept", "partial")


def test_a_given_limit_is_named_with_what_to_write(box: Box) -> None:
    model = box.model()
    done = box.warm(model, "--limit", "100MiB", "--reserve", "0")
    assert (done.code, done.summary["state"]) == (0, "partial")
    assert done.summary["binding"] == "--limit = 104857600 (100.0 MiB)"
    note = next(note for note in done.all("note") if note["code"] == "partial")
    assert "--limit" in note["hint"]


def test_strict_refuses_before_reading(box: Box) -> None:
    model = box.model()
    shards = [path for path in files_below(model) if path.endswith(".safetensors")]
    done = box.warm(model, "--budget", "20MiB", "--strict")
    assert (done.code, done.summary["state"], done.summary["read"]) == (4, "failed", 0)
    assert resident(*shards) == 0
    assert done.event("error")["exit_code"] == 4
    assert not box.ready("--accept", "partial,unverified,released")


@pytest.mark.parametrize("order", ["largest", "load"])
def test_order_can_be_chosen(box: Box, order: str) -> None:
    model = box.model(size=24 * MIB, shards=2)
    first, second = sorted(path for path in files_below(model) if path.endswith(".safetensors"))
    small = size_of(model) - os.path.getsize(first) - os.path.getsize(second)
    head = first if order == "load" else max(first, second, key=os.path.getsize)
    done = box.warm(model, "--order", order, "--budget", str(small + os.path.getsize(head)))
    assert done.code == 0
    assert resident(head) == os.path.getsize(head)
    other = second if head == first else first
    assert resident(other) == 0


def test_files_named_one_by_one_are_wanted_in_that_order(box: Box) -> None:
    """Several checkpoints in one folder, and room for some: the first ones named, not the first by name."""
    model = box.model(size=24 * MIB, shards=3)
    first, second, third = sorted(path for path in files_below(model) if path.endswith(".safetensors"))
    done = box.warm(third, first, second, "--budget", str(os.path.getsize(third) + os.path.getsize(first)))
    assert (done.code, done.summary["state"]) == (0, "partial")
    assert [resident(path) > 0 for path in (first, second, third)] == [True, False, True]


# Every result in every mode


Act = Callable[[Box, tuple[str, ...], pytest.FixtureRequest], Done]


def _resident(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    return box.warm(box.model(size=4 * MIB, shards=1), *words)


def _unknown(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    box.open_marker_folder()
    return box.warm(box.model(size=4 * MIB, shards=1), *words, uid=STRANGER)


def _lost(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    """A limit that nothing betrays: the cgroup's files are hidden, and the tail evicts the head."""
    path = box.sparse("big.data", 200 * MIB)
    cgroup = request.getfixturevalue("make_cgroup")()
    cgroup.limit(120 * MIB)
    hide = ["unshare", "-m", "sh", "-c", f'umount -l {V1_MEMORY} && exec "$@"', "sh"]
    return box.warm(path, *words, before=[*cgroup.inside(), *hide])


def _partial(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    box.file("m/a.data", 4 * MIB)
    box.file("m/b.data", 4 * MIB)
    return box.warm(box.path("m"), "--budget", "5MiB", *words)


def _below(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    box.open_marker_folder()  # the stranger's samples prove less than all
    return box.warm(box.model(size=4 * MIB, shards=1), "--min-resident", "100%", *words, uid=STRANGER)


def _dropped(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    mount = request.getfixturevalue("fuse_mount")(synthetic={"config.json": 100, "w.data": 4 * MIB})
    return box.warm(mount.path, *words)


def _unreadable(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    box.file("m/a.data", 4 * MIB, mode=0o600)
    box.file("m/b.data", 4 * MIB)
    box.open_marker_folder()
    return box.warm(box.path("m"), *words, uid=STRANGER)


def _io_error(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    files = {"a.data": 4 * MIB, "b.data": 4 * MIB}
    make = request.getfixturevalue("fuse_mount")
    mount = make(synthetic=files, keep_cache="always", error_at="a.data:2MiB:EIO")
    return box.warm(mount.path, *words)


def _deadline(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    return box.warm(box.file("a.data", 16 * MIB), "--max-rate", "2MiB", "--timeout", "700ms", *words)


def _empty(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    os.mkdir(box.path("m"))
    return box.warm(box.path("m"), *words)


def _corrupt(box: Box, words: tuple[str, ...], request: pytest.FixtureRequest) -> Done:
    model = box.model(size=8 * MIB, shards=2)
    os.unlink(next(path for path in files_below(model) if "-00002-" in path))
    return box.warm(model, *words)


ACTS: dict[Result, Act] = {
    Result.RESIDENT: _resident,
    Result.UNKNOWN: _unknown,
    Result.LOST: _lost,
    Result.PARTIAL: _partial,
    Result.BELOW_MINIMUM: _below,
    Result.DROPPED: _dropped,
    Result.UNREADABLE: _unreadable,
    Result.IO_ERROR: _io_error,
    Result.DEADLINE: _deadline,
    Result.EMPTY: _empty,
    Result.CORRUPT: _corrupt,
}


def test_every_result_is_provoked() -> None:
    assert set(ACTS) == set(Result)


@pytest.mark.root
@pytest.mark.parametrize("mode", list(Mode), ids=str)
@pytest.mark.parametrize("result", list(Result), ids=str)
def test_every_result_in_every_mode(
    box: Box, request: pytest.FixtureRequest, result: Result, mode: Mode
) -> None:
    done = ACTS[result](box, MODES[mode], request)
    expected = verdict(result, mode)
    assert done.code == expected.exit_code, str(done)
    assert box.state == expected.state.value
    assert box.ready() == (expected.state is MarkerState.READY)
    assert box.ready("--accept", "partial,unverified,released") == (expected.state is not MarkerState.FAILED)
    errors = done.all("error")
    assert len(errors) == (expected.exit_code != 0)
    if errors:
        assert errors[0]["exit_code"] == expected.exit_code
        assert errors[0]["message"]
        assert errors[0]["hint"]
    if result is not Result.EMPTY:
        summary = done.summary
        assert (summary["outcome"], summary["exit_code"]) == (result.value, expected.exit_code)
        assert summary["state"] == expected.state.value
    if result in (Result.RESIDENT, Result.EMPTY):
        return
    assert done.summary["reason"] or result is Result.UNKNOWN


def test_allow_incomplete_warms_a_model_with_a_hole(box: Box) -> None:
    model = box.model(size=8 * MIB, shards=2)
    os.unlink(next(path for path in files_below(model) if "-00002-" in path))
    refused = box.warm(model, "--fail-open")
    assert (refused.code, refused.summary["read"]) == (8, 0)
    assert "model-00002-of-00002.safetensors" in refused.event("error")["message"]
    for words in ((), ("--strict",), ("--fail-open",)):
        done = box.warm(model, "--allow-incomplete", *words)
        assert (done.code, done.summary["state"]) == (0, "ready")
        assert any(note["code"] == "incomplete" for note in done.all("note"))


def test_the_text_face_ends_with_one_self_contained_line(box: Box) -> None:
    model = box.model(size=4 * MIB, shards=1)
    done = box.run("warm", model)
    lines = done.out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ready: 4.")
    assert "8 files" in lines[0] or "7 files" in lines[0] or "files" in lines[0]
    strict = box.run("warm", model, "--strict", "--budget", "1MiB", "--fresh")
    assert strict.code == 4
    assert strict.err.splitlines()[-2].startswith("error: ")
    assert strict.err.splitlines()[-1].startswith("hint: ")
    assert strict.out.startswith("failed: ")


def test_a_dry_run_is_a_check(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    done = box.run("warm", "--dry-run", "--json", path)
    assert done.code == 0
    assert done.event("forecast")["to_read"] == 8 * MIB
    assert box.state == ""


def test_the_marker_is_withdrawn_while_a_run_is_under_way(box: Box) -> None:
    path = box.file("weights.data", 16 * MIB)
    assert box.warm(path).code == 0
    assert box.ready()
    cold(path)
    running = box.start("warm", path, "--max-rate", "4MiB", "--progress", "lines")
    until(lambda: box.state == "failed", "a withdrawn marker")
    assert not box.ready("--accept", "partial,unverified,released")
    running.kill()


def test_environment_variables_are_options(box: Box) -> None:
    box.file("m/a.data", 4 * MIB)
    box.file("m/b.data", 4 * MIB)
    env = {"STAGER_BUDGET": "5MiB", "STAGER_STRICT": "1", "STAGER_JSON": "1"}
    done = box.run("warm", box.path("m"), env=env)
    assert done.code == 4
    assert json.loads(done.out.splitlines()[-1])["exit_code"] == 4


def test_fresh_drops_nothing_before_the_run_is_admitted(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    box.warm(path)
    assert box.warm(path, "--fresh", "--strict", "--budget", "1MiB").code == 4
    assert resident(path) == 8 * MIB


@pytest.mark.root
def test_an_etag_that_changed_is_another_file(box: Box) -> None:
    """bindfs passes extended attributes through, as mounts of object stores show the ETag."""
    bindfs = shutil.which("bindfs")
    if bindfs is None:
        pytest.skip("bindfs is not installed")
    path = box.file("source/weights.data", 4 * MIB)
    os.setxattr(path, "user.etag", b'"one"')
    mount = Path(box.folder, "mount")
    mount.mkdir()
    subprocess.run([bindfs, "-o", "kernel_cache", str(Path(path).parent), str(mount)], check=True)
    try:
        assert box.warm(str(mount), "--fresh").code == 0
        assert box.warm(str(mount)).summary["read"] == 0
        os.setxattr(path, "user.etag", b'"two"')
        done = box.warm(str(mount))
        assert (done.summary["read"], done.summary["replaced"]) == (4 * MIB, 1)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
