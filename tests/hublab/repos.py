"""Repositories as a hub has them: files, commits, branches and tags. A commit never changes."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from tests.osslab.storage import SMALL, Blob, Content, read

_PIECE = bytes(1 << 20)
DEFAULT_BRANCHES = ("master", "main")


@dataclass(frozen=True)
class Zeros:
    """`size` zero bytes, which take no room. `sha256` saves computing it, which takes seconds per 10 GB."""

    size: int
    sha256: str = ""


Given = (
    bytes | str | Zeros | None
)  # bytes, the path of a file that is served where it lies, zeros, or None: removed


@lru_cache(maxsize=64)
def _zeros_sha256(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size // len(_PIECE)):
        digest.update(_PIECE)
    digest.update(_PIECE[: size % len(_PIECE)])
    return digest.hexdigest()


class File:
    """One version of one file. `id` names its bytes on the CDN; checksums are computed when they are first asked for."""

    def __init__(self, path: str, content: Content, commit: str, when: float, *, sha256: str = "") -> None:
        self.path, self.content, self.commit, self.when = path, content, commit, when
        self.id = secrets.token_hex(16)
        self.size = content.size
        self._lock = threading.Lock()
        self._sha256, self._git = sha256, ""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """Of the bytes, in hex."""
        with self._lock:
            if not self._sha256:
                digest = hashlib.sha256()
                for piece in read(self.content, 0, self.size):
                    digest.update(piece)
                self._sha256 = digest.hexdigest()
            return self._sha256

    @property
    def etag(self) -> str:
        """As the store behind the CDN gives it."""
        return f'"{self.id.upper()}"'

    @property
    def pointer(self) -> bytes:
        """What git holds instead of a large file."""
        told = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return told.encode()

    def git_id(self, *, lfs: bool) -> str:
        """The git object: of the bytes, or of the pointer to them."""
        if lfs:
            return _git("blob", self.pointer)
        with self._lock:
            if not self._git:
                self._git = _git("blob", b"".join(read(self.content, 0, self.size)))
            return self._git


@dataclass(frozen=True)
class Commit:
    """One snapshot: all its files by path."""

    id: str
    parent: str
    message: str
    when: float
    files: Mapping[str, File]

    def below(self, root: str) -> list[File]:
        """The files in that folder and deeper ("": all), by path."""
        prefix = root.strip("/") + "/" if root.strip("/") else ""
        return [self.files[path] for path in sorted(self.files) if path.startswith(prefix)]


@dataclass
class Folder:
    """A folder of a snapshot: it exists as long as files are in it."""

    path: str
    commit: str
    when: float

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


def listing(commit: Commit, root: str, *, recursive: bool) -> list[File | Folder]:
    """Files and folders in `root`, or at any depth below it, by path."""
    depth = len(root.strip("/")) + 1 if root.strip("/") else 0
    found: dict[str, File | Folder] = {}
    for file in commit.below(root):
        at = file.path.find("/", depth)
        while at >= 0:
            place = file.path[:at]
            known = found.get(place)
            if not isinstance(known, Folder) or known.when < file.when:
                found[place] = Folder(place, file.commit, file.when)
            if not recursive:
                break
            at = file.path.find("/", at + 1)
        else:
            found[file.path] = file
    return [found[path] for path in sorted(found)]


@dataclass
class Repo:
    """A repository. `private`: only with a token; `gated`: known to all, read only with tokens in `granted`."""

    id: str
    room: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    versions: dict[str, File] = field(default_factory=dict)  # by `File.id`

    def commit(
        self, changes: Mapping[str, Given], branch: str = "master", *, message: str = "", base: str = ""
    ) -> str:
        """A new snapshot on a branch: the branch's last one (or `base`) with these changes. Gives its id."""
        parent = self.branches.get(branch, "")
        before = self.commits.get(base or parent)
        files = dict(before.files) if before else {}
        latest = max((one.when for one in self.commits.values()), default=0.0)
        when = max(time.time(), latest + 1)  # lists speak of whole seconds, and must tell which is newer
        name = secrets.token_hex(20)
        for path, given in changes.items():
            if given is None:
                files.pop(path, None)
            else:
                sha256 = given.sha256 or _zeros_sha256(given.size) if isinstance(given, Zeros) else ""
                files[path] = File(path, self._content(given), name, when, sha256=sha256)
                self.versions[files[path].id] = files[path]
        self.commits[name] = Commit(name, parent, message or f"Upload {len(changes)} files", when, files)
        self.branches[branch] = name
        return name

    def serve_folder(self, folder: str, branch: str = "master") -> str:
        """The files below `folder`, where they lie, are a new snapshot. Gives its id."""
        return self.commit(dict(_below(folder)), branch)

    def tag(self, name: str, revision: str = "master") -> None:
        """Give a snapshot a name that stays. `KeyError` when there is no such revision."""
        self.tags[name] = self._known(revision).id

    def find(self, revision: str) -> Commit | None:
        """The snapshot of a branch, a tag or a commit; master and main are one branch where only one is there."""
        wanted = revision or self.default
        name = self.branches.get(wanted) or self.tags.get(wanted)
        if name is None and wanted in DEFAULT_BRANCHES:
            name = self.branches.get(self.default)
        return self.commits.get(name or wanted)

    @property
    def default(self) -> str:
        """The branch that is meant when none is said."""
        for name in DEFAULT_BRANCHES:
            if name in self.branches:
                return name
        return next(iter(self.branches), "master")

    @property
    def files(self) -> Mapping[str, File]:
        """Those of the default branch now."""
        return self._known("").files

    def _known(self, revision: str) -> Commit:
        found = self.find(revision)
        if found is None:
            raise KeyError(revision)
        return found

    def _content(self, given: bytes | str | Zeros) -> Content:
        if isinstance(given, str):
            return Content((Blob(os.stat(given).st_size, path=os.path.abspath(given)),))
        if isinstance(given, bytes) and len(given) <= SMALL:
            return Content((Blob(len(given), data=given),))
        path = os.path.join(self.room, secrets.token_hex(12))
        with open(path, "xb") as file:
            if isinstance(given, Zeros):
                file.truncate(given.size)
            else:
                file.write(given)
        return Content((Blob(os.stat(path).st_size, path=path, owned=True),))


def _below(folder: str) -> Iterator[tuple[str, str]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if os.path.isfile(path):
                yield os.path.relpath(path, folder), path


def _git(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
