"""Bytes coming in: whatever order parts arrive in, they are hashed and handed on ascending, and read again where a connection broke."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.core.checksum import crc64
from stager.core.errors import Interrupted, NotFound, ObjectChanged, RemoteError, ResourceRefused
from stager.core.ranges import in_parts
from stager.engine import runtime
from stager.engine.buffers import Buffers
from stager.jobs.inflow import Feed, Inflow, Portion, Stream, refuse_large
from stager.jobs.lines import Pauses
from stager.store.base import Reader, Sink, StoredObject
from stager.store.directory import DirectoryStore
from stager.store.retry import Retrying
from tests.faulty import Fault, Faulty

MIB = 1 << 20
KIB = 1 << 10


def lent(content: bytes) -> SimpleNamespace:
    """What a `Buffer` shows of itself to whoever hashes it."""
    return SimpleNamespace(view=memoryview(content))


def stream_of(content: bytes, step: int, *, hashed: bool = True) -> Stream:
    """A stream whose parts are small enough to have many."""
    stream = Stream(Feed("a", len(content), "v"), hashlib.sha256() if hashed else None)
    stream.step, stream.count = step, max(1, -(-len(content) // step))
    return stream


def part(stream: Stream, content: bytes, number: int, *, left_out: bool = False) -> Portion:
    piece = content[number * stream.step : (number + 1) * stream.step]
    return Portion(stream, number, None if left_out else lent(piece), crc64(piece))  # type: ignore[arg-type]


def arrive(stream: Stream, portion: Portion, hand_on: Callable[[Portion], None], cuts: list[int]) -> None:
    """What a lane does with a part that comes in pieces, which end at `cuts`."""
    if portion.buffer is None:
        stream.arrived(portion, 0, hand_on)
        return
    view, done = portion.buffer.view, 0
    for cut in [*sorted(cut for cut in cuts if cut < len(view)), len(view)]:
        done = stream.hash_ahead(portion.number, view[:cut], done)
    stream.arrived(portion, done, hand_on)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, int, list[int], list[int]]:
    content = draw(st.binary(max_size=200))
    step = draw(st.integers(1, 40))
    count = max(1, -(-len(content) // step))
    return content, step, draw(st.permutations(range(count))), draw(st.lists(st.integers(1, 39), max_size=4))


@given(deliveries())
def test_parts_in_any_order_give_the_digest_and_crc_of_the_whole(
    delivery: tuple[bytes, int, list[int], list[int]],
) -> None:
    content, step, order, cuts = delivery
    stream = stream_of(content, step)
    handed: list[int] = []
    for number in order:
        before = len(handed)
        arrive(stream, part(stream, content, number), lambda one: handed.append(one.number), cuts)
        arrived = set(order[: order.index(number) + 1])
        assert handed == list(range(len(handed)))
        assert len(handed) >= before
        assert len(handed) not in arrived  # nothing waits that could have been handed on
    assert handed == list(range(stream.count))
    assert stream.hexdigest == hashlib.sha256(content).hexdigest()
    assert stream.crc64 == crc64(content)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1 << 30), st.integers(2, 8))
def test_parts_from_many_threads_give_the_digest_and_crc_of_the_whole(seed: int, threads: int) -> None:
    content = random.Random(seed).randbytes(40 * KIB)
    stream = stream_of(content, KIB)
    order = iter(random.Random(seed).sample(range(stream.count), stream.count))
    taking, handed, failures = threading.Lock(), list[int](), list[BaseException]()

    def lane() -> None:
        try:
            while True:
                with taking:
                    number = next(order, None)
                if number is None:
                    return
                arrive(stream, part(stream, content, number), lambda one: handed.append(one.number), [7, 100])
        except BaseException as exc:
            failures.append(exc)

    crew = [threading.Thread(target=lane) for _ in range(threads)]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    assert not failures
    assert handed == list(range(stream.count))
    assert (stream.hexdigest, stream.crc64) == (hashlib.sha256(content).hexdigest(), crc64(content))


@given(deliveries(), st.sets(st.integers(0, 200)))
def test_parts_that_were_left_out_are_handed_on_in_their_place(
    delivery: tuple[bytes, int, list[int], list[int]], left_out: set[int]
) -> None:
    content, step, order, cuts = delivery
    stream = stream_of(content, step)
    stream.stop_hashing()
    handed: list[Portion] = []
    for number in order:
        arrive(stream, part(stream, content, number, left_out=number in left_out), handed.append, cuts)
    assert [one.number for one in handed] == list(range(stream.count))
    assert [one.number for one in handed if one.buffer is None] == sorted(left_out & set(order))
    assert [one.last for one in handed] == [False] * (stream.count - 1) + [True]
    assert stream.hexdigest is None


def test_a_part_is_hashed_while_it_comes_but_only_in_its_turn() -> None:
    content = os.urandom(300)
    stream = stream_of(content, 100)
    view = memoryview(content)
    assert stream.hash_ahead(1, view[100:150], 0) == 0
    assert stream.hash_ahead(0, view[:50], 0) == 50
    assert stream.hexdigest == hashlib.sha256(content[:50]).hexdigest()
    assert stream.hash_ahead(0, view[:100], 50) == 100
    stream.arrived(part(stream, content, 0), 100, lambda _: None)
    assert stream.hash_ahead(1, view[100:150], 0) == 50
    assert stream.hexdigest == hashlib.sha256(content[:150]).hexdigest()


# The whole of it: lanes, readers, memory


class Taken:
    """Whoever gets the parts: keeps their bytes, gives the memory back, and holds that each file's parts ascend."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self.files: dict[int, bytearray] = {}
        self.left_out: list[tuple[int, int]] = []
        self.numbers: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    def __call__(self, index: int, portion: Portion) -> None:
        with self._lock:
            self.numbers.setdefault(index, []).append(portion.number)
            if portion.buffer is None:
                self.left_out.append((index, portion.number))
                return
            self.files.setdefault(index, bytearray()).extend(portion.buffer.view)
        self._buffers.give(portion.buffer)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    """Files of many sizes; parts are 1 MiB here."""
    monkeypatch.setattr("stager.core.ranges.SMALLEST", MIB)
    sizes = {"a": 5 * MIB + 3, "b": 4 * MIB, "c": MIB, "d": 17, "empty": 0, "sub/e": 2 * MIB + 1}
    for name, size in sizes.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return DirectoryStore(str(tmp_path / "source"))


def content_of(source: DirectoryStore, name: str) -> bytes:
    return Path(source.root, name).read_bytes()


def streams_of(source: DirectoryStore) -> list[Stream]:
    return [Stream(Feed(one.name, one.size, one.etag), hashlib.sha256()) for one in source.list()]


def inflow_of(
    open_reader: Callable[[], Reader],
    streams: list[Stream],
    *,
    lanes: int = 4,
    buffer: int = 6 * MIB,
    hand_on: Callable[[int, Portion], None] | None = None,
    **options: Callable[[int, int], bool],
) -> tuple[Inflow, Taken]:
    buffers = Buffers(buffer)
    taken = Taken(buffers)
    spans = in_parts({at: one.feed.size for at, one in enumerate(streams)}, lanes)
    inflow = Inflow(
        open_reader,
        streams,
        spans,
        buffers,
        hand_on or taken,
        lanes=lanes,
        adapt=False,
        pauses=Pauses(),
        **options,
    )
    return inflow, taken


def assert_all_came(source: DirectoryStore, streams: list[Stream], taken: Taken) -> None:
    for index, stream in enumerate(streams):
        content = content_of(source, stream.feed.name)
        assert bytes(taken.files[index]) == content, stream.feed.name
        assert stream.hexdigest == hashlib.sha256(content).hexdigest()
        assert stream.crc64 == crc64(content)
        assert taken.numbers[index] == list(range(stream.count))


@pytest.mark.parametrize("lanes", [1, 3, 16])
@pytest.mark.parametrize("buffer", [MIB, 3 * MIB, 64 * MIB])
def test_files_come_in_whole(source: DirectoryStore, lanes: int, buffer: int) -> None:
    streams = streams_of(source)
    inflow, taken = inflow_of(source.reader, streams, lanes=lanes, buffer=buffer)
    anyio.run(inflow.run)
    assert_all_came(source, streams, taken)
    assert inflow.lanes.done == sum(one.feed.size for one in streams)
    assert (inflow.active(), inflow.stuck(), inflow.replaced) == ([], [], 0)


def test_broken_connections_change_nothing(source: DirectoryStore) -> None:
    faults = [
        Fault("read", after=0, times=3),
        Fault("read", after=100_000, times=5, name="a"),
        Fault("read", after=MIB, times=2, name="b"),  # all of it came, and then it went wrong
        Fault("read", after=9, times=1, name="d"),
        Fault("read", after=700_000, times=4, name="sub/*"),
    ]
    faulty = Faulty(source, faults)
    told: list[str] = []
    retrying = Retrying(
        faulty, give_up_after=20, pause=lambda _: None, on_retry=lambda doing, _: told.append(doing)
    )
    streams = streams_of(source)
    inflow, taken = inflow_of(retrying.reader, streams)
    anyio.run(inflow.run)
    assert_all_came(source, streams, taken)
    assert len(told) == 15
    assert not any(fault.times for fault in faults)
    assert inflow.lanes.done == sum(one.feed.size for one in streams)  # nothing is counted twice
    assert faulty.given() == inflow.lanes.done  # nor asked for twice


def test_parts_that_are_there_are_not_read(source: DirectoryStore) -> None:
    faulty = Faulty(source)
    streams = streams_of(source)
    index = next(at for at, one in enumerate(streams) if one.feed.name == "a")
    there = {(index, 0), (index, 2), (index, 5)}
    streams[index].stop_hashing()
    inflow, taken = inflow_of(faulty.reader, streams, leave_out=lambda at, number: (at, number) in there)
    anyio.run(inflow.run)
    assert sorted(taken.left_out) == sorted(there)
    assert taken.numbers[index] == list(range(6))
    content = content_of(source, "a")
    assert bytes(taken.files[index]) == content[MIB : 2 * MIB] + content[3 * MIB : 5 * MIB]
    read = sorted(call.offset for call in faulty.log if call.name == "a")
    assert read == [MIB, 3 * MIB, 4 * MIB]
    others = {at for at, one in enumerate(streams) if one.feed.name != "a"}
    assert all(bytes(taken.files[at]) == content_of(source, streams[at].feed.name) for at in others)


def test_an_error_of_who_takes_the_parts_ends_the_run(source: DirectoryStore) -> None:
    streams = streams_of(source)
    handed = Counter[int]()

    def hand_on(index: int, portion: Portion) -> None:
        handed[index] += 1
        if sum(handed.values()) > 5:
            raise NotFound("the destination is gone")

    inflow, _ = inflow_of(source.reader, streams, hand_on=hand_on, buffer=64 * MIB)
    with pytest.raises(NotFound, match="the destination is gone"):
        anyio.run(inflow.run)
    assert inflow.lanes.lanes == 0


@pytest.mark.parametrize(("error", "kind"), [(None, ObjectChanged), (RemoteError, RemoteError)])
def test_what_cannot_be_read_ends_the_run(
    source: DirectoryStore, error: type[RemoteError] | None, kind: type[Exception]
) -> None:
    streams = streams_of(source)
    faults = [Fault("read", name="b", times=9, error=partial(error, "no"))] if error is not None else []
    if error is None:
        Path(source.root, "b").write_bytes(b"something else")
    inflow, taken = inflow_of(Faulty(source, faults).reader, streams)
    with pytest.raises(kind):
        anyio.run(inflow.run)
    index = next(at for at, one in enumerate(streams) if one.feed.name == "b")
    assert len(taken.files.get(index, b"")) < streams[index].feed.size


def test_waiting_for_memory_ends_with_the_run(source: DirectoryStore) -> None:
    """Nobody gives memory back, as if the destination hung: the lanes that wait end when the run does."""
    streams = streams_of(source)
    inflow, _ = inflow_of(source.reader, streams, hand_on=lambda _index, _portion: None, buffer=2 * MIB)

    async def cut_short() -> None:
        with anyio.move_on_after(30) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(inflow.run)
                while len(inflow.active()) < 4:
                    await anyio.sleep(0.005)
                group.cancel_scope.cancel()
        assert not scope.cancelled_caught

    anyio.run(cut_short)
    assert (inflow.lanes.lanes, inflow.stuck()) == (0, [])


class Hanging:
    """A reader of which one read hangs, after some bytes, until it is interrupted."""

    def __init__(self, reader: Reader, hangs: Callable[[str, int], bool]) -> None:
        self._reader, self._hangs = reader, hangs
        self._roused = threading.Event()

    def read(
        self,
        name: str,
        offset: int,
        length: int,
        sink: Sink,
        *,
        etag: str | None = None,
        into: memoryview | None = None,
    ) -> StoredObject:
        self._roused.clear()
        if self._hangs(name, offset):
            self._reader.read(name, offset, 1000, sink, etag=etag, into=into)
            assert self._roused.wait(60)
            raise Interrupted("dropped")
        return self._reader.read(name, offset, length, sink, etag=etag, into=into)

    def interrupt(self) -> None:
        self._roused.set()
        self._reader.interrupt()

    def close(self) -> None:
        self._reader.close()


def test_a_connection_far_slower_than_others_is_dropped_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stager.core.ranges.SMALLEST", 4 * MIB)  # shorter requests tell nothing
    monkeypatch.setattr("stager.jobs.lines._SLOW_S", 0.05)
    for name in "ab":
        (tmp_path / name).write_bytes(os.urandom(24 * MIB + 5))
    source = DirectoryStore(str(tmp_path))
    streams = streams_of(source)
    hung: list[tuple[str, int]] = []

    def hangs(name: str, offset: int) -> bool:
        if (name, offset) == ("b", 20 * MIB) and not hung:
            hung.append((name, offset))
            return True
        return False

    inflow, taken = inflow_of(lambda: Hanging(source.reader(), hangs), streams, lanes=2, buffer=16 * MIB)

    async def watched() -> None:
        async with runtime.ticking(0.02, inflow.watch):
            await inflow.run()

    anyio.run(watched)
    assert hung
    assert inflow.replaced >= 1
    assert_all_came(source, streams, taken)


def test_too_little_memory_for_a_part_is_refused_in_words() -> None:
    feeds = [Feed("small", 5, "v"), Feed("large", 200_000_000_000, "v")]  # parts of 20 MiB
    streams = [Stream(feed) for feed in feeds]
    refuse_large(streams, 20 * MIB)
    refuse_large([], 0)
    with pytest.raises(ResourceRefused, match=r"`large` of 186\.3 GiB goes in parts of 20\.0 MiB") as caught:
        refuse_large(streams, 20 * MIB - 1)
    assert caught.value.hint == "give `--buffer 40.0MiB` or more"
