"""What a pull notes while it runs: which files are whole at the destination, so that a run after it need not read them back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from stager.core.errors import StagerError
from stager.engine import runtime

if TYPE_CHECKING:
    from stager.core.model import FileEntry
    from stager.jobs.ledger import Ledger

INTERVAL_S = 30.0
"""Between two notes: the manifest of 30,000 files has 6 MB, and what is lost with a killed run is half a minute of reading back."""
FAREWELL_S = 2.0
"""For the last one, when the run fails or is stopped: whoever sent a signal does not wait for long."""


@asynccontextmanager
async def noted(
    ledger: Ledger,
    look: Callable[[], tuple[Mapping[str, FileEntry], Collection[str]]],
    ours: Callable[[], bool],
    *,
    interval: float = INTERVAL_S,
) -> AsyncIterator[None]:
    """While the body runs, `Ledger.note` what `look` gives, every `interval` seconds, and once more when the body fails or is cancelled.

    Nothing is written where `ours` says that somebody else has taken the destination over. A note that cannot be written is done without:
    it saves time later, and is no reason to fail now.
    """

    def note() -> None:
        if ours():
            ledger.note(*look())

    async def keep() -> None:
        while True:
            await runtime.sleep(interval)
            with suppress(StagerError):
                await runtime.unseen(note)

    try:
        async with runtime.alongside(keep):
            yield
    except BaseException:
        with runtime.sheltered(FAREWELL_S), suppress(StagerError):
            await runtime.in_thread("writing the manifest", note)
        raise
