"""Whether what a hub has is a whole model: asked before anything is changed at DEST, by the same judges as a store is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import IntegrityError
from stager.core.events import Note
from stager.core.select import selected
from stager.core.source import Hub as HubKind
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs import remote
from stager.jobs.choosing import BY_GLOBS
from stager.jobs.findings import defects_in
from stager.store.base import StoredObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.core import formats
    from stager.core.model import Defect, FileEntry
    from stager.engine.report import Reporter
    from stager.hub.base import Hub, HubFile, Snapshot
    from stager.jobs.options import PullOptions
    from stager.jobs.remote import Header

_WIDTH = 16  # headers read at once, where -P allows that many connections
_AS_IS = "tell its author, or take another revision; `--allow-incomplete` pulls it as it is"
_SELECTED = "fetch, check and warm take it with the same --include and --exclude"


class Judgement:
    """What proves the wanted files of a snapshot incomplete or corrupt: names, indexes, and the weights' headers.

    `defects` says it in lines, where the user takes the model all the same.
    """

    def __init__(self, options: PullOptions, reporter: Reporter) -> None:
        """Nothing is judged yet."""
        self._options, self._reporter = options, reporter
        self.defects: tuple[str, ...] = ()
        self._noted = False

    async def take(
        self, hub: Hub, snapshot: Snapshot, kept: Sequence[HubFile], left_out: Sequence[tuple[str, str]]
    ) -> None:
        """Judge `kept`, what a pull takes of `snapshot`; `left_out` is the rest and why, as `stager.jobs.choosing.chosen` has both.

        Reads indexes, and of each weight what its header needs. Raises `IntegrityError` for what is proven, unless the user allows that. What is
        missing because --include and --exclude leave it out is remarked on and no more.
        """
        options = self._options
        outside = {path for path, why in left_out if why != BY_GLOBS}
        base = [one for one in snapshot.files if one.entry.path not in outside]
        chosen, listed = _Chosen(hub, base), {one.entry.path for one in snapshot.files}
        mine = {one.entry.path for one in kept}

        def wanted(path: str) -> bool:
            missed = path not in listed and selected(path, options.include, options.exclude)
            return path in mine or missed

        try:
            headers = await self._headers(chosen, mine)
            judge = partial(chosen.defects, headers, wanted)
            label = f"reading indexes of {shown(hub.source)}"
            proven = await runtime.in_thread(label, judge, by_word=self._remote)
            among = await runtime.in_thread(label, partial(chosen.among, mine), by_word=self._remote)
        finally:
            chosen.close()
        if proven and not options.allow_incomplete:
            raise IntegrityError(f"incomplete model at the hub: {defects_in(proven)}", hint=_AS_IS)
        self.defects = tuple(f"{shown(one.path)}: {one.what}" for one in proven)
        if proven and not self._noted:
            message = f"incomplete model at the hub: {defects_in(proven)}: pulled as it is"
            self._reporter.emit(Note("warning", "incomplete", message))
        elif among and not self._noted:
            message = f"what is selected is no whole model: {defects_in(among)}"
            self._reporter.emit(Note("info", "selection", message, _SELECTED))
        self._noted = True

    @property
    def _remote(self) -> bool:
        return self._options.source.kind is not HubKind.DIRECTORY

    async def _headers(self, chosen: _Chosen, mine: set[str]) -> list[Header]:
        """What the headers of the wanted weights say is wrong with them."""
        weights = [one for one in remote.weights(chosen.model) if one[1].path in mine]

        def label(weight: tuple[int, FileEntry]) -> str:
            return f"reading the header of {shown(weight[1].path)}"

        judge, width = partial(remote.header, chosen.read), min(_WIDTH, self._options.lanes)
        return await runtime.in_threads(label, judge, weights, width, by_word=self._remote)


class _Chosen:
    """The files of a snapshot that are judged together, as if they were objects of a store. Indexes are read once."""

    def __init__(self, hub: Hub, files: Sequence[HubFile]) -> None:
        objects = [StoredObject(one.entry.path, one.entry.size, one.version) for one in files]
        self.model = remote.Model(hub.source, hub.source, objects)
        self._ranges = remote.Ranges(hub, objects)
        self._known: dict[tuple[str, int, int], bytes] = {}
        self.read: formats.Read = self._ranges.read
        self.close = self._ranges.close

    def defects(self, headers: Sequence[Header], wanted: remote.Wanted) -> list[Defect]:
        """Those of wanted files that are proven. Blocks."""
        return _proven(remote.completeness(self.model, self._read_once(self.model), headers, wanted))

    def among(self, mine: set[str]) -> list[Defect]:
        """Those that are proven when there is nothing but the files of `mine`, by names and indexes. Blocks."""
        few = [one for one in self.model.objects if one.name in mine]
        if len(few) == len(self.model.objects):
            return []
        model = remote.Model(self.model.location, self.model.root, few)
        return _proven(remote.completeness(model, self._read_once(model)))

    def _read_once(self, model: remote.Model) -> formats.Read:
        places = {one.name: at for at, one in enumerate(self.model.objects)}

        def read(index: int, offset: int, length: int) -> bytes:
            name = model.objects[index].name
            key = name, offset, length
            if key not in self._known:
                self._known[key] = self.read(places[name], offset, length)
            return self._known[key]

        return read


def _proven(found: remote.Completeness) -> list[Defect]:
    return [one for one in found.defects if one.proven]
