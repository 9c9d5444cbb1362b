"""The manifest beside a model: what it proves, what it does not, and that nobody reads a model that is changing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stager.core.errors import IntegrityError
from stager.core.manifest import Manifest
from stager.core.model import FileEntry
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
