"""A fetch that is killed goes on where it was, and believes nothing that is not on the disk."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.fetchbed import RANGE, Bed, read_manifest, same, size_of, summary
from tests.harness import MIB, Running, until

LANES = 4
KILLS = 20


def children_of(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(one) for one in text.split()]


def gone(pids: list[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def written(bed: Bed) -> int:
    """Bytes of ranges that the journal has."""
    try:
        lines = Path(bed.dir, ".stager", "fetch.journal").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(json.loads(line)[4] for line in lines if line.startswith('["done"') and line.endswith("]"))


def start(bed: Bed, processes: int) -> Running:
    return bed.start("-P", str(LANES), "--no-adapt", "--processes", str(processes), "--max-rate", "250MiB")


def kill_somewhere(running: Running, bed: Bed, after: float) -> None:
    """Kill -9, so many seconds after the first sign of life."""
    until(
        lambda: children_of(running.pid) or bed.sent or running.process.poll() is not None, "a sign of life"
    )
    time.sleep(after)
    workers = children_of(running.pid)
    running.signal(signal.SIGKILL)
    running.process.wait(10)
    until(lambda: gone(workers), "the end of the workers", 10)
    assert not bed.box.ready()


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_twenty_moments_it_ends_byte_identical(bed: Bed, large: str, processes: int) -> None:
    bed.serve(large)
    dice = random.Random(processes)
    for _ in range(KILLS // 2):
        kill_somewhere(start(bed, processes), bed, dice.uniform(0.0, 0.35))
    done = bed.fetch("--json", "-P", str(LANES), "--processes", str(processes))
    assert done.code == 0, str(done)
    same(bed.dir, large)
    assert read_manifest(bed.dir)["state"] == "complete"
    # Each kill loses at most the range that each lane had in hand, and what the kernels hold of it.
    assert bed.sent <= 1.05 * size_of(large) + KILLS // 2 * LANES * RANGE


def test_what_was_fetched_is_not_fetched_again(bed: Bed, large: str) -> None:
    bed.serve(large)
    running = start(bed, 1)
    until(lambda: written(bed) >= 5 * RANGE, "five ranges")
    running.signal(signal.SIGKILL)
    running.process.wait(10)
    known = written(bed)
    bed.forget()
    done = summary(bed.fetch("--json"))
    assert done["resumed"] + done["already"] == known
    assert done["fetched"] == size_of(large) - known
    assert bed.sent <= size_of(large) - known + MIB  # and the index, to judge by
    same(bed.dir, large)


def test_a_range_that_did_not_reach_the_disk_is_noticed(bed: Bed, large: str) -> None:
    bed.serve(large)
    running = start(bed, 1)
    until(lambda: written(bed) >= 4 * RANGE, "four ranges")
    running.signal(signal.SIGKILL)
    running.process.wait(10)
    parts = list(Path(bed.dir).rglob("*.part"))
    assert parts
    for path in parts:
        with open(path, "r+b") as file:  # the journal was written, the data was not: what a power cut leaves
            file.write(bytes(64))
    done = bed.fetch("--json")
    assert done.code == 0, str(done)
    same(bed.dir, large)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_keeps_what_is_here_and_leaves_nobody_behind(bed: Bed, large: str, processes: int) -> None:
    bed.serve(large)
    running = start(bed, processes)
    until(lambda: written(bed) >= 3 * RANGE, "three ranges")
    workers = children_of(running.pid)
    assert len(workers) == (processes if processes > 1 else 0)
    done = running.stop(signal.SIGTERM, within=4)
    assert done.code == 143, str(done)
    assert "Fatal" not in done.err
    assert "run it again to go on" in done.out
    assert gone(workers)
    assert bed.box.state == "failed"
    assert read_manifest(bed.dir)["state"] == "updating"
    assert bed.box.run("warm", bed.dir).code in (7, 8)  # 7: nothing has its name yet
    again = summary(bed.fetch("--json"))
    assert again["resumed"] > 0
    same(bed.dir, large)


def test_a_worker_that_is_killed_ends_the_fetch_and_the_next_goes_on(bed: Bed, large: str) -> None:
    bed.serve(large)
    running = start(bed, 2)
    until(lambda: written(bed) >= 2 * RANGE, "two ranges")
    workers = children_of(running.pid)
    os.kill(workers[0], signal.SIGKILL)
    done = running.finish()
    assert done.code == 4, str(done)
    assert "signal 9" in done.err
    assert "Traceback" not in done.err
    assert gone(workers)
    assert not bed.box.ready()
    assert bed.fetch().code == 0
    same(bed.dir, large)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_in_mid_range_keeps_what_was_written(bed: Bed, large: str, processes: int) -> None:
    bed.serve(large)
    rate = str(12 * MIB * processes)
    running = bed.start("-P", "2", "--no-adapt", "--processes", str(processes), "--max-rate", rate)
    until(lambda: written(bed) >= 8 * MIB, "two pieces")
    workers = children_of(running.pid)
    running.signal(signal.SIGKILL)
    running.process.wait(10)
    until(lambda: gone(workers), "the end of the workers", 10)
    known = written(bed)
    lines = Path(bed.dir, ".stager", "fetch.journal").read_text().splitlines()
    pieces = [json.loads(line)[4] for line in lines if line.startswith('["done"') and line.endswith("]")]
    assert max(pieces) < RANGE / 2
    done = summary(bed.fetch("--json"))
    assert done["resumed"] + done["already"] == known
    same(bed.dir, large)
