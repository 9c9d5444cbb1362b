"""When credentials are fetched, by whom, and what happens when that fails: the same for every provider."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable

from stager.core.errors import RemoteError
from stager.store.credentials.base import Credentials, Provider

MARGIN = 300.0
"""Seconds before the end at which fresh credentials are fetched: enough for any request to be sent and for a short outage. A fifth of
the lifetime where that is less."""

ATTEMPTS = 3  # at one fetch; who needs more waits and asks again
_PATIENCE = 10.0  # seconds after which no further attempt begins
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 60.0  # seconds


class _Flight:
    """One fetch under way, and in the end what came of it."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.credentials: Credentials | None = None
        self.failure: Exception | None = None


class Refreshed:
    """A source that fetches from `provider` when first asked, and again before what it has runs out.

    One thread fetches. Meanwhile the others get the old credentials while they are valid, and wait where they are not; they share what
    comes of it, an error too. A refresh that fails while the old ones are valid is not told, and tried again later and later.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`clock` gives seconds since 1970, `pause` waits that many seconds."""
        self._provider = provider
        self._clock = clock
        self._pause = pause
        self._lock = threading.Lock()
        self._flight: _Flight | None = None
        self._current: Credentials | None = None
        self._due = 0.0  # when fresh ones are to be fetched
        self._failures = 0  # refreshes in a row

    def describe(self) -> str:
        """What the provider says."""
        return self._provider.describe()

    def invalidate(self, used: Credentials) -> bool:
        """Forgets `used`, if they are what is given out now. Always true."""
        with self._lock:
            if self._current == used:
                self._current = None
        return True

    def get(self) -> Credentials:
        """Valid credentials; takes as long as a fetch where one is due."""
        with self._lock:
            kept, flight = self._kept(), self._flight
            if kept is not None and (flight is not None or self._clock() < self._due):
                return kept
            mine = flight is None
            if flight is None:
                flight = self._flight = _Flight()
        if mine:
            self._fly(flight)
        else:
            flight.landed.wait()
        if flight.failure is not None:
            # Each thread raises one of its own: an exception carries the traceback of whoever raised it.
            raise flight.failure if mine else copy.copy(flight.failure)
        assert flight.credentials is not None
        return flight.credentials

    def _kept(self) -> Credentials | None:
        """What is there and has not run out. Called with the lock held."""
        found = self._current
        if found is None or (found.expires is not None and found.expires <= self._clock()):
            return None
        return found

    def _fly(self, flight: _Flight) -> None:
        """Fetches; whatever happens, the flight lands and the threads that wait for it go on."""
        fetched: Credentials | None = None
        failure: Exception = RemoteError(f"{self.describe()}: fetching credentials was broken off")
        try:
            fetched = self._fetched()
        except Exception as exc:
            failure = exc
        finally:
            with self._lock:
                if fetched is not None:
                    flight.credentials = self._current = fetched
                    self._failures = 0
                    self._due = _due(fetched, self._clock())
                else:
                    flight.credentials = self._kept()
                    self._failures += 1
                    wait = min(_LONGEST_WAIT, 2.0 ** min(self._failures, 6))
                    self._due = self._clock() + wait * random.uniform(0.5, 1)  # noqa: S311
                if flight.credentials is None:
                    flight.failure = failure
                self._flight = None
            flight.landed.set()

    def _fetched(self) -> Credentials:
        """Fresh credentials, after a few attempts at what may pass."""
        begun = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                return self._checked(self._provider.fetch())
            except RemoteError as exc:
                wait = max(_FIRST_WAIT * 2**attempt * random.uniform(0.5, 1), exc.retry_after or 0.0)  # noqa: S311
                if attempt == ATTEMPTS - 1 or time.monotonic() - begun + wait > _PATIENCE:
                    raise
            self._pause(wait)
        raise AssertionError("unreachable")

    def _checked(self, found: Credentials) -> Credentials:
        late = self._clock() - found.expires if found.expires is not None else -1.0
        if late >= 0:
            raise RemoteError(
                f"{self.describe()}: fresh credentials ran out {late:.0f}s ago",
                hint="is this machine's clock right?",
            )
        return found


def _due(found: Credentials, now: float) -> float:
    """When to replace credentials that were fetched at `now`."""
    if found.expires is None:
        return float("inf")
    return found.expires - min(MARGIN, (found.expires - now) / 5)
