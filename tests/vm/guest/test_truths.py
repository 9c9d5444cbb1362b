"""Where the kernel lies about residency, that it still does, and that stager does not repeat the lie.

Each test shows the lie first. When one of those assertions fails, the kernel has become better and so can stager.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from stager.node import pagecache
from tests.vm.guest import lab
from tests.vm.guest.lab import MB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 16 * MB
STRANGER = "65532"  # the uid that hardened images run as
AS_STRANGER = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups")
# Prints what mincore(2) and cachestat(2) say of the file named by the last argument.
ASK = """
import os, sys
from tests.vm.guest import lab
fd = os.open(sys.argv[1], os.O_RDONLY)
try:
    counted = lab.cachestat(fd)[0]
except PermissionError:
    counted = "refused"
print(lab.mincore(fd, os.fstat(fd).st_size), counted)
"""


def kernel_says(path: str, prefix: tuple[str, ...]) -> list[str]:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", ASK, path], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(rows) == 1
    return rows[0]


def assert_estimate(row: dict[str, Any]) -> None:
    """No exact count, and below 100 %. No more is asked here: the estimate starts reads that it does not wait for, and
    on the guest's one processor some of them are over before the kernel looks, so that a missing page counts as found."""
    assert row["known"] in ("unknown", "sampled", "timed")
    assert (row["resident"] or 0) < SIZE


@pytest.fixture
def cold(folder: str) -> str:
    path = lab.safetensors(f"{folder}/model.safetensors", SIZE)
    os.chmod(path, 0o644)
    return path


def test_stranger_is_never_told_that_a_cold_file_is_resident(cold: str) -> None:
    assert kernel_says(cold, AS_STRANGER) == [str(SIZE), "refused"]
    row = only(lab.status(cold, prefix=AS_STRANGER))
    assert_estimate(row)


@pytest.mark.parametrize(("option", "code", "state"), [((), 0, "unverified"), (("--strict",), 3, "failed")])
def test_stranger_warms_but_cannot_verify(cold: str, option: tuple[str, ...], code: int, state: str) -> None:
    os.chmod(os.path.dirname(cold), 0o777)
    gate = f"{os.path.dirname(cold)}/ready.json"
    assert lab.stager("warm", *option, "--marker", gate, cold, prefix=AS_STRANGER).returncode == code
    assert lab.marker(gate)["state"] == state
    assert lab.resident(cold) == SIZE
    assert_estimate(only(lab.status(cold, prefix=AS_STRANGER)))


def test_owner_without_capabilities_gets_the_exact_count(cold: str) -> None:
    os.chown(cold, int(STRANGER), int(STRANGER))
    lab.read(cold)
    row = only(lab.status(cold, prefix=AS_STRANGER))
    assert (row["known"], row["resident"]) == ("cachestat", SIZE)


def test_root_of_a_user_namespace_over_an_unmapped_owner(cold: str) -> None:
    """Such a root has every capability, and none over this file."""
    os.chown(cold, 1000, 1000)
    prefix = ("unshare", "--user", "--map-root-user")
    assert kernel_says(cold, prefix) == [str(SIZE), "refused"]
    row = only(lab.status(cold, prefix=prefix))
    assert_estimate(row)


@pytest.fixture
def overlay(folder: str) -> Iterator[str]:
    """An overlay mount with one file in its lower layer; gives the file's path in the overlay."""
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{folder}/{name}")
    lab.safetensors(f"{folder}/lower/model.safetensors", SIZE)
    options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", f"{folder}/merged"], check=True)
    yield f"{folder}/merged/model.safetensors"
    subprocess.run(["umount", f"{folder}/merged"], check=True)


def test_overlayfs_is_counted_by_mincore(overlay: str, folder: str) -> None:
    gate = f"{folder}/ready.json"
    assert only(lab.status(overlay))["resident"] == 0
    assert lab.stager("warm", "--marker", gate, overlay).returncode == 0
    assert lab.resident(overlay) == 0, "cachestat counts on overlayfs now"
    assert lab.resident(f"{folder}/lower/model.safetensors") == SIZE
    row = only(lab.status(overlay))
    assert (row["known"], row["resident"]) == ("mincore", SIZE)
    assert lab.marker(gate)["state"] == "ready"


def test_eviction_under_pressure_is_told_from_dropping(
    cold: str, new_group: Callable[..., lab.Group]
) -> None:
    """cachestat's count of evicted pages lets stager say which of the two it was.

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
