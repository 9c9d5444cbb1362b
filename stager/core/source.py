"""Where a pull takes a model from: a model on a hub, or a directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from stager.core.errors import UsageError
from stager.core.location import Location, told
from stager.core.units import shown

_HINT = "write it like owner/name, owner/name@revision, ms://owner/name, hf://owner/name, or /path/to/model"


class Hub(StrEnum):
    """Who has the model; a directory counts as a hub with one model in one revision."""

    MODELSCOPE = "modelscope"
    HUGGINGFACE = "huggingface"
    DIRECTORY = "directory"


_SCHEMES = {"ms": Hub.MODELSCOPE, "hf": Hub.HUGGINGFACE}
_ON_HUBS = tuple(f"{scheme}://" for scheme in _SCHEMES)
_SITES = {"modelscope.cn": Hub.MODELSCOPE, "huggingface.co": Hub.HUGGINGFACE, "hf.co": Hub.HUGGINGFACE}
# Hubs of their own that speak the protocol of another: the endpoint is the pod's to say, not the model's address.
_ELSEWHERE = {"hf-mirror.com": ("HF_ENDPOINT", "hf"), "modelscope.ai": ("MODELSCOPE_ENDPOINT", "ms")}
_VIEWS = ("tree", "blob", "resolve", "commit", "commits")  # page of a model -> the revision follows
_NO_MODELS = (
    "datasets",
    "spaces",
    "studios",
    "collections",
    "docs",
    "papers",
    "organization",
    "organizations",
)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_NOT_IN_REVISIONS = re.compile(r"[\s~^:?*\[\\]|\.\.|//|@\{|^[-/.]|[/.]$")  # what git refuses in a name
_VERSION = re.compile(r"(?:^|&)(?:version|revision)=([^&]+)")


@dataclass(frozen=True, slots=True)
class Source:
    """A model and the revision asked for; an empty `revision` is the hub's default branch.

    `model` is ``owner/name``, or just ``name`` for the few on Hugging Face that have no owner; for a directory the path as it was given
    (``~`` is not expanded here).
    """

    kind: Hub
    model: str
    revision: str = ""

    @staticmethod
    def parse(text: str) -> Source:
        """The source that `text` names: a model, the address of its page on a hub, or a path. Raises `UsageError` for anything else."""
        if text.startswith(("/", "./", "../", "~", "file://")) or text in (".", ".."):
            return Source(Hub.DIRECTORY, _path(text))
        scheme, separator, rest = text.partition("://")
        if not separator:
            return _named(Hub.MODELSCOPE, text, text)
        if scheme in _SCHEMES:
            return _named(_SCHEMES[scheme], rest, text)
        if scheme in ("https", "http"):
            return _page(rest, text)
        if scheme == "oss":
            raise UsageError(
                f"`{told(text)}` is where a pull writes to, not where it takes a model from",
                hint=f"`stager fetch {told(text)} DIR` brings a model from there to this node",
            )
        raise UsageError(f"`{told(text)}`: no hub is called `{told(scheme)}://`", hint=_HINT)

    def __str__(self) -> str:
        """The address without the revision: ``ms://owner/name``, ``hf://owner/name``, or the path."""
        schemes = {hub: scheme for scheme, hub in _SCHEMES.items()}
        return f"{schemes[self.kind]}://{self.model}" if self.kind in schemes else self.model

    @property
    def name(self) -> str:
        """The last part: what the model is called. Empty for a path that does not say it (``.``, ``..``, ``/``, ``~``)."""
        last = PurePosixPath(self.model).name
        home = self.kind is Hub.DIRECTORY and self.model.startswith("~") and last == self.model.rstrip("/")
        return "" if last == ".." or home else last


def same_source(one: str, other: str) -> bool:
    """Whether two sources, as manifests name them, are one model: hubs tell no names apart by case, folders do."""
    if one.startswith(_ON_HUBS) and other.startswith(_ON_HUBS):
        return one.casefold() == other.casefold()
    return one == other


def _path(text: str) -> str:
    try:
        # Only an address is decoded: a path may hold any character.
        path = Location.parse(text).prefix if text.startswith("file://") else text
    except UsageError as exc:
        raise UsageError(exc.message, hint=_HINT) from exc
    if "\0" in path:
        raise UsageError(f"`{shown(text)}` is not a path", hint=_HINT)
    return path


def _named(kind: Hub, rest: str, text: str) -> Source:
    model, at, revision = rest.partition("@")
    if revision.partition("/")[0].removeprefix("www.") in _SITES:
        raise _with_password(text)
    if at and not revision and _is_model(kind, model):
        raise UsageError(
            f"`{model}@` names no revision", hint=f"write a branch, a tag or a commit: {model}@master"
        )
    return _checked(kind, model, revision, text)


def _checked(kind: Hub, model: str, revision: str, text: str) -> Source:
    """The source, once its parts are what hubs call models and revisions."""
    if not _is_model(kind, model):
        # What stands before an @ is hidden only where it can be a user and a password.
        said = told(text) if ":" in text.rpartition("://")[2] or "?" in text else shown(text)
        if _NAME.fullmatch(model):
            raise UsageError(
                f"`{said}` has no owner", hint=f"write owner/{model}, or ./{model} for a directory"
            )
        raise UsageError(f"`{said}` is not a model's name", hint=_HINT)
    if _NOT_IN_REVISIONS.search(revision) or not revision.isprintable():
        raise UsageError(
            f"`{shown(revision)}` is not a revision of `{model}`", hint="write a branch, a tag or a commit"
        )
    return Source(kind, model, revision)


def _is_model(kind: Hub, model: str) -> bool:
    parts = model.split("/")
    if len(parts) != 2 and not (len(parts) == 1 and kind is Hub.HUGGINGFACE):
        return False
    return ".." not in model and all(_NAME.fullmatch(part) for part in parts)


def _page(rest: str, text: str) -> Source:
    """The model whose page on a hub has the address ``https://`` + `rest`, as browsers show it."""
    authority, _, below = rest.partition("/")
    if "@" in authority:
        raise _with_password(text)
    host = authority.lower().removesuffix(":443").removeprefix("www.")
    if host in _ELSEWHERE:
        variable, scheme = _ELSEWHERE[host]
        raise UsageError(
            f"`{told(text)}` is on a hub of its own",
            hint=f"set {variable}=https://{authority} and write {scheme}://owner/name",
        )
    if host not in _SITES:
        raise UsageError(f"`{told(text)}` is on no hub that stager knows", hint=_HINT)
    path, _, query = below.partition("#")[0].partition("?")
    parts = [_decoded(part) for part in path.split("/") if part]
    model, revision, file = _read_page(_SITES[host], parts, query)
    if not model or parts[0] in _NO_MODELS:
        raise UsageError(f"`{told(text)}` is not a model's page", hint=_HINT)
    source = _checked(_SITES[host], model, revision, text)
    if file:
        whole = f"{source}@{revision}" if revision else str(source)
        raise UsageError(
            f"`{told(text)}` is a file or a folder of a model",
            hint=f"`stager pull {whole} --include '{shown(file)}*'` takes it alone",
        )
    return source


def _read_page(kind: Hub, parts: list[str], query: str) -> tuple[str, str, str]:
    """The model, the revision and the path in the model that a page's address names; empty where it names none."""
    if kind is Hub.MODELSCOPE:
        if parts[:1] != ["models"]:
            return "", "", ""
        parts = parts[1:]
    ownerless = kind is Hub.HUGGINGFACE and len(parts) > 1 and parts[1] in _VIEWS
    length = 1 if ownerless else 2
    model, tail = "/".join(parts[:length]).removesuffix(".git"), parts[length:]
    if tail[:2] == ["file", "view"]:  # ModelScope's page of one file
        tail = tail[1:]
    if tail and tail[0] in (*_VIEWS, "view"):
        end = 4 if tail[1:2] == ["refs"] else 2  # refs/pr/1
        return model, "/".join(tail[1:end]), "/".join(tail[end:])
    asked = _VERSION.search(query)
    return model, _decoded(asked[1]) if asked else "", ""


def _with_password(text: str) -> UsageError:
    return UsageError(
        f"`{told(text)}` has a user or a password in it",
        hint="tokens are read from the environment; " + _HINT,
    )


def _decoded(text: str) -> str:
    """`text` without percent escapes."""
    raw = text.encode("utf-8", "surrogateescape")
    plain = re.sub(rb"%([0-9a-fA-F]{2})", lambda match: bytes.fromhex(match[1].decode()), raw)
    return plain.decode("utf-8", "surrogateescape")
