"""The self-contained program copied into a folder, whole or not at all: an engine's container must never find half of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress

PROGRAM = "stager"
_COPY = ".stager-"  # folders begin so that hold a copy, or what is left of one that was cut short


def install(source: str, folder: str) -> bool:
    """Make ``folder/stager`` start a copy of the program in `source`; False when it already does.

    The copy is a folder of its own beside the name, which is moved to it in one step, when all is there. What earlier copies left in
    `folder` is removed then. Anybody may run it. Raises `OSError`; the name is as before then.
    """
    os.makedirs(folder, exist_ok=True)
    name = os.path.join(folder, PROGRAM)
    if (here := os.path.dirname(os.path.realpath(name))) and _same(source, here):
        return False
    copy = tempfile.mkdtemp(prefix=_COPY, dir=folder)
    link = f"{copy}.name"
    try:
        shutil.copytree(source, copy, symlinks=True, dirs_exist_ok=True)
        os.chmod(copy, 0o755)  # noqa: S103 - anybody may run it
        os.symlink(os.path.join(os.path.basename(copy), PROGRAM), link)
        os.replace(link, name)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        with suppress(OSError):
            os.unlink(link)
        raise
    _remove_others(folder, os.path.basename(copy))
    return True


def size_of(folder: str) -> int:
    """Bytes of the files below `folder`."""
    return sum(size for size, _ in _contents(folder).values())


def _contents(folder: str) -> dict[str, tuple[int, int]]:
    """Path to size and time of change, in whole seconds, for all files below `folder`."""
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            facts = os.lstat(path)
            found[os.path.relpath(path, folder)] = (facts.st_size, int(facts.st_mtime))
    return found


def _same(source: str, copy: str) -> bool:
    """Whether `copy` has the files of `source`, with their sizes and times: both came from one build."""
    return os.path.basename(copy).startswith(_COPY) and _contents(source) == _contents(copy)


def _remove_others(folder: str, kept: str) -> None:
    for entry in os.listdir(folder):
        if not entry.startswith(_COPY) or entry == kept:
            continue
        path = os.path.join(folder, entry)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)
