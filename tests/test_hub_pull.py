"""What ``stager pull`` says before anything is written: a part that does not fit, a hub that lists and refuses, silence, and a DEST that is none."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from stager.core.errors import AccessDenied, DeadlineExceeded, ResourceRefused
from stager.core.location import Location
from stager.core.model import FileEntry
from stager.core.source import Source
from stager.core.units import GIB, format_size
from stager.engine import runtime
from stager.hub.base import Snapshot
from stager.hub.opening import HubOptions, open_hub
from stager.jobs.beforehand import refuse_dest
from stager.jobs.options import PullOptions
from stager.jobs.pull import Pull
from stager.jobs.room import refuse_pull
from stager.store.base import Reader
from stager.store.directory import DirectoryStore
from stager.store.opening import StoreOptions
from tests.harness import MIB
from tests.hublab.faults import Fault
from tests.hublab.repos import Zeros
from tests.hubs import Quiet, options_for
from tests.pullbed import PullBed, weights


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_part_larger_than_the_buffer_is_refused_before_anything_is_written(
    pullbed: PullBed, dry: tuple[str, ...]
) -> None:
    pullbed.commit({"huge.bin": Zeros(700 * 1000**3, sha256="0" * 64)})
    line = pullbed.refused(4, "--buffer", "64MiB", *dry)
    assert "`huge.bin` of 651.9 GiB goes in parts of 67.0 MiB, and --buffer holds 64.0 MiB" in line
    assert "hint: give `--buffer 134.0MiB` or more" in line
    assert pullbed.manifest() == {}
    assert pullbed.pull("--dry-run", "--buffer", "134.0MiB").code == 0, "what the hint says is true"


@pytest.mark.parametrize("source", ["acme/tiny", "hf://acme/tiny"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_hub_that_lists_and_gives_nothing_is_refused_before_anything_is_written(
    pullbed: PullBed, source: str, dry: tuple[str, ...]
) -> None:
    pullbed.source = source
    operation = "hf-resolve" if source.startswith("hf") else "repo"
    pullbed.hub.faults.add(Fault("error", times=None, operation=operation, status=403, samples=True))
    line = pullbed.refused(6, *dry)
    assert f"`model-00001-of-00002.safetensors` of {'' if 'hf' in source else 'ms://'}{source}" in line
    assert "accept its conditions" in line
    assert pullbed.written() == []


def test_one_byte_is_asked_for_only_where_something_is_wanted(pullbed: PullBed) -> None:
    asked = "model-00001-of-00002.safetensors"
    pullbed.good()
    assert pullbed.hub.log.count(operation="cdn", key=asked) == 3, "the byte, the header, and the file"
    pullbed.hub.faults.add(Fault("error", times=None, operation="repo", status=403, samples=True))
    pullbed.good()


def test_a_server_that_ignores_ranges_is_refused_before_anything_is_written(pullbed: PullBed) -> None:
    pullbed.commit({"huge.bin": Zeros((64 * MIB) + 2, sha256="0" * 64)})
    pullbed.hub.faults.add(Fault("whole", times=None, host="cdn", samples=True))
    line = pullbed.refused(5)
    assert "`huge.bin` of ms://acme/tiny: this server ignores ranges, and a file of 64.0 MiB" in line
    assert "download it with the hub's own tool and pull that folder" in line
    assert pullbed.written() == []


# A DEST that is none


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_dest_that_is_a_file_or_below_one_is_named(
    pullbed: PullBed, dry: tuple[str, ...], below: str
) -> None:
    file = pullbed.box.path("file")
    Path(file).write_bytes(b"precious")
    pullbed.dest = file + below
    line = pullbed.refused(2, *dry)
    assert f"`{pullbed.dest}` cannot be a folder: `{file}` is a file" in line
    assert "hint: choose another destination" in line
    assert Path(file).read_bytes() == b"precious"


def test_a_dest_that_cannot_be_written_is_named(pullbed: PullBed) -> None:
    pullbed.dest = "/proc/stager-test"
    line = pullbed.refused(7)
    assert "`/proc/stager-test` cannot be written: no such file or directory" in line
    assert "hint: check who may write there" in line
    assert "pull.lease" not in line


def test_a_read_only_dest_is_refused_where_something_is_to_be_written(
    pullbed: PullBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Location.parse(pullbed.box.path("models/tiny"))
    refuse_dest(folder)
    refuse_dest(Location.parse("oss://bucket/models"))
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID))
    refuse_dest(Location.parse("oss://bucket/models"))
    with pytest.raises(AccessDenied, match="is on a read-only filesystem") as caught:
        refuse_dest(folder)
    assert f"`{folder}` cannot be written" in caught.value.message
    assert "write access" in (caught.value.hint or "")


@pytest.mark.root
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_disk_without_the_room_is_refused_before_the_first_byte(
    pullbed: PullBed, dry: tuple[str, ...]
) -> None:
    pullbed.commit({"model-00001-of-00002.safetensors": weights(12 * MIB)})
    disk = pullbed.box.path("disk")
    os.mkdir(disk)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True)
    try:
        pullbed.dest = f"{disk}/models/tiny"
        line = pullbed.refused(4, "--keep-free", "1MiB", *dry)
        assert "are to be pulled and 1.0 MiB to stay free" in line
        assert "`--keep-free` says how much must stay" in line
        assert os.listdir(disk) == []
        pullbed.good("--keep-free", "1MiB", "--include", "*.json")
        line = pullbed.refused(4, "--include", "extra/*", *dry)
        assert "1.0 GiB to stay free" in line
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_older_file_needs_room_beside_the_new_one_and_only_while_that_comes(tmp_path: Path) -> None:
    for at in range(4):
        (tmp_path / f"{at}").write_bytes(bytes(1000))
    (tmp_path / ".0.part").write_bytes(bytes(300))
    there = {one.name: one for one in DirectoryStore(str(tmp_path)).list()}
    wanted = [FileEntry(f"{at}", 1400) for at in range(5)]
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize

    def refusal(need: int, lanes: int) -> str:
        source, dest = Source.parse("acme/tiny"), Location.parse(str(tmp_path))
        keep = free + 2 * GIB  # others use this disk as well
        options = PullOptions(source=source, dest=dest, store=StoreOptions(), lanes=lanes, keep_free=keep)
        with pytest.raises(ResourceRefused) as caught:
            refuse_pull(options, wanted[:need], there)
        return caught.value.message.partition(" are")[0]

    assert refusal(5, 2) == format_size(100 + 3 * 400 + 1400 + 2 * 1000)
    assert refusal(5, 16) == format_size(100 + 3 * 400 + 1400 + 4 * 1000)
    assert refusal(1, 16) == format_size(100 + 1000)


# Silence


@pytest.mark.parametrize("source", ["acme/tiny", "hf://acme/tiny"])
@pytest.mark.parametrize("where", ["list", "file"])
def test_a_hub_that_does_not_answer_ends_a_pull_when_nothing_has_moved_for_long_enough(
    pullbed: PullBed, source: str, where: str
) -> None:
    pullbed.source, hf = source, source.startswith("hf")
    operation = {"list": "hf-model" if hf else "files", "file": "hf-resolve" if hf else "repo"}[where]
    pullbed.hub.faults.add(Fault("hang", times=None, operation=operation, seconds=60, samples=True))
    began = time.monotonic()
    line = pullbed.refused(10, "--stall-timeout", "1s", "--read-timeout", "0.3s")
    assert "no answer for " in line
    assert f"while {'listing' if where == 'list' else 'asking for'}" in line
    assert time.monotonic() - began < 60, "and not when the hub is given up, which takes two minutes"
    assert pullbed.written() == []


@pytest.mark.parametrize("source", ["acme/tiny", "hf://acme/tiny"])
def test_every_answer_of_a_hub_counts_as_getting_on(
    pullbed: PullBed, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in pullbed.env().items():
        monkeypatch.setenv(name, value)
    pullbed.hub.page_size = 3
    answers: list[None] = []
    options = HubOptions(on_answer=lambda: answers.append(None))
    hub = open_hub(Source.parse(source), options)
    hub.snapshot()
    hub.snapshot()
    kinds = ("files", "hf-model", "hf-tree")
    asked = sum(pullbed.hub.log.count(operation=one) for one in kinds)
    assert asked >= 4
    assert len(answers) == asked


class _Busy:
    """A hub whose library works and works, and nothing comes of it."""

    source, credentials = "ms://acme/tiny", ""

    def __init__(self) -> None:
        self.over = threading.Event()

    def snapshot(self) -> Snapshot:
        end = time.monotonic() + 30
        while not self.over.is_set() and time.monotonic() < end:
            sum(range(1000))
        raise AssertionError("nobody minds that nothing comes")

    def reader(self) -> Reader:
        raise AssertionError("there is nothing to read")


def test_work_without_an_answer_is_a_standstill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Busy()
    monkeypatch.setattr("stager.jobs.pull.open_hub", lambda *_, **__: hub)
    options = replace(options_for(stall_timeout=0.5), dest=Location.parse(str(tmp_path)))
    try:
        with pytest.raises(DeadlineExceeded, match="while listing ms://acme/tiny"):
            runtime.run(Pull(options, Quiet()).run, on_stop=lambda _: None, on_poke=lambda: None)
    finally:
        hub.over.set()
