"""What the kernel says about residency where it is known to lie, and that stager does not repeat the lie."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

from stager.core.model import Known
from stager.node import pagecache, syscalls
from tests.vm.guest import lab
from tests.vm.guest.lab import MB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 16 * MB
STRANGER = 65532  # the uid that hardened images run as


def as_user(uid: int, work: Callable[[], None]) -> None:
    """Run `work` in a forked process as `uid`, without capabilities; fails when it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def cold(folder: str) -> str:
    path = lab.fill(f"{folder}/weights", SIZE)
    os.chmod(path, 0o644)
    return path


def test_stranger_is_never_told_that_a_file_is_resident(cold: str) -> None:
    def look() -> None:
        fd = os.open(cold, os.O_RDONLY)
        with syscalls.Mapping(fd, 0, SIZE) as mapping:
            lie = mapping.resident_pages(0, SIZE).count(1)
        assert lie == SIZE // syscalls.PAGE, "mincore no longer lies: pagecache could trust it"
        with pytest.raises(PermissionError):
            syscalls.cachestat(fd, 0, SIZE)
        answer = pagecache.residency(fd, "ext4")
        assert answer.known is Known.UNKNOWN
        assert answer.resident is None
        guess = pagecache.estimate(fd, samples=64)
        assert not guess.known.exact
        assert (guess.resident or 0) < SIZE // 10

    as_user(STRANGER, look)


def test_stranger_estimates_a_warm_file_below_100_percent(cold: str) -> None:
    lab.read(cold)

    def look() -> None:
        fd = os.open(cold, os.O_RDONLY)
        guess = pagecache.estimate(fd, samples=512)
        assert guess.known is Known.SAMPLED
        assert SIZE * 0.9 < (guess.resident or 0) < SIZE
        assert not guess.complete

    as_user(STRANGER, look)


def test_owner_without_capabilities_gets_the_exact_count(cold: str) -> None:
    os.chown(cold, STRANGER, STRANGER)
    lab.read(cold)

    def look() -> None:
        answer = pagecache.residency(os.open(cold, os.O_RDONLY), "ext4")
        assert answer.complete
        assert answer.known is Known.CACHESTAT

    as_user(STRANGER, look)


def test_root_of_a_user_namespace_over_an_unmapped_owner(cold: str) -> None:
    """CAP_FOWNER in a namespace that does not map the file's owner: mincore says 100 % of a cold file."""
    os.chown(cold, 1000, 1000)
    program = (
        "import os, sys; from stager.node import pagecache\n"
        "answer = pagecache.residency(os.open(sys.argv[1], os.O_RDONLY), 'overlay')\n"  # 'overlay': no cachestat
        "print(answer.known.value, answer.resident)"
    )
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program, cold]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["unknown", "None"]


@pytest.fixture
def overlay(folder: str) -> Iterator[str]:
    """An overlay mount with one 16 MB file in its lower layer; gives the file's path in the overlay."""
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{folder}/{name}")
    lab.fill(f"{folder}/lower/weights", SIZE)
    options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", f"{folder}/merged"], check=True)
    yield f"{folder}/merged/weights"
    subprocess.run(["umount", f"{folder}/merged"], check=True)


def test_overlayfs(overlay: str) -> None:
    fd = os.open(overlay, os.O_RDONLY)
    assert pagecache.residency(fd, "overlay").resident == 0
    lab.read(overlay)
    assert syscalls.cachestat(fd, 0, SIZE).cached == 0, "cachestat no longer fails on overlayfs: it could be used"
    answer = pagecache.residency(fd, "overlay")
    assert answer.known is Known.MINCORE
    assert answer.complete
    os.close(fd)


def test_cachestat_reports_eviction_under_pressure(cold: str, new_group: Callable[..., lab.Group]) -> None:
    """nr_evicted is what lets stager say `evicted` rather than `dropped`.

    The file stays open throughout: reclaim in a cgroup also drops inodes that nobody uses, and their history with them.
    """
    fd = os.open(cold, os.O_RDONLY)
    group = new_group(memory_max="40M")
    group.call(lambda: lab.read(cold))
    group.settle()
    pressure = lab.fill(f"{os.path.dirname(cold)}/pressure", 100 * MB)
    group.call(lambda: lab.read(pressure))
    answer = pagecache.residency(fd, "ext4")
    os.close(fd)
    assert answer.resident == 0
    assert (answer.evicted or 0) > SIZE // 2


