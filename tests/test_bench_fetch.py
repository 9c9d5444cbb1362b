"""scripts/bench-fetch at tiny sizes: it runs and prints its table; nginx looks like OSS; what clients leave is compared."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench import fetch_contest, fetch_server, fetch_trials, fetching, process  # noqa: E402
from bench.data import Stop  # noqa: E402

MIB = 1 << 20
needs_nginx = pytest.mark.skipif(
    not fetch_server.binary() or not shutil.which("curl"), reason="needs nginx and curl (nginx-light, curl)"
)


def own_stager(folder: Path) -> str:
    """The checkout's stager as a command of this very interpreter, as a console script is."""
    path = folder / "stager"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom stager.cli import main\nmain()\n"
    )
    path.chmod(0o755)
    return str(path)


def run(*words: object, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / "bench-fetch", *map(str, words)],
        env={**os.environ, "STAGER": own_stager(folder), **more},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one for everybody; tiny sizes need none."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)


@needs_nginx
def test_quick_run_prints_the_table(tmp_path: Path, memory: Path) -> None:
    rows = [name for name in fetching.NAMES if name != "memory" or os.geteuid() == 0]
    result = run(
        *("--quick", "--dir", memory / "d", "--only", ",".join(rows), "--json", tmp_path / "j"),
        folder=tmp_path,
        http_proxy="http://127.0.0.1:1",
    )
    assert result.returncode in (0, 1), result.stderr
    assert "not measured" not in result.stdout, result.stdout + result.stderr
    expected = ["curl -o /dev/null", "oss2.resumable_download", "CPU s/GB", "8 x 4 MiB", "WARNING: --quick"]
    expected += ["| 280 faults in one fetch |", "| kill -9 at 2 random moments", "identical,"]
    for words in expected:
        assert words in result.stdout, result.stdout + result.stderr
    assert "DIFFERENT" not in result.stdout
    found = json.loads((tmp_path / "j").read_text())
    assert {pair["ours"] for pair in found["pairs"]} == {
        fetch_contest.STAGER,
        fetch_contest.VERIFIED,
        fetch_contest.UNVERIFIED,
    }
    assert all(run["cpu"] > 0 for one in found["pairs"] for pair in one["rounds"] for run in pair)
    assert not list((memory / "d").iterdir())


@pytest.mark.parametrize("given", [["--only", "nine"], ["--rounds", "0"]])
def test_usage_errors(given: list[str], tmp_path: Path) -> None:
    result = run(*given, folder=tmp_path)
    assert result.returncode == 2
    assert "error:" in result.stderr


# The server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fetch_server.Server]:
    home = tmp_path / "server"
    (home / "root/bench/model").mkdir(parents=True)
    (home / "root/bench/model/a").write_bytes(b"0123456789")
    os.utime(home / "root/bench/model/a", (1_700_000_000,) * 2)
    (home / "root/huge.bin").write_bytes(b"\0" * 7)
    os.utime(home / "root/huge.bin", (1_700_000_000,) * 2)
    one = fetch_server.Object("model/a", 10, 1_700_000_000, 2**64 - 1)
    same = [fetch_server.Object(f"huge/{at:03}", 7, 1_700_000_000, 42) for at in range(5)]
    with fetch_server.Server(str(home), [one], {"huge/": ("huge.bin", same)}) as server:
        yield server


def get(server: fetch_server.Server, key: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(
        f"{server.endpoint}/bench/{key}", headers={name.replace("_", "-"): v for name, v in headers.items()}
    )
    try:
        with fetch_server.DIRECT.open(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


@needs_nginx
def test_a_range_comes_with_what_oss_sends(server: fetch_server.Server) -> None:
    etag = server.objects[-1].etag
    status, headers, body = get(server, "model/a?x-oss-expires=1", Range="bytes=2-5", If_Match=etag)
    assert (status, body) == (206, b"2345")
    assert headers["Content-Range"] == "bytes 2-5/10"
    assert headers["ETag"] == etag
    assert headers["x-oss-hash-crc64ecma"] == str(2**64 - 1)
    assert headers["x-oss-request-id"]
    assert get(server, "model/a", If_Match='"other"')[0] == 412


@needs_nginx
def test_one_file_serves_a_whole_prefix(server: fetch_server.Server) -> None:
    for key in ("huge/000", "huge/004"):
        status, headers, body = get(server, key)
        assert (status, body) == (200, b"\0" * 7)
        assert headers["x-oss-hash-crc64ecma"] == "42"
        assert headers["ETag"] == server.objects[0].etag


@needs_nginx
def test_a_listing_has_pages_and_oss2_reads_them(
    server: fetch_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oss2

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    bucket = oss2.Bucket(oss2.AuthV4("k", "s"), server.endpoint, "bench", region="cn-test")
    listed = list(oss2.ObjectIteratorV2(bucket, prefix="huge/", max_keys=2))
    assert [(one.key, one.size) for one in listed] == [(f"huge/{at:03}", 7) for at in range(5)]
    assert f'"{listed[0].etag}"' == server.objects[0].etag
    assert server.asked["list"] == 3
    assert bucket.head_object("model/a").server_crc == 2**64 - 1


@needs_nginx
def test_connections_are_counted_without_the_one_that_asks(server: fetch_server.Server) -> None:
    def settled(count: int) -> bool:  # nginx may not yet have seen that a connection was closed
        end = time.monotonic() + 10
        while server.connections() != count and time.monotonic() < end:
            time.sleep(0.01)
        return server.connections() == count

    assert settled(0)
    kept = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(3)]
    for one in kept:
        one.request("GET", "/bench/model/a")
        assert one.getresponse().read() == b"0123456789"
    assert settled(3)
    for one in kept:
        one.close()


@needs_nginx
def test_nginx_that_does_not_start_is_an_error_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    broken = fetch_server.Object('"; broken', 1, 0, 0)
    with (
        pytest.raises(Stop, match=r"nginx does not start:\n(.|\n)*nginx\.conf"),
        fetch_server.Server(str(tmp_path / "server"), [broken]),
    ):
        pass


@needs_nginx
def test_the_reading_client_proves_what_it_reads(
    server: fetch_server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "s")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = ["discard", server.endpoint, "oss://bench/model", "2"]
    argv = fetch_contest.client(own_stager(tmp_path), *words)
    assert json.loads(process.run([*argv, "nocrc"]).out)["bytes"] == 10
    with pytest.raises(Stop, match=f"error: a: CRC .* read, {2**64 - 1} stated"):
        process.run([*argv, "crc"])


# The contest


@pytest.fixture
def contest(tmp_path: Path) -> fetch_contest.Contest:
    source = tmp_path / "source"
    source.mkdir()
    for at in range(3):
        (source / f"w{at}").write_bytes(os.urandom(5000))
    server = SimpleNamespace(
        endpoint="http://127.0.0.1:1", url=lambda key: f"file://{source}/{Path(key).name}"
    )
    keys = [f"model/w{at}" for at in range(3)]
    return fetch_contest.Contest(
        server, keys, str(source), own_stager(tmp_path), str(tmp_path / "into"), 3, 2, lambda _: None
    )


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_downloads_all_objects_over_its_processes(contest: fetch_contest.Contest) -> None:
    done = contest.once(fetch_contest.CURL)
    assert done.cpu > 0
    assert contest.command(fetch_contest.CURL)[2].count("curl -q") == contest.lanes
    assert not Path(contest.into).exists()


def test_a_failing_client_among_several_is_noticed(contest: fetch_contest.Contest) -> None:
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    contest.keys.insert(0, "model/absent")  # not the last of its process, which is not the last of all
    with pytest.raises(Stop, match="ended with"):
        process.run(contest.command(fetch_contest.CURL_NULL))


@pytest.mark.parametrize("spoil", ["other", "short", "absent"])
def test_files_that_are_not_the_source_end_the_benchmark(
    contest: fetch_contest.Contest, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    ends = {
        "other": 'printf x | dd of="$1/w1" bs=1 seek=9 conv=notrunc 2>/dev/null',
        "short": 'truncate -s 1 "$1/w1"',
        "absent": 'rm "$1/w1"',
    }
    copy = ["sh", "-c", f'cp "$0"/* "$1"; {ends[spoil]}', contest.source, contest.into]
    monkeypatch.setattr(fetch_contest.Contest, "command", lambda self, name: copy)
    if spoil != "other":
        contest.compared.add("copy")  # the bytes are compared once, the sizes always
    with pytest.raises(Stop, match="w1"):
        contest.once("copy")


def test_rounds_alternate_and_are_kept(
    contest: fetch_contest.Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def once(name: str) -> process.Run:
        order.append(name)
        return process.Run(1.0, 1.0, 0, 0, "", "", 0.0)

    monkeypatch.setattr(contest, "once", once)
    assert len(contest.pair("a", "b")) == 3
    assert contest.pair("a", "b") is contest.pair("a", "b")
    assert "".join(order) == "ba" + "ab" + "ba"


def test_the_faster_way_of_a_rival_is_chosen(
    contest: fetch_contest.Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {1: 2.0, 2: 1.0}

    def once(name: str) -> process.Run:
        return process.Run(times[contest.best[name]], 1.0, 0, 0, "", "", 0.0)

    monkeypatch.setattr(contest, "once", once)
    assert contest.choose(fetch_contest.ARIA2) == 2
    assert "-j 2" in " ".join(contest.command(fetch_contest.ARIA2))


# The trials


def test_every_object_has_one_fault_of_its_own(tmp_path: Path) -> None:
    names = fetch_trials.objects(str(tmp_path / "o"), 10)
    script = fetch_trials.script(names, 10)
    assert len({fault["key_glob"] for fault in script}) == len(script) == 20 * len(fetch_trials.KINDS)
    assert {fault["kind"] for fault in script} == set(fetch_trials.KINDS)
    assert all(fault["times"] == 1 for fault in script)
    assert next(fault for fault in script if fault["kind"] == "slow")["rate"] == 20


def test_memory_is_that_of_the_whole_family() -> None:
    hold = "import time; held = bytearray(b'x') * (40 << 20); print(flush=True); time.sleep(60)"
    own = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}"
    counts = iter([0, 1])
    found = fetch_trials.memory([sys.executable, "-c", own], 1.0, 2, lambda: next(counts, 2))
    assert found.processes == 2
    assert 80 * MIB <= found.anon < 160 * MIB
    assert found.connections == 2


def test_a_fetch_that_ends_too_early_is_no_measurement() -> None:
    with pytest.raises(Stop, match="ended by itself with 3:\nwhy"):
        fetch_trials.memory([sys.executable, "-c", "print('why'); exit(3)"], 5.0, 1, lambda: 1)


def test_the_family_is_children_and_their_children() -> None:
    grandchild = (
        "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", grandchild], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        family = fetch_trials.family(child.pid)
        assert len(family) == 2
        assert set(family) < set(fetch_trials.family(os.getpid()))
    finally:
        for pid in fetch_trials.family(child.pid)[1:]:
            os.kill(pid, 15)
        child.stdin.close()
        child.stdout.close()
        child.wait()
