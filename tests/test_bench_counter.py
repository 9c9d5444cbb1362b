"""Bytes from below in ``stager bench``: who counts them, the block device, the NFS client, a file that somebody names, or the fetch itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.bench.counting import CounterFiles, counter_files
from stager.core.errors import UsageError
from stager.node.counters import from_server, number_in
from tests.fetchbed import Bed
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, Box, files_below, resident

ONE = ("--methods", "read", "--loaders", "1", "--rounds", "1")
MOUNTSTATS = """\
device proc mounted on /proc with fstype proc
device /dev/vda2 mounted on / with fstype ext4
device systemd-1 mounted on /mnt/nas with fstype autofs
device nas.example.com:/share mounted on /mnt/nas with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,acregmin=3,acregmax=60,hard,proto=tcp,timeo=600,retrans=2,sec=sys,local_lock=none
\tage:\t8123
\tcaps:\tcaps=0x3ffbffff,wtmult=512,dtsize=1048576,bsize=0,namlen=255
\tnfsv4:\tbm0=0xfdffbfff,bm1=0x40f9be3e,bm2=0x68803,acl=0x0,sessions,pnfs=not configured,lease_time=90,lease_expired=0
\tsec:\tflavor=1,pseudoflavor=1
\tevents:\t71 1042 0 14 22 9 1193 24580 0 12 0 2 2 8 9 0 0 8 0 0 24573 0 0 0 0 0 0
\tbytes:\t1207959552 4096 0 0 100663296 4096 24576 1
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 0 0 2 0 11 121 121 0 137 0 2 35 40
\tper-op statistics
\t        READ: 96 96 0 20352 100674048 82 41234 41370 0
\t       WRITE: 1 1 0 4264 176 0 3 3 0
device nas.example.com:/share mounted on /mnt/with\\040blank with fstype nfs statvers=1.1
\topts:\tro,vers=3,rsize=1048576
\tbytes:\t0 0 0 0 7 0 0 0
no device mounted on /mnt/odd with fstype nfs
device nas.example.com:/short mounted on /mnt/short with fstype nfs4 statvers=1.1
\tbytes:\t1 2 3
"""


# Who counts


@pytest.mark.parametrize(
    ("point", "size"),
    [("/mnt/nas", 100663296), ("/mnt/with blank", 7), ("/", None), ("/mnt/short", None), ("/mnt/odd", None)],
)
def test_bytes_from_an_nfs_server_are_those_of_that_mount(point: str, size: int | None) -> None:
    assert from_server(MOUNTSTATS, point) == size


def test_of_nfs_mounts_on_one_point_the_one_on_top_counts() -> None:
    again = "device x:/ mounted on /mnt/nas with fstype nfs4 statvers=1.1\n\tbytes:\t0 0 0 0 5 0 0 0\n"
    assert from_server(MOUNTSTATS + again, "/mnt/nas") == 5


@given(st.lists(st.from_regex(r"[0-9²x-]{1,3}", fullmatch=True), max_size=8))
def test_any_words_are_an_answer_or_none(words: list[str]) -> None:
    found = from_server(f"device x mounted on /m with fstype nfs\n\tbytes: {' '.join(words)}", "/m")
    fifth = words[4] if len(words) > 4 else ""
    assert found == (int(fifth) if fifth and set(fifth) <= set("0123456789") else None)


def test_a_counter_is_for_one_path_or_for_all_the_others() -> None:
    paths = ["/mnt/a", "/mnt/a=b", "oss://b/m"]
    given = ["/mnt/a=/x", "/mnt/a=b=/y", "/sys/class/net/eth0/statistics/rx_bytes"]
    found = counter_files(given, paths)
    assert found == CounterFiles({"/mnt/a": "/x", "/mnt/a=b": "/y"}, given[2])
    assert found.all == ("/x", "/y", given[2])
    assert counter_files([], paths).all == ()
    for wrong in (["/mnt/a="], ["/x", "/y"], ["/mnt/a=/x", "/mnt/a=/y"], ["oss://b/m=/x"], [""]):
        with pytest.raises(UsageError, match="--counter"):
            counter_files(wrong, paths)


# What they count


def test_a_disk_is_counted_by_its_block_device(box: Box) -> None:
    model = box.model(size=4 * MIB)
    before = box.run("bench", "--yes", "--json", model, *ONE)
    device = before.event("bench")["storages"][0]["device"]
    counter = box.path("counter")
    Path(counter).write_text("1\n")
    done = box.run("bench", "--yes", "--json", model, *ONE, "--counter", counter)
    assert done.code == 0, str(done)
    unused = [note for note in done.all("note") if note["code"] == "counter"]
    for run in done.all("bench_run"):
        if device:
            assert (run["device_bytes_by"], len(unused)) == ("diskstats", 1)
            assert done.event("bench")["storages"][0]["counter"] == f"/proc/diskstats, {device}"
        else:  # on overlayfs, for instance
            assert (run["device_bytes_by"], run["device_bytes"], unused) == ("counter", 0, [])


@pytest.mark.root
def test_a_daemon_is_counted_by_the_file_that_is_named_for_it(box: Box, fuse_mount: MountFactory) -> None:
    first, second = box.path("first"), box.path("second")
    size = 3 * MIB + 4097
    mounts = {
        name: fuse_mount(synthetic={"a.bin": length}, keep_cache="always", live_file=name)
        for name, length in ((first, size), (second, MIB))
    }
    bare = fuse_mount(synthetic={"a.bin": MIB}, keep_cache="always")
    words = [one.path for one in (*mounts.values(), bare)]
    words += [f"--counter={mounts[second].path}={second}", "--counter", first]
    done = box.run("bench", "--yes", "--json", *words, *ONE)
    assert done.code == 0, str(done)
    found = {(run["storage"], run["state"]): run for run in done.all("bench_run")}
    for path, state, expected in (
        (mounts[first].path, "cold", size),
        (mounts[first].path, "warm", 0),
        (mounts[second].path, "cold", MIB),
        (mounts[second].path, "warm", 0),
        (bare.path, "cold", 0),  # the file for all the others tells of another daemon
    ):
        assert found[path, state]["device_bytes"] == expected
        assert found[path, state]["device_bytes_by"] == "counter"
    for one in done.all("bench_cell"):
        run = found[one["storage"], one["state"]]
        assert (one["device_bytes"], one["device_bytes_by"]) == (run["device_bytes"], "counter")
    counters = [storage["counter"] for storage in done.event("bench")["storages"]]
    assert counters == [first, second, first]
    assert mounts[first].counters()["fetched"] == number_in(first) > 2 * size  # the probe reads it, too


@pytest.mark.root
def test_without_a_counter_nothing_is_said_of_bytes_and_a_counter_is_asked_for(
    box: Box, fuse_mount: MountFactory
) -> None:
    mount = fuse_mount(synthetic={"a.bin": MIB}, keep_cache="always")
    done = box.run("bench", "--yes", "--json", mount.path, *ONE)
    assert {(run["device_bytes"], run["device_bytes_by"]) for run in done.all("bench_run")} == {(None, "")}
    assert any("--counter" in line for line in done.event("bench")["storages"][0]["limits"])


@pytest.mark.root
def test_a_counter_that_begins_anew_counts_nothing(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.bin": MIB}, keep_cache="always", latency=2)
    counter, over = Path(box.path("counter")), threading.Event()
    counter.write_text("1000000000\n")

    def fall() -> None:
        number = 999999999
        while not over.is_set():
            with open(counter, "r+") as file:  # always as long, so that it is never cut
                file.write(f"{number}")
            number -= 1

    falling = threading.Thread(target=fall)
    falling.start()
    try:
        done = box.run("bench", "--yes", "--json", mount.path, *ONE, "--counter", str(counter))
    finally:
        over.set()
        falling.join()
    assert done.code == 0, str(done)
    assert {(run["device_bytes"], run["device_bytes_by"]) for run in done.all("bench_run")} == {(None, "")}


def test_a_fetch_is_counted_by_itself_as_the_store_does(bed: Bed, source: str) -> None:
    bed.serve(source)
    words = ["--loaders", "2", "--rounds", "1", "--methods", "fetch+mmap"]
    done = bed.box.run("bench", "--yes", "--json", bed.url, *words, env=bed.oss.env())
    assert done.code == 0, str(done)
    size = sum(os.path.getsize(path) for path in files_below(source))
    found = {run["state"]: run for run in done.all("bench_run")}
    assert {state: run["device_bytes"] for state, run in found.items()} == {"cold": size, "warm": 0}
    assert {run["device_bytes_by"] for run in found.values()} == {"fetch"}
    assert bed.sent >= size


# What is refused


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [(None, 7, "no such file"), ("a\n", 2, "one number"), ("1 2", 2, "one number"), ("", 2, "one number")],
)
def test_a_counter_is_looked_at_before_anything_is_evicted(
    box: Box, content: str | None, code: int, says: str
) -> None:
    model, counter = box.model(size=MIB), box.path("counter")
    if content is not None:
        Path(counter).write_text(content)
    for path in files_below(model):
        Path(path).read_bytes()
    done = box.run("bench", "--yes", model, *ONE, "--counter", counter)
    assert done.code == code, str(done)
    assert f"--counter `{counter}`: " in done.err
    assert says in done.err
    assert "hint: " in done.err
    assert resident(*files_below(model)) > 0  # the kernel may have taken some


def test_a_pipe_is_no_counter(box: Box) -> None:
    os.mkfifo(box.path("pipe"))
    done = box.run("bench", "--yes", box.model(size=MIB), *ONE, "--counter", box.path("pipe"), seconds=20)
    assert done.code == 2, str(done)
