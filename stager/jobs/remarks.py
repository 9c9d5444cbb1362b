"""What a fetch remarks before it begins: objects left out, files too many, memory too small."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from stager.core import formats
from stager.core.events import Note
from stager.core.select import left_out
from stager.core.units import count, format_size, shown
from stager.jobs.room import MEMORY_FS
from stager.node import hugepages

if TYPE_CHECKING:
    from stager.jobs.options import FetchOptions
    from stager.jobs.reckoning import Reckoning
    from stager.node.parts import Target


def findings(reckoning: Reckoning, target: Target, options: FetchOptions) -> Iterator[Note]:
    """What is worth a word in the listing, in memory, and in the filesystem."""
    model, folder = reckoning.model, shown(options.folder)
    beyond = [one for one in model.objects if one.name not in reckoning.names and left_out(one.name) is None]
    if beyond and model.manifest is not None:
        what = f"{count(len(beyond), 'object')} that the manifest does not name left out, first {shown(beyond[0].name)}"
        yield Note("info", "beyond_manifest", what)
    if (advice := hugepages.advice(options.folder)) is not None:
        yield Note("info", "huge_pages", f"`{folder}` is a tmpfs of 4 KiB pages", advice)
    if not options.cache and target.filesystem() in MEMORY_FS:
        yield Note("warning", "no_cache", f"`{folder}` is memory: --no-cache can drop nothing there")
    admission = reckoning.admission
    if options.cache and admission is not None and not admission.fits:
        message = f"only {format_size(admission.granted)} of {format_size(admission.need)} fit in memory: the rest is dropped as it goes"
        yield Note("warning", "partial", message, admission.advice or None)


def obsolete(names: Sequence[str], options: FetchOptions) -> Iterator[Note]:
    """That files in the folder, `names`, are not in the source: they stay, and warming takes them for the model. Blocks."""
    sizes = {}
    for name in names:
        if left_out(name) is None:
            with suppress(OSError):
                sizes[name] = os.stat(os.path.join(options.folder, name)).st_size
    if sizes:
        files = f"{count(len(sizes), 'file')} ({format_size(sum(sizes.values()))})"
        warmed = " and warmed with the model" if options.cache else ""
        # An engine may load weights of two versions as if they were one model.
        level = "warning" if any(formats.is_weight(name) for name in sizes) else "info"
        message = f"{files} in `{shown(options.folder)}` are not in the source, first {shown(min(sizes))}: kept{warmed}"
        yield Note(level, "obsolete", message, "`--mirror` removes them")
