"""``stager install``: a program that is there whole or not at all; and what an installation without the hubs' libraries says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stager.node import installed
from tests.harness import ROOT, Box, environment


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
    assert len(os.listdir(there)) == 3
    assert (there / "other").exists()


def test_a_copy_that_fails_changes_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    installed.install(str(bundle), str(there))
    before = sorted(os.listdir(there))
    (bundle / "lib" / "word").write_text("another")
    copy = shutil.copytree

    def half(*args: object, **options: object) -> None:
        copy(*args, **options)  # type: ignore[arg-type]
        assert says(there) == "one", "the name must not move before all is there"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", half)
    with pytest.raises(OSError, match="No space left"):
        installed.install(str(bundle), str(there))
    assert (sorted(os.listdir(there)), says(there)) == (before, "one")


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
