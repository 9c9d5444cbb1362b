"""Pages brought in with --protect outlive a stream of reads on this very kernel, whichever LRU it runs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_bench_script import ROOT, data, survival

MIB = 1 << 20
COMMAND = [
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from stager.cli import main; main()",
]


@pytest.fixture
def disk() -> Iterator[Path]:
    (ROOT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as name:
        yield Path(name)


@pytest.mark.root
def test_protected_pages_survive(disk: Path) -> None:
    if why := survival.possible():
        pytest.skip(why)
    kept = data.weights(str(disk / "kept"), 1, 192 * MIB)
    stream = data.sparse(str(disk / "stream"), 1, 3072 * MIB)
    argv = [
        *COMMAND,
        "warm",
        os.path.dirname(kept[0]),
        "--protect",
        "--reserve",
        "0",
        "--marker",
        str(disk / "m"),
    ]
    after, left = survival.survivors(argv, kept, stream, 768 * MIB)
    assert after == 192 * MIB
    assert left >= 180 * MIB
