"""The safetensors header, judged by the rules of the safetensors library itself."""

from __future__ import annotations

import json
from math import prod
from typing import Any

from stager.core.formats.source import Head, PastEnd
from stager.core.units import shown

# The library refuses larger headers (MAX_HEADER_SIZE in its tensor.rs, version 0.8).
MAX_HEADER = 100_000_000

_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


def judge(head: Head) -> tuple[str, bool] | None:
    """What is wrong with this safetensors file, and True as it is proven; None when it is sound.

    Raises as `Head.ensure`, except `PastEnd`.
    """
    if head.size < 8:
        return f"truncated: {head.size} bytes cannot hold a safetensors header", True
    length = int.from_bytes(head.take(0, 8), "little")
    if length == 0:
        return "starts with zero bytes, as an unfinished download does", True
    if length > MAX_HEADER:
        return f"not a safetensors file: it claims a header of {length} bytes", True
    try:
        raw = head.take(8, length)
    except PastEnd:
        return f"truncated: its header alone needs {8 + length} bytes and it has {head.size}", True
    tensors, problem = _tensors(raw)
    if problem is None:
        end, problem = _contiguous(tensors)
    if problem is not None:
        return f"corrupt safetensors header: {problem}", True
    expected = 8 + length + end
    if head.size < expected:
        return f"truncated: its header describes {expected} bytes and it has {head.size}", True
    if head.size > expected:
        extra = head.size - expected
        return (
            f"does not match its header: {extra} bytes follow the last tensor, and loaders refuse that",
            True,
        )
    return None


def layout(head: Head) -> list[tuple[str, int, int]]:
    """(name, first byte, one past the last byte) of each tensor, offsets in the file, in the header's order; empty for a file that is not sound.

    Raises as `Head.ensure`, except `PastEnd`.
    """
    if judge(head) is not None:
        return []
    start = 8 + int.from_bytes(head.take(0, 8), "little")
    found, _ = _tensors(head.take(8, start - 8))
    return [
        (name, start + info["data_offsets"][0], start + info["data_offsets"][1])
        for name, info in found.items()
    ]


def _tensors(raw: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}, "it is not valid JSON"
    if not isinstance(header, dict):
        return {}, "it is not a JSON object"
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_string_map(metadata):
        return {}, "its metadata are not strings"
    for name, info in header.items():
        if not (isinstance(info, dict) and isinstance(info.get("dtype"), str)):
            return {}, f"tensor `{shown(name)}` has no type"
        if not _are_sizes(info.get("shape")):
            return {}, f"tensor `{shown(name)}` has no shape"
        if not (_are_sizes(info.get("data_offsets")) and len(info["data_offsets"]) == 2):
            return {}, f"tensor `{shown(name)}` has no offsets"
    return header, None


def _contiguous(tensors: dict[str, Any]) -> tuple[int, str | None]:
    """Where the tensor data end, relative to the end of the header; or what is wrong with the offsets."""
    at = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = info["data_offsets"]
        if start != at or end < start:
            return at, f"tensor `{shown(name)}` lies at {start}..{end} and should start at {at}"
        bits = _BITS.get(info["dtype"])  # a type newer than this table: its size cannot be judged
        if bits is not None and 8 * (end - start) != bits * prod(info["shape"]):
            return at, f"tensor `{shown(name)}` has {end - start} bytes, which its type and shape contradict"
        at = end
    return at, None


def _is_string_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
