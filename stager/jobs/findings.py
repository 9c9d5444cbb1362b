"""What was found out about a store, and how ``check`` puts it: sections, advice, verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stager.core.errors import AccessDenied, IntegrityError, MustRestore, NotFound, RemoteError, StagerError
from stager.core.store_reports import ManifestFacts, Permission, StoreForecast, manifest_text
from stager.core.units import count, format_duration, format_size, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stager.core.model import Defect
    from stager.jobs.remote import Completeness, Model
    from stager.store.base import StoredObject, Unfinished
    from stager.store.oss.endpoint import Endpoint

_STALE_S = 86400.0  # an upload as old as a day is hardly under way any more
# What must be allowed, and the action of a policy that allows it.
_ACTIONS = {"list": "oss:ListObjects", "get": "oss:GetObject", "put": "oss:PutObject"}
_SHOWN = 10

Sections = list[tuple[str, tuple[str, ...]]]


@dataclass
class Findings:
    """Filled step by step; what was not reached stays None. Times in seconds, `now` and `expires` since 1970.

    `endpoint` is None for a folder. `inside`: this node is in Alibaba Cloud. `objects` are the model's as selected. `unfinished` is None where
    uploads cannot be listed, `refused` what keeps the objects from becoming files. `problems` are what a fetch would fail with.
    """

    location: str
    now: float
    endpoint: Endpoint | None = None
    signature: str = ""
    inside: bool = False
    credentials: str = ""
    expires: float | None = None
    answered_in: float | None = None
    permissions: list[Permission] = field(default_factory=list)
    model: Model | None = None
    objects: list[StoredObject] = field(default_factory=list)
    archived: list[StoredObject] = field(default_factory=list)
    complete: Completeness | None = None
    unfinished: list[Unfinished] | None = None
    manifest: ManifestFacts | None = None
    problems: list[StagerError] = field(default_factory=list)

    def allow(self, name: str, why: str = "") -> None:
        """That was tried, and it may be done."""
        self.permissions.append(Permission(name, allowed=True, needed=name in _ACTIONS, why=why))

    def forbid(self, name: str, error: AccessDenied, remark: str = "") -> None:
        """That was tried and refused; it is a problem when it is needed."""
        needed = name in _ACTIONS
        self.permissions.append(
            Permission(name, allowed=False, needed=needed, why=f"{remark}{error.message}")
        )
        if needed:
            hint = error.hint or f"whoever owns these credentials needs `{_ACTIONS[name]}`"
            self.problems.append(AccessDenied(f"`{name}` was refused", hint=hint))

    def may(self, name: str) -> bool:
        """False when that was tried and refused."""
        return not any(one.name == name and one.allowed is False for one in self.permissions)

    def forecast(self) -> StoreForecast:
        """The event that says it all."""
        first = self.first
        endpoint = self.endpoint
        oldest = max((self.now - one.begun for one in self.unfinished or ()), default=None)
        return StoreForecast(
            location=self.location,
            exit_code=first.exit_code if first else 0,
            reason=first.message if first else "",
            endpoint=endpoint.url if endpoint else "",
            region=(endpoint.region or "") if endpoint else "",
            style=endpoint.style.value if endpoint else "",
            credentials=self.credentials,
            expires=self.expires,
            answered_in=self.answered_in,
            permissions=tuple(self.permissions),
            files=len(self.objects),
            total=sum(one.size for one in self.objects),
            formats=self.complete.formats if self.complete else (),
            complete=self.complete.answer if self.complete else "unknown",
            manifest=self.manifest,
            archived=tuple(one.name for one in self.archived),
            unfinished=None if self.unfinished is None else len(self.unfinished),
            oldest=oldest,
            sections=tuple(self._sections()),
        )

    @property
    def single(self) -> bool:
        """Whether the location is known to be one object."""
        return self.model is not None and self.model.single

    @property
    def first(self) -> StagerError | None:
        """The problem that must be mended first: reach before permission, permission before what lies there."""
        return min(self.problems, key=lambda error: error.exit_code, default=None)

    def _sections(self) -> Sections:
        sections = [
            ("where", self._where()),
            ("credentials", self._credentials()),
            ("reachable", self._reachable()),
            ("may", [one.text() for one in self.permissions]),
            ("endpoint", endpoint_advice(self.endpoint, inside=self.inside) if self.endpoint else []),
            ("model", self._model()),
            ("classes", self._classes()),
            ("complete", list(self.complete.lines) if self.complete else []),
            ("uploads", self._uploads()),
            ("verdict", self._verdict()),
        ]
        return [(label, tuple(lines)) for label, lines in sections if lines]

    def _where(self) -> list[str]:
        lines = [shown(self.location)]
        if self.endpoint is not None:
            region = f"region {shown(self.endpoint.region)}" if self.endpoint.region else "region unknown"
            style = f"{self.endpoint.style.value} style"
            lines.append(f"{shown(self.endpoint.url)}, {region}, {style}, signature {self.signature}")
        return lines

    def _credentials(self) -> list[str]:
        if not self.credentials:
            return []
        if self.expires is None:
            return [shown(self.credentials)]
        left = self.expires - self.now
        when = f"valid for {format_duration(left)}" if left > 0 else "expired"
        return [f"{shown(self.credentials)}, {when}"]

    def _reachable(self) -> list[str]:
        if self.answered_in is not None:
            return [f"yes: a listing is answered in {_ms(self.answered_in)}"]
        return ["no"] if isinstance(self.first, RemoteError) else []

    def _model(self) -> list[str]:
        if self.model is None:
            return []
        names = f"{', '.join(self.complete.formats)}: " if self.complete else ""
        names = names.replace("unknown", "no known format")
        total = format_size(sum(one.size for one in self.objects))
        skipped = self.model.skipped
        passed_over = f"; {count(len(skipped), 'name')} left out" if skipped else ""
        return [
            f"{names}{count(len(self.objects), 'file')}, {total}{passed_over}",
            manifest_text(self.manifest, broken=self.model.manifest_problem is not None),
        ]

    def _classes(self) -> list[str]:
        unusual: dict[str, list[StoredObject]] = {}
        for one in self.objects:
            if one.storage_class not in ("", "Standard"):
                unusual.setdefault(one.storage_class, []).append(one)
        lines = [
            f"{count(len(those), 'object')} of class {shown(name)}, {format_size(sum(one.size for one in those))}"
            for name, those in unusual.items()
        ]
        if self.archived and self.model is not None:
            lines.append(
                f"{count(len(self.archived), 'object')} must be restored before anybody can read them:"
            )
            lines += [f"hint: `{restore(self.model.address(one.name))}`" for one in self.archived[:_SHOWN]]
            more = len(self.archived) - _SHOWN
            lines += [f"and {more} more"] if more > 0 else []
        return lines

    def _uploads(self) -> list[str]:
        if not self.unfinished:
            return []
        oldest = max(self.now - one.begun for one in self.unfinished)
        stale = sum(self.now - one.begun > _STALE_S for one in self.unfinished)
        lines = [
            f"{count(len(self.unfinished), 'multipart upload')} unfinished, the oldest for {_age(oldest)}"
        ]
        lines += [shown(one.name) for one in self.unfinished[:3]]
        if stale:
            lines.append(f"{stale} of them older than a day: their parts cost storage and nobody sees them")
            lines.append(f"hint: `{self._clean_up()}` removes them, those under way too")
        return lines

    def _clean_up(self) -> str:
        """The command that removes unfinished uploads. Without the slash it would take those of the neighbour ``r10`` too."""
        if self.single:
            return f"ossutil rm -m {shown(self.location)}"
        return f"ossutil rm -r -m {shown(self.location.rstrip('/'))}/"

    def _verdict(self) -> list[str]:
        first = self.first
        if first is None:
            return ["a fetch would begin, exit 0"]
        lines = [f"{first.message}, exit {first.exit_code}"]
        lines += [f"also: {other.message}" for other in self.problems if other is not first]
        return [*lines, f"hint: {first.hint}"] if first.hint else lines


def endpoint_advice(endpoint: Endpoint, *, inside: bool) -> list[str]:
    """What `endpoint` costs and what would be faster; `inside`: the node is in Alibaba Cloud."""
    lines = []
    if inside and endpoint.inside:
        lines.append(
            "this node is in Alibaba Cloud, and the endpoint takes the internet path, which is charged for"
        )
        lines.append(f"hint: within region {endpoint.region}, use `--endpoint {endpoint.inside}`")
    elif endpoint.inside:
        lines.append("public: what leaves OSS is charged for")
    if endpoint.internal and endpoint.https:
        lines.append("https on the internal network: encryption costs more CPU than the rest of a transfer")
        lines.append(f"hint: `--endpoint http://{endpoint.host}`; CRC-64 proves the bytes all the same")
    if endpoint.accelerator:
        lines.append("the OSS accelerator of the zone: the first read fills its cache, later ones are faster")
    elif endpoint.internal:
        lines.append(
            "internal; where a model is loaded often, an OSS accelerator in the zone is faster still"
        )
    if not endpoint.https and endpoint.inside:
        lines.append("http over the internet: whoever is on the way can read the bytes")
    return lines


def restore(address: str) -> str:
    """The command that restores an object."""
    return f"ossutil restore {shown(address)}"


def must_restore(model: Model, archived: list[StoredObject]) -> MustRestore:
    """The error for objects that cannot be read yet."""
    many = f"{count(len(archived), 'object')} must be restored first"
    others = ", and likewise the others" if len(archived) > 1 else ""
    return MustRestore(many, hint=f"`{restore(model.address(archived[0].name))}`{others}")


def incomplete(complete: Completeness) -> IntegrityError:
    """The error for a model that is provably not whole."""
    proven = [defect for defect in complete.defects if defect.proven]
    if not proven:
        return IntegrityError(
            complete.lines[0].removeprefix("no: "), hint="wait until the writer has finished"
        )
    return IntegrityError(f"incomplete model: {defects_in(proven)}", hint="pull or upload it again")


def defects_in(proven: Sequence[Defect]) -> str:
    """The first of the defects, of which there is one at least, and how many there are besides."""
    more = f" and {len(proven) - 1} more" if len(proven) > 1 else ""
    return f"{shown(proven[0].path)}: {proven[0].what}{more}"


def nothing_selected(location: str) -> NotFound:
    """The error for a selection that leaves nothing."""
    return NotFound(f"no object in `{shown(location)}` matches", hint="check --include and --exclude")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else format_duration(seconds)


def _age(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else format_duration(max(0.0, seconds))
