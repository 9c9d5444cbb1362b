"""The manifest beside a model: who wrote it, which revision, and whether it is whole."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stager.core.errors import IntegrityError, UsageError
from stager.core.model import Defect, FileEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

PATH = ".stager/manifest.json"
UPDATING, COMPLETE = "updating", "complete"
_HINT = "pull the model again, or delete the file"
_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Origin:
    """What the last fetch into a folder was asked for: the location, and the globs."""

    location: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def covers(self, other: Origin) -> bool:
        """Whether who has this has `other` too: the same, or all of the same location."""
        return self == other or self == Origin(other.location)


@dataclass(frozen=True, slots=True)
class Begun:
    """An unfinished upload that a pull has begun: of `path`, whose content was to have that size in bytes, and that sha256 where one is known."""

    path: str
    upload_id: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a writer of models promises. `state` is ``complete`` or ``updating``; readers refuse the latter.

    `fetched` is in the manifests that a fetch leaves in the folder it fills, and nowhere else. `unproven` are the paths whose objects were
    completed from parts of an earlier pull and not yet read back. `strangers` are the unfinished uploads, by id, that were there before the first pull of
    this content: nobody knows what they hold, so they are never gone on with. `pending` are paths of the revision that were not brought: what lies
    there, if anything, is of an older one. `former` are files of earlier revisions that this one no longer has, and that are still there. `begun`
    are unfinished uploads of earlier pulls that this one does not go on with. All five are for pull alone.
    """

    source: str
    revision: str
    state: str  # UPDATING, COMPLETE
    files: tuple[FileEntry, ...]
    fetched: Origin | None = None
    unproven: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    begun: tuple[Begun, ...] = ()

    @staticmethod
    def parse(raw: bytes) -> Manifest:
        """The manifest in `raw` (JSON). Raises `IntegrityError` when it is not one."""
        try:
            body = json.loads(raw)
            if not isinstance(body, dict) or not isinstance(body.get("files"), list):
                raise IntegrityError(f"`{PATH}` is not a manifest", hint=_HINT)
            files = tuple(_entry(item) for item in body["files"])
            origin = _origin(body.get("fetched"))
            unproven, strangers = _paths(body.get("unproven", [])), _texts(body.get("strangers", []))
            source, revision, state = _texts([body[key] for key in ("source", "revision", "state")])
            pending = _paths(body["pending"]) if "pending" in body else _promises(state, files)
            former = _paths(body.get("former", []))
            begun = tuple(_begun(item) for item in body.get("begun", []))
            return Manifest(
                source, revision, state, files, origin, unproven, strangers, pending, former, begun
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as exc:
            raise IntegrityError(f"`{PATH}` is not a manifest", hint=_HINT) from exc

    def dump(self, *, time: float, version: str) -> bytes:
        """The manifest as JSON: who wrote it is stager `version`, at `time` (seconds since 1970)."""
        files = [
            {
                "path": entry.path,
                "size": entry.size,
                **({"sha256": entry.sha256} if entry.sha256 is not None else {}),
                **({"crc64": str(entry.crc64)} if entry.crc64 is not None else {}),
            }
            for entry in self.files
        ]
        body: dict[str, Any] = {"v": 1, "source": self.source, "revision": self.revision, "state": self.state}
        if self.fetched is not None:
            body["fetched"] = asdict(self.fetched)
        if self.unproven:
            body["unproven"] = self.unproven
        if self.strangers:
            body["strangers"] = self.strangers
        if self.pending or self.state == UPDATING:
            body["pending"] = self.pending
        if self.former:
            body["former"] = self.former
        if self.begun:
            body["begun"] = [asdict(one) for one in self.begun]
        return (
            json.dumps({**body, "time": time, "stager": version, "files": files}, indent=1).encode() + b"\n"
        )

    def rows(self) -> dict[str, FileEntry]:
        """The files by path; of a path that is promised twice the last."""
        return {entry.path: entry for entry in self.files}

    def named(self) -> frozenset[str]:
        """The paths of all files that this manifest or one before it has promised, as far as they may still be there."""
        return frozenset({*(entry.path for entry in self.files), *self.pending, *self.former})

    def refuse_updating(self, root: str) -> None:
        """Raise `IntegrityError` while a writer is replacing the model below `root`."""
        if self.state != COMPLETE:
            raise IntegrityError(
                f"`{root}` is being updated: its manifest says `{self.state}`",
                hint="wait until the writer has finished, or pull the model again",
            )

    def defects(self, present: Iterable[FileEntry]) -> tuple[Defect, ...]:
        """Files that the manifest promises and `present` lacks or has in another size."""
        sizes = {entry.path: entry.size for entry in present}
        found = []
        for entry in self.files:
            if entry.path not in sizes:
                found.append(Defect(entry.path, "named by the manifest, missing"))
            elif sizes[entry.path] != entry.size:
                found.append(Defect(entry.path, f"{sizes[entry.path]} bytes, the manifest says {entry.size}"))
        return tuple(found)


def _origin(item: object) -> Origin | None:
    """What `item` says, None for what says nothing: a manifest is as good without."""
    if not isinstance(item, dict) or not isinstance(item.get("location"), str):
        return None
    globs = [item.get(key, []) for key in ("include", "exclude")]
    if not all(isinstance(some, list) and all(isinstance(one, str) for one in some) for some in globs):
        return None
    return Origin(item["location"], tuple(globs[0]), tuple(globs[1]))


def _begun(item: dict[str, Any]) -> Begun:
    """An upload. Raises as `_entry`."""
    entry, upload_id = _entry(item), item["upload_id"]
    if not isinstance(upload_id, str):
        raise TypeError("not an id")
    return Begun(entry.path, upload_id, entry.size, entry.sha256)


def _promises(state: str, files: Iterable[FileEntry]) -> tuple[str, ...]:
    """What `Manifest.pending` is where a manifest does not say it: earlier versions gave a row its CRC once the file was there."""
    return tuple(one.path for one in files if one.crc64 is None) if state == UPDATING else ()


def _paths(item: object) -> tuple[str, ...]:
    """A list of paths inside a model. Raises as `_entry`."""
    return tuple(FileEntry(path, 0).path for path in _texts(item))


def _texts(item: object) -> tuple[str, ...]:
    """A list of texts. Raises as `_entry`."""
    if not isinstance(item, list) or not all(isinstance(one, str) for one in item):
        raise TypeError("not a list of texts")
    return tuple(item)


def _entry(item: dict[str, Any]) -> FileEntry:
    """One row. Raises ``ValueError``, ``TypeError`` or `UsageError` for what is none: a promise that nothing can keep is no promise."""
    size, sha256, crc64 = item["size"], item.get("sha256"), item.get("crc64")
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError("not a size")
    if sha256 is not None and _SHA256.fullmatch(sha256) is None:
        raise ValueError("not a sha256")
    if crc64 is not None and not 0 <= (crc64 := int(str(crc64))) < 1 << 64:
        raise ValueError("not a CRC-64")
    return FileEntry(item["path"], size, sha256, crc64)
