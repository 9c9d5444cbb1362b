"""Which mount a path lies on, read without opening anything on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from stager.node import syscalls
from stager.node.processes import start_of

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `device` is ``major:minor``; `options` the superblock's, as one string."""

    id: int
    device: str
    root: str
    point: str
    fstype: str
    source: str
    options: str

    @property
    def readahead_file(self) -> str:
        """Where the kernel keeps this mount's readahead, in KiB."""
        return f"/sys/class/bdi/{self.device}/read_ahead_kb"

    @property
    def readahead(self) -> int:
        """Bytes that the kernel reads ahead of a reader here; its default of 128 KiB where it does not say."""
        block = f"/sys/dev/block/{self.device}"  # of a partition, the disk knows
        for path in (self.readahead_file, f"{block}/queue/read_ahead_kb", f"{block}/../queue/read_ahead_kb"):
            try:
                with open(path, encoding="ascii") as file:
                    return int(file.read()) * 1024
            except (OSError, ValueError):
                continue
        return 128 * 1024


@dataclass(frozen=True, slots=True)
class MountIdentity:
    """What tells one mount from a later one at the same place.

    st_dev and mount ids are reused as soon as they are free, so a remount can get the same pair again; the unique id
    (Linux 6.8) is never reused. `mount_id` means something only inside the mount namespace `namespace`.
    """

    device: int
    mount_id: int
    unique_id: int | None
    namespace: str


def unescape(text: str) -> str:
    """`text` as the kernel means it: it writes blanks and backslashes in octal."""
    return _OCTAL.sub(lambda m: chr(int(m[1], 8)), text)


def parse(text: str) -> dict[int, Mount]:
    """Mounts by id, from the text of ``/proc/<pid>/mountinfo``."""
    mounts = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        head, tail = left.split(" "), right.split(" ")
        if len(head) < 6 or len(tail) < 3:
            continue
        mount = Mount(
            int(head[0]),
            head[2],
            unescape(head[3]),
            unescape(head[4]),
            tail[0],
            unescape(tail[1]),
            tail[2],
        )
        mounts[mount.id] = mount
    return mounts


def read() -> dict[int, Mount]:
    """The mounts of this process's namespace by id."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def mount_id(path: str) -> int:
    """The id of the mount that `path` lies on. O_PATH: the file is looked up, not opened. Raises ``OSError``."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_id_of(fd)
    finally:
        os.close(fd)


def mount_id_of(fd: int) -> int:
    """The id of the mount that the open `fd` lies on; -1 where the kernel does not say. Raises ``OSError``."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return -1


def namespace() -> str:
    """This process's mount namespace, by a name that no later one has. Raises ``OSError``.

    Its inode number alone is free again when an init container ends, and the engine's container takes it. The root's unique mount id
    is never reused; before Linux 6.8 the start of process 1 tells one container from the next.
    """
    inode = os.readlink("/proc/self/ns/mnt")
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        unique = syscalls.unique_mount_id(root)
    finally:
        os.close(root)
    return f"{inode} {unique}" if unique is not None else f"{inode} {start_of(1):.0f}"


def identity(path: str) -> MountIdentity:
    """The identity of the mount that `path` lies on. Raises ``OSError``."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return MountIdentity(
            os.fstat(fd).st_dev,
            mount_id_of(fd),
            syscalls.unique_mount_id(fd),
            namespace(),
        )
    finally:
        os.close(fd)
