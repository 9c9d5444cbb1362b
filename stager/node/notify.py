"""What the node is told about this process: systemd's notification socket and Kubernetes' termination log.

Both are courtesies: a supervisor that is absent, deaf or broken never changes what stager does, so nothing here raises.
"""

from __future__ import annotations

import os
import socket

TERMINATION_LOG = "/dev/termination-log"
_TERMINATION_LOG_LIMIT = 4096  # bytes; the kubelet reads no more
_PATIENCE = 1.0  # seconds for a supervisor whose socket is full; it must not hold up the gate


def sd_notify(*, ready: bool = False, status: str | None = None) -> bool:
    """Tell systemd that the service is ready, and what it does; True when a message was handed over.

    Uses the datagram socket named by ``NOTIFY_SOCKET`` (a path, or ``@name`` in the abstract namespace) and does nothing
    when that is unset. Newlines in `status` become spaces, because a newline would begin another assignment.
    """
    address = os.environb.get(b"NOTIFY_SOCKET", b"")
    if not address.startswith((b"/", b"@")):
        return False
    lines = [b"READY=1"] if ready else []
    if status is not None:
        lines.append(b"STATUS=" + " ".join(status.split()).encode("utf-8", "backslashreplace"))
    if not lines:
        return False
    if address.startswith(b"@"):
        address = b"\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(_PATIENCE)
            channel.connect(address)
            channel.send(b"\n".join(lines))
    except OSError:  # includes a name longer than a socket address holds
        return False
    return True


def write_termination_log(text: str, path: str = TERMINATION_LOG) -> bool:
    """Write `text` where Kubernetes reads a container's last words; True when it was written whole.

    The file is never created: it exists where a kubelet wants it. Text beyond 4,096 bytes is cut between characters.
    """
    data = text.encode("utf-8", "backslashreplace")[:_TERMINATION_LOG_LIMIT]
    data = data.decode("utf-8", "ignore").encode()
    # O_NONBLOCK: something that is not a plain file must not stop the process at its very end.
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError:
        return False
    try:
        return os.write(fd, data) == len(data)
    except OSError:
        return False
    finally:
        os.close(fd)
