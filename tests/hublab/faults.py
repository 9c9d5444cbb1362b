"""What goes wrong at the hub, on whose request, and how often: the faults of the look-alike store, with a hub's kinds and places."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.osslab import faults as common
from tests.osslab.log import Record

LISTS = frozenset({"files", "revisions", "commits", "model", "hf-model", "hf-tree", "hf-refs"})
BODIES = frozenset({"repo", "hf-resolve", "cdn", "internal"})
_STORES = frozenset({"cdn", "internal"})
_RANGES = frozenset({"whole", "wrong-range"})
_ALL: frozenset[str] | None = None
_SAMPLES = (
    "bytes=0-0",
    f"bytes=0-{(256 << 10) - 1}",
)  # the first byte; as much as the header of a weight mostly has

KINDS: dict[str, tuple[str, frozenset[str] | None]] = {
    # name -> (what happens, the operations that it is for by itself; None: all)
    "reset": ("RST after `after_bytes` of the body; with `operation`, instead of any answer", BODIES),
    "close": ("FIN there instead: the body is shorter than announced", BODIES),
    "drop": ("the connection is closed instead of an answer", _ALL),
    "unavailable": ("503 with Retry-After: `seconds`", _ALL),
    "limited": ("429 with Retry-After: `seconds`", _ALL),
    "error": ("`status` (500)", _ALL),
    "expired": ("403, as if the URL had expired", _STORES),
    "corrupt": ("the byte at `after_bytes` of the body is another", BODIES),
    "slow": ("the body comes at `rate` bytes per second", BODIES),
    "stall": ("after `after_bytes` of the body nothing comes for `seconds`", BODIES),
    "hang": ("nothing comes for `seconds`, then the answer", _ALL),
    "whole": ("200 and everything instead of 206", BODIES),
    "wrong-range": ("Content-Range speaks of one byte further", BODIES),
    "cut-list": ("JSON that ends in the middle", LISTS),
    "garbled": ("200 and a page of HTML instead of JSON", LISTS),
}


def place(operation: str) -> str:
    """The address that an operation belongs to: "cdn", "internal", or "hub" for all others."""
    return operation if operation in _STORES else "hub"


@dataclass
class Fault(common.Fault):
    """One thing that goes wrong `times` times (None: always).

    It is for requests that match `method`, `operation`, `host` ("hub", "cdn", "internal") and `key_glob`, the file's path (of lists: the
    folder). The rest is as for the store's: `skip`, `nth`, `after_bytes` (default: half of the body), `sticky`. Who asks for the first byte
    of a file alone wants to know whether it is given at all, who asks for its first 256 KiB whether they are a weight's; they are struck only
    with `samples`.
    """

    host: str | None = None
    samples: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(KINDS)}")

    def meets(self, method: str, operation: str, key: str, *, ranged: bool, body: bool) -> bool:
        """Whether it is for such a request; `ranged`: 206 is on its way, `body`: bytes of a file are."""
        usual = KINDS[self.kind][1]
        if self.kind in ("reset", "close") and self.operation is not None:
            usual = None
        elif usual is BODIES and not body:
            return False
        if (usual is not None and operation not in usual) or (self.kind in _RANGES and not ranged):
            return False
        return (
            self.method in (None, method)
            and self.operation in (None, operation)
            and self.host in (None, place(operation))
            and fnmatchcase(key, self.key_glob)
        )


class Faults(common.Faults):
    """The script. At most one fault strikes a request: the first in order that fits."""

    def strike(self, record: Record, *, ranged: bool, body: bool) -> Fault | None:
        """The fault for this request, counted, or None."""
        sample = record.headers.get("range") in _SAMPLES
        with self._lock:
            for fault in self._script:
                if not isinstance(fault, Fault) or (sample and not fault.samples):
                    continue
                fits = fault.meets(record.method, record.operation, record.key, ranged=ranged, body=body)
                if fits and fault.strikes(record.connection):
                    self.counts[fault.kind] += 1
                    return fault
        return None

    def load(self, script: Iterable[dict[str, Any]]) -> None:
        """The same from JSON."""
        for entry in script:
            self.add(Fault(**entry))

    def as_json(self) -> dict[str, Any]:
        """The script with its counts."""
        names = [one.name for one in dataclasses.fields(Fault) if one.name != "connections"]
        with self._lock:
            script = [{name: getattr(fault, name) for name in names} for fault in self._script]
            return {"counts": dict(self.counts), "script": script}
