"""scripts/bench-warm at tiny sizes: it runs, proves cold starts, counts children, and names what it cannot measure."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench import contest, data, machine, process, rivals, rows, survival, table  # noqa: E402

MIB = 1 << 20


@pytest.fixture
def small(disk: Path) -> list[str]:
    return data.weights(str(disk / "w"), 2, 2 * MIB)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on the checkout's filesystem: /tmp may be a tmpfs, where nothing is ever cold."""
    (ROOT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as name:
        yield Path(name)


def own_stager(folder: Path) -> str:
    """The checkout's stager as a command of this very interpreter, as a console script is."""
    path = folder / "stager"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom stager.cli import main\nmain()\n"
    )
    path.chmod(0o755)
    return str(path)


def test_quick_run_prints_the_table(disk: Path) -> None:
    only = "eight,protect,recycled,rivals,resident,memory,start" + (
        ",survival" if not survival.possible() else ""
    )
    result = subprocess.run(
        [SCRIPTS / "bench-warm", "--quick", "--dir", disk / "d", "--only", only, "--json", disk / "j"],
        env={**os.environ, "STAGER": own_stager(disk)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode in (0, 1), result.stderr
    assert "not measured" not in result.stdout, result.stdout + result.stderr
    for words in ("8 x 64 MiB", "one-pass recipe", "RssAnon", "stager ready", "WARNING: --quick", "kernel: "):
        assert words in result.stdout
    found = json.loads((disk / "j").read_text())
    assert all(len(pair) == 2 for one in found["pairs"] for pair in one["rounds"])
    assert not list(Path("/sys/fs/cgroup").glob("**/bench-warm-*"))


@pytest.mark.parametrize("given", [["--only", "nine"], ["--rounds", "0"]])
def test_usage_errors(given: list[str]) -> None:
    result = subprocess.run([SCRIPTS / "bench-warm", *given], capture_output=True, text=True)
    assert result.returncode == 2
    assert "error:" in result.stderr


def test_files_have_the_size_and_a_valid_header(small: list[str]) -> None:
    for path in small:
        raw = Path(path).read_bytes()
        assert len(raw) == 2 * MIB
        length = int.from_bytes(raw[:8], "little")
        assert json.loads(raw[8 : 8 + length])["w"]["data_offsets"][1] == 2 * MIB - 8 - length


def test_evict_proves_that_nothing_is_resident(small: list[str]) -> None:
    Path(small[0]).read_bytes()
    assert data.resident(small[0]) == 2 * MIB
    data.evict(small)
    assert data.resident_sum(small) == 0


def test_evict_refuses_a_file_whose_pages_stay(small: list[str]) -> None:
    with open(small[0], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) >= 0
        with pytest.raises(data.Stop, match="stay in the page cache"):
            data.evict(small)


@pytest.mark.root
def test_a_stranger_is_not_believed(small: list[str]) -> None:
    os.chown(small[0], 12345, 12345)
    with pytest.raises(data.Stop, match="another user"):
        data.resident(small[0])


def test_cpu_of_children_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    done = process.run(["sh", "-c", f'{sys.executable} -c "{burn}" & {sys.executable} -c "{burn}"; wait'])
    assert done.cpu >= 0.6


def test_a_run_that_takes_too_long_is_ended_with_its_children(disk: Path) -> None:
    began = time.monotonic()
    with pytest.raises(data.Stop, match="longer than"):
        process.run(["sh", "-c", f"(sleep 2; touch {disk}/alive) & wait"], timeout=0.2)
    assert time.monotonic() - began < 1.5
    time.sleep(2.2)
    assert not (disk / "alive").exists()


def test_a_failing_run_stops_the_benchmark() -> None:
    with pytest.raises(data.Stop, match="ended with 3:\nwhy"):
        process.run(["sh", "-c", "echo why; exit 3"])


def test_disturbed_runs_are_thrown_away(
    small: list[str], monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    drops = iter([0, 1, 1, 1])
    monkeypatch.setattr(machine, "cache_drops", lambda: next(drops))
    ring = contest.Contest(str(disk), "stager", 1, True, 0, lambda _: None)
    done = ring.once(rivals.ONE_PASS, small)
    assert ring.disturbed == 1
    assert done.code == 0


def test_rounds_alternate(small: list[str], monkeypatch: pytest.MonkeyPatch, disk: Path) -> None:
    ring = contest.Contest(str(disk), "stager", 3, True, 0, lambda _: None)
    order = []

    def once(name: str, paths: list[str], memory: str) -> process.Run:
        order.append(name)
        return process.Run(1.0, 1.0, 0, 0, "", "", 0.0)

    monkeypatch.setattr(ring, "once", once)
    assert len(ring.pair("a", "b", small)) == 3
    assert "".join(order) == "ba" + "ab" + "ba"


def test_fio_sections_share_every_byte_once(small: list[str]) -> None:
    for setting in rivals.SETTINGS:
        text = setting.file(data.weights(os.path.dirname(small[0]), 8, MIB))
        sizes = [int(line.split("=")[1]) for line in text.splitlines() if line.startswith("size=")]
        assert sum(sizes) == 8 * MIB
        one = setting.file(small[:1]).splitlines()
        assert sum(int(line.split("=")[1]) for line in one if line.startswith("size=")) == MIB


def test_the_fastest_setting_is_measured_again() -> None:
    times = {"a": [3.0], "b": [1.0, 9.0, 9.0], "c": [2.0, 2.0, 2.0], "d": [2.5, 2.6, 2.7]}
    best, medians = rivals.fastest(list(times), lambda name: times[name].pop(0))
    assert best == "c"
    assert medians["b"] == 9.0


def test_ratios_are_of_the_rounds() -> None:
    def run(wall: float) -> process.Run:
        return process.Run(wall, 1.0, 0, 0, "", "", 0.0)

    rounds = [(run(1.0), run(2.0)), (run(10.0), run(30.0)), (run(1.0), run(1.0))]
    assert contest.ratio(rounds, lambda one: one.wall) == 2.0


def test_verdicts_in_the_table() -> None:
    given = [rows.Row("w", "r", "1", "2", "2x", ">= 1x", passed) for passed in (True, False, None)]
    last = [line.split("|")[-2].strip() for line in table.markdown(given).splitlines()[2:]]
    assert last == ["pass", "FAIL", ""]
