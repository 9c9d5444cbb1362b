"""A fetch that is killed goes on where it was, and believes nothing that is not on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.fetchbed import RANGE, Bed, read_manifest, same, size_of, summary
from tests.harness import MIB, Running, until
from tests.osslab.log import Record

LANES = 4


def children_of(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(one) for one in text.split()]


def gone(pids: list[int]) -> bool:
    """Whether all have ended; a corpse that init has yet to collect counts."""
    return all(_state(pid) in "ZX" for pid in pids)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def written(bed: Bed) -> int:
    """Bytes of ranges that the journal has."""
    try:
        lines = Path(bed.dir, ".stager", "fetch.journal").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(json.loads(line)[4] for line in lines if line.startswith('["done"') and line.endswith("]"))


def start(bed: Bed, processes: int) -> Running:
    return bed.start("-P", str(LANES), "--no-adapt", "--processes", str(processes), "--max-rate", "250MiB")


def kill_at(running: Running, bed: Bed, threshold: int) -> bool:
    """Kill -9 once the server has sent so many bytes of weights; False when the fetch was through before."""

    def reached(records: list[Record]) -> bool:
        sent = sum(record.bytes_sent for record in records if record.key.endswith(".safetensors"))
        return sent > threshold or running.process.poll() is not None

    bed.oss.log.wait(reached)
    workers = children_of(running.pid)
    running.signal(signal.SIGKILL)
    code = running.process.wait(10)
    until(lambda: gone(workers), "the end of the workers", 10)
    if code != -signal.SIGKILL:
        assert code == 0, running.err
        return False
    assert not bed.box.ready()
    return True


def served(bed: Bed) -> list[tuple[str, int, int]]:
    """(object, begin, end) of each range that a connection has behind it: its lane has asked for another one since."""
    last: dict[int, Record] = {}
    found = []
    for record in bed.oss.log.records(operation="GetObject", key="*.safetensors", status=206):
        if (before := last.get(record.connection)) is not None:
            found.append(before)
        last[record.connection] = record
    ranges = [(one.key.removeprefix("r1/"), *map(int, str(one.range)[6:].split("-"))) for one in found]
    return [(path, begin, last + 1) for path, begin, last in ranges]


def noted(bed: Bed) -> tuple[dict[tuple[str, int], int], set[str]]:
    """What the journal has: lengths of pieces by path and offset, and the paths of whole files."""
    pieces: dict[tuple[str, int], int] = {}
    whole = set()
    for line in Path(bed.dir, ".stager", "fetch.journal").read_text().splitlines():
        with contextlib.suppress(ValueError):  # the last line, cut by the kill
            kind, path, *rest = json.loads(line)
            if kind == "begun":
                pieces = {key: length for key, length in pieces.items() if key[0] != path}
            elif kind == "done":
                pieces[path, rest[1]] = rest[2]
            else:
                whole.add(path)
    return pieces, whole


def is_noted(path: str, begin: int, end: int, pieces: dict[tuple[str, int], int]) -> bool:
    """Whether `pieces` in a row cover these bytes."""
    while begin < end and (path, begin) in pieces:
        begin += pieces[path, begin]
    return begin >= end


def known_bytes(bed: Bed, source: str) -> int:
    """Bytes that the journal has, in pieces and in whole files."""
    pieces, whole = noted(bed)
    part = sum(length for (path, _), length in pieces.items() if path not in whole)
    return part + sum(os.path.getsize(os.path.join(source, path)) for path in whole)


@pytest.mark.parametrize(("processes", "kills"), [(1, 20), (2, 8)])
def test_killed_at_random_moments_it_ends_byte_identical(
    bed: Bed, large: str, processes: int, kills: int
) -> None:
    bed.serve(large)
    dice = random.Random(processes)
    sent = killed = finished = 0
    begun = 1
    while killed < kills:
        bed.forget()
        running = bed.start("-P", "2", "--no-adapt", "--processes", str(processes), "--max-rate", "100MiB")
        if not kill_at(
            running, bed, dice.randrange(5 * RANGE // 2)
        ):  # this machine was too slow to kill it in time
            assert begun < 4, "fetches are over before they can be killed"
            begun += 1
            sent += bed.sent
            shutil.rmtree(bed.dir)
            continue
        killed += 1
        sent += bed.sent
        behind = served(bed)
        finished += len(behind)
        if processes == 1:  # a worker's word may be on its way when both are killed
            pieces, whole = noted(bed)
            lost = [one for one in behind if one[0] not in whole and not is_noted(*one, pieces)]
            assert not lost, "a range was complete, and the journal does not have it"
    known = known_bytes(bed, large)
    assert finished, "no kill came late enough to tell"
    assert known >= 2 * RANGE or begun > 1, "nothing was left to go on from"
    bed.forget()
    done = summary(bed.fetch("--json", "-P", "2", "--processes", str(processes)))
    assert done["complete"]
    assert done["fetched"] == size_of(large) - known
    same(bed.dir, large)
    assert read_manifest(bed.dir)["state"] == "complete"
    # Each kill costs at most the range that each lane had in hand.
    assert sent + bed.sent <= 1.05 * begun * size_of(large) + killed * 2 * RANGE


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
    known, (pieces, whole) = known_bytes(bed, large), noted(bed)
    damaged = {path: offset for path, offset in sorted(pieces, reverse=True) if path not in whole}
    assert damaged
    for path, offset in damaged.items():  # journalled, and not written: what a power cut leaves
        with open(os.path.join(bed.dir, f"{path}.part"), "r+b") as file:
            file.seek(offset + 4096)
            file.write(bytes(4096))
    done = summary(bed.fetch("--json"))
    again = sum(pieces[path, offset] for path, offset in damaged.items())
    assert done["fetched"] == size_of(large) - known + again
    assert done["mended"] == 0, "noticed at once, and not by the checksum of the whole file"
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
