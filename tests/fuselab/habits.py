"""Everything a mount can be told to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fuselab.pacing import PoolShape


@dataclass
class Habits:
    """How the server behaves. Times in seconds, rates in bytes per second, names relative to the mount."""

    keep_cache: str = "never"  # never | always | auto
    direct_io: bool = False
    auto_inval: bool = False
    attr_timeout: float = 1.0
    entry_timeout: float = 1.0
    latency: float = 0.0
    meta_latency: float = 0.0
    stream_rate: float | None = None
    total_rate: float | None = None
    crowd: int = 0  # open handles beyond which the total rate falls; 0: it never does
    serial: bool = False
    pool: PoolShape | None = None
    hang_after: int | None = None
    hang_files: frozenset[bytes] = frozenset()
    errors: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)  # name -> (offset, errno)
    shrink: dict[bytes, int] = field(default_factory=dict)  # name -> where reads end
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    inodes: int = 0  # added to every file's inode: a daemon that counts anew gives others at each mount
    max_pages: int = 256
    max_readahead: int | None = None
    max_background: int = 0  # 0: the kernel's default, 12
    writes: str | None = None  # "ossfs2": see tests/fuselab/writing.py
    close_error: int = 0  # errno of close() of what was written
    close_errors: int = -1  # how often; -1: always
    write_errors: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)  # name -> (offset, errno)
    append_errors: dict[str, int] = field(default_factory=dict)  # "open" or "write" -> errno
