"""``stager check oss://...``: can this store be used, what may be done there, and is the model in it whole?"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from stager.core import formats
from stager.core.errors import (
    AccessDenied,
    DeadlineExceeded,
    MustRestore,
    NotFound,
    ObjectChanged,
    StagerError,
    UsageError,
)
from stager.core.events import Note
from stager.core.location import Scheme
from stager.core.manifest import COMPLETE, PATH
from stager.core.placement import place
from stager.core.select import selected
from stager.core.store_reports import Permission
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs import findings as found
from stager.jobs import remote
from stager.jobs.findings import Findings
from stager.jobs.ls import facts
from stager.jobs.stall import watched
from stager.node import cloud

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stager.core.location import Location
    from stager.core.model import FileEntry
    from stager.engine.report import Reporter
    from stager.jobs.options import WarmOptions
    from stager.jobs.remote import Header
    from stager.store.base import Store, StoredObject
    from stager.store.opening import StoreOptions

_LOOKERS = 8
_NOTE = b"written by `stager check --put`, may be removed\n"


async def reach(
    location: Location, warm: WarmOptions, options: StoreOptions, reporter: Reporter, *, put: bool
) -> int:
    """Try what a fetch needs, with `put` also what a push needs, and say how either would begin; its exit code.

    Reads the listing, the manifest, indexes, and the weights' headers; of `warm`, only the selection, the timeouts and `allow_incomplete` count. With
    `put` an object ``.stager/check-...`` is written and removed; nothing else is changed.
    """
    with runtime.deadline(warm.timeout):
        async with watched(warm.stall_timeout, reporter):
            check = _Check(location, warm, remote.opener(options, reporter), reporter)
            findings = await check.run(options, put=put)
            reporter.emit(findings.forecast())
            return findings.first.exit_code if findings.first else 0
    raise DeadlineExceeded("--timeout ran out", hint="give it longer; `--stall-timeout` names what hangs")


class _Check:
    """One check, part by part. What fails in one does not keep the next from being tried, once the store has answered."""

    _store: Store

    def __init__(
        self, location: Location, warm: WarmOptions, open_at: Callable[[Location], Store], reporter: Reporter
    ) -> None:
        self._location = location
        self._warm = warm
        self._open_at = open_at
        self._reporter = reporter
        self._where = shown(str(location))
        self._findings = Findings(str(location), time.time())
        self._sent = ""  # the object of `--put`, for as long as it may be there

    async def run(self, options: StoreOptions, *, put: bool) -> Findings:
        """Everything that could be found out. Raises `UsageError`; other errors are in the findings."""
        findings = self._findings
        await self._part(self._reached(options))
        if findings.problems and not findings.permissions:
            return findings
        await self._part(self._content())
        if put:
            await self._part(self._push())
        else:
            why = "--put writes and removes a small object"
            findings.permissions.append(Permission("put", allowed=None, needed=False, why=why))
        await self._part(
            runtime.in_thread(f"listing uploads in {self._where}", partial(self._uploads, self._store))
        )
        return findings

    async def _part(self, part: Awaitable[None]) -> None:
        try:
            await part
        except UsageError:
            raise
        except StagerError as error:
            self._findings.problems.append(error)

    async def _reached(self, options: StoreOptions) -> None:
        self._store = await runtime.in_thread(
            f"opening {self._where}", partial(self._open_at, self._location)
        )
        await runtime.in_thread(
            f"asking for credentials for {self._where}", partial(self._who, self._store, options)
        )
        await runtime.in_thread(f"asking {self._where}", partial(self._answer, self._store))

    async def _content(self) -> None:
        if not self._findings.may("list"):
            await runtime.in_thread(f"reading from {self._where}", self._unlisted)
            return
        store = await runtime.in_thread(f"listing {self._where}", self._survey)
        if store is not None:
            self._store = store
            await self._look(store)

    async def _push(self) -> None:
        try:
            await runtime.in_thread(f"writing to {self._where}", partial(self._write, self._store))
        except BaseException:
            if self._sent:  # a signal, a deadline: the thread that would remove it is left behind
                message = f"`{shown(self._sent)}` in `{shown(self._store.root)}` may be left behind"
                self._reporter.emit(Note("warning", "left_behind", message, "remove it"))
            raise

    # Where and who

    def _who(self, store: Store, options: StoreOptions) -> None:
        from stager.store.oss import OssStore

        adapter = getattr(store, "adapter", store)
        if not isinstance(adapter, OssStore):
            return
        findings = self._findings
        findings.credentials = adapter.credentials.describe()  # should there be none to get
        findings.expires = adapter.credentials.get().expires
        findings.credentials = adapter.credentials.describe()  # with the role's name, which is asked for
        findings.signature = options.signature
        findings.endpoint = adapter.endpoint
        findings.inside = cloud.is_alibaba()

    def _answer(self, store: Store) -> None:
        """The first page of the listing, twice: the second time on a connection that is there, and that is timed."""
        try:
            next(store.list(), None)
        except AccessDenied as error:
            self._findings.forbid("list", error)
            return
        self._findings.allow("list")
        started = time.monotonic()
        next(store.list(), None)
        self._findings.answered_in = time.monotonic() - started

    # The model

    def _survey(self) -> Store | None:
        """The store of the model, None where there is no model."""
        findings = self._findings
        try:
            store, model = remote.open_model(self._location, self._open_at, refuse=False)
        except NotFound as error:
            findings.problems.append(error)
            return None
        findings.model = model
        findings.manifest = facts(model.manifest)
        findings.objects = [one for one in model.objects if self._wanted(one.name)]
        if not findings.objects:
            findings.problems.append(found.nothing_selected(str(self._location)))
        return store

    def _unlisted(self) -> None:
        """Tries `get` where no listing may tell names: on the manifest, and on the location as an object."""
        known, parent = [(self._store, PATH)], self._location.parent
        if parent is not None:
            known.append((self._open_at(parent), self._location.name))
        for store, name in known:
            try:
                one = store.head(name)
            except NotFound:
                continue
            except AccessDenied as error:
                self._findings.forbid("get", error)
                return
            self._store = store
            self._get(store, one)
            return
        why = "no name is known without a listing"
        self._findings.permissions.append(Permission("get", allowed=None, needed=True, why=why))

    def _wanted(self, path: str) -> bool:
        selection = self._warm.selection
        return selected(path, selection.include, selection.exclude)

    async def _look(self, store: Store) -> None:
        findings, model = self._findings, self._findings.model
        assert model is not None
        await runtime.in_thread(f"reading from {self._where}", partial(self._read, store))
        suspects = [one for one in findings.objects if one.readable is not True]
        answers = await runtime.in_threads(
            lambda one: f"asking for {shown(one.name)}", partial(_is_archived, store), suspects, _LOOKERS
        )
        findings.archived = [one for one, archived in zip(suspects, answers, strict=True) if archived]
        if findings.archived:
            findings.problems.append(found.must_restore(model, findings.archived))
        if findings.may("get"):
            await self._judge(store)
        try:
            names = [model.target(one.name) for one in findings.objects]
            place([(name, one.size) for name, one in zip(names, findings.objects, strict=True)])
        except StagerError as error:
            findings.problems.append(error)

    def _read(self, store: Store) -> None:
        """One byte of the smallest object that has one; asking for the head of one needs the same permission."""
        findings = self._findings
        readable = [one for one in findings.objects if one.readable is True] or findings.objects
        one = min(readable, key=lambda one: (not one.size, one.size), default=None)
        if one is not None:
            self._get(store, one)

    def _get(self, store: Store, one: StoredObject) -> None:
        findings = self._findings
        what = f"one byte of {shown(one.name)}" if one.size else f"the head of {shown(one.name)}"
        try:
            _first_byte(store, one) if one.size else store.head(one.name)
        except MustRestore:
            findings.permissions.append(Permission("get", allowed=None, needed=True, why="all archived"))
        except AccessDenied as error:
            findings.forbid("get", error)
        else:
            findings.allow("get", what)

    async def _judge(self, store: Store) -> None:
        findings, model = self._findings, self._findings.model
        assert model is not None
        weights = [(at, entry) for at, entry in remote.weights(model) if self._wanted(entry.path)]
        archived = {one.name for one in findings.archived}
        with remote.ranges(store, model) as read:

            def header(weight: tuple[int, FileEntry]) -> Header:
                return _header(weight, read, archived)

            headers = await runtime.in_threads(
                lambda weight: f"reading the header of {shown(weight[1].path)}", header, weights, _LOOKERS
            )
            findings.complete = await runtime.in_thread(
                f"reading indexes in {self._where}",
                partial(remote.completeness, model, read, headers, self._wanted),
            )
        updating = model.manifest is not None and model.manifest.state != COMPLETE
        if model.manifest_problem is not None:
            findings.problems.append(model.manifest_problem)
        elif findings.complete.answer == "no" and (updating or not self._warm.allow_incomplete):
            findings.problems.append(found.incomplete(findings.complete))

    # What a push needs

    def _write(self, store: Store) -> None:
        """Writes a small object of stager's own and removes it, also when it cannot be said whether it arrived."""
        findings = self._findings
        if self._location.scheme is Scheme.FILE and not os.path.isdir(store.root):
            why = "there is no such folder, and a check makes none"
            findings.permissions.append(Permission("put", allowed=None, needed=False, why=why))
            return
        name = self._sent = f".stager/check-{secrets.token_hex(8)}"
        failed: StagerError | None = None
        try:
            _put(store, name)
        except AccessDenied as error:
            self._sent = ""
            findings.forbid("put", error)
            return
        except StagerError as error:
            failed = error
        else:
            findings.allow("put", f"{len(_NOTE)} bytes")
        self._remove(store, name)
        if failed is not None:
            raise failed

    def _remove(self, store: Store, name: str) -> None:
        findings = self._findings
        try:
            store.delete([name])
        except AccessDenied as error:
            findings.forbid("delete", error, remark=f"`{name}` is left behind; ")
        except StagerError as error:
            why = f"`{name}` may be left behind; {error.message}"
            findings.permissions.append(Permission("delete", allowed=None, needed=False, why=why))
            findings.problems.append(error)
        else:
            findings.allow("delete")
        self._sent = ""

    def _uploads(self, store: Store) -> None:
        from stager.store.oss import OssStore

        findings = self._findings
        adapter = getattr(store, "adapter", store)
        if not isinstance(adapter, OssStore):
            return
        try:
            own = self._location.name if findings.single else None
            findings.unfinished = [one for one in adapter.unfinished() if own in (None, one.name)]
        except AccessDenied as error:
            findings.forbid("list uploads", error)
        else:
            findings.allow("list uploads")


def _first_byte(store: Store, one: StoredObject) -> None:
    reader = store.reader()
    try:
        reader.read(one.name, 0, 1, lambda _view: None, etag=one.etag)
    finally:
        reader.close()


def _is_archived(store: Store, one: StoredObject) -> bool:
    """Whether `one` must be restored first. Only reading tells: some buckets let archived objects be read directly."""
    try:
        _first_byte(store, one)
    except MustRestore:
        return True
    except (AccessDenied, NotFound, ObjectChanged):
        return False
    return False


def _put(store: Store, name: str) -> None:
    upload = store.upload(name, len(_NOTE))
    try:
        upload.part(1, memoryview(_NOTE))
        upload.complete()
    except BaseException:
        with suppress(StagerError):
            upload.abort()
        raise


def _header(weight: tuple[int, FileEntry], read: formats.Read, archived: set[str]) -> Header:
    entry = weight[1]
    if entry.path in archived:
        return MustRestore(f"{shown(entry.path)}: must be restored before it can be read")
    return remote.header(read, weight)
