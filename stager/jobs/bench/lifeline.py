"""The lifeline of a benchmark: a process that ends what was started, and removes what was made, when the benchmark itself is killed.

It hears ``+PID`` and ``-PID`` lines on its stdin: a leader of a process group has started, or has ended with its group; and ``/FOLDER``, percent-encoded: a
folder was made. When its stdin ends, it kills the groups and sessions of those that are left, then removes the folders that are. Signals of a terminal do not reach it, and it ignores the others: the end of its stdin always comes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote_from_bytes, unquote_to_bytes

from stager.node.frozen import worker_command
from stager.node.processes import kill_members, members

_MODULE = "stager.jobs.bench.lifeline"
_TRIES = 100  # what forks while it is killed is killed in the next
_PAUSE_S = 0.01
_END_S = 2.0


class Lifeline:
    """The benchmark's end of it. Where it could not be started, or has been killed, everything goes on without."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Starts it, and waits until it listens: its own start is in nobody's time."""
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0  # of its process; it stays when that has ended
        with suppress(OSError):
            self._process = subprocess.Popen(
                worker_command(_MODULE),
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
    with suppress(OSError):
        os.write(1, b"\n")
    for line in sys.stdin.buffer:
        if line.startswith(b"/"):
            folders.append(unquote_to_bytes(line.rstrip(b"\n")))
        else:
            leader = int(line[1:])
            (watched.add if line.startswith(b"+") else watched.discard)(leader)
    _end(watched)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _end(watched: set[int]) -> None:
    for leader in watched:
        kill_members(leader)
    for _ in range(_TRIES):
        left = [leader for leader in watched if members(leader)]
        if not left:
            return
        time.sleep(_PAUSE_S)
        for leader in left:
            kill_members(leader)


if __name__ == "__main__":
    main()
