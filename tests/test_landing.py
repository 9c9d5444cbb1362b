"""What a pull's uploads go on with, what counts as movement meanwhile, and uploads that cannot be taken back."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from stager.core.errors import AccessDenied
from stager.core.events import Note
from stager.engine import runtime
from stager.jobs.landing import Landing
from stager.jobs.lines import Pauses
from stager.jobs.transfer import Transfer
from stager.jobs.transit import Transit
from stager.store import directory_upload, mounted
from stager.store.directory import DirectoryStore
from stager.store.retry import Retrying
from tests.faulty import Fault, Faulty
from tests.hubs import Quiet, StatingHub, options_for

MIB = 1 << 20
SIZE = 20 * MIB + 5
NAME = "model.bin"


@pytest.fixture(autouse=True)
def _parts_of_1_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stager.core.ranges.SMALLEST", MIB)


@pytest.fixture
def hub(tmp_path: Path) -> StatingHub:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / NAME).write_bytes(bytes(SIZE))
    return StatingHub(tmp_path / "hub")


def left_behind(store: DirectoryStore, parts: int) -> dict[str, str]:
    """What a run leaves that was killed after so many parts, as the next one lists it."""
    upload = store.upload(NAME, SIZE)
    for number in range(1, parts + 1):
        upload.part(number, memoryview(bytes(MIB)))
    del upload
    return listed(store)


def listed(store: DirectoryStore) -> dict[str, str]:
    return {one.name: one.upload_id for one in store.unfinished()}


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Sums up what is read back slowly: so it is where a mount reads slowly."""
    real = directory_upload.crc64

    def summed(data: Any, before: int = 0) -> int:
        time.sleep(seconds)
        return real(data, before)

    for module in (directory_upload, mounted):
        monkeypatch.setattr(module, "crc64", summed)


def moving(hub: StatingHub, landing: Landing, pauses: Pauses, **options: Any) -> Any:
    """What moves the file, going on with what is there."""
    [file] = hub.snapshot().files
    told = options_for(lanes=1, buffer=8 * MIB, **options)
    transfer = Transfer(hub, landing, told, Quiet(), pauses=pauses, side_by_side=False)
    return transfer, partial(transfer.run, [Transit(landing, file, hashed=True, resume=True)], None)


@pytest.mark.parametrize("in_place", [False, True], ids=["folder", "mount"])
def test_reading_back_what_is_there_is_no_standstill(
    hub: StatingHub, tmp_path: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path / "to"), in_place=in_place)
    begun = left_behind(store, 15)
    slow(monkeypatch, 0.13)
    pauses = Pauses()
    transfer, run = moving(hub, Landing(store, begun, Quiet(), pauses), pauses, stall_timeout=1.5)
    [moved] = anyio.run(run)
    assert moved.resumed == transfer.resumed == 15 * MIB
    assert (tmp_path / "to" / NAME).read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("in_place", [False, True], ids=["folder", "mount"])
def test_a_stop_ends_the_reading_back(
    hub: StatingHub, tmp_path: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path / "to"), in_place=in_place)
    begun = left_behind(store, 15)
    slow(monkeypatch, 0.1)
    pauses = Pauses()
    transfer, run = moving(hub, Landing(store, begun, Quiet(), pauses), pauses)

    async def stopped() -> None:
        with runtime.deadline(30) as expired:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                while not pauses.last_move:
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
        assert not expired()

    anyio.run(stopped)
    assert transfer.stuck() == []
    assert listed(store) == begun, "nothing of it is lost"


def test_only_the_upload_that_was_listed_goes_on(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path), in_place=False)
    begun = left_behind(store, 2)
    pauses = Pauses()
    assert len(Landing(store, begun, Quiet(), pauses).upload(NAME, SIZE, resume=True).parts) == 2
    assert Landing(store, begun, Quiet(), pauses).upload(NAME, SIZE).parts == ()
    left_behind(store, 2)
    assert Landing(store, {}, Quiet(), pauses).upload(NAME, SIZE, resume=True).parts == ()
    left_behind(store, 3)  # since then
    assert Landing(store, begun, Quiet(), pauses).upload(NAME, SIZE, resume=True).parts == ()


def test_an_abort_that_fails_is_told_and_not_raised(tmp_path: Path) -> None:
    denied = Fault("abort", times=99, error=lambda: AccessDenied("may not abort"))
    store = Retrying(Faulty(DirectoryStore(str(tmp_path), in_place=False), [denied]), give_up_after=0)
    reporter = Quiet()
    landing = Landing(store, {}, reporter, Pauses())
    for number in range(8):
        landing.upload(f"{NAME}-{number}", SIZE).abort()
    told = [one for one in reporter.events if isinstance(one, Note)]
    assert [one.code for one in told] == ["upload_left"] * 5
    assert "may not abort" in told[0].message


def test_the_rest_passes_through(tmp_path: Path) -> None:
    landing = Landing(DirectoryStore(str(tmp_path)), {}, Quiet(), Pauses())
    upload = landing.upload("a", 3)
    upload.part(1, memoryview(b"abc"))
    upload.complete()
    assert landing.root == str(tmp_path)
    assert [one.name for one in landing.list()] == ["a"]
    assert landing.head("a").size == 3
    got = bytearray()
    landing.reader().read("a", 0, 3, got.extend)
    assert bytes(got) == b"abc"
    landing.delete(["a"])
    assert list(landing.list()) == []
