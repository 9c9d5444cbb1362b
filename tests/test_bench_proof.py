"""That a run of ``stager bench`` was what its line says: it read what it is about, and its pages came from where they should."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.bench import evidence
from stager.core.bench.evidence import Usage
from stager.core.bench.plan import WARM_MMAP, Trial
from stager.core.bench.reports import COLD, WARM
from stager.jobs.bench.ground import look_at
from stager.jobs.bench.methods import Disturbed, Took
from stager.jobs.bench.proof import Proof, within
from stager.jobs.options import Selection
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, Box, Done, cold, environment, files_below
from tests.test_bench_cmd import bench, cell, good

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


# Pages that come or go while a run is made: stand-ins of torch and safetensors bring them in or drop them, each at its own moment

TORCH = """
import os
def files():
    return [os.path.join(at, name) for at, _, names in os.walk(os.environ["BENCH_MODEL"]) for name in names]
def drop(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
def bring(path):
    os.system(f"cat '{path}' > /dev/null")
for path in files():
    {at_import}
class zeros:
    def __init__(self, count, device): pass
    def clone(self): pass
def set_num_threads(count): pass
"""
SAFETENSORS = """
from torch import bring, drop
class Tensor:
    def __init__(self, size): self.size = size
    def clone(self): return self
    def numel(self): return self.size
    def element_size(self): return 1
class safe_open:
    def __init__(self, path, framework, device):
        {before_reading}
        with open(path, "rb", 0) as file:
            self.size = sum(iter(lambda: len(file.read(1 << 20)), 0))
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def keys(self): return ["all"]
    def get_tensor(self, name): return Tensor(self.size)
"""


def loaded_by_others(box: Box, model: str, *, at_import: str = "pass", before_reading: str = "pass") -> Done:
    """A benchmark of safetensors' own loader, for which stand-ins do that in the middle."""
    Path(box.path("torch.py")).write_text(TORCH.replace("{at_import}", at_import))
    Path(box.path("safetensors.py")).write_text(SAFETENSORS.replace("{before_reading}", before_reading))
    path = os.pathsep.join([box.folder, environment()["PYTHONPATH"]])
    words = [model, "--methods", "safetensors", "--to", "cpu", *ONE]
    return bench(box, *words, env={"PYTHONPATH": path, "BENCH_MODEL": model})


def thrown_away(done: Done, method: str, state: str, because: str) -> None:
    one = cell(done, method, state)
    assert (one["seconds"], one["rounds"], one["disturbed"]) == (None, 0, 3), str(done)
    assert because in one["unmeasured"], str(done)


def counts(done: Done, method: str, state: str) -> dict[str, object]:
    """The only run of a cell."""
    one = cell(done, method, state)
    assert (one["rounds"], one["disturbed"]) == (1, 0), str(done)
    return next(run for run in done.all("bench_run") if run["run"] == one["runs"][0])


def test_pages_that_come_while_loaders_start_make_no_cold_run(box: Box) -> None:
    done = loaded_by_others(box, box.model(), at_import="bring(path)")
    thrown_away(
        done, "safetensors", "cold", "are resident again when it is to begin: somebody else reads them"
    )
    counts(done, "safetensors", "warm")


def test_pages_that_go_while_loaders_start_are_read_before_a_second_load(box: Box) -> None:
    done = loaded_by_others(box, box.model(), at_import="drop(path)")
    run = counts(done, "safetensors", "warm")
    assert run["resident_before"] == run["bytes"]
    assert run["charged_bytes"] == 0


def test_a_second_load_whose_pages_go_in_the_middle_is_thrown_away(box: Box) -> None:
    done = loaded_by_others(box, box.model(), before_reading="drop(path)")
    first = counts(done, "safetensors", "cold")
    assert first["charged_bytes"] >= first["bytes"]  # type: ignore[operator]
    thrown_away(done, "safetensors", "warm", "had to be read from below: pages were dropped meanwhile")


def test_a_cold_run_for_which_somebody_else_reads_is_thrown_away(box: Box) -> None:
    done = loaded_by_others(box, box.model(), before_reading="bring(path)")
    thrown_away(done, "safetensors", "cold", "somebody else brought the rest in meanwhile")
    counts(done, "safetensors", "warm")


@pytest.mark.root
def test_where_nobody_is_charged_the_pages_are_counted_while_it_runs(
    box: Box, fuse_mount: MountFactory
) -> None:
    mount = fuse_mount(source=box.model(size=48 * MIB), keep_cache="always", latency=1)
    done = loaded_by_others(box, mount.path, before_reading="drop(path)")
    thrown_away(done, "safetensors", "warm", "were not resident while it ran")
    quiet = loaded_by_others(box, mount.path)
    first, again = (counts(quiet, "safetensors", state) for state in ("cold", "warm"))
    assert (first["charged_bytes"], first["resident_least"]) == (0, None)
    assert again["resident_least"] == again["bytes"]
    drop = f'dd if="$1" iflag=nocache count=0 2>/dev/null; exec {shutil.which("cat")} "$1"'
    words = [mount.path, "--methods", "recipe", *ONE]
    thrown_away(bench(box, *words, env=shim(box, "cat", drop)), "recipe", "warm", "not resident while it ran")


def test_a_recipe_whose_pages_go_between_its_two_reads_is_thrown_away(box: Box) -> None:
    cat = shutil.which("cat")
    model = box.model()
    drop = f'dd if="$1" iflag=nocache count=0 2>/dev/null; exec {cat} "$1"'
    done = good(box, model, "--methods", "read,recipe", *ONE, env=shim(box, "cat", drop))
    thrown_away(done, "recipe", "cold", "pages were dropped meanwhile, and read once more")
    thrown_away(done, "recipe", "warm", "had to be read from below")
    counts(done, "read", "warm")


@pytest.mark.root
def test_a_second_warming_that_must_read_is_thrown_away(box: Box, fuse_mount: MountFactory) -> None:
    """The interpreter of `stager warm` drops the pages when it starts, or when it ends."""
    mount = fuse_mount(source=box.model(), keep_cache="always")
    for moment, method, state, because in (
        ("drop()", "warm", "warm", "had to be read: pages were dropped meanwhile"),
        ("atexit.register(drop)", "warm+mmap", "cold", "are not resident: somebody dropped them"),
    ):
        Path(box.path("sitecustomize.py")).write_text(
            "import atexit, os, time\n"
            "def drop():\n"
            "    for _ in range(5):  # a page on another processor's list is busy for a moment\n"
            "        for at, _, names in os.walk(os.environ['BENCH_MODEL']):\n"
            "            for name in names:\n"
            "                with open(os.path.join(at, name), 'rb') as file:\n"
            "                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)\n"
            "        time.sleep(0.01)\n"
            f"if b'\\0warm\\0' in open('/proc/self/cmdline', 'rb').read(): {moment}\n"
        )
        path = os.pathsep.join([box.folder, environment()["PYTHONPATH"]])
        env = {"PYTHONPATH": path, "BENCH_MODEL": mount.path}
        done = bench(box, mount.path, "--methods", method, *ONE, env=env)
        # At the end of a process its own pages may be busy still, and stay: not every try is spoilt then.
        reasons = [run["reason"] for run in done.all("bench_run") if run["disturbed"]]
        assert any(because in reason for reason in reasons), str(done)
        assert cell(done, method, state)["disturbed"] >= 1


# What is judged


@given(st.integers(1, 1 << 40))
def test_an_honest_run_is_never_thrown_away(size: int) -> None:
    """As measured: on a disk each byte is charged once, or never."""
    first, memory = Usage(1.0, size), Usage(1.0, 0)
    assert evidence.charges(first, size)
    assert not evidence.charges(memory, size)
    assert not evidence.not_from_below(first, size)
    assert not evidence.not_from_memory(memory, size, command=False)
    assert not evidence.gone_meanwhile(size - size // 100, size)
    assert not evidence.read_again(0, size)
    assert not evidence.gone(size - size // 100, size)


@given(st.integers(64 * MIB, 1 << 40), st.booleans())
def test_a_sixth_that_came_from_elsewhere_is_noticed(size: int, command: bool) -> None:
    part = size // 6
    assert evidence.gone(size - part, size)
    assert evidence.not_from_memory(Usage(charged=part), size, command=command)
    assert evidence.read_again(part, size)
    assert evidence.not_from_below(Usage(charged=size - part), size)
    assert evidence.not_from_below(Usage(charged=2 * size), size)
    assert evidence.gone_meanwhile(size - part, size)


def test_what_is_used_adds_up_and_is_never_negative() -> None:
    both = Usage(1.0, 10) + Usage(2.0, 20)
    assert both == Usage(3.0, 30)
    assert both - Usage(4.0, 1) == Usage(0.0, 29)


def test_a_run_begins_only_with_nothing_or_with_everything_resident(box: Box) -> None:
    model = box.model(size=4 * MIB)
    ground = anyio.run(look_at, model, Selection(paths=(model,)))
    read: list[int] = []
    cold(*files_below(model))  # looking at it reads the index
    Proof(ground, COLD, lambda: read.append(1), watching=False).at_start()
    with pytest.raises(Disturbed, match="not resident: somebody dropped them"):
        Proof(ground, WARM, lambda: read.append(2), watching=False).at_start()
    Path(files_below(model)[0]).read_bytes()
    with pytest.raises(Disturbed, match="are resident again"):
        Proof(ground, COLD, lambda: read.append(3), watching=False).at_start()
    assert read == [2]
    proof = Proof(
        ground, WARM, lambda: [Path(path).read_bytes() for path in files_below(model)], watching=False
    )
    proof.at_start()
    assert (proof.resident, proof.after(ground.total - ground.total // 200)) == (ground.total, "")
    assert "can no longer be counted" in proof.after(None)


def test_loaders_after_warming_must_find_what_was_warmed(box: Box) -> None:
    model = box.model(size=64 * MIB)
    ground = anyio.run(look_at, model, Selection(paths=(model,)))
    trial = Trial(0, WARM_MMAP, 1)
    once = Took(used=Usage(charged=ground.total), loading=Usage())
    assert within(ground, trial, COLD, once, charging=True) == ""
    again = Took(used=Usage(charged=ground.total + 3 * MIB), loading=Usage(charged=3 * MIB))
    assert "3.0 MiB had to be read from below" in within(ground, trial, COLD, again, charging=True)
