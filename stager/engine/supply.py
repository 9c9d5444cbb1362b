"""Which bytes are whose: spans waiting, leases in flight, tails taken over, rests put back.

Plain thread-safe bookkeeping without threads of its own. At every moment the bytes of the original spans are
partitioned into: queued, held by exactly one lease, read, or given up by a reader that ended early.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence

from stager.core.model import Span

# Tails begin on a multiple of this, so that two handles do not share a huge page or a daemon's download part.
_TAIL_ALIGNMENT = 8 << 20
# A rest smaller than this is read to its end by the lane that holds it: opening the file again costs more.
_REST_WORTH_RETURNING = 8 << 20


# A tail is worth a handle of its own when a lane is busy with it for this long.
_WORTH_S = 1.0
_SMOOTH = 0.2  # bytes are counted in blocks: from one tick to the next a slow lane moves nothing, then twice its rate


class Worth:
    """The smallest tail worth a handle of its own: what one lane moves in a second at its best, between the least and the most.

    Daemons fetch ahead of a handle, and what they fetched beyond the end of a tail is fetched twice. Where a lane moves few bytes
    a second nothing is fetched far ahead, and a small file is worth many handles.
    """

    def __init__(self, most: int) -> None:
        """`most` bytes, which is also the answer before anything has moved."""
        self._least, self._most = min(_TAIL_ALIGNMENT, most), most
        self._then: tuple[float, int] | None = None
        self._rate = self._best = 0.0

    def observe(self, now: float, done: int, busy: int) -> int:
        """The answer in bytes. `now` in seconds, `done` the bytes moved so far by all lanes, `busy` lanes at work."""
        then, self._then = self._then, (now, done)
        if then is not None and now > then[0] and done > then[1]:
            rate = (done - then[1]) / (now - then[0]) / max(1, busy)
            self._rate += _SMOOTH * (rate - self._rate)
            self._best = max(self._best, self._rate)
        if not self._best:
            return self._most
        return max(self._least, min(self._most, int(_WORTH_S * self._best)))


class Lease:
    """A span in the hands of one lane. Its end may move closer while it is read.

    The lane calls `take` before and `advance` after each block::

        while size := lease.take(block):
            moved = os.preadv(fd, [view[:size]], lease.position)
            if not moved:
                return  # the file shrank: nothing more to read
            lease.advance(moved)
            checkpoint(moved)

    Bytes between `position` and what was taken cannot be lost to another lane; bytes after that can.
    """

    __slots__ = ("_end", "_lock", "_position", "_reserved", "span")

    def __init__(self, span: Span) -> None:
        """A lease of all of `span`."""
        self.span = span
        self._position = span.offset
        self._reserved = span.offset
        self._end = span.end
        self._lock = threading.Lock()

    @property
    def position(self) -> int:
        """File offset of the next byte to read."""
        return self._position

    @property
    def end(self) -> int:
        """File offset one past the last byte of this lease, at this moment."""
        return self._end

    def take(self, most: int) -> int:
        """Reserves the next bytes from `position` on: how many, at most `most`; 0 when the lease is used up."""
        with self._lock:
            self._reserved = min(self._position + most, self._end)
            return self._reserved - self._position

    def advance(self, count: int, *, keep: bool = False) -> None:
        """Says that `count` of the bytes taken were read; raises ValueError beyond them.

        The others are free again, unless `keep`: a request for them is under way.
        """
        with self._lock:
            if not 0 <= count <= self._reserved - self._position:
                raise ValueError(f"{count} bytes read, {self._reserved - self._position} taken")
            self._position += count
            if not keep:
                self._reserved = self._position

    def remaining(self) -> int:
        """Bytes that another lane could still take over."""
        with self._lock:
            return self._end - self._reserved

    def cut(self, smallest: int) -> Span | None:
        """Gives up the second half of what is left, if that is at least `smallest` bytes."""
        with self._lock:
            left = self._end - self._reserved
            if left < 2 * max(1, smallest):
                return None
            middle = self._reserved + left - left // 2
            aligned = middle - middle % _TAIL_ALIGNMENT
            if aligned > self._reserved and smallest >= _TAIL_ALIGNMENT:
                middle = aligned
            return self._shorten(middle)

    def surrender(self, smallest: int) -> Span | None:
        """Gives up everything not yet reserved, if that is at least `smallest` bytes."""
        with self._lock:
            if self._end - self._reserved < max(1, smallest):
                return None
            return self._shorten(self._reserved)

    def _shorten(self, end: int) -> Span:
        tail = Span(self.span.index, end, self._end - end)
        self._end = end
        return tail


class Supply:
    """The spans of a run, handed out in the given order; rests that came back go first.

    `min_piece` is the smallest tail in bytes that is worth a handle of its own. A file that was divided here is read
    by several lanes only as long as the caller of `next` allows splitting; spans that were given as several pieces
    of one file from the start are independent.
    """

    min_piece: int  # may be changed at any time, by one thread

    def __init__(self, spans: Sequence[Span], min_piece: int, *, whole: bool = False) -> None:
        """All of `spans` waiting. `whole`: they are never divided, and a lane that has one keeps all of it."""
        self._lock = threading.Lock()
        self._queue = deque(spans)
        self._returned: deque[Span] = deque()
        self._active: dict[int, Lease] = {}
        self._pieces = Counter(span.index for span in spans)
        self._divided: set[int] = set()
        self._finished: set[int] = set()
        self.min_piece = min_piece
        self._whole = whole

    def next(self, *, split: bool) -> Lease | None:
        """The next lease, or None when there is nothing to hand out now (others may still be reading)."""
        with self._lock:
            span = self._next_span(split=split)
            if span is None:
                return None
            lease = Lease(span)
            self._active[id(lease)] = lease
            return lease

    def _next_span(self, *, split: bool) -> Span | None:
        for at, span in enumerate(self._returned):
            if self._allowed(span, split=split):
                del self._returned[at]
                return span
        if self._queue:
            return self._queue.popleft()
        return self._tail() if split and not self._whole else None

    def _allowed(self, span: Span, *, split: bool) -> bool:
        if split or span.index not in self._divided:
            return True
        return all(lease.span.index != span.index for lease in self._active.values())

    def _tail(self) -> Span | None:
        if not self._active:
            return None
        lease = max(self._active.values(), key=Lease.remaining)
        tail = lease.cut(self.min_piece)
        if tail is not None:
            self._pieces[tail.index] += 1
            self._divided.add(tail.index)
        return tail

    def complete(self, lease: Lease) -> None:
        """Says that the reader of `lease` is through with it, to its end or to where the file ended."""
        with self._lock:
            del self._active[id(lease)]
            self._settle(lease.span.index)

    def _settle(self, index: int) -> None:
        self._pieces[index] -= 1
        if not self._pieces[index]:
            self._finished.add(index)

    def abandon(self, lease: Lease) -> None:
        """Says that nobody reads `lease` any more and that its rest was not read; its file stays unfinished."""
        with self._lock:
            del self._active[id(lease)]

    def give_back(self, lease: Lease) -> None:
        """Says that the reader of `lease` stopped early: what it has not read is the next to be handed out."""
        with self._lock:
            del self._active[id(lease)]
            if lease.position < lease.end:
                self._returned.append(Span(lease.span.index, lease.position, lease.end - lease.position))
            else:
                self._settle(lease.span.index)

    def put_back(self, lease: Lease) -> None:
        """Cuts `lease` short at the bytes already reserved; the rest waits for another lane."""
        with self._lock:
            if id(lease) in self._active:
                self._surrender(lease)

    def _surrender(self, lease: Lease) -> None:
        if self._whole:
            return
        rest = lease.surrender(_REST_WORTH_RETURNING)
        if rest is not None:
            self._pieces[rest.index] += 1
            self._returned.append(rest)

    def rejoin(self) -> None:
        """Ends the splitting of files: of the lanes that share a divided file, all but the first give their rest back."""
        with self._lock:
            first: dict[int, Lease] = {}
            for lease in sorted(self._active.values(), key=lambda lease: lease.position):
                if (
                    lease.span.index in self._divided
                    and first.setdefault(lease.span.index, lease) is not lease
                ):
                    self._surrender(lease)

    def backlog(self, *, split: bool) -> int:
        """Whole spans that a further lane could start on now, tails of spans in flight not counted."""
        with self._lock:
            return len(self._queue) + sum(self._allowed(span, split=split) for span in self._returned)

    def work_for_more(self, *, split: bool) -> bool:
        """True when one more lane would find something to read."""
        if self.backlog(split=split):
            return True
        with self._lock:
            return split and any(lease.remaining() >= 2 * self.min_piece for lease in self._active.values())

    @property
    def finished(self) -> frozenset[int]:
        """Indexes of the files whose every span is complete."""
        with self._lock:
            return frozenset(self._finished)
