"""Lanes on real threads: every byte once, whatever is split, retired or stopped; nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.core.model import Span
from stager.engine.lanes import Checkpoint, Lanes, Lease, LeaseReturned
from stager.engine.pace import Controller, Decision
from stager.engine.supply import Supply

MIB = 1 << 20


class Bench:
    """A kit that knows how many of it are open."""

    made = 0
    open_now = 0
    most = 0
    lock = threading.Lock()

    def __init__(self) -> None:
        with Bench.lock:
            Bench.made += 1
            Bench.open_now += 1
            Bench.most = max(Bench.most, Bench.open_now)

    def close(self) -> None:
        with Bench.lock:
            Bench.open_now -= 1

    @classmethod
    def reset(cls) -> None:
        cls.made = cls.open_now = cls.most = 0


@pytest.fixture(autouse=True)
def _bench() -> None:
    Bench.reset()


class Scripted(Controller):
    """A controller that plays a list of decisions, then stays at the last."""

    def __init__(self, decisions: list[Decision]) -> None:
        super().__init__(max(d.lanes for d in decisions), decisions[0].lanes)
        self.left = list(decisions)
        self.seen: list[tuple[int, int, int]] = []

    def observe(self, now: float, done: int, *, busy: int, backlog: int) -> Decision:
        self.seen.append((done, busy, backlog))
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


class Recorder:
    """A `read` that notes which bytes it was given; `pause` seconds per block, or a gate."""

    def __init__(self, block: int = MIB, pause: float = 0.0) -> None:
        self.block = block
        self.pause = pause
        self.bytes: list[tuple[int, int, int]] = []
        self.lock = threading.Lock()
        self.gate: threading.Event | None = None

    def __call__(self, lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        while size := lease.take(self.block):
            if self.gate is not None:
                self.gate.wait(10)
            if self.pause:
                time.sleep(self.pause)
            with self.lock:
                self.bytes.append((lease.span.index, lease.position, size))
            lease.advance(size)
            checkpoint(size)

    def assert_partition(self, spans: list[Span]) -> None:
        """Every byte of `spans` exactly once."""
        assert_partition(self.bytes, spans)


def assert_partition(pieces: list[tuple[int, int, int]], spans: list[Span]) -> None:
    for index in {span.index for span in spans} | {piece[0] for piece in pieces}:
        got = sorted((start, start + size) for i, start, size in pieces if i == index)
        want = sorted((span.offset, span.end) for span in spans if span.index == index and span.length)
        assert merged(got) == merged(want)


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Adjacent ranges joined; an overlap is a byte read twice."""
    out: list[tuple[int, int]] = []
    for start, end in ranges:
        if out and start < out[-1][1]:
            raise AssertionError(f"bytes from {start} read twice")
        if out and start == out[-1][1]:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def run(lanes: Lanes[Bench], beside: Callable[[], None] | None = None) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            if beside is not None:
                group.start_soon(anyio.to_thread.run_sync, beside)
            await lanes.run()

    if beside is None:
        anyio.run(lanes.run)
    else:
        anyio.run(main)


def fixed(lanes: int, *, split: bool = False) -> Controller:
    return Controller(lanes, lanes, adapt=False, may_split=split)


def test_reads_every_span_once_and_closes_every_kit() -> None:
    spans = [Span(i, 0, 3 * MIB + i) for i in range(40)]
    read = Recorder()
    lanes = Lanes(spans, read=read, kit=Bench, controller=fixed(4))
    run(lanes)
    read.assert_partition(spans)
    assert lanes.done == sum(span.length for span in spans)
    assert lanes.finished == frozenset(range(40))
    assert (lanes.busy, lanes.lanes, lanes.stuck(), lanes.stopped) == (0, 0, [], None)
    assert Bench.open_now == 0
    assert Bench.most <= 4
    assert Bench.made == 4  # one per lane for its whole life


def test_spans_are_taken_in_the_given_order() -> None:
    spans = [Span(i, 0, MIB) for i in (5, 3, 9, 1)]
    read = Recorder()
    run(Lanes(spans, read=read, kit=Bench, controller=fixed(1)))
    assert [index for index, _, _ in read.bytes] == [5, 3, 9, 1]


def test_nothing_to_do() -> None:
    lanes = Lanes([], read=Recorder(), kit=Bench, controller=fixed(4))
    run(lanes)
    assert lanes.finished == frozenset()
    assert lanes.done == 0


def test_zero_length_span_finishes_its_file() -> None:
    lanes = Lanes([Span(7, 0, 0)], read=Recorder(), kit=Bench, controller=fixed(2))
    run(lanes)
    assert lanes.finished == {7}


def test_short_read_completes_the_lease() -> None:
    def read(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        lease.take(MIB)
        lease.advance(10)
        checkpoint(10)

    lanes = Lanes([Span(0, 0, MIB), Span(1, 0, MIB)], read=read, kit=Bench, controller=fixed(1))
    run(lanes)
    assert lanes.finished == {0, 1}
    assert lanes.done == 20


def test_idle_lanes_take_over_the_tail_of_the_biggest_span() -> None:
    spans = [Span(0, 0, 256 * MIB)]
    read = Recorder(pause=0.001)
    lanes = Lanes(spans, read=read, kit=Bench, controller=fixed(4, split=True), min_piece=8 * MIB)
    run(lanes)
    read.assert_partition(spans)
    assert Bench.most == 4
    assert lanes.finished == {0}


def test_without_splitting_one_file_is_one_lane() -> None:
    spans = [Span(0, 0, 64 * MIB)]
    read = Recorder(pause=0.001)
    run(Lanes(spans, read=read, kit=Bench, controller=fixed(4), min_piece=8 * MIB))
    assert [start for _, start, _ in read.bytes] == [i * MIB for i in range(64)]
    assert Bench.most <= 1


def test_retired_lane_gives_its_rest_back_and_closes_its_kit() -> None:
    spans = [Span(i, 0, 9000 * MIB) for i in range(4)]
    read = Recorder(pause=0.0005)
    busy: list[int] = []
    script = Scripted([Decision(4, False)] * 3 + [Decision(1, False)])
    lanes = Lanes(spans, read=read, kit=Bench, controller=script)

    def watch() -> None:
        time.sleep(0.6)
        for _ in range(5):
            busy.append(lanes.lanes)
            time.sleep(0.02)
        lanes.stop("seen enough")

    run(lanes, watch)
    assert max(busy) == 1
    assert Bench.most == 4
    assert_no_byte_twice(read)
    assert script.seen[-1][2] == 3  # the rests of the three others wait


def assert_no_byte_twice(read: Recorder) -> None:
    for index in {piece[0] for piece in read.bytes}:
        merged(sorted((start, start + size) for i, start, size in read.bytes if i == index))


def test_a_divided_file_is_not_read_twice_at_once_when_splitting_ends() -> None:
    spans = [Span(0, 0, 4000 * MIB)]
    at_once: list[int] = []
    read = Recorder(pause=0.0005)
    script = Scripted([Decision(4, True)] * 3 + [Decision(1, False)] * 2 + [Decision(4, False)])
    lanes = Lanes(spans, read=read, kit=Bench, controller=script, min_piece=16 * MIB)

    def watch() -> None:
        time.sleep(0.65)
        while lanes.lanes:
            at_once.append(lanes.busy)
            time.sleep(0.01)

    run(lanes, watch)
    assert max(at_once) == 1
    read.assert_partition(spans)
    assert lanes.finished == {0}


def test_when_splitting_ends_each_divided_file_keeps_one_lane() -> None:
    supply = Supply([Span(0, 0, 512 * MIB), Span(1, 0, 128 * MIB), Span(1, 128 * MIB, 128 * MIB)], 64 * MIB)
    leases = [supply.next(split=True) for _ in range(5)]
    held = [lease for lease in leases if lease is not None]
    assert [lease.span.index for lease in held] == [0, 1, 1, 0, 0]
    supply.rejoin()
    assert [lease.remaining() > 0 for lease in held] == [True, True, True, False, False]
    assert supply.backlog(split=False) == 0  # the rests wait for the first lane to end
    assert supply.backlog(split=True) == 2


def test_lane_that_crawls_is_retired_first() -> None:
    spans = [Span(i, 0, 9000 * MIB) for i in range(4)]

    def read(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        while size := lease.take(MIB):
            time.sleep(0.05 if lease.span.index == 1 else 0.001)
            lease.advance(size)
            checkpoint(size)

    lanes = Lanes(
        spans, read=read, kit=Bench, controller=Scripted([Decision(4, False)] * 5 + [Decision(3, False)])
    )
    left: list[set[int]] = []

    def watch() -> None:
        time.sleep(0.9)
        left.append({span.index for span, _, _ in lanes.active()})
        lanes.stop("seen")

    run(lanes, watch)
    assert left == [{0, 2, 3}]


def test_stop_ends_run_normally_with_its_reason() -> None:
    spans = [Span(i, 0, 1000 * MIB) for i in range(8)]
    read = Recorder(pause=0.001)
    lanes = Lanes(spans, read=read, kit=Bench, controller=fixed(4))

    def stop() -> None:
        time.sleep(0.2)
        lanes.stop("margin is gone")
        lanes.stop("too late")

    before = time.monotonic()
    run(lanes, stop)
    assert time.monotonic() - before < 1
    assert lanes.stopped == "margin is gone"
    assert lanes.finished == frozenset()
    assert 0 < lanes.done < 1000 * MIB
    assert Bench.open_now == 0
    assert lanes.stuck() == []


def test_stop_before_the_run_reads_nothing() -> None:
    read = Recorder()
    lanes = Lanes([Span(0, 0, MIB)], read=read, kit=Bench, controller=fixed(1))
    lanes.stop("no room")
    run(lanes)
    assert read.bytes == []


def test_error_of_read_is_raised_bare_and_ends_the_others() -> None:
    def read(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        if lease.span.index == 2:
            time.sleep(0.05)
            raise ZeroDivisionError("a defect")
        while size := lease.take(MIB):
            time.sleep(0.001)
            lease.advance(size)
            checkpoint(size)

    lanes = Lanes([Span(i, 0, 9000 * MIB) for i in range(4)], read=read, kit=Bench, controller=fixed(4))
    before = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        anyio.run(lanes.run)
    assert time.monotonic() - before < 1
    assert Bench.open_now == 0
    assert lanes.finished == frozenset()


def test_error_of_kit_is_raised_bare() -> None:
    def kit() -> Bench:
        raise OSError(24, "too many open files")

    with pytest.raises(OSError, match="too many"):
        anyio.run(Lanes([Span(0, 0, 1)], read=Recorder(), kit=kit, controller=fixed(2)).run)


def test_cancelled_run_unwinds_its_lanes() -> None:
    lanes = Lanes(
        [Span(i, 0, 9000 * MIB) for i in range(8)], read=Recorder(pause=0.001), kit=Bench, controller=fixed(8)
    )

    async def main() -> float:
        with anyio.move_on_after(0.2) as scope:
            await lanes.run()
        assert scope.cancelled_caught
        return anyio.current_time() - scope.deadline

    assert anyio.run(main) < 0.2
    assert Bench.open_now == 0
    assert lanes.stuck() == []
    assert lanes.stopped is None


def test_hung_read_is_left_behind_and_named() -> None:
    gate = threading.Event()

    def read(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        if lease.span.index == 11:
            gate.wait(30)
        while size := lease.take(MIB):
            time.sleep(0.001)
            lease.advance(size)
            checkpoint(size)

    lanes = Lanes([Span(i, 0, 9000 * MIB) for i in (10, 11, 12)], read=read, kit=Bench, controller=fixed(3))

    async def main() -> float:
        with anyio.move_on_after(0.3) as scope:
            await lanes.run()
        late = anyio.current_time() - scope.deadline
        assert lanes.stuck() == [11]
        [(span, position, silent)] = lanes.active()
        assert (span.index, position) == (11, 0)
        assert silent >= 0.3
        gate.set()
        return late

    assert anyio.run(main) < 1.5
    for _ in range(200):
        if not lanes.lanes:
            break
        time.sleep(0.01)
    assert lanes.stuck() == []
    assert Bench.open_now == 0


def test_a_lane_that_blocks_is_roused_when_the_run_is_over() -> None:
    roused = threading.Event()

    def block(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        lease.take(MIB)
        assert roused.wait(30)
        raise LeaseReturned

    lanes = Lanes(
        [Span(0, 0, MIB)], read=block, kit=Bench, controller=fixed(1), rouse=lambda kit: roused.set()
    )

    async def main() -> None:
        with anyio.move_on_after(0.2):
            await lanes.run()

    anyio.run(main)
    assert lanes.stuck() == []
    assert Bench.open_now == 0


def test_max_rate_holds_for_all_lanes_together() -> None:
    spans = [Span(i, 0, 10 * MIB) for i in range(8)]
    before = time.monotonic()
    lanes = Lanes(spans, read=Recorder(), kit=Bench, controller=fixed(8), max_rate=80 * MIB)
    run(lanes)
    assert 0.75 < time.monotonic() - before < 1.6


def test_stop_interrupts_a_slow_rate() -> None:
    lanes = Lanes(
        [Span(0, 0, 100 * MIB)], read=Recorder(), kit=Bench, controller=fixed(1), max_rate=MIB // 10
    )
    before = time.monotonic()
    run(lanes, lambda: (time.sleep(0.1), lanes.stop("enough"))[1])
    assert time.monotonic() - before < 1


def test_observation_while_reading() -> None:
    read = Recorder()
    read.gate = threading.Event()
    lanes = Lanes([Span(i, 5 * MIB, 2 * MIB) for i in range(3)], read=read, kit=Bench, controller=fixed(3))
    seen: list[object] = []

    def watch() -> None:
        time.sleep(0.2)
        seen.append((lanes.busy, lanes.lanes, lanes.done, lanes.finished))
        seen.append({(span.index, position) for span, position, _ in lanes.active()})
        assert lanes.last_progress <= time.monotonic() - 0.15
        assert read.gate is not None
        read.gate.set()

    run(lanes, watch)
    assert seen[0] == (3, 3, 0, frozenset())
    assert seen[1] == {(i, 5 * MIB) for i in range(3)}
    assert time.monotonic() - lanes.last_progress < 1


def test_checkpoint_is_cheap() -> None:
    cost: list[float] = []

    def read(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        rounds = 20_000
        before = time.perf_counter()
        for _ in range(rounds):
            lease.take(1)
            lease.advance(1)
            checkpoint(1)
        cost.append((time.perf_counter() - before) / rounds)

    for _ in range(5):
        run(Lanes([Span(0, 0, MIB)], read=read, kit=Bench, controller=fixed(1)))
    assert min(cost) < 4e-6  # take, advance and checkpoint together; 1 us on an idle machine


def test_a_lease_given_back_is_read_on_where_it_stopped() -> None:
    spans = [Span(0, 0, 8 * MIB), Span(1, 0, 8 * MIB)]
    read = Recorder()
    given_back: list[int] = []

    def some(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        if len(given_back) < 5:
            size = lease.take(MIB)
            read.bytes.append((lease.span.index, lease.position, size))
            lease.advance(size)
            given_back.append(lease.span.index)
            raise LeaseReturned
        read(lease, kit, checkpoint)

    lanes = Lanes(spans, read=some, kit=Bench, controller=fixed(1))
    run(lanes)
    read.assert_partition(spans)
    assert lanes.finished == {0, 1}
    assert lanes.stuck() == []


def test_a_lease_given_back_at_its_end_is_complete() -> None:
    def all_of_it(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        lease.advance(lease.take(MIB))
        raise LeaseReturned

    lanes = Lanes([Span(0, 0, MIB)], read=all_of_it, kit=Bench, controller=fixed(1))
    run(lanes)
    assert lanes.finished == {0}


def test_bytes_that_a_request_is_under_way_for_are_nobody_elses() -> None:
    lease = Lease(Span(0, 0, 64 * MIB))
    lease.take(64 * MIB)
    lease.advance(MIB, keep=True)
    assert lease.remaining() == 0
    assert lease.surrender(1) is None
    assert lease.cut(1) is None
    lease.advance(MIB)
    assert lease.remaining() == 62 * MIB


def test_asking_whether_it_is_over_is_no_progress() -> None:
    seen: list[float] = []

    def ask(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        lease.advance(lease.take(MIB))
        checkpoint(MIB)
        before = lanes.last_progress
        time.sleep(0.02)
        checkpoint(0)
        seen.append(lanes.last_progress - before)

    lanes = Lanes([Span(0, 0, MIB)], read=ask, kit=Bench, controller=fixed(1))
    run(lanes)
    assert seen == [0.0]
    assert lanes.done == MIB


def test_lease_refuses_bytes_that_were_not_taken() -> None:
    lease = Lease(Span(0, 0, 10))
    lease.take(4)
    with pytest.raises(ValueError, match="taken"):
        lease.advance(5)


class Model:
    """Drives a `Supply` single-threaded with arbitrary interleavings, and keeps every byte handed out."""

    def __init__(self, spans: list[Span], min_piece: int) -> None:
        self.spans = spans
        self.supply = Supply(spans, min_piece)
        self.held: list[Lease] = []
        self.pieces: list[tuple[int, int, int]] = []

    def take(self, *, split: bool) -> None:
        lease = self.supply.next(split=split)
        if lease is not None:
            self.held.append(lease)

    def step(self, lease: Lease, size: int, short: int) -> None:
        taken = lease.take(size)
        if not taken:
            self.held.remove(lease)
            self.supply.complete(lease)
            for index in self.supply.finished:
                wanted = sum(span.length for span in self.spans if span.index == index)
                assert wanted == sum(moved for i, _, moved in self.pieces if i == index)
            return
        moved = max(1, taken - short)
        self.pieces.append((lease.span.index, lease.position, moved))
        lease.advance(moved)

    def drain(self) -> None:
        while True:
            self.take(split=False)
            if not self.held:
                break
            self.step(self.held[0], 1 << 60, 0)
        assert self.supply.backlog(split=False) == 0


sizes = st.integers(0, 200 * MIB)
actions = st.lists(
    st.tuples(
        st.sampled_from(["take", "split", "step", "step", "step", "reserve", "back", "rejoin"]),
        st.integers(0, 7),
        st.integers(1, 80 * MIB),
        st.integers(0, 2),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 3), sizes), min_size=1, max_size=6), script=actions)
def test_bytes_handed_out_partition_the_spans(lengths: list[tuple[int, int]], script: list) -> None:
    offsets: Counter[int] = Counter()
    spans = []
    for index, length in lengths:
        spans.append(Span(index, offsets[index], length))
        offsets[index] += length
    model = Model(spans, min_piece=16 * MIB)
    for what, which, size, short in script:
        lease = model.held[which % len(model.held)] if model.held else None
        if what in ("take", "split"):
            model.take(split=what == "split")
        elif what == "rejoin":
            model.supply.rejoin()
        elif lease is not None and what == "step":
            model.step(lease, size, short)
        elif lease is not None and what == "reserve":
            lease.take(size)  # a block in flight while others cut
        elif lease is not None:
            model.supply.put_back(lease)
    model.drain()
    assert_partition(model.pieces, spans)
    assert model.supply.finished == {span.index for span in spans}


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 96 * MIB), min_size=1, max_size=8),
    script=st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=6),
    stop=st.none() | st.floats(0, 0.2),
)
def test_threads_partition_the_spans(
    lengths: list[int], script: list[tuple[int, bool]], stop: float | None
) -> None:
    spans = [Span(i, 0, length) for i, length in enumerate(lengths)]
    read = Recorder(pause=0.0005)
    decisions = [Decision(*pair) for pair in script]
    lanes = Lanes(spans, read=read, kit=Bench, controller=Scripted(decisions), min_piece=8 * MIB)
    run(lanes, (lambda: (time.sleep(stop), lanes.stop("random"))[1]) if stop is not None else None)
    assert_no_byte_twice(read)
    assert lanes.done == sum(size for _, _, size in read.bytes)
    if lanes.finished == frozenset(range(len(spans))):
        read.assert_partition(spans)
    else:
        assert lanes.stopped == "random"


# Whole spans: for whoever has memory or an order that goes with each


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 300 * MIB), min_size=1, max_size=8),
    st.lists(st.sampled_from(["next", "next", "take", "put_back", "rejoin", "complete"]), max_size=60),
)
def test_whole_spans_are_handed_out_once_and_never_cut(lengths: list[int], steps: list[str]) -> None:
    spans = [Span(index, 64 * MIB, length) for index, length in enumerate(lengths)]
    supply = Supply(spans, MIB, whole=True)
    held: list[Lease] = []
    handed: list[Span] = []
    for step in [*steps, *(["next"] * len(spans))]:
        if step == "next":
            assert supply.work_for_more(split=False) is (len(handed) < len(spans))
            if (lease := supply.next(split=True)) is not None:
                held.append(lease)
                handed.append(lease.span)
        elif step == "rejoin":
            supply.rejoin()
        elif held and step == "take":
            held[-1].advance(held[-1].take(16 * MIB))
        elif held and step == "put_back":
            supply.put_back(held[-1])
        elif held and step == "complete":
            supply.complete(held.pop(0))
        assert all(lease.end == lease.span.end for lease in held)
    assert handed == spans
    for lease in held:
        supply.complete(lease)
    assert supply.next(split=True) is None
    assert supply.finished == frozenset(range(len(spans)))


def test_a_lane_that_is_retired_ends_the_whole_span_that_it_has() -> None:
    spans = [Span(index, 0, 64 * MIB) for index in range(40)]
    many, few = Decision(6, split=True), Decision(1, split=True)
    controller = Scripted([many, few, few, many])
    read: list[tuple[Span, int]] = []
    lock = threading.Lock()

    def reading(lease: Lease, kit: Bench, checkpoint: Checkpoint) -> None:
        done = 0
        while size := lease.take(8 * MIB):
            while len(controller.left) > 1:  # until all but one were retired with most of their spans to go
                time.sleep(0.01)
            time.sleep(0.002)
            lease.advance(size)
            checkpoint(size)
            done += size
        with lock:
            read.append((lease.span, done))

    lanes = Lanes(spans, read=reading, kit=Bench, controller=controller, min_piece=8 * MIB, whole=True)
    run(lanes)
    assert sorted(read, key=lambda one: one[0].index) == [(span, span.length) for span in spans]
    assert lanes.finished == frozenset(range(40))
    assert Bench.made > 6  # they were really retired, and others begun
