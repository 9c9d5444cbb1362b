"""An engine as a child: it waits at a door until it may start, and takes everything it started with it when it ends."""

import os
import secrets
import select
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

from bench.data import Stop

_MARK = "TEST_ENGINES_RUN"
_STEP_S = 0.01
_LEAVE_S = 15
_TAIL = 1500
# Say that we are here, wait for a word, become the command: a shell, because that takes a millisecond or two.
_DOOR = 'echo >"$0/came" && read -r word <"$0/go" && exec "$@"'
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_running = []


def end_all():
    """End every child that still runs, whatever came in between."""
    while _running:
        _running[-1].end()


@contextmanager
def _whole():
    """A signal that comes meanwhile comes at the end: no child is started that nobody knows of."""
    came = []
    before = {one: signal.signal(one, lambda number, _: came.append(number)) for one in STOPS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for one in came:
            signal.raise_signal(one)


class Child:
    """``prefix... sh -c DOOR command...``, its output in a file. `prefix` is what brings the pages in and becomes the rest.

    `began` is when it was started, by ``time.perf_counter``.
    """

    def __init__(self, prefix, command, room):
        self._room = room
        self._said = open(os.path.join(room, "said"), "a+b", buffering=0)  # to be read while it is written
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        for name in ("came", "go"):
            os.mkfifo(os.path.join(room, name))
        self._came = os.open(os.path.join(room, "came"), os.O_RDONLY | os.O_NONBLOCK)
        self._go = os.open(os.path.join(room, "go"), os.O_RDWR)  # both ends: opening never waits
        environment = {**os.environ, **dict([self._mark.split("=")])}
        environment.pop("PYTHONPATH", None)
        self.began = time.perf_counter()
        with _whole():
            self._process = subprocess.Popen(
                [*prefix, "sh", "-c", _DOOR, room, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            self.pid = self._process.pid
            _running.append(self)

    def at_the_door(self, timeout):
        """Waits until only the command is left to be started. Raises `Stop` when it is not to be, or not in `timeout` seconds."""
        end = time.monotonic() + timeout
        while not select.select([self._came], [], [], _STEP_S)[0]:
            self.alive()
            if time.monotonic() > end:
                raise Stop(f"the engine was not started within {timeout:g} s:\n{self.said()}")

    def let_in(self):
        """Let it become the command."""
        os.write(self._go, b"go\n")

    def alive(self):
        """Raises `Stop` when it has ended."""
        if self._process.poll() is not None:
            raise Stop(f"it ended with {self._process.returncode}:\n{self.said()}")

    def wait(self, timeout):
        """Everything it said, once it has ended well. Raises `Stop` otherwise."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Stop(f"it did not end within {timeout:g} s:\n{self.said()}") from None
        if self._process.returncode:
            self.alive()
        return self.said(whole=True)

    def said(self, *, whole=False):
        """What it printed so far, the end of it unless `whole`."""
        self._said.seek(0)
        text = self._said.read().decode("utf-8", "replace")
        return text if whole else text[-_TAIL:]

    def others(self):
        """Process ids of what it started and what still runs, wherever that has gone; not its own."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if self._mark.encode() in file.read().split(b"\0"):
                    found.append(int(name))
        return [pid for pid in found if pid != self.pid]

    def end(self):
        """End it and all that it started; nothing happens the second time.

        Raises `Stop` when something of it had to be killed that should have gone with it.
        """
        self._process.terminate()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        left = self._gone()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._close()
        if left:
            raise Stop(f"processes were left behind: {left}")

    def _gone(self):
        end = time.monotonic() + _LEAVE_S
        while (left := self.others()) and time.monotonic() < end:
            time.sleep(_STEP_S)
        return left

    def _close(self):
        if self in _running:
            _running.remove(self)
            os.close(self._came)
            os.close(self._go)
            self._said.close()
