"""``stager evict``: pages given back, what stayed and why, and a marker that no longer claims them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, STRANGER, Box, resident


def test_pages_are_given_back_and_the_gate_is_closed(box: Box) -> None:
    model = box.model(size=8 * MIB, shards=2)
    box.warm(model)
    assert box.ready()
    done = box.run("evict", "--json", model)
    assert done.code == 0
    summary = done.event("evict_summary")
    assert summary["before"] == sum(os.path.getsize(os.path.join(model, name)) for name in os.listdir(model))
    assert (summary["after"], summary["stayed"]) == (0, [])
    assert resident(*[os.path.join(model, name) for name in os.listdir(model)]) == 0
    assert box.state == "failed"
    assert "evicted" in box.run("ready").out
    assert box.run("evict", model).out.endswith(" in 7 files\n")


def test_another_models_marker_is_left_alone(box: Box) -> None:
    mine, other = box.file("mine/w.data", MIB), box.file("other/w.data", MIB)
    box.warm(mine)
    box.run("evict", other)
    assert box.ready(mine)


def test_mapped_pages_stay_and_the_process_is_named(box: Box) -> None:
    path, free = box.file("m/weights.data", 4 * MIB), box.file("m/free.data", 4 * MIB)
    box.warm(box.path("m"))
    fd = os.open(path, os.O_RDONLY)
    engine = mmap.mmap(fd, 4 * MIB, mmap.MAP_SHARED, mmap.PROT_READ)
    sum(engine[at] for at in range(0, 4 * MIB, 4096))
    try:
        done = box.run("evict", "--json", box.path("m"))
        assert done.code == 0, "a finding, not a failure"
        (name, stayed, why) = done.event("evict_summary")["stayed"][0]
        assert (name, stayed) == ("weights.data", 4 * MIB)
        assert f"(pid {os.getpid()})" in why
        assert resident(free) == 0
        assert "stayed    4.0 MiB  weights.data: mapped by" in box.run("evict", box.path("m")).out
    finally:
        engine.close()
        os.close(fd)


def test_dirty_pages_are_written_first(box: Box) -> None:
    path = box.path("dirty.data")
    Path(path).write_bytes(os.urandom(8 * MIB))
    assert resident(path) == 8 * MIB
    assert box.run("evict", "--json", path).event("evict_summary")["after"] == 0
    assert resident(path) == 0


@pytest.mark.root
def test_a_stranger_may_ask_and_is_told_that_nothing_is_known(box: Box) -> None:
    path = box.file("weights.data", 4 * MIB)
    box.warm(path)
    done = box.run("evict", path, uid=STRANGER)
    assert done.code == 0
    assert "what was resident is unknown here" in done.out
    assert resident(path) == 0


@pytest.mark.root
def test_unreadable_files_are_named(box: Box) -> None:
    box.file("m/secret.data", MIB, mode=0o600)
    box.file("m/open.data", MIB)
    done = box.run("evict", box.path("m"), uid=STRANGER)
    assert "secret.data: permission denied" in done.out


@pytest.mark.root
def test_on_a_mount_that_keeps_pages(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.data": 4 * MIB}, keep_cache="always")
    box.warm(mount.path)
    summary = box.run("evict", "--json", mount.path).event("evict_summary")
    assert (summary["before"], summary["after"]) == (4 * MIB, 0)
