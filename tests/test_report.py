"""Reporters on real pipes, terminals and processes: what goes where, and that no stream can stop a job."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pytest

from stager.core.events import Event, Failure, FileProblem, FileResidency, Note, Progress, Stall
from stager.core.model import Known, Residency
from stager.core.units import GIB
from stager.engine import outlet
from stager.engine.outlet import Outlet
from stager.engine.report import Reporter, make_reporter

GOLDEN = Path(__file__).parent / "golden" / "report"
ROOT = Path(__file__).resolve().parent.parent
WARM = Progress("warm", 0, 64 * GIB, 2.1 * GIB, 18.0, 0, 17, 4, 0.61)
NOTE = Note("info", "plan", "17 files, 64.0 GiB")
WARNING = Note("warning", "marker", "the marker cannot be written", hint="name one with `--marker`")
PROBLEM = FileProblem("/m/a.bin", 4096, "EIO", "input/output error")
RESULT = FileResidency("/m/a.bin", Residency(1 << 20, 1 << 20, Known.CACHESTAT, 0))
FAILURE = Failure("local_io", "3 files could not be read", "look at the kernel log", 9, retryable=False)


def at(percent: float, verb: str = "warm") -> Progress:
    files = int(17 * percent / 100)
    eta = None if percent >= 100 else 0.4 * (100 - percent)
    return replace(WARM, verb=verb, done=math.ceil(WARM.total * percent / 100), files_done=files, eta=eta)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Told:
    """A reporter over in-memory streams, and what it wrote."""

    reporter: Reporter
    clock: Clock
    out: io.StringIO
    err: io.StringIO

    def progress(self, event: Progress) -> None:
        """Tell, and give the writers their turn, as the seconds between two calls do in life."""
        self.reporter.progress(event)
        for stream in (self.reporter._out, self.reporter._err):  # type: ignore[attr-defined]
            with stream._changed:
                while stream._size:
                    stream._changed.wait(1)

    def lines(self) -> tuple[list[str], list[str]]:
        self.reporter.close()
        return self.out.getvalue().splitlines(), self.err.getvalue().splitlines()


def told(**options: Any) -> Told:
    clock, out, err = Clock(), io.StringIO(), io.StringIO()
    chosen: dict[str, Any] = {"json": False, "progress": "auto"} | options
    return Told(make_reporter(stdout=out, stderr=err, clock=clock, **chosen), clock, out, err)


def run_a_job(t: Told, seconds: float, step: float = 0.5) -> None:
    """A job that moves evenly from 0 to 100 % and reports every `step` seconds."""
    steps = int(seconds / step)
    for number in range(steps + 1):
        t.progress(at(100 * number / steps))
        t.clock.now += step


# What goes where


def test_text_results_go_to_stdout_and_all_else_to_stderr() -> None:
    t = told()
    for event in (NOTE, WARNING, PROBLEM, Stall(61.0, ("/m/a",)), RESULT, FAILURE):
        t.reporter.emit(event)
    out, err = t.lines()
    assert out == [RESULT.text()]
    assert err == [
        "17 files, 64.0 GiB",
        "warning: the marker cannot be written",
        "hint: name one with `--marker`",
        "error: /m/a.bin: input/output error at offset 4096 (EIO)",
        "warning: no bytes for 1m01s while reading /m/a",
        "error: 3 files could not be read",
        "hint: look at the kernel log",
    ]


def test_json_puts_every_event_on_stdout_and_nothing_on_stderr() -> None:
    t = told(json=True)
    t.reporter.progress(at(0))
    for event in (NOTE, WARNING, PROBLEM, RESULT, FAILURE):
        t.reporter.emit(event)
    out, err = t.lines()
    assert err == []
    types = [json.loads(line)["type"] for line in out]
    assert types == ["progress", "note", "note", "file_problem", "file_residency", "error"]
    assert out[-1] == (
        '{"v":1,"type":"error","slug":"local_io","message":"3 files could not be read",'
        '"hint":"look at the kernel log","exit_code":9,"retryable":false}'
    )


def test_json_stays_ascii_and_on_one_line_with_awkward_names() -> None:
    t = told(json=True)
    name = os.fsdecode("/m/模\n型".encode() + b"\xff")
    t.reporter.emit(FileProblem(name, None, "EIO", "m"))
    out, _ = t.lines()
    assert len(out) == 1
    assert out[0].isascii()
    assert json.loads(out[0])["path"] == name


def test_quiet_keeps_results_warnings_and_errors() -> None:
    for as_json in (False, True):
        t = told(json=as_json, quiet=True)
        run_a_job(t, 60)
        for event in (NOTE, WARNING, PROBLEM, RESULT, FAILURE):
            t.reporter.emit(event)
        out, err = t.lines()
        assert len(out) == (4 if as_json else 1)
        assert not any("17 files" in line or "warm" in line for line in out + err)
        assert ("warning: the marker cannot be written" in err) == (not as_json)


def test_progress_none_says_none_until_asked() -> None:
    for as_json in (False, True):
        t = told(json=as_json, progress="none")
        run_a_job(t, 60)
        t.reporter.print_now()
        out, err = t.lines()
        assert len(out + err) == 1
        assert "100%" in err[0] if err else json.loads(out[0])["done"] == 64 * GIB


def test_a_control_character_in_a_message_cannot_steer_the_terminal() -> None:
    t = told()
    t.reporter.emit(Note("info", "x", "red \x1b[31m back\rtab\tbell\x07 c1\x9b two\nlines"))
    _, err = t.lines()
    assert err == ["red \\x1b[31m back\\rtab\\tbell\\x07 c1\\x9b two", "lines"]


# Plain lines


def test_plain_lines_of_a_job_read_well() -> None:
    t = told()
    t.reporter.emit(NOTE)
    run_a_job(t, 40)
    t.reporter.emit(RESULT)
    _, err = t.lines()
    found = "".join(f"{line}\n" for line in err)
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / "lines.txt").write_text(found)
    assert found == (GOLDEN / "lines.txt").read_text()


def test_lines_come_first_after_5_then_every_interval_seconds() -> None:
    t = told(interval=10.0)
    times: list[float] = []
    for tick in range(100):  # 50 s
        t.progress(at(tick / 2))
        if t.err.getvalue().count("\n") > len(times):
            times.append(tick / 2)
        t.clock.now += 0.5
    assert times == [5.0, 15.0, 25.0, 35.0, 45.0]
    t.reporter.close()


@pytest.mark.parametrize(("interval", "tick"), [(None, 0.25), (0.125, 0.0625), (10.0, 0.25), (0.001, 0.02)])
def test_json_comes_as_often_as_is_asked_and_jobs_call_often_enough(
    interval: float | None, tick: float
) -> None:
    t = told(json=True, interval=interval)
    assert t.reporter.tick == tick
    for step in range(40):
        t.progress(at(step))
        t.clock.now += 0.0625
    shown = {None: 4, 0.125: 21, 10.0: 2, 0.001: 40}  # the last always
    assert len(t.lines()[0]) == shown[interval]


def test_a_short_job_gets_its_last_line_alone() -> None:
    t = told()
    run_a_job(t, 2)
    assert t.lines()[1] == [at(100).text()]


def test_the_last_line_comes_once() -> None:
    t = told()
    run_a_job(t, 2)
    t.reporter.progress(at(100))
    t.reporter.progress(at(100))
    t.reporter.emit(RESULT)
    assert t.lines()[1] == [at(100).text()]


def test_a_stopped_job_says_where_it_was_before_its_error() -> None:
    t = told()
    t.reporter.progress(at(0))
    t.clock.now += 2
    t.reporter.progress(at(30))
    t.reporter.emit(FAILURE)
    assert t.lines()[1] == [at(30).text(), *FAILURE.text().splitlines()]


def test_a_job_with_nothing_to_do_shows_no_progress() -> None:
    for as_json in (False, True):
        t = told(json=as_json)
        t.reporter.progress(replace(WARM, total=0))
        assert t.lines() == ([], [])


def test_a_second_phase_starts_over() -> None:
    t = told()
    run_a_job(t, 2)
    t.reporter.progress(at(10, "verify"))
    t.clock.now += 4
    t.reporter.progress(at(20, "verify"))
    t.clock.now += 2
    t.reporter.progress(at(30, "verify"))
    t.reporter.progress(at(0, "hold"))
    assert [line.split("%")[0] for line in t.lines()[1]] == ["warm 100", "verify 30", "hold 0"]


def test_print_now_shows_the_latest_at_once() -> None:
    t = told()
    t.reporter.print_now()
    t.reporter.progress(at(10))
    t.reporter.progress(at(20))
    t.reporter.print_now()
    assert t.lines()[1][0] == at(20).text()


def test_json_progress_comes_at_most_once_a_second() -> None:
    t = told(json=True)
    for tick in range(41):  # 10 s, four a second
        t.progress(at(tick))
        t.clock.now += 0.25
    out, _ = t.lines()
    assert [round(json.loads(line)["done"] * 100 / WARM.total) for line in out] == list(range(0, 41, 4))


def test_progress_given_to_emit_is_progress() -> None:
    t = told()
    t.reporter.emit(at(10))
    t.reporter.emit(at(100))
    assert t.lines()[1] == [at(100).text()]


def test_nothing_is_written_after_close() -> None:
    t = told()
    t.reporter.progress(at(10))
    before = t.lines()
    t.reporter.emit(NOTE)
    t.reporter.progress(at(100))
    t.reporter.print_now()
    t.reporter.close()
    assert t.lines() == before
    assert not t.reporter.stdout_failed


def test_no_writer_thread_without_a_line_nor_after_close() -> None:
    before = threading.enumerate()
    t = told()
    t.progress(at(10))
    assert threading.enumerate() == before
    t.reporter.emit(NOTE)
    t.reporter.emit(RESULT)
    t.reporter.close()
    assert set(threading.enumerate()) <= set(before)


def end(reporter: Reporter, writer: IO[str], threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
    reporter.close()
    writer.close()


def test_lines_of_many_threads_stay_whole_and_in_order() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as writer:
        reporter = make_reporter(
            json=True, progress="none", stdout=writer, stderr=io.StringIO(), patience=math.inf
        )

        def speak(number: int) -> None:
            for count in range(300):
                reporter.emit(Note("info", str(number), f"{count} {'x' * (count * 20 % 6000)}"))

        threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        closer = threading.Thread(target=end, args=(reporter, writer, threads))
        closer.start()
        seen: dict[str, list[int]] = {}
        for line in reader:
            body = json.loads(line)
            seen.setdefault(body["code"], []).append(int(body["message"].split()[0]))
        closer.join()
    assert seen == {str(number): list(range(300)) for number in range(4)}
    assert not reporter.stdout_failed


# Terminals


@contextmanager
def terminal(columns: int = 100, encoding: str = "utf-8") -> Iterator[tuple[int, IO[str]]]:
    """A pseudo terminal: the reading end, and a text file on the other side."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(writing, "w", encoding=encoding) as file:
        try:
            yield reading, file
        finally:
            os.close(reading)


def drain(reading: int) -> str:
    data = b""
    while select.select([reading], [], [], 0.1)[0]:
        data += os.read(reading, 65536)
    return data.decode()


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after `text`: enough of one for what a reporter may send."""
    lines, column = [""], 0
    for token in re.findall(r"\r|\n|\x1b\[K|\x1b.{0,4}|.", text):
        match token:
            case "\r":
                column = 0
            case "\n":
                lines.append("")
            case "\x1b[K":
                lines[-1] = lines[-1][:column]
            case _:
                assert not token.startswith("\x1b"), f"unexpected escape {token!r}"
                lines[-1] = lines[-1][:column].ljust(column) + token + lines[-1][column + 1 :]
                column += 1
    return [line.rstrip() for line in lines]


@pytest.fixture
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("xterm")
def test_the_bar_says_what_the_plain_line_says() -> None:
    with terminal() as (reading, file):
        reporter = make_reporter(json=False, progress="auto", stdout=io.StringIO(), stderr=file)
        reporter.progress(at(41))
        time.sleep(0.1)
        shown = screen(drain(reading))
        reporter.close()
    assert len(shown) == 1
    assert len(shown[0]) == 99, "one column short of the edge"
    assert re.sub(r"\|.*\|", "", shown[0]) == at(41).text()
    bar = re.search(r"\|(.*)\|", shown[0])
    assert bar is not None
    assert bar[1].count("█") / len(bar[1]) == pytest.approx(0.41, abs=0.1)


@pytest.mark.usefixtures("xterm")
def test_lines_go_above_the_bar_without_tearing() -> None:
    with terminal() as (reading, file):
        reporter = make_reporter(json=False, progress="bar", stdout=file, stderr=file)
        reporter.progress(at(20))
        reporter.emit(WARNING)
        reporter.emit(RESULT)
        reporter.print_now()
        time.sleep(0.1)
        shown = screen(drain(reading))
        assert shown[:4] == [*WARNING.text().splitlines(), RESULT.text().rstrip(), at(20).text()]
        assert shown[4].startswith("warm 20%|")
        reporter.progress(at(100))
        reporter.emit(RESULT)
        reporter.close()
        after = drain(reading)
    assert screen(after)[0].startswith("warm 100%|")
    assert screen(after)[1:] == [RESULT.text().rstrip(), ""]


@pytest.mark.usefixtures("xterm")
def test_an_unfinished_bar_leaves_the_last_word_to_the_error() -> None:
    with terminal() as (reading, file):
        reporter = make_reporter(json=False, progress="bar", stdout=io.StringIO(), stderr=file)
        reporter.progress(at(20))
        reporter.emit(FAILURE)
        reporter.close()
        shown = screen(drain(reading))
    assert shown == [*FAILURE.text().splitlines(), ""]


@pytest.mark.usefixtures("xterm")
@pytest.mark.parametrize("columns", [1, 10, 40, 0])
def test_the_bar_never_wraps(columns: int) -> None:
    with terminal(columns) as (reading, file):
        reporter = make_reporter(json=False, progress="bar", stdout=io.StringIO(), stderr=file)
        reporter.progress(at(50))
        time.sleep(0.1)
        shown = screen(drain(reading))
        reporter.close()
    assert len(shown) == 1
    assert len(shown[0]) <= max(1, (columns or 80) - 1)


@pytest.mark.usefixtures("xterm")
def test_the_bar_has_no_colours_and_asks_for_no_letters_that_the_terminal_lacks() -> None:
    with terminal(encoding="ascii") as (reading, file):
        reporter = make_reporter(json=False, progress="bar", stdout=io.StringIO(), stderr=file)
        reporter.progress(at(50))
        reporter.emit(Note("info", "x", "模型"))
        reporter.close()
        raw = drain(reading)
    assert raw.isascii()
    assert set(re.findall(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", raw)) == {"\x1b[K"}
    assert "\\u6a21\\u578b" in raw


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_dumb_terminal_gets_lines(term: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM", raising=False)
    if term:
        monkeypatch.setenv("TERM", term)
    with terminal() as (reading, file):
        reporter = make_reporter(json=False, progress="bar", stdout=io.StringIO(), stderr=file)
        reporter.progress(at(100))
        reporter.close()
        assert drain(reading).splitlines() == [at(100).text()]


@pytest.mark.usefixtures("xterm")
def test_results_in_a_file_are_not_mixed_with_the_bar() -> None:
    with terminal() as (reading, file):
        out = io.StringIO()
        reporter = make_reporter(json=False, progress="auto", stdout=out, stderr=file)
        reporter.progress(at(20))
        reporter.emit(RESULT)
        reporter.close()
        assert out.getvalue() == RESULT.text() + "\n"
        assert RESULT.path not in drain(reading)


@pytest.mark.usefixtures("xterm")
def test_a_terminal_that_went_away_is_dropped() -> None:
    reading, writing = pty.openpty()
    with os.fdopen(writing, "w") as file:
        out = io.StringIO()
        reporter = make_reporter(json=False, progress="bar", stdout=out, stderr=file)
        reporter.progress(at(20))
        time.sleep(0.1)
        os.close(reading)
        for event in (NOTE, at(30), RESULT, FAILURE):
            reporter.emit(event)
        reporter.close()
    assert out.getvalue() == RESULT.text() + "\n"
    assert not reporter.stdout_failed


# Streams that fail, and processes

SCRIPT = """
import os, sys, time
from stager.core.events import *
from stager.core.model import *
from stager.engine.report import make_reporter
job = Progress("warm", 0, 1000, 1e9, 2.0, 0, 17, 4, 0.61)
def at(done): return Progress("warm", done, 1000, 1e9, 2.0, 0, 17, 4, 0.61)
def result(name="/m/a.bin"): return FileResidency(name, Residency(1, 1, Known.CACHESTAT, 0))
def note(text): return Note("info", "x", text)
def exit_as_the_edge_does(r):
    r.close()
    sys.exit(74 if r.stdout_failed else 0)
"""


def child(body: str, tail: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """A process that runs `body` after SCRIPT; `tail` is shell redirection."""
    command = ["sh", "-c", f'exec "$0" "$@" {tail}', sys.executable, "-c", SCRIPT + body]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"} | options.pop("env", {})
    env.pop("PYTHONUNBUFFERED", None)  # it hides what a buffered stdout does at exit
    return subprocess.Popen(command, env=env, cwd=ROOT, **options)


def finish(process: subprocess.Popen[bytes], timeout: float = 20) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, (out or b"").decode(), (err or b"").decode()


EVERYTHING = """
r = make_reporter(json={json}, progress="{progress}", interval=0.2)
for done in range(0, 1001, 100):
    r.progress(at(done)); r.emit(note("n")); time.sleep(0.01)
r.emit(result())
exit_as_the_edge_does(r)
"""
MODES = [("False", "lines"), ("False", "bar"), ("False", "none"), ("True", "auto")]


@pytest.mark.parametrize(("as_json", "progress"), MODES)
def test_closed_stderr_loses_nothing_but_itself(as_json: str, progress: str) -> None:
    code, out, err = finish(
        child(EVERYTHING.format(json=as_json, progress=progress), "2>&-", stdout=subprocess.PIPE)
    )
    assert code == 0
    assert err == ""
    assert out.count("/m/a.bin") == 1


@pytest.mark.parametrize(("as_json", "progress"), MODES)
def test_closed_stdout_is_remembered_and_not_shouted_about(as_json: str, progress: str) -> None:
    code, _, err = finish(
        child(EVERYTHING.format(json=as_json, progress=progress), ">&-", stderr=subprocess.PIPE)
    )
    assert code == 74
    assert "Traceback" not in err
    assert "Exception" not in err
    assert (err == "") == (as_json == "True")


def test_both_closed() -> None:
    for as_json, progress in MODES:
        process = child(EVERYTHING.format(json=as_json, progress=progress), ">&- 2>&-")
        assert finish(process)[0] == 74


def test_a_file_that_got_the_number_of_a_closed_stream_stays_as_it_is(tmp_path: Path) -> None:
    victim = tmp_path / "model.bin"
    victim.write_bytes(b"weights")
    body = f"""
assert os.open({str(victim)!r}, os.O_RDWR) == 1
assert os.open({str(victim)!r}, os.O_RDWR) == 2
for json in (False, True):
    r = make_reporter(json=json, progress="lines")
    r.emit(note("n")); r.emit(result())
    r.close()
    if not r.stdout_failed: sys.exit(3)
"""
    assert finish(child(body, ">&- 2>&-"))[0] == 0
    assert victim.read_bytes() == b"weights"


@pytest.mark.parametrize("tail", [">/dev/full", "2>/dev/full", ">/dev/full 2>&1"])
def test_a_full_disk(tail: str) -> None:
    process = child(
        EVERYTHING.format(json="False", progress="lines"),
        tail,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    code, _, err = finish(process)
    assert code == (0 if tail == "2>/dev/full" else 74)
    assert "Traceback" not in err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_went_away(stream: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: write}
        code, out, err = finish(child(EVERYTHING.format(json="False", progress="lines"), **streams))
    finally:
        os.close(write)
    assert code == (74 if stream == "stdout" else 0)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert out.count("/m/a.bin") == (0 if stream == "stdout" else 1)


FULL = """
start = time.monotonic()
r = make_reporter(json={json}, progress="lines", interval=0.0)
for number in range({count}):
    r.progress(at(number % 1000))
    r.emit(note("x" * 200))
    r.emit(result("/m/" + "y" * 200))
spent = time.monotonic() - start
r.close()
closed = time.monotonic() - start
os.write({told}, f"{{spent:.2f}} {{closed:.2f}} {{r.stdout_failed}}".encode())
"""


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("tail", ["", "2>&1"])
@pytest.mark.parametrize("count", [500, 40_000])  # below and far above what the queue holds
def test_a_full_pipe_stops_neither_the_job_nor_its_exit(tail: str, count: int, *, as_json: bool) -> None:
    unread, stuck = os.pipe()
    answer, told_fd = os.pipe()
    flags = fcntl.fcntl(stuck, fcntl.F_GETFL)
    try:
        os.set_blocking(stuck, False)
        while True:
            try:
                os.write(stuck, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(stuck, True)
        body = FULL.format(json=as_json, count=count, told=told_fd)
        process = child(body, tail, stdout=stuck, stderr=stuck, pass_fds=[told_fd])
        start = time.monotonic()
        code, _, _ = finish(process, timeout=30)
        wall = time.monotonic() - start
        spent, closed, failed = os.read(answer, 100).decode().split()
        assert code == 0
        assert fcntl.fcntl(stuck, fcntl.F_GETFL) == flags, "the flags of a shared descriptor stay as they are"
    finally:
        for fd in (unread, stuck, answer, told_fd):
            os.close(fd)
    assert failed == "True"
    assert float(closed) - float(spent) < 1.5, "close waits for about a second"
    assert wall - float(closed) < 2.0, "the interpreter ends although its writer hangs"
    if count == 500:
        assert float(spent) < 1.0, "the job is not held up"
        assert wall < 3.0


def test_one_stuck_stream_does_not_hold_up_the_other() -> None:
    unread, stuck = os.pipe()
    with os.fdopen(stuck, "w") as err:
        fcntl.fcntl(err, fcntl.F_SETPIPE_SZ, 4096)
        os.write(err.fileno(), b"x" * 4096)
        out = io.StringIO()
        reporter = make_reporter(json=False, progress="none", stdout=out, stderr=err)
        reporter.emit(NOTE)
        reporter.emit(RESULT)
        start = time.monotonic()
        reporter.close()
        assert 0.9 < time.monotonic() - start < 1.5
        assert out.getvalue() == RESULT.text() + "\n"
        assert not reporter.stdout_failed
        os.close(unread)


def test_a_slow_reader_gets_everything() -> None:
    """More than the queue holds, read in pauses shorter than the patience: a query piped into a slow program."""
    body = """
r = make_reporter(json=True, progress="none", patience=float("inf"))
for number in range(60_000): r.emit(note(f"{number} " + "x" * 200))
exit_as_the_edge_does(r)
"""
    process = child(body, stdout=subprocess.PIPE)
    assert process.stdout is not None
    time.sleep(1.5)  # longer than the default patience
    lines = process.stdout.read().splitlines()
    assert process.wait(20) == 0
    assert [json.loads(line)["message"].split()[0] for line in lines] == [str(n) for n in range(60_000)]


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with os.fdopen(read) as reader, os.fdopen(write, "w") as writer:
        reporter = make_reporter(
            json=True, progress="none", stdout=writer, stderr=io.StringIO(), patience=math.inf
        )
        for number in range(2000):
            reporter.emit(Note("info", "x", f"{number} {'x' * 200}"))
        closer = threading.Thread(target=end, args=(reporter, writer, []))
        closer.start()
        assert len(reader.readlines()) == 2000
        closer.join()
    assert not reporter.stdout_failed


def test_waiting_progress_gives_way_to_newer_progress() -> None:
    unread, stuck = os.pipe()
    with os.fdopen(stuck, "w") as file, os.fdopen(unread, "rb", buffering=0) as reader:
        fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, 4096)
        os.write(file.fileno(), b"x" * 4096)
        stream = Outlet(file, 5.0)
        stream.put("first\n", droppable=True)
        time.sleep(0.1)  # the writer holds it by now
        for number in range(1000):
            stream.put(f"progress {number}\n", droppable=True)
        stream.put("error\n")
        assert reader.read(4096) == b"x" * 4096
        stream.close(time.monotonic() + 2)
        assert reader.read(4096) == b"first\nprogress 999\nerror\n"
        assert not stream.lost


def test_only_lost_results_count_as_lost() -> None:
    unread, stuck = os.pipe()
    with os.fdopen(stuck, "w") as file:
        fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, 4096)
        stream = Outlet(file, 0.1)
        stream.put("x" * 4095 + "\n")
        time.sleep(0.1)
        stream.put("y" * (outlet.QUEUE_BYTES - 10) + "\n")  # hangs
        time.sleep(0.2)
        stream.put("progress progress\n", droppable=True)
        assert not stream.lost
        stream.put("an error that finds no room\n")
        assert stream.lost
        stream.close(time.monotonic())
        os.close(unread)


def test_a_reporter_works_where_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    t = told()
    t.reporter.emit(FAILURE)
    t.reporter.emit(RESULT)
    assert t.lines() == ([RESULT.text()], FAILURE.text().splitlines())


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_text_in_a_locale_without_unicode(locale: dict[str, str]) -> None:
    body = """
r = make_reporter(json=False, progress="lines")
r.emit(note("\\u6a21 \\udcff")); r.emit(result("/m/\\u6a21\\udcff"))
exit_as_the_edge_does(r)
"""
    code, out, err = finish(child(body, env=locale, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert code == 0
    assert err in ("\\u6a21 \\udcff\n", "模 \\udcff\n")
    assert out.rstrip().endswith(("/m/\\u6a21\\xff", "/m/模\\xff"))


def test_one_queue_keeps_the_order_of_2_to_1() -> None:
    body = """
r = make_reporter(json=False, progress="lines")
for number in range(500):
    r.emit(note(f"note {number}")); r.emit(result(f"/m/{number}"))
exit_as_the_edge_does(r)
"""
    code, out, _ = finish(child(body, "2>&1", stdout=subprocess.PIPE))
    numbers = [re.split(r"[ /]", line)[-1] for line in out.splitlines()]
    assert code == 0
    assert numbers == [str(number) for number in range(500) for _ in range(2)]


def test_a_pipe_gets_no_carriage_return_and_no_tqdm() -> None:
    body = EVERYTHING.format(json="False", progress="bar").replace(
        "exit_as", "print('tqdm' in sys.modules); exit_as"
    )
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    code, out, err = finish(child(body, env={"TERM": "xterm"}, **pipes))
    assert code == 0
    assert "False" in out
    assert "\r" not in out + err
    assert "\x1b" not in out + err
    assert "warm 100%" in err


def test_a_terminal_gets_the_bar_and_only_then_tqdm() -> None:
    body = EVERYTHING.format(json="False", progress="auto").replace(
        "exit_as", "print('tqdm' in sys.modules); exit_as"
    )
    with terminal() as (reading, file):
        process = child(body, env={"TERM": "xterm"}, stdout=subprocess.PIPE, stderr=file)
        raw = ""
        while process.poll() is None:
            raw += drain(reading)
        code, out, _ = finish(process)
        raw += drain(reading)
    assert code == 0
    assert "True" in out
    assert "warm 100%|" in raw
    assert screen(raw)[-3].startswith("warm 100%|")
    assert screen(raw)[-2:] == ["n", ""]


def test_json_on_a_terminal_shows_no_bar() -> None:
    with terminal() as (reading, file):
        process = child(
            EVERYTHING.format(json="True", progress="bar"), env={"TERM": "xterm"}, stdout=file, stderr=file
        )
        code, _, _ = finish(process)
        for line in drain(reading).splitlines():
            json.loads(line)
    assert code == 0


def test_an_event_without_words_writes_no_empty_line() -> None:
    class Silent(Event):
        def text(self) -> str:
            return ""

    t = told()
    t.reporter.emit(Silent())
    assert t.lines() == ([], [])
