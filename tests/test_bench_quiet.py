"""Between two cold runs on a FUSE mount the daemon is given time to end what the first has set going."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import anyio
import pytest

from stager.core.bench.counting import COUNTER
from stager.core.bench.plan import READ, Trial
from stager.core.bench.reports import BenchRun
from stager.jobs.bench.children import Children
from stager.jobs.bench.ground import look_at
from stager.jobs.bench.methods import Methods
from stager.jobs.bench.trial import Trials
from stager.jobs.options import Selection
from stager.node.counters import Counter
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, Box


def pause_between_two(folder: str, path: str, counter: Counter | None = None) -> tuple[float, float]:
    """(seconds of the first cold run of two, seconds from its end to the beginning of the second at least)."""
    ended: list[tuple[float, BenchRun]] = []

    async def work() -> None:
        ground = await look_at(path, Selection(paths=(path,)))
        if counter is not None:
            ground = replace(ground, counter=counter)
        heard = lambda run: ended.append((time.monotonic(), run))  # noqa: E731
        trials = Trials(Methods(Children(), folder), [ground], 1, heard)
        for _ in range(2):
            await trials.run(Trial(0, READ, 1), 1, states=("cold",))

    anyio.run(work)
    (first, one), (second, other) = ended
    assert one.counts
    assert other.counts
    return one.seconds, second - other.seconds - first


@pytest.mark.root
def test_as_long_as_the_last_run_took_is_waited(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.bin": 4 * MIB}, keep_cache="always", stream_rate=4 * MIB)
    took, pause = pause_between_two(box.folder, mount.path)
    assert pause >= took > 0.5


@pytest.mark.root
def test_what_counts_bytes_must_stand_still(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.bin": MIB}, keep_cache="always")
    name = os.path.join(box.folder, "bytes")
    over, still = threading.Event(), []

    def go_on() -> None:
        until, number = time.monotonic() + 3, 0
        while time.monotonic() < until:
            with open(name + ".new", "w", encoding="ascii") as file:
                file.write(str(number))
            os.replace(name + ".new", name)
            number += 1
            over.wait(0.05)
        still.append(time.monotonic())

    with open(name, "w", encoding="ascii") as file:
        file.write("0")
    daemon = threading.Thread(target=go_on)
    daemon.start()
    took, pause = pause_between_two(box.folder, mount.path, Counter(COUNTER, name))
    second_ended = time.monotonic()
    daemon.join()
    assert still[0] < second_ended
    assert pause > took
