"""The bandwidth limit: exact for all readers and uploads together, and no obstacle to an interrupt."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stager.core.errors import Interrupted, NotFound, RemoteError
from stager.core.location import Location
from stager.node.throttle import Throttle
from stager.store.base import BLOCK
from stager.store.directory import DirectoryStore
from stager.store.limit import Limited
from stager.store.opening import StoreOptions
from stager.store.oss import OssStore
from tests.faulty import Fault, Faulty
from tests.osslab.fixtures import Oss

RATE = 4 * BLOCK


class Bench:
    """A folder behind a limit, with a clock that only waiting moves."""

    def __init__(self, root: Path) -> None:
        self.folder = DirectoryStore(str(root))
        self.faulty = Faulty(self.folder)
        self.now = 1000.0
        self.store = Limited(self.faulty, RATE, self.pause, clock=lambda: self.now)
        self.moved = 0

    def pause(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def move(self, count: int) -> None:
        """Bytes that moved at this moment: never more than the rate allows."""
        self.moved += count
        assert self.moved <= RATE * (self.now - 1000 + 0.1) + 1

    def sink(self, block: memoryview) -> None:
        self.move(len(block))

    def file(self, name: str, size: int) -> bytes:
        content = os.urandom(size)
        Path(self.folder.root, name).write_bytes(content)
        return content


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_one_reader_keeps_to_the_rate_and_reaches_it(bench: Bench) -> None:
    bench.file("file", 10 * BLOCK + 5)
    bench.store.reader().read("file", 0, 10 * BLOCK + 5, bench.sink)
    assert bench.moved == 10 * BLOCK + 5
    assert bench.now - 1000 == pytest.approx((10 * BLOCK + 5) / RATE)


def test_readers_share_the_rate_from_the_first_block(bench: Bench) -> None:
    """64 readers that each got their first block for nothing would be 16 s ahead."""
    bench.file("file", BLOCK)
    for _ in range(64):
        bench.store.reader().read("file", 0, BLOCK, bench.sink)
    assert bench.now - 1000 == pytest.approx(64 * BLOCK / RATE)


def test_an_adapter_that_gives_small_blocks_is_not_ahead_either(bench: Bench) -> None:
    bench.file("file", 3 * BLOCK)
    at = 0
    reader = bench.store.reader()
    for size in (5, BLOCK - 5, 77, 1, BLOCK, BLOCK - 78):
        reader.read("file", at, size, bench.sink)
        at += size
    assert bench.now - 1000 == pytest.approx(3 * BLOCK / RATE)


class Uneven(DirectoryStore):
    """Gives what it reads in pieces of odd sizes, as a socket does."""

    def reader(self) -> Uneven.Reader:  # type: ignore[override]
        return Uneven.Reader(super().reader())

    class Reader:
        def __init__(self, reader) -> None:
            self._reader = reader

        def read(self, name, offset, length, sink, **_):
            content = bytearray()
            stored = self._reader.read(name, offset, length, content.extend, etag=_.get("etag"))
            at = 0
            for size in itertools.cycle((BLOCK - 1, BLOCK, 1000, 1)):
                if at >= length:
                    return stored
                sink(memoryview(content)[at : at + size])
                at += size
            raise AssertionError("unreachable")


def test_pieces_of_odd_sizes_keep_to_the_rate(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store = Limited(Uneven(str(tmp_path)), RATE, bench.pause, clock=lambda: bench.now)
    bench.file("file", 5 * BLOCK + 3)
    bench.store.reader().read("file", 0, 5 * BLOCK + 3, bench.sink)
    assert bench.now - 1000 == pytest.approx((5 * BLOCK + 3) / RATE)


def test_uploads_share_the_rate_with_readers(bench: Bench) -> None:
    content = bench.file("file", 4 * BLOCK)
    upload = bench.store.upload("new", 4 * BLOCK)
    assert (upload.part_size, upload.parts) == (16 << 20, ())
    before = []
    upload.part(1, memoryview(content), pace=lambda size: before.append((bench.now, size)))
    assert len({now for now, _ in before}) == 4, "paced block by block, not once a part"
    bench.moved += 4 * BLOCK
    bench.store.reader().read("file", 0, 4 * BLOCK, bench.sink)
    assert bench.now - 1000 == pytest.approx(8 * BLOCK / RATE)
    upload.complete()
    upload.abort()
    assert Path(bench.folder.root, "new").read_bytes() == content


def test_what_a_resumed_upload_reads_back_is_paid_for(bench: Bench) -> None:
    content = bytes(17 << 20)
    bench.folder.upload("new", len(content)).part(1, memoryview(content)[: 16 << 20])
    assert len(bench.store.upload("new", len(content), resume=True).parts) == 1
    assert bench.now - 1000 == pytest.approx((16 << 20) / RATE)


def test_parts_from_several_threads_share_the_rate(oss: Oss) -> None:
    now, lock = 1000.0, threading.Lock()

    def pause(seconds: float) -> None:
        nonlocal now
        with lock:
            now += seconds

    location = Location.parse(oss.url("r1"))
    adapter = OssStore(location, StoreOptions(), environ=oss.env())
    content = os.urandom(BLOCK) * 33
    upload = Limited(adapter, RATE, pause, clock=lambda: now).upload("a", len(content))
    assert upload.concurrent
    size = upload.part_size

    def part(number: int) -> None:
        upload.part(number, memoryview(content)[(number - 1) * size : number * size])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(part, (1, 2, 3)))
    upload.complete()
    assert oss.get("r1/a") == content
    # Waits that overlap add up on this clock, so it is never ahead of what was paid for.
    assert now - 1000 >= len(content) / RATE - 0.1


def test_what_did_not_come_is_not_paid_for(bench: Bench) -> None:
    bench.file("file", 8 * BLOCK)
    store = Limited(bench.faulty, 40 * BLOCK, bench.pause, clock=lambda: bench.now)
    reader = store.reader()
    moved = bytearray()
    for after in (0, 10, BLOCK, 2 * BLOCK + 5):
        bench.faulty.faults.append(Fault("read", after=after))
        with pytest.raises(RemoteError):
            reader.read("file", 0, 8 * BLOCK, moved.extend)
    reader.read("file", 0, 8 * BLOCK, moved.extend)
    assert bench.now - 1000 == pytest.approx(len(moved) / (40 * BLOCK))


def test_idle_time_is_saved_up_for_a_tenth_of_a_second_only(bench: Bench) -> None:
    bench.file("file", 4 * BLOCK)
    bench.now += 3600
    before = bench.now
    bench.store.reader().read("file", 0, 4 * BLOCK, lambda block: None)
    assert bench.now - before == pytest.approx(4 * BLOCK / RATE - 0.1)


def test_threads_together_keep_to_the_rate(tmp_path: Path) -> None:
    """The real clock, one-sided: never faster, however slow the machine is."""
    rate, size, threads = 40 * BLOCK, 2 * BLOCK, 8
    folder = DirectoryStore(str(tmp_path))
    (tmp_path / "file").write_bytes(bytes(size))
    lock = threading.Lock()
    moved = 0
    ahead = []
    begun = time.monotonic()
    store = Limited(folder, rate, time.sleep)

    def sink(block: memoryview) -> None:
        nonlocal moved
        with lock:
            moved += len(block)
            ahead.append(moved - rate * (time.monotonic() - begun + 0.1))

    workers = [
        threading.Thread(target=lambda: store.reader().read("file", 0, size, sink)) for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert moved == threads * size
    assert max(ahead) <= 0


def test_an_interrupt_ends_the_wait(bench: Bench) -> None:
    bench.file("file", 4 * BLOCK)
    got = bytearray()

    def pause(seconds: float) -> None:
        bench.now += seconds
        if got:
            other = threading.Thread(target=reader.interrupt)
            other.start()
            other.join()

    reader = Limited(bench.faulty, BLOCK // 60, pause, clock=lambda: bench.now).reader()  # a block a minute
    reader.interrupt()  # nothing is under way
    with pytest.raises(Interrupted):
        reader.read("file", 0, 4 * BLOCK, got.extend)
    assert len(got) == BLOCK
    assert bench.now - 1000 == pytest.approx(60, abs=0.2), "the second block was not waited for"
    got.clear()
    reader.read("file", 0, 2 * BLOCK, lambda block: None)
    assert bench.now - 1000 == pytest.approx(180, abs=0.2), "the next read waits again"
    reader.close()
    reader.close()


def test_a_pause_that_raises_ends_the_call_and_nothing_is_paid(bench: Bench) -> None:
    bench.file("file", 4 * BLOCK)

    def pause(seconds: float) -> None:
        raise KeyboardInterrupt

    store = Limited(bench.faulty, RATE, pause, clock=lambda: bench.now)
    for _ in range(100):
        with pytest.raises(KeyboardInterrupt):
            store.reader().read("file", 0, 4 * BLOCK, lambda block: None)
        with pytest.raises(KeyboardInterrupt):
            store.upload("new", 4 * BLOCK).part(1, memoryview(bytes(4 * BLOCK)))


def test_the_rest_passes_through(bench: Bench) -> None:
    bench.file("a", 5)
    bench.file("b", 5)
    assert bench.store.root == bench.folder.root
    assert bench.store.adapter is bench.faulty
    assert [one.name for one in bench.store.list("", start_after="a")] == ["b"]
    assert bench.store.head("a") == bench.folder.head("a")
    bench.store.delete(["a", "b"])
    with pytest.raises(NotFound):
        bench.store.head("a")
    assert bench.now == 1000


def test_a_refund_makes_the_next_wait_shorter() -> None:
    throttle = Throttle(100, lambda: 5.0)
    assert throttle.delay(100) == pytest.approx(1.0)
    throttle.refund(50)
    assert throttle.delay(0) == pytest.approx(0.5)
