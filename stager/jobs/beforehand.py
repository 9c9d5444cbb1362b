"""What a pull finds out before it changes anything: whether parts fit into memory, the hub gives what it lists, and DEST is a folder to write to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stager.core.errors import AccessDenied, LocalIOError, NotFound, UsageError
from stager.core.lease import PATH
from stager.core.location import Location, Scheme
from stager.core.units import shown
from stager.engine import runtime
from stager.hub.answers import SKIPPED
from stager.hub.directory import DirectoryHub
from stager.jobs.inflow import Feed, Stream, refuse_large

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stager.hub.base import Hub, HubFile


def refuse_parts(files: Iterable[HubFile], buffer: int) -> None:
    """As `refuse_large`, of files that nobody has begun to read."""
    refuse_large([Stream(Feed(one.entry.path, one.entry.size, one.version)) for one in files], buffer)


def refuse_dest(dest: Location) -> None:
    """Raise `UsageError` where the folder `dest` cannot be for a file in its place or above it, and `AccessDenied` on a read-only filesystem. Blocks."""
    if dest.scheme is not Scheme.FILE:
        return
    there = os.path.abspath(dest.prefix)
    try:
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        folder, flags = os.path.isdir(there), os.statvfs(there).f_flag
    except OSError:
        return  # who writes there will hear of it
    name, found = shown(str(dest)), shown(there)
    if not folder:
        raise UsageError(f"`{name}` cannot be a folder: `{found}` is a file", hint=_ELSEWHERE)
    if flags & os.ST_RDONLY:
        raise AccessDenied(f"`{name}` cannot be written: `{found}` is on a read-only filesystem", hint=_MOUNT)


@contextmanager
def into(dest: Location) -> Iterator[None]:
    """Within, an error about the lease in a folder that cannot be written names the folder: whoever reads it knows of no lease."""
    try:
        yield
    except (AccessDenied, NotFound, LocalIOError) as error:
        if dest.scheme is not Scheme.FILE or PATH not in error.message:
            raise
        why = error.message.rpartition(": ")[2]
        raise type(error)(
            f"`{shown(str(dest))}` cannot be written: {why}", hint=error.hint or _ALLOWED
        ) from error


@contextmanager
def explained(whose: Callable[[], str]) -> Iterator[None]:
    """Within, where a bucket denies access, its error says what a pull needs, and `whose` credentials were used (in words, or nothing)."""
    try:
        yield
    except AccessDenied as error:
        if error.slug == AccessDenied.slug and "`oss://" in error.message:
            credentials = whose()
            hints = (error.hint or _NEEDED, f"the credentials are from: {credentials}" if credentials else "")
            error.hint = "; ".join(filter(None, hints))
        raise


_NEEDED = (
    "a pull must be allowed oss:ListObjects, oss:GetObject, oss:PutObject, oss:DeleteObject, "
    "oss:ListMultipartUploads, oss:ListParts and oss:AbortMultipartUpload there"
)
_ELSEWHERE = "choose another destination"
_MOUNT = "mount it with write access, or choose another destination"
_ALLOWED = (
    "check who may write there and whether it is mounted with write access, or choose another destination"
)


class Sample:
    """One byte of one file. Some hubs list a model for everybody, and give its files to few."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._taken = False

    async def take(self, hub: Hub, files: Sequence[HubFile]) -> None:
        """Read one byte of the largest of `files`: it lies where most of the bytes will come from. Raises as `Reader.read`.

        Of a file that is too large to be read from a server that ignores ranges, it is the last: that tells. Only once, and nothing where all
        are empty, or in a folder.
        """
        largest = max(files, key=lambda one: one.entry.size, default=None)
        near = isinstance(getattr(hub, "adapter", hub), DirectoryHub)
        if self._taken or near or largest is None or not largest.entry.size:
            return
        path, size, version, reader = largest.entry.path, largest.entry.size, largest.version, hub.reader()
        at = size - 1 if size > SKIPPED + 1 else 0

        def one_byte() -> None:
            try:
                reader.read(path, at, 1, lambda _: None, etag=version)
            finally:
                reader.close()

        try:
            await runtime.in_thread(
                f"asking for {shown(path)} of {shown(hub.source)}", one_byte, by_word=True
            )
        finally:
            reader.interrupt()  # for one that was left behind
        self._taken = True
