"""Calls in threads beside the main work: given as they come up, waited for at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio

from stager.engine import runtime

Submit: TypeAlias = Callable[[str, Callable[[], None]], None]
"""``submit(label, call)``, in the event loop: `call` runs in a thread soon, listed by `runtime.hanging` under `label`."""


@asynccontextmanager
async def beside(width: int) -> AsyncIterator[Submit]:
    """Gives the body a `Submit`; leaves when the body and all calls have ended, at most `width` at once.

    What a call raises ends the body and the calls still waiting, and is raised here, bare; so is what the body raises.
    Cancelled, calls under way are left behind.
    """
    failure: list[Exception] = []
    limiter = anyio.CapacityLimiter(width)

    async def one(label: str, call: Callable[[], None], scope: anyio.CancelScope) -> None:
        try:
            async with limiter:
                await runtime.in_thread(label, call)
        except Exception as exc:  # raised bare below, not as a group
            failure.append(exc)
            scope.cancel()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            def submit(label: str, call: Callable[[], None]) -> None:
                group.start_soon(one, label, call, scope)

            try:
                yield submit
            except Exception as exc:  # raised bare below, not as a group
                failure.append(exc)
                group.cancel_scope.cancel()
    if failure:
        raise failure[0]
