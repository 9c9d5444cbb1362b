"""One timed process with everything it starts."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from bench import machine
from bench.data import Stop

_SAMPLE_S = 0.01


@dataclass
class Run:
    """What one run took: seconds on the wall, CPU seconds of the process and of all its descendants, by wait4."""

    wall: float
    cpu: float
    blocks_in: int  # 512-byte blocks that a device had to deliver for it
    code: int
    out: str
    err: str
    strangers: float  # cores' worth of user-mode CPU that other processes took meanwhile
    anon: int = 0  # largest RssAnon seen, bytes; only when sampled
    peak: int = 0  # VmHWM, bytes; only when sampled
    reading: float = 0.0  # seconds of the reading phase alone, where the program tells
    blocks_out: int = 0  # 512-byte blocks that it wrote for a device, at once or later


def run(argv, *, sample=False, timeout=600.0, check=True):
    """Run `argv` to its end. Raises `Stop` when it fails (unless not `check`) or takes longer than `timeout` seconds."""
    with _memory_file() as out, _memory_file() as err:
        users = machine.user_seconds()
        began = time.perf_counter()
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0)
        expired = threading.Event()
        killer = threading.Timer(timeout, lambda: (expired.set(), _kill(child.pid)))
        killer.daemon = True
        killer.start()
        anon = peak = 0
        try:
            if sample:
                anon, peak, status, usage = _sample(child.pid)
            else:
                _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            _kill(child.pid)
            child.wait()
            raise
        finally:
            killer.cancel()
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        strangers = max(0.0, machine.user_seconds() - users - usage.ru_utime) / max(wall, 1.0)
        texts = [_text(out), _text(err)]
    if expired.is_set():
        raise Stop(f"{' '.join(argv)} took longer than {timeout:g} s")
    if check and child.returncode:
        raise Stop(f"{' '.join(argv)} ended with {child.returncode}:\n{texts[0]}{texts[1]}")
    cpu = usage.ru_utime + usage.ru_stime
    found = Run(wall, cpu, usage.ru_inblock, child.returncode, *texts, strangers, anon, peak)
    found.blocks_out = usage.ru_oublock
    return found


def _memory_file():
    """What a program says goes into memory: it counts as nothing that it wrote to a disk."""
    return open(os.memfd_create("said"), "w+b")


def _kill(pid):
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _text(file):
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _sample(pid):
    """The largest RssAnon and VmHWM seen until `pid` ends, then its wait status and usage."""
    anon = peak = 0
    while True:
        now = _memory(pid)
        anon, peak = max(anon, now.get("RssAnon", 0)), max(peak, now.get("VmHWM", 0))
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return anon, peak, status, usage
        time.sleep(_SAMPLE_S)


def _memory(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file if line.startswith(("RssAnon:", "VmHWM:"))]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
