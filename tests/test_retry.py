"""Retry: what is made again, what is not, for how long, and that no byte is given or fetched twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.core.errors import (
    AccessDenied,
    CannotServe,
    CredentialsExpired,
    IntegrityError,
    Interrupted,
    LocalIOError,
    MustRestore,
    NotFound,
    ObjectChanged,
    ObjectExists,
    RemoteError,
    StagerError,
)
from stager.core.ranges import SMALLEST as PART_SIZE
from stager.node.throttle import Throttle
from stager.store.base import BLOCK
from stager.store.directory import DirectoryStore
from stager.store.limit import Limited, LimitedReader
from stager.store.retry import Retrying, RetryingReader
from tests.faulty import Fault, Faulty


class Bench:
    """A folder behind faults behind retry, with a clock that only waiting moves."""

    def __init__(self, root: Path, *, give_up_after: float = 120.0, crc: bool = True) -> None:
        self.folder = DirectoryStore(str(root))
        self.faulty = Faulty(self.folder, crc=crc)
        self.now = 1000.0
        self.waits: list[float] = []  # one for each retry
        self.told: list[tuple[str, Exception]] = []
        self.store = Retrying(
            self.faulty,
            give_up_after=give_up_after,
            pause=self.pause,
            on_retry=self.on_retry,
            clock=lambda: self.now,
        )

    def pause(self, seconds: float) -> None:
        assert 0 < seconds <= 0.1, "short enough to be interrupted"
        self.now += seconds
        self.waits[-1] += seconds

    def on_retry(self, what: str, exc: Exception) -> None:
        self.told.append((what, exc))
        self.waits.append(0.0)

    def fails(self, call: str, **how: object) -> None:
        self.faulty.faults.append(Fault(call, **how))  # type: ignore[arg-type]

    def file(self, name: str, content: bytes) -> bytes:
        path = Path(self.folder.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return content


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# Reads


def test_a_read_goes_on_at_the_first_byte_not_yet_given(bench: Bench) -> None:
    content = bench.file("file", os.urandom(4 * BLOCK))
    for after in (BLOCK + 100, 0, 5, 2 * BLOCK):
        bench.fails("read", after=after)
    got = bytearray()
    stored = bench.store.reader().read(
        "file", 10, len(content) - 10, got.extend, etag=bench.folder.head("file").etag
    )
    assert bytes(got) == content[10:]
    assert stored == bench.folder.head("file")
    begun = [one.offset for one in bench.faulty.log]
    assert begun == [10, BLOCK + 110, BLOCK + 110, BLOCK + 115, 3 * BLOCK + 115]
    assert bench.faulty.given() == len(content) - 10
    assert [what for what, _ in bench.told] == ["read of `file`"] * 4


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3 * BLOCK), max_size=8), st.integers(0, BLOCK), st.integers(0, 2 * BLOCK))
def test_any_faults_give_each_byte_once(
    tmp_path_factory: pytest.TempPathFactory, faults: list[int], offset: int, length: int
) -> None:
    bench = Bench(tmp_path_factory.mktemp("root"))
    content = bench.file("file", os.urandom(3 * BLOCK))
    for after in faults:
        bench.fails("read", after=after)
    got = bytearray()
    bench.store.reader().read("file", offset, length, got.extend)
    assert bytes(got) == content[offset : offset + length]
    assert bench.faulty.given() == length


def test_a_fault_after_the_last_byte_fetches_none_of_them_again(bench: Bench) -> None:
    content = bench.file("file", os.urandom(BLOCK))
    bench.fails("read", after=BLOCK)
    got = bytearray()
    bench.store.reader().read("file", 0, BLOCK, got.extend)
    assert bytes(got) == content
    assert bench.faulty.given() == BLOCK


def test_a_read_without_an_etag_is_of_one_version(bench: Bench) -> None:
    bench.file("file", bytes(2 * BLOCK))
    bench.fails("read", after=BLOCK)

    def on_retry(what: str, exc: Exception) -> None:
        bench.file("file", b"x" * 2 * BLOCK)

    store = Retrying(bench.faulty, give_up_after=9, pause=lambda seconds: None, on_retry=on_retry)
    with pytest.raises(ObjectChanged):
        store.reader().read("file", 0, 2 * BLOCK, lambda block: None)


@pytest.mark.parametrize(
    "error", [ObjectChanged, CannotServe, Interrupted, NotFound, AccessDenied, MustRestore, LocalIOError]
)
@pytest.mark.parametrize("call", ["read", "head", "list", "part", "complete", "upload", "delete"])
def test_what_cannot_pass_is_not_made_again(bench: Bench, call: str, error: type[StagerError]) -> None:
    bench.file("file", b"12345")
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: bench.store.reader().read("file", 0, 5, lambda block: None),
        "head": lambda: bench.store.head("file"),
        "list": lambda: list(bench.store.list()),
        "upload": lambda: bench.store.upload("new", 1),
        "delete": lambda: bench.store.delete(["file"]),
    }
    upload = bench.store.upload("other", 1)
    calls["part"] = lambda: upload.part(1, memoryview(b"x"))
    if call == "complete":
        calls["part"]()
    calls["complete"] = upload.complete
    before = bench.faulty.attempts(call)
    bench.fails(call, error=lambda: error("no"))
    with pytest.raises(error, match="no"):
        calls[call]()
    assert bench.faulty.attempts(call) == before + 1
    assert bench.told == []


def test_what_a_sink_raises_comes_out_at_once_even_if_it_looks_like_the_store(bench: Bench) -> None:
    bench.file("file", b"12345")

    def sink(block: memoryview) -> None:
        raise RemoteError("mine")

    with pytest.raises(RemoteError, match="mine"):
        bench.store.reader().read("file", 0, 5, sink)
    assert bench.faulty.attempts("read") == 1


# For how long


def test_waits_double_up_to_ten_seconds_and_a_random_share_is_waited(bench: Bench) -> None:
    bench.fails("head", times=9999)
    with pytest.raises(RemoteError):
        bench.store.head("file")
    ceilings = [min(10.0, 0.1 * 2**number) for number in range(len(bench.waits))]
    assert all(wait <= ceiling + 1e-6 for wait, ceiling in zip(bench.waits, ceilings, strict=True))
    shares = [wait / ceiling for wait, ceiling in zip(bench.waits[:-1], ceilings, strict=False)]
    assert len({round(share, 3) for share in shares}) > len(shares) / 2, "not always the same share"
    assert bench.now - 1000 == pytest.approx(120), "and it is given up when nothing moved for so long"


def test_retry_after_is_waited_at_least(bench: Bench) -> None:
    bench.file("file", b"1")
    bench.fails("head", times=3, error=lambda: RemoteError("busy", retry_after=7))
    bench.store.head("file")
    assert all(7 <= wait <= 7.4 + 1e-6 for wait in bench.waits)


def test_a_wait_beyond_the_deadline_is_not_begun(tmp_path: Path) -> None:
    bench = Bench(tmp_path, give_up_after=5)
    bench.fails("head", error=lambda: RemoteError("busy", retry_after=6))
    with pytest.raises(RemoteError, match="busy"):
        bench.store.head("file")
    assert bench.faulty.attempts("head") == 1


def test_without_time_there_is_one_attempt(tmp_path: Path) -> None:
    bench = Bench(tmp_path, give_up_after=0)
    bench.fails("head")
    with pytest.raises(RemoteError):
        bench.store.head("file")
    assert bench.faulty.attempts("head") == 1


def test_a_first_failure_that_came_late_gets_a_second_attempt(tmp_path: Path) -> None:
    """With a low rate and many lanes, most of the time may have gone before the first byte was asked for."""
    bench = Bench(tmp_path, give_up_after=5)
    content = bench.file("file", os.urandom(100))

    def late() -> StagerError:
        bench.now += 60
        return RemoteError("reset")

    bench.fails("read", error=late)
    got = bytearray()
    bench.store.reader().read("file", 0, 100, got.extend)
    assert bytes(got) == content


def test_the_deadline_counts_from_the_last_byte(tmp_path: Path) -> None:
    bench = Bench(tmp_path, give_up_after=5)
    content = bench.file("file", os.urandom(100))
    for _ in range(100):
        bench.fails("read", after=1, error=lambda: RemoteError("busy", retry_after=1))
    got = bytearray()
    bench.store.reader().read("file", 0, 100, got.extend)
    assert bytes(got) == content
    assert bench.now - 1000 >= 99


def test_the_deadline_counts_from_the_last_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path, give_up_after=5)
    wanted = [f"{number:03}" for number in range(40)]
    for name in wanted:
        bench.file(name, b"x")
    bench.fails("list", after=1, times=39, error=lambda: RemoteError("busy", retry_after=1))
    found = []
    for one in bench.store.list():
        found.append(one.name)
        bench.now += 10  # what the caller does with it takes longer than the deadline
    assert found == wanted


def test_bytes_that_are_sent_again_are_no_progress(tmp_path: Path) -> None:
    bench = Bench(tmp_path, give_up_after=5)
    upload = bench.store.upload("file", 3 * BLOCK)
    bench.fails("part", times=9999, after=BLOCK)
    with pytest.raises(RemoteError):
        upload.part(1, memoryview(bytes(3 * BLOCK)))
    assert bench.now - 1000 == pytest.approx(5)


def test_expired_credentials_are_asked_for_again_a_few_times(bench: Bench) -> None:
    bench.file("file", b"1")
    bench.fails("head", times=2, error=lambda: CredentialsExpired("expired"))
    bench.store.head("file")
    bench.fails("head", times=9999, error=lambda: CredentialsExpired("expired"))
    with pytest.raises(CredentialsExpired):
        bench.store.head("file")
    assert bench.faulty.attempts("head") == 3 + 3


def test_credentials_may_expire_again_and_again_during_a_long_read(bench: Bench) -> None:
    content = bench.file("file", os.urandom(20))
    bench.fails("read", times=19, after=1, error=lambda: CredentialsExpired("expired"))
    got = bytearray()
    bench.store.reader().read("file", 0, 20, got.extend)
    assert bytes(got) == content


def test_waiting_that_raises_ends_the_call(bench: Bench) -> None:
    def pause(seconds: float) -> None:
        raise KeyboardInterrupt

    store = Retrying(bench.faulty, give_up_after=9, pause=pause)
    bench.file("file", b"1")
    for call in (lambda: store.head("file"), lambda: list(store.list()), lambda: store.delete(["file"])):
        bench.faulty.faults = [Fault(kind, times=9) for kind in ("head", "list", "delete")]
        with pytest.raises(KeyboardInterrupt):
            call()


# Interrupts


def test_an_interrupt_ends_the_wait_between_two_attempts(bench: Bench) -> None:
    bench.file("file", bytes(10))
    bench.fails("read", times=9999, error=lambda: RemoteError("busy", retry_after=60))
    waits = 0

    def pause(seconds: float) -> None:
        nonlocal waits
        waits += 1
        other = threading.Thread(target=reader.interrupt)
        other.start()
        other.join()

    reader = Retrying(bench.faulty, give_up_after=120, pause=pause).reader()
    reader.interrupt()  # nothing is under way
    with pytest.raises(Interrupted):
        reader.read("file", 0, 10, lambda block: None)
    assert waits == 1
    bench.faulty.faults.clear()
    got = bytearray()
    reader.read("file", 0, 10, got.extend)
    assert got == bytes(10)


def test_an_interrupt_between_two_blocks_is_not_retried(bench: Bench) -> None:
    bench.file("file", bytes(3 * BLOCK))
    reader = bench.store.reader()
    got = bytearray()

    def sink(block: memoryview) -> None:
        got.extend(block)
        reader.interrupt()

    with pytest.raises(Interrupted):
        reader.read("file", 0, 3 * BLOCK, sink)
    assert len(got) == BLOCK
    assert bench.faulty.attempts("read") == 1


class Slow:
    """A reader whose `interrupt` takes until the next read has begun, or a while."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.begun = threading.Event()
        self.interrupting = threading.Event()

    def read(self, name: str, offset: int, length: int, sink: object, **_: object) -> None:
        self.log.append("read")
        if self.log.count("read") == 2:
            self.begun.set()
        else:
            assert self.interrupting.wait(60)

    def interrupt(self) -> None:
        self.interrupting.set()
        self.begun.wait(0.2)
        self.log.append("interrupted")


@pytest.mark.parametrize("limited", [False, True])
def test_an_interrupt_never_hits_the_read_after(bench: Bench, limited: bool) -> None:
    slow = Slow()
    reader = (
        LimitedReader(slow, Throttle(1 << 40), lambda seconds: None)  # type: ignore[arg-type]
        if limited
        else RetryingReader(bench.store.retries, slow, bench.store.head)  # type: ignore[arg-type]
    )
    first = threading.Thread(target=reader.read, args=("a", 0, 0, None))
    first.start()
    while not slow.log:
        assert first.is_alive()
    other = threading.Thread(target=reader.interrupt)
    other.start()
    first.join()
    reader.read("b", 0, 0, lambda block: None)
    other.join()
    assert slow.log == ["read", "interrupted", "read"]


# Listings


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=6), st.integers(0, 12))
def test_a_listing_goes_on_after_the_last_name_given(
    tmp_path_factory: pytest.TempPathFactory, faults: list[int], count: int
) -> None:
    bench = Bench(tmp_path_factory.mktemp("root"))
    wanted = [f"a/{number:02}" for number in range(count)]
    for name in [*wanted, "b"]:
        bench.file(name, b"x")
    for after in faults:
        bench.fails("list", after=after)
    assert [one.name for one in bench.store.list("a/")] == wanted
    given_names = [one.name for one in bench.faulty.log if one.call == "list"]
    assert given_names == sorted(given_names), "each attempt begins after the last name of the one before"


def test_what_the_caller_of_a_listing_raises_is_not_retried(bench: Bench) -> None:
    bench.file("a", b"x")
    listing = bench.store.list()
    next(listing)
    with pytest.raises(RemoteError, match="mine"):
        listing.throw(RemoteError("mine"))  # type: ignore[attr-defined]
    assert bench.faulty.attempts("list") == 1


# Uploads


def sent(bench: Bench, name: str, content: bytes, **how: bool) -> None:
    upload = bench.store.upload(name, len(content), **how)
    for number, at in enumerate(range(0, max(1, len(content)), upload.part_size), start=1):
        upload.part(number, memoryview(content)[at : at + upload.part_size])
    stored = upload.complete()
    assert stored.size == len(content)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_an_upload_survives_a_fault_of_each_kind(bench: Bench, lost: bool, replace: bool) -> None:
    content = os.urandom(PART_SIZE + 100)
    for call in ("upload", "part", "part", "complete"):
        bench.fails(call, lost=lost, after=BLOCK, times=2)
    sent(bench, "file", content, replace=replace)
    assert Path(bench.folder.root, "file").read_bytes() == content


@pytest.mark.parametrize("replace", [False, True])
def test_a_completion_whose_answer_was_lost_is_found_done(bench: Bench, replace: bool) -> None:
    bench.fails("complete", lost=True)
    bench.fails("head", times=2)
    sent(bench, "file", b"new", replace=replace)
    assert bench.faulty.attempts("complete") == 2
    assert bench.faulty.attempts("head") == 3


@pytest.mark.parametrize(("replace", "error"), [(True, NotFound), (False, ObjectExists)])
def test_another_object_under_the_name_is_not_taken_for_ours(
    bench: Bench, replace: bool, error: type[StagerError]
) -> None:
    upload = bench.store.upload("file", 3, replace=replace)
    upload.part(1, memoryview(b"new"))
    bench.fails("complete", lost=True, error=lambda: bench.file("file", b"old") and RemoteError("reset"))
    with pytest.raises(error):
        upload.complete()


def test_without_a_crc_nothing_proves_that_the_object_is_ours(tmp_path: Path) -> None:
    bench = Bench(tmp_path, crc=False)
    bench.fails("complete", lost=True)
    with pytest.raises(NotFound):
        sent(bench, "file", b"new")


@pytest.mark.parametrize("call", ["part", "complete"])
def test_an_upload_that_ends_in_the_middle_can_be_begun_anew(bench: Bench, call: str) -> None:
    content = os.urandom(PART_SIZE + 100)
    upload = bench.store.upload("file", len(content))
    upload.part(1, memoryview(content)[:PART_SIZE])
    bench.fails(call, times=99, error=lambda: NotFound("no such upload"))

    def go_on() -> None:
        upload.part(2, memoryview(content)[PART_SIZE:])
        upload.complete()

    with pytest.raises(ObjectChanged, match=r"`file` is gone.*no such upload") as caught:
        go_on()
    assert "run it again" in (caught.value.hint or "")
    assert bench.faulty.attempts(call) == (2 if call == "part" else 1)


def test_a_place_that_is_not_there_is_none(bench: Bench) -> None:
    bench.fails("complete", error=lambda: NotFound("no such bucket"))
    with pytest.raises(NotFound):
        sent(bench, "file", b"new")


def test_an_object_that_was_there_first_is_not_ours_even_if_it_is_the_same(bench: Bench) -> None:
    upload = bench.store.upload("file", 3, replace=False)
    upload.part(1, memoryview(b"new"))
    bench.file("file", b"new")
    with pytest.raises(ObjectExists):
        upload.complete()


def test_wrong_bytes_are_not_completed_again(bench: Bench) -> None:
    bench.fails("complete", error=lambda: IntegrityError("crc"))
    with pytest.raises(IntegrityError):
        sent(bench, "file", b"new")


def test_parts_of_an_earlier_run_count_for_the_crc(bench: Bench) -> None:
    content = os.urandom(PART_SIZE + 100)
    first = bench.store.upload("file", len(content))
    first.part(1, memoryview(content)[:PART_SIZE])
    del first
    upload = bench.store.upload("file", len(content), resume=True)
    assert [part.number for part in upload.parts] == [1]
    upload.part(2, memoryview(content)[PART_SIZE:])
    bench.fails("complete", lost=True)
    assert upload.complete().size == len(content)


def test_what_pacing_raises_comes_out_at_once(bench: Bench) -> None:
    upload = bench.store.upload("file", 3)

    def pace(size: int) -> None:
        raise RemoteError("mine")

    with pytest.raises(RemoteError, match="mine"):
        upload.part(1, memoryview(b"new"), pace=pace)
    assert bench.faulty.attempts("part") == 1


@pytest.mark.parametrize("call", ["delete", "abort"])
def test_deleting_and_aborting_are_made_again(bench: Bench, call: str) -> None:
    bench.file("file", b"1")
    upload = bench.store.upload("new", 1)
    bench.fails(call, times=2)
    bench.store.delete(["file"]) if call == "delete" else upload.abort()
    assert bench.faulty.attempts(call) == 3
    assert os.listdir(bench.folder.root) == ([".new.part"] if call == "delete" else ["file"])


def test_the_adapter_can_be_reached(bench: Bench) -> None:
    assert bench.store.adapter is bench.faulty
    limited = Limited(bench.faulty, 1 << 30, lambda seconds: None)
    assert Retrying(limited, give_up_after=1).adapter is bench.faulty
    assert bench.store.root == bench.folder.root
