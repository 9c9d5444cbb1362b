"""What a pull writes beside the model: updating first, complete last, and nothing that was not found out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from stager import __version__
from stager.core.checksum import crc64
from stager.core.errors import IntegrityError
from stager.core.location import Location
from stager.core.manifest import COMPLETE, PATH, UPDATING, Manifest
from stager.core.model import FileEntry
from stager.hub.base import HubFile, Snapshot
from stager.jobs.ledger import Ledger, put
from stager.jobs.options import Proof
from stager.jobs.stock import Standing, take_stock
from stager.store.base import Store
from stager.store.directory import DirectoryStore
from stager.store.opening import StoreOptions, open_store
from tests.osslab.fixtures import Oss

SOURCE, REVISION = "ms://owner/name", "c0ffee"
OLD, NEW = b"the weights of old", b"the weights of now"  # as long
assert len(OLD) == len(NEW)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hub_file(path: str, data: bytes, states: str = "sha256") -> HubFile:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() if states == "blob" else None
    return HubFile(FileEntry(path, len(data), sha256(data) if states == "sha256" else None), "v", blob)


def row(path: str, data: bytes) -> FileEntry:
    return FileEntry(path, len(data), sha256(data), crc64(data))


@dataclass
class Place:
    """A destination."""

    store: Store

    def send(self, **files: bytes) -> None:
        for name, data in files.items():
            put(self.store, name, data)

    def note(self, *rows: FileEntry, state: str = COMPLETE, revision: str = REVISION, source: str = SOURCE,
             unproven: tuple[str, ...] = (), pending: tuple[str, ...] = ()) -> None:  # fmt: skip
        manifest = Manifest(source, revision, state, rows, unproven=unproven, pending=pending)
        put(self.store, PATH, manifest.dump(time=0.0, version="0"))

    def manifest(self) -> Manifest:
        return Manifest.parse(self.raw())

    def raw(self) -> bytes:
        got = bytearray()
        self.store.reader().read(PATH, 0, self.store.head(PATH).size, got.extend)
        return bytes(got)

    def stock(
        self,
        files: Sequence[HubFile],
        proof: Proof = Proof.SHA256,
        revision: str = REVISION,
        others: tuple[HubFile, ...] = (),
    ) -> Standing:
        snapshot = Snapshot(SOURCE, revision, (*files, *others))
        return anyio.run(partial(take_stock, self.store, snapshot, files, proof))

    def ledger(
        self,
        *files: HubFile,
        revision: str = REVISION,
        source: str = SOURCE,
        others: tuple[HubFile, ...] = (),
    ) -> Ledger:
        """Of a pull of `files`; `others` are in the revision as well."""
        standing = self.stock(files, revision=revision, others=others)
        return Ledger(self.store, Snapshot(source, revision, (*files, *others)), files, standing)


@pytest.fixture(params=["oss", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        return Place(DirectoryStore(str(tmp_path)))
    oss: Oss = request.getfixturevalue("oss")
    for name, value in oss.env().items():
        monkeypatch.setenv(name, value)
    return Place(open_store(Location.parse(oss.url("r1")), StoreOptions(give_up_after=0.5)))


@pytest.mark.parametrize("content", [b"", b"{}"])
def test_a_small_object_is_put(place: Place, content: bytes) -> None:
    place.send(**{"a/b": content})
    got = bytearray()
    place.store.reader().read("a/b", 0, len(content), got.extend)
    assert bytes(got) == content


def test_first_it_says_updating_and_last_complete(place: Place) -> None:
    files = [hub_file("b", NEW), hub_file("a", b"x")]
    ledger = place.ledger(*files)
    ledger.begin({}, ["b"])
    begun = place.manifest()
    entries = (files[1].entry, files[0].entry)
    assert begun == Manifest(SOURCE, REVISION, UPDATING, entries, unproven=("b",), pending=("a", "b"))
    with pytest.raises(IntegrityError, match="being updated"):
        begun.refuse_updating("there")
    rows = {"b": row("b", NEW), "a": row("a", b"x")}
    before = time.time()
    assert ledger.conclude(rows, [])
    assert place.manifest() == Manifest(SOURCE, REVISION, COMPLETE, (rows["a"], rows["b"]))
    place.manifest().refuse_updating("there")
    written = json.loads(place.raw())
    assert written["stager"] == __version__
    assert before - 1 <= written["time"] <= time.time() + 1


def test_what_is_finished_meanwhile_is_noted(place: Place) -> None:
    place.send(a=NEW)
    place.note(row("a", NEW), row("b", OLD), revision="before")
    there, new, other = hub_file("a", NEW), hub_file("b", NEW), hub_file("c", NEW)
    ledger = place.ledger(there, new, other)
    assert not ledger.note({"b": row("b", NEW)}, [])
    assert place.manifest().state == COMPLETE
    ledger.begin({"a": row("a", NEW)}, ["b", "c"], ["stranger"])
    begun = Manifest(SOURCE, REVISION, UPDATING, (row("a", NEW), new.entry, other.entry),
                     unproven=("b", "c"), strangers=("stranger",), pending=("b", "c"))  # fmt: skip
    assert place.manifest() == begun
    assert not ledger.note({}, [])
    assert ledger.note({"b": row("b", NEW)}, ["b"])
    noted = place.manifest()
    rows_now = (row("a", NEW), row("b", NEW), other.entry)
    assert noted == replace(begun, files=rows_now, unproven=("c",), pending=("c",))
    raw = place.raw()
    assert not ledger.note({"b": row("b", NEW)}, ["b"])
    assert place.raw() == raw
    assert ledger.note({"c": row("c", NEW)}, []), "what is no longer there is a promise again"
    rows_now = (row("a", NEW), new.entry, row("c", NEW))
    assert place.manifest() == replace(begun, files=rows_now, pending=("b",))
    rows = {name: row(name, NEW) for name in "abc"}
    assert ledger.conclude(rows, [])
    assert not ledger.note(rows, []), "too late"
    assert place.manifest().state == COMPLETE


def test_what_is_promised_has_no_crc_before_it_is_there(place: Place) -> None:
    place.send(a=NEW)
    place.note(row("a", NEW))
    place.ledger(hub_file("a", NEW)).begin({}, [])
    assert place.manifest().rows()["a"] == hub_file("a", NEW).entry


def test_what_is_there_is_not_written_again(place: Place) -> None:
    place.send(a=NEW)
    place.note(row("a", NEW))
    ledger, raw = place.ledger(hub_file("a", NEW)), place.raw()
    rows = {"a": ledger.entry(hub_file("a", NEW), crc64(NEW))}
    assert ledger.is_current(rows, [])
    assert not ledger.conclude(rows, [])
    assert place.raw() == raw


@pytest.mark.parametrize(
    ("rows", "unproven"),
    [
        ({"a": row("a", OLD)}, []),
        ({"a": row("a", NEW)}, ["a"]),
        ({"a": FileEntry("a", len(NEW), sha256(NEW))}, []),
        ({"a": row("a", NEW), "b": row("b", b"x")}, []),
    ],
)
def test_whatever_is_different_is_written(
    place: Place, rows: dict[str, FileEntry], unproven: list[str]
) -> None:
    place.send(a=NEW)
    place.note(row("a", NEW))
    ledger = place.ledger(hub_file("a", NEW))
    assert not ledger.is_current(rows, unproven)
    assert ledger.conclude(rows, unproven)
    assert place.manifest() == Manifest(
        SOURCE, REVISION, COMPLETE, tuple(rows.values()), unproven=tuple(unproven)
    )


@pytest.mark.parametrize(
    "manifest",
    [{"state": UPDATING}, {"revision": "another"}, {"source": "ms://other/name"}],
    ids=["updating", "revision", "source"],
)
def test_a_manifest_of_something_else_is_not_current(place: Place, manifest: dict[str, str]) -> None:
    place.send(a=NEW)
    place.note(row("a", NEW), **manifest)
    ledger = place.ledger(hub_file("a", NEW))
    assert not ledger.is_current({"a": row("a", NEW)}, [])
    assert ledger.conclude({"a": row("a", NEW)}, [])
    assert place.manifest() == Manifest(SOURCE, REVISION, COMPLETE, (row("a", NEW),))


def test_what_was_said_to_be_updating_is_said_to_be_complete_though_nothing_changed(place: Place) -> None:
    place.send(a=NEW)
    place.note(row("a", NEW))
    ledger = place.ledger(hub_file("a", NEW))
    ledger.begin({}, [])
    assert place.manifest().state == UPDATING
    assert ledger.conclude({"a": row("a", NEW)}, [])
    assert place.manifest() == Manifest(SOURCE, REVISION, COMPLETE, (row("a", NEW),))


# What another selection brought


def test_rows_of_another_selection_are_kept(place: Place) -> None:
    place.send(a=NEW, gguf=OLD)
    place.note(
        row("a", NEW), row("gguf", OLD), unproven=("a", "gguf"), source=SOURCE.replace("owner", "Owner")
    )
    ledger = place.ledger(hub_file("a", NEW), others=(hub_file("gguf", OLD),))
    ledger.begin({}, [])
    assert place.manifest().rows().keys() == {"a", "gguf"}
    ledger.conclude({"a": row("a", NEW)}, [])
    concluded = place.manifest()
    assert concluded.files == (row("a", NEW), row("gguf", OLD))
    assert concluded.unproven == ("gguf",)  # what this pull did not look at is as doubtful as before


@pytest.mark.parametrize("state", [COMPLETE, UPDATING])
def test_rows_of_an_older_revision_are_kept_where_the_new_one_has_the_same_content(
    place: Place, state: str
) -> None:
    place.send(a=NEW, gguf=OLD, other=OLD, promised=OLD)
    promised = FileEntry("promised", len(OLD), sha256(OLD))
    pending = ("promised",) if state == UPDATING else ()
    place.note(row("gguf", OLD), row("other", OLD), promised, revision="older", state=state, pending=pending)
    others = (hub_file("gguf", OLD), hub_file("other", NEW[: len(OLD)]), hub_file("promised", OLD))
    place.ledger(hub_file("a", NEW), others=others).conclude({"a": row("a", NEW)}, [])
    kept = {"a", "gguf", "promised"} if state == COMPLETE else {"a", "gguf"}
    assert place.manifest().rows().keys() == kept
    assert set(place.manifest().pending) == {"other", "promised"} - kept, "what lies there is older"


def test_what_other_pulls_have_promised_stays_pending_until_it_is_brought(place: Place) -> None:
    place.send(a=OLD, b=OLD)
    place.note(row("a", OLD), row("b", OLD), state=UPDATING, pending=("b", "gone"), revision="older")
    a, b, gone = hub_file("a", NEW), hub_file("b", NEW), hub_file("gone", NEW)
    place.ledger(a, others=(b, gone)).conclude({"a": row("a", NEW)}, [])
    assert place.manifest().pending == ("b",)
    ledger = place.ledger(a, others=(b, gone))
    assert ledger.is_current({"a": row("a", NEW)}, [])
    ledger.begin({"a": row("a", NEW)}, [])
    assert place.manifest().pending == ("b",)
    place.ledger(a, b).conclude({"a": row("a", NEW), "b": row("b", NEW)}, [])
    assert place.manifest().pending == ()


def test_what_the_revision_no_longer_has_is_remembered_until_it_is_gone(place: Place) -> None:
    place.send(a=NEW, old=OLD, older=OLD, foreign=OLD)
    earlier = Manifest(SOURCE, "before", COMPLETE, (row("old", OLD), row("gone", OLD)), former=("older",))
    put(place.store, PATH, earlier.dump(time=0.0, version="0"))
    ledger = place.ledger(hub_file("a", NEW))
    ledger.begin({}, [])
    assert place.manifest().former == ("old", "older")
    ledger.conclude({"a": row("a", NEW)}, [])
    assert place.manifest().former == ("old", "older")
    ledger = place.ledger(hub_file("a", NEW))
    assert ledger.is_current({"a": row("a", NEW)}, [])
    ledger.conclude({"a": row("a", NEW)}, [], ["old"])
    assert place.manifest().former == ("older",)


def test_rows_whose_file_is_gone_or_has_another_size_are_not_kept(place: Place) -> None:
    place.send(a=NEW, shorter=OLD[:-1])
    place.note(row("a", NEW), row("gone", OLD), row("shorter", OLD), unproven=("gone",))
    others = hub_file("gone", OLD), hub_file("shorter", OLD)
    place.ledger(hub_file("a", NEW), others=others).conclude({"a": row("a", NEW)}, [])
    concluded = Manifest(SOURCE, REVISION, COMPLETE, (row("a", NEW),), pending=("shorter",))
    assert place.manifest() == concluded


@pytest.mark.parametrize(
    "manifest",
    [{"state": UPDATING}, {"revision": "another"}, {"source": "ms://other/name"}],
    ids=["updating", "revision", "source"],
)
def test_rows_of_another_revision_are_not_kept(place: Place, manifest: dict[str, str]) -> None:
    place.send(a=NEW, gguf=OLD)
    place.note(row("gguf", OLD), unproven=("gguf",), **manifest)
    place.ledger(hub_file("a", NEW)).conclude({"a": row("a", NEW)}, [])
    assert place.manifest() == Manifest(SOURCE, REVISION, COMPLETE, (row("a", NEW),), former=("gguf",))


# The row of a file that is there


def test_a_row_takes_what_the_hub_states_and_what_the_store_states(place: Place) -> None:
    ledger = place.ledger()
    upper = HubFile(FileEntry("a", len(NEW), sha256(NEW).upper()), "v")
    assert ledger.entry(upper, 17) == FileEntry("a", len(NEW), sha256(NEW), 17)
    assert ledger.entry(hub_file("a", NEW, "nothing"), None) == FileEntry("a", len(NEW))


def test_a_row_recalls_the_sha256_of_what_has_not_changed(place: Place) -> None:
    place.note(row("a", NEW))
    plain = hub_file("a", NEW, "nothing")
    ledger = place.ledger(plain)
    assert ledger.entry(plain, crc64(NEW)) == row("a", NEW)
    assert ledger.entry(plain, crc64(OLD)) == FileEntry("a", len(OLD), None, crc64(OLD))
    assert ledger.entry(plain, None) == row("a", NEW)
    longer = hub_file("a", NEW + b"!", "nothing")
    assert ledger.entry(longer, None) == FileEntry("a", len(NEW) + 1)


def test_a_row_recalls_the_crc_of_the_same_content_only(place: Place) -> None:
    place.note(row("a", OLD), FileEntry("b", len(OLD), sha256(OLD).upper(), crc64(OLD)),
               FileEntry("c", len(OLD), None, crc64(OLD)))  # fmt: skip
    ledger = place.ledger()
    assert ledger.entry(hub_file("a", NEW), None) == hub_file("a", NEW).entry
    assert ledger.entry(hub_file("b", OLD), None) == row("b", OLD)
    assert ledger.entry(hub_file("c", OLD), None) == hub_file("c", OLD).entry


@pytest.mark.parametrize("states", ["sha256", "blob", "nothing"])
def test_an_object_of_the_revision_before_never_counts_for_the_one_of_its_size(
    place: Place, states: str
) -> None:
    """A pull of the next revision that was ended right after it had said so: nothing of that is there yet."""
    place.send(a=OLD)
    place.note(row("a", OLD), revision="before")
    new = hub_file("a", NEW, states)
    place.ledger(new).begin({}, [])
    for proof in (Proof.SHA256, Proof.CRC):
        assert place.stock([new], proof).proven == {}, proof
