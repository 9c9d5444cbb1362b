"""The interface to a place that models come from; its docstrings are the contract.

An adapter (`stager.hub.modelscope`, `stager.hub.huggingface`, `stager.hub.directory`) makes one attempt at each call and translates errors
once. Retry is a wrapper (`stager.hub.opening`). ``tests/test_hub_contract.py`` holds every adapter to what is written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stager.core.model import FileEntry
from stager.store.base import Reader


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a snapshot. `version` is what `Reader.read` takes as ``etag``: never empty, another for other content.

    `entry` has the sha256 where the hub states it. `blob_sha1` is git's name of the content (the SHA-1 of ``blob SIZE\\0`` and the bytes) where
    the hub states that; None otherwise.
    """

    entry: FileEntry
    version: str
    blob_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of one model, whole. `source` names the model (``ms://owner/name``), `revision` the commit; empty where there are none.

    `files` ascend by path, and every path is fit to be one below a folder. `left_out` are the paths of those that no pull takes (lock files,
    unfinished downloads), and why; they may be anything.
    """

    source: str
    revision: str
    files: tuple[HubFile, ...]
    left_out: tuple[tuple[str, str], ...] = ()


class Hub(Protocol):
    """A model at the place it comes from. All methods but the readers' may be called from any thread."""

    @property
    def source(self) -> str:
        """The model in words, for messages: ``ms://owner/name``, a folder's path."""

    @property
    def credentials(self) -> str:
        """Where the token comes from, in words; empty without one. Never the token."""

    def snapshot(self) -> Snapshot:
        """Resolves the branch to a commit and lists all files of that. Blocks, for many requests where there are many files.

        Raises `NotFound` for an unknown model (saying that it may be private, when there is no token) or revision (naming near ones in the hint),
        `AccessDenied` for a private one, or a gated one whose list is not for everybody, `IntegrityError` for a list that cannot be a model's (a
        name that leaves its folder, two files of one name), `RemoteError` for what may pass, `CannotServe` for a list that the hub cuts short.
        """

    def reader(self) -> Reader:
        """A new reader of the snapshot's files, as `stager.store.base.Reader`; `snapshot` must have been called.

        ``read`` is called with the `HubFile.version` as ``etag``. The `StoredObject` it returns has name, size and that etag; no CRC. A server
        that ignores ranges is noticed: what comes before `offset` is read and thrown away up to 64 MiB, beyond that it is `CannotServe`.
        """
