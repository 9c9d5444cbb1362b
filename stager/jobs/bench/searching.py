"""The search for the line that says that a command is ready, in a process of its own.

A regular expression may take for ever on a line that nobody foresaw, and nothing in the process that searches can run meanwhile, no end of its time and no signal.
It gets the expression and then what the command says as frames on stdin: a stream's number and the bytes, none at the stream's end. It says one byte when
it listens, and one more when a line has matched, and ends then, or with its stdin.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from stager.core.bench.starting import Lines
from stager.node.frozen import worker_command
from stager.node.processes import kill_members

if TYPE_CHECKING:
    from stager.jobs.bench.children import Children

_MODULE = "stager.jobs.bench.searching"
_FRAME = struct.Struct("=II")


class Search:
    """Its end in the benchmark. `feed` blocks while the process is behind, until `close`, from another thread."""

    def __init__(self, children: Children, pattern: re.Pattern[str], env: Mapping[str, str]) -> None:
        """Starts it, and waits until it listens. Raises as `Children.start`."""
        self._children = children
        self._process = children.start(
            worker_command(_MODULE),
            env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._into = self._process.stdin
        self.answers = self._process.stdout.fileno()
        self.feed(0, pattern.pattern.encode("utf-8", "surrogatepass"))
        os.read(self.answers, 1)

    def feed(self, stream: int, data: bytes) -> None:
        """`data` came from `stream`; empty at its end. One that has found its line, or was killed, hears no more."""
        with suppress(OSError, ValueError):
            self._into.write(_FRAME.pack(stream, len(data)) + data)
            self._into.flush()

    def end(self) -> None:
        """Nothing more comes: what was fed is looked through, then it ends."""
        with suppress(OSError):
            self._into.close()

    def heard(self) -> bool | None:
        """What it says: True for a match, None at its end."""
        return True if os.read(self.answers, 1) else None

    def kill(self) -> None:
        """End it now; a `feed` that waits for it comes back."""
        kill_members(self._process.pid)

    def close(self) -> None:
        """Bury it, once nobody feeds it any more. Raises `Closed`."""
        self.end()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._children.reap(self._process)


def main() -> None:
    """Search until a line matches, or nothing more comes."""
    source, lines = sys.stdin.buffer, None
    while len(head := source.read(_FRAME.size)) == _FRAME.size:
        stream, size = _FRAME.unpack(head)
        data = source.read(size)
        if lines is None:
            lines = Lines(re.compile(data.decode("utf-8", "surrogatepass")))
            os.write(1, b"\n")
            continue
        lines.feed(stream, data)
        if lines.matched:
            os.write(1, b"+")
            return


if __name__ == "__main__":
    main()
