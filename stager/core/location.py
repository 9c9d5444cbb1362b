"""Where a model lies: a bucket and a prefix in OSS, or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from urllib.parse import unquote

from stager.core.errors import UsageError
from stager.core.units import shown

_HINT = "write it like oss://bucket/models/r1, file:///mnt/nas/r1 or /mnt/nas/r1"


class Scheme(StrEnum):
    """What kind of store a location names."""

    OSS = "oss"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Location:
    """A store and the folder in it that holds the model.

    `prefix` has no slash at either end for `Scheme.OSS` (empty: the whole bucket), and is an absolute or relative path for
    `Scheme.FILE`, whose `bucket` is empty.
    """

    scheme: Scheme
    bucket: str
    prefix: str

    @staticmethod
    def parse(text: str) -> Location:
        """The location that `text` names. Raises `UsageError` for anything else."""
        scheme, separator, rest = text.partition("://")
        if not separator:
            return Location(Scheme.FILE, "", _path(text, text))
        if scheme == Scheme.OSS:
            return _oss(text, rest)
        if scheme == Scheme.FILE:
            host, slash, path = rest.partition("/")
            if host not in ("", "localhost") or not slash:
                raise UsageError(f"`{shown(text)}` names a host, or no absolute path", hint=_HINT)
            return Location(Scheme.FILE, "", _path("/" + unquote(path, errors="surrogateescape"), text))
        raise UsageError(f"`{told(text)}`: no store is called `{told(scheme)}://`", hint=_HINT)

    def __str__(self) -> str:
        if self.scheme is Scheme.FILE:
            return self.prefix
        return f"oss://{self.bucket}/{self.prefix}"

    @property
    def name(self) -> str:
        """The last part: what the model is called."""
        return PurePosixPath(self.prefix).name or self.bucket

    @property
    def parent(self) -> Location | None:
        """The folder around it; None for a whole bucket and for a path that names nothing in a folder."""
        if not PurePosixPath(self.prefix).name:
            return None
        above = self.prefix.rstrip("/").rpartition("/")[0]
        if self.scheme is Scheme.OSS:
            return Location(self.scheme, self.bucket, above)
        return Location(self.scheme, "", str(PurePosixPath(self.prefix).parent))

    def below(self, name: str) -> Location:
        """The folder `name` in it."""
        if self.scheme is Scheme.OSS:
            return Location(self.scheme, self.bucket, f"{self.prefix}/{name}".lstrip("/"))
        return Location(self.scheme, "", str(PurePosixPath(self.prefix) / name))


def is_remote(text: str) -> bool:
    """Whether `text` is meant as a store's address and not as a path: it has a scheme."""
    return "://" in text


def told(text: str) -> str:
    """The address `text` as messages may show it: without a user and password, and without a query, which may hold a signature."""
    scheme, separator, rest = text.rpartition("://") if text.count("://") == 1 else ("", "", text)
    before, at, after = rest.rpartition("@")
    if "?" in before and at:  # a password with a question mark, or a query with an @: nobody knows
        return shown(f"{scheme}{separator}***")
    kept, mark, _ = after.partition("?")
    return shown(f"{scheme}{separator}{'***@' if at else ''}{kept}{'?***' if mark else ''}")


def _path(path: str, text: str) -> str:
    if not path or "\0" in path:
        raise UsageError(f"`{shown(text)}` is not a path", hint=_HINT)
    return path


def _oss(text: str, rest: str) -> Location:
    bucket, _, prefix = rest.partition("/")
    plain = all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in bucket)
    if not 3 <= len(bucket) <= 63 or not plain or "-" in (bucket[:1], bucket[-1:]):
        raise UsageError(f"`{told(text)}`: `{told(bucket)}` is not a bucket's name", hint=_HINT)
    if "?" in prefix or "#" in prefix or "\0" in prefix:
        raise UsageError(f"`{told(text)}`: give a plain prefix, no query", hint=_HINT)
    return Location(Scheme.OSS, bucket, prefix.strip("/"))
