"""What ``ls`` and ``check`` say of a model in a store; each with a text and a JSON face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stager.core.events import Event
from stager.core.reports import in_columns
from stager.core.units import count, format_size, shown

_PLAIN = "Standard"


@dataclass(frozen=True)
class StoredFile(Event):
    """One object, a line of ``ls``. `size` in bytes; `storage_class` is empty where the store has no classes.

    `left_out` says why stager never takes it; empty when it does.
    """

    type: ClassVar[str] = "object"
    result: ClassVar[bool] = True
    name: str
    size: int
    storage_class: str
    left_out: str

    def text(self) -> str:
        """Size, name, and what is unusual about it."""
        odd = [self.storage_class] if self.storage_class not in ("", _PLAIN) else []
        odd += [f"left out: {self.left_out}"] if self.left_out else []
        remark = f"  ({', '.join(odd)})" if odd else ""
        return f"{format_size(self.size):>11}  {shown(self.name)}{remark}"


@dataclass(frozen=True)
class ManifestFacts:
    """What a manifest says of itself: `files` counts those it promises."""

    source: str
    revision: str
    state: str
    files: int

    def text(self) -> str:
        """A few words."""
        revision = f"@{shown(self.revision)}" if self.revision else ""
        return f"manifest of {shown(self.source)}{revision}, {shown(self.state)}"


def manifest_text(manifest: ManifestFacts | None, *, broken: bool) -> str:
    """What there is to say of a manifest that is there, is not, or (`broken`) cannot be used."""
    return manifest.text() if manifest else "the manifest cannot be used" if broken else "no manifest"


@dataclass(frozen=True)
class Listing(Event):
    """The last line of ``ls``. `files` and `total` (bytes) are the model's, `skipped` counts what stager never takes.

    `complete` is ``yes``, ``no`` or ``unknown``, judged without reading headers; `reasons` say why, for people. `manifest` is None where there is
    none, and where there is one that cannot be used, which is `broken`.
    """

    type: ClassVar[str] = "listing"
    result: ClassVar[bool] = True
    location: str
    files: int
    total: int
    skipped: int
    formats: tuple[str, ...]
    complete: str
    reasons: tuple[str, ...]
    manifest: ManifestFacts | None
    broken: bool

    def text(self) -> str:
        """The total in the columns of the objects, then how it stands with the model."""
        lines = [f"{format_size(self.total):>11}  total of {count(self.files, 'file')}"]
        manifest = manifest_text(self.manifest, broken=self.broken)
        head, *rest = self.reasons
        known = ", ".join(name for name in self.formats if name != "unknown")
        model = ", ".join(part for part in (known, manifest) if part)
        lines += [f"{'model':>11}  {model}", f"{'complete':>11}  {head}"]
        return "\n".join([*lines, *(f"{'':>11}  {line}" for line in rest)])


@dataclass(frozen=True)
class Permission:
    """One thing that was tried at a store: `allowed` None when it was not, `needed` when what was asked for cannot do without."""

    name: str
    allowed: bool | None
    needed: bool
    why: str

    def text(self) -> str:
        """One line."""
        answer = {True: "yes", False: "no", None: "not tried"}[self.allowed]
        return f"{self.name}: {answer}{f' ({self.why})' if self.why else ''}"


@dataclass(frozen=True)
class StoreForecast(Event):
    """What ``check`` says of a store: (label, lines) sections, and the exit code with its reason.

    `answered_in` are the seconds that a page of the listing takes on a connection that is there; None without an answer. `expires` is in seconds
    since 1970. `archived` are objects that must be restored first. `unfinished` counts multipart uploads below the prefix,
    `oldest` is the age of the first of them in seconds; None where they cannot be listed, or there are none.
    """

    type: ClassVar[str] = "store_forecast"
    result: ClassVar[bool] = True
    location: str
    exit_code: int
    reason: str
    endpoint: str
    region: str
    style: str
    credentials: str
    expires: float | None
    answered_in: float | None
    permissions: tuple[Permission, ...]
    files: int
    total: int
    formats: tuple[str, ...]
    complete: str
    manifest: ManifestFacts | None
    archived: tuple[str, ...]
    unfinished: int | None
    oldest: float | None
    sections: tuple[tuple[str, tuple[str, ...]], ...]

    def text(self) -> str:
        """A label in the first column, its lines in the second."""
        return in_columns(self.sections)
