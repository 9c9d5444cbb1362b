"""What lies in a destination besides the model: what is removed, and what is in the way."""

from __future__ import annotations

import fcntl
import json
from functools import partial
from pathlib import Path

import anyio
import pytest

from stager.core.errors import UsageError
from stager.core.location import Location
from stager.core.manifest import COMPLETE, PATH, Manifest
from stager.core.model import FileEntry
from stager.hub.base import HubFile, Snapshot
from stager.jobs import remains
from stager.jobs.options import Proof
from stager.jobs.stock import Standing, take_stock
from stager.store.base import Store
from stager.store.directory import DirectoryStore
from stager.store.opening import StoreOptions, open_store
from tests.pullbed import MANIFEST, PullBed, files_in

SOURCE, REVISION = "ms://owner/name", "c0ffee"


def place(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def snapshot(*names: str) -> Snapshot:
    return Snapshot(SOURCE, REVISION, tuple(HubFile(FileEntry(name, 1), "v") for name in names))


def noted(folder: Path, *names: str) -> None:
    """A pull was here before, and has brought these files."""
    place(folder, PATH)
    rows = tuple(FileEntry(name, 1) for name in names)
    (folder / PATH).write_bytes(Manifest(SOURCE, "old", COMPLETE, rows).dump(time=0, version="0"))


def opened(folder: Path) -> Store:
    """With all that is wrapped around it."""
    return open_store(Location.parse(str(folder)), StoreOptions())


def standing(store: Store, *names: str) -> Standing:
    wanted = snapshot(*names)
    return anyio.run(partial(take_stock, store, wanted, wanted.files, Proof.CRC))


# What is in the way


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    place(tmp_path, "thing", "other", "thingy")
    noted(tmp_path, "thing")
    wanted, store = ["thing/inside.txt", "thing/deep/er.txt"], opened(tmp_path)
    found = standing(store, *wanted)
    with pytest.raises(UsageError, match="thing` is in the way: this revision has a folder") as caught:
        remains.in_the_way(store, found, wanted, mirror=False)
    assert "--mirror" in (caught.value.hint or "")
    assert remains.in_the_way(store, found, wanted, mirror=True) == ("thing",)
    noted(tmp_path)
    with pytest.raises(UsageError) as caught:
        remains.in_the_way(store, standing(store, *wanted), wanted, mirror=True)
    assert "--mirror" not in (caught.value.hint or ""), "no pull has brought it"


def test_a_folder_where_a_file_must_be(tmp_path: Path) -> None:
    place(tmp_path, "thing/a", "thing/b/c", "other")
    noted(tmp_path, "thing/a", "thing/b/c")
    store = opened(tmp_path)
    found = standing(store, "thing")
    assert remains.in_the_way(store, found, ["thing"], mirror=True) == ("thing/a", "thing/b/c")
    with pytest.raises(UsageError, match="thing/a"):
        remains.in_the_way(store, found, ["thing"], mirror=False)
    place(tmp_path, f"thing/b/{PATH}")  # another model's now
    with pytest.raises(UsageError, match="thing/b/c") as caught:
        remains.in_the_way(store, standing(store, "thing"), ["thing"], mirror=True)
    assert "--mirror" not in (caught.value.hint or "")


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("there", "named"),
    [("thing/", "thing"), ("thing/.git/config", ".git/config"), ("thing/deep/empty/", "deep/empty"),
     ("thing/y.lock", "y.lock"), ("thing/.y.part", ".y.part"), ("a/thing.lock", "a/thing.lock")],
)  # fmt: skip
def test_what_no_pull_brings_is_in_the_way_too(tmp_path: Path, there: str, named: str, mirror: bool) -> None:
    place(tmp_path, "other")
    noted(tmp_path)
    if there.endswith("/"):
        (tmp_path / there).mkdir(parents=True)
    else:
        place(tmp_path, there)
    store = opened(tmp_path)
    wanted = ["thing"] if there.startswith("thing") else ["a/thing.lock/b"]
    with pytest.raises(UsageError, match="is in the way") as caught:
        remains.in_the_way(store, standing(store, *wanted), wanted, mirror=mirror)
    assert f"{named}`" in caught.value.message
    assert str(tmp_path / wanted[0].removesuffix("/b")) in caught.value.message
    assert "move it away" in (caught.value.hint or "")


def test_a_link_to_a_folder_is_in_the_way(tmp_path: Path) -> None:
    place(tmp_path, "elsewhere/x", "model/other")
    noted(tmp_path / "model", "thing/x")
    (tmp_path / "model/thing").symlink_to(tmp_path / "elsewhere")
    store = opened(tmp_path / "model")
    with pytest.raises(UsageError, match="thing` is in the way"):
        remains.in_the_way(store, standing(store, "thing"), ["thing"], mirror=True)


def test_a_folder_that_empties_when_its_files_go_is_not(tmp_path: Path) -> None:
    place(tmp_path, "thing/deep/a", "thing/b")
    noted(tmp_path, "thing/deep/a", "thing/b")
    store = opened(tmp_path)
    blocking = remains.in_the_way(store, standing(store, "thing"), ["thing"], mirror=True)
    store.delete(blocking)
    assert not (tmp_path / "thing").exists()


def test_a_folder_in_the_way_is_named_before_anything_is_pulled(pullbed: PullBed) -> None:
    pullbed.dest = pullbed.dir
    place(Path(pullbed.dir), "config.json/.git/config")
    for words in ((), ("--dry-run",)):
        line = pullbed.refused(2, *words)
        assert f"{pullbed.dir}/config.json` is in the way" in line
    assert pullbed.hub.bytes_sent() <= 1
    assert not Path(pullbed.dir, MANIFEST).exists()


def test_where_no_pull_was_mirror_is_no_way_out(tmp_path: Path) -> None:
    place(tmp_path, "thing")
    store = opened(tmp_path)
    with pytest.raises(UsageError) as caught:
        remains.in_the_way(store, standing(store, "thing/a"), ["thing/a"], mirror=False)
    assert "--mirror" not in (caught.value.hint or "")


def test_a_file_becomes_a_folder_and_a_file_again(pullbed: PullBed, tmp_path: Path) -> None:
    source = tmp_path / "source"
    place(source, "config.json", "thing")
    pullbed.source, pullbed.dest = str(source), pullbed.dir
    pullbed.good()
    (source / "thing").unlink()
    place(source, "thing/inside.txt")
    before = Path(pullbed.dir, MANIFEST).read_bytes()
    assert "--mirror" in pullbed.refused(2)
    assert Path(pullbed.dir, MANIFEST).read_bytes() == before
    assert pullbed.good("--mirror")["removed"] == 1
    assert files_in(pullbed.dir) == {"config.json": b"x", "thing/inside.txt": b"x"}
    (source / "thing/inside.txt").unlink()
    (source / "thing").rmdir()
    place(source, "thing")
    place(Path(pullbed.dir), "old/.gone.bin.part")
    assert pullbed.good("--mirror")["removed"] == 2
    assert files_in(pullbed.dir) == {"config.json": b"x", "thing": b"x"}
    assert json.loads(Path(pullbed.dir, MANIFEST).read_text())["state"] == "complete"
    assert not Path(pullbed.dir, "old").exists()


# What earlier pulls left


def test_leftovers_of_what_is_no_longer_wanted(tmp_path: Path) -> None:
    long = "n" * 255
    place(tmp_path, "a", ".a.part", ".a.1.part", ".gone.part", ".gone.1.part", "sub/.gone.part", "kept")
    place(tmp_path, f".{long[:249]}.part", ".stager/.pull.lease.part", "inner/.x.part", f"inner/{PATH}")
    (tmp_path / ".link.part").symlink_to("kept")
    store = opened(tmp_path)
    assert remains.leftovers(store, standing(store, "a"), snapshot("a")) == (), "no pull was here"
    noted(tmp_path)
    found = remains.leftovers(store, standing(store, "a", long), snapshot("a", long))
    assert found == (".gone.1.part", ".gone.part", "sub/.gone.part")
    with (tmp_path / ".gone.part").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remains.discard(store, found)
        assert (tmp_path / ".gone.part").exists(), "somebody writes it"
    assert not (tmp_path / ".gone.1.part").exists()
    assert not (tmp_path / "sub").exists()
    assert (tmp_path / ".a.part").exists()


def test_leftovers_are_removed_where_nothing_else_is_left_to_do(pullbed: PullBed) -> None:
    pullbed.dest = pullbed.dir
    pullbed.good()
    left = Path(pullbed.dir, ".gone.bin.part")
    place(left.parent, left.name)
    assert pullbed.good()["removed"] == 0
    assert pullbed.pull("--json", "--mirror", "--dry-run").event("pull_forecast")["removes"] == [left.name]
    assert left.exists()
    assert pullbed.good("--mirror")["removed"] == 1
    assert not left.exists()
    pullbed.complete_folder()


def test_where_files_are_written_to_their_names_there_are_no_leftovers(tmp_path: Path) -> None:
    place(tmp_path, ".gone.part")
    assert DirectoryStore(str(tmp_path), in_place=True).leftovers([]) == ()
    assert DirectoryStore(str(tmp_path), in_place=False).leftovers([]) == (".gone.part",)
