"""Memory for what is on its way: lent in the order of turns, never more than agreed."""

from __future__ import annotations

import mmap
import threading
from collections import defaultdict
from contextlib import suppress

from stager.engine.lanes import Checkpoint

_GRAIN = 64 << 10  # bytes; what is lent is a multiple, so that buffers of similar files serve each other
_HUGE = 2 << 20  # bytes of a huge page: far fewer faults when a buffer is touched first
_LOOK_S = 0.1  # between two looks whether the run is over


class Buffer:
    """A stretch of memory; `view` is the part of it that was asked for."""

    __slots__ = ("_memory", "view")

    def __init__(self, memory: mmap.mmap, size: int) -> None:
        self._memory = memory
        self.view = memoryview(memory)[:size]

    @property
    def capacity(self) -> int:
        """Bytes of memory."""
        return len(self._memory)

    def close(self) -> None:
        """Give the memory back to the system now, not when the last frame that knows it ends. A slice of it that is still about keeps it."""
        self.view.release()
        with suppress(BufferError):
            self._memory.close()

    def lent_anew(self, size: int) -> Buffer:
        """The same memory for somebody else, of whom `size` bytes are his."""
        return Buffer(self._memory, size)


class Buffers:
    """At most `size` bytes, in as many buffers as are asked for.

    Whoever takes one has a turn, and turns are served in order: 0, 1, 2... So whoever waits for something that an earlier turn brings waits for
    somebody who has his buffer. Anonymous memory of the process's own, given back to the system when buffers of another size are wanted.
    """

    def __init__(self, size: int) -> None:
        """Nothing is taken from the system yet."""
        self._size = size
        self._held = 0  # bytes taken from the system
        self._free: defaultdict[int, list[Buffer]] = defaultdict(list)
        self._next = 0
        self._changed = threading.Condition()

    def take(self, turn: int, size: int, checkpoint: Checkpoint) -> Buffer:
        """A buffer with a view of `size` bytes, of unknown content. Waits for its turn and for room; `checkpoint` is asked meanwhile and may raise.

        Raises ValueError for more than there will ever be. A turn that takes nothing must be `passed`.
        """
        capacity = max(_GRAIN, -(-size // _GRAIN) * _GRAIN)
        if capacity > self._size:
            raise ValueError(f"{size} bytes of {self._size}")
        with self._changed:
            while turn != self._next or (found := self._found(capacity)) is None:
                self._changed.wait(_LOOK_S)
                checkpoint(0)
            self._next += 1
            self._changed.notify_all()
        return found.lent_anew(size)

    def _found(self, capacity: int) -> Buffer | None:
        """A buffer of this capacity: a free one, or a new one if that fits once free ones of other sizes are given up.

        No more of those than it takes: memory that the system gives again has to be cleared again.
        """
        if self._free[capacity]:
            return self._free[capacity].pop()
        idle = sum(size * len(some) for size, some in self._free.items())
        if self._held - idle + capacity > self._size:
            return None
        for size in sorted(self._free):
            while self._free[size] and self._held + capacity > self._size:
                self._free[size].pop().close()
                self._held -= size
        self._held += capacity
        memory = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if capacity >= _HUGE:
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        return Buffer(memory, capacity)

    def passed(self, turn: int, checkpoint: Checkpoint) -> None:
        """Say that `turn` needs none. Waits until it comes."""
        with self._changed:
            while turn != self._next:
                self._changed.wait(_LOOK_S)
                checkpoint(0)
            self._next += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Give all that is free back to the system; what is lent out goes when its borrower lets go of it."""
        with self._changed:
            for buffer in (one for some in self._free.values() for one in some):
                buffer.close()
            self._free.clear()

    def give(self, buffer: Buffer) -> None:
        """Take `buffer` back; nobody may look at its view any more."""
        with self._changed:
            self._free[buffer.capacity].append(buffer)
            self._changed.notify_all()
