"""The command line: help as documented, errors in one line with a hint, and streams that keep their promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stager
from tests.harness import MIB, ROOT, Box, command, environment

GOLDEN = ROOT / "tests" / "golden" / "cli"
VERBS = (
    "pull",
    "fetch",
    "warm",
    "check",
    "verify",
    "ls",
    "status",
    "run",
    "ready",
    "wait",
    "evict",
    "bench",
    "install",
)


def help_of(*words: str) -> str:
    done = subprocess.run(
        command(*words, "--help"),
        env=environment(COLUMNS="110"),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(verb: str) -> None:
    """Regenerate with STAGER_GOLDEN=1 when the help changed on purpose."""
    text = help_of(*([verb] if verb else []))
    path = GOLDEN / f"help{'-' if verb else ''}{verb}.txt"
    if os.environ.get("STAGER_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert "Example" in text, "every help shows one"
    assert max(map(len, text.splitlines())) <= 110


def test_help_lists_every_command() -> None:
    text = help_of()
    for verb in VERBS:
        assert f"\n  {verb} " in text


def test_help_imports_no_command_and_no_event_loop(box: Box) -> None:
    done = box.run("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.code == 0
    for module in ("anyio", "psutil", "tqdm", "stager.jobs.warm"):
        assert f" {module}\n" not in done.err


def test_version(box: Box) -> None:
    assert box.run("--version").out == f"stager {stager.__version__}\n"


USAGE = [
    (),
    ("nonsense",),
    ("warm",),
    ("warm", "--nonsense", "."),
    ("warm", ".", "-P", "0"),
    ("warm", ".", "-P", "many"),
    ("warm", ".", "--budget", "lots"),
    ("warm", ".", "--budget", "101%"),
    ("warm", ".", "--budget", "10MiB/s"),
    ("warm", ".", "--limit", "-1"),
    ("warm", ".", "--max-rate", "0"),
    ("warm", ".", "--timeout", "soon"),
    ("warm", ".", "--hold", "until:ftp://x"),
    ("warm", ".", "--hold", "until:nothing"),
    ("warm", ".", "--hold-mlock"),
    ("warm", ".", "--order", "random"),
    ("warm", ".", "--min-resident", "200%"),
    ("warm", ".", "--strict", "--fail-open"),
    ("warm", ".", "--progress", "loud"),
    ("ready", "--accept", "everything"),
    ("ready", "--min-resident", "x"),
    ("ready", "--marker"),
    ("wait", "--timeout", "x"),
    ("status", ".", "--min-resident", "x"),
    ("ls",),
    ("ls", "s3://bucket/r1"),
    ("ls", "oss://bucket/r1", "--read-timeout", "never"),
    ("run", "--warm", "."),
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_usage_errors(box: Box, words: tuple[str, ...]) -> None:
    done = box.run(*words)
    if not words:
        assert done.code in (0, 2)
        return
    assert done.code == 2, str(done)
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], str(done)
    assert lines[0][7].islower() or not lines[0][7].isalpha()
    assert not lines[0].endswith(".")
    assert done.out == ""
    assert not os.path.exists(box.marker), "a wrong command line withdraws no marker"


@pytest.mark.parametrize(
    "words", [("warm", ".", "--budget", "lots"), ("warm", "/no/such/model"), ("nonsense",)]
)
def test_errors_in_json(box: Box, words: tuple[str, ...]) -> None:
    done = box.run(*words, "--json")
    assert done.err == ""
    error = json.loads(done.out.splitlines()[-1])
    assert (error["v"], error["type"], error["exit_code"]) == (1, "error", done.code)


def test_an_error_is_json_only_when_stager_was_asked_for_it(box: Box) -> None:
    """Words after `--` are the engine's."""
    run = ("run", "--warm", box.folder)
    for words, env, wanted in (
        ((*run, "--", "no-such-command", "--json", "-vv"), {}, False),
        ((*run, "--json", "--", "no-such-command"), {}, True),
        (("ready", "--nonsense"), {"STAGER_JSON": "0"}, False),
        (("ready", "--nonsense"), {"STAGER_JSON": "true"}, True),
    ):
        done = box.run(*words, env=env)
        assert done.code in (2, 7)
        assert bool(done.out) == wanted, str(done)
        assert bool(done.err) != wanted
    assert box.run("ready", env={"STAGER_JSON": "0"}).out.startswith("not ready")
    assert box.run("ready", env={"STAGER_JSON": "yes"}).event("readiness")


def test_the_environment_is_named_when_it_is_wrong(box: Box) -> None:
    done = box.run("warm", box.folder, env={"STAGER_MAX_RATE": "fast"})
    assert (done.code, "STAGER_MAX_RATE" in done.err) == (2, True), str(done)
    assert "STAGER" not in box.run("warm", box.folder, "--max-rate", "fast").err


def test_several_values_in_the_environment(box: Box) -> None:
    """Words separated by spaces, also for --warm; a colon is part of a name."""
    one, two = box.file("a:b.data", 4096), box.file("c.data", 4096)
    done = box.run("run", "--json", "--", "true", env={"STAGER_WARM": f"{one} {two}"})
    assert (done.code, box.read_marker()["asked"]) == (0, [one, two]), str(done)


@pytest.mark.parametrize("words", [("warm", "--include"), ("run", "--warm"), ("wait", "--timeout")])
def test_the_hint_names_the_command(box: Box, words: tuple[str, ...]) -> None:
    assert f"`stager {words[0]} --help`" in box.run(*words).err


@pytest.mark.parametrize("words", [(".",), ("m", "--dry-run"), ("/", "--marker", "ready.json")])
def test_a_working_directory_that_is_gone(box: Box, words: tuple[str, ...]) -> None:
    os.mkdir(gone := box.path("gone"))
    script = f'cd {gone} && rmdir {gone} && exec "$@"'
    done = box.run("warm", *words, before=["sh", "-c", script, "sh"])
    assert (done.code, "no longer exists" in done.err) == (7, True), str(done)


@pytest.mark.parametrize("where", [">/dev/full", "| true", "| head -c 10"])
@pytest.mark.parametrize("words", ["--help", "warm -h", "--version"])
def test_help_that_nobody_takes_is_no_bug(words: str, where: str) -> None:
    script = f"set -o pipefail; '{sys.executable}' -m stager {words} {where}"
    for _ in range(3):
        done = subprocess.run(
            ["bash", "-c", script],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert (done.returncode, done.stderr) == (0, ""), done


def test_a_bug_is_one_line_and_a_traceback_on_request(box: Box) -> None:
    path = box.file("weights.data", 4096)
    break_it = "import stager.jobs.warm as w; w.Surveyor = None; from stager.cli import main; main()"
    for words, lines in (((), 2), (("-vv",), None), (("-v", "-v"), None)):
        done = subprocess.run(
            [sys.executable, "-c", break_it, "warm", path, *words],
            env=environment(STAGER_MARKER=box.marker), cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) == bool(words)
        if lines:
            assert len(done.stderr.splitlines()) == lines
            assert "-vv" in done.stderr
        assert box.state == "failed"


def test_stdout_is_the_result_and_stderr_everything_else(box: Box) -> None:
    path = box.file("weights.data", 4 * MIB)
    done = box.run("warm", path, "--progress", "lines", "--limit", "64TiB")
    assert len(done.out.splitlines()) == 1
    quiet = box.run("warm", path, "-q", "--fresh")
    assert (quiet.err, len(quiet.out.splitlines())) == ("", 1)
    silent = box.run("warm", path, "--json", "--fresh")
    assert silent.err == ""
    assert silent.events


def test_python_m_and_the_command_are_the_same(box: Box) -> None:
    script = Path(sys.executable).parent / "stager"
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == box.run("--version").out
