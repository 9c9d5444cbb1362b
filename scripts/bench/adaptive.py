"""The storages of `scripts/bench-adaptive`, and one cold run on each at one setting."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

from bench import data
from bench.data import MIB, Stop

FORCED = os.path.join(os.path.dirname(os.path.realpath(__file__)), "forced.py")
ADAPTIVE = "adaptive"
_OWN = os.path.join(os.path.dirname(FORCED), "..", "..", ".venv", "bin", "python")
PYTHON = (
    _OWN if os.access(_OWN, os.X_OK) else sys.executable
)  # the checkout's own environment has what stager needs


@dataclass
class Outcome:
    """One run: bytes per second, seconds, what the controller settled on (None when the run was cut short)."""

    rate: float
    seconds: float
    lanes: int | None = None
    peak: int | None = None
    split: bool | None = None

    @property
    def found(self):
        """Where it ended, for the table."""
        return (
            "?" if self.lanes is None else f"{self.lanes}{'+split' if self.split else ''} (peak {self.peak})"
        )


def child(setting, *arguments):
    """The process that reads at `setting`."""
    command = [PYTHON, FORCED, setting, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


class Disk:
    """Files on a local disk, read again and again for as long as a run lasts."""

    name = "local disk"
    splits = False

    def __init__(self, folder, seconds):
        self.seconds = seconds
        self._paths = data.weights(os.path.join(folder, "disk"), 8, 512 * MIB)

    def run(self, setting, *, whole):  # noqa: ARG002  the same signature as a mount's
        data.evict(self._paths)
        process = child(setting, "loop", str(self.seconds), *self._paths)
        out, _ = process.communicate()
        if process.returncode:
            raise Stop(f"a run at {setting} failed")
        found = json.loads(out)
        kept = data.resident_sum(self._paths) / found["bytes"]
        if kept > 0.2:
            raise Stop(f"{kept:.0%} of what was read stayed in memory: the disk was not what was measured")
        return Outcome(
            found["bytes"] / found["seconds"], found["seconds"], *map(found.get, ("lanes", "peak", "split"))
        )

    def close(self):
        """Nothing is left but the files."""


@dataclass
class Shape:
    """A FUSE mount: options of tests/fuselab, files as (count, bytes for a run of one second), and whether stager may split there."""

    name: str
    count: int
    per_second: int
    options: dict = field(default_factory=dict)
    splits: bool = True


SHAPES = {
    "stream": Shape(
        "FUSE, bandwidth per stream", 3, 300_000_000, {"stream_rate": "20MB", "total_rate": "300MB"}
    ),
    "pool": Shape(
        "FUSE, pool that collapses",
        16,
        300_000_000,
        {
            "subtype": "ossfs2",
            "pool": 16,
            "pool_chunk": "1M",
            "pool_window": "2M:4M",
            "pool_hold": 4,
            "pool_crawl": "4M",
            "stream_rate": "100MB",
            "total_rate": "300MB",
        },
        splits=False,
    ),
    "serial": Shape("FUSE, one request at a time", 8, 60_000_000, {"serial": True, "latency": 2}),
}


class Mount:
    """A FUSE mount of synthetic files, made anew, and so cold, for each run."""

    def __init__(self, shape, folder, seconds):
        self.name, self.splits, self.seconds = shape.name, shape.splits, seconds
        self._marker = os.path.join(folder, "ready.json")
        size = int(shape.per_second * seconds / shape.count)
        self._total = size * shape.count
        names = {f"weights-{n:02}.bin": size for n in range(shape.count)}
        self._make = lambda: _mount(
            synthetic=names, keep_cache="always", attr_timeout=60, lifetime=900, **shape.options
        )

    def run(self, setting, *, whole):
        """One run on a new mount; unless `whole`, cut short after the time it is meant to take."""
        mount = self._make()
        try:
            began = time.monotonic()
            process = child(
                setting,
                "warm",
                mount.path,
                "--json",
                "--progress",
                "none",
                "--reserve",
                "0",
                "--marker",
                self._marker,
            )
            out = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, _ = process.communicate(timeout=None if whole else self.seconds)
            passed = time.monotonic() - began
            if out is None:
                served = mount.counters()["served"]
                process.send_signal(signal.SIGTERM)
                process.communicate()
                return Outcome(served / passed, passed)
            return self._outcome(setting, out, passed)
        finally:
            mount.close()

    def _outcome(self, setting, out, passed):
        lines = [json.loads(line) for line in out.splitlines()]
        summary = next((line for line in lines if line["type"] == "warm_summary"), None)
        # A node that pages out idle memory takes some of it back within half a minute: what was read is what counts here.
        if summary is None or summary["read"] < self._total:
            raise Stop(f"a run at {setting} did not read everything: {summary and summary['reason']}")
        return Outcome(self._total / passed, passed, summary["lanes"], summary["peak"], summary["split"])

    def close(self):
        """Every run unmounts what it mounted."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._marker)


def _mount(**options):
    from tests.fuselab.fixtures import FuseMount

    return FuseMount(**options)


def storage(name, folder, seconds):
    """The storage of that name, ready for runs of about `seconds` at its best."""
    return Disk(folder, seconds) if name == "disk" else Mount(SHAPES[name], folder, seconds)
