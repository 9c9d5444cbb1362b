"""The self-contained program copied into a folder, whole or not at all: an engine's container must never find half of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PROGRAM = "stager"
_COPY = ".stager-"  # folders begin so that hold a copy, or what is left of one that was cut short


def install(source: str, folder: str) -> bool:
    """Make ``folder/stager`` start a copy of the program in `source`; False when it already does.

    The copy is a folder of its own beside the name, which is moved to it in one step, when all is there. The copy before stays for
    who runs from it; what earlier runs left besides is removed. Several may install at once. Anybody may run it. Raises `OSError`,
    and the name is as before then.
    """
    os.makedirs(folder, exist_ok=True)
    name = os.path.join(folder, PROGRAM)
    with _alone(folder) as alone:
        here = os.path.dirname(os.path.realpath(name))
        if _same(source, here):
            return False
        if alone:
            _remove_others(folder, {os.path.basename(here), os.path.basename(os.path.realpath(source))})
        _install(source, folder, name)
    return True


def _install(source: str, folder: str, name: str) -> None:
    copy = tempfile.mkdtemp(prefix=_COPY, dir=folder)
    link = f"{copy}.name"
    try:
        _copy(source, copy)
        os.chmod(copy, 0o755)  # noqa: S103 - anybody may run it
        os.symlink(os.path.join(os.path.basename(copy), PROGRAM), link)
        os.replace(link, name)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        with suppress(OSError):
            os.unlink(link)
        raise


def _copy(source: str, to: str) -> None:
    """All that is in `source`, with its times. Ends at the first error, where ``shutil.copytree`` would collect one for each file."""
    with os.scandir(source) as entries:
        for entry in entries:
            target = os.path.join(to, entry.name)
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(target)
                _copy(entry.path, target)
                shutil.copystat(entry.path, target)
            else:
                shutil.copy2(entry.path, target, follow_symlinks=False)


@contextmanager
def _alone(folder: str) -> Iterator[bool]:
    """Wait until nobody else installs into `folder`; False where that cannot be had, for NFS locks no folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(fd)


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


def _remove_others(folder: str, kept: set[str]) -> None:
    for entry in os.listdir(folder):
        if not entry.startswith(_COPY) or entry in kept:
            continue
        path = os.path.join(folder, entry)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)
