"""Whose destination it is: one pull at a time, the dead make room, and what is lost is noticed. In a look-alike OSS and in a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from stager.core.errors import AccessDenied, Busy, NotFound, RemoteError, StagerError
from stager.core.events import Event, Note
from stager.core.lease import EXPIRY_S, PATH, Lease
from stager.core.location import Location
from stager.engine import runtime
from stager.jobs.lease import INTERVALS, Intervals, Tenure, acquire
from stager.node import processes
from stager.store.base import Store, StoredObject, Upload
from stager.store.opening import StoreOptions, open_store
from tests.harness import ROOT, environment, until
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss

QUICK = Intervals(heartbeat=0.03, expiry=20.0, look=0.02, settle=0.05, farewell=1.0)
HOLD = """
import sys, anyio
from stager.core.location import Location
from stager.jobs.lease import acquire
from stager.store.opening import StoreOptions, open_store

async def main():
    store = open_store(Location.parse(sys.argv[1]), StoreOptions())
    await acquire(store, wait=False, reporter=None)
    print("held", flush=True)
    await anyio.sleep(60)

anyio.run(main)
"""


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, event: Event) -> None: ...

    def print_now(self, event: Event) -> None: ...

    def close(self) -> None: ...


@dataclass
class Destination:
    """A place for a lease, and hands that reach it behind the store's back."""

    url: str
    env: dict[str, str]
    read: Callable[[], bytes | None]
    write: Callable[[bytes], object]
    aged: Callable[[float], None]  # as if it had been written so many seconds earlier

    def store(self) -> Store:
        return open_store(Location.parse(self.url), StoreOptions(give_up_after=0.3))

    def lease(self) -> Lease:
        raw = self.read()
        assert raw is not None
        found = Lease.parse(raw)
        assert found is not None
        return found

    def take(self, *, wait: bool = False, heard: Heard | None = None, intervals: Intervals = QUICK) -> Tenure:
        return anyio.run(
            partial(acquire, self.store(), wait=wait, reporter=heard or Heard(), intervals=intervals)
        )

    def hold(self, body: Callable[[], Awaitable[None]], intervals: Intervals = QUICK) -> None:
        """A pull whose work is `body`, as the command does it."""

        async def main() -> None:
            tenure = await acquire(self.store(), wait=False, reporter=Heard(), intervals=intervals)
            try:
                async with tenure.kept():
                    await body()
            finally:
                await tenure.release()

        anyio.run(main)


@pytest.fixture
def bucket(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Destination:
    for name, value in oss.env().items():
        monkeypatch.setenv(name, value)
    key = f"r1/{PATH}"

    def read() -> bytes | None:
        return oss.get(key) if key in oss.names() else None

    def aged(seconds: float) -> None:
        oss.bucket.objects[key].modified -= seconds

    return Destination(oss.url("r1"), oss.env(), read, lambda data: oss.put(key, data), aged)


@pytest.fixture
def folder(tmp_path: Path) -> Destination:
    path = tmp_path / "r1" / PATH

    def read() -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def write(data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def aged(seconds: float) -> None:
        written = path.stat().st_mtime - seconds
        os.utime(path, (written, written))

    return Destination(str(tmp_path / "r1"), {}, read, write, aged)


@pytest.fixture(params=["oss", "folder"])
def dest(request: pytest.FixtureRequest) -> Destination:
    found: Destination = request.getfixturevalue("bucket" if request.param == "oss" else "folder")
    return found


def stranger(**changes: object) -> Lease:
    """A pull on another host."""
    lease = Lease("theirs", "node-7", "another boot", 123, 5.0, "pid:[1]", time.time(), "1.0")
    return replace(lease, **changes)  # type: ignore[arg-type]


@contextmanager
def in_thread(call: Callable[[], None]) -> Iterator[list[BaseException]]:
    """`call` beside the body; what it raises, in the end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    yield raised
    thread.join(20)
    assert not thread.is_alive()


# Taking it


def test_it_says_who_has_it_and_is_gone_afterwards(dest: Destination) -> None:
    async def body() -> None:
        lease = dest.lease()
        assert (lease.host, lease.pid) == (os.uname().nodename, os.getpid())
        assert lease.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert abs(lease.started - time.time()) < 60
        assert processes.is_alive(lease.pid, lease.pid_start)

    dest.hold(body)
    assert dest.read() is None
    dest.hold(body)


def test_the_second_is_refused_and_told_who_the_first_is(dest: Destination) -> None:
    dest.write(stranger().dump())
    dest.aged(30)
    before = dest.read()
    with pytest.raises(Busy) as caught:
        dest.take()
    error = caught.value
    assert (error.exit_code, error.slug, error.retryable) == (5, "busy", True)
    assert f"another pull into `{dest.url}` is under way: node-7, pid 123, since " in error.message
    assert re.search(r"last seen alive 3\d(\.\d)? ?s ago", error.message), error.message
    assert error.hint is not None
    assert "`--wait`" in error.hint
    assert re.search(r"by itself in (10|\d(\.\d)?) ?s", error.hint), error.hint
    assert dest.read() == before, "not touched"


def test_a_wait_ends_when_the_holder_does(dest: Destination) -> None:
    ended: list[bool] = []
    heard = Heard()

    async def body() -> None:
        while not heard.events:
            await anyio.sleep(0.01)
        await anyio.sleep(0.1)  # some more looks
        ended.append(True)

    with in_thread(lambda: dest.hold(body)) as raised:
        until(dest.read, "the first to have it")
        tenure = dest.take(wait=True, heard=heard)
        assert ended
    assert raised == []
    assert [event.code for event in heard.events] == ["waiting"]  # type: ignore[attr-defined]
    assert f"pid {os.getpid()}" in heard.events[0].text()
    assert dest.lease().pid == os.getpid()
    anyio.run(tenure.release)


def test_a_holder_killed_on_this_node_makes_room_at_once(dest: Destination) -> None:
    words = [sys.executable, "-c", HOLD, dest.url]
    child = subprocess.Popen(words, env=environment(**dest.env), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"pid {child.pid}"):
            dest.take()
    finally:
        child.kill()
    until(lambda: processes.status_fields(child.pid)[:1] in (["Z"], []), "its death")
    anyio.run(dest.take(intervals=QUICK).release)  # nobody has waited for it yet
    child.wait()
    dest.write(stranger_here(child.pid, 5.0))
    anyio.run(dest.take().release)


def stranger_here(pid: int, start: float) -> bytes:
    """The lease of a process of this node."""
    here = {"boot_id": processes.boot_id(), "pid_namespace": processes.pid_namespace()}
    return stranger(host=os.uname().nodename, pid=pid, pid_start=start, **here).dump()


def test_a_later_process_with_its_number_is_not_the_holder(dest: Destination) -> None:
    me = os.getpid()
    dest.write(stranger_here(me, processes.start_of(me)))
    with pytest.raises(Busy):
        dest.take()
    dest.write(stranger_here(me, processes.start_of(me) - 1))
    anyio.run(dest.take().release)


def test_the_lease_of_another_host_expires(dest: Destination) -> None:
    dest.write(stranger().dump())
    dest.aged(EXPIRY_S - 5)
    with pytest.raises(Busy):
        dest.take()
    dest.aged(6)
    tenure = dest.take()
    assert dest.lease().pid == os.getpid()
    anyio.run(tenure.release)
    assert dest.read() is None


@pytest.mark.parametrize("raw", [b"", b"{", b"x" * (65 << 10)], ids=["empty", "half", "long"])
def test_a_lease_that_cannot_be_read_is_live_while_it_is_fresh(dest: Destination, raw: bytes) -> None:
    dest.write(raw)
    with pytest.raises(Busy, match="whose lease cannot be read"):
        dest.take()
    dest.aged(EXPIRY_S + 1)
    anyio.run(dest.take().release)
    assert dest.read() is None


def test_what_is_too_long_for_a_lease_is_not_read(oss: Oss, bucket: Destination) -> None:
    oss.put_zeros(f"r1/{PATH}", 1 << 30)
    with pytest.raises(Busy):
        bucket.take()
    assert oss.bytes_sent() == 0


def test_of_many_that_begin_at_once_one_wins(dest: Destination) -> None:
    for dead in (None, stranger().dump()):
        if dead is not None:
            dest.write(dead)
            dest.aged(EXPIRY_S + 1)
        barrier, outcomes = threading.Barrier(5), []

        def contend(barrier: threading.Barrier = barrier, outcomes: list[object] = outcomes) -> None:
            barrier.wait()
            try:
                outcomes.append(dest.take(intervals=replace(QUICK, settle=0.3)))
            except Busy as exc:
                outcomes.append(exc)

        threads = [threading.Thread(target=contend) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [one for one in outcomes if isinstance(one, Tenure)]
        assert len(outcomes) == 5
        # A taker that was held up for longer than the others settle takes theirs, and they learn it from their next heartbeat.
        assert len(winners) == 1 or (winners and dead is not None), outcomes
        assert dest.lease().token in [one._lease.token for one in winners]
        for one in winners:
            anyio.run(one.release)
        assert dest.read() is None


def test_a_slow_taker_deletes_the_lease_of_a_fast_one_and_one_has_it_in_the_end(dest: Destination) -> None:
    """Both have found the same dead lease; the slow one has looked for the last time before the fast one writes."""
    dest.write(stranger().dump())
    dest.aged(EXPIRY_S + 1)
    slow = dest.store()
    fast_wrote, slow_looked = threading.Event(), threading.Event()
    delete = slow.delete

    def late(names: list[str]) -> None:
        slow_looked.set()
        assert fast_wrote.wait(10)
        delete(names)

    slow.delete = late  # type: ignore[method-assign, assignment]
    outcomes: list[Tenure] = []
    slow_has_it = threading.Event()

    def be_slow() -> None:
        outcomes.append(anyio.run(partial(acquire, slow, wait=False, reporter=Heard(), intervals=QUICK)))
        slow_has_it.set()

    with in_thread(be_slow) as raised:
        assert slow_looked.wait(10)
        fast = dest.store()
        look = fast.head

        def looking(name: str) -> StoredObject:
            written = Lease.parse(dest.read() or b"")
            if written is not None and written.token != "theirs":
                fast_wrote.set()
                assert slow_has_it.wait(10)
            return look(name)

        fast.head = looking  # type: ignore[method-assign]
        with pytest.raises(Busy):
            anyio.run(partial(acquire, fast, wait=False, reporter=Heard(), intervals=QUICK))
    assert raised == []
    assert dest.lease().token == outcomes[0]._lease.token


def test_one_that_came_to_life_meanwhile_is_left_alone(dest: Destination) -> None:
    """Somebody else has found it dead first, and it is theirs by the time that we want to replace it."""
    dest.write(stranger().dump())
    dest.aged(EXPIRY_S + 1)
    store, looks = dest.store(), []
    head = store.head

    def looking(name: str) -> StoredObject:
        looks.append(name)
        if len(looks) == 2:
            dest.write(stranger(token="faster", pid=7).dump())
        return head(name)

    store.head = looking  # type: ignore[method-assign]
    with pytest.raises(Busy, match="pid 7"):
        anyio.run(partial(acquire, store, wait=False, reporter=Heard(), intervals=QUICK))
    assert dest.lease().token == "faster"


def test_something_else_in_its_place_is_an_error_and_no_loop(folder: Destination) -> None:
    os.makedirs(os.path.join(folder.url, PATH))
    with pytest.raises(RemoteError, match="nobody can hold it"):
        folder.take()


def test_where_nothing_may_be_written_nothing_is_held(oss: Oss, bucket: Destination, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name, value in oss.env(oss.keys.new(denied={"put"})).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessDenied):
        bucket.take()
    with pytest.raises(NotFound):
        Destination("oss://no-such-bucket/r1", *[None] * 4).take()  # type: ignore[arg-type]


def test_an_answer_that_is_lost_leaves_it_ours(oss: Oss, bucket: Destination) -> None:
    oss.faults.add(Fault("lost", operation="PutObject", times=1))

    async def body() -> None:
        await anyio.sleep(0.1)

    bucket.hold(body)
    assert bucket.read() is None
    assert oss.log.count(fault="lost") == 1


# Keeping it


def beats(oss: Oss) -> int:
    return oss.log.count(operation="PutObject", status=200, key=f"*/{PATH}")


def test_heartbeats_come_and_end_with_it(oss: Oss, bucket: Destination) -> None:
    async def body() -> None:
        before = oss.bucket.objects[f"r1/{PATH}"].modified
        with anyio.fail_after(10):
            while beats(oss) < 5:
                await anyio.sleep(0.02)
        assert oss.bucket.objects[f"r1/{PATH}"].modified > before
        slow = oss.faults.add(Fault("hang", operation="HeadObject", seconds=0.3))
        with anyio.fail_after(10):
            while not slow.fired:
                await anyio.sleep(0.005)
        assert runtime.hanging() == [], "they are nobody's business"
        assert runtime.still() == 0

    bucket.hold(body)
    count = beats(oss)
    time.sleep(5 * QUICK.heartbeat)
    assert (beats(oss), bucket.read()) == (count, None)


def test_a_heartbeat_that_fails_is_made_up_for(oss: Oss, bucket: Destination) -> None:
    async def body() -> None:
        for op in ("HeadObject", "GetObject", "PutObject"):
            oss.faults.add(Fault("unavailable", operation=op, times=2, seconds=0))
        before = beats(oss)
        with anyio.fail_after(10):
            while beats(oss) < before + 3:
                await anyio.sleep(0.02)
        assert oss.log.count(fault="unavailable") == 6

    bucket.hold(body)


@pytest.mark.parametrize("fault", ["unavailable", "hang"])
def test_without_heartbeats_it_ends_before_others_take_it(oss: Oss, bucket: Destination, fault: str) -> None:
    async def body() -> None:
        oss.faults.add(Fault(fault, times=None, seconds=30 if fault == "hang" else 0))
        try:
            await anyio.sleep(20)
        finally:
            oss.faults.clear()

    with pytest.raises(RemoteError, match=r"could not be renewed for 0\.5"):
        bucket.hold(body, replace(QUICK, expiry=0.5, farewell=0.2))


def test_a_lease_that_was_taken_ends_the_holder(dest: Destination) -> None:
    async def body() -> None:
        dest.write(stranger().dump())
        await anyio.sleep(20)

    with pytest.raises(RemoteError, match=r"^another pull took over .*: node-7, pid 123") as caught:
        dest.hold(body)
    assert caught.value.exit_code == 5
    assert dest.lease().token == "theirs", "not given back: it is not ours"


def test_it_is_known_that_it_is_held_no_more(dest: Destination) -> None:
    async def main() -> None:
        tenure = await acquire(dest.store(), wait=False, reporter=Heard(), intervals=QUICK)
        known = [tenure.held]
        try:
            async with tenure.kept():
                dest.write(stranger().dump())
                try:
                    await anyio.sleep(20)
                finally:
                    known.append(tenure.held)
        finally:
            assert known == [True, False]

    with pytest.raises(RemoteError, match="took over"):
        anyio.run(main)


def test_a_lease_that_was_removed_ends_the_holder(dest: Destination) -> None:
    async def body() -> None:
        dest.store().delete([PATH])
        await anyio.sleep(20)

    with pytest.raises(RemoteError, match=r"^another pull took over"):
        dest.hold(body)
    assert dest.read() is None, "and is not written again"


@pytest.mark.parametrize("left", [b"{", None], ids=["half", "nothing"])
def test_a_write_that_broke_off_is_mended(folder: Destination, left: bytes | None) -> None:
    """Where objects lie behind a mount, a write that fails leaves less than there was."""
    tenure = folder.take()
    bare = tenure._bare
    upload, failed = bare.upload, []

    def breaking(name: str, size: int, **options: object) -> Upload:
        bare.upload = upload  # type: ignore[method-assign]
        if left is None:
            bare.delete([PATH])
        else:
            folder.write(left)
        failed.append(name)
        made = upload(name, size, **options)  # type: ignore[arg-type]

        def refused() -> StoredObject:
            raise RemoteError("EIO at close")

        made.complete = refused  # type: ignore[method-assign]
        return made

    async def main() -> None:
        bare.upload = breaking  # type: ignore[method-assign, assignment]
        async with tenure.kept():
            with anyio.fail_after(10):
                while not failed or (raw := folder.read()) is None or Lease.parse(raw) is None:
                    await anyio.sleep(0.01)
        await tenure.release()

    anyio.run(main)
    assert folder.read() is None


def test_what_the_body_raises_comes_out(dest: Destination) -> None:
    async def body() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        dest.hold(body)
    assert dest.read() is None


# Giving it back


def test_nothing_is_written_after_it_was_given_back(dest: Destination) -> None:
    """By a heartbeat that was on its way, or a claim that was left behind."""
    tenure = dest.take()
    anyio.run(tenure.release)
    assert tenure._renew() is None
    assert not tenure._take(None)
    assert dest.read() is None


def test_cancelled_it_is_given_back(dest: Destination) -> None:
    async def main() -> None:
        async def body() -> None:
            await anyio.sleep(20)

        with anyio.move_on_after(0.15):
            tenure = await acquire(dest.store(), wait=False, reporter=Heard(), intervals=QUICK)
            try:
                async with tenure.kept():
                    await body()
            finally:
                await tenure.release()

    anyio.run(main)
    assert dest.read() is None


def test_cancelled_while_it_is_taken_nothing_stays_behind(oss: Oss, bucket: Destination) -> None:
    oss.faults.add(Fault("hang", operation="PutObject", seconds=0.5))

    async def main() -> None:
        with anyio.move_on_after(0.2) as scope:
            await acquire(bucket.store(), wait=False, reporter=Heard(), intervals=QUICK)
        assert scope.cancelled_caught

    anyio.run(main)
    until(lambda: not runtime.hanging(), "the call that was left behind")
    assert bucket.read() is None


def test_a_store_that_does_not_answer_holds_nobody_up(oss: Oss, bucket: Destination) -> None:
    tenure = bucket.take(heard=(heard := Heard()), intervals=replace(QUICK, farewell=0.2))
    oss.faults.add(Fault("hang", times=None, seconds=60))
    began = time.monotonic()
    anyio.run(tenure.release)
    assert time.monotonic() - began < 30
    oss.faults.clear()
    assert [one.code for one in heard.events] == ["lease_left"]  # type: ignore[attr-defined]
    assert "no answer in time" in heard.events[0].text()


def test_a_key_that_may_not_delete_leaves_it_behind_and_says_so(oss: Oss, bucket: Destination) -> None:
    tenure = bucket.take(heard=(heard := Heard()))
    oss.faults.add(
        Fault("error", times=None, operation="DeleteMultipleObjects", status=403, code="AccessDenied")
    )
    anyio.run(tenure.release)
    anyio.run(tenure.release)
    [note] = heard.events
    assert isinstance(note, Note)
    assert (note.level, note.code) == ("warning", "lease_left")
    assert "oss://models/r1` may be left there" in note.message
    assert "access is denied" in note.message
    seconds = re.search(r"ends by itself in (\d+)", note.hint or "")
    assert seconds is not None
    assert 0 <= int(seconds[1]) <= EXPIRY_S
    assert bucket.read() is not None
    bucket.aged(EXPIRY_S + 1)
    with pytest.raises(AccessDenied):
        bucket.take()
    oss.faults.clear()
    anyio.run(bucket.take(heard=(heard := Heard())).release)
    assert heard.events == []


def test_the_usual_times() -> None:
    assert (INTERVALS.heartbeat, INTERVALS.expiry, INTERVALS.look, INTERVALS.settle) == (10, 40, 2, 1)
    assert INTERVALS.farewell == 2
    assert issubclass(Busy, RemoteError)
    assert issubclass(Busy, StagerError)
