"""Worker processes: what they say arrives, and none of them outlives its job, its parent or an error."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from stager.core.errors import AccessDenied, ResourceRefused, StagerError
from stager.engine import crew
from stager.engine.crew import run_crew
from tests.harness import environment, until

WORKER = """
import os, signal, sys, time
from stager.engine.crew import END, Voice, hear
voice, job = Voice(), hear()
print("this goes to stderr")
if job["name"] == "stays":  # before it speaks: whoever hears it may stop it at once
    def last_words(*_):
        voice.say({"last": "words"})
        sys.exit(0)
    signal.signal(signal.SIGTERM, last_words)
voice.say({"pid": os.getpid(), "job": job["name"]})
if job["name"] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if job["name"] == "fails":
    os._exit(3)
if job["name"] == "stays":
    time.sleep(60)
voice.say(END)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "crew_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{environment()['PYTHONPATH']}")
    return "crew_worker"


def heard(worker: str, *names: str) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []

    async def main() -> None:
        await run_crew(
            worker, [{"name": name} for name in names], lambda n, message: found.append((n, message))
        )

    anyio.run(main)
    return found


def test_every_worker_gets_its_job_and_is_heard(worker: str) -> None:
    found = heard(worker, "one", "two")
    assert sorted((number, message["job"]) for number, message in found) == [(0, "one"), (1, "two")]


def test_a_worker_that_dies_is_an_error_and_the_others_are_ended(worker: str) -> None:
    found: list[dict[str, Any]] = []

    async def main() -> None:
        await run_crew(
            worker, [{"name": "stays"}, {"name": "dies"}], lambda _n, message: found.append(message)
        )

    with pytest.raises(ResourceRefused, match="signal 9") as refused:
        anyio.run(main)
    assert "--processes" in (refused.value.hint or "")
    for message in found:
        if "pid" in message:
            assert not os.path.exists(f"/proc/{message['pid']}")


def test_a_worker_that_ends_in_another_way_is_a_bug(worker: str) -> None:
    with pytest.raises(StagerError, match="exit 3") as failed:
        heard(worker, "fails")
    assert failed.value.exit_code == 1


def test_an_interpreter_that_cannot_be_run_is_one_clear_error(
    worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(AccessDenied, match=r"worker process cannot be started.*EACCES"):
        heard(worker, "one")


def test_nothing_in_the_current_folder_is_executed(
    worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("json.py", "stager.py", "crew_worker.py"):
        (model / name).write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.chdir(model)
    assert [message["job"] for _, message in heard(worker, "one")] == ["one"]
    assert not (tmp_path / "executed").exists()


def test_a_worker_that_is_told_to_stop_ends_without_a_word_on_stderr(
    worker: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            await run_crew(worker, [{"name": "stays"}], lambda _n, _message: scope.cancel())

    anyio.run(main)
    assert capfd.readouterr().err == "this goes to stderr\n"


def test_what_the_listener_raises_comes_out_bare_after_the_workers_have_ended(worker: str) -> None:
    pids = []

    def listen(_number: int, message: dict[str, Any]) -> None:
        pids.append(message["pid"])
        raise ValueError("enough")

    async def main() -> None:
        await run_crew(worker, [{"name": "stays"}], listen)

    with pytest.raises(ValueError, match="enough"):
        anyio.run(main)
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_last_words_are_heard_when_cancelled(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_GRACE_S", 30)  # a busy machine takes longer than usual to let a process speak
    found: list[dict[str, Any]] = []

    async def main() -> None:
        with anyio.CancelScope() as scope:

            def listen(_number: int, message: dict[str, Any]) -> None:
                found.append(message)
                scope.cancel()

            await run_crew(worker, [{"name": "stays"}], listen)

    anyio.run(main)
    assert {"last": "words"} in found


def test_a_lock_outlives_the_process_that_took_it_as_long_as_its_workers_live(
    worker: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "lock")
    code = (
        "import anyio, fcntl, json, os, signal\n"
        "from stager.engine.crew import run_crew\n"
        f"fd = os.open({path!r}, os.O_CREAT | os.O_RDWR)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "def say(_number, message):\n"
        "    os.kill(message['pid'], signal.SIGSTOP)\n"
        "    print(message['pid'], flush=True)\n"
        "async def main():\n"
        f"    await run_crew({worker!r}, [{{'name': 'stays'}}], say, hold=[fd])\n"
        "anyio.run(main)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    with open(path) as file:
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{pid}"), "the worker's end")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_worker_ends_with_the_process_that_started_it(worker: str) -> None:
    code = (
        "import anyio, json, sys\n"
        "from stager.engine.crew import run_crew\n"
        "say = lambda n, message: print(json.dumps(message), flush=True)\n"
        f"anyio.run(run_crew, {worker!r}, [{{'name': 'stays'}}], say)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = json.loads(parent.stdout.readline())["pid"]
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    until(lambda: not os.path.exists(f"/proc/{pid}"), "the worker's end")
    parent.stdout.close()
