"""Memory on loan: turns in order, never more than agreed, nothing kept that other sizes need, and no deadlock."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stager.engine.buffers import Buffer, Buffers
from tests.mapped import Mapped

GRAIN = 64 << 10
MIB = 1 << 20
PATIENCE_S = 30.0


class Over(Exception):
    """What a checkpoint raises here when the run is over."""


def on(_count: int) -> None:
    """The checkpoint of a run that goes on. Whoever only looks must not count as progress."""
    assert _count == 0


def over(_count: int) -> None:
    raise Over


def test_a_view_is_as_long_as_asked_and_may_be_written() -> None:
    buffers = Buffers(4 * GRAIN)
    sizes = [0, 1, GRAIN - 1, GRAIN]
    for turn, size in enumerate(sizes):
        buffer = buffers.take(turn, size, on)
        assert len(buffer.view) == size
        assert buffer.capacity == GRAIN
        buffer.view[:] = bytes([turn]) * size


def test_turns_are_served_in_order_whoever_asks_first() -> None:
    buffers, served = Buffers(GRAIN), []

    def serve(turn: int) -> None:
        buffer = buffers.take(turn, 100, on)  # there is only one, so the order of the takes shows
        served.append(turn)
        buffers.give(buffer)

    threads = [threading.Thread(target=serve, args=(turn,), daemon=True) for turn in reversed(range(20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert served == list(range(20))


def test_a_turn_that_needs_none_lets_the_next_one_come() -> None:
    buffers = Buffers(GRAIN)
    with pytest.raises(Over):
        buffers.take(1, 1, over)
    buffers.passed(0, on)
    with pytest.raises(Over):
        buffers.passed(2, over)
    buffers.take(1, 1, on)
    buffers.passed(2, on)


def test_a_run_that_is_over_ends_the_wait_for_room_too() -> None:
    buffers = Buffers(2 * GRAIN)
    kept = buffers.take(0, 2 * GRAIN, on)
    with pytest.raises(Over):
        buffers.take(1, 1, over)
    buffers.give(kept)
    assert buffers.take(1, 1, on).capacity == GRAIN  # who gave up has not used up the turn


def test_more_than_there_will_ever_be_is_refused_at_once() -> None:
    buffers = Buffers(4 * GRAIN)
    for size in (4 * GRAIN + 1, MIB):
        with pytest.raises(ValueError, match=str(size)):
            buffers.take(0, size, over)
    assert buffers.take(0, 4 * GRAIN, over).capacity == 4 * GRAIN


def test_what_was_given_back_is_lent_again(mapped: Mapped) -> None:
    buffers = Buffers(8 * GRAIN)
    first = buffers.take(0, 3 * GRAIN, on)
    first.view[:4] = b"mark"
    buffers.give(first)
    again = buffers.take(1, 3 * GRAIN - 5, on)  # of the same multiple
    assert bytes(again.view[:4]) == b"mark"
    assert len(again.view) == 3 * GRAIN - 5
    assert mapped.made == 1


def test_all_of_it_may_be_out_and_not_a_byte_more(mapped: Mapped) -> None:
    buffers = Buffers(5 * GRAIN + 7)  # what is over is too little for another
    out = [buffers.take(turn, GRAIN, on) for turn in range(5)]
    with pytest.raises(Over):
        buffers.take(5, 1, over)
    assert mapped.now == 5 * GRAIN
    buffers.give(out.pop())
    buffers.take(5, 1, on)
    assert mapped.most == 5 * GRAIN


def test_free_buffers_of_other_sizes_are_given_up_for_those_that_are_wanted(mapped: Mapped) -> None:
    buffers = Buffers(8 * GRAIN)
    turns = itertools.count()
    small = [buffers.take(next(turns), GRAIN, on) for _ in range(8)]
    kept = small.pop()
    while small:
        buffers.give(small.pop())
    large = buffers.take(next(turns), 7 * GRAIN, on)
    assert mapped.now == 8 * GRAIN == mapped.most
    assert (kept.capacity, large.capacity) == (GRAIN, 7 * GRAIN)


def test_what_is_given_up_goes_at_once_though_its_last_borrower_still_knows_it(mapped: Mapped) -> None:
    """As a lane does until its part is all done."""
    buffers = Buffers(2 * GRAIN)
    known = buffers.take(0, 2 * GRAIN, on)
    buffers.give(known)
    small = buffers.take(1, GRAIN, on)
    assert (mapped.now, mapped.most) == (small.capacity, 2 * GRAIN)
    del known


def test_no_more_are_given_up_than_it_takes(mapped: Mapped) -> None:
    buffers = Buffers(8 * GRAIN)
    out = [buffers.take(turn, 2 * GRAIN, on) for turn in range(4)]
    while out:
        buffers.give(out.pop())
    kept = buffers.take(4, GRAIN, on)
    assert mapped.now == 3 * 2 * GRAIN + kept.capacity


def test_free_buffers_stay_as_long_as_there_is_room(mapped: Mapped) -> None:
    buffers = Buffers(8 * GRAIN)
    buffers.give(buffers.take(0, GRAIN, on))
    buffers.give(buffers.take(1, 2 * GRAIN, on))
    buffers.take(2, GRAIN, on)
    assert mapped.made == 2


CHILD = """
from stager.engine.buffers import Buffers
MIB = 1 << 20
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))
def fill(size, count):
    global turn
    out = []
    for _ in range(count):
        out.append(buffers.take(turn, size, lambda _: None))
        turn += 1
        for at in range(0, size, MIB):
            out[-1].view[at : at + MIB] = block
    most = anonymous()
    for one in out:
        buffers.give(one)
    return most
turn, block, buffers = 0, b"x" * MIB, Buffers(64 * MIB)
before = anonymous()
print(*(fill(size * MIB, 64 // size) - before for size in (16, 4, 64, 1, 32)))
"""


def test_the_process_grows_by_no_more_than_agreed_whatever_sizes_follow_each_other() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    grown = [int(word) for word in done.stdout.split()]
    assert len(grown) == 5
    assert all(60 * MIB <= one <= 68 * MIB for one in grown), grown


class Loans:
    """What is out, as those who borrow see it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.out: dict[int, Buffer] = {}
        self.ended = 0  # turns that were given back, which is done in their order
        self.changed = threading.Condition()

    def took(self, turn: int, buffer: Buffer) -> None:
        with self.changed:
            assert all(one.view.obj is not buffer.view.obj for one in self.out.values())
            self.out[turn] = buffer
            assert sum(one.capacity for one in self.out.values()) <= self.size

    def end(self, turn: int, buffers: Buffers, stop: threading.Event) -> None:
        """Gives back once all earlier turns are: as parts of a file that are hashed in order."""
        with self.changed:
            while self.ended < turn:
                if stop.is_set():
                    raise Over
                self.changed.wait(0.05)
            if turn in self.out:
                buffers.give(self.out.pop(turn))
            self.ended += 1
            self.changed.notify_all()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 12),
    wanted=st.lists(st.one_of(st.none(), st.integers(0, 12 * GRAIN)), max_size=60),
    threads=st.integers(1, 8),
)
def test_random_loans_never_exceed_and_never_deadlock(
    mapped: Mapped, size: int, wanted: list[int | None], threads: int
) -> None:
    mapped.most = mapped.now
    before = mapped.now
    wanted = [None if one is None else min(one, size * GRAIN) for one in wanted]
    buffers, loans, stop = Buffers(size * GRAIN), Loans(size * GRAIN), threading.Event()
    queue = iter(enumerate(wanted))
    taking = threading.Lock()
    failures: list[BaseException] = []

    def checkpoint(_count: int) -> None:
        if stop.is_set():
            raise Over

    def work() -> None:
        try:
            while True:
                with taking:
                    turn, asked = next(queue, (-1, None))
                if turn < 0:
                    return
                if asked is None:
                    buffers.passed(turn, checkpoint)
                else:
                    loans.took(turn, buffers.take(turn, asked, checkpoint))
                loans.end(turn, buffers, stop)
        except BaseException as exc:
            failures.append(exc)

    crew = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for one in crew:
        one.start()
    for one in crew:
        one.join(PATIENCE_S)
    stop.set()
    assert not any(one.is_alive() for one in crew)
    assert not failures, failures
    assert loans.ended == len(wanted)
    assert mapped.most - before <= size * GRAIN
