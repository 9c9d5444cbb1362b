"""Commands that bring files into the page cache, and fio as the measure of the disk."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from statistics import median

from bench import data, process
from bench.data import MIB, Stop

ONE_PASS = "one-pass recipe"
TWO_PASS = "two-pass recipe"
VMTOUCH = "vmtouch -t"


def _recipe(folder, tail):
    return ["sh", "-c", f'find "$0" -type f -print0 | xargs -0 -P16 -n1 {tail}', folder]


def command(name, folder):
    """The argument list of the rival `name` over `folder`; None when it is not installed."""
    if name == ONE_PASS:
        return _recipe(folder, "cat >/dev/null")
    if name == TWO_PASS:
        return _recipe(folder, """sh -c 'cat "$0" && cat "$0"' >/dev/null""")
    return ["vmtouch", "-q", "-t", folder] if shutil.which("vmtouch") else None


@dataclass(frozen=True)
class Fio:
    """One way for fio to read every byte of some files once, past the page cache."""

    engine: str
    jobs: int
    depth: int
    block: int  # MiB

    @property
    def text(self):
        """A short name."""
        jobs = f"{self.jobs} jobs" if self.jobs > 1 else "1 job"
        depth = f" depth {self.depth}" if self.depth > 1 else ""
        return f"{self.engine} {jobs}{depth} bs={self.block}m"

    def file(self, paths):
        """The job file: sections share the bytes out evenly."""
        lines = ["[global]", f"ioengine={self.engine}", f"iodepth={self.depth}", f"bs={self.block}m"]
        lines += ["rw=read", "direct=1", "thread=1", "runtime=120", "allow_file_create=0"]
        size = os.path.getsize(paths[0])
        for job in range(self.jobs):
            if len(paths) == 1:
                share = size // self.jobs
                what = [f"filename={paths[0]}", f"offset={job * share}", f"size={share}"]
            else:
                mine = paths[job :: self.jobs]
                names = ":".join(mine)
                what = [f"filename={names}", f"size={size * len(mine)}", "file_service_type=sequential"]
            lines += [f"[j{job}]", *what]
        return "\n".join(lines) + "\n"


SETTINGS = [
    *[Fio("psync", jobs, 1, block) for jobs in (1, 2, 4, 8) for block in (1, 4)],
    *[Fio("io_uring", 1, depth, 1) for depth in (8, 16, 32)],
    Fio("io_uring", 4, 8, 4),
    Fio("libaio", 1, 32, 1),
]
QUICK = [Fio("psync", 4, 1, 1), Fio("libaio", 1, 16, 1)]


def have_fio():
    """Whether fio is installed."""
    return shutil.which("fio") is not None


def run_fio(setting, paths):
    """One `Run`, `reading` filled in. Raises `Stop` when bytes are missing or went through the cache."""
    with tempfile.TemporaryDirectory() as folder:
        job, report = os.path.join(folder, "job"), os.path.join(folder, "report")
        with open(job, "w", encoding="utf-8") as file:
            file.write(setting.file(paths))
        done = process.run(["fio", "--output-format=json", f"--output={report}", job], timeout=150)
        with open(report, encoding="utf-8") as file:
            text = file.read()
    found = json.loads(text[text.index("{") :])["jobs"]
    total = sum(os.path.getsize(path) for path in paths)
    read = sum(one["read"]["io_bytes"] for one in found)
    if read != total:
        raise Stop(f"fio {setting.text} read {read} of {total} bytes")
    if data.resident_sum(paths):
        raise Stop(f"fio {setting.text} went through the page cache")
    done.reading = max(one["read"]["runtime"] for one in found) / 1000
    return done


def fastest(settings, attempt, *, again=3):
    """The best setting: each is tried once, the best three `again` - 1 times more, medians decide.

    `attempt(setting)` gives seconds. Also every setting's median seconds; those that cannot run here are left out.
    """
    times = {}
    for setting in settings:
        try:
            times[setting] = [attempt(setting)]
        except Stop as stop:
            if "ended with" not in str(stop):
                raise
    if not times:
        raise Stop("fio runs with no setting here")
    for setting in sorted(times, key=lambda one: times[one][0])[:3]:
        times[setting] += [attempt(setting) for _ in range(again - 1)]
    medians = {setting: median(taken) for setting, taken in times.items()}
    finalists = [setting for setting in times if len(times[setting]) == max(map(len, times.values()))]
    return min(finalists, key=medians.__getitem__), medians


def rate(paths, seconds):
    """MiB/s."""
    return sum(os.path.getsize(path) for path in paths) / MIB / seconds
