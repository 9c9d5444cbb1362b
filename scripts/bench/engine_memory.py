"""Keeps memory in use for a while, then gives it back: ``python engine_memory.py BYTES SECONDS``.

A node that pages out idle memory watches stretches of it, whoever they belong to. What was free for long counts as idle, and pages
that are read into it may be taken within seconds: of 1.5 GB that `cat` read in 15 s on one such node, 2 to 11 MiB were in five runs.
Of what was read into memory that had just been in use, at most 52 KiB were, in nine.
"""

import mmap
import sys
import time

_PAGE = 4096
_STEP_S = 0.2  # more often than such a node looks


def use(size, seconds):
    """Touch every page of `size` bytes again and again."""
    memory = mmap.mmap(-1, max(size, _PAGE))
    touch = b"\1" * -(-len(memory) // _PAGE)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        memory[::_PAGE] = touch
        time.sleep(_STEP_S)


if __name__ == "__main__":
    use(int(sys.argv[1]), float(sys.argv[2]))
