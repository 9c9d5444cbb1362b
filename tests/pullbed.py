"""What the suites of ``stager pull`` and ``stager verify`` share: a hub with one model, a bucket, and judges of what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fetchbed import names_in
from tests.harness import MIB, Box, Done, Running
from tests.hublab.faults import Fault as HubFault
from tests.hublab.fixtures import HubLab
from tests.hublab.repos import Given, Repo
from tests.osslab import checksum
from tests.osslab.faults import Fault as StoreFault
from tests.osslab.fixtures import Oss
from tests.osslab.keys import AccessKey
from tests.osslab.log import Record
from tests.osslab.storage import read

PART = 16 * MIB  # of an upload of less than 160 GB
HEADER = 256 << 10  # as much as is read of a weight beforehand, to judge it
MODEL = "acme/tiny"
OWN = ".stager"
MANIFEST = f"{OWN}/manifest.json"
LEASE = f"{OWN}/pull.lease"
_WRITES = frozenset(
    {
        "PutObject",
        "CopyObject",
        "InitiateMultipartUpload",
        "UploadPart",
        "UploadPartCopy",
        "CompleteMultipartUpload",
        "AbortMultipartUpload",
        "DeleteObject",
        "DeleteMultipleObjects",
    }
)


def weights(size: int, name: str = "w") -> bytes:
    """A safetensors file of `size` bytes with one tensor of random bytes."""
    room = size - 8 - 104
    header = json.dumps({name: {"dtype": "U8", "shape": [room], "data_offsets": [0, room]}}).ljust(104)
    return len(header).to_bytes(8, "little") + header.encode() + os.urandom(room)


def small_model() -> dict[str, bytes]:
    """Files of a model of some megabytes, none of which is sent in parts. Those below 1 MiB are not at the CDN."""
    return {
        "config.json": b'{"architectures": ["Tiny"], "model_type": "tiny"}\n',
        "tokenizer.json": os.urandom(5000),
        "model-00001-of-00002.safetensors": weights(3 * MIB + 11, "a"),
        "model-00002-of-00002.safetensors": weights(2 * MIB, "b"),
        "extra/notes.txt": b"notes\n",
        "extra/empty.txt": b"",
        "extra/naïve 100%20+#1?&.txt": b"a name that must be escaped everywhere\n",
    }


def contents(repo: Repo, revision: str = "") -> dict[str, bytes]:
    """The files of a snapshot as the hub has them, by path."""
    commit = repo.find(revision)
    assert commit is not None
    return {path: b"".join(read(one.content, 0, one.size)) for path, one in commit.files.items()}


def files_in(folder: str) -> dict[str, bytes]:
    """The files of a model in a folder, without stager's own."""
    return {name: Path(folder, name).read_bytes() for name in names_in(folder)}


def row_of(path: str, data: bytes) -> dict[str, Any]:
    """What a manifest must say of that file."""
    sums = {"sha256": hashlib.sha256(data).hexdigest(), "crc64": str(checksum.crc64(data))}
    return {"path": path, "size": len(data), **sums}


def rows_of(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a manifest by path."""
    return {row["path"]: row for row in manifest["files"]}


class _Held:
    """Holds back an answer until it is released, half a minute at most: shorter than that is no test's patience."""

    def __init__(self, **given: Any) -> None:
        self._struck, self._released = threading.Event(), threading.Event()
        super().__init__("hang", **given)

    @property
    def seconds(self) -> float:
        """For the server, which asks before it sleeps: nothing, once it may go on."""
        self._struck.set()
        self._released.wait(30)
        return 0.0

    @seconds.setter
    def seconds(self, _: float) -> None:
        pass

    def reached(self) -> None:
        """Wait until a request is held back."""
        assert self._struck.wait(20), "nobody has asked for what is held back"

    def release(self) -> None:
        """Let it go."""
        self._released.set()


class HubGate(_Held, HubFault):
    """A request to the hub that waits for its answer."""


class StoreGate(_Held, StoreFault):
    """A request to the store that waits for its answer."""


class PullBed:
    """A hub with the model `MODEL`, a bucket and a box, and ``stager pull`` from the one into the other.

    `source` and `dest` are what a pull is told; tests may change both.
    """

    def __init__(self, box: Box, oss: Oss, hub: HubLab) -> None:
        self.box, self.oss, self.hub = box, oss, hub
        self.repo = hub.repo(MODEL)
        self.source = MODEL
        self.prefix = "m/tiny/"
        self.url = oss.url(self.prefix.rstrip("/"))
        self.dest: str | None = self.url
        self.dir = box.path("pulled")

    # the hub

    def commit(self, changes: Mapping[str, Given], **options: Any) -> str:
        """A new snapshot of the model; its id. Its checksums are computed now."""
        name = self.repo.commit(changes, **options)
        self.hub.hash(self.repo)
        return name

    # the program

    def env(self, *, key: AccessKey | None = None, token: bool | str = False, **more: str) -> dict[str, str]:
        """What a pull finds in its environment."""
        return {**self.oss.env(key), **self.hub.env(token=token), **more}

    def start(
        self,
        *words: str,
        key: AccessKey | None = None,
        token: bool | str = False,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Running:
        """A pull as a process."""
        settings = self.env(key=key, token=token, **(env or {}))
        dest = [self.dest] if self.dest is not None else []
        return self.box.start("pull", self.source, *dest, *words, env=settings, **options)

    def pull(self, *words: str, seconds: float = 60.0, **options: Any) -> Done:
        """A pull to its end."""
        return self.start(*words, **options).finish(seconds)

    def good(self, *words: str, **options: Any) -> dict[str, Any]:
        """A pull that must succeed, with --json; its summary."""
        done = self.pull("--json", *words, **options)
        assert done.code == 0, str(done)
        found = done.event("pull_summary")
        assert found["complete"], str(done)
        return found

    def refused(self, code: int, *words: str, **options: Any) -> str:
        """A pull that must fail with `code`; the lines on stderr that say why and what to do, joined."""
        return refusal(self.pull(*words, **options), code)

    def run(self, *words: str, seconds: float = 60.0, **options: Any) -> Done:
        """Another command of stager's with the same environment."""
        return self.box.run(*words, env=self.env(**options), seconds=seconds)

    @contextmanager
    def held(self, **given: Any) -> Iterator[HubGate]:
        """One answer of the hub is held back meanwhile; ``gate.reached()`` waits until somebody waits for it."""
        gate = HubGate(**given)
        self.hub.faults.add(gate)
        try:
            yield gate
        finally:
            gate.release()

    @contextmanager
    def held_at_store(self, **given: Any) -> Iterator[StoreGate]:
        """One answer of the store is held back meanwhile."""
        gate = StoreGate(**given)
        self.oss.faults.add(gate)
        try:
            yield gate
        finally:
            gate.release()

    # the judges

    def objects(self) -> dict[str, bytes]:
        """The model in the bucket, without stager's own."""
        names = [name for name in self.oss.names() if name.startswith(self.prefix)]
        found = {name.removeprefix(self.prefix): name for name in names}
        return {path: self.oss.get(name) for path, name in found.items() if not path.startswith(f"{OWN}/")}

    def manifest(self) -> dict[str, Any]:
        """The manifest in the bucket; empty without one."""
        try:
            found: dict[str, Any] = json.loads(self.oss.get(self.prefix + MANIFEST))
        except KeyError:
            return {}
        return found

    def complete(self, wanted: Mapping[str, bytes] | None = None, *, besides: Iterable[str] = ()) -> None:
        """Fail unless the bucket has `wanted` (default: the hub's files), a complete manifest of just that, and no lease.

        `besides` are names of more objects that are there.
        """
        files = contents(self.repo) if wanted is None else wanted
        found = self.objects()
        assert sorted(found) == sorted([*files, *besides])
        for path, data in files.items():
            assert found[path] == data, path
        manifest = self.manifest()
        assert manifest["state"] == "complete"
        assert rows_of(manifest) == {path: row_of(path, data) for path, data in files.items()}
        assert self.prefix + LEASE not in self.oss.names()

    def complete_folder(self, wanted: Mapping[str, bytes] | None = None) -> None:
        """The same of `dir`."""
        files = contents(self.repo) if wanted is None else wanted
        assert files_in(self.dir) == dict(files)
        manifest = json.loads(Path(self.dir, MANIFEST).read_text())
        assert manifest["state"] == "complete"
        assert rows_of(manifest) == {path: row_of(path, data) for path, data in files.items()}
        assert not Path(self.dir, LEASE).exists()

    def unfinished(self) -> list[str]:
        """Paths of the uploads that were begun and not ended."""
        uploads = list(self.oss.bucket.uploads.values())
        return sorted(one.key.removeprefix(self.prefix) for one in uploads)

    def written(self) -> list[Record]:
        """Requests to the store that would change something, since the last `forget`."""
        return [one for one in self.oss.log.records() if one.operation in _WRITES]

    def sent(self) -> list[str]:
        """Paths of model files of which bytes were sent to the store."""
        kinds = ("PutObject", "UploadPart")
        paths = {one.key.removeprefix(self.prefix) for one in self.written() if one.operation in kinds}
        return sorted(path for path in paths if not path.startswith(f"{OWN}/"))

    def forget(self) -> None:
        """The logs of both servers begin anew."""
        self.oss.log.clear()
        self.hub.log.clear()


def refusal(done: Done, code: int) -> str:
    """Fail unless the run ended with `code` and one line that says why; that line and its hint."""
    assert done.code == code, str(done)
    assert "Traceback" not in done.err, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, str(done)
    return "\n".join(line for line in done.err.splitlines() if line.startswith(("error:", "hint:", " ")))


@pytest.fixture
def pullbed(box: Box, oss: Oss, hub: HubLab) -> PullBed:
    """A `PullBed` whose model is `small_model`."""
    bed = PullBed(box, oss, hub)
    bed.commit(small_model())
    return bed
