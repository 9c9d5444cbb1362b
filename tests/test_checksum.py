"""CRC-64 against a second implementation, and CRCs put together against the CRC of the bytes put together."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stager.core.checksum import combine, crc64

crcs = st.integers(0, 2**64 - 1)
OF_NINE_DIGITS = 0x995DC9BBDF1939FA  # the check value that catalogues of CRCs give for CRC-64/XZ


def by_table(data: bytes) -> int:
    """CRC-64/XZ, byte by byte, from its definition."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0xC96C5795D7870F42 if byte & 1 else 0)
        table.append(byte)
    crc = 2**64 - 1
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ (2**64 - 1)


def test_the_check_value() -> None:
    assert crc64(b"123456789") == OF_NINE_DIGITS
    assert by_table(b"123456789") == OF_NINE_DIGITS
    assert crc64(b"") == 0


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_it_is_the_crc_that_the_definition_says(data: bytes) -> None:
    assert crc64(data) == by_table(data)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_it_goes_on_from_where_it_was(first: bytes, second: bytes) -> None:
    assert crc64(second, crc64(first)) == crc64(first + second)


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_two_crcs_make_the_crc_of_both(first: bytes, second: bytes) -> None:
    assert combine(crc64(first), crc64(second), len(second)) == crc64(first + second)


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_many_crcs_make_the_crc_of_all(parts: list[bytes]) -> None:
    crc = 0
    for part in parts:
        crc = combine(crc, crc64(part), len(part))
    assert crc == crc64(b"".join(parts))


@given(st.integers(0, 2**64 - 1), *[st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**45))] * 2)
def test_stretches_of_any_length_may_be_grouped_in_any_way(
    first: int, second: tuple[int, int], third: tuple[int, int]
) -> None:
    """What holds for terabytes without terabytes: (a b) c is a (b c)."""
    left = combine(combine(first, *second), *third)
    right = combine(first, combine(second[0], *third), second[1] + third[1])
    assert left == right


def by_polynomials(first: int, second: int, length: int) -> int:
    """The CRC of both from the definition: remainders of polynomials over GF(2), the highest power first."""
    modulus = 1 << 64 | 0x42F0E1EBA9EA3693

    def times(a: int, b: int) -> int:
        product = 0
        for power in range(64):
            if b >> power & 1:
                product ^= a << power
        while product.bit_length() > 64:
            product ^= modulus << product.bit_length() - 65
        return product

    shift, square, left = 1, 2, 8 * length
    while left:
        shift = times(shift, square) if left & 1 else shift
        square, left = times(square, square), left >> 1
    mirrored = int(f"{first:064b}"[::-1], 2)
    return int(f"{times(mirrored, shift):064b}"[::-1], 2) ^ second


@settings(deadline=None)
@given(crcs, crcs, st.integers(0, 2**63) | st.sampled_from([0, 1, 16 << 20, 48 * 10**12]))
@example(OF_NINE_DIGITS, 2**64 - 1, 48 * 10**12)
def test_lengths_that_nobody_can_read(first: int, second: int, length: int) -> None:
    assert combine(first, second, length) == by_polynomials(first, second, length)


@given(crcs, crcs, st.integers(0, 2**63))
def test_nothing_before_or_after_changes_nothing(first: int, second: int, length: int) -> None:
    assert combine(first, 0, 0) == first
    assert combine(0, second, length) == second


def test_a_long_stretch() -> None:
    zeros = bytes(1 << 20)
    crc = 0
    for _ in range(33):
        crc = crc64(zeros, crc)
    assert combine(OF_NINE_DIGITS, crc, 33 << 20) == _after_digits(zeros, 33)


def _after_digits(block: bytes, times: int) -> int:
    crc = OF_NINE_DIGITS
    for _ in range(times):
        crc = crc64(block, crc)
    return crc


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_it_takes_any_buffer(kind: type) -> None:
    assert crc64(kind(b"123456789")) == OF_NINE_DIGITS
    with mmap.mmap(-1, 9) as area:
        area[:] = b"123456789"
        with memoryview(area) as view:
            assert crc64(view) == OF_NINE_DIGITS
