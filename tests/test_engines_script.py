"""scripts/test-engines at tiny sizes, without llama.cpp: it runs, refuses what is not as it must be, and leaves nothing behind.

The engine is safetensors' own loader in an environment of its own, or a shell that stands for one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_bench_script import own_stager

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench import engine_bench, engine_child, engine_mounts, engine_room, engine_runs, engines  # noqa: E402
from bench.data import Stop  # noqa: E402
from bench.engine_child import Child  # noqa: E402
from bench.engine_runs import COLD, HELD, RECIPE, STAGER, WAYS  # noqa: E402

MIB = 1 << 20
FAST = engine_mounts.Storage("as fast as it goes")
needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)
pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for the tests' surroundings is not meant for the stager under test; the script runs by this very Python."""
    monkeypatch.setenv("PYTHON", sys.executable)
    for name in list(os.environ):
        if name.startswith("STAGER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def stager(tmp_path: Path) -> str:
    return own_stager(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """4 MiB in two files that no format claims."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.bin").write_bytes(os.urandom(2 * MIB))
    return str(folder)


@pytest.fixture
def lodging(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the script's temporary folders and mounts lie. Fails when one stays, and deletes nothing but itself."""
    folder = tempfile.mkdtemp()
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield folder
    assert os.listdir(folder) == []
    assert folder not in Path("/proc/mounts").read_text()
    os.rmdir(folder)


@pytest.fixture
def room() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield folder


class Shell:
    """An engine that is a shell script about the model in `$0`; its answer is what it printed last."""

    what = "sh"
    health = "http://127.0.0.1:9/health"

    def __init__(self, script: str) -> None:
        self._script = script

    def command(self, folder: str) -> list[str]:
        return ["sh", "-c", self._script, folder]

    def answer(self, child: Child) -> str:
        return child.wait(20).splitlines()[-1]


READS_ALL = Shell('cat "$0"/*.bin | cksum')


def loader() -> str:
    """The loader's Python, made once for the checkout; skips where its packages cannot be had."""
    try:
        return engine_room.LOADER.python(lambda _: None)
    except Stop as stop:
        pytest.skip(f"no environment for safetensors: {str(stop).splitlines()[-1]}")


@needs_fuse
def test_quick_run_prints_the_table(tmp_path: Path, stager: str, lodging: str) -> None:
    loader()
    result = subprocess.run(
        [SCRIPTS / "test-engines", "--quick", "--only", "safetensors", "--dir", tmp_path / "d", "--json", tmp_path / "j"],
        env={**os.environ, "STAGER": stager},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    row = next(line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| safetensors"))
    assert row[1] == "safetensors of 24 MB in 4 shards"
    for words in ("30 ms for each request", "100 MB/s a stream", "WARNING: --quick", "kernel: "):
        assert words in result.stdout
    [found] = json.loads((tmp_path / "j").read_text())["rows"]
    [turns] = found["rounds"]
    assert set(turns) == set(WAYS)
    assert len({turn["answer"] for turn in turns.values()}) == 1
    assert turns[STAGER]["late"] == 0
    assert turns[COLD]["late"] > 20 * MIB
    assert os.listdir(lodging) == []


@needs_fuse
@pytest.mark.parametrize("during", ["tests.fuselab", "xargs", "engine_load.py", "--warm"])
def test_a_signal_ends_everything(during: str, tmp_path: Path, stager: str, lodging: str) -> None:
    """SIGINT, as Ctrl-C sends it, while a process with `during` on its command line runs: nothing stays of anything."""
    loader()
    where = ["--size", "24MB", "--rounds", "99", "--dir", tmp_path / "d"]
    process = subprocess.Popen(
        [SCRIPTS / "test-engines", "--only", "safetensors", *where],
        env={**os.environ, "STAGER": stager},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while not any(during in words for words in running(lodging)):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert running(lodging) == []


def running(folder: str) -> list[str]:
    """The command lines of all processes that name `folder`."""
    found = (words_of(pid) for pid in os.listdir("/proc") if pid.isdigit())
    return [words for words in found if folder in words]


def words_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize("given", [["--only", "nine"], ["--rounds", "0"], ["--size", "big"]])
def test_usage_errors(given: list[str]) -> None:
    result = subprocess.run([SCRIPTS / "test-engines", *given], capture_output=True, text=True)
    assert result.returncode == 2
    assert "error:" in result.stderr


# What is refused


@needs_fuse
def test_every_way_gives_the_same_answer(model: str, stager: str) -> None:
    turns = {way: engine_runs.once(way, READS_ALL, FAST, model, stager) for way in WAYS}
    assert len({turn.answer for turn in turns.values()}) == 1
    assert turns[COLD].late == 4 * MIB
    assert (turns[RECIPE].late, turns[STAGER].late) == (0, 0)
    assert turns[STAGER].warming < turns[STAGER].seconds


@needs_fuse
def test_a_marker_that_is_not_ready_is_refused(model: str, tmp_path: Path) -> None:
    """A stager that warms half of it and starts the engine all the same."""
    half = tmp_path / "half"
    half.write_text(f'#!/bin/sh\nverb=$1; shift\nexec {own_stager(tmp_path)} "$verb" --budget 2MiB "$@"\n')
    half.chmod(0o755)
    with pytest.raises(Stop, match="marker says partial"):
        engine_runs.once(STAGER, READS_ALL, FAST, model, str(half))


@needs_fuse
def test_an_engine_without_a_marker_is_refused(model: str, tmp_path: Path) -> None:
    none = tmp_path / "none"
    none.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    none.chmod(0o755)
    with pytest.raises(Stop, match="no marker before the engine started"):
        engine_runs.once(STAGER, READS_ALL, FAST, model, str(none))


@needs_fuse
def test_a_gate_that_closes_beside_the_engine_is_refused(model: str, tmp_path: Path) -> None:
    closes = tmp_path / "closes"
    closes.write_text(f'#!/bin/sh\n[ "$1" = ready ] && exit 3\nexec {own_stager(tmp_path)} "$@"\n')
    closes.chmod(0o755)
    with pytest.raises(Stop, match="`stager ready` said 3"):
        engine_runs.once(STAGER, READS_ALL, FAST, model, str(closes))


@needs_fuse
def test_an_engine_that_reads_the_store_after_warming_is_refused(
    model: str, stager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_runs.machine, "pages_out", lambda: "")
    drops = Shell('cat "$0"/*.bin | cksum')
    forgetful = engine_mounts.Storage("forgets", {"direct_io": False})
    monkeypatch.setattr(engine_runs, "_marker_is_ready", lambda marker, child: drop_pages(child_mount(child)))
    with pytest.raises(Stop, match="read 4194304 bytes of the store"):
        engine_runs.once(STAGER, drops, forgetful, model, stager)


def child_mount(child: Child) -> str:
    """The model's folder: the last word of the engine's command line."""
    return Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")[-2].decode()


def drop_pages(folder: str) -> None:
    for path in engine_room.files(folder):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@needs_fuse
def test_pages_that_the_node_took_are_measured_again(
    model: str, stager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_runs.machine, "pages_out", lambda: "pageout")
    left = [3 * MIB, 3 * MIB, 0]
    follow = engine_runs._follow

    def taken(*words: object) -> engine_runs.Turn:
        turn = follow(*words)
        turn.late += left.pop(0)
        return turn

    monkeypatch.setattr(engine_runs, "_follow", taken)
    turn, thrown = engine_runs.undisturbed(RECIPE, READS_ALL, FAST, model, stager, lambda _: None)
    assert (turn.late, thrown) == (0, 2)
    left += [3 * MIB] * engine_runs.MOST_DISTURBED
    with pytest.raises(Stop, match="keep getting lost"):
        engine_runs.undisturbed(RECIPE, READS_ALL, FAST, model, stager, lambda _: None)


@needs_fuse
def test_a_run_that_was_not_cold_is_refused(model: str, stager: str) -> None:
    half = Shell('cat "$0"/a.bin | cksum')
    with pytest.raises(Stop, match="it was not cold"):
        engine_runs.once(COLD, half, FAST, model, stager)


@needs_fuse
def test_a_mount_that_was_read_is_not_cold(model: str, lodging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = engine_mounts._mount

    def warm(**options: object) -> object:
        mount = make(**options)
        Path(mount.path, "a.bin").read_bytes()
        return mount

    monkeypatch.setattr(engine_mounts, "_mount", warm)
    with pytest.raises(Stop, match="resident already"):
        engine_mounts.Mounted(FAST, model)
    assert os.listdir(lodging) == []


@needs_fuse
@pytest.mark.parametrize(
    ("script", "words"), [("exit 3", "ended with 3"), ("echo why >&2; kill -9 $$", "ended with -9:\nwhy")]
)
def test_an_engine_that_fails_is_an_error(script: str, words: str, model: str, stager: str) -> None:
    with pytest.raises(Stop, match=words):
        engine_runs.once(RECIPE, Shell(script), FAST, model, stager)


def test_different_answers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(("yes", "yes", "no"))
    monkeypatch.setattr(
        engine_runs,
        "undisturbed",
        lambda *_: (engine_runs.Turn(1.0, 0.5, 10 * MIB, 0, next(answers)), 0),
    )
    row = engines.Row("m", READS_ALL, "f", FAST)
    with pytest.raises(Stop, match="different answers"):
        engines.measure(row, 1, "stager")


def test_no_faster_is_said() -> None:
    def turn(seconds: float) -> engine_runs.Turn:
        return engine_runs.Turn(seconds, 0.0, 0, 0, "")

    def verdict(recipe: float, ours: float) -> str:
        done = {COLD: turn(9.0), RECIPE: turn(recipe), STAGER: turn(ours)}
        return engines.cells(engines.Row("m", READS_ALL, "f", FAST, rounds=[done]))[6]

    assert verdict(2.0, 1.0) == "2.00x"
    assert verdict(1.0, 1.0) == "1.00x, no faster"
    assert verdict(1.0, 2.0) == "0.50x, no faster"


# The child


def test_the_command_waits_at_the_door(room: str) -> None:
    child = Child([], ["sh", "-c", "echo in"], room)
    try:
        child.at_the_door(10)
        time.sleep(0.1)
        assert child.said() == ""
        child.let_in()
        assert child.wait(10) == "in\n"
    finally:
        child.end()


def test_a_prefix_that_never_becomes_the_command_is_an_error(room: str) -> None:
    child = Child(["sh", "-c", "echo not me; exit 7"], ["true"], room)
    try:
        with pytest.raises(Stop, match="ended with 7:\nnot me"):
            child.at_the_door(10)
    finally:
        child.end()


def test_a_signal_at_its_birth_comes_when_the_child_is_known(
    room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def interrupted(*words: object, **options: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return popen(*words, **options)

    def handler(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Child([], ["true"], room)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert running(room) != []
    engine_child.end_all()
    assert running(room) == []


def test_what_is_left_behind_is_killed_and_told(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.engine_child._LEAVE_S", 0.3)
    child = Child([], ["sh", "-c", "setsid sleep 600 & exec sleep 600"], room)
    child.at_the_door(10)
    child.let_in()
    end = time.monotonic() + 10
    while not child.others() and time.monotonic() < end:
        time.sleep(0.01)
    [other] = child.others()
    with pytest.raises(Stop, match=f"left behind: .{other}"):
        child.end()
    end = time.monotonic() + 10
    while os.path.exists(f"/proc/{other}/environ") and other in child.others() and time.monotonic() < end:
        time.sleep(0.01)
    assert other not in child.others()


def test_a_holder_that_stays_is_an_error(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_runs, "_HOLD_ENDS_S", 0.2)
    monkeypatch.setattr("bench.engine_child._LEAVE_S", 0.3)
    child = Child([], ["sh", "-c", "setsid sleep 600 & exec sleep 600"], room)
    child.at_the_door(10)
    child.let_in()
    end = time.monotonic() + 10
    while not child.others() and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(Stop, match="the holder did not end"):
        engine_runs._outlived(child)
    with pytest.raises(Stop, match="left behind"):
        child.end()


@needs_fuse
def test_a_holder_ends_with_the_health_of_the_engine(model: str, stager: str, lodging: str) -> None:
    """``--hold until:`` a URL that Python's own server answers, in the place of a real engine's."""
    import http.client
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    class Web:
        what = "http.server"
        health = f"http://127.0.0.1:{port}/"

        def command(self, folder: str) -> list[str]:
            return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", folder, str(port)]

        def answer(self, child: Child) -> str:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                child.alive()
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                try:
                    connection.request("GET", "/a.bin")
                    return str(len(connection.getresponse().read()))
                except ConnectionRefusedError:
                    time.sleep(0.02)
                finally:
                    connection.close()
            raise AssertionError("no server")

    turn = engine_runs.once(HELD, Web(), FAST, model, stager)
    assert (turn.answer, turn.late) == (str(2 * MIB), 0)
    assert running(lodging) == []  # neither the server, which would serve for ever, nor a holder


@needs_fuse
def test_a_benchmark_of_starts_on_the_disk_and_on_the_mount(
    tmp_path: Path, stager: str, lodging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that only reads the model stands for llama.cpp's."""
    folder = tmp_path / "models" / "gguf"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(os.urandom(4 * MIB))

    class Server(engine_runs.Server):
        def command(self, folder: str) -> list[str]:
            words = super().command(folder)
            port = words[words.index("--port") + 1]
            return [sys.executable, str(ROOT / "tests" / "stand_in.py"), folder, "--port", port]

    monkeypatch.setattr(engine_room, "gguf", lambda *_: str(folder))
    monkeypatch.setattr(type(engine_room.SERVER), "python", lambda *_: sys.executable)
    monkeypatch.setattr(engine_runs, "Server", Server)
    given = Namespace(dir=str(folder.parent), size=4 * MIB, rounds=1, bench=str(tmp_path / "report"))
    engine_bench.report(given, stager, lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / "report" / "results.jsonl").read_text().splitlines()]
    found = {
        (cell["filesystem"], cell["method"], cell["state"]): cell
        for cell in lines
        if cell["type"] == "bench_cell"
    }
    assert found["fuse.fuselab", "engine", "cold"]["device_bytes"] >= 4 * MIB
    assert found["fuse.fuselab", "engine", "warm"]["device_bytes"] == 0
    assert len(found) == 12
    assert "warm+engine" in (tmp_path / "report" / "table.txt").read_text()
