"""The bytes of a pull, between a hub and a store: many files at once, memory that is bounded, and what comes wrong."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from stager.core.checksum import crc64
from stager.core.errors import DeadlineExceeded, IntegrityError, NotFound, RemoteError, ResourceRefused
from stager.core.location import Location
from stager.core.model import FileEntry
from stager.engine import runtime
from stager.jobs.inflow import Portion
from stager.jobs.lines import Pauses
from stager.jobs.transfer import Transfer
from stager.jobs.transit import Transit
from stager.store.base import Reader, Store
from stager.store.directory import DirectoryStore
from stager.store.opening import StoreOptions, open_store
from stager.store.retry import Retrying
from tests.faulty import Fault as Script
from tests.faulty import Faulty
from tests.hubs import Quiet, StatingHub, options_for
from tests.mapped import Mapped
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss

MIB = 1 << 20
SIZES = {
    "config.json": 700,
    "empty.txt": 0,
    "model-1.safetensors": 5 * MIB + 3,
    "model-2.safetensors": 4 * MIB,
    "model-3.safetensors": 3 * MIB - 1,
    "one.bin": MIB,
    "sub/deep/model.bin": 2 * MIB + 1,
    "tokenizer.json": 90_000,
}
TOTAL = sum(SIZES.values())


@pytest.fixture(autouse=True)
def _parts_of_1_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stager.core.ranges.SMALLEST", MIB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has. Not to be changed."""
    folder = tmp_path_factory.mktemp("hub")
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    return folder


@pytest.fixture
def hub(folder: Path) -> StatingHub:
    return StatingHub(folder)


class Bed:
    """A hub, a destination, and transfers between them."""

    def __init__(self, hub: StatingHub, store: Store, pauses: Pauses, *, side_by_side: bool) -> None:
        self.hub, self.store, self.pauses, self.side_by_side = hub, store, pauses, side_by_side
        self.reporter = Quiet()

    def transits(self, **options: Any) -> list[Transit]:
        files = self.hub.snapshot().files
        return [Transit(self.store, one, **({"hashed": True} | options)) for one in files]

    def transfer(self, reader: Callable[[], Reader] | None = None, **options: Any) -> Transfer:
        hub = self.hub
        if reader is not None:
            hub = StatingHub(hub.path)
            hub.reader = reader  # type: ignore[method-assign]
        told = options_for(**({"lanes": 6, "buffer": 8 * MIB} | options))
        return Transfer(
            hub, self.store, told, self.reporter, pauses=self.pauses, side_by_side=self.side_by_side
        )

    def run(self, transfer: Transfer, transits: list[Transit]) -> list[Transit]:
        def again(one: Transit) -> Transit:
            return Transit(self.store, one.file, hashed=True)

        return anyio.run(transfer.run, transits, again)

    def content(self, name: str) -> bytes:
        """By a reader of its own, with neither retry nor lanes."""
        got = bytearray()
        self.store.reader().read(name, 0, self.store.head(name).size, got.extend)
        return bytes(got)

    def assert_all_there(self, moved: list[Transit]) -> None:
        assert sorted(one.file.entry.path for one in moved) == sorted(SIZES)
        assert [one.name for one in self.store.list()] == sorted(SIZES)
        for one in moved:
            path = one.file.entry.path
            content = (self.hub.path / path).read_bytes()
            assert self.content(path) == content, path
            digest = hashlib.sha256(content).hexdigest()
            assert one.done == FileEntry(path, len(content), digest, crc64(content))


def bed_in_oss(hub: StatingHub, oss: Oss, monkeypatch: pytest.MonkeyPatch, patience: float = 10.0) -> Bed:
    for name, value in oss.env().items():
        monkeypatch.setenv(name, value)
    pauses = Pauses()
    options = StoreOptions(give_up_after=patience)
    store = open_store(Location.parse(oss.url("r1")), options, pause=pauses)
    return Bed(hub, store, pauses, side_by_side=True)


def bed_in_folder(hub: StatingHub, path: Path, *, in_place: bool) -> Bed:
    store = Retrying(DirectoryStore(str(path), in_place=in_place), give_up_after=10)
    return Bed(hub, store, Pauses(), side_by_side=False)


@pytest.fixture
def in_oss(hub: StatingHub, oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Bed:
    return bed_in_oss(hub, oss, monkeypatch)


@pytest.fixture(params=["oss", "folder", "mount"])
def bed(
    request: pytest.FixtureRequest, hub: StatingHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bed:
    if request.param == "oss":
        return bed_in_oss(hub, request.getfixturevalue("oss"), monkeypatch)
    return bed_in_folder(hub, tmp_path / "there", in_place=request.param == "mount")


@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_files_arrive_whole_and_each_byte_is_read_once(bed: Bed, lanes: int) -> None:
    transfer = bed.transfer(lanes=lanes)
    moved = bed.run(transfer, bed.transits())
    bed.assert_all_there(moved)
    assert bed.hub.given.total() == TOTAL
    assert (transfer.pulled, transfer.landed, transfer.resumed) == (TOTAL, TOTAL, 0)
    assert (transfer.mended, transfer.replaced, transfer.stuck()) == (0, 0, [])
    last = bed.reporter.last
    assert last is not None
    assert (last.done, last.total, last.files_done, last.files_total) == (
        TOTAL,
        TOTAL,
        len(SIZES),
        len(SIZES),
    )


@pytest.mark.parametrize("states", ["blob", "nothing"])
def test_files_without_a_sha256_arrive_as_well(in_oss: Bed, states: str) -> None:
    in_oss.hub.states = states
    moved = in_oss.run(in_oss.transfer(), in_oss.transits())
    assert all(in_oss.content(name) == (in_oss.hub.path / name).read_bytes() for name in SIZES)
    assert all(one.done is not None and one.done.sha256 is not None for one in moved)


def test_parts_of_the_real_size(tmp_path: Path, oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    bed = bed_in_oss(StatingHub(tmp_path), oss, monkeypatch)
    content = os.urandom(33 * MIB + 5)
    (tmp_path / "a").write_bytes(content)
    bed.run(bed.transfer(buffer=32 * MIB), bed.transits())
    assert bed.content("a") == content
    sent = [one.bytes_received for one in oss.log.records(operation="UploadPart")]
    assert sorted(sent) == [MIB + 5, 16 * MIB, 16 * MIB]


# Memory


@pytest.mark.parametrize("buffer", [MIB, 3 * MIB + 100])
def test_memory_is_never_more_than_agreed(bed: Bed, buffer: int, mapped: Mapped) -> None:
    moved = bed.run(bed.transfer(buffer=buffer, lanes=16), bed.transits())
    bed.assert_all_there(moved)
    assert MIB <= mapped.most <= buffer


def test_memory_of_a_round_goes_with_it(bed: Bed, mapped: Mapped) -> None:
    bed.hub.damaged[bed.transits()[0].file.entry.path] = 1  # a second round
    transfer = bed.transfer()
    moved = bed.run(transfer, bed.transits())
    bed.assert_all_there(moved)
    assert transfer.mended == 1
    gc.collect()
    assert mapped.now == 0


def test_bytes_count_as_they_go_out(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that takes longer than --stall-timeout is no standstill."""
    seen: list[int] = []
    real = Transit.send

    def send(self: Transit, portion: Portion, checkpoint: Callable[[int], None]) -> None:
        def counted(size: int) -> None:
            seen.append(size)
            checkpoint(size)

        real(self, portion, counted)

    monkeypatch.setattr(Transit, "send", send)
    transfer = bed.transfer()
    bed.run(transfer, bed.transits())
    total = sum(one.entry.size for one in bed.hub.snapshot().files)
    assert sum(seen) == total
    assert transfer._outflows[0].lanes.done == total


def test_a_destination_that_hangs_holds_up_the_hub(in_oss: Bed, oss: Oss, mapped: Mapped) -> None:
    """While nothing is taken, no more is read than there is memory for."""
    gate, real = threading.Event(), oss.storage.incoming
    waiting = threading.Semaphore(0)

    def incoming() -> Any:
        waiting.release()
        assert gate.wait(60)
        return real()

    oss.storage.incoming = incoming

    def open_up() -> None:
        for _ in range(3):
            assert waiting.acquire(timeout=60)
        seen.append(in_oss.hub.given.total())
        gate.set()

    seen: list[int] = []
    opener = threading.Thread(target=open_up)
    opener.start()
    moved = in_oss.run(in_oss.transfer(buffer=4 * MIB), in_oss.transits())
    opener.join()
    in_oss.assert_all_there(moved)
    assert 0 < seen[0] <= 4 * MIB
    assert mapped.most <= 4 * MIB


def test_a_buffer_that_holds_no_part_is_refused_before_anything_moves(in_oss: Bed, oss: Oss) -> None:
    transfer = in_oss.transfer(buffer=MIB - 1)
    with pytest.raises(ResourceRefused, match=r"goes in parts of 1\.0 MiB") as caught:
        in_oss.run(transfer, in_oss.transits())
    assert caught.value.hint is not None
    assert "--buffer" in caught.value.hint
    assert oss.log.count() == 0
    assert in_oss.hub.given.total() == 0


# What comes wrong


@pytest.mark.parametrize("name", ["model-1.safetensors", "one.bin", "config.json"])
def test_what_came_wrong_once_is_mended(bed: Bed, name: str) -> None:
    bed.hub.damaged[name] = 1
    transfer = bed.transfer()
    moved = bed.run(transfer, bed.transits())
    bed.assert_all_there(moved)
    assert (transfer.mended, transfer.landed) == (1, TOTAL)
    assert bed.hub.given[name] == 2 * SIZES[name]
    assert bed.hub.given.total() == TOTAL + SIZES[name]


def test_a_digest_that_is_gits_finds_what_came_wrong(in_oss: Bed) -> None:
    in_oss.hub.states = "blob"
    in_oss.hub.damaged["model-2.safetensors"] = 1
    transfer = in_oss.transfer()
    in_oss.run(transfer, in_oss.transits())
    assert transfer.mended == 1
    assert all(in_oss.content(name) == (in_oss.hub.path / name).read_bytes() for name in SIZES)


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json"])
def test_what_came_wrong_twice_is_never_completed(
    bed: Bed, name: str, request: pytest.FixtureRequest
) -> None:
    bed.hub.damaged[name] = 99
    transfer = bed.transfer()
    with pytest.raises(IntegrityError, match=f"`{name}` came with the wrong checksum, twice"):
        bed.run(transfer, bed.transits())
    assert transfer.landed == TOTAL - SIZES[name], "nothing of it is there"
    with pytest.raises(NotFound):
        bed.store.head(name)
    assert [one.name for one in bed.store.list()] == sorted(SIZES.keys() - {name})
    if bed.side_by_side:
        oss: Oss = request.getfixturevalue("oss")
        assert oss.bucket.uploads == {}
        begun = oss.log.count(operation="InitiateMultipartUpload", key=f"r1/{name}")
        assert oss.log.count(operation="AbortMultipartUpload") == begun
    else:
        assert not list(Path(bed.store.root).rglob(".*.part"))


def test_what_was_read_back_and_removed_is_not_there(in_oss: Bed) -> None:
    transfer = in_oss.transfer()
    moved = in_oss.run(transfer, in_oss.transits())
    assert transfer.landed == TOTAL
    one = max(moved, key=lambda one: one.file.entry.size)
    one.retract()
    assert transfer.landed == TOTAL - one.file.entry.size
    assert one.done is None


def test_several_that_came_wrong_twice_are_counted(in_oss: Bed) -> None:
    in_oss.hub.damaged.update({"model-1.safetensors": 99, "model-2.safetensors": 99, "config.json": 99})
    with pytest.raises(IntegrityError, match=r"`config\.json` and 2 more"):
        in_oss.run(in_oss.transfer(), in_oss.transits())


def test_where_there_is_no_second_time_once_is_enough(in_oss: Bed) -> None:
    in_oss.hub.damaged["one.bin"] = 1
    with pytest.raises(IntegrityError):
        anyio.run(in_oss.transfer().run, in_oss.transits(), None)
    assert in_oss.hub.given["one.bin"] == SIZES["one.bin"]


def test_trouble_on_both_sides_changes_nothing(in_oss: Bed, oss: Oss) -> None:
    script = [
        Script("read", after=100_000, times=9, name="model-*"),
        Script("read", after=0, times=4, name="sub/*"),
        Script("read", after=10, times=2, name="config.json"),
    ]
    hub = Retrying(Faulty(in_oss.hub.store(), script), give_up_after=20, pause=in_oss.pauses)
    for kind, operation in [
        ("reset", "UploadPart"),
        ("wrong-crc", "UploadPart"),
        ("lost", "UploadPart"),
        ("error", "PutObject"),
        ("lost", "CompleteMultipartUpload"),
        ("unavailable", "InitiateMultipartUpload"),
    ]:
        oss.faults.add(Fault(kind, operation=operation, times=2, seconds=0))
    transfer = in_oss.transfer(hub.reader)
    moved = in_oss.run(transfer, in_oss.transits())
    in_oss.assert_all_there(moved)
    assert oss.faults.pending == 0
    assert not any(one.times for one in script)
    assert transfer.pulled == TOTAL


# Cut short, and gone on with


def test_a_destination_that_refuses_ends_it_and_keeps_what_was_sent(
    hub: StatingHub, oss: Oss, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = bed_in_oss(hub, oss, monkeypatch, patience=0.0)
    oss.faults.add(Fault("error", operation="UploadPart", key_glob="*model-2*", times=None, skip=3))
    transfer = bed.transfer(lanes=2)
    with pytest.raises(RemoteError):
        bed.run(transfer, bed.transits())
    assert transfer.stuck() == []
    assert transfer.seconds > 0
    there = {one.name for one in bed.store.list()}
    assert "model-2.safetensors" not in there
    oss.faults.clear()
    hub.given.clear()
    parts = {one.key.removeprefix("r1/"): one.parts for one in oss.bucket.uploads.values()}
    assert len(parts["model-2.safetensors"]) == 3
    sent = sum(part.content.size for some in parts.values() for part in some.values())
    left = [one for one in bed.transits(resume=True) if one.file.entry.path not in there]
    again = bed.transfer()
    moved = bed.run(again, left)
    assert again.resumed == sent
    assert hub.given.total() + sent == sum(one.file.entry.size for one in left)
    assert {one.file.entry.path for one in moved if one.unproven} == parts.keys()
    assert [one.name for one in bed.store.list()] == sorted(SIZES)
    assert all(bed.content(name) == (hub.path / name).read_bytes() for name in SIZES)
    assert oss.bucket.uploads == {}


def test_what_an_earlier_run_sent_is_compared_where_the_source_is_near(bed: Bed) -> None:
    name = "model-1.safetensors"
    content = bytearray((bed.hub.path / name).read_bytes())
    content[MIB + 5] ^= 1  # the source was another then
    upload = bed.store.upload(name, len(content))
    for number in range(1, 4):
        upload.part(number, memoryview(content)[(number - 1) * MIB : number * MIB])
    del upload
    transfer = bed.transfer()
    moved = bed.run(transfer, bed.transits(resume=True, again_readable=True))
    bed.assert_all_there(moved)
    assert not any(one.unproven for one in moved)
    # Where parts only ascend, such a file begins anew.
    assert (transfer.resumed, transfer.mended) == ((2 * MIB, 0) if bed.side_by_side else (0, 1))


def test_an_error_of_the_hub_ends_it(in_oss: Bed) -> None:
    def gone() -> NotFound:
        end = time.monotonic() + 30
        while (
            not transfer.landed and time.monotonic() < end
        ):  # until somebody sends, and another waits for this
            time.sleep(0.005)
        return NotFound("gone")

    hub = Faulty(in_oss.hub.store(), [Script("read", name="one.bin", error=gone)])
    transfer = in_oss.transfer(hub.reader)
    with pytest.raises(NotFound, match="gone"):
        in_oss.run(transfer, in_oss.transits())
    assert transfer.stuck() == []
    assert [one.lanes.lanes for one in transfer._outflows] == [0]  # nobody waits for what will never come
    assert 0 < transfer.landed < TOTAL


def test_a_standstill_ends_it(in_oss: Bed, oss: Oss) -> None:
    oss.faults.add(Fault("hang", operation="UploadPart", seconds=30, times=None))
    transfer = in_oss.transfer(stall_timeout=0.4)

    async def run() -> None:
        await transfer.run(in_oss.transits(), None)

    with pytest.raises(DeadlineExceeded):
        anyio.run(run)
    assert transfer.landed < TOTAL
    oss.stop()  # the threads that were left behind end


def test_a_pull_that_is_cancelled_ends_soon_and_says_what_it_did(in_oss: Bed) -> None:
    transfer = in_oss.transfer(lanes=2)

    async def run() -> None:
        with runtime.deadline(30) as expired:
            async with anyio.create_task_group() as group:
                group.start_soon(transfer.run, in_oss.transits(), None)
                while transfer.landed < 2 * MIB:
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
        assert not expired()

    anyio.run(run)
    assert transfer.stuck() == []
    assert 2 * MIB <= transfer.landed <= transfer.pulled <= TOTAL
