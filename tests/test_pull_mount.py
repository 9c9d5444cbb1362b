"""Pulls into folders: on a local disk by a rename at the end, into a mounted object store straight to the final name."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuselab.fixtures import FuseMount, MountFactory
from tests.harness import MIB, Running, until
from tests.hublab.faults import Fault as HubFault
from tests.pullbed import HEADER, LEASE, MANIFEST, PART, PullBed, contents, files_in

MANNERS: dict[str, Any] = {"subtype": "ossfs2", "writes": "ossfs2", "attr_timeout": 0, "entry_timeout": 0}
REFUSED = {"rename", "copied", "ftruncate", "fallocate", "utimens", "chmod", "fsync"}
BIG = "big.bin"
SIZE = 3 * PART + 5 * MIB + 3


@pytest.fixture
def bed(pullbed: PullBed) -> PullBed:
    """A bed with a file of four parts, and a folder as its destination."""
    pullbed.commit({BIG: os.urandom(SIZE)})
    pullbed.dest = pullbed.dir
    return pullbed


@pytest.fixture
def behind(tmp_path: Path) -> Path:
    """The folder that is the bucket behind the mount."""
    path = tmp_path / "bucket"
    path.mkdir()
    return path


@pytest.fixture
def mounted(fuse_mount: MountFactory, behind: Path, bed: PullBed) -> Callable[..., FuseMount]:
    """Makes the mount, and a folder in it the destination."""

    def mount(**options: Any) -> FuseMount:
        made = fuse_mount(source=str(behind), **{**MANNERS, **options})
        bed.dest = f"{made.path}/models/tiny"
        bed.dir = str(behind / "models" / "tiny")  # what the judges look at
        return made

    return mount


def kill_after(bed: PullBed, path: str, size: int, *words: str) -> None:
    """A pull that is killed once the file at `path` has so many bytes: those of two parts of four, or fewer."""
    # Over one connection the first two parts come, and the third does not.
    bed.hub.faults.add(HubFault("hang", times=None, host="cdn", key_glob=BIG, skip=2, seconds=60))
    running = bed.start("-P", "1", *words)
    grown(running, path, size)
    running.signal(signal.SIGKILL)
    assert running.process.wait(10) == -signal.SIGKILL
    bed.hub.faults.clear()


def grown(running: Running, path: str, size: int) -> None:
    def is_so() -> bool:
        assert running.process.poll() is None, running.err
        return os.path.exists(path) and os.path.getsize(path) >= size

    until(is_so, f"{size} bytes of {path}")


def manifest(bed: PullBed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(bed.dir, MANIFEST).read_text())
    return found


# A local disk


def test_into_a_folder_a_name_is_there_when_its_file_is_whole(bed: PullBed) -> None:
    bed.hub.faults.add(HubFault("hang", times=None, host="cdn", key_glob=BIG, skip=2, seconds=60))
    running = bed.start("-P", "1")
    grown(running, os.path.join(bed.dir, f".{BIG}.part"), PART)
    until(lambda: len(files_in(bed.dir)) > 4, "the others")
    whole = contents(bed.repo)
    for name, data in files_in(bed.dir).items():
        if not name.endswith(".part"):
            assert data == whole[name], name
    assert not os.path.exists(os.path.join(bed.dir, BIG))
    assert manifest(bed)["state"] == "updating"
    done = running.stop(signal.SIGTERM, within=4)
    assert done.code == 143, str(done)
    assert not os.path.exists(os.path.join(bed.dir, LEASE))
    bed.hub.faults.clear()
    assert bed.good()["resumed"] >= PART
    bed.complete_folder()


def test_a_folder_is_gone_on_with_and_read_back(bed: PullBed) -> None:
    kill_after(bed, os.path.join(bed.dir, f".{BIG}.part"), 2 * PART)
    bed.forget()
    done = bed.good()
    assert done["resumed"] == 2 * PART
    assert done["read_back"] == SIZE + done["already"], "and what was whole before: no store tells of it here"
    assert bed.hub.bytes_sent(BIG) == SIZE - 2 * PART + HEADER + 1  # and one, to see whether the hub gives it
    bed.complete_folder()
    bed.forget()
    assert bed.good()["pulled"] == 0
    assert bed.hub.bytes_sent(BIG) == 0


def test_what_is_wrong_in_a_folder_is_pulled_anew(bed: PullBed) -> None:
    part = os.path.join(bed.dir, f".{BIG}.part")
    kill_after(bed, part, 2 * PART)
    with open(part, "r+b") as file:
        file.seek(PART + 99)
        file.write(b"wrong")
    done = bed.good()
    assert done["mended"] == 1
    bed.complete_folder()


# A mounted object store


@pytest.mark.root
def test_into_a_mount_every_byte_is_written_once_and_nothing_is_renamed(
    bed: PullBed, mounted: Callable[..., FuseMount]
) -> None:
    mount = mounted()
    done = bed.good()
    bed.complete_folder()
    counts = mount.counters()
    assert not REFUSED & counts["writing"].keys(), counts["writing"]
    for path, data in contents(bed.repo).items():
        assert counts["written"].get(f"models/tiny/{path}", 0) == len(data), path
    assert done["read_back"] == 0
    before = sum(counts["written"].values())
    assert bed.good()["pulled"] == 0
    assert sum(mount.counters()["written"].values()) == before
    assert bed.run("check", str(bed.dest)).code == 0


@pytest.mark.root
def test_a_mount_that_fails_at_close_never_has_a_complete_model(
    bed: PullBed, mounted: Callable[..., FuseMount], behind: Path
) -> None:
    mounted(close_error="EIO:1")
    line = bed.refused(9)
    assert "EIO" in line
    found = behind / "models" / "tiny" / MANIFEST
    assert not found.exists() or json.loads(found.read_text())["state"] == "updating"
    bed.good()
    bed.complete_folder()


@pytest.mark.root
def test_a_mount_is_gone_on_with_by_adding_and_read_back(
    bed: PullBed, mounted: Callable[..., FuseMount], behind: Path
) -> None:
    mount = mounted()
    kill_after(bed, f"{bed.dest}/{BIG}", 2 * PART)
    until(lambda: not mount.counters()["writers"], "the end of what the dead pull had open")
    assert manifest(bed)["state"] == "updating"
    done = bed.run("fetch", str(bed.dest), bed.box.path("copy"))
    assert done.code in (2, 8), str(done)
    bed.forget()
    done_again = bed.good()
    assert done_again["resumed"] == 2 * PART
    assert done_again["read_back"] == SIZE + done_again["already"]
    assert bed.hub.bytes_sent(BIG) == SIZE - 2 * PART + HEADER + 1  # and one, to see whether the hub gives it
    counts = mount.counters()
    assert counts["written"][f"models/tiny/{BIG}"] == SIZE
    assert not REFUSED & counts["writing"].keys()
    bed.complete_folder()


@pytest.mark.root
def test_a_changed_revision_in_a_mount_is_never_taken_for_a_model_meanwhile(
    bed: PullBed, mounted: Callable[..., FuseMount]
) -> None:
    mount = mounted()
    bed.good()
    before = mount.counters()["written"]
    bed.commit({BIG: os.urandom(SIZE)})
    bed.hub.faults.add(HubFault("hang", times=None, host="cdn", key_glob=BIG, skip=2, seconds=60))
    running = bed.start()
    until(lambda: manifest(bed)["state"] == "updating", "the manifest")
    done = bed.run("warm", str(bed.dest))
    assert done.code == 8, str(done)
    running.stop(signal.SIGTERM, within=4)
    bed.hub.faults.clear()
    bed.good()
    bed.complete_folder()
    after = mount.counters()["written"]
    own = ".stager/"
    changed = {path for path, size in after.items() if own not in path and size != before.get(path)}
    assert changed == {f"models/tiny/{BIG}"}


@pytest.mark.root
@pytest.mark.parametrize("words", [(), ("--verify", "crc")], ids=["sha256", "crc"])
def test_the_object_of_the_last_revision_is_never_taken_for_one_that_was_begun(
    bed: PullBed, mounted: Callable[..., FuseMount], words: tuple[str, ...]
) -> None:
    """A pull of a new revision is killed before it has touched a file of the same size, and its mount is made again with other inodes."""
    mounted()
    bed.good()
    bed.commit({BIG: os.urandom(SIZE)})
    bed.hub.faults.add(HubFault("hang", times=None, host="cdn", key_glob=BIG, skip=1, seconds=60))
    running = bed.start(*words)
    until(lambda: manifest(bed)["state"] == "updating", "the manifest")
    running.signal(signal.SIGKILL)
    assert running.process.wait(10) == -signal.SIGKILL
    bed.hub.faults.clear()
    again = mounted(inodes=1000)
    assert os.stat(f"{again.path}/models/tiny/{BIG}").st_ino == os.stat(f"{bed.dir}/{BIG}").st_ino + 1000
    assert bed.good(*words)["resumed"] == 0
    bed.complete_folder()


@pytest.mark.root
def test_what_was_begun_is_gone_on_with_after_the_next_mount(
    bed: PullBed, mounted: Callable[..., FuseMount]
) -> None:
    mount = mounted()
    kill_after(bed, f"{bed.dest}/{BIG}", 2 * PART)
    until(lambda: not mount.counters()["writers"], "the end of what the dead pull had open")
    mounted(inodes=1000)
    assert bed.good()["resumed"] == 2 * PART
    bed.complete_folder()


@pytest.mark.root
@pytest.mark.parametrize("words", [(), ("--verify", "crc")], ids=["sha256", "crc"])
def test_a_mount_that_refuses_to_be_added_to_gets_the_file_anew_in_the_same_run(
    bed: PullBed, mounted: Callable[..., FuseMount], words: tuple[str, ...]
) -> None:
    mount = mounted(append_error="write:ESPIPE")  # rclone, as it is mounted without further words
    kill_after(bed, f"{bed.dest}/{BIG}", PART + MIB)
    until(lambda: not mount.counters()["writers"], "the end of what the dead pull had open")
    done = bed.good(*words)
    assert (done["resumed"], done["mended"]) == (0, 0)
    bed.complete_folder()
