"""The budget: its arithmetic by example, and what must hold for any node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stager.core import budget
from stager.core.budget import (
    KUBELET_EVICTION,
    UNBOUNDED,
    Policy,
    admit,
    describe,
    limit_needed,
    margin,
    used_share,
)
from stager.core.model import Level, LevelKind, MemorySnapshot
from stager.core.units import GIB, MIB

SYSTEM = Level(LevelKind.SYSTEM, "system", "/proc/meminfo", 1000 * GIB, 100 * GIB, 60 * GIB)
POD = Level(LevelKind.V2, "/pod", "/sys/fs/cgroup/pod/memory.max", 700 * GIB, 10 * GIB, 4 * GIB)
OWN = Level(LevelKind.V2, "/pod/own", "/sys/fs/cgroup/pod/own/memory.max", 650 * GIB, 2 * GIB, GIB, own=True)
NODE = MemorySnapshot((OWN, POD, SYSTEM), in_kubernetes=True)
NOTHING_KEPT = Policy(reserve=0)


def only(level: Level, *, in_kubernetes: bool = False) -> MemorySnapshot:
    return MemorySnapshot((level,), in_kubernetes=in_kubernetes)


def test_everything_fits_without_a_loss() -> None:
    answer = admit(NODE, Policy(), 640 * GIB, 0)
    assert answer.fits
    assert answer.displaces == 0
    assert answer.advice == ""
    assert answer.binding is not None
    assert answer.binding.level is OWN
    assert [(room.reserve, room.free // GIB, room.room // GIB) for room in answer.rooms] == [
        (0, 648, 649),
        (8 * GIB, 682, 686),
        (8 * GIB + KUBELET_EVICTION, 891, 951),
    ]


def test_what_fits_only_when_others_lose_their_cache_says_how_much() -> None:
    answer = admit(NODE, Policy(), 648 * GIB + 512 * MIB, 0)
    assert answer.fits
    assert answer.displaces == 512 * MIB


def test_not_a_byte_past_the_room() -> None:
    answer = admit(NODE, Policy(), 649 * GIB + 1, 0)
    assert (answer.granted, answer.shortfall) == (649 * GIB, 1)
    assert answer.binding is not None
    assert answer.binding.level is OWN


def test_the_default_reserve_is_a_quarter_of_small_levels() -> None:
    assert budget.default_reserve(20 * GIB) == 5 * GIB
    assert budget.default_reserve(32 * GIB) == budget.default_reserve(2000 * GIB) == 8 * GIB


def test_the_reserve_counts_at_own_levels_only_when_the_engine_runs_there() -> None:
    policy = Policy(reserve=3 * GIB)
    assert budget.reserve_at(OWN, policy, in_kubernetes=True) == 0
    assert budget.reserve_at(POD, policy, in_kubernetes=True) == 3 * GIB
    assert budget.reserve_at(OWN, replace(policy, engine_shares_own=True), in_kubernetes=True) == 3 * GIB


def test_buffers_of_stager_count_everywhere_those_of_the_daemon_at_the_system() -> None:
    policy = Policy(reserve=0, footprint=GIB, daemon_buffers=6 * GIB)
    plain = admit(NODE, NOTHING_KEPT, 0, 0).rooms
    kept = admit(NODE, policy, 0, 0).rooms
    assert [before.room - after.room for before, after in zip(plain, kept, strict=True)] == [
        GIB,
        GIB,
        7 * GIB,
    ]


def test_own_pages_are_no_room_when_warming_goes_on() -> None:
    level = replace(OWN, limit=100 * GIB, used=91 * GIB, reclaimable=90 * GIB)
    assert margin(only(level), NOTHING_KEPT, 0)[0] == 99 * GIB
    left, binding = margin(only(level), NOTHING_KEPT, 90 * GIB)
    assert left == 9 * GIB
    assert binding is not None
    assert binding.level is level


def test_the_margin_turns_negative_before_own_pages_would_go() -> None:
    level = replace(
        OWN, limit=100 * GIB, used=101 * GIB, reclaimable=80 * GIB
    )  # above memory.high for a moment
    assert margin(only(level), NOTHING_KEPT, 80 * GIB)[0] == -GIB


def test_a_blind_level_is_charged_with_pages_it_cannot_show() -> None:
    """A pod whose first init container warmed 50 GiB and ended: our own level shows none of it, the pod holds it."""
    pod = Level(LevelKind.GIVEN, "given limit", "--limit", 100 * GIB, GIB, GIB // 2, blind=True)
    assert margin(only(pod), NOTHING_KEPT, 50 * GIB)[0] == 100 * GIB - GIB // 2 - 50 * GIB
    assert margin(only(replace(pod, blind=False)), NOTHING_KEPT, 50 * GIB)[0] == 99 * GIB


def test_a_budget_counts_what_is_resident_already() -> None:
    answer = admit(NODE, Policy(budget=100 * GIB), 200 * GIB, 30 * GIB)
    assert answer.granted == 70 * GIB
    assert answer.binding is not None
    assert answer.binding.level.kind is LevelKind.BUDGET
    assert "--budget 230Gi" in answer.advice
    assert margin(NODE, Policy(budget=100 * GIB), 100 * GIB)[0] == 0


def test_a_budget_in_percent_is_of_the_smallest_limit() -> None:
    assert admit(NODE, Policy(budget=0.5), 400 * GIB, 0).granted == 325 * GIB
    assert admit(MemorySnapshot(()), Policy(budget=0.5), 400 * GIB, 0).granted == 400 * GIB


def test_no_levels_no_limit() -> None:
    unlimited = replace(POD, limit=None)
    for snapshot in (MemorySnapshot(()), only(unlimited)):
        answer = admit(snapshot, Policy(), 7, 0)
        assert (answer.granted, answer.binding, answer.rooms) == (7, None, ())
        assert margin(snapshot, Policy(), 0) == (UNBOUNDED, None)


def test_used_share_follows_the_binding_level() -> None:
    binding = admit(NODE, Policy(), 0, 0).binding
    assert used_share(NODE, binding) == pytest.approx(2 / 650)
    later = MemorySnapshot((replace(OWN, used=325 * GIB), POD, SYSTEM))
    assert used_share(later, binding) == pytest.approx(0.5)
    assert used_share(only(SYSTEM), binding) is None
    assert used_share(NODE, None) is None


@pytest.mark.parametrize(
    ("level", "policy", "kubernetes", "advice"),
    [
        (OWN, Policy(footprint=GIB), True, "set `resources.limits.memory: 802Gi` on the container that runs stager"),
        (POD, Policy(), True, "is the limit of the whole pod: raise the sum of its containers' `resources.limits.memory` to 814Gi"),
        (replace(POD, name="/kubepods.slice"), Policy(), True, "is what the node keeps for pods"),
        (POD, Policy(reserve=0), False, "raise `/sys/fs/cgroup/pod/memory.max` to 806Gi or more, or remove that limit"),
        (replace(OWN, source="/x/memory.high"), Policy(), True, "raise `resources.requests.memory` too"),
        (SYSTEM, Policy(reserve=200 * GIB), False, "use a node with 1040Gi of memory or more, `--reserve 160Gi` or less"),
        (replace(SYSTEM, limit=700 * GIB), Policy(), False, "use a node with 848Gi of memory or more, or warm fewer files"),
        (replace(POD, kind=LevelKind.GIVEN, source="--limit"), Policy(), True, "raise the limit that `--limit` repeats to 814Gi"),
    ],
)  # fmt: skip
def test_advice(level: Level, policy: Policy, kubernetes: bool, advice: str) -> None:
    assert advice in admit(only(level, in_kubernetes=kubernetes), policy, 800 * GIB, 0).advice


def test_advice_names_every_limit_in_the_way_the_tightest_first() -> None:
    advice = admit(NODE, Policy(), 800 * GIB, 0).advice
    assert advice.index("on the container") < advice.index("whole pod")
    assert "node with" not in advice


def test_describe_names_the_limit_by_file_and_number() -> None:
    lines = describe(admit(NODE, Policy(reserve=GIB, budget=990 * GIB), 800 * GIB, 0))
    assert lines == [
        "cgroup v2 /pod/own: limit 650.0 GiB, used 2.0 GiB, reclaimable 1.0 GiB, reserve 0 B, room 649.0 GiB",
        "cgroup v2 /pod: limit 700.0 GiB, used 10.0 GiB, reclaimable 4.0 GiB, reserve 1.0 GiB, room 693.0 GiB",
        "system: limit 1000.0 GiB, used 100.0 GiB, reclaimable 60.0 GiB, reserve 1.1 GiB, room 958.9 GiB",
        "--budget: 990.0 GiB, resident already 0 B, room 990.0 GiB",
        (
            "/sys/fs/cgroup/pod/own/memory.max = 697932185600 (650.0 GiB) binds: 649.0 GiB of 800.0 GiB fit, "
            "151.0 GiB do not"
        ),
        "1.0 GiB of other files' clean cache will be displaced",
    ]


def test_describe_when_all_fits_and_no_cgroup_is_seen() -> None:
    assert describe(admit(only(SYSTEM), Policy(), GIB, 0))[1:] == [
        "no cgroup limit can be seen here; if the pod has one, pass it with `--limit`",
        (
            "all 1.0 GiB fit; the tightest limit is the memory of this node (/proc/meminfo: MemTotal 1000.0 GiB), "
            "room 952.0 GiB"
        ),
    ]


def test_describe_shortens_long_names_and_shows_odd_ones() -> None:
    level = replace(POD, name="/kubepods/" + "x" * 80 + "/tail\n\udcff", blind=True)
    line = describe(admit(only(level), Policy(), 0, 0))[0]
    assert line.startswith("cgroup v2 …")
    assert r"/tail\n\xff: limit" in line
    assert "used at least 10.0 GiB" in line


# What must hold for any node

BYTES = st.integers(0, 4 << 40)


@st.composite
def levels(draw: st.DrawFn) -> Level:
    kind = draw(st.sampled_from([LevelKind.V1, LevelKind.V2, LevelKind.GIVEN, LevelKind.SYSTEM]))
    used = draw(BYTES)
    return Level(
        kind,
        f"/{draw(st.integers(0, 9))}",
        f"/sys/{draw(st.integers())}",
        draw(st.none() | BYTES),
        used,
        draw(st.integers(0, used)),
        own=draw(st.booleans()),
        blind=draw(st.booleans()),
    )


SNAPSHOTS = st.builds(
    lambda found, kubernetes: MemorySnapshot(tuple(found), in_kubernetes=kubernetes),
    st.lists(levels(), max_size=5),
    st.booleans(),
)
POLICIES = st.builds(
    Policy,
    reserve=st.none() | BYTES,
    budget=st.none() | BYTES | st.floats(0, 1),
    footprint=st.integers(0, GIB),
    daemon_buffers=st.integers(0, 8 * GIB),
    engine_shares_own=st.booleans(),
)


@given(SNAPSHOTS, POLICIES, BYTES, BYTES)
def test_granted_is_never_more_than_needed_or_than_any_room(
    snapshot: MemorySnapshot, policy: Policy, need: int, resident: int
) -> None:
    answer = admit(snapshot, policy, need, resident)
    assert 0 <= answer.granted <= need
    assert all(answer.granted <= room.room for room in answer.rooms)
    assert answer.fits == all(need <= room.room for room in answer.rooms)
    assert 0 <= answer.displaces <= answer.granted
    assert (answer.binding is None) == (not answer.rooms)
    assert bool(answer.advice) == (not answer.fits)
    assert describe(answer)


@given(SNAPSHOTS, POLICIES, BYTES, BYTES)
def test_own_pages_are_never_counted_as_room(
    snapshot: MemorySnapshot, policy: Policy, need: int, resident: int
) -> None:
    """With what is granted in place, nothing but the clean cache of others has to go, at any level."""
    granted = admit(snapshot, policy, need, resident).granted
    assume(granted > 0)
    for level in snapshot.levels:
        if level.limit is not None:
            unmovable = level.used - level.reclaimable + min(level.reclaimable, resident)
            assert unmovable + granted <= level.limit


@given(SNAPSHOTS, POLICIES, BYTES, BYTES, st.data())
def test_a_higher_limit_never_grants_less(
    snapshot: MemorySnapshot, policy: Policy, need: int, resident: int, data: st.DataObject
) -> None:
    assume(snapshot.levels)
    index = data.draw(st.integers(0, len(snapshot.levels) - 1))
    limit = snapshot.levels[index].limit
    higher = None if limit is None else data.draw(st.none() | st.integers(limit, limit + (1 << 40)))
    if isinstance(policy.budget, float):
        assume(
            higher is not None
        )  # a fraction of the smallest limit means another thing when that one goes away
    raised = list(snapshot.levels)
    raised[index] = replace(raised[index], limit=higher)
    more = replace(snapshot, levels=tuple(raised))
    assert admit(more, policy, need, resident).granted >= admit(snapshot, policy, need, resident).granted


@given(SNAPSHOTS, POLICIES, BYTES, BYTES, BYTES)
def test_more_reserve_never_grants_more(
    snapshot: MemorySnapshot, policy: Policy, need: int, resident: int, more: int
) -> None:
    assume(policy.reserve is not None)
    assert policy.reserve is not None
    greedy = replace(policy, reserve=policy.reserve + more)
    assert admit(snapshot, greedy, need, resident).granted <= admit(snapshot, policy, need, resident).granted


@given(SNAPSHOTS, POLICIES, BYTES, BYTES)
def test_a_budget_is_never_overrun(
    snapshot: MemorySnapshot, policy: Policy, need: int, resident: int
) -> None:
    allowed = budget.budget_bytes(policy, snapshot)
    assume(allowed is not None)
    assert allowed is not None
    granted = admit(snapshot, policy, need, resident).granted
    assert granted == 0 or resident + granted <= allowed


@given(SNAPSHOTS, POLICIES, BYTES, BYTES)
def test_the_margin_and_the_admission_agree(
    snapshot: MemorySnapshot, policy: Policy, need: int, resident: int
) -> None:
    left, _ = margin(snapshot, policy, resident)
    assert admit(snapshot, policy, need, resident).granted == max(0, min(need, left))


@given(SNAPSHOTS, POLICIES, BYTES, st.lists(st.integers(1, 1 << 38), max_size=6))
def test_the_margin_reaches_zero_before_own_pages_go(
    snapshot: MemorySnapshot, policy: Policy, resident: int, steps: list[int]
) -> None:
    """Warm in steps on a node that charges every page: what the sentinel allows never needs an own page's place."""
    resident = min([resident, *(level.reclaimable for level in snapshot.levels)])
    for wanted in steps:
        left, _ = margin(snapshot, policy, resident)
        added = max(0, min(wanted, left))
        resident += added
        after = []
        for level in snapshot.levels:
            used, clean = level.used + added, level.reclaimable + added
            over = max(0, used - level.limit) if level.limit is not None and added else 0
            assert over <= clean - resident, "the kernel would have to take one of ours"
            after.append(replace(level, used=used - over, reclaimable=clean - over))
        snapshot = replace(snapshot, levels=tuple(after))


@given(levels(), POLICIES, BYTES, BYTES, st.booleans())
def test_the_advised_limit_suffices(
    level: Level, policy: Policy, need: int, resident: int, kubernetes: bool
) -> None:
    wanted = limit_needed(level, policy, need, resident, in_kubernetes=kubernetes)
    raised = only(replace(level, limit=wanted), in_kubernetes=kubernetes)
    assert admit(raised, replace(policy, budget=None), need, resident).fits


@given(st.integers(0, 8 << 40))
def test_yaml_sizes_hold_what_they_say(size: int) -> None:
    text = budget.yaml_size(budget.round_up(size))
    value = int(text[:-2]) * {"Gi": GIB, "Mi": MIB}[text[-2:]]
    assert size <= value < size + GIB
