"""The lease of a pull: what is written is read, half of it is nothing, and only what is proven dead is dead."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.lease import EXPIRY_S, HEARTBEAT_S, Here, Lease, Verdict, judge

LEASE = Lease("t0", "node-7", "boot-a", 123, 5501.0, "pid:[4026531836]", 1769847300.0, "0.4.0")
HERE = Here("node-7", "boot-a", "pid:[4026531836]")
LIVE, DEAD = Verdict.LIVE, Verdict.DEAD


def never(pid: int, start: float) -> bool:
    raise AssertionError("this process is not of this node")


def runs(pid: int, start: float) -> bool:
    return (pid, start) == (123, 5501.0)


def gone(pid: int, start: float) -> bool:
    return False


seconds = st.floats(0, 253402300799)
leases = st.builds(
    Lease,
    st.text(min_size=1),
    st.text(),
    st.text(),
    st.integers(1, 2**32 - 1),
    seconds,
    st.text(),
    seconds,
    st.text(),
)


@given(leases)
def test_what_is_written_is_read(lease: Lease) -> None:
    raw = lease.dump()
    assert Lease.parse(raw) == lease
    assert raw.isascii()
    assert lease.holder.isprintable()


@given(leases, st.data())
def test_half_a_lease_is_none(lease: Lease, data: st.DataObject) -> None:
    raw = lease.dump().rstrip()
    assert Lease.parse(raw[: data.draw(st.integers(0, len(raw) - 1))]) is None


@given(st.binary())
def test_no_rubbish_raises(raw: bytes) -> None:
    assert Lease.parse(raw) is None or raw


def test_holes_of_a_half_written_file_are_none() -> None:
    raw = LEASE.dump()
    assert Lease.parse(raw[:20] + b"\0" * (len(raw) - 20)) is None
    assert Lease.parse(b"[" * 100_000) is None
    assert Lease.parse(raw + b" " * (1 << 20)) is None
    assert Lease.parse(b"[]") is None
    assert Lease.parse(b"[" * 60_000) is None


@pytest.mark.parametrize(
    "field", ["token", "host", "boot_id", "pid", "pid_start", "pid_namespace", "started", "version"]
)
def test_every_field_counts(field: str) -> None:
    body = json.loads(LEASE.dump())
    del body[field]
    assert Lease.parse(json.dumps(body).encode()) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token", ""),
        ("token", 7),
        ("host", None),
        ("pid", 0),
        ("pid", -1),
        ("pid", 1.5),
        ("pid", True),
        ("pid", 1 << 40),
        ("pid_start", float("nan")),
        ("pid_start", "1"),
        ("started", float("inf")),
        ("started", -1),
        ("started", 1e300),
        ("started", 10**4000),
        ("started", True),
    ],
)
def test_what_no_pull_writes_is_none(field: str, value: object) -> None:
    body = {**json.loads(LEASE.dump()), field: value}
    assert Lease.parse(json.dumps(body).encode()) is None


def test_a_later_version_is_still_a_lease() -> None:
    body = {**json.loads(LEASE.dump()), "v": 2, "region": "cn-hangzhou"}
    assert Lease.parse(json.dumps(body).encode()) == LEASE


def test_the_holder_in_words() -> None:
    assert LEASE.holder == "node-7, pid 123, since 2026-01-31 08:15:00 UTC"
    assert replace(LEASE, host="a\nb").holder.startswith("a\\nb, pid 123")
    assert replace(LEASE, host="").holder.startswith("an unknown host")


def test_a_lease_outlives_lost_heartbeats() -> None:
    assert EXPIRY_S >= 3 * HEARTBEAT_S


ELSEWHERE = Here("node-8", "boot-b", "pid:[1]")
OTHERS = {
    "another host": ELSEWHERE,
    "another host of the same name of pid namespace": replace(ELSEWHERE, pid_namespace=HERE.pid_namespace),
    "another container of the node": replace(HERE, pid_namespace="pid:[2]"),
    "another container with its own name": replace(HERE, host="pod-1"),
    "no namespace known": replace(HERE, pid_namespace=""),
    "no boot id known": replace(HERE, boot_id=""),
}


@pytest.mark.parametrize("here", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    ("age", "verdict"), [(None, LIVE), (-5.0, LIVE), (0.0, LIVE), (39.9, LIVE), (40.0, DEAD)]
)
def test_from_elsewhere_only_time_tells(here: Here, age: float | None, verdict: Verdict) -> None:
    assert judge(LEASE, age, here, never) is verdict


def test_on_the_same_node_the_process_tells() -> None:
    assert judge(LEASE, 0.0, HERE, runs) is LIVE
    assert judge(LEASE, None, HERE, runs) is LIVE
    assert judge(LEASE, 0.0, HERE, gone) is DEAD
    assert judge(LEASE, None, HERE, gone) is DEAD
    assert judge(replace(LEASE, pid_start=7.0), 0.0, HERE, runs) is DEAD, (
        "the number belongs to another by now"
    )


def test_a_process_that_has_stopped_writing_is_dead_though_it_runs() -> None:
    assert judge(LEASE, EXPIRY_S, HERE, runs) is DEAD


def test_a_lease_from_before_the_restart_is_dead_at_once() -> None:
    assert judge(LEASE, 0.0, replace(HERE, boot_id="boot-b"), never) is DEAD


@pytest.mark.parametrize("host", ["", "localhost", "localhost.localdomain"])
def test_a_name_that_every_machine_has_proves_no_restart(host: str) -> None:
    there = replace(LEASE, host=host)
    assert judge(there, 0.0, Here(host, "boot-b", HERE.pid_namespace), never) is LIVE
    assert judge(there, 0.0, Here(host, "boot-a", HERE.pid_namespace), gone) is DEAD


def test_unknown_names_are_not_equal_names() -> None:
    bare = replace(LEASE, boot_id="", pid_namespace="")
    assert judge(bare, 0.0, Here(LEASE.host, "", ""), never) is LIVE
    assert judge(replace(LEASE, pid_namespace=""), 0.0, Here(LEASE.host, LEASE.boot_id, ""), never) is LIVE
