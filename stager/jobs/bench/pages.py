"""The pages of a model's files: dropped, and counted, several files at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from stager.core.units import shown
from stager.node import pagecache
from stager.node.files import opened
from stager.node.filesystems import Pattern

if TYPE_CHECKING:
    from stager.core.model import LocalFile
    from stager.jobs.survey import MountFacts

T = TypeVar("T")

AT_ONCE = 16
"""So many files are opened at once: where each open asks a daemon or a server, 400 files one after the other took ten seconds."""
_TRIES = 20  # a page on another processor's list is busy for a moment


def of_each(call: Callable[[LocalFile], T], files: Sequence[LocalFile]) -> list[T]:
    """What `call` gives for each of `files`, `AT_ONCE` of them at once, in their order. Raises the first error; what has not begun then is left out. Blocks."""
    if len(files) < 2:
        return [call(file) for file in files]
    with ThreadPoolExecutor(min(AT_ONCE, len(files))) as pool:
        return list(pool.map(call, files))


def resident(files: Sequence[LocalFile], facts: MountFacts, part: int | None) -> int | None:
    """Bytes of the first `part` (None: all) of each of `files` in the page cache; None when they cannot be counted exactly. Raises ``OSError``. Blocks."""
    total = 0
    for found in of_each(partial(_look, facts=facts, part=part), files):
        if found is None:
            return None
        total += found
    return total


def drop(files: Sequence[LocalFile], facts: MountFacts, part: int | None) -> tuple[int | None, str]:
    """Drop the pages of `files`: the bytes that stay (None: unknown), and the name of the first file of which some do. Raises ``OSError``. Blocks."""
    left, where = 0, ""
    for file, stays in zip(files, of_each(partial(_drop, facts=facts, part=part), files), strict=True):
        if stays is None:
            return None, ""
        if stays and not where:
            where = shown(file.entry.path)
        left += stays
    return left, where


def _look(file: LocalFile, *, facts: MountFacts, part: int | None) -> int | None:
    with opened(file.path) as fd:
        return _count(fd, facts, part)


def _drop(file: LocalFile, *, facts: MountFacts, part: int | None) -> int | None:
    left: int | None = 0
    with opened(file.path) as fd:
        for attempt in range(_TRIES):
            pagecache.evict(fd)
            if facts.keeps.hopeless:
                return 0  # opening it has dropped them, and the next open will again
            left = _count(fd, facts, part)
            if not left:
                break
            time.sleep(0.002 * attempt)
    return left


def _count(fd: int, facts: MountFacts, part: int | None) -> int | None:
    size = os.fstat(fd).st_size
    if facts.traits.pattern is Pattern.MEMORY:
        return min(size, part or size)
    probe, _ = pagecache.probe(fd, facts.mount.fstype)
    return None if probe is None else pagecache.count_bytes(probe, min(size, part or size)).resident
