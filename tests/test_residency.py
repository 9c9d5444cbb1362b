"""Residency that is true: who is told what of whose files, and where the kernel's own answers lie."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stager.core.model import Known
from stager.node import pagecache
from stager.node.syscalls import CacheCount
from tests.harness import MIB, PAGE, STRANGER, Box, cold, mounted, resident, until

EXACT = ("cachestat", "mincore", "memory-fs")


def status_of(box: Box, *words: str, **options: object) -> dict[str, object]:
    done = box.run("status", "--json", *words, **options)
    assert done.code == 0, str(done)
    total: dict[str, object] = done.event("status_total")["residency"]
    return total


# Strangers


@pytest.mark.root
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_stranger_is_never_told_a_hundred_percent(box: Box, share: float) -> None:
    path = box.file("weights.data", 16 * MIB)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead: exactly so much
    os.pread(fd, int(16 * MIB * share), 0)
    os.close(fd)
    truth = resident(path)
    assert truth == int(16 * MIB * share)
    found = status_of(box, path, uid=STRANGER)
    assert found["known"] not in EXACT
    assert found["resident"] is None or found["resident"] < 16 * MIB
    if found["resident"] is not None:  # a lower bound: it may fall short, but not lie
        assert found["resident"] <= truth + MIB
        assert found["resident"] >= truth * 0.8 - MIB


@pytest.mark.root
def test_a_stranger_warms_and_says_unverified(box: Box) -> None:
    box.open_marker_folder()
    path = box.file("weights.data", 16 * MIB)
    done = box.warm(path, uid=STRANGER)
    assert (done.code, done.summary["state"], done.summary["outcome"]) == (0, "unverified", "unknown")
    assert done.summary["read"] == 16 * MIB
    assert resident(path) == 16 * MIB
    assert done.summary["files_resident"] == 0
    assert done.summary["residency"]["known"] not in EXACT
    assert not box.ready()
    assert box.ready("--accept", "unverified")
    text = box.run("warm", path, uid=STRANGER)
    assert text.out.startswith("unverified: ")
    assert "100%" not in text.out
    assert "an estimate" in text.out or "unknown" in text.out


@pytest.mark.root
def test_a_stranger_under_strict_is_refused(box: Box) -> None:
    box.open_marker_folder()
    path = box.file("weights.data", 4 * MIB)
    done = box.warm(path, "--strict", uid=STRANGER)
    assert (done.code, done.summary["state"]) == (3, "failed")
    assert "owner" in done.event("error")["hint"]


@pytest.mark.root
def test_a_stranger_is_told_the_truth_of_his_own_and_of_writable_files(box: Box) -> None:
    own, open_to_all = box.file("own.data", 4 * MIB), box.file("open.data", 4 * MIB, mode=0o666)
    os.chown(own, STRANGER, STRANGER)
    for path in (own, open_to_all):
        found = status_of(box, path, uid=STRANGER)
        assert (found["resident"], found["known"] in EXACT) == (0, True)


@pytest.mark.root
def test_root_of_a_user_namespace_is_no_owner_of_unmapped_files(box: Box) -> None:
    """CAP_FOWNER in a namespace means nothing for owners that do not exist in it; mincore would say 100 %."""
    path = box.file("weights.data", 8 * MIB)
    os.chown(path, STRANGER, STRANGER)
    found = status_of(box, path, before=["unshare", "-Ur"])
    assert found["known"] not in EXACT
    assert found["resident"] is None or found["resident"] < MIB
    mine = box.file("mine.data", 8 * MIB)
    found = status_of(box, mine, before=["unshare", "-Ur"])
    assert (found["resident"], found["known"] in EXACT) == (0, True)


@pytest.mark.root
def test_an_unmapped_owner_hides_behind_a_mapped_number(box: Box) -> None:
    """A namespace of 70,000 uids has a uid 65534 of its own, and owners from outside show as the same number."""
    path = box.file("weights.data", 8 * MIB)
    os.chown(path, 100_000, 100_000)
    waits = ["unshare", "-U", "sh", "-c", 'read go && exec "$@"', "sh"]
    running = box.start("status", "--json", path, before=waits, stdin=subprocess.PIPE)
    until(
        lambda: os.readlink(f"/proc/{running.pid}/ns/user") != os.readlink("/proc/self/ns/user"),
        "the namespace",
    )
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{running.pid}/{name}").write_text("0 0 70000")
    assert running.process.stdin is not None
    running.process.stdin.write(b"go\n")
    running.process.stdin.close()
    done = running.finish()
    assert done.code == 0, str(done)
    found = done.event("status_total")["residency"]
    assert found["known"] not in EXACT
    assert found["resident"] is None or found["resident"] < MIB


@pytest.mark.root
def test_the_lie_exists(box: Box) -> None:
    """What all this is for: mincore tells a stranger that a cold file is resident. Without the lie no guard is proven."""
    path = box.file("weights.data", MIB)
    script = (
        "import ctypes, os, sys\n"
        "from stager.node.syscalls import Mapping\n"
        f"os.setgroups([]); os.setresgid(*[{STRANGER}] * 3); os.setresuid(*[{STRANGER}] * 3)\n"
        f"fd = os.open({path!r}, os.O_RDONLY)\n"
        f"print(sum(Mapping(fd, 0, {MIB}).resident_pages(0, {MIB})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert int(done.stdout) == MIB // PAGE
    assert resident(path) == 0


# Overlayfs


@contextmanager
def overlay(box: Box, lower: str) -> Iterator[str]:
    for name in ("upper", "work", "merged"):
        os.makedirs(box.path(name), exist_ok=True)
    options = f"lowerdir={lower},upperdir={box.path('upper')},workdir={box.path('work')}"
    with mounted("overlay", "overlay", box.path("merged"), options) as point:
        yield point


@pytest.mark.root
def test_overlayfs_is_counted_by_what_does_not_lie_there(box: Box) -> None:
    """cachestat says 0 of every file on overlayfs, mincore tells the truth."""
    path = box.file("lower/weights.data", 8 * MIB)
    with overlay(box, os.path.dirname(path)) as merged:
        there = os.path.join(merged, "weights.data")
        found = status_of(box, there)
        assert (found["resident"], found["known"]) == (0, "mincore")
        done = box.warm(merged)
        assert (done.code, done.summary["state"]) == (0, "ready")
        assert done.summary["residency"]["known"] == "mincore"
        assert done.summary["read"] == 8 * MIB
        assert resident(path) == 8 * MIB
        assert resident(there) == 8 * MIB
        second = box.warm(merged)
        assert second.summary["read"] == 0
        assert box.ready()
        assert box.ready("--min-resident", "100%")
        evicted = box.run("evict", "--json", there).event("evict_summary")
        assert (evicted["before"], evicted["after"]) == (8 * MIB, 0)
        assert not box.ready()


@pytest.mark.root
def test_overlayfs_is_read_like_its_lower(box: Box) -> None:
    path = box.file("lower/weights.data", MIB)
    with overlay(box, os.path.dirname(path)) as merged:
        text = box.run("check", merged).out
        assert "overlayfs over " in text
        assert "pieces of big files" in text


@pytest.mark.root
def test_a_stranger_on_overlayfs_is_never_told_a_hundred_percent(box: Box) -> None:
    path = box.file("lower/weights.data", 8 * MIB)
    with overlay(box, os.path.dirname(path)) as merged:
        found = status_of(box, os.path.join(merged, "weights.data"), uid=STRANGER)
        assert found["known"] not in EXACT
        assert found["resident"] is None or found["resident"] < MIB


# Memory filesystems


@pytest.mark.root
def test_tmpfs_is_memory_already(box: Box) -> None:
    os.mkdir(box.path("shm"))
    with mounted("tmpfs", "none", box.path("shm"), "size=32m") as point:
        Path(point, "weights.data").write_bytes(os.urandom(4 * MIB))
        done = box.warm(point)
        assert (done.code, done.summary["state"], done.summary["read"]) == (0, "ready", 0)
        assert done.summary["residency"]["known"] == "memory-fs"
        evicted = box.run("evict", point)
        assert "delete it" in evicted.out
        assert Path(point, "weights.data").stat().st_size == 4 * MIB
        shutil.copy(Path(point, "weights.data"), Path(point, "copy.data"))


# What holes say, against a bitmap


class _Bitmap:
    """A probe over a made-up page cache."""

    known = Known.MINCORE

    def __init__(self, pages: list[bool], size: int) -> None:
        self.pages, self.size, self.asked = pages, size, 0

    def count(self, offset: int, length: int) -> CacheCount:
        assert offset % PAGE == 0
        assert offset + length <= self.size
        assert length % PAGE == 0 or offset + length == self.size
        self.asked += 1
        return CacheCount(sum(self.pages[offset // PAGE : -(-(offset + length) // PAGE)]), 0)


@st.composite
def bitmaps(draw: st.DrawFn) -> _Bitmap:
    pages: list[bool] = []
    for _ in range(draw(st.integers(1, 6))):
        pages += [draw(st.booleans())] * draw(st.integers(1, 3 * pagecache.GRAIN // PAGE))
    tail = draw(st.integers(1, PAGE))
    return _Bitmap(pages, (len(pages) - 1) * PAGE + tail)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bitmaps())
def test_holes_hold_every_missing_page_and_little_else(bitmap: _Bitmap) -> None:
    found = pagecache.holes(bitmap, bitmap.size)
    covered = [False] * len(bitmap.pages)
    end = -1
    for offset, length in found:
        assert offset > end, "ascending, disjoint, merged"
        assert length > 0
        end = offset + length
        assert end <= bitmap.size
        assert offset % PAGE == 0
        assert end % PAGE == 0 or end == bitmap.size
        for page in range(offset // PAGE, -(-end // PAGE)):
            covered[page] = True
    for page, there in enumerate(bitmap.pages):
        assert there or covered[page], "a missing page is in a hole"
    # A resident page may lie in a hole only together with a missing one, within a grain.
    grain = pagecache.GRAIN // PAGE
    for page, there in enumerate(bitmap.pages):
        if there and covered[page]:
            near = bitmap.pages[max(0, page - 2 * grain) : page + 2 * grain]
            assert not all(near)
    total = pagecache.count_bytes(bitmap, bitmap.size)
    assert (total.resident == bitmap.size) == all(bitmap.pages) == (not found)


@settings(max_examples=100, deadline=None)
@given(bitmaps())
def test_counted_bytes_are_those_of_the_resident_pages(bitmap: _Bitmap) -> None:
    counted = pagecache.count_bytes(bitmap, bitmap.size)
    pages = sum(bitmap.pages)
    assert counted.resident is not None
    assert counted.resident <= bitmap.size
    assert abs(counted.resident - pages * PAGE) < PAGE
    assert counted.complete == all(bitmap.pages)


def test_an_unread_page_at_the_end_is_missed(box: Box) -> None:
    path = box.file("odd.data", 4 * MIB + 1)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, 4 * MIB, 0)
        probe, _ = pagecache.probe(fd, "ext4")
        assert probe is not None
        assert pagecache.holes(probe, 4 * MIB + 1) == [(4 * MIB, 1)]
    finally:
        os.close(fd)
    cold(path)


@pytest.mark.root
def test_sampling_does_not_read_a_cold_file_in(box: Box) -> None:
    path = box.file("weights.data", 64 * MIB)
    status_of(box, path, uid=STRANGER)
    assert resident(path) <= 512 * 4 * PAGE  # its 512 samples, not the readahead behind each
