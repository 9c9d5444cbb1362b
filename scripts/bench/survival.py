"""Which touch outlives a stream of reads: each in a memory cgroup of its own, which is removed afterwards."""

import os
import time

from bench import data, process

_V1 = "/sys/fs/cgroup/memory"
_V2 = "/sys/fs/cgroup"


def _top():
    """(the top of the memory hierarchy, the file that holds a limit), or None and why not."""
    if os.geteuid() != 0:
        return None, "needs root for a memory cgroup of its own"
    if os.path.exists(f"{_V1}/memory.limit_in_bytes"):
        return (_V1, "memory.limit_in_bytes"), ""
    try:
        with open(f"{_V2}/cgroup.subtree_control", encoding="ascii") as file:
            if "memory" in file.read().split():
                return (_V2, "memory.max"), ""
    except OSError:
        pass
    return None, "the memory controller is not available at the top of the cgroup hierarchy"


def possible():
    """Empty when survival can be measured here, else why not."""
    return _top()[1]


def survivors(argv, kept, stream, limit):
    """Bytes of `kept` resident (after `argv` warmed them, after `stream` was read through), within `limit` bytes of memory."""
    top, name = _top()[0]
    group = os.path.join(top, f"bench-warm-{os.getpid()}")
    data.evict([*kept, *stream])
    os.mkdir(group)
    try:
        with open(os.path.join(group, name), "w", encoding="ascii") as file:
            file.write(str(limit))
        inside = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', os.path.join(group, "cgroup.procs")]
        process.run([*inside, *argv])
        after = data.resident_sum(kept)
        first, *rest = stream
        head = str(limit // 2)
        process.run([*inside, "sh", "-c", 'head -c "$0" "$1" >/dev/null', head, first])
        _settle(group)
        process.run(
            [
                *inside,
                "sh",
                "-c",
                '{ tail -c "+$0" "$1"; shift; cat "$@" /dev/null; } >/dev/null',
                head,
                first,
                *rest,
            ]
        )
        left = data.resident_sum(kept)
    finally:
        _remove(group)
        data.evict([*kept, *stream])
    return after, left


def _settle(group):
    """Makes the kernel add up the group's counters, which it otherwise does every two seconds.

    Until then reclaim believes that almost everything in the group is active and ages that first: without this, pages of which
    every one was active had 256, 17 or 0 of 256 MB left after the same stream.
    """
    with open(os.path.join(group, "memory.stat"), encoding="ascii") as file:
        file.read()


def _remove(group):
    for _ in range(50):
        try:
            os.rmdir(group)
        except OSError:  # the last process has ended, the kernel is still counting
            time.sleep(0.05)
        else:
            return
    raise data.Stop(f"the cgroup {group} could not be removed")
