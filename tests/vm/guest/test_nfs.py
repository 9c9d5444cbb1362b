"""A real NFS server and the kernel's client: what stays warm, and what must never be called warm."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.vm.guest import lab
from tests.vm.guest.lab import MB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER, CLIENT = "/scratch/export", "/mnt/nfs"
SIZE = 24 * MB


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """An NFS 4.2 server in this kernel, exporting `SERVER`."""
    os.mkdir(SERVER)
    with open("/etc/exports", "w", encoding="ascii") as file:
        file.write(f"{SERVER} 127.0.0.1(rw,no_root_squash,no_subtree_check,fsid=0,insecure)\n")
    run("modprobe", "nfsd")
    run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    run("mount", "-t", "tmpfs", "tmpfs", "/var/lib/nfs/v4recovery")
    run("exportfs", "-ra")
    run("rpc.mountd", "--no-nfs-version", "3")
    run("rpc.nfsd", "--no-nfs-version", "3", "4")
    with open("/proc/fs/nfsd/v4_end_grace", "w", encoding="ascii") as file:
        file.write("Y")  # otherwise the first open waits 90 s for clients of a server that never ran
    os.makedirs(CLIENT, exist_ok=True)
    yield
    run("rpc.nfsd", "0")
    run("exportfs", "-ua")
    shutil.rmtree(SERVER)


@pytest.fixture
def model(server: None) -> Iterator[str]:
    """A model of one file on the server; gives the file's name. Mounted afresh, attributes cached for at most a second."""
    lab.safetensors(f"{SERVER}/model.safetensors", SIZE)
    run("mount", "-t", "nfs", "-o", "vers=4.2,acregmax=1,acdirmax=1,actimeo=1", "127.0.0.1:/", CLIENT)
    yield "model.safetensors"
    run("umount", CLIENT)


@pytest.fixture
def gate(folder: str) -> str:
    """Where these tests keep the ready marker."""
    return f"{folder}/ready.json"


def wait_for_attributes() -> None:
    """Until the client asks the server again."""
    time.sleep(1.2)


def test_kernel_reports_stale_pages(model: str) -> None:
    """The fact that stager must work around: after a change on the server cachestat goes on counting the old pages."""
    lab.read(f"{CLIENT}/{model}")
    with open(f"{SERVER}/{model}", "r+b") as file:
        file.seek(SIZE - 1)
        file.write(b"x")
    wait_for_attributes()
    fd = os.open(f"{CLIENT}/{model}", os.O_RDONLY)
    stale = lab.cachestat(fd)[0]
    os.pread(fd, 1, 0)
    after = lab.cachestat(fd)[0]
    os.close(fd)
    assert stale == SIZE // mmap.PAGESIZE
    assert after < stale


def bytes_read() -> int:
    """Bytes that READ calls on the mount have brought from the server so far."""
    with open("/proc/self/mountstats", encoding="ascii") as file:
        lines = iter(file)
        for line in lines:
            if f" mounted on {CLIENT} " in line:
                break
        counts = next(line for line in lines if line.split()[:1] == ["bytes:"])
    return int(
        counts.split()[5]
    )  # normal read, normal write, direct read, direct write, then bytes from the server


def status() -> tuple[int, int]:
    """(resident, total) bytes as ``stager status`` counts them; an unknown figure counts as 0."""
    rows = lab.status(CLIENT)
    return sum(row["resident"] or 0 for row in rows), sum(row["total"] for row in rows)


def test_unchanged_file_stays_warm(model: str, gate: str) -> None:
    assert lab.stager("warm", "-P", "2", "--marker", gate, CLIENT).returncode == 0
    assert lab.marker(gate)["state"] == "ready"
    fetched = bytes_read()
    assert fetched >= SIZE
    wait_for_attributes()
    lab.read(f"{CLIENT}/{model}")
    assert status() == (SIZE, SIZE)
    assert lab.stager("ready", "--marker", gate).returncode == 0
    assert lab.stager("warm", "-P", "2", "--marker", gate, CLIENT).returncode == 0
    assert bytes_read() == fetched, "an unchanged file was fetched again"
    assert lab.marker(gate)["state"] == "ready"


def touched() -> None:
    os.utime(f"{SERVER}/model.safetensors")


def written() -> None:
    with open(f"{SERVER}/model.safetensors", "r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"another model")


@pytest.mark.parametrize("change", [touched, written])
def test_changed_file_is_never_called_warm(model: str, gate: str, change: Callable[[], None]) -> None:
    assert lab.stager("warm", "-P", "2", "--marker", gate, CLIENT).returncode == 0
    change()
    wait_for_attributes()
    assert lab.resident(f"{CLIENT}/{model}") == SIZE, (
        "the kernel did not report stale pages: nothing is tested here"
    )
    assert lab.stager("ready", "--marker", gate).returncode == 3
    assert status()[0] < SIZE // 10
    before = bytes_read()
    assert lab.stager("warm", "-P", "2", "--marker", gate, CLIENT).returncode == 0
    assert bytes_read() - before > 0.9 * SIZE
    assert lab.marker(gate)["state"] == "ready"
    assert lab.stager("ready", "--marker", gate).returncode == 0
    with open(f"{SERVER}/{model}", "rb") as ours, open(f"{CLIENT}/{model}", "rb") as theirs:
        assert ours.read() == theirs.read()


def test_a_benchmark_counts_what_came_from_the_server(model: str) -> None:
    words = ["--methods", "read", "--loaders", "1", "--rounds", "1"]
    here = f"PYTHONPATH={os.getcwd()}"  # stager is not installed, and its loaders do not look into the working directory
    done = lab.stager("bench", "--yes", "--json", *words, CLIENT, prefix=["env", here])
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    runs = {line["state"]: line for line in lines if line["type"] == "bench_run"}
    assert {run["device_bytes_by"] for run in runs.values()} == {"nfs"}
    assert runs["cold"]["device_bytes"] == SIZE
    assert runs["warm"]["device_bytes"] == 0
