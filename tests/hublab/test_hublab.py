"""The look-alike hub is one that both SDKs can download from, and what they do not touch is as the real ones have it."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.hublab.faults import KINDS, LISTS, Fault
from tests.hublab.fixtures import HubLab
from tests.hublab.process import HubProcess
from tests.hublab.repos import Zeros
from tests.hublab.server import HubServer
from tests.osslab.throttle import Link

KIB, MIB = 1 << 10, 1 << 20
BIG = random.Random(4).randbytes(3 * MIB + 7)
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "empty": b"",
    "model-00001-of-00001.safetensors": BIG,
    "部署/größe +a%20b#?&=.bin": BIG[: MIB + 1],
    "a/b/c/deep.txt": b"deep",
}
MODEL = "own/model"


class Got:
    """What one plain request met: status, headers, body as far as it came, and the error that ended it."""

    def __init__(
        self, base: str, target: str, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> None:
        self.status, self.headers, self.body, self.error = 0, {}, b"", None
        parts = urlsplit(base)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        began = time.monotonic()
        try:
            connection.request(method, target, headers=headers or {})
            answer = connection.getresponse()
            self.status, self.headers = answer.status, answer.headers
            while piece := answer.read1(MIB):
                self.body += piece
            if (answer.length or 0) > 0 and method != "HEAD":
                self.error = http.client.IncompleteRead(b"", answer.length)
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        finally:
            self.seconds = time.monotonic() - began
            connection.close()

    @property
    def json(self):
        """The body, read as JSON."""
        return json.loads(self.body)

    def follow(self, **headers: str) -> Got:
        """What is at the place that it names, without any header of the first request."""
        parts = urlsplit(self.headers["Location"])
        return Got(f"http://{parts.netloc}", f"{parts.path}?{parts.query}", headers)


def ms(
    hub: HubServer, what: str, headers: dict[str, str] | None = None, method: str = "GET", **query: str
) -> Got:
    told = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    return Got(hub.endpoint, f"/api/v1/models/{MODEL}{what}?{told}", headers, method)


def big(hub: HubServer, **headers: str) -> Got:
    """The large file, through the redirect."""
    first = ms(hub, "/repo", Revision="master", FilePath="model-00001-of-00001.safetensors")
    return first.follow(**headers)


@pytest.fixture
def stocked(hub: HubLab) -> HubLab:
    hub.repo(MODEL).commit(FILES)
    return hub


class Sdk:
    """Runs a line of Python in a child whose home is its own and which knows no hub but ours."""

    def __init__(self, home: Path) -> None:
        self.home, self.out = home, home / "out"

    def run(self, code: str, env: dict[str, str]) -> str:
        base = {"PATH": os.environ["PATH"], "HOME": str(self.home), "MODELSCOPE_CACHE": f"{self.home}/cache"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=base | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    def modelscope(self, env: dict[str, str], **options: object) -> str:
        """Its snapshot_download into `out`; gives the name of the error, if it raised one."""
        return self._snapshot("modelscope.hub.snapshot_download", env, options)

    def huggingface(self, env: dict[str, str], **options: object) -> str:
        """The same of the other SDK."""
        return self._snapshot("huggingface_hub", env, options)

    def _snapshot(self, module: str, env: dict[str, str], options: dict[str, object]) -> str:
        told = {"repo_id": MODEL, "local_dir": str(self.out)} | options
        code = f"from {module} import snapshot_download\ntry:\n    snapshot_download(**{told!r})\n"
        return self.run(code + "except Exception as error:\n    print(type(error).__name__, error)", env)

    def got(self) -> dict[str, bytes]:
        """The files that came, without what an SDK notes for itself."""
        paths = (path for path in self.out.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.out)): path.read_bytes() for path in paths}
        return {
            name: data for name, data in found.items() if not name.startswith((".cache", "._", ".ms", ".m"))
        }


@pytest.fixture
def sdk(tmp_path: Path) -> Sdk:
    return Sdk(tmp_path)


RANGES = {
    "MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB": "1",
    "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "4",
    "MODELSCOPE_DOWNLOAD_PART_SIZE_MB": "1",
}

# ModelScope's SDK


def test_modelscope_downloads_what_is_there(stocked: HubLab, sdk: Sdk) -> None:
    assert sdk.modelscope(stocked.env()) == ""
    assert sdk.got() == FILES


def test_modelscope_downloads_in_ranges(stocked: HubLab, sdk: Sdk) -> None:
    assert sdk.modelscope(stocked.env() | RANGES) == ""
    assert sdk.got() == FILES
    assert stocked.log.count(operation="cdn", key="model-*", status=206) >= 4


def test_modelscope_reads_a_private_repository_with_a_token_only(hub: HubLab, sdk: Sdk) -> None:
    hub.repo(MODEL, private=True).commit(FILES)
    assert "HTTPError" in sdk.modelscope(hub.env())
    assert "HTTPError" in sdk.modelscope(hub.env(token="ms-unknown"))
    assert sdk.got() == {}
    assert sdk.modelscope(hub.env(token=True)) == ""
    assert sdk.got() == FILES
    at_the_cdn = hub.log.records(operation="cdn")
    assert at_the_cdn
    assert all("authorization" not in one.headers and "cookie" not in one.headers for one in at_the_cdn)
    assert any("cookie" in one.headers for one in hub.log.records(operation="files"))


def test_modelscope_is_refused_a_gated_repository(hub: HubLab, sdk: Sdk) -> None:
    hub.repo(MODEL, gated=True).commit(FILES)
    assert "E3020" in sdk.modelscope(hub.env(token=hub.new_token()))  # what it makes of any 404
    hub.gated_status = 403
    assert "E3002" in sdk.modelscope(hub.env(token=hub.new_token()))
    assert sdk.modelscope(hub.env(token=True)) == ""
    assert sdk.got() == FILES


def test_modelscope_downloads_an_old_snapshot(stocked: HubLab, sdk: Sdk) -> None:
    old = stocked.repo(MODEL).branches["master"]
    stocked.repo(MODEL).tag("v1", old)
    stocked.repo(MODEL).commit({"config.json": b"{}", "empty": None})
    for revision in (old, "v1"):
        assert sdk.modelscope(stocked.env(), revision=revision) == ""
        assert sdk.got() == FILES
    assert sdk.modelscope(stocked.env(), revision="master", allow_patterns=["config.json"]) == ""
    assert sdk.got()["config.json"] == b"{}"


def test_modelscope_does_not_know_the_model(stocked: HubLab, sdk: Sdk) -> None:
    assert "E3020" in sdk.modelscope(stocked.env(), repo_id="own/other")
    assert sdk.modelscope(stocked.env(), revision="nosuch") == ""  # this hub says so by an empty list
    stocked.unknown_revision = "404"
    assert "E3020" in sdk.modelscope(stocked.env(), revision="nosuch")


def test_modelscope_walks_long_listings(hub: HubLab, sdk: Sdk) -> None:
    names = [f"{place}{n:04}" for place in ("", "a/", "b/c/", "b/d/e/") for n in range(900)]
    hub.repo(MODEL).commit(dict.fromkeys(names, b"x"))
    code = f"""
from modelscope.hub.api import HubApi
found = HubApi().legacy.list_repo_files(repo_id={MODEL!r}, repo_type="model", revision="master", recursive=True)
print(*sorted(one["Path"] for one in found if one["Type"] == "blob"))
"""
    assert sdk.run(code, hub.env()).split() == sorted(names)
    assert len(hub.log.records(operation="files")) > 2
    hub.listing_limit = 4000
    hub.log.clear()
    assert len(sdk.run(code, hub.env()).split()) == 3600


def test_modelscope_lists_branches_and_tags(stocked: HubLab, sdk: Sdk) -> None:
    repo = stocked.repo(MODEL)
    repo.commit({"x": b"y"}, "dev")
    repo.tag("v1")
    code = f'from modelscope.hub.api import HubApi\nprint(*[one["Revision"] for one in HubApi().list_repo_revisions({MODEL!r}, "model")])'
    assert sorted(sdk.run(code, stocked.env()).split()) == ["dev", "master", "v1"]


def test_modelscope_in_the_cloud_is_sent_inside(stocked: HubLab, sdk: Sdk) -> None:
    stocked.region = "cn-hangzhou"
    assert sdk.modelscope(stocked.env()) == ""
    assert sdk.got() == FILES
    assert stocked.log.count(operation="internal") == 2
    assert stocked.log.count(operation="cdn") == 0
    assert stocked.log.count(operation="region") == 1
    assert all("x-aliyun-region-id" in one.headers for one in stocked.log.records(operation="repo"))


def test_modelscope_gets_over_faults(stocked: HubLab, sdk: Sdk) -> None:
    struck = [
        stocked.faults.add(Fault(kind, host="cdn", key_glob="model-*"))
        for kind in ("reset", "close", "unavailable")
    ]
    assert sdk.modelscope(stocked.env()) == ""
    assert sdk.got() == FILES
    assert [one.fired for one in struck] == [1, 1, 1]


# Hugging Face's SDK


def test_huggingface_downloads_what_is_there(stocked: HubLab, sdk: Sdk) -> None:
    stocked.page_size = 2
    assert sdk.huggingface(stocked.env()) == ""
    assert sdk.got() == FILES
    assert stocked.log.count(operation="hf-tree") > 2


def test_huggingface_reads_a_private_repository_with_a_token_only(hub: HubLab, sdk: Sdk) -> None:
    hub.repo(MODEL, private=True).commit(FILES)
    assert "RepositoryNotFoundError" in sdk.huggingface(hub.env())
    assert "Invalid credentials" in sdk.huggingface(hub.env(token="hf_unknown"))
    assert sdk.huggingface(hub.env(token=True)) == ""
    assert sdk.got() == FILES
    assert all("authorization" not in one.headers for one in hub.log.records(operation="cdn"))


def test_huggingface_is_refused_a_gated_repository(hub: HubLab, sdk: Sdk) -> None:
    hub.repo(MODEL, gated=True).commit(FILES)
    assert "GatedRepoError 401" in sdk.huggingface(hub.env())
    assert "GatedRepoError 403" in sdk.huggingface(hub.env(token=hub.new_token()))
    assert sdk.huggingface(hub.env(token=True)) == ""
    assert sdk.got() == FILES


def test_huggingface_knows_what_it_is_told(stocked: HubLab, sdk: Sdk) -> None:
    old = stocked.repo(MODEL).branches["master"]
    stocked.repo(MODEL).tag("v1")
    new = stocked.repo(MODEL).commit({"empty": None})
    stocked.repo("gpt2").commit({"config.json": b"{}"})
    stocked.moved["before/model"] = MODEL
    code = f"""
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
api = HfApi()
info = api.model_info({MODEL!r}, revision="v1", files_metadata=True)
print(info.sha, len(info.siblings), sum(one.size for one in info.siblings))
refs = api.list_repo_refs({MODEL!r})
print(refs.branches[0].name, refs.branches[0].target_commit, refs.tags[0].ref)
tree = {{one.path: one for one in api.list_repo_tree({MODEL!r}, recursive=True, expand=True)}}
print(tree["model-00001-of-00001.safetensors"].lfs.sha256, tree["config.json"].blob_id, tree["a/b"].last_commit.oid)
print(*[one.path for one in api.list_repo_tree({MODEL!r}, "a/b/c")])
print(api.model_info("before/model").id, api.model_info("gpt2").sha, hf_hub_download("gpt2", "config.json"))
for ask in (
    lambda: api.model_info({MODEL!r}, revision="nosuch"),
    lambda: hf_hub_download({MODEL!r}, "nosuch"),
    lambda: list(api.list_repo_tree({MODEL!r}, "nosuch")),
    lambda: api.model_info("own/nosuch"),
):
    try:
        print("none", ask())
    except HfHubHTTPError as error:
        print(type(error).__name__)
"""
    lines = sdk.run(code, stocked.env()).splitlines()
    assert lines[0].split() == [old, str(len(FILES)), str(sum(map(len, FILES.values())))]
    assert lines[1].split() == ["main", new, "refs/tags/v1"]
    config = FILES["config.json"]
    git = hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    assert lines[2].split() == [hashlib.sha256(BIG).hexdigest(), git, old]
    assert lines[3] == "a/b/c/deep.txt"
    assert lines[4].startswith(f"{MODEL} {stocked.repo('gpt2').branches['master']} /")
    assert lines[5:] == [
        "RevisionNotFoundError",
        "RemoteEntryNotFoundError",
        "RemoteEntryNotFoundError",
        "RepositoryNotFoundError",
    ]


# lists


def test_a_list_says_who_touched_what_last(stocked: HubLab) -> None:
    repo = stocked.repo(MODEL)
    first = repo.branches["master"]
    second = repo.commit({"a/b/new": b"1", "config.json": b"{}"})
    data = ms(stocked, "/repo/files", Revision="master", Recursive="True").json["Data"]
    found = {one["Path"]: one for one in data["Files"]}
    assert set(found) == {*FILES, "a/b/new", "a", "a/b", "a/b/c", "部署"}
    assert found["config.json"]["Revision"] == found["a/b"]["Revision"] == second
    assert found["empty"]["Revision"] == found["a/b/c"]["Revision"] == first
    assert found["config.json"]["CommittedDate"] > found["empty"]["CommittedDate"]
    assert found["empty"]["Sha256"] == hashlib.sha256(b"").hexdigest()
    assert (found["a"]["Type"], found["a"]["Sha256"], found["empty"]["Type"]) == ("tree", "", "blob")
    assert found["model-00001-of-00001.safetensors"]["IsLFS"]
    assert not found["config.json"]["IsLFS"]
    assert (data["LatestCommitter"]["Id"], data["LatestCommitter"]["ShortId"]) == ("", second[:8])


def test_a_list_of_one_folder(stocked: HubLab) -> None:
    def paths(**query: str) -> list[str]:
        return [one["Path"] for one in ms(stocked, "/repo/files", **query).json["Data"]["Files"] or []]

    assert paths(Root="a") == ["a/b"]
    assert paths(Root="a", Recursive="True") == ["a/b", "a/b/c", "a/b/c/deep.txt"]
    assert paths() == sorted(["a", "config.json", "empty", "model-00001-of-00001.safetensors", "部署"])
    stocked.listing_limit = 2
    assert paths() == ["a", "config.json"]
    assert paths(Revision="nosuch") == []


def test_the_history_of_a_branch(stocked: HubLab) -> None:
    repo = stocked.repo(MODEL)
    first = repo.branches["master"]
    second = repo.commit({"new": b"1"})
    other = repo.commit({"only": b"2"}, "dev")
    repo.tag("v1", first)

    def ids(**query: str) -> list[str]:
        return [one["Id"] for one in ms(stocked, "/commits", **query).json["Data"]["Commit"] or []]

    assert ids(Ref="master") == ids(Ref="main") == ids(Reef="dev") == [second, first]
    assert ids(Ref="master", PageSize="1") == [second]
    assert (ids(Ref="dev"), ids(Ref="v1"), ids(Ref="nosuch")) == ([other], [first], [])
    assert all(len(one) == 40 and int(one, 16) for one in (first, second, other))


@pytest.mark.parametrize(
    ("what", "query", "headers", "status", "code"),
    [
        ("/repo", {"FilePath": "nosuch"}, {}, 404, 10010206001),
        ("/repo", {"FilePath": "config.json", "Revision": "nosuch"}, {}, 404, 10990101004),
        ("/nosuch", {}, {}, 404, 404),
    ],
)
def test_what_is_not_there(
    stocked: HubLab, what: str, query: dict[str, str], headers: dict[str, str], status: int, code: int
) -> None:
    got = ms(stocked, what, headers, **query)
    assert (got.status, got.json["Code"], got.json["Success"]) == (status, code, False)
    assert got.json["RequestId"] == got.headers["X-Request-Id"]
    assert got.json["Message"]


def test_the_status_of_a_refusal_is_settable(hub: HubLab) -> None:
    hub.repo(MODEL, private=True).commit(FILES)
    assert (ms(hub, "").status, ms(hub, "").json["Code"]) == (404, 10010200001)
    assert ms(hub, "", {"Cookie": f"a=b; m_session_id={hub.token}"}).status == 200
    hub.private_status = 401
    assert ms(hub, "/repo/files").status == 401


# bytes


def test_small_files_come_whole_whatever_range_was_asked_for(stocked: HubLab) -> None:
    got = ms(stocked, "/repo", {"Range": "bytes=2-4"}, FilePath="config.json")
    assert (got.status, got.body) == (200, FILES["config.json"])
    assert "Content-Range" not in got.headers
    stocked.direct_below = 0
    got = ms(stocked, "/repo", FilePath="config.json")
    assert (got.status, got.follow(Range="bytes=2-4").body) == (302, FILES["config.json"][2:5])


@pytest.mark.parametrize(
    ("wanted", "status", "first", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=1048576-2097151", 206, MIB, 2 * MIB),
        (f"bytes=5-{9 * MIB}", 206, 5, len(BIG)),
        ("bytes=3145728-", 206, 3 * MIB, len(BIG)),
        ("bytes=-10", 206, len(BIG) - 10, len(BIG)),
        ("bytes=9-3", 200, 0, len(BIG)),
        ("lines=1-2", 200, 0, len(BIG)),
    ],
)
def test_the_cdn_honours_ranges(stocked: HubLab, wanted: str, status: int, first: int, end: int) -> None:
    got = big(stocked, Range=wanted)
    assert (got.status, got.body == BIG[first:end]) == (status, True)
    told = f"bytes {first}-{end - 1}/{len(BIG)}" if status == 206 else None
    assert got.headers["Content-Range"] == told
    assert got.headers["X-Linked-ETag"] == f'"{hashlib.sha256(BIG).hexdigest()}"'


def test_a_range_beyond_the_end(stocked: HubLab) -> None:
    got = big(stocked, Range=f"bytes={len(BIG)}-")
    assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{len(BIG)}")


def test_the_cdn_compares_etags(stocked: HubLab) -> None:
    etag = big(stocked, Range="bytes=0-9").headers["ETag"]
    assert big(stocked, **{"If-Match": etag}).status == 200
    got = big(stocked, **{"If-Match": '"other"'})
    assert (got.status, b"PreconditionFailed" in got.body) == (412, True)


def test_urls_expire_and_cannot_be_made_up(stocked: HubLab) -> None:
    first = ms(stocked, "/repo", FilePath="model-00001-of-00001.safetensors")
    url = first.headers["Location"]
    assert first.follow().body == BIG
    for before, after in (("Expires=", "Expires=9"), ("model-0", "model-1"), ("Signature=", "Signature=x")):
        first.headers.replace_header("Location", url.replace(before, after))
        got = first.follow()
        assert (got.status, b"SignatureDoesNotMatch" in got.body) == (403, True)
    stocked.url_lifetime = -1
    got = big(stocked)
    assert (got.status, b"Request has expired" in got.body, got.headers["Content-Type"]) == (
        403,
        True,
        "application/xml",
    )
    assert stocked.log.records(operation="cdn", key="model-0*")[-1].code == "AccessDenied"


def test_the_cdn_notes_every_header(stocked: HubLab) -> None:
    big(stocked, Authorization="Bearer hf_secret", Cookie="m_session_id=1")
    [record] = stocked.log.records(operation="cdn")
    assert (record.headers["authorization"], record.headers["cookie"]) == (
        "Bearer hf_secret",
        "m_session_id=1",
    )
    assert (record.bucket, record.key, record.host) == (
        MODEL,
        "model-00001-of-00001.safetensors",
        "127.0.0.2",
    )
    assert stocked.bytes_sent("model-*") == stocked.bytes_sent(operation="cdn") == len(BIG)
    assert stocked.bytes_sent("config.json") == 0


@pytest.mark.parametrize("path", ["config.json", "部署/größe +a%20b#?&=.bin"])
def test_head_is_get_without_the_body(stocked: HubLab, path: str) -> None:
    for target in (
        f"/api/v1/models/{MODEL}/repo?FilePath={quote(path, safe='')}",
        f"/{MODEL}/resolve/main/{quote(path)}",
        f"/api/v1/models/{MODEL}/repo/files",
    ):
        got, head = Got(stocked.endpoint, target), Got(stocked.endpoint, target, method="HEAD")
        assert (head.status, head.body, head.error) == (got.status, b"", None)
        if got.status == 200:
            assert int(head.headers["Content-Length"]) == len(got.body) > 0
        else:
            assert head.headers["Location"].partition("?")[0] == got.headers["Location"].partition("?")[0]


def test_resolve_says_what_a_large_file_is(stocked: HubLab) -> None:
    got = Got(stocked.endpoint, f"/{MODEL}/resolve/main/model-00001-of-00001.safetensors")
    assert (got.status, got.headers["X-Linked-Size"]) == (302, str(len(BIG)))
    assert got.headers["X-Linked-ETag"] == f'"{hashlib.sha256(BIG).hexdigest()}"'
    assert got.headers["X-Repo-Commit"] == stocked.repo(MODEL).branches["master"]
    assert got.follow().body == BIG
    got = Got(stocked.endpoint, f"/{MODEL}/resolve/main/config.json", {"Range": "bytes=0-1"})
    assert (got.status, got.body) == (206, FILES["config.json"][:2])
    got = Got(stocked.endpoint, f"/{MODEL}/resolve/main/nosuch")
    assert (got.status, got.headers["X-Error-Code"]) == (404, "EntryNotFound")


def test_only_the_own_region_is_sent_inside(stocked: HubLab) -> None:
    def host(region: str) -> str:
        got = ms(
            stocked, "/repo", {"x-aliyun-region-id": region}, FilePath="model-00001-of-00001.safetensors"
        )
        assert got.follow().body == BIG
        return urlsplit(got.headers["Location"]).hostname or ""

    assert host("cn-hangzhou") == "127.0.0.2"
    stocked.region = "cn-hangzhou"
    assert (host("cn-hangzhou"), host("cn-beijing")) == ("127.0.0.3", "127.0.0.2")


def test_snapshots_stay_as_they_were(hub: HubLab, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_bytes(b"on disk")
    repo = hub.serve_folder(str(tmp_path), MODEL)
    first = repo.branches["master"]
    second = repo.commit({"zeros": Zeros(5 * MIB), "sub/file": str(tmp_path / "sub/file"), "more": b"1"})
    repo.commit({"sub/file": None, "more": None})
    assert set(repo.files) == {"zeros"}
    assert repo.files["zeros"].sha256 == hashlib.sha256(bytes(5 * MIB)).hexdigest()
    assert ms(hub, "/repo", FilePath="zeros").follow().body == bytes(5 * MIB)
    assert ms(hub, "/repo", FilePath="sub/file").status == 404
    for revision in (first, second):
        assert ms(hub, "/repo", FilePath="sub/file", Revision=revision).body == b"on disk"
    assert (tmp_path / "sub/file").read_bytes() == b"on disk"


# faults


def _of_kind(kind: str, got: Got, clean: Got) -> bool:
    """Whether an answer is what a fault of that kind makes of it; `clean` is the one without."""
    half = len(clean.body) // 2
    other = sum(a != b for a, b in zip(got.body, clean.body, strict=False))
    wrong = f"bytes 1-{len(clean.body)}/{len(BIG)}"
    return {
        "reset": got.error is not None and len(got.body) <= half,
        "close": isinstance(got.error, http.client.IncompleteRead) and len(got.body) == half,
        "drop": (got.status, got.body) == (0, b"") and got.error is not None,
        "unavailable": (got.status, got.headers.get("Retry-After")) == (503, "0.3"),
        "limited": (got.status, got.headers.get("Retry-After")) == (429, "0.3"),
        "error": got.status == 507,
        "expired": got.status == 403 and b"has expired" in got.body,
        "corrupt": (len(got.body), other) == (len(clean.body), 1),
        "slow": got.body == clean.body and got.seconds >= 0.15,
        "stall": got.body == clean.body and got.seconds >= 0.3,
        "hang": got.body == clean.body and got.seconds >= 0.3,
        "whole": got.status == 200 and got.body == BIG,
        "wrong-range": (got.status, got.body, got.headers.get("Content-Range")) == (206, clean.body, wrong),
        "cut-list": got.status == 200 and got.body == clean.body[:half],
        "garbled": got.status == 200 and got.body.startswith(b"<!DOCTYPE"),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_strikes_as_it_says_and_as_often(stocked: HubLab, kind: str) -> None:
    def ask() -> Got:
        if kind in ("cut-list", "garbled"):
            return ms(stocked, "/repo/files")
        return big(stocked, Range="bytes=0-299999")

    clean = ask()
    host = "hub" if KINDS[kind][1] is LISTS else "cdn"
    fault = stocked.faults.add(Fault(kind, times=2, skip=1, host=host, seconds=0.3, status=507, rate=MIB))
    answers = [ask() for _ in range(4)]
    assert [_of_kind(kind, got, clean) for got in answers] == [False, True, True, False]
    assert (fault.fired, stocked.faults.counts[kind], stocked.faults.pending) == (2, 2, 0)
    assert [one.fault for one in stocked.log.records(fault=kind)] == [kind] * 2


def test_a_fault_for_bytes_waits_for_bytes(stocked: HubLab) -> None:
    """A range is asked of the hub first; what is to go wrong with it goes wrong where it is given."""
    query = {"FilePath": "model-00001-of-00001.safetensors"}
    for kind in ("whole", "corrupt"):
        fault = stocked.faults.add(Fault(kind))
        first = ms(stocked, "/repo", {"Range": "bytes=0-9"}, **query)
        assert (first.status, fault.fired) == (302, 0)
        if kind == "whole":
            assert (first.follow().body, fault.fired) == (BIG, 0)
        assert (first.follow(Range="bytes=0-9").body == BIG[:10], fault.fired) == (False, 1)


def test_a_fault_knows_file_and_operation(stocked: HubLab) -> None:
    stocked.faults.add(Fault("error", None, key_glob="*.json", operation="repo"))
    assert ms(stocked, "/repo", FilePath="config.json").status == 500
    assert ms(stocked, "/repo", FilePath="empty").status == 200
    assert Got(stocked.endpoint, f"/{MODEL}/resolve/main/config.json").status == 200
    stocked.faults.clear()
    assert ms(stocked, "/repo", FilePath="config.json").status == 200
    stocked.faults.add(Fault("reset", operation="files"))
    assert ms(stocked, "/repo/files").status == 0
    with pytest.raises(ValueError, match="no fault is called"):
        Fault("nosuch")


def test_a_hub_may_be_far_away() -> None:
    with HubServer(link=Link(latency=0.2, rate=32 * MIB)) as hub:
        hub.repo(MODEL).commit({"model-00001-of-00001.safetensors": Zeros(8 * MIB)})
        assert big(hub).seconds >= 0.2 + 8 / 32 - 0.05
        began = time.monotonic()
        assert ms(hub, "/repo/files").status == 200
        assert time.monotonic() - began >= 0.2


def test_bodies_share_one_rate() -> None:
    with HubServer(rate=32 * MIB) as hub:
        hub.repo(MODEL).commit({"model-00001-of-00001.safetensors": Zeros(8 * MIB)})
        assert big(hub).seconds >= 8 / 32 - 0.05


# as a process


def test_a_process_serves_folders_and_takes_faults(
    hub_process: Callable[..., HubProcess], tmp_path: Path, sdk: Sdk
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes(b"{}")
    server = hub_process(
        serve=f"{tmp_path}/model={MODEL}",
        zeros=[f"{MODEL}/sub/zeros=2MiB", "own/other/z=0"],
        private=MODEL,
        direct_below="1M",
        faults=json.dumps([{"kind": "unavailable", "host": "cdn", "seconds": 0}]),
    )
    assert server.endpoint.startswith("http://127.0.0.1:")
    assert server.told["cdn"].startswith("http://127.0.0.2:")
    assert sdk.modelscope(server.env(token=True)) == ""
    assert sdk.got() == {"config.json": b"{}", "sub/zeros": bytes(2 * MIB)}
    counters = server.control("GET", "counters")
    assert (counters["faults"], counters["pid"]) == ({"unavailable": 1}, server.pid)
    assert counters["bytes_sent"] >= 2 * MIB + 2
    assert {one["operation"] for one in server.control("GET", "log")} >= {"files", "repo", "cdn"}
    server.control("DELETE", "log")
    assert server.control("GET", "log") == []
    server.control("POST", "faults", [{"kind": "error", "times": None, "operation": "files"}])
    assert server.control("GET", "faults")["script"][1]["kind"] == "error"
    got = Got(
        server.endpoint, f"/api/v1/models/{MODEL}/repo/files", {"Authorization": f"Bearer {server.token}"}
    )
    assert got.status == 500
    server.control("DELETE", "faults")
    assert server.control("GET", "faults")["script"] == []


def test_a_process_ends_with_its_parent_or_by_a_signal(hub_process: Callable[..., HubProcess]) -> None:
    for end in ("stdin", "signal"):
        server = hub_process(zeros="own/model/z=10")
        if end == "stdin":
            assert server._process.stdin is not None
            server._process.stdin.close()
        else:
            server._process.send_signal(signal.SIGTERM)
        assert server._process.wait(20) in (0, -signal.SIGTERM)
