"""OSS's CRC-64, of bytes and of bytes that were read in pieces. The only owner of fastcrc.

It is CRC-64/XZ: the polynomial of ECMA-182, reflected, all ones before and after.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TypeAlias

from fastcrc import crc64 as _crc64

Bytes: TypeAlias = bytes | bytearray | memoryview

_POLYNOMIAL = 0xC96C5795D7870F42  # reflected: bit 63 is the coefficient of x^0
_ONE = 1 << 63


def crc64(data: Bytes, start: int = 0) -> int:
    """The CRC of the bytes before, which was `start`, and `data` after them. Lets other threads run meanwhile."""
    return _crc64.xz(data, start)


def combine(first: int, second: int, length: int) -> int:
    """The CRC of two stretches in a row, from the CRC of each and the `length` of the second in bytes.

    Appending n bytes multiplies a CRC's remainder by x^(8n) modulo the polynomial; the ones before and after cancel out.
    """
    return _multiply(_shift(length), first) ^ second


@lru_cache(maxsize=256)
def _shift(length: int) -> int:
    """x^(8 * `length`) modulo the polynomial, by squaring. Most ranges of a fetch have the same length."""
    result = _ONE
    for bit in range(length.bit_length()):
        if length >> bit & 1:
            result = _multiply(result, _power(bit))
    return result


@cache
def _power(bit: int) -> int:
    """x^(8 * 2^`bit`) modulo the polynomial."""
    if not bit:
        return _ONE >> 8
    below = _power(bit - 1)
    return _multiply(below, below)


def _multiply(a: int, b: int) -> int:
    """The product of two reflected polynomials modulo the polynomial."""
    product, bit = 0, _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
