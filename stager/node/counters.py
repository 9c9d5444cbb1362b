"""What the kernel counts for the whole node: bytes that block devices delivered, and how often the page cache was dropped."""

from __future__ import annotations


def block_device(number: str) -> str:
    """The name of the block device ``major:minor`` that counts what is read from it; empty where there is none."""
    return next((name for found, name, _ in _diskstats() if found == number), "")


def delivered(device: str) -> int | None:
    """Bytes that the block device of this name has read since boot, for anybody; None where there is none."""
    return next((size for _, name, size in _diskstats() if name == device), None) if device else None


def cache_drops() -> int:
    """How often anybody dropped the whole page cache since boot; 0 where the kernel does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("drop_pagecache ")), 0)
    except OSError:
        return 0


def _diskstats() -> list[tuple[str, str, int]]:
    """(``major:minor``, name, bytes read) of every block device."""
    found = []
    try:
        with open("/proc/diskstats", encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                found.append((f"{words[0]}:{words[1]}", words[2], int(words[5]) * 512))
    except (OSError, ValueError, IndexError):
        return []
    return found
