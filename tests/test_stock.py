"""What a destination has before a pull: every rule of what counts as proven, in a look-alike OSS and in a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stager.core.checksum import crc64
from stager.core.errors import AccessDenied, IntegrityError
from stager.core.location import Location
from stager.core.manifest import COMPLETE, PATH, UPDATING, Manifest
from stager.core.model import FileEntry
from stager.hub.base import HubFile, Snapshot
from stager.jobs.options import Proof
from stager.jobs.stock import Standing, take_stock
from stager.store.base import Reader, Store, StoredObject
from stager.store.opening import StoreOptions, open_store
from tests.osslab.fixtures import Oss

DATA = b"the weights"
OTHER = b"the weighty"  # as long
SOURCE, REVISION = "ms://owner/name", "c0ffee"
PROVING = [Proof.CRC, Proof.SHA256]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digested(path: str = "a", data: bytes = DATA) -> HubFile:
    return HubFile(FileEntry(path, len(data), sha256(data)), sha256(data))


def blob(path: str = "a", data: bytes = DATA) -> HubFile:
    return HubFile(FileEntry(path, len(data)), "v", hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def plain(path: str = "a", data: bytes = DATA) -> HubFile:
    return HubFile(FileEntry(path, len(data)), "v")


def row(path: str = "a", data: bytes = DATA, *, digest: str | None = "", crc: int | None = -1) -> FileEntry:
    """What a manifest says of `data`, or of something else that it takes it for."""
    return FileEntry(
        path,
        len(data),
        sha256(data) if digest == "" else digest,
        crc64(data) if crc == -1 else crc,
    )


@dataclass
class Destination:
    """Somewhere to pull to, filled behind the store's back."""

    store: Store
    put: Callable[..., object]  # (name, data, sha256 in the metadata)
    stated: bool
    touched: Callable[[str, float], None]  # (name, seconds after the manifest)
    entries: list[FileEntry] = field(default_factory=list)

    def note(
        self,
        *rows: FileEntry,
        state: str = COMPLETE,
        source: str = SOURCE,
        revision: str = REVISION,
        unproven: tuple[str, ...] = (),
        pending: tuple[str, ...] = (),
        former: tuple[str, ...] = (),
    ) -> None:
        """Writes a manifest."""
        manifest = Manifest(source, revision, state, rows, unproven=unproven, pending=pending, former=former)
        self.put(PATH, manifest.dump(time=0.0, version="0"))

    def stock(
        self, *files: HubFile, proof: Proof, whole: Sequence[HubFile] = (), source: str = SOURCE
    ) -> Standing:
        """`take_stock` of `files`, which with `whole` are the snapshot."""
        snapshot = Snapshot(source, REVISION if "://" in source else "", (*files, *whole))
        return anyio.run(partial(take_stock, self.store, snapshot, files, proof))

    def verdict(self, one: HubFile, proof: Proof, source: str = SOURCE) -> tuple[str, int | None]:
        """What becomes of one file, and the CRC-64 that goes with it."""
        return verdicts(self.stock(one, proof=proof, source=source))[0]


def verdicts(standing: Standing) -> dict[int, tuple[str, int | None]]:
    """By index. Fails when an index is filed twice."""
    filed: list[tuple[int, tuple[str, int | None]]] = [
        *((index, ("proven", crc)) for index, crc in standing.proven.items()),
        *((index, ("doubtful", None)) for index in standing.doubtful),
        *((index, ("compare", crc)) for index, crc in standing.compare.items()),
        *((index, ("wanted", None)) for index in standing.wanted),
    ]
    assert len(dict(filed)) == len(filed), standing
    return dict(filed)


def in_oss(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Destination:
    for name, value in oss.env().items():
        monkeypatch.setenv(name, value)

    def put(name: str, data: bytes, noted: str = "") -> None:
        oss.put(f"r1/{name}", data, metadata={"sha256": noted} if noted else {})

    def touched(name: str, later: float) -> None:
        oss.bucket.objects[f"r1/{name}"].modified += later

    return Destination(
        open_store(Location.parse(oss.url("r1")), StoreOptions(give_up_after=0.2)), put, True, touched
    )


def in_folder(tmp_path: Path) -> Destination:
    def put(name: str, data: bytes, noted: str = "") -> None:
        path = tmp_path / "r1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def touched(name: str, later: float) -> None:
        written = os.stat(tmp_path / "r1" / PATH).st_mtime + later
        os.utime(tmp_path / "r1" / name, (written, written))

    store = open_store(Location.parse(str(tmp_path / "r1")), StoreOptions(give_up_after=0.2))
    return Destination(store, put, False, touched)


@pytest.fixture
def bucket(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Destination:
    return in_oss(oss, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Destination:
    return in_folder(tmp_path)


@pytest.fixture(params=["oss", "folder"])
def dest(request: pytest.FixtureRequest) -> Destination:
    found: Destination = request.getfixturevalue("bucket" if request.param == "oss" else "folder")
    return found


# Both kinds of destination


@pytest.mark.parametrize("proof", list(Proof))
def test_what_is_missing_or_of_another_size_is_wanted(dest: Destination, proof: Proof) -> None:
    dest.put("b", DATA + b"!")
    dest.note(row("a"), row("b"))
    standing = dest.stock(digested("a"), digested("b"), plain("c"), proof=proof)
    assert standing.wanted == [0, 1, 2]
    assert len(verdicts(standing)) == 3
    assert set(standing.objects) == {"b"}


@pytest.mark.parametrize("make", [digested, blob, plain])
def test_without_a_proof_the_size_is_enough(dest: Destination, make: Callable[[], HubFile]) -> None:
    dest.put("a", OTHER)
    assert dest.verdict(make(), Proof.NONE) == ("proven", None)


def test_without_a_proof_what_is_known_to_be_other_content_is_wanted(dest: Destination) -> None:
    dest.put("a", OTHER)
    dest.note(row(data=OTHER))
    assert dest.verdict(digested(), Proof.NONE)[0] == "wanted"


def test_without_a_proof_what_was_promised_and_not_brought_is_wanted(dest: Destination) -> None:
    dest.put("a", OTHER)
    for state in (UPDATING, COMPLETE):
        dest.note(row(crc=None), state=state, pending=("a",))
        assert dest.verdict(digested(), Proof.NONE)[0] == "wanted", state
        dest.note(row(crc=None), state=state)
        assert dest.verdict(digested(), Proof.NONE)[0] == "proven", "its size was right"


def test_without_a_proof_what_an_ended_pull_has_brought_of_another_revision_is_wanted(
    dest: Destination,
) -> None:
    dest.put("a", OTHER)
    dest.note(row(data=OTHER), state=UPDATING, revision="older")
    assert dest.verdict(digested(), Proof.NONE)[0] == "wanted"
    assert dest.verdict(blob(), Proof.NONE)[0] == "wanted", "nobody can say that it is the same"
    dest.note(row(digest=None), state=UPDATING, revision="older")
    assert dest.verdict(digested(), Proof.NONE)[0] == "wanted"
    dest.note(former=("a",))
    assert dest.verdict(digested(), Proof.NONE)[0] == "wanted"


def test_nothing_there_at_all(dest: Destination) -> None:
    standing = dest.stock(digested(), proof=Proof.SHA256)
    assert (standing.wanted, standing.manifest, standing.problem) == ([0], None, None)
    assert (standing.objects, standing.obsolete, standing.resumable) == ({}, (), frozenset())


@pytest.mark.parametrize("proof", PROVING)
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_a_manifest_that_knows_the_content_proves_it(
    dest: Destination, proof: Proof, case: Callable[[str], str]
) -> None:
    dest.put("a", DATA)
    dest.note(row(digest=case(sha256(DATA))))
    assert dest.verdict(digested(), proof) == ("proven", crc64(DATA))


@pytest.mark.parametrize("proof", PROVING)
def test_what_the_manifest_knows_as_something_else_is_not_read_to_find_that(
    dest: Destination, proof: Proof
) -> None:
    dest.put("a", OTHER)
    dest.note(row(data=OTHER))
    assert dest.verdict(digested(), proof) == ("wanted", None)
    dest.note(row(data=OTHER), state="updating")  # in a folder nobody knows then what was written
    doubted = not dest.stated and proof is Proof.SHA256
    assert dest.verdict(digested(), proof) == ("doubtful" if doubted else "wanted", None)
    dest.note(row(data=OTHER))
    dest.put("a", DATA)  # since then
    dest.touched("a", 1)
    assert dest.verdict(digested(), proof)[0] == ("doubtful" if proof is Proof.SHA256 else "wanted")


@pytest.mark.parametrize(("proof", "verdict"), [(Proof.SHA256, "doubtful"), (Proof.CRC, "wanted")])
def test_a_manifest_that_knows_it_as_something_else_proves_nothing(
    dest: Destination, proof: Proof, verdict: str
) -> None:
    dest.put("a", OTHER)
    for rows in (
        (),
        (row("b"),),
        (row(digest=None),),
        (row(data=DATA + b"!", digest=sha256(DATA)),),
    ):
        dest.note(*rows)
        assert dest.verdict(digested(), proof) == (verdict, None), rows


@pytest.mark.parametrize(("proof", "verdict"), [(Proof.SHA256, "doubtful"), (Proof.CRC, "proven")])
def test_what_was_resumed_is_read_back_before_its_sha256_counts(
    dest: Destination, proof: Proof, verdict: str
) -> None:
    dest.put("a", DATA, sha256(DATA))
    dest.note(row(), unproven=("a",))
    assert dest.verdict(digested(), proof)[0] == verdict
    dest.note(row(digest=None), unproven=("a",))
    assert dest.verdict(blob(), proof)[0] == verdict
    dest.note(row(), unproven=("b",))
    assert dest.verdict(digested(), proof)[0] == "proven"


@pytest.mark.parametrize("proof", PROVING)
def test_a_git_blob_is_known_by_its_revision(dest: Destination, proof: Proof) -> None:
    dest.put("a", DATA)
    wrong = "doubtful" if proof is Proof.SHA256 else "wanted"
    dest.note(row(digest=None))
    assert dest.verdict(blob(), proof) == ("proven", crc64(DATA))
    dest.note(row(digest=None), revision="other")
    assert dest.verdict(blob(), proof)[0] == wrong
    dest.note(row(digest=None), source="hf://owner/name")
    assert dest.verdict(blob(), proof)[0] == wrong
    dest.note(row(digest=None), source="ms://Owner/NAME")
    assert dest.verdict(blob(), proof)[0] == "proven"
    dest.note(row(digest=None), state=UPDATING)
    assert dest.verdict(blob(), proof)[0] == wrong
    dest.note(row("b", digest=None))
    assert dest.verdict(blob(), proof)[0] == wrong


@pytest.mark.parametrize("proof", PROVING)
def test_where_the_source_states_nothing_its_crc_decides(dest: Destination, proof: Proof) -> None:
    dest.put("a", DATA)
    dest.note(row(), source="/models/r1", revision="")
    assert dest.verdict(plain(), proof, source="/models/r1") == ("compare", crc64(DATA))


def test_a_broken_manifest_is_a_problem_and_no_error(dest: Destination) -> None:
    dest.put("a", DATA)
    dest.put(PATH, b"{}")
    standing = dest.stock(digested(), proof=Proof.SHA256)
    assert isinstance(standing.problem, IntegrityError)
    assert (standing.manifest, standing.doubtful) == (None, {0})


def test_the_manifest_is_there_whatever_its_state(dest: Destination) -> None:
    dest.note(row(), state=UPDATING, unproven=("a",))
    found = dest.stock(digested(), proof=Proof.SHA256).manifest
    assert found is not None
    assert (found.state, found.unproven, found.files) == (UPDATING, ("a",), (row(),))


def test_what_may_go_on_is_what_the_last_pull_was_about(dest: Destination) -> None:
    files = (digested("a"), digested("b"), blob("c"), plain("d"))
    assert dest.stock(*files, proof=Proof.SHA256).resumable == frozenset()
    rows = (row("a", crc=None), row("b", OTHER), row("c", digest=None), row("d", digest=None))
    for state in (COMPLETE, UPDATING):
        dest.note(*rows, state=state)
        assert dest.stock(*files, proof=Proof.SHA256).resumable == {"a", "c", "d"}
    dest.note(*rows, revision="other")
    assert dest.stock(*files, proof=Proof.CRC).resumable == {"a"}
    dest.note(row("a", DATA + b"!", digest=sha256(DATA)), row("b", data=OTHER))
    assert dest.stock(*files, proof=Proof.SHA256).resumable == frozenset()


def test_from_a_folder_everything_may_go_on(dest: Destination) -> None:
    files = (plain("a"), plain("b"))
    assert dest.stock(*files, proof=Proof.SHA256, source="/models/r1").resumable == {"a", "b"}


def test_what_pulls_have_brought_and_the_revision_no_longer_has_is_obsolete(dest: Destination) -> None:
    others = [f"{n}.bin" for n in range(8)]
    for name in ("z", "sub/b", "a", "kept", *others, "x.lock", ".git/config", "._____temp/a", "y.part"):
        dest.put(name, b"x")
    dest.put(".stager/pull.lease", b"x")
    dest.note(row("z"), row("gone"), row("0.bin"), pending=("1.bin",), former=("2.bin", "a", "kept"))
    standing = dest.stock(digested("a"), proof=Proof.SHA256, whole=[digested("kept")])
    assert standing.obsolete == (*others[:3], "z")
    assert standing.foreign == (*others[3:], "sub/b")
    assert set(standing.objects) == {"a", "kept", "sub/b", "z", *others}


def test_more_than_one_page(dest: Destination) -> None:
    files = [digested(f"f{n:04}") for n in range(1100)]
    for one in files:
        dest.put(one.entry.path, b"" if one.entry.path > "f1000" else DATA)
    dest.note(*(row(one.entry.path) for one in files))
    standing = dest.stock(*files, proof=Proof.NONE)
    assert standing.wanted == list(range(1001, 1100))
    assert sorted(standing.proven) == list(range(1001))


# A store that states checksums


@pytest.mark.parametrize("proof", PROVING)
@pytest.mark.parametrize("state", [COMPLETE, UPDATING])
def test_the_checksum_must_be_that_of_the_manifest(bucket: Destination, proof: Proof, state: str) -> None:
    bucket.put("a", DATA)
    bucket.touched("a", 3600)
    bucket.note(row(), state=state)
    assert bucket.verdict(digested(), proof) == ("proven", crc64(DATA)), "its time says nothing here"
    for wrong in (row(crc=crc64(OTHER)), row(crc=None)):
        bucket.note(wrong, state=state)
        assert bucket.verdict(digested(), proof)[0] == ("doubtful" if proof is Proof.SHA256 else "wanted")
        bucket.note(wrong)
        assert bucket.verdict(blob(), proof)[0] == ("doubtful" if proof is Proof.SHA256 else "wanted")


@pytest.mark.parametrize("proof", PROVING)
def test_the_sha256_beside_the_object_is_a_promise(bucket: Destination, proof: Proof) -> None:
    """It was made before the bytes were sent: who wants a proof reads them."""
    bucket.put("a", DATA, sha256(DATA).upper())
    believed = ("proven", crc64(DATA)) if proof is Proof.CRC else ("doubtful", None)
    assert bucket.verdict(digested(), proof) == believed
    bucket.note(row(crc=None), state=UPDATING)  # not known to be finished
    assert bucket.verdict(digested(), proof) == believed
    bucket.note(row(), state=UPDATING)
    assert bucket.verdict(digested(), proof) == ("proven", crc64(DATA))
    bucket.put("a", OTHER, sha256(DATA))  # the size, the promise, and the row are right
    assert bucket.verdict(digested(), Proof.SHA256) == ("doubtful", None)
    bucket.note()
    bucket.put("a", DATA, "none")
    assert bucket.verdict(digested(), proof)[0] == ("doubtful" if proof is Proof.SHA256 else "wanted")
    bucket.put("a", DATA, sha256(OTHER))
    assert bucket.verdict(digested(), proof)[0] == "wanted"


def test_a_manifest_that_cannot_be_read_may_know_that_it_was_resumed(bucket: Destination) -> None:
    bucket.put("a", DATA, sha256(DATA))
    bucket.put(PATH, b"{}")
    assert bucket.verdict(digested(), Proof.SHA256)[0] == "doubtful"
    assert bucket.verdict(digested(), Proof.CRC)[0] == "proven"


@pytest.mark.parametrize("proof", PROVING)
def test_the_crc_of_the_object_is_held_against_the_source_without_a_manifest(
    bucket: Destination, proof: Proof
) -> None:
    bucket.put("a", DATA)
    assert bucket.verdict(plain(), proof, source="/models/r1") == ("compare", crc64(DATA))


def test_only_objects_of_the_right_size_are_asked_for(oss: Oss, bucket: Destination) -> None:
    for name in ("a", "b", "extra"):
        bucket.put(name, DATA)
    files = (digested("a"), digested("b", DATA + b"!"), digested("c"))
    oss.log.clear()
    bucket.stock(*files, proof=Proof.SHA256)
    assert [record.key for record in oss.log.records(method="HEAD")] == ["r1/a"]
    oss.log.clear()
    bucket.stock(*files, proof=Proof.NONE)
    assert oss.log.count(method="HEAD") == 0


def test_what_goes_away_after_the_listing_is_wanted(oss: Oss, bucket: Destination) -> None:
    bucket.put("a", DATA, sha256(DATA))
    files = [digested("a"), digested("b")]
    bucket.put("b", DATA, sha256(DATA))
    head = bucket.store.head

    def vanishing(name: str) -> StoredObject:
        if name == "a":
            oss.remove("r1/a")
        elif name == "b":
            bucket.put("b", DATA + b"!", sha256(DATA))
        return head(name)

    bucket.store.head = vanishing  # type: ignore[method-assign]
    assert bucket.stock(*files, proof=Proof.SHA256).wanted == [0, 1]


def test_a_manifest_that_goes_away_after_the_listing_is_none(oss: Oss, bucket: Destination) -> None:
    bucket.note(row())
    reader = bucket.store.reader

    def vanishing() -> Reader:
        oss.remove(f"r1/{PATH}")
        return reader()

    bucket.store.reader = vanishing  # type: ignore[method-assign]
    standing = bucket.stock(digested(), proof=Proof.SHA256)
    assert (standing.manifest, standing.problem) == (None, None)


def test_an_object_without_a_checksum_is_proven_by_no_row(bucket: Destination) -> None:
    """Objects of other tools, from before OSS kept one."""
    bucket.put("a", DATA)
    bucket.note(row(crc=None))
    head = bucket.store.head
    bucket.store.head = lambda name: replace(head(name), crc64=None)  # type: ignore[method-assign]
    assert bucket.verdict(digested(), Proof.SHA256)[0] == "doubtful"
    assert bucket.verdict(blob(), Proof.SHA256)[0] == "doubtful"
    assert bucket.verdict(plain(), Proof.SHA256)[0] == "wanted"


def test_a_store_that_refuses_ends_it(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = in_oss(oss, monkeypatch)
    bucket.put("a", DATA)
    for name, value in oss.env(oss.keys.new(denied={"get"})).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessDenied):
        in_oss_again(oss).stock(digested(), proof=Proof.SHA256)
    assert in_oss_again(oss).verdict(digested(), Proof.NONE)[0] == "proven"


def in_oss_again(oss: Oss) -> Destination:
    store = open_store(Location.parse(oss.url("r1")), StoreOptions(give_up_after=0.2))
    return Destination(store, lambda *_: None, True, lambda *_: None)


# A store that states none


@pytest.mark.parametrize("proof", PROVING)
@pytest.mark.parametrize("make", [digested, blob])
def test_a_file_touched_after_the_manifest_is_doubtful(
    folder: Destination, proof: Proof, make: Callable[[], HubFile]
) -> None:
    folder.put("a", DATA)
    folder.note(row())
    folder.touched("a", 0)
    assert folder.verdict(make(), proof) == ("proven", crc64(DATA))
    folder.touched("a", 0.5)
    assert folder.verdict(make(), proof)[0] == ("doubtful" if proof is Proof.SHA256 else "wanted")
    assert folder.verdict(plain(), proof) == ("wanted", None), "what its row says is of another time"


@pytest.mark.parametrize("proof", PROVING)
def test_a_folder_that_is_being_updated_proves_nothing(folder: Destination, proof: Proof) -> None:
    folder.put("a", DATA)
    folder.note(row(), state=UPDATING)
    assert folder.verdict(digested(), proof)[0] == ("doubtful" if proof is Proof.SHA256 else "wanted")
    assert folder.verdict(plain(), proof)[0] == "wanted"


def test_a_row_without_a_crc_cannot_be_compared(folder: Destination) -> None:
    folder.put("a", DATA)
    folder.note(row(digest=None, crc=None), source="/models/r1", revision="")
    assert folder.verdict(plain(), Proof.SHA256, source="/models/r1") == ("wanted", None)
    folder.note(row(crc=None))
    assert folder.verdict(digested(), Proof.SHA256) == ("doubtful", None), "nobody has read it"


# Whatever lies there


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[HubFile], dict[str, tuple[bytes, str]], bytes | None]:
    """Files of a hub, what lies at the destination, and a manifest of either."""
    kinds = draw(st.lists(st.sampled_from([digested, blob, plain]), max_size=5))
    names = [f"f{n}" for n in range(len(kinds))]
    files = [kind(name, draw(st.sampled_from([DATA, b""]))) for kind, name in zip(kinds, names, strict=True)]
    contents = st.sampled_from([DATA, OTHER, b"short", b""])
    notes = st.sampled_from(["", sha256(DATA), sha256(OTHER)])
    there = draw(st.dictionaries(st.sampled_from([*names, "extra"]), st.tuples(contents, notes)))
    rows = [
        FileEntry(name, size, draw(st.sampled_from([None, sha256(DATA), sha256(b"")])), draw(crcs))
        for name in draw(st.sets(st.sampled_from(names) if names else st.nothing()))
        for size in [draw(st.sampled_from([len(DATA), 0]))]
        for crcs in [st.sampled_from([None, crc64(DATA), crc64(b"")])]
    ]
    manifest = Manifest(
        draw(st.sampled_from([SOURCE, "hf://x/y"])),
        draw(st.sampled_from([REVISION, "other"])),
        draw(st.sampled_from([COMPLETE, UPDATING])),
        tuple(rows),
        unproven=tuple(draw(st.sets(st.sampled_from(names) if names else st.nothing()))),
    )
    raw = draw(st.sampled_from([None, b"garbage", manifest.dump(time=0.0, version="0")]))
    return files, there, raw


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(situations(), st.sampled_from(list(Proof)), st.sampled_from([SOURCE, "/models/r1"]))
def test_every_file_is_filed_once_whatever_lies_there(
    bucket: Destination,
    oss: Oss,
    tmp_path_factory: pytest.TempPathFactory,
    situation: tuple[list[HubFile], dict[str, tuple[bytes, str]], bytes | None],
    proof: Proof,
    source: str,
) -> None:
    files, there, raw = situation
    for name in oss.names():
        oss.remove(name)
    for dest in (bucket, in_folder(tmp_path_factory.mktemp("stock"))):
        for name, (data, noted) in there.items():
            dest.put(name, data, noted)
        if raw is not None:
            dest.put(PATH, raw)
        standing = dest.stock(*files, proof=proof, source=source)
        found = verdicts(standing)
        assert sorted(found) == list(range(len(files)))
        assert standing.wanted == sorted(standing.wanted)
        unlisted = there.keys() - {one.entry.path for one in files}
        assert sorted((*standing.obsolete, *standing.foreign)) == sorted(unlisted)
        for index, (verdict, crc) in found.items():
            entry = files[index].entry
            data = there.get(entry.path, (None, ""))[0]
            if verdict != "wanted":
                assert data is not None
                assert len(data) == entry.size
            if dest.stated and crc is not None:
                assert crc == crc64(data or b""), "what the store itself says"
            assert (verdict != "doubtful") or proof is Proof.SHA256
