"""What a benchmark runs, in which order, and of which files: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.errors import UsageError

if TYPE_CHECKING:
    from stager.core.bench.setting import Setting

NAMES, OFFSETS, READ = "mmap-names", "mmap-offsets", "read"
RECIPE, VMTOUCH, WARMING, WARM_MMAP = "recipe", "vmtouch", "warm", "warm+mmap"
RECIPE_MMAP, VMTOUCH_MMAP = "recipe+mmap", "vmtouch+mmap"
FETCH, FETCH_MMAP = "fetch", "fetch+mmap"
SAFETENSORS = "safetensors"
ENGINE, WARM_ENGINE, FETCH_ENGINE = "engine", "warm+engine", "fetch+engine"
ENGINES = (ENGINE, WARM_ENGINE, FETCH_ENGINE)
"""The methods that start a real command; each is one."""


THEN_MMAP = {RECIPE_MMAP: RECIPE, VMTOUCH_MMAP: VMTOUCH, WARM_MMAP: WARMING}
"""The methods that bring the files into the page cache by a command, and then load them as ``mmap-names`` does."""

MOUNT_METHODS = (READ, OFFSETS, NAMES, RECIPE, VMTOUCH, WARMING, *THEN_MMAP, SAFETENSORS, ENGINE, WARM_ENGINE)
STORE_METHODS = (FETCH, FETCH_MMAP, FETCH_ENGINE)
METHODS = (*MOUNT_METHODS, *STORE_METHODS)
ENDING_MAPPED = (OFFSETS, NAMES, *THEN_MMAP, FETCH_MMAP, SAFETENSORS)
"""The methods that end as an engine's load does, with the tensors in a process: ``read`` and the commands alone end in the page cache."""
LOADED = (READ, *ENDING_MAPPED)
"""The methods with loaders, of which there can be several at once; the others are one command."""
_FEWEST = (RECIPE_MMAP, VMTOUCH_MMAP)
"""Those that have only the fewest loaders unless they are named: with more, only their second step differs, which `WARM_MMAP` shows."""
ALONE = (READ, OFFSETS)
"""The methods that are also run file by file with --per-file."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One method with so many loaders on one storage (its index); of the only file `file`, or of the whole; ``warm`` with `setting`, or as it is."""

    storage: int
    method: str
    loaders: int
    file: str = ""
    setting: Setting | None = None


def methods_for(wanted: Sequence[str], *, store: bool, to: str, engine: bool = False) -> tuple[str, ...]:
    """Those of `wanted` (empty: all) that mean something for a store, or for a mount.

    Safetensors' own loader only with `to`, starts of a command only for an `engine`; without `wanted` an engine has nothing beside it but what warms.
    """
    there = STORE_METHODS if store else MOUNT_METHODS
    if engine and not wanted:
        wanted = (WARMING, FETCH, *ENGINES)
    chosen = [name for name in wanted or there if name in there]
    return tuple(name for name in chosen if (name != SAFETENSORS or to) and (name not in ENGINES or engine))


def measured_against(method: str) -> str:
    """The method whose cold run `method` is compared with."""
    return ENGINE if method in ENGINES else READ


def parse_methods(text: str) -> tuple[str, ...]:
    """The methods in a comma-separated list, each once. Raises `UsageError` for a name that is none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in METHODS:
            raise UsageError(f"`{name}` is not a method", hint=f"choose from {', '.join(METHODS)}")
    return names


def parse_loaders(text: str) -> tuple[int, ...]:
    """The numbers in a comma-separated list, ascending, each once. Raises `UsageError` unless they lie in 1..256."""
    return parse_numbers(text, "loaders")


def parse_numbers(text: str, of: str) -> tuple[int, ...]:
    """As `parse_loaders`; `of` is what they are numbers of."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= 256 for word in words):
        raise UsageError(f"`{text}` is not a list of numbers of {of}", hint="write it like 1,4,8,16")
    return tuple(sorted({int(word) for word in words}))


def trials_of(
    storage: int,
    methods: Sequence[str],
    loaders: Sequence[int],
    files: Sequence[str] = (),
    *,
    named: bool = True,
) -> list[Trial]:
    """Every trial of one storage: methods that are one command once, and `files` one by one where that is asked for. `named`: the user chose the methods."""
    found = [
        Trial(storage, method, number)
        for method in methods
        for number in _loaders_of(method, loaders, named=named)
    ]
    return found + [
        Trial(storage, method, 1, file) for method in methods if method in ALONE for file in files
    ]


def _loaders_of(method: str, loaders: Sequence[int], *, named: bool) -> Sequence[int]:
    if method not in LOADED:
        return (1,)
    return loaders if named or method not in _FEWEST else loaders[:1]


def repeats(rounds: int) -> int:
    """How many disturbed runs of a cell are repeated: as many as there are rounds, and one more where there is only one."""
    return max(2, rounds)


def in_round(trials: Sequence[Trial], number: int) -> list[Trial]:
    """The trials in the order of round `number` (from 0).

    Every second round runs backwards (ABBA), so that what slowly changes on the node falls on all of them alike; each pair of
    rounds begins a third further on.
    """
    if not trials:
        return []
    start = (number // 2) * max(1, len(trials) // 3) % len(trials)
    turned = [*trials[start:], *trials[:start]]
    return turned[::-1] if number % 2 else turned


def spans_in_order(
    tensors: Sequence[tuple[str, int, int]], by: str, size: int, part: int | None
) -> list[tuple[int, int]]:
    """The (start, end) of a file's tensors in the order in which the method `by` touches them, within its first `part` bytes.

    `tensors` are (name, start, end). A file without tensors that are known (`size` bytes) is touched from its beginning to its end.
    """
    end = size if part is None else min(size, part)
    if not tensors:
        return [(0, end)] if end else []
    ordered = sorted(tensors) if by == NAMES else sorted(tensors, key=lambda one: one[1:])
    head = min(start for _, start, _ in tensors)
    found = [(0, head), *((start, stop) for _, start, stop in ordered)]
    return [(start, min(stop, end)) for start, stop in found if start < min(stop, end)]
