"""That a run of ``stager bench`` was what its line says: it read what it is about, and its pages came from where they should."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.harness import MIB, Box, environment, files_below
from tests.test_bench_cmd import cell, good

ONE = ("--loaders", "1", "--rounds", "1")


def hub_cache(box: Box, size: int = 8 * MIB) -> str:
    """A model in the layout of a hub's cache: a folder of symlinks to blobs without an ending; gives the folder."""
    model = box.model("blobs", size=size)
    os.makedirs(box.path("snapshots", "abc"))
    for index, path in enumerate(files_below(model)):
        blob = box.path("blobs", f"{index:064x}")
        os.rename(path, blob)
        os.symlink(
            os.path.relpath(blob, box.path("snapshots", "abc")),
            box.path("snapshots", "abc", os.path.basename(path)),
        )
    return box.path("snapshots", "abc")


# Every method reads


@pytest.mark.skipif(shutil.which("vmtouch") is None, reason="vmtouch is not installed")
def test_every_method_reads_what_symlinks_lead_to(box: Box) -> None:
    model = hub_cache(box)
    done = good(box, model, "--methods", "read,mmap-names,recipe,vmtouch,warm", *ONE)
    size = sum(os.path.getsize(path) for path in files_below(model))
    for one in done.all("bench_cell"):
        assert (one["rounds"], one["bytes"], one["disturbed"]) == (1, size, 0), str(done)


def shim(box: Box, name: str, script: str) -> dict[str, str]:
    """An environment in which the program `name` is `script`."""
    path = Path(box.path("bin"), name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}{os.pathsep}{environment()['PATH']}"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo '  Touched Pages: 0 (0)'; echo 'WARNING: not following it' >&2", "not following it"),
        ("echo '  Touched Pages: 3 (12K)'", "it touched 12.0 KiB of "),
    ],
)
def test_a_vmtouch_that_skips_files_has_failed_cold_and_again(box: Box, script: str, said: str) -> None:
    model = box.model(size=4 * MIB)
    done = good(box, model, "--methods", "read,vmtouch", *ONE, env=shim(box, "vmtouch", script))
    for state in ("cold", "warm"):
        one = cell(done, "vmtouch", state)
        assert (one["seconds"], one["failed"], one["disturbed"]) == (None, 1, 0)
        assert said in one["unmeasured"]
