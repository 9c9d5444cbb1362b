"""What manifests rest upon: for every cause its exit code (podFailurePolicy), a termination message that says the same, limits as plain numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MIB, Box
from tests.hublab.faults import Fault as HubFault
from tests.osslab.faults import Fault
from tests.pullbed import MANIFEST, MODEL, PullBed
from tests.test_last_words import Kubelet, kubelet  # noqa: F401 - a fixture

pytestmark = pytest.mark.root

Case = Callable[
    [PullBed], tuple[list[str], dict[str, str]]
]  # what goes wrong; the words to say, and the environment


def _pull(*words: str, source: str = MODEL) -> Case:
    return lambda bed: (["pull", source, bed.url, *words], bed.env())


def _pull_without_put(bed: PullBed) -> tuple[list[str], dict[str, str]]:
    return ["pull", MODEL, bed.url], bed.env(key=bed.oss.keys.temporary(denied={"put:*"}))


def _pull_with(fault: HubFault, *words: str) -> Case:
    def case(bed: PullBed) -> tuple[list[str], dict[str, str]]:
        bed.hub.faults.add(fault)
        return ["pull", MODEL, bed.url, *words], bed.env()

    return case


def _pull_with_store(fault: Fault) -> Case:
    def case(bed: PullBed) -> tuple[list[str], dict[str, str]]:
        bed.oss.faults.add(fault)
        return ["pull", MODEL, bed.url], bed.env()

    return case


def _fetch(*words: str, model: str = "m/tiny") -> Case:
    def case(bed: PullBed) -> tuple[list[str], dict[str, str]]:
        assert bed.pull().code == 0
        return ["fetch", bed.oss.url(model), bed.box.path("fetched"), *words], bed.env()

    return case


def _fetch_with(fault: Fault, *words: str) -> Case:
    def case(bed: PullBed) -> tuple[list[str], dict[str, str]]:
        found = _fetch(*words)(bed)
        bed.oss.faults.add(fault)
        return found

    return case


def _fetch_updating(bed: PullBed) -> tuple[list[str], dict[str, str]]:
    found = _fetch()(bed)
    bed.oss.put(bed.prefix + MANIFEST, json.dumps({**bed.manifest(), "state": "updating"}).encode())
    return found


def _fetch_without_get(bed: PullBed) -> tuple[list[str], dict[str, str]]:
    words, _ = _fetch()(bed)
    return words, bed.env(key=bed.oss.keys.temporary(denied={"get:*"}))


def _warm(*words: str, cut: bool = False) -> Case:
    def case(bed: PullBed) -> tuple[list[str], dict[str, str]]:
        model = bed.box.model()
        if cut:
            shard = sorted(Path(model).glob("*.safetensors"))[0]
            os.truncate(shard, shard.stat().st_size - MIB)
        return ["warm", model, *words], {}

    return case


CASES: dict[str, tuple[int, Case]] = {
    "pull: an option that is wrong": (2, _pull("--buffer", "much")),
    "pull: a bucket that is full": (4, _pull_with_store(Fault("error", times=None, operation="PutObject", key_glob="*/model-*", status=403, code="QuotaExceeded"))),
    "pull: a hub that cannot answer now": (5, _pull_with(HubFault("unavailable", times=None, host="cdn", seconds=9999))),
    "pull: no permission to write": (6, _pull_without_put),
    "pull: no such model": (7, _pull(source="acme/nothing")),
    "pull: bytes that are wrong twice": (8, _pull_with(HubFault("corrupt", times=None, host="cdn"))),
    "pull: no time left": (10, _pull_with(HubFault("hang", times=None, host="cdn", seconds=600), "--timeout", "1s")),
    "fetch: an option that is wrong": (2, _fetch("--no-cache", "--strict")),
    "fetch: a disk that is too full": (4, _fetch("--keep-free", "1000TiB")),
    "fetch: a store that cannot answer now": (5, _fetch_with(Fault("unavailable", times=None, seconds=9999, key_glob="*/model-*"))),
    "fetch: no permission to read": (6, _fetch_without_get),
    "fetch: nothing there": (7, _fetch(model="m/nothing")),
    "fetch: a model that is being updated": (8, _fetch_updating),
    "fetch: no time left": (10, _fetch_with(Fault("hang", times=None, key_glob="*/model-*", seconds=600), "--timeout", "1s")),
    "warm: options that contradict each other": (2, _warm("--strict", "--fail-open")),
    "warm: memory that does not suffice, strictly": (4, _warm("--strict", "--budget", "1MiB")),
    "warm: a shard that was cut": (8, _warm(cut=True)),
    "warm: a shard that was cut, though it fails open": (8, _warm("--fail-open", cut=True)),
    "warm: no time left": (10, _warm("--max-rate", "1MiB", "--timeout", "300ms")),
}  # fmt: skip
_SLUGS = {
    2: "usage",
    4: "resource_refused",
    5: "remote",
    6: "access",
    7: "not_found",
    8: "integrity",
    10: "deadline",
}


@pytest.mark.parametrize("cause", CASES)
def test_a_cause_has_its_exit_code(pullbed: PullBed, kubelet: Kubelet, cause: str) -> None:  # noqa: F811
    code, case = CASES[cause]
    words, env = case(pullbed)
    done = pullbed.box.run(*words, "--metrics", pullbed.box.path("x.prom"), env=env, before=kubelet.before)
    said = kubelet.words
    assert done.code == said["exit"] == code, str(done)
    assert (said["v"], said["command"], said["result"], said["error"]) == (
        1,
        words[0],
        "failed",
        _SLUGS[code],
    )
    assert said["reason"] in done.err
    assert "\r" not in done.out + done.err
    if code != 2:  # nothing begins when the command line is wrong
        metrics = Path(pullbed.box.path("x.prom")).read_text()
        assert f'run_exit_code{{command="{words[0]}"' in metrics
        assert f"}} {code}\n" in metrics
        assert 'state="failed"} 1' in metrics


def test_the_downward_api_gives_the_limit_as_a_plain_number(box: Box) -> None:
    """``resourceFieldRef: limits.memory`` with divisor 1, as STAGER_LIMIT."""
    path = box.file("weights.data", MIB)
    done = box.run("check", path, env={"STAGER_LIMIT": str(64 << 30), "STAGER_RESERVE": "0"})
    assert done.code == 0, str(done)
    assert "--limit" in done.out
    assert "64.0 GiB" in done.out
