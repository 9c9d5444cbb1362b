"""What --quick reads: how many bytes of each storage there is time for, and of which files. Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from stager.core.bench.plan import NAMES, OFFSETS, SAFETENSORS
from stager.core.units import MIB, count, format_size

if TYPE_CHECKING:
    from stager.core.bench.plan import Trial

QUICK_S = 108.0
"""When a quick benchmark starts nothing more, in seconds: the rest of two minutes is for its end."""
WORK_S = 75.0
"""What the runs of a quick benchmark may take together, in seconds, if its first look at the rates was right."""
_PROBES = 0.2  # of all the time: for the first look at the rates of all storages
_SPARE = 0.1  # of all the time: for what takes longer than planned
OVERHEAD_S = 0.6
"""What a run takes beside its reading, in seconds: processes that start, pages that are counted."""
_UNFORESEEN = 1.2
LOOKS = 3
"""How often a run has each file looked at: to be made cold, when it begins, and after it."""
_FROM_MEMORY = 2.5e9  # bytes/s of a second load, its pages counted before and after
_STREAMS = 16  # as many files at once are read by the methods that read several
_LEAST_PART = MIB  # of a file; below, what it takes to open it is most of it
_ENOUGH_PART = 8 * MIB  # of a file, before several loaders are given time too


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast one reader gets a cold file, in bytes/s: by read, and by touching a mapping. `drops`: every loader reads anew, and so does a second load.

    `look` is how many seconds a look at one file's pages takes. `settles`: before each cold run about as long as the last one took is waited.
    """

    read: float
    mapped: float
    drops: bool = False
    look: float = 0.0
    settles: bool = False


def probe_seconds(whole: float, storages: int) -> float:
    """How long the rates of one of so many storages may be looked at, in a benchmark that may take `whole` seconds."""
    return _PROBES * whole / max(1, storages)


def work_left(whole: float, elapsed: float) -> float:
    """Seconds for the runs of a quick benchmark that may take `whole` seconds and began `elapsed` seconds ago."""
    return max(1.0, min(WORK_S, whole * (1 - _SPARE) - elapsed))


def quick_seconds(trials: Sequence[Trial], rates: Rates, size: int, rounds: int, files: int = 0) -> float:
    """About how many seconds `trials` of `size` bytes in so many `files` take, each cold and again in so many rounds, and the uncounted read before them."""
    shares = 1 / max(1, len({trial.file for trial in trials if trial.file}))
    each = sum(_per_byte(trial, rates) * (shares if trial.file else 1) for trial in trials)
    per_byte = each * rounds + 1 / max(1.0, rates.read)
    beside = OVERHEAD_S + LOOKS * rates.look * files
    return _UNFORESEEN * size * per_byte + 2 * beside * rounds * len(trials)


def quick_bytes(trials: Sequence[Trial], rates: Rates, rounds: int, seconds: float) -> int:
    """How many bytes of a storage `trials` can read in so many seconds; where starting them takes most of these, in a quarter of them."""
    overhead = quick_seconds(trials, rates, 0, rounds)
    per_byte = quick_seconds(trials, rates, 1, rounds) - overhead
    return int(max(seconds - overhead, seconds / 4) / per_byte)


def first_bytes(
    trials: Sequence[Trial], sizes: Sequence[int], rates: Rates, rounds: int, seconds: float
) -> int:
    """As `quick_bytes`; where that would be too little of each file to tell methods apart, several loaders get only what time the others leave."""
    everything = quick_bytes(trials, rates, rounds, seconds)
    few = min((trial.loaders for trial in trials), default=1)
    first = quick_bytes([trial for trial in trials if trial.loaders == few], rates, rounds, seconds)
    return max(everything, min(first, _streams(sizes) * _ENOUGH_PART))


def _streams(sizes: Sequence[int]) -> int:
    """How many of the files are read at once by the methods that read several."""
    return max(1, min(_STREAMS, sum(size >= MIB for size in sizes)))


def file_bytes(trials: Sequence[Trial], rates: Rates, rounds: int) -> int:
    """How many bytes could be read in the time that the looks at one file take."""
    looks = quick_seconds(trials, rates, 0, rounds, 1) - quick_seconds(trials, rates, 0, rounds)
    per_byte = quick_seconds(trials, rates, 1, rounds) - quick_seconds(trials, rates, 0, rounds)
    return int(looks / per_byte)


def _per_byte(trial: Trial, rates: Rates) -> float:
    """Seconds for each byte of a cold run and the second load after it, at worst: what reads several files at once is faster where that helps."""
    mapped = trial.method in (OFFSETS, NAMES, SAFETENSORS)
    cold = (2 if rates.settles else 1) / max(1.0, rates.mapped if mapped else rates.read)
    return 2 * cold * trial.loaders if rates.drops else cold + 1 / _FROM_MEMORY


def in_turns(trials: Sequence[Trial]) -> list[Trial]:
    """`trials` by loaders, few first, and of each storage in turn: if time runs out, the same are missing everywhere, and no method altogether."""
    storages: dict[int, list[Trial]] = {}
    for trial in sorted(trials, key=lambda one: one.loaders):
        storages.setdefault(trial.storage, []).append(trial)
    return [one for turn in zip_longest(*storages.values()) for one in turn if one is not None]


@dataclass(frozen=True, slots=True)
class Sample:
    """Which files a benchmark reads, as indexes; `part`: only so many bytes of each, from its beginning; None: each whole."""

    chosen: tuple[int, ...]
    part: int | None = None


def sample(sizes: Sequence[int], budget: int | None, each: int = 0) -> Sample:
    """Files that together have at most `budget` bytes (None: all files), of which each file costs `each` beside its own.

    The largest, whole, if so many fit as are read at once. Else a part of each of as many, the same for all: how fast several files
    come at once is what tells storages and methods apart. Never less than 1 MiB of the largest.
    """
    if budget is None or sum(sizes) + each * len(sizes) <= budget:
        return Sample(tuple(range(len(sizes))))
    ranked = sorted((at for at in range(len(sizes)) if sizes[at]), key=lambda at: (-sizes[at], at))
    streams = _streams(sizes)
    if sum(sizes[at] + each for at in ranked[:streams]) <= budget:
        return Sample(_fitting([size + each for size in sizes], ranked, budget))
    for number in range(streams, 0, -1):
        chosen = ranked[:number]
        part = _level([sizes[at] for at in chosen], max(0, budget - each * number)) // MIB * MIB
        if part >= min(_LEAST_PART, sizes[chosen[0]]) or number == 1:
            break
    cut = max(MIB, part)
    return Sample(tuple(sorted(chosen)), cut if cut < sizes[chosen[0]] else None)


def beyond(part: int, files: int, of_files: int) -> str:
    """What the first `part` bytes of so many files do not tell, where there are `of_files` of 1 MiB and more."""
    streams = ""
    if files < min(of_files, _STREAMS):
        streams = (
            f"; and {count(files, 'file')} of {of_files} large ones cannot show what more would bring at once"
        )
    return (
        f"what lies beyond the first {format_size(part)} of each file: little is left of the order of tensors, and what"
        " adapts while it reads (stager warm, the kernel's read-ahead) has little time to, so the start of recipe, vmtouch and warm"
        f" weighs more than in a whole load: they may be faster there by more{streams}"
    )


def whole_sample(sizes: Sequence[int], budget: int) -> Sample:
    """The largest files that together have at most `budget` bytes, none of them cut: none at all where the others would say nothing."""
    if sum(sizes) <= budget:
        return Sample(tuple(range(len(sizes))))
    ranked = sorted((at for at in range(len(sizes)) if sizes[at]), key=lambda at: (-sizes[at], at))
    chosen = _fitting(sizes, ranked, budget)
    # Configuration files alone would say nothing about the storage.
    enough = 2 * sum(sizes[at] for at in chosen) >= min(budget, max(sizes))
    return Sample(chosen if enough else ())


def _fitting(sizes: Sequence[int], ranked: Sequence[int], budget: int) -> tuple[int, ...]:
    """Of the indexes `ranked`, in this order, each file that still fits."""
    chosen = []
    for at in ranked:
        if sizes[at] <= budget:
            chosen.append(at)
            budget -= sizes[at]
    return tuple(sorted(chosen))


def _level(sizes: Sequence[int], budget: int) -> int:
    """The most bytes of each file so that all together have at most `budget`; small files leave theirs to the others."""
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > budget:
            return budget // left
        budget -= size
        left -= 1
    return max(sizes)
