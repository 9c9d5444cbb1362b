"""The proof of a run on a mount: pages counted right before it begins and after it, and what the kernel charged its processes for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.bench import evidence
from stager.core.bench.plan import (
    NAMES,
    OFFSETS,
    READ,
    RECIPE,
    SAFETENSORS,
    THEN_MMAP,
    VMTOUCH,
    WARMING,
)
from stager.core.bench.reports import COLD
from stager.core.model import Known
from stager.core.units import format_size, shown
from stager.jobs.bench import pages
from stager.jobs.bench.methods import Disturbed
from stager.jobs.bench.watch import Watch
from stager.node import counters, pagecache, reclaim
from stager.node.files import opened

if TYPE_CHECKING:
    from stager.core.bench.plan import Trial
    from stager.jobs.bench.ground import Ground
    from stager.jobs.bench.methods import Took

_COMMANDS = (RECIPE, VMTOUCH, WARMING)
_LOADERS = (READ, OFFSETS, NAMES, SAFETENSORS)


@dataclass
class Proof:
    """Looks at the pages of `ground` when a run in `state` is to begin; `fill` reads everything once.

    `resident` is what it found then, None as long as it has not looked. Where `watching`, it looks on from the moment on at which all are resident, until `end`;
    `least` is the least it found then, None where it did not.
    """

    ground: Ground
    state: str
    fill: Callable[[], object]
    watching: bool
    resident: int | None = None
    least: int | None = None

    def __post_init__(self) -> None:
        self._watch: Watch | None = None
        self._drops = counters.cache_drops()
        self._delivered = self.ground.counter.read()

    def at_start(self) -> None:
        """All stand ready and none has begun. Raises `Disturbed` unless nothing is resident, or everything."""
        self.resident = counted(self.ground) if self.ground.counted else 0  # there, opening them drops them
        if self.ground.counted and self.state == COLD:
            self._nothing_there()
        elif self.ground.counted:
            if self.resident != self.ground.total:  # it took a while until all were ready
                self.fill()
                self.resident = counted(self.ground)
            self._all_there(self.resident)
            self._look_on()
        self._delivered = self.ground.counter.read()

    def between(self) -> None:
        """The first step of a run, which warms, has ended. Raises `Disturbed` unless nearly everything is resident."""
        if why := self.after(counted(self.ground)):
            raise Disturbed(why)
        self._look_on()

    def after(self, found: int | None) -> str:
        """What disturbed a run after which `found` bytes are resident; empty when nearly all are, as far as anybody can count."""
        if found is not None and not evidence.gone(found, self.ground.total):
            return ""
        return lost(self.ground, found, dropped=self.dropped)

    @property
    def dropped(self) -> bool:
        """Whether anybody has dropped the whole page cache since."""
        return counters.cache_drops() > self._drops

    @property
    def meanwhile(self) -> str:
        """What disturbed a run by what was seen while it ran; empty when it had nearly everything all the time, or nobody looked."""
        return "" if self.least is None else evidence.gone_meanwhile(self.least, self.ground.total)

    def end(self) -> int | None:
        """The run is over, however it went: by how much the counter of bytes from below has grown, None when it is not known, or began anew. Blocks for a moment."""
        now = self.ground.counter.read()
        if self._watch is not None:
            self.least, self._watch = self._watch.end(), None
        if now is None or self._delivered is None or now < self._delivered:
            return None
        return now - self._delivered

    def _look_on(self) -> None:
        if self.watching and self._watch is None and self.ground.counted:
            self._watch = Watch(self.ground)

    def _nothing_there(self) -> None:
        if self.resident is None:
            raise Disturbed(f"its pages can no longer be counted{_trouble(self.ground)}")
        if self.resident:
            there = format_size(self.resident)
            raise Disturbed(f"{there} are resident again when it is to begin: somebody else reads them")

    def _all_there(self, found: int | None) -> None:
        if why := lost(self.ground, found, dropped=self.dropped):
            raise Disturbed(why)


def within(ground: Ground, trial: Trial, state: str, took: Took, *, charging: bool) -> str:
    """What disturbed a run while it ran, by what the kernel charged its processes for; empty where nothing speaks against it.

    `charging`: the storage charges processes for what they read from it.
    """
    if took.used is None or not ground.counted or trial.method not in (*_COMMANDS, *_LOADERS, *THEN_MMAP):
        return ""
    why = ""
    if state == COLD and charging:
        why = evidence.not_from_below(took.used, stored(ground))
    elif state != COLD:
        why = evidence.not_from_memory(took.used, ground.total, command=trial.method not in _LOADERS)
        if took.read is not None:
            why = why or evidence.read_again(took.read, ground.total)
    if trial.method in THEN_MMAP and took.loading is not None:
        why = why or evidence.not_from_memory(took.loading, ground.total, command=False)
    return why


def stored(ground: Ground) -> int:
    """Bytes of what is read that lie on the storage, so that a cold run must have them from there; 0 where nobody can tell."""
    try:
        found = pages.of_each(lambda file: os.stat(file.path).st_blocks * 512, ground.files)
    except OSError:
        return 0
    total = 0
    for file, held in zip(ground.files, found, strict=True):
        if ground.part is not None and held < file.size:
            return 0
        total += min(ground.wanted(file) or file.size, held)
    return total


def counted(ground: Ground) -> int | None:
    """Bytes of what is read that are resident; None where nobody can tell."""
    try:
        return ground.resident()
    except OSError:
        return None


def lost(ground: Ground, found: int | None, *, dropped: bool) -> str:
    """What of the pages that must be there is not, and who took them, as far as is known; empty when all are, or where nobody can count them.

    `dropped`: the whole page cache was.
    """
    if not ground.counted:
        return ""
    if found is None:
        return f"its pages can no longer be counted{_trouble(ground)}"
    if found >= ground.total:
        return ""
    missing = ground.total - found
    by = "somebody dropped the whole page cache" if dropped else _who(ground, missing)
    return f"{format_size(missing)} of {format_size(ground.total)} are not resident: {by}"


def _trouble(ground: Ground) -> str:
    """What is wrong with the first file that cannot be looked at any more."""
    for file in ground.files:
        try:
            with opened(file.path):
                pass
        except OSError as exc:
            return f": {shown(file.entry.path)}: {exc.strerror}"
    return ""


def _who(ground: Ground, missing: int) -> str:
    """The kernel remembers the pages that it has pushed out itself, and no others."""
    pushed = 0
    for file in ground.files:
        try:
            with opened(file.path) as fd:
                found = pagecache.residency(fd, ground.facts.mount.fstype)
        except OSError:
            found = None
        if found is None or found.known is not Known.CACHESTAT:
            return "somebody dropped them, or memory is short"
        pushed += found.evicted or 0
    if 2 * pushed < missing:
        return "somebody dropped them"
    if (shown_by := reclaim.proactive()) is not None:
        return f"the kernel pushed them out: this node pages out memory by itself ({shown_by})"
    return "the kernel pushed them out: memory is short, for all or in the cgroup that they were charged to"
