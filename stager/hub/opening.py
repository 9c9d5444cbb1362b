"""From a source and what the user said about connections to a hub."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stager.core.source import Hub as Kind
from stager.core.source import Source
from stager.hub.base import Hub, Snapshot
from stager.net.route import Route
from stager.store.base import Reader, StoredObject
from stager.store.opening import StoreOptions
from stager.store.retry import OnRetry, Retries, RetryingReader


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """How to reach a hub. Times in seconds.

    `source_ips` are bound in turn, one for each connection that carries files. `give_up_after` is how long a request is retried without a
    byte having moved. `on_answer` is called, from any thread, when the hub has answered a request for a list.
    """

    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    source_ips: tuple[str, ...] = ()
    give_up_after: float = 120.0
    on_answer: Callable[[], None] = _nothing

    @classmethod
    def of(cls, options: StoreOptions, on_answer: Callable[[], None] = _nothing) -> HubOptions:
        """What is said about reaching a store holds for a hub too."""
        return cls(
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            source_ips=options.source_ips,
            give_up_after=options.give_up_after,
            on_answer=on_answer,
        )

    def route(self) -> Route:
        """The way to servers. Raises `UsageError` for a source address that is none."""
        return Route(
            connect_timeout=self.connect_timeout, read_timeout=self.read_timeout, source_ips=self.source_ips
        )


def open_hub(
    source: Source,
    options: HubOptions,
    *,
    pause: Callable[[float], None] = time.sleep,
    on_retry: OnRetry | None = None,
) -> Hub:
    """The hub that has `source`, with retry around it. `pause` and `on_retry` as for `stager.store.opening.open_store`.

    Raises `StagerError` for what can be said before the first request: a missing library, a bad endpoint.
    """
    retries = Retries(give_up_after=options.give_up_after, pause=pause, on_retry=on_retry)
    return RetryingHub(adapter(source, options), retries)


def adapter(source: Source, options: HubOptions) -> Hub:
    """The bare hub, which makes one attempt at each call."""
    if source.kind is Kind.DIRECTORY:
        from stager.hub.directory import DirectoryHub

        return DirectoryHub(source.model)
    if source.kind is Kind.HUGGINGFACE:
        from stager.hub.huggingface import HuggingFaceHub

        return HuggingFaceHub(source, options)
    from stager.hub.modelscope import ModelScopeHub

    return ModelScopeHub(source, options)


class RetryingHub:
    """`hub`, each call made again as `retries` says."""

    def __init__(self, hub: Hub, retries: Retries) -> None:
        """`adapter` is the hub below."""
        self.adapter, self._retries = hub, retries

    @property
    def source(self) -> str:
        """As `Hub.source`."""
        return self.adapter.source

    @property
    def credentials(self) -> str:
        """As `Hub.credentials`."""
        return self.adapter.credentials

    def snapshot(self) -> Snapshot:
        """As `Hub.snapshot`."""
        return self._retries.call(f"list of {self.source}", self.adapter.snapshot)

    def reader(self) -> Reader:
        """As `Hub.reader`."""
        reader = self.adapter.reader()

        def look(name: str) -> StoredObject:
            # A read of nothing says of which version it would be.
            return reader.read(name, 0, 0, lambda _: None)

        return RetryingReader(self._retries, reader, look)
