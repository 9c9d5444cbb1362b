"""How a job lives: signals, blocking calls in threads, ticks, and an end that comes even when a read hangs.

The event loop only coordinates. Whatever may block (a FUSE mount can block anything that names it) runs in a thread that
can be left behind; `run` then names what hangs and the edge leaves with ``os._exit``, because an ordinary interpreter exit
would wait for the thread.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TypeVar

import anyio
import anyio.to_thread

from stager.core.errors import Stopped

T = TypeVar("T")
A = TypeVar("A")

HARD_STOP_S = 10  # after a signal; SIGALRM's default action then ends the process whatever Python is doing
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_S = 1.0  # for threads to reach their end after a stop; `lanes` has its own

_ALIVE_S = 0.002  # processor time that only a call that gets on can use: a look-up took 0.01 to 0.05 ms of it

_labels: dict[int, str] = {}
_used: dict[int, float] = {}  # processor seconds of each thread in `_labels` when it was last seen to get on
_lock = threading.Lock()
_moved = 0.0


def hanging() -> list[str]:
    """What the threads started here are doing now, as labels: after a run, the calls that have not come back."""
    with _lock:
        return sorted(set(_labels.values()))


def still() -> float:
    """Seconds since any of the calls under way in threads was last seen to get on; 0 when there are none.

    A call that begins or ends counts, and one that uses the processor: one call may list 100,000 files, and one that hangs
    in a mount uses none. Of calls ``by_word``, who are tried again and again and use it for nothing, only what they tell `moved`.
    """
    global _moved
    with _lock:
        now = time.monotonic()
        if not _used:
            _moved = now
        for thread, before in _used.items():
            used = _processor_time(thread)
            if used - before >= _ALIVE_S:
                _used[thread] = used
                _moved = now
        return now - _moved


def moved() -> None:
    """Says that a call under way has got on. From any thread."""
    global _moved
    with _lock:
        _moved = time.monotonic()


def _processor_time(thread: int) -> float:
    """Seconds. The thread must live: whoever has the lock may ask about those in `_used`."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


@contextmanager
def _labelled(label: str, *, by_word: bool = False) -> Iterator[None]:
    """Lists the calling thread under `label` while the body runs."""
    global _moved
    me = threading.get_ident()
    with _lock:
        _labels[me], _moved = label, time.monotonic()
        _used[me] = math.inf if by_word else _processor_time(me)
    try:
        yield
    finally:
        with _lock:
            _moved = time.monotonic()
            _labels.pop(me, None)
            _used.pop(me, None)


async def in_thread(label: str, call: Callable[[], T], *, by_word: bool = False) -> T:
    """`call()` in a thread, left behind (and listed by `hanging` under `label`) when cancelled. `by_word` as for `still`."""

    def labelled() -> T:
        with _labelled(label, by_word=by_word):
            return call()

    return await unseen(labelled)


async def unseen(call: Callable[[], T]) -> T:
    """As `in_thread`, but `hanging` and `still` know nothing of it: for what goes on beside the work, and says nothing of how that gets on."""
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))


async def in_threads(
    label: Callable[[A], str],
    call: Callable[[A], T],
    items: Iterable[A],
    width: int,
    *,
    by_word: bool = False,
) -> list[T]:
    """`call` of every item, at most `width` at once, results in the items' order. The first error ends the others.

    A thread goes from item to item by itself: handing each over cost 0.15 ms, 30 s for 100,000 files looked at twice.
    Cancelled, threads end after the item in hand; one that hangs in it is left behind, and listed by `hanging`.
    """
    queue = deque(enumerate(items))
    results: dict[int, T] = {}
    failure: list[Exception] = []
    over = threading.Event()

    def work() -> None:
        while queue and not over.is_set():
            try:
                index, item = queue.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                with _labelled(label(item), by_word=by_word):
                    results[index] = call(item)
            except Exception as exc:  # raised bare below, not as a group
                failure.append(exc)
                over.set()

    async def host() -> None:
        await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    limiter = anyio.CapacityLimiter(width)
    try:
        async with anyio.create_task_group() as group:
            for _ in range(min(width, len(queue))):
                group.start_soon(host)
    finally:
        over.set()
    if failure:
        raise failure[0]
    return [results[index] for index in sorted(results)]


def ticking(seconds: float, tick: Callable[[], None]) -> AbstractAsyncContextManager[None]:
    """Calls `tick` every `seconds` while the body runs; what `tick` raises ends the body and is raised here, bare."""

    async def loop() -> None:
        while True:
            await anyio.sleep(seconds)
            tick()

    return alongside(loop)


@asynccontextmanager
async def alongside(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs `work` while the body runs, and cancels it then; what `work` raises ends the body and is raised here, bare."""
    failure: list[Exception] = []

    async def watched(scope: anyio.CancelScope) -> None:
        try:
            await work()
        except Exception as exc:  # raised bare below
            failure.append(exc)
            scope.cancel()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(watched, scope)
            try:
                yield
            except Exception as exc:  # raised bare below, not as a group
                failure.append(exc)
            finally:
                group.cancel_scope.cancel()
    if failure:
        raise failure[0]


async def together(*jobs: Callable[[], Awaitable[None]]) -> None:
    """Runs all of `jobs` at once, to their ends. The first error cancels the others and is raised bare."""
    failure: list[Exception] = []

    async def one(job: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            await job()
        except Exception as exc:  # raised bare below, not as a group
            failure.append(exc)
            scope.cancel()

    async with anyio.create_task_group() as group:
        for job in jobs:
            group.start_soon(one, job, group.cancel_scope)
    if failure:
        raise failure[0]


@contextmanager
def deadline(seconds: float | None) -> Iterator[Callable[[], bool]]:
    """Cancels the body after `seconds` (None: never). Yields a callable that says whether it did."""
    with anyio.move_on_after(seconds) as scope:
        yield lambda: scope.cancelled_caught


@contextmanager
def sheltered(seconds: float) -> Iterator[None]:
    """Keeps the body from being cancelled from outside, and cancels it after `seconds` itself: for what must be put right at the end."""
    with anyio.move_on_after(seconds, shield=True):
        yield


async def sleep(seconds: float, label: str = "") -> None:
    """Wait, cancellably; listed by `hanging` under `label` meanwhile, when one is given."""
    key = -id(label)  # no thread's
    with _lock:
        if label:
            _labels[key] = label
    try:
        await anyio.sleep(seconds)
    finally:
        with _lock:
            _labels.pop(key, None)


def run(
    main: Callable[[], Awaitable[T]], *, on_stop: Callable[[int], None], on_poke: Callable[[], None]
) -> T:
    """Runs `main` under an event loop and returns what it returns.

    SIGINT, SIGTERM and SIGHUP call `on_stop(signum)` at once (withdraw the marker there), cancel `main`, and raise
    `Stopped`; a second one, or `HARD_STOP_S` seconds, ends the process on the spot. SIGUSR1 calls `on_poke`. Threads get a
    second to come back; ask `hanging` afterwards who did not.
    """
    outcome: list[T] = []
    failure: list[Exception] = []

    async def live() -> None:
        try:
            outcome.append(await main())
        except Exception as exc:  # raised bare below, not as a group
            failure.append(exc)

    async def supervise() -> int:
        life = _Life(on_stop, on_poke)
        async with anyio.create_task_group() as group:
            group.start_soon(life.listen)
            with life.scope:
                await live()
            with anyio.move_on_after(_GRACE_S, shield=True):
                while hanging() and (life.stopped_by or failure):
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        return life.stopped_by

    if signum := anyio.run(supervise):
        raise Stopped(signum)
    if failure:
        raise failure[0]
    return outcome[0]


class _Life:
    """What signals do to a job: `scope` is cancelled by the first that stops it, whose number is then `stopped_by`."""

    def __init__(self, on_stop: Callable[[int], None], on_poke: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._on_poke = on_poke
        # What was ignored from outside (nohup, a shell's `&`) stays ignored: that choice is not ours.
        self._stopping = [one for one in _STOPPING if signal.getsignal(one) is not signal.SIG_IGN]
        self.stopped_by = 0
        self.scope = anyio.CancelScope()

    async def listen(self) -> None:
        """Take signals until cancelled."""
        with anyio.open_signal_receiver(*self._stopping, signal.SIGUSR1) as signals:
            async for signum in signals:
                if signum == signal.SIGUSR1:
                    self._on_poke()
                    continue
                if self.stopped_by:
                    os._exit(128 + signum)
                self._stop(signum)

    def _stop(self, signum: signal.Signals) -> None:
        self.stopped_by = int(signum)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(HARD_STOP_S)
        self.scope.cancel()
        self._on_stop(signum)
