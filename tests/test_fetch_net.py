"""A fetch by several processes, over several network cards, and from a store with a slow replica."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fetchbed import Bed, same, size_of, summary
from tests.harness import MIB, Box, until
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss

_CLONE_NEWNET = 0x40000000
SERVER, CARDS = "10.77.0.1", ("10.77.0.2", "10.77.0.3")


def clients(bed: Bed) -> Counter[str]:
    """How many ranges went to which address."""
    return Counter(record.client[0] for record in bed.oss.log.records(operation="GetObject", status=206))


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_the_same_files(bed: Bed, large: str, processes: int) -> None:
    bed.serve(large)
    done = bed.good("--processes", str(processes), "-P", "6", "--no-adapt")
    same(bed.dir, large)
    assert done["processes"] == processes
    assert done["lanes"] == 6
    assert done["fetched"] == size_of(large)
    assert bed.box.state == "ready"


def test_workers_share_the_rate_and_their_progress_adds_up(bed: Bed, large: str) -> None:
    bed.serve(large)
    done = bed.fetch("--json", "--processes", "2", "--max-rate", "100MiB")
    assert done.code == 0, str(done)
    assert summary(done)["seconds"] > size_of(large) / (130 * MIB)
    seen = [event["done"] for event in done.all("progress") if event["verb"] == "fetch"]
    assert len(seen) >= 2
    assert seen == sorted(seen)
    assert seen[-1] == size_of(large)


def test_the_error_of_a_worker_is_everybodys_one_line(bed: Bed, large: str) -> None:
    bed.serve(large)
    key = bed.oss.keys.new(denied={"get:r1/model-*"})
    line = bed.refused(6, "--processes", "2", env=bed.oss.env(key))
    assert "AccessDenied" in line
    assert key.secret not in line


def test_secrets_are_on_no_command_line(bed: Bed, large: str) -> None:
    bed.serve(large)
    running = bed.start("--processes", "2", "--max-rate", "60MiB")
    children = until(
        lambda: Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split(), "workers"
    )
    for pid in [str(running.pid), *children]:
        assert bed.oss.key.secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert running.finish().code == 0


def test_a_slow_replica_is_left_and_its_range_taken_over(bed: Bed, large: str) -> None:
    bed.serve(large)
    # One connection crawls for good; the others move so much that the fetch lasts long enough to see it.
    fault = bed.oss.faults.add(Fault("slow", times=1, rate=200 << 10, sticky=True, key_glob="r1/model-*"))
    done = bed.good("-P", "8", "--no-adapt", "--max-rate", "40MiB")
    assert fault.fired == 1
    assert done["replaced"] == 1
    same(bed.dir, large)


@pytest.mark.parametrize("processes", [1, 2])
def test_descriptors_do_not_grow_with_the_number_of_files(bed: Bed, processes: int) -> None:
    for number in range(600):
        bed.put(f"part-{number:03}.json", b"%d" % number * 40)
    few = ["prlimit", "--nofile=128:128", "--"]
    done = bed.fetch("--json", "--processes", str(processes), "-P", "16", before=few)
    assert done.code == 0, str(done)
    for number in range(600):
        assert Path(bed.dir, f"part-{number:03}.json").read_bytes() == b"%d" % number * 40


def in_a_network_of_its_own(body: Callable[[], None]) -> None:
    """Run `body` in a thread whose sockets and children see only a network with `SERVER` and `CARDS`."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            for words in (
                ["link", "set", "lo", "up"],
                *(["addr", "add", f"{one}/24", "dev", "lo"] for one in (SERVER, *CARDS)),
            ):
                subprocess.run(["ip", *words], check=True)
            body()
        except BaseException as exc:  # raised in the test's own thread
            failure.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


@pytest.mark.root
@pytest.mark.parametrize("processes", [1, 2])
def test_several_network_cards_are_used_in_turn(box: Box, source: str, processes: int) -> None:
    if os.geteuid():
        pytest.skip("needs root for a network namespace")

    def body() -> None:
        with Oss(host=SERVER) as oss:
            bed = Bed(box, oss)
            bed.serve(source)
            settings = (
                "--source-ip",
                ",".join(CARDS),
                "-P",
                "4",
                "--no-adapt",
                "--processes",
                str(processes),
            )
            summary(bed.fetch("--json", *settings))
            same(bed.dir, source)
            used = {record.client for record in oss.log.records(operation="GetObject", status=206)}
            assert {address for address, _ in used} == set(CARDS)
            share = Counter(address for address, _ in used)
            assert abs(share[CARDS[0]] - share[CARDS[1]]) <= 2
            line = Bed(box, oss).refused(2, "--source-ip", "10.99.0.1")
            assert "10.99.0.1" in line

    in_a_network_of_its_own(body)
