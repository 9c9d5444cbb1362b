"""How many bytes may be warmed, and which limit says so. Pure: snapshots in, answers out.

At every level that has a limit::

    free = limit - used - reserve - overhead       what fits while nobody loses anything
    room = free + max(0, reclaimable - resident)   what fits when the clean cache of others goes

`resident` are pages of the model itself. They stand among the reclaimable figures, and evicting one of them to warm
another would gain nothing, so they are never room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stager.core.model import Admission, Level, LevelKind, LevelRoom, MemorySnapshot
from stager.core.units import GIB, MIB, format_size, shown

UNBOUNDED = (1 << 63) - 1
"""The margin where nothing limits."""

DEFAULT_RESERVE = 8 * GIB
DEFAULT_RESERVE_DIVISOR = 4
KUBELET_EVICTION = 100 * MIB
"""The kubelet's default hard threshold ``memory.available<100Mi``: below it pods are evicted."""

_SHOWN_NAME = 40
# The kubelet's own cgroups around all pods, with either cgroup driver. Their limit is the node's allocatable memory.
_ALL_PODS = ("kubepods", "burstable", "besteffort", "kubepods-burstable", "kubepods-besteffort")


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept back, in bytes.

    `reserve` is for the engine, None for the default of `default_reserve`; it counts at the system and at every level
    that the engine shares, at a container's own levels only when `engine_shares_own` (the engine will run in this very
    container). `budget` is the most of the model that may be resident in all: bytes, or a fraction (float) of the
    smallest limit. `footprint` are stager's own buffers, `daemon_buffers` those of a FUSE daemon, which lives outside
    this container: they count at the system alone. Give both only as far as they are not allocated yet.
    """

    reserve: int | None = None
    budget: int | float | None = None
    footprint: int = 0
    daemon_buffers: int = 0
    engine_shares_own: bool = False


def default_reserve(limit: int) -> int:
    """8 GiB, or a quarter of `limit` where that is less."""
    return min(DEFAULT_RESERVE, limit // DEFAULT_RESERVE_DIVISOR)


def reserve_at(level: Level, policy: Policy, *, in_kubernetes: bool) -> int:
    """The bytes kept back at `level` for the engine and, at the system level of a Kubernetes node, for the kubelet."""
    if level.limit is None or (level.own and not policy.engine_shares_own):
        return 0
    reserve = default_reserve(level.limit) if policy.reserve is None else policy.reserve
    return reserve + (KUBELET_EVICTION if in_kubernetes and level.kind is LevelKind.SYSTEM else 0)


def overhead_at(level: Level, policy: Policy) -> int:
    """The buffers that reading will need and that `level` will be charged for."""
    return policy.footprint + (policy.daemon_buffers if level.kind is LevelKind.SYSTEM else 0)


def charged(level: Level, resident: int) -> int:
    """The bytes to count as used. A blind level may hold resident pages that its lower bound does not show."""
    return level.used + (max(0, resident - level.reclaimable) if level.blind else 0)


def others_clean(level: Level, resident: int) -> int:
    """The clean cache at `level` that is not the model's own."""
    return max(0, level.reclaimable - resident)


def room_at(level: Level, policy: Policy, resident: int, *, in_kubernetes: bool) -> LevelRoom | None:
    """What `level` has room for beside `resident` bytes of the model; negative when short, None without a limit."""
    if level.limit is None:
        return None
    reserve = reserve_at(level, policy, in_kubernetes=in_kubernetes)
    free = level.limit - charged(level, resident) - reserve - overhead_at(level, policy)
    return LevelRoom(level, reserve, free, free + others_clean(level, resident))


def budget_bytes(policy: Policy, snapshot: MemorySnapshot) -> int | None:
    """The budget in bytes; None without one, or for a fraction where nothing has a limit."""
    if not isinstance(policy.budget, float):
        return policy.budget
    limits = [level.limit for level in snapshot.levels if level.limit is not None]
    return int(policy.budget * min(limits)) if limits else None


def budget_room(policy: Policy, snapshot: MemorySnapshot, resident: int) -> LevelRoom | None:
    """What ``--budget`` leaves beside `resident` bytes, in the shape of a level; None without a budget."""
    budget = budget_bytes(policy, snapshot)
    if budget is None:
        return None
    level = Level(LevelKind.BUDGET, "budget", "--budget", budget, resident, 0)
    return LevelRoom(level, 0, budget - resident, budget - resident)


def admit(snapshot: MemorySnapshot, policy: Policy, need: int, resident: int) -> Admission:
    """How many of `need` bytes may be warmed while `resident` bytes of the same model are in the cache already.

    All of `need` is granted exactly when every level with a limit, and the budget, has room for it. Levels without a
    limit do not appear in `rooms`; rooms are shown as 0 where they are negative.
    """
    rooms = _rooms(snapshot, policy, resident)
    binding = min(rooms, key=lambda room: room.room, default=None)
    granted = need if binding is None else max(0, min(need, binding.room))
    return Admission(
        need=need,
        granted=granted,
        binding=None if binding is None else _shown_room(binding),
        rooms=tuple(_shown_room(room) for room in rooms),
        displaces=max((displaced(room, granted) for room in rooms), default=0),
        advice="" if binding is None or granted >= need else _advice(snapshot, policy, rooms, need, resident),
    )


def margin(snapshot: MemorySnapshot, policy: Policy, own_resident: int) -> tuple[int, LevelRoom | None]:
    """(bytes that may still be added now, the level that says so) with `own_resident` warmed bytes in the cache.

    Zero or less means stop: the next page would cost the engine its reserve, or one of the pages just warmed.
    `UNBOUNDED` and None where nothing limits.
    """
    binding = min(_rooms(snapshot, policy, own_resident), key=lambda room: room.room, default=None)
    return (UNBOUNDED, None) if binding is None else (binding.room, binding)


def displaced(room: LevelRoom, added: int) -> int:
    """The clean cache of others that must go at this level when `added` bytes come; a budget displaces nothing."""
    return 0 if room.level.kind is LevelKind.BUDGET else max(0, added - max(0, room.free))


def used_share(snapshot: MemorySnapshot, binding: LevelRoom | None) -> float | None:
    """How full the binding level is now, cache included, 0..1; None when it is gone or is no memory level."""
    for level in snapshot.levels:
        if binding is not None and (level.kind, level.source) == (binding.level.kind, binding.level.source):
            return min(1.0, level.used / level.limit) if level.limit else None
    return None


def limit_needed(level: Level, policy: Policy, need: int, resident: int, *, in_kubernetes: bool) -> int:
    """The smallest limit, rounded up to what one writes in YAML, under which `level` has room for `need` bytes."""
    unlimited = replace(level, limit=UNBOUNDED)
    base = (
        charged(level, resident) - others_clean(level, resident) + overhead_at(level, policy) + max(0, need)
    )
    fixed = reserve_at(unlimited, policy, in_kubernetes=in_kubernetes)
    if policy.reserve is None and fixed:
        fixed -= DEFAULT_RESERVE
        base += fixed
        # The default reserve grows with the limit: a quarter of it, until the quarter is 8 GiB.
        return round_up(
            min(base + DEFAULT_RESERVE, -(-base * DEFAULT_RESERVE_DIVISOR // (DEFAULT_RESERVE_DIVISOR - 1)))
        )
    return round_up(base + fixed)


def round_up(size: int) -> int:
    """`size` up to the next GiB, below 8 GiB up to the next 64 MiB."""
    step = GIB if size > 8 * GIB else 64 * MIB
    return -(-size // step) * step


def yaml_size(size: int) -> str:
    """`size` as a Kubernetes quantity: ``700Gi``, ``1536Mi``."""
    return f"{size // GIB}Gi" if size % GIB == 0 else f"{-(-size // MIB)}Mi"


def describe(admission: Admission) -> list[str]:
    """The lines for people: one per level, then what limits, by file and number, and what warming displaces.

    The advice is not among them; it is printed as a hint.
    """
    lines = [_level_line(room) for room in admission.rooms]
    if not any(room.level.kind in (LevelKind.V1, LevelKind.V2, LevelKind.GIVEN) for room in admission.rooms):
        lines.append("no cgroup limit can be seen here; if the pod has one, pass it with `--limit`")
    if admission.binding is not None:
        lines.append(_binding_line(admission, admission.binding))
    if admission.displaces:
        lines.append(f"{format_size(admission.displaces)} of other files' clean cache will be displaced")
    return lines


def binding_text(binding: LevelRoom) -> str:
    """The limit by file and number: ``/sys/fs/cgroup/memory.max = 17179869184 (16.0 GiB)``."""
    level = binding.level
    if level.kind is LevelKind.SYSTEM:
        return f"the memory of this node (/proc/meminfo: MemTotal {_size(level.limit)})"
    return f"{shown(level.source)} = {level.limit} ({_size(level.limit)})"


def _rooms(snapshot: MemorySnapshot, policy: Policy, resident: int) -> list[LevelRoom]:
    """The signed rooms of all levels with a limit, the budget last."""
    found = [
        room_at(level, policy, resident, in_kubernetes=snapshot.in_kubernetes) for level in snapshot.levels
    ]
    found.append(budget_room(policy, snapshot, resident))
    return [room for room in found if room is not None]


def _shown_room(room: LevelRoom) -> LevelRoom:
    return replace(room, free=max(0, room.free), room=max(0, room.room))


def _level_line(room: LevelRoom) -> str:
    level = room.level
    if level.kind is LevelKind.BUDGET:
        return f"--budget: {_size(level.limit)}, resident already {format_size(level.used)}, room {format_size(room.room)}"
    at_least = "at least " if level.blind else ""
    parts = [
        f"limit {_size(level.limit)}",
        f"used {at_least}{format_size(level.used)}",
        f"reclaimable {format_size(level.reclaimable)}",
        f"reserve {format_size(room.reserve)}",
        f"room {format_size(room.room)}",
    ]
    return f"{_level_name(level)}: {', '.join(parts)}"


def _level_name(level: Level) -> str:
    """`cgroup v2 /kubepods/...`: long names keep their end, which tells containers apart."""
    if level.kind is LevelKind.SYSTEM:
        return "system"
    if level.kind is LevelKind.GIVEN:
        return "--limit"
    name = shown(level.name)
    return f"{level.kind} {name if len(name) <= _SHOWN_NAME else '…' + name[-_SHOWN_NAME:]}"


def _binding_line(admission: Admission, binding: LevelRoom) -> str:
    what = binding_text(binding)
    if admission.fits:
        fits = f"all {format_size(admission.need)} fit" if admission.need else "nothing to read"
        return f"{fits}; the tightest limit is {what}, room {format_size(binding.room)}"
    return (
        f"{what} binds: {format_size(admission.granted)} of {format_size(admission.need)} fit, "
        f"{format_size(admission.shortfall)} do not"
    )


def _size(size: int | None) -> str:
    return "none" if size is None else format_size(size)


def _advice(
    snapshot: MemorySnapshot, policy: Policy, rooms: list[LevelRoom], need: int, resident: int
) -> str:
    """What to change so that `need` fits: one sentence for each limit that stands in the way, the tightest first."""
    short = sorted((room for room in rooms if room.room < need), key=lambda room: room.room)
    return "; ".join(
        _advice_for(room, policy, need, resident, in_kubernetes=snapshot.in_kubernetes) for room in short
    )


def _advice_for(room: LevelRoom, policy: Policy, need: int, resident: int, *, in_kubernetes: bool) -> str:
    level = room.level
    if level.kind is LevelKind.BUDGET:
        return f"give `--budget {yaml_size(round_up(resident + need))}` or more, or leave it out"
    wanted = yaml_size(limit_needed(level, policy, need, resident, in_kubernetes=in_kubernetes))
    if level.kind is LevelKind.GIVEN:
        return f"raise the limit that `--limit` repeats to {wanted} or more, and pass the new value"
    if level.kind is LevelKind.SYSTEM:
        return _system_advice(room, need, wanted)
    if not in_kubernetes:
        return f"raise `{shown(level.source)}` to {wanted} or more, or remove that limit"
    if level.name.rpartition("/")[2].removesuffix(".slice") in _ALL_PODS:
        return f"`{shown(level.source)}` is what the node keeps for pods: use a node with more memory ({wanted} for pods)"
    if not level.own:
        return (
            f"`{shown(level.source)}` is the limit of the whole pod: raise the sum of its containers' "
            f"`resources.limits.memory` to {wanted} or more, or leave one container without a limit"
        )
    yaml = f"set `resources.limits.memory: {wanted}` on the container that runs stager, or remove its limit"
    if level.source.endswith("/memory.high"):
        return (
            f"{yaml} (memory.high follows the request and the limit: raise `resources.requests.memory` too)"
        )
    return yaml


def _system_advice(room: LevelRoom, need: int, wanted: str) -> str:
    missing = need - room.room
    lower = ""
    if missing <= room.reserve:
        lower = f", `--reserve {yaml_size((room.reserve - missing) // MIB * MIB)}` or less"
    return f"use a node with {wanted} of memory or more{lower}, or warm fewer files with `--include` and `--exclude`"
