"""Which ranges are fetched in which order: every missing byte once, in requests of a good size, lanes spread over files."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stager.core.model import Span
from stager.core.ranges import LARGEST, SMALLEST, Missing, deal, in_parts, part_size, range_size, spread

MIB = 1 << 20
GIB = 1 << 30


@st.composite
def models(draw: st.DrawFn) -> list[Missing]:
    found = []
    for index in range(draw(st.integers(0, 8))):
        edges = sorted(draw(st.sets(st.integers(0, 300 * MIB), max_size=6)))
        pairs = [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=False)]
        found.append(Missing(index, max([0, *edges]), tuple(pairs)))
    return found


@given(models(), st.integers(1, 64))
def test_spans_cover_exactly_what_is_missing(missing: list[Missing], lanes: int) -> None:
    spans = spread(missing, lanes)
    for one in missing:
        mine = [span for span in spans if span.index == one.index]
        assert mine == sorted(mine, key=lambda span: span.offset)
        covered: list[tuple[int, int]] = []
        for span in mine:
            if covered and sum(covered[-1]) == span.offset:
                covered[-1] = (covered[-1][0], covered[-1][1] + span.length)
            else:
                covered.append((span.offset, span.length))
        merged: list[tuple[int, int]] = []
        for offset, length in one.holes:
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((offset, length))
        assert covered == merged
    assert all(0 < span.length <= LARGEST for span in spans)


@given(st.integers(0, 10**13), st.integers(1, 512))
def test_a_range_is_of_16_to_64_mib(total: int, lanes: int) -> None:
    size = range_size(total, lanes)
    assert SMALLEST <= size <= LARGEST
    assert size % MIB == 0


def test_the_lanes_of_a_window_work_on_different_files() -> None:
    files = [Missing(index, GIB, ((0, GIB),)) for index in range(6)]
    spans = spread(files, 4)
    assert [span.index for span in spans[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]
    first_window = spans[: 4 * (GIB // spans[0].length)]
    assert {span.index for span in first_window} == {0, 1, 2, 3}


def test_configs_come_first_and_then_the_largest() -> None:
    files = [
        Missing(0, 100 * MIB, ((0, 100 * MIB),)),
        Missing(1, 5, ((0, 5),)),
        Missing(2, 200 * MIB, ((0, 200 * MIB),)),
    ]
    spans = spread(files, 1)
    assert spans[0] == Span(1, 0, 5)
    assert list(dict.fromkeys(span.index for span in spans)) == [1, 2, 0]


@given(st.lists(st.integers(1, 9)), st.integers(1, 5))
def test_dealing_loses_and_doubles_nothing(lengths: list[int], hands: int) -> None:
    spans = [Span(at, 0, length) for at, length in enumerate(lengths)]
    dealt = deal(spans, hands)
    assert len(dealt) == hands
    assert sorted((s for hand in dealt for s in hand), key=lambda s: s.index) == spans
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


MOST = 10_000 * (5 << 30)  # bytes of an object in OSS: 10,000 parts of 5 GiB


@given(st.one_of(st.integers(0, MOST), st.integers(0, 200 * GIB)))
@example(MOST)
@example(10_000 * SMALLEST)
@example(10_000 * SMALLEST + 1)
@example(48_800_000_000_000)
def test_parts_are_few_enough_and_large_enough_for_oss(size: int) -> None:
    step = part_size(size)
    assert step % MIB == 0
    assert 16 * MIB <= step <= 5 << 30
    assert -(-size // step) <= 10_000
    assert step == 16 * MIB or -(-size // (step - MIB)) > 10_000  # none larger than it must be


@pytest.mark.parametrize(
    ("size", "step"), [(0, 16), (1, 16), (10_000 * 16 * MIB, 16), (10_000 * 16 * MIB + 1, 17), (MOST, 5120)]
)
def test_the_size_of_a_part_follows_from_that_of_the_object(size: int, step: int) -> None:
    assert part_size(size) == step * MIB


files = st.dictionaries(
    st.integers(0, 99), st.one_of(st.integers(0, 2 * MIB), st.integers(0, 200 * MIB)), max_size=20
)


@given(files, st.integers(0, 20))
def test_parts_are_a_partition_of_every_file(sizes: dict[int, int], abreast: int) -> None:
    spans = in_parts(sizes, abreast)
    for index, size in sizes.items():
        mine = [(span.offset, span.length) for span in spans if span.index == index]
        step = part_size(size)
        assert mine == [(at, min(step, size - at)) for at in range(0, max(1, size), step)]
    assert {span.index for span in spans} == sizes.keys()


@given(files, st.integers(0, 20))
def test_no_more_files_are_half_done_than_may_be_abreast(sizes: dict[int, int], abreast: int) -> None:
    begun: set[int] = set()
    for span in in_parts(sizes, abreast):
        begun.add(span.index)
        assert len(begun) <= max(1, abreast)
        if span.end == sizes[span.index]:
            begun.remove(span.index)
    assert not begun


@given(files, st.integers(1, 20))
def test_tiny_files_come_first_and_then_the_largest_begin(sizes: dict[int, int], abreast: int) -> None:
    order = list(dict.fromkeys(span.index for span in in_parts(sizes, abreast)))
    assert order == sorted(sizes, key=lambda index: (sizes[index] > MIB, -sizes[index], index))


def test_files_abreast_take_turns_part_by_part() -> None:
    order = [span.index for span in in_parts(dict.fromkeys(range(5), 64 * MIB), 3)]
    assert all(one != other for one, other in pairwise(order[1:-1])), (
        order
    )  # but at both ends, where one is alone
    assert max(len(set(order[at : at + 3])) for at in range(len(order))) == 3


def test_one_abreast_is_one_file_after_the_other() -> None:
    spans = in_parts({0: 40 * MIB, 1: 50 * MIB}, 1)
    assert [span.index for span in spans] == [1, 1, 1, 1, 0, 0, 0]
