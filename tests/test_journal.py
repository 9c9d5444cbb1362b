"""The journal of a fetch: what was noted comes back, and damage costs a claim but never invents one that fits."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stager.core.journal import Begun, Done, Journal, Part, Record, Whole, compact, line, parse
from stager.core.pieces import Piece
from stager.core.placement import fault

numbers = st.integers(0, 2**63 - 1)
crcs = st.integers(0, 2**64 - 1)
names = st.binary(min_size=1, max_size=12).map(os.fsdecode).filter(lambda name: fault(name) is None)
etags = st.sampled_from(["A", "B", "0" * 32 + "-7"])
few = st.sampled_from(["a", "b/c", "\udcff.gguf"])
pieces = st.builds(Piece, st.integers(0, 60), st.integers(1, 40), crcs)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Begun, few | names, st.integers(0, 100), etags),
    st.builds(Done, few | names, etags, pieces),
    st.builds(Whole, few | names, numbers, etags, crcs, numbers, numbers, st.none() | st.just("0f" * 32)),
)


def written(*some: Record) -> bytes:
    return b"".join(line(record) for record in some)


@given(names, numbers, etags, st.lists(crcs, max_size=5))
def test_what_was_noted_comes_back(path: str, size: int, etag: str, found: list[int]) -> None:
    parts = tuple(Piece(10 * at, 10, crc) for at, crc in enumerate(found))
    raw = written(Begun(path, 10 * len(parts) + 5, etag), *[Done(path, etag, one) for one in reversed(parts)])
    assert raw.isascii(), "names of any bytes"
    journal = parse(raw)
    assert journal == Journal({path: Part(10 * len(parts) + 5, etag, list(parts))})
    whole = Whole(path, size, etag, 2**64 - 1, 2**63, 1)
    assert parse(raw + line(whole)) == Journal({}, {path: whole}), "a whole file ends its part"
    again = Begun(path, 3, "other")
    assert parse(raw + line(whole) + line(again)) == Journal({path: Part(3, "other")}, {path: whole})


@given(st.lists(records, max_size=40))
def test_compacted_it_says_the_same(some: list[Record]) -> None:
    journal = parse(written(*some))
    assert parse(compact(journal)) == journal
    assert len(compact(journal)) <= len(written(*some))
    for part in journal.parts.values():
        position = 0
        for piece in part.pieces:
            assert position <= piece.offset < piece.end <= part.size
            position = piece.end


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=15))
def test_the_later_piece_stands(stretches: list[tuple[int, int]]) -> None:
    """Against a model: for every byte of a piece that stands, no later piece was written over it."""
    size, last = 32, dict.fromkeys(range(32), -1)
    some: list[Record] = [Begun("a", size, "A")]
    for number, (offset, length) in enumerate(stretches):
        some.append(Done("a", "A", Piece(offset, length, number)))
        if offset + length <= size:
            last |= dict.fromkeys(range(offset, offset + length), number)
    standing = parse(written(*some)).parts["a"].pieces
    assert {one.crc for one in standing} == {
        number
        for number, (offset, length) in enumerate(stretches)
        if offset + length <= size and all(last[at] == number for at in range(offset, offset + length))
    }


@pytest.mark.parametrize("etag", ["A", "B"])
def test_begun_again_nothing_is_claimed(etag: str) -> None:
    """Of the same version too: what was fetched had the wrong checksum."""
    raw = written(Begun("a", 10, "A"), Done("a", "A", Piece(0, 5, 1)), Begun("a", 10, etag))
    assert parse(raw) == Journal({"a": Part(10, etag)})


def test_claims_of_another_version_do_not_count() -> None:
    raw = written(
        Done("a", "A", Piece(0, 1, 7)),
        Begun("a", 10, "A"),
        Done("a", "B", Piece(0, 2, 7)),
        Done("b", "A", Piece(0, 3, 7)),
        Done("a", "A", Piece(8, 3, 7)),
        Done("a", "A", Piece(0, 0, 7)),
    )
    assert parse(raw) == Journal({"a": Part(10, "A")})


GOOD = written(Begun("a", 10, "A"), Done("a", "A", Piece(0, 5, 1)), Whole("b", 1, "B", 2, 3, 4))
KEPT = parse(GOOD)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"\n\n",
        bytes(4096),
        b"[" * 100_000,
        b"7",
        b"null",
        b'"begun"',
        b"{}",
        b"[]",
        b'{"begun":1,"a":2}',
        b'["begun"]',
        b'["begun","a",11]',
        b'["begun","a",11,"Z","more"]',
        b'["begun","a",-1,"Z"]',
        b'["begun","a",true,"Z"]',
        b'["begun","a",1.0,"Z"]',
        b'["begun","a",NaN,"Z"]',
        b'["begun","a",11,7]',
        b'["begun",7,11,"Z"]',
        b'["begun","",11,"Z"]',
        b'["begun","../a",11,"Z"]',
        b'["begun","/a",11,"Z"]',
        b'["begun","a\\u0000",11,"Z"]',
        b'["begun","\\ud800",11,"Z"]',
        b'["done","a","A",5,5]',
        b'["done","a","A",5,5,"1"]',
        b'["whole","b",1,"C",2,3]',
        b'["whole","../b",1,"C",2,3,4]',
        b'["whole","b",1,"C",2,3,4,5]',
        b'["whole","b",1,"C",2,3,4,"0f"]',
        b'["whole","b",1,"C",2,3,4,"' + b"0F" * 32 + b'"]',
        b'["whole","b",1,"C",2,3,4,"' + b"0f" * 32 + b'",1]',
        b'["whole","b",1,"C",2,3,' + b"9" * 5000 + b"]",
        b'["perhaps","a",11,"Z"]',
        b"\xff\xfe[\x00",
        GOOD.splitlines()[1][:-3],
    ],
)
def test_rubbish_is_passed_over(rubbish: bytes) -> None:
    assert parse(rubbish) == Journal()
    assert parse(rubbish + b"\n" + GOOD) == KEPT
    assert parse(GOOD + rubbish) == KEPT
    assert parse(GOOD + rubbish + b"\n" + GOOD) == KEPT


@settings(max_examples=200)
@given(st.lists(records, max_size=8), st.data())
def test_a_torn_end_costs_the_last_line_and_no_other(some: list[Record], data: st.DataObject) -> None:
    raw = written(*some)
    cut = data.draw(st.integers(0, len(raw)))
    whole_lines = raw[:cut].count(b"\n")
    zeros = bytes(data.draw(st.integers(0, 5)))
    kept = parse(written(*some[:whole_lines]))
    ended = parse(written(*some[: whole_lines + 1]))  # only the newline is missing
    assert parse(raw[:cut]) in (kept, ended)
    if zeros:
        assert parse(raw[:cut] + zeros) == kept


@settings(max_examples=300)
@given(st.binary(max_size=200))
@example(b"\x00")
def test_anything_at_all_is_a_journal(raw: bytes) -> None:
    for journal in (parse(raw), parse(GOOD + raw)):
        assert all(fault(path) is None for path in [*journal.parts, *journal.whole])


def test_lines_without_a_sha256_are_still_read() -> None:
    old = b'["whole","b",1,"B",2,3,4]\n'
    assert parse(old) == Journal(whole={"b": Whole("b", 1, "B", 2, 3, 4)})
    assert line(Whole("b", 1, "B", 2, 3, 4)) == old
    proven = Whole("b", 1, "B", 2, 3, 4, "0f" * 32)
    assert parse(old + line(proven)) == Journal(whole={"b": proven})


LONG = [
    Begun("a", 100, "A"),
    Done("a", "A", Piece(0, 40, 1)),
    Begun('["begun","x",9,"X"]\n["done","x","X",0,1,2]', 9, "X"),
    Done("a", "A", Piece(40, 60, 2**64 - 1)),
    Begun("a", 120, "B"),
    Done("a", "B", Piece(0, 44, 4)),
    Whole("\udcff/b", 10, "B", 2, 3, 4),
    Done("a", "B", Piece(44, 44, 5)),
    Whole('b"]', 1, "B", 2, 3, 4),
]


def assert_nothing_invented(damaged: bytes, where: object) -> None:
    """Every piece was written for the version that it is claimed for, every whole file is one that was noted."""
    written_for = {(one.path, one.etag, one.piece) for one in LONG if isinstance(one, Done)}
    begun = {(one.path, one.size, one.etag) for one in LONG if isinstance(one, Begun)}
    found = parse(damaged)
    for path, part in found.parts.items():
        assert (path, part.size, part.etag) in begun, where
        assert {(path, part.etag, one) for one in part.pieces} <= written_for, where
    assert set(found.whole.values()) <= {one for one in LONG if isinstance(one, Whole)}, where


def test_cut_off_at_any_byte_and_gone_on_with() -> None:
    raw, more = written(*LONG), Whole("late", 1, "L", 2, 3, 4)
    for cut in range(len(raw) + 1):
        assert_nothing_invented(raw[:cut], cut)
        after = raw[:cut] + b"\n" + line(more)  # as `Target.append` does
        assert parse(after).whole == {**parse(raw[:cut]).whole, "late": more}, cut
        assert parse(after).parts == parse(raw[:cut]).parts, cut


def test_zeros_in_place_of_any_stretch() -> None:
    """Blocks that never reached the disk, in the middle too."""
    raw = written(*LONG)
    for first in range(len(raw)):
        for size in (1, 2, 7, 30, 64, 200):
            damaged = raw[:first] + bytes(min(size, len(raw) - first)) + raw[first + size :]
            assert_nothing_invented(damaged, (first, size))
            lost = set(raw.split(b"\n")) - set(damaged.split(b"\n"))
            assert len(lost) <= raw[first : first + size].count(b"\n") + 1
