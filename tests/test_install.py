"""``stager install``: a program that is there whole or not at all; and what an installation without the hubs' libraries says."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stager.node import installed
from tests.harness import ROOT, Box, environment, mounted, until


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A program that says one word, and a file beside it that it could not do without."""
    folder = tmp_path / "bundle"
    (folder / "lib").mkdir(parents=True)
    (folder / "stager").write_text('#!/bin/sh\ncat "$(dirname "$(readlink -f "$0")")/lib/word"\n')
    (folder / "stager").chmod(0o755)
    (folder / "lib" / "word").write_text("one")
    (folder / "lib" / "link").symlink_to("word")
    return folder


def says(folder: Path) -> str:
    return subprocess.run([folder / "stager"], capture_output=True, text=True, check=True).stdout


def test_the_program_runs_from_there_and_is_copied_once(box: Box, bundle: Path, tmp_path: Path) -> None:
    there = tmp_path / "volume" / "stager"
    setting = {"STAGER_BUNDLE": str(bundle)}
    done = box.run("install", str(there), env=setting)
    assert (done.code, says(there)) == (0, "one")
    before = os.readlink(there / "stager")
    again = box.run("install", str(there), env=setting)
    assert again.code == 0
    assert "is there already" in again.err + again.out
    assert os.readlink(there / "stager") == before


def test_another_build_takes_its_place_in_one_step_and_leftovers_go(bundle: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert installed.install(str(bundle), str(there))
    (there / ".stager-half").mkdir()  # as a killed one leaves it
    (there / ".stager-half.name").symlink_to("nowhere")
    (there / "other").write_text("not ours")
    (bundle / "lib" / "word").write_text("another")
    assert installed.install(str(bundle), str(there))
    assert says(there) == "another"
    (before,) = {path.name for path in there.glob(".stager-*")} - {
        os.readlink(there / "stager").split("/")[0]
    }
    assert (there / before / "lib" / "word").read_text() == "one", "somebody may run it still"
    assert len(os.listdir(there)) == 4
    assert (there / "other").exists()
    (bundle / "lib" / "word").write_text("the third one")
    assert installed.install(str(bundle), str(there))
    assert (len(os.listdir(there)), before in os.listdir(there), says(there)) == (4, False, "the third one")
    assert not installed.install(str(bundle), str(there))
    (before,) = (at for at in there.glob(".stager-*") if (at / "lib" / "word").read_text() == "another")
    assert installed.install(str(before), str(there)), "from a copy that is no longer the last"
    assert (len(os.listdir(there)), says(there)) == (5, "another"), (
        "three copies: that one, the last, the new"
    )


def test_several_at_once_leave_one_that_runs(box: Box, bundle: Path, tmp_path: Path) -> None:
    """Two that hold their copies while a third has to wait: none takes away what another has just made."""
    there = tmp_path / "there"
    for number in range(300):
        (bundle / "lib" / f"{number}").write_text("x")
    running = [box.start("install", str(there), env={"STAGER_BUNDLE": str(bundle)}) for _ in range(4)]
    dones = [one.finish() for one in running]
    assert [done.code for done in dones] == [0, 0, 0, 0], "\n".join(map(str, dones))
    assert says(there) == "one"
    assert sum("is there already" in done.out + done.err for done in dones) == 3
    assert len(os.listdir(there)) == 2


def test_it_waits_for_another_one(box: Box, bundle: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / ".stager-under-way").mkdir(parents=True)
    fd = os.open(there, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    running = box.start("install", str(there), env={"STAGER_BUNDLE": str(bundle)})
    until(lambda: _waits_for_a_lock(running.pid), "a wait for the lock")
    assert os.listdir(there) == [".stager-under-way"]
    os.close(fd)
    assert running.finish().code == 0
    assert says(there) == "one"


def _waits_for_a_lock(pid: int) -> bool:
    return any(
        line.split()[1:3] == ["->", "FLOCK"] and line.split()[5] == str(pid)
        for line in Path("/proc/locks").read_text().splitlines()
    )


@pytest.mark.root
def test_a_full_volume_is_one_line_and_changes_nothing(box: Box, bundle: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    setting = {"STAGER_BUNDLE": str(bundle)}
    with mounted("tmpfs", "none", str(there), "size=128k"):
        assert box.run("install", str(there), env=setting).code == 0
        before = sorted(os.listdir(there))
        for number in range(3):
            (bundle / f"{number}").write_bytes(b"x" * 100_000)
        done = box.run("install", str(there), env=setting)
        assert (done.code, done.out) == (9, ""), str(done)
        error, hint = done.err.splitlines()
        assert error == f"error: cannot install into `{there}`: no space left on device (ENOSPC)"
        assert hint.startswith("hint: the program takes 29")
        assert (sorted(os.listdir(there)), says(there)) == (before, "one")


def test_where_a_folder_has_the_programs_name(box: Box, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "there" / "stager").mkdir(parents=True)
    done = box.run("install", str(tmp_path / "there"), env={"STAGER_BUNDLE": str(bundle)})
    assert (done.code, f"`{tmp_path}/there/stager` is a folder" in done.err) == (9, True), str(done)
    assert os.listdir(tmp_path / "there") == ["stager"]


@pytest.mark.parametrize("name", ["", "lib"])
def test_the_programs_own_folder_is_no_place_for_it(box: Box, bundle: Path, name: str) -> None:
    done = box.run("install", str(bundle / name), env={"STAGER_BUNDLE": str(bundle)})
    assert (done.code, "holds the program" in done.err) == (2, True), str(done)
    assert sorted(os.listdir(bundle)) == ["lib", "stager"]


def test_without_a_program_to_copy_the_error_names_the_place(box: Box, tmp_path: Path) -> None:
    done = box.run("install", str(tmp_path / "there"), env={"STAGER_BUNDLE": str(tmp_path)})
    assert done.code == 7
    assert str(tmp_path) in done.err
    assert "hint:" in done.err
    assert not (tmp_path / "there").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_error(box: Box, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = box.run("install", str(tmp_path / "file" / "x"), env={"STAGER_BUNDLE": str(bundle)})
    assert done.code == 7
    assert done.err.startswith(f"error: cannot install into `{tmp_path}/file/x`")


def test_a_library_that_was_left_out_is_named_with_the_image_that_has_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class LeftOut:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('modelscope', 'modelscope_hub'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, LeftOut())\n"
        "from stager.cli import main\n"
        "main()\n"
    )
    dest = tmp_path / "dest"
    done = subprocess.run(
        [sys.executable, "-c", script, "pull", "owner/model", str(dest)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 2, done.stderr
    assert "needs the library modelscope" in done.stderr
    assert "hint: the image stager:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not dest.exists()
