"""The memory of this node as it bounds the page cache: every cgroup level that can be seen, and the system.

What cannot be read never stops a run, and never makes a level look roomier than it is:

* the limit of a level cannot be read: the level is left out, for there is no number to hold anything to;
* the limit can be read but not the usage: the level stays, `blind`, with the usage of the level inside it;
* memory.stat cannot be read: nothing of the level counts as reclaimable.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import psutil

from stager.core.model import Level, LevelKind, MemorySnapshot
from stager.node import cgroups
from stager.node.cgroups import Directory, Hierarchy, read_text

# v1 writes "no limit" as the largest page count, in bytes: 0x7ffffffffffff000 with 4 KiB pages, a little less with
# larger ones. Nothing real comes near a quarter of that.
_V1_UNLIMITED = 1 << 61
_EVERYTHING = 1 << 62  # more than any usage

_psutil_lock = threading.Lock()


def snapshot(*, root: str = "/", limit: int | None = None, pid: str = "self") -> MemorySnapshot:
    """Every visible memory level of process `pid` right now, innermost first, the system last; bytes.

    `limit` is one that cannot be seen from here, such as the pod's on cgroup v2: it becomes a level of its own.
    `root` is put before every /proc and /sys path. Never raises for files that are missing or unreadable. To look
    again and again, keep a `Gauge`.
    """
    return Gauge(root=root, limit=limit, pid=pid).read()


class Gauge:
    """Looks at the same levels again and again: they are found once, only their figures are read anew.

    When the process is moved to another cgroup the levels are found again. Not tied to a thread.
    """

    def __init__(self, *, root: str = "/", limit: int | None = None, pid: str = "self") -> None:
        self._root, self._limit, self._pid = root, limit, pid
        self._prefix = root.rstrip("/")
        self._hierarchy = cgroups.find(root=root, pid=pid)
        # The watermarks move only with vm.min_free_kbytes, and zoneinfo grows with zones times processors.
        self._watermarks = _high_watermarks(self._prefix)
        self._lru = _lru(self._prefix)

    def read(self) -> MemorySnapshot:
        """The levels as they are now; see `snapshot`."""
        if cgroups.membership(self._root, self._pid) != self._hierarchy.membership:
            self._hierarchy = cgroups.find(root=self._root, pid=self._pid)
        levels = _cgroup_levels(self._prefix, self._hierarchy)
        if self._limit is not None:
            levels.append(_given_level(self._limit, levels))
        system = _system_level(self._root, self._prefix, self._hierarchy, self._watermarks)
        if system is not None:
            levels.append(system)
        kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ or "kubepods" in self._hierarchy.membership
        return MemorySnapshot(tuple(levels), in_kubernetes=kubernetes, lru=self._lru)


def _cgroup_levels(prefix: str, hierarchy: Hierarchy) -> list[Level]:
    """The levels of the visible directories, and a hidden ancestor where v1 betrays one."""
    levels: list[Level] = []
    hidden: int | None = None
    for directory in hierarchy.directories:
        if hierarchy.version == 1:
            stat = _figures(f"{prefix}{directory.path}/memory.stat")
            level = _v1_level(prefix, directory, stat)
            if directory is hierarchy.directories[0]:
                hidden = _v1_bound(stat.get("hierarchical_memory_limit"))
        else:
            level = _v2_level(prefix, directory)
        if level is not None:
            levels.append(_with_known_usage(level, levels))
    limits = [level.limit for level in levels if level.limit is not None]
    if hidden is not None and hidden < min(limits, default=_V1_UNLIMITED):
        levels.append(_hidden_level(hidden, hierarchy.directories[0], levels))
    return levels


def _with_known_usage(level: Level, inner: list[Level]) -> Level:
    """`level`, or where its usage could not be read, with that of the level inside it: it holds at least as much."""
    if level.blind and inner:
        return replace(level, used=inner[-1].used, reclaimable=inner[-1].reclaimable)
    return level


def _v2_level(prefix: str, directory: Directory) -> Level | None:
    """One v2 level; the limit is the lower of memory.max and memory.high, above which the kernel reclaims already."""
    path = prefix + directory.path
    found = {name: read_text(f"{path}/{name}") for name in ("memory.max", "memory.high")}
    readable = {name: _v2_bound(text) for name, text in found.items() if text is not None}
    if not readable:
        return None
    source, limit = min(
        readable.items(), key=lambda item: (item[1] is None, item[1] or 0, item[0] != "memory.max")
    )
    used = _number(f"{path}/memory.current")
    stat = _figures(f"{path}/memory.stat")
    file = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    # Pages that a process has mapped are in use: the kernel keeps them and evicts what was only read, the model.
    clean = file - sum(stat.get(name, 0) for name in ("file_mapped", "file_dirty", "file_writeback"))
    return Level(
        LevelKind.V2,
        directory.name,
        f"{directory.path}/{source}",
        limit,
        used or 0,
        _within(clean - _protected_by_others(prefix, directory), used),
        own=directory.own,
        protected=_within(_promised(path), used),
        blind=used is None,
    )


def _v1_level(prefix: str, directory: Directory, stat: dict[str, int]) -> Level | None:
    """One v1 level; `stat` is its memory.stat, whose total_ figures include the cgroups below it."""
    path = prefix + directory.path
    limit = _number(f"{path}/memory.limit_in_bytes")
    if limit is None:
        return None
    used = _number(f"{path}/memory.usage_in_bytes")
    file = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    clean = file - sum(stat.get(name, 0) for name in ("total_mapped_file", "total_dirty", "total_writeback"))
    return Level(
        LevelKind.V1,
        directory.name,
        f"{directory.path}/memory.limit_in_bytes",
        _v1_bound(limit),
        used or 0,
        _within(clean, used),
        own=directory.own,
        blind=used is None,
    )


def _hidden_level(limit: int, innermost: Directory, levels: list[Level]) -> Level:
    """An ancestor above the mount point, such as the pod of a private namespace: only its limit shows."""
    source = f"{innermost.path}/memory.stat:hierarchical_memory_limit"
    return _blind(LevelKind.V1, "hidden ancestor", source, limit, levels)


def _given_level(limit: int, levels: list[Level]) -> Level:
    """The limit a person gave, of something that lies around every visible level."""
    return _blind(LevelKind.GIVEN, "given limit", "--limit", limit, levels)


def _blind(kind: LevelKind, name: str, source: str, limit: int, inside: list[Level]) -> Level:
    """A level known by its limit alone; what the outermost visible level holds is charged here as well."""
    used, reclaimable = (inside[-1].used, inside[-1].reclaimable) if inside else (0, 0)
    return Level(kind, name, source, limit, used, reclaimable, blind=True)


def _protected_by_others(prefix: str, directory: Directory) -> int:
    """Bytes below `directory` that its limit cannot reclaim: what children off our way hold under memory.min or low.

    Anonymous memory under the protection is counted as if it were cache: too little room rather than too much.
    """
    total = 0
    for child in cgroups.subdirectories(prefix + directory.path):
        if child != directory.inner:
            path = f"{prefix}{directory.path}/{child}"
            if promised := _promised(path):
                total += min(_number(f"{path}/memory.current") or 0, promised)
    return total


def _promised(path: str) -> int:
    """What memory.min and memory.low promise the cgroup at `path`; `max` promises all it holds."""
    texts = [read_text(f"{path}/{name}") for name in ("memory.min", "memory.low")]
    return max(
        (_EVERYTHING if bound is None else bound for text in texts if text for bound in [_v2_bound(text)]),
        default=0,
    )


def _within(part: int, used: int | None) -> int:
    """`part` held between 0 and the usage: memory.stat may lag behind the counter by a few seconds."""
    return max(0, min(part, used or 0))


def _system_level(root: str, prefix: str, hierarchy: Hierarchy, watermarks: int) -> Level | None:
    """The node: free above the high watermarks, where kswapd rests, and MemAvailable for what can be reclaimed."""
    figures = _meminfo(root, prefix)
    if figures is None:
        return None
    total, memory_free, available = figures
    free = max(0, min(memory_free - watermarks, available))
    reclaimable = max(0, available - free - _mapped(prefix))
    if hierarchy.version == 2 and hierarchy.top is not None:
        reclaimable = max(0, reclaimable - _protected_by_others(prefix, hierarchy.top))
    return Level(LevelKind.SYSTEM, "system", "/proc/meminfo", total, total - free, reclaimable)


def _meminfo(root: str, prefix: str) -> tuple[int, int, int] | None:
    """(MemTotal, MemFree, MemAvailable) below `root`; None when they cannot be read.

    psutil takes its /proc from a module variable; it is put back, for whoever else in this process uses psutil.
    """
    with _psutil_lock:
        before = psutil.PROCFS_PATH
        if root != "/":
            psutil.PROCFS_PATH = f"{prefix}/proc"
        try:
            memory = psutil.virtual_memory()
        except (OSError, KeyError, ValueError, IndexError, psutil.Error):
            return None
        finally:
            psutil.PROCFS_PATH = before
    return memory.total, memory.free, memory.available


def _mapped(prefix: str) -> int:
    """Bytes of file pages that processes have mapped, which MemAvailable counts as if they could go; psutil leaves them out."""
    for line in (read_text(f"{prefix}/proc/meminfo") or "").splitlines():
        if line.startswith("Mapped:"):
            return int(line.split()[1]) * 1024
    return 0


def _high_watermarks(prefix: str) -> int:
    """The sum of the zones' high watermarks in bytes; 0 when zoneinfo cannot be read."""
    pages = 0
    for line in (read_text(f"{prefix}/proc/zoneinfo") or "").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "high":  # a processor's page lists have `high:`
            pages += int(words[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _lru(prefix: str) -> str:
    """Which LRU the running kernel uses: ``mglru``, ``classic``, or ``unknown`` where sysfs does not show it.

    A kernel built without MGLRU has no lru_gen folder, so its absence means classic as long as its parent is there.
    """
    folder = f"{prefix}/sys/kernel/mm"
    text = read_text(f"{folder}/lru_gen/enabled")
    if text is not None:
        return "mglru" if _lru_enabled(text.strip()) else "classic"
    if os.path.isdir(folder) and not os.path.exists(f"{folder}/lru_gen"):
        return "classic"
    return "unknown"


def _lru_enabled(text: str) -> bool:
    """The file holds a bit mask whose lowest bit is the main switch; `y` and `n` are what one may write."""
    try:
        return bool(int(text, 16) & 1)
    except ValueError:
        return text == "y"


def _number(path: str) -> int | None:
    """The whole number in a one-line file; None when it cannot be read or is none (``max`` too)."""
    text = (read_text(path) or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _v2_bound(text: str) -> int | None:
    """The bytes in memory.max or memory.high, None for ``max``."""
    return int(text) if text.strip().isdigit() else None


def _v1_bound(limit: int | None) -> int | None:
    """A v1 limit, None where it says "no limit"."""
    return None if limit is None or limit >= _V1_UNLIMITED else limit


def _figures(path: str) -> dict[str, int]:
    """The `name number` lines of memory.stat; empty when it cannot be read."""
    figures = {}
    for line in (read_text(path) or "").splitlines():
        name, _, number = line.partition(" ")
        if number.isdigit():
            figures[name] = int(number)
    return figures
