"""The marker: its words in JSON and back, and how it reaches the disk."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.core.errors import StagerError
from stager.core.marker import ReadyMarker, WarmedFile, WarmedPath
from stager.core.outcome import MarkerState
from stager.node import marker as marker_file
from tests.harness import MIB, STRANGER, Box

names = st.binary(min_size=1, max_size=20).filter(lambda raw: b"\0" not in raw).map(os.fsdecode)
numbers = st.integers(0, 2**63 - 1)
markers = st.builds(
    ReadyMarker,
    state=st.sampled_from(MarkerState),
    reason=names,
    digest=st.text(max_size=10),
    total=numbers,
    resident=st.none() | numbers,
    known=st.sampled_from(["cachestat", "mincore", "unknown"]),
    boot_id=st.text(max_size=10),
    time=st.floats(0, 1e10),
    version=st.text(max_size=5),
    pid=numbers,
    asked=st.lists(names, max_size=3).map(tuple),
    include=st.lists(names, max_size=2).map(tuple),
    exclude=st.lists(names, max_size=2).map(tuple),
    paths=st.lists(
        st.builds(WarmedPath, names, names, numbers, numbers, st.none() | numbers, names, names), max_size=3
    ).map(tuple),
    files=st.lists(
        st.builds(WarmedFile, names, numbers, numbers, numbers, numbers, st.none() | names, st.booleans()),
        max_size=5,
    ).map(tuple),
)


@given(markers)
def test_json_and_back(marker: ReadyMarker) -> None:
    text = marker.to_json()
    assert "\n" not in text
    assert text.isascii(), "names of any bytes, in a file of any encoding"
    assert ReadyMarker.from_json(text) == marker


@settings(max_examples=300)
@given(markers, st.data())
def test_damage_is_a_value_error_or_another_marker(marker: ReadyMarker, data: st.DataObject) -> None:
    text = marker.to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.text(max_size=2)) + text[at + data.draw(st.integers(0, 3)) :]
    with contextlib.suppress(ValueError):
        ReadyMarker.from_json(damaged)


@given(
    st.recursive(
        st.none() | st.booleans() | numbers | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_that_is_no_marker_is_a_value_error(body: object) -> None:
    with pytest.raises(ValueError):
        ReadyMarker.from_json(json.dumps(body))


@pytest.mark.parametrize("field", list(ReadyMarker.__dataclass_fields__))
def test_a_marker_without_a_field_is_none(field: str) -> None:
    body = json.loads(ReadyMarker(MarkerState.READY, "").to_json())
    del body[field]
    with pytest.raises(ValueError):
        ReadyMarker.from_json(json.dumps(body))


MARKER = ReadyMarker(
    MarkerState.READY,
    "",
    resident=1,
    asked=("/m",),
    paths=(WarmedPath("/m", "ext4", 1, 2, None, "n", "keeps"),),
    files=(WarmedFile("/m/a", 1, 2, 3, 4),),
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reason": 1},
        {"total": "1"},
        {"total": True},
        {"resident": "all"},
        {"pid": 1.5},
        {"time": "now"},
        {"boot_id": None},
        {"asked": [1]},
        {"asked": ["/m\0x"]},
        {"include": [None]},
        {"exclude": 1},
        {"paths": [["/m"]]},
        {"paths": [{"path": "/m"}]},
        {"paths": [{**asdict(MARKER.paths[0]), "device": "1"}]},
        {"paths": [{**asdict(MARKER.paths[0]), "path": 7}]},
        {"files": [["/m/a"]]},
        {"files": [["/m/a", "1", 2, 3, 4, None, True]]},
        {"files": [["/m/a", 1, 2, 3, 4, 5, True]]},
        {"files": [["/m/a", 1, 2, 3, 4, None, "yes"]]},
        {"files": [["\ud800", 1, 2, 3, 4, None, True]]},
        {"files": [{}]},
        {"files": 1},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_no_marker(wrong: dict[str, object]) -> None:
    body = json.loads(MARKER.to_json())
    assert ReadyMarker.from_json(json.dumps(body)) == MARKER
    with pytest.raises(ValueError):
        ReadyMarker.from_json(json.dumps({**body, **wrong}))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"v":' * 100_000, '{"v":1,"total":1e999}', "1" * 5000])
def test_hostile_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        ReadyMarker.from_json(text)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "huge"])
def test_what_is_no_file_is_no_marker_and_is_not_replaced(tmp_path: Path, kind: str) -> None:
    """/dev/full can be read without end, a FIFO waits for ever."""
    path = tmp_path / "ready.json"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/full")
        case "folder":
            path.mkdir()
        case "huge":
            path.write_bytes(b"{")
            os.truncate(path, 1 << 40)
    before = time.monotonic()
    with pytest.raises(StagerError, match="too big" if kind == "huge" else "not a regular file|directory"):
        marker_file.read(str(path))
    assert time.monotonic() - before < 1
    if kind in ("fifo", "folder"):
        with pytest.raises(StagerError, match="not a regular file"):
            marker_file.write(str(path), MARKER)
        assert not path.is_file()


def test_a_run_with_a_hostile_marker_takes_it_for_none(box: Box) -> None:
    path = box.file("weights.data", MIB)
    os.makedirs(os.path.dirname(box.marker))
    for content in (b"[" * 100_000, b'{"v":1}', b"\xff"):
        Path(box.marker).write_bytes(content)
        done = box.warm(path)
        assert (done.code, box.state) == (0, "ready"), str(done)
    done = box.run("warm", path, "--marker", "/dev/full", seconds=20)
    assert (done.code, "not a regular file" in done.err) == (9, True), str(done)
    assert Path("/dev/full").is_char_device()


def test_a_reader_never_sees_half_a_marker(tmp_path: Path) -> None:
    """Written by rename: whoever reads meanwhile gets the one before or the one after."""
    path = str(tmp_path / "ready.json")
    rows = tuple(WarmedFile(f"/m/{n}", n, n, n, n) for n in range(2000))
    before, after = (ReadyMarker(MarkerState.READY, reason, files=rows) for reason in ("a", "b"))
    marker_file.write(path, before)
    end, seen = time.monotonic() + 0.5, set()
    reader = subprocess.Popen(
        [
            "sh",
            "-c",
            f"for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do md5sum < {path}; done",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    while time.monotonic() < end or reader.poll() is None:
        for marker in (after, before):
            marker_file.write(path, marker)
            seen.add(marker_file.read(path).reason)
    assert reader.stdout is not None
    assert len(set(reader.stdout.read().split())) <= 3  # two sums and the dash
    assert seen == {"a", "b"}
    assert os.listdir(tmp_path) == ["ready.json"]


def test_a_folder_is_made_and_everybody_may_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "ready.json"
    marker_file.write(str(path), ReadyMarker(MarkerState.READY, ""))
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(StagerError):
        marker_file.write(str(path / "below-a-file"), ReadyMarker(MarkerState.READY, ""))


# The marker of a run


def test_a_named_marker_that_cannot_be_written_is_an_error(box: Box) -> None:
    path = box.file("weights.data", MIB)
    Path(box.path("file")).write_text("")
    done = box.run("warm", path, "--marker", box.path("file/ready.json"))
    assert done.code in (6, 7, 9)
    assert "error: marker `" in done.err
    assert "--marker" in done.err


@pytest.mark.root
def test_the_default_marker_that_cannot_be_written_is_a_warning(box: Box) -> None:
    """Nobody named it, so nobody waits for it: a read-only root filesystem must not stop the warming."""
    path = box.file("weights.data", MIB)
    script = 'mount -t tmpfs none /run && mount -o remount,ro /run && exec "$@"'
    done = box.run("warm", path, before=["unshare", "-m", "sh", "-c", f"unset STAGER_MARKER; {script}", "sh"])
    assert done.code == 0
    assert "warning: no ready marker: " in done.err
    assert "--marker" in done.err
    assert done.out.startswith("ready: ")


@pytest.mark.root
def test_a_read_only_root_filesystem_with_a_writable_marker(box: Box) -> None:
    path = box.file("weights.data", MIB)
    os.mkdir(box.path("marker"))
    own = box.path("marker")
    script = f'mount --bind {own} {own} && mount -o remount,ro,bind / && ! touch /x 2>/dev/null && exec "$@"'
    done = box.run("warm", "-q", path, before=["unshare", "-m", "sh", "-c", script, "sh"])
    assert done.code == 0, str(done)
    assert box.state == "ready"
    assert done.err == ""


@pytest.mark.root
def test_a_stranger_without_a_writable_default_marker(box: Box) -> None:
    path = box.file("weights.data", MIB)
    script = 'mount -t tmpfs -o mode=755 none /run && exec "$@"'
    done = box.run(
        "warm",
        path,
        uid=STRANGER,
        before=["unshare", "-m", "sh", "-c", f"unset STAGER_MARKER; {script}", "sh"],
    )
    assert done.code == 0
    assert "warning: no ready marker: " in done.err


@pytest.mark.root
def test_the_default_marker(box: Box) -> None:
    path = box.file("weights.data", MIB)
    script = f'mount -t tmpfs none /run && unset STAGER_MARKER && "$@" warm {path} && "$@" ready && cat /run/stager/ready.json'
    done = box.run(before=["unshare", "-m", "sh", "-c", script, "sh"])
    assert done.code == 0, str(done)
    assert done.out.splitlines()[1] == "ready"
    assert json.loads(done.out.splitlines()[2])["state"] == "ready"


def test_what_a_marker_says(box: Box) -> None:
    path = box.file("m/weights.data", MIB)
    box.warm(os.path.dirname(path))
    marker = box.read_marker()
    stat = os.stat(path)
    assert marker["files"] == [[path, stat.st_ino, MIB, stat.st_mtime_ns, stat.st_ctime_ns, None, True]]
    assert (marker["state"], marker["total"], marker["resident"]) == ("ready", MIB, MIB)
    assert marker["asked"] == [os.path.dirname(path)]
    assert marker["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert abs(marker["time"] - time.time()) < 30
    (mount,) = marker["paths"]
    assert mount["device"] == stat.st_dev
