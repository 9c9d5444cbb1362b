"""The quick climb of the first moments: where it is made, how it ends, and how small the pieces of a file may become."""

from __future__ import annotations

import pytest

from stager.core.model import Span
from stager.engine.pace import Controller
from stager.engine.ramp import Ramp
from stager.engine.supply import Supply, Worth
from stager.jobs.options import Selection, WarmOptions
from stager.jobs.reading import controller_for, step_after
from stager.node.filesystems import Traits, traits_of
from stager.node.mounts import Mount

MIB = 1 << 20
MB = 1_000_000


def traits(fstype: str) -> Traits:
    return traits_of(Mount(1, "0:1", "/", "/models", fstype, "somewhere", ""))


def lanes_after(seconds: float, controller: Controller, backlog: int = 100) -> int:
    """The lanes in force when every lane gave 60 MB/s all that time, ticked as `Lanes` does."""
    now, done = 0.0, 0
    decision = controller.observe(now, done, busy=0, backlog=backlog)
    while now < seconds:
        now, done = now + 0.05, done + 3 * MB * decision.lanes
        decision = controller.observe(now, done, busy=decision.lanes, backlog=backlog)
    return decision.lanes


@pytest.mark.parametrize(
    ("fstypes", "lanes"),
    [
        (["fuse.something"], 16),
        (["fuse.s3fs"], 16),
        (["ext4"], 8),
        (["nfs4"], 8),
        (["fuse.ossfs2"], 4),
        (["fuse.ossfs"], 4),
        (["fuse.something", "fuse.ossfs2"], 4),
    ],
)
def test_goes_up_quickly_where_no_daemon_forbids_it(fstypes: list[str], lanes: int) -> None:
    options = WarmOptions(selection=Selection(paths=("/models",)))
    assert lanes_after(0.65, controller_for([traits(name) for name in fstypes], options)) == lanes


def climb(
    ramp: Ramp, rates: list[float], *, files: int = 1, backlog: int = 0, seconds: float = 5.0
) -> list[tuple[int, bool]]:
    """The settings of `ramp` in order, over a storage that gives `rates[n - 1]` bytes a second to n lanes.

    `files` are being read and `backlog` more wait; one is enough for many lanes when it is split.
    """
    now, done, found = 0.0, 0.0, [(ramp.lanes, ramp.split)]
    width = ramp.lanes if backlog else files
    while not ramp.over and now < seconds:
        now, done = now + 0.05, done + 0.05 * rates[min(width, len(rates)) - 1]
        ramp.observe(now, int(done), width=width, backlog=backlog)
        width = ramp.lanes if backlog or ramp.split else files
        if found[-1] != (ramp.lanes, ramp.split):
            found.append((ramp.lanes, ramp.split))
    assert ramp.over
    return found


def test_lanes_that_idle_are_set_to_work_first() -> None:
    linear = [20.0 * MB * lanes for lanes in range(1, 33)]
    ramp = Ramp(4, 16, may_split=True)
    assert climb(ramp, linear) == [(4, False), (4, True), (8, True), (16, True)]


def test_eight_are_enough_where_a_daemon_may_fetch_ahead() -> None:
    linear = [60.0 * MB * lanes for lanes in range(1, 33)]
    assert climb(Ramp(4, 16, may_split=True), linear) == [(4, False), (4, True), (8, True)]
    assert climb(Ramp(4, 16, may_split=True), linear, backlog=100) == [(4, False), (8, False), (16, False)]


def test_one_idle_lane_is_no_step() -> None:
    linear = [20.0 * MB * lanes for lanes in range(1, 33)]
    ramp = Ramp(4, 16, may_split=True)
    assert climb(ramp, linear, files=3) == [(4, False), (6, True), (12, True)]  # four more are no step either


def test_a_split_that_gives_nothing_is_taken_back() -> None:
    ramp = Ramp(4, 16, may_split=True)
    assert climb(ramp, [60.0 * MB]) == [(4, False), (4, True), (4, False)]
    assert ramp.useless_split


def test_a_step_that_pays_in_part_is_the_last() -> None:
    rates = [60.0 * MB * min(lanes, 6) for lanes in range(1, 33)]
    ramp = Ramp(4, 16, may_split=True)
    assert climb(ramp, rates, backlog=100) == [(4, False), (8, False)]
    assert not ramp.useless_split


def test_lanes_too_slow_to_be_looked_at_are_left_to_the_controller() -> None:
    ramp = Ramp(4, 16, may_split=True)
    assert climb(ramp, [1.0 * MB * lanes for lanes in range(1, 33)], backlog=100) == [(4, False)]


def worth_of(rate: float, lanes: int = 4) -> int:
    """What a tail must have where each of `lanes` moves `rate` bytes a second, and stands still in the end."""
    worth = Worth(64 * MIB)
    assert worth.observe(0.0, 0, lanes) == 64 * MIB  # nothing is known yet
    for tick in range(1, 60):
        found = worth.observe(tick / 10, int(tick / 10 * rate * lanes), lanes)
    assert (
        worth.observe(60.0, int(5.9 * rate * lanes) + 1, lanes) == found
    )  # what a lane can do is not forgotten
    return found


def test_a_tail_is_worth_a_second_of_a_lane() -> None:
    assert worth_of(20 * MB) == pytest.approx(20 * MB, rel=0.01)


def test_a_tail_has_a_least_and_a_greatest_size() -> None:
    assert worth_of(1 * MB) == 8 * MIB
    assert worth_of(900 * MB) == 64 * MIB


def test_slow_lanes_share_what_fast_ones_would_not() -> None:
    supply = Supply([Span(0, 0, 100 * MIB)], 64 * MIB)
    assert supply.next(split=True) is not None
    assert supply.next(split=True) is None
    supply.min_piece = 16 * MIB
    assert [lease.span.length // MIB for _ in range(3) if (lease := supply.next(split=True))] == [52, 28, 24]


def test_what_takes_long_is_counted_in_smaller_steps() -> None:
    step, steps = 4 * MIB, []
    for _ in range(4):  # a pipe takes a MiB at most
        step = step_after(step, min(step, MIB), 0.06)
        steps.append(step)
    assert steps == [MIB // 2, MIB // 4, MIB // 4, MIB // 4]
    assert step_after(step, step, 0.015) == step
    assert step_after(step, step, 0.001) == MIB // 2
    assert step_after(4 * MIB, MIB, 0.001) == 4 * MIB
