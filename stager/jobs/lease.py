"""Who pulls into a destination: the lease beside the model, taken, kept alive, and given back.

An object store has no locks. The lease is an object that is only written where none is, and written again every ten seconds: who finds one
that is old, or whose process is gone, takes it over. Nobody is kept from writing by it; a holder that finds another's lease in its place ends.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stager import __version__
from stager.core.errors import (
    AccessDenied,
    Busy,
    NotFound,
    ObjectChanged,
    ObjectExists,
    RemoteError,
    StagerError,
)
from stager.core.events import Note
from stager.core.lease import EXPIRY_S, HEARTBEAT_S, PATH, Here, Lease, Verdict, judge
from stager.core.units import format_duration, shown
from stager.engine import runtime
from stager.node import processes

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.store.base import Store

_LARGEST = 64 << 10  # bytes; a lease has some hundred
_ATTEMPTS = 20  # at a lease that comes and goes while others try for it too
_VERSIONS = 5  # read in a row, each replaced while it was read: a heartbeat comes every ten seconds


@dataclass(frozen=True, slots=True)
class Intervals:
    """The times of a lease, in seconds.

    `heartbeat` lies between two of ours, and after `expiry` without any we end; `look` lies between two looks at somebody else's lease, and
    `settle` before the one that says whether a lease that was taken over is ours. Giving ours back may take `farewell`: whoever sent a signal
    does not wait for long.
    """

    heartbeat: float = HEARTBEAT_S
    expiry: float = EXPIRY_S
    look: float = 2.0
    settle: float = 1.0
    farewell: float = 2.0


INTERVALS = Intervals()


async def acquire(
    store: Store, *, wait: bool, reporter: Reporter, intervals: Intervals = INTERVALS
) -> Tenure:
    """The lease of the destination `store`, ours from now on.

    While somebody else who is alive has it: raises `Busy`, or with `wait` says so once and waits. The lease of a dead holder is taken over.
    Cancelled, nothing of ours stays behind. Raises `StagerError` where the lease can be neither read nor written.
    """
    tenure = Tenure(store, intervals, reporter)
    told = False
    try:
        while (holder := await tenure.claim()) is not None:
            if not wait:
                raise holder.refusal(store.root)
            if not told:
                message = f"waiting for another pull into `{shown(store.root)}`: {holder.name}"
                reporter.emit(Note("info", "waiting", message))
                told = True
            await runtime.sleep(intervals.look, f"waiting for {holder.name}")
    except BaseException:
        await tenure.release()
        raise
    return tenure


@dataclass(frozen=True, slots=True)
class _Holder:
    """A lease as it was found. `lease` is None for one that cannot be read; `age` as `StoredObject.age`."""

    lease: Lease | None
    age: float | None
    live: bool

    @property
    def token(self) -> str:
        return self.lease.token if self.lease is not None else ""

    @property
    def name(self) -> str:
        return self.lease.holder if self.lease is not None else "somebody whose lease cannot be read"

    def refusal(self, root: str) -> Busy:
        seen, left = "", "it ends by itself once its holder is dead"
        if self.age is not None:
            seen = f", last seen alive {format_duration(self.age)} ago"
            left = f"if that is dead, its claim ends by itself in {format_duration(max(0.0, EXPIRY_S - self.age))}"
        return Busy(
            f"another pull into `{shown(root)}` is under way: {self.name}{seen}",
            hint=f"`--wait` waits for it to end; {left}",
        )


class Tenure:
    """Our claim on a destination, from `acquire`: keep it with `kept`, and `release` it whatever happens."""

    def __init__(self, store: Store, intervals: Intervals, reporter: Reporter) -> None:
        """Nothing is asked yet."""
        self._store, self._intervals, self._reporter = store, intervals, reporter
        # One attempt each, unlimited: a heartbeat that is late is made up for by the next, and must not queue behind the model's bytes.
        self._bare: Store = getattr(store, "adapter", store)
        self._here = Here(os.uname().nodename, processes.boot_id(), processes.pid_namespace())
        pid = os.getpid()
        self._lease = Lease(
            token=secrets.token_hex(16),
            host=self._here.host,
            boot_id=self._here.boot_id,
            pid=pid,
            pid_start=processes.start_of(pid),
            pid_namespace=self._here.pid_namespace,
            started=time.time(),
            version=__version__,
        )
        self._lock = threading.Lock()  # held while ours is written: nothing may come after it was given back
        self._written = False
        self._over = False
        self._unsure = False  # the last write of ours failed: a mount may have left half of it, or nothing
        self._renewed = 0.0  # monotonic time, from before it was written
        self.held = True
        """False once it is another's, as far as is known, or may be."""

    # Taking it

    async def claim(self) -> _Holder | None:
        """Whose it is, while somebody else is alive who has it; None once it is ours."""
        label = f"asking for the lease of {shown(self._store.root)}"
        for _ in range(_ATTEMPTS):
            found = await runtime.in_thread(label, partial(self._look, self._store))
            if found is not None and found.live:
                return found
            if not await runtime.in_thread(label, partial(self._take, found)):
                continue
            if found is None:
                return None
            # Two may have found the same dead lease, and the slower one deleted the faster one's.
            await runtime.sleep(self._intervals.settle, label)
            if self._is_ours(await runtime.in_thread(label, partial(self._look, self._store))):
                return None
        raise RemoteError(f"`{PATH}` in `{shown(self._store.root)}` comes and goes: nobody can hold it")

    def _is_ours(self, found: _Holder | None) -> bool:
        return found is not None and found.token == self._lease.token

    def _look(self, store: Store) -> _Holder | None:
        """The lease that is there. Blocks. Raises as the store does."""
        for _ in range(_VERSIONS):
            try:
                one = store.head(PATH)
                lease = Lease.parse(_content(store, one.size, one.etag))
            except NotFound:
                return None
            except ObjectChanged:
                continue  # a heartbeat
            if lease is not None:
                live = judge(lease, one.age, self._here, processes.is_alive) is Verdict.LIVE
            else:  # half written, or another version's: its holder is alive as long as it is fresh
                live = one.age is None or one.age < EXPIRY_S
            return _Holder(lease, one.age, live)
        raise RemoteError(f"`{PATH}` in `{shown(store.root)}` is another whenever it is read")

    def _take(self, dead: _Holder | None) -> bool:
        """Puts ours where nothing is, or in the place of `dead`; False when somebody else was faster. Blocks."""
        with self._lock:
            if self._over:
                return False
            if dead is not None:
                now = self._look(self._store)
                if now is not None and (now.live or now.token != dead.token):
                    return False
                self._store.delete([PATH])
            try:
                self._write(self._store, replace=False)
            except ObjectExists:
                return False
            return True

    def _write(self, store: Store, *, replace: bool) -> None:
        began, raw = time.monotonic(), self._lease.dump()
        self._written = True  # an answer that is lost may have been a yes
        upload = store.upload(PATH, len(raw), replace=replace)
        try:
            upload.part(1, memoryview(raw))
            upload.complete()
        except BaseException:
            self._unsure |= replace
            with suppress(StagerError):
                upload.abort()
            raise
        self._renewed, self._unsure = began, False

    # Keeping it

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Sends heartbeats while the body runs.

        Ends the body with `RemoteError` when another pull took the lease over, or when no heartbeat has got through for as long as others
        wait for one.
        """
        async with runtime.alongside(self._beat):
            yield

    async def _beat(self) -> None:
        trouble, loss = "no answer", None
        while (left := self._renewed + self._intervals.expiry - time.monotonic()) > 0:
            await runtime.sleep(min(self._intervals.heartbeat, left))
            with runtime.deadline(max(0.0, self._renewed + self._intervals.expiry - time.monotonic())):
                try:
                    loss = await runtime.unseen(self._renew)
                except StagerError as error:
                    trouble = error.message
            if loss is not None:
                self.held = False
                raise loss
        self.held = False
        raise RemoteError(
            f"the lease of `{shown(self._store.root)}` could not be renewed for {format_duration(self._intervals.expiry)}: {trouble}",
            hint="run it again: it goes on where it was",
        )

    def _renew(self) -> RemoteError | None:
        """Writes it again; or what to say when it is no longer ours. Blocks. Raises what another attempt may cure."""
        with self._lock:
            if self._over:
                return None
            found = self._look(self._bare)
            lost = found is None and not self._unsure
            if lost or (found is not None and found.lease is not None and found.token != self._lease.token):
                root = shown(self._store.root)
                who = found.name if found is not None else "it has removed our lease"
                return RemoteError(
                    f"another pull took over `{root}`: {who}", hint="run it again once that has ended"
                )
            if found is not None and found.lease is None and not self._unsure:
                raise RemoteError(f"`{PATH}` cannot be read")
            self._write(self._bare, replace=found is not None)
            return None

    # Giving it back

    async def release(self) -> None:
        """Removes the lease if it is ours, or says that it stays. Never raises, takes no longer than `Intervals.farewell`, and goes on when cancelled.

        May be called twice.
        """
        if not self._written or self._over:
            return
        trouble, hint = "no answer in time", ""
        with runtime.sheltered(self._intervals.farewell):
            try:
                await runtime.in_thread("giving the lease back", self._give_back)
                trouble = ""
            except AccessDenied as error:
                trouble, hint = error.message, "; only a pull that may delete objects can take it over then"
            except Exception as error:  # whatever it is, what the run has come to is more important
                trouble = str(error) or type(error).__name__
        if not trouble:
            return
        left = max(0.0, self._renewed + EXPIRY_S - time.monotonic())
        message = (
            f"the claim of this pull on `{shown(self._store.root)}` may be left there, in `{PATH}`: {trouble}"
        )
        ends = f"it ends by itself in {format_duration(left)}{hint}"
        self._reporter.emit(Note("warning", "lease_left", message, ends))

    def _give_back(self) -> None:
        with self._lock:
            self._over = True
            found = self._look(self._store)
            if self._is_ours(found):
                self._store.delete([PATH])


def _content(store: Store, size: int, etag: str) -> bytes:
    """The bytes of the lease, of this version; of one that is too long to be any, none."""
    if size > _LARGEST:
        return b""
    content = bytearray()
    reader = store.reader()
    try:
        reader.read(PATH, 0, size, content.extend, etag=etag)
    finally:
        reader.close()
    return bytes(content)
