"""What the end-to-end tests share: the real program as a process, real files made cold, and a judge of its own.

Residency is proven here by mincore(2) through calls of this module, never by stager's own code.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from tests import models

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
PAGE = mmap.PAGESIZE
STRANGER = 12345  # a uid that owns nothing
_MEMORY = ("tmpfs", "ramfs")
V1_MEMORY = "/sys/fs/cgroup/memory"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


# The judge


def page_map(path: str) -> bytes:
    """One byte a page of the file, 1 for resident. Only true for the file's owner. Opens the file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if not size:
            return b""
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
        pages = ctypes.create_string_buffer(-(-size // PAGE))
        assert _libc.mincore(address, size, pages) == 0
        _libc.munmap(address, size)
        return bytes(byte & 1 for byte in pages.raw)
    finally:
        os.close(fd)


def resident(*paths: str) -> int:
    """Resident bytes of the files, page by page, the last page counted as far as the file goes."""
    total = 0
    for path in paths:
        pages, size = page_map(path), os.path.getsize(path)
        total += sum(pages) * PAGE - ((-size) % PAGE if pages and pages[-1] else 0)
    return total


def cold(*paths: str) -> None:
    """Drop the pages of the files and prove that none is left."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            for attempt in range(50):
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                if not any(page_map(path)):
                    break
                time.sleep(0.01 * attempt)  # a page on another processor's list is busy for a moment
        finally:
            os.close(fd)
        assert resident(path) == 0, f"{path!r} cannot be made cold"


def files_below(folder: str) -> list[str]:
    """Every regular file below `folder`."""
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in sorted(names)]


def until(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """The first true value of `condition`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)


# The program


@dataclass
class Done:
    """A finished run: exit code, streams, seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON lines of stdout; fails where one is not a JSON object of version 1."""
        found = []
        for line in self.out.splitlines():
            event = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
            assert list(event)[:2] == ["v", "type"]
            assert event["v"] == 1
            found.append(event)
        return found

    def event(self, kind: str) -> dict[str, Any]:
        """The only event of type `kind`."""
        found = [event for event in self.events if event["type"] == kind]
        assert len(found) == 1, f"{len(found)} events of type {kind} in {self.out}{self.err}"
        return found[0]

    def all(self, kind: str) -> list[dict[str, Any]]:
        """All events of type `kind`."""
        return [event for event in self.events if event["type"] == kind]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of a warm run, which must be the last line."""
        last = self.events[-1]
        assert last["type"] == "warm_summary", self.out + self.err
        return last

    def __str__(self) -> str:
        return f"exit {self.code} after {self.seconds:.1f} s\n--- stdout\n{self.out}--- stderr\n{self.err}"


# The interpreter may lie where only root can go, so a stranger's run begins as root, loads everything, and then gives every
# right away. Without PR_SET_DUMPABLE its own /proc would stay root's.
_AS_STRANGER = """
import ctypes, importlib, os, pkgutil, sys, stager
for module in pkgutil.walk_packages(stager.__path__, "stager."):
    if module.name != "stager.__main__":
        importlib.import_module(module.name)
import anyio._backends._asyncio, encodings.ascii, encodings.idna, encodings.latin_1, encodings.unicode_escape
import hashlib, traceback, urllib.request
uid = int(sys.argv.pop(1))
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
from stager.cli import main
main()
"""


def command(*words: str, uid: int | None = None) -> list[str]:
    """The program with these arguments; as `uid`, without any right, if given."""
    if uid is None:
        return [sys.executable, "-m", "stager", *words]
    return [sys.executable, "-c", _AS_STRANGER, str(uid), *words]


def environment(**more: str) -> dict[str, str]:
    """This environment without what would steer stager, with `more`."""
    steering = (
        "STAGER_",
        "OSS_",
        "ALIBABA_CLOUD_",
        "KUBERNETES_",
        "NOTIFY_SOCKET",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


class Running:
    """A run under way; its streams go to files, so that nothing waits for a reader."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], **options: Any) -> None:
        self._out = tempfile.TemporaryFile()
        self._err = tempfile.TemporaryFile()
        self._started = time.monotonic()
        streams = {"stdout": self._out, "stderr": self._err, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, env=env, cwd=ROOT, **{**streams, **options})
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        return _content(self._out)

    @property
    def err(self) -> str:
        return _content(self._err)

    def await_text(self, pattern: str, seconds: float = 15.0) -> str:
        """Wait until a stream shows `pattern`; gives what matched."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.err) or re.search(pattern, self.out)
            if match is None and self.process.poll() is not None:
                match = re.search(pattern, self.err) or re.search(pattern, self.out)
                assert match, f"ended without {pattern!r}: {self.process.returncode}\n{self.out}{self.err}"
            return match

        return str(until(found, f"{pattern!r}", seconds)[0])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self, seconds: float = 60.0) -> Done:
        """Wait for the end, at most `seconds`."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"did not end within {seconds:g} s\n{self.out}{self.err}")
        return Done(self.process.returncode, self.out, self.err, time.monotonic() - self._started)

    def stop(self, number: int, within: float) -> Done:
        """Send a signal; the run must end within so many seconds."""
        before = time.monotonic()
        self.signal(number)
        done = self.finish(within + 10)
        took = time.monotonic() - before
        assert took < within, f"took {took:.1f} s to end after signal {number}\n{done}"
        return done

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)


def _content(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode("utf-8", "surrogateescape")


@dataclass
class Box:
    """A folder on a real disk filesystem, a marker in it, and the program run with that marker."""

    folder: str
    runs: list[Running] = field(default_factory=list)

    @property
    def marker(self) -> str:
        return os.path.join(self.folder, "marker", "ready.json")

    def open_marker_folder(self) -> None:
        """Let everybody write the marker."""
        os.makedirs(os.path.dirname(self.marker), exist_ok=True)
        os.chmod(os.path.dirname(self.marker), 0o777)

    def path(self, *names: str) -> str:
        return os.path.join(self.folder, *names)

    def file(self, name: str, size: int, *, chill: bool = True, mode: int = 0o644) -> str:
        """A file of random bytes, on the disk and, when `chill`, with no page in the cache."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        block = os.urandom(min(size, MIB))
        with open(path, "wb") as file:
            for at in range(0, size, MIB):
                file.write(block[: min(MIB, size - at)])
            file.flush()
            os.fsync(file.fileno())
        os.chmod(path, mode)
        if chill:
            cold(path)
        return path

    def sparse(self, name: str, size: int) -> str:
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(size)
            os.fsync(file.fileno())
        return path

    def model(
        self, name: str = "model", form: str = "safetensors", size: int = 24 * MIB, shards: int = 3
    ) -> str:
        """A small real model with cold pages; gives its folder."""
        folder = self.path(name)
        models.make(folder, form, size, shards, models.Filler())
        cold(*files_below(folder))
        return folder

    def run(self, *words: str, seconds: float = 60.0, **options: Any) -> Done:
        """The program to its end."""
        return self.start(*words, **options).finish(seconds)

    def warm(self, *words: str, **options: Any) -> Done:
        """``stager warm --json`` to its end."""
        return self.run("warm", "--json", *words, **options)

    def start(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        uid: int | None = None,
        **options: Any,
    ) -> Running:
        """The program as a process; `before` are words in front of it, such as ``unshare``."""
        settings = environment(**{"STAGER_MARKER": self.marker, **(env or {})})
        running = Running([*before, *command(*words, uid=uid)], settings, **options)
        self.runs.append(running)
        return running

    def ready(self, *words: str) -> bool:
        """Whether ``stager ready`` says yes."""
        done = self.run("ready", *words)
        assert done.code in (0, 3), str(done)
        return done.code == 0

    @property
    def state(self) -> str:
        """The state in the marker, empty without one."""
        return str(self.read_marker().get("state", ""))

    def read_marker(self) -> dict[str, Any]:
        try:
            with open(self.marker, encoding="ascii") as file:
                found: dict[str, Any] = json.load(file)
                return found
        except FileNotFoundError:
            return {}

    def close(self) -> None:
        for running in self.runs:
            running.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def filesystem_of(path: str) -> str:
    """The type of the filesystem that holds `path`."""
    return subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True
    ).stdout.strip()


def _disk() -> str:
    """A folder for test files that is not memory itself: pages there come and go."""
    for folder in (os.environ.get("STAGER_TEST_DIR"), tempfile.gettempdir(), "/var/tmp", str(ROOT)):
        if folder and os.access(folder, os.W_OK) and filesystem_of(folder) not in _MEMORY:
            return folder
    pytest.fail("no folder on a disk filesystem; name one with STAGER_TEST_DIR")


@pytest.fixture
def box() -> Iterator[Box]:
    """A `Box` that every user may enter, removed afterwards; pytest's own folders are closed to other users."""
    folder = tempfile.mkdtemp(prefix="stager-e2e-", dir=_disk())
    os.chmod(folder, 0o755)
    made = Box(folder)
    try:
        yield made
    finally:
        made.close()


# Cgroups, mounts


class Cgroup:
    """A memory cgroup of our own at the top of the v1 hierarchy, with nothing in it."""

    def __init__(self, name: str, parent: str = V1_MEMORY) -> None:
        self.path = f"{parent}/{name}"
        os.mkdir(self.path)

    def limit(self, size: int) -> None:
        with open(f"{self.path}/memory.limit_in_bytes", "w") as file:
            file.write(str(size))

    def number(self, name: str) -> int:
        with open(f"{self.path}/{name}") as file:
            return int(file.read())

    def stat(self, name: str) -> int:
        with open(f"{self.path}/memory.stat") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(f"{name} "))

    @property
    def oom_kills(self) -> int:
        with open(f"{self.path}/memory.oom_control") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))

    def inside(self) -> list[str]:
        """Words to put before a program so that it starts in here."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh"]

    def remove(self) -> None:
        """Wait for the last process to leave, then remove it."""
        until(lambda: not _lines(f"{self.path}/cgroup.procs"), "an empty cgroup")
        os.rmdir(self.path)


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


@pytest.fixture
def make_cgroup(box: Box) -> Iterator[Callable[..., Cgroup]]:
    """Makes cgroups that are removed afterwards, after the box's processes were ended."""
    if not os.path.exists(f"{V1_MEMORY}/release_agent"):
        pytest.skip("needs the cgroup v1 memory controller; scripts/test-vm runs the same on v2")
    made: list[Cgroup] = []

    def make(name: str = "", parent: str = V1_MEMORY) -> Cgroup:
        cgroup = Cgroup(name or f"stager-e2e-{os.getpid()}-{len(made)}", parent)
        made.append(cgroup)
        return cgroup

    try:
        yield make
    finally:
        for running in box.runs:
            running.kill()
        for cgroup in reversed(made):
            if os.path.isdir(cgroup.path):
                for pid in _lines(f"{cgroup.path}/cgroup.procs"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                cgroup.remove()


@contextlib.contextmanager
def mounted(kind: str, source: str, point: str, options: str = "") -> Iterator[str]:
    """A mount that ends with the block."""
    words = ["mount", "-t", kind, *(["-o", options] if options else []), source, point]
    subprocess.run(words, check=True, capture_output=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)
