"""OSS's CRC-64 (CRC-64/XZ): fast over bytes, and folded over parts without their bytes."""

from __future__ import annotations

from fastcrc import crc64 as _fast

POLY = 0xC96C5795D7870F42  # ECMA-182, bits reversed
_ONES = (1 << 64) - 1
_ONE = 1 << 63  # the polynomial 1, with the bits reversed


def crc64(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """The CRC of `data`, or of what gave `before` followed by `data`."""
    return _fast.xz(data, before)


def slow_crc64(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """The same bit by bit, as the definition says it: the witness of the fast one."""
    register = before ^ _ONES
    for byte in bytes(data):
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (POLY if register & 1 else 0)
    return register ^ _ONES


def _times(a: int, b: int) -> int:
    """a * b mod P, both with the bits reversed."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & _ONES
        b = (b >> 1) ^ (POLY if b & 1 else 0)
    return product


def _shift(length: int) -> int:
    """x to the power of 8 * length, mod P."""
    power, square = _ONE, _ONE >> 8
    while length:
        if length & 1:
            power = _times(power, square)
        square = _times(square, square)
        length >>= 1
    return power


def join(first: int, second: int, second_length: int) -> int:
    """The CRC of two pieces one after the other, from theirs and the bytes in the second."""
    return _times(first, _shift(second_length)) ^ second


def zeros(length: int) -> int:
    """The CRC of that many zero bytes."""
    return _times(_ONES, _shift(length)) ^ _ONES


if crc64(b"123456789") != slow_crc64(b"123456789") or slow_crc64(b"123456789") != 0x995DC9BBDF1939FA:
    raise ImportError("fastcrc does not compute CRC-64/XZ")
