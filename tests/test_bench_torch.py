"""``stager bench --to`` with the real torch and safetensors: ``STAGER_TEST_TORCH=/path/to/python scripts/test tests/test_bench_torch.py``.

Any interpreter will do that has both, whatever stager itself runs under.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.harness import MIB, Box, files_below

PYTHON = os.environ.get("STAGER_TEST_TORCH", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="set STAGER_TEST_TORCH to an interpreter that has torch")


def has_gpu() -> bool:
    """Whether that torch finds one."""
    ask = [PYTHON, "-c", "import torch; print(torch.cuda.is_available())"]
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip() == "True"


@pytest.mark.parametrize("to", ["cpu", "cuda"])
def test_the_real_loader_loads_every_tensor_and_nothing_else_is_claimed(box: Box, to: str) -> None:
    if to == "cuda" and not has_gpu():
        pytest.skip("torch finds no GPU here")
    model = box.model(size=64 * MIB)
    words = ["--methods", "read,safetensors", "--loaders", "1,2", "--rounds", "1"]
    done = box.run("bench", "--yes", "--json", model, *words, "--to", to, "--python", PYTHON, seconds=300)
    assert done.code == 0, str(done)
    weights = sum(os.path.getsize(name) for name in files_below(model) if name.endswith(".safetensors"))
    runs = [run for run in done.all("bench_run") if run["method"] == "safetensors" and not run["disturbed"]]
    assert {(run["state"], run["loaders"]) for run in runs} == {
        (state, number) for state in ("cold", "warm") for number in (1, 2)
    }
    for run in runs:
        assert not run["failed"]
        # Tensors have no headers; each file is told by its name, with the bytes of its tensors.
        assert 0.99 * weights < sum(file["bytes"] for file in run["files"]) <= weights
        assert (
            run["cpu_seconds"] <= run["loaders"] * run["seconds"] + 0.2
        )  # one thread each, and no exit of torch


def test_a_gpu_that_is_not_there_is_one_line(box: Box) -> None:
    if has_gpu():
        pytest.skip("torch has a GPU here")
    done = box.run("bench", "--yes", box.model(size=MIB), "--to", "cuda", "--python", PYTHON)
    assert done.code == 2, str(done)
    assert done.out == ""
    assert done.err.splitlines() == [
        "error: --to cuda: torch finds no GPU here",
        "hint: use --to cpu, or leave it out",
    ]
