"""Every way stager fails, on one screen.

::

    StagerError                 1   bug                  a defect of stager itself
    ├── UsageError              2   usage                the command line is wrong
    ├── AnswerNo                3   answer_no            not ready, below --min-resident, residency unknowable under --strict
    ├── ResourceRefused         4   resource_refused     memory or disk does not suffice
    ├── RemoteError             5   remote               remote trouble; worth retrying
    │   ├── Interrupted         5   remote               a read was ended from outside; somebody else goes on with it
    │   ├── CredentialsExpired  5   remote               the credentials used have run out; there may be fresh ones
    │   ├── ObjectChanged       5   changed              an object is no longer the one that was asked for
    │   ├── Busy                5   busy                 somebody else is pulling into the same destination
    │   └── CannotServe         5   cannot_serve         the other side has no way to give what is asked for; retrying is of no use
    ├── AccessDenied            6   access               permission is missing
    │   ├── MustRestore         6   archived             an archived object must be restored before it can be read
    │   └── ObjectExists        6   exists               an object is there and was not to be replaced
    ├── NotFound                7   not_found            nothing there
    ├── IntegrityError          8   integrity            provably incomplete or corrupt
    ├── LocalIOError            9   local_io             a local read or write failed
    ├── DeadlineExceeded       10   deadline             --timeout or --stall-timeout ran out
    ├── MountDropsPages        11   mount_drops_pages    this mount cannot hold warm pages
    └── Stopped             128+N   stopped              a signal ended the run

The class says the exit code, the slug used in JSON, and whether a retry can help. The edge (``stager.cli``) is the only
place that turns one of these into text and an exit status.
"""

from __future__ import annotations

import errno as _errno
import os
import signal
from typing import ClassVar


class StagerError(Exception):
    """A failure with one line for people, a hint with the next step, and an exit code for programs."""

    exit_code: int = 1
    slug: ClassVar[str] = "bug"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(StagerError):
    """The command line is wrong."""

    exit_code = 2
    slug = "usage"


class AnswerNo(StagerError):
    """The question was understood and the answer is no."""

    exit_code = 3
    slug = "answer_no"


class ResourceRefused(StagerError):
    """Memory or disk does not suffice."""

    exit_code = 4
    slug = "resource_refused"


class RemoteError(StagerError):
    """Remote trouble that a retry may cure; not before `retry_after` seconds, where the other side says so."""

    exit_code = 5
    slug = "remote"
    retryable = True

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Interrupted(RemoteError):
    """A read was ended from outside (`stager.store.base.Reader.interrupt`)."""


class CredentialsExpired(RemoteError):
    """The credentials used have run out; whoever retries asks for fresh ones first."""


class ObjectChanged(RemoteError):
    """An object is no longer the version that was asked for: retrying the same request cannot help, beginning again can."""

    slug = "changed"


class Busy(RemoteError):
    """Somebody else is pulling into the same destination: once that has ended, or its lease has, it is free."""

    slug = "busy"


class CannotServe(RemoteError):
    """The other side answers, but has no way to give what is asked for: the same request will always end so."""

    slug = "cannot_serve"
    retryable = False


class AccessDenied(StagerError):
    """A permission is missing."""

    exit_code = 6
    slug = "access"


class MustRestore(AccessDenied):
    """An object of an archive class cannot be read before it is restored."""

    slug = "archived"


class ObjectExists(AccessDenied):
    """An object is there already and was not to be replaced."""

    slug = "exists"


class NotFound(StagerError):
    """The thing named does not exist, or holds nothing."""

    exit_code = 7
    slug = "not_found"


class IntegrityError(StagerError):
    """The model is provably incomplete or corrupt."""

    exit_code = 8
    slug = "integrity"


class LocalIOError(StagerError):
    """A local read or write failed."""

    exit_code = 9
    slug = "local_io"


class DeadlineExceeded(StagerError):
    """A deadline passed, or nothing moved for too long."""

    exit_code = 10
    slug = "deadline"
    retryable = True


class MountDropsPages(StagerError):
    """The mount forgets a file's pages whenever the file is opened."""

    exit_code = 11
    slug = "mount_drops_pages"


class Stopped(StagerError):
    """A signal ended the run; ``exit_code`` is 128 + the signal's number."""

    slug = "stopped"

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


def from_oserror(exc: OSError, subject: str) -> StagerError:
    """The error that an ``OSError`` about `subject` (already fit for printing) becomes.

    ENOENT and ENOTDIR are `NotFound`, EACCES and EPERM are `AccessDenied`, all else is `LocalIOError`. The symbolic
    errno is kept in the message because people search for it.
    """
    code = exc.errno or 0
    name = _errno.errorcode.get(code, str(code))
    message = f"{subject}: {os.strerror(code).lower() if code else exc} ({name})"
    if code in (_errno.ENOENT, _errno.ENOTDIR):
        return NotFound(message)
    if code in (_errno.EACCES, _errno.EPERM):
        return AccessDenied(message)
    if code == _errno.ENOTCONN:
        return LocalIOError(message, hint="the FUSE daemon behind this mount is gone; mount it again")
    return LocalIOError(message)
