"""The self-contained program, played without PyInstaller: workers, and an environment that is none of the engine's business."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from stager.engine.crew import run_crew
from stager.node import frozen
from stager.node.processes import original_environment
from tests.harness import ROOT, environment

WORKER = """
import sys
from stager.engine.crew import END, Voice, hear
voice, job = Voice(), hear()
voice.say({"name": job["name"], "main": __name__, "frozen": sys.frozen, "words": sys.argv[1:]})
voice.say(END)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    """An executable that behaves as the bundle's: no interpreter's options, `sys.frozen` set."""
    path = tmp_path / "bundle" / "stager"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\n"
        "import runpy, sys\n"
        "sys.frozen = True\n"
        f"sys.path[0:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "runpy.run_module('stager', run_name='__main__')\n"
    )
    path.chmod(0o755)
    return str(path)


def test_a_worker_starts_without_an_interpreter_to_call(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frozen_worker.py").write_text(WORKER)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", program)
    heard: list[dict[str, Any]] = []

    async def main() -> None:
        await run_crew("frozen_worker", [{"name": "one"}], lambda _n, message: heard.append(message))

    anyio.run(main)
    assert [(one["name"], one["main"], one["frozen"]) for one in heard] == [("one", "__main__", True)]


def test_the_program_is_the_command(program: str) -> None:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout.split()[0]) == (0, "stager")


def test_with_an_interpreter_the_word_for_workers_is_no_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stager", frozen.WORKER, "json.tool"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no such option")


class TestTheEnvironment:
    @pytest.fixture(autouse=True)
    def bundle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        monkeypatch.setattr(sys, "_MEIPASS", "/opt/b/lib", raising=False)

    def test_is_as_before_the_start(self) -> None:
        given = {b"LD_LIBRARY_PATH": b"/opt/b/lib", b"_PYI_ARCHIVE_FILE": b"/opt/b/stager", b"HOME": b"/"}
        assert frozen.without_own(given) == {b"HOME": b"/"}
        given = {b"LD_LIBRARY_PATH": b"/opt/b/lib:/cuda", b"LD_LIBRARY_PATH_ORIG": b"/cuda"}
        assert frozen.without_own(given) == {b"LD_LIBRARY_PATH": b"/cuda"}

    def test_keeps_what_the_start_did_not_touch(self) -> None:
        assert frozen.without_own({b"LD_LIBRARY_PATH": b"/cuda"}) == {b"LD_LIBRARY_PATH": b"/cuda"}

    def test_of_an_ordinary_program_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(sys, "frozen")
        given = {b"LD_LIBRARY_PATH": b"/opt/b/lib", b"LD_LIBRARY_PATH_ORIG": b"/x", b"_PYI_X": b"1"}
        assert frozen.without_own(given) == given

    def test_that_a_command_gets_has_nothing_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = (
            "import sys; sys.frozen = True; sys._MEIPASS = '/opt/b/lib'\n"
            "from stager.node.processes import original_environment\n"
            "print(sorted(name for name in original_environment() if b'_PYI_' in name or b'LD_' in name))"
        )
        given = environment(LD_LIBRARY_PATH="/opt/b/lib:/cuda", LD_LIBRARY_PATH_ORIG="/cuda", _PYI_LEVEL="1")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=given)
        assert done.stdout == "[b'LD_LIBRARY_PATH']\n"
        assert b"HOME" in original_environment() or "HOME" not in os.environ


def test_certificates_that_came_along_are_used_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "certifi" / "cacert.pem"
    own.parent.mkdir()
    own.touch()
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/theirs")
    monkeypatch.setattr(frozen, "_USUAL", (str(tmp_path / "none"),))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    frozen.bring_certificates()
    assert os.environ["SSL_CERT_FILE"] == "/theirs"
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr(frozen, "_USUAL", (str(tmp_path),))
    frozen.bring_certificates()
    assert "SSL_CERT_FILE" not in os.environ
    monkeypatch.setattr(frozen, "_USUAL", ())
    frozen.bring_certificates()
    assert os.environ["SSL_CERT_FILE"] == str(own)
    del os.environ["SSL_CERT_FILE"]
