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

    `asked` are the PATHs of the run, symlinks resolved (as they were spelled where the run never got to look at them), `include`
    and `exclude` its globs: the whole of what the marker speaks of. `paths` are the mounts, none before they were looked at. Then,
    in ``failed`` and ``released``, `files` may be those of an earlier run: a memory of whose pages are in the cache, no claim.
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
    include: tuple[str, ...] = field(default=())
    exclude: tuple[str, ...] = field(default=())
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
        for name in ("asked", "include", "exclude"):
            body[name] = list(getattr(self, name))
        body["paths"] = [asdict(path) for path in self.paths]
        body["files"] = [
            [f.path, f.inode, f.size, f.mtime_ns, f.ctime_ns, f.etag, f.vouched] for f in self.files
        ]
        return json.dumps(body, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ReadyMarker:
        """The marker in `text`; `ValueError` when it is not one of this version, whatever else it is."""
        try:
            body = json.loads(text)
            if body["v"] != VERSION:
                raise ValueError(f"marker version {body['v']}")
            return ReadyMarker(
                MarkerState(body["state"]),
                _text(body["reason"]),
                _text(body["digest"]),
                _number(body["total"]),
                None if body["resident"] is None else _number(body["resident"]),
                _text(body["known"]),
                _text(body["boot_id"]),
                float(body["time"]),
                _text(body["version"]),
                _number(body["pid"]),
                tuple(_name(path) for path in body["asked"]),
                tuple(_text(glob) for glob in body["include"]),
                tuple(_text(glob) for glob in body["exclude"]),
                tuple(_mount(item) for item in body["paths"]),
                tuple(_file(*row) for row in body["files"]),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as exc:
            raise ValueError(f"not a marker ({exc!r})") from exc
        except RecursionError as exc:
            raise ValueError("not a marker (nested too deeply)") from exc


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not a whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _name(value: object) -> str:
    """A name that the kernel can be asked about."""
    name = _text(value)
    if not name or "\0" in name:
        raise TypeError("not a file name")
    name.encode("utf-8", "surrogateescape")  # UnicodeEncodeError is a ValueError
    return name


def _mount(item: dict[str, Any]) -> WarmedPath:
    found = WarmedPath(**item)
    for text in (found.fstype, found.namespace, found.keeps):
        _text(text)
    for number in (found.device, found.mount_id, found.unique_id or 0):
        _number(number)
    _name(found.path)
    return found


def _file(
    path: object,
    inode: object,
    size: object,
    mtime_ns: object,
    ctime_ns: object,
    etag: object,
    vouched: object,
) -> WarmedFile:
    if not isinstance(vouched, bool):
        raise TypeError("not yes or no")
    return WarmedFile(
        _name(path),
        _number(inode),
        _number(size),
        _number(mtime_ns),
        _number(ctime_ns),
        None if etag is None else _text(etag),
        vouched,
    )


def answer_text(state: str, why: str) -> str:
    """The gate's answer on one line: ``ready``, ``ready (accepted: partial)``, or ``not ready: why``."""
    if why:
        return f"not ready: {why}"
    return "ready" if state == MarkerState.READY.value else f"ready (accepted: {state})"
