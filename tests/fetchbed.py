"""What the suites of ``stager fetch`` share: models to fetch, and judges of what came of it.

Sources lie in memory where that is possible: the disk is for what is fetched.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.harness import MIB, Box, Done, Running
from tests.osslab import checksum
from tests.osslab.fixtures import Oss

RANGE = 16 * MIB  # the smallest range of a fetch: what small models are cut into
MEMORY = "/dev/shm"
_OWN = ".stager"


def in_memory() -> str:
    """A new folder, in memory where that is possible. The caller removes it."""
    return tempfile.mkdtemp(prefix="stager-source-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)


def random_file(path: str, size: int) -> str:
    """A file in which no two blocks are the same, so that a block in the wrong place is found."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        for at in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - at)))
    return path


def scramble(path: str) -> None:
    """Random tensor data for a weight that was made with a block repeated; its header stays."""
    with open(path, "r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start)
        for at in range(start, os.path.getsize(path), MIB):
            file.write(os.urandom(min(MIB, os.path.getsize(path) - at)))


def make_source(folder: str, size: int, shards: int = 3) -> str:
    """A model of safetensors in `folder`, and a file in a folder of its own and an empty one."""
    models.make(folder, "safetensors", size, shards, models.Filler())
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            scramble(os.path.join(folder, name))
    random_file(os.path.join(folder, "extra", "notes.bin"), 3 * MIB + 77)
    Path(folder, "extra", "empty.txt").touch()
    return folder


@pytest.fixture(scope="session")
def source() -> Iterator[str]:
    """A model of about 40 MiB in 10 files. Not to be changed."""
    room = in_memory()
    try:
        yield make_source(os.path.join(room, "r1"), 36 * MIB)
    finally:
        shutil.rmtree(room)


@pytest.fixture(scope="session")
def large() -> Iterator[str]:
    """One of about 200 MiB: 13 ranges. Not to be changed."""
    room = in_memory()
    try:
        yield make_source(os.path.join(room, "large"), 200 * MIB, 2)
    finally:
        shutil.rmtree(room)


def names_in(folder: str) -> list[str]:
    """Every file and symlink below `folder`, but for stager's own."""
    found = []
    for at, folders, names in os.walk(folder):
        if at == folder and _OWN in folders:
            folders.remove(_OWN)
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        found += [os.path.relpath(os.path.join(at, name), folder) for name in [*names, *links]]
    return sorted(found)


def size_of(folder: str) -> int:
    """Bytes of the model in `folder`."""
    return sum(os.path.getsize(os.path.join(folder, name)) for name in names_in(folder))


def same(folder: str, source: str) -> None:
    """Fail unless `folder` has the files of `source`, byte by byte, and nothing else beside stager's own."""
    assert names_in(folder) == names_in(source)
    for name in names_in(source):
        assert filecmp.cmp(os.path.join(folder, name), os.path.join(source, name), shallow=False), name


def manifest_of(folder: str, *, state: str = "complete", **changes: dict[str, Any]) -> bytes:
    """A manifest of `folder` with sizes, crc64 and sha256; `changes` by path, with `_` for what no name of Python has."""
    files = []
    for name in names_in(folder):
        data = Path(folder, name).read_bytes()
        row = {"path": name, "size": len(data), "crc64": str(checksum.crc64(data))}
        files.append({**row, "sha256": hashlib.sha256(data).hexdigest(), **changes.get(name, {})})
    body = {
        "v": 1,
        "source": "somewhere",
        "revision": "1",
        "state": state,
        "time": 0,
        "stager": "0",
        "files": files,
    }
    return json.dumps(body).encode()


def read_manifest(folder: str) -> dict[str, Any]:
    """The manifest that a fetch wrote; empty without one."""
    try:
        found: dict[str, Any] = json.loads(Path(folder, _OWN, "manifest.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def summary(done: Done) -> dict[str, Any]:
    """The summary of the fetch."""
    return done.event("fetch_summary")


class Bed:
    """A server with one model, a box, and ``stager fetch`` from the one into the other."""

    def __init__(self, box: Box, oss: Oss) -> None:
        self.box, self.oss = box, oss
        self.url = oss.url("r1")
        self.dir = box.path("model")

    def serve(self, folder: str) -> None:
        """The files of `folder` are the model."""
        self.oss.serve_folder(folder, "r1/")

    def put(self, name: str, data: bytes, **options: Any) -> None:
        """One object of the model."""
        self.oss.put(f"r1/{name}", data, **options)

    def start(self, *words: str, env: dict[str, str] | None = None, **options: Any) -> Running:
        """A fetch as a process."""
        settings = {**self.oss.env(), **(env or {})}
        return self.box.start(
            "fetch", self.url, self.dir, "--keep-free", "0", *words, env=settings, **options
        )

    def fetch(self, *words: str, seconds: float = 60.0, **options: Any) -> Done:
        """A fetch to its end."""
        return self.start(*words, **options).finish(seconds)

    def good(self, *words: str, **options: Any) -> dict[str, Any]:
        """A fetch that must succeed, with --json; its summary."""
        done = self.fetch("--json", *words, **options)
        assert done.code == 0, str(done)
        found = summary(done)
        assert found["complete"], str(done)
        return found

    def refused(self, code: int, *words: str, **options: Any) -> str:
        """A fetch that must fail with `code`; the one line on stderr that says why."""
        done = self.fetch(*words, **options)
        assert done.code == code, str(done)
        assert "Traceback" not in done.err, done.err
        lines = [line for line in done.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, str(done)
        return lines[0]

    @property
    def sent(self) -> int:
        """Bytes of objects that the server has sent."""
        return self.oss.bytes_sent()

    def forget(self) -> None:
        """The server's log begins anew."""
        self.oss.log.clear()


@pytest.fixture
def bed(box: Box, oss: Oss) -> Bed:
    """A `Bed` with nothing in it."""
    return Bed(box, oss)
