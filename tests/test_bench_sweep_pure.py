"""What a sweep decides without touching anything: which settings, in which order, which again, and which of them is the best."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.bench.quick import Rates
from stager.core.bench.reports import BenchCell, BenchPace, BenchRun
from stager.core.bench.setting import Setting
from stager.core.bench.stats import make_cell
from stager.core.bench.sweep import (
    QUICK_GRID,
    TOO_SLOW,
    Grid,
    first_pass,
    parse_lanes,
    parse_spans,
    patience,
    quick_sweep_bytes,
    quick_sweep_sample,
    runs_at_most,
    settings_of,
    worth_another,
)
from stager.core.bench.sweep_table import sweep_table
from stager.core.bench.verdict import UNREPEATED, BenchSweep, judge, noise_of
from stager.core.errors import UsageError
from stager.core.plan import WHOLE, Candidate, make_plan
from stager.core.units import MIB
from tests.test_bench_cmd_pure import run, storage

sizes_of_models = st.lists(st.integers(0, 2048 * MIB), min_size=1, max_size=12)
grids = st.builds(
    Grid,
    st.lists(st.integers(1, 256), min_size=1, max_size=6, unique=True).map(lambda some: tuple(sorted(some))),
    st.lists(st.integers(MIB, 4096 * MIB) | st.just(WHOLE), min_size=1, max_size=4, unique=True).map(tuple),
)
times = st.floats(0.05, 500)
Timed = dict[Setting | None, list[float]]


def cells_of(timed: Timed) -> tuple[list[BenchCell], list[BenchRun]]:
    """The cells and runs of a storage of 1000 bytes, of which each setting took these seconds."""
    runs = [
        run(took, run=f"r{at}-{number}", method="warm", setting=setting, pace=BenchPace(8, 8, split=False))
        for at, (setting, all_of) in enumerate(timed.items())
        for number, took in enumerate(all_of)
    ]
    cells = [
        make_cell("/m", "ext4", "warm", "cold", 1, file="", setting=setting, runs=[r for r in runs if r.setting == setting])
        for setting in timed
    ]  # fmt: skip
    return cells, runs


def judged(timed: Timed) -> BenchSweep:
    cells, runs = cells_of(timed)
    return judge(storage(), cells, runs, ["stager", "warm", "/m"])


FEW, MANY, PIECES = Setting(4, WHOLE), Setting(16, WHOLE), Setting(16, 64 * MIB)


# Which settings


@given(sizes_of_models, grids)
def test_no_setting_reads_as_another_and_none_has_idle_lanes(sizes: list[int], grid: Grid) -> None:
    """By the real plan: pieces and lanes together differ, and at no moment are there more lanes than pieces."""
    counted = [size for size in sizes if size >= MIB] or [size for size in sizes if size]
    seen = set()
    found = settings_of(sizes, grid)
    assert found
    for setting in found:
        files = [
            Candidate(at, str(at), size, ((0, size),), at, whole=setting.span == WHOLE, piece=setting.span or None)
            for at, size in enumerate(counted)
        ]  # fmt: skip
        spans = make_plan(files, sum(counted)).spans
        assert 1 <= setting.lanes <= max(1, len(spans))
        assert setting.span <= max(counted, default=0)
        seen.add((spans, setting.lanes))
    assert len(seen) == len(found)
    assert sum(setting.lanes == 1 for setting in found) <= 1


@given(sizes_of_models, grids)
def test_no_number_of_lanes_is_lost(sizes: list[int], grid: Grid) -> None:
    """Each that was asked for is tried with each span, or as many as there are pieces."""
    found = settings_of(sizes, grid)
    for span in {setting.span for setting in found if setting.lanes > 1}:
        tried = {setting.lanes for setting in found if setting.span == span}
        most = max(tried)
        assert {lanes for lanes in grid.lanes if 1 < lanes <= most} <= tried
        assert tried <= {*grid.lanes, most}


def test_four_files_of_a_hundred_mib() -> None:
    found = settings_of([100 * MIB] * 4 + [1000, 20], Grid())
    assert [str(setting) for setting in found] == [
        "-P 1 --span whole",
        "-P 2 --span whole",
        "-P 4 --span whole",
        *(f"-P {lanes} --span 64MiB" for lanes in (2, 4, 8)),
        *(f"-P {lanes} --span 16MiB" for lanes in (2, 4, 8, 16, 28)),
    ]


@pytest.mark.parametrize("text", ["", ",", "64", "whole,1KiB", "x"])
def test_span_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_spans(text)


def test_lists_are_read() -> None:
    assert parse_spans(" 16MiB,whole,64MiB,16MiB") == (WHOLE, 64 * MIB, 16 * MIB)
    assert parse_lanes("16,2,2") == (2, 16)
    with pytest.raises(UsageError, match="lanes"):
        parse_lanes("0")


# In which order, and which again


@given(st.lists(st.builds(Setting, st.integers(1, 256), st.integers(0, 1 << 40)), max_size=40, unique=True))
def test_the_first_pass_has_each_once_after_the_adaptive_run(settings: list[Setting]) -> None:
    order = first_pass(settings)
    assert sorted(map(str, order)) == sorted(map(str, [None, *settings]))
    assert order[0] is None


def test_the_first_pass_jumps() -> None:
    """Neighbours of the grid are not neighbours in time, and neither lanes nor spans rise with time."""
    found = settings_of([1024 * MIB] * 40, Grid())
    order = [setting for setting in first_pass(found) if setting]
    places = {setting: at for at, setting in enumerate(order)}
    assert all(abs(places[a] - places[b]) > 1 for a, b in pairwise(found))
    middle = (len(order) - 1) / 2
    for group in ({s.lanes for s in order}, {s.span for s in order}):
        for value in group:
            at = [places[s] for s in order if value in (s.lanes, s.span)]
            assert len(at) == 1 or abs(sum(at) / len(at) - middle) < len(order) / 4


def test_with_one_span_too_lanes_do_not_rise_with_time() -> None:
    order = [setting.lanes for setting in first_pass(settings_of([1] * 40, Grid())) if setting]
    assert order not in (sorted(order), sorted(order, reverse=True))


@given(st.dictionaries(st.sampled_from(settings_of([1024 * MIB] * 40, Grid())), times, min_size=1))
def test_what_is_measured_again_is_near_the_best_and_few(took: dict[Setting, float]) -> None:
    cells, _ = cells_of({setting: [value] for setting, value in took.items()})
    again = worth_another(cells)
    best = min(took.values())
    assert took[again[0]] == best
    assert len(again) <= 5
    assert all(took[setting] <= 1.25 * best for setting in again)
    close = [setting for setting in took if took[setting] <= 1.1 * best]
    assert min(close, key=lambda setting: setting.gentleness) in again


def test_nothing_measured_is_nothing_to_repeat() -> None:
    assert worth_another(cells_of({FEW: []})[0]) == []


@given(st.integers(1, 40), st.integers(1, 5), st.floats(1e6, 1e10), st.floats(1, 75))
def test_a_quick_sweep_fits_its_time(settings: int, rounds: int, rate: float, seconds: float) -> None:
    """Where there is time for the overhead of so many runs at all."""
    runs = runs_at_most(settings, rounds) + 1
    takes = runs * (quick_sweep_bytes(settings, rounds, rate, seconds) / rate + 0.9)
    assert takes <= max(seconds, runs * 0.9 + seconds / 4) * 1.001


@given(
    st.lists(st.integers(1, 40 * 1024 * MIB), min_size=1, max_size=8), st.floats(1e6, 1e10), st.floats(1, 75)
)
def test_a_quick_sweep_reads_a_whole_file_or_long_parts_of_several_unless_each_takes_too_long(
    sizes: list[int], rate: float, seconds: float
) -> None:
    """What spans do shows in long files alone."""
    found = quick_sweep_sample(sizes, 7, 2, Rates(rate, rate), seconds)
    worth = min(size for size in sizes if 4 * size >= max(sizes))
    if found.part is not None:
        assert worth > rate * seconds / 2 or (found.part >= 8 * MIB and len(found.chosen) > 1)
    elif found.chosen != tuple(range(len(sizes))):
        assert 4 * max(sizes[at] for at in found.chosen) >= max(sizes) or len(found.chosen) > 1


def test_a_quick_sweep_of_shards_reads_a_part_of_each() -> None:
    """By one file alone lanes over several are not told apart."""
    found = quick_sweep_sample([49 * MIB] * 4, 2, 2, Rates(6e6, 6e6), 75)
    assert len(found.chosen) == 4
    assert found.part is not None
    assert 8 * MIB <= found.part < 49 * MIB


def test_a_quick_sweep_reads_fewer_files_where_looking_at_each_takes_long() -> None:
    """400 of 64 KiB: 20 ms for each look are 24 s a run."""
    sizes = [65536] * 400
    assert len(quick_sweep_sample(sizes, 3, 2, Rates(1e8, 1e8), 75).chosen) == 400
    found = quick_sweep_sample(sizes, 3, 2, Rates(1e8, 1e8, look=0.02), 75)
    assert found.part is None
    runs = runs_at_most(3, 2) + 1
    assert 40 < len(found.chosen) * 3 * 0.02 * runs < 75 or 40 > len(found.chosen) > 20


def test_patience_is_three_times_the_fastest_and_never_short() -> None:
    assert [patience(took, quick=False) for took in (0.1, 20.0, 60.0)] == [60.0, 60.0, 180.0]
    assert [patience(took, quick=True) for took in (0.1, 20.0)] == [5.0, 60.0]


# Which is the best


@given(
    st.dictionaries(
        st.sampled_from([None, FEW, MANY, PIECES]), st.lists(times, min_size=1, max_size=5), min_size=1
    )
)
def test_the_best_is_the_gentlest_of_those_that_are_even(timed: Timed) -> None:
    found = judged(timed)
    fixed = {setting: took for setting, took in timed.items() if setting}
    if len(fixed) < 2:
        assert found.best is None
        return
    assert found.best is not None
    candidates = [one for one in fixed if len(fixed[one]) > 1] or list(fixed)
    even = [found.best, *found.even]
    medians = {one.setting: one.seconds for one in even}
    least = min(
        sorted(fixed[one])[len(fixed[one]) // 2] if len(fixed[one]) % 2 else math.nan for one in candidates
    )
    assert {one.setting for one in even} <= set(candidates)
    assert max(medians.values()) <= min(medians.values()) * (1 + found.noise)
    assert math.isnan(least) or min(medians.values()) <= least
    ranks = [one.setting.gentleness for one in even if one.setting]
    assert ranks == sorted(ranks)
    if None in timed:
        assert found.ratio is not None
        assert found.beyond_noise == (not 1 / (1 + found.noise) <= found.ratio <= 1 + found.noise)


def test_few_lanes_win_where_more_are_no_faster() -> None:
    found = judged(
        {FEW: [1.0, 1.02, 1.01], MANY: [0.99, 1.0, 1.01], PIECES: [0.6, 0.61, 0.62], None: [2.0, 2.1, 1.9]}
    )
    assert found.best
    assert (found.best.setting, found.even) == (PIECES, ())
    assert (found.ratio, found.beyond_noise) == (pytest.approx(2.0 / 0.61), True)
    assert found.command == "stager warm /m -P 16 --span 64MiB --no-adapt"
    found = judged({FEW: [1.0, 1.02, 1.01], MANY: [0.99, 1.0, 1.01], None: [1.0, 1.01, 0.99]})
    assert found.best
    assert (found.best.setting, [one.setting for one in found.even]) == (FEW, [MANY])
    assert (found.beyond_noise, found.command) == (False, "stager warm /m")


def test_what_was_measured_once_is_no_candidate_where_others_were_repeated() -> None:
    found = judged({FEW: [1.0, 1.1], MANY: [0.5], None: [1.0, 1.0]})
    assert found.best
    assert (found.best.setting, found.once) == (FEW, (MANY,))
    alone = judged({FEW: [1.0], MANY: [0.5], None: [1.0]})
    assert alone.best
    assert (alone.best.setting, alone.once, alone.assumed, alone.noise) == (MANY, (), True, UNREPEATED)


def test_an_adaptive_run_that_no_setting_reaches_needs_no_setting() -> None:
    timed: Timed = {FEW: [2.0, 2.0], MANY: [3.0], None: [1.0, 1.0]}
    found = judged(timed)
    assert (found.ratio, found.beyond_noise, found.command) == (0.5, True, "stager warm /m")
    assert "no setting reaches" in table_of(timed)


def test_one_setting_is_no_best_of_anything() -> None:
    timed: Timed = {FEW: [2.0, 2.0], None: [1.0, 1.0]}
    found = judged(timed)
    assert (found.best, found.even, found.ratio, found.command) == (None, (), None, "")
    assert f"no best setting: {FEW} is the only way to read this" in table_of(timed)
    timed = {FEW: [2.0, 2.0], MANY: [], PIECES: [], None: [1.0, 1.0]}
    found = judged(timed)
    assert (found.best, found.untried) == (None, (MANY, PIECES))
    assert f"no best setting: only {FEW} of 3 settings was measured" in table_of(timed)


def test_one_setting_that_others_were_too_slow_for_is_the_best() -> None:
    cells, runs = cells_of({FEW: [1.0], MANY: [], None: [1.0]})
    cells = [replace(cell, unmeasured=TOO_SLOW if cell.setting is MANY else "") for cell in cells]
    found = judge(storage(), cells, runs, ["x"])
    assert found.best
    assert (found.best.setting, found.untried) == (FEW, ())


def test_the_best_of_a_part_of_the_settings_is_called_that() -> None:
    timed: Timed = {FEW: [2.0, 2.0], MANY: [3.0, 3.0], PIECES: [], None: [1.0, 1.0]}
    assert judged(timed).untried == (PIECES,)
    text = table_of(timed)
    assert f"best of those tried (all but 1 setting): {FEW}" in text
    assert "none of those tried reaches" in text
    assert "no setting reaches" not in text
    assert "so, of those tried: stager warm" in text
    assert "so: " not in text


def test_single_runs_do_not_speak_against_what_warm_does_by_itself_unless_they_are_far_apart() -> None:
    assert judged({FEW: [1.0], MANY: [1.5], None: [1.3]}).command == "stager warm /m"
    assert judged({FEW: [1.0], MANY: [1.5], None: [1.6]}).command.endswith(f"{FEW} --no-adapt")


def test_a_best_at_the_edge_of_what_was_tried_is_said_to_be_there() -> None:
    edge = "it lies at the edge of what was tried: --sweep-lanes 16,32 or --sweep-spans 64MiB,32MiB may"
    assert edge in table_of({FEW: [2.0, 2.0], PIECES: [1.0, 1.0]})
    assert "edge" not in table_of({FEW: [1.0, 1.0], PIECES: [2.0, 2.0]})


def test_the_verdict_on_a_sample_says_that_it_is_one() -> None:
    cells, runs = cells_of({FEW: [1.0, 1.0], MANY: [2.0, 2.0]})
    sampled = replace(storage(), files=4, part=8 * MIB, of_files=9)
    text = sweep_table([sampled], cells, [judge(sampled, cells, runs, ["x"])])
    assert "by the first 8.0 MiB of 4 of 9 files only" in text


def test_the_spans_of_a_quick_sweep_go_by_the_size_of_the_files() -> None:
    """So that there is more than one way to read also a single file that is no longer than 64 MiB."""

    def spans(*sizes: int) -> list[str]:
        return list(dict.fromkeys(str(one).split()[-1] for one in settings_of(sizes, QUICK_GRID)))

    assert spans(49 * MIB) == ["whole", "8MiB"]
    assert spans(9 * MIB, 9 * MIB) == ["whole", "4MiB"]
    assert spans(4096 * MIB) == ["whole", "64MiB"]
    assert spans(4 * MIB) == ["whole"]


def test_a_tail_of_a_few_kib_is_no_piece_for_a_lane() -> None:
    """16 lanes and 17 read it alike."""
    assert settings_of([256 * MIB + 16384], Grid()) == settings_of([256 * MIB], Grid((1, 2, 4, 8, 16, 32)))


def test_without_a_run_it_says_why() -> None:
    cells, runs = cells_of({FEW: [], None: []})
    why = "the mount drops pages"
    found = judge(
        storage(), [replace(cell, unmeasured=why) for cell in cells], runs, ["stager", "warm", "/m"]
    )
    assert (found.best, found.adaptive, found.command, found.unmeasured) == (None, None, "", why)
    assert f"no best setting: {why}" in sweep_table([storage()], cells, [found])


@pytest.mark.parametrize("spread", [0.01, 0.05, 0.2])
def test_even_runs_are_seldom_told_apart_and_others_mostly_are(spread: float) -> None:
    """Of pairs of settings that are equally fast in truth at most one in eight is told apart; of those four spreads apart nearly all are."""
    draw = random.Random(7).gauss

    def apart(truth: float) -> float:
        told = 0
        for _ in range(400):
            groups = [
                [math.exp(draw(0, spread) + (math.log(truth) if at == 0 else 0)) for _ in range(3)]
                for at in range(6)
            ]
            noise = noise_of(groups) or 0
            first, second = sorted(groups[0])[1], sorted(groups[1])[1]
            told += max(first, second) > (1 + noise) * min(first, second)
        return told / 400

    assert apart(1.0) < 0.125
    assert apart(math.exp(4 * spread)) > 0.8


def test_one_run_that_was_held_up_is_not_the_noise_of_all() -> None:
    """Seconds of a real sweep: four lanes were 1.75 times as fast, and one of its runs met something else."""
    timed: Timed = {
        PIECES: [1.68, 6.36, 1.75], FEW: [2.95, 3.38, 2.94], MANY: [2.96, 2.94, 2.99], None: [2.96, 3.16, 2.95],
    }  # fmt: skip
    found = judged(timed)
    assert found.best
    assert (found.best.setting, found.even, found.beyond_noise) == (PIECES, (), True)
    assert found.noise < 0.25
    table = table_of(timed)
    assert f"runs of {PIECES} lay between 1.68s and 6.36s" in table
    assert "unsteady" not in table


def test_what_is_far_apart_is_never_even() -> None:
    timed: Timed = {FEW: [2.0, 1.0, 4.0], MANY: [1.1, 0.5, 2.2], None: [1.0, 3.0, 9.0]}
    found = judged(timed)
    assert found.best
    assert (found.best.setting, found.noise) == (MANY, 0.5)
    assert "unsteady" in table_of(timed)


def test_noise_is_unknown_where_nothing_was_repeated() -> None:
    assert noise_of([[1.0], [2.0], []]) is None
    assert noise_of([[1.0, 1.0], [2.0]]) == 0.02


# The table


def table_of(timed: Timed) -> str:
    cells, runs = cells_of(timed)
    return sweep_table([storage()], cells, [judge(storage(), cells, runs, ["stager", "warm", "/m"])])


def test_the_table_has_rows_of_spans_columns_of_lanes_and_marks() -> None:
    text = table_of({FEW: [1.0, 1.2], MANY: [1.01, 1.1], PIECES: [3.0], None: [4.0, 4.0]})
    lines = text.splitlines()
    assert lines[1].split() == ["cold", "-P", "4", "-P", "16"]
    assert lines[2].split() == ["whole", "1.10s*", "1.06s="]
    assert lines[3].split() == ["64MiB", "3.00s~"]
    assert lines[4].split() == ["adaptive", "4.00s", "(ended", "at", "-P", "8)"]
    assert "best: -P 4 --span whole: 1.10s" in text
    assert "adaptive: 4.00s, 3.6 times as long" in text
    assert text.index("3.00s") == text.index("3.00s~")
    assert "stager warm /m -P 4 --span whole --no-adapt" in text


def test_a_setting_that_was_stopped_is_no_unknown_one() -> None:
    cells, runs = cells_of({FEW: [1.0], MANY: [], PIECES: []})
    why = {MANY: TOO_SLOW, PIECES: "it is gone"}
    cells = [replace(cell, unmeasured=why.get(cell.setting, "")) for cell in cells]
    lines = sweep_table([storage()], cells, [judge(storage(), cells, runs, ["x"])]).splitlines()
    assert lines[2].split() == ["whole", "1.00s*", "slow"]
    assert lines[3].split() == ["64MiB", "unknown"]
    assert "  not measured: -P 16 --span 64MiB: it is gone" in lines
    assert "each was measured once" in "\n".join(lines)


def test_the_gentlest_close_to_the_best_is_measured_again_although_three_are_faster() -> None:
    """Else it could never become the best."""
    took = {
        Setting(lanes, WHOLE): seconds for lanes, seconds in ((32, 1.0), (16, 1.01), (8, 1.02), (2, 1.05))
    }
    cells, _ = cells_of({setting: [seconds] for setting, seconds in took.items()})
    assert Setting(2, WHOLE) in worth_another(cells)
