"""``stager ls``: what lies in a store and how it stands with it, from the real program against a real server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from stager.core.errors import StagerError
from stager.core.events import Event
from stager.core.location import Location
from stager.core.store_reports import Listing, StoredFile
from stager.jobs import remote
from stager.jobs.ls import ls
from stager.store.opening import StoreOptions, open_store
from tests import models
from tests.harness import Box, Done, environment
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss

MIB = 1 << 20


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, event: Event) -> None: ...

    def print_now(self, event: Event) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small real model of three shards."""
    folder = str(tmp_path_factory.mktemp("ls") / "r1")
    models.make(folder, "safetensors", MIB, 3, models.Filler())
    return folder


Ask = Callable[..., Listing]


@pytest.fixture
def ask(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """``ls`` in this process, without patience: its last event."""
    for name, value in oss.env().items():
        monkeypatch.setenv(name, value)

    def listing(location: str, heard: Heard | None = None) -> Listing:
        heard = heard or Heard()
        options = StoreOptions(give_up_after=0.2)
        assert anyio.run(ls, Location.parse(location), options, heard) == 0
        last = heard.events[-1]
        assert isinstance(last, Listing)
        return last

    return listing


def manifest(folder: str, state: str = "complete", **sizes: int) -> bytes:
    """A manifest of the files in `folder`, with other sizes where given."""
    there = {name: os.path.getsize(f"{folder}/{name}") for name in os.listdir(folder)}
    files = [{"path": name, "size": size} for name, size in {**there, **sizes}.items()]
    body = {"source": "org/r1", "revision": "v2", "state": state, "files": files}
    return json.dumps(body).encode()


def run_ls(box: Box, oss: Oss, *words: str) -> Done:
    return box.run("ls", *words, env=oss.env())


def test_a_line_an_object_and_how_it_stands(box: Box, oss: Oss, model: str) -> None:
    oss.serve_folder(model, "models/r1/")
    oss.put("models/r1/two\nlines.txt", b"12345", storage_class="IA")
    oss.put("models/r1/x.lock", b"")
    oss.put("models/r1/.stager/manifest.json", manifest(model))
    oss.put("models/r1/.stager/fetch.journal", b"stager's own")
    oss.put("models/r10/other", b"not this one's")
    done = run_ls(box, oss, oss.url("models/r1"))
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[2] for line in lines[:10]] == [
        *sorted(os.listdir(model)),
        r"two\nlines.txt",
        "x.lock",
    ]
    assert lines[8] == r"        5 B  two\nlines.txt  (IA)"
    assert lines[9] == "        0 B  x.lock  (left out: a lock file)"
    assert lines[10].endswith("total of 9 files")
    assert lines[11:] == [
        "      model  safetensors, manifest of org/r1@v2, complete",
        "   complete  yes, by manifest, names and indexes",
    ]
    done = run_ls(box, oss, oss.url("models/r1/"), "--json")
    assert [event["name"] for event in done.all("object")] == [
        *sorted(os.listdir(model)),
        "two\nlines.txt",
        "x.lock",
    ]
    found = done.event("listing")
    assert found["manifest"] == {"source": "org/r1", "revision": "v2", "state": "complete", "files": 8}
    size = sum(os.path.getsize(f"{model}/{name}") for name in os.listdir(model)) + 5
    assert (found["files"], found["total"], found["skipped"], found["complete"]) == (9, size, 1, "yes")


def test_a_folder_is_listed_like_a_bucket(box: Box, oss: Oss, model: str) -> None:
    oss.serve_folder(model, "r1/")
    bucket = run_ls(box, oss, oss.url("r1")).out
    assert bucket == box.run("ls", model).out
    assert bucket == box.run("ls", f"file://{model}").out


def test_a_model_that_is_not_whole_is_listed_all_the_same(oss: Oss, ask: Ask, model: str) -> None:
    oss.serve_folder(model, "r1/")
    assert ask(oss.url("r1")).complete == "yes"
    oss.put("r1/.stager/manifest.json", manifest(model, **{"config.json": 7}))
    found = ask(oss.url("r1"))
    size = os.path.getsize(f"{model}/config.json")
    assert (found.complete, found.reasons[1:]) == (
        "no",
        (f"config.json: {size} bytes, the manifest says 7",),
    )
    oss.put("r1/.stager/manifest.json", manifest(model, "updating"))
    found = ask(oss.url("r1"))
    assert found.manifest is not None
    assert (found.complete, found.manifest.state, found.files) == ("no", "updating", 8)
    oss.remove("r1/.stager/manifest.json")
    oss.remove("r1/model-00002-of-00003.safetensors")
    found = ask(oss.url("r1"))
    assert (found.complete, found.manifest) == ("no", None)
    assert found.reasons[1].startswith("model-00002-of-00003.safetensors: missing")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.txt"], "unknown: no manifest, and no format that could tell"),
        (
            ["pytorch_model.bin"],
            "nothing speaks against it, but a pickle has no header to judge; no manifest",
        ),
    ],
)
def test_without_a_manifest_nothing_is_held_against_it(
    oss: Oss, ask: Ask, names: list[str], reason: str
) -> None:
    for name in names:
        oss.put(f"r1/{name}", b"x")
    found = ask(oss.url("r1"))
    assert (found.complete, found.reasons) == ("unknown", (reason,))


def test_a_manifest_that_cannot_be_used(oss: Oss, ask: Ask, model: str) -> None:
    oss.serve_folder(model, "r1/")
    oss.put("r1/.stager/manifest.json", b"{}")
    found = ask(oss.url("r1"))
    assert (found.complete, found.manifest, found.broken) == ("unknown", None, True)
    assert "the manifest cannot be used" in found.text()
    oss.put_zeros("r1/.stager/manifest.json", 65 * MIB)
    oss.log.clear()
    found = ask(oss.url("r1"))
    assert (found.complete, found.broken) == ("unknown", True)
    assert oss.bytes_sent("r1/.stager/*") == 0, "too long to be one: not read"


def test_a_manifest_replaced_in_between_is_read_again(oss: Oss, ask: Ask, model: str) -> None:
    oss.serve_folder(model, "r1/")
    oss.put("r1/.stager/manifest.json", manifest(model))
    oss.faults.add(Fault("changed", key_glob="*/manifest.json"))
    assert ask(oss.url("r1")).complete == "yes"
    assert oss.log.count(code="PreconditionFailed") == 1


def test_what_may_not_be_read_leaves_it_unknown(
    oss: Oss, ask: Ask, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    oss.serve_folder(model, "r1/")
    for name, value in oss.env(oss.keys.new(denied={"get"})).items():
        monkeypatch.setenv(name, value)
    found = ask(oss.url("r1"))
    assert (found.complete, found.files) == ("unknown", 8)
    assert found.reasons[0] == "unknown: not everything could be read"


def test_more_than_a_page(oss: Oss, ask: Ask) -> None:
    for number in range(1203):
        oss.put(f"r1/{number:05}.txt", b"x")
    heard = Heard()
    assert ask(oss.url("r1"), heard).files == 1203
    assert len({event.name for event in heard.events if isinstance(event, StoredFile)}) == 1203


def test_one_object(oss: Oss, ask: Ask, model: str) -> None:
    oss.serve_folder(model, "models/r1/")
    heard = Heard()
    found = ask(oss.url("models/r1/model-00001-of-00003.safetensors"), heard)
    assert (found.files, found.complete) == (1, "unknown"), "its siblings were not asked for"
    assert isinstance(heard.events[0], StoredFile)
    assert heard.events[0].name == "model-00001-of-00003.safetensors"
    assert ask(f"{model}/config.json").total == os.path.getsize(f"{model}/config.json")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("models/r11", "in `oss://models/models` there is `r1`"),
        ("models/r1/config", "in `oss://models/models/r1` there is `config.json`"),
        ("modles/r1", "in `oss://models/` there is `models`"),
        ("models/r1/config.json/x", "in `oss://models/models/r1` there is `config.json`"),
    ],
)
def test_nothing_there_names_what_is_near(oss: Oss, ask: Ask, model: str, asked: str, hint: str) -> None:
    oss.serve_folder(model, "models/r1/")
    for number in range(40):
        oss.put(f"models/zz{number}/a", b"x")
        oss.put(f"models/aa/{number}", b"x")
    with pytest.raises(StagerError) as caught:
        ask(oss.url(asked))
    assert caught.value.exit_code == 7
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_nothing_there_in_a_folder(box: Box, tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    for path in (tmp_path / "r2", tmp_path / "r1", tmp_path / "no" / "such"):
        done = box.run("ls", str(path))
        assert (done.code, done.out) == (7, ""), str(done)
    assert f"in `{tmp_path}` there is `r1`" in done.err


def test_a_bucket_that_holds_nothing(oss: Oss, ask: Ask) -> None:
    oss.put("r1/x.lock", b"")
    for asked in ("", "r1"):
        with pytest.raises(StagerError, match="1 name that stager leaves out") as caught:
            ask(oss.url(asked))
        assert caught.value.exit_code == 7


def test_errors_have_their_codes(box: Box, oss: Oss, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    oss.put("r1/a", b"x")
    refused = box.run("ls", oss.url("r1"), env=oss.env(oss.keys.new(denied={"list"})))
    assert (refused.code, refused.out) == (6, "")
    assert "request" in refused.err, "the id that support asks for"
    monkeypatch.setenv("OSS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StagerError) as caught:
        ask(oss.url("r1"))
    assert caught.value.exit_code == 5


def test_what_passes_is_tried_again_and_said(box: Box, oss: Oss) -> None:
    oss.put("r1/a", b"x")
    oss.faults.add(Fault("unavailable", times=2, seconds=0))
    done = run_ls(box, oss, oss.url("r1"))
    assert done.code == 0
    assert done.err.count("trying again") >= 1
    assert "trying again" not in box.run("ls", oss.url("r1"), "-q", env=oss.env()).err


def test_the_options_reach_the_store(box: Box, oss: Oss) -> None:
    oss.put("r1/a", b"x")
    env = {name: value for name, value in oss.env().items() if name not in ("OSS_ENDPOINT", "OSS_REGION")}
    words = ("--endpoint", oss.endpoint, "--region", oss.region, "--signature", "v1")
    done = box.run("ls", oss.url("r1"), *words, env={**env, "STAGER_SOURCE_IP": "127.0.0.7, 127.0.0.8"})
    assert done.code == 0, str(done)
    asked = oss.log.records()
    assert {record.client[0] for record in asked} <= {"127.0.0.7", "127.0.0.8"}
    assert {record.version for record in asked} == {"v1"}
    oss.log.clear()
    assert box.run("ls", oss.url("r1"), "--anonymous", env=oss.env()).code == 6
    assert {record.access_key for record in oss.log.records()} == {""}


def test_a_name_that_leaves_its_folder_is_shown_and_not_followed(oss: Oss, ask: Ask) -> None:
    oss.put("r1/../../etc/model.safetensors", b"x")
    oss.put("r1/config.json", b"{}")
    heard = Heard()
    assert ask(oss.url("r1"), heard).files == 2
    assert isinstance(heard.events[0], StoredFile)
    assert heard.events[0].name == "../../etc/model.safetensors"


def test_an_index_that_is_archived_says_nothing_of_its_shards(oss: Oss, ask: Ask, model: str) -> None:
    oss.serve_folder(model, "r1/")
    index = oss.get("r1/model.safetensors.index.json")
    oss.put("r1/model.safetensors.index.json", index, storage_class="ColdArchive")
    oss.remove("r1/model-00002-of-00003.safetensors")
    found = ask(oss.url("r1"))
    assert found.complete == "unknown"
    assert found.reasons[0] == "unknown: not everything could be read"


def test_refused_at_once_while_it_is_being_updated(oss: Oss, ask: Ask, model: str) -> None:
    """What a fetch asks for, on the same survey."""
    oss.serve_folder(model, "r1/")
    oss.put("r1/.stager/manifest.json", manifest(model, "updating"))
    assert ask(oss.url("r1")).files == 8
    at = Location.parse(oss.url("r1"))
    with pytest.raises(StagerError, match="is being updated") as caught:
        remote.open_model(at, lambda where: open_store(where, StoreOptions()))
    assert caught.value.exit_code == 8
    at = Location.parse(oss.url("r1/config.json"))
    with pytest.raises(StagerError, match="is being updated"):
        remote.open_model(at, lambda where: open_store(where, StoreOptions()))


def test_whose_access_was_refused(oss: Oss, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    oss.put("r1/a", b"x")
    for name, value in oss.env(oss.keys.new(denied={"list"})).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StagerError) as caught:
        ask(oss.url("r1"))
    assert caught.value.exit_code == 6
    assert "the credentials are from: " in (caught.value.hint or "")
    assert "OSS_ACCESS_KEY_ID" in (caught.value.hint or "")
    assert os.environ["OSS_ACCESS_KEY_SECRET"] not in str(caught.value.hint)


def test_a_server_that_never_ends_its_answer(box: Box, oss: Oss) -> None:
    oss.put("r1/a", b"x")
    oss.faults.add(Fault("hang", times=None, seconds=60))
    done = box.run("ls", oss.url("r1"), "--timeout", "0.5s", env=oss.env(), seconds=30)
    assert (done.code, done.out) == (10, ""), str(done)
    assert "--timeout ran out" in done.err


@pytest.mark.parametrize("words", [("ls",), ("ls", "--json"), ("check",), ("status",)], ids=" ".join)
def test_an_answer_that_could_not_be_written_is_no_success(
    box: Box, model: str, words: tuple[str, ...]
) -> None:
    with open("/dev/full", "w") as full:
        done = box.run(*words, model, stdout=full)
    assert done.code == 9, str(done)
    assert done.err.count("error: standard output: no space left on device (ENOSPC)") == 1, str(done)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert box.run(*words, model, stdout=writing).code == 0, "nobody wants it: that is no failure"
    finally:
        os.close(writing)


def test_a_job_goes_on_without_its_streams(box: Box, model: str) -> None:
    with open("/dev/full", "w") as full:
        assert box.run("warm", model, stdout=full, stderr=full).code == 0


def test_the_runner_keeps_its_credentials_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OSS_ACCESS_KEY_ID", "OSS_ENDPOINT", "ALIBABA_CLOUD_ROLE_ARN"):
        monkeypatch.setenv(name, "of the runner")
    assert "of the runner" not in environment().values()
