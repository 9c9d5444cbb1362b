"""The processes of a benchmark: commands and loaders, timed, their CPU counted by wait4, and none left when it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from stager.core.bench.evidence import Usage
from stager.core.units import shown
from stager.jobs.bench.lifeline import Lifeline
from stager.node.processes import adopt_orphans, children_of, kill_members, members, watch_process

_LOOKS = 200  # at a loader that says nothing more and still runs
_LOOK_S = 0.005  # between looks at a process that no descriptor tells of
_STRAYS_S = 0.5  # for children of what was killed to be known as left behind
_MOST_SAID = 64 << 20
_START_S = 120.0  # for a loader to be ready: importing torch from a cold disk takes a while


class ChildFailed(Exception):
    """A process of a run did not do its work; the text is one line that says why."""


class Closed(Exception):
    """The benchmark is being stopped: no process may start any more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: seconds on the wall, CPU seconds of it and all its children, exit code, what it said, what the kernel counted for it.

    `began` is the monotonic clock when it was started.
    """

    seconds: float
    cpu: float
    code: int
    out: str
    err: str
    used: Usage = field(default_factory=Usage)
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loaders took: the whole wall, each one's seconds from the common start to its own end, CPU seconds of all since the start.

    `files` has for each loader (bytes, seconds) of each file in the order of its job. `used` is what the kernel counted for all of them while they loaded.
    """

    seconds: float
    each: tuple[float, ...]
    cpu: float
    files: tuple[tuple[tuple[int, float], ...], ...]
    used: Usage = field(default_factory=Usage)


class Children:
    """Starts processes, each in a process group of its own. `close` ends them all and lets no other begin; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._closed = False
        self._lifeline: Lifeline | None = None
        self._adopts = False
        self._before: set[int] = set()  # children that this process had before it started any

    def begin(self, env: Mapping[str, str]) -> None:
        """From now on nothing that is started outlives this process, even when it is killed. Blocks for a moment."""
        self._before = set(children_of(os.getpid()))
        self._lifeline = Lifeline(env)
        self._adopts = adopt_orphans()

    def remove(self, folder: str) -> None:
        """`folder` does not outlive this process either, when it is killed; to be called after `begin`."""
        if self._lifeline is not None:
            self._lifeline.remove(os.path.abspath(folder))

    def command(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        names: Sequence[str] = (),
        until: float | None = None,
    ) -> Ended:
        """Run `argv` to its end, `names` NUL-separated on its stdin. Raises `ChildFailed` at the moment `until` (monotonic), `Closed`, ``OSError``."""
        stdin = _memory()
        stdin.write(b"".join(os.fsencode(name) + b"\0" for name in names))
        stdin.seek(0)
        with stdin, _memory() as out, _memory() as err:
            began = time.monotonic()
            child = self.start(argv, env, stdin=stdin, stdout=out, stderr=err)
            code, used = self._wait(child, until)
            took = time.monotonic() - began
            return Ended(took, used.cpu, code, _text(out), _text(err), used, began)

    def load(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        job: dict[str, Any],
        count: int,
        *,
        ready: Callable[[], None] | None = None,
        until: float | None = None,
    ) -> Loaded:
        """Have `count` processes of `argv`, which speak as ``loader`` does, do `job` all at once.

        `ready` is called when all of them stand ready, right before they begin; none does when it raises.
        Raises `ChildFailed` for one that fails and at the moment `until` (monotonic), `Closed`, ``OSError``.
        """
        line = json.dumps(job).encode("ascii") + b"\n"
        crew: list[_Loader] = []
        errors = _memory()
        try:
            for _ in range(count):
                child = self.start(argv, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
                crew.append(_Loader(child))
                crew[-1].say(line)
            ready_by = time.monotonic() + _START_S
            before = [Usage(*one.message("ready", ready_by, errors)["ready"]) for one in crew]
            if ready is not None:
                ready()
            began = time.monotonic()
            for one in crew:
                one.say(b"go\n")
            done = [one.message("done", until, errors) for one in crew]
            cpu = sum(self._wait(one.child, time.monotonic() + _START_S)[1].cpu for one in crew)
        finally:
            for one in crew:
                self._end(one.child)
            errors.close()
        each = tuple(message["done"] - began for message in done)
        files = tuple(tuple((size, took) for size, took in message["files"]) for message in done)
        used = sum((Usage(*message["used"]) for message in done), Usage()) - sum(before, Usage())
        return Loaded(max(each), each, max(0.0, cpu - sum(one.cpu for one in before)), files, used)

    def close(self) -> None:
        """Kill what runs; whoever waits for it comes back."""
        with self._lock:
            self._closed = True
            groups = tuple(self._groups)
            for group in groups:
                kill_members(group)
        self._end_strays(groups)
        if self._lifeline is not None:
            self._lifeline.close()

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], *, session: bool = False, **streams: Any
    ) -> subprocess.Popen[bytes]:
        """`argv` as the leader of a process group, or of a `session`. Whoever starts it must `reap` it. Raises `Closed`, ``OSError``."""
        own: dict[str, Any] = {"start_new_session": True} if session else {"process_group": 0}
        with self._lock:
            if self._closed:
                raise Closed
            child = subprocess.Popen(argv, env=dict(env), **own, **streams)
            self._groups.add(child.pid)
        if self._lifeline is not None:
            self._lifeline.watch(child.pid)
        return child

    def reap(self, child: subprocess.Popen[bytes], *, wait: bool = True) -> tuple[int, Usage] | None:
        """(exit code, what was counted for it and its children) of `child`; None while it runs, unless `wait`. Raises `Closed`."""
        pid, status, usage = os.wait4(child.pid, 0 if wait else os.WNOHANG)
        if not pid:
            return None
        self._gone(child, os.waitstatus_to_exitcode(status))
        used = Usage(usage.ru_utime + usage.ru_stime, usage.ru_inblock * 512)
        return child.returncode, used

    def _end_strays(self, groups: tuple[int, ...]) -> None:
        """Kill what the dying `groups` leave behind: that is known once they are dead."""
        end = time.monotonic() + _STRAYS_S
        while time.monotonic() < end:
            dying = any(members(group) for group in groups)
            left = self.strays()
            if not dying and not left:
                return
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_LOOK_S)

    def strays(self) -> list[int]:
        """What lives of the processes that something started here has left behind, in whatever session; those that have ended are buried."""
        if not self._adopts:
            return []
        with self._lock:
            own = {*self._before, *self._groups, self._lifeline.pid if self._lifeline is not None else 0}
            left = [pid for pid in children_of(os.getpid()) if pid not in own]
        return [pid for pid in left if not _buried(pid)]

    def _wait(self, child: subprocess.Popen[bytes], until: float | None) -> tuple[int, Usage]:
        """(exit code, what was counted for it and its children) of `child`. Raises `ChildFailed` when it still runs at `until`."""
        watch = watch_process(child.pid)
        try:
            while True:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    self._end(child)
                    raise ChildFailed("no time left")
                if watch is not None:
                    select.select([watch], [], [], 1.0 if left is None else min(1.0, left))
                if ended := self.reap(child, wait=False):
                    return ended
                if watch is None:
                    time.sleep(_LOOK_S)
        finally:
            if watch is not None:
                os.close(watch)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Kill `child` with its group and wait for it, unless that has happened."""
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        if child.returncode is None:
            kill_members(child.pid)
            self.reap(child)

    def _gone(self, child: subprocess.Popen[bytes], code: int) -> None:
        with self._lock:
            self._groups.discard(child.pid)
            child.returncode = code
            closed = self._closed
        if self._lifeline is not None:
            self._lifeline.forget(child.pid)
        if closed:
            raise Closed


def _buried(pid: int) -> bool:
    try:
        return bool(os.waitpid(pid, os.WNOHANG)[0])
    except ChildProcessError:
        return True


class _Loader:
    """One loader and what it says."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self._heard = bytearray()

    def say(self, line: bytes) -> None:
        assert self.child.stdin is not None
        with suppress(BrokenPipeError):  # it died: `message` says so
            self.child.stdin.write(line)
            self.child.stdin.flush()

    def message(self, key: str, until: float | None, errors: IO[bytes]) -> dict[str, Any]:
        """Its next message, which must have `key`."""
        assert self.child.stdout is not None
        fd = self.child.stdout.fileno()
        while b"\n" not in self._heard:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([fd], [], [], left)[0]:
                raise ChildFailed("no time left" if key == "done" else "a loader did not start")
            data = os.read(fd, 1 << 16)
            if not data:
                raise ChildFailed(f"{_how_it_ended(self.child.pid)}{last_line(_text(errors))}")
            self._heard += data
        line, _, rest = bytes(self._heard).partition(b"\n")
        self._heard = bytearray(rest)
        found: dict[str, Any] = json.loads(line)
        if key not in found:
            raise ChildFailed(str(found.get("error", f"a loader said {shown(line.decode())}")))
        return found


def _how_it_ended(pid: int) -> str:
    """How the loader `pid`, which says nothing more, has ended; it can still be waited for."""
    for _ in range(_LOOKS):
        if ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(_LOOK_S)
    else:
        return "a loader ended without an answer"
    if ended.si_code == os.CLD_EXITED:
        return f"a loader ended without an answer, exit {ended.si_status}"
    memory = ", as it is when memory runs out" if ended.si_status == signal.SIGKILL else ""
    return f"a loader was ended by signal {ended.si_status}{memory}"


def _memory() -> IO[bytes]:
    """A file that is no page cache of any disk."""
    return open(os.memfd_create("stager-bench", os.MFD_CLOEXEC), "w+b")  # the caller closes it


def _text(file: IO[bytes]) -> str:
    size = min(os.fstat(file.fileno()).st_size, _MOST_SAID)
    return os.pread(file.fileno(), size, 0).decode("utf-8", "replace")


def last_line(text: str) -> str:
    """The last words of `text` as the end of a sentence, with a colon before; empty without any."""
    lines = [line for line in text.splitlines() if line.strip()]
    return f": {shown(lines[-1])[:300]}" if lines else ""


def failure_of(ended: Ended) -> str:
    """Why a command that ended with another code than 0 did, in one line: its own last words where it has any."""
    for line in reversed(ended.out.splitlines()):
        with suppress(ValueError, AttributeError):
            event = json.loads(line)
            if event.get("type") == "error":
                return str(event["message"])
    said = last_line(ended.err)
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit {ended.code}"
    return f"{how}{said}"
