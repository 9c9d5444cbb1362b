"""One worker process of a shared fetch: ``python -m stager.jobs.download_worker``, see `stager.jobs.sharing`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import StagerError, Stopped
from stager.core.location import Location, Scheme
from stager.core.model import Span
from stager.engine import runtime
from stager.engine.crew import END, Message, Voice, hear, leave
from stager.jobs.downloading import Downloading, Task
from stager.node.partfile import OpenParts
from stager.node.parts import Target
from stager.node.processes import more_descriptors
from stager.store.opening import StoreOptions

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stager.core.pieces import Piece
    from stager.node.partfile import PartFile

_TICK_S = 0.25


class _Parts:
    """The part files, opened here again; what is written is told to the process that keeps the journal."""

    def __init__(self, folder: str, tasks: list[Task], voice: Voice) -> None:
        self._target = Target(folder)
        self._tasks = tasks
        self._voice = voice
        self._open = OpenParts(self._again)

    def part(self, index: int) -> AbstractContextManager[PartFile]:
        return self._open.use(index)

    def _again(self, index: int) -> PartFile:
        return self._target.part_again(self._tasks[index].path, self._tasks[index].size)

    def add(self, index: int, piece: Piece, crc64: int | None) -> None:
        self._voice.say({"piece": [index, piece.offset, piece.length, piece.crc, crc64]})


def main() -> int:
    """Do the job on stdin; the exit code is of no interest, what was said is."""
    voice, job = Voice(), hear()
    more_descriptors()
    tasks = [Task(**task) for task in job["tasks"]]
    scheme, bucket, prefix = job["location"]
    store = StoreOptions(**{**job["store"], "source_ips": tuple(job["store"]["source_ips"])})
    download = Downloading(
        Location(Scheme(scheme), bucket, prefix),
        store,
        tasks,
        [Span(*span) for span in job["spans"]],
        _Parts(job["folder"], tasks, voice),
        lanes=job["lanes"],
        adapt=job["adapt"],
        on_retry=lambda doing, error: voice.say({"retry": [doing, str(error)]}),
    )

    async def work() -> None:
        async with runtime.ticking(_TICK_S, partial(_tick, download, voice)):
            await download.run()

    try:
        runtime.run(work, on_stop=lambda _signum: None, on_poke=lambda: None)
    except Stopped as stopped:
        voice.say(_tell(download))
        return stopped.exit_code
    except StagerError as error:
        voice.say(_tell(download))
        voice.say({"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}})
        return error.exit_code
    voice.say(_tell(download))
    voice.say(END)
    return 0


def _tick(download: Downloading, voice: Voice) -> None:
    download.watch()
    voice.say(_tell(download))


def _tell(download: Downloading) -> Message:
    pace = download.pace()
    return {
        "tick": {
            "done": download.done,
            "busy": download.busy,
            "lanes": pace.lanes,
            "peak": pace.peak,
            "retried": download.retried,
            "replaced": download.replaced,
            "active": download.active(),
        }
    }


if __name__ == "__main__":
    leave(main())
