"""Who is pulling into a destination: what the lease beside the model says, and whether its holder is still there.

A second pull must neither disturb a live one nor wait for a dead one. The holder writes its lease again every `HEARTBEAT_S`; by the store's
clock it is dead after `EXPIRY_S` without. On the same node the process itself tells at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum

from stager.core.units import shown

PATH = ".stager/pull.lease"
HEARTBEAT_S = 10.0
EXPIRY_S = 40.0  # three heartbeats may be lost, and a fourth be on its way

_LIMIT = 64 << 10  # bytes; a lease has some hundred
_LATEST = 253402300799.0  # the last second of the year 9999, the last that a date can say
# Names that every machine may have: another boot id there is another machine, and not one that was restarted.
_NAMELESS = ("", "localhost", "localhost.localdomain")


class Verdict(StrEnum):
    """Whether somebody still holds a lease."""

    LIVE = "live"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Here:
    """The node that judges, as a lease describes the holder's. Empty where it cannot be known."""

    host: str
    boot_id: str
    pid_namespace: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The claim of one pull. `token` is random and tells it from every other, another pull of the same process included.

    `pid_start` is when the process began, in the unit of whoever judges it (it is only compared); `started` when the pull did, in
    seconds since 1970; `version` is stager's.
    """

    token: str
    host: str
    boot_id: str
    pid: int
    pid_start: float
    pid_namespace: str
    started: float
    version: str

    @property
    def holder(self) -> str:
        """In words who it is: ``node-7, pid 123, since 2026-01-31 08:15:00 UTC``."""
        since = datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"{shown(self.host) or 'an unknown host'}, pid {self.pid}, since {since}"

    def dump(self) -> bytes:
        """The lease as JSON."""
        return json.dumps({"v": 1, **asdict(self)}, indent=1).encode() + b"\n"

    @staticmethod
    def parse(raw: bytes) -> Lease | None:
        """The lease in `raw`; None for what is none, as a file on a mount is while it is being written.

        What a later version adds is passed over: a lease that is not understood must not look like no lease.
        """
        if len(raw) > _LIMIT:
            return None
        try:
            body = json.loads(raw)
            if not isinstance(body, dict):
                return None
            lease = Lease(**{field.name: body[field.name] for field in fields(Lease)})
        except (ValueError, KeyError, RecursionError):
            return None
        return lease if _is_sound(lease) else None


def judge(lease: Lease, age: float | None, here: Here, alive: Callable[[int, float], bool]) -> Verdict:
    """Whether the holder of `lease` is still there.

    `age` is how many seconds ago it was last written, by the store's clock; None when nobody knows, which proves nothing. ``alive(pid,
    pid_start)`` says whether that process, and no later one of the same number, runs here; it is asked only about processes that this node
    would see.
    """
    if age is not None and age >= EXPIRY_S:
        return Verdict.DEAD
    if lease.host != here.host or not lease.boot_id or not here.boot_id:
        return Verdict.LIVE
    if lease.boot_id != here.boot_id:
        return Verdict.LIVE if lease.host in _NAMELESS else Verdict.DEAD
    if not lease.pid_namespace or lease.pid_namespace != here.pid_namespace:
        return Verdict.LIVE  # another container of the same node: its processes have other numbers
    return Verdict.LIVE if alive(lease.pid, lease.pid_start) else Verdict.DEAD


def _is_sound(lease: Lease) -> bool:
    texts = (lease.token, lease.host, lease.boot_id, lease.pid_namespace, lease.version)
    numbers = (lease.pid, lease.pid_start, lease.started)
    if not all(isinstance(text, str) for text in texts) or not lease.token:
        return False
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
        return False
    if not isinstance(lease.pid, int) or not 0 < lease.pid < 1 << 32:
        return False
    return all(0 <= number <= _LATEST for number in numbers[1:])  # which no infinity and no NaN is
