"""The folder of a fetch on real filesystems: part files, journal, lock, and that nothing outside is ever touched."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stager.core.checksum import crc64
from stager.core.errors import AccessDenied, LocalIOError, ResourceRefused, StagerError
from stager.core.journal import Begun, Done, Journal, Part, Whole
from stager.core.pieces import Piece, Pieces
from stager.node import parts as parts_module
from stager.node import syscalls
from stager.node.beneath import Beneath
from stager.node.parts import Target
from tests.harness import MIB, ROOT, STRANGER, Box, cold, mounted, resident

KIB = 1 << 10


def quiet(_count: int) -> None:
    """A checkpoint that wants nothing."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    one = Target(str(tmp_path / "models" / "r1"))
    one.prepare()
    yield one
    one.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the target's; whatever a test does, it stays as it is."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "secret", folder / "deep" / "secret"):
        path.write_bytes(b"keep me")

    def state() -> list[tuple[str, bytes, int]]:
        return [
            (str(p), p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()
        ]

    before = state()
    yield folder
    assert state() == before


def place_of(target: Target, path: str = "") -> Path:
    return Path(target.folder, path)


def fill(target: Target, path: str, content: bytes, step: int = 64 * KIB) -> list[Piece]:
    """Write `content` piece by piece into the part file of `path` and note it, without finishing."""
    target.append(Begun(path, len(content), "E"))
    part = target.part(path, len(content), fresh=True)
    noted = []
    for at in range(0, len(content), step):
        block = content[at : at + step]
        part.write(memoryview(block), at)
        noted.append(Piece(at, len(block), crc64(block)))
        target.append(Done(path, "E", noted[-1]))
    part.close()
    return noted


# The folder


def test_it_makes_the_folder_and_those_above(tmp_path: Path) -> None:
    target = Target(str(tmp_path / "a/b/c"))
    assert not target.exists()
    assert target.free() > 0
    assert target.size() >= target.free()
    target.prepare()
    target.prepare()
    assert target.exists()
    assert (tmp_path / "a/b/c/.stager").is_dir()
    target.close()
    target.close()


def test_the_folder_may_be_a_symlink_but_nothing_in_it(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    target = Target(str(tmp_path / "link"))
    target.prepare()
    target.part("a", 3, fresh=True).finish()
    assert (tmp_path / "real/a").stat().st_size == 3
    shutil.rmtree(tmp_path / "real/.stager")
    (tmp_path / "real/.stager").symlink_to(outside)
    for act in (target.prepare, target.try_lock, target.read_journal):
        with pytest.raises(LocalIOError, match=r"\.stager` is a symlink"):
            act()
    target.close()


@pytest.mark.parametrize("below", ["", "/sub"])
def test_a_file_where_the_folder_should_be(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalIOError, match="not a folder") as refused:
        Target(f"{tmp_path}/file{below}").prepare()
    assert refused.value.hint


@pytest.mark.root
def test_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code = f"""
import os
from stager.core.errors import StagerError
from stager.node.parts import Target
os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER})
try:
    Target({str(tmp_path)!r} + "/new").prepare()
except StagerError as error:
    print(type(error).__name__, error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.startswith(AccessDenied.__name__), done
    assert "new" in done.stdout


@pytest.mark.root
def test_room_and_kind_of_filesystems(tmp_path: Path) -> None:
    for kind, options, room in (("tmpfs", "size=8m", 8 * MIB), ("ramfs", "", 1 << 62)):
        point = tmp_path / kind
        point.mkdir()
        with mounted(kind, "none", str(point), options):
            target = Target(str(point / "not/yet"))
            assert (target.filesystem(), target.free()) == (kind, room)
            target.close()


WRITING: dict[str, Callable[[Target], object]] = {
    "append": lambda target: target.append(Begun("a", 1, "E")),
    "rewrite": lambda target: target.rewrite(Journal()),
    "write_small": lambda target: target.write_small("x", b"x"),
    "part": lambda target: target.part("x", 1, fresh=True),
    "remove": lambda target: target.remove("whole"),
}


@pytest.mark.root
@pytest.mark.parametrize("own", [False, True], ids=["never filled", "filled before"])
def test_a_read_only_mount_is_an_error_only_for_what_must_write(tmp_path: Path, own: bool) -> None:
    point = tmp_path / "m"
    point.mkdir()
    with mounted("tmpfs", "none", str(point), "size=8m"):
        if own:
            first = Target(str(point))
            first.prepare()
            assert first.try_lock() is None
            first.append(Begun("a", 1, "E"))
            first.close()
        (point / "whole").write_bytes(b"12345")
        subprocess.run(["mount", "-o", "remount,ro", str(point)], check=True)
        target = Target(str(point))
        target.prepare()
        assert target.read_only
        assert target.try_lock() is None
        assert target.locks == ()
        assert ("a" in target.read_journal().parts) is own
        assert target.crc_of("whole", quiet) == crc64(b"12345")
        assert list(target.names()) == ["whole"]
        for name, act in WRITING.items():
            with pytest.raises(LocalIOError, match="EROFS"):
                act(target)
            assert (point / "whole").exists(), name
        target.close()
        with pytest.raises(LocalIOError, match="EROFS"):
            Target(str(point / "new")).prepare()


def test_a_folder_that_can_be_written_is_not_read_only(target: Target) -> None:
    assert not target.read_only


@pytest.mark.root
def test_the_folder_of_somebody_else(box: Box) -> None:
    mine = Target(box.path("m"))
    mine.prepare()
    assert mine.try_lock() is None
    mine.append(Begun("a", 1, "E"))
    mine.close()
    code = f"""
import os
from stager.core.errors import AccessDenied
from stager.node.parts import Target
os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER})
target = Target({mine.folder!r})
target.prepare()
print(target.read_only, target.try_lock(), list(target.read_journal().parts))
try:
    target.write_small("x", b"x")
except AccessDenied as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    said = done.stdout.splitlines()
    assert said[:1] == ["True None ['a']"], done
    assert "EACCES" in said[1]


# One fetch at a time


HOLDER = """
import sys, time
from stager.node.parts import Target
target = Target(sys.argv[1])
print(target.try_lock(), flush=True)
time.sleep(60)
"""


def test_who_holds_the_folder_is_named_and_gone_when_killed(target: Target) -> None:
    words = [sys.executable, "-c", HOLDER, target.folder]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "None\n"
            assert target.try_lock() == f"process {holder.pid} on {os.uname().nodename}"
            assert not target.unlocked
        finally:
            holder.kill()
    assert target.try_lock() is None
    other = Target(target.folder)
    assert str(os.getpid()) in str(other.try_lock())
    target.close()
    assert other.try_lock() is None
    other.close()


def test_a_filesystem_without_locks_keeps_nobody_out_and_says_so(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No filesystem of a plain node lacks flock(2), so the kernel's answer is put in."""

    def refuse(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(parts_module.fcntl, "flock", refuse)
    assert target.try_lock() is None
    assert target.unlocked


def test_a_lock_file_that_is_somebody_elses_too_is_not_written(target: Target, outside: Path) -> None:
    os.link(outside / "secret", place_of(target, ".stager/fetch.lock"))
    assert target.try_lock() is None
    other = Target(target.folder)
    assert other.try_lock() is not None
    other.close()


# The journal


def test_what_threads_append_is_all_there(target: Target) -> None:
    assert target.read_journal() == Journal()
    target.append(Begun("a", 3200, "E"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: target.append(Done("a", "E", Piece(at * 10, 10, at))), range(320)))
    assert len(target.read_journal().parts["a"].pieces) == 320


def test_a_torn_line_costs_nothing_after_it(target: Target) -> None:
    target.append(Begun("a", 10, "E"))
    target.close()
    with place_of(target, ".stager/fetch.journal").open("ab") as file:
        file.write(b'["done","a","E",0,')
    target.append(Done("a", "E", Piece(0, 5, 1)))
    assert target.read_journal() == Journal({"a": Part(10, "E", [Piece(0, 5, 1)])})


def test_it_is_replaced_and_goes_on(target: Target) -> None:
    target.append(Begun("gone", 10, "E"))
    whole = Whole("\udcff", 1, "E", 2, 3, 4)
    target.rewrite(Journal(whole={whole.path: whole}))
    target.append(Begun("b", 1, "E"))
    assert target.read_journal() == Journal({"b": Part(1, "E")}, {whole.path: whole})
    assert sorted(os.listdir(place_of(target, ".stager"))) == ["fetch.journal"]


def test_a_journal_with_another_name_is_copied_not_written(target: Target, tmp_path: Path) -> None:
    """As after ``cp -al`` of the folder."""
    target.append(Begun("a", 10, "E"))
    target.close()
    os.link(place_of(target, ".stager/fetch.journal"), tmp_path / "copy")
    before = (tmp_path / "copy").read_bytes()
    target.append(Begun("b", 10, "E"))
    assert list(target.read_journal().parts) == ["a", "b"]
    assert (tmp_path / "copy").read_bytes() == before


@pytest.mark.parametrize("name", ["fetch.journal", "fetch.lock"])
def test_own_files_that_are_something_else(target: Target, outside: Path, name: str) -> None:
    def act() -> None:
        if name == "fetch.lock":
            target.try_lock()
        elif own.is_fifo():
            target.read_journal()
        else:
            target.append(Begun("a", 1, "E"))

    own = place_of(target, f".stager/{name}")
    own.symlink_to(outside / "secret")
    with pytest.raises(LocalIOError, match=name):
        act()
    own.unlink()
    os.mkfifo(own)
    with pytest.raises(LocalIOError, match=name):
        act()
    own.unlink()
    own.mkdir()
    with pytest.raises(LocalIOError, match=name):
        act()


def test_a_small_file_is_replaced_whatever_lies_around(target: Target, outside: Path) -> None:
    os.link(outside / "secret", place_of(target, ".stager/manifest.json.new"))
    target.write_small(".stager/manifest.json", b"one")
    place_of(target, ".stager/manifest.json").unlink()
    place_of(target, ".stager/manifest.json").symlink_to(outside / "secret")
    place_of(target, ".stager/manifest.json.new").symlink_to(outside / "secret")
    target.write_small(".stager/manifest.json", b"two")
    assert not place_of(target, ".stager/manifest.json").is_symlink()
    assert place_of(target, ".stager/manifest.json").read_bytes() == b"two"
    place_of(target, "taken").mkdir()
    with pytest.raises(LocalIOError):
        target.write_small("taken", b"x")
    assert not place_of(target, "taken.new").exists()


# Part files


def test_written_from_many_threads_it_becomes_the_file(target: Target) -> None:
    content, step = os.urandom(3 * MIB + 777), 64 * KIB
    part = target.part("sub/deep/m.bin", len(content), fresh=True)
    pieces, lock = Pieces(len(content)), threading.Lock()

    def write(at: int) -> None:
        block = memoryview(content)[at : at + step]
        part.write(block, at)
        part.flush(at, len(block))
        with lock:
            pieces.add(Piece(at, len(block), crc64(block)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, reversed(range(0, len(content), step))))
    assert part.sha256(quiet) == hashlib.sha256(content).hexdigest()
    assert not place_of(target, "sub/deep/m.bin").exists()
    identity = part.finish()
    final = place_of(target, "sub/deep/m.bin")
    assert final.read_bytes() == content
    assert target.stat("sub/deep/m.bin") == identity
    assert (identity.inode, identity.size) == (final.stat().st_ino, len(content))
    assert target.crc_of("sub/deep/m.bin", quiet) == pieces.crc() == crc64(content)
    assert os.listdir(final.parent) == ["m.bin"]
    part.close()


def test_the_umask_counts(target: Target) -> None:
    before = os.umask(0o027)
    try:
        target.part("a", 1, fresh=True).finish()
    finally:
        os.umask(before)
    assert stat.S_IMODE(place_of(target, "a").stat().st_mode) == 0o640


def test_a_reader_of_the_old_file_is_not_disturbed(target: Target) -> None:
    place_of(target, "a").write_bytes(b"old")
    with place_of(target, "a").open("rb") as reader:
        part = target.part("a", 3, fresh=True)
        part.write(memoryview(b"new"), 0)
        part.finish()
        assert reader.read() == b"old"
    assert place_of(target, "a").read_bytes() == b"new"


@pytest.mark.parametrize(("before", "after"), [(100, 100), (100, 40), (40, 100), (100, 0)])
def test_a_part_file_is_gone_on_with_or_begun_afresh(target: Target, before: int, after: int) -> None:
    part = target.part("a", before, fresh=True)
    part.write(memoryview(b"x" * before), 0)
    part.close()
    again = target.part("a", after, fresh=False)
    kept = min(before, after)
    assert place_of(target, "a.part").read_bytes() == b"x" * kept + bytes(after - kept)
    again.close()
    target.part("a", after, fresh=True).close()
    assert place_of(target, "a.part").read_bytes() == bytes(after)


def test_the_longest_name_that_is_placed(target: Target) -> None:
    name = "x" * 250
    target.part(name, 1, fresh=True).finish()
    assert list(target.names()) == [name]


def test_it_is_discarded_or_left(target: Target) -> None:
    target.part("a", 5, fresh=True).close()
    assert list(target.names()) == ["a.part"]
    part = target.part("a", 5, fresh=False)
    part.discard()
    part.discard()
    assert not list(target.names())


def test_check_believes_bytes_and_not_the_journal(target: Target) -> None:
    content = os.urandom(640 * KIB)
    noted = fill(target, "m", content)
    claimed = target.read_journal().parts["m"]
    assert claimed == Part(len(content), "E", noted)
    seen: list[int] = []
    part = target.part("m", len(content), fresh=False)
    assert part.check(claimed.pieces, seen.append) == noted
    assert sum(seen) == len(content)
    with place_of(target, "m.part").open("r+b") as file:
        file.seek(noted[3].offset + 5)
        file.write(bytes([content[noted[3].offset + 5] ^ 1]))
        file.seek(noted[7].offset)
        file.write(bytes(noted[7].length))
    assert part.check(noted, quiet) == [one for at, one in enumerate(noted) if at not in (3, 7)]
    os.truncate(place_of(target, "m.part"), noted[5].end - 1)
    assert part.check(noted, quiet) == [noted[0], noted[1], noted[2], noted[4]]
    with pytest.raises(LocalIOError, match="somebody else changed it"):
        part.finish()
    assert target.stat("m") is None
    part.close()


def test_check_gives_pieces_that_can_be_added(target: Target) -> None:
    content = bytes(100)
    fill(target, "m", content)
    claims = [
        Piece(at, size, crc64(bytes(size)))
        for at, size in ((50, 50), (0, 10), (0, 60), (5, 10), (90, 20), (3, 0))
    ]
    part = target.part("m", 100, fresh=False)
    pieces = Pieces(100)
    for piece in part.check([*claims, Piece(60, 5, 7), Piece(0, 0, 0), Piece(200, 5, 0)], quiet):
        pieces.add(piece)
    assert pieces.done == 10 + 50
    part.close()


def test_a_closed_part_is_never_written_through_a_number_that_is_another_files(target: Target) -> None:
    part = target.part("a", 10, fresh=True)
    with part._use() as fd:
        part.close()
        os.fstat(fd)  # whoever writes at this moment still has it
        with pytest.raises(StagerError, match="closed"):
            part.write(memoryview(b"x"), 0)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    part.close()


def test_the_disk_is_reserved_where_there_is_one(box: Box) -> None:
    target = Target(box.path("m"))
    target.prepare()
    assert target.allocated("a") == 0
    target.part("a", 4 * MIB, fresh=True).close()
    assert target.allocated("a") >= 4 * MIB
    target.close()


def test_drop_leaves_no_pages(box: Box) -> None:
    target = Target(box.path("m"))
    target.prepare()
    size = 4 * MIB + 123
    part = target.part("a", size, fresh=True)
    for at in range(0, size, MIB):
        part.write(memoryview(os.urandom(min(MIB, size - at))), at)
    path = box.path("m/a.part")
    assert resident(path) == size
    for at in range(0, size, MIB + 5):  # where readers were interrupted
        part.drop(at, min(MIB + 5, size - at))
    assert resident(path) < MIB // 4  # a page may be on some processor's list for a moment
    part.finish()
    target.close()


def test_drop_where_the_kernel_lacks_the_call(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """gVisor has no sync_file_range(2); a disk that fails is another matter."""
    target = Target(box.path("m"))
    target.prepare()
    part = target.part("a", MIB, fresh=True)
    part.write(memoryview(os.urandom(MIB)), 0)

    def fail_with(code: int) -> Callable[..., None]:
        def fail(_fd: int, _offset: int, _length: int) -> None:
            raise OSError(code, "")

        return fail

    monkeypatch.setattr(syscalls, "start_writeback", fail_with(errno.ENOSYS))
    monkeypatch.setattr(syscalls, "finish_writeback", fail_with(errno.ENOSYS))
    part.flush(0, MIB)
    part.drop(0, MIB)
    assert resident(box.path("m/a.part")) == 0
    monkeypatch.setattr(syscalls, "finish_writeback", fail_with(errno.EIO))
    with pytest.raises(LocalIOError, match="EIO"):
        part.drop(0, MIB)
    part.close()
    target.close()


# Symlinks, hard links, other kinds


def test_a_linked_part_file_begins_anew(target: Target, outside: Path) -> None:
    for fresh in (True, False):
        for link in (os.symlink, os.link):
            link(outside / "secret", place_of(target, "a.part"))
            part = target.part("a", 7, fresh=fresh)
            assert place_of(target, "a.part").read_bytes() == bytes(7)
            part.write(memoryview(b"written"), 0)
            part.discard()


def test_other_things_in_the_place_of_a_part_file(target: Target) -> None:
    os.mkfifo(place_of(target, "a.part"))
    place_of(target, "b.part").mkdir()
    with pytest.raises(LocalIOError, match=r"a\.part` is not a regular file"):
        target.part("a", 1, fresh=True)
    with pytest.raises(LocalIOError, match=r"b\.part"):
        target.part("b", 1, fresh=True)


def test_other_things_with_the_final_name(target: Target, outside: Path) -> None:
    place_of(target, "link").symlink_to(outside / "secret")
    os.mkfifo(place_of(target, "fifo"))
    place_of(target, "folder").mkdir()
    assert target.stat("none") is None
    assert target.stat("no/such/folder") is None
    for name in ("link", "fifo", "folder"):
        with pytest.raises(LocalIOError, match=name) as refused:
            target.stat(name)
        assert refused.value.hint
        with pytest.raises(LocalIOError, match=f"{name}` is not a regular file"):
            target.part(name, 1, fresh=True)
        with pytest.raises(LocalIOError):
            target.crc_of(name, quiet)
        part = target.part("late", 1, fresh=True)
        os.rename(place_of(target, name), place_of(target, "late"))
        with pytest.raises(LocalIOError, match="late` is not a regular file"):
            part.finish()
        os.rename(place_of(target, "late"), place_of(target, name))
        part.discard()


def test_a_linked_folder_is_not_entered(target: Target, outside: Path) -> None:
    place_of(target, "sub").mkdir()
    place_of(target, "sub/deep").symlink_to(outside / "deep")
    for act in (
        lambda: target.part("sub/deep/new", 1, fresh=True),
        lambda: target.part("sub/deep/er/new", 1, fresh=True),
        lambda: target.stat("sub/deep/secret"),
        lambda: target.crc_of("sub/deep/secret", quiet),
        lambda: target.remove("sub/deep/secret"),
        lambda: target.write_small("sub/deep/secret", b""),
    ):
        with pytest.raises(LocalIOError, match="sub/deep` is a symlink") as refused:
            act()
        assert refused.value.hint
    assert list(target.names()) == ["sub/deep"]
    place_of(target, "file").write_text("")
    with pytest.raises(LocalIOError, match="file` is not a folder"):
        target.part("file/new", 1, fresh=True)


@pytest.mark.parametrize(
    "path", ["../outside/secret", "/etc/hostname", "a/../../outside/secret", "", ".", "a//b", "a\0b"]
)
def test_paths_that_lead_out_are_refused_even_unplaced(target: Target, outside: Path, path: str) -> None:
    for act in (
        lambda: target.stat(path),
        lambda: target.remove(path),
        lambda: target.part(path, 1, fresh=True),
        lambda: target.write_small(path, b""),
        lambda: target.crc_of(path, quiet),
    ):
        with pytest.raises(LocalIOError, match="not a path below"):
            act()


def test_a_folder_that_changes_into_a_symlink_and_back_never_leads_out(target: Target, outside: Path) -> None:
    """One thread swaps the folder and a link to the outside, as fast as it can; the other does everything in it."""
    place_of(target, "sub").mkdir()
    place_of(target, "sub/kept").write_text("")  # or `remove` would take the folder
    place_of(target, "trap").symlink_to(outside)
    sub, trap = (os.fsencode(place_of(target, name)) for name in ("sub", "trap"))
    stop, refused = threading.Event(), 0
    libc = ctypes.CDLL(None)

    def swap() -> None:
        while not stop.is_set():
            assert libc.renameat2(-100, sub, -100, trap, 2) == 0  # AT_FDCWD, RENAME_EXCHANGE

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for turn in range(4000):
            try:
                part = target.part("sub/secret", 5, fresh=True)
                part.write(memoryview(b"wrong"), 0)
                part.finish()
                target.remove("sub/secret")
                list(target.names())
            except StagerError:
                refused += 1
            if turn > 200 and refused > 20:
                break
    finally:
        stop.set()
        swapper.join()
    assert refused, "the race was never run"


# Removing


def test_remove_takes_the_folders_left_empty_and_no_others(target: Target, outside: Path) -> None:
    for name in ("a/b/c/one", "a/b/two", "a/x"):
        place_of(target, name).parent.mkdir(parents=True, exist_ok=True)
        place_of(target, name).write_text("")
    place_of(target, "a/b/c/link").symlink_to(outside / "secret")
    place_of(target, "a/b/c/folder").symlink_to(outside)
    os.mkfifo(place_of(target, "pipe"))
    assert sorted(target.names()) == ["a/b/c/folder", "a/b/c/link", "a/b/c/one", "a/b/two", "a/x"]
    for name in ("a/b/c/folder", "a/b/c/link", "a/b/c/one"):
        target.remove(name)
    assert sorted(target.names()) == ["a/b/two", "a/x"]
    assert not place_of(target, "a/b/c").exists()
    target.remove("a/b/c/one")
    target.remove("a/b/two")
    assert place_of(target, "a/x").exists()
    target.remove("a/x")
    assert sorted(os.listdir(target.folder)) == [".stager", "pipe"]
    place_of(target, "kept").mkdir()
    with pytest.raises(StagerError):
        target.remove("kept")


@pytest.mark.root
def test_what_is_mounted_below_is_not_its_own(target: Target, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("keep me")
    (place_of(target) / "lost+found").mkdir()
    (place_of(target) / "lost+found" / "x").touch()
    (place_of(target) / "mine").touch()
    for kind, what, options in (("none", str(tmp_path / "elsewhere"), "bind"), ("tmpfs", "none", "size=1m")):
        point = place_of(target) / "below"
        point.mkdir(exist_ok=True)
        with mounted(kind, what, str(point), options):
            (point / "precious").write_text("keep me")
            assert list(target.names()) == ["mine"]
            with pytest.raises(LocalIOError, match="another mount"):
                target.remove("below/precious")
            assert (point / "precious").read_text() == "keep me"
    target.remove("below/gone")
    target.remove("gone/too")


def test_only_its_own_folder_at_the_top_is_left_out(target: Target) -> None:
    place_of(target, ".stager/x").write_text("")
    place_of(target, "sub/.stager").mkdir(parents=True)
    place_of(target, "sub/.stager/x").write_text("")
    place_of(target, os.fsdecode(b"\xff")).write_text("")
    assert sorted(target.names()) == ["sub/.stager/x", "\udcff"]


# Full disks


@pytest.mark.root
def test_a_full_tmpfs_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with mounted("tmpfs", "none", str(tmp_path), "size=1m"):
        target = Target(str(tmp_path / "m"))
        target.prepare()
        target.append(Begun("a", 4 * MIB, "E"))
        part = target.part("a", 4 * MIB, fresh=True)
        assert target.allocated("a") == 0, "sparse: the pages come with the bytes"
        with pytest.raises(ResourceRefused, match="ENOSPC") as refused:
            part.write(memoryview(bytes(2 * MIB)), 0)
        assert (refused.value.exit_code, refused.value.hint is not None) == (4, True)
        with pytest.raises(ResourceRefused, match=r"fetch\.journal"):
            target.append(Begun("b" * 9000, 1, "E"))
        with pytest.raises(ResourceRefused):
            target.write_small(".stager/manifest.json", bytes(MIB))
        assert sorted(os.listdir(tmp_path / "m/.stager")) == ["fetch.journal"]
        assert place_of(target, ".stager/fetch.journal").read_bytes()[-9:] == b"b" * 9, "torn"
        part.discard()
        target.append(Done("a", "E", Piece(7, 1, 0)))
        assert target.read_journal() == Journal({"a": Part(4 * MIB, "E", [Piece(7, 1, 0)])})
        target.close()


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes, or mounts again from a copy, a small ext4 in a file: ``ext4("disk")``."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def mount(name: str) -> Path:
            image = tmp_path / f"{name}.img"
            if not image.exists():
                with image.open("wb") as file:
                    file.truncate(48 * MIB)
                subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
            point = tmp_path / name
            point.mkdir()
            # A commit within the test would put on the disk what a power loss is to take.
            stack.enter_context(mounted("ext4", str(image), str(point), "loop,commit=300"))
            return point

        yield mount


@pytest.mark.root
def test_a_full_disk_refuses_before_the_first_byte_and_keeps_what_was_there(
    ext4: Callable[[str], Path],
) -> None:
    target = Target(str(ext4("disk")))
    target.prepare()
    free = target.free()
    assert MIB < free < 48 * MIB
    content = os.urandom(MIB)
    noted = fill(target, "a", content)
    with pytest.raises(ResourceRefused, match=r"a\.part.*ENOSPC"):
        target.part("a", 100 * MIB, fresh=False)
    with pytest.raises(ResourceRefused):
        target.part("b", 100 * MIB, fresh=True)
    assert target.free() > free - 2 * MIB, "what was taken until the disk was full is given back"
    part = target.part("a", MIB, fresh=False)
    assert part.check(noted, quiet) == noted
    part.close()
    target.close()


@pytest.mark.root
def test_after_a_power_loss_finished_files_are_whole_and_pieces_are_not_believed(
    ext4: Callable[[str], Path], tmp_path: Path
) -> None:
    """The disk as it is at that moment: the image copied while mounted, what the kernel still holds in memory not in it.

    The worst order is made on purpose: the journal is forced to the disk, the pieces that it claims are not.
    """
    target = Target(str(ext4("disk")))
    target.prepare()
    content = os.urandom(4 * MIB)
    fill(target, "new/folder/whole", content)
    part = target.part("new/folder/whole", len(content), fresh=False)
    identity = part.finish()
    target.append(
        Whole("new/folder/whole", len(content), "E", crc64(content), identity.inode, identity.mtime_ns)
    )
    noted = fill(target, "partial", content)
    part = target.part("partial", len(content), fresh=False)
    part.drop(0, MIB)
    assert part.check(noted, quiet) == noted, "all there while the power is on"
    assert target._journal is not None
    os.fsync(target._journal)
    shutil.copyfile(tmp_path / "disk.img", tmp_path / "copy.img")
    part.close()
    target.close()

    after = Target(str(ext4("copy")))
    journal = after.read_journal()
    assert journal.parts["partial"].pieces == noted, "the journal made it, and claims everything"
    whole = journal.whole["new/folder/whole"]
    found = after.stat(whole.path)
    assert found is not None
    assert (found.inode, found.mtime_ns, found.size) == (whole.inode, whole.mtime_ns, whole.size)
    assert after.crc_of(whole.path, quiet) == crc64(content)
    part = after.part("partial", len(content), fresh=False)
    believed = part.check(noted, quiet)
    assert len(believed) < len(noted), "something was lost"
    there = place_of(after, "partial.part").read_bytes()
    assert believed == [one for one in noted if there[one.offset : one.end] == content[one.offset : one.end]]
    pieces = Pieces(len(content))
    for piece in believed:
        pieces.add(piece)
    for offset, length in pieces.missing():
        part.write(memoryview(content)[offset : offset + length], offset)
    part.finish()
    assert place_of(after, "partial").read_bytes() == content
    after.close()


@pytest.mark.root
@pytest.mark.parametrize("act", ["finish", "write_small"])
def test_what_was_said_to_be_on_the_disk_is(ext4: Callable[[str], Path], tmp_path: Path, act: str) -> None:
    target, content = Target(str(ext4("disk"))), os.urandom(100 * KIB)
    if act == "finish":
        part = target.part("new/folder/x", len(content), fresh=True)
        part.write(memoryview(content), 0)
        part.finish()
    else:
        target.write_small("new/folder/x", content)
    shutil.copyfile(tmp_path / "disk.img", tmp_path / "copy.img")
    target.close()
    assert (ext4("copy") / "new/folder/x").read_bytes() == content


def test_new_folders_are_on_the_disk_before_what_is_in_them(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ext4 happens to write them with their content; others need to be told."""
    synced = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), target.folder))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    target.part("new/folder/x", 1, fresh=True).finish()
    assert synced == [".", "new", "new/folder/x.part", "new/folder"]


# What it is built on


def test_descriptors_are_given_back(target: Target, outside: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    place_of(target, "link").symlink_to(outside)
    target.append(Begun("a", 1, "E"))
    before = count()
    for _ in range(5):
        part = target.part("a/b/c", 5, fresh=True)
        part.finish()
        target.crc_of("a/b/c", quiet)
        list(target.names())
        target.write_small("x", b"")
        for act in (
            lambda: target.part("link/x", 5, fresh=True),
            lambda: target.stat("a/b/c/d"),
            lambda: target.part("a/b", 5, fresh=True),
        ):
            with pytest.raises(LocalIOError):
                act()
        target.remove("a/b/c")
    other = Target(target.folder)
    assert target.try_lock() is None
    assert other.try_lock() is not None
    other.close()
    assert count() - before == 1, "the lock"


def test_a_folder_opened_again_after_close(target: Target) -> None:
    below = Beneath(target.folder)
    assert below.entries("") == [(".stager", os.stat(place_of(target, ".stager")).st_mode)]
    below.close()
    assert below.entries("none") == []
    below.close()
    below.close()


def test_an_executed_program_does_not_inherit(target: Target) -> None:
    target.append(Begun("a", 1, "E"))
    target.try_lock()
    part = target.part("a", 1, fresh=True)
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.exists(path) and os.path.realpath(path).startswith(target.folder):
            assert fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC, os.readlink(path)
    part.close()


def test_a_cold_file_is_read_from_the_disk(box: Box) -> None:
    path = box.file("m/a", MIB)
    cold(path)
    target = Target(box.path("m"))
    counted: list[int] = []
    assert target.crc_of("a", counted.append) == crc64(Path(path).read_bytes())
    assert sum(counted) == MIB
    target.close()
