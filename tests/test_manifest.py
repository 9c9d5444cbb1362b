"""The manifest beside a model: what it proves, what it does not, and that nobody reads a model that is changing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.errors import IntegrityError
from stager.core.manifest import COMPLETE, UPDATING, Begun, Manifest, Origin
from stager.core.model import FileEntry
from stager.core.placement import fault
from tests.harness import Box

MIB = 1 << 20


def put(folder: Path, state: str, files: dict[str, int]) -> None:
    place = folder / ".stager"
    place.mkdir(exist_ok=True)
    rows = [{"path": path, "size": size} for path, size in files.items()]
    body = {"source": "owner/name", "revision": "abc", "state": state, "files": rows}
    (place / "manifest.json").write_text(json.dumps(body))


def model(box: Box) -> Path:
    box.file("m/a.safetensors.data", MIB)
    return Path(box.file("m/b.data", MIB)).parent


def test_a_model_that_is_being_updated_is_refused_from_every_side(box: Box) -> None:
    folder = model(box)
    put(folder, "updating", {})
    for path in (folder, folder.parent, folder / "b.data"):
        done = box.warm(str(path), "--fail-open")
        assert done.code == 8, path
    assert box.run("check", str(folder)).code == 8
    assert box.run("status", str(folder)).code == 0
    assert box.run("evict", str(folder)).code == 0


def test_what_it_promises_must_be_there(box: Box) -> None:
    folder = model(box)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    put(folder, "complete", sizes)
    assert box.warm(str(folder)).code == 0
    put(folder, "complete", {**sizes, "c.data": 5})
    assert box.warm(str(folder)).code == 8
    put(folder, "complete", {**sizes, "b.data": 5})
    assert box.warm(str(folder)).code == 8


def test_it_proves_nothing_of_what_was_not_listed_or_is_left_out(box: Box) -> None:
    folder = model(box)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    put(folder, "complete", {**sizes, "uv.lock": 7})
    (folder / "uv.lock").write_text("version")
    assert box.warm(str(folder)).code == 0
    assert box.warm(str(folder / "b.data")).code == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"files": {}}',
        b'{"source":"a","revision":"b","state":"complete","files":[7]}',
        b'{"source":"a","revision":"b","files":[]}',
        b'{"source":"a","revision":"b","state":null,"files":[]}',
        b'{"source":7,"revision":"b","state":"complete","files":[]}',
        b'{"source":"a","revision":[],"state":"complete","files":[]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_rubbish_is_no_manifest(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="is not a manifest"):
        Manifest.parse(raw)


def test_a_path_that_leaves_the_model_is_no_manifest() -> None:
    row = {"path": "../x", "size": 1}
    raw = json.dumps({"source": "a", "revision": "b", "state": "complete", "files": [row]}).encode()
    with pytest.raises(IntegrityError):
        Manifest.parse(raw)


def test_a_manifest_knows_its_files() -> None:
    row = {"path": "x/y.bin", "size": 3, "sha256": "0" * 64, "crc64": "18446744073709551615"}
    raw = json.dumps({"source": "a", "revision": "b", "state": "complete", "files": [row]}).encode()
    parsed = Manifest.parse(raw)
    assert parsed.files == (FileEntry("x/y.bin", 3, "0" * 64, 2**64 - 1),)
    assert not parsed.defects(parsed.files)


def around(row: str) -> bytes:
    return b'{"source":"a","revision":"b","state":"complete","files":[%s]}' % row.encode()


@pytest.mark.parametrize(
    "wrong",
    [
        '"size":-1',
        '"size":1.5',
        '"size":true',
        '"size":"1"',
        '"size":null',
        '"size":Infinity',
        '"size":1e999',
        '"size":NaN',
        '"size":' + "9" * 5000,
        '"size":1,"sha256":7',
        '"size":1,"sha256":""',
        '"size":1,"sha256":"%s"' % ("0" * 63),
        '"size":1,"sha256":"%s"' % ("g" * 64),
        '"size":1,"crc64":"-1"',
        '"size":1,"crc64":"18446744073709551616"',
        '"size":1,"crc64":Infinity',
        '"size":1,"crc64":[]',
        '"size":1,"path":7',
        '"size":1,"path":null',
        '"size":1,"path":""',
        '"size":1,"path":"/a"',
        '"size":1,"path":"a\\u0000"',
    ],
)
def test_a_promise_that_nothing_can_keep_is_no_manifest(wrong: str) -> None:
    assert Manifest.parse(around('{"path":"a","size":1,"sha256":null,"crc64":null}')).files
    with pytest.raises(IntegrityError, match="is not a manifest"):
        Manifest.parse(around('{"path":"a",' + wrong + "}"))


entries = st.builds(
    FileEntry,
    st.binary(min_size=1, max_size=12).map(os.fsdecode).filter(lambda name: fault(name) is None),
    st.integers(0, 2**63),
    st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    st.none() | st.integers(0, 2**64 - 1),
)


globs = st.lists(st.text(max_size=5), max_size=2).map(tuple)
origins = st.none() | st.builds(Origin, st.text(), globs, globs)


uploads = entries.flatmap(
    lambda entry: st.builds(Begun, st.just(entry.path), st.text(), st.just(entry.size), st.just(entry.sha256))
)
unproven = st.lists(entries.map(lambda entry: entry.path), max_size=3).map(tuple)


@given(
    st.text(),
    st.text(),
    st.sampled_from([UPDATING, COMPLETE]),
    st.lists(entries, max_size=5),
    origins,
    unproven,
    unproven,
    unproven,
    st.lists(uploads, max_size=2).map(tuple),
)
def test_what_is_written_is_read(
    source: str,
    revision: str,
    state: str,
    files: list[FileEntry],
    origin: Origin | None,
    resumed: tuple[str, ...],
    pending: tuple[str, ...],
    former: tuple[str, ...],
    begun: tuple[Begun, ...],
) -> None:
    manifest = Manifest(
        source, revision, state, tuple(files), origin, resumed, pending=pending, former=former, begun=begun
    )
    raw = manifest.dump(time=1.5, version="1.2")
    assert Manifest.parse(raw) == manifest
    body = json.loads(raw)
    assert (body["v"], body["time"], body["stager"]) == (1, 1.5, "1.2")
    assert ("unproven" in body) == bool(resumed)
    assert all(isinstance(row.get("crc64", ""), str) for row in body["files"]), "JavaScript has 53 bits"
    assert raw.isascii()
    if state == UPDATING:
        with pytest.raises(IntegrityError, match="being updated"):
            Manifest.parse(raw).refuse_updating("here")
    else:
        Manifest.parse(raw).refuse_updating("here")


@pytest.mark.parametrize(
    "wrong",
    [7, [], {}, {"location": 1}, {"location": "a", "include": "b"}, {"location": "a", "exclude": [1]}],
)
def test_an_origin_that_says_nothing_is_none(wrong: object) -> None:
    body = {"source": "a", "revision": "1", "state": COMPLETE, "files": []}
    assert Manifest.parse(json.dumps({**body, "fetched": wrong}).encode()).fetched is None
    assert Manifest.parse(json.dumps({**body, "fetched": {"location": "a"}}).encode()).fetched == Origin("a")


@pytest.mark.parametrize("wrong", [7, "a", {}, None, [7], [None], [""], ["/a"], ["../a"], ["a\0"], ["a", 7]])
def test_what_is_unproven_must_be_said_clearly(wrong: object) -> None:
    body = {"source": "a", "revision": "1", "state": UPDATING, "files": []}
    assert Manifest.parse(json.dumps({**body, "unproven": ["x/a", "b"]}).encode()).unproven == ("x/a", "b")
    with pytest.raises(IntegrityError, match="is not a manifest"):
        Manifest.parse(json.dumps({**body, "unproven": wrong}).encode())


def test_what_a_manifest_of_an_earlier_version_promises_has_no_crc() -> None:
    rows = [{"path": "a", "size": 1, "crc64": "5"}, {"path": "b", "size": 1, "sha256": "0" * 64}]
    body = {"source": "a", "revision": "1", "state": UPDATING, "files": rows}
    assert Manifest.parse(json.dumps(body).encode()).pending == ("b",)
    assert Manifest.parse(json.dumps({**body, "state": COMPLETE}).encode()).pending == ()
    assert Manifest.parse(json.dumps({**body, "pending": []}).encode()).pending == ()


@pytest.mark.parametrize("wrong", [7, [7], [{}], [{"path": "a", "size": 1}], [{"path": "a", "size": 1, "upload_id": 7}],
                                   [{"path": "../a", "size": 1, "upload_id": "7"}]])  # fmt: skip
def test_what_was_begun_must_be_said_clearly(wrong: object) -> None:
    body = {"source": "a", "revision": "1", "state": UPDATING, "files": []}
    right = {"path": "a", "size": 1, "upload_id": "7"}
    assert Manifest.parse(json.dumps({**body, "begun": [right]}).encode()).begun == (Begun("a", "7", 1),)
    with pytest.raises(IntegrityError, match="is not a manifest"):
        Manifest.parse(json.dumps({**body, "begun": wrong}).encode())


def test_rows_are_found_by_path() -> None:
    one, two = FileEntry("a", 1), FileEntry("x/b", 2, None, 7)
    assert Manifest("s", "r", COMPLETE, (one, two)).rows() == {"a": one, "x/b": two}
