"""Replacing a small file in one step: whoever reads it finds the old content or the new, never a part."""

from __future__ import annotations

import os
import stat as stat_module
from contextlib import suppress

from stager.core.errors import LocalIOError

_READ_BY_ALL = 0o644


def replace(path: str, data: bytes, subject: str) -> None:
    """Make `data` the content of the file at `path`, mode 0644 whatever the umask says.

    Raises ``OSError``, and `LocalIOError` about `subject` where that would replace a device, a FIFO, a socket or a folder.

    The new file lies beside it for a moment, under a name that begins with a dot, ends in random digits and cannot be guessed.
    """
    with suppress(FileNotFoundError):
        if not stat_module.S_ISREG(os.stat(path).st_mode):
            raise LocalIOError(f"{subject}: not a regular file", hint="choose another place")
    folder = os.path.dirname(os.path.abspath(path))
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{os.urandom(8).hex()}")
    try:
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _READ_BY_ALL
        )
        try:
            os.fchmod(fd, _READ_BY_ALL)
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
