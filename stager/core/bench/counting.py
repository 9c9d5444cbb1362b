"""Which file counts the bytes from below for which PATH of a benchmark: what ``--counter`` was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stager.core.errors import UsageError
from stager.core.location import is_remote
from stager.core.units import shown

DISKSTATS, NFS, COUNTER, FETCH = "diskstats", "nfs", "counter", "fetch"
"""The ways to count: the block device's, the NFS client's, a file that the user named, the summary of ``stager fetch``."""


@dataclass(frozen=True, slots=True)
class CounterFiles:
    """Files that each hold a number of bytes that only grows. `by_path` is of single PATHs; `others`, if not empty, of every mount without a counter."""

    by_path: dict[str, str] = field(default_factory=dict)
    others: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        """Every file, once."""
        return tuple(dict.fromkeys(name for name in (*self.by_path.values(), self.others) if name))


def counter_files(given: Sequence[str], paths: Sequence[str]) -> CounterFiles:
    """The meaning of every FILE or PATH=FILE in `given`. Raises `UsageError` for a PATH of a store, and for two files for the same."""
    by_path: dict[str, str] = {}
    others = ""
    for text in given:
        path = max((path for path in paths if text.startswith(f"{path}=")), key=len, default="")
        name = text[len(path) + 1 :] if path else text
        if is_remote(path):
            raise UsageError(
                f"--counter {shown(text)}: what is fetched from a store is counted by the fetch itself",
                hint="leave it out, or name a mount",
            )
        if not name or (by_path.get(path, name) if path else others or name) != name:
            raise UsageError(
                f"--counter {shown(text)}: no file, or a second one for the same",
                hint="give one FILE for all mounts without a counter, or PATH=FILE for each",
            )
        if path:
            by_path[path] = name
        else:
            others = name
    return CounterFiles(by_path, others)
