"""One table: how each filesystem is read, whether it keeps pages, and what to say when it does not."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import StrEnum

from stager.core.units import GIB, MIB
from stager.node.mounts import Mount, mount_id_of
from stager.node.mounts import read as read_mounts


class Pattern(StrEnum):
    """How a file is read."""

    MEMORY = "memory"  # the file is memory already: nothing to do
    SPANS = "spans"  # pieces of big files across lanes
    HANDLE = "handle"  # one handle a file, ascending, closed promptly


@dataclass(frozen=True, slots=True)
class Traits:
    """What stager knows of a filesystem.

    `start` lanes to begin with. `may_split`: a handle-pattern file may be split on trial. `canary`: test first whether
    pages outlive an open. `revalidates`: pages are checked against the server at open or read, so stale ones are never
    served. `daemon_buffer` is what the daemon behind a mount may hold per open handle, `daemon_cap` in all, in bytes.
    `remedy` is what to mount differently when pages are dropped. `touch` is the default way to bring pages in. `object_store`: objects lie
    behind it, so a rename is a copy, and what is written goes straight to its final name, in ascending order.
    """

    name: str
    pattern: Pattern
    start: int = 2
    may_split: bool = False
    canary: bool = False
    revalidates: bool = True
    reports_stale: bool = False  # NFS: residency is reported for pages that the next read throws away
    daemon_buffer: int = 0
    daemon_cap: int = 0
    remedy: str = ""
    advice: tuple[str, ...] = ()
    object_store: bool = False


_FUSE = Traits(
    "FUSE",
    Pattern.HANDLE,
    start=4,
    may_split=True,
    canary=True,
    revalidates=False,
    daemon_buffer=64 * MIB,
    daemon_cap=GIB,
    remedy="mount it so that the daemon answers `keep cache` (libfuse: `-o kernel_cache` for immutable models, "
    "`-o auto_cache` otherwise)",
)
_BUCKET = replace(_FUSE, object_store=True)
_OSSFS1 = replace(
    _BUCKET,
    name="ossfs 1.x",
    may_split=False,
    # Its direct_read window: 128 MiB a handle, 1 GiB a process.
    daemon_buffer=128 * MIB,
    daemon_cap=GIB,
    remedy="mount it with `-o auto_cache` (or `-o kernel_cache` for immutable models)",
    advice=(
        "`-o direct_read` avoids whole-file downloads into the daemon's tmpdir, which fill the system disk",
    ),
)
_OSSFS2 = replace(
    _BUCKET,
    name="ossfs 2",
    may_split=False,
    # Its prefetch: up to 1.5 GiB a handle from one pool of 6 GiB, given back only at close.
    daemon_buffer=3 * GIB // 2,
    daemon_cap=6 * GIB,
    remedy="ossfs 2 keeps pages by default; remove `-o direct_io`-like options and mount it again",
    advice=(
        "several processes reading the same cold files multiply what is fetched: warm first, or mount with `--memory_data_cache_size=16g`",
        "llama.cpp keeps every GGUF split open: mount with `--prefetch_chunks=-1`, which costs 1.5 GiB per open big file",
    ),
)
_TABLE: dict[str, Traits] = {
    **dict.fromkeys(("tmpfs", "ramfs", "hugetlbfs"), Traits("memory filesystem", Pattern.MEMORY)),
    **{name: Traits(name, Pattern.SPANS) for name in ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "erofs", "squashfs", "vfat", "exfat", "iso9660", "fuseblk", "bcachefs")},
    **dict.fromkeys(("nfs", "nfs4"), Traits("NFS", Pattern.SPANS, reports_stale=True)),
    **{name: Traits(name, Pattern.SPANS) for name in ("cifs", "smb3", "ceph", "lustre", "gpfs", "9p", "virtiofs")},
    "zfs": Traits("zfs", Pattern.SPANS, advice=("ZFS keeps what is read in its ARC, not in the page cache",)),
    "fuse": _FUSE,
    "fuse.ossfs": _OSSFS1,
    "fuse.ossfs2": _OSSFS2,
    # The daemons made from s3fs have their program's name for a subtype, as libfuse gives it.
    **{f"fuse.{name}": replace(_BUCKET, name=name) for name in ("cosfs", "obsfs", "tosfs", "bosfs", "goofys", "geesefs", "gcsfuse", "blobfuse", "blobfuse2")},
    "fuse.jindofs-fuse": replace(_BUCKET, name="JindoFS"),
    "fuse.mountpoint-s3": replace(_BUCKET, name="Mountpoint for S3"),
    "fuse.s3fs": replace(_BUCKET, name="s3fs", remedy="mount it with `-o kernel_cache`, and `-o use_cache=DIR` for a disk cache of its own"),
    "fuse.rclone": replace(
        _BUCKET,
        name="rclone",
        daemon_buffer=16 * MIB,
        remedy="rclone mount drops pages at open; use `--vfs-cache-mode full` (a disk cache of its own) and warm with `--anyway`",
    ),
    "fuse.bindfs": replace(_FUSE, name="bindfs", daemon_buffer=0, remedy="mount it with `-o kernel_cache`, or warm the directory behind it"),
    "fuse.fuse-overlayfs": replace(_FUSE, name="fuse-overlayfs", daemon_buffer=0, remedy="warm the layers behind it, or use the kernel's overlayfs"),
}  # fmt: skip


def traits_of(mount: Mount, mounts: dict[int, Mount] | None = None) -> Traits:
    """What is known of `mount`'s filesystem; overlayfs is treated like the filesystem of its topmost visible layer."""
    if mount.fstype == "overlay":
        lower = _lower_mount(mount, mounts or {})
        base = traits_of(lower, {}) if lower is not None else _TABLE["ext4"]
        # What is written goes to the upper layer, which is none of these.
        return replace(base, name=f"overlayfs over {base.name}", object_store=False)
    known = _TABLE.get(mount.fstype)
    if mount.fstype == "fuse" and mount.source.startswith("/") and not mount.source.startswith("/dev/"):
        known = _TABLE["fuse.bindfs"]  # shows its source folder and no subtype
    if mount.fstype == "fuse" and mount.source == "mountpoint-s3":
        known = _TABLE["fuse.mountpoint-s3"]  # says so there, and shows no subtype
    if known is not None:
        return known
    if mount.fstype.startswith("fuse."):
        return replace(_FUSE, name=mount.fstype)
    return Traits(mount.fstype, Pattern.HANDLE, start=4, may_split=True, canary=True, revalidates=False)


def _lower_mount(mount: Mount, mounts: dict[int, Mount]) -> Mount | None:
    """The mount that holds the overlay's first lower directory, where this namespace can see it."""
    for option in mount.options.split(","):
        key, _, value = option.partition("=")
        if key != "lowerdir":
            continue
        layer = os.path.realpath(value.split(":")[0].replace("\\:", ":"))
        if not os.path.isdir(layer):
            return None
        holders = [
            m
            for m in mounts.values()
            if m.fstype != "overlay" and os.path.commonpath((m.point, layer)) == m.point
        ]
        return max(holders, key=lambda m: len(m.point), default=None)
    return None


def object_store_at(path: str) -> bool:
    """Whether what is written below the folder `path` becomes objects; of one that is not there yet, its nearest parent tells.

    False where the mounts cannot be read. Raises ``OSError`` for a folder that cannot be looked up.
    """
    while True:
        try:
            fd = os.open(path or ".", os.O_PATH | os.O_CLOEXEC)
            break
        except (FileNotFoundError, NotADirectoryError):
            parent = os.path.dirname(path.rstrip("/"))
            if parent == path:
                raise
            path = parent
    try:
        known = read_mounts()
        mount = known.get(mount_id_of(fd))
    except OSError:
        return False
    finally:
        os.close(fd)
    return mount is not None and traits_of(mount, known).object_store


def daemon_buffers(traits: Traits, lanes: int, largest_file: int) -> int:
    """Bytes that the daemon behind a mount may hold while `lanes` handles are open."""
    return min(traits.daemon_cap, lanes * min(traits.daemon_buffer, largest_file))


def endpoint_advice(mount: Mount) -> tuple[str, ...]:
    """What the mount's source and limits suggest, for `check`."""
    advice = []
    if mount.fstype in ("fuse.ossfs", "fuse.ossfs2") and "aliyuncs.com" in mount.source:
        if "-internal" not in mount.source and "oss-data-acc" not in mount.source:
            advice.append("the endpoint has no `-internal`: bytes take the internet path")
        if "oss-data-acc" in mount.source:
            advice.append("the endpoint is the OSS accelerator: its own cache warms too")
    if mount.fstype in ("nfs", "nfs4"):
        try:
            with open(mount.readahead_file, encoding="ascii") as file:
                kib = int(file.read())
        except (OSError, ValueError):
            return tuple(advice)
        if kib < 4096:
            # One reader at 4 ms round trip: 70 MB/s at 128 KiB, 250 MB/s at 4 MiB, no more beyond.
            advice.append(
                f"read_ahead_kb is {kib}; the node's root can do `echo 4096 > {mount.readahead_file}`"
            )
    return tuple(advice)
