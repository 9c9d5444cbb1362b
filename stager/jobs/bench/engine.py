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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stager.core.bench.reports import BenchEngine
from stager.core.bench.starting import Lines, placed
from stager.core.errors import AnswerNo, NotFound
from stager.core.hiding import Secrets
from stager.core.units import format_duration, shown
from stager.jobs.bench.asking import Asking
from stager.jobs.bench.children import ChildFailed, last_line
from stager.jobs.bench.searching import Search
from stager.net.health import listens
from stager.node.processes import kill_members, members, original_environment, processor_seconds

if TYPE_CHECKING:
    from stager.jobs.bench.children import Children

_LOOK_S = 0.02
_SHARE = 20  # so many times as long as a look took is waited for the next: who starts must not pay for it
_STAYS_S = 0.3  # for one that is ready to show that it lives: many say so, and then find their port taken
_WITHIN_S, _WITHIN = 0.25, 0.05  # a start known less well, in seconds and of itself, is said to be
GRACE_S = 20.0  # from SIGTERM to SIGKILL: vLLM takes some ten seconds to end its workers
_DEATH_S = 20.0  # from SIGKILL on
_REST_S = 1.0
_SILENCE_S = 5.0  # for its port to be free again
_LAST_WORDS_S = 2.0
_PIPE = 1 << 20  # bytes that a command can be ahead of whoever reads what it says
_F_SETPIPE_SZ = 1031
_WELL = "exit 0"
_IN_FRONT = "CMD must stay in the foreground, so no -d or &; what it has asked others to start may still run"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The words of the command, how it is known to be ready (`url` answers 2xx, or a line of its output matches `log`), how many seconds that may take."""

    command: tuple[str, ...]
    url: str = ""
    log: re.Pattern[str] | None = None
    patience: float = 1800.0

    @property
    def secrets(self) -> Secrets:
        """What of the command, the URL and the environment is told nowhere."""
        return Secrets.of(self.command, (self.url,), _own_environment())

    @property
    def told(self) -> BenchEngine:
        """The same for a report, without secrets."""
        secrets = self.secrets
        url, log = secrets.hide(self.url), secrets.hide(self.log.pattern if self.log is not None else "")
        ready = f"{url} answers 2xx" if url else f"a line of its output matches {log}"
        return BenchEngine(tuple(secrets.hide_words(self.command)), ready, url, log, self.patience)


@dataclass(frozen=True, slots=True)
class Started:
    """One start: seconds until it was ready, and the processor seconds it had used by then, with its children.

    `within` is by how many seconds it may have been ready earlier. `killed`: it did not end when it was asked to.
    """

    seconds: float
    cpu: float
    within: float = 0.0
    killed: bool = False

    @property
    def caveat(self) -> str:
        """What a reader must know of `seconds`; empty when they are good."""
        if self.within <= max(_WITHIN_S, _WITHIN * self.seconds):
            return ""
        return (
            f"it may have been ready {format_duration(self.within)} earlier: the question before took so long"
        )


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
                f"`{shown(self.options.secrets.hide_words([program])[0])}`: no such program",
                hint="programs are looked for in PATH: give the whole path of another",
            )
        if why := self._taken():
            raise AnswerNo(why, hint="stop that server, or give the engine and --ready-url another port")

    def start(self, path: str, until: float | None) -> Started:
        """Start it on `path`, wait until it is ready, end it. Blocks. Raises `ChildFailed` for what never is, `Closed`, ``OSError``."""
        if why := self._taken():
            raise ChildFailed(why)
        search = Search(self.children, self.options.log, self.env) if self.options.log is not None else None
        said = _Said(Lines(None), self.options.secrets, search)
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
                started = self._started(child.pid, said, began, until)
            finally:
                killed = self._end(child)
            return replace(started, killed=killed)
        finally:
            said.close()

    def _started(self, leader: int, said: _Said, began: float, until: float | None) -> Started:
        asking = Asking(self.options.url, said.event) if self.options.url else None
        try:
            ready = self._ready(leader, said, asking, began, until)
        finally:
            if asking is not None:
                asking.close()
        cpu = processor_seconds({leader, *self._alive(leader)})
        self._stays(leader, said)
        return Started(ready - began, cpu, asking.within if asking is not None else 0.0)

    def _taken(self) -> str:
        """Why a start would say nothing: its port is somebody else's. Empty when it is free."""
        if not self.options.url or not listens(self.options.url):
            return ""
        return f"somebody listens at {self.options.told.url} before the engine has been started"

    def _ready(
        self, leader: int, said: _Said, asking: Asking | None, began: float, until: float | None
    ) -> float:
        """When it was ready (monotonic)."""
        late, look = began + self.options.patience, 0.0
        while True:
            if asking is not None and asking.ready and self._alive(leader):
                return asking.ready
            if said.matched:
                return said.matched
            now = time.monotonic()
            if now >= look:
                if (how := self._ended(leader)) is not None:
                    return self._at_last(how, said)
                look = now + _SHARE * (time.monotonic() - now)
            if now >= late:
                asleep = self._not_ready(asking, said)
                raise ChildFailed(f"not ready after {format_duration(now - began)}: {asleep}{said.last_line}")
            if until is not None and now >= until:
                raise ChildFailed("no time left")
            said.event.wait(_LOOK_S)

    def _at_last(self, how: str, said: _Said) -> float:
        """When one was ready that has ended since."""
        matched = said.matched_at_last()
        if matched and how == _WELL:
            return said.matched
        if matched:
            raise ChildFailed(f"it said that it was ready, and ended with {how}{said.last_line}")
        why = f"it ended with {how} before it was ready{said.last_line}"
        raise ChildFailed(f"{why} ({_IN_FRONT})" if how == _WELL else why)

    def _stays(self, leader: int, said: _Said) -> None:
        """Raises `ChildFailed` for one that was ready and dies of itself."""
        end = time.monotonic() + _STAYS_S
        while time.monotonic() < end:
            if (how := self._ended(leader)) is not None:
                if how == _WELL:
                    return
                said.matched_at_last()
                raise ChildFailed(f"it was ready, and ended with {how} right after{said.last_line}")
            time.sleep(_LOOK_S)

    def _not_ready(self, asking: Asking | None, said: _Said) -> str:
        if said.stuck:
            return "to look for --ready-log in what it says takes too long: write a simpler one"
        if asking is None:
            return "no line of its output matched (many programs keep theirs back when it goes to a pipe)"
        return f"{self.options.told.url} {f'answers {asking.status}' if asking.status else 'does not answer'}"

    def _alive(self, leader: int) -> list[int]:
        """What runs of a start: the group and session of `leader`, and what has left them and lost its parent."""
        return [*members(leader), *self.children.strays()]

    def _ended(self, leader: int) -> str | None:
        """How a start ended, of which nothing runs any more; None while it, or what it left to do its work, does. It stays to be waited for."""
        found = _status(leader)
        if found is None:
            return None
        if found.si_code != os.CLD_EXITED:
            return f"signal {found.si_status}"
        return f"exit {found.si_status}" if found.si_status or not self._alive(leader) else None

    def _end(self, child: subprocess.Popen[bytes]) -> bool:
        """SIGTERM, then SIGKILL, until nothing of it is left; whether it had to be killed. Raises `ChildFailed` when something stays."""
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        told: set[int] = set()
        killed = False
        end = time.monotonic() + GRACE_S
        while left := self._alive(child.pid):
            now = time.monotonic()
            if now >= end + _DEATH_S:
                raise ChildFailed(f"it cannot be ended: process {left[0]} stays")
            if now >= end:
                killed = True
                kill_members(child.pid)
            for pid in self.children.strays():
                if now >= end or pid not in told:
                    told.add(pid)
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL if now >= end else signal.SIGTERM)
            self._rest(child.pid, min(_SHARE * (time.monotonic() - now), _REST_S))
        self.children.reap(child)
        end = time.monotonic() + _SILENCE_S
        while self._taken() and time.monotonic() < end:
            time.sleep(_LOOK_S)
        return killed

    def _rest(self, leader: int, seconds: float) -> None:
        """Wait so long, less when `leader` ends meanwhile."""
        end = time.monotonic() + max(seconds, _LOOK_S)
        running = _status(leader) is None
        while (now := time.monotonic()) < end and (_status(leader) is None) == running:
            time.sleep(min(_LOOK_S, end - now))


class _Said:
    """Reads what a command says as it comes, so that it never waits for us. `matched` is when a line matched (monotonic), else 0."""

    def __init__(self, lines: Lines, secrets: Secrets, search: Search | None) -> None:
        self._lines = lines
        self._search = search
        self._feeding = 0.0  # since when
        self._secrets = secrets
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
        """Its last words, as the end of a sentence, without secrets: hidden before they are cut, for a half of one is no value."""
        return last_line(self._secrets.hide(self._lines.end.rstrip().rpartition("\n")[2]))

    @property
    def stuck(self) -> bool:
        """Whether the search is far behind."""
        return bool(self._feeding) and time.monotonic() - self._feeding > _LAST_WORDS_S

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
        if self._search is not None:
            self._search.kill()
        if self._thread.ident is not None:
            self._thread.join()
        for reader in self._readers:
            os.close(reader)
        if self._search is not None:
            self._search.close()

    def _drop_writers(self) -> None:
        for writer in self.writers:
            os.close(writer)
        self.writers = ()

    def _read(self) -> None:
        search = self._search
        readers = set(self._readers)
        answers = {search.answers} if search is not None else set()
        while (readers or answers) and not self._over.is_set():
            for reader in select.select([*readers, *answers], [], [], 0.1)[0]:
                if search is not None and reader == search.answers:
                    if search.heard() is None:
                        answers = set()
                    elif not self.matched:
                        self.matched = time.monotonic()
                        self.event.set()
                    continue
                data = os.read(reader, _PIPE)
                self._lines.feed(reader, data)
                self._feed(reader, data)
                if not data:
                    readers.discard(reader)
            if search is not None and not readers:
                search.end()

    def _feed(self, reader: int, data: bytes) -> None:
        if self._search is not None:
            self._feeding = time.monotonic()
            self._search.feed(reader, data)
            self._feeding = 0.0


def _status(leader: int) -> os.waitid_result | None:
    """How `leader` has ended; None while it runs. It stays to be waited for."""
    return os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def _own_environment() -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(value) for name, value in original_environment().items()}
