"""What proves that a run was what it claims to be: where its bytes came from, judged by what the kernel counted for its processes."""

from __future__ import annotations

from dataclasses import dataclass

from stager.core.units import MIB, format_size

_LITTLE = 0.001  # of the model: this much may come from below in a second load
_LITTLE_OF_LOADERS = MIB  # or so much, of a small model: it takes milliseconds from any storage
_LITTLE_OF_COMMANDS = 8 * MIB  # the same with what starting a program may read
_MAY_BE_GONE = (
    0.01  # of the model, when a run has ended: it cannot have changed its time by more than about that
)
_NEARLY_ALL = 0.95  # of what lies on the storage: metadata and rounding are no evidence
_TWICE = 1.1  # times what there is: then some of it came twice
_STARTS = 16 * MIB  # what starting programs may read beside it
_WAITS_PER_FILE = (
    16  # each file: opened, asked for, closed, by a daemon or a server, each name of its path too
)
_WAITS_PER_BYTE = 1 / (2 * MIB)  # each call may ask for attributes; missing pages cost several times that


@dataclass(frozen=True, slots=True)
class Usage:
    """What the kernel counted for the processes of a run.

    `cpu` seconds; `charged`: bytes that they had a block device read (``ru_inblock``; 0 too where nothing charges them, as on FUSE).
    """

    cpu: float = 0.0
    charged: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(self.cpu + other.cpu, self.charged + other.charged)

    def __sub__(self, other: Usage) -> Usage:
        """What came after `other`; never less than nothing."""
        return Usage(max(0.0, self.cpu - other.cpu), max(0, self.charged - other.charged))


def gone(resident: int, total: int) -> bool:
    """Whether so much of a model is not resident after a run that the run was disturbed."""
    return total - resident > _MAY_BE_GONE * total


def charges(used: Usage, stored: int) -> bool:
    """Whether a cold run shows that this storage charges its processes for all they have read: `stored` bytes lie on it."""
    return used.charged >= _NEARLY_ALL * stored > 0


def not_from_memory(used: Usage, size: int, *, command: bool) -> str:
    """Why this was no load of `size` bytes from the page cache, by what was charged or read; empty where nothing speaks against it."""
    if used.charged <= max(_LITTLE * size, _LITTLE_OF_COMMANDS if command else _LITTLE_OF_LOADERS):
        return ""
    return f"{format_size(used.charged)} had to be read from below: pages were dropped meanwhile"


def gone_meanwhile(least: int, total: int) -> str:
    """Why this was no load from memory, by the least bytes that were resident at any look while it ran; empty when that were nearly all."""
    if not gone(least, total):
        return ""
    return f"{format_size(total - least)} of {format_size(total)} were not resident while it ran: pages were dropped, and read once more"


def read_again(read: int, size: int) -> str:
    """Why ``stager warm`` found less than all `size` bytes resident, by the bytes it says that it has read; empty when it did."""
    if read <= max(_LITTLE * size, _LITTLE_OF_LOADERS):
        return ""
    return f"{format_size(read)} had to be read: pages were dropped meanwhile"


def not_from_below(used: Usage, stored: int) -> str:
    """Why a cold run of `stored` bytes, on storage that `charges`, did not read each of them once itself; empty when it did."""
    told = f"{format_size(used.charged)} of {format_size(stored)}"
    if used.charged < _NEARLY_ALL * stored - _LITTLE_OF_LOADERS:
        return f"it read {told} from below itself: somebody else brought the rest in meanwhile"
    if used.charged > _TWICE * stored + _STARTS:
        return f"it read {told} from below: pages were dropped meanwhile, and read once more"
    return ""
