"""What goes wrong, on whose request, and how often."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

LISTS = frozenset({"ListObjects", "ListObjectsV2", "ListMultipartUploads", "ListParts"})
_GETS = frozenset({"GetObject"})
_SUMS = frozenset({"GetObject", "HeadObject", "PutObject", "UploadPart", "CompleteMultipartUpload"})

KINDS: dict[str, tuple[str, frozenset[str] | None]] = {
    # name -> (what happens, the operations that it is for by itself; None: all)
    "reset": ("RST after `after_bytes` of the body (of the request's for PUT and POST)", None),
    "close": ("FIN there instead: the body is shorter than announced", None),
    "drop": ("the connection is closed instead of an answer, before anything is done", None),
    "lost": ("the operation is done, then the connection is closed instead of an answer", None),
    "unavailable": ("503 with Retry-After: `seconds`", None),
    "error": ("`status` (500)", None),
    "expired": ("403 SecurityTokenExpired", None),
    "wrong-crc": ("x-oss-hash-crc64ecma is off by a bit", _SUMS),
    "corrupt": ("the byte at `after_bytes` of the body is another", _GETS),
    "slow": ("the body comes at `rate` bytes per second", _GETS),
    "stall": ("after `after_bytes` of the body nothing comes for `seconds`", _GETS),
    "hang": ("nothing comes for `seconds`, then the answer", None),
    "whole": ("200 and everything instead of 206", _GETS),
    "wrong-range": ("Content-Range speaks of one byte further", _GETS),
    "changed": ("412 to If-Match, though the object is what it was", _GETS),
    "other-version": ("206 with another ETag, as if If-Match had not been there", _GETS),
    "cut-list": ("a page whose XML ends in the middle", LISTS),
    "repeat-list": ("the first page again, whatever was asked for", LISTS),
    "no-token": ("a page that is truncated but does not say where to go on", LISTS),
}


@dataclass
class Fault:
    """One thing that goes wrong `times` times (None: always).

    It is for requests that match `method`, `operation`, and `key_glob` (lists match by their prefix). Of these it lets `skip` pass and then
    takes every `nth`. `after_bytes` is by default half of the body. With `sticky`, a connection that was struck once is struck at
    each matching request, and counts once.
    """

    kind: str
    times: int | None = 1
    method: str | None = None
    operation: str | None = None
    key_glob: str = "*"
    skip: int = 0
    nth: int = 1
    after_bytes: int | None = None
    seconds: float = 1.0
    rate: int = 64 << 10
    status: int = 500
    code: str = ""
    sticky: bool = False
    seen: int = 0
    fired: int = 0
    connections: set[int] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(KINDS)}")

    def fits(self, method: str, operation: str, key: str, *, ranged: bool, conditional: bool) -> bool:
        """Whether it is for such a request."""
        usual = KINDS[self.kind][1]
        if self.kind in ("reset", "close") and not self.method and not self.operation:
            usual = _GETS
        if self.operation is not None or self.method is not None:
            usual = None if self.kind in ("slow", "stall") else usual
        if usual is not None and operation not in usual:
            return False
        if (self.kind in ("whole", "wrong-range") and not ranged) or (
            self.kind in ("changed", "other-version") and not conditional
        ):
            return False
        return (
            self.method in (None, method)
            and self.operation in (None, operation)
            and fnmatchcase(key, self.key_glob)
        )

    def strikes(self, connection: int) -> bool:
        """Count one matching request, and whether it is hit."""
        if self.sticky and connection in self.connections:
            return True
        self.seen += 1
        if self.seen <= self.skip or (self.seen - self.skip - 1) % self.nth:
            return False
        if self.times is not None and self.fired >= self.times:
            return False
        self.fired += 1
        self.connections.add(connection)
        return True


class Faults:
    """The script. At most one fault strikes a request: the first in order that fits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._script: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def add(self, fault: Fault) -> Fault:
        """Append one, and give it back: its `fired` tells afterwards how often it struck."""
        with self._lock:
            self._script.append(fault)
        return fault

    def load(self, script: Iterable[dict[str, Any]]) -> None:
        """The same from JSON."""
        for entry in script:
            self.add(Fault(**entry))

    def clear(self) -> None:
        """From now on all goes well. The counts stay."""
        with self._lock:
            self._script.clear()

    def pick(
        self, method: str, operation: str, key: str, connection: int, *, ranged: bool, conditional: bool
    ) -> Fault | None:
        """The fault for this request, counted, or None."""
        with self._lock:
            for fault in self._script:
                fits = fault.fits(method, operation, key, ranged=ranged, conditional=conditional)
                if fits and fault.strikes(connection):
                    self.counts[fault.kind] += 1
                    return fault
        return None

    @property
    def pending(self) -> int:
        """Blows still to come, of faults that are counted."""
        with self._lock:
            return sum(max(0, f.times - f.fired) for f in self._script if f.times is not None)

    def as_json(self) -> dict[str, Any]:
        """The script with its counts."""
        names = [f.name for f in fields(Fault) if f.name != "connections"]
        with self._lock:
            script = [{name: asdict(fault)[name] for name in names} for fault in self._script]
            return {"counts": dict(self.counts), "script": script}
