"""``stager status``: like fincore, but honest."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.harness import MIB, STRANGER, Box, resident


def part(path: str, count: int) -> None:
    """Bring in exactly the first `count` bytes."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, count, 0)
    os.close(fd)


def test_every_file_and_the_total(box: Box) -> None:
    a, b = box.file("m/a.data", 4 * MIB), box.file("m/b.data", 4 * MIB)
    part(a, MIB)
    done = box.run("status", "--json", box.path("m"))
    assert done.code == 0
    rows = {one["path"]: one["residency"] for one in done.all("file_residency")}
    assert {name: one["resident"] for name, one in rows.items()} == {"a.data": MIB, "b.data": 0}
    total = done.event("status_total")
    assert (total["files"], total["residency"]["resident"], total["residency"]["total"]) == (2, MIB, 8 * MIB)
    assert resident(a, b) == MIB, "looking brings nothing in"
    text = box.run("status", box.path("m")).out.splitlines()
    assert text[0].split() == ["1.0", "MiB", "4.0", "MiB", "25.0%", rows["a.data"]["known"], "a.data"]
    assert "total of 2 files" in text[-1]


def test_it_says_what_fincore_says(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB + 5)
    for count in (0, 4096, 3 * MIB, 8 * MIB + 5):
        part(path, count)
        words = ["fincore", "--bytes", "--noheadings", "--output", "PAGES", path]
        pages = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        told = box.run("status", "--json", path).event("status_total")["residency"]["resident"]
        assert told == min(8 * MIB + 5, pages * 4096)


@pytest.mark.parametrize(("least", "code"), [("0%", 0), ("25%", 0), ("26%", 3), ("100%", 3)])
def test_min_resident(box: Box, least: str, code: int) -> None:
    path = box.file("weights.data", 4 * MIB)
    part(path, MIB)
    assert box.run("status", path, "--min-resident", least, "-q").code == code


@pytest.mark.root
def test_what_cannot_be_known_is_below_any_minimum(box: Box) -> None:
    box.file("m/secret.data", MIB, mode=0o600)
    path = box.file("m/open.data", MIB)
    box.warm(path)
    done = box.run("status", "--json", box.path("m"), "--min-resident", "1%", uid=STRANGER)
    assert done.code == 3
    rows = {one["path"]: one["residency"] for one in done.all("file_residency")}
    assert (rows["secret.data"]["resident"], rows["secret.data"]["known"]) == (None, "unknown")
    assert "permission" in rows["secret.data"]["why"]


def test_a_pipe_gets_every_line_however_slow_its_reader(box: Box) -> None:
    os.mkdir(box.path("m"))
    for number in range(3000):
        with open(box.path(f"m/{number:04}-{'x' * 60}.data"), "wb") as file:
            file.write(b"x")
    done = box.run("status", box.path("m"), before=["sh", "-c", '"$@" | (sleep 2; wc -l)', "sh"])
    assert int(done.out) == 3001
