"""``stager check oss://...``: each permission, class, endpoint and defect, against a real server; nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from stager.core.errors import AccessDenied
from stager.core.location import Location
from stager.core.store_reports import StoreForecast
from stager.jobs.findings import Findings, endpoint_advice
from stager.jobs.options import Selection, WarmOptions
from stager.jobs.reach import reach
from stager.node import cloud
from stager.store.base import Unfinished
from stager.store.credentials import find
from stager.store.opening import StoreOptions
from stager.store.oss.endpoint import parse
from tests import models
from tests.harness import Box, until
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss
from tests.osslab.keys import AccessKey
from tests.osslab.metadata import Metadata
from tests.test_ls import Heard, manifest

MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small real model of three shards."""
    folder = str(tmp_path_factory.mktemp("reach") / "r1")
    models.make(folder, "safetensors", MIB, 3, models.Filler())
    return folder


Check = Callable[..., StoreForecast]


@pytest.fixture
def check(oss: Oss, model: str, monkeypatch: pytest.MonkeyPatch) -> Check:
    """The check of ``r1``, in this process and without patience; what it says, whose exit code is what it gave."""
    oss.serve_folder(model, "r1/")

    def ask(
        location: str = "",
        *,
        key: AccessKey | None = None,
        env: dict[str, str] | None = None,
        put: bool = False,
        selection: Selection | None = None,
        **warm: Any,
    ) -> StoreForecast:
        for name, value in {**oss.env(key), **(env or {})}.items():
            monkeypatch.setenv(name, value)
        heard = Heard()
        options = WarmOptions(selection=selection or Selection(paths=()), **warm)
        at = Location.parse(location or oss.url("r1"))

        async def run() -> int:
            return await reach(at, options, StoreOptions(give_up_after=0.2), heard, put=put)

        code = anyio.run(run)
        last = heard.events[-1]
        assert isinstance(last, StoreForecast)
        assert last.exit_code == code
        return last

    return ask


def allowed(found: StoreForecast) -> dict[str, bool | None]:
    return {one.name: one.allowed for one in found.permissions}


def test_a_whole_model(box: Box, oss: Oss, model: str) -> None:
    oss.serve_folder(model, "r1/")
    oss.put("r1/.stager/manifest.json", manifest(model))
    done = box.run("check", oss.url("r1"), env=oss.env())
    assert (done.code, done.err) == (0, "")
    sections = [line.split("  ")[0] for line in done.out.splitlines() if not line.startswith(" ")]
    assert sections == [
        "where", "credentials", "reachable", "may", "model", "complete", "verdict",
    ]  # fmt: skip
    assert "yes, by manifest, names, indexes and headers" in done.out
    assert "manifest of org/r1@v2, complete" in done.out
    assert done.out.endswith("a fetch would begin, exit 0\n")
    found = box.run("check", oss.url("r1"), "--json", env=oss.env()).event("store_forecast")
    assert (found["endpoint"], found["region"], found["style"]) == (oss.endpoint, oss.region, "path")
    assert (found["files"], found["complete"], found["unfinished"]) == (8, "yes", 0)
    assert found["answered_in"] > 0
    assert {record.method for record in oss.log.records()} <= {"GET", "HEAD"}, "nothing is written unasked"


@pytest.mark.parametrize(
    ("denied", "code", "problem"),
    [
        ("list", 6, "`list` was refused"),
        ("get", 6, "`get` was refused"),
        ("put", 6, "`put` was refused"),
        ("delete", 0, ""),
        ("listuploads", 0, ""),
    ],
)
def test_each_permission_is_tried(
    oss: Oss, check: Check, model: str, denied: str, code: int, problem: str
) -> None:
    oss.put("r1/.stager/manifest.json", manifest(model))
    found = check(put=True, key=oss.keys.new(denied={denied}))
    assert (found.exit_code, found.reason) == (code, problem)
    name = denied.replace("listuploads", "list uploads")
    assert [name for name, may in allowed(found).items() if may is not True] == [name]
    refused = next(one for one in found.permissions if one.name == name)
    assert "AccessDenied" in refused.why
    assert "request" in refused.why
    if code:
        assert (
            f"oss:{ {'list': 'ListObjects', 'get': 'GetObject', 'put': 'PutObject'}[name] }" in found.text()
        )
    if denied == "get":
        asked = [record.key for record in oss.log.records(operation="GetObject")]
        assert len([key for key in asked if "manifest" not in key]) == 1, (
            "the others would be refused as well"
        )
    left = [key for key in oss.names() if key.startswith("r1/.stager/check")]
    assert bool(left) == (denied == "delete")
    assert not left or left[0].removeprefix("r1/") in refused.why


def test_put_leaves_nothing(oss: Oss, check: Check) -> None:
    before = oss.names()
    found = check(put=True)
    assert allowed(found) == dict.fromkeys(("list", "get", "put", "delete", "list uploads"), True)
    assert oss.log.count(operation="PutObject") == 1
    assert oss.names() == before
    assert not oss.bucket.uploads


def test_put_where_nothing_is_yet(oss: Oss, check: Check) -> None:
    found = check(oss.url("r2"), put=True)
    assert (found.exit_code, allowed(found)["put"]) == (7, True)
    assert "there is `r1`" in found.text()
    found = check(oss.url("r2"), put=True, key=oss.keys.new(denied={"put"}))
    assert (found.exit_code, found.reason) == (6, "`put` was refused"), "what must be mended first"
    assert "also: nothing in" in found.text()


@pytest.mark.parametrize("kind", ["lost", "error", "wrong-crc"])
def test_a_put_that_fails_after_it_arrived_leaves_nothing(oss: Oss, check: Check, kind: str) -> None:
    oss.faults.add(Fault(kind, times=None, operation="PutObject"))
    found = check(put=True)
    assert (found.exit_code, found.complete, found.unfinished) == (5, "yes", 0)
    assert oss.log.count(operation="PutObject") >= 1
    assert [key for key in oss.names() if ".stager" in key] == []
    assert "put" not in allowed(found), "nobody knows"
    assert allowed(found)["delete"] is True


def test_what_cannot_be_removed_is_named(oss: Oss, check: Check) -> None:
    oss.faults.add(Fault("error", times=None, operation="DeleteMultipleObjects"))
    found = check(put=True)
    left = [key for key in oss.names() if ".stager" in key]
    assert (found.exit_code, found.unfinished, len(left)) == (5, 0, 1)
    assert f"`{left[0].removeprefix('r1/')}` may be left behind" in found.text()


def test_a_check_that_is_ended_while_it_writes_says_so(box: Box, oss: Oss, model: str) -> None:
    oss.serve_folder(model, "r1/")
    oss.faults.add(Fault("hang", times=None, operation="DeleteMultipleObjects", seconds=60))
    running = box.start("check", oss.url("r1"), "--put", env=oss.env())
    until(lambda: oss.log.count(operation="PutObject"), "the object")
    until(lambda: any(".stager" in key for key in oss.names()), "the object to be there")
    running.signal(signal.SIGTERM)
    done = running.finish(20)
    assert done.code == 128 + signal.SIGTERM
    left = next(key for key in oss.names() if ".stager" in key)
    assert f"`{left.removeprefix('r1/')}` in `{oss.url('r1')}` may be left behind" in done.err


def test_without_a_listing_the_rest_is_tried(oss: Oss, check: Check, model: str) -> None:
    key = oss.keys.new(denied={"list"})
    found = check(put=True, key=key)
    assert allowed(found) == {"list": False, "get": None, "put": True, "delete": True, "list uploads": True}
    assert "no name is known without a listing" in found.text()
    found = check(oss.url("r1/config.json"), key=key)
    assert (found.exit_code, allowed(found)["list"], allowed(found)["get"]) == (6, False, True)
    oss.put("r1/.stager/manifest.json", manifest(model))
    assert allowed(check(key=key))["get"] is True
    found = check(key=oss.keys.new(denied={"list", "get"}))
    assert (allowed(found)["list"], allowed(found)["get"]) == (False, False)


def test_the_name_of_the_instance_role_is_told(
    oss: Oss, metadata: Metadata, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGER_ECS_METADATA_URL", metadata.endpoint)
    source = find(anonymous=False, environ={"STAGER_ECS_METADATA_URL": metadata.endpoint})
    asked = source.describe()
    source.get()
    assert source.describe() != asked, "only who asks knows the role"
    found = check(env={"OSS_ACCESS_KEY_ID": "", "OSS_ACCESS_KEY_SECRET": ""})
    assert found.exit_code == 0
    assert found.credentials == source.describe()


def test_a_folder_that_is_not_there_is_not_made(box: Box, tmp_path: Path) -> None:
    done = box.run("check", f"file://{tmp_path}/not/there", "--put")
    assert (done.code, "put: not tried" in done.out) == (7, True), str(done)
    assert os.listdir(tmp_path) == []


def test_one_object(oss: Oss, check: Check) -> None:
    found = check(oss.url("r1/config.json"), put=True)
    assert (found.exit_code, found.files, allowed(found)["get"]) == (0, 1, True)
    assert oss.log.records(operation="PutObject")[0].key.startswith("r1/.stager/check-")


def test_archived_objects_are_named_with_the_command(oss: Oss, check: Check, model: str) -> None:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2)]
    for name, storage_class in zip(names, ("Archive", "ColdArchive"), strict=True):
        oss.put(f"r1/{name}", Path(model, name).read_bytes(), storage_class=storage_class)
    oss.put("r1/rare.txt", b"x", storage_class="IA")
    found = check()
    assert (found.exit_code, list(found.archived)) == (6, names)
    assert found.complete == "unknown", "their headers cannot be read"
    assert allowed(found)["get"] is True
    for name in names:
        assert f"`ossutil restore {oss.url(f'r1/{name}')}`" in found.text()
    assert "1 object of class IA, 1 B" in found.text()
    for name in names:
        oss.restored(f"r1/{name}")
    found = check()
    assert (found.exit_code, found.archived, found.complete) == (0, (), "yes")


def test_what_makes_a_fetch_fail(oss: Oss, check: Check, model: str) -> None:
    name = "model-00002-of-00003.safetensors"
    whole = Path(model, name).read_bytes()
    oss.put(f"r1/{name}", whole[:-1])
    assert oss.bytes_sent() == 0
    found = check()
    assert (found.exit_code, found.complete) == (8, "no")
    assert f"{name}: truncated" in found.reason
    assert check(allow_incomplete=True).exit_code == 0
    assert check(selection=Selection(paths=(), exclude=(name,))).exit_code == 0
    oss.remove(f"r1/{name}")
    assert check().reason.startswith(f"incomplete model: {name}: missing")
    assert check(selection=Selection(paths=(), exclude=(name,))).exit_code == 0
    assert check(selection=Selection(paths=(), include=("nothing",))).exit_code == 7
    oss.put(f"r1/{name}", whole)
    assert check().exit_code == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "a writer is at it, its manifest says `updating`"), (b"[]", "is not a manifest")],
)
def test_a_manifest_that_a_fetch_refuses(
    oss: Oss, check: Check, model: str, content: bytes | None, reason: str
) -> None:
    oss.put("r1/.stager/manifest.json", content or manifest(model, "updating"))
    for found in (check(), check(allow_incomplete=True)):
        assert found.exit_code == 8
        assert reason in found.reason


def test_names_that_cannot_be_files(oss: Oss, check: Check) -> None:
    oss.put("r1/sub/../../escape.txt", b"x")
    found = check()
    assert found.exit_code == 8
    assert "escape" in found.reason
    assert check(selection=Selection(paths=(), exclude=("*escape*",))).exit_code == 0


def test_headers_are_all_that_is_read(oss: Oss, check: Check) -> None:
    oss.put_zeros("r1/extra/huge.safetensors", 10 << 30)
    found = check()
    assert found.exit_code == 8
    assert oss.bytes_sent("r1/extra/*") <= MIB
    assert all(record.range for record in oss.log.records(operation="GetObject"))


def test_unfinished_uploads(oss: Oss, check: Check) -> None:
    import oss2

    auth = oss2.Auth(oss.key.id, oss.key.secret)
    bucket = oss2.Bucket(auth, oss.endpoint, oss.bucket.name, is_path_style=True)
    for key in ("r1/a.bin", "r1/b.bin", "r10/other.bin"):
        bucket.init_multipart_upload(key)
    found = check()
    assert (found.exit_code, found.unfinished) == (0, 2)
    assert "ossutil rm" not in found.text(), "they may be under way"
    for pending in oss.bucket.uploads.values():
        pending.begun -= 3 * 86400
    found = check()
    assert found.oldest == pytest.approx(3 * 86400, abs=60)
    assert "2 multipart uploads unfinished, the oldest for 3 days" in found.text()
    assert f"`ossutil rm -r -m {oss.url('r1')}/`" in found.text(), "without the slash it reaches r10"
    oss.put("r1/a.bin", b"x")
    bucket.init_multipart_upload("r1/a.bin.old")
    found = check(oss.url("r1/a.bin"))
    assert found.unfinished == 1, "not those of its neighbours"
    for pending in oss.bucket.uploads.values():
        pending.begun -= 3 * 86400
    assert f"`ossutil rm -m {oss.url('r1/a.bin')}`" in check(oss.url("r1/a.bin")).text()


def test_the_first_thing_to_mend_is_the_exit_code(oss: Oss, check: Check) -> None:
    assert check(env={"OSS_ENDPOINT": "http://127.0.0.1:9"}).exit_code == 5
    assert check(env={"OSS_ACCESS_KEY_SECRET": "wrong"}).exit_code == 6
    assert check("oss://no-such-bucket/r1").exit_code == 7
    oss.faults.add(Fault("unavailable", times=None, operation="GetObject", seconds=0))
    found = check()
    assert (found.exit_code, found.permissions[0].name) == (5, "list")
    assert "ServiceUnavailable" in found.reason


def test_no_credentials(box: Box, oss: Oss) -> None:
    env = {"OSS_ENDPOINT": oss.endpoint, "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}
    done = box.run("check", oss.url("r1"), env=env)
    assert (done.code, "hint: " in done.out) == (6, True), str(done)
    assert done.out.startswith(f"where    {oss.url('r1')}\n")


def test_secrets_are_never_shown(box: Box, oss: Oss) -> None:
    oss.put("r1/a", b"x")
    key = oss.keys.temporary(denied={"get", "put"})
    assert key.token
    for words in (("-vv",), ("--json", "-vv"), ("--put", "-vv")):
        done = box.run("check", oss.url("r1"), *words, env=oss.env(key))
        assert done.code == 6
        for secret in (key.secret, key.token):
            assert secret not in done.out + done.err


def test_a_folder(box: Box, model: str) -> None:
    done = box.run("check", f"file://{model}", "--put", "--json")
    found = done.event("store_forecast")
    assert (done.code, found["complete"], found["credentials"], found["endpoint"]) == (0, "yes", "", "")
    assert not os.path.exists(f"{model}/.stager")


@pytest.mark.parametrize(
    "words",
    [
        ("oss://models/r1", "."),
        (".", "--put"),
        ("s3://models/r1",),
        ("oss://x",),
        ("oss://models/r1", "--source-ip", "eth0"),
        ("oss://models/r1", "--signature", "v2"),
        ("oss://models/r1", "--connect-timeout", "0"),
        ("oss://models/r1", "--endpoint", "ftp://x"),
        ("oss://models/r1", "-P", "4"),
        ("oss://models/r1", "--strict"),
        ("file:///", "--budget", "1G"),
        (".", "--endpoint", "x"),
        ("file:///", "--read-timeout", "1s"),
    ],
    ids=" ".join,
)
def test_usage(box: Box, words: tuple[str, ...]) -> None:
    env = {"OSS_ACCESS_KEY_ID": "x", "OSS_ACCESS_KEY_SECRET": "y"}
    done = box.run("check", *words, env=env)
    assert (done.code, done.out) == (2, ""), str(done)
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "hint"], str(done)


def test_the_first_option_that_does_nothing_is_named(box: Box, oss: Oss, model: str) -> None:
    done = box.run("check", "oss://models/r1", "--order", "largest", "--hold", "1m", "-P", "3", env=oss.env())
    assert (done.code, done.err.splitlines()[0]) == (2, "error: --order says nothing of a store"), str(done)
    done = box.run("check", model, "--source-ip", "127.0.0.1", "--anonymous")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: --source-ip is for stores"), str(done)
    oss.serve_folder(model, "r1/")
    env = {
        "STAGER_LANES": "3",
        "STAGER_ORDER": "largest",
        "STAGER_STRICT": "1",
        "STAGER_ENDPOINT": oss.endpoint,
    }
    done = box.run("check", oss.url("r1"), env={**oss.env(), **env})
    assert done.code == 0, str(done)
    assert box.run("check", model, env=env).code != 2


@pytest.mark.parametrize(
    ("endpoint", "inside", "words"),
    [
        ("oss-cn-hangzhou.aliyuncs.com", True, ["internet path", "--endpoint oss-cn-hangzhou-internal.aliyuncs.com"]),
        ("oss-cn-hangzhou.aliyuncs.com", False, ["charged"]),
        ("http://oss-cn-hangzhou.aliyuncs.com", False, ["charged", "can read the bytes"]),
        ("oss-cn-hangzhou-internal.aliyuncs.com", True, ["accelerator in the zone"]),
        (
            "https://oss-cn-hangzhou-internal.aliyuncs.com",
            True,
            ["encryption", "--endpoint http://oss-cn-hangzhou-internal.aliyuncs.com", "accelerator"],
        ),
        ("cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com", True, ["fills its cache"]),
        ("http://127.0.0.1:1", True, []),
        ("https://models.example.com", True, []),
    ],
)  # fmt: skip
def test_endpoint_advice(endpoint: str, inside: bool, words: list[str]) -> None:
    lines = endpoint_advice(parse(endpoint), inside=inside)
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert word in line


def test_the_firmware_tells_where_the_node_is(tmp_path: Path) -> None:
    assert not cloud.is_alibaba(str(tmp_path))
    folder = tmp_path / "sys/class/dmi/id"
    folder.mkdir(parents=True)
    (folder / "sys_vendor").write_text("QEMU\n")
    assert not cloud.is_alibaba(str(tmp_path))
    (folder / "product_name").write_text("Alibaba Cloud ECS\n")
    assert cloud.is_alibaba(str(tmp_path))


def test_what_findings_say_of_time() -> None:
    now = time.time()
    findings = Findings("oss://models/r1", now, credentials="ECS RAM role r", expires=now + 3300)
    assert "credentials  ECS RAM role r, valid for 55m00s" in findings.forecast().text()
    findings.expires = now - 1
    assert "expired" in findings.forecast().text()
    findings.unfinished = [Unfinished("a", "1", now - 3600)]
    assert findings.forecast().oldest == 3600
    assert "the oldest for 1h00m" in findings.forecast().text()
    findings.forbid("get", AccessDenied("no"))
    assert json.dumps(findings.forecast().as_json())
    assert findings.forecast().exit_code == 6
