"""The contract of hubs, held against each of them: what `stager.hub.base` says, on two look-alikes and a folder, bare and with retry."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stager.core.errors import Interrupted, NotFound, ObjectChanged
from stager.core.source import Source
from stager.hub.base import Hub
from stager.hub.opening import HubOptions, adapter, open_hub
from stager.store.base import BLOCK
from tests.hublab.fixtures import HubLab

FILES = {
    "config.json": b"{}",
    "empty": b"",
    "model-00001-of-00002.safetensors": os.urandom(3 * BLOCK + 12345),
    "sub folder/ünï code #1 %41?&=+.bin": os.urandom(BLOCK),
    "sub folder/deeper/small.txt": b"x" * 1000,
    "README.md": b"readme",
    "readme.md": b"another",
}
LEFT_OUT = {".git/config": b"git", "sub folder/file.lock": b"", "old.incomplete": b"half"}
KINDS = ("modelscope", "huggingface", "directory")


@dataclass
class Place:
    """A model somewhere. `at` opens another source there; `hashed` says of which files the hub states the sha256."""

    hub: Hub
    at: Callable[[str], Hub]
    name: str
    hashed: Callable[[bytes], bool]


@pytest.fixture(params=[f"{kind}{how}" for kind in KINDS for how in ("", "+retry")])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    kind, _, retry = request.param.partition("+")
    options = HubOptions(give_up_after=0.3, read_timeout=5.0)

    def at(text: str) -> Hub:
        source = Source.parse(text)
        return open_hub(source, options) if retry else adapter(source, options)

    if kind == "directory":
        for path, content in {**FILES, **LEFT_OUT}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        return Place(at(str(tmp_path)), at, str(tmp_path), lambda _: False)
    lab: HubLab = request.getfixturevalue("hub")
    lab.repo("owner/model").commit({**FILES, **LEFT_OUT})
    for name, value in lab.env().items():
        monkeypatch.setenv(name, value)
    if kind == "modelscope":
        return Place(at("ms://owner/model"), at, "ms://owner/model", lambda _: True)
    return Place(at("hf://owner/model"), at, "hf://owner/model", lambda content: len(content) >= BLOCK)


def test_a_snapshot_has_all_files_by_path(place: Place) -> None:
    found = place.hub.snapshot()
    assert found.source == place.hub.source == place.name
    assert [one.entry.path for one in found.files] == sorted(FILES)
    assert {one.entry.path: one.entry.size for one in found.files} == {p: len(c) for p, c in FILES.items()}
    assert all(one.version for one in found.files)
    assert len({one.version for one in found.files}) == len(FILES)
    for one in found.files:
        content = FILES[one.entry.path]
        assert one.entry.sha256 == (hashlib.sha256(content).hexdigest() if place.hashed(content) else None)


def test_bytes_can_be_put_where_they_are_kept(place: Place) -> None:
    path = "model-00001-of-00002.safetensors"
    content = FILES[path]
    [version] = [one.version for one in place.hub.snapshot().files if one.entry.path == path]
    room, seen = bytearray(len(content) - 7), []
    place.hub.reader().read(
        path, 7, len(room), lambda view: seen.append(view.obj is room), etag=version, into=memoryview(room)
    )
    assert bytes(room) == content[7:]
    assert len(seen) > 1
    assert all(seen)


def test_a_snapshot_again_is_the_same(place: Place) -> None:
    assert place.hub.snapshot() == place.hub.snapshot()


@pytest.mark.parametrize("path", sorted(FILES))
def test_reads_give_exactly_the_range(place: Place, path: str) -> None:
    content = FILES[path]
    versions = {one.entry.path: one.version for one in place.hub.snapshot().files}
    size, reader = len(content), place.hub.reader()
    ranges = {
        (0, size),
        (0, 1),
        (size // 2, size - size // 2),
        (size - 1, 1),
        (size // 3, 10),
        (1, 0),
        (0, 0),
    }
    for offset, length in sorted(ranges):
        if offset < 0 or offset + length > size:
            continue
        got = bytearray()

        def sink(view: memoryview, got: bytearray = got) -> None:
            assert 0 < len(view) <= BLOCK
            got += view

        stored = reader.read(path, offset, length, sink, etag=versions[path])
        assert bytes(got) == content[offset : offset + length]
        assert (stored.name, stored.size, stored.etag) == (path, size, versions[path])
    reader.close()
    reader.close()


def test_readers_do_not_mind_each_other(place: Place) -> None:
    place.hub.snapshot()
    path = "model-00001-of-00002.safetensors"
    got = [bytearray(), bytearray()]
    inner = place.hub.reader()

    def sink(view: memoryview) -> None:
        got[0].extend(view)
        if not got[1]:
            inner.read(path, 5, 100_000, got[1].extend)

    place.hub.reader().read(path, 0, len(FILES[path]), sink)
    assert got == [FILES[path], FILES[path][5:100_005]]


def test_another_version_is_not_read(place: Place) -> None:
    place.hub.snapshot()
    for length in (0, 2):
        with pytest.raises(ObjectChanged):
            place.hub.reader().read("config.json", 0, length, pytest.fail, etag="another")


def test_what_is_not_in_the_snapshot_is_not_found(place: Place) -> None:
    place.hub.snapshot()
    with pytest.raises(NotFound) as caught:
        place.hub.reader().read("none.bin", 0, 1, pytest.fail)
    assert "none.bin" in caught.value.message
    assert caught.value.exit_code == 7


def test_what_the_sink_raises_comes_out_and_the_reader_stays_usable(place: Place) -> None:
    place.hub.snapshot()
    reader, path = place.hub.reader(), "model-00001-of-00002.safetensors"
    own = OSError("mine")

    def sink(view: memoryview) -> None:
        raise own

    with pytest.raises(OSError, match="mine") as caught:
        reader.read(path, 0, len(FILES[path]), sink)
    assert caught.value is own
    got = bytearray()
    reader.read(path, 7, 2 * BLOCK, got.extend)
    assert bytes(got) == FILES[path][7 : 7 + 2 * BLOCK]


def test_an_interrupt_ends_the_read_and_no_other(place: Place) -> None:
    place.hub.snapshot()
    reader, path = place.hub.reader(), "model-00001-of-00002.safetensors"
    reader.interrupt()  # nothing is under way
    got = bytearray()

    def sink(view: memoryview) -> None:
        got.extend(view)
        reader.interrupt()

    with pytest.raises(Interrupted):
        reader.read(path, 0, len(FILES[path]), sink)
    assert bytes(got) == FILES[path][: len(got)]
    assert len(got) < len(FILES[path])
    again = bytearray()
    reader.read(path, 0, len(FILES[path]), again.extend)
    assert bytes(again) == FILES[path]


def test_what_is_not_there_is_not_found(place: Place) -> None:
    with pytest.raises(NotFound) as caught:
        place.at(place.name + "-none").snapshot()
    assert place.name + "-none" in caught.value.message
