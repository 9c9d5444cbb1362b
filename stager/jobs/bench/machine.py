"""The node that a benchmark runs on, as far as a reader of its numbers needs it."""

from __future__ import annotations

import os
import platform

from stager import __version__
from stager.core.bench.reports import BenchMachine
from stager.core.model import LevelKind
from stager.node import reclaim
from stager.node.memory import Gauge


def this_machine(load: float) -> BenchMachine:
    """The node as it is now, with the load average `load`."""
    snapshot = Gauge().read()
    system = next((level for level in snapshot.levels if level.kind is LevelKind.SYSTEM), None)
    memory = system.limit or 0 if system else 0
    available = memory - system.used + system.reclaimable if system else 0
    lru = {"mglru": "MGLRU"}.get(snapshot.lru, snapshot.lru)
    return BenchMachine(
        os.uname().release,
        os.cpu_count() or 1,
        memory,
        available,
        lru,
        load,
        platform.python_version(),
        __version__,
        reclaim.proactive() or "",
    )
