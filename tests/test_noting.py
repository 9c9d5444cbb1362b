"""What a pull notes while it runs: now and then, when it ends badly, never too late, and never in another's place."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from stager.core.errors import AccessDenied, RemoteError
from stager.core.manifest import COMPLETE, PATH, UPDATING, Manifest
from stager.core.model import FileEntry
from stager.engine import runtime
from stager.hub.base import HubFile, Snapshot
from stager.jobs.ledger import Ledger
from stager.jobs.noting import noted
from stager.jobs.stock import Standing
from stager.store.directory import DirectoryStore
from tests.faulty import Fault, Faulty

DATA = b"weights"
ROW = FileEntry("a", len(DATA), hashlib.sha256(DATA).hexdigest(), 17)


class Bench:
    """A ledger that has begun, and what a pull has finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Faulty(DirectoryStore(str(folder)))
        file = HubFile(FileEntry("a", len(DATA), ROW.sha256), "v")
        self.ledger = Ledger(self.store, Snapshot("ms://o/n", "r", (file,)), [file], Standing({}))
        self.ledger.begin({}, [])
        self.finished: dict[str, FileEntry] = {}
        self.held = True

    def manifest(self) -> Manifest:
        return Manifest.parse((self.folder / PATH).read_bytes())

    def knows(self) -> bool:
        """Whether the manifest has the row."""
        return self.manifest().rows()["a"].crc64 is not None

    def run(self, body: Callable[[], Awaitable[None]], interval: float = 0.01) -> None:
        """`body` beside the notes; half a minute at most."""

        async def main() -> None:
            with runtime.deadline(30) as expired:
                async with noted(
                    self.ledger, lambda: (self.finished, ()), lambda: self.held, interval=interval
                ):
                    await body()
            assert not expired()

        anyio.run(main)

    async def noted(self) -> None:
        """Until the manifest has the row."""
        while not self.knows():
            await anyio.sleep(0.005)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_finished_is_noted_now_and_then(bench: Bench) -> None:
    async def body() -> None:
        await anyio.sleep(0.05)
        assert bench.manifest().state == UPDATING
        assert not bench.knows()
        bench.finished["a"] = ROW
        await bench.noted()

    bench.run(body)
    assert bench.manifest().state == UPDATING


def test_a_run_that_fails_notes_what_it_has(bench: Bench) -> None:
    async def body() -> None:
        bench.finished["a"] = ROW
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bench.run(body, interval=60)
    assert bench.knows()


def test_a_run_that_is_cancelled_notes_what_it_has(bench: Bench) -> None:
    bench.finished["a"] = ROW

    async def main() -> None:
        with anyio.move_on_after(0.05):
            async with noted(bench.ledger, lambda: (bench.finished, ()), lambda: True):
                await anyio.sleep(60)

    anyio.run(main)
    assert bench.knows()


def test_a_run_that_ends_well_has_nothing_to_note(bench: Bench) -> None:
    async def body() -> None:
        bench.finished["a"] = ROW

    bench.run(body, interval=60)
    assert not bench.knows()


def test_nothing_is_written_where_somebody_else_pulls(bench: Bench) -> None:
    bench.finished["a"], bench.held = ROW, False

    async def body() -> None:
        await anyio.sleep(0.1)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        bench.run(body)
    assert not bench.knows()


@pytest.mark.parametrize("error", [RemoteError, AccessDenied])
def test_a_note_that_cannot_be_written_is_made_the_next_time(
    bench: Bench, error: type[RemoteError | AccessDenied]
) -> None:
    bench.finished["a"] = ROW
    bench.store.faults.append(Fault("upload", times=2, error=lambda: error("full")))
    bench.run(bench.noted)
    bench.finished.clear()
    bench.store.faults.append(Fault("upload", times=99, error=lambda: error("full")))

    async def body() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bench.run(body)


def test_a_note_that_is_late_comes_before_the_end_and_not_after(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes it is left behind when the run goes on to its end."""
    bench.finished["a"] = ROW
    under_way, go_on, real = threading.Event(), threading.Event(), Ledger._write

    def slow(ledger: Ledger, manifest: Manifest) -> None:
        if manifest.state == UPDATING:
            under_way.set()
            assert go_on.wait(30)
        real(ledger, manifest)

    monkeypatch.setattr(Ledger, "_write", slow)

    async def body() -> None:
        while not under_way.is_set():
            await anyio.sleep(0.005)

    bench.run(body)
    ends = threading.Thread(target=bench.ledger.conclude, args=({"a": ROW}, []))
    ends.start()
    ends.join(0.1)
    assert ends.is_alive(), "it waits for the note"
    go_on.set()
    ends.join()
    assert bench.manifest().state == COMPLETE
