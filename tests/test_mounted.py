"""Uploads into a mounted object store: straight to the final name, ascending, with close as the only proof, and resumed by appending."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stager.core.checksum import crc64
from stager.core.errors import (
    LocalIOError,
    ObjectChanged,
    ObjectExists,
    ResourceRefused,
    StagerError,
)
from stager.core.ranges import SMALLEST as PART_SIZE
from stager.store.base import BLOCK
from stager.store.directory import DirectoryStore
from stager.store.directory_upload import DirectoryUpload
from stager.store.mounted import MountedUpload
from stager.store.retry import Retrying
from tests.fuselab.fixtures import FuseMount, MountFactory

MANNERS: dict[str, Any] = {
    "subtype": "ossfs2",
    "writes": "ossfs2",
    "attr_timeout": 0,
    "entry_timeout": 0,
}
REFUSED = {"rename", "copied", "ftruncate", "fallocate", "utimens", "chmod", "fsync"}
SIZE = 2 * PART_SIZE + 5 * BLOCK + 321
CONTENT = (os.urandom(BLOCK + 7) * (SIZE // BLOCK + 1))[:SIZE]


@pytest.fixture
def behind(tmp_path: Path) -> Path:
    """The folder that is the bucket."""
    path = tmp_path / "bucket"
    path.mkdir()
    return path


@pytest.fixture
def mounted(fuse_mount: MountFactory, behind: Path) -> Callable[..., FuseMount]:
    return lambda **options: fuse_mount(source=str(behind), **{**MANNERS, **options})


@pytest.fixture
def plain(behind: Path) -> DirectoryStore:
    """A usual folder written in the same way."""
    return DirectoryStore(str(behind), in_place=True)


def slices(content: bytes, first: int = 1) -> list[tuple[int, memoryview]]:
    """The parts from number `first` on."""
    count = max(1, -(-len(content) // PART_SIZE))
    view = memoryview(content)
    return [(n, view[(n - 1) * PART_SIZE : n * PART_SIZE]) for n in range(first, count + 1)]


def send(store: Any, name: str, content: bytes, **options: bool) -> Any:
    upload = store.upload(name, len(content), **options)
    for number, data in slices(content, len(upload.parts) + 1):
        upload.part(number, data)
    return upload.complete()


def settled(mount: FuseMount) -> dict[str, Any]:
    """What was counted, once the kernel has let go of every handle."""
    end = time.monotonic() + 20
    while True:
        counts = mount.counters()
        if not counts["writers"]:
            return counts
        assert time.monotonic() < end
        time.sleep(0.01)


# What is asked of the mount


@pytest.mark.root
def test_bytes_go_once_to_the_final_name_and_nothing_is_asked_that_such_a_mount_refuses(
    mounted: Callable[..., FuseMount], behind: Path
) -> None:
    mount = mounted()
    store = DirectoryStore(mount.path + "/models/r1")
    send(store, "sub/big", CONTENT)
    send(store, "small", b"x")
    send(store, "empty", b"")
    send(store, "small", b"replaced")
    assert (behind / "models/r1/sub/big").read_bytes() == CONTENT
    assert (behind / "models/r1/small").read_bytes() == b"replaced"
    assert (behind / "models/r1/empty").read_bytes() == b""
    counts = settled(mount)
    assert not REFUSED & counts["writing"].keys()
    assert counts["written"] == {"models/r1/sub/big": SIZE, "models/r1/small": 1 + len(b"replaced")}


@pytest.mark.root
def test_the_mount_below_the_nearest_folder_decides(
    mounted: Callable[..., FuseMount], tmp_path: Path
) -> None:
    there = mounted().path
    assert type(DirectoryStore(there + "/not/there/yet").upload("a", 1)) is MountedUpload
    assert type(DirectoryStore(there, in_place=False).upload("a", 1)) is DirectoryUpload
    other = mounted(subtype="sshfs").path
    assert type(DirectoryStore(other).upload("a", 1)) is DirectoryUpload
    assert type(DirectoryStore(str(tmp_path)).upload("a", 1)) is DirectoryUpload
    assert type(DirectoryStore(str(tmp_path), in_place=True).upload("a", 1)) is MountedUpload


@pytest.mark.root
@pytest.mark.parametrize(("code", "error"), [("ENOSPC", ResourceRefused), ("EIO", LocalIOError)])
def test_an_error_at_close_is_the_uploads_and_nothing_counts_as_there(
    mounted: Callable[..., FuseMount], behind: Path, code: str, error: type[StagerError]
) -> None:
    mount = mounted(close_error=f"{code}:1")
    store = Retrying(
        DirectoryStore(mount.path), give_up_after=60, on_retry=lambda *_: pytest.fail("a local error")
    )
    upload = store.upload("a", SIZE)
    for number, data in slices(CONTENT):
        upload.part(number, data)
    with pytest.raises(error, match=code):
        upload.complete()
    assert not (behind / "a").exists()
    upload.abort()
    send(store, "a", CONTENT)
    assert (behind / "a").read_bytes() == CONTENT


@pytest.mark.root
def test_an_upload_that_is_given_up_leaves_nothing(mounted: Callable[..., FuseMount], behind: Path) -> None:
    upload = DirectoryStore(mounted().path).upload("a", SIZE)
    upload.part(1, memoryview(CONTENT)[:PART_SIZE])
    upload.abort()
    upload.abort()
    assert list(behind.iterdir()) == []


@pytest.mark.root
def test_a_second_writer_is_told_of_the_first(mounted: Callable[..., FuseMount]) -> None:
    store = DirectoryStore(mounted().path)
    first, second = store.upload("a", SIZE), store.upload("a", SIZE)
    first.part(1, memoryview(CONTENT)[:PART_SIZE])
    with pytest.raises(LocalIOError, match="EBUSY") as caught:
        second.part(1, memoryview(CONTENT)[:PART_SIZE])
    assert "another writer" in (caught.value.hint or "")
    for number, data in slices(CONTENT, 2):
        first.part(number, data)
    assert first.complete().size == SIZE


@pytest.mark.root
@pytest.mark.parametrize(
    ("code", "error", "hint"),
    [
        ("EFBIG", LocalIOError, "upload_buffer_size"),
        ("ENOSPC", ResourceRefused, "run it again"),
        ("EDQUOT", ResourceRefused, "run it again"),
    ],
)
def test_a_write_that_fails_says_what_helps(
    mounted: Callable[..., FuseMount], code: str, error: type[StagerError], hint: str
) -> None:
    store = DirectoryStore(mounted(write_error_at=f"a:{PART_SIZE + 5 * BLOCK}:{code}").path)
    upload = store.upload("a", SIZE)
    upload.part(1, memoryview(CONTENT)[:PART_SIZE])
    with pytest.raises(error, match=code) as caught:
        upload.part(2, memoryview(CONTENT)[PART_SIZE : 2 * PART_SIZE])
    assert hint in (caught.value.hint or "")
    del upload
    left = store.upload("a", SIZE, resume=True)
    assert [part.number for part in left.parts] == [1]


@pytest.mark.root
def test_a_mount_whose_daemon_is_gone_is_an_error_at_once(mounted: Callable[..., FuseMount]) -> None:
    mount = mounted()
    store = DirectoryStore(mount.path)
    upload = store.upload("a", SIZE)
    upload.part(1, memoryview(CONTENT)[:PART_SIZE])
    mount.kill()
    with pytest.raises(LocalIOError):
        upload.part(2, memoryview(CONTENT)[PART_SIZE : 2 * PART_SIZE])
    upload.abort()
    with pytest.raises(LocalIOError, match="ENOTCONN"):
        DirectoryStore(mount.path + "/r1").upload("a", SIZE)


# Going on


@pytest.mark.root
def test_a_writer_that_was_killed_is_gone_on_with_and_no_byte_is_written_twice(
    mounted: Callable[..., FuseMount], behind: Path, tmp_path: Path
) -> None:
    mount = mounted()
    (tmp_path / "content").write_bytes(CONTENT)
    code = (
        "import os, signal, sys\n"
        "from stager.store.directory import DirectoryStore\n"
        "content = memoryview(open(sys.argv[2], 'rb').read())\n"
        "upload = DirectoryStore(sys.argv[1]).upload('a', len(content))\n"
        "size = upload.part_size\n"
        "upload.part(1, content[:size])\n"
        "blocks = []\n"
        "def pace(block):\n"
        "    blocks.append(block)\n"
        "    if len(blocks) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "upload.part(2, content[size : 2 * size], pace=pace)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, mount.path, str(tmp_path / "content")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        timeout=60,
    )
    assert done.returncode == -9
    assert settled(mount)["written"] == {"a": PART_SIZE + 3 * BLOCK}
    store = DirectoryStore(mount.path)
    upload = store.upload("a", SIZE, resume=True)
    assert [(part.number, part.crc64) for part in upload.parts] == [(1, crc64(CONTENT[:PART_SIZE]))]
    paced: list[int] = []
    made = [upload.part(number, data, pace=paced.append) for number, data in slices(CONTENT, 2)]
    assert [part.crc64 for part in made] == [crc64(data) for _, data in slices(CONTENT, 2)]
    assert upload.complete().size == SIZE
    assert (behind / "a").read_bytes() == CONTENT
    counts = settled(mount)
    assert counts["written"] == {"a": SIZE}
    assert sum(paced) == SIZE - PART_SIZE - 3 * BLOCK
    assert not REFUSED & counts["writing"].keys()


@pytest.mark.root
@pytest.mark.parametrize("code", ["EPERM", "EINVAL", "EOPNOTSUPP"])
def test_a_mount_that_opens_nothing_to_add_to_begins_anew(
    mounted: Callable[..., FuseMount], behind: Path, code: str
) -> None:
    (behind / "a").write_bytes(CONTENT[: PART_SIZE + 100])
    mount = mounted(append_error=f"open:{code}")
    upload = DirectoryStore(mount.path).upload("a", SIZE, resume=True)
    assert upload.parts == ()
    assert (behind / "a").stat().st_size == PART_SIZE + 100, (
        "nothing is lost before there is something better"
    )
    for number, data in slices(CONTENT):
        upload.part(number, data)
    upload.complete()
    assert (behind / "a").read_bytes() == CONTENT


@pytest.mark.root
@pytest.mark.parametrize("code", ["EINVAL", "ESPIPE", "EBADF"])
def test_a_mount_that_refuses_the_first_added_byte_begins_anew_the_next_time(
    mounted: Callable[..., FuseMount], behind: Path, code: str
) -> None:
    (behind / "a").write_bytes(CONTENT[: PART_SIZE + 100])
    store = DirectoryStore(mounted(append_error=f"write:{code}").path)
    upload = store.upload("a", SIZE, resume=True)
    assert len(upload.parts) == 1
    with pytest.raises(ObjectChanged, match="cannot be added to"):
        upload.part(2, memoryview(CONTENT)[PART_SIZE : 2 * PART_SIZE])
    assert not (behind / "a").exists()
    send(store, "a", CONTENT, resume=True)
    assert (behind / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("there", [0, 1, 100, PART_SIZE, PART_SIZE + 1, 2 * PART_SIZE, SIZE - 1])
def test_what_is_there_is_gone_on_with_wherever_it_ends(
    plain: DirectoryStore, behind: Path, there: int
) -> None:
    (behind / "a").write_bytes(CONTENT[:there])
    upload = plain.upload("a", SIZE, resume=True)
    whole = slices(CONTENT[:there])[: there // PART_SIZE]
    assert [(one.number, one.size, one.crc64) for one in upload.parts] == [
        (number, len(data), crc64(data)) for number, data in whole
    ]
    paced: list[int] = []
    for number, data in slices(CONTENT, len(upload.parts) + 1):
        if len(whole) < number:
            upload.part(number, data, pace=paced.append)
    assert sum(paced) == SIZE - there
    assert upload.complete().size == SIZE
    assert (behind / "a").read_bytes() == CONTENT


def test_what_is_there_and_is_something_else_goes_and_the_next_upload_begins_anew(
    plain: DirectoryStore, behind: Path
) -> None:
    (behind / "a").write_bytes(CONTENT[:PART_SIZE] + b"something else")
    upload = plain.upload("a", SIZE, resume=True)
    assert len(upload.parts) == 1
    with pytest.raises(ObjectChanged, match="something else"):
        upload.part(2, memoryview(CONTENT)[PART_SIZE : 2 * PART_SIZE])
    assert not (behind / "a").exists()
    assert plain.upload("a", SIZE, resume=True).parts == ()


@pytest.mark.parametrize(
    ("there", "options"),
    [
        (CONTENT + b"1", {"resume": True}),
        (CONTENT, {"resume": True}),
        (CONTENT[: PART_SIZE + 9], {}),
        (CONTENT[: PART_SIZE + 9], {"resume": True, "discard": True}),
    ],
    ids=["longer", "whole", "not-resumed", "discarded"],
)
def test_what_cannot_be_gone_on_with_is_written_anew(
    plain: DirectoryStore, behind: Path, there: bytes, options: dict[str, bool]
) -> None:
    (behind / "a").write_bytes(there)
    upload = plain.upload("a", SIZE, **options)
    assert upload.parts == ()
    other = CONTENT[::-1]
    for number, data in slices(other):
        upload.part(number, data)
    upload.complete()
    assert (behind / "a").read_bytes() == other


@pytest.mark.parametrize(
    ("there", "shorter"), [(PART_SIZE + 9, False), (PART_SIZE + 9, True), (SIZE - 1, True)]
)
def test_what_changes_while_it_is_looked_at_is_written_anew(
    plain: DirectoryStore, behind: Path, monkeypatch: pytest.MonkeyPatch, there: int, shorter: bool
) -> None:
    (behind / "a").write_bytes(CONTENT[:there])
    read, opened = os.preadv, os.open

    def shortened(fd: int, buffers: Any, offset: int) -> int:
        if shorter:
            os.truncate(behind / "a", PART_SIZE - 1)
        return read(fd, buffers, offset)

    def lengthened(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_APPEND and not shorter:
            with open(behind / "a", "ab") as file:
                file.write(b"x")
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "preadv", shortened)
    monkeypatch.setattr(os, "open", lengthened)
    upload = plain.upload("a", SIZE, resume=True)
    monkeypatch.undo()
    assert upload.parts == ()
    for number, data in slices(CONTENT):
        upload.part(number, data)
    upload.complete()
    assert (behind / "a").read_bytes() == CONTENT


def test_a_part_that_its_pace_ended_goes_on_where_it_was(plain: DirectoryStore, behind: Path) -> None:
    upload = plain.upload("a", SIZE)
    assert not upload.concurrent
    paced: list[int] = []

    def pace(size: int) -> None:
        if len(paced) == 5:
            paced.append(0)
            raise KeyboardInterrupt
        paced.append(size)

    with pytest.raises(KeyboardInterrupt):
        upload.part(1, memoryview(CONTENT)[:PART_SIZE], pace=pace)
    for number, data in slices(CONTENT):
        upload.part(number, data, pace=pace)
    upload.complete()
    assert sum(paced) == SIZE
    assert (behind / "a").read_bytes() == CONTENT


@pytest.mark.root
@pytest.mark.parametrize("when", ["open", "write"])
def test_a_mount_in_trouble_keeps_what_is_there(
    mounted: Callable[..., FuseMount], behind: Path, when: str
) -> None:
    (behind / "a").write_bytes(CONTENT[: PART_SIZE + 100])
    store = DirectoryStore(mounted(append_error=f"{when}:ENOSPC").path)
    with pytest.raises(ResourceRefused):
        store.upload("a", SIZE, resume=True).part(2, memoryview(CONTENT)[PART_SIZE : 2 * PART_SIZE])
    assert (behind / "a").stat().st_size == PART_SIZE + 100


# What was there, and what is not


def test_what_was_there_stays_until_the_first_byte(plain: DirectoryStore, behind: Path) -> None:
    (behind / "a").write_bytes(b"old")
    for options in ({}, {"discard": True}):
        upload = plain.upload("a", SIZE, **options)
        upload.abort()
        assert (behind / "a").read_bytes() == b"old"


def test_an_object_that_came_meanwhile_is_not_replaced(plain: DirectoryStore, behind: Path) -> None:
    upload, empty = plain.upload("a", 3, replace=False), plain.upload("a", 0, replace=False)
    (behind / "a").write_bytes(b"old")
    with pytest.raises(ObjectExists):
        upload.part(1, memoryview(b"new"))
    with pytest.raises(ObjectExists):
        empty.complete()
    for one in (upload, empty):
        one.abort()
    assert (behind / "a").read_bytes() == b"old"


def test_nothing_is_written_through_a_link(plain: DirectoryStore, behind: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"old")
    (behind / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StagerError, match="ELOOP"):
        plain.upload("a", 9, resume=True)
    with pytest.raises(StagerError, match="ELOOP"):
        send(plain, "a", b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"old"


def test_a_mount_that_shows_something_else_after_close_is_not_believed(
    plain: DirectoryStore, behind: Path
) -> None:
    def shortened() -> None:
        os.truncate(behind / "a", 5)

    def gone() -> None:
        os.unlink(behind / "a")

    for change, words in ((shortened, "5 bytes"), (gone, "nothing")):
        upload = plain.upload("a", SIZE)
        for number, data in slices(CONTENT):
            upload.part(number, data)
        change()
        with pytest.raises(LocalIOError, match=words):
            upload.complete()
        upload.abort()
        assert not (behind / "a").exists()


def test_parts_out_of_order_and_missing_ones_are_refused(plain: DirectoryStore) -> None:
    upload = plain.upload("a", SIZE)
    view = memoryview(CONTENT)
    with pytest.raises(ValueError):
        upload.part(2, view[PART_SIZE : 2 * PART_SIZE])
    with pytest.raises(ValueError):
        upload.part(1, view[: PART_SIZE - 1])
    upload.part(1, view[:PART_SIZE])
    with pytest.raises(ValueError):
        upload.part(1, view[:PART_SIZE])
    with pytest.raises(ValueError):
        upload.complete()


def test_no_descriptor_stays_open(plain: DirectoryStore, behind: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        send(plain, "a", CONTENT[:100])
        upload = plain.upload("b", SIZE)
        upload.part(1, memoryview(CONTENT)[:PART_SIZE])
        del upload
        left = plain.upload("b", SIZE, resume=True)
        left.abort()
        del left
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_a_disk_that_is_full_is_said_to_be_so(tmp_path: Path) -> None:
    """The usual way of writing agrees."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)], check=True)
    try:
        for in_place in (False, True):
            store = DirectoryStore(str(small), in_place=in_place)
            upload = store.upload("a", SIZE)
            with pytest.raises(ResourceRefused, match=errno.errorcode[errno.ENOSPC]):
                upload.part(1, memoryview(CONTENT)[:PART_SIZE])
            upload.abort()
            assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
