"""What ``stager pull`` says before anything is written: a part that does not fit, a hub that lists and refuses, silence, and a DEST that is none."""

from __future__ import annotations

import pytest

from tests.harness import MIB
from tests.hublab.faults import Fault
from tests.hublab.repos import Zeros
from tests.pullbed import PullBed


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_part_larger_than_the_buffer_is_refused_before_anything_is_written(
    pullbed: PullBed, dry: tuple[str, ...]
) -> None:
    pullbed.commit({"huge.bin": Zeros(700 * 1000**3, sha256="0" * 64)})
    line = pullbed.refused(4, "--buffer", "64MiB", *dry)
    assert "`huge.bin` of 651.9 GiB goes in parts of 67.0 MiB, and --buffer holds 64.0 MiB" in line
    assert "hint: give `--buffer 134.0MiB` or more" in line
    assert pullbed.manifest() == {}
    assert pullbed.pull("--dry-run", "--buffer", "134.0MiB").code == 0, "what the hint says is true"


@pytest.mark.parametrize("source", ["acme/tiny", "hf://acme/tiny"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_hub_that_lists_and_gives_nothing_is_refused_before_anything_is_written(
    pullbed: PullBed, source: str, dry: tuple[str, ...]
) -> None:
    pullbed.source = source
    operation = "hf-resolve" if source.startswith("hf") else "repo"
    pullbed.hub.faults.add(Fault("error", times=None, operation=operation, status=403, samples=True))
    line = pullbed.refused(6, *dry)
    assert f"`model-00001-of-00002.safetensors` of {'' if 'hf' in source else 'ms://'}{source}" in line
    assert "accept its conditions" in line
    assert pullbed.written() == []


def test_one_byte_is_asked_for_only_where_something_is_wanted(pullbed: PullBed) -> None:
    asked = "model-00001-of-00002.safetensors"
    pullbed.good()
    assert pullbed.hub.log.count(operation="cdn", key=asked) == 2, "the byte, and the file"
    pullbed.hub.faults.add(Fault("error", times=None, operation="repo", status=403, samples=True))
    pullbed.good()


def test_a_server_that_ignores_ranges_is_refused_before_anything_is_written(pullbed: PullBed) -> None:
    pullbed.commit({"huge.bin": Zeros((64 * MIB) + 2, sha256="0" * 64)})
    pullbed.hub.faults.add(Fault("whole", times=None, host="cdn", samples=True))
    line = pullbed.refused(5)
    assert "`huge.bin` of ms://acme/tiny: this server ignores ranges, and a file of 64.0 MiB" in line
    assert "download it with the hub's own tool and pull that folder" in line
    assert pullbed.written() == []
