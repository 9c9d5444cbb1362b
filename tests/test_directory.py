"""A folder as a store: what it lists, reads, writes and removes, and what it leaves alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fastcrc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stager.core.errors import (
    AccessDenied,
    Interrupted,
    LocalIOError,
    NotFound,
    ObjectChanged,
    ObjectExists,
    RemoteError,
    UsageError,
)
from stager.core.ranges import SMALLEST as PART_SIZE
from stager.store.base import BLOCK
from stager.store.directory import DirectoryStore

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "root"))


def write(store: DirectoryStore, name: str, content: bytes = b"x") -> Path:
    path = Path(store.root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(store: DirectoryStore, below: str = "", after: str = "") -> list[str]:
    return [one.name for one in store.list(below, start_after=after)]


def put(store: DirectoryStore, name: str, content: bytes, *, replace: bool = True) -> None:
    upload = store.upload(name, len(content), replace=replace)
    for number in range(max(1, -(-len(content) // upload.part_size))):
        at = number * upload.part_size
        upload.part(number + 1, memoryview(content)[at : at + upload.part_size])
    upload.complete()


def everything(folder: str) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(at, name), folder) for at, _, found in os.walk(folder) for name in found
    )


# Listing


def test_names_ascend_by_their_bytes(store: DirectoryStore) -> None:
    given_names = ["a/x", "a-1", "a0", "a/b/c", "é", "z", "B", "a.d/y", os.fsdecode(b"\xff")]
    for name in given_names:
        write(store, name)
    assert names(store) == sorted(given_names, key=os.fsencode)


letters = st.text(alphabet="a-0/é", min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(letters, max_size=8), letters)
def test_a_listing_is_the_sorted_names_after_one_and_below_another(
    tmp_path_factory: pytest.TempPathFactory, wanted: set[str], other: str
) -> None:
    store = DirectoryStore(str(tmp_path_factory.mktemp("root")))
    made = set()
    for name in wanted:
        try:
            put(store, name, b"x")
        except (UsageError, LocalIOError, NotFound):
            continue  # no proper name, or a file where a folder must be
        made.add(name)
    prefixes = {name[:length] for name in {*made, other, "a/0/a"} for length in range(len(name) + 1)}
    for prefix in prefixes:
        for below, after in ((prefix, ""), ("", prefix), (prefix, other), (other[:1], prefix)):
            expected = [n for n in made if n.startswith(below) and os.fsencode(n) > os.fsencode(after)]
            assert names(store, below, after) == sorted(expected, key=os.fsencode)


def test_a_root_that_is_not_there_has_no_objects(store: DirectoryStore) -> None:
    assert names(store) == []


def test_links_are_followed_but_not_into_themselves(store: DirectoryStore) -> None:
    blob = write(store, "blobs/1", b"weights")
    os.makedirs(os.path.join(store.root, "snapshot"))
    os.symlink(blob, os.path.join(store.root, "snapshot/model"))
    os.symlink(store.root, os.path.join(store.root, "snapshot/up"))
    os.symlink("nothing", os.path.join(store.root, "dangling"))
    os.symlink("itself", os.path.join(store.root, "itself"))
    assert names(store) == ["blobs/1", "snapshot/model"]
    assert store.head("snapshot/model").size == 7


def test_links_between_folders_do_not_multiply_without_bound(store: DirectoryStore) -> None:
    for number in range(12):
        write(store, f"{number}/file")
        for other in range(12):
            if other != number:
                os.symlink(f"../{other}", os.path.join(store.root, f"{number}/to-{other}"))
    assert len(names(store)) <= 12 * 16


def test_special_files_are_no_objects_and_nothing_waits_for_them(store: DirectoryStore) -> None:
    write(store, "file")
    os.mkfifo(os.path.join(store.root, "fifo"))
    assert names(store) == ["file"]
    for name in ("fifo", ".", "..", "../root/file", "/etc/passwd", "", "file/", "a\0b", "\ud800", "x" * 300):
        with pytest.raises(NotFound):
            store.head(name)
        with pytest.raises(NotFound):
            store.reader().read(name, 0, 1, lambda block: None)


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_a_shorter_listing(store: DirectoryStore) -> None:
    """A process of its own, without root's rights."""
    write(store, "a/b")
    os.chmod(os.path.join(store.root, "a"), 0)
    code = (
        "import os, sys\n"
        "from stager.store.directory import DirectoryStore\n"
        "if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n"
        "try: list(DirectoryStore('.').list())\n"
        "except Exception as exc: print(type(exc).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=store.root,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        timeout=60,
    )
    assert done.stdout == "AccessDenied\n", done.stderr


# Reading


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 3 * BLOCK + 5), (7, 2 * BLOCK), (3 * BLOCK + 4, 1), (9, 0)]
)
def test_a_range_is_exactly_that(store: DirectoryStore, offset: int, length: int) -> None:
    content = os.urandom(3 * BLOCK + 5)
    write(store, "file", content)
    got = bytearray()
    sizes = []

    def sink(block: memoryview) -> None:
        got.extend(block)
        sizes.append(len(block))

    stored = store.reader().read("file", offset, length, sink, etag=store.head("file").etag)
    assert bytes(got) == content[offset : offset + length]
    assert stored == store.head("file")
    assert all(0 < size <= BLOCK for size in sizes)


def test_a_range_past_the_end_gives_nothing(store: DirectoryStore) -> None:
    write(store, "file", b"12345")
    with pytest.raises(RemoteError, match="5 bytes"):
        store.reader().read("file", 3, 3, lambda block: pytest.fail("bytes of another range"))


def changed_in_place(path: Path) -> None:
    path.write_bytes(b"shorter")


def changed_by_rename(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.rename(other, path)


@pytest.mark.parametrize("change", [changed_in_place, changed_by_rename])
def test_another_version_is_not_read(store: DirectoryStore, change: Callable[[Path], None]) -> None:
    path = write(store, "file", bytes(BLOCK))
    etag = store.head("file").etag
    change(path)
    with pytest.raises(ObjectChanged):
        store.reader().read("file", 0, 3, lambda block: pytest.fail("bytes of another version"), etag=etag)


def test_a_change_while_it_is_read_is_noticed(store: DirectoryStore) -> None:
    path = write(store, "file", bytes(3 * BLOCK))

    def sink(block: memoryview) -> None:
        os.utime(path, ns=(0, 0))

    with pytest.raises(ObjectChanged, match="while"):
        store.reader().read("file", 0, 3 * BLOCK, sink)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(store: DirectoryStore) -> None:
    path = write(store, "file", bytes(3 * BLOCK))
    with pytest.raises(ObjectChanged):
        store.reader().read("file", 0, 3 * BLOCK, lambda block: os.truncate(path, BLOCK))


def test_a_file_replaced_by_rename_while_it_is_read_stays_what_it_was(store: DirectoryStore) -> None:
    content = os.urandom(3 * BLOCK)
    path = write(store, "file", content)
    got = bytearray()

    def sink(block: memoryview) -> None:
        got.extend(block)
        if len(got) == BLOCK:
            changed_by_rename(path)

    store.reader().read("file", 0, 3 * BLOCK, sink, etag=store.head("file").etag)
    assert bytes(got) == content


def test_a_read_is_interrupted_between_two_blocks_and_the_reader_reads_on(store: DirectoryStore) -> None:
    content = os.urandom(3 * BLOCK)
    write(store, "file", content)
    reader = store.reader()
    reader.interrupt()  # nothing is under way
    got = bytearray()

    def sink(block: memoryview) -> None:
        got.extend(block)
        other = threading.Thread(target=reader.interrupt)
        other.start()
        other.join()

    with pytest.raises(Interrupted):
        reader.read("file", 0, len(content), sink)
    assert len(got) == BLOCK
    got.clear()
    reader.interrupt()
    reader.read("file", 0, len(content), got.extend)
    assert bytes(got) == content


def test_what_a_sink_raises_comes_out(store: DirectoryStore) -> None:
    write(store, "file", b"12345")
    reader = store.reader()

    def sink(block: memoryview) -> None:
        raise OSError(5, "mine")

    with pytest.raises(OSError, match="mine"):
        reader.read("file", 0, 5, sink)
    got = bytearray()
    reader.read("file", 0, 5, got.extend)
    assert got == b"12345"


def test_many_reads_leave_no_descriptor_behind(store: DirectoryStore) -> None:
    write(store, "file", b"12345")
    reader = store.reader()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        reader.read("file", 0, 5, lambda block: None)
        with pytest.raises(ObjectChanged):
            reader.read("file", 0, 5, lambda block: None, etag="other")
    assert len(os.listdir("/proc/self/fd")) == before


# Uploading


@pytest.mark.parametrize("size", [0, 1, PART_SIZE, 2 * PART_SIZE + 5])
def test_an_upload_appears_whole(store: DirectoryStore, size: int) -> None:
    content = os.urandom(size)
    upload = store.upload("a/b/file", size)
    assert upload.parts == ()
    for number, at in enumerate(range(0, max(size, 1), upload.part_size), start=1):
        data = memoryview(content)[at : at + upload.part_size]
        made = upload.part(number, data)
        assert (made.number, made.size, made.crc64) == (number, len(data), fastcrc.crc64.xz(bytes(data)))
        assert names(store) == []
    stored = upload.complete()
    upload.abort()  # harmless now
    assert Path(store.root, "a/b/file").read_bytes() == content
    assert stored == store.head("a/b/file")
    assert everything(store.root) == ["a/b/file"]


def test_parts_that_are_not_of_the_plan_and_missing_ones_are_refused(store: DirectoryStore) -> None:
    upload = store.upload("file", PART_SIZE + 5)
    for number, size in ((0, 5), (1, 5), (2, 6), (3, 5), (3, 0)):
        with pytest.raises(ValueError):
            upload.part(number, memoryview(bytes(size)))
    upload.part(2, memoryview(bytes(5)))
    with pytest.raises(ValueError):
        upload.complete()
    assert names(store) == []


def test_a_part_sent_twice_counts_as_last_sent(store: DirectoryStore) -> None:
    upload = store.upload("file", 3)
    upload.part(1, memoryview(b"bad"))
    upload.part(1, memoryview(b"new"))
    upload.complete()
    assert Path(store.root, "file").read_bytes() == b"new"


def test_each_block_is_paced_before_it_is_written(store: DirectoryStore) -> None:
    upload = store.upload("file", 2 * BLOCK + 5)
    paced: list[int] = []
    upload.part(1, memoryview(bytes(2 * BLOCK + 5)), pace=paced.append)
    assert paced == [BLOCK, BLOCK, 5]

    def stop(size: int) -> None:
        raise OSError(5, "mine")

    with pytest.raises(OSError, match="mine"):
        upload.part(1, memoryview(bytes(2 * BLOCK + 5)), pace=stop)
    with pytest.raises(ValueError):
        upload.complete()  # the part is not there any more


def test_an_upload_replaces_unless_told_not_to(store: DirectoryStore) -> None:
    put(store, "file", b"old")
    with pytest.raises(ObjectExists):
        store.upload("file", 3, replace=False)
    put(store, "file", b"new")
    assert Path(store.root, "file").read_bytes() == b"new"


def test_an_object_that_came_meanwhile_is_not_replaced(store: DirectoryStore) -> None:
    upload = store.upload("file", 3, replace=False)
    upload.part(1, memoryview(b"new"))
    put(store, "file", b"old")
    with pytest.raises(ObjectExists):
        upload.complete()
    assert Path(store.root, "file").read_bytes() == b"old"
    assert everything(store.root) == ["file"]


def test_an_upload_goes_on_where_a_killed_process_left_it(store: DirectoryStore) -> None:
    content = os.urandom(2 * PART_SIZE + 5)
    Path(store.root).mkdir()
    Path(store.root, "content").write_bytes(content)
    code = (
        "import os, signal\n"
        "from stager.store.directory import DirectoryStore\n"
        "content = memoryview(open('content', 'rb').read())\n"
        "upload = DirectoryStore('.').upload('a/file', len(content))\n"
        "upload.part(1, content[: upload.part_size])\n"
        "def pace(size):\n"
        "    global blocks\n"
        "    blocks += 1\n"
        "    if blocks == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "blocks = 0\n"
        "upload.part(2, content[upload.part_size : 2 * upload.part_size], pace=pace)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=store.root,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        timeout=60,
    )
    assert done.returncode == -9
    upload = store.upload("a/file", len(content), resume=True)
    assert [(part.number, part.crc64) for part in upload.parts] == [
        (1, fastcrc.crc64.xz(content[:PART_SIZE]))
    ]
    upload.part(2, memoryview(content)[PART_SIZE : 2 * PART_SIZE])
    upload.part(3, memoryview(content)[2 * PART_SIZE :])
    upload.complete()
    assert Path(store.root, "a/file").read_bytes() == content
    assert everything(store.root) == ["a/file", "content"]


def test_without_resume_an_upload_begins_anew(store: DirectoryStore) -> None:
    upload = store.upload("file", PART_SIZE + 1)
    upload.part(1, memoryview(bytes(PART_SIZE)))
    del upload
    assert store.upload("file", PART_SIZE + 1, resume=False).parts == ()
    assert store.upload("file", PART_SIZE + 1, resume=True).parts == ()


def test_the_very_upload_that_was_listed_goes_on(store: DirectoryStore) -> None:
    def leave(content: bytes) -> str:
        store.upload("file", PART_SIZE + 1).part(1, memoryview(content))
        [listed] = store.unfinished()
        return listed.upload_id

    mine = leave(bytes(PART_SIZE))
    assert len(store.upload("file", PART_SIZE + 1, resume=mine).parts) == 1
    assert leave(b"x" * PART_SIZE) != mine
    assert store.upload("file", PART_SIZE + 1, resume=mine).parts == ()


def test_what_ended_uploads_left_is_discarded_and_what_a_running_one_holds_is_not(
    store: DirectoryStore,
) -> None:
    left = [store.upload("file", 3) for _ in range(4)]
    near = store.upload("file2", 3)
    running = left.pop(1)
    del left, near
    assert everything(store.root) == [
        ".file.1.part", ".file.2.part", ".file.3.part", ".file.part", ".file2.part"
    ]  # fmt: skip
    upload = store.upload("file", 3, discard=True)
    upload.part(1, memoryview(b"new"))
    upload.complete()
    running.part(1, memoryview(b"old"))
    running.complete()
    assert Path(store.root, "file").read_bytes() == b"old"
    assert everything(store.root) == [".file2.part", "file"]


def test_the_age_is_that_of_the_last_change_and_never_negative(store: DirectoryStore) -> None:
    path = write(store, "file")
    os.utime(path, (0, time.time() - 1000))
    age = store.head("file").age
    assert age is not None
    assert 1000 <= age < 1900
    os.utime(path, (0, time.time() + 1000))
    assert store.head("file").age == 0.0


def test_two_uploads_of_one_name_do_not_mix(store: DirectoryStore) -> None:
    first, second = store.upload("file", 3), store.upload("file", 3, resume=True)
    first.part(1, memoryview(b"one"))
    second.part(1, memoryview(b"two"))
    first.complete()
    assert Path(store.root, "file").read_bytes() == b"one"
    second.complete()
    assert Path(store.root, "file").read_bytes() == b"two"
    assert everything(store.root) == ["file"]


def test_a_run_that_ended_between_link_and_unlink_does_no_harm(store: DirectoryStore) -> None:
    path = write(store, "file", b"whole")
    os.link(path, os.path.join(store.root, ".file.part"))
    upload = store.upload("file", 3)
    upload.part(1, memoryview(b"new"))
    assert path.read_bytes() == b"whole"
    upload.complete()
    assert path.read_bytes() == b"new"
    assert everything(store.root) == ["file"]


def test_a_part_that_is_completed_before_it_is_locked_is_left_alone(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other upload ends just between the opening of its file here and the lock."""
    first = store.upload("file", 3)
    first.part(1, memoryview(b"one"))
    lock = fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.undo()
        first.complete()
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = store.upload("file", 3)
    second.part(1, memoryview(b"tw0"))
    assert Path(store.root, "file").read_bytes() == b"one"
    second.complete()
    assert Path(store.root, "file").read_bytes() == b"tw0"


def test_what_a_longer_upload_left_does_not_lengthen_a_shorter_one(store: DirectoryStore) -> None:
    longer = store.upload("file", 2 * PART_SIZE)
    for number in (1, 2):
        longer.part(number, memoryview(bytes(PART_SIZE)))
    del longer
    shorter = store.upload("file", PART_SIZE + 1, resume=True)
    shorter.part(2, memoryview(b"x"))
    assert shorter.complete().size == PART_SIZE + 1


@pytest.mark.parametrize("replace", [False, True])
def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_answer(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    upload = store.upload("a/b/file", 3, replace=replace)
    upload.part(1, memoryview(b"new"))
    done: list[str] = []

    def noted(name: str) -> None:
        call = getattr(os, name)

        def noting(*args: object, **more: object) -> object:
            what = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1])
            done.append(f"{name} {os.path.relpath(what, store.root)}")
            return call(*args, **more)

        monkeypatch.setattr(os, name, noting)

    for name in ("fsync", "rename", "link"):
        noted(name)
    upload.complete()
    named = "rename" if replace else "link"
    assert done == ["fsync a/b/.file.part", f"{named} a/b/file", "fsync a/b", "fsync a", "fsync ."]


def test_an_aborted_upload_leaves_nothing(store: DirectoryStore) -> None:
    upload = store.upload("file", 3)
    upload.part(1, memoryview(b"new"))
    upload.abort()
    upload.abort()
    assert everything(store.root) == []


def test_the_longest_name_can_be_uploaded(store: DirectoryStore) -> None:
    name = "é" * 127 + "x"
    put(store, name, b"new")
    assert names(store) == [name]


@pytest.mark.parametrize("name", ["", ".", "../x", "/x", "a//b", "a/", ".x.part", "a\0"])
def test_names_that_cannot_be_are_refused(store: DirectoryStore, name: str) -> None:
    with pytest.raises(UsageError):
        store.upload(name, 1)
    with pytest.raises(UsageError):
        store.delete([name])


def test_nothing_is_changed_through_a_symlinked_folder(store: DirectoryStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    Path(store.root).mkdir()
    os.symlink(outside, os.path.join(store.root, "link"))
    assert names(store) == ["link/file"]
    for act in (lambda: put(store, "link/file", b"new"), lambda: store.delete(["link/file"])):
        with pytest.raises(AccessDenied, match="symlink"):
            act()
    os.symlink(outside / "file", os.path.join(store.root, "soft"))
    put(store, "soft", b"new")  # the link is replaced, not what it leads to
    assert not os.path.islink(os.path.join(store.root, "soft"))
    assert everything(str(outside)) == ["file"]
    assert (outside / "file").read_bytes() == b"mine"


def test_a_planted_part_is_not_followed(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    Path(store.root).mkdir()
    os.symlink(tmp_path / "precious", os.path.join(store.root, ".file.part"))
    with pytest.raises(LocalIOError):
        put(store, "file", b"new")
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_root_that_is_a_symlink_is_written_to(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", store.root)
    put(store, "a/file", b"new")
    assert (tmp_path / "real/a/file").read_bytes() == b"new"


# Deleting


def test_folders_that_are_not_empty_are_not_asked_to_go(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/b/one", "a/two"):
        write(store, name)
    asked: list[str] = []
    remove = os.rmdir
    monkeypatch.setattr(os, "rmdir", lambda path: (asked.append(path), remove(path)))
    store.delete(["a/b/one"])
    assert asked == [os.path.join(store.root, "a/b")]


def test_delete_removes_objects_and_the_folders_they_leave_empty(store: DirectoryStore) -> None:
    for name in ("a/b/c/1", "a/2", "3"):
        write(store, name)
    store.delete(["a/b/c/1", "nothing", "3/nothing", "a"])
    assert names(store) == ["3", "a/2"]
    assert not os.path.exists(os.path.join(store.root, "a/b"))
    store.delete(["3", "a/2"])
    assert os.listdir(store.root) == []
