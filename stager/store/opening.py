"""From a location and what the user said about it to a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.location import Location, Scheme

if TYPE_CHECKING:
    from stager.store.base import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to reach a store. Times in seconds, the rate in bytes per second for all readers and uploads together.

    `endpoint` and `region` None: from the environment, else found out. `signature` is ``v4`` or ``v1``. `source_ips` are bound in
    turn, one for each connection. `give_up_after` is how long a request is retried without a byte having moved.
    """

    endpoint: str | None = None
    region: str | None = None
    signature: str = "v4"
    anonymous: bool = False
    source_ips: tuple[str, ...] = ()
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    give_up_after: float = 120.0
    max_rate: int | None = None


def open_store(
    location: Location,
    options: StoreOptions,
    *,
    pause: Callable[[float], None] = time.sleep,
    on_retry: Callable[[str, Exception], None] | None = None,
) -> Store:
    """The store at `location`, with retry and the bandwidth limit around it.

    `pause` is how waiting is done, in whatever thread waits: it may raise to end the call. `on_retry` is told, from any thread,
    of each attempt that failed and is made again: what was done, and the error. Raises `StagerError` for what can be said before the
    first request: a bad endpoint, no credentials.
    """
    from stager.store.limit import Limited
    from stager.store.retry import Retrying

    adapter = _adapter(location, options)
    limited = Limited(adapter, options.max_rate, pause) if options.max_rate else adapter
    return Retrying(limited, give_up_after=options.give_up_after, pause=pause, on_retry=on_retry)


def _adapter(location: Location, options: StoreOptions) -> Store:
    if location.scheme is Scheme.FILE:
        from stager.store.directory import DirectoryStore

        return DirectoryStore(location.prefix)
    from stager.store.oss import OssStore

    return OssStore(location, options)


def credentials_of(store: Store) -> str:
    """Where the credentials of a store from `open_store` come from, in words; empty for a store that needs none."""
    adapter = getattr(store, "adapter", store)
    source = getattr(adapter, "credentials", None)
    return source.describe() if source is not None else ""
