"""Worker processes: each gets one job as JSON on stdin, and tells what it does in JSON lines on stdout.

A worker is told to stop by SIGTERM, and by the end of its stdin: it does not outlive the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from stager.core.errors import ResourceRefused, StagerError, from_oserror
from stager.core.units import shown
from stager.node.frozen import worker_command

Message: TypeAlias = dict[str, Any]

_LINE = 64 << 20  # bytes; no message is that long
_BLOCK = 1 << 16  # bytes; what a pipe holds
_GRACE_S = 1.5  # for workers to say what they have done after a stop

END: Message = {"end": True}
"""The last message of a worker that has done its job."""


async def run_crew(
    module: str,
    jobs: Sequence[Message],
    on_message: Callable[[int, Message], None],
    *,
    hold: Sequence[int] = (),
) -> None:
    """Runs `module` as a program once for each of `jobs`, all at once; `on_message` gets (job number, message) in the event loop.

    `hold` are descriptors that the workers keep open as long as they live: a lock on them outlives this process then.

    Returns when every worker has said `END`. Raises what `on_message` raises, and `StagerError` for a worker that ended
    without (`ResourceRefused` where it was killed): the others are stopped then, and what they say while they stop still
    reaches `on_message`. So it is when cancelled.
    """
    failure: list[Exception] = []
    async with anyio.create_task_group() as group:
        for number, job in enumerate(jobs):
            group.start_soon(_serve, number, module, job, on_message, failure, group.cancel_scope, hold)
    if failure:
        raise failure[0]


async def _serve(
    number: int,
    module: str,
    job: Message,
    on_message: Callable[[int, Message], None],
    failure: list[Exception],
    scope: anyio.CancelScope,
    hold: Sequence[int],
) -> None:
    process: Process | None = None
    try:
        process = await _start(module, hold)
        assert process.stdin is not None
        with suppress(anyio.BrokenResourceError):  # it is dead already: how it died is said below
            await process.stdin.send(json.dumps(job).encode() + b"\n")
        if not await _listen(number, process, on_message):
            raise _ended(number, await process.wait())
    except Exception as exc:  # raised bare by `run_crew`
        failure.append(exc)
        scope.cancel()
    finally:
        if process is not None:
            with anyio.CancelScope(shield=True):
                await _stop(number, process, on_message)


async def _start(module: str, hold: Sequence[int]) -> Process:
    try:
        return await anyio.open_process(
            worker_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            pass_fds=hold,
        )
    except OSError as exc:
        error = from_oserror(exc, f"a worker process cannot be started: `{shown(sys.executable)}`")
        error.hint = "`--processes 1` needs no others"
        raise error from exc


async def _listen(number: int, process: Process, on_message: Callable[[int, Message], None]) -> bool:
    """Hand on what the worker says; whether it said `END`."""
    assert process.stdout is not None
    stream = BufferedByteReceiveStream(process.stdout)
    while True:
        try:
            line = await stream.receive_until(b"\n", _LINE)
        except (anyio.IncompleteRead, anyio.EndOfStream):
            return False
        message: Message = json.loads(line)
        if message == END:
            return True
        on_message(number, message)


async def _stop(number: int, process: Process, on_message: Callable[[int, Message], None]) -> None:
    """End the worker, listening to its last words for a moment."""
    if process.returncode is None:
        process.terminate()
    with anyio.move_on_after(_GRACE_S):
        with suppress(Exception):  # an error of its own is no news any more
            await _listen(number, process, on_message)
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.aclose()


def _ended(number: int, code: int) -> StagerError:
    """The error for a worker that ended with `code` before its job was done."""
    if code == -signal.SIGKILL:
        return ResourceRefused(
            f"worker process {number} was killed (signal 9), probably for want of memory",
            hint="run it again to go on, with fewer `--processes` or lanes (`-P`), or with more memory",
        )
    manner = f"signal {-code}" if code < 0 else f"exit {code}"
    return StagerError(f"worker process {number} ended by itself ({manner})")


class Voice:
    """A worker's way to speak: one JSON object a line, from any thread."""

    def __init__(self) -> None:
        """Takes stdout for itself: what else is printed goes to stderr."""
        self._lock = threading.Lock()
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def say(self, message: Message) -> None:
        """Send `message`; a listener that is gone is no error, for then the worker is about to be stopped."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            try:
                while data:
                    data = data[self._out.write(data) or 0 :]
            except BrokenPipeError:
                return


def hear() -> Message:
    """The worker's job. From then on the process is ended by SIGTERM when its stdin ends."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(0, _BLOCK)
        if not data:
            raise EOFError("no job")
        line += data
    job: Message = json.loads(line)
    end_with_stdin()
    return job


def end_with_stdin() -> None:
    """From now on the process is ended by SIGTERM when its stdin ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End the worker now, with exit `code`, whatever its threads are at."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_with_parent() -> None:
    # Not by `sys.stdin`: a thread that waits in there holds its lock, and the interpreter aborts over that at its end.
    while os.read(0, _BLOCK):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
