"""`stager run` as people start it: real model files, real processes, the whole command line."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fuselab.fixtures import MountFactory
from tests.models import Filler, make

ROOT = Path(__file__).resolve().parent.parent
STAGER = [sys.executable, "-m", "stager"]
TELL_SIGNALS = ["grep", "^Sig[PBIC]", "/proc/self/status"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make(str(folder), "safetensors", 64 * MIB, 4, Filler())
    return folder


@pytest.fixture
def cold(model: Path) -> Path:
    """The model with nothing of it in memory."""
    for path in model.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return model


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ready.json"


def line(
    model: Path | str, marker: Path, *options: str, command: Sequence[str | bytes] = ("echo", "on")
) -> list[Any]:
    return [*STAGER, "run", "--warm", str(model), "--marker", str(marker), *options, "--", *command]


def run(command: Sequence[str | bytes], **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60, "cwd": ROOT, **options}
    return subprocess.run(command, check=False, **options)


@contextlib.contextmanager
def started(command: Sequence[str | bytes], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, cwd=ROOT, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def state(marker: Path) -> str:
    found: str = json.loads(marker.read_text())["state"]
    return found


def wait_for(marker: Path, wanted: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, ValueError):
            if state(marker) == wanted:
                return
        assert time.monotonic() < end, f"the marker never said {wanted}"
        time.sleep(0.02)


def reading(process: subprocess.Popen[bytes], model: Path) -> list[int]:
    """Pids below `process` that have weights of `model` open; waits for the first."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = [
            pid for pid in descendants(process.pid) if any(str(model) in name for name in open_files(pid))
        ]
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("nobody reads the model")


def descendants(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return children + [below for child in children for below in descendants(child)]
    return []


def gone(pid: int) -> bool:
    """Whether `pid` ends within a second; a corpse that init has yet to collect counts."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def open_files(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return names


SLOW = ("--max-rate", "1MiB", "-P", "1", "--no-adapt")


class TestStart:
    def test_warm_verified_and_the_same_process(self, cold: Path, marker: Path):
        with started(line(cold, marker, command=["sh", "-c", "echo $$"])) as process:
            stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, int(stdout)) == (0, process.pid)
        assert b"ready: " in stderr
        assert state(marker) == "ready"

    def test_arguments_and_exit_status_pass_through(self, model: Path, marker: Path):
        script = ["sh", "-c", 'printf "[%s]" "$@"; exit 42', "--warm", b"--json", b"a b\nc\xff", b""]
        result = run(line(model, marker, command=script))
        assert (result.returncode, result.stdout) == (42, b"[--json][a b\nc\xff][]")

    def test_stdout_is_the_engine_s_even_with_json(self, model: Path, marker: Path):
        result = run(line(model, marker, "--json", command=["printf", "\\0\\377"]))
        assert result.stdout == b"\0\xff"
        types = [json.loads(row)["type"] for row in result.stderr.splitlines()]
        assert "warm_summary" in types

    @pytest.mark.parametrize("ignored", [None, signal.SIGHUP, signal.SIGINT], ids=str)
    @pytest.mark.parametrize(
        "command", [TELL_SIGNALS, ["env", "-0"], ["ls", "/proc/self/fd"]], ids=lambda c: c[0]
    )
    def test_the_engine_finds_what_a_direct_start_gives(
        self, command: list[str], ignored: signal.Signals | None, model: Path, marker: Path
    ):
        options: dict[str, Any] = {"env": {"PATH": os.environ["PATH"], "STAGER_RESERVE": "1MiB"}}
        if ignored is not None:
            options["preexec_fn"] = lambda: signal.signal(ignored, signal.SIG_IGN)
        assert run(line(model, marker, command=command), **options).stdout == run(command, **options).stdout

    @pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
    def test_closed_streams(self, closed: str, model: Path, marker: Path):
        words = line(model, marker, command=["ls", "/proc/self/fd"])
        direct = run(["sh", "-c", f"exec ls /proc/self/fd {closed}"])
        assert run(["sh", "-c", f'exec "$@" {closed}', "sh", *words]).stdout == direct.stdout
        assert state(marker) == "ready"

    def test_a_stderr_that_nobody_reads(self, cold: Path, marker: Path):
        """A full pipe holds up neither the warm run nor the engine."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        begin = time.monotonic()
        result = run(
            line(cold, marker, "--strict", "--budget", "1MiB"),
            capture_output=False,
            stdout=subprocess.PIPE,
            stderr=writer,
        )
        assert result.stdout == b"on\n"
        assert time.monotonic() - begin < 10
        os.close(reader)
        os.close(writer)

    def test_several_paths(self, model: Path, marker: Path):
        words = line(model / "tokenizer.json", marker, "--warm", str(model / "config.json"))
        assert run(words).stdout == b"on\n"
        assert len(json.loads(marker.read_text())["files"]) == 2

    def test_a_loader_that_bypasses_the_cache_is_named(self, model: Path, marker: Path, tmp_path: Path):
        engine = tmp_path / "llama-server"
        engine.write_text("#!/bin/sh\necho on\n")
        engine.chmod(0o755)
        result = run(line(model, marker, command=[str(engine), "--direct-io", "-m", "x.gguf"]))
        assert result.stdout == b"on\n"
        assert b"warning: " in result.stderr
        assert b"direct" in result.stderr.lower()


class TestNoStart:
    @pytest.mark.parametrize(
        ("name", "code", "text"),
        [("./no/such", 7, b"no such command"), ("README.md", 6, b"is not executable")],
    )
    def test_a_command_that_cannot_be(
        self, name: str, code: int, text: bytes, cold: Path, marker: Path, tmp_path: Path
    ):
        (tmp_path / "README.md").write_text("not a program")
        command = name if name.startswith(".") else str(tmp_path / name)
        result = run(line(cold, marker, command=[command]))
        assert (result.returncode, text in result.stderr, result.stdout) == (code, True, b"")
        assert not marker.exists()  # not even begun

    def test_a_command_that_the_kernel_refuses(self, cold: Path, marker: Path, tmp_path: Path):
        """Found out too late: the pages are warm, but nobody may take them for the engine's."""
        program = tmp_path / "program"
        program.write_bytes(b"\x7fELF\2\1\1" + bytes(9) + b"\2\0" + bytes(60))
        program.chmod(0o755)
        result = run(line(cold, marker, command=[str(program)]))
        assert (result.returncode, b"ENOEXEC" in result.stderr) == (9, True)
        assert state(marker) == "failed"
        assert "ENOEXEC" in json.loads(marker.read_text())["reason"]

    def test_nothing_there(self, marker: Path, tmp_path: Path):
        (tmp_path / "empty").mkdir()
        for where in (tmp_path / "none", tmp_path / "empty"):
            result = run(line(where, marker))
            assert (result.returncode, result.stdout) == (7, b"")
            assert b"`echo` is not started" in result.stderr
        assert run(line(tmp_path / "none", marker, "--fail-open")).stdout == b"on\n"

    def test_a_corrupt_model(self, model: Path, marker: Path, tmp_path: Path):
        broken = tmp_path / "broken"
        shutil.copytree(model, broken)
        shard = max(broken.glob("*.safetensors"))
        os.truncate(shard, shard.stat().st_size - 4096)
        for options in ([], ["--fail-open"]):
            result = run(line(broken, marker, *options))
            assert (result.returncode, result.stdout) == (8, b"")
        assert state(marker) == "failed"
        assert run(line(broken, marker, "--allow-incomplete")).stdout == b"on\n"

    @pytest.mark.parametrize("options", [["--strict", "--fail-open"], ["--idle"], ["--reserve", "lots"]])
    def test_usage(self, options: list[str], model: Path, marker: Path):
        result = run(line(model, marker, *options))
        assert (result.returncode, result.stdout) == (2, b"")

    def test_nothing_to_warm(self):
        result = run([*STAGER, "run", "--", "echo", "on"])
        assert (result.returncode, result.stdout) == (2, b"")
        assert b"nothing to warm" in result.stderr

    def test_no_command(self, model: Path):
        assert run([*STAGER, "run", "--warm", str(model)]).returncode == 2


class TestFailure:
    def test_starts_all_the_same(self, cold: Path, marker: Path):
        result = run(line(cold, marker, "--strict", "--budget", "16MiB"))
        assert (result.returncode, result.stdout) == (0, b"on\n")
        assert b"failed (exit 4)" in result.stderr
        assert b"starting `echo` all the same" in result.stderr
        assert state(marker) == "failed"

    def test_unless_that_is_not_wanted(self, cold: Path, marker: Path):
        result = run(line(cold, marker, "--strict", "--budget", "16MiB", "--on-failure", "fail"))
        assert (result.returncode, result.stdout) == (4, b"")
        assert b"`echo` is not started" in result.stderr

    def test_partial_is_no_failure(self, cold: Path, marker: Path):
        result = run(line(cold, marker, "--budget", "32MiB", "--on-failure", "fail"))
        assert (result.returncode, result.stdout) == (0, b"on\n")
        assert state(marker) == "partial"

    def test_a_warm_run_that_is_killed(self, cold: Path, marker: Path):
        with started(line(cold, marker, *SLOW)) as process:
            os.kill(reading(process, cold)[0], signal.SIGKILL)
            stdout, stderr = process.communicate(timeout=10)
        assert stdout == b"on\n"
        assert b"was killed by signal 9" in stderr

    @pytest.mark.root
    def test_read_errors(self, model: Path, marker: Path, fuse_mount: MountFactory):
        shard = max(model.glob("*.safetensors")).name
        mount = fuse_mount(source=str(model), keep_cache="always", error_at=[f"{shard}:8388608:EIO"])
        result = run(line(mount.path, marker))
        assert (result.returncode, result.stdout) == (0, b"on\n")
        assert b"(EIO)" in result.stderr
        assert b"failed (exit 9)" in result.stderr
        mount.remount()
        assert run(line(mount.path, marker, "--on-failure", "fail")).returncode == 9


class TestDeadline:
    def test_the_engine_starts_in_time(self, cold: Path, marker: Path):
        begin = time.monotonic()
        result = run(line(cold, marker, *SLOW, "--timeout", "3s"))
        assert time.monotonic() - begin < 4  # the interpreter's own start is not in the three seconds
        assert (result.returncode, result.stdout) == (0, b"on\n")
        assert b"ran out of time (exit 10)" in result.stderr
        assert state(marker) == "failed"

    def test_or_not_at_all(self, cold: Path, marker: Path):
        result = run(line(cold, marker, *SLOW, "--timeout", "3s", "--on-failure", "fail"))
        assert (result.returncode, result.stdout) == (10, b"")

    def test_a_stopped_warm_run_is_killed(self, cold: Path, marker: Path):
        """A worker that cannot even see its own deadline; --fail-open says that the gate opens."""
        with started(
            line(cold, marker, *SLOW, "--timeout", "3s", "--fail-open", "--on-failure", "fail")
        ) as process:
            worker = reading(process, cold)[0]
            os.kill(worker, signal.SIGSTOP)
            stdout, _ = process.communicate(timeout=10)
        assert stdout == b"on\n"
        assert state(marker) == "released"
        assert gone(worker)

    @pytest.mark.root
    @pytest.mark.parametrize("direct_io", [False, True])
    def test_a_read_that_hangs(self, direct_io: bool, model: Path, marker: Path, fuse_mount: MountFactory):
        shard = max(model.glob("*.safetensors")).name
        mount = fuse_mount(source=str(model), keep_cache="always", direct_io=direct_io, hang_file=[shard])
        begin = time.monotonic()
        with started(line(mount.path, marker, "--timeout", "4s", "--anyway")) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            assert time.monotonic() - begin < 5
            assert process.wait(timeout=10) == 0
            assert process.stderr is not None
            text = b""
            while b"starting `echo`" not in text:  # not to the end of the file: a stuck process has it open
                assert select.select([process.stderr], [], [], 5)[0], text
                text += os.read(process.stderr.fileno(), 4096)
            assert shard.encode() in text
            mount.abort()


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_while_warming(self, number: signal.Signals, cold: Path, marker: Path):
        with started(line(cold, marker, *SLOW)) as process:
            workers = reading(process, cold)
            begin = time.monotonic()
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=10)
            assert time.monotonic() - begin < 2
        assert (process.returncode, stdout) == (128 + number, b"")
        assert b"stopped by " + number.name.encode() in stderr
        assert state(marker) == "failed"
        assert all(gone(pid) for pid in workers)

    def test_a_worker_that_does_not_react(self, cold: Path, marker: Path):
        with started(line(cold, marker, *SLOW)) as process:
            worker = reading(process, cold)[0]
            os.kill(worker, signal.SIGSTOP)
            begin = time.monotonic()
            process.terminate()
            assert process.wait(timeout=10) == 143
            assert time.monotonic() - begin < 2.2
        assert gone(worker)
        assert "SIGTERM" in json.loads(marker.read_text())["reason"]

    def test_before_the_worker_knows_of_a_marker(self, cold: Path, marker: Path):
        """Stopped in its first moments the worker leaves by itself, with the exit code of a signal, and the marker as it was."""
        assert run(line(cold, marker)).returncode == 0
        assert state(marker) == "ready"
        before, seen = marker.read_bytes(), set()
        for step in range(8):
            marker.write_bytes(before)
            with started(line(cold, marker, *SLOW, "--fresh")) as process:
                end = time.monotonic() + 10
                while not descendants(process.pid) and time.monotonic() < end:
                    time.sleep(0.001)
                time.sleep(0.02 * step)
                process.terminate()
                assert process.wait(timeout=10) == 143
            seen.add(state(marker))
        assert seen == {"failed"}

    def test_nothing_warms_on_when_we_are_killed(self, cold: Path, marker: Path):
        with started(line(cold, marker, *SLOW)) as process:
            worker = reading(process, cold)[0]
            process.kill()
            process.communicate(timeout=10)  # ends when the last writer of stderr is gone
        assert gone(worker)

    def test_a_question_about_progress(self, cold: Path, marker: Path):
        with started(line(cold, marker, *SLOW, "--progress", "none")) as process:
            reading(process, cold)
            time.sleep(1)
            process.send_signal(signal.SIGUSR1)
            assert process.stderr is not None
            text = b""
            while b"\nwarm " not in b"\n" + text:
                assert select.select([process.stderr], [], [], 5)[0], text
                text += os.read(process.stderr.fileno(), 4096)

    @pytest.mark.root
    def test_as_pid_one(self, cold: Path, marker: Path):
        unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with started([*unshare, *line(cold, marker, *SLOW)]) as process:
            reading(process, cold)
            begin = time.monotonic()
            os.kill(descendants(process.pid)[0], signal.SIGTERM)
            assert process.wait(timeout=10) == 143
            assert time.monotonic() - begin < 2
        assert run([*unshare, *line(cold, marker, command=["sh", "-c", "echo $$"])]).stdout == b"1\n"


class TestHold:
    def test_the_engine_starts_while_pages_are_held(self, cold: Path, marker: Path):
        script = "echo on; read line"
        with started(
            line(cold, marker, "--hold", "60s", command=["sh", "-c", script]), stdin=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            assert state(marker) == "ready"
            holder = json.loads(marker.read_text())["pid"]
            end = time.monotonic() + 10
            while str(cold) not in Path(f"/proc/{holder}/maps").read_text():
                assert time.monotonic() < end, "the model is not mapped"
                time.sleep(0.02)
            assert holder not in descendants(process.pid)
            process.communicate(
                b"end\n", timeout=10
            )  # ends when the holder, the last writer of stderr, is gone
        assert state(marker) == "ready"
        assert gone(holder)

    def test_until_the_engine_answers(self, cold: Path, marker: Path):
        engine = (
            "import http.server as h\n"
            "h.BaseHTTPRequestHandler.do_GET = lambda s: (s.send_response(200), s.end_headers())\n"
            "s = h.HTTPServer(('127.0.0.1', 0), h.BaseHTTPRequestHandler) if 0 else None\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        engine += f"h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler).serve_forever()\n"
        url = f"http://127.0.0.1:{port}/health"
        command = [sys.executable, "-c", engine]
        with started(line(cold, marker, "--hold", f"until:{url}", command=command)) as process:
            text = b""
            while f"{url} answered".encode() not in text:
                assert process.stderr is not None
                assert select.select([process.stderr], [], [], 10)[0], text
                text += os.read(process.stderr.fileno(), 4096)


class TestSystemd:
    def test_the_engine_s_process_says_ready(self, cold: Path, marker: Path, tmp_path: Path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            systemd.settimeout(10)
            environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
            messages = []
            with started(
                line(cold, marker, command=["printenv", "NOTIFY_SOCKET"]), env=environment
            ) as process:
                while b"READY=1" not in b"".join(data for data, _ in messages):
                    data, ancillary, _, _ = systemd.recvmsg(4096, 1024)
                    messages.append((data, struct.unpack("3i", ancillary[0][2])[0]))
                stdout, _ = process.communicate(timeout=10)
        assert messages == [
            (b"STATUS=warming", process.pid),
            (b"READY=1\nSTATUS=starting printenv", process.pid),
        ]
        assert stdout.decode() == f"{tmp_path}/notify\n"


def test_shared_flags_of_the_terminal_are_left_alone(model: Path, marker: Path):
    reader, writer = os.pipe()
    run(line(model, marker), capture_output=False, stdout=writer, stderr=writer)
    assert os.get_blocking(writer)
    assert stat.S_ISFIFO(os.fstat(writer).st_mode)
    os.close(reader)
    os.close(writer)
