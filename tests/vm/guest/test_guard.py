"""The memory guard on a real cgroup v2: what is warmed stays below the limit, and the limit is named.

``pgsteal`` in memory.stat counts reclaimed pages and ``max`` in memory.events each time the limit was hit. Where both
are 0 no page was evicted: nothing that was warmed, and nothing of anybody else.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.vm.guest import lab
from tests.vm.guest.lab import MB, Group

if TYPE_CHECKING:
    from collections.abc import Callable

SHARD = 40 * MB
CONTAINER = "c0ffee" + "0" * 58  # engines name a container's cgroup by 64 hexadecimal digits
# In a container's own cgroup namespace, with the cgroup tree mounted afresh: levels above it cannot be seen.
PRIVATE_NAMESPACE = (
    "unshare",
    "--cgroup",
    "--mount",
    "sh",
    "-c",
    'mount -t cgroup2 none /sys/fs/cgroup; exec "$@"',
    "sh",
)


def warm(shards: list[str], *options: str, **where: object) -> subprocess.CompletedProcess[str]:
    """``stager warm`` of the shards' folder with two lanes and no reserve; the marker lies beside the folder."""
    folder = os.path.dirname(shards[0])
    return lab.stager(
        "warm", "-P", "2", "--reserve", "0", "--marker", f"{folder}.json", *options, folder, **where
    )  # type: ignore[arg-type]


def state(shards: list[str]) -> str:
    return str(lab.marker(f"{os.path.dirname(shards[0])}.json")["state"])


def assert_head(shards: list[str]) -> int:
    """Whole shards from the first on, then nothing; gives how many."""
    pages = [lab.resident(path) for path in shards]
    whole = sum(count >= SHARD for count in pages)
    assert all(count >= SHARD for count in pages[:whole]), f"not the head of the load order: {pages}"
    assert not any(pages[whole:]), f"parts of files that do not fit: {pages}"
    return whole


def assert_nothing_evicted(group: Group) -> None:
    assert group.table("memory.stat")["pgsteal"] == 0
    assert group.table("memory.events")["max"] == 0


@pytest.fixture
def shards(folder: str) -> list[str]:
    """A model of five shards, 200 MB in all, cold."""
    return lab.model(f"{folder}/model", 5, SHARD)


@pytest.fixture
def pod(new_group: Callable[..., Group]) -> Callable[..., Group]:
    """Makes a pod's cgroup as the kubelet would."""

    def make(**knobs: str) -> Group:
        return new_group().child("kubepods.slice").child("kubepods-pod1234.slice", **knobs)

    return make


def test_memory_max_smaller_than_the_model(shards: list[str], new_group: Callable[..., Group]) -> None:
    group = new_group(memory_max="220M")
    done = warm(shards, group=group)
    assert done.returncode == 0
    assert state(shards) == "partial"
    assert "memory.max" in done.stdout + done.stderr
    assert 1 <= assert_head(shards) < len(shards)
    assert_nothing_evicted(group)


def test_strict_refuses_and_reads_nothing(shards: list[str], new_group: Callable[..., Group]) -> None:
    group = new_group(memory_max="220M")
    assert warm(shards, "--strict", group=group).returncode == 4
    assert state(shards) == "failed"
    assert sum(map(lab.resident, shards)) <= len(shards) * MB, "more than the headers was read"


def test_memory_high_binds_and_is_named(shards: list[str], new_group: Callable[..., Group]) -> None:
    group = new_group(memory_max="1G", memory_high="220M")
    done = warm(shards, group=group)
    assert done.returncode == 0
    assert state(shards) == "partial"
    assert "memory.high" in done.stdout + done.stderr
    assert 1 <= assert_head(shards) < len(shards)
    assert group.table("memory.events")["high"] == 0, "memory.high was reached: the reader was throttled"
    assert_nothing_evicted(group)


def test_init_container_that_ends(shards: list[str], pod: Callable[..., Group]) -> None:
    """Its pages stay, charged to the pod, and the engine that reads them pays nothing."""
    group = pod(memory_max="700M")
    init = group.child(CONTAINER, memory_max="500M")
    assert warm(shards, group=init).returncode == 0
    assert state(shards) == "ready"
    assert init.table("memory.stat")["file"] >= len(shards) * SHARD
    init.remove()
    assert all(lab.resident(path) >= SHARD for path in shards)
    assert group.number("memory.current") >= len(shards) * SHARD
    engine = group.child("e46143" + CONTAINER[6:])
    engine.call(lambda: [lab.read(path) for path in shards])
    assert engine.table("memory.stat")["file"] < MB
    assert lab.stager("ready", "--marker", f"{os.path.dirname(shards[0])}.json").returncode == 0


def test_init_container_with_a_limit_of_its_own(shards: list[str], pod: Callable[..., Group]) -> None:
    """The limit of the init container bounds the warm set though the pod has room."""
    init = pod(memory_max="1G").child(CONTAINER, memory_max="220M")
    done = warm(shards, group=init)
    assert done.returncode == 0
    assert state(shards) == "partial"
    assert f"{CONTAINER}/memory.max" in done.stdout + done.stderr
    assert 1 <= assert_head(shards) < len(shards)
    assert_nothing_evicted(init)


def grow(group: Group, rate: int) -> None:
    """Use `rate` bytes of anonymous memory more each second until `group` has only 10 MB left, and keep them."""
    block = mmap.mmap(-1, 400 * MB)
    for offset in range(0, len(block), MB):
        if group.number("memory.max") - group.number("memory.current") < 10 * MB:
            break
        block[offset : offset + MB] = bytes(MB)
        time.sleep(MB / rate)
    signal.pause()


def test_stops_when_a_sibling_grows(shards: list[str], pod: Callable[..., Group]) -> None:
    """Everything fits at the start. Then the engine takes memory while stager still warms: it must not evict itself."""
    group = pod(memory_max="400M")
    init, engine = group.child(CONTAINER), group.child("e46143" + CONTAINER[6:])
    folder = os.path.dirname(shards[0])
    argv = (
        "warm",
        "-P",
        "1",
        "--reserve",
        "0",
        "--max-rate",
        "10M",  # twenty seconds: an emulated processor lets the sibling grow at half its rate
        "--json",
        "--marker",
        f"{folder}.json",
        folder,
    )
    command = init.command([sys.executable, "-m", "stager", *argv])
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not any(lab.resident(path) > 4 * MB for path in shards):
        assert running.poll() is None, "ended before it warmed anything"
        time.sleep(0.05)
    sibling = engine.start(lambda: grow(group, 30 * MB))
    output = running.communicate(timeout=60)[0]
    print(output)
    os.kill(sibling, signal.SIGKILL)
    os.waitpid(sibling, 0)
    assert running.returncode == 0
    assert state(shards) == "partial"
    summary = next(row for row in map(json.loads, output.splitlines()) if row["type"] == "warm_summary")
    assert 4 * MB < summary["read"] < len(shards) * SHARD
    # Reading on until the end would have cost 60 MB of what was read first.
    assert summary["read"] - sum(map(lab.resident, shards)) < MB
    assert "memory.max" in summary["binding"]


def keep_mapped(path: str) -> None:
    """Map a file and go on using all of it, as an engine does with its libraries."""
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    while True:
        for offset in range(0, len(view), mmap.PAGESIZE):
            view[offset]
        time.sleep(0.1)


@pytest.mark.parametrize("kind", ["mglru", "classic"])
def test_mapped_files_of_others_are_no_room(
    kind: str, shards: list[str], folder: str, pod: Callable[..., Group]
) -> None:
    """The kernel keeps what is mapped and in use: pages that displace it would displace the model's own instead."""
    libraries = lab.fill(f"{folder}/libraries", 80 * MB)
    with lab.lru(kind):
        group = pod(memory_max="292M")
        init, engine = group.child(CONTAINER), group.child("e46143" + CONTAINER[6:])
        sibling = engine.start(lambda: keep_mapped(libraries))
        while lab.resident(libraries) < 80 * MB:
            time.sleep(0.1)
        assert warm(shards, group=init).returncode == 0
        os.kill(sibling, signal.SIGKILL)
        os.waitpid(sibling, 0)
    assert state(shards) == "partial"
    assert 1 <= assert_head(shards) < len(shards)
    assert lab.resident(libraries) == 80 * MB


def test_hidden_pod_limit_given_with_limit(shards: list[str], pod: Callable[..., Group]) -> None:
    group = pod(memory_max="220M")
    container = group.child(CONTAINER)
    done = warm(shards, "--limit", "220MiB", group=container, prefix=PRIVATE_NAMESPACE)
    assert done.returncode == 0
    assert state(shards) == "partial"
    assert "--limit" in done.stdout + done.stderr
    assert 1 <= assert_head(shards) < len(shards)
    assert_nothing_evicted(group)


def test_hidden_pod_limit_that_nobody_gives(shards: list[str], pod: Callable[..., Group]) -> None:
    """Nothing in the container shows the limit. What is reported afterwards must still be true."""
    group = pod(memory_max="160M")
    done = warm(shards, group=group.child(CONTAINER), prefix=PRIVATE_NAMESPACE)
    assert group.table("memory.stat")["pgsteal"] > 0, "the limit did not bind: nothing is tested here"
    assert state(shards) != "ready"
    assert lab.stager("ready", "--marker", f"{os.path.dirname(shards[0])}.json").returncode == 3
    assert done.returncode == 0
