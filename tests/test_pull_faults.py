"""A pull between a hub and a store that fail in every way they can: byte-identical all the same, or an end that says why."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.harness import MIB, Done, Running, environment
from tests.hublab.faults import Fault as HubFault
from tests.osslab.faults import Fault
from tests.osslab.sts import Sts
from tests.pullbed import LEASE, MANIFEST, PART, PullBed, refusal

QUICK = ("--read-timeout", "1s", "-P", "8", "--no-adapt")
# What can happen to the answer that brings bytes of a file. Those after which a connection is silent outlast --read-timeout.
FROM_HUB: dict[str, dict[str, float]] = {
    "reset": {},
    "close": {},
    "drop": {},
    "unavailable": {"seconds": 0.1},
    "limited": {"seconds": 0.1},
    "error": {},
    "stall": {"seconds": 2},
    "hang": {"seconds": 2},
    "wrong-range": {},
    "whole": {},
}
# What can happen to a request that changes something in the store, and leaves no trace there.
INTO_STORE: dict[str, dict[str, float]] = {
    "reset": {},
    "close": {},
    "drop": {},
    "lost": {},
    "unavailable": {"seconds": 0.1},
    "error": {},
    "wrong-crc": {},
    "hang": {"seconds": 2},
}
# The program with a patience of half a second: what two minutes of trying again are like can be seen in that, too.
_HASTY = (
    "from stager.store.opening import StoreOptions; "
    "StoreOptions.__init__.__kwdefaults__['give_up_after'] = 0.5; "
    "from stager.cli import main; main()"
)


def shards(bed: PullBed, count: int, size: int = MIB, name: str = "shard") -> list[str]:
    """More files for the model, `size` bytes and a few each; their paths."""
    files = {f"{name}-{number:02}.bin": os.urandom(size + number) for number in range(count)}
    bed.commit(files)
    return sorted(files)


def hasty(bed: PullBed, *words: str) -> Done:
    """A pull to its end that gives up soon."""
    settings = environment(STAGER_MARKER=bed.box.marker, **bed.env())
    running = Running([sys.executable, "-c", _HASTY, "pull", bed.source, str(bed.dest), *words], settings)
    bed.box.runs.append(running)
    return running.finish()


def of_a_role(bed: PullBed, sts: Sts) -> dict[str, str]:
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


def dealt(names: list[str], kinds: Iterable[str], each: int = 2) -> list[tuple[str, str]]:
    """(name, kind): `each` different kinds for every name, in turn. More would only be waited for: each failure doubles the wait."""
    turn = itertools.cycle(kinds)
    return [(name, next(turn)) for name in names for _ in range(each)]


# Outlived


def test_every_kind_of_the_hub_in_one_pull(pullbed: PullBed) -> None:
    blows = dealt(shards(pullbed, 20), FROM_HUB)
    for name, kind in blows:
        pullbed.hub.faults.add(HubFault(kind, host="cdn", key_glob=name, **FROM_HUB[kind]))  # type: ignore[arg-type]
    done = pullbed.good(*QUICK)
    assert pullbed.hub.faults.counts == Counter(kind for _, kind in blows)
    whole = sum(kind == "whole" for _, kind in blows)  # which is passed over, not asked for again
    assert done["retried"] == len(blows) - whole
    assert done["mended"] == 0
    pullbed.complete()


def test_addresses_at_the_cdn_run_out_meanwhile(pullbed: PullBed) -> None:
    names = shards(pullbed, 2, 2 * PART)
    for name in names:  # each has three parts, and the second comes from the address of the first
        pullbed.hub.faults.add(HubFault("expired", host="cdn", key_glob=name, skip=1))
    done = pullbed.good("-P", "1", "--no-adapt")
    assert pullbed.hub.faults.counts == {"expired": 2}
    assert done["retried"] == 0
    assert pullbed.hub.log.count(operation="repo", key="shard-*") == 4
    pullbed.complete()


def test_what_the_hub_itself_says_may_fail_too(pullbed: PullBed) -> None:
    kinds = ("drop", "unavailable", "limited", "error", "hang", "reset", "close")
    blows = dealt(shards(pullbed, 7), kinds)
    for name, kind in blows:
        seconds = 2 if kind == "hang" else 0.1
        pullbed.hub.faults.add(HubFault(kind, operation="repo", key_glob=name, seconds=seconds, samples=True))
    for kind in ("drop", "cut-list", "garbled"):
        pullbed.hub.faults.add(HubFault(kind, operation="files"))
    pullbed.good(*QUICK)
    assert pullbed.hub.faults.counts == Counter([*(kind for _, kind in blows), "drop", "cut-list", "garbled"])
    pullbed.complete()


def test_every_kind_on_parts_in_one_pull(pullbed: PullBed, sts: Sts) -> None:
    kinds: dict[str, dict[str, float]] = {**INTO_STORE, "expired": {}}
    blows = dealt(shards(pullbed, 6, PART + MIB, "large"), kinds, each=3)
    for name, kind in blows:
        fault = Fault(kind, operation="UploadPart", key_glob=f"*/{name}", **kinds[kind])  # type: ignore[arg-type]
        pullbed.oss.faults.add(fault)
    done = pullbed.good(*QUICK, env=of_a_role(pullbed, sts))
    assert pullbed.oss.faults.counts == dict.fromkeys(kinds, 2)
    assert done["retried"] == len(blows)
    assert pullbed.unfinished() == []
    assert done["pulled"] == done["total"], "sent again from memory"
    pullbed.complete()


def test_every_kind_on_objects_sent_at_once(pullbed: PullBed) -> None:
    blows = dealt(shards(pullbed, 16), INTO_STORE)
    for name, kind in blows:
        fault = Fault(kind, operation="PutObject", key_glob=f"*/{name}", **INTO_STORE[kind])  # type: ignore[arg-type]
        pullbed.oss.faults.add(fault)
    done = pullbed.good(*QUICK)
    assert pullbed.oss.faults.counts == dict.fromkeys(INTO_STORE, 4)
    assert done["retried"] == len(blows)
    pullbed.complete()


def test_every_kind_on_what_begins_and_ends_an_upload(pullbed: PullBed) -> None:
    names = shards(pullbed, 8, PART + 1)
    for name, kind in zip(names, INTO_STORE, strict=True):
        for operation in ("InitiateMultipartUpload", "CompleteMultipartUpload"):
            fault = Fault(kind, operation=operation, key_glob=f"*/{name}", **INTO_STORE[kind])  # type: ignore[arg-type]
            pullbed.oss.faults.add(fault)
    pullbed.good(*QUICK)
    asked = ("InitiateMultipartUpload", "CompleteMultipartUpload")
    fired = Counter(one.fault for one in pullbed.oss.log.records() if one.fault and one.operation in asked)
    assert fired == Counter(dict.fromkeys(INTO_STORE, 2)) - Counter({"wrong-crc": 1})
    unheard = [name for name, kind in zip(names, INTO_STORE, strict=True) if kind in ("lost", "hang")]
    assert pullbed.unfinished() == unheard, "uploads of whose beginning no answer told"
    pullbed.complete()


def test_every_other_request_to_the_store_may_fail_too(pullbed: PullBed) -> None:
    pullbed.good()
    shards(pullbed, 2)
    asked = ("ListObjectsV2", "ListMultipartUploads", "HeadObject", "GetObject", "DeleteMultipleObjects")
    kinds = ("reset", "lost", "error")
    for operation, kind in itertools.product(asked, kinds):
        pullbed.oss.faults.add(Fault(kind, operation=operation))
    pullbed.oss.faults.add(Fault("cut-list", operation="ListObjectsV2"))
    pullbed.oss.faults.add(Fault("cut-list", operation="ListMultipartUploads"))
    done = pullbed.good(*QUICK)
    fired = Counter((one.operation, one.fault) for one in pullbed.oss.log.records() if one.fault)
    for pair in itertools.product(asked, kinds):
        assert fired[pair] == 1, pair
    assert pullbed.oss.faults.counts["cut-list"] == 2
    assert done["already"] > 0
    pullbed.complete()


@pytest.mark.parametrize("kind", ["lost", "error"])
def test_an_answer_about_the_lease_or_the_manifest_is_lost(pullbed: PullBed, kind: str) -> None:
    for name in (LEASE, MANIFEST):
        pullbed.oss.faults.add(Fault(kind, times=2, operation="PutObject", key_glob=f"*/{name}"))
    pullbed.good(*QUICK)
    assert pullbed.oss.faults.counts[kind] >= 3
    pullbed.complete()


def test_a_slow_connection_to_the_hub_is_replaced(pullbed: PullBed) -> None:
    shards(pullbed, 24, 4 * MIB)
    fault = HubFault("slow", host="cdn", key_glob="shard-*", rate=256 << 10, skip=9, sticky=True)
    pullbed.hub.faults.add(fault)
    done = pullbed.good("-P", "8", "--no-adapt")
    assert fault.fired == 1
    assert done["replaced"] == 1
    pullbed.complete()


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_is_aborted_from_outside_begins_anew_in_the_next_run(
    pullbed: PullBed, operation: str
) -> None:
    [name] = shards(pullbed, 1, 2 * PART + 5, "large")
    with pullbed.held_at_store(operation=operation, key_glob=f"*/{name}") as gate:
        running = pullbed.start()
        gate.reached()
        pullbed.oss.bucket.uploads.clear()  # as a lifecycle rule does
    line = refusal(running.finish(), 5)
    assert f"`{name}` is gone" in line
    assert "run it again" in line
    pullbed.good()
    pullbed.complete()


# Wrong bytes


def test_a_corrupt_byte_of_the_hub_is_found_and_the_file_pulled_again(pullbed: PullBed) -> None:
    names = ["model-00001-of-00002.safetensors", *shards(pullbed, 1, 2 * PART + 5, "large")]
    for name in names:
        pullbed.hub.faults.add(
            HubFault("corrupt", host="cdn", key_glob=name, skip=1 if "large" in name else 0)
        )
    done = pullbed.good()
    assert pullbed.hub.faults.counts["corrupt"] == 2
    assert done["mended"] == 2
    assert pullbed.unfinished() == []
    pullbed.complete()


def test_what_is_corrupt_twice_never_becomes_an_object(pullbed: PullBed) -> None:
    [name] = shards(pullbed, 1, 2 * PART + 5, "bad")
    small = "model-00001-of-00002.safetensors"
    for path in (name, small):
        pullbed.hub.faults.add(HubFault("corrupt", times=None, host="cdn", key_glob=path))
    line = pullbed.refused(8)
    assert name in line or small in line
    assert "wrong checksum" in line
    assert not {name, small} & pullbed.objects().keys()
    assert pullbed.unfinished() == []
    assert pullbed.manifest()["state"] == "updating"
    for words in (("fetch", pullbed.url, pullbed.box.path("copy")), ("check", pullbed.url)):
        done = pullbed.run(*words)
        assert done.code == 8, str(done)
    assert pullbed.prefix + LEASE not in pullbed.oss.names()
    pullbed.hub.faults.clear()
    pullbed.good()
    pullbed.complete()


def test_what_is_corrupt_twice_is_that_also_where_nothing_may_be_aborted(pullbed: PullBed) -> None:
    [name] = shards(pullbed, 1, PART + 5, "bad")
    pullbed.hub.faults.add(HubFault("corrupt", times=None, host="cdn", key_glob=name))
    pullbed.oss.faults.add(
        Fault("error", times=None, operation="AbortMultipartUpload", status=403, code="AccessDenied")
    )
    done = pullbed.pull("--json")
    assert done.code == 8, str(done)
    assert "wrong checksum" in done.event("error")["message"]
    told = [one for one in done.all("note") if one["code"] == "upload_left"]
    assert len(told) == len(pullbed.unfinished()) == 2
    assert name in told[0]["message"]


def test_an_object_is_not_replaced_by_what_is_corrupt_twice(pullbed: PullBed) -> None:
    [name] = shards(pullbed, 1, 2 * PART, "bad")
    pullbed.good()
    old = pullbed.objects()[name]
    shards(pullbed, 1, 2 * PART, "bad")
    pullbed.hub.faults.add(HubFault("corrupt", times=None, host="cdn", key_glob=name))
    assert name in pullbed.refused(8)
    assert pullbed.objects()[name] == old
    assert pullbed.manifest()["state"] == "updating", "the other files are of another revision already"


def test_a_store_that_never_has_what_was_sent_gets_no_object(pullbed: PullBed) -> None:
    pullbed.oss.faults.add(Fault("wrong-crc", times=None, operation="PutObject", key_glob="*/model-*"))
    line = refusal(hasty(pullbed), 5)
    assert "CRC-64" in line
    assert pullbed.manifest()["state"] == "updating"


# Given up


def test_a_hub_that_falls_silent_is_named(pullbed: PullBed) -> None:
    pullbed.hub.faults.add(HubFault("stall", times=None, host="cdn", seconds=600))
    line = pullbed.refused(10, "--stall-timeout", "2s", "--read-timeout", "60s")
    assert "no bytes for" in line
    assert "while reading model-0000" in line
    assert pullbed.prefix + LEASE not in pullbed.oss.names()
    assert pullbed.manifest()["state"] == "updating"


def test_a_listing_that_never_comes_is_named(pullbed: PullBed) -> None:
    pullbed.hub.faults.add(HubFault("hang", times=None, operation="files", seconds=600))
    line = pullbed.refused(10, "--stall-timeout", "2s", "--read-timeout", "60s")
    assert "acme/tiny" in line
    words = ("--dry-run", "--read-timeout", "60s")
    assert "acme/tiny" in pullbed.refused(10, *words, "--stall-timeout", "1s")
    assert "--timeout ran out" in pullbed.refused(10, *words, "--timeout", "1s")
    assert pullbed.written() == []


def test_a_store_that_falls_silent_is_named(pullbed: PullBed) -> None:
    shards(pullbed, 2, 5 * PART, "model-9")  # more than the buffer holds: the lanes that read wait too
    pullbed.oss.faults.add(Fault("hang", times=None, key_glob="*/model-9-*", seconds=600))
    words = ("--stall-timeout", "2s", "--read-timeout", "60s", "--buffer", "64MiB")
    line = pullbed.refused(10, *words)
    assert "no answer for" in line
    assert "while sending model-9-" in line


@pytest.mark.parametrize("side", ["cdn", "store"])
def test_a_side_that_asks_for_more_time_than_there_is(pullbed: PullBed, side: str) -> None:
    if side == "store":
        pullbed.oss.faults.add(Fault("unavailable", times=None, seconds=9999, key_glob="*/model-*"))
    else:
        pullbed.hub.faults.add(HubFault("unavailable", times=None, host="cdn", seconds=9999))
    line = pullbed.refused(5)
    assert ("OSS cannot answer now" if side == "store" else "503") in line


@pytest.mark.parametrize("side", ["cdn", "store"])
def test_a_side_that_is_gone_is_given_up(pullbed: PullBed, side: str) -> None:
    listener = pullbed.hub.cdn if side == "cdn" else pullbed.oss.listener
    listener.stop()
    line = refusal(hasty(pullbed), 5)
    assert "Connection refused" in line
    assert ("127.0.0.2" if side == "cdn" else pullbed.url) in line


def test_a_store_that_goes_away_in_the_middle(pullbed: PullBed) -> None:
    shards(pullbed, 2, 3 * PART)
    pullbed.oss.faults.add(Fault("drop", times=None, operation="UploadPart", skip=2))
    done = hasty(pullbed, "--json")
    assert done.code == 5, str(done)
    assert done.event("pull_summary")["reason"] == "run it again to go on"
    pullbed.oss.faults.clear()
    assert pullbed.good()["resumed"] >= 2 * PART - MIB
    pullbed.complete()


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(403, "QuotaExceeded", 4), (507, "InsufficientStorage", 4)],
)
def test_a_store_that_is_full_says_so_in_its_own_words(
    pullbed: PullBed, status: int, code: str, exit_code: int
) -> None:
    pullbed.oss.faults.add(
        Fault("error", times=None, operation="PutObject", key_glob="*/model-*", status=status, code=code)
    )
    line = refusal(hasty(pullbed), exit_code)
    assert code in line
    assert "model-0000" in line
    assert pullbed.manifest()["state"] == "updating"


def test_no_secret_is_shown(pullbed: PullBed) -> None:
    pullbed.repo.private = True
    key = pullbed.oss.keys.temporary()
    pullbed.hub.faults.add(HubFault("error", times=None, host="cdn", status=403))
    for words in (("-vv",), ("-vv", "--json")):
        done = pullbed.pull(*words, "--timeout", "3s", key=key, token=True)
        assert done.code == 10, str(done)
        assert "HTTP 403" in done.out + done.err
        for secret in (key.secret, str(key.token), pullbed.hub.token, "Signature=", "OSS4-HMAC", "Bearer"):
            assert secret not in done.out + done.err
