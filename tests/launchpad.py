"""A small program around `stager.engine.launch` for tests: do some work in a child, tell the outcome, become CMD.

``python -m tests.launchpad [--deadline S] [--stay] WORK [ARGUMENT] -- CMD ARG...``; the outcome is one JSON line on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

from stager.core.errors import StagerError
from stager.engine.escort import Release
from stager.engine.launch import become, resolve_command, supervise


def say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


class Works:
    """What the worker can be asked to do; each prints ``worker PID`` when it is under way."""

    def __init__(self, argument: str) -> None:
        self.argument = argument

    def code(self, release: Release) -> int:
        return int(self.argument)

    def noisy(self, release: Release) -> int:
        print("print")
        sys.__stdout__ and print("old print", file=sys.__stdout__)
        os.write(1, b"write\n")
        subprocess.run(["echo", "a child's echo"], check=False)
        return 0

    def greedy(self, release: Release) -> int:
        say(f"read {sys.stdin and sys.stdin.read()!r} and {os.read(0, 100)!r}")
        return 0

    def sleepy(self, release: Release) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: say(f"got {signal.Signals(number).name}"))
        say(f"worker {os.getpid()}")
        got = signal.sigwait({signal.SIGALRM}) if self.argument == "for-ever" else None
        while got is None:
            time.sleep(60)
        return 0

    def obedient(self, release: Release) -> int:
        def stop(number: int, frame: object) -> None:
            say(f"stopping for {signal.Signals(number).name}")
            os._exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        say(f"worker {os.getpid()}")
        time.sleep(60)
        return 0

    def deaf(self, release: Release) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        say(f"worker {os.getpid()}")
        time.sleep(60)
        return 0

    def read(self, release: Release) -> int:
        fd = os.open(self.argument, os.O_RDONLY)
        say(f"worker {os.getpid()}")
        os.pread(fd, 4096, 0)
        return 0

    def leave(self, release: Release) -> int:
        """Exit 9 while a thread is stuck in a read."""
        thread = threading.Thread(target=self.read, args=(release,), daemon=True)
        thread.start()
        time.sleep(0.5)
        os._exit(9)

    def orphan(self, release: Release) -> int:
        """Leave a process behind that ends a little later; 0 once even its corpse is gone."""
        script = ["sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo $!"]
        orphan = int(subprocess.run(script, check=True, stdout=subprocess.PIPE).stdout)
        end = time.monotonic() + 5
        while os.path.exists(f"/proc/{orphan}"):
            if time.monotonic() > end:
                return 1
            time.sleep(0.02)
        return 0

    def hold(self, release: Release) -> int:
        say(f"worker {os.getpid()}")
        release(int(self.argument))
        time.sleep(60)
        return 0

    def broken(self, release: Release) -> int:
        raise RuntimeError("a defect")

    def leaving(self, release: Release) -> int:
        sys.exit(6)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deadline", type=float)
    parser.add_argument("--stay", action="store_true", help="end with the outcome, do not become CMD")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds between the outcome and CMD")
    parser.add_argument("work")
    parser.add_argument("argument", nargs="?", default="")
    parser.add_argument("--", dest="command")
    split = sys.argv.index("--")
    options = parser.parse_args(sys.argv[1:split])
    command = sys.argv[split + 1 :]
    try:
        path = resolve_command(command)
        outcome = supervise(getattr(Works(options.argument), options.work), deadline=options.deadline)
        say(json.dumps(dataclasses.asdict(outcome)))
        time.sleep(options.linger)
        if outcome.stopped_by is not None:
            return 128 + outcome.stopped_by
        if not options.stay:
            become(path, command)
    except StagerError as exc:
        say(f"error: {exc.message}\nhint: {exc.hint}")
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
