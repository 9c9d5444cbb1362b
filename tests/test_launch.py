"""The launch pad with real processes: what the program inherits, and that nothing keeps it from starting."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stager.core.errors import AccessDenied, LocalIOError, NotFound, UsageError
from stager.engine.launch import resolve_command
from stager.node.processes import original_environment
from tests.fuselab.fixtures import MountFactory

ROOT = Path(__file__).resolve().parent.parent
PAD = [sys.executable, "-m", "tests.launchpad"]
TELL_SIGNALS = ["grep", "^Sig[PBIC]", "/proc/self/status"]


def launched(*words: str, command: Sequence[str | bytes] = ("true",)) -> list[str | bytes]:
    return [*PAD, *words, "--", *command]


def run(command: Sequence[str | bytes], **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 30, "cwd": ROOT, **options}
    return subprocess.run(command, check=False, **options)


def outcome_of(stderr: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        next(line for line in stderr.splitlines() if line.startswith(b'{"exit'))
    )
    return found


def exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def started(command: Sequence[str | bytes], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A launch pad at work: gives it when the worker has said its pid, which becomes ``process.worker``."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, cwd=ROOT, **options) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith(b"worker "), line
            process.worker = int(line.split()[1])  # type: ignore[attr-defined]
            yield process
        finally:
            process.kill()


def in_namespace(pid: int) -> int:
    """The pid that the only child of `pid` (an ``unshare --fork``) has out here."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class TestWhatTheProgramInherits:
    """Everything is compared with the same command started directly."""

    @pytest.mark.parametrize(
        "command",
        [
            TELL_SIGNALS,
            ["env", "-0"],
            ["ls", "/proc/self/fd"],
            ["cat", "/proc/self/cmdline"],
            ["cat", "/proc/self/limits"],
            ["sh", "-c", "pwd; umask"],
        ],
        ids=lambda command: " ".join(command[:2]),
    )
    def test_is_what_a_direct_start_gives(self, command: list[str]):
        environment = {"PATH": os.environ["PATH"], "ODD": "a\udcffb\nc=d"}
        direct = run(command, env=environment)
        through = run(launched("code", "0", command=command), env=environment)
        assert direct.returncode == 0
        assert through.stdout == direct.stdout

    def test_no_environment_at_all(self):
        assert run(launched("code", "0", command=["/usr/bin/env"]), env={}).stdout == b""

    def test_own_descriptors_stay_and_no_other_appears(self):
        reader, writer = os.pipe()
        try:
            for command in (["ls", "/proc/self/fd"], ["bash", "-c", f"echo there >&{writer}"]):
                direct = run(command, pass_fds=[writer])
                through = run(launched("code", "0", command=command), pass_fds=[writer])
                assert (through.stdout, through.returncode) == (direct.stdout, direct.returncode)
            assert os.read(reader, 100) == b"there\nthere\n"
        finally:
            os.close(reader)
            os.close(writer)

    @pytest.mark.parametrize(
        "number", [signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGALRM]
    )
    def test_what_was_ignored_outside_stays_ignored(self, number: signal.Signals):
        ignore = {"preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
        direct = run(TELL_SIGNALS, **ignore)
        through = run(launched("code", "0", command=TELL_SIGNALS), **ignore)
        assert outcome_of(through.stderr)["exit_code"] == 0
        assert f"SigIgn:\t{1 << (number - 1):016x}".encode() in direct.stdout
        assert through.stdout == direct.stdout

    def test_the_mask_is_empty_even_if_it_was_not(self):
        block = {
            "preexec_fn": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGQUIT})
        }
        assert b"SigBlk:\t0000000000004004" in run(TELL_SIGNALS, **block).stdout
        assert (
            b"SigBlk:\t0000000000000000" in run(launched("code", "0", command=TELL_SIGNALS), **block).stdout
        )

    def test_same_process(self):
        with subprocess.Popen(
            launched("code", "0", command=["sh", "-c", "echo $$"]), cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            assert int(process.communicate(timeout=30)[0]) == process.pid

    def test_arguments_are_not_touched(self):
        odd = [b"", b" two  words ", b"new\nline", b"\xff\xfe", b"--deadline", b"--", b"*", "ü".encode()]
        result = run(launched("code", "0", command=[b"printf", b"[%s]", *odd]))
        assert result.stdout == b"".join(b"[" + word + b"]" for word in odd)

    def test_exit_status_passes_through(self):
        assert run(launched("code", "0", command=["sh", "-c", "exit 37"])).returncode == 37
        assert run(launched("code", "0", command=["sh", "-c", "kill -9 $$"])).returncode == -signal.SIGKILL

    def test_stdout_belongs_to_the_program(self):
        result = run(launched("noisy", command=["printf", "a\\0b\\377"]))
        assert result.stdout == b"a\0b\xff"
        for sound in (b"print\n", b"old print\n", b"write\n", b"a child's echo\n"):
            assert sound in result.stderr

    def test_stdin_belongs_to_the_program(self):
        result = run(launched("greedy", command=["cat"]), stdin=None, input=b"for the program")
        assert result.stdout == b"for the program"
        assert b"read '' and b''" in result.stderr

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">&- 2>&-"])
    def test_closed_streams_stay_closed(self, closed: str, tmp_path: Path):
        command = ["sh", "-c", f"ls /proc/$$/fd > {tmp_path}/fds; exec 1>{tmp_path}/out; ls /proc/self/fd"]
        found = []
        for words in (command, launched("noisy", command=command)):
            result = run(["sh", "-c", f'exec "$@" {closed}', "sh", *words])
            found.append((result.returncode, (tmp_path / "fds").read_text(), (tmp_path / "out").read_text()))
            (tmp_path / "fds").unlink()
            (tmp_path / "out").unlink()
        assert found[0] == found[1]

    def test_shared_flags_do_not_change(self):
        reader, writer = os.pipe()
        with started(launched("obedient"), stdout=writer, stdin=reader):
            assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
            assert not fcntl.fcntl(reader, fcntl.F_GETFL) & os.O_NONBLOCK
        os.close(reader)
        os.close(writer)

    def test_the_worker_holds_no_descriptor_of_the_program(self):
        """A socket that the program closes must not stay open in a worker that goes on holding."""
        reader, writer = os.pipe()
        with started(launched("hold", "0", command=["sleep", "30"]), pass_fds=[writer]) as process:
            os.close(writer)
            escort_and_worker = [name for name in os.listdir(f"/proc/{process.worker}/fd") if int(name) > 2]  # type: ignore[attr-defined]
            links = [os.readlink(f"/proc/{process.worker}/fd/{name}") for name in escort_and_worker]  # type: ignore[attr-defined]
            assert not [link for link in links if link.startswith("pipe:")]
        os.close(reader)


class TestOutcome:
    @pytest.mark.parametrize(
        ("words", "code"), [(["code", "0"], 0), (["code", "8"], 8), (["broken"], 1), (["leaving"], 6)]
    )
    def test_exit_code_of_the_work(self, words: list[str], code: int):
        found = outcome_of(run(launched("--stay", *words)).stderr)
        assert found["exit_code"] == code
        assert (found["stopped_by"], found["timed_out"], found["stuck"], found["holder"]) == (
            None,
            False,
            None,
            None,
        )

    def test_a_defect_shows_its_traceback_on_stderr(self):
        result = run(launched("broken", command=["echo", "on"]))
        assert b"RuntimeError: a defect" in result.stderr
        assert result.stdout == b"on\n"

    def test_a_killed_worker(self):
        with started(launched("obedient", command=["echo", "on"])) as process:
            os.kill(process.worker, signal.SIGKILL)  # type: ignore[attr-defined]
            stdout, stderr = process.communicate(timeout=10)
        assert outcome_of(stderr)["exit_code"] == 137
        assert stdout == b"on\n"

    def test_a_killed_escort_takes_the_worker_along(self):
        with started(launched("deaf", command=["echo", "on"])) as process:
            worker = process.worker  # type: ignore[attr-defined]
            os.kill(in_namespace(process.pid), signal.SIGKILL)
            stdout, stderr = process.communicate(timeout=10)
            assert within(2, lambda: not exists(worker))
        assert outcome_of(stderr)["exit_code"] == 137
        assert stdout == b"on\n"


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_the_worker_is_told_and_we_follow(self, number: signal.Signals):
        with started(launched("obedient", command=["echo", "never"])) as process:
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=10)
            assert process.returncode == 128 + number
            assert not exists(process.worker)  # type: ignore[attr-defined]
        assert stderr.startswith(f"stopping for {number.name}\n".encode())
        assert outcome_of(stderr)["elapsed"] < 1.5
        assert stdout == b""

    @pytest.mark.parametrize("worker", ["deaf", "sleepy"])
    def test_a_worker_that_does_not_listen_is_killed_in_time(self, worker: str):
        with started(launched(worker, command=["echo", "never"])) as process:
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 143
            assert time.monotonic() - begin < 2.0
            assert not exists(process.worker)  # type: ignore[attr-defined]

    def test_a_second_signal_does_not_wait(self):
        with started(launched("deaf")) as process:
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 130
            assert time.monotonic() - begin < 1.0

    def test_a_signal_between_the_work_and_the_program_counts(self):
        with subprocess.Popen(
            launched("--linger", "1", "code", "0", command=["echo", "never"]),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(b'{"exit_code": 0')
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGTERM)
            stdout, _ = process.communicate(timeout=10)
            assert (process.returncode, stdout) == (143, b"")

    def test_a_question_about_progress_is_passed_on(self):
        with started(launched("sleepy")) as process:
            assert process.stderr is not None
            for _ in range(3):
                process.send_signal(signal.SIGUSR1)
                assert process.stderr.readline() == b"got SIGUSR1\n"

    def test_a_late_question_about_progress_does_not_kill_the_program(self):
        with subprocess.Popen(
            launched("--linger", "1", "code", "0", command=["echo", "on"]),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stderr is not None
            process.stderr.readline()
            process.send_signal(signal.SIGUSR1)
            assert process.communicate(timeout=10)[0] == b"on\n"

    def test_a_terminal_interrupts_the_worker_once(self):
        """^C goes to the whole foreground group; two signals would mean `at once` to the worker."""
        master, slave = pty.openpty()
        command = ["setsid", "--ctty", "--wait", *launched("sleepy")]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        ) as process:
            os.close(slave)
            text = b""
            while b"worker" not in text:
                text += os.read(master, 1000)
            os.write(master, b"\x03")
            with contextlib.suppress(OSError):  # EIO: everybody has closed the terminal
                while piece := os.read(master, 1000):
                    text += piece
            assert process.wait(timeout=10) == 130
        os.close(master)
        assert text.count(b"got SIGINT") == 1

    def test_the_worker_dies_with_us(self):
        with started(launched("deaf")) as process:
            process.kill()
            assert within(2, lambda: not exists(process.worker))  # type: ignore[attr-defined]


class TestDeadline:
    @pytest.mark.parametrize("worker", ["deaf", "sleepy", "obedient"])
    def test_the_program_starts_and_the_worker_is_gone(self, worker: str):
        begin = time.monotonic()
        with started(launched("--deadline", "1", worker, command=["echo", "on"])) as process:
            stdout, stderr = process.communicate(timeout=10)
            assert not exists(process.worker)  # type: ignore[attr-defined]
        found = outcome_of(stderr)
        assert stdout == b"on\n"
        assert (found["timed_out"], found["exit_code"], found["stuck"]) == (True, None, None)
        assert 0.4 < found["elapsed"] <= 1.0
        assert time.monotonic() - begin < 2.0


@pytest.mark.root
class TestHungRead:
    """A FUSE daemon that never answers. A direct read of its file cannot be interrupted, not even by SIGKILL."""

    @pytest.fixture
    def hung(self, fuse_mount: MountFactory) -> Iterator[str]:
        mount = fuse_mount(synthetic={"shard 1.bin": 1 << 20}, hang_file=["shard 1.bin"], direct_io=True)
        yield f"{mount.path}/shard 1.bin"
        mount.abort()

    def lines(self, process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], bytes]:
        """The outcome and the program's line; not until the end of the file, the stuck worker has stderr open."""
        assert process.stderr is not None
        assert process.stdout is not None
        process.wait(timeout=10)
        return outcome_of(process.stderr.readline()), process.stdout.readline()

    def test_the_deadline_holds_and_the_worker_is_named(self, hung: str):
        children = ["sh", "-c", "cat /proc/$$/task/$$/children; echo on"]
        with started(launched("--deadline", "1", "read", hung, command=children)) as process:
            worker = process.worker  # type: ignore[attr-defined]
            found, line = self.lines(process)
            assert found["stuck"] == {"pid": worker, "files": [hung]}
            assert found["elapsed"] <= 1.0
            assert exists(worker)
            assert line.split()[-1] == b"on"
            assert str(worker).encode() not in line.split()  # the program has no child but its own cat

    def test_a_stop_signal_ends_us_in_time(self, hung: str):
        with started(launched("read", hung)) as process:
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 143
            assert time.monotonic() - begin < 2.0
            assert self.lines(process)[0]["stuck"]["pid"] == process.worker  # type: ignore[attr-defined]

    def test_a_worker_that_exits_but_cannot_vanish(self, hung: str):
        with started(launched("leave", hung, command=["echo", "on"])) as process:
            found, line = self.lines(process)
            assert (found["exit_code"], found["timed_out"]) == (9, False)
            assert found["stuck"] == {"pid": process.worker, "files": [hung]}  # type: ignore[attr-defined]
            assert line == b"on\n"

    def test_a_cached_read_can_be_killed(self, fuse_mount: MountFactory):
        mount = fuse_mount(synthetic={"w.bin": 1 << 20}, hang_file=["w.bin"])
        with started(
            launched("--deadline", "1", "read", f"{mount.path}/w.bin", command=["echo", "on"])
        ) as process:
            found, line = self.lines(process)
            assert (found["timed_out"], found["stuck"], line) == (True, None, b"on\n")
            assert not exists(process.worker)  # type: ignore[attr-defined]


class TestRelease:
    def test_the_program_starts_while_the_worker_holds(self):
        command = ["sh", "-c", "cat /proc/$$/task/$$/children; echo; echo on; read line"]
        with started(launched("hold", "4", command=command), stdin=subprocess.PIPE) as process:
            worker = process.worker  # type: ignore[attr-defined]
            assert process.stdout is not None
            assert process.stderr is not None
            found = outcome_of(process.stderr.readline())
            assert (found["exit_code"], found["holder"], found["stuck"]) == (4, worker, None)
            assert str(worker).encode() not in process.stdout.readline().split()
            assert process.stdout.readline() == b"on\n"
            assert not within(0.3, lambda: not exists(worker))
            assert os.getpgid(worker) != os.getpgid(process.pid)
            process.communicate(b"end\n", timeout=10)
            assert within(2, lambda: not exists(worker))


@pytest.mark.root
class TestAsPidOne:
    UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

    def test_the_program_becomes_pid_one(self):
        assert run([*self.UNSHARE, *launched("code", "0", command=["sh", "-c", "echo $$"])]).stdout == b"1\n"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    @pytest.mark.parametrize("worker", ["deaf", "obedient"])
    def test_signals_work(self, worker: str, number: signal.Signals):
        with started([*self.UNSHARE, *launched(worker)]) as process:
            begin = time.monotonic()
            os.kill(in_namespace(process.pid), number)
            assert process.wait(timeout=10) == 128 + number
            assert time.monotonic() - begin < 2.0

    def test_orphans_are_reaped(self):
        result = run([*self.UNSHARE, *launched("orphan")])
        assert outcome_of(result.stderr)["exit_code"] == 0


class TestResolve:
    def place(self, path: Path, content: bytes = b"#!/bin/sh\n", mode: int = 0o755) -> str:
        path.write_bytes(content)
        path.chmod(mode)
        return str(path)

    def test_as_a_shell_finds_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        (tmp_path / "a" / "tool").mkdir()  # a directory of that name is passed over
        self.place(tmp_path / "a" / "other", mode=0o644)  # so is a file that may not be executed
        tool, other = self.place(tmp_path / "b" / "tool"), self.place(tmp_path / "b" / "other")
        monkeypatch.setenv("PATH", f"{tmp_path}/none:{tmp_path}/a:{tmp_path}/b")
        assert resolve_command(["tool", "--x"]) == tool
        assert resolve_command(["other"]) == other
        monkeypatch.chdir(tmp_path / "b")
        assert resolve_command(["./tool"]) == "./tool"
        monkeypatch.setenv("PATH", "")
        assert resolve_command(["tool"]) in ("./tool", "tool")

    @pytest.mark.parametrize(
        ("argv", "error", "text"),
        [
            ([], UsageError, "no command given"),
            ([""], NotFound, "no such command"),
            (["no-such-command-here"], NotFound, "on PATH"),
            (["./none"], NotFound, "`./none`: no such command"),
            (["file"], AccessDenied, "is not executable"),
            (["./file"], AccessDenied, "is not executable"),
            (["./file/below"], NotFound, "no such command"),
            (["./folder"], AccessDenied, "is a directory"),
            (["folder"], NotFound, "no such command on PATH"),
            (["./dangling"], NotFound, "broken symlink"),
            (["./script"], NotFound, "its interpreter `/no/such/python3` does not exist"),
            (["./to-a-file"], AccessDenied, "its interpreter `/etc/passwd` is not executable"),
            (["./junk"], LocalIOError, "neither a program nor a script"),
            (["./elf"], LocalIOError, "neither a program nor a script"),
            (["od\nd"], NotFound, r"`od\\nd`"),
        ],
    )
    def test_says_what_is_wrong(
        self,
        argv: list[str],
        error: type[Exception],
        text: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        self.place(tmp_path / "file", mode=0o644)
        self.place(tmp_path / "script", b"#! /no/such/python3 -E\nprint()\n")
        self.place(tmp_path / "to-a-file", b"#!/etc/passwd\n")
        self.place(tmp_path / "junk", b"\0\1\2" * 40)
        self.place(tmp_path / "elf", b"\x7fELF\2\1\1 cut off")
        (tmp_path / "folder").mkdir()
        (tmp_path / "dangling").symlink_to("nowhere")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(error, match=re.escape(text) if "\\" not in text else text):
            resolve_command(argv)

    def test_before_any_work(self):
        result = run(launched("noisy", command=["./no/such/command"]))
        assert (result.returncode, b"print" in result.stderr) == (7, False)


class TestBecome:
    def place(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        path.chmod(0o755)
        return str(path)

    def test_what_the_kernel_refuses_is_said(self, tmp_path: Path):
        """A header that says it is a program, and nothing behind it."""
        head = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0" + bytes(60)
        result = run(launched("code", "0", command=[self.place(tmp_path / "no\tmagic", head)]))
        assert result.returncode == 9
        assert rb"no\tmagic`: exec format error (ENOEXEC)" in result.stderr

    def test_a_script_that_does_not_say_its_shell(self, tmp_path: Path):
        script = self.place(tmp_path / "script", b'echo "hello $1"\n')
        assert run(launched("code", "0", command=[script, "you"])).stdout == b"hello you\n"

    def test_the_environment_is_the_one_we_were_started_with(self):
        block = b"\0".join(b"=".join(item) for item in original_environment().items())
        with open("/proc/self/environ", "rb") as own:
            assert own.read().rstrip(b"\0") == block
