"""The lifeline of a benchmark: a process that ends what was started, and removes what was made, when the benchmark itself is killed.

It hears ``+PID`` and ``-PID`` lines on its stdin: a leader of a process group has started, or has ended with its group; and ``/FOLDER``, percent-encoded: a
folder was made. While a leader runs it also looks, again and again, what the benchmark has inherited: what has left its group and session and lost its
parent, as a daemon does, nobody would know once the benchmark is gone.

When its stdin ends, it kills the groups and sessions of those that are left, what was inherited, and all that these have started, then removes the folders that are. Signals of a terminal do not reach it, and it ignores the others: the end of its stdin always comes.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote_from_bytes, unquote_to_bytes

from stager.node.frozen import worker_command
from stager.node.processes import (
    children_of,
    heirs,
    is_alive,
    kill_members,
    members,
    start_of,
    with_descendants,
)

_MODULE = "stager.jobs.bench.lifeline"
_TRIES = 100  # what forks while it is killed is killed in the next
_PAUSE_S = 0.01
_END_S = 2.0
_LOOK_S = 0.1  # between looks at what the benchmark has inherited; one takes some hundredths of a millisecond
_SLOW_LOOK_S = 1.0  # where a look goes through all processes


class Lifeline:
    """The benchmark's end of it. Where it could not be started, or has been killed, everything goes on without."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Starts it, and waits until it listens: its own start is in nobody's time."""
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0  # of its process; it stays when that has ended
        with suppress(OSError):
            self._process = subprocess.Popen(
                [*worker_command(_MODULE), str(os.getpid())],
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self.pid = self._process.pid
            assert self._process.stdout is not None
            os.read(self._process.stdout.fileno(), 1)

    def watch(self, leader: int) -> None:
        """`leader` has started; its group is not to outlive the benchmark."""
        self._say(f"+{leader}\n")

    def forget(self, leader: int) -> None:
        """Nothing of `leader` is left."""
        self._say(f"-{leader}\n")

    def remove(self, folder: str) -> None:
        """The absolute `folder` is not to outlive the benchmark either: in memory it would be memory that nobody owns."""
        self._say(f"{quote_from_bytes(os.fsencode(folder))}\n")

    def close(self) -> None:
        """End it; what it still watches is killed, what is left of the folders removed. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)

    def _say(self, line: str) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError, ValueError):
                os.write(process.stdin.fileno(), line.encode("ascii"))


def main() -> None:
    """Listen to the end, then kill what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: set[int] = set()
    folders: list[bytes] = []
    inherited = _Inherited(int(sys.argv[-1]))
    with suppress(OSError):
        os.write(1, b"\n")
    heard = b""
    while True:
        if not select.select([0], [], [], inherited.every if watched else None)[0]:
            inherited.look(watched)
            continue
        data = os.read(0, 1 << 16)
        if not data:
            break
        *lines, heard = (heard + data).split(b"\n")
        for line in lines:
            if line.startswith(b"/"):
                folders.append(unquote_to_bytes(line))
            else:
                (watched.add if line.startswith(b"+") else watched.discard)(int(line[1:]))
    _end(watched, inherited.living())
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


class _Inherited:
    """The processes that the benchmark `parent` has become the parent of, by pid, with when they began: a pid can be another's later."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self.every = _SLOW_LOOK_S if heirs(parent) is None else _LOOK_S
        self._before = set(
            children_of(parent)
        )  # whoever replaced a shell by the benchmark has children of that
        self._found: dict[int, float] = {}

    def look(self, watched: set[int]) -> None:
        """See what is new, and forget what has ended."""
        self._found = self.living()
        now = heirs(self._parent)
        for pid in children_of(self._parent) if now is None else now:
            if pid not in watched and pid not in self._before and pid not in self._found:
                self._found[pid] = start_of(pid)

    def living(self) -> dict[int, float]:
        """Those that run."""
        return {pid: start for pid, start in self._found.items() if is_alive(pid, start)}


def _end(watched: set[int], left: dict[int, float]) -> None:
    """Kill the groups and sessions of `watched`, the processes `left`, and all that these have started."""
    for _ in range(_TRIES):
        for pid in with_descendants({*watched, *left}) - watched:
            left.setdefault(pid, start_of(pid))
        leaders = [leader for leader in watched if members(leader)]
        left = {pid: start for pid, start in left.items() if is_alive(pid, start)}
        if not leaders and not left:
            return
        for leader in leaders:
            kill_members(leader)
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
