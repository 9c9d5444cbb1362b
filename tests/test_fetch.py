"""``stager fetch`` as people start it: what it brings, what it refuses, what it leaves alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fetchbed import (
    MEMORY,
    Bed,
    in_memory,
    manifest_of,
    names_in,
    random_file,
    read_manifest,
    same,
    size_of,
    summary,
)
from tests.harness import (
    MIB,
    STRANGER,
    Cgroup,
    Running,
    cold,
    command,
    environment,
    files_below,
    mounted,
    resident,
)
from tests.osslab.faults import Fault

WEIGHT = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def tree(folder: str) -> dict[str, tuple[Any, ...]]:
    """Everything below `folder` with what would tell of a change."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def copy(source: str, folder: str) -> None:
    """The model as another tool would have left it: without a journal."""
    shutil.copytree(source, folder)
    os.sync()


@contextlib.contextmanager
def halted(bed: Bed, *words: str, name: str = WEIGHT, **options: Any) -> Iterator[Running]:
    """A fetch that has half of the object `name` and waits for the rest, until the block ends."""
    fault = bed.oss.faults.add(Fault("stall", key_glob=f"r1/{name}", seconds=600, operation="GetObject"))
    running = bed.start("--json", *words, **options)
    bed.oss.log.wait(lambda records: any(record.waiting for record in records))
    try:
        yield running
    finally:
        assert fault.fired == 1
        bed.oss.listener.cut()


def fill(path: str) -> None:
    """Take all room of the filesystem with one file."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * MIB)


# A plain run


def test_a_model_arrives_whole_proven_and_warm(bed: Bed, source: str) -> None:
    bed.serve(source)
    done = bed.fetch()
    assert done.code == 0, str(done)
    same(bed.dir, source)
    fetched, ready = done.out.splitlines()
    size = f"{size_of(source) / MIB:.1f} MiB"
    assert fetched.startswith(f"fetched: {size} in 10 files from oss://models/r1, downloaded {size} in ")
    assert fetched.endswith(", verified by crc64")
    assert ready.startswith("ready: ")
    assert bed.box.state == "ready"
    assert bed.box.ready(bed.dir)
    assert resident(*files_below(bed.dir)) >= size_of(source)
    assert sorted(os.listdir(os.path.join(bed.dir, ".stager"))) == [
        "fetch.journal",
        "fetch.lock",
        "manifest.json",
    ]


def test_the_second_run_downloads_nothing(bed: Bed, source: str) -> None:
    bed.serve(source)
    first = bed.good()
    total = size_of(source)
    assert (first["files"], first["total"], first["fetched"], first["already"]) == (10, total, total, 0)
    assert (first["verified"], first["unproven"], first["retried"]) == ("crc64", 0, 0)
    assert bed.sent <= total + os.path.getsize(os.path.join(source, INDEX))
    before = tree(bed.dir)
    cold(*files_below(bed.dir))
    bed.forget()
    done = bed.fetch()
    assert done.code == 0
    assert done.out.splitlines()[0].endswith("nothing downloaded, verified by crc64 before")
    assert bed.oss.bytes_sent("*.safetensors") == bed.oss.bytes_sent("*.bin") == 0
    assert bed.sent <= os.path.getsize(os.path.join(source, INDEX))
    assert bed.box.state == "ready"
    after = tree(bed.dir)
    lock = os.path.join(bed.dir, ".stager", "fetch.lock")
    assert {**before, lock: ()} == {**after, lock: ()}


def test_only_what_is_missing_or_new_is_downloaded(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.good()
    os.unlink(os.path.join(bed.dir, WEIGHT))
    bed.put("extra/new.bin", os.urandom(MIB))
    bed.forget()
    found = bed.good()
    assert (found["files"], found["trusted"]) == (11, 9)
    assert found["fetched"] == os.path.getsize(os.path.join(source, WEIGHT)) + MIB
    assert bed.oss.bytes_sent("*-00001-*") == 0
    assert sorted({*names_in(source), "extra/new.bin"}) == names_in(bed.dir)


def test_a_dry_run_writes_nothing(bed: Bed, source: str) -> None:
    bed.serve(source)
    done = bed.fetch("--json", "--dry-run")
    assert done.code == 0, str(done)
    forecast = done.event("fetch_forecast")
    total = size_of(source)
    assert (forecast["files"], forecast["total"], forecast["to_fetch"], forecast["present"]) == (
        10,
        total,
        total,
        0,
    )
    assert not os.path.exists(bed.dir)
    assert not bed.box.read_marker()
    bed.good("--exclude", "*.safetensors")
    before, marker = tree(bed.dir), bed.box.read_marker()
    random_file(bed.box.path("model", "old.bin"), 10)
    before = tree(bed.dir)
    assert "remove" not in bed.fetch("--dry-run").out
    done = bed.fetch("--mirror", "--dry-run")
    assert "remove  old.bin\n" in done.out
    weights = sum(os.path.getsize(path) for path in files_below(source) if path.endswith(".safetensors"))
    assert f"fetch   {weights / MIB:.1f} MiB" in done.out
    assert done.out.endswith("verdict a run would begin\n")
    assert tree(bed.dir) == before
    assert bed.box.read_marker() == marker
    done = bed.fetch("--dry-run", "--keep-free", "1000TiB")
    assert (done.code, done.out.splitlines()[-1].startswith("verdict 3")) == (4, True), str(done)


def test_globs_choose_files_and_a_later_run_adds_the_rest(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.good("--include", "*.json", "--include", "extra/", "--exclude", "notes.bin")
    jsons = [name for name in names_in(source) if name.endswith(".json")]
    assert names_in(bed.dir) == sorted([*jsons, "extra/empty.txt"])
    assert bed.oss.bytes_sent("*.safetensors") == 0
    bed.good("--include", "*00001*")
    told = read_manifest(bed.dir)
    assert (told["state"], len(told["files"])) == ("complete", len(jsons) + 2)
    bed.good()
    same(bed.dir, source)
    assert [one["path"] for one in read_manifest(bed.dir)["files"]] == names_in(source)
    assert "no object in `oss://models/r1` matches" in bed.refused(7, "--include", "nothing*")


def test_a_single_object(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.url += "/extra/notes.bin"
    found = bed.good()
    assert (found["files"], names_in(bed.dir)) == (1, ["notes.bin"])
    assert Path(bed.dir, "notes.bin").read_bytes() == Path(source, "extra", "notes.bin").read_bytes()
    assert bed.box.state == "ready"
    random_file(os.path.join(bed.dir, "mine.bin"), 100)
    assert "--mirror" in bed.refused(2, "--mirror")
    assert names_in(bed.dir) == ["mine.bin", "notes.bin"]


def test_a_folder_is_a_source_too(bed: Bed, source: str) -> None:
    done = bed.box.run("fetch", "--json", "--keep-free", "0", f"file://{source}", bed.dir)
    assert done.code == 0, str(done)
    found = summary(done)
    assert (found["verified"], found["unproven"]) == ("", 10)
    same(bed.dir, source)
    assert bed.box.ready(bed.dir)
    again = bed.box.run("fetch", "--json", "--keep-free", "0", source, bed.dir)
    assert summary(again)["fetched"] == 0


def test_nothing_there_and_folders_within_each_other(bed: Bed, source: str) -> None:
    assert "nothing in `oss://models/r1`" in bed.refused(7)
    assert not names_in(bed.dir) if os.path.exists(bed.dir) else True
    copied = bed.box.path("src")
    copy(source, copied)
    before = tree(copied)
    done = bed.box.run("fetch", copied, os.path.join(copied, "extra"))
    assert (done.code, tree(copied)) == (2, before), str(done)
    inside = bed.box.run("fetch", "/", bed.dir)
    assert inside.code == 2, str(inside)
    assert "within each other" in inside.err


# What a manifest promises


def test_a_manifest_names_the_model(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.put(".stager/manifest.json", manifest_of(source))
    bed.put("stray.bin", os.urandom(MIB))
    done = bed.fetch("--json", "--verify", "sha256")
    assert done.code == 0, str(done)
    assert summary(done)["verified"] == "sha256"
    same(bed.dir, source)
    assert (
        "stray.bin" in next(note for note in done.all("note") if note["code"] == "beyond_manifest")["message"]
    )
    told = {one["path"]: one for one in read_manifest(bed.dir)["files"]}
    assert all(len(one["sha256"]) == 64 and one["crc64"] for one in told.values())


def test_sha256_is_proven_for_files_that_are_here_already(bed: Bed, source: str) -> None:
    """Once: afterwards the record says so. A file that breaks the promise is fetched again, and then refused."""
    bed.serve(source)
    bed.put(".stager/manifest.json", manifest_of(source))
    assert bed.good()["verified"] == "crc64"
    found = bed.good("--verify", "sha256")
    assert (found["fetched"], found["verified"], found["trusted"]) == (0, "sha256", 0)
    found = bed.good("--verify", "sha256")
    assert (found["fetched"], found["verified"], found["trusted"]) == (0, "sha256", 10)
    os.unlink(os.path.join(bed.dir, WEIGHT))
    assert bed.good("--verify", "sha256")["trusted"] == 9
    assert bed.good("--verify", "sha256")["trusted"] == 10, "proven when it was fetched"
    bed.put(".stager/manifest.json", manifest_of(source, **{WEIGHT: {"sha256": "0" * 64}}))
    bed.forget()
    assert f"`{WEIGHT}` has the wrong checksum" in bed.refused(8, "--verify", "sha256")
    assert bed.oss.bytes_sent(f"*{WEIGHT}") >= os.path.getsize(os.path.join(source, WEIGHT))
    assert not bed.box.ready(bed.dir)


@pytest.mark.parametrize("key", ["sha256", "crc64"])
def test_a_file_that_breaks_the_promise_never_gets_its_name(bed: Bed, source: str, key: str) -> None:
    bed.serve(source)
    wrong = {"sha256": "0" * 64, "crc64": "17"}[key]
    bed.put(".stager/manifest.json", manifest_of(source, **{WEIGHT: {key: wrong}}))
    line = bed.refused(8, *(["--verify", "sha256"] if key == "sha256" else []))
    assert f"`{WEIGHT}` has the wrong checksum, again" in line
    assert WEIGHT not in names_in(bed.dir)
    assert f"{WEIGHT}.part" not in names_in(bed.dir)
    assert bed.oss.bytes_sent(f"*{WEIGHT}") == 2 * os.path.getsize(os.path.join(source, WEIGHT))
    assert not bed.box.ready(bed.dir)
    assert read_manifest(bed.dir)["state"] == "updating"


def test_sha256_needs_somebody_who_states_it(bed: Bed, source: str) -> None:
    bed.serve(source)
    assert "no manifest states the sha256" in bed.refused(2, "--verify", "sha256")
    bed.put(".stager/manifest.json", manifest_of(source, **{WEIGHT: {"sha256": None}}))
    assert WEIGHT in bed.refused(2, "--verify", "sha256")
    assert bed.oss.bytes_sent("*.safetensors") == 0


def test_a_model_that_is_being_written_is_refused(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.put(".stager/manifest.json", manifest_of(source, state="updating"))
    assert "being updated" in bed.refused(8)
    assert bed.oss.bytes_sent("*.safetensors") == 0
    assert not names_in(bed.dir)
    assert not bed.box.ready(bed.dir)


def test_a_missing_shard_is_found_before_anything_is_downloaded(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.oss.remove(f"r1/{WEIGHT}")
    assert WEIGHT in bed.refused(8)
    assert bed.oss.bytes_sent("*.safetensors") == 0
    bed.put(".stager/manifest.json", manifest_of(source))
    assert "named by the manifest, missing" in bed.refused(8)
    assert bed.oss.bytes_sent("*.safetensors") == 0
    bed.good("--allow-incomplete")
    assert names_in(bed.dir) == [name for name in names_in(source) if name != WEIGHT]


def test_a_size_that_is_not_the_promised_one(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.put(".stager/manifest.json", manifest_of(source, **{WEIGHT: {"size": 5}}))
    assert "the manifest says 5" in bed.refused(8)
    assert bed.oss.bytes_sent("*.safetensors") == 0


# What is in the folder already


def test_the_right_content_from_another_tool_is_not_downloaded_again(bed: Bed, source: str) -> None:
    bed.serve(source)
    copy(source, bed.dir)
    found = bed.good()
    assert (found["fetched"], found["already"], found["trusted"]) == (0, size_of(source), 0)
    assert bed.oss.bytes_sent("*.safetensors") == 0
    assert bed.box.state == "ready"


def test_the_wrong_content_is_replaced(bed: Bed, source: str) -> None:
    bed.serve(source)
    copy(source, bed.dir)
    with open(os.path.join(bed.dir, WEIGHT), "r+b") as file:  # the same size
        file.seek(10 * MIB)
        file.write(b"\0" * 4096)
    os.truncate(os.path.join(bed.dir, "extra", "notes.bin"), MIB)
    found = bed.good()
    wanted = sum(os.path.getsize(os.path.join(source, name)) for name in (WEIGHT, "extra/notes.bin"))
    assert found["fetched"] == wanted
    same(bed.dir, source)


def test_a_file_changed_after_the_fetch_is_noticed(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.good()
    path = os.path.join(bed.dir, WEIGHT)
    with open(path, "r+b") as file:
        file.seek(MIB)
        file.write(b"changed")
    assert bed.good()["fetched"] == os.path.getsize(path)
    same(bed.dir, source)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_something_else_in_the_place_of_a_file_is_refused(bed: Bed, source: str, kind: str) -> None:
    bed.serve(source)
    outside = random_file(bed.box.path("outside", "precious"), 100)
    os.mkdir(bed.dir)
    place = os.path.join(bed.dir, WEIGHT)
    if kind == "symlink":
        os.symlink(outside, place)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        os.mkdir(place)
    before = tree(bed.box.path("outside"))
    assert "is not a regular file" in bed.refused(9)
    assert tree(bed.box.path("outside")) == before
    assert bed.oss.bytes_sent("*.safetensors") == 0


@pytest.mark.parametrize("place", ["extra", ".stager"])
def test_a_symlink_in_the_place_of_a_folder_is_refused(bed: Bed, source: str, place: str) -> None:
    bed.serve(source)
    outside = bed.box.path("outside")
    random_file(os.path.join(outside, "precious"), 100)
    os.mkdir(bed.dir)
    os.symlink(outside, os.path.join(bed.dir, place))
    before = tree(outside)
    assert bed.dir in bed.refused(9)
    assert tree(outside) == before


@pytest.mark.parametrize("place", [f"{WEIGHT}.part", ".stager/fetch.journal", ".stager/manifest.json.new"])
def test_nothing_is_written_through_a_symlink(bed: Bed, source: str, place: str) -> None:
    bed.serve(source)
    precious = random_file(bed.box.path("outside", "precious"), 100)
    link = os.path.join(bed.dir, place)
    os.makedirs(os.path.dirname(link))
    os.symlink(precious, link)
    before = tree(bed.box.path("outside"))
    done = bed.fetch()
    assert done.code in (0, 9), str(done)
    assert tree(bed.box.path("outside")) == before
    if done.code == 0:  # the link had the name of a temporary file, which is made anew
        same(bed.dir, source)


def test_a_folder_that_is_itself_named_by_a_symlink_is_fine(bed: Bed, source: str) -> None:
    bed.serve(source)
    os.mkdir(bed.box.path("real"))
    os.symlink(bed.box.path("real"), bed.dir)
    bed.good("--exclude", "*.safetensors")
    assert "config.json" in names_in(bed.box.path("real"))


@pytest.mark.parametrize(
    "names",
    [
        ["../x"],
        ["sub/../../x"],
        ["/abs"],
        ["a//b"],
        ["./a"],
        ["Model.bin", "model.bin"],
        ["a", "a/b"],
        ["n" * 256],
    ],
    ids=lambda names: names[-1][:12],
)
def test_names_that_cannot_be_files_below_the_folder(bed: Bed, names: list[str]) -> None:
    for name in ["config.json", *names]:
        bed.put(name, b"content")
    before = tree(bed.box.folder)
    assert "object `" in bed.refused(8)
    after = tree(bed.box.folder)
    new = {path for path in after if path not in before}
    allowed = (bed.dir, os.path.dirname(bed.box.marker))
    assert all(path.startswith(allowed) for path in new), new
    assert not os.path.exists(bed.dir) or not names_in(bed.dir)


# --mirror


def stale(bed: Bed, source: str) -> str:
    """A folder with the model and with what is not of it; gives a folder outside that symlinks lead to."""
    outside = bed.box.path("outside")
    random_file(os.path.join(outside, "precious"), 100)
    copy(source, bed.dir)
    for name in ("old.bin", "gone/with/it.bin", "kept/by-exclude.bin", "extra/old.bin"):
        random_file(os.path.join(bed.dir, name), 1000)
    os.symlink(os.path.join(outside, "precious"), os.path.join(bed.dir, "link"))
    os.symlink(outside, os.path.join(bed.dir, "folder-link"))
    return outside


def test_a_mirror_removes_what_the_source_has_not_and_nothing_else(bed: Bed, source: str) -> None:
    bed.serve(source)
    outside = stale(bed, source)
    before, names = tree(outside), names_in(bed.dir)
    bed.good()
    assert names_in(bed.dir) == names, "without --mirror nothing is deleted"
    found = bed.good("--mirror", "--exclude", "kept/", "--exclude", "*.json")
    assert found["removed"] == 5
    assert names_in(bed.dir) == sorted([*names_in(source), "kept/by-exclude.bin"])
    assert not os.path.exists(os.path.join(bed.dir, "gone"))
    assert tree(outside) == before
    assert bed.box.ready(bed.dir)


def test_a_mirror_of_a_folder_that_no_fetch_has_filled(bed: Bed, source: str) -> None:
    bed.serve(source)
    mine = random_file(os.path.join(bed.dir, "mine.bin"), 100)
    before = tree(bed.dir)
    for words in (["--mirror"], ["--mirror", "--dry-run"]):
        assert "which no fetch has filled" in bed.refused(2, *words)
        assert tree(bed.dir) == before
    own = os.path.join(bed.dir, ".stager", "manifest.json")
    os.mkdir(os.path.dirname(own))
    Path(own).write_bytes(manifest_of(source))  # of whoever wrote the model here
    assert "which no fetch has filled" in bed.refused(2, "--mirror")
    shutil.rmtree(os.path.dirname(own))
    os.unlink(mine)
    bed.good("--mirror")  # an empty folder has nothing to lose
    same(bed.dir, source)
    random_file(mine, 100)
    assert bed.good("--mirror")["removed"] == 1


@pytest.mark.parametrize("verb", [("fetch",), ("run", "--fetch")])
@pytest.mark.parametrize("empty", ["SOURCE", "DIR"])
def test_an_unset_variable_is_no_folder(bed: Bed, source: str, verb: tuple[str, ...], empty: str) -> None:
    bed.serve(source)
    mine = random_file(bed.box.path("here", "mine.bin"), 100)
    where = ("", bed.dir) if empty == "SOURCE" else (bed.url, "")
    words = ("--mirror", *(("--", "echo", "engine") if verb[0] == "run" else ()))
    line = (
        command(*verb, *where, *words, "--marker", bed.box.marker)
        if verb[0] == "fetch"
        else command(*verb, *where, *words)
    )
    done = subprocess.run(
        line,
        env=environment(**bed.oss.env()),
        cwd=os.path.dirname(mine),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert ("DIR is empty" if empty == "DIR" else "is not a path") in done.stderr
    assert "engine" not in done.stdout
    assert os.listdir(os.path.dirname(mine)) == ["mine.bin"]


def test_files_that_the_source_no_longer_has_are_told(bed: Bed, source: str) -> None:
    bed.serve(source)
    done = bed.fetch("--json")
    assert not [note for note in done.all("note") if note["code"] == "obsolete"], str(done)
    size = os.path.getsize(random_file(os.path.join(bed.dir, "model-00001-of-00001.safetensors"), 2 * MIB))
    random_file(os.path.join(bed.dir, "unfinished.part"), 100)
    done = bed.fetch("--json", "--allow-incomplete")
    (note,) = [note for note in done.all("note") if note["code"] == "obsolete"]
    assert f"1 file ({size / MIB:.1f} MiB)" in note["message"]
    assert (note["level"], "--mirror" in note["hint"]) == ("warning", True)
    os.unlink(os.path.join(bed.dir, "model-00001-of-00001.safetensors"))
    random_file(os.path.join(bed.dir, "mine.txt"), 10)
    (note,) = [note for note in bed.fetch("--json").all("note") if note["code"] == "obsolete"]
    assert note["level"] == "info"
    done = bed.fetch("--json", "--mirror")
    assert not [note for note in done.all("note") if note["code"] == "obsolete"], str(done)


def test_the_manifest_says_so_while_the_folder_changes(bed: Bed, source: str) -> None:
    bed.serve(source)
    copy(source, bed.dir)
    bed.good()
    os.truncate(os.path.join(bed.dir, WEIGHT), 100)
    random_file(os.path.join(bed.dir, "old.bin"), 1000)
    bed.forget()
    with halted(bed, "--mirror") as running:
        assert read_manifest(bed.dir)["state"] == "updating"
        assert os.path.exists(os.path.join(bed.dir, "old.bin"))
        assert os.path.getsize(os.path.join(bed.dir, WEIGHT)) == 100, (
            "the old file has its name until the new is whole"
        )
        assert not bed.box.ready(bed.dir)
        done = bed.box.run("warm", bed.dir, "--marker", bed.box.path("another.json"))
        assert (done.code, "being updated" in done.err) == (8, True), str(done)
    assert running.finish().code == 0
    assert read_manifest(bed.dir)["state"] == "complete"
    same(bed.dir, source)
    assert bed.box.ready(bed.dir)


# Room on the disk and in memory


def test_room_is_to_be_left(bed: Bed, source: str) -> None:
    bed.serve(source)
    for wanted in ("1000TiB", "99.99%"):
        line = bed.refused(4, "--keep-free", wanted)
        assert "to stay free" in line
    assert bed.oss.bytes_sent("*.safetensors") == 0
    assert not names_in(bed.dir)
    bed.good("--keep-free", "0.01%")


def test_an_older_version_in_the_way_is_named(bed: Bed, source: str) -> None:
    bed.serve(source)
    assert "an older version" not in bed.fetch("--keep-free", "1000TiB").err
    bed.good()
    size = os.path.getsize(os.path.join(source, WEIGHT))
    data = Path(source, WEIGHT).read_bytes()
    bed.put(WEIGHT, data[: 2 * MIB] + os.urandom(size - 2 * MIB))
    done = bed.fetch("--keep-free", "1000TiB")
    assert done.code == 4
    assert f"an older version of these files takes {size / MIB:.1f} MiB" in done.err, str(done)


@pytest.mark.root
def test_a_disk_that_is_too_small(bed: Bed, source: str) -> None:
    bed.serve(source)
    os.mkdir(bed.dir)
    with mounted("tmpfs", "none", bed.dir, "size=20m"):
        assert "39.1 MiB are to be fetched" in bed.refused(4)
        assert bed.oss.bytes_sent("*.safetensors") == 0


@pytest.mark.root
def test_a_disk_that_fills_up_meanwhile(bed: Bed, source: str) -> None:
    bed.serve(source)
    os.mkdir(bed.dir)
    with mounted("tmpfs", "none", bed.dir, "size=60m"):
        with halted(bed, "-P", "1", name="model-00001-of-00003.safetensors") as running:
            fill(os.path.join(bed.dir, "hog"))
        done = running.finish()
        assert done.code == 4, str(done)
        message = done.event("error")["message"]
        assert "no space left on device (ENOSPC)" in message
        assert "-of-00003.safetensors" in message
        os.unlink(os.path.join(bed.dir, "hog"))
        assert bed.good()["resumed"] > 0
        same(bed.dir, source)


@pytest.mark.root
def test_a_folder_in_memory_that_the_limit_is_too_small_for(
    bed: Bed, large: str, make_cgroup: Callable[..., Cgroup]
) -> None:
    bed.serve(large)
    group = make_cgroup()
    group.limit(200 * MIB)
    os.mkdir(bed.dir)
    with mounted("tmpfs", "none", bed.dir, "size=1g"):
        line = bed.refused(4, before=group.inside())
    assert f"`{bed.dir}` is memory" in line
    assert "limit" in line
    assert bed.oss.bytes_sent("*.safetensors") == group.oom_kills == 0


@pytest.mark.root
def test_a_model_larger_than_memory_is_on_the_disk_in_the_end(
    bed: Bed, large: str, make_cgroup: Callable[..., Cgroup]
) -> None:
    bed.serve(large)
    group = make_cgroup()
    group.limit(190 * MIB)
    done = bed.fetch("--json", "-P", "8", "--reserve", "0", before=group.inside())
    assert done.code == 0, str(done)
    assert summary(done)["complete"]
    assert done.summary["outcome"] == "partial", str(done)
    assert group.path.rpartition("/")[2] in done.summary["binding"]
    assert group.oom_kills == 0
    cold(*files_below(bed.dir))
    same(bed.dir, large)


def test_without_cache_the_pages_are_gone(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.good("--no-cache")
    same_size = size_of(bed.dir) == size_of(source)
    weights = [path for path in files_below(bed.dir) if path.endswith(".safetensors")]
    assert same_size
    assert resident(*weights) == 0
    assert bed.box.state == "released"
    assert bed.box.ready("--accept", "released", bed.dir)
    same(bed.dir, source)


@pytest.mark.parametrize(
    "words", [["--strict"], ["--min-resident", "50%"], ["--hold", "1s"], ["--idle"]], ids=lambda w: w[0]
)
def test_without_cache_nothing_can_be_asked_of_it(bed: Bed, source: str, words: list[str]) -> None:
    bed.serve(source)
    assert f"--no-cache and {words[0]} contradict each other" in bed.refused(2, "--no-cache", *words)
    assert not os.path.exists(bed.dir)


def test_what_lies_in_memory_cannot_be_dropped(bed: Bed, source: str) -> None:
    if not os.path.ismount(MEMORY):
        pytest.skip(f"{MEMORY} is not a filesystem of its own")
    bed.serve(source)
    bed.dir = in_memory()
    try:
        done = bed.fetch("--json", "--no-cache", "--exclude", "*.safetensors")
    finally:
        shutil.rmtree(bed.dir)
    assert done.code == 0, str(done)
    assert "is memory" in next(note for note in done.all("note") if note["code"] == "no_cache")["message"]
    assert "cannot drop" in (bed.box.read_marker() or {})["reason"]


@pytest.mark.root
@pytest.mark.parametrize(("why", "state"), [("mount", "ready"), ("owner", "unverified")])
def test_a_folder_that_cannot_be_written_but_has_the_model(
    bed: Bed, source: str, why: str, state: str
) -> None:
    """It is warmed; nothing in it changes. What is missing is an error that says why it cannot be fetched."""
    bed.serve(source)
    bed.good("--exclude", "*.safetensors")
    shutil.copytree(source, bed.dir, dirs_exist_ok=True)  # with the times of other files: proven by reading
    as_who: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if why == "mount":
            stack.enter_context(mounted("none", bed.dir, bed.dir, "bind,ro"))
        else:
            subprocess.run(["chown", "-R", f"{STRANGER}:{STRANGER}", bed.dir], check=True)
            as_who = {"before": ("setpriv", "--bounding-set=-all", "--inh-caps=-all")}
        before = tree(bed.dir)
        done = bed.fetch("--json", **as_who)
        assert done.code == 0, str(done)
        assert [note for note in done.all("note") if note["code"] == "read_only"], str(done)
        # Whose files one cannot write, their pages the kernel does not count.
        assert (summary(done)["fetched"], bed.box.state) == (0, state)
        bed.put("new.bin", os.urandom(MIB))
        done = bed.fetch(**as_who)
        assert done.code in (6, 9), str(done)
        assert "1 file to be fetched (1.0 MiB)" in done.err, str(done)
        assert not bed.box.ready(bed.dir)
        assert tree(bed.dir) == before


# Others at the same time


def test_of_two_fetches_the_second_waits_and_downloads_nothing(bed: Bed, source: str) -> None:
    bed.serve(source)
    with halted(bed) as first:
        second = bed.start("--json", env={"STAGER_MARKER": bed.box.path("another.json")})
        second.await_text("waiting for another fetch into this folder: process")
        assert str(first.pid) in second.out
    assert first.finish().code == 0
    done = second.finish()
    assert done.code == 0, str(done)
    assert summary(done)["fetched"] == 0
    assert bed.oss.bytes_sent("*-00001-*") == os.path.getsize(
        os.path.join(source, "model-00001-of-00003.safetensors")
    )
    same(bed.dir, source)


def test_who_has_waited_looks_at_the_source_again(bed: Bed, source: str) -> None:
    """What was listed before would be removed by --mirror, or missing from the manifest."""
    bed.serve(source)
    bed.good("--exclude", "*.safetensors")
    with halted(bed) as first:
        second = bed.start("--json", "--mirror", env={"STAGER_MARKER": bed.box.path("another.json")})
        second.await_text("waiting for another fetch into this folder")
        bed.put("new.bin", os.urandom(MIB))
        random_file(os.path.join(bed.dir, "new.bin"), 10)
    assert first.finish().code == 0
    done = second.finish()
    assert done.code == 0, str(done)
    assert (summary(done)["removed"], os.path.getsize(os.path.join(bed.dir, "new.bin"))) == (0, MIB)
    assert "new.bin" in [one["path"] for one in read_manifest(bed.dir)["files"]]


def test_a_store_that_does_not_answer_is_told_once(bed: Bed, source: str) -> None:
    bed.serve(source)
    running = bed.start("--json", env={"OSS_ENDPOINT": "http://127.0.0.1:9"})
    running.await_text('"retry"')
    time.sleep(1)  # there are several more meanwhile
    done = running.stop(signal.SIGTERM, within=5)
    assert len([note for note in done.all("note") if note["code"] == "retry"]) == 1, str(done)


def test_an_object_that_changes_meanwhile(bed: Bed, source: str) -> None:
    bed.serve(source)
    new = Path(source, WEIGHT).read_bytes()
    new = new[: 2 * MIB] + os.urandom(len(new) - 2 * MIB)  # the header stays
    with halted(bed) as running:
        bed.put(WEIGHT, new)
    done = running.finish()
    assert (done.code, done.event("error")["slug"]) == (5, "changed"), str(done)
    assert not bed.box.ready(bed.dir)
    assert WEIGHT not in names_in(bed.dir)
    assert read_manifest(bed.dir)["state"] == "updating"
    assert bed.good()["mended"] == 0, "what is here of the older version is not taken for the new one"
    assert Path(bed.dir, WEIGHT).read_bytes() == new
    assert bed.box.ready(bed.dir)


def test_an_object_that_changes_before_its_turn(bed: Bed, source: str) -> None:
    bed.serve(source)
    new = os.urandom(os.path.getsize(os.path.join(source, WEIGHT)))
    with halted(bed, "-P", "1", "--no-adapt", name="model-00001-of-00003.safetensors") as running:
        assert bed.oss.bytes_sent(f"*{WEIGHT}") == 0
        bed.put(WEIGHT, new)
    done = running.finish()
    assert (done.code, done.event("error")["slug"]) == (5, "changed"), str(done)
    assert WEIGHT not in names_in(bed.dir), "files of two versions are no model"
    assert bed.oss.log.count(operation="GetObject", key=f"*{WEIGHT}", status=206) == 0


def test_the_gate_is_closed_while_more_is_fetched(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.good()
    assert bed.box.ready(bed.dir)
    bed.put("new.bin", os.urandom(2 * MIB))
    with halted(bed, name="new.bin") as running:
        assert bed.box.state == "failed"
        assert not bed.box.ready()
    assert running.finish().code == 0
    assert bed.box.ready(bed.dir)


def test_an_archived_object_is_named_before_anything_is_downloaded(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.put("old.bin", os.urandom(MIB), storage_class="ColdArchive")
    done = bed.fetch()
    assert done.code == 6, str(done)
    assert "old.bin" in done.err
    assert "ossutil restore oss://models/r1/old.bin" in done.err
    assert bed.oss.bytes_sent("*.safetensors") == 0
    bed.oss.restored("r1/old.bin")
    bed.good()


def test_sigusr1_tells_and_sigterm_keeps_what_is_here(bed: Bed, source: str) -> None:
    bed.serve(source)
    with halted(bed) as running:
        running.signal(signal.SIGUSR1)
        running.await_text("progress")
        done = running.stop(signal.SIGTERM, within=2)
    assert done.code == 143, str(done)
    assert not summary(done)["complete"]
    assert not bed.box.ready(bed.dir)
    sent = bed.sent
    found = bed.good()
    assert found["already"] + found["resumed"] > 0
    assert bed.sent + 0 <= size_of(source) + 2 * os.path.getsize(os.path.join(source, INDEX)) + 4 * MIB, sent
    same(bed.dir, source)
