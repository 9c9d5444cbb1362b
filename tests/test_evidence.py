"""What only reading can prove: objects at the destination, and sources that state no checksum."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import anyio
import pytest

from stager.core.checksum import crc64
from stager.core.errors import ObjectChanged, RemoteError, ResourceRefused
from stager.core.location import Location
from stager.core.model import FileEntry
from stager.hub.base import HubFile
from stager.jobs.evidence import Evidence
from stager.jobs.lines import Pauses
from stager.store.base import Store
from stager.store.directory import DirectoryStore
from stager.store.opening import StoreOptions, open_store
from tests.faulty import Fault as Script
from tests.faulty import Faulty
from tests.hubs import Quiet, StatingHub, options_for
from tests.mapped import Mapped
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss

MIB = 1 << 20
SIZES = {"a": 3 * MIB + 7, "b": 2 * MIB, "c": 900, "empty": 0}


@pytest.fixture(autouse=True)
def _parts_of_1_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stager.core.ranges.SMALLEST", MIB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has. Not to be changed."""
    folder = tmp_path_factory.mktemp("hub")
    for name, size in SIZES.items():
        (folder / name).write_bytes(os.urandom(size))
    return folder


@pytest.fixture
def hub(folder: Path) -> StatingHub:
    return StatingHub(folder)


def content_of(hub: StatingHub, name: str) -> bytearray:
    return bytearray((hub.path / name).read_bytes())


def row(hub: StatingHub, name: str) -> FileEntry:
    content = bytes(content_of(hub, name))
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest(), crc64(content))


class Bed:
    def __init__(self, hub: StatingHub, store: Store, pauses: Pauses | None = None) -> None:
        self.hub, self.store, self.pauses = hub, store, pauses or Pauses()
        self.reporter = Quiet()

    def evidence(self, **options: int) -> Evidence:
        told = options_for(**({"lanes": 4, "buffer": 4 * MIB} | options))
        return Evidence(self.hub, self.store, told, self.reporter, pauses=self.pauses)

    def of_objects(self, evidence: Evidence, *names: str) -> dict[str, FileEntry]:
        return anyio.run(evidence.of_objects, self.files(*names))

    def of_sources(self, evidence: Evidence, crcs: dict[str, int]) -> dict[str, FileEntry]:
        return anyio.run(evidence.of_sources, self.files(*crcs), crcs)

    def files(self, *names: str) -> list[HubFile]:
        return [self.hub.file(name) for name in names or SIZES]


def bed_in_oss(hub: StatingHub, oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Bed:
    for name, value in oss.env().items():
        monkeypatch.setenv(name, value)
    pauses = Pauses()
    store = open_store(Location.parse(oss.url("r1")), StoreOptions(give_up_after=5), pause=pauses)
    for name in SIZES:
        oss.put(f"r1/{name}", bytes(content_of(hub, name)))
    return Bed(hub, store, pauses)


@pytest.fixture
def in_oss(hub: StatingHub, oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Bed:
    return bed_in_oss(hub, oss, monkeypatch)


@pytest.fixture
def in_folder(hub: StatingHub, tmp_path: Path) -> Bed:
    (tmp_path / "there").mkdir()
    for name in SIZES:
        (tmp_path / "there" / name).write_bytes(content_of(hub, name))
    return Bed(hub, DirectoryStore(str(tmp_path / "there")))


@pytest.fixture(params=["in_oss", "in_folder"])
def bed(request: pytest.FixtureRequest) -> Bed:
    made: Bed = request.getfixturevalue(request.param)
    return made


# Objects


@pytest.mark.parametrize("states", ["sha256", "blob", "nothing"])
def test_objects_as_the_hub_states_them_are_proven(bed: Bed, states: str) -> None:
    bed.hub.states = states
    evidence = bed.evidence()
    assert bed.of_objects(evidence) == {name: row(bed.hub, name) for name in SIZES}
    assert evidence.read_back == sum(SIZES.values())
    assert bed.hub.given.total() == 0
    assert evidence.stuck() == []


def test_nothing_asked_is_nothing_read(bed: Bed) -> None:
    evidence = bed.evidence()
    assert anyio.run(evidence.of_objects, []) == {}
    assert anyio.run(evidence.of_sources, [], {}) == {}
    assert (evidence.read_back, evidence.stuck()) == (0, [])


@pytest.mark.parametrize("states", ["sha256", "blob"])
@pytest.mark.parametrize("at", [0, MIB, 3 * MIB + 6])
def test_a_wrong_object_is_found(in_oss: Bed, oss: Oss, states: str, at: int) -> None:
    in_oss.hub.states = states
    content = content_of(in_oss.hub, "a")
    content[at] ^= 1
    oss.put("r1/a", bytes(content))
    evidence = in_oss.evidence()
    rows = in_oss.of_objects(evidence)
    assert rows == {name: row(in_oss.hub, name) for name in ("b", "c", "empty")}
    assert evidence.read_back == sum(SIZES.values())  # and not read twice: it came as it is stored


def test_a_wrong_file_in_a_folder_is_found(in_folder: Bed) -> None:
    content = content_of(in_folder.hub, "b")
    content[-1] ^= 1
    Path(in_folder.store.root, "b").write_bytes(content)
    assert in_folder.of_objects(in_folder.evidence()).keys() == {"a", "c", "empty"}


def test_objects_that_are_gone_or_have_another_size_are_not_read(in_oss: Bed, oss: Oss) -> None:
    oss.bucket.remove("r1/a")
    oss.put("r1/b", bytes(MIB))
    evidence = in_oss.evidence()
    assert in_oss.of_objects(evidence).keys() == {"c", "empty"}
    assert oss.log.count(operation="GetObject", key="r1/[ab]") == 0
    assert evidence.read_back == SIZES["c"]


def test_what_was_damaged_on_the_way_is_read_again(in_oss: Bed, oss: Oss) -> None:
    fault = oss.faults.add(Fault("corrupt", operation="GetObject", key_glob="r1/a", times=1))
    evidence = in_oss.evidence()
    assert in_oss.of_objects(evidence) == {name: row(in_oss.hub, name) for name in SIZES}
    assert fault.fired == 1
    assert evidence.read_back == sum(SIZES.values()) + SIZES["a"]
    assert oss.log.count(operation="GetObject", key="r1/b") == 2  # its two parts, once


def test_what_is_damaged_each_time_is_no_evidence(in_oss: Bed, oss: Oss) -> None:
    oss.faults.add(Fault("corrupt", operation="GetObject", key_glob="r1/b", times=None))
    evidence = in_oss.evidence()
    with pytest.raises(RemoteError, match="`b` does not come as it is stored"):
        in_oss.of_objects(evidence)
    assert evidence.read_back == sum(SIZES.values()) + 2 * SIZES["b"]


def test_an_object_that_is_replaced_meanwhile_ends_it(in_oss: Bed, oss: Oss) -> None:
    oss.faults.add(Fault("changed", key_glob="r1/a"))
    with pytest.raises(ObjectChanged):
        in_oss.of_objects(in_oss.evidence())


def test_trouble_on_the_way_is_got_over(in_oss: Bed, oss: Oss) -> None:
    for kind in ("reset", "close", "unavailable"):
        oss.faults.add(Fault(kind, operation="GetObject", times=2, seconds=0))
    evidence = in_oss.evidence()
    assert in_oss.of_objects(evidence) == {name: row(in_oss.hub, name) for name in SIZES}
    assert oss.faults.pending == 0
    assert evidence.read_back == sum(SIZES.values())


def test_reading_back_takes_no_more_memory_than_agreed(bed: Bed, mapped: Mapped) -> None:
    bed.of_objects(bed.evidence(buffer=2 * MIB))
    assert MIB <= mapped.most <= 2 * MIB


def test_too_little_memory_is_refused_in_words(bed: Bed) -> None:
    with pytest.raises(ResourceRefused, match="--buffer holds"):
        bed.of_objects(bed.evidence(buffer=MIB - 1))


def test_progress_ends_at_the_end(in_oss: Bed) -> None:
    in_oss.of_objects(in_oss.evidence())
    last = in_oss.reporter.last
    assert last is not None
    assert (last.verb, last.done, last.files_done) == ("verify", sum(SIZES.values()), len(SIZES))


# Sources


def test_a_source_of_the_same_crc_is_the_same(in_oss: Bed) -> None:
    in_oss.hub.states = "nothing"
    crcs = {name: crc64(bytes(content_of(in_oss.hub, name))) for name in SIZES}
    crcs["b"] ^= 1
    evidence = in_oss.evidence()
    rows = in_oss.of_sources(evidence, crcs)
    assert rows == {name: row(in_oss.hub, name) for name in ("a", "c", "empty")}
    assert in_oss.hub.given.total() == sum(SIZES.values())
    assert evidence.read_back == 0  # that counts what the destination gave
    assert in_oss.reporter.last is not None
    assert in_oss.reporter.last.verb == "compare"


def test_a_source_that_cannot_be_read_ends_it(in_oss: Bed) -> None:
    evidence = in_oss.evidence()
    gone = Faulty(in_oss.hub.store(), [Script("read", name="b", times=9)])
    in_oss.hub.reader = gone.reader  # type: ignore[method-assign]
    with pytest.raises(RemoteError, match="reset by peer"):
        in_oss.of_sources(evidence, dict.fromkeys(SIZES, 0))
