"""Pieces of a file, against a model of the file as a list of bytes that are there or not."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stager.core.checksum import crc64
from stager.core.pieces import Piece, Pieces


def piece_of(content: bytes, offset: int, length: int) -> Piece:
    return Piece(offset, length, crc64(content[offset : offset + length]))


@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(-3, 45), st.integers(-2, 20)), max_size=30))
@example(bytes(10), [(2, 3), (4, 3), (1, 2), (0, 10), (2, 3), (3, 1), (5, 5), (0, 2)])
@example(bytes(10), [(-2, 5), (8, 5), (0, 10)])
def test_any_order_any_overlap(content: bytes, tries: list[tuple[int, int]]) -> None:
    size = len(content)
    pieces, there = Pieces(size), [False] * size
    for offset, length in tries:
        covered = range(offset, offset + length)
        fits = length > 0 and offset >= 0 and offset + length <= size and not any(there[at] for at in covered)
        if fits:
            pieces.add(piece_of(content, offset, length))
            for at in covered:
                there[at] = True
        else:
            with pytest.raises(ValueError, match="do not fit"):
                pieces.add(Piece(offset, length, 0))
        assert pieces.done == sum(there)
        assert pieces.whole == all(there)
        holes = [
            [at for at, _ in run] for here, run in groupby(enumerate(there), lambda one: one[1]) if not here
        ]
        assert pieces.missing() == [(hole[0], len(hole)) for hole in holes]
        assert [one.offset for one in pieces] == sorted(one.offset for one in pieces)
    for offset, length in pieces.missing():
        with pytest.raises(ValueError, match="missing"):
            pieces.crc()
        pieces.add(piece_of(content, offset, length))
    assert pieces.crc() == crc64(content)


def test_an_empty_file_is_whole() -> None:
    pieces = Pieces(0)
    assert (pieces.whole, pieces.done, pieces.missing(), pieces.crc()) == (True, 0, [], 0)
    with pytest.raises(ValueError, match="do not fit"):
        pieces.add(Piece(0, 1, 0))


def test_begun_again_it_is_empty() -> None:
    pieces = Pieces(3)
    pieces.add(piece_of(b"abc", 0, 3))
    pieces.clear()
    assert (pieces.whole, pieces.done, list(pieces), pieces.missing()) == (False, 0, [], [(0, 3)])
