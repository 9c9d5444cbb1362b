"""The ready marker: what a warm run claims, in a form that can be held against the node later.

Kept light: ``stager ready`` imports this and little else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from stager.core.outcome import MarkerState

DEFAULT_PATH = "/run/stager/ready.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class WarmedPath:
    """One PATH of the run and the mount it lay on; `keeps` is the canary's answer (``keeps``, ``drops``, ...)."""

    path: str
    fstype: str
    device: int
    mount_id: int
    unique_id: int | None
    namespace: str
    keeps: str


@dataclass(frozen=True, slots=True)
class WarmedFile:
    """One file of the run, and the identity to which its cached pages belong. `path` is absolute, symlinks resolved.

    `vouched` is false when pages were found resident on a mount that never checks them, so nobody knows whose they are.
    """

    path: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    etag: str | None = None
    vouched: bool = True


@dataclass(frozen=True, slots=True)
class ReadyMarker:
    """The content of the marker file; see the module's docstring. `resident` is None when it could not be known.

    `asked` are the PATHs of the run, symlinks resolved: the whole of what the marker speaks of. `paths` are the mounts.
    """

    state: MarkerState
    reason: str
    digest: str = ""
    total: int = 0
    resident: int | None = None
    known: str = "unknown"
    boot_id: str = ""
    time: float = 0.0
    version: str = ""
    pid: int = 0
    asked: tuple[str, ...] = field(default=())
    paths: tuple[WarmedPath, ...] = field(default=())
    files: tuple[WarmedFile, ...] = field(default=())

    def to_json(self) -> str:
        """One line of JSON. Files are written as rows, for a folder may hold 100,000."""
        body: dict[str, Any] = {"v": VERSION}
        for name in (
            "state",
            "reason",
            "digest",
            "total",
            "resident",
            "known",
            "boot_id",
            "time",
            "version",
            "pid",
        ):
            body[name] = getattr(self, name)
        body["asked"] = list(self.asked)
        body["paths"] = [asdict(path) for path in self.paths]
        body["files"] = [
            [f.path, f.inode, f.size, f.mtime_ns, f.ctime_ns, f.etag, f.vouched] for f in self.files
        ]
        return json.dumps(body, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ReadyMarker:
        """The marker in `text`; `ValueError` when it is not one of this version."""
        try:
            body = json.loads(text)
            if body["v"] != VERSION:
                raise ValueError(f"marker version {body['v']}")
            return ReadyMarker(
                MarkerState(body["state"]),
                str(body["reason"]),
                str(body["digest"]),
                int(body["total"]),
                body["resident"],
                str(body["known"]),
                str(body["boot_id"]),
                float(body["time"]),
                str(body["version"]),
                int(body["pid"]),
                tuple(str(path) for path in body["asked"]),
                tuple(WarmedPath(**item) for item in body["paths"]),
                tuple(WarmedFile(*row) for row in body["files"]),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a marker ({exc!r})") from exc


def answer_text(state: str, why: str) -> str:
    """The gate's answer on one line: ``ready``, ``ready (accepted: partial)``, or ``not ready: why``."""
    if why:
        return f"not ready: {why}"
    return "ready" if state == MarkerState.READY.value else f"ready (accepted: {state})"
