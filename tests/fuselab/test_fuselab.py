"""The test server itself: it must have exactly the habits it claims."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuselab.fixtures import FuseMount, MountFactory
from tests.fuselab.trees import synthetic_bytes

pytestmark = pytest.mark.root
MIB = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def resident(fd: int) -> float:
    """The resident share of an open file, by mincore."""
    size = os.fstat(fd).st_size
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    assert _libc.mincore(address, size, pages) == 0
    _libc.munmap(address, size)
    return sum(byte & 1 for byte in pages.raw) / len(pages)


def warm(path: str) -> int:
    """Read a file whole; gives the bytes read."""
    done = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(MIB):
            done += len(chunk)
    return done


def resident_after_reopen(path: str) -> float:
    with open(path, "rb") as file:
        return resident(file.fileno())


def test_content_is_the_source(fuse_mount: MountFactory, tmp_path: Path) -> None:
    odd = os.fsdecode(b"odd \xff\nname.bin")
    (tmp_path / "sub").mkdir()
    for name, size in (("a", 0), ("b", 1), (f"sub/{odd}", 3 * MIB + 17)):
        (tmp_path / name).write_bytes(os.urandom(size))
    (tmp_path / "link").symlink_to("sub")
    mount = fuse_mount(source=tmp_path)
    assert sorted(os.listdir(mount.path)) == ["a", "b", "link", "sub"]
    assert os.listdir(mount.path + "/link") == [odd]
    for name in ("a", "b", f"sub/{odd}"):
        assert Path(mount.path, name).read_bytes() == (tmp_path / name).read_bytes()
    with pytest.raises(FileNotFoundError):
        os.stat(mount.path + "/missing")
    with pytest.raises(OSError):
        open(mount.path + "/a", "wb")


def test_many_names_are_listed_once(fuse_mount: MountFactory) -> None:
    names = {f"folder/file-{n:04}.bin": n for n in range(700)}
    mount = fuse_mount(synthetic=names)
    assert sorted(os.listdir(mount.path + "/folder")) == sorted(name[7:] for name in names)
    assert os.stat(mount.path + "/folder/file-0123.bin").st_size == 123


def test_synthetic_content(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"deep/w.bin": 5 * MIB + 3})
    data = Path(mount.path, "deep/w.bin").read_bytes()
    assert data == synthetic_bytes(0, 5 * MIB + 3)
    with open(mount.path + "/deep/w.bin", "rb") as file:
        assert os.pread(file.fileno(), 5000, 3 * MIB + 11) == synthetic_bytes(3 * MIB + 11, 5000)


def test_type_source_and_owner(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(
        synthetic={"w": 1}, fsname="bucket.oss-x.example:/p q", subtype="ossfs2", uid=65532, gid=7, mode="440"
    )
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mount.path in line)
    assert line.split(" - ")[1].split(" ")[:2] == ["fuse.ossfs2", r"bucket.oss-x.example:/p\040q"]
    found = os.stat(mount.path + "/w")
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65532, 7, 0o440)
    assert os.stat(mount.path).st_mode & 0o777 == 0o550


@pytest.mark.parametrize(("keep_cache", "kept"), [("never", 0.0), ("always", 1.0), ("auto", 1.0)])
def test_pages_after_reopen(fuse_mount: MountFactory, keep_cache: str, kept: float) -> None:
    mount = fuse_mount(synthetic={"w": 8 * MIB}, keep_cache=keep_cache)
    path = mount.path + "/w"
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass
        assert resident(file.fileno()) == 1.0
    assert resident_after_reopen(path) == kept
    mount.remount()
    assert resident_after_reopen(path) == 0.0


@pytest.mark.parametrize(("keep_cache", "kept"), [("always", 1.0), ("auto", 0.0)])
def test_pages_after_a_change_behind_the_kernel(
    fuse_mount: MountFactory, tmp_path: Path, keep_cache: str, kept: float
) -> None:
    source = tmp_path / "w"
    source.write_bytes(b"a" * 2 * MIB)
    mount = fuse_mount(source=tmp_path, keep_cache=keep_cache, attr_timeout=0)
    path = mount.path + "/w"
    warm(path)
    inode = os.stat(path).st_ino
    other = tmp_path / "w.new"
    other.write_bytes(b"b" * 2 * MIB)
    os.replace(other, source)
    assert resident_after_reopen(path) == kept
    assert os.stat(path).st_ino != inode
    assert Path(path).read_bytes()[:1] == (b"a" if kept else b"b")


def test_auto_inval_drops_on_a_new_mtime(fuse_mount: MountFactory, tmp_path: Path) -> None:
    source = tmp_path / "w"
    source.write_bytes(b"a" * MIB)
    mount = fuse_mount(source=tmp_path, keep_cache="always", auto_inval=True, attr_timeout=0)
    path = mount.path + "/w"
    warm(path)
    assert resident_after_reopen(path) == 1.0
    os.utime(source, ns=(1, 1))
    os.stat(path)
    assert resident_after_reopen(path) == 0.0


def test_direct_io(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"w": 2 * MIB}, direct_io=True)
    with open(mount.path + "/w", "rb", buffering=0) as file:
        assert file.read(MIB) == synthetic_bytes(0, MIB)
        with pytest.raises(OSError) as caught:
            mmap.mmap(file.fileno(), MIB, mmap.MAP_SHARED, mmap.PROT_READ)
    assert caught.value.errno == errno.ENODEV
    assert mount.counters()["max_handles"] == 1


def _read_in_thread(path: str) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.append(warm(path))
        except OSError as exc:
            outcome.append(exc.errno)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, outcome


@pytest.mark.parametrize("habit", [{"hang_file": "w"}, {"hang_after": MIB}])
@pytest.mark.parametrize("end", ["abort", "kill", "stop"])
def test_hung_reads_end_with_the_connection(
    fuse_mount: MountFactory, habit: dict[str, object], end: str
) -> None:
    mount = fuse_mount(synthetic={"w": 4 * MIB}, **habit)
    thread, outcome = _read_in_thread(mount.path + "/w")
    thread.join(0.3)
    assert thread.is_alive()
    assert mount.counters()["hung"] >= 1
    getattr(mount, end)()
    thread.join(5)
    assert outcome
    assert outcome[0] in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


def test_a_dead_server_is_enotconn(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"w": MIB})
    mount.kill()
    with pytest.raises(OSError) as caught:
        os.stat(mount.path + "/w")
    assert caught.value.errno == errno.ENOTCONN
    mount.remount()
    assert warm(mount.path + "/w") == MIB


def test_sigterm_unmounts_even_while_a_file_is_open(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"w": MIB})
    fd = os.open(mount.path + "/w", os.O_RDONLY)
    try:
        os.kill(mount.pid, signal.SIGTERM)
        end = time.monotonic() + 5
        while mount.path in (table := Path("/proc/self/mountinfo").read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        assert mount.path not in table
    finally:
        with contextlib.suppress(OSError):  # ENOTCONN: close() asks the server, which is gone
            os.close(fd)


def test_an_error_at_an_offset(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"w": 4 * MIB}, error_at=f"w:{2 * MIB + 5}:EIO")
    with open(mount.path + "/w", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), MIB, 0) == synthetic_bytes(0, MIB)
        with pytest.raises(OSError) as caught:
            os.pread(file.fileno(), 4096, 2 * MIB)
        assert caught.value.errno == errno.EIO
        assert os.pread(file.fileno(), MIB, 3 * MIB) == synthetic_bytes(3 * MIB, MIB)


def test_a_file_shorter_than_stat_says(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"w": 4 * MIB}, shrink=f"w:{MIB}", attr_timeout=60)
    assert os.stat(mount.path + "/w").st_size == 4 * MIB
    assert warm(mount.path + "/w") == MIB


def test_rates_hold_back_bytes(fuse_mount: MountFactory) -> None:
    """In 0.5 s at 8 MiB/s per handle, two handles get near 4 MiB each, never twice that."""
    mount = fuse_mount(synthetic={"a": 64 * MIB, "b": 64 * MIB}, stream_rate=8 * MIB)
    threads = [_read_in_thread(f"{mount.path}/{name}")[0] for name in "ab"]
    time.sleep(0.5)
    files = mount.counters()["files"]
    mount.stop()
    for thread in threads:
        thread.join(5)
    assert all(MIB < files[name]["served"] < 8 * MIB for name in "ab"), files


def test_total_rate_is_shared(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a": 64 * MIB, "b": 64 * MIB}, total_rate=8 * MIB)
    threads = [_read_in_thread(f"{mount.path}/{name}")[0] for name in "ab"]
    time.sleep(0.5)
    served = mount.counters()["served"]
    mount.stop()
    for thread in threads:
        thread.join(5)
    assert MIB < served < 8 * MIB


def test_latency_and_serial(fuse_mount: MountFactory) -> None:
    """20 ms for each of 8 direct reads from 4 threads: at least 160 ms one after the other."""
    mount = fuse_mount(synthetic={"w": 8 * MIB}, direct_io=True, serial=True, latency=20)
    began = time.monotonic()
    with open(mount.path + "/w", "rb", buffering=0) as file:
        threads = [threading.Thread(target=lambda: os.pread(file.fileno(), MIB, 0)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert time.monotonic() - began >= 0.16
    assert mount.counters()["max_reads_at_once"] > 1


def test_requests_are_up_to_one_mib(fuse_mount: MountFactory) -> None:
    """With a page-aligned buffer; one that straddles pages takes two requests per MiB."""
    mount = fuse_mount(synthetic={"w": 8 * MIB}, direct_io=True)
    with open(mount.path + "/w", "rb", buffering=0) as file, mmap.mmap(-1, MIB) as aligned:
        for offset in range(0, 8 * MIB, MIB):
            assert os.preadv(file.fileno(), [aligned], offset) == MIB
    assert mount.counters()["reads"] == 8


def test_ranges_of_one_file_amplify_what_the_pool_fetches(fuse_mount: MountFactory) -> None:
    """One handle fetches a file once; four handles on quarters fetch 1 + 3/4 + 2/4 + 1/4 of it."""
    size = 512 * MIB
    mount = fuse_mount(synthetic={"one": size, "four": size}, pool=768)
    warm(mount.path + "/one")
    files = [open(mount.path + "/four", "rb", buffering=0) for _ in range(4)]
    for offset in range(0, size // 4, MIB):
        for index, file in enumerate(files):
            os.pread(file.fileno(), MIB, index * size // 4 + offset)
    for file in files:
        file.close()
    counts = mount.counters()
    assert counts["max_handles"] >= 4
    assert counts["files"]["one"]["fetched"] == size
    assert 2.2 < counts["files"]["four"]["fetched"] / size < 2.6


def test_handles_without_a_chunk_crawl(fuse_mount: MountFactory) -> None:
    """A pool of 8 chunks that one handle may fill: the second handle gets the crawl rate until the first closes."""
    mount = fuse_mount(
        synthetic={"fast": 256 * MIB, "slow": 256 * MIB},
        pool=8,
        pool_crawl="4M",
        stream_rate="400M",
        attr_timeout=60,
    )
    with open(mount.path + "/fast", "rb", buffering=0) as fast:
        while fast.tell() < 128 * MIB:
            fast.read(MIB)
        thread, outcome = _read_in_thread(mount.path + "/slow")
        time.sleep(0.4)
        served = mount.counters()["files"]["slow"]["served"]
        assert served < 8 * MIB
    thread.join(10)
    assert outcome == [256 * MIB]
    counts = mount.counters()
    assert counts["max_chunks_used"] == 8
    assert counts["crawled_reads"] > 0


def _served_in(fuse_mount: MountFactory, readers: int, seconds: float, **options: object) -> int:
    """Bytes that `readers` handles on as many files get in a time."""
    mount = fuse_mount(synthetic={f"w{n}": 1 << 30 for n in range(readers)}, **options)
    threads = [_read_in_thread(f"{mount.path}/w{n}")[0] for n in range(readers)]
    time.sleep(seconds)
    served = mount.counters()["served"]
    mount.stop()
    for thread in threads:
        thread.join(5)
    return int(served)


def test_many_handles_are_slower_than_few(fuse_mount: MountFactory) -> None:
    """16 chunks, 4 per handle: 4 handles get the whole 400 MB/s, 16 handles well below it, 1 its 150 MB/s."""
    shape = {"pool": 16, "pool_chunk": "1M", "pool_window": "2M:4M", "pool_hold": 4, "pool_crawl": "4M"}
    rates = {"stream_rate": "150MB", "total_rate": "400MB"}
    one, few, many = (_served_in(fuse_mount, readers, 0.6, **shape, **rates) for readers in (1, 4, 16))
    assert one < 0.7 * few
    assert many < 0.7 * few


_LEAKY = """
import os, threading, pytest
def test_bad(fuse_mount):
    mount = fuse_mount(synthetic={"w": 1 << 20}, hang_file="w", lifetime=LIFE)
    print("MOUNT", mount.path, mount.pid, flush=True)
    if THREAD:
        threading.Thread(target=lambda: open(mount.path + "/w", "rb").read(), daemon=True).start()
        assert not "a failing test"
    open(mount.path + "/w", "rb").read()
"""


@pytest.mark.parametrize("case", ["fails", "hangs", "is killed"])
def test_nothing_is_left_behind(tmp_path: Path, case: str) -> None:
    """A test that fails beside a hung reader, one that hangs itself, a test run that dies: mount and process go."""
    text = _LEAKY.replace("LIFE", "2" if case == "hangs" else "60").replace("THREAD", str(case == "fails"))
    (tmp_path / "test_leaky.py").write_text(text)
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-q",
        "-p",
        "tests.fuselab.fixtures",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.Popen([*command, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    line = next(line for line in run.stdout if "MOUNT" in line)
    path, pid = line.split()[-2:]
    if case == "is killed":
        run.kill()
    run.communicate(timeout=20)
    assert run.returncode == (-signal.SIGKILL if case == "is killed" else 1)
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
    assert path not in Path("/proc/self/mountinfo").read_text()
    if case == "is killed":
        shutil.rmtree(os.path.dirname(path))  # the empty folder is all that is left


# Writing, as ossfs 2 does


def bucket(fuse_mount: MountFactory, source: Path, **options: object) -> FuseMount:
    manners = {"subtype": "ossfs2", "writes": "ossfs2", "attr_timeout": 0, "entry_timeout": 0}
    return fuse_mount(source=str(source), **{**manners, **options})


def refused(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == code


def test_one_writer_ascending_and_visible_when_it_closes(fuse_mount: MountFactory, tmp_path: Path) -> None:
    mount = bucket(fuse_mount, tmp_path)
    path = mount.path + "/a"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    assert os.write(fd, b"x" * 3 * MIB) == 3 * MIB
    assert os.stat(path).st_size == 3 * MIB
    assert not (tmp_path / "a").exists()
    refused(errno.EBUSY, lambda: os.open(path, os.O_WRONLY))
    refused(errno.EINVAL, lambda: os.pwrite(fd, b"y", 0))
    refused(errno.EINVAL, lambda: os.pwrite(fd, b"y", 4 * MIB))
    refused(errno.EOPNOTSUPP, lambda: os.ftruncate(fd, 5))
    refused(errno.EINVAL, lambda: os.posix_fallocate(fd, 0, 4 * MIB))
    os.fsync(fd)
    assert not (tmp_path / "a").exists(), "fsync says nothing"
    os.write(fd, b"end")
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == b"x" * 3 * MIB + b"end"
    counts = mount.counters()
    assert counts["written"] == {"a": 3 * MIB + 3}
    expected = {"created": 1, "ftruncate": 1, "fallocate": 1, "fsync": 1, "closed": 1}
    assert {key: counts["writing"].get(key) for key in expected} == expected


def test_files_are_emptied_added_to_and_copied_by_a_rename(fuse_mount: MountFactory, tmp_path: Path) -> None:
    mount = bucket(fuse_mount, tmp_path)
    path = mount.path + "/a"
    for how, data, content in (("wb", b"one", b"one"), ("ab", b"two", b"onetwo"), ("wb", b"3", b"3")):
        with open(path, how) as file:
            file.write(data)
        assert (tmp_path / "a").read_bytes() == content
    os.utime(path)
    os.chmod(path, 0o600)
    os.mkdir(mount.path + "/sub")
    os.rename(path, mount.path + "/sub/b")
    assert (tmp_path / "sub/b").read_bytes() == b"3"
    assert Path(mount.path, "sub/b").read_bytes() == b"3"
    assert not os.path.exists(path)
    os.truncate(mount.path + "/sub/b", 0)
    assert (tmp_path / "sub/b").read_bytes() == b""
    os.unlink(mount.path + "/sub/b")
    os.rmdir(mount.path + "/sub")
    assert os.listdir(tmp_path) == []
    counts = mount.counters()["writing"]
    for what in ("utimens", "chmod", "rename", "copied", "unlink", "mkdir", "rmdir", "reopened"):
        assert counts[what] == 1, what


def test_errors_of_writing_come_when_they_are_due(fuse_mount: MountFactory, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    options = {"close_error": "ENOSPC:1", "write_error_at": f"b:{MIB}:EFBIG", "append_error": "open:EPERM"}
    mount = bucket(fuse_mount, tmp_path, **options)
    fd = os.open(mount.path + "/a", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x")
    refused(errno.ENOSPC, lambda: os.close(fd))
    assert not (tmp_path / "a").exists()
    Path(mount.path, "a").write_bytes(b"again")
    assert (tmp_path / "a").read_bytes() == b"again"
    with open(mount.path + "/b", "wb", buffering=0) as file:
        assert file.write(b"x" * MIB) == MIB
        refused(errno.EFBIG, lambda: file.write(b"y"))
    refused(errno.EPERM, lambda: os.open(mount.path + "/old", os.O_WRONLY | os.O_APPEND))


def test_what_a_killed_writer_wrote_is_there(fuse_mount: MountFactory, tmp_path: Path) -> None:
    mount = bucket(fuse_mount, tmp_path)
    code = "import os, signal, sys; os.write(os.open(sys.argv[1], 65), b'x' * 5000); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, mount.path + "/a"])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"x" * 5000
