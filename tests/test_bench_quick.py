"""``stager bench --quick`` and what its runs read: parts of files by every method alike, within its time; and what `read` asks of a mount."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB


def drop(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# The baseline


@pytest.mark.root
def test_read_asks_a_mount_for_no_more_requests_than_cat_does(fuse_mount: MountFactory) -> None:
    """One that gives no advice needs twice as many, and is half as fast where each takes its time."""
    mount = fuse_mount(synthetic={"a.bin": 16 * MIB}, keep_cache="always", read_ahead_kb=128, latency=1)
    path = os.path.join(mount.path, "a.bin")
    subprocess.run(["cat", path], check=True, stdout=subprocess.DEVNULL)
    by_cat = mount.counters()["files"]["a.bin"]["reads"]
    drop(path)
    loader = "import sys; from stager.jobs.bench.loader import read_file; print(read_file(sys.argv[1], None, bytearray(4 << 20)))"
    done = subprocess.run([sys.executable, "-c", loader, path], check=True, capture_output=True, text=True)
    assert int(done.stdout) == 16 * MIB
    assert mount.counters()["files"]["a.bin"]["reads"] - by_cat <= 1.2 * by_cat
