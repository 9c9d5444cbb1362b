"""What a pull finds in a destination besides files of the model: what earlier pulls left, what is nobody's, and what stands in its way."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stager.core.errors import UsageError, from_oserror
from stager.core.events import Note
from stager.core.manifest import PATH
from stager.core.placement import above
from stager.core.source import same_source
from stager.core.units import count, format_size, shown
from stager.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stager.hub.base import Snapshot
    from stager.jobs.stock import Standing
    from stager.store.base import Store

_OWN = PATH.partition("/")[0]
_AWAY = "move it away, or choose another destination"


def adapter_of(store: Store) -> Any:
    """What makes the calls of `store`, without what is wrapped around it."""
    found: Any = store
    while hasattr(found, "adapter"):
        found = found.adapter
    return found


def is_folder(store: Store) -> bool:
    """Whether `store` is a folder."""
    return isinstance(adapter_of(store), DirectoryStore)


def refuse_other(store: Store, standing: Standing, snapshot: Snapshot, *, mirror: bool) -> None:
    """Raise `UsageError` when another model lies there: it would be overwritten in part, and lost."""
    root, before = shown(store.root), standing.manifest
    if mirror and before is None and standing.problem is None and standing.foreign:
        files, first = count(len(standing.foreign), "file"), shown(standing.foreign[0])
        raise UsageError(
            f"--mirror of `{root}`, which no pull has filled so far, and which holds {files}, first {first}",
            hint="choose an empty place; or pull without --mirror, which removes nothing there, now or later",
        )
    if before is None or same_source(before.source, snapshot.source) or mirror:
        return
    raise UsageError(
        f"`{root}` holds another model: its manifest names {shown(before.source)}",
        hint="choose another destination; `--mirror` replaces what is there",
    )


def surplus(standing: Standing, dest: str, *, mirror: bool) -> Iterator[Note]:
    """That files in `dest` are not in the revision, and stay."""
    for names, what, hint in (
        (() if mirror else standing.obsolete, "no longer in this revision", "`--mirror` removes them"),
        (standing.foreign, "of no pull", "`--mirror` removes only what a pull has brought"),
    ):
        if names:
            size = format_size(sum(standing.objects[name].size for name in names))
            files, verb = f"{count(len(names), 'file')} ({size})", "is" if len(names) == 1 else "are"
            message = f"{files} in `{shown(dest)}` {verb} {what}, first {shown(names[0])}: kept"
            yield Note("info", "obsolete" if names is standing.obsolete else "foreign", message, hint)


def in_the_way(store: Store, standing: Standing, paths: Iterable[str], *, mirror: bool) -> tuple[str, ...]:
    """The objects in a folder that must go before files can be at `paths`: files where a folder must be, and all in folders where a file must be.

    Empty for other stores, whose names are just names. Raises `UsageError` for the first that must not be removed: without `mirror` any, and
    always what no pull brings. Blocks.
    """
    if not is_folder(store):
        return ()
    wanted = set(paths)
    folders = {folder for path in wanted for folder in above(path)}
    found = sorted(name for name in standing.objects if name in folders or not wanted.isdisjoint(above(name)))
    for name in found:
        removable = name in standing.obsolete
        if mirror and removable:
            continue
        known = removable and (standing.manifest is not None or standing.problem is not None)
        what = "a folder" if name in folders else "a file in the place of its folder"
        raise UsageError(
            f"`{shown(store.root)}/{shown(name)}` is in the way: this revision has {what} there",
            hint="`--mirror` removes it" if known else _AWAY,
        )
    going = frozenset(found)
    try:
        _refuse_folders(store.root, wanted, going)
        _refuse_files(store.root, folders, going)
    except OSError as exc:
        raise from_oserror(exc, f"`{shown(str(exc.filename or store.root))}`") from exc
    return tuple(found)


def _refuse_folders(root: str, wanted: Iterable[str], going: frozenset[str]) -> None:
    """Raise `UsageError` for the first folder where a file must be that would stay a folder once `going` are removed; OSError."""
    for name, is_folder in _present(root, wanted):
        path = os.path.join(root, name)
        if is_folder and (kept := _kept(path, root, going)) is not None:
            what = f"a folder, with `{shown(kept)}` in it" if kept else "a folder"
            raise UsageError(
                f"`{shown(path)}` is in the way: this revision has a file there, and it is {what}", hint=_AWAY
            )


def _kept(folder: str, root: str, going: frozenset[str]) -> str | None:
    """What keeps `folder` from going with `going`: a name in it; nothing (the empty string) for one that nobody empties; None when it goes."""
    if os.path.islink(folder):
        return ""
    for path, folders, files in os.walk(folder, onerror=_raise):
        links = [one for one in folders if os.path.islink(os.path.join(path, one))]
        for name in (os.path.join(path, one) for one in sorted([*files, *links])):
            if os.path.relpath(name, root) not in going:
                return os.path.relpath(name, folder)
        if not folders and not files:
            return os.path.relpath(path, folder) if path != folder else ""
    return None


def _refuse_files(root: str, folders: Iterable[str], going: frozenset[str]) -> None:
    """Raise `UsageError` for the first thing where a folder must be, that is none and not in `going`: no object, or it would be listed."""
    for name, is_folder in _present(root, folders):
        path = os.path.join(root, name)
        if name not in going and not is_folder:
            raise UsageError(f"`{shown(path)}` is in the way: this revision has a folder there", hint=_AWAY)


def _present(root: str, names: Iterable[str]) -> list[tuple[str, bool]]:
    """Those of `names` that are there, ascending, and whether each is a folder. Each folder is read once: no look at 30,000 files one by one."""
    below: dict[str, set[str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        below.setdefault(folder, set()).add(base)
    found = []
    for folder, bases in below.items():
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                there = [(one.name, one.is_dir()) for one in entries if one.name in bases]
        except (FileNotFoundError, NotADirectoryError):
            continue
        found += [(f"{folder}/{base}" if folder else base, is_folder) for base, is_folder in there]
    return sorted(found)


def _raise(exc: OSError) -> None:
    raise exc


def leftovers(store: Store, standing: Standing, snapshot: Snapshot) -> tuple[str, ...]:
    """Files that earlier pulls have left behind in a folder, of uploads of what is not in `snapshot`, ascending. Blocks.

    None where no pull was before, in other models' folders, and in stores that are not folders: nobody's parts are aborted there.
    """
    adapter = adapter_of(store)
    if not isinstance(adapter, DirectoryStore) or (standing.manifest is None and standing.problem is None):
        return ()
    found = adapter.leftovers(one.entry.path for one in snapshot.files)
    return tuple(name for name in found if not name.startswith((f"{_OWN}/", *standing.others)))


def discard(store: Store, names: Iterable[str]) -> None:
    """Remove what `leftovers` gave, but for what a running process writes. Blocks. Raises as `Store.delete`."""
    adapter = adapter_of(store)
    if isinstance(adapter, DirectoryStore):
        adapter.discard(names)
