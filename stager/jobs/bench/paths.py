"""The PATHs of a benchmark before anything is asked or evicted: that they are there, each only once, and that nothing will be written to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from stager.core.bench.plan import SAFETENSORS, methods_for
from stager.core.errors import NotFound, UsageError, from_oserror
from stager.core.location import Location, is_remote
from stager.core.units import shown
from stager.engine import runtime


async def look_for(paths: Sequence[str]) -> int:
    """0 when every one of `paths` that is no store's is there. Raises as ``os.stat`` of the first that is not, as a `StagerError`."""
    for path in paths:
        if not is_remote(path):
            await runtime.in_thread(f"looking for {shown(path)}", partial(_look, path))
    return 0


def _look(path: str) -> None:
    try:
        os.stat(path)
    except OSError as exc:
        error = from_oserror(exc, f"`{shown(path)}`")
        if isinstance(error, NotFound):
            error.hint = "give the folder that holds the model's files"
        raise error from exc


async def each_once(paths: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """(`paths` without those that an earlier one names by another spelling or link, [(one that was left out, the earlier one)])."""
    kept: dict[str, str] = {}
    again = []
    for path in paths:
        found = partial(_real, path)
        real = await runtime.in_thread(f"looking for {shown(path)}", found)
        if real in kept:
            again.append((path, kept[real]))
        kept.setdefault(real, path)
    return tuple(kept.values()), again


def _real(path: str) -> str:
    return str(Location.parse(path)).rstrip("/") if is_remote(path) else os.path.realpath(path)


def refuse_methods(paths: Sequence[str], wanted: Sequence[str], to: str, *, engine: bool) -> None:
    """Raises `UsageError` when none of the methods `wanted` is for these `paths`: before anything is evicted for them."""
    if any(methods_for(wanted, store=is_remote(path), to=to, engine=engine) for path in paths):
        return
    if SAFETENSORS in wanted and not to:
        raise UsageError(f"--methods {SAFETENSORS} needs --to", hint="add --to cpu, or --to cuda")
    names = ", ".join(wanted)
    raise UsageError(
        f"--methods {names}: none of them is for these storages", hint="see `stager bench --help`"
    )


def keep_out(paths: Sequence[str], report: str | None, into: str | None) -> None:
    """Raises `UsageError` when anything would be written to one of `paths`, which are only read: the report, what is fetched, temporary files."""
    _keep_out(paths, report, "the report's folder", "give `--report` another folder")
    if any(is_remote(path) for path in paths):
        _keep_out(paths, into, "the folder to fetch into", "give `--into` another folder")
    where = os.environ.get("TMPDIR")
    _keep_out(paths, where, "the folder for temporary files", "set TMPDIR to another folder")


def _keep_out(paths: Sequence[str], folder: str | None, what: str, hint: str) -> None:
    """Of a PATH that is a file the folder it lies in is meant. Folders are known by what they are: a bind mount is no way around."""
    if not folder:
        return
    around = _above(os.path.realpath(folder))
    for path in paths:
        if is_remote(path):
            continue
        real = os.path.realpath(path)
        single = not os.path.isdir(real)
        storage = _identity(os.path.dirname(real) if single else real)
        if storage is not None and storage in (around[:1] if single else around):
            beside = "beside" if single else "in"
            raise UsageError(
                f"{what} {shown(folder)} lies {beside} {shown(path)}, which is only read", hint=hint
            )


def _above(folder: str) -> list[tuple[int, int] | None]:
    """The identity of `folder` and of everything above it, from the inside; None where it is not there yet."""
    found = [_identity(folder)]
    while (parent := os.path.dirname(folder)) != folder:
        folder = parent
        found.append(_identity(folder))
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino
