"""What a benchmark runs on: the files of one mount, how they are made cold, and the proof that they are; or a model in a store."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core.bench.counting import COUNTER, DISKSTATS, CounterFiles
from stager.core.bench.quick import Sample, beyond
from stager.core.bench.reports import BenchStorage
from stager.core.errors import UsageError, from_oserror
from stager.core.location import told
from stager.core.model import Known
from stager.core.select import selected
from stager.core.units import MIB, format_size, shown
from stager.engine import runtime
from stager.jobs import remote
from stager.jobs.bench import pages
from stager.jobs.survey import MountFacts, Surveyor
from stager.node import counters, pagecache
from stager.node.canary import Keeps
from stager.node.counters import Counter
from stager.node.files import opened
from stager.node.filesystems import Pattern

if TYPE_CHECKING:
    from stager.core.location import Location
    from stager.core.model import LocalFile
    from stager.engine.report import Reporter
    from stager.jobs.options import Selection
    from stager.store.opening import StoreOptions

_SECRET = re.compile(r"pass|secret|key|token|cred|sign|^ak|^sk|user", re.IGNORECASE)
_HARMLESS = ("user_id", "group_id", "userquota", "usrquota", "kernel_cache")
_MOST_OPTIONS = 400


def _nothing() -> None:
    """Nobody wants to look."""


@dataclass(frozen=True)
class Ground:
    """The files of one PATH on one mount that runs read: all, or a `part` (bytes) of each.

    `why_not_cold` and `why_not_warm` say why runs of that state would prove nothing; empty where they do. A run calls `at_start` right before it begins, and
    `between` before the second of its two steps; it must not go on when that raises.
    """

    storage: BenchStorage
    selection: Selection
    facts: MountFacts
    files: tuple[LocalFile, ...]
    part: int | None = None
    why_not_cold: str = ""
    why_not_warm: str = ""
    stayed: str = ""
    counter: Counter = field(default_factory=Counter)
    at_start: Callable[[], None] = _nothing
    between: Callable[[], None] = _nothing

    @property
    def total(self) -> int:
        """Bytes that one loader reads."""
        return sum(self.wanted(file) or file.size for file in self.files)

    @property
    def counted(self) -> bool:
        """Whether pages can be counted without changing what is counted."""
        return not self.facts.keeps.hopeless

    @property
    def store(self) -> bool:
        """False: it is a mount."""
        return False

    def wanted(self, file: LocalFile) -> int | None:
        """How many bytes of `file` are read; None for all."""
        return None if self.part is None else min(self.part, file.size)

    def name(self, file: LocalFile) -> str:
        """The name by which `file` was found: behind it may lie a link to one without an ending."""
        return os.path.join(file.root, file.entry.path)

    def words(self) -> list[str]:
        """What ``stager warm`` is to be told to read these files."""
        first = [] if self.part is None else [f"--first={self.part}"]
        if len(self.files) < self.storage.of_files:
            return [*(self.name(file) for file in self.files), *first]
        return [*self.selected_words(), *first]

    def selected_words(self) -> list[str]:
        """What ``stager warm`` is to be told to read all that was asked for, although a run may read less of it."""
        globs = [f"--include={glob}" for glob in self.selection.include]
        return [*self.selection.paths, *globs, *(f"--exclude={glob}" for glob in self.selection.exclude)]

    def only(self, name: str) -> Ground:
        """The same ground with the file `name` (below its PATH) alone."""
        return replace(self, files=tuple(file for file in self.files if file.entry.path == name))

    def sampled(self, found: Sample) -> Ground:
        """The same ground with the files that `found` names, or a part of each."""
        files = tuple(self.files[index] for index in found.chosen)
        read = replace(self, files=files, part=found.part)
        limits = (
            self.storage.limits
            if found.part is None
            else (
                *self.storage.limits,
                beyond(found.part, len(files), sum(one.size >= MIB for one in self.files)),
            )
        )
        storage = replace(self.storage, files=len(files), bytes=read.total, part=found.part, limits=limits)
        return replace(read, storage=storage)

    def resident(self) -> int | None:
        """Bytes in the page cache of what is read; None when they cannot be counted exactly. Raises ``OSError``."""
        return None if self.facts.keeps.hopeless else pages.resident(self.files, self.facts, self.part)

    def chill(self) -> tuple[int | None, str]:
        """Drop every page of the files: the bytes that stay (None: unknown), and why they do. Raises ``OSError``."""
        left, where = pages.drop(self.files, self.facts, self.part)
        if left is None:
            return None, self.why_not_cold or "pages cannot be counted"
        if not left:
            return 0, ""
        why = self.stayed or "mapped, locked or written by somebody"
        return left, f"{format_size(left)} stay in the page cache, {where} first: {why}"


@dataclass(frozen=True)
class StoreGround:
    """A model in a store, or the `names` of it that runs fetch (None: all), and the folder that new folders for it are made in.

    `why_not` says why there can be no run; empty where there can.
    """

    storage: BenchStorage
    location: Location
    options: StoreOptions
    sizes: tuple[tuple[str, int], ...]
    into: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    why_not: str = ""

    @property
    def total(self) -> int:
        """Bytes that one fetch brings."""
        return self.storage.bytes

    @property
    def store(self) -> bool:
        """True."""
        return True

    def sampled(self, found: Sample) -> StoreGround:
        """The same ground with the objects that `found` names; a part of one cannot be fetched."""
        if not found.chosen or found.part is not None:
            return replace(self, why_not="no object is small enough for --quick")
        chosen = [self.sizes[index] for index in found.chosen]
        storage = replace(self.storage, files=len(chosen), bytes=sum(size for _, size in chosen))
        narrowed = replace(self, storage=storage, names=tuple(name for name, _ in chosen))
        return replace(narrowed, storage=replace(storage, words=tuple(narrowed.selected_words())))

    def words(self) -> list[str]:
        """What ``stager fetch`` is to be told beside the path and the folder."""
        patience = (self.options.connect_timeout, self.options.read_timeout)
        return [
            *self.selected_words(),
            f"--connect-timeout={patience[0]:g}s",
            f"--read-timeout={patience[1]:g}s",
        ]

    def selected_words(self) -> list[str]:
        """What it is to be told of the selection and of the way to the store."""
        given = [f"--include={glob}" for glob in self.include]
        if self.names is not None:
            given = [f"--include={_literally(name)}" for name in self.names]
        given += [f"--exclude={glob}" for glob in self.exclude]
        options = self.options
        for name, value in (
            ("endpoint", options.endpoint),
            ("region", options.region),
            ("signature", options.signature),
        ):
            if value:
                given.append(f"--{name}={value}")
        if options.anonymous:
            given.append("--anonymous")
        if options.source_ips:
            given.append(f"--source-ip={','.join(options.source_ips)}")
        return given


def new_folder(where: str | None = None) -> str:
    """A new empty folder in `where` (None: where temporary files go). Raises `StagerError` when there can be none."""
    try:
        return tempfile.mkdtemp(prefix="stager-bench-", dir=where)
    except OSError as exc:
        error = from_oserror(
            exc, f"no folder can be made in `{shown(where)}`" if where else "no temporary folder can be made"
        )
        error.hint = (
            "name another folder with --into" if where else "set TMPDIR to a folder that can be written"
        )
        raise error from exc


def _literally(name: str) -> str:
    """A glob that matches `name`."""
    return re.sub(r"([\[*?])", r"[\1]", name)


async def look_at(path: str, selection: Selection, files: CounterFiles | None = None) -> Ground:
    """The ground of one PATH on a mount. `files` count bytes from below where nothing else does. Raises as `Surveyor.find`, and `StagerError` for a file that cannot be opened."""
    surveyor = Surveyor(selection, refuse=False)
    survey = await surveyor.find()
    await surveyor.ask_mounts(survey)
    facts = survey.facts(max(survey.files, key=lambda file: file.size))
    known, why = await runtime.in_thread(f"looking at {shown(path)}", partial(_known, survey.files, facts))
    counter = _counter(path, facts, files or CounterFiles())
    storage = _storage(path, survey.files, facts, known, counter)
    cold = warm = ""
    if facts.traits.pattern is Pattern.MEMORY:
        cold = f"files on {facts.mount.fstype} are memory: they are never cold"
    elif len({file.mount_id for file in survey.files}) > 1:
        cold = warm = "its files lie on several mounts: name them one by one"
    elif facts.keeps is Keeps.UNKNOWN:
        cold = warm = f"whether this mount keeps pages cannot be known ({facts.why or 'no clear answer'})"
    elif known is Known.UNKNOWN and not facts.keeps.hopeless:
        cold = warm = f"which pages are resident cannot be known here: {why}"
    return Ground(storage, selection, facts, tuple(survey.files), None, cold, warm, counter=counter)


def _counter(path: str, facts: MountFacts, files: CounterFiles) -> Counter:
    if named := files.by_path.get(path):
        return Counter(COUNTER, named)
    found = counters.counter_of(facts.mount)
    return found if found.by or not files.others else Counter(COUNTER, files.others)


def check_counters(files: CounterFiles) -> None:
    """Read each of `files`. Raises `StagerError` for one that is not there or holds no number. Blocks."""
    for name in files.all:
        try:
            counters.number_in(name)
        except OSError as exc:
            error = from_oserror(exc, f"--counter `{shown(name)}`")
            error.hint = "give a FILE that holds a number of bytes, or PATH=FILE with a PATH as it is given"
            raise error from exc
        except ValueError as exc:
            raise UsageError(
                f"--counter `{shown(name)}`: {exc}",
                hint="name a file like /sys/class/net/eth0/statistics/rx_bytes",
            ) from exc


def _known(files: Sequence[LocalFile], facts: MountFacts) -> tuple[Known, str]:
    """How the residency of all `files` is counted, and where it cannot be, why. Raises `StagerError` for one that cannot be opened."""
    if facts.traits.pattern is Pattern.MEMORY:
        return Known.MEMORY_FS, ""
    if facts.keeps.hopeless:
        return Known.UNKNOWN, ""
    found = Known.UNKNOWN
    for file in files:
        try:
            with opened(file.path) as fd:
                probe, why = pagecache.probe(fd, facts.mount.fstype)
        except OSError as exc:
            raise from_oserror(exc, f"`{shown(file.path)}`") from exc
        if probe is None:
            return Known.UNKNOWN, why
        found = probe.known
    return found, ""


def _storage(
    path: str, files: Sequence[LocalFile], facts: MountFacts, known: Known, counter: Counter
) -> BenchStorage:
    mount = facts.mount
    total = sum(file.size for file in files)
    limits = []
    if facts.keeps.hopeless:
        limits.append(
            "pages after a run: this mount drops them at open, so a second load is as cold as the first"
        )
    if not counter.by and facts.traits.pattern is not Pattern.MEMORY:
        limits.append(
            f"bytes from below: {facts.traits.name} has no counter of them here (--counter names one)"
        )
    return BenchStorage(
        path=path,
        kind="mount",
        filesystem=mount.fstype,
        mount_source=told(mount.source),
        mount_options=redacted(mount.options),
        read_ahead_kb=mount.readahead // 1024,
        files=len(files),
        bytes=total,
        of_files=len(files),
        of_bytes=total,
        part=None,
        keeps=facts.keeps.value,
        residency_by="canary" if facts.keeps.hopeless else known.value,
        device=counter.what if counter.by == DISKSTATS else "",
        target="",
        limits=tuple(limits),
        counter=str(counter),
        root=files[0].root,
    )


async def look_at_store(
    location: Location, options: StoreOptions, selection: Selection, into: str, reporter: Reporter
) -> StoreGround:
    """The ground of a model in a store. Raises as `remote.open_model`."""
    where = shown(str(location))
    listing = partial(remote.open_model, location, remote.opener(options, reporter), refuse=False)
    _, model = await runtime.in_thread(f"listing {where}", listing)
    sizes = tuple(
        (one.name, one.size)
        for one in model.objects
        if selected(one.name, selection.include, selection.exclude)
    )
    total = sum(size for _, size in sizes)
    storage = BenchStorage(
        path=str(location),
        kind="store",
        filesystem="oss",
        mount_source="",
        mount_options="",
        read_ahead_kb=None,
        files=len(sizes),
        bytes=total,
        of_files=len(sizes),
        of_bytes=total,
        part=None,
        keeps="",
        residency_by="",
        device="",
        target=into,
        limits=("the network alone: a fetch is the network, the proof and the writing together",),
        counter="`fetched` in the summary of stager fetch",
    )
    ground = StoreGround(storage, location, options, sizes, into, selection.include, selection.exclude)
    return replace(ground, storage=replace(storage, words=tuple(ground.selected_words())))


def redacted(options: str) -> str:
    """Mount options with the values of those that may be secrets left out, and not endless."""
    kept = []
    for option in options.split(","):
        name, equals, _ = option.partition("=")
        hidden = equals and _SECRET.search(name) and name not in _HARMLESS
        kept.append(f"{name}=***" if hidden else option)
    text = ",".join(kept)
    return text if len(text) <= _MOST_OPTIONS else f"{text[:_MOST_OPTIONS]}..."
