"""The `fuse_mount` fixture: real FUSE mounts that never outlive their test."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.fuselab import wire

_ROOT = Path(__file__).resolve().parents[2]
LIFETIME_S = 120.0  # a test stuck in an unanswered read gets its error after this, and teardown runs


class FuseMount:
    """One running server and its mount. Options are those of ``python -m tests.fuselab``, with underscores.

    ``True`` gives a bare flag, a list repeats the option, ``None`` and ``False`` leave it out; `synthetic` maps
    names to bytes.
    """

    def __init__(self, *, synthetic: Mapping[str, int] | None = None, **options: Any) -> None:
        self._room = tempfile.mkdtemp(prefix="fuselab-")  # not tmp_path: pytest deletes below that
        self.path = os.path.join(self._room, "mount")
        self._counts = os.path.join(self._room, "counters.json")
        os.mkdir(self.path)
        if synthetic:
            options["synthetic"] = [f"{name}={size}" for name, size in synthetic.items()]
        self._arguments = _arguments({"lifetime": LIFETIME_S, **options})
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = self.minor = 0
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._counts)
        command = [sys.executable, "-m", "tests.fuselab", self.path, "--count-file", self._counts]
        process = subprocess.Popen(
            [*command, "--lifeline", *self._arguments],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._process, self.pid = process, process.pid
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], 20)
        line = process.stdout.readline() if readable else b""
        if not line:
            self.stop()
            raise RuntimeError("the FUSE server did not come up; its stderr says why")
        self.minor = json.loads(line)["minor"]

    def counters(self) -> dict[str, Any]:
        """What the server counted so far, or in all when it was stopped; `remount` starts from zero."""
        if self._process is None:
            return self._read_counters()
        before = self._read_counters().get("dump", 0)
        self._process.send_signal(signal.SIGUSR1)  # Popen never signals a pid that it has reaped
        end = time.monotonic() + 10
        while time.monotonic() < end:
            found = self._read_counters()
            if found.get("dump", 0) > before:
                return found
            time.sleep(0.002)
        raise TimeoutError("the FUSE server wrote no counters")

    def _read_counters(self) -> dict[str, Any]:
        try:
            with open(self._counts, encoding="utf-8", errors="surrogateescape") as lines:
                found: dict[str, Any] = json.load(lines)
                return found
        except FileNotFoundError:
            return {}

    def abort(self) -> None:
        """End the connection as an operator does for a hung mount: pending reads fail, the mount stays, dead."""
        with tempfile.TemporaryDirectory(prefix="fuselab-ctl-") as control:
            subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
            try:
                with open(f"{control}/{self.minor}/abort", "w") as knob:
                    knob.write("1")
            finally:
                wire.umount_lazily(control)

    def kill(self) -> None:
        """SIGKILL the server and leave the mount, as after a crash: everything there is ENOTCONN."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """Unmount and end the server, gently if it listens; harmless when it is gone already."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()  # its device descriptors close, which fails whatever still waits on the mount
                process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        wire.umount_lazily(self.path)

    def remount(self) -> None:
        """A new server on the same place: cold, another device number, counters from zero."""
        self.stop()
        self._start()

    def close(self) -> None:
        """`stop`, and remove the mount point."""
        self.stop()
        for name in (self._counts, self._counts + ".new"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        os.rmdir(self.path)
        os.rmdir(self._room)


class MountFactory(Protocol):
    """What `fuse_mount` gives."""

    def __call__(self, *, synthetic: Mapping[str, int] | None = None, **options: Any) -> FuseMount: ...


def _arguments(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, list | tuple):
            for one in value:
                words += [option, str(one)]
        else:
            words += [option, str(value)]
    return words


@pytest.fixture
def fuse_mount() -> Iterator[MountFactory]:
    """``fuse_mount(source=DIR, ...)`` or ``fuse_mount(synthetic={"w.bin": 64 << 20}, ...)`` gives a `FuseMount`.

    Mark tests that use it with ``pytest.mark.root``.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse")
    mounts: list[FuseMount] = []

    def make(*, synthetic: Mapping[str, int] | None = None, **options: Any) -> FuseMount:
        mount = FuseMount(synthetic=synthetic, **options)
        mounts.append(mount)
        return mount

    try:
        yield make
    finally:
        with contextlib.ExitStack() as stack:
            for mount in mounts:
                stack.callback(mount.close)
