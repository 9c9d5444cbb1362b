"""Part files when things end badly: the power at any step, a worker that outlives its fetch, a filesystem that can do less."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stager.core.checksum import crc64
from stager.core.errors import LocalIOError, ResourceRefused, StagerError
from stager.core.journal import Begun, Done, Journal, Whole
from stager.core.pieces import Piece, Pieces
from stager.node import syscalls
from stager.node.partfile import OpenParts
from stager.node.parts import Target
from tests.harness import MIB, ROOT, mounted, until

KIB = 1 << 10
STEP = 64 * KIB
_NAMES = ("a", "sub/deep/b")


def quiet(_count: int) -> None:
    """A checkpoint that wants nothing."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    one = Target(str(tmp_path / "m"))
    one.prepare()
    yield one
    one.close()


def write(target: Target, path: str, content: bytes, etag: str, *, until_at: int | None = None) -> None:
    """What a fetch does with `path`: goes on with what can be proven, up to byte `until_at`, and notes every piece."""
    known = target.read_journal().parts.get(path)
    fresh = known is None or (known.size, known.etag) != (len(content), etag)
    if fresh:
        target.append(Begun(path, len(content), etag))
    part, pieces = target.part(path, len(content), fresh=fresh), Pieces(len(content))
    for piece in part.check(known.pieces if known is not None and not fresh else [], quiet):
        pieces.add(piece)
    for offset, length in pieces.missing():
        for at in range(offset, min(offset + length, until_at or len(content)), STEP):
            block = content[at : min(at + STEP, offset + length)]
            part.write(memoryview(block), at)
            target.append(Done(path, etag, Piece(at, len(block), crc64(block))))
    part.close()


def finish(target: Target, path: str, content: bytes, etag: str) -> None:
    part = target.part(path, len(content), fresh=False)
    identity = part.finish()
    target.append(Whole(path, len(content), etag, crc64(content), identity.inode, identity.mtime_ns))


# The power goes


def make_disk(image: Path, *features: str, size: int = 32 * MIB) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", *features, str(image)], check=True)


@pytest.mark.root
def test_after_a_power_loss_at_any_step_names_are_whole_and_the_next_fetch_ends_well(tmp_path: Path) -> None:
    """The disk after every step of a fetch and of the next one, which replaces a file. What was promised must be on it."""
    image, copy, point, later = (tmp_path / name for name in ("disk.img", "copy.img", "disk", "later"))
    point.mkdir()
    later.mkdir()
    make_disk(image)
    versions = {f"{path} {etag}": os.urandom(5 * STEP + 777) for path in _NAMES for etag in "12"}
    promised: dict[str, int] = {}  # path -> the version that `finish` has given

    def whole(path: str, etag: str) -> None:
        finish(target, path, versions[f"{path} {etag}"], etag)
        promised[path] = int(etag)

    def half(path: str, etag: str) -> None:
        write(target, path, versions[f"{path} {etag}"], etag, until_at=3 * STEP)

    def rest(path: str, etag: str) -> None:
        write(target, path, versions[f"{path} {etag}"], etag)

    def state(text: str) -> None:
        target.write_small(".stager/manifest.json", text.encode() * 3000)
        promised[".stager/manifest.json"] = {"updating": 1, "complete": 2}[text]

    def tidy() -> None:
        journal = target.read_journal()
        target.rewrite(Journal(whole=journal.whole))
        promised["journal"] = len(journal.whole)

    with mounted("ext4", str(image), str(point), "loop,commit=300"):
        target = Target(str(point / "m"))
        target.prepare()
        steps: list[tuple[Callable[..., None], tuple[str, ...]]] = [
            (half, ("a", "1")),
            (state, ("updating",)),
            (rest, ("a", "1")),
            (whole, ("a", "1")),
            (rest, ("sub/deep/b", "1")),
            (whole, ("sub/deep/b", "1")),
            (state, ("complete",)),
            (tidy, ()),
            (half, ("a", "2")),
            (state, ("updating",)),
            (rest, ("a", "2")),
            (whole, ("a", "2")),
            (rest, ("sub/deep/b", "2")),
            (tidy, ()),
        ]
        for act, words in steps:
            act(*words)
            subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
            with mounted("ext4", str(copy), str(later), "loop"):
                judge(Target(str(later / "m")), versions, promised, f"{act.__name__} {words}")
        target.close()


def judge(after: Target, versions: dict[str, bytes], promised: dict[str, int], when: str) -> None:
    if not after.exists():
        assert not promised, when
        return
    journal = after.read_journal()
    assert len(journal.whole) >= promised.get("journal", 0), when
    for path in _NAMES:
        found = after.stat(path)
        assert found is not None or path not in promised, f"{path} is lost after {when}"
        if found is None:
            continue
        content = Path(after.folder, path).read_bytes()
        assert content in [versions[f"{path} {etag}"] for etag in "21"[: 3 - promised[path]]], (
            f"{path}: {when}"
        )
        noted = journal.whole.get(path)
        if noted is not None and (noted.inode, noted.mtime_ns) == (found.inode, found.mtime_ns):
            assert content == versions[f"{path} {noted.etag}"], (
                f"the journal is wrong about {path} after {when}"
            )
    manifest = Path(after.folder, ".stager/manifest.json")
    if ".stager/manifest.json" in promised:
        text = ["updating", "complete"][promised[".stager/manifest.json"] - 1]
        assert manifest.read_text() == text * 3000, when
    for path in _NAMES:
        content = versions[f"{path} 2"]
        write(after, path, content, "2")
        finish(after, path, content, "2")
        assert Path(after.folder, path).read_bytes() == content, f"{path}, gone on with after {when}"
    after.close()


@pytest.mark.root
@pytest.mark.parametrize("call", [syscalls.start_writeback, syscalls.finish_writeback])
def test_written_back_means_on_the_disk(tmp_path: Path, call: Callable[[int, int, int], None]) -> None:
    """Found in the image without any sync: at once where it waits, soon where it does not."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    make_disk(image)
    with mounted("ext4", str(image), str(point), "loop,commit=300"):
        fd = os.open(point / "x", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, bytes(MIB), 0)
        os.fsync(fd)
        word = os.urandom(32)
        os.pwrite(fd, word, 300 * KIB)
        assert word not in image.read_bytes(), "nothing is left to prove"
        call(fd, 256 * KIB, 256 * KIB)
        if call is syscalls.finish_writeback:
            assert word in image.read_bytes()
        else:
            until(lambda: word in image.read_bytes(), "the bytes on the disk")
        os.close(fd)


def test_kernel_calls_say_what_is_wrong(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        for act, code in (
            (lambda: syscalls.allocate(writer, 1), errno.ESPIPE),
            (lambda: syscalls.start_writeback(writer, 0, 1), errno.ESPIPE),
            (lambda: syscalls.finish_writeback(writer, 0, 1), errno.ESPIPE),
            (lambda: syscalls.allocate(-1, 1), errno.EBADF),
            (lambda: syscalls.finish_writeback(-1, 0, 1), errno.EBADF),
        ):
            with pytest.raises(OSError, match=os.strerror(code)) as failed:
                act()
            assert failed.value.errno == code
    finally:
        os.close(reader)
        os.close(writer)


# A filesystem that can do less


@pytest.mark.root
def test_a_disk_that_cannot_reserve_is_filled_all_the_same(tmp_path: Path) -> None:
    """ext4 without extents knows no fallocate(2). glibc would write all the zeros in its place."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    make_disk(image, "-O", "^extent,^64bit")
    with mounted("ext4", str(image), str(point), "loop"):
        fd = os.open(point / "probe", os.O_RDWR | os.O_CREAT)
        with pytest.raises(OSError, match="not supported"):
            syscalls.allocate(fd, MIB)
        os.close(fd)
        target = Target(str(point / "m"))
        target.prepare()
        part = target.part("a", 4 * MIB, fresh=True)
        assert target.allocated("a") == 0
        part.write(memoryview(b"end"), 4 * MIB - 3)
        part.finish()
        assert (point / "m/a").read_bytes() == bytes(4 * MIB - 3) + b"end"
        full = target.part("b", 100 * MIB, fresh=True)
        with pytest.raises(ResourceRefused, match="ENOSPC"):
            full.write(memoryview(bytes(64 * MIB)), 0)
        full.discard()
        target.close()


@pytest.mark.root
def test_a_filesystem_that_cannot_be_written(tmp_path: Path) -> None:
    with mounted("tmpfs", "none", str(tmp_path), "size=1m"):
        target = Target(str(tmp_path / "m"))
        target.prepare()
        part = target.part("a", 5, fresh=True)
        part.close()
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        for act in (
            lambda: target.part("a", 5, fresh=False),
            lambda: target.append(Begun("a", 5, "E")),
            lambda: target.write_small("x", b""),
            lambda: target.remove("a.part"),
        ):
            with pytest.raises(LocalIOError, match="EROFS"):
                act()
        assert target.try_lock() is None
        assert target.read_only
        assert list(target.names()) == ["a.part"]
        target.close()


# Others who write


def test_who_still_writes_for_a_killed_fetch_does_not_reach_the_next(target: Target) -> None:
    """Its workers end a moment after it, and the lock is free at once; the object may be another version by now."""
    stale = target.part("a", 8, fresh=True)
    stale.write(memoryview(b"old old "), 0)
    after = Target(target.folder)
    same = after.part("a", 8, fresh=False)
    assert Path(target.folder, "a.part").read_bytes() == b"old old ", "the same version is gone on with"
    same.close()
    part = after.part("a", 8, fresh=True)
    part.write(memoryview(b"new "), 0)
    stale.write(memoryview(b"old old "), 0)
    part.write(memoryview(b"file"), 4)
    part.finish()
    stale.write(memoryview(b"old old "), 0)
    assert Path(target.folder, "a").read_bytes() == b"new file"
    stale.close()
    after.close()


@pytest.mark.root
def test_a_reader_sees_the_old_file_or_the_new_one_and_nothing_else(tmp_path: Path) -> None:
    """On a tmpfs, where nothing waits for a disk: the more often the name changes hands, the more a gap would show."""
    final, stop, wrong = tmp_path / "a", threading.Event(), []
    size, looks = STEP, 0

    def look() -> None:
        nonlocal looks
        while not stop.is_set():
            try:
                seen = final.read_bytes()
            except OSError as exc:
                wrong.append(repr(exc))
                return
            looks += 1
            if len(seen) != size or len(set(seen)) != 1:
                wrong.append(f"{len(seen)} bytes of {len(set(seen))} kinds")

    with mounted("tmpfs", "none", str(tmp_path), "size=8m"):
        target, reader = Target(str(tmp_path)), threading.Thread(target=look)
        for turn in range(500):
            part = target.part("a", size, fresh=True)
            part.write(memoryview(bytes([turn % 256]) * size), 0)
            part.finish()
            if not turn:
                reader.start()
        stop.set()
        reader.join()
        target.close()
    assert looks > 1
    assert not wrong


APPENDER = """
import sys
from stager.core.journal import Begun
from stager.node.parts import Target
target = Target(sys.argv[1])
print("up", flush=True)
sys.stdin.readline()
for at in range(1000):
    target.append(Begun(f"{sys.argv[2]}/{at}" + "x" * (at % 200), at, "E"))
"""


def test_two_processes_do_not_tear_each_others_lines(target: Target) -> None:
    """As on a filesystem without locks, where nobody can be kept out."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDER, target.folder, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for name in "ab"
    ]
    try:
        for one in both:
            assert one.stdout is not None
            assert one.stdout.readline() == "up\n"
        for one in both:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        for one in both:
            assert one.wait(60) == 0
    finally:
        for one in both:
            one.kill()
            one.communicate()
    found = target.read_journal().parts
    assert len(found) == 2000
    assert all(part.size == int(path.rstrip("x")[2:]) for path, part in found.items())


def test_a_socket_is_in_the_way_of_everything(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target.folder)  # a socket's path must be short
    for path in ("a.part", "b", ".stager/fetch.lock", ".stager/fetch.journal"):
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path)
    for act in (
        lambda: target.part("a", 1, fresh=True),
        lambda: target.part("b", 1, fresh=True),
        lambda: target.stat("b"),
        lambda: target.append(Begun("a", 1, "E")),
        target.read_journal,
        target.try_lock,
    ):
        with pytest.raises(LocalIOError) as refused:
            act()
        assert refused.value.hint
    assert not list(target.names())


# Descriptors


def _open_descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one of this listing
            continue
    return found


def _exhaust(target: Target) -> None:
    list(target.names())


def _taken_lock(target: Target) -> None:
    other = Target(target.folder)
    assert other.try_lock() is None
    assert target.try_lock() is not None
    other.close()


def _twice_closed(target: Target) -> None:
    part = target.part("new", 5, fresh=True)
    part.close()
    part.discard()


def _left_open_by_a_lane(target: Target) -> None:
    part = target.part("new", 5, fresh=True)
    with part._use():
        part.close()
    part.discard()


def _replaced(target: Target) -> None:
    part = target.part("new", 5, fresh=True)
    part.close()
    target.part("new", 5, fresh=True).finish()


FINE: list[Callable[[Target], object]] = [
    _exhaust,
    _taken_lock,
    _twice_closed,
    _left_open_by_a_lane,
    _replaced,
    lambda target: target.prepare(),
    lambda target: target.free(),
    lambda target: target.filesystem(),
    lambda target: target.stat("file"),
    lambda target: target.stat("no/such"),
    lambda target: target.crc_of("sub/file", quiet),
    lambda target: target.allocated("file"),
    lambda target: target.part("x/y/z", 5, fresh=True).finish(),
    lambda target: target.part("linked", 5, fresh=False).discard(),
    lambda target: target.part("hard", 5, fresh=False).discard(),
    lambda target: target.write_small(".stager/manifest.json", b"x"),
    lambda target: target.read_journal(),
    lambda target: target.rewrite(Journal()),
    lambda target: target.remove("sub/file"),
    lambda target: target.remove("none/none"),
]


@pytest.mark.parametrize("act", FINE, ids=range(len(FINE)))
def test_no_descriptor_is_left(target: Target, act: Callable[[Target], object]) -> None:
    furnish(target)
    before = _open_descriptors()
    act(target)
    assert _open_descriptors() == before


def furnish(target: Target) -> None:
    """Files and traps; the journal and the folder itself are open afterwards."""
    place = Path(target.folder)
    (place / "sub").mkdir()
    for name in ("file", "sub/file", "other"):
        (place / name).write_bytes(b"12345")
    (place / "linked.part").symlink_to("file")
    os.link(place / "other", place / "hard.part")
    (place / "trap").symlink_to("sub")
    os.mkfifo(place / "fifo")
    os.mkfifo(place / "piped.part")
    (place / "taken").mkdir()
    (place / "late.part").mkdir()
    target.stat("file")


BAD: list[Callable[[Target], object]] = [
    lambda target: target.stat("trap/file"),
    lambda target: target.stat("fifo"),
    lambda target: target.crc_of("fifo", quiet),
    lambda target: target.crc_of("none", quiet),
    lambda target: target.crc_of("taken", quiet),
    lambda target: target.part("trap/x", 5, fresh=True),
    lambda target: target.part("file/x", 5, fresh=True),
    lambda target: target.part("piped", 5, fresh=True),
    lambda target: target.part("late", 5, fresh=False),
    lambda target: target.part("taken", 5, fresh=True),
    lambda target: target.part("huge", 1 << 62, fresh=True),
    lambda target: target.write_small("taken", b""),
    lambda target: target.write_small("trap/x", b""),
    lambda target: target.remove("taken"),
    lambda target: target.remove("trap/file"),
    lambda target: target.remove("../x"),
]


@pytest.mark.parametrize("act", BAD, ids=range(len(BAD)))
def test_no_descriptor_is_left_where_something_is_refused(
    target: Target, act: Callable[[Target], object]
) -> None:
    furnish(target)
    before = _open_descriptors()
    with pytest.raises(StagerError):
        act(target)
    assert _open_descriptors() == before


def test_closed_it_has_nothing_open(target: Target) -> None:
    target.close()
    before = _open_descriptors()
    target.append(Begun("a", 1, "E"))
    assert target.try_lock() is None
    list(target.names())
    assert _open_descriptors() != before
    target.close()
    assert _open_descriptors() == before
    shutil.rmtree(target.folder)


@pytest.mark.parametrize("meddle", ["removed", "emptied", "linked"])
def test_a_part_file_that_somebody_meddled_with_is_not_begun_anew(tmp_path: Path, meddle: str) -> None:
    target = Target(str(tmp_path / "m"))
    target.prepare()
    target.part("a", 5, fresh=True).close()
    target.part_again("a", 5).close()
    part = tmp_path / "m" / "a.part"
    if meddle == "removed":
        part.unlink()
    elif meddle == "emptied":
        part.write_bytes(b"")
    else:
        os.link(part, tmp_path / "other")
    with pytest.raises(LocalIOError, match="changed or removed by somebody else"):
        target.part_again("a", 5)
    target.close()


def test_part_files_are_open_while_they_are_used_and_no_longer(tmp_path: Path) -> None:
    target = Target(str(tmp_path / "m"))
    target.prepare()
    before = len(os.listdir("/proc/self/fd"))
    some = OpenParts(lambda index: target.part(f"f{index}", 5, fresh=True))
    with some.use(0) as one, some.use(0) as same, some.use(1) as other:
        assert one is same
        assert one is not other
        one.write(memoryview(b"12345"), 0)
        assert len(os.listdir("/proc/self/fd")) >= before + 2
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the folder's own
    with pytest.raises(StagerError, match="closed"):
        one.write(memoryview(b"12345"), 0)
    with some.use(1) as again:
        some.close()
        with pytest.raises(StagerError, match="closed"):
            again.write(memoryview(b"12345"), 0)
    target.close()
