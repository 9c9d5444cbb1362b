"""A loader of ``stager bench``: a process that reads a model as an engine does, and says how long that took.

It gets one job as JSON on stdin: ``how`` (``read``, ``mmap-names``, ``mmap-offsets``), ``files`` as [path, bytes to read of it or null]. It says
``{"ready": what it has used so far}``, begins when a second line comes, and ends with ``{"done": the monotonic clock, "files": [[bytes, seconds], ...],
"used": ...}``, or with ``{"error": ...}``. What is used: CPU seconds, bytes read from block devices.
The end of its stdin ends it at any time, so whoever starts it must keep that open.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import time
from functools import partial
from typing import Any

from stager.core.bench.plan import READ, spans_in_order
from stager.core.formats import safetensors
from stager.core.formats.source import Head, Shrunk, Unjudged
from stager.core.units import MIB
from stager.engine.crew import Voice, end_with_stdin, leave
from stager.node.files import read_in_order
from stager.node.syscalls import PAGE

_BUFFER = 4 * MIB  # 1 to 4 MiB are equally fast; one buffer, used again
_STRETCH = 64 * MIB  # touched in one call


def read_file(path: str, most: int | None, buffer: bytearray) -> int:
    """Read `path` from its beginning, said to be in order, at most `most` bytes; how many that were. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        read_in_order(fd)
        done, view = 0, memoryview(buffer)
        while most is None or done < most:
            want = len(buffer) if most is None else min(len(buffer), most - done)
            got = os.readv(fd, [view[:want]])
            if not got:
                break
            done += got
        return done
    finally:
        os.close(fd)


def touch_file(path: str, most: int | None, order: str) -> int:
    """Map `path` and touch every page of its tensors in `order`, within its first `most` bytes; the bytes that lie under them.

    Raises ``OSError``.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if not size:
            return 0
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            tensors = _tensors(view) if path.endswith(".safetensors") else []
            spans = spans_in_order(tensors, order, size, most)
            for start, end in spans:
                for at in range(start - start % PAGE, end, _STRETCH):
                    bytes(view[at : min(end, at + _STRETCH) : PAGE])
            return sum(end - start for start, end in spans)
    finally:
        os.close(fd)


def _tensors(view: memoryview) -> list[tuple[str, int, int]]:
    """As engines find them: by the header, read through the mapping."""

    def read(_index: int, offset: int, length: int) -> bytes:
        return bytes(view[offset : offset + length])

    try:
        return safetensors.layout(Head(read, 0, len(view), 8 + safetensors.MAX_HEADER))
    except (Shrunk, Unjudged):
        return []


def _line(heard: bytearray) -> bytes:
    """The next line of stdin, empty at its end; `heard` keeps what came with it."""
    while b"\n" not in heard:
        data = os.read(0, 1 << 16)
        if not data:
            return b""
        heard += data
    line, _, rest = bytes(heard).partition(b"\n")
    heard[:] = rest
    return line + b"\n"


def _used() -> tuple[float, int]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_inblock * 512


def _begin(voice: Voice) -> dict[str, Any]:
    """The job, once the word to begin has come."""
    heard = bytearray()
    job: dict[str, Any] = json.loads(_line(heard) or b"{}")
    if job:
        voice.say({"ready": _used()})
    if not job or not _line(heard):
        voice.say({"error": "stdin ended before there was a job and the word to begin"})
        leave(1)
    end_with_stdin()
    return job


def main() -> None:
    """Load once."""
    voice = Voice()
    buffer = bytearray(_BUFFER)
    job = _begin(voice)
    how = job["how"]
    load = partial(read_file, buffer=buffer) if how == READ else partial(touch_file, order=how)
    files, at = [], time.monotonic()
    for path, most in job["files"]:
        try:
            done = load(path, most)
        except (OSError, ValueError) as exc:
            voice.say({"error": f"{path}: {exc}"})
            leave(1)
        now = time.monotonic()
        files.append([done, now - at])
        at = now
    voice.say({"done": at, "files": files, "used": _used()})
    leave(0)


if __name__ == "__main__":
    main()
