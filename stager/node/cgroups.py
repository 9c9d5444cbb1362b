"""Where this process stands in the memory cgroups: every directory that can be seen from here, innermost first.

On v1, v2 and hybrid machines (in hybrid ones v1 has the memory controller), with and without a cgroup namespace, and
through bind mounts that show only a part of the tree.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

# Engines name a container's directory by its 64-digit id, alone or within `docker-ID.scope`, `slice:cri-containerd:ID`.
_CONTAINER_ID = re.compile(r"(?:^|[-:])[0-9a-f]{64}(?:\.scope)?$", re.ASCII)
_ENGINES = ("kubepods", "docker", "libpod", "containerd", "cri-o", "crio")
_ESCAPE = re.compile(r"\\([0-7]{3})")

# Looking for the own process id below a mount ends here. A big node has some thousand cgroups, and reading one
# cgroup.procs took 10 us on a 4-core virtual machine, so this bounds the search to a tenth of a second.
_SEARCH_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Directory:
    """One cgroup directory that bounds this process.

    `path` is where it lies in the file system, `name` what the hierarchy calls it, `own` true for a container's own
    level, and `inner` the name of the child on the way to this process (None in the innermost one).
    """

    path: str
    name: str
    own: bool
    inner: str | None


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The visible directories, innermost first, of cgroup `version` 1 or 2 (0: no memory controller can be seen).

    `top` is the real root of the machine's hierarchy where it can be seen. It never limits anything and is not among
    `directories`. `membership` is the text that all this was derived from; when it changes the process was moved.
    """

    version: int
    directories: tuple[Directory, ...]
    top: Directory | None = None
    membership: str = ""


def read_text(path: str) -> str | None:
    """The text of a small kernel file, undecodable bytes as surrogates; None when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def membership(root: str, pid: str) -> str:
    """The text of ``/proc/PID/cgroup``, empty when it cannot be read."""
    return read_text(f"{root.rstrip('/')}/proc/{pid}/cgroup") or ""


def find(*, root: str = "/", pid: str = "self") -> Hierarchy:
    """The memory cgroups of process `pid`; `root` is put before every path that is read.

    Never raises: what cannot be read is left out. Costs a read of mountinfo and a few ``stat`` calls.
    """
    prefix = root.rstrip("/")
    text = membership(root, pid)
    version, own_path = _own_path(text)
    mountinfo = read_text(f"{prefix}/proc/{pid}/mountinfo")
    if own_path is None or mountinfo is None:
        return Hierarchy(0, (), membership=text)
    own = _parts(own_path)
    place = _place(prefix, own, _mounts(mountinfo, version), os.getpid() if pid == "self" else int(pid))
    if place is None:
        return Hierarchy(0, (), membership=text)
    point, mount_root, below = place
    directories = _chain(prefix, point, mount_root, below, own)
    top = directories[-1] if _is_real_root(prefix + directories[-1].path, version) else None
    if top is not None:
        directories = directories[:-1]
    if version == 1:
        directories = _binding_v1(prefix, directories)
    return Hierarchy(version, directories, top, text)


def _own_path(text: str) -> tuple[int, str | None]:
    """The cgroup version that accounts memory, and the own path in it: the v1 line wins where there is one."""
    unified = None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return 1, path
        if number == "0" and not controllers:
            unified = path
    return 2, unified


def _mounts(mountinfo: str, version: int) -> list[tuple[list[str], str]]:
    """(parts of the mount's root, mount point) of every memory cgroup mount, the last mounted first."""
    found = []
    for line in mountinfo.split("\n"):
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not dash or len(fields) < 6 or len(kind) < 3:
            continue
        if (version == 2 and kind[0] == "cgroup2") or (
            version == 1 and kind[0] == "cgroup" and "memory" in kind[2].split(",")
        ):
            found.append((_parts(_unescape(fields[3])), _unescape(fields[4])))
    return found[::-1]


def _unescape(text: str) -> str:
    """Mountinfo writes space, tab, newline and backslash as three octal digits."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _place(
    prefix: str, own: list[str], mounts: list[tuple[list[str], str]], pid: int
) -> tuple[str, list[str], list[str]] | None:
    """The mount that shows the most levels above this process: (mount point, mount root, parts below it)."""
    best: tuple[str, list[str], list[str]] | None = None
    for mount_root, point in mounts:
        below = own[len(mount_root) :]
        covers = own[: len(mount_root)] == mount_root and ".." not in below
        if (
            covers
            and os.path.isdir("/".join([prefix + point, *below]))
            and (best is None or len(below) > len(best[2]))
        ):
            best = (point, mount_root, below)
    if best is not None:
        return best
    # A mount made outside this cgroup namespace has a root like `/../..`: the names in between are not told, but the
    # directory that lists this process is the right one.
    for mount_root, point in mounts:
        found = _search(prefix + point, pid)
        if found is not None:
            return point, mount_root, found
    return None


def _search(top: str, pid: int) -> list[str] | None:
    """The parts below `top` of the directory whose cgroup.procs lists `pid`, None when it is not found."""
    queue: list[list[str]] = [[]]
    for parts in queue:
        path = "/".join([top, *parts])
        if str(pid) in (read_text(f"{path}/cgroup.procs") or "").split():
            return parts
        if len(queue) < _SEARCH_LIMIT:
            queue.extend([*parts, child] for child in subdirectories(path))
    return None


def subdirectories(path: str) -> list[str]:
    """The names of the directories in `path`, sorted; none when it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _chain(
    prefix: str, point: str, mount_root: list[str], below: list[str], own: list[str]
) -> tuple[Directory, ...]:
    """The directories from the own one up to the mount point."""
    named = below if ".." in mount_root else [*mount_root, *below]
    ids = [index for index, part in enumerate(named) if _CONTAINER_ID.search(part)]
    innermost = "/".join([prefix + point, *below])
    container = len(named)
    if ids:
        container = ids[-1] + 1
    elif not _in_container(own, innermost):
        container += 1
    return tuple(
        Directory(
            path="/".join([point.rstrip("/"), *below[:depth]]),
            name="/" + "/".join(named[: len(named) - len(below) + depth]),
            own=len(named) - len(below) + depth >= container,
            inner=below[depth] if depth < len(below) else None,
        )
        for depth in range(len(below), -1, -1)
    )


def _in_container(own: list[str], directory: str) -> bool:
    """True when the innermost level belongs to one container, by an engine's name above it or a namespace of its own.

    The engines' own services (`docker.service`) are no containers.
    """
    if any(engine in part and not part.endswith(".service") for part in own for engine in _ENGINES):
        return True
    return not own and not (_is_real_root(directory, 1) or _is_real_root(directory, 2))


def _is_real_root(path: str, version: int) -> bool:
    """True for the root of the machine's hierarchy, which no namespace can rename.

    The kernel makes release_agent (v1) in the root alone, and cgroup.type (v2) everywhere but there.
    """
    if version == 1:
        return os.path.exists(f"{path}/release_agent")
    return not any(os.path.exists(f"{path}/{name}") for name in ("cgroup.type", "memory.current", "tasks"))


def _binding_v1(prefix: str, directories: tuple[Directory, ...]) -> tuple[Directory, ...]:
    """Without the ancestors that do not bind: one whose memory.use_hierarchy is 0 does not count its children."""
    for index, directory in enumerate(directories[1:], start=1):
        if (read_text(f"{prefix}{directory.path}/memory.use_hierarchy") or "1").strip() == "0":
            return directories[:index]
    return directories
