"""Unfinished uploads at a destination: whose they are, and what becomes of them when the model or the choice of files is another."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from stager.core.manifest import COMPLETE, UPDATING, Begun, Manifest
from stager.core.model import FileEntry
from stager.hub.base import HubFile, Snapshot
from stager.jobs import uploads
from stager.jobs.stock import Standing
from stager.store.base import Unfinished
from tests.harness import MIB, until
from tests.osslab.faults import Fault
from tests.pullbed import LEASE, PART, PullBed

SOURCE, REVISION = "ms://owner/name", "c0ffee"
SHA, OTHER = "1" * 64, "2" * 64
FEW = ("-P", "2", "--no-adapt")


def hub_file(path: str, sha256: str | None = SHA) -> HubFile:
    return HubFile(FileEntry(path, 9, sha256), "v")


def sorted_out(
    listed: Sequence[tuple[str, str]], *, state: str = UPDATING, begun: Sequence[Begun] = ()
) -> tuple[set[str], set[str], set[str], set[str]]:
    """The ids of uploads that are ours, kept, stale, and strangers; the pull is of `a` and `b`, the revision has `c` besides."""
    promised = (
        *(hub_file(path).entry for path in "abc"),
        FileEntry("old", 9, SHA),
        FileEntry("brought", 9, SHA, 7),
    )
    manifest = Manifest(SOURCE, REVISION, state, promised, strangers=("before",),
                        pending=("a", "b", "c", "old"), begun=tuple(begun))  # fmt: skip
    standing = Standing({}, manifest, resumable=frozenset({"a", "b"}))
    files = (hub_file("a"), hub_file("b"))
    snapshot = Snapshot(SOURCE, REVISION, (*files, hub_file("c")))
    found = uploads.whose([Unfinished(name, one, 0.0) for name, one in listed], standing, snapshot, files)
    ours, kept, stale = ({one.upload_id for one in some} for some in (found.ours, found.kept, found.stale))
    return ours, kept, stale, set(found.strangers)


def test_what_was_begun_since_the_promise_is_an_earlier_pulls() -> None:
    listed = [
        ("a", "1"),
        ("a", "before"),
        ("b", "before"),
        ("c", "2"),
        ("old", "3"),
        ("unknown", "4"),
        ("brought", "5"),
    ]
    assert sorted_out(listed) == ({"1"}, {"2"}, {"3"}, {"before", "4", "5"})
    assert sorted_out(listed, state=COMPLETE) == (set(), set(), set(), {"1", "2", "3", "4", "5", "before"})


def test_of_two_that_may_be_ours_none_is() -> None:
    assert sorted_out([("a", "1"), ("a", "2"), ("b", "3")]) == ({"3"}, set(), set(), {"1", "2"})


@pytest.mark.parametrize("state", [UPDATING, COMPLETE])
def test_what_the_manifest_knows_is_known_by_its_id(state: str) -> None:
    begun = [Begun("a", "1", 9, SHA), Begun("b", "2", 9, OTHER), Begun("c", "3", 9, SHA), Begun("gone", "9", 9),
             Begun("b", "4", 9)]  # fmt: skip
    listed = [("a", "1"), ("b", "2"), ("c", "3"), ("b", "4"), ("x", "1")]
    assert sorted_out(listed, state=state, begun=begun)[:3] == ({"1"}, {"3"}, {"2", "4"})


def test_where_one_is_known_another_of_that_content_is_a_stranger() -> None:
    known = [Begun("a", "1", 9, SHA), Begun("b", "2", 9, OTHER)]
    found = sorted_out([("a", "1"), ("a", "5"), ("b", "2"), ("b", "6")], begun=known)
    assert found == ({"1", "6"}, set(), {"2"}, {"5"})


# What becomes of them


@pytest.fixture
def killed(pullbed: PullBed) -> PullBed:
    """A bed whose pull was killed once three parts of two large files had arrived."""
    bed = pullbed
    bed.commit(large())
    faults = [
        Fault("hang", times=None, operation="UploadPart", key_glob=f"*/l-{n}.bin", skip=1 + n, seconds=60)
        for n in range(2)
    ]
    for fault in faults:
        bed.oss.faults.add(fault)
    running = bed.start(*FEW)
    arrived = bed.oss.log.records
    until(lambda: len(arrived(operation="UploadPart", status=200)) == 3 and faults[0].fired, "three parts")
    running.signal(signal.SIGKILL)
    running.process.wait(10)
    bed.oss.listener.cut()
    bed.oss.faults.clear()
    bed.oss.remove(bed.prefix + LEASE)
    assert bed.unfinished() == ["l-0.bin", "l-1.bin"]
    return bed


def large() -> dict[str, bytes]:
    return {f"l-{n}.bin": os.urandom(2 * PART + 5 * MIB + n) for n in range(2)}


def left(bed: PullBed, *words: str) -> list[str]:
    """What a pull says of uploads that it leaves."""
    done = bed.pull("--json", *words)
    assert done.code == 0, str(done)
    return [f"{one['message']} {one['hint']}" for one in done.all("note") if one["code"] == "uploads_left"]


def test_a_pull_of_other_files_forgets_no_upload(killed: PullBed) -> None:
    assert left(killed, "--include", "*.json") == []
    assert left(killed, "--include", "*.json") == []  # nothing to do
    done = killed.good(*FEW)
    assert done["resumed"] == 3 * PART
    assert killed.unfinished() == []
    killed.complete()


def test_what_was_begun_of_an_older_revision_is_told_until_mirror_aborts_it(killed: PullBed) -> None:
    killed.commit(large())
    [told] = left(killed)
    assert "2 unfinished uploads" in told
    assert "`--mirror` aborts them" in told
    [again] = left(killed)  # nothing else to do
    assert again == told
    assert left(killed, "--mirror") == []
    assert killed.unfinished() == []
    killed.complete()
    assert left(killed, "--mirror") == []
    assert "begun" not in killed.manifest()


def test_what_restart_would_do_is_what_it_does(killed: PullBed) -> None:
    found = killed.pull("--json", "--dry-run").event("pull_forecast")
    assert found["resumable"] == 2
    for _ in ("begun", "complete"):
        found = killed.pull("--json", "--dry-run", "--restart").event("pull_forecast")
        assert (found["to_pull"], found["present"], found["resumable"]) == (found["total"], 0, 0)
        assert found["verdict"] == "a run would begin"
        done = killed.good("--restart")
        assert (done["pulled"], done["resumed"]) == (done["total"], 0)


def test_restart_leaves_none_behind(killed: PullBed) -> None:
    killed.commit(large())
    assert left(killed, "--restart") == []
    assert killed.unfinished() == []
    assert "begun" not in killed.manifest()


def test_uploads_that_may_not_be_aborted_stay_and_are_told(killed: PullBed) -> None:
    killed.commit(large())
    killed.oss.faults.add(
        Fault("error", times=None, operation="AbortMultipartUpload", status=403, code="AccessDenied")
    )
    [told] = left(killed, "--mirror")
    assert "could not be aborted" in told
    killed.oss.faults.clear()
    assert left(killed, "--mirror") == []
    assert killed.unfinished() == []


def test_in_a_folder_a_pull_of_other_files_forgets_no_upload(pullbed: PullBed) -> None:
    bed = pullbed
    bed.dest = bed.dir
    bed.commit({"l.bin": os.urandom(2 * PART)})
    with bed.held(key_glob="l.bin", host="cdn", skip=1) as gate:
        running = bed.start("-P", "1", "--no-adapt", "--include", "l.bin")
        gate.reached()
        part = Path(bed.dir, ".l.bin.part")
        until(lambda: part.exists() and part.stat().st_size >= PART, "the first part")
        running.signal(signal.SIGKILL)
        running.process.wait(10)
    assert left(bed, "--include", "*.json") == []
    assert bed.good()["resumed"] == PART
    bed.complete_folder()
