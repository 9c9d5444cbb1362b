"""One folder of weights: which files load together, which are copies that engines skip, and what is missing."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from stager.core.formats import index as index_files
from stager.core.formats import names
from stager.core.formats.names import Family
from stager.core.formats.source import Read
from stager.core.model import Defect, FileEntry
from stager.core.units import shown


@dataclass
class Folder:
    """What was found in one folder: `loaded` in load order, `skipped` copies, defects, families that are loaded."""

    loaded: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)


def examine(
    entries: Sequence[FileEntry],
    here: Sequence[int],
    by_path: Mapping[str, int],
    read: Read,
    *,
    weights_below: bool,
) -> Folder:
    """The weights among the files `here`, which are all files of one folder.

    `by_path` finds files by relative path (an index may name files in folders below). `weights_below` says that
    folders below hold weights: an index without any of its shards is then no proof that something is missing.
    """
    scene = _Scene(entries, here, by_path, read, weights_below=weights_below)
    out = Folder()
    tensors = scene.checkpoints(Family.SAFETENSORS)
    _place_safetensors(out, scene, tensors)
    for checkpoint in scene.ggufs():
        out.loaded += checkpoint.members
        out.defects += checkpoint.defects
    _place_pickles(out, scene, preferred=any(c.canonical and c.members for c in tensors))
    _remark_formats(out, scene)
    return out


@dataclass
class _Checkpoint:
    """Weights of one family that load together; `members` are indexes in load order."""

    family: Family
    members: list[int] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    canonical: bool = True
    indexed: bool = False

    @property
    def whole(self) -> bool:
        """True when it can stand in for another checkpoint of the same model."""
        return self.canonical and bool(self.members) and not self.defects


class _Scene:
    """The files of one folder, by family and in natural order of their names."""

    def __init__(
        self,
        entries: Sequence[FileEntry],
        here: Sequence[int],
        by_path: Mapping[str, int],
        read: Read,
        *,
        weights_below: bool,
    ) -> None:
        self._entries, self._by_path, self._read = entries, by_path, read
        self._here = sorted(here, key=lambda at: (names.natural(entries[at].path), entries[at].path))
        self.files: dict[Family, list[int]] = {kind: [] for kind in Family}
        for at in self._here:
            kind = names.family(entries[at].path)
            if kind is not None:
                self.files[kind].append(at)
        self._any_weights = weights_below or any(self.files.values())

    def path(self, at: int) -> str:
        return self._entries[at].path

    def name(self, at: int) -> str:
        return posixpath.basename(self._entries[at].path)

    def model(self, at: int) -> tuple[str, str]:
        """Which model and which variant of it the name says."""
        return names.stem(self.name(at)), names.variant(self.name(at))

    def checkpoints(self, kind: Family) -> list[_Checkpoint]:
        """First those that an index describes, then numbered sets and single files."""
        found: list[_Checkpoint] = []
        for at in self._here:
            if names.index_family(self.name(at)) is kind:
                found += self._indexed(at, kind)
        taken = {member for checkpoint in found for member in checkpoint.members}
        rest = [at for at in self.files[kind] if at not in taken]
        return found + [self._unindexed(group, kind) for group in self._sets(rest)]

    def ggufs(self) -> list[_Checkpoint]:
        """Every set is a model of its own; the vision projector is loaded after the model."""
        groups = self._sets(self.files[Family.GGUF])
        groups.sort(key=lambda group: self.name(group[0]).lower().startswith("mmproj"))
        return [self._unindexed(group, Family.GGUF) for group in groups]

    def _indexed(self, at: int, kind: Family) -> list[_Checkpoint]:
        wanted, problem = index_files.shards(self._entries[at], at, self._read)
        if problem is not None:
            proven = bool(self.files[kind]) or not self._any_weights
            return [_Checkpoint(kind, defects=[Defect(self.path(at), f"unusable index: {problem}", proven)])]
        if not wanted:
            return []
        wanted.sort(key=lambda path: (names.natural(path), path))
        members = [self._by_path[path] for path in wanted if path in self._by_path]
        missing = [path for path in wanted if path not in self._by_path]
        defects = []
        if missing:
            # An index alone may be left of a model that was fetched in another format on purpose.
            proven = bool(members) or not self._any_weights
            count = f"{len(missing)} of {len(wanted)} shards are missing"
            defects.append(
                Defect(missing[0], f"missing: `{shown(self.name(at))}` names it ({count})", proven)
            )
        return [_Checkpoint(kind, members, defects, names.is_canonical(self.name(at)), indexed=bool(members))]

    def _sets(self, files: list[int]) -> list[list[int]]:
        """`files` grouped into numbered sets and single files, in the order of their first members."""
        groups: dict[object, list[int]] = {}
        for at in files:
            part = names.part(self.name(at))
            groups.setdefault(part.group if part else at, []).append(at)
        return list(groups.values())

    def _unindexed(self, group: list[int], kind: Family) -> _Checkpoint:
        name = self.name(group[0])
        defects = []
        part = names.part(name)
        numbers = {piece.number for at in group if (piece := names.part(self.name(at)))}
        missing = part.total - len(numbers) if part else 0
        if part and missing > 0:
            # A set that counts from zero has as many parts, so the first hole is found from 1 on as well.
            hole = next(n for n in range(1, part.total + 1) if n not in numbers)
            text = f"missing: part of a numbered set ({missing} of {part.total} parts are missing)"
            path = posixpath.join(posixpath.dirname(self.path(group[0])), part.sibling(hole))
            defects.append(Defect(path, text, proven=kind is not Family.PYTORCH))
        return _Checkpoint(kind, group, defects, names.is_canonical(name))


def _place_safetensors(out: Folder, scene: _Scene, found: list[_Checkpoint]) -> None:
    """What an index names loads, and what it leaves out does not; a consolidated copy is skipped.

    A folder may hold one model twice (a variant, a consolidated copy, an older sharding): one that is whole
    suffices, and what the others lack is a remark.
    """
    covered = {scene.model(at) for c in found if c.indexed for at in c.members}
    loading = [c for c in found if c.members and (c.indexed or _uncovered(scene, c, covered))]
    loading.sort(key=lambda c: (not c.canonical, _later(scene, c.members[0])))
    has_model = any(c.canonical and not names.is_consolidated(scene.name(c.members[0])) for c in loading)
    for checkpoint in loading:
        copy = has_model and names.is_consolidated(scene.name(checkpoint.members[0]))
        (out.skipped if copy else out.loaded).extend(checkpoint.members)
    placed = {*out.loaded, *out.skipped}
    unnamed = [at for at in scene.files[Family.SAFETENSORS] if at not in placed]
    out.skipped += unnamed
    strays = [at for at in unnamed if not names.is_consolidated(scene.name(at))]
    if strays:
        more = f" (and {len(strays) - 1} more)" if len(strays) > 1 else ""
        text = f"the index does not name it, so engines skip it{more}"
        out.defects.append(Defect(scene.path(strays[0]), text, proven=False))
    spare = any(c.whole for c in loading)
    out.defects += [replace(d, proven=d.proven and not spare) for c in loading for d in c.defects]
    # Engines parse the index whenever safetensors are there, so an unreadable one is spared by another index only.
    spare = any(c.whole and c.indexed for c in loading)
    out.defects += [
        replace(d, proven=d.proven and not spare) for c in found if not c.members for d in c.defects
    ]


def _uncovered(scene: _Scene, checkpoint: _Checkpoint, covered: set[tuple[str, str]]) -> bool:
    """True for a model that no index covers: there is none, or only those of other models and variants (fp16)."""
    return not covered or (checkpoint.canonical and scene.model(checkpoint.members[0]) not in covered)


def _later(scene: _Scene, at: int) -> tuple[bool, str]:
    """Sorts the plain model before its variants (`model.fp16.safetensors`), and those before a consolidated copy."""
    return names.is_consolidated(scene.name(at)), names.variant(scene.name(at))


def _place_pickles(out: Folder, scene: _Scene, *, preferred: bool) -> None:
    """PyTorch files that are copies of safetensors are skipped, and what is wrong with those is a remark."""
    found = scene.checkpoints(Family.PYTORCH)
    twins = {posixpath.splitext(scene.path(at))[0] for at in out.loaded}
    has_model = any(c.canonical and c.members and not _is_consolidated(scene, c) for c in found)
    for checkpoint in found:
        surplus = preferred or (has_model and _is_consolidated(scene, checkpoint))
        for at in checkpoint.members:
            copy = surplus or posixpath.splitext(scene.path(at))[0] in twins
            (out.skipped if copy else out.loaded).append(at)
    spare = preferred or any(c.whole for c in found)
    out.defects += [replace(d, proven=d.proven and not spare) for c in found for d in c.defects]


def _is_consolidated(scene: _Scene, checkpoint: _Checkpoint) -> bool:
    return bool(checkpoint.members) and names.is_consolidated(scene.name(checkpoint.members[0]))


def _remark_formats(out: Folder, scene: _Scene) -> None:
    kinds = {at: kind for kind, files in scene.files.items() for at in files}
    loaded = {kinds[at] for at in out.loaded if at in kinds}
    out.families = [kind for kind in Family if kind in loaded]
    copies = [at for at in out.skipped if kinds.get(at) is Family.PYTORCH]
    if copies and Family.SAFETENSORS in loaded:
        text = "a copy in PyTorch's format; engines load the safetensors"
        out.defects.append(Defect(scene.path(copies[0]), text, proven=False))
    if {Family.SAFETENSORS, Family.GGUF} <= loaded:
        first = next(at for at in out.loaded if kinds.get(at) is Family.GGUF)
        text = "beside safetensors: an engine loads one of the two formats"
        out.defects.append(Defect(scene.path(first), text, proven=False))
