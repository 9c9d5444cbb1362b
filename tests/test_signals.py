"""Ends that must come: signals in every phase, hung reads, deadlines, PID 1, and streams that nobody reads."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import StringIO
from pathlib import Path

import pytest

from stager.core.errors import DeadlineExceeded
from stager.engine import runtime
from stager.engine.report import make_reporter
from stager.jobs.stall import StallWatch
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, Box, Running, environment, until

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])


def ended(box: Box, running: Running, number: int, within: float = 2.0) -> str:
    """Stop the run and hold what it leaves against what it must: exit code, marker, last words."""
    done = running.stop(number, within)
    assert done.code == 128 + number, str(done)
    assert box.state == "failed"
    assert not box.ready("--accept", "partial,unverified,released")
    assert f"stopped by {signal.Signals(number).name}" in done.err + done.out
    assert "Traceback" not in done.err
    return done.err


# Signals, phase by phase


@pytest.mark.root
def test_while_surveying(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(
        synthetic={f"{n:03}.data": MIB for n in range(100)},
        keep_cache="always",
        meta_latency=300,
        entry_timeout=0,
    )
    running = box.start("warm", mount.path)
    until(lambda: box.state == "failed", "the withdrawn marker")
    time.sleep(0.3)
    ended(box, running, signal.SIGTERM)


@BOTH
def test_while_reading(box: Box, number: int) -> None:
    path = box.file("weights.data", 16 * MIB)
    running = box.start("warm", path, "--max-rate", "2MiB", "--progress", "lines")
    until(lambda: _reads(running), "bytes read")
    ended(box, running, number)


def _reads(running: Running) -> bool:
    """Whether the process has a .data file open: it is reading or verifying."""
    try:
        return any(
            os.readlink(f"/proc/{running.pid}/fd/{fd}").endswith(".data")
            for fd in os.listdir(f"/proc/{running.pid}/fd")
        )
    except FileNotFoundError:
        return False


@pytest.mark.root
def test_while_verifying(box: Box, fuse_mount: MountFactory) -> None:
    """Every open takes 100 ms and everything is resident: after the survey there is only verifying."""
    mount = fuse_mount(
        synthetic={f"{n:02}.data": 4096 for n in range(40)},
        keep_cache="always",
        meta_latency=100,
        attr_timeout=60,
        entry_timeout=60,
    )
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda n: Path(mount.path, f"{n:02}.data").read_bytes(), range(40)))
    running = box.start("warm", mount.path, "--json")
    running.await_text("unknown_origin", 30)  # said after the survey, before the first read
    time.sleep(0.2)
    ended(box, running, signal.SIGTERM)


@BOTH
def test_while_holding(box: Box, number: int) -> None:
    path = box.file("weights.data", MIB)
    running = box.start("warm", path, "--hold", "1h")
    running.await_text("holding 1.0 MiB")
    assert box.ready()
    ended(box, running, number)


@BOTH
def test_while_idling(box: Box, number: int) -> None:
    path = box.file("weights.data", MIB)
    running = box.start("warm", path, "--idle")
    running.await_text("idle until SIGTERM")
    assert box.ready()
    ended(box, running, number)


def test_at_any_moment_of_a_short_run(box: Box) -> None:
    """From before the first import to after the last line: killed by the signal's number, or done before it came."""
    path = box.file("weights.data", MIB)
    for step in range(10):
        running = box.start("warm", path, "--fresh")
        time.sleep(step * 0.025)
        running.signal(signal.SIGTERM)
        done = running.finish(3)
        assert done.code in (0, 143, -15), str(done)  # -15: before Python's first instruction
        assert "Traceback" not in done.err
        if done.code == 143 and box.state:
            assert box.state == "failed" or "ready" in done.out or step < 4
        if done.code == 0:
            assert box.state == "ready"


def test_hangup_stops_as_well(box: Box) -> None:
    path = box.file("weights.data", MIB)
    running = box.start("warm", path, "--idle")
    running.await_text("idle until SIGTERM")
    ended(box, running, signal.SIGHUP)


def test_usr1_prints_a_progress_line(box: Box) -> None:
    path = box.file("weights.data", 16 * MIB)
    running = box.start("warm", path, "--max-rate", "4MiB", "--progress", "none")
    until(lambda: _reads(running), "reading")
    time.sleep(0.6)
    assert "warm " not in running.err
    running.signal(signal.SIGUSR1)
    line = running.await_text(r"warm \d+% .*\n", 3)
    assert "/16.0 MiB" in line
    ended(box, running, signal.SIGTERM)


def test_usr1_during_start_up_does_not_kill() -> None:
    """Its default action would. And the engine that `run` becomes must not find it ignored."""
    code = """
import os, signal, stager.cli.app
def run(argv):
    os.kill(os.getpid(), signal.SIGUSR1)
    os.execvp("grep", ["grep", "SigIgn", "/proc/self/status"])
stager.cli.app.run = run
stager.cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    assert not int(done.stdout.split()[1], 16) & 1 << (signal.SIGUSR1 - 1)


@pytest.mark.root
@pytest.mark.parametrize("quiet", [(), ("-q",), ("--json",)], ids=["", "quiet", "json"])
def test_usr1_in_the_survey_says_what_is_being_done(
    box: Box, fuse_mount: MountFactory, quiet: tuple[str, ...]
) -> None:
    mount = fuse_mount(
        synthetic={"hangs.safetensors": 4 * MIB}, keep_cache="always", hang_file="hangs.safetensors"
    )
    running = box.start("warm", mount.path, *quiet)
    until(lambda: mount.counters()["hung"], "a hung read")
    running.signal(signal.SIGUSR1)
    assert "hangs.safetensors" in running.await_text(r"now: .*\n", 3)
    ended(box, running, signal.SIGTERM, within=3)


def test_usr1_while_holding_says_so(box: Box) -> None:
    path = box.file("weights.data", MIB)
    for words, said in ((("--hold", "1h"), "holding for 1h00m"), (("--idle",), "idle until SIGTERM")):
        running = box.start("warm", path, *words, "-q")
        until(box.ready, "the gate")
        time.sleep(0.3)
        running.signal(signal.SIGUSR1)
        running.await_text(f"now: {said}", 3)
        ended(box, running, signal.SIGTERM)


# Hangs


@pytest.mark.root
def test_a_hung_read_does_not_hold_up_the_end_and_is_named(box: Box, fuse_mount: MountFactory) -> None:
    files = {"a.data": 4 * MIB, "b.data": 4 * MIB, "hangs.data": 8 * MIB}
    mount = fuse_mount(synthetic=files, keep_cache="always", hang_after=int(5 * MIB))
    running = box.start("warm", mount.path)
    until(lambda: mount.counters()["hung"], "a hung read")
    err = ended(box, running, signal.SIGTERM, within=3)
    assert "left behind" in err
    assert mount.path in err


@pytest.mark.root
def test_a_second_signal_ends_at_once(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(
        synthetic={"a.data": 4 * MIB, "hangs.data": 8 * MIB}, keep_cache="always", hang_after=5 * MIB
    )
    running = box.start("warm", mount.path)
    until(lambda: mount.counters()["hung"], "a hung read")
    running.signal(signal.SIGTERM)
    until(lambda: box.state == "failed", "the withdrawn marker")
    time.sleep(0.2)
    done = running.stop(signal.SIGINT, within=0.7)
    assert done.code in (130, 143)
    assert box.state == "failed"


@pytest.mark.root
def test_a_hung_survey_is_named(box: Box, fuse_mount: MountFactory) -> None:
    """The header of a file cannot be read: the survey hangs, not the lanes."""
    mount = fuse_mount(
        synthetic={"a.data": 100, "hangs.safetensors": 4 * MIB},
        keep_cache="always",
        hang_file="hangs.safetensors",
    )
    running = box.start("warm", mount.path)
    until(lambda: mount.counters()["hung"], "a hung read")
    err = ended(box, running, signal.SIGTERM, within=3)
    assert "hangs.safetensors" in err


@pytest.mark.root
@pytest.mark.parametrize("mode", ["", "--fail-open"])
def test_a_stall_names_the_file(box: Box, fuse_mount: MountFactory, mode: str) -> None:
    mount = fuse_mount(
        synthetic={"a.data": 4 * MIB, "hangs.data": 8 * MIB}, keep_cache="always", hang_file="hangs.data"
    )
    done = box.run("warm", mount.path, "--stall-timeout", "600ms", *mode.split())
    assert done.code == (0 if mode else 10)
    assert 0.6 < done.seconds < 5
    assert "hangs.data" in done.err + done.out
    assert "no bytes for" in done.err + done.out
    assert done.out.startswith("released: " if mode else "failed: ")
    assert box.state == ("released" if mode else "failed")


@pytest.mark.root
@pytest.mark.parametrize("verb", ["warm", "check"])
@pytest.mark.parametrize("mode", ["", "--fail-open"])
def test_a_survey_that_hangs_is_a_stall_as_well(
    box: Box, fuse_mount: MountFactory, verb: str, mode: str
) -> None:
    """A header that never comes: no lane reads yet."""
    mount = fuse_mount(
        synthetic={"a.data": 100, "hangs.safetensors": 4 * MIB},
        keep_cache="always",
        hang_file="hangs.safetensors",
    )
    done = box.run(verb, mount.path, "--stall-timeout", "1s", *mode.split(), seconds=20)
    assert done.code == (0 if mode else 10), str(done)
    assert 1 < done.seconds < 5
    assert "no answer for" in done.err + done.out
    assert "hangs.safetensors" in done.err
    assert box.state == ("" if verb == "check" else "released" if mode else "failed")


@pytest.mark.root
def test_check_keeps_to_its_timeout(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(
        synthetic={"hangs.safetensors": 4 * MIB}, keep_cache="always", hang_file="hangs.safetensors"
    )
    done = box.run("check", mount.path, "--timeout", "500ms", seconds=20)
    assert (done.code, "--timeout ran out" in done.err) == (10, True), str(done)
    assert done.seconds < 4


@pytest.mark.root
def test_many_slow_files_are_no_stall(box: Box, fuse_mount: MountFactory) -> None:
    """Each look-up takes 150 ms, together they take longer than the stall timeout; but they get on."""
    mount = fuse_mount(
        synthetic={f"{n:02}.data": 4096 for n in range(20)}, keep_cache="always", meta_latency=150
    )
    done = box.run("warm", mount.path, "--stall-timeout", "2s")
    assert done.code == 0, str(done)
    assert done.seconds > 2


def test_a_long_call_that_gets_on_is_no_standstill() -> None:
    """One call may list 100,000 files: what uses the processor does not hang; what sleeps does."""

    def compute() -> None:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            sum(range(1000))

    async def main() -> list[float]:
        found = []
        for call in (lambda: time.sleep(0.6), compute):
            stills: list[float] = []
            await runtime.in_thread("before", lambda: None)
            await runtime.sleep(0.5)
            async with runtime.ticking(0.02, partial(lambda into: into.append(runtime.still()), stills)):
                await runtime.in_thread("busy", call)
            found.append(max(stills))
        return found

    asleep, busy = runtime.run(main, on_stop=lambda signum: None, on_poke=lambda: None)
    assert 0.4 < asleep < 0.9, "from the beginning of the call"
    assert busy < 0.3
    assert runtime.still() == 0


def test_a_call_by_word_gets_on_when_it_says_so() -> None:
    """A hub's library that is asked again and again uses the processor for nothing."""
    stills: list[float] = []

    def vainly() -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            sum(range(1000))
        stills.append(runtime.still())
        runtime.moved()
        stills.append(runtime.still())

    async def main() -> None:
        await runtime.in_thread("asking", vainly, by_word=True)
        await runtime.in_threads(lambda _: "asking", lambda _: vainly(), [0], 1, by_word=True)

    runtime.run(main, on_stop=lambda signum: None, on_poke=lambda: None)
    for before, after in (stills[:2], stills[2:]):
        assert before >= 0.5
        assert after < before


@pytest.mark.parametrize("seconds", [14.0, 16.0])
def test_a_warning_comes_before_the_end(seconds: float) -> None:
    reporter = make_reporter(json=True, progress="none", stdout=(out := StringIO()), stderr=StringIO())
    watch = StallWatch(300, reporter)
    watch.look(seconds, doing=["looking at /m/a"])
    watch.look(seconds + 0.5, doing=["looking at /m/a"])
    with pytest.raises(DeadlineExceeded, match="no answer for 5m00s while looking at /m/a"):
        watch.look(300, doing=["looking at /m/a"])
    reporter.close()
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["doing"] for event in found] == ([["looking at /m/a"]] if seconds > 15 else [])


@pytest.mark.root
@pytest.mark.parametrize("phase", ["reading", "survey"])
def test_the_timeout_ends_a_hung_run(box: Box, fuse_mount: MountFactory, phase: str) -> None:
    name = "hangs.data" if phase == "reading" else "hangs.safetensors"
    mount = fuse_mount(synthetic={"a.data": 100, name: 8 * MIB}, keep_cache="always", hang_file=name)
    words = ["--fail-open"] if phase == "survey" else []
    done = box.run("warm", mount.path, "--timeout", "500ms", *words)
    assert (done.code, box.state) == ((0, "released") if words else (10, "failed"))
    assert done.seconds < 4
    assert name in done.err


def asks_fuse(pid: int) -> bool:
    """Whether a thread of the process waits for the daemon of a mount."""
    stacks = Path(f"/proc/{pid}/task").glob("*/stack")
    return any("fuse" in stack.read_text() for stack in stacks)


@pytest.mark.root
def test_a_hung_mount_point_ends_too(box: Box, fuse_mount: MountFactory) -> None:
    """Not even the folder can be looked at."""
    mount = fuse_mount(synthetic={"a.data": 100}, keep_cache="always", entry_timeout=0, attr_timeout=0)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        for verb in ("warm", "status"):
            running = box.start(verb, mount.path)
            until(lambda pid=running.pid: asks_fuse(pid), "a question to the mount")
            time.sleep(0.1)
            done = running.stop(signal.SIGTERM, within=2.5)
            assert done.code == 143
            assert mount.path in done.err
        done = box.run("warm", mount.path, "--timeout", "500ms")
        assert (done.code, done.seconds < 3.5) == (10, True)
    finally:
        os.kill(mount.pid, signal.SIGCONT)


@pytest.mark.root
@pytest.mark.parametrize("phase", ["reading", "holding"])
def test_a_daemon_that_stops_in_the_middle(box: Box, fuse_mount: MountFactory, phase: str) -> None:
    """It answers nothing any more. The kernel waits for its answer to close() even while a process is being killed, so the
    exit waits; but the gate is closed at once, and the last words say what is wrong."""
    mount = fuse_mount(synthetic={"a.data": 16 * MIB}, keep_cache="always", stream_rate="16MiB")
    running = box.start("warm", mount.path, *(("--hold", "1h") if phase == "holding" else ()))
    if phase == "holding":
        running.await_text("holding 16.0 MiB")
    else:
        until(lambda: mount.counters()["served"] > 2 * MIB, "bytes served")
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)
        running.signal(signal.SIGTERM)
        until(lambda: box.state == "failed", "the withdrawn marker", 1)
        assert box.run("ready").code != 0
        running.await_text("stopped by SIGTERM", 2)
        if phase == "reading":
            assert mount.path in running.await_text("left behind.*", 2)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    assert running.finish(3).code == 143


# As PID 1


@pytest.mark.root
@pytest.mark.parametrize("phase", ["reading", "idle", "done"])
def test_as_pid_1(box: Box, phase: str) -> None:
    """The kernel gives PID 1 no default action for signals."""
    path = box.file("weights.data", 8 * MIB)
    words = {"reading": ("--max-rate", "2MiB"), "idle": ("--idle",), "done": ()}[phase]
    running = box.start("warm", path, *words, before=["unshare", "-pf", "--mount-proc", "--kill-child"])
    if phase == "done":
        assert running.finish(10).code == 0
        return
    inner = until(lambda: _child_of(running.pid), "PID 1")
    if phase == "idle":
        running.await_text("idle until SIGTERM")
    else:
        until(lambda: box.state == "failed", "the run")
        time.sleep(0.4)
    started = time.monotonic()
    os.kill(inner, signal.SIGTERM)
    done = running.finish(5)
    assert time.monotonic() - started < 2
    assert done.code == 143
    assert box.state == "failed"


def _child_of(pid: int) -> int | None:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(text[0]) if text else None


# Streams


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0>&- 1>&- 2>&-"])
def test_closed_streams(box: Box, closed: str) -> None:
    path = box.file("weights.data", 2 * MIB)
    for words in ("warm", "check", "status"):
        done = box.run(words, path, before=["sh", "-c", f'exec "$@" {closed}', "sh"])
        assert done.code == 0, str(done)
        assert "Traceback" not in done.err
    assert box.state == "ready"
    assert box.run("warm", box.path("nothing"), before=["sh", "-c", f'exec "$@" {closed}', "sh"]).code == 7


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_pipe_that_nobody_reads(box: Box, stream: str) -> None:
    path = box.file("weights.data", 2 * MIB)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        while os.write(write_end, b"x" * 4096):
            pass
    except BlockingIOError:
        pass
    os.set_blocking(write_end, True)
    try:
        options = {stream: write_end}
        done = box.run("warm", "--json", path, seconds=15, **options)
        assert done.code == 0
        assert done.seconds < 5
        assert box.state == "ready"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_ready_answers_by_its_exit_code_when_nobody_reads(box: Box) -> None:
    box.warm(box.file("weights.data", MIB))
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(write_end, b"x" * 4096):
            pass
    os.set_blocking(write_end, True)
    try:
        done = box.run("ready", seconds=10, stdout=write_end)
        assert (done.code, done.seconds < 3) == (0, True)
        done = box.run("ready", "/nowhere", seconds=10, stdout=write_end)
        assert (done.code, done.seconds < 3) == (3, True)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_reader_that_goes_away(box: Box) -> None:
    for n in range(300):
        os.makedirs(box.path("m"), exist_ok=True)
        Path(box.path(f"m/{n:03}.data")).write_bytes(b"x")
    done = box.run("status", box.path("m"), before=["sh", "-c", '"$@" | head -1; true', "sh"])
    assert done.out.count("\n") == 1
    assert "Traceback" not in done.err
    assert "Broken" not in done.err


# systemd


def test_systemd_is_told_when_it_is_ready(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(box.path("notify"))
        listener.settimeout(10)
        running = box.start(
            "warm", path, "--idle", "--max-rate", "16MiB", env={"NOTIFY_SOCKET": box.path("notify")}
        )
        messages = [listener.recv(4096).decode().split("\n")]
        while "READY=1" not in messages[-1]:
            assert not box.ready()
            messages.append(listener.recv(4096).decode().split("\n"))
        assert any(word.startswith("STATUS=") for word in messages[0])
        assert box.ready(), "the marker is there before systemd is told"
        running.stop(signal.SIGTERM, 2)


@pytest.mark.parametrize("found", [True, False])
def test_systemd_is_told_of_a_gate_that_opened_in_spite_of_failure(box: Box, found: bool) -> None:
    """Released is not warm, but the service is up: a unit that waits for READY=1 would be killed otherwise."""
    os.mkdir(box.path("m"))
    words = ["--fail-open", "--idle"]
    if found:
        box.file("m/a.data", 16 * MIB)
        words += ["--timeout", "300ms", "--max-rate", "1MiB"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(box.path("notify"))
        listener.settimeout(5)
        running = box.start("warm", box.path("m"), *words, env={"NOTIFY_SOCKET": box.path("notify")})
        while "READY=1" not in listener.recv(4096).decode().split("\n"):
            pass
        running.await_text("idle until SIGTERM")
        assert box.state == "released"
        ended(box, running, signal.SIGTERM)


def test_systemd_is_not_told_of_a_failure(box: Box) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(box.path("notify"))
        listener.settimeout(0.1)
        assert box.run("warm", box.path("nothing"), env={"NOTIFY_SOCKET": box.path("notify")}).code == 7
        while True:
            try:
                assert "READY=1" not in listener.recv(4096).decode().split("\n")
            except TimeoutError:
                break
