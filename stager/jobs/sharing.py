"""A fetch shared out to worker processes: disjoint spans of the same files, one funnel for progress and errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from stager.core import errors
from stager.core.location import Location
from stager.core.pieces import Piece
from stager.core.ranges import deal
from stager.engine import runtime
from stager.engine.crew import Message, run_crew
from stager.engine.pace import PaceReport
from stager.store.opening import StoreOptions

if TYPE_CHECKING:
    from stager.core.model import Span
    from stager.jobs.assembly import Assembly
    from stager.jobs.downloading import Task

_MODULE = "stager.jobs.download_worker"


@dataclass
class _Hand:
    """What one worker last said of itself."""

    done: int = 0
    busy: int = 0
    lanes: int = 0
    peak: int = 0
    retried: int = 0
    replaced: int = 0
    active: list[str] = field(default_factory=list)


class Shared:
    """`stager.jobs.downloading.Download` by several processes; each has its share of the lanes and of the rate."""

    def __init__(
        self,
        location: Location,
        options: StoreOptions,
        tasks: Sequence[Task],
        spans: Sequence[Span],
        parts: Assembly,
        *,
        processes: int,
        folder: str,
        lanes: int,
        adapt: bool = True,
        on_retry: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self._parts = parts
        self._tasks = tasks
        self._indexes = sorted({span.index for span in spans})
        self._on_retry = on_retry
        self._hands = [_Hand() for _ in range(processes)]
        self._moved_at = time.monotonic()
        self._jobs = [
            {
                "location": [location.scheme, location.bucket, location.prefix],
                "store": _store_of(options, number, processes),
                "folder": folder,
                "lanes": max(1, lanes // processes + (number < lanes % processes)),
                "adapt": adapt,
                "tasks": [asdict(task) for task in tasks],
                "spans": [[span.index, span.offset, span.length] for span in hand],
            }
            for number, hand in enumerate(deal(spans, processes))
        ]

    @property
    def done(self) -> int:
        """Bytes that came from the store so far."""
        return sum(hand.done for hand in self._hands)

    @property
    def busy(self) -> int:
        """Lanes that fetch something now."""
        return sum(hand.busy for hand in self._hands)

    @property
    def last_progress(self) -> float:
        """`time.monotonic` of the last sign of a byte, or of the start."""
        return self._moved_at

    @property
    def retried(self) -> int:
        """Attempts that were made again."""
        return sum(hand.retried for hand in self._hands)

    @property
    def replaced(self) -> int:
        """Slow connections that were dropped."""
        return sum(hand.replaced for hand in self._hands)

    async def run(self) -> None:
        """Fetch everything; see `stager.jobs.downloading.Download`."""
        await runtime.in_thread("making part files", self._prepare)
        await run_crew(_MODULE, self._jobs, self._hear, hold=self._parts.locks)

    def _prepare(self) -> None:
        for index in self._indexes:
            self._parts.prepare(index)

    def pace(self) -> PaceReport:
        """What the workers found, added up."""
        lanes, peak = sum(hand.lanes for hand in self._hands), sum(hand.peak for hand in self._hands)
        return PaceReport(lanes, peak, split=False, epochs=())

    def active(self) -> list[str]:
        """Names of the objects that are being read now."""
        return [name for hand in self._hands for name in hand.active]

    def stuck(self) -> list[str]:
        """Nothing: a worker that hangs is killed."""
        return []

    def watch(self) -> None:
        """Nothing: each worker watches its own connections."""

    def _hear(self, number: int, message: Message) -> None:
        hand = self._hands[number]
        if (piece := message.get("piece")) is not None:
            index, offset, length, crc, answered = piece
            self._parts.add(index, Piece(offset, length, crc), answered)
        elif (tick := message.get("tick")) is not None:
            if tick["done"] != hand.done:
                self._moved_at = time.monotonic()
            self._hands[number] = _Hand(**tick)
        elif (retry := message.get("retry")) is not None:
            if self._on_retry is not None:
                self._on_retry(retry[0], errors.RemoteError(retry[1]))
        elif (error := message.get("error")) is not None:
            raise _error(error)


def _store_of(options: StoreOptions, number: int, processes: int) -> dict[str, object]:
    """The options of one worker: its share of the rate, the source addresses beginning with another one."""
    given = asdict(options)
    if options.max_rate is not None:
        given["max_rate"] = max(1, options.max_rate // processes)
    turn = number % max(1, len(options.source_ips))
    given["source_ips"] = [*options.source_ips[turn:], *options.source_ips[:turn]]
    return given


def _error(said: Message) -> Exception:
    """The error that a worker named, as the class it was."""
    kind = getattr(errors, str(said["kind"]), errors.StagerError)
    error: Exception = kind(said["message"], hint=said["hint"])
    return error
