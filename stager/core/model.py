"""The words of the house: files, spans, residency, memory levels, admission."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

from stager.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a model: a relative POSIX path, its size in bytes, and checksums where a source states them.

    Undecodable bytes in the path are kept as surrogates (``os.fsdecode``). Raises `UsageError` for a path that is
    absolute, empty, contains NUL, or would leave its folder.
    """

    path: str
    size: int
    sha256: str | None = None
    crc64: int | None = None

    def __post_init__(self) -> None:
        pure = PurePosixPath(self.path)
        if not self.path or "\0" in self.path or pure.is_absolute() or ".." in pure.parts:
            raise UsageError(f"`{self.path!r}` is not a path inside a model")
        if self.size < 0:
            raise UsageError(f"`{self.path!r}` has a negative size")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What must be unchanged for a file's pages to count as that file's: (inode, size, mtime, ETag where known).

    `device` and `ctime_ns` are kept for reports and for NFS, where any change of attributes drops the cache.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int = 0
    etag: str | None = None

    def same_content(self, other: FileIdentity) -> bool:
        """True when both identities name the same bytes."""
        return (self.inode, self.size, self.mtime_ns, self.etag) == (
            other.inode,
            other.size,
            other.mtime_ns,
            other.etag,
        )


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file found on this node: where it lies, what it is called below its root, and which bytes it is."""

    entry: FileEntry
    path: str  # absolute, symlinks resolved
    root: str  # the PATH argument it was found under, absolute
    identity: FileIdentity
    mount_id: int
    owner: int  # st_uid
    allocated: int  # bytes of blocks; less than size for sparse files

    @property
    def size(self) -> int:
        """Bytes."""
        return self.entry.size


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one file, the unit of work: bytes [offset, offset + length) of ``files[index]``."""

    index: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.offset + self.length


class Known(StrEnum):
    """How a residency figure was obtained, from exact to nothing."""

    CACHESTAT = "cachestat"
    MINCORE = "mincore"
    MEMORY_FS = "memory-fs"  # tmpfs and ramfs: the file is memory
    SAMPLED = "sampled"
    TIMED = "timed"
    UNKNOWN = "unknown"

    @property
    def exact(self) -> bool:
        """True when the kernel counted pages; estimates and `UNKNOWN` are not exact."""
        return self in (Known.CACHESTAT, Known.MINCORE, Known.MEMORY_FS)


@dataclass(frozen=True, slots=True)
class Residency:
    """How much of a file is in the page cache, in bytes, and how that is known.

    `resident` is None exactly when `known` is `Known.UNKNOWN`. For estimates it is the lower end of a 95 % interval,
    so it is below `total` even when every sample hit. `evicted` counts bytes that the kernel dropped under pressure
    (cachestat only, else None). `why` says in a few words why it is not exact.
    """

    resident: int | None
    total: int
    known: Known
    evicted: int | None = None
    why: str = ""

    @property
    def complete(self) -> bool:
        """True only when an exact count says that every byte is resident."""
        return self.known.exact and self.resident == self.total

    @property
    def missing(self) -> int | None:
        """Bytes known not to be resident; None unless counted exactly."""
        return self.total - self.resident if self.known.exact and self.resident is not None else None

    @staticmethod
    def unknown(total: int, why: str) -> Residency:
        """The honest answer when nothing can be said."""
        return Residency(None, total, Known.UNKNOWN, None, why)


def sum_residency(parts: list[Residency]) -> Residency:
    """The residency of several files together: as well known as the least well known part.

    An unknown part makes the sum unknown; the exact resident bytes are not lost, callers print files one by one.
    An empty list sums to an exact zero.
    """
    total = sum(part.total for part in parts)
    if not parts:
        return Residency(0, 0, Known.CACHESTAT, 0)
    worst = max(parts, key=lambda part: list(Known).index(part.known))
    if worst.known is Known.UNKNOWN:
        return Residency.unknown(total, worst.why)
    evicted = [part.evicted for part in parts if part.evicted is not None]
    return Residency(
        sum(part.resident or 0 for part in parts),
        total,
        worst.known,
        sum(evicted) if evicted else None,
        worst.why,
    )


class LevelKind(StrEnum):
    """Where a memory limit comes from."""

    SYSTEM = "system"
    V1 = "cgroup v1"
    V2 = "cgroup v2"
    GIVEN = "--limit"
    BUDGET = "--budget"  # no memory level at all, but a bound that is named like one


@dataclass(frozen=True, slots=True)
class Level:
    """One level of memory accounting that bounds the page cache, as read at one moment. All figures in bytes.

    `source` is what a person can read to check it (a file, or ``--limit``). `used` counts everything charged;
    `reclaimable` the clean file pages among it (never shm, never what siblings protect). `limit` None means unlimited.
    `own` is true for a container's own level, which the engine does not share. `protected` is what
    of its usage memory.min and memory.low keep. `blind` is true where the limit is known but the usage behind it cannot be
    read: `used` and `reclaimable` are then what a visible level inside it shows, a lower bound.
    """

    kind: LevelKind
    name: str
    source: str
    limit: int | None
    used: int
    reclaimable: int
    own: bool = False
    protected: int = 0
    blind: bool = False

    @property
    def free(self) -> int | None:
        """Bytes left before anything must be reclaimed; None when unlimited."""
        return None if self.limit is None else max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """Every visible level, innermost first, the system last."""

    levels: tuple[Level, ...]
    in_kubernetes: bool = False
    lru: str = "unknown"  # "mglru", "classic" or "unknown"


@dataclass(frozen=True, slots=True)
class LevelRoom:
    """What one level has room for, after reserve and footprint."""

    level: Level
    reserve: int
    free: int  # new pages that fit without reclaiming anything
    room: int  # new pages that fit when other clean cache goes


@dataclass(frozen=True, slots=True)
class Admission:
    """The budget's answer: how many new bytes may be warmed, and which limit says so.

    `granted` <= `need`. `binding` is the level with the least room, None when nothing limits. `displaces` is the
    clean cache of others that will go. `advice` is what to write in the YAML, or empty.
    """

    need: int
    granted: int
    binding: LevelRoom | None
    rooms: tuple[LevelRoom, ...]
    displaces: int = 0
    advice: str = ""

    @property
    def fits(self) -> bool:
        """True when everything that is needed is granted."""
        return self.granted >= self.need

    @property
    def shortfall(self) -> int:
        """Bytes needed and not granted."""
        return self.need - self.granted


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that will not be warmed, and why."""

    path: str
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Defect:
    """Something wrong with the checkpoint. `proven` defects make it incomplete or corrupt (exit 8)."""

    path: str
    what: str
    proven: bool = True


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """What kind of checkpoint a folder holds: format names, the load order of its files, and its defects.

    `order` lists indexes into the files it was made from: tokenizer and config first, then weights as engines load
    them, then the rest. `weights` are the indexes among them that an engine loads as weights, in that order; copies
    that engines skip (a .bin beside .safetensors) are not among them.
    """

    names: tuple[str, ...]
    order: tuple[int, ...]
    defects: tuple[Defect, ...] = field(default=())
    weights: tuple[int, ...] = field(default=())
