"""The self-contained program: what differs where stager is a folder with a Python of its own inside, made by PyInstaller.

Its start points the dynamic linker at that folder, which is right for itself and its workers, and wrong for any other program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

WORKER = "--worker"  # the first word of a worker process; no user ever says it
_LINKER = b"LD_LIBRARY_PATH"
_LINKER_BEFORE = b"LD_LIBRARY_PATH_ORIG"
_OF_THE_START = b"_PYI_"
_CERTIFICATES = "SSL_CERT_FILE"
_USUAL = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def is_frozen() -> bool:
    """Whether this is the self-contained program."""
    return bool(getattr(sys, "frozen", False))


def folder() -> str:
    """Where the self-contained program lies: the folder of its executable."""
    return os.path.dirname(os.path.realpath(sys.executable))


def worker_command(module: str) -> list[str]:
    """The words that run `module` as a program. The current folder is none of the places modules come from: a model may hold a `json.py`."""
    if is_frozen():
        return [sys.executable, WORKER, module]
    return [sys.executable, "-P", "-m", module]


def become_worker() -> bool:
    """Run the module that `worker_command` named, if this process was started so; whether it was."""
    if not is_frozen() or sys.argv[1:2] != [WORKER]:
        return False
    import runpy

    runpy.run_module(sys.argv[2], run_name="__main__", alter_sys=True)
    return True


def without_own(environment: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """`environment` as it was before the self-contained program started; anywhere else, as it is."""
    found = dict(environment)
    if not is_frozen():
        return found
    for name in [name for name in found if name.startswith(_OF_THE_START)]:
        del found[name]
    before = found.pop(_LINKER_BEFORE, None)
    own = os.fsencode(getattr(sys, "_MEIPASS", folder()))
    if found.get(_LINKER, b"").split(b":")[0] == own:
        del found[_LINKER]
        if before is not None:
            found[_LINKER] = before
    return found


def bring_certificates() -> None:
    """Where the container has no CA certificates, use those that came along: an engine's image often has none."""
    if is_frozen() and _CERTIFICATES not in os.environ and not any(map(os.path.exists, _USUAL)):
        own = os.path.join(getattr(sys, "_MEIPASS", folder()), "certifi", "cacert.pem")
        if os.path.exists(own):
            os.environ[_CERTIFICATES] = own
