"""The two processes behind `stager.engine.launch.supervise`: an escort and the worker it is the parent of."""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from stager.core.errors import LocalIOError
from stager.node.processes import close_all_but_stdio, die_with, outlive_parent, status_fields, watch_process

Release = Callable[[int], None]
Work = Callable[[Release], int]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FORWARDED = (*STOP_SIGNALS, signal.SIGUSR1)
KILL = signal.SIGALRM  # caller to escort: SIGKILL the worker
RELEASED = signal.SIGUSR2  # worker to escort: the shared page holds my result, let the caller go on
SETTLE = 0.25  # seconds that a killed process gets to disappear before it counts as stuck


class Board:
    """One page of memory that caller, escort and worker share; each field has one writer."""

    _FIELD = struct.Struct("i")

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def _get(self, slot: int) -> int:
        value: int = self._FIELD.unpack_from(self._page, slot * self._FIELD.size)[0]
        return value

    def _set(self, slot: int, value: int) -> None:
        self._FIELD.pack_into(self._page, slot * self._FIELD.size, value)

    @property
    def worker(self) -> int:
        """The worker's pid, 0 before it exists."""
        return self._get(0)

    @worker.setter
    def worker(self, pid: int) -> None:
        self._set(0, pid)

    @property
    def released(self) -> int | None:
        """The exit code with which the worker released the caller, None before."""
        return self._get(1) if self._get(2) else None

    @released.setter
    def released(self, code: int) -> None:
        self._set(1, code)
        self._set(2, 1)

    @property
    def lingers(self) -> bool:
        """True when the worker has exited but a stuck thread keeps it from disappearing."""
        return bool(self._get(3))

    @lingers.setter
    def lingers(self, value: bool) -> None:
        self._set(3, value)


def escort(work: Work, board: Board, caller: int, forwarded: set[signal.Signals]) -> NoReturn:
    """The escort's whole life."""
    code = 1
    try:
        # A group of its own: a terminal's ^C reaches the worker once, through the caller, and never ends a holder.
        os.setpgid(0, 0)
        die_with(caller)
        close_all_but_stdio()
        worker = os.fork()
        if worker == 0:
            _worker(work, board, caller)
        board.worker = worker
        code = _accompany(worker, board, forwarded)
    except OSError as exc:
        print(f"error: cannot start the warming process: {exc}", file=sys.stderr)
        code = LocalIOError.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        flush_streams()
        os._exit(code)


def _accompany(worker: int, board: Board, forwarded: set[signal.Signals]) -> int:
    """Pass signals on until the worker has ended or released the caller; its exit code."""
    dead_since: float | None = None
    while True:
        info = signal.sigtimedwait(forwarded | {signal.SIGCHLD, KILL, RELEASED}, SETTLE)
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            return exit_code_of(status)
        if board.released is not None:
            return board.released
        if info is not None and info.si_signo == KILL:
            os.kill(worker, signal.SIGKILL)
        elif info is not None and info.si_signo in forwarded:
            os.kill(worker, info.si_signo)
        # A process whose main thread is dead while another hangs in an uninterruptible read cannot be waited for.
        fields = status_fields(worker)
        if fields[:1] != ["Z"]:
            dead_since = None
        elif dead_since is None:
            dead_since = time.monotonic()
        elif time.monotonic() - dead_since > 2 * SETTLE:
            board.lingers = True
            return exit_code_of(int(fields[49]))


def _worker(work: Work, board: Board, caller: int) -> NoReturn:
    """The worker's whole life: run the work, never return into the caller's stack, never run its exit handlers."""
    parent = os.getppid()
    code = 1

    def release(exit_code: int) -> None:
        if board.released is None:
            threading.Thread(target=_end_with, args=(watch_process(caller), caller), daemon=True).start()
            outlive_parent()
            board.released = exit_code
            os.kill(parent, RELEASED)

    try:
        die_with(parent)
        _use_stderr_only()
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # in the background, and yet it may draw its progress
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = work(release)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        flush_streams()
        os._exit(code & 0xFF)


def _end_with(watched: int | None, pid: int) -> None:
    """Exit when process `pid` ends: a holder has nothing to hold for any longer, and the last word is not its own."""
    if watched is not None:
        select.select([watched], [], [])
    else:
        while os.path.exists(f"/proc/{pid}"):
            time.sleep(1.0)
    os._exit(0)


def _use_stderr_only() -> None:
    """Leave stdin and stdout to the program: read from nothing, print where the errors go."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        try:
            os.fstat(2)
        except OSError:
            os.dup2(null, 2)
        os.dup2(2, 1)
        if null > 2:
            os.close(null)
    sys.stdout = sys.stderr


def flush_streams() -> None:
    """Write out what Python still buffers; a closed stream or a reader that went away is no error."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed pipe, closed stream, no stream
            stream.flush()


def exit_code_of(status: int) -> int:
    """A wait status as a shell tells it: 0..255, 128+N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
