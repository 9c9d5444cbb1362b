"""The controller on simulated storages: near the best fixed setting, within its bounds, deterministic."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.engine.pace import Controller, Decision
from tests.simulation import (
    GB,
    MB,
    MIB,
    Changing,
    Collapse,
    Disk,
    LatencyBound,
    Noise,
    OneAtATime,
    Outcome,
    PerStream,
    Run,
    SoftDisk,
    Storage,
)

SECONDS = 30.0
SEEDS = range(5)
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
STORAGES: dict[str, Callable[[], Storage]] = {
    "disk, 1 lane saturates": lambda: Disk(knee=1),
    "disk, 2 lanes saturate": lambda: Disk(knee=2),
    "disk, 4 lanes saturate": lambda: Disk(knee=4),
    "disk without a knee": SoftDisk,
    "bandwidth per stream": PerStream,
    "wide bandwidth per stream": lambda: PerStream(200 * MB, 2 * GB),
    "pool that collapses": Collapse,
    "one request at a time": OneAtATime,
    "one request at a time, switching costs": lambda: OneAtATime(switch=0.05),
}
# Gusts last about a second, as long as a trial does: no controller can tell them from what it did itself.
WEATHER = {
    "calm": (Noise(0.0), 0.87),
    "10 %": (Noise(0.1), 0.88),
    "20 %": (Noise(0.2), 0.86),
    "bursts": (Noise(0.1, burst=8 * MIB), 0.87),
    "gusts of 15 %": (Noise(0.15, memory=1.0), 0.83),
}
# Files of a model by shape; sizes are scaled so that a good setting needs a bit more than the 30 s.
SHAPES = {"1 x 6 GB": 1, "7 x 1.2 GB": 7, "16 x 384 MB": 16, "163 x 4 GB": 163}
# (ceiling, start, may split), without the ramp: ossfs starts at 4 and never splits, downloads at 2.
WAYS = [(4, 2, True), (8, 4, False), (16, 2, True), (16, 4, False), (32, 2, True)]
# With it: unknown FUSE starts at 4 and may split, disks at 2.
RAMPED = [(4, 4, True), (16, 2, False), (16, 4, True), (32, 4, True)]


@functools.cache
def sizes_of(name: str, files: int) -> tuple[int, ...]:
    widest = max(STORAGES[name]().total(count, 0.0) for count in COUNTS)
    return (int(widest * SECONDS * 1.15 / files),) * files


def fixed(lanes: int, *, split: bool = False) -> Controller:
    return Controller(lanes, lanes, adapt=False, may_split=split)


def simulate(name: str, files: int, controller: Controller, **more) -> Outcome:
    return Run(sizes_of(name, files), STORAGES[name](), controller, **more).run(1.5 * SECONDS)


@functools.cache
def fixed_rate(name: str, files: int, lanes: int, split: bool) -> float:
    return simulate(name, files, fixed(lanes, split=split)).rate


@functools.cache
def best_fixed(name: str, files: int, ceiling: int, may_split: bool) -> Decision:
    """The best fixed setting of a sweep, without noise; the smallest of equals."""
    choice = [Decision(n, split) for split in {False, may_split} for n in COUNTS if n <= ceiling]
    return max(
        choice, key=lambda d: (round(fixed_rate(name, files, d.lanes, d.split) / MB), -d.lanes, not d.split)
    )


@functools.cache
def rival_rate(name: str, files: int, setting: Decision, weather: str, seed: int) -> float:
    rival = fixed(setting.lanes, split=setting.split)
    return simulate(name, files, rival, seed=seed, noise=WEATHER[weather][0]).rate


@pytest.mark.parametrize("weather", WEATHER)
@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.parametrize("ramp", [False, True])
def test_near_the_best_fixed_setting(name: str, weather: str, *, ramp: bool) -> None:
    noise, least = WEATHER[weather]
    medians = {}
    for ceiling, start, split in RAMPED if ramp else WAYS:
        for shape, files in SHAPES.items():
            best = best_fixed(name, files, ceiling, split)
            found = []
            for seed in SEEDS:
                controller = Controller(ceiling, start, may_split=split, ramp=ramp)
                ours = simulate(name, files, controller, seed=seed, noise=noise).rate
                found.append(ours / rival_rate(name, files, best, weather, seed))
            medians[ceiling, start, split, shape] = round(statistics.median(found), 3)
            assert min(found) >= 0.65, (ceiling, start, split, shape)
    poor = {case: value for case, value in medians.items() if value < least}
    assert not poor
    assert statistics.median(medians.values()) >= 0.92, medians
    assert sum(value < 0.9 for value in medians.values()) <= len(medians) // 5, medians


# Small models where every request takes its time: (a request's time in seconds, what the daemon can do, sizes).
SMALL = {
    "2 ms, 4 x 100 MiB": (0.0022, 1.2 * GB, (100 * MIB,) * 4),
    "2 ms, 1 x 400 MiB": (0.0022, 1.2 * GB, (400 * MIB,)),
    "30 ms, 1 x 300 MB": (0.03, 2 * GB, (300 * MB,)),
    "30 ms, 4 x 75 MB": (0.03, 2 * GB, (75 * MB,) * 4),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_is_not_read_before_its_lanes_are_found(name: str) -> None:
    """The whole run, from the first byte, in at most one and a half times what the best fixed setting needs."""
    latency, cap, sizes = SMALL[name]

    def seconds(controller: Controller, **more) -> float:
        return (
            Run(sizes, LatencyBound(latency, cap=cap), controller, step=0.01, block=MIB, **more).run().seconds
        )

    best = min(seconds(fixed(lanes, split=split)) for lanes in COUNTS for split in (False, True))
    for noise in (Noise(0.0), Noise(0.1)):
        took = [
            seconds(Controller(16, 4, may_split=True, ramp=True), seed=seed, noise=noise) for seed in SEEDS
        ]
        assert statistics.median(took) <= 1.5 * best, (took, best)


@pytest.mark.parametrize(
    "storage", [OneAtATime, lambda: Disk(knee=1), lambda: OneAtATime(switch=0.05), Collapse]
)
def test_the_ramp_ends_at_the_first_doubling_that_does_not_pay(storage: Callable[[], Storage]) -> None:
    for seed in SEEDS:
        controller = Controller(32, 4, may_split=True, ramp=True)
        run = Run((GB,) * 60, storage(), controller, seed=seed, noise=Noise(0.1), block=MIB)
        outcome = run.run(0.8)
        assert max(decision.lanes for _, decision in outcome.decisions) == 8
        assert not controller.ramping


def test_the_ramp_goes_back_where_more_lanes_do_harm() -> None:
    for seed in SEEDS:
        controller = Controller(32, 4, may_split=True, ramp=True)
        outcome = Run((GB,) * 60, Collapse(), controller, seed=seed, noise=Noise(0.1)).run(2.0)
        assert [decision.lanes for _, decision in outcome.decisions][:3] == [4, 8, 4]
        assert controller.report().peak == 8


def test_the_ramp_goes_up_to_where_lanes_stop_paying() -> None:
    controller = Controller(16, 4, ramp=True)
    outcome = Run((GB,) * 60, PerStream(60 * MB, 10 * GB), controller).run(1.5)
    assert [decision.lanes for _, decision in outcome.decisions][:3] == [4, 8, 16]


def test_without_the_ramp_lanes_are_measured_first() -> None:
    """ossfs: what is opened there takes from a pool that is given back late."""
    outcome = Run((GB,) * 60, PerStream(60 * MB, 10 * GB), Controller(16, 4)).run(0.65)
    assert [decision.lanes for _, decision in outcome.decisions] == [4]


CHANGES = {
    "a burst credit ends": lambda: Changing(Disk(knee=4), Disk(cap=0.8 * GB, knee=2)),
    "a neighbour leaves": lambda: Changing(PerStream(125 * MB, 500 * MB), PerStream(125 * MB, 2 * GB)),
    "a pool runs dry": lambda: Changing(PerStream(200 * MB, 2400 * MB), Collapse()),
    "a pool recovers": lambda: Changing(Collapse(), PerStream(200 * MB, 2400 * MB)),
}


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_finds_its_way_after_a_change(change: str, *, ramp: bool) -> None:
    """Twenty seconds after the storage changed, the setting in force is near the best for the new one."""
    reached = []
    for seed in SEEDS:
        controller = Controller(16, 2, may_split=True, ramp=ramp)
        run = Run((4 * GB,) * 60, CHANGES[change](), controller, seed=seed, noise=Noise(0.1))
        run.run(32.0)
        second = CHANGES[change]().second
        best = max(second.total(count, 99.0) for count in range(1, 17))
        reached.append(second.total(controller.report().lanes, 99.0) / best)
    assert statistics.median(reached) >= 0.9, reached


@pytest.mark.parametrize(
    ("storage", "kept"),
    [
        (PerStream, True),
        (lambda: Disk(knee=1), False),
        (lambda: OneAtATime(switch=0.05), False),
        (OneAtATime, False),
    ],
)
@pytest.mark.parametrize(("start", "ramp"), [(2, False), (4, True)])
def test_splitting_is_kept_only_where_it_pays(
    storage: Callable[[], Storage], kept: bool, start: int, *, ramp: bool
) -> None:
    for seed in SEEDS:
        controller = Controller(16, start, may_split=True, ramp=ramp)
        Run((20 * GB,), storage(), controller, seed=seed, noise=Noise(0.1)).run(SECONDS)
        report = controller.report()
        assert report.split is kept
        assert any(epoch.split for epoch in report.epochs)  # it was tried
        if not kept:
            assert sum(epoch.split for epoch in report.epochs) <= 3  # and rarely


def test_never_splits_without_leave() -> None:
    controller = Controller(16, 4)
    outcome = Run((20 * GB,), PerStream(), controller).run(SECONDS)
    assert not any(decision.split for _, decision in outcome.decisions)


def test_splits_beyond_the_number_of_files() -> None:
    controller = Controller(16, 2, may_split=True)
    Run((9 * GB,) * 3, PerStream(), controller).run(20.0)
    assert controller.report().split
    assert controller.report().lanes >= 12


def test_goes_on_upwards_from_the_first_split_that_pays() -> None:
    """One file for four lanes: two at work are more than one, although fewer than the four that were allowed."""
    outcome = Run((9 * GB,), PerStream(), Controller(16, 4, may_split=True)).run(8.0)
    splits = [decision.lanes for _, decision in outcome.decisions if decision.split]
    assert splits[1] > splits[0]


def test_settles_low_on_a_pool_that_collapses() -> None:
    for seed in SEEDS:
        controller = Controller(16, 4)
        Run((4 * GB,) * 163, Collapse(), controller, seed=seed, noise=Noise(0.1)).run(SECONDS)
        assert 3 <= controller.report().lanes <= 6
        assert controller.report().peak <= 8


def test_does_not_judge_while_supply_is_short() -> None:
    """Three files for sixteen lanes: throughput falls as they end, and that is nobody's fault."""
    controller = Controller(16, 2)
    outcome = Run((2 * GB, 4 * GB, 6 * GB), PerStream(200 * MB, 2 * GB), controller).run(60.0)
    assert outcome.moved == 12 * GB
    late = [decision.lanes for at, decision in outcome.decisions if at > 12]
    assert all(lanes >= 2 for lanes in late)


def test_report_tells_what_was_found() -> None:
    controller = Controller(16, 2, may_split=True)
    outcome = Run((4 * GB,) * 163, Disk(knee=4), controller).run(SECONDS)
    report = controller.report()
    assert report.lanes == outcome.decisions[-1][1].lanes
    assert report.peak == max(decision.lanes for _, decision in outcome.decisions)
    times = [epoch.at for epoch in report.epochs]
    assert times == sorted(times)
    assert 10 < len(times) < 60
    assert all(epoch.rate > 0 for epoch in report.epochs)


def test_same_input_same_decisions() -> None:
    runs = [
        Run((4 * GB,) * 50, SoftDisk(), Controller(16, 2), seed=3, noise=Noise(0.2)).run(20.0)
        for _ in range(2)
    ]
    assert runs[0].decisions == runs[1].decisions


@pytest.mark.parametrize(("ceiling", "start"), [(0, 1), (1, 0), (-1, 2)])
def test_refuses_impossible_bounds(ceiling: int, start: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Controller(ceiling, start)


ticks = st.lists(
    st.tuples(
        st.floats(0, 3, allow_nan=False), st.integers(0, 10 * GB), st.integers(0, 40), st.integers(0, 50)
    ),
    max_size=150,
)


@settings(max_examples=200, deadline=None)
@given(
    ceiling=st.integers(1, 32),
    start=st.integers(1, 40),
    may_split=st.booleans(),
    adapt=st.booleans(),
    ramp=st.booleans(),
    script=ticks,
)
def test_stays_within_bounds(
    ceiling: int, start: int, may_split: bool, adapt: bool, ramp: bool, script: list
) -> None:
    controller = Controller(ceiling, start, adapt=adapt, may_split=may_split, ramp=ramp)
    now, done = 0.0, 0
    for passed, moved, busy, backlog in script:
        now, done = now + passed, done + moved
        decision = controller.observe(now, done, busy=busy, backlog=backlog)
        assert 1 <= decision.lanes <= ceiling
        assert may_split or not decision.split
        if not adapt:
            assert decision == Decision(ceiling, may_split)
    report = controller.report()
    assert 1 <= report.lanes <= report.peak <= ceiling
