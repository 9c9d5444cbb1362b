"""A fetch from a store that fails in every way it can: complete and byte-identical all the same, or an end that says why."""

from __future__ import annotations

import os

import pytest

from tests.fetchbed import RANGE, Bed, same, size_of, summary
from tests.harness import MIB
from tests.osslab.faults import Fault
from tests.osslab.sts import Sts

TIMES = 20
QUICK = ("--read-timeout", "1s", "-P", "8")
# What can happen to the answer to one range. Those after which a connection is silent outlast --read-timeout.
KINDS: dict[str, dict[str, float]] = {
    "reset": {},
    "close": {},
    "drop": {},
    "unavailable": {"seconds": 0.1},
    "error": {},
    "wrong-crc": {},
    "stall": {"seconds": 2},
    "hang": {"seconds": 2},
    "whole": {},
    "wrong-range": {},
    "changed": {},
}


def small_model(folder: str, count: int) -> str:
    """Many objects of one small range each, so that a fault costs a megabyte and not sixteen."""
    os.makedirs(folder)
    for number in range(count):
        with open(os.path.join(folder, f"part-{number:03}.bin"), "wb") as file:
            file.write(os.urandom(MIB + number))
    return folder


def of_a_role(bed: Bed, sts: Sts) -> dict[str, str]:
    """An environment whose keys are those of a role: they can be renewed."""
    token = bed.box.path("token")
    with open(token, "w") as file:
        file.write(sts.issue())
    return {
        "OSS_ACCESS_KEY_ID": "",
        "OSS_ACCESS_KEY_SECRET": "",
        "ALIBABA_CLOUD_ROLE_ARN": sts.role,
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": sts.provider,
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE": token,
        "ALIBABA_CLOUD_STS_ENDPOINT": sts.endpoint,
    }


def test_all_kinds_mixed_on_large_ranges(bed: Bed, large: str) -> None:
    bed.serve(large)
    for kind, settings in KINDS.items():
        bed.oss.faults.add(
            Fault(kind, times=2, nth=3, operation="GetObject", key_glob="r1/model-*", **settings)
        )
    done = bed.good(*QUICK)
    same(bed.dir, large)
    fired = sum(bed.oss.faults.counts.values())
    assert fired >= 6
    assert done["retried"] >= fired - 2
    assert bed.sent <= size_of(large) + fired * RANGE


def test_twenty_of_each_kind_in_one_fetch(bed: Bed, sts: Sts) -> None:
    source = small_model(bed.box.path("source"), TIMES)
    bed.serve(source)
    # Each object meets every kind once. The last two let it through: one is found at the end, and one means nothing.
    kinds = [*(kind for kind in KINDS if kind != "wrong-crc"), "expired", "lost", "corrupt", "wrong-crc"]
    for number in range(TIMES):
        for kind in kinds:
            settings = KINDS.get(kind, {})
            bed.oss.faults.add(
                Fault(kind, operation="GetObject", key_glob=f"r1/part-{number:03}.bin", **settings)
            )
    env = of_a_role(bed, sts)
    done = bed.good("--read-timeout", "1s", "-P", str(TIMES), "--no-adapt", env=env)
    assert bed.oss.faults.counts == dict.fromkeys(kinds, TIMES)
    same(bed.dir, source)
    assert done["mended"] == TIMES
    assert done["retried"] >= TIMES * (len(kinds) - 2)
    assert bed.sent <= size_of(source) + TIMES * len(kinds) * (MIB + TIMES)


def test_a_slow_trickle_is_still_an_answer(bed: Bed) -> None:
    source = small_model(bed.box.path("source"), 3)
    bed.serve(source)
    fault = bed.oss.faults.add(Fault("slow", times=2, rate=MIB))
    assert bed.good(*QUICK)["retried"] == 0
    assert fault.fired == 2
    same(bed.dir, source)


@pytest.mark.parametrize("kind", ["cut-list", "repeat-list", "no-token"])
def test_a_listing_that_breaks_off_is_asked_for_again(bed: Bed, kind: str) -> None:
    source = small_model(bed.box.path("source"), 3)
    bed.serve(source)
    for number in range(1100):
        bed.put(f"more/{number:04}", b"x")
    bed.oss.faults.add(Fault(kind, times=3, skip=1))
    done = bed.good("--include", "part-*", "--include", "more/0001")
    assert done["files"] == 4


def test_a_corrupt_byte_is_found_and_the_file_fetched_again(bed: Bed, source: str) -> None:
    bed.serve(source)
    fault = bed.oss.faults.add(Fault("corrupt", times=2, key_glob="r1/model-*"))
    done = bed.good()
    assert fault.fired == 2
    assert 1 <= done["mended"] <= 2
    same(bed.dir, source)


def test_a_line_that_corrupts_one_file_again_and_again_is_outlived(bed: Bed, large: str) -> None:
    bed.serve(large)
    name = "model-00001-of-00002.safetensors"
    for time in range(3):  # another byte each time, of the seven ranges of each reading
        fault = Fault("corrupt", times=1, skip=7 * time, key_glob=f"r1/{name}", after_bytes=1000 + time)
        bed.oss.faults.add(fault)
    done = bed.good("-P", "1")
    assert bed.oss.faults.counts["corrupt"] == 3
    assert done["mended"] == 3
    same(bed.dir, large)


def test_what_is_corrupt_twice_never_gets_its_name(bed: Bed, source: str) -> None:
    bed.serve(source)
    name = "model-00002-of-00003.safetensors"
    bed.oss.faults.add(Fault("corrupt", times=None, key_glob=f"r1/{name}"))
    line = bed.refused(8)
    assert name in line
    assert "wrong checksum, again" in line
    assert not os.path.exists(os.path.join(bed.dir, name))
    assert bed.box.state == "failed"
    bed.oss.faults.clear()
    assert bed.fetch().code == 0
    same(bed.dir, source)


@pytest.mark.parametrize("words", [("-vv",), ("-vv", "--json"), ("--processes", "2")], ids=" ".join)
def test_no_permission_ends_it_at_once_and_shows_no_secret(
    bed: Bed, source: str, words: tuple[str, ...]
) -> None:
    bed.serve(source)
    key = bed.oss.keys.temporary(denied={"get:r1/model-*"})
    done = bed.fetch(*words, env=bed.oss.env(key))
    assert done.code == 6, str(done)
    assert "AccessDenied" in done.out + done.err
    for secret in (key.secret, str(key.token), "Signature=", "OSS4-HMAC"):
        assert secret not in done.out + done.err
    assert bed.oss.log.count(operation="GetObject", status=403) <= 64


def test_a_store_that_asks_for_more_time_than_there_is(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.oss.faults.add(Fault("unavailable", times=None, seconds=9999, key_glob="r1/model-*"))
    assert "OSS cannot answer now" in bed.refused(5)
    assert bed.box.state == "failed"
    bed.oss.faults.clear()
    bed.good()


def test_a_store_that_stays_away_is_given_up(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.oss.faults.add(Fault("error", times=None, operation="GetObject", key_glob="r1/model-*"))
    done = bed.fetch("--timeout", "4s")
    assert done.code == 10, str(done)
    assert "run it again" in done.err


def test_a_store_that_falls_silent_is_named(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.oss.faults.add(Fault("stall", times=None, seconds=600, key_glob="r1/model-*"))
    done = bed.fetch("--stall-timeout", "2s", "--read-timeout", "60s")
    bed.oss.listener.cut()
    assert done.code == 10, str(done)
    assert "model-0000" in done.err


def test_expired_keys_of_a_role_are_renewed_meanwhile(bed: Bed, source: str, sts: Sts) -> None:
    bed.serve(source)
    fault = bed.oss.faults.add(
        Fault("expired", times=TIMES, operation="GetObject", key_glob="r1/model-*", nth=2)
    )
    done = summary(bed.fetch("--json", env=of_a_role(bed, sts)))
    assert done["complete"]
    assert "RRSA" in done["credentials"]
    assert fault.fired
    same(bed.dir, source)
