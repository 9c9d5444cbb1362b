"""What a report of ``stager bench`` says to do by hand, copied from it into bash: cold is cold, everything is read, the second load finds all of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from stager.core.bench.page import markdown
from stager.core.bench.page_by_hand import bash_word
from tests import bench_samples
from tests.fetchbed import Bed
from tests.harness import Box, environment, files_below, resident

ROOT = Path(__file__).resolve().parent.parent
MARK = "\x1e"


def commands(report: str) -> str:
    """Every command of the section, as a reader would copy them."""
    text = Path(report, "report.md").read_text("utf-8")
    section = text.split("### Each number by hand\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))


def told_apart(script: str) -> str:
    """`script` with every line that makes the files cold taken apart: what is resident is said after each of its steps."""
    lines = []
    for line in script.splitlines():
        steps = [f"{step}; resident" for step in line.split("; ")[1:]] if line.startswith("cold; ") else []
        lines += [f"printf '{MARK}%s\\n' {bash_word(line)}; cold", *steps] if steps else [line]
    return "\n".join(lines)


def typed(box: Box, script: str, **more: str) -> str:
    """`script` in a bash that has stager and Python; what it printed. Every command must succeed."""
    programs = Path(box.path("programs"))
    programs.mkdir(exist_ok=True)
    stager = programs / "stager"
    stager.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom stager.cli import main\nmain()\n"
    )
    stager.chmod(0o755)
    env = {**environment(), "STAGER_MARKER": box.marker, **more}
    env["PATH"] = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def hub_cache(box: Box) -> str:
    """The layout of a Hugging Face hub cache, its folder named by a link with an awkward name."""
    blobs = box.model("blobs")
    snapshot = box.path("snapshots", "it's \n one")
    os.makedirs(snapshot)
    for path in files_below(blobs):
        os.symlink(os.path.relpath(path, snapshot), os.path.join(snapshot, os.path.basename(path)))
    os.symlink(snapshot, box.path("cur rent"))
    return box.path("cur rent")


def measured(box: Box, path: str, *words: str) -> str:
    """The report of a short benchmark of `path`."""
    report = box.path("report")
    done = box.run("bench", path, "--yes", "--rounds", "1", "--report", report, "--json", *words)
    assert done.code == 0, str(done)
    assert done.events[-1]["failed"] == 0, str(done)
    return report


@pytest.mark.parametrize("layout", ["plain", "hub", "found", "file"])
def test_every_line_for_a_mount_does_what_it_says(box: Box, layout: str) -> None:
    path = hub_cache(box) if layout == "hub" else box.model("it's one")
    words = ["--loaders", "1,2"]
    if layout == "found":  # no run tells the names of the files: they are looked for
        words += ["--methods", "recipe,vmtouch,warm"]
    if layout == "file":
        path = next(name for name in files_below(path) if name.endswith(".safetensors"))
    report = measured(box, path, *words)
    files = files_below(box.path("blobs") if layout == "hub" else path) if layout != "file" else [path]
    size = sum(os.path.getsize(one) for one in files)
    Path(files[0]).read_bytes()  # pages there are before the first line
    said = typed(box, told_apart(commands(report)))
    start, *lines = said.split(MARK)
    assert f"{len(files)} files, {size} bytes\n" in start
    assert start.endswith("0 bytes resident\n")
    used = {re.sub(r"\W.*", "", line.removeprefix("cold; time ")) for line in lines}
    assert used >= {"by_recipe", "by_vmtouch", "by_warm"} | (
        set() if layout == "found" else {"by_read", "cold"}
    )
    for line in lines:
        what, *answers = line.splitlines()
        counted = [one for one in answers if one.endswith(" resident")]
        steps = len(what.split("; ")) - 1
        assert counted == ["0 bytes resident", *[f"{size} bytes resident"] * steps], line
        touched = [int(one.split()[0]) for one in answers if re.search(r" bytes in [\d.]+ seconds$", one)]
        loads = what.count("load ") + 2 * what.count("several ")
        assert touched == [size] * loads, line
    assert resident(*files) == size


def test_a_second_load_by_hand_finds_everything(box: Box) -> None:
    path = box.model()
    script = commands(measured(box, path, "--methods", "warm", "--loaders", "1"))
    (line,) = [line for line in script.splitlines() if line.startswith("cold; ")]
    assert line.count("time by_warm") == 2
    said = typed(box, script)
    said = said.split("0 bytes resident\n")[-1]
    assert re.findall(r"(?:, read|nothing read)", said) == [", read", "nothing read"], said


def test_a_setting_of_a_sweep_is_warmed_by_hand(box: Box) -> None:
    path = box.model(size=8 << 20, shards=2)
    words = ["--sweep", "--sweep-lanes", "2,4", "--sweep-spans", "2MiB"]
    said = typed(box, told_apart(commands(measured(box, path, *words))))
    size = sum(os.path.getsize(one) for one in files_below(path))
    plain, tuned = said.split(MARK)[1:]
    assert re.search(r"by_warm -P [24] --span 2MiB --no-adapt", tuned)
    for line in (plain, tuned):
        counted = [one for one in line.splitlines() if one.endswith(" resident")]
        assert counted == ["0 bytes resident", f"{size} bytes resident"]


def test_a_part_of_a_file_is_read_by_hand_too_and_all_of_another(box: Box) -> None:
    path = box.file("weights.bin", 64 << 20)
    results = bench_samples.realistic()
    one = replace(results.summary.storages[0], path=path, root=box.folder, files=1, part=1 << 20)
    whole = replace(one, path=box.file("other.bin", 48 << 20), part=None)
    Path(box.path("report.md")).write_text(
        markdown(replace(results, summary=replace(results.summary, storages=(one, whole)))), "utf-8"
    )
    lines = typed(box, told_apart(commands(box.folder))).split(MARK)[1:]
    half = len(lines) // 2
    assert [line.splitlines()[0] for line in lines[:half]] == [line.splitlines()[0] for line in lines[half:]]
    for at, line in enumerate(lines):
        sizes = [int(one.split()[0]) for one in line.splitlines() if one.endswith(" resident")]
        assert sizes[0] == 0
        if at < half:
            assert all(1 << 20 <= size <= 32 << 20 for size in sizes[1:]), line  # what was read ahead counts
        else:
            assert set(sizes[1:]) == {48 << 20}, line


def test_a_store_beside_a_mount_finds_its_loader(box: Box) -> None:
    results = bench_samples.realistic()
    one, _, store = results.summary.storages
    for methods, part, programs in (
        (("warm", "fetch"), None, 1),
        (("mmap-names", "fetch+mmap"), None, 1),
        (("mmap-names", "fetch+mmap"), 1 << 20, 2),
    ):
        summary = replace(results.summary, methods=methods, storages=(replace(one, part=part), store))
        Path(box.path("report.md")).write_text(markdown(replace(results, summary=summary)), "utf-8")
        script = commands(box.folder)
        assert script.count("load.py\" <<'END'") == programs
        before = script[: script.index("stager fetch")]
        assert "[:1048576]" not in before[before.rindex("load.py\" <<'END'") :]


def test_a_store_is_fetched_and_loaded_by_hand(bed: Bed) -> None:
    bed.serve(bed.box.model("source"))
    folder = bed.box.path("into")
    os.mkdir(folder)
    report = bed.box.path("report")
    words = [
        "bench",
        bed.url,
        "--into",
        folder,
        "--rounds",
        "1",
        "--loaders",
        "1",
        "--report",
        report,
        "--yes",
    ]
    done = bed.box.run(*words, "--json", "--exclude", "tok*", env=bed.oss.env())
    assert done.code == 0, str(done)
    script = commands(report)
    said = typed(bed.box, script, **bed.oss.env())
    size = done.events[-1]["storages"][0]["bytes"]
    assert re.findall(r"(\d+) bytes in [\d.]+ seconds", said) == [str(size)] * 2
    assert files_below(folder) == []


@pytest.mark.parametrize("name", ["plain", "it's", "a b\nc", "\udcff\x01'\\", "模型", "$HOME`x`"])
def test_a_word_for_bash_is_what_it_stands_for(name: str) -> None:
    word = bash_word(name)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def test_starts_of_an_engine_by_hand(box: Box) -> None:
    model = box.model("it's one")
    size = sum(os.path.getsize(path) for path in files_below(model))
    report = box.path("report")
    words = ["bench", model, "--yes", "--rounds", "1", "--report", report, "--json", "--engine"]
    command = [sys.executable, str(ROOT / "tests" / "stand_in.py"), "{}", "--say", "it is up"]
    done = box.run(*words, "--ready-log", "is [u]p", "--", *command)
    assert done.code == 0, str(done)
    said = typed(box, told_apart(commands(report)))
    lines = [line for line in said.split(MARK)[1:] if "start" in line.splitlines()[0]]
    assert [line.splitlines()[0] for line in lines] == [
        "cold; start; start",
        "cold; time by_warm; start; time by_warm; start",
    ]
    for line in lines:
        counted = [int(one.split()[0]) for one in line.splitlines() if one.endswith(" resident")]
        assert counted == [0, *[size] * (len(counted) - 1)], line


@pytest.mark.parametrize("apart", [True, False])
def test_a_loader_hears_two_lines_that_come_at_once(box: Box, apart: bool) -> None:
    path = box.file("weights.bin", 1 << 20)
    job = json.dumps({"how": "read", "files": [[path, None]]})
    command = [sys.executable, "-m", "stager.jobs.bench.loader"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as loader:
        hung = threading.Timer(20, loader.kill)
        hung.start()
        assert loader.stdin is not None
        assert loader.stdout is not None
        loader.stdin.write(f"{job}\n" if apart else f"{job}\ngo\n")
        loader.stdin.flush()
        assert "ready" in json.loads(loader.stdout.readline())
        if apart:
            loader.stdin.write("go\n")
            loader.stdin.flush()
        assert json.loads(loader.stdout.readline())["files"][0][0] == 1 << 20
        assert loader.wait(20) == 0
        hung.cancel()


@pytest.mark.parametrize("said", ["", '{"how": "read", "files": []}\n'])
def test_a_loader_says_that_its_stdin_has_ended(said: str) -> None:
    command = [sys.executable, "-m", "stager.jobs.bench.loader"]
    done = subprocess.run(command, input=said, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == 1
    assert "stdin ended" in json.loads(done.stdout.splitlines()[-1])["error"]
