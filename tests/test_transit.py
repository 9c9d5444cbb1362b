"""One file on its way: fresh, gone on with, proven before it is completed; in a look-alike OSS, in a folder, and on what is like a mount."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stager.core.checksum import crc64
from stager.core.errors import AccessDenied, IntegrityError, NotFound, RemoteError
from stager.core.location import Location
from stager.core.model import FileEntry
from stager.hub.base import HubFile
from stager.jobs.inflow import Portion
from stager.jobs.transit import Transit, stated
from stager.store.base import Store
from stager.store.directory import DirectoryStore
from stager.store.opening import StoreOptions, open_store
from stager.store.retry import Retrying
from tests.faulty import Faulty
from tests.osslab import checksum
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss
from tests.osslab.storage import Blob, Content, Part

MIB = 1 << 20
SIZE = 4 * MIB + 321  # five parts of 1 MiB
DATA = os.urandom(SIZE)
SMALL = b"a config"


@pytest.fixture(autouse=True)
def _parts_of_1_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stager.core.ranges.SMALLEST", MIB)


@dataclass
class Place:
    """A destination, and what is there by another way than through the store."""

    store: Store
    content: Callable[[str], bytes | None]
    begun: Callable[[], int]
    """How many uploads were begun and not ended."""


def in_oss(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in oss.env().items():
        monkeypatch.setenv(name, value)
    store = open_store(Location.parse(oss.url("r1")), StoreOptions(give_up_after=5))

    def content(name: str) -> bytes | None:
        if f"r1/{name}" not in oss.bucket.objects:
            return None
        got = bytearray()
        store.reader().read(name, 0, oss.bucket.objects[f"r1/{name}"].size, got.extend)
        return bytes(got)

    return Place(store, content, lambda: len(oss.bucket.uploads))


def in_folder(path: Path, *, in_place: bool) -> Place:
    def content(name: str) -> bytes | None:
        return (path / name).read_bytes() if (path / name).exists() else None

    store = Retrying(DirectoryStore(str(path), in_place=in_place), give_up_after=5)
    return Place(store, content, lambda: sum(1 for _ in path.rglob(".*.part")))


@pytest.fixture(params=["oss", "folder", "mount"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "oss":
        return in_oss(request.getfixturevalue("oss"), monkeypatch)
    return in_folder(tmp_path, in_place=request.param == "mount")


def file_of(content: bytes, states: str = "sha256", *, wrong: bool = False, name: str = "a") -> HubFile:
    """What a hub says of `content`, or, with `wrong`, of other content of that size."""
    told = bytes(len(content)) if wrong else content
    entry = FileEntry(name, len(content), hashlib.sha256(told).hexdigest() if states == "sha256" else None)
    blob = hashlib.sha1(b"blob %d\0" % len(told) + told).hexdigest() if states == "blob" else None
    return HubFile(entry, "v", blob)


def on(_count: int) -> None:
    """The checkpoint of a run that goes on."""


def portion_of(transit: Transit, content: bytes, number: int) -> Portion:
    """Part `number` as it would come in: left out where it is there."""
    if transit.has(number):
        return Portion(transit.stream, number)
    piece = content[number * transit.stream.step : (number + 1) * transit.stream.step]
    buffer = SimpleNamespace(view=memoryview(piece))
    return Portion(transit.stream, number, buffer, crc64(piece))  # type: ignore[arg-type]


def bring(transit: Transit, content: bytes, numbers: Iterable[int] | None = None) -> int:
    """Sends the parts `numbers` (all), one after the other; how many of them were read."""
    read = 0
    for number in range(transit.stream.count) if numbers is None else numbers:
        portion = portion_of(transit, content, number)
        read += portion.buffer is not None
        transit.stream.arrived(portion, 0, lambda one: transit.send(one, on))
    return read


def leave_behind(place: Place, content: bytes, parts: int, size: int = SIZE) -> None:
    """What a pull leaves that was killed after so many parts."""
    upload = place.store.upload("a", size)
    for number in range(1, parts + 1):
        upload.part(number, memoryview(content)[(number - 1) * MIB : number * MIB])


@pytest.mark.parametrize("states", ["sha256", "blob", "nothing"])
@pytest.mark.parametrize(
    "content", [DATA, DATA[: 2 * MIB], SMALL, b""], ids=["large", "even", "small", "empty"]
)
def test_a_file_arrives_whole_and_known(place: Place, content: bytes, states: str) -> None:
    file = file_of(content, states)
    transit = Transit(place.store, file, hashed=True)
    assert transit.done is None
    bring(transit, content)
    assert place.content("a") == content
    assert transit.done == FileEntry("a", len(content), hashlib.sha256(content).hexdigest(), crc64(content))
    assert (transit.wrong, transit.unproven, transit.resumed, place.begun()) == (False, False, 0, 0)


@pytest.mark.parametrize("states", ["sha256", "blob"])
@pytest.mark.parametrize("content", [DATA, SMALL, b"?"], ids=["large", "small", "one"])
def test_what_has_the_wrong_digest_is_never_completed(place: Place, content: bytes, states: str) -> None:
    transit = Transit(place.store, file_of(content, states, wrong=True), hashed=True)
    bring(transit, content)
    assert transit.wrong
    assert transit.done is None
    assert (place.content("a"), place.begun()) == (None, 0)


def test_a_wrong_file_leaves_the_one_that_was_there_alone(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_oss(oss, monkeypatch)
    for content in (DATA, SMALL):
        oss.put("r1/a", b"the one before")
        bring(transit := Transit(place.store, file_of(content, wrong=True), hashed=True), content)
        assert transit.wrong
        assert place.content("a") == b"the one before"


def test_an_object_that_became_something_else_in_the_store_does_not_stay(
    oss: Oss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It carries the sha256 that it was to have, and the next run would believe that."""
    place = in_oss(oss, monkeypatch)
    transit = Transit(place.store, file_of(DATA), hashed=True)
    bring(transit, DATA, range(transit.stream.count - 1))
    [pending] = oss.bucket.uploads.values()
    number, part = min(pending.parts.items())
    other = Content((Blob(part.content.size, data=bytes(part.content.size)),))
    pending.parts[number] = Part(
        number, other, part.etag, checksum.crc64(bytes(part.content.size)), part.modified
    )
    with pytest.raises(IntegrityError):
        bring(transit, DATA, [transit.stream.count - 1])
    assert place.content("a") is None


def test_what_was_there_before_stays_when_nothing_came_in_its_place(
    oss: Oss, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = in_oss(oss, monkeypatch)
    oss.put("r1/a", b"the one before", metadata={"sha256": "another"})
    oss.faults.add(Fault("error", times=None, operation="PutObject", status=403))
    with pytest.raises(AccessDenied):
        bring(Transit(place.store, file_of(SMALL), hashed=True), SMALL)
    assert place.content("a") == b"the one before"


def test_without_proof_nothing_is_hashed_and_nothing_is_wrong(place: Place) -> None:
    transit = Transit(place.store, file_of(DATA, wrong=True), hashed=False)
    bring(transit, DATA)
    assert place.content("a") == DATA
    assert transit.unproven  # which is for the caller to mind
    assert transit.stream.hexdigest is None


def test_an_upper_case_digest_is_the_same_digest(place: Place) -> None:
    file = file_of(SMALL)
    assert file.entry.sha256 is not None
    upper = HubFile(FileEntry("a", len(SMALL), file.entry.sha256.upper()), "v")
    assert stated(upper) == file.entry.sha256
    bring(transit := Transit(place.store, upper, hashed=True), SMALL)
    assert not transit.wrong
    assert transit.done is not None
    assert transit.done.sha256 == file.entry.sha256


# Gone on with


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_what_is_there_is_not_read_again_and_left_to_be_proven(place: Place, parts: int) -> None:
    leave_behind(place, DATA, parts)
    transit = Transit(place.store, file_of(DATA), hashed=True, resume=True)
    assert bring(transit, DATA) == 5 - parts
    assert place.content("a") == DATA
    assert transit.done == FileEntry("a", SIZE, hashlib.sha256(DATA).hexdigest(), crc64(DATA))
    assert transit.unproven
    assert transit.resumed == parts * MIB
    assert place.begun() == 0


def test_nothing_there_to_go_on_with_is_a_fresh_start(place: Place) -> None:
    transit = Transit(place.store, file_of(DATA), hashed=True, resume=True)
    assert bring(transit, DATA) == 5
    assert place.content("a") == DATA
    assert (transit.unproven, transit.resumed) == (False, 0)


def test_what_is_there_is_compared_where_the_source_is_near(place: Place) -> None:
    leave_behind(place, DATA, 3)
    transit = Transit(place.store, file_of(DATA), hashed=True, resume=True, again_readable=True)
    assert bring(transit, DATA) == 5
    assert place.content("a") == DATA
    assert (transit.unproven, transit.resumed) == (False, 3 * MIB)


def other_part(number: int) -> bytes:
    """DATA, but for one byte of that part."""
    other = bytearray(DATA)
    other[number * MIB + 77] ^= 1
    return bytes(other)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_part_that_differs_is_sent_anew(number: int, oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_oss(oss, monkeypatch)
    leave_behind(place, other_part(number), 3)
    oss.log.clear()
    transit = Transit(place.store, file_of(DATA), hashed=True, resume=True, again_readable=True)
    bring(transit, DATA)
    assert place.content("a") == DATA
    assert (transit.wrong, transit.unproven, transit.resumed) == (False, False, 2 * MIB)
    sent = sorted(int(one.query["partNumber"]) for one in oss.log.records(operation="UploadPart"))
    assert sent == sorted([number + 1, 4, 5])


@pytest.mark.parametrize("in_place", [False, True], ids=["folder", "mount"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_where_parts_only_ascend_a_file_with_one_that_differs_begins_anew(
    tmp_path: Path, number: int, in_place: bool
) -> None:
    place = in_folder(tmp_path, in_place=in_place)
    leave_behind(place, other_part(number), 3)
    options: dict[str, Any] = {"hashed": True, "again_readable": True}
    first = Transit(place.store, file_of(DATA), resume=True, **options)
    bring(first, DATA)
    assert first.wrong
    assert (first.done, first.resumed, place.content("a"), place.begun()) == (None, 0, None, 0)
    bring(Transit(place.store, file_of(DATA), **options), DATA)
    assert place.content("a") == DATA


def test_old_uploads_are_discarded_when_asked(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_oss(oss, monkeypatch)
    leave_behind(place, DATA, 2)
    leave_behind(place, DATA, 1)
    transit = Transit(place.store, file_of(DATA), hashed=True, discard=True)
    assert bring(transit, DATA) == 5
    assert (place.begun(), transit.resumed, place.content("a")) == (0, 0, DATA)


@pytest.mark.parametrize("again_readable", [False, True])
def test_a_file_of_one_part_is_never_gone_on_with(place: Place, again_readable: bool) -> None:
    """An unfinished upload of that name may be that of a larger file: what is hashed is what comes now."""
    leave_behind(place, DATA, 2)
    file = file_of(SMALL, "nothing")
    transit = Transit(place.store, file, hashed=True, resume=True, again_readable=again_readable)
    assert bring(transit, SMALL) == 1
    assert place.content("a") == SMALL
    assert transit.done == FileEntry("a", len(SMALL), hashlib.sha256(SMALL).hexdigest(), crc64(SMALL))
    noted = place.store.head("a").metadata.get("sha256", hashlib.sha256(SMALL).hexdigest())
    assert noted == hashlib.sha256(SMALL).hexdigest()


# What goes with the object


def test_the_digest_goes_with_the_object(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_oss(oss, monkeypatch)
    known = {
        ("sha256", DATA): True,
        ("sha256", SMALL): True,
        ("nothing", SMALL): True,  # all of it has come before the request is made
        ("nothing", DATA): False,
        ("blob", SMALL): True,  # whose digest at the hub is another one
        ("blob", DATA): False,
    }
    for (states, content), noted in known.items():
        bring(Transit(place.store, file_of(content, states), hashed=True), content)
        expected = {"sha256": hashlib.sha256(content).hexdigest()} if noted else {}
        assert place.store.head("a").metadata == expected, states


def test_metadata_is_lower_case_whatever_the_hub_writes(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_oss(oss, monkeypatch)
    digest = hashlib.sha256(DATA).hexdigest()
    bring(Transit(place.store, HubFile(FileEntry("a", SIZE, digest.upper()), "v"), hashed=True), DATA)
    assert place.store.head("a").metadata == {"sha256": digest}


def test_a_small_file_is_one_request(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_oss(oss, monkeypatch)
    bring(Transit(place.store, file_of(SMALL), hashed=True, resume=True), SMALL)
    assert [one.operation for one in oss.log.records()] == ["PutObject"]


# Order


def sent_in_threads(transit: Transit, content: bytes, order: list[int]) -> None:
    """Each part in a thread of its own, begun in `order`; all of them have come before."""
    portions = [portion_of(transit, content, number) for number in range(transit.stream.count)]
    handed: list[Portion] = []
    for portion in portions:
        transit.stream.arrived(portion, 0, handed.append)
    failures: list[BaseException] = []
    end = time.monotonic() + 30

    def checkpoint(_count: int) -> None:
        if failures or time.monotonic() > end:
            raise TimeoutError("nobody comes")

    def send(portion: Portion) -> None:
        try:
            transit.send(portion, checkpoint)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=send, args=(handed[number],)) for number in order]
    for thread in threads:
        thread.start()
        time.sleep(0.01)  # so that they come in that order, if nothing keeps them
    for thread in threads:
        thread.join()
    assert not failures, failures


@pytest.mark.parametrize("in_place", [False, True], ids=["folder", "mount"])
def test_parts_ascend_where_they_must(tmp_path: Path, in_place: bool) -> None:
    faulty = Faulty(DirectoryStore(str(tmp_path), in_place=in_place))
    transit = Transit(faulty, file_of(DATA), hashed=True)
    sent_in_threads(transit, DATA, [4, 3, 2, 1, 0])
    assert (tmp_path / "a").read_bytes() == DATA
    sent = [call.name for call in faulty.log if call.call == "part"]
    assert sent == [f"a {number}" for number in range(1, 6)]


def test_the_last_part_waits_for_all_the_others(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_oss(oss, monkeypatch)
    transit = Transit(place.store, file_of(DATA), hashed=True)
    sent_in_threads(transit, DATA, [4, 2, 3, 1, 0])
    assert place.content("a") == DATA
    sent = [int(one.query["partNumber"]) for one in oss.log.records(operation="UploadPart")]
    assert sent[-1] == 5
    assert sorted(sent) == [1, 2, 3, 4, 5]
    assert oss.log.count(operation="InitiateMultipartUpload") == 1


def test_parts_go_side_by_side_where_they_may(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the first four is held up at the server until the others have come too."""
    place = in_oss(oss, monkeypatch)
    together = threading.Barrier(4)
    real = oss.storage.incoming

    def incoming() -> Any:
        together.wait(20)
        return real()

    transit = Transit(place.store, file_of(DATA), hashed=True)
    handed: list[Portion] = []
    for number in range(5):
        transit.stream.arrived(portion_of(transit, DATA, number), 0, handed.append)
    oss.storage.incoming = incoming
    threads = [threading.Thread(target=transit.send, args=(one, on)) for one in handed[:4]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    oss.storage.incoming = real
    transit.send(handed[4], on)
    assert not together.broken
    assert place.content("a") == DATA


def test_a_wait_for_other_parts_ends_with_the_run(place: Place) -> None:
    class Over(Exception):
        pass

    def over(_count: int) -> None:
        raise Over

    transit = Transit(place.store, file_of(DATA), hashed=True)
    handed: list[Portion] = []
    for number in range(5):
        transit.stream.arrived(portion_of(transit, DATA, number), 0, handed.append)
    with pytest.raises(Over):
        transit.send(handed[4], over)
    assert transit.done is None
    assert place.content("a") is None


# What goes wrong at the destination


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("unavailable", "InitiateMultipartUpload"),
        ("reset", "UploadPart"),
        ("lost", "UploadPart"),
        ("wrong-crc", "UploadPart"),
        ("lost", "CompleteMultipartUpload"),
        ("wrong-crc", "CompleteMultipartUpload"),
        ("error", "CompleteMultipartUpload"),
    ],
)
def test_trouble_on_the_way_is_got_over(
    kind: str, operation: str, oss: Oss, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = in_oss(oss, monkeypatch)
    fault = oss.faults.add(Fault(kind, operation=operation, times=2, seconds=0))
    transit = Transit(place.store, file_of(DATA), hashed=True)
    bring(transit, DATA)
    assert fault.fired >= 1
    assert place.content("a") == DATA
    assert transit.done is not None
    assert transit.done.crc64 == crc64(DATA)


def test_a_part_that_never_arrives_ends_in_its_error_and_leaves_the_others(
    oss: Oss, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = in_oss(oss, monkeypatch)
    oss.faults.add(Fault("wrong-crc", operation="UploadPart", times=None, skip=2))
    monkeypatch.setenv("OSS_REGION", oss.region)
    store = open_store(Location.parse(oss.url("r1")), StoreOptions(give_up_after=0.0))
    transit = Transit(store, file_of(DATA), hashed=True)
    with pytest.raises(RemoteError, match="part 3"):
        bring(transit, DATA)
    with pytest.raises(NotFound):
        store.head("a")
    oss.faults.clear()
    again = Transit(place.store, file_of(DATA), hashed=True, resume=True)
    bring(again, DATA)
    # The third part is there as well: only the answer was wrong.
    assert again.resumed == 3 * MIB
    assert place.content("a") == DATA


# Many thousand files


def test_what_a_file_needed_on_its_way_goes_when_it_is_complete(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = place.store.upload, []

    def upload(*given: Any, **more: Any) -> Any:
        made = real(*given, **more)
        begun.append(weakref.ref(made))
        return made

    monkeypatch.setattr(place.store, "upload", upload)
    for content in (SMALL, DATA):
        transit = Transit(place.store, file_of(content), hashed=True)
        bring(transit, content)
        assert transit.done is not None
        gc.collect()
        assert begun.pop()() is None
        transit.abort()
        assert place.content("a") == content


def test_a_file_of_one_part_has_nobody_to_tell(place: Place) -> None:
    one, other = (Transit(place.store, file_of(SMALL), hashed=True) for _ in range(2))
    assert one._changed is other._changed
    assert Transit(place.store, file_of(DATA), hashed=True)._changed is not one._changed
