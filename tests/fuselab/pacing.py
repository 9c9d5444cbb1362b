"""How fast answers come: plain rates, and the shared prefetch pool of an object-store daemon."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field

_BURST_S = 0.01  # credit for late sleepers; time.sleep overshoots by 0.1 ms and more
_NEAR = 2 << 20  # readahead requests of one sequential reader arrive up to this far out of order
_ONE_GET = 1 << 20


def crowding(handles: int, crowd: int) -> float:
    """How many times slower the whole daemon is with `handles` open; 1.0 up to `crowd`.

    ossfs 2.0.7 gave 2476, 1973 and 1055 MB/s to 4, 8 and 16 readers of 384 MiB files; this exponent gives 2476, 1634
    and 1078.
    """
    return max(1.0, handles / crowd) ** 0.6 if crowd else 1.0


class Rate:
    """Bytes per second on one virtual clock: each caller reserves its bytes and is told when they are due.

    `slower` divides the rate, from now on.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.slower = 1.0
        self._rate = bytes_per_s
        self._clock = 0.0
        self._lock = threading.Lock()

    def due(self, count: int) -> float:
        """When (monotonic seconds) `count` more bytes may be out."""
        with self._lock:
            self._clock = max(self._clock, time.monotonic() - _BURST_S) + count * self.slower / self._rate
            return self._clock


@dataclass(frozen=True)
class PoolShape:
    """Sizes in bytes, rates in bytes per second; `hold` is the most chunks one handle keeps.

    The defaults are those of ossfs 2.0.7: 8 MiB chunks, a window of 32 MiB doubling to 1 GiB, at most 1.5 GiB per
    handle, and 32 MB/s for a handle that found the pool empty.
    """

    chunks: int
    chunk: int = 8 << 20
    window: int = 32 << 20
    max_window: int = 1 << 30
    hold: int = 192
    crawl: float = 32e6
    stream_rate: float = math.inf
    total_rate: float = math.inf


@dataclass(eq=False)
class Stream:
    """One open handle as the pool sees it. Bytes [.., frontier) have arrived, [frontier, target) are on the way."""

    size: int
    window: int
    held: int = 0
    pos: int = 0
    run: int = 0  # sequential reads in a row
    widen_at: int = 0
    frontier: float = 0.0
    target: int = 0
    crawling: bool = False


@dataclass
class PoolCounts:
    """What the pool did: bytes asked of the store, chunks in use, reads that crawled."""

    fetched: int = 0
    max_chunks_used: int = 0
    crawled_reads: int = 0


@dataclass
class Pool:
    """A pool of prefetch chunks that open handles take, keep until close, and compete for.

    A handle is sequential after three reads; it then asks for chunks up to its window ahead. What was asked of the
    store is transferred even when the handle closes first, and takes its share of the total rate: that is why reading
    one file through many ranges fetches it many times. A handle without a chunk crawls.
    """

    shape: PoolShape
    counts: PoolCounts = field(default_factory=PoolCounts)
    slower: float = 1.0  # divides the total rate

    def __post_init__(self) -> None:
        self._free = self.shape.chunks
        self._lock = threading.Lock()
        self._active: set[Stream] = set()  # streams with bytes on the way
        self._then = time.monotonic()

    def open(self, size: int) -> Stream:
        return Stream(size=size, window=self.shape.window)

    def close(self, stream: Stream) -> None:
        with self._lock:
            self._free += stream.held
            stream.held = 0

    def read(self, stream: Stream, offset: int, size: int) -> int:
        """Wait until the bytes have arrived; gives how many bytes this read made the pool fetch."""
        end = min(offset + size, stream.size)
        with self._lock:
            before = self.counts.fetched
            self._advance()
            self._follow(stream, offset, end)
            self._extend(stream, end)
            fetched = self.counts.fetched - before
            pause = self._pause(stream, end)
        while pause > 0:
            time.sleep(min(pause, 0.05))
            with self._lock:
                self._advance()
                self._extend(stream, end)
                pause = self._pause(stream, end)
        return fetched

    def _follow(self, stream: Stream, offset: int, end: int) -> None:
        """Note where the reader is; a jump gives up the run, but not the chunks."""
        if abs(offset - stream.pos) <= _NEAR:
            stream.run += 1
            stream.pos = max(stream.pos, end)
        else:
            if stream.target > stream.frontier:
                self._active.add(Stream(stream.size, 0, frontier=stream.frontier, target=stream.target))
            stream.run, stream.window, stream.pos = 0, self.shape.window, end
            stream.frontier, stream.target = float(offset), offset
            stream.widen_at = offset
            if end - offset < _ONE_GET:
                self.counts.fetched += _ONE_GET - (end - offset)
        # measured: 16 MiB of reading is enough for a window of half a GiB (64 re-opens fetched a file 25 times)
        while stream.run >= 3 and stream.pos >= stream.widen_at + self.shape.chunk // 2:
            stream.widen_at += self.shape.chunk // 2
            stream.window = min(stream.window * 2, self.shape.max_window)

    def _extend(self, stream: Stream, end: int) -> None:
        """Ask the store for what this handle wants next and can hold."""
        goal = min(stream.size, stream.pos + stream.window) if stream.run >= 3 else 0
        while stream.target < goal and self._take(stream):
            self._ask(stream, min(stream.size, (stream.target // self.shape.chunk + 1) * self.shape.chunk))
        stream.crawling = stream.target < goal and stream.held == 0
        if stream.target < end:
            self.counts.crawled_reads += stream.crawling
            self._ask(stream, end)
        self.counts.max_chunks_used = max(self.counts.max_chunks_used, self.shape.chunks - self._free)

    def _take(self, stream: Stream) -> bool:
        if stream.held < self.shape.hold and self._free > 0:
            self._free -= 1
            stream.held += 1
            return True
        ahead = -(-(stream.target - stream.pos) // self.shape.chunk)
        return max(0, ahead) < stream.held  # one of its own is already read: use that again

    def _ask(self, stream: Stream, target: int) -> None:
        self.counts.fetched += target - stream.target
        stream.target = target
        self._active.add(stream)
        if not stream.crawling and math.isinf(self.shape.stream_rate) and math.isinf(self.shape.total_rate):
            stream.frontier = target

    def _rates(self) -> tuple[float, float]:
        """Bytes per second for a normal and for a crawling stream, sharing the total fairly."""
        crawlers = sum(stream.crawling for stream in self._active)
        normal = len(self._active) - crawlers
        total = self.shape.total_rate / self.slower
        share = total / max(1, len(self._active))
        crawl = min(self.shape.crawl, share)
        rest = (total - crawlers * crawl) / max(1, normal)
        return min(self.shape.stream_rate, rest), crawl

    def _advance(self) -> None:
        now = time.monotonic()
        left, self._then = now - self._then, now
        while left > 0 and self._active:
            normal, crawl = self._rates()
            pace = {s: crawl if s.crawling else normal for s in self._active}
            step = min(left, *((s.target - s.frontier) / rate for s, rate in pace.items()))
            for s, rate in pace.items():
                s.frontier = s.target if math.isinf(rate) else min(s.target, s.frontier + rate * step)
            self._active = {s for s in self._active if s.target - s.frontier > 0.5}
            left -= step

    def _pause(self, stream: Stream, end: int) -> float:
        missing = end - stream.frontier
        if missing <= 0.5:
            return 0.0
        normal, crawl = self._rates()
        rate = crawl if stream.crawling else normal
        return 0.0 if math.isinf(rate) else missing / rate
