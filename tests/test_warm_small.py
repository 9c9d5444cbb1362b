"""Small models on mounts where each request takes its time: what the daemon is asked for, and by how many handles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuselab.fixtures import FuseMount, MountFactory

pytestmark = pytest.mark.root

MIB = 1 << 20
READ = ("resident", "lost")  # all was read; what stayed is for a node that pages out memory by itself to say


def warm(mount: FuseMount, tmp_path: Path) -> dict[str, object]:
    """A real run over the mount, adapting; its summary."""
    command = ["warm", mount.path, "--json", "--progress", "none", "--reserve", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "stager", *command, "--marker", str(tmp_path / "ready.json")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return next(line for line in lines if line["type"] == "warm_summary")


def test_asks_for_as_much_at_once_as_cat_does(fuse_mount: MountFactory, tmp_path: Path) -> None:
    """The kernel's window of 128 KiB is doubled for a file that is said to be read in order."""
    mount = fuse_mount(synthetic={"weights.bin": 64 * MIB}, keep_cache="always", attr_timeout=60)
    assert warm(mount, tmp_path)["outcome"] in READ
    counted = mount.counters()
    assert counted["served"] / counted["reads"] > 200 << 10


def test_one_small_file_is_read_by_many_handles(fuse_mount: MountFactory, tmp_path: Path) -> None:
    """30 ms for every request and nothing fetched ahead: each handle adds what the first one gave."""
    mount = fuse_mount(synthetic={"weights.bin": 256 * MIB}, keep_cache="always", attr_timeout=60, latency=30)
    summary = warm(mount, tmp_path)
    assert (summary["outcome"] in READ, summary["split"]) == (True, True)
    counted = mount.counters()
    assert counted["max_handles"] >= 6  # pieces of 64 MiB, as where lanes are fast, would be three or four
    assert counted["fetched"] < 1.1 * 256 * MIB


def test_a_pool_of_ossfs_is_not_flooded(fuse_mount: MountFactory, tmp_path: Path) -> None:
    """One handle a file, however slowly it goes."""
    mount = fuse_mount(
        synthetic={"weights.bin": 48 * MIB},
        keep_cache="always",
        attr_timeout=60,
        latency=30,
        subtype="ossfs2",
    )
    summary = warm(mount, tmp_path)
    assert (summary["outcome"] in READ, summary["split"]) == (True, False)
    assert mount.counters()["max_handles"] <= 2  # one was closed a moment ago
