"""Which files, in which order, in which pieces: properties of the plan and of the estimate, against plain models."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core import plan as plan_module
from stager.core.errors import UsageError
from stager.core.estimate import lower_bound, sample_pages
from stager.core.plan import (
    LEAST_SPAN,
    PIECE,
    WHOLE,
    Candidate,
    Order,
    make_plan,
    parse_span,
    span_text,
    wanted,
)


@st.composite
def stretches(draw: st.DrawFn, size: int) -> tuple[tuple[int, int], ...]:
    """Ascending, disjoint, not touching (offset, length) in [0, size)."""
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=10)))
    return tuple((a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False))


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    count = draw(st.integers(0, 8))
    ranks = draw(st.permutations(range(count)))
    made = []
    for index in range(count):
        size = draw(st.integers(0, 4 * PIECE))
        holes = draw(stretches(size))
        weight, whole = draw(st.booleans()), draw(st.booleans())
        made.append(Candidate(index, f"{index}.bin", size, holes, ranks[index], weight=weight, whole=whole))
    return made


orders = st.sampled_from(Order)
grants = st.integers(0, 20 * PIECE)


@given(candidates(), grants, orders)
def test_never_more_than_granted(files: list[Candidate], granted: int, order: Order) -> None:
    plan = make_plan(files, granted, order)
    assert plan.read <= granted
    assert plan.read == sum(files[index].need for index in plan.chosen)


@given(candidates(), grants, orders)
def test_every_file_is_chosen_or_skipped_once(files: list[Candidate], granted: int, order: Order) -> None:
    plan = make_plan(files, granted, order)
    chosen, skipped = [files[index].path for index in plan.chosen], [one.path for one in plan.skipped]
    assert sorted(chosen + skipped) == sorted(one.path for one in files)
    fits = sum(one.need for one in files) <= granted
    assert plan.partial == bool(skipped)
    assert not (fits and plan.partial), "everything that fits is taken"


@given(candidates(), grants)
def test_a_part_is_a_prefix_of_the_load_order(files: list[Candidate], granted: int) -> None:
    for order in (Order.AUTO, Order.LOAD):
        plan = make_plan(files, granted, order)
        if not plan.partial:
            continue
        needed = [one.index for one in sorted(files, key=lambda one: one.load) if one.need]
        chosen = [index for index in plan.chosen if files[index].need]
        assert chosen == needed[: len(chosen)]
        following = files[needed[len(chosen)]]
        assert following.need > granted - plan.read, "the next file did not fit"
        assert {one.index for one in files if not one.need} <= set(plan.chosen), "these take no room"


@given(candidates())
def test_all_that_fits_starts_with_small_configs_then_the_largest(files: list[Candidate]) -> None:
    plan = make_plan(files, 1 << 60)
    ranked = [files[index] for index in plan.chosen]
    heads = [not one.weight and one.size <= 64 << 20 for one in ranked]
    assert heads == sorted(heads, reverse=True)
    rest = [one.size for one, head in zip(ranked, heads, strict=True) if not head]
    assert rest == sorted(rest, reverse=True)


@given(candidates(), grants, orders)
def test_spans_partition_the_holes(files: list[Candidate], granted: int, order: Order) -> None:
    """No byte twice, no hole left; a file on a single handle is one span from its first hole to its last."""
    plan = make_plan(files, granted, order)
    assert [span.index for span in plan.spans] == sorted(
        [span.index for span in plan.spans], key=plan.chosen.index
    ), "in reading order"
    for index in plan.chosen:
        spans = [span for span in plan.spans if span.index == index]
        one = files[index]
        if one.whole:
            assert len(spans) == bool(one.holes)
            if spans:
                assert (spans[0].offset, spans[0].end) == (one.holes[0][0], sum(one.holes[-1]))
            continue
        assert all(0 < span.length <= PIECE for span in spans)
        merged: list[tuple[int, int]] = []
        for span in spans:
            if merged and sum(merged[-1]) == span.offset and (span.offset, 0) not in one.holes:
                starts = {offset for offset, _ in one.holes}
                if span.offset not in starts:
                    merged[-1] = (merged[-1][0], merged[-1][1] + span.length)
                    continue
            merged.append((span.offset, span.length))
        assert tuple(merged) == tuple(hole for hole in one.holes if hole[1])


@given(st.integers(1, 300).flatmap(lambda size: st.tuples(st.just(size), stretches(size))), st.data())
def test_wanted_walks_over_exactly_the_holes(
    given_: tuple[int, tuple[tuple[int, int], ...]], data: st.DataObject
) -> None:
    """A reader that skips and reads as told, in blocks of any size, reads every missing byte once and no other."""
    size, holes = given_
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    missing = {at for offset, length in holes for at in range(offset, offset + length)}
    position, read = start, []
    while position < end:
        block = min(end, position + data.draw(st.integers(1, 50)))
        skip, count = wanted(holes, position, block)
        assert skip or count
        assert skip + count <= block - position
        if skip:
            position += skip
            continue
        moved = data.draw(st.integers(1, count))  # a read may give less than was asked
        read += range(position, position + moved)
        position += moved
    assert position == end
    assert read == sorted(missing & set(range(start, end)))


def test_a_piece_is_of_a_size_that_was_chosen() -> None:
    assert plan_module.PIECE == 128 << 20


@given(
    st.integers(0, 5000).flatmap(lambda size: st.tuples(st.just(size), stretches(size))), st.integers(1, 6000)
)
def test_pieces_that_were_asked_for_have_every_hole_once(
    given_: tuple[int, tuple[tuple[int, int], ...]], piece: int
) -> None:
    """Between two multiples of the piece lies at most one span, which begins with a missing byte; no missing byte lies outside."""
    size, holes = given_
    spans = make_plan([Candidate(0, "a", size, holes, 0, piece=piece)], size).spans
    missing = [at for offset, length in holes for at in range(offset, offset + length)]
    assert [at for span in spans for at in range(span.offset, span.end) if at in set(missing)] == missing
    assert {span.offset for span in spans} <= set(missing)
    cells = [(span.offset // piece, (span.end - 1) // piece) for span in spans]
    assert all(first == last for first, last in cells)
    assert cells == sorted(set(cells))


@given(st.integers(LEAST_SPAN, 1 << 50))
def test_a_span_is_read_back_as_it_was_said(size: int) -> None:
    assert parse_span(span_text(size)) == size
    assert parse_span(span_text(WHOLE)) == WHOLE


@pytest.mark.parametrize(
    ("text", "says"),
    [("1023KiB", "less than 1 MiB"), ("0", "less than"), ("-1", "no span"), ("all", "no span")],
)
def test_a_span_that_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_span(text)


# Estimates


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_lower_bound_is_below_what_was_seen_and_below_all(seen: tuple[int, int]) -> None:
    hits, samples = seen
    bound = lower_bound(hits, samples)
    assert 0 <= bound < 1
    assert bound <= hits / samples
    if hits and samples >= 10:  # the rule of three says less of a few samples than Wilson's interval
        assert lower_bound(hits - 1, samples) <= bound


@given(st.integers(1, 2000))
def test_more_samples_say_more(samples: int) -> None:
    assert lower_bound(samples, samples) <= lower_bound(2 * samples, 2 * samples)


@pytest.mark.parametrize(("share", "samples"), [(0.5, 100), (0.9, 512), (0.99, 512), (0.1, 512)])
def test_the_bound_holds_nineteen_times_in_twenty(share: float, samples: int) -> None:
    """Exactly, by the binomial distribution: how often the truth lies below the bound."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    wrong = sum(
        math.exp(log_choose(samples, hits) + hits * math.log(share) + (samples - hits) * math.log(1 - share))
        for hits in range(samples + 1)
        if lower_bound(hits, samples) > share
    )
    assert wrong < 0.06


@pytest.mark.parametrize(("hits", "samples"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
def test_nonsense_is_refused(hits: int, samples: int) -> None:
    with pytest.raises(ValueError):
        lower_bound(hits, samples)


@given(st.integers(1, 10**7), st.integers(1, 600), st.integers())
def test_samples_are_distinct_ascending_and_repeatable(pages: int, count: int, seed: int) -> None:
    chosen = sample_pages(pages, count, seed)
    assert len(chosen) == min(pages, count) == len(set(chosen))
    assert chosen == sorted(chosen) == sample_pages(pages, count, seed)
    assert chosen[0] >= 0
    assert chosen[-1] < pages
