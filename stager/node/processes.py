"""Processes as the kernel shows and ties them: what one has open, how it is doing, whose death ends it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from stager.node.frozen import without_own

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NOT_FILES = ("/dev/", "/proc/", "/sys/")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Stuck:
    """A process that SIGKILL does not end, and the files its stuck threads have in hand (all it has open, in doubt)."""

    pid: int
    files: tuple[str, ...]


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl: {os.strerror(code)}")


def outlive_parent() -> None:
    """Take `die_with` back."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def die_with(parent: int) -> None:
    """Have this process killed when its parent dies, also when that has already happened."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def watch_process(pid: int) -> int | None:
    """A descriptor that becomes readable when `pid` ends; None where the kernel or seccomp has no pidfd_open(2)."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def close_all_but_stdio() -> None:
    """A pipe or listening socket meant for the program must not be kept open by us after the program has closed it."""
    with suppress(OSError):
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd > 2:
                with suppress(OSError):
                    os.close(fd)


def original_environment() -> dict[bytes, bytes]:
    """The environment this process was started with.

    Not ``os.environ``: in the C locale Python adds LC_CTYPE=C.UTF-8 to its own (PEP 538), which is none of the program's
    business. The kernel still shows the original; without /proc it is ``os.environ`` after all.
    """
    try:
        with open("/proc/self/environ", "rb") as block:
            items = block.read().split(b"\0")
    except OSError:
        return without_own(os.environb)
    found: dict[bytes, bytes] = {}
    for item in items:
        name, equals, value = item.partition(b"=")
        if name and equals:
            found.setdefault(name, value)  # getenv(3) finds the first of two
    return without_own(found)


def status_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third (the state) on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_of(pid: int) -> float:
    """When the process began, in clock ticks since the node did; 0 where that cannot be known, or there is no such process."""
    fields = status_fields(pid)
    return float(fields[19]) if len(fields) > 19 else 0.0


def is_alive(pid: int, start: float) -> bool:
    """Whether the process `pid` that began at `start` (`start_of`; 0: unknown) runs. One that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    fields = status_fields(pid)  # of others, /proc may show none
    if fields and fields[0] in ("Z", "X"):
        return False
    return not fields or not start or start_of(pid) == start


def boot_id() -> str:
    """What the kernel calls this boot of the node; empty where it does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """The namespace in which this process's pids are counted; empty where that cannot be known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def name_stuck(pid: int) -> Stuck:
    """What a process that will not die holds, read without touching its memory or its files: those could hang us too."""
    opened: set[str] = set()
    in_hand: set[str] = set()
    for task in _listed(f"/proc/{pid}/task"):
        files = _open_files(f"{task}/fd")
        opened.update(files.values())
        with suppress(OSError, ValueError, IndexError), open(f"{task}/syscall", encoding="ascii") as call:
            first_argument = int(call.read().split()[1], 16)  # of a read: the descriptor
            in_hand.add(files.get(first_argument, ""))
    return Stuck(pid, tuple(sorted(in_hand - {""} or opened)))


def _open_files(folder: str) -> dict[int, str]:
    """Descriptor to path of the files on disk that are open beyond stdin, stdout and stderr."""
    files: dict[int, str] = {}
    for name in _listed(folder):
        fd = int(os.path.basename(name))
        with suppress(OSError):
            target = os.readlink(name)
            if fd > 2 and target.startswith("/") and not target.startswith(_NOT_FILES):
                files[fd] = target
    return files


def _listed(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


def more_descriptors() -> None:
    """Let this process have as many descriptors open as it may: a model has more files than the usual 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def members(leader: int) -> list[int]:
    """The live processes of the process group or session that `leader` began, itself among them; zombies are none. Empty without /proc."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            fields = status_fields(int(name))
            if len(fields) > 3 and fields[0] not in ("Z", "X") and str(leader) in fields[2:4]:
                found.append(int(name))
    return found


def adopt_orphans() -> bool:
    """From now on processes below this one whose own parent ends become its children, wherever they have gone; whether the kernel does that."""
    try:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    except OSError:
        return False
    return True


def children_of(parent: int) -> list[int]:
    """The processes whose parent is `parent`, zombies too. Empty without /proc."""
    there = (
        [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else []
    )
    return [pid for pid in there if status_fields(pid)[1:2] == [str(parent)]]


def heirs(parent: int) -> list[int] | None:
    """About what `children_of` gives, but cheaply: one that comes or goes at the moment may be missed. None where the kernel keeps no such list."""
    found: list[int] = []
    kept = False
    for task in _listed(f"/proc/{parent}/task"):
        with suppress(OSError), open(f"{task}/children", encoding="ascii") as file:
            found += map(int, file.read().split())
            kept = True
    return found if kept else None


def with_descendants(pids: Iterable[int]) -> set[int]:
    """`pids`, their children, the children of these, and so on, as they are now. Without /proc `pids` alone."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit() and (fields := status_fields(int(name))):
            below.setdefault(int(fields[1]), []).append(int(name))
    found: set[int] = set()
    rest = list(pids)
    while rest:
        if (pid := rest.pop()) not in found:
            found.add(pid)
            rest += below.get(pid, [])
    return found


def processor_seconds(pids: Iterable[int]) -> float:
    """Processor seconds, user and system, of the processes `pids` and of those children of theirs that have ended and were waited for."""
    ticks = sum(sum(int(field) for field in status_fields(pid)[11:15]) for pid in pids)
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_members(leader: int) -> None:
    """SIGKILL for the process group that `leader` leads, and for what else is in a session of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    for pid in members(leader):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
