"""Before ``stager bench`` evicts anything: what it will not write into, and methods that are for none of the storages."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from stager.core.errors import UsageError
from stager.jobs.bench.paths import keep_out
from tests.harness import MIB, Box, Done, files_below, resident

STORE = "oss://bucket/model"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with one file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.gguf").write_bytes(b"GGUF")
    return folder


def refused(paths: list[str], report: Path | None = None, into: Path | None = None) -> UsageError:
    with pytest.raises(UsageError, match="which is only read") as caught:
        keep_out(paths, report and str(report), into and str(into))
    return caught.value


def test_a_storage_is_not_written_into(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    for report in (model, model / "report", model / "not" / "yet", tmp_path / "link" / "report"):
        assert refused([STORE, str(model)], report).hint == "give `--report` another folder"
    assert refused([str(tmp_path / "link")], model / "report")
    assert refused([str(model), STORE], into=model).hint == "give `--into` another folder"
    keep_out([str(model), STORE], str(tmp_path / "model-report"), str(tmp_path))
    keep_out([str(model)], None, str(model))  # nothing is fetched
    keep_out(
        [str(tmp_path / "gone" / "gone")], str(tmp_path / "nor" / "this"), None
    )  # that it is not there is said elsewhere
    assert os.listdir(model) == ["weights.gguf"]


def test_nothing_is_put_beside_a_file(model: Path, tmp_path: Path) -> None:
    file = str(model / "weights.gguf")
    assert f"lies beside {file}" in refused([file], model).message
    keep_out([file], str(model / "report"), None)  # a folder of its own


def test_temporary_files_are_put_elsewhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(model))
    assert refused([str(model)]).hint == "set TMPDIR to another folder"


def test_a_bind_mount_is_no_way_around(model: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", str(model), str(other)], check=True)
    try:
        assert refused([str(model)], other / "report")
        assert refused([str(other)], model / "report")
    finally:
        subprocess.run(["umount", str(other)], check=True)


def _warmed(box: Box) -> tuple[str, str]:
    """(a model that is warm, a marker that says so)."""
    folder, marker = box.model(size=MIB), box.path("mk.json")
    assert box.run("warm", folder, "--marker", marker).code == 0
    return folder, marker


def _untouched(done: Done, folder: str, marker: str, code: int = 2) -> None:
    assert done.code == code, str(done)
    assert all(resident(path) == os.path.getsize(path) for path in files_below(folder))
    assert json.loads(Path(marker).read_text())["state"] == "ready"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--methods", "fetch"], 2, "none of them is for these storages"),
        (["--methods", "safetensors"], 2, "needs --to"),
        (["--report", "MODEL/report"], 2, "which is only read"),
        (["--counter", "/nowhere"], 7, "/nowhere"),
    ],
)
def test_what_is_refused_evicts_nothing(box: Box, words: list[str], code: int, text: str) -> None:
    folder, marker = _warmed(box)
    words = [word.replace("MODEL", folder) for word in words]
    done = box.run("bench", folder, "--yes", "--marker", marker, *words)
    assert text in done.err
    _untouched(done, folder, marker, code)


def test_without_a_way_to_keep_temporary_files_off_the_storage_nothing_is_evicted(box: Box) -> None:
    folder, marker = _warmed(box)
    before = sorted(os.listdir(folder))
    done = box.run("bench", folder, "--yes", "--marker", marker, env={"TMPDIR": folder})
    _untouched(done, folder, marker)
    assert sorted(os.listdir(folder)) == before
