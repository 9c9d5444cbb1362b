"""How a benchmark drops and counts the pages of many files: several at once, each opened once, and none dropped for nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import anyio
import pytest

from stager.core.bench.plan import READ, Trial
from stager.jobs.bench import pages
from stager.jobs.bench.children import Children
from stager.jobs.bench.ground import Ground, look_at
from stager.jobs.bench.methods import Methods
from stager.jobs.bench.trial import Trials
from stager.jobs.options import Selection
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, ROOT, Box, files_below, resident


def ground_of(path: str) -> Ground:
    async def look() -> Ground:
        return await look_at(path, Selection(paths=(path,)))

    return anyio.run(look)


def test_sixteen_files_are_asked_about_at_once(box: Box) -> None:
    """None comes back before the last one is asked about."""
    for at in range(pages.AT_ONCE):
        box.file(f"m/{at:02d}.bin", 4096)
    files = ground_of(os.path.join(box.folder, "m")).files
    together = threading.Barrier(pages.AT_ONCE, timeout=60)

    def ask(file: object) -> object:
        together.wait()
        return file

    assert pages.of_each(ask, files) == list(files)


def test_the_first_error_is_raised(box: Box) -> None:
    for at in range(4):
        box.file(f"m/{at}.bin", 4096)
    found = ground_of(os.path.join(box.folder, "m"))
    os.unlink(found.files[2].path)
    for look in (found.chill, found.resident):
        with pytest.raises(FileNotFoundError):
            look()


@pytest.mark.root
def test_each_file_is_opened_once_to_be_dropped_and_counted(fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={f"{at}.bin": MIB for at in range(20)}, keep_cache="always")
    found = ground_of(mount.path)
    for path in files_below(mount.path):
        with open(path, "rb") as file:
            file.read()
    before = mount.counters()["opens"]
    assert found.resident() == 20 * MIB
    assert found.chill() == (0, "")
    assert mount.counters()["opens"] - before == 2 * 20
    assert found.resident() == 0


def test_what_begins_with_a_dash_is_a_path(box: Box) -> None:
    box.file("-t/a.bin", MIB)
    words = ["bench", "--methods", "warm", "--rounds", "1", "--yes", "--json", "--", "-t"]
    run = [sys.executable, "-m", "stager", *words]
    done = subprocess.run(
        run, cwd=box.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b'"failed":0' in done.stdout


def test_a_run_leaves_its_pages_to_the_next_one_to_drop(box: Box) -> None:
    """The next run on the same files makes them cold anyway; before anything else is read, and at the end, they are given back."""
    for name in ("one/a.bin", "one/b.bin", "two/a.bin"):
        box.file(name, MIB)
    folders = [os.path.join(box.folder, name) for name in ("one", "two")]
    grounds = [ground_of(folder) for folder in folders]
    one, two = (files_below(folder) for folder in folders)
    trials = Trials(Methods(Children(), box.folder), list(grounds), 1, lambda run: None)

    async def work() -> None:
        await trials.run(Trial(0, READ, 1), 1, states=("cold",))
        assert resident(*one) == 2 * MIB
        await trials.run(Trial(0, READ, 1), 1, states=("cold",))
        assert trials.runs[-1].resident_before == 0
        await trials.run(Trial(0, READ, 1, file="a.bin"), 1, states=("cold",))
        assert resident(*one) == MIB
        await trials.run(Trial(1, READ, 1), 1, states=("cold",))
        assert resident(*one) == 0
        assert resident(*two) == MIB
        await trials.give_back()
        assert resident(*two) == 0

    anyio.run(work)
    assert all(run.counts for run in trials.runs)
