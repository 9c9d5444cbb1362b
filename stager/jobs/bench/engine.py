"""A real command as a method of a benchmark: started, timed until it says that it is ready, ended with all that it started."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stager.core.bench.reports import BenchEngine
from stager.core.bench.starting import Lines, placed, without_secrets
from stager.core.errors import AnswerNo, NotFound
from stager.core.units import format_duration, shown
from stager.jobs.bench.children import ChildFailed, last_line
from stager.net.health import asked, healthy, listens
from stager.node.processes import kill_members, members, original_environment, processor_seconds

if TYPE_CHECKING:
    from stager.jobs.bench.children import Children

_ASK_EVERY_S = 0.02  # what a start is known to
_ANSWER_S = 2.0  # of one question: who loads while it keeps a client waiting answers as soon as it is ready
_GRACE_S = 20.0  # from SIGTERM to SIGKILL: vLLM takes some ten seconds to end its workers
_DEATH_S = 20.0  # from SIGKILL on
_SILENCE_S = 5.0  # for its port to be free again
_LAST_WORDS_S = 1.0
_PIPE = 1 << 20  # bytes that a command can be ahead of whoever reads what it says
_F_SETPIPE_SZ = 1031


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The words of the command, how it is known to be ready (`url` answers 2xx, or a line of its output matches `log`), how many seconds that may take."""

    command: tuple[str, ...]
    url: str = ""
    log: re.Pattern[str] | None = None
    patience: float = 1800.0

    @property
    def told(self) -> BenchEngine:
        """The same for a report."""
        log = self.log.pattern if self.log is not None else ""
        ready = f"{self.url} answers 2xx" if self.url else f"a line of its output matches {log}"
        return BenchEngine(tuple(without_secrets(self.command)), ready, self.url, log, self.patience)


@dataclass(frozen=True, slots=True)
class Started:
    """One start: seconds until it was ready, and the processor seconds it had used by then, with its children."""

    seconds: float
    cpu: float


@dataclass
class Engine:
    """Starts the command of `options` with `children`, in the environment that stager itself was started with."""

    children: Children
    options: EngineOptions
    env: Mapping[str, str] = field(default_factory=lambda: _own_environment())

    def check(self, path: str) -> None:
        """Raises `NotFound` for a program that is not there, `AnswerNo` where somebody listens at the URL already. Blocks."""
        program = placed(self.options.command, path)[0]
        if shutil.which(program, path=self.env.get("PATH")) is None:
            raise NotFound(
                f"`{shown(program)}`: no such program",
                hint="programs are looked for in PATH: give the whole path of another",
            )
        if why := self._taken():
            raise AnswerNo(why, hint="stop that server, or give the engine and --ready-url another port")

    def start(self, path: str, until: float | None) -> Started:
        """Start it on `path`, wait until it is ready, end it. Blocks. Raises `ChildFailed` for what never is, `Closed`, ``OSError``."""
        if why := self._taken():
            raise ChildFailed(why)
        said = _Said(Lines(self.options.log))
        try:
            began = time.monotonic()
            child = self.children.start(
                placed(self.options.command, path),
                self.env,
                session=True,
                stdin=subprocess.DEVNULL,
                stdout=said.writers[0],
                stderr=said.writers[1],
            )
            said.begin()
            try:
                ready = self._ready(child.pid, said, began, until)
                return Started(ready - began, processor_seconds({child.pid, *self._alive(child.pid)}))
            finally:
                self._end(child)
        finally:
            said.close()

    def _taken(self) -> str:
        """Why a start would say nothing: its port is somebody else's. Empty when it is free."""
        if not self.options.url or not listens(self.options.url):
            return ""
        return f"somebody listens at {self.options.url} before the engine has been started"

    def _ready(self, leader: int, said: _Said, began: float, until: float | None) -> float:
        """When it was ready (monotonic)."""
        url, late, status = self.options.url, began + self.options.patience, None
        while True:
            if url:
                status = asked(url, _ANSWER_S)
                if healthy(status) and self._alive(leader):
                    return time.monotonic()
            if said.matched:
                return said.matched
            if (how := self._ended(leader)) is not None:
                if said.matched_at_last():
                    return said.matched
                raise ChildFailed(f"it ended with {how} before it was ready{said.last_line}")
            now = time.monotonic()
            if now >= late:
                asleep = self._not_ready(status)
                raise ChildFailed(f"not ready after {format_duration(now - began)}: {asleep}{said.last_line}")
            if until is not None and now >= until:
                raise ChildFailed("no time left")
            said.event.wait(_ASK_EVERY_S)

    def _not_ready(self, status: int | None) -> str:
        if not self.options.url:
            return "no line of its output matched (many programs keep theirs back when it goes to a pipe)"
        return f"{self.options.url} {f'answers {status}' if status else 'does not answer'}"

    def _alive(self, leader: int) -> list[int]:
        """What runs of a start: the group and session of `leader`, and what has left them and lost its parent."""
        return [*members(leader), *self.children.strays()]

    def _ended(self, leader: int) -> str | None:
        """How a start ended, of which nothing runs any more; None while it, or what it left to do its work, does. It stays to be waited for."""
        found = os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        if found.si_code != os.CLD_EXITED:
            return f"signal {found.si_status}"
        return f"exit {found.si_status}" if found.si_status or not self._alive(leader) else None

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """SIGTERM, then SIGKILL, until nothing of it is left. Raises `ChildFailed` when something stays."""
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        told: set[int] = set()
        end = time.monotonic() + _GRACE_S
        while left := self._alive(child.pid):
            now = time.monotonic()
            if now >= end + _DEATH_S:
                raise ChildFailed(f"it cannot be ended: process {left[0]} stays")
            if now >= end:
                kill_members(child.pid)
            for pid in self.children.strays():
                if now >= end or pid not in told:
                    told.add(pid)
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL if now >= end else signal.SIGTERM)
            time.sleep(_ASK_EVERY_S)
        self.children.reap(child)
        end = time.monotonic() + _SILENCE_S
        while self._taken() and time.monotonic() < end:
            time.sleep(_ASK_EVERY_S)


class _Said:
    """Reads what a command says as it comes, so that it never waits for us. `matched` is when a line matched (monotonic), else 0."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._readers: tuple[int, ...] = ()
        self.writers: tuple[int, ...] = ()
        for _ in range(2):
            reader, writer = os.pipe()
            with suppress(OSError):
                fcntl.fcntl(writer, _F_SETPIPE_SZ, _PIPE)
            self._readers, self.writers = (*self._readers, reader), (*self.writers, writer)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.event = threading.Event()
        self.matched = 0.0

    @property
    def last_line(self) -> str:
        """Its last words, as the end of a sentence."""
        return last_line(self._lines.end)

    def begin(self) -> None:
        """The command has its ends of the pipes."""
        self._drop_writers()
        self._thread.start()

    def matched_at_last(self) -> bool:
        """Whether a line matched, once all has been read that it said before it ended."""
        self._thread.join(_LAST_WORDS_S)
        return bool(self.matched)

    def close(self) -> None:
        """Read no more."""
        self._over.set()
        self._drop_writers()
        if self._thread.ident is not None:
            self._thread.join()
        for reader in self._readers:
            os.close(reader)

    def _drop_writers(self) -> None:
        for writer in self.writers:
            os.close(writer)
        self.writers = ()

    def _read(self) -> None:
        readers = set(self._readers)
        while readers and not self._over.is_set():
            for reader in select.select(readers, [], [], 0.1)[0]:
                data = os.read(reader, _PIPE)
                self._lines.feed(reader, data)
                if not data:
                    readers.discard(reader)
                if self._lines.matched and not self.matched:
                    self.matched = time.monotonic()
                    self.event.set()


def _own_environment() -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(value) for name, value in original_environment().items()}
