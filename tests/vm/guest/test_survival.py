"""Which pages outlive a stream of reads: each touch that stager uses, under both of the kernel's LRUs.

A 200 MB file is touched in a memory cgroup that holds three times as much, then 1.5 GB of another file are read through
the same cgroup, as a log shipper or the next model's download would.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from stager.node.touch import Kit, PopulateKit, ReadKit, SpliceKit
from tests.vm.guest import lab
from tests.vm.guest.conftest import SURVIVAL
from tests.vm.guest.lab import MB, Group

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE, STREAM, LIMIT = 200 * MB, 1536 * MB, "600M"


@pytest.fixture
def model_file(folder: str) -> str:
    """A file that was never read. The kernel remembers what it evicted and favours it when it comes back: one file for
    all tests would make each a little better than the one before."""
    return lab.safetensors(f"{folder}/survivor.safetensors", SIZE)


@pytest.fixture
def stream(folder: str) -> str:
    """A hole's pages are cached and reclaimed like any others, and need no disk."""
    path = f"{folder}/stream"
    with open(path, "wb") as file:
        file.truncate(STREAM)
    return path


def touch_all(path: str, kit: Kit, passes: int = 1) -> None:
    fd = os.open(path, os.O_RDONLY)
    for _ in range(passes):
        offset = 0
        while offset < SIZE:
            offset += kit.touch(fd, offset, SIZE - offset)
    os.close(fd)


TOUCHES: dict[str, Callable[[str], None]] = {
    "read twice (the recipe)": lambda path: touch_all(path, ReadKit(), passes=2),
    "read": lambda path: touch_all(path, ReadKit()),
    "splice": lambda path: touch_all(path, SpliceKit()),
    "populate": lambda path: touch_all(path, PopulateKit()),
    "populate, two passes": lambda path: touch_all(path, PopulateKit(2)),
}


def survivors(path: str, stream: str, group: Group) -> int:
    """MB of `path` still resident after `stream` was read in `group`."""
    assert lab.resident(path) >= SIZE, "the touch did not bring the whole file in"
    head = 256 * MB  # fills the group without anything being reclaimed yet
    group.call(lambda: lab.read(stream, 0, head))
    group.settle()
    group.call(lambda: lab.read(stream, head, STREAM - head))
    return lab.resident(path) // MB


@pytest.mark.parametrize("kind", ["mglru", "classic"])
@pytest.mark.parametrize("name", TOUCHES)
def test_touch(name: str, kind: str, model_file: str, stream: str, new_group: Callable[..., Group]) -> None:
    group = new_group(memory_max=LIMIT)
    with lab.lru(kind):
        group.call(lambda: TOUCHES[name](model_file))
        SURVIVAL.setdefault(name, {})[kind] = survivors(model_file, stream, group)


@pytest.mark.parametrize("kind", ["mglru", "classic"])
def test_warm_protect(kind: str, model_file: str, stream: str, new_group: Callable[..., Group]) -> None:
    """``--protect`` picks the touch for the LRU that is running, and what it warmed survives."""
    group = new_group(memory_max=LIMIT)
    folder = os.path.dirname(model_file)
    with lab.lru(kind):
        argv = ("--protect", "--reserve", "0", "-P", "2", "--marker", f"{folder}/ready.json", model_file)
        assert lab.stager("warm", *argv, group=group).returncode == 0
        left = survivors(model_file, stream, group)
        SURVIVAL.setdefault("stager warm --protect", {})[kind] = left
    assert left >= 0.8 * SIZE // MB
