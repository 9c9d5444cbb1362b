"""When huge pages are recommended for a tmpfs, and that the line recommended gives them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from stager.node import hugepages
from tests.harness import MIB, Box, mounted

ALL = "always within_size advise never deny force"


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's switch, as a file of this test: the node's own is everybody's."""
    if not os.path.exists(hugepages._SWITCH):
        pytest.skip("a kernel without transparent huge pages")
    path = tmp_path / "shmem_enabled"
    path.write_text(ALL.replace("never", "[never]") + "\n")
    monkeypatch.setattr(hugepages, "_SWITCH", str(path))
    return path


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "recommended"),
    [
        ("", True),
        ("huge=never", True),
        ("huge=advise", True),
        ("huge=always", False),
        ("huge=within_size", False),
        ("huge=always,size=8m,mode=700", False),
    ],
)
def test_a_tmpfs_by_its_options(tmp_path: Path, switch: Path, options: str, recommended: bool) -> None:
    point = tmp_path / "memory"
    (point / "x").mkdir(parents=True)
    with mounted("tmpfs", "none", str(point), options):
        (point / "sub").mkdir()
        for path in (point, point / "sub"):
            said = hugepages.advice(str(path))
            assert (said is not None) == recommended, said
            if said is not None:
                assert f"`mount -o remount,huge=always {point}`" in said


@pytest.mark.root
@pytest.mark.parametrize(
    ("state", "recommended"),
    [("always", True), ("advise", True), ("never", True), ("deny", False), ("force", False), ("", False)],
)
def test_the_kernels_switch_counts(tmp_path: Path, switch: Path, state: str, recommended: bool) -> None:
    point = tmp_path / "memory"
    point.mkdir()
    with mounted("tmpfs", "none", str(point)):
        switch.write_text(ALL.replace(state, f"[{state}]") if state else ALL)
        assert (hugepages.advice(str(point)) is not None) == recommended
        switch.unlink()
        assert hugepages.advice(str(point)) is None


@pytest.mark.root
def test_the_line_recommended_gives_them(tmp_path: Path, switch: Path) -> None:
    point = tmp_path / "it's a tmpfs"
    point.mkdir()
    with mounted("tmpfs", "none", str(point)):
        (point / "before").write_bytes(bytes(4 * MIB))
        said = hugepages.advice(str(point))
        assert said is not None
        subprocess.run(["sh", "-c", said.split("`")[1]], check=True)
        assert hugepages.advice(str(point)) is None
        (point / "after").write_bytes(bytes(4 * MIB))
        # stat(2) names the size of a huge page where files get them
        assert (point / "after").stat().st_blksize > (point.parent).stat().st_blksize


def test_a_disk_needs_none(box: Box) -> None:
    assert hugepages.advice(box.folder) is None
    with pytest.raises(FileNotFoundError):
        hugepages.advice(box.path("none"))
