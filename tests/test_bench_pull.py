"""scripts/bench-pull at tiny sizes: it runs and prints its table; its servers speak to oss2, rclone, s3fs and the SDK; what arrived is compared."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import oss2
import pytest

from stager.node.filesystems import object_store_at
from tests.hublab import faults as hub_faults
from tests.osslab import checksum
from tests.osslab import faults as store_faults
from tests.test_bench_fetch import memory, own_stager

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench import process, pull_contest, pull_mount, pull_servers, pull_trials  # noqa: E402
from bench.data import Stop  # noqa: E402

__all__ = ["memory"]  # a fixture
MIB = 1 << 20
KEY, SECRET, REGION = "bench", "bench-secret", "cn-test"
SAID = '{"type": "pull_summary", "complete": true}'


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the script sets them."""
    for name in list(os.environ):
        if name.startswith(("OSS_", "MODELSCOPE_", "STAGER_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, text in (("ACCESS_KEY_ID", KEY), ("ACCESS_KEY_SECRET", SECRET), ("REGION", REGION)):
        monkeypatch.setenv(f"OSS_{name}", text)


@pytest.fixture
def stager(tmp_path: Path) -> str:
    return own_stager(tmp_path)


def bucket_of(sink: pull_servers.Sink) -> oss2.Bucket:
    return oss2.Bucket(oss2.AuthV4(KEY, SECRET), sink.endpoint, "bench", region=REGION)


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / "bench-pull", *map(str, words)],
        env={**os.environ, "STAGER": own_stager(folder), "http_proxy": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_quick_run_prints_the_table(tmp_path: Path, memory: Path) -> None:
    (tmp_path / "disk").mkdir()
    where = ["--dir", memory / "d", "--disk", tmp_path / "disk", "--json", tmp_path / "j"]
    result = run("--quick", "--only", "throttled,vendor", *where, folder=tmp_path)
    assert result.returncode in (0, 1), result.stderr
    assert "not measured" not in result.stdout, result.stdout + result.stderr
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| 8 x 4 MiB")]
    assert [row[1] for row in rows] == ["writing alone", pull_contest.VENDOR]
    assert "| 0 bytes |  | 0 bytes | pass |" in result.stdout
    found = json.loads((tmp_path / "j").read_text())
    assert [set(one) for pair in found["rounds"] for one in pair["rounds"]] == [
        {pull_contest.PULL, pull_contest.READ, pull_contest.WRITE},
        {pull_contest.PULL, pull_contest.VENDOR},
    ]
    assert not [*(memory / "d").iterdir(), *(tmp_path / "disk").iterdir()]


@pytest.mark.parametrize("given", [["--only", "nine"], ["--rounds", "0"], ["--lanes", "0"]])
def test_usage_errors(given: list[str], tmp_path: Path) -> None:
    result = run(*given, folder=tmp_path)
    assert result.returncode == 2
    assert "error:" in result.stderr


# The store


@pytest.fixture
def kept(stager: str, tmp_path: Path) -> Iterator[pull_servers.Sink]:
    with pull_servers.Sink(stager, str(tmp_path / "room")) as sink:
        yield sink


def test_what_is_kept_comes_back_with_its_crc(kept: pull_servers.Sink) -> None:
    data, bucket = random.randbytes(2 * MIB + 17), bucket_of(kept)
    assert bucket.put_object("a", data).crc == checksum.crc64(data)
    upload = bucket.init_multipart_upload("b").upload_id
    parts = []
    for number, at in enumerate(range(0, len(data), MIB), 1):
        done = bucket.upload_part("b", upload, number, data[at : at + MIB])
        assert done.crc == checksum.crc64(data[at : at + MIB])
        parts.append(oss2.models.PartInfo(number, done.etag))
    assert bucket.complete_multipart_upload("b", upload, parts).crc == checksum.crc64(data)
    assert bucket.get_object("a").read() == bucket.get_object("b").read() == data


def test_what_is_discarded_has_its_crc_and_reads_as_zeros(stager: str, tmp_path: Path) -> None:
    large, small = random.randbytes(MIB + 1), random.randbytes(MIB)
    with pull_servers.Sink(stager, str(tmp_path / "room"), discard=True) as sink:
        bucket = bucket_of(sink)
        bucket.put_object("large", large)
        bucket.put_object("small", small)
        assert bucket.head_object("large").server_crc == checksum.crc64(large)
        assert bucket.get_object("small").read() == small
        assert bucket.get_object("large").read() == bytes(MIB + 1)


def test_the_store_takes_no_more_than_its_rate(stager: str, tmp_path: Path) -> None:
    with pull_servers.Sink(stager, str(tmp_path / "room"), discard=True, rate=40e6) as sink:
        words = ["write", sink.endpoint, "bench", "x/", 4, 4, 4 * 10**6]
        found = json.loads(process.run(pull_contest.client(stager, *words)).out)
    assert found["bytes"] == 16e6
    assert found["seconds"] >= 0.25  # 0.4 but for what may be under way at once


def test_the_hub_gives_no_more_than_its_rate(stager: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for name in "abcd":
        (source / name).write_bytes(bytes(4 * 10**6))
    with pull_servers.Hub(stager, (str(source), "bench/model"), rate=40e6) as hub:
        (tmp_path / "urls").write_text(
            "".join(f"{hub.url('bench/model', name)} {4 * 10**6}\n" for name in "abcd")
        )
        argv = pull_contest.client(stager, "read", tmp_path / "urls", 4)
        found = json.loads(process.run(argv).out)
    assert found["bytes"] == 16e6
    assert found["seconds"] >= 0.25


def test_bytes_of_requests_that_were_cut_short_count_as_received(kept: pull_servers.Sink) -> None:
    bucket = bucket_of(kept)
    bucket.put_object("run/a", bytes(1000))
    bucket.put_object("run/.stager/manifest.json", bytes(500))
    bucket.put_object("other/a", bytes(100))
    where = urlsplit(bucket.sign_url("PUT", "run/b", 60, slash_safe=True))
    with socket.create_connection((where.hostname, where.port), 10) as half:
        head = (
            f"PUT {where.path}?{where.query} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: 5000\r\n\r\n"
        )
        half.sendall(head.encode() + bytes(2000))
    end = time.monotonic() + 10
    while kept.received("run/") != 3000 and time.monotonic() < end:
        time.sleep(0.01)
    assert kept.received("run/") == 3000


def test_differences_are_found_and_everything_is_removed(
    kept: pull_servers.Sink, stager: str, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    bucket, data = bucket_of(kept), random.randbytes(5 * MIB)
    for name in ("a", "sub/b"):
        (source / name).write_bytes(data)
        bucket.put_object(f"m/{name}", data)
    odd = {"short": data[:-1], "long": data + b"x", "other": data[:-1] + bytes([data[-1] ^ 1])}
    for name in (*odd, "missing"):
        (source / name).write_bytes(data)
        if name in odd:
            bucket.put_object(f"m/{name}", odd[name])
    for how in ("crcs", "compare"):
        argv = pull_contest.client(stager, how, kept.endpoint, "bench", "m/", source)
        assert json.loads(process.run(argv).out)["differing"] == sorted((*odd, "missing"))
    with pytest.raises(Stop, match="m/long is not what the hub has"):
        pull_contest.proven(stager, kept, "m/", str(source))
    for name in (*odd, "missing"):
        (source / name).unlink()
    pull_contest.proven(stager, kept, "m/", str(source))
    bucket.init_multipart_upload("m/c")
    process.run(pull_contest.client(stager, "remove", kept.endpoint, "bench", "m/"))
    assert not bucket.list_objects_v2("m/").object_list
    assert not bucket.list_multipart_uploads("m/").upload_list


def test_s3_headers_are_understood_without_a_signature(stager: str, tmp_path: Path) -> None:
    with pull_servers.Sink(stager, str(tmp_path / "room"), s3=True) as sink:
        connection = http.client.HTTPConnection(urlsplit(sink.endpoint).netloc, timeout=10)

        def ask(
            method: str, path: str, body: bytes = b"", **headers: str
        ) -> tuple[int, dict[str, str], bytes]:
            names = {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()

        assert ask("PUT", "/bench/a", b"bytes", x_amz_meta_mode="33188")[0] == 200
        assert ask("PUT", "/bench/b", x_amz_copy_source="/bench/a")[0] == 200
        status, headers, body = ask("GET", "/bench/b")
    assert (status, body, headers["x-amz-meta-mode"]) == (200, b"bytes", "33188")
    assert not [name for name in headers if name.startswith("x-oss-")]


def test_a_server_that_does_not_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stop, match="does not start"):
        pull_servers.Server([sys.executable, "-c", "raise SystemExit('no')"])
    assert "no" in capfd.readouterr().err


def test_the_store_in_s3s_manner_takes_what_names_a_namespace_and_says_what_it_has(
    stager: str, tmp_path: Path
) -> None:
    data = random.randbytes(MIB + 1)
    with pull_servers.Sink(stager, str(tmp_path / "room"), s3=True) as sink:
        connection = http.client.HTTPConnection(urlsplit(sink.endpoint).netloc, timeout=10)

        def ask(method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, str, bytes]:
            connection.request(method, target, body, {"Content-MD5": headers["md5"]} if headers else {})
            answer = connection.getresponse()
            return answer.status, answer.headers.get("ETag", ""), answer.read()

        assert ask("PUT", "/bench/small", b"bytes", md5=md5(b"other"))[0] == 400
        assert ask("PUT", "/bench/small", b"bytes", md5=md5(b"bytes"))[1].strip('"').lower() == (
            hashlib.md5(b"bytes").hexdigest()
        )
        upload = ET.fromstring(ask("POST", "/bench/large?uploads")[2]).findtext("UploadId")
        where = f"/bench/large?uploadId={upload}"
        status, etag, _ = ask("PUT", f"{where}&partNumber=1", data, md5=md5(data))  # too large to be compared
        assert status == 200
        part = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
        named = (
            f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{part}'
            "</CompleteMultipartUpload>"
        )
        assert ask("POST", where, named.encode())[0] == 200
        assert sink.control("GET", "objects") == {
            "small": [5, checksum.crc64(b"bytes")],
            "large": [len(data), checksum.crc64(data)],
        }


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def test_a_store_far_away_takes_its_time(stager: str, tmp_path: Path) -> None:
    away = pull_servers.Away(0.2, 10e6)
    with pull_servers.Sink(stager, str(tmp_path / "room"), away=away) as sink:
        bucket = bucket_of(sink)
        began = time.monotonic()
        bucket.put_object("a", bytes(4 * 10**6))
        sent = time.monotonic()
        bucket.copy_object("bench", "a", "b")
        assert sent - began >= 0.2 + 0.3  # 0.4 but for what may come at once after a pause
        assert time.monotonic() - sent >= 0.2 + 0.4


# Mounts

KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            bool(pull_mount.missing(kind)), reason=pull_mount.missing(kind) or "is here"
        ),
    )
    for kind in (pull_mount.RCLONE, pull_mount.S3FS)
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_holds_and_renames_files(kind: str, stager: str, tmp_path: Path) -> None:
    data = random.randbytes(30 * MIB)
    with pull_mount.mounted(stager, str(tmp_path / "fuse"), kind) as mount:
        folder = Path(mount.point, "sub")
        folder.mkdir()
        (folder / "a.incomplete").write_bytes(data)
        (folder / "a.incomplete").rename(folder / "a")
        assert os.listdir(folder) == ["a"]
        assert (folder / "a").read_bytes() == data
        assert object_store_at(str(folder))
        assert mount.arrived({"sub/a": [len(data), checksum.crc64(data)]}) < 60
        log = mount.sink.control("GET", "log")
        assert {"UploadPart"} < {one["operation"] for one in log}
        assert {"CopyObject", "UploadPartCopy"} & {one["operation"] for one in log}
    assert not (tmp_path / "fuse").exists()


@pytest.mark.parametrize("kind", KINDS[:1])
def test_what_the_store_has_not_got_has_not_arrived(
    kind: str, stager: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_mount, "_ARRIVE_S", 0)
    with pull_mount.mounted(stager, str(tmp_path / "fuse"), kind) as mount:
        Path(mount.point, "a").write_bytes(b"bytes")
        for wanted in ({"a": [5, 1]}, {"a": [4, checksum.crc64(b"bytes")]}, {"b": [0, 0]}):
            with pytest.raises(Stop, match=f"the store has not got {next(iter(wanted))}"):
                mount.arrived(wanted)


# What is measured


def contest_of(stager: str, tmp_path: Path) -> pull_contest.Contest:
    source = tmp_path / "model"
    source.mkdir()
    for name in ("a.bin", "b.bin"):
        (source / name).write_bytes(random.randbytes(2 * MIB))
    words = ["bench/model", str(source), str(tmp_path), str(tmp_path / "disk"), 2, 2]
    return pull_contest.Contest(stager, *words, lambda _: None)


def test_rounds_turn_about_and_are_kept(stager: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contest, ran = contest_of(stager, tmp_path), []
    monkeypatch.setattr(contest, "once", lambda name, place: ran.append(name) or name)
    place = SimpleNamespace(pace="fast")
    rounds = contest.turns(("x", "y"), place)
    assert contest.turns(("x", "y"), place) is rounds
    assert ran == ["x", "y", "y", "x"]
    assert rounds == [{"x": "x", "y": "y"}] * 2


@pytest.mark.parametrize(
    ("found", "words"),
    [({"pulled": 5, "complete": True, "reason": "r"}, "pulled 5 of"), (None, "said nothing of its end")],
)
def test_a_pull_that_did_not_pull_all_is_an_error(
    found: dict[str, object] | None, words: str, stager: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = contest_of(stager, tmp_path)
    said = json.dumps({"type": "pull_summary", **found}) if found else '{"type": "note"}'
    monkeypatch.setattr(contest, "command", lambda *_: ["echo", said])
    with pytest.raises(Stop, match=words):
        contest.once(pull_contest.PULL, SimpleNamespace(pace="fast"))


def test_memory_is_the_most_in_each_half() -> None:
    early = f"import time\nheld = bytearray(b'x' * (100 << 20))\ntime.sleep(0.4)\ndel held\ntime.sleep(1)\nprint({SAID!r})"
    shrunk = pull_trials.memory([sys.executable, "-c", early], timeout=60)
    late = f"import time\ntime.sleep(0.9)\nheld = bytearray(b'x' * (100 << 20))\ntime.sleep(0.3)\nprint({SAID!r})"
    grown = pull_trials.memory([sys.executable, "-c", late], timeout=60)
    assert shrunk.done["complete"]
    assert shrunk.first > 100 * MIB > shrunk.second
    assert grown.second > 100 * MIB > grown.first
    with pytest.raises(Stop, match="ended with 3"):
        pull_trials.memory(
            [sys.executable, "-c", "import time; time.sleep(0.2); raise SystemExit(3)"], timeout=60
        )


def test_every_fault_of_the_script_is_one_that_the_servers_know() -> None:
    plan = pull_trials.script(1000) | pull_trials.parted(20)
    at_hub = [hub_faults.Fault(**one) for _, some, _ in plan.values() for one in some]
    at_store = [store_faults.Fault(**one) for _, _, some in plan.values() for one in some]
    assert {one.kind for one in at_hub} == set(pull_trials.HUB_KINDS)
    assert {one.kind for one in at_store} == set(pull_trials.STORE_KINDS)
    assert all(sum(one.kind == kind for one in at_hub) == pull_trials.TIMES for kind in pull_trials.HUB_KINDS)
    silent = [one.seconds for one in (*at_hub, *at_store) if one.kind in ("stall", "hang")]
    assert min(silent) > pull_trials.READ_TIMEOUT_S


def test_what_a_program_writes_to_a_disk_is_counted(tmp_path: Path) -> None:
    write = (
        "import os, sys\nwith open(sys.argv[1], 'wb') as f:\n f.write(bytes(1 << 20)); os.fsync(f.fileno())"
    )
    if _fstype(tmp_path) in ("tmpfs", "overlayfs"):
        pytest.skip("no disk here")
    done = process.run([sys.executable, "-B", "-c", write, str(tmp_path / "f")])
    assert done.blocks_out * 512 >= MIB
    assert process.run([sys.executable, "-B", "-c", "print('x' * 100000)"]).blocks_out == 0


def _fstype(path: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True)
    return done.stdout.strip()
