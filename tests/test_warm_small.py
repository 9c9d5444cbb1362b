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
    assert warm(mount, tmp_path)["outcome"] == "resident"
    counted = mount.counters()
    assert counted["served"] / counted["reads"] > 200 << 10
