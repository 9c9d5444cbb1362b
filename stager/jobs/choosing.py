"""Which files of a snapshot a pull takes: what the engine needs, what the globs select, and why the others stay out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stager.core.engines import Choice, choose
from stager.core.errors import NotFound, UsageError
from stager.core.select import selected
from stager.core.units import shown

if TYPE_CHECKING:
    from stager.core.engines import Engine
    from stager.hub.base import HubFile, Snapshot
    from stager.jobs.options import PullOptions


BY_GLOBS = "by --include and --exclude"
"""Why a file stays out that the user has left out."""


def chosen(snapshot: Snapshot, options: PullOptions) -> tuple[list[HubFile], list[tuple[str, str]]]:
    """The files of `snapshot` that are wanted, and those that are not, with why; what no pull takes is among these.

    Raises `NotFound` when nothing is wanted, and as `stager.core.engines.choose`.
    """
    if options.engine is None and (options.quant or options.variant):
        option = "--quant" if options.quant else "--variant"
        raise UsageError(
            f"{option} says nothing without --for",
            hint=f"say what will load the model, as `--for {'llama.cpp' if options.quant else 'diffusers'}`",
        )
    sizes = {one.entry.path: one.entry.size for one in snapshot.files}
    globbed = [path for path in sizes if selected(path, options.include, options.exclude)]
    dropped = dict(snapshot.left_out)
    if options.engine is not None:
        dropped |= _choice(options.engine, sizes, globbed, options).dropped
    dropped |= dict.fromkeys(sizes.keys() - globbed - dropped.keys(), BY_GLOBS)
    kept = [one for one in snapshot.files if one.entry.path not in dropped]
    if not kept:
        raise NotFound(f"no file of {shown(snapshot.source)} matches", hint="check --include and --exclude")
    return kept, sorted(dropped.items())


def _choice(engine: Engine, sizes: dict[str, int], globbed: list[str], options: PullOptions) -> Choice:
    """What `engine` needs of the whole repository; where that is not clear, of what the globs leave of it."""
    try:
        return choose(engine, list(sizes.items()), quant=options.quant, variant=options.variant)
    except UsageError:
        if options.quant is not None or not globbed or len(globbed) == len(sizes):
            raise
        several = [(path, sizes[path]) for path in globbed]
        try:
            return choose(engine, several, quant=None, variant=options.variant)
        except NotFound:  # the globs leave nothing that is a model: what was said first is what helps
            pass
        raise
