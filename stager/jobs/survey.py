"""Looking before reading: which files, whole or not, what of them is resident, what the mounts do, what memory allows.

`Surveyor` is what ``check``, ``warm`` and ``status`` have in common. Its steps may block (a FUSE daemon can hang any of
them), so they run in threads; what they find is put together in a `Survey`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stager.core import formats
from stager.core.budget import Policy, admit
from stager.core.errors import AccessDenied, LocalIOError, NotFound, StagerError, from_oserror
from stager.core.model import (
    Admission,
    Defect,
    Known,
    LocalFile,
    Residency,
    sum_residency,
)
from stager.core.plan import WHOLE, Candidate, Plan, make_plan
from stager.core.select import selected
from stager.core.units import MIB, shown
from stager.engine import runtime
from stager.jobs.recognising import digest_of_names, recognise
from stager.node import canary, filesystems, memory, mounts, pagecache
from stager.node.canary import Keeps
from stager.node.files import Found, etag_of, once, opened, walk
from stager.node.filesystems import Pattern, Traits
from stager.node.touch import STEP

if TYPE_CHECKING:
    from collections.abc import Mapping as MappingType

    from stager.core.marker import ReadyMarker, WarmedFile
    from stager.jobs.options import Selection, WarmOptions
    from stager.node.mounts import Mount

FRESH = "asked for with --fresh"
_LOOKERS = 8  # files looked at in parallel: each is an open and a few small reads
_BASE_FOOTPRINT = 64 * MIB  # the interpreter and its libraries, measured at 35-45 MiB


@dataclass(frozen=True, slots=True)
class MountFacts:
    """One mount that files lie on: its traits, and whether it keeps pages (with the reason when that is unknown)."""

    mount: Mount
    traits: Traits
    keeps: Keeps
    why: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """One file looked at: what of it is resident, what is missing, what is wrong with it.

    `stale` says why its resident pages were dropped; `origin_known` that a marker vouches for them. `problem` is the error
    that kept it from being looked at.
    """

    residency: Residency
    holes: tuple[tuple[int, int], ...]
    defects: tuple[Defect, ...] = ()
    stale: str = ""
    origin_known: bool = True
    problem: StagerError | None = None


@dataclass
class Survey:
    """Everything known before the first byte is read. `files`, `looks` and `load_rank` run in parallel; `weights` are indexes into them.

    `first`: only so many bytes of each file are to be resident; None: all.
    """

    found: Found
    files: list[LocalFile] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    load_rank: list[int] = field(default_factory=list)
    weights: frozenset[int] = frozenset()
    format_names: tuple[str, ...] = ()
    defects: list[Defect] = field(default_factory=list)
    mounts: dict[int, MountFacts] = field(default_factory=dict)
    digest: str = ""
    manifest: bool = False
    admission: Admission | None = None
    plan: Plan | None = None
    first: int | None = None

    @property
    def total(self) -> int:
        """Bytes of all selected files, as far as they are to be resident."""
        return sum(min(file.size, self.first or file.size) for file in self.files)

    @property
    def residency(self) -> Residency:
        """All selected files together, as they were found."""
        return sum_residency([look.residency for look in self.looks])

    def facts(self, file: LocalFile) -> MountFacts:
        """The mount `file` lies on."""
        return self.mounts[file.mount_id]

    def proven(self) -> list[Defect]:
        """Defects that make the model incomplete or corrupt."""
        return [defect for defect in self.defects if defect.proven]

    def replaced(self) -> list[LocalFile]:
        """Files whose resident pages belong to what they replaced."""
        pairs = zip(self.files, self.looks, strict=True)
        return [file for file, look in pairs if look.stale not in ("", FRESH)]

    def dropping(self) -> list[MountFacts]:
        """Mounts on which warming is useless."""
        return [facts for facts in self.mounts.values() if facts.keeps.hopeless]


class Surveyor:
    """Surveys `selection`; `marker` is the last run's, for the identities of the files it warmed.

    `refuse`: raise `IntegrityError` for a manifest that is broken or says `updating`; what only looks need not.
    """

    def __init__(
        self, selection: Selection, marker: ReadyMarker | None = None, *, refuse: bool = True
    ) -> None:
        self._selection = selection
        self._refuse = refuse
        self._warmed: MappingType[str, WarmedFile] = (
            {file.path: file for file in marker.files} if marker else {}
        )

    async def find(self) -> Survey:
        """Walk, select, recognise the format, read manifests. Raises `NotFound` when nothing is selected."""
        where = ", ".join(shown(path) for path in self._selection.paths)
        return await runtime.in_thread(f"listing {where}", self._find)

    def _find(self) -> Survey:
        survey = Survey(walk(self._selection.paths), first=self._selection.first)
        known = recognise(survey.found, self._selection, refuse=self._refuse)
        survey.format_names = tuple(known.names)
        survey.defects = known.defects
        survey.manifest = known.manifest
        wanted = [
            file
            for file in survey.found.files
            if selected(file.entry.path, self._selection.include, self._selection.exclude)
        ]
        survey.files = once(wanted, lambda file: known.rank[id(file)])
        survey.load_rank = [known.rank[id(file)] for file in survey.files]
        survey.weights = frozenset(at for at, file in enumerate(survey.files) if id(file) in known.weights)
        survey.digest = known.digest or digest_of_names(survey.files)
        if not survey.files:
            raise self._nothing(survey)
        return survey

    def _nothing(self, survey: Survey) -> StagerError:
        where = ", ".join(f"`{shown(path)}`" for path in self._selection.paths)
        if survey.found.errors:
            return survey.found.errors[0]
        if survey.found.files:
            return NotFound(f"no file in {where} matches", hint="check --include and --exclude")
        skipped = f" ({len(survey.found.skipped)} names left out)" if survey.found.skipped else ""
        return NotFound(
            f"no files in {where}{skipped}", hint="is the volume mounted, and is this the model's folder?"
        )

    async def ask_mounts(self, survey: Survey, *, smallest_only: int | None = None) -> None:
        """Fill `survey.mounts`: traits of each mount, and the canary where one is needed.

        `smallest_only`: sacrifice no file above this many bytes to the canary (for ``status``, which must not cost a running
        engine its pages); without such a file the answer is unknown.
        """
        table = mounts.read()
        for mount_id in dict.fromkeys(file.mount_id for file in survey.files):
            mount = table.get(mount_id) or mounts.Mount(mount_id, "?", "/", "?", "unknown", "?", "")
            traits = filesystems.traits_of(mount, table)
            keeps, why = Keeps.YES, ""
            if traits.canary:
                bird = _canary_file(survey, mount_id, smallest_only)
                if bird is None:
                    keeps, why = Keeps.UNKNOWN, "no small file to test with"
                else:
                    found = survey.found if smallest_only is None else None
                    ask = partial(_ask, bird.path, mount.fstype, found)
                    keeps, why = await runtime.in_thread(f"testing {shown(bird.path)}", ask)
            survey.mounts[mount_id] = MountFacts(mount, traits, keeps, why)

    async def look(self, survey: Survey, *, fresh: bool = False) -> None:
        """Fill `survey.looks`: open each file once, see what is resident, check its header.

        Pages of files that are no longer what was warmed, with `fresh` those of all files, count as missing already:
        `drop_stale` drops them, once it is certain that the run goes on.
        """
        look = partial(self._look, survey, fresh=fresh)
        survey.looks = await runtime.in_threads(
            lambda index: f"looking at {shown(survey.files[index].path)}",
            look,
            range(len(survey.files)),
            _LOOKERS,
        )
        for one in survey.looks:
            survey.defects += [defect for defect in one.defects if defect not in survey.defects]

    def _look(self, survey: Survey, index: int, *, fresh: bool) -> Look:
        file = survey.files[index]
        facts = survey.facts(file)
        whole = ((0, min(file.size, survey.first or file.size)),) if file.size else ()
        try:
            with opened(file.path) as fd:
                if facts.traits.canary:
                    identity = replace(file.identity, etag=etag_of(fd))
                    file = survey.files[index] = replace(file, identity=identity)
                stale = self._stale(file, facts, fresh=fresh)
                residency, holes = measure(fd, facts, survey.first)
                defects = self._check_header(survey, index, fd)
        except OSError as exc:
            return _problem(file, whole, from_oserror(exc, f"`{shown(file.path)}`"))
        if stale and residency.resident != 0:
            counted = replace(residency, resident=0) if residency.resident else residency
            return Look(counted, whole, defects, stale)
        origin_known = not residency.resident or self._origin_known(survey, file, facts)
        return Look(residency, holes, defects, "", origin_known)

    def _origin_known(self, survey: Survey, file: LocalFile, facts: MountFacts) -> bool:
        """Whether the resident pages are certainly this file's: checked by the filesystem, read just now, or vouched for."""
        then = self._warmed.get(file.path)
        vouched = then is not None and then.vouched
        return facts.traits.revalidates or survey.found.was_cold.get(file.path, False) or vouched

    async def drop_stale(self, survey: Survey) -> None:
        """Drop the pages that `look` counted as missing already. A file that keeps them becomes a problem of its own."""
        stale = [index for index, look in enumerate(survey.looks) if look.stale]
        left = await runtime.in_threads(
            lambda index: f"dropping {shown(survey.files[index].path)}",
            partial(_drop, survey),
            stale,
            _LOOKERS,
        )
        for index, clings in zip(stale, left, strict=True):
            if clings:
                file = survey.files[index]
                survey.looks[index] = _problem(file, ((0, file.size),), _clinging(file))

    def _stale(self, file: LocalFile, facts: MountFacts, *, fresh: bool) -> str:
        """Why the resident pages of `file` are to be dropped; empty when nothing asks for it."""
        then = self._warmed.get(file.path)
        if facts.traits.pattern is Pattern.MEMORY:
            return ""
        now = file.identity
        same = then is None or (then.inode, then.size, then.mtime_ns, then.etag) == (
            now.inode,
            now.size,
            now.mtime_ns,
            now.etag,
        )
        return (FRESH if fresh else "") if same else "replaced since it was warmed"

    def _check_header(self, survey: Survey, index: int, fd: int) -> tuple[Defect, ...]:
        file = survey.files[index]
        if index not in survey.weights:  # engines do not load it: a second copy, or no weight at all
            return ()

        def read(_index: int, offset: int, length: int) -> bytes:
            return _read_only(fd, offset, length)

        return tuple(formats.check_weight(file.entry, index, read))

    def judge(self, survey: Survey, options: WarmOptions, gauge: memory.Gauge) -> None:
        """Fill `survey.admission` and `survey.plan` from what was found and what `gauge` says now."""
        candidates = [
            _candidate(survey, index, anyway=options.anyway, span=options.span)
            for index, look in enumerate(survey.looks)
            if look.problem is None
        ]
        useful = [candidate for candidate in candidates if candidate is not None]
        need = sum(candidate.need for candidate in useful)
        survey.admission = admit(gauge.read(), policy_of(survey, options), need, resident_bytes(survey))
        survey.plan = make_plan(useful, survey.admission.granted, options.order)


def _drop(survey: Survey, index: int) -> bool:
    """Whether wrong pages cling to the file: dropped as far as the kernel lets go, on a mount that would serve what is left."""
    file = survey.files[index]
    facts = survey.facts(file)
    try:
        with opened(file.path) as fd:
            pagecache.evict(fd)
            residency, _ = measure(fd, facts)
    except OSError:
        return False  # reading it will say why
    wrong = survey.looks[index].stale != FRESH and not facts.traits.revalidates
    return wrong and bool(residency.resident)


def measure(
    fd: int, facts: MountFacts, first: int | None = None
) -> tuple[Residency, tuple[tuple[int, int], ...]]:
    """What of the open file `fd`, or of its `first` bytes, is resident and which stretches are not; unknown residency makes all a hole."""
    size = os.fstat(fd).st_size
    size = min(size, first or size)
    whole = ((0, size),) if size else ()
    if facts.traits.pattern is Pattern.MEMORY:
        return Residency(size, size, Known.MEMORY_FS), ()
    if facts.traits.reports_stale and size:
        os.pread(fd, 1, 0)  # an NFS client drops a changed file's pages at its next read, and not before
    probe, why = pagecache.probe(fd, facts.mount.fstype)
    if probe is None:
        return Residency.unknown(size, why), whole
    return pagecache.count_bytes(probe, size), tuple(pagecache.holes(probe, size))


def policy_of(survey: Survey, options: WarmOptions, *, allocated: bool = False) -> Policy:
    """What the budget keeps back: the engine's reserve, stager's own buffers, those of the daemons behind the mounts.

    `allocated`: the buffers exist already and the levels' usage shows them.
    """
    daemons = 0
    for mount_id, facts in survey.mounts.items():
        largest = max((file.size for file in survey.files if file.mount_id == mount_id), default=0)
        daemons += filesystems.daemon_buffers(facts.traits, options.lanes, largest)
    return Policy(
        reserve=options.memory.reserve,
        budget=options.memory.budget,
        footprint=0 if allocated else _BASE_FOOTPRINT + options.lanes * STEP,
        daemon_buffers=0 if allocated else daemons,
        engine_shares_own=options.memory.engine_shares_own,
    )


def resident_bytes(survey: Survey) -> int:
    """Bytes of the model that are certainly in the page cache already."""
    return sum(
        look.residency.resident or 0
        for look in survey.looks
        if look.residency.known in (Known.CACHESTAT, Known.MINCORE)
    )


def _read_only(fd: int, offset: int, length: int) -> bytes:
    """Bytes of `fd` without the readahead behind them, a MiB and more: a file that will be left out stays cold."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return os.pread(fd, length, offset)


def _candidate(survey: Survey, index: int, *, anyway: bool, span: int | None) -> Candidate | None:
    file, look = survey.files[index], survey.looks[index]
    facts = survey.facts(file)
    if facts.keeps.hopeless and not anyway:
        return None
    return Candidate(
        index,
        file.entry.path,
        file.size,
        look.holes,
        survey.load_rank[index],
        weight=formats.is_weight(file.entry.path),
        whole=facts.traits.pattern is Pattern.HANDLE if span is None else span == WHOLE,
        piece=span or None,
    )


def _problem(file: LocalFile, whole: tuple[tuple[int, int], ...], error: StagerError) -> Look:
    kind = "not readable" if isinstance(error, AccessDenied) else "could not be opened"
    return Look(Residency.unknown(file.size, kind), whole, problem=error)


def _clinging(file: LocalFile) -> StagerError:
    return LocalIOError(
        f"`{shown(file.path)}`: pages of the file it replaced stay in the cache",
        hint="a process has them mapped or locked, `stager evict` says which; end it and warm again",
    )


def _canary_file(survey: Survey, mount_id: int, most: int | None) -> LocalFile | None:
    there = [
        f
        for f in survey.found.files
        if f.mount_id == mount_id and f.size and (most is None or f.size <= most)
    ]
    return min(there, key=lambda file: file.size, default=None)


def _ask(path: str, fstype: str, found: Found | None) -> tuple[Keeps, str]:
    """The canary's answer; the state of the bird before is noted in `found` where its pages will be counted later."""
    try:
        if found is not None:
            with opened(path) as fd:
                found.before_reading(path, fd)
        return canary.ask(path, fstype), ""
    except OSError as exc:
        return Keeps.UNKNOWN, os.strerror(exc.errno or 0).lower()
