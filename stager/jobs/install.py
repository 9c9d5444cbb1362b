"""``stager install``: the self-contained program, put where containers without Python can run it."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from stager import __version__
from stager.core.errors import NotFound, UsageError, from_oserror
from stager.core.events import Note
from stager.core.units import format_size, shown
from stager.engine import runtime
from stager.node import frozen, installed

if TYPE_CHECKING:
    from stager.engine.report import Reporter

BUNDLE = "STAGER_BUNDLE"  # where the program lies, for other places than the image's
_IN_THE_IMAGE = "/opt/stager-bundle"


async def install(folder: str, reporter: Reporter) -> int:
    """Copy the program into `folder` and say so; 0.

    Raises `NotFound` where there is none to copy, `UsageError` where that lies in `folder`, and `StagerError` when it cannot be written: ``folder/stager`` is as before then.
    """
    source = frozen.folder() if frozen.is_frozen() else os.environ.get(BUNDLE) or _IN_THE_IMAGE
    if not os.path.exists(os.path.join(source, installed.PROGRAM)):
        raise NotFound(
            f"`{shown(source)}`: there is no self-contained program to copy",
            hint="stager's images have it; see k8s/Dockerfile",
        )
    its, into = (os.path.realpath(path) + os.sep for path in (source, folder))
    if into.startswith(its):
        raise UsageError(
            f"`{shown(folder)}` holds the program that is to be copied", hint="choose another DIR"
        )
    program = shown(os.path.join(folder, installed.PROGRAM))
    try:
        new = await runtime.in_thread(
            f"copying to {shown(folder)}", partial(installed.install, source, folder)
        )
    except OSError as exc:
        error = from_oserror(exc, f"cannot install into `{shown(folder)}`")
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            error.hint = f"the program takes {format_size(installed.size_of(source))}, beside the one before"
        elif exc.errno == errno.EISDIR:
            error.hint = f"`{program}` is a folder; choose another DIR"
        raise error from exc
    size = format_size(installed.size_of(source))
    text = f"installed {program}: stager {__version__}, {size}" if new else f"{program} is there already"
    reporter.emit(Note("info", "installed", text))
    return 0
