"""Work in a child while this process stays fit to become another program.

Three steps: `resolve_command` finds the program before any work is done, `supervise` runs the work in a child and always
comes back, `become` turns this process into the program.

The caller must be single-threaded and stays so. Two processes are made, not one::

    caller ── escort ── worker

The worker runs the work. The escort is its only parent: it passes signals on, kills when told to, and lives exactly as
long as the worker matters. So the program that the caller becomes never inherits a child that it did not start, neither
a worker that keeps holding pages nor one that hangs beyond SIGKILL in a FUSE daemon: when the escort goes, such a worker
belongs to init. (Where the caller is itself PID 1, orphans come to it anyway.) The three talk by signals and one shared
page of memory, so there is no descriptor that could leak.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from stager.core.errors import AccessDenied, LocalIOError, NotFound, Stopped, UsageError, from_oserror
from stager.core.units import shown
from stager.engine.escort import (
    FORWARDED,
    KILL,
    RELEASED,
    SETTLE,
    STOP_SIGNALS,
    Board,
    Work,
    escort,
    exit_code_of,
    flush_streams,
)
from stager.node.processes import Stuck, name_stuck, original_environment

STOP_GRACE = 2.0  # seconds from the first stop signal until `supervise` returns, whatever the worker does
_ELF = b"\x7fELF"
_SHELL = "/bin/sh"
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How supervised work ended.

    `exit_code` is the work's own, 128+N when signal N ended it, None when it had to be given up. `stopped_by` is the
    stop signal that this process got meanwhile. `timed_out` says that the deadline ended it. `stuck` names a worker that
    outlived its end. `holder` is the pid of a worker that released this process and works on. `elapsed` in seconds.
    """

    exit_code: int | None
    stopped_by: int | None
    timed_out: bool
    stuck: Stuck | None
    holder: int | None
    elapsed: float


def resolve_command(argv: Sequence[str]) -> str:
    """The path that exec would use for `argv`, found as a shell finds it, and checked to be a program.

    A name with a slash is taken as it is, any other is looked for on PATH. Raises `UsageError` without a name, `NotFound`
    when there is no such program (or the interpreter in its first line is missing), `AccessDenied` when it may not be
    executed, `LocalIOError` when it is no program.
    """
    if not argv:
        raise UsageError("no command given", hint="write it after `--`: stager run --warm PATH -- CMD ARG...")
    name = argv[0]
    candidates = (
        [name] if "/" in name else [os.path.join(folder or ".", name) for folder in os.get_exec_path()]
    )
    denied: str | None = None
    for path in candidates if name else ():
        if os.path.isfile(path) and os.access(path, os.X_OK):
            _check_program(path)
            return path
        if denied is None and os.path.lexists(path) and ("/" in name or not os.path.isdir(path)):
            denied = path
    if denied is None:
        place = "" if "/" in name else " on PATH"
        raise NotFound(
            f"`{shown(name)}`: no such command{place}", hint="nothing was warmed; check the words after `--`"
        )
    if os.path.isdir(denied):
        raise AccessDenied(f"`{shown(denied)}` is a directory, not a command", hint="nothing was warmed")
    if not os.path.exists(denied):
        raise NotFound(
            f"`{shown(denied)}` is a broken symlink", hint="nothing was warmed; check the words after `--`"
        )
    raise AccessDenied(
        f"`{shown(denied)}` is not executable", hint=f"nothing was warmed; try `chmod +x {shown(denied)}`"
    )


def _head(path: str) -> bytes:
    """The first bytes of the program at `path`; none when it is executable but not readable: exec will tell."""
    try:
        with open(path, "rb") as program:
            return program.read(256)
    except OSError:
        return b""


def _check_program(path: str) -> None:
    """Refuse what exec would refuse after all the warming: it would say ENOENT about a script, or that this is no program."""
    head = _head(path)
    words = head.split(b"\n", 1)[0][2:].split() if head.startswith(b"#!") else []
    if words:
        interpreter = shown(os.fsdecode(words[0]))
        if not os.path.exists(words[0]):
            raise NotFound(
                f"`{shown(path)}`: its interpreter `{interpreter}` does not exist",
                hint="nothing was warmed; correct the script's first line",
            )
        if not os.access(words[0], os.X_OK) or os.path.isdir(words[0]):
            raise AccessDenied(
                f"`{shown(path)}`: its interpreter `{interpreter}` is not executable",
                hint="nothing was warmed; correct the script's first line",
            )
    elif head and not _is_elf_program(head) and not _is_script(head) and not _other_formats():
        raise LocalIOError(
            f"`{shown(path)}` is neither a program nor a script",
            hint="nothing was warmed; was it copied whole?",
        )


def _is_elf_program(head: bytes) -> bool:
    """Whether this begins like an ELF file that can be executed: its type, at byte 16, is EXEC or DYN."""
    if not head.startswith(_ELF) or len(head) < 52:
        return False
    order: Literal["big", "little"] = "big" if head[5] == 2 else "little"
    return int.from_bytes(head[16:18], order) in (2, 3)


def _is_script(head: bytes) -> bool:
    """Whether a shell would take it for a script without ``#!``: text, as far as its first line goes."""
    return not head.startswith(_ELF) and b"\0" not in head.split(b"\n", 1)[0]


def _other_formats() -> bool:
    """Whether the kernel was told of formats of which we know nothing (binfmt_misc)."""
    try:
        return bool(set(os.listdir("/proc/sys/fs/binfmt_misc")) - {"register", "status"})
    except OSError:
        return True


def supervise(work: Work, *, deadline: float | None = None) -> Outcome:
    """Run `work` in a child process and return when it ends, when it releases us, or when its time is over.

    `work` gets a function ``release(exit_code)``: calling it lets this process go on at once with that exit code while
    the worker continues, until it ends by itself or until this process (also as the program it became) ends. In the worker stdin is /dev/null, stdout is stderr, and no other descriptor is open. The worker dies when
    this process dies.

    At most `deadline` seconds pass, even where the worker cannot be killed. SIGTERM, SIGINT, SIGHUP and SIGUSR1 go to the
    worker; of the first three, one gives it `STOP_GRACE` seconds in all and a second one ends it at once. Signals that
    were ignored when this process started stay ignored. As PID 1, orphans are reaped.

    On return these signals are *still blocked*, so that none is lost on the way to `become`. Raises `StagerError` when no
    process can be made.
    """
    assert threading.active_count() == 1, "fork needs a single-threaded process"
    forwarded = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded | {signal.SIGCHLD, KILL, RELEASED})
    # A parent that ignores SIGCHLD is never told how a child ended. The program gets the inherited setting back.
    inherited = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    flush_streams()
    board = Board()
    caller = os.getpid()
    try:
        try:
            pid = os.fork()
        except OSError as exc:
            raise from_oserror(exc, "cannot start the warming process") from exc
        if pid == 0:
            escort(work, board, caller, forwarded)
        return _Watch(pid, board, forwarded).until_done(deadline)
    finally:
        signal.signal(signal.SIGCHLD, inherited)


def become(path: str, argv: Sequence[str], env: Mapping[bytes, bytes] | None = None) -> NoReturn:
    """Replace this process by the program at `path` with `argv` and `env` (default: `original_environment`).

    The program finds what stager found: default signal dispositions except those that were ignored from outside, stdin,
    stdout and stderr as they were, no descriptor of ours; its signal mask is empty. Raises `Stopped` when a stop signal is
    waiting, and `StagerError` when the kernel refuses.
    """
    flush_streams()
    pending = signal.sigpending()
    if stops := pending & set(STOP_SIGNALS):
        raise Stopped(min(stops))
    for number in pending & {signal.SIGUSR1, KILL, RELEASED}:
        signal.sigtimedwait({number}, 0)  # a late question about progress must not kill the program
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # An ignored signal was ignored by whoever started us (nohup, a shell's `&`), except the two that Python ignores.
        if signal.getsignal(number) is not signal.SIG_IGN or number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    environment = dict(original_environment() if env is None else env)
    try:
        try:
            os.execve(path, list(argv), environment)  # noqa: S606 - no shell is the point
        except OSError as exc:
            if exc.errno != errno.ENOEXEC or not _is_script(_head(path)):
                raise
            # A script without `#!`: as execvp(3) and every shell do.
            os.execve(_SHELL, [_SHELL, path, *argv[1:]], environment)  # noqa: S606
    except OSError as exc:
        raise from_oserror(exc, f"cannot start `{shown(path)}`") from exc


class _Watch:
    """The caller's side: wait for the escort, pass signals on, keep time."""

    def __init__(self, escort: int, board: Board, forwarded: set[signal.Signals]) -> None:
        self._escort = escort
        self._board = board
        self._signals = forwarded | {signal.SIGCHLD}
        self._began = time.monotonic()
        self._stopped_by: int | None = None

    def until_done(self, deadline: float | None) -> Outcome:
        # Half of it for a worker that will not go, half for what the caller still has to do.
        end = self._began + max(deadline - 2 * SETTLE, deadline / 2) if deadline is not None else float("inf")
        while True:
            code = self._reap()
            if code is not None:
                return self._outcome(code)
            left = end - time.monotonic()
            if left <= 0:
                return self._give_up()
            info = signal.sigtimedwait(self._signals, min(left, 3600.0))
            if info is None or info.si_signo == signal.SIGCHLD:
                continue
            if info.si_signo in STOP_SIGNALS:
                if self._stopped_by is not None:
                    return self._give_up()
                self._stopped_by = info.si_signo
                end = min(end, time.monotonic() + STOP_GRACE - 2 * SETTLE)
            os.kill(self._escort, info.si_signo)

    def _reap(self) -> int | None:
        """The escort's exit code once it has ended; as PID 1 orphans are reaped on the way."""
        found: int | None = None
        while True:
            try:
                pid, status = os.waitpid(-1 if os.getpid() == 1 else self._escort, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == self._escort:
                found = exit_code_of(status)
            if pid == 0 or os.getpid() != 1:
                return found

    def _give_up(self) -> Outcome:
        """Have the worker killed; whatever becomes of it, the escort is gone afterwards."""
        timed_out = self._stopped_by is None
        os.kill(self._escort, KILL)
        until = time.monotonic() + SETTLE
        while (left := until - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, left)
            code = self._reap()
            if code is not None:
                return self._outcome(None if timed_out else code, timed_out=timed_out)
        stuck = name_stuck(self._board.worker)
        os.kill(self._escort, signal.SIGKILL)
        while self._reap() is None:
            signal.sigtimedwait({signal.SIGCHLD}, 0.01)
        return self._outcome(None, timed_out=timed_out, stuck=stuck)

    def _outcome(self, code: int | None, *, timed_out: bool = False, stuck: Stuck | None = None) -> Outcome:
        if self._board.lingers:
            stuck = name_stuck(self._board.worker)
        return Outcome(
            exit_code=code,
            stopped_by=self._stopped_by,
            timed_out=timed_out,
            stuck=stuck,
            holder=self._board.worker if self._board.released is not None and code is not None else None,
            elapsed=time.monotonic() - self._began,
        )
