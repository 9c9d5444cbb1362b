"""What ``stager pull`` finds out about the model itself before anything is changed: one that is no whole model at the hub is not taken for one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness import MIB
from tests.pullbed import PullBed, weights

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 2097152\n"
both = pytest.mark.parametrize("source", ["acme/tiny", "hf://acme/tiny"])


def index(*shards: str) -> bytes:
    return json.dumps(
        {"metadata": {}, "weight_map": {f"w{at}": one for at, one in enumerate(shards)}}
    ).encode()


def lacking(bed: PullBed) -> None:
    bed.commit({INDEX: index(FIRST, SECOND), SECOND: None})


def short(bed: PullBed) -> None:
    bed.commit({SECOND: weights(2 * MIB, "b")[: MIB + 5]})


def pointer(bed: PullBed) -> None:
    bed.commit({SECOND: POINTER})


DEFECTS = {
    "a shard lacks": (lacking, f"{SECOND}: missing: `{INDEX}` names it (1 of 2 shards are missing)"),
    "a shard is short": (
        short,
        f"{SECOND}: truncated: its header describes 2097152 bytes and it has 1048581",
    ),
    "a pointer": (pointer, f"{SECOND}: a git-lfs pointer, not the file itself"),
}


@both
@pytest.mark.parametrize("kind", DEFECTS)
def test_what_is_no_whole_model_is_refused_before_anything_is_changed(
    pullbed: PullBed, kind: str, source: str
) -> None:
    spoil, said = DEFECTS[kind]
    spoil(pullbed)
    pullbed.source = source
    line = pullbed.refused(8)
    assert f"error: incomplete model at the hub: {said}" in line
    assert "`--allow-incomplete` pulls it as it is" in line
    assert pullbed.written() == []
    assert pullbed.refused(8, "--dry-run") == line


def test_a_model_that_is_there_stays_as_it_is(pullbed: PullBed) -> None:
    pullbed.good()
    before, manifest = pullbed.objects(), pullbed.manifest()
    short(pullbed)
    pullbed.refused(8)
    assert (pullbed.objects(), pullbed.manifest()) == (before, manifest)


def test_an_incomplete_model_on_demand(pullbed: PullBed) -> None:
    _, said = DEFECTS["a shard lacks"]
    lacking(pullbed)
    assert pullbed.pull("--allow-incomplete", "--dry-run").code == 0
    done = pullbed.pull("--allow-incomplete", "--json")
    assert done.code == 0, str(done)
    pullbed.complete()
    found = done.event("pull_summary")
    assert found["complete"]
    assert found["defects"] == [said]
    [note] = [one for one in done.all("note") if one["level"] == "warning"]
    assert said in note["message"]
    done = pullbed.pull("--allow-incomplete", "--restart")
    assert f"warning: incomplete at the hub: {said}" in done.out


def test_all_there_is_not_judged_again(pullbed: PullBed) -> None:
    pullbed.commit({INDEX: index(FIRST, SECOND)})
    pullbed.good()
    pullbed.forget()
    pullbed.good()
    assert pullbed.hub.bytes_sent() == 0


# A selection


def test_what_the_user_leaves_out_is_remarked_on(pullbed: PullBed) -> None:
    pullbed.commit({INDEX: index(FIRST, SECOND)})
    done = pullbed.pull("--json", "--include", "*.json")
    assert done.code == 0, str(done)
    [note] = [one for one in done.all("note") if one["code"] == "selection"]
    assert note["level"] == "info"
    assert f"what is selected is no whole model: {FIRST}: missing" in note["message"]
    done = pullbed.pull("--json", "--exclude", FIRST)
    assert done.code == 0, str(done)
    assert [one["code"] for one in done.all("note")] == ["selection"]


def test_a_defect_of_what_the_user_leaves_out_does_not_count(pullbed: PullBed) -> None:
    short(pullbed)
    assert pullbed.pull("--exclude", SECOND).code == 0
    lacking(pullbed)
    assert pullbed.pull("--include", "*.json").code == 0


def test_a_defect_of_what_is_selected_counts(pullbed: PullBed) -> None:
    lacking(pullbed)
    line = pullbed.refused(8, "--exclude", "extra/*")
    assert f"{SECOND}: missing" in line


def test_a_quantisation_that_lacks_a_part_spoils_no_other(pullbed: PullBed) -> None:
    def gguf(name: str) -> Mapping[str, bytes]:
        return {name: b"GGUF" + (3).to_bytes(4, "little") + bytes(16)}

    pullbed.repo.commit(dict.fromkeys((FIRST, SECOND)))
    pullbed.commit({**gguf("tiny-Q4_K_M.gguf"), **gguf("tiny-Q8_0-00001-of-00002.gguf")})
    pullbed.good("--for", "llama.cpp", "--quant", "Q4_K_M")
    line = pullbed.refused(8)
    assert "tiny-Q8_0-00002-of-00002.gguf: missing: part of a numbered set" in line


# Other sources, other trouble


def test_a_folder_is_judged_too(pullbed: PullBed) -> None:
    folder = Path(pullbed.box.path("made"))
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights(2 * MIB)[:MIB])
    pullbed.source = str(folder)
    line = pullbed.refused(8)
    assert "model.safetensors: truncated" in line
    (folder / "model.safetensors").write_bytes(weights(2 * MIB))
    pullbed.good()


def test_headers_are_read_side_by_side_and_no_more_than_them(pullbed: PullBed) -> None:
    shards = [f"model-{at:05}-of-00040.safetensors" for at in range(1, 41)]
    content = weights(2 * MIB)
    changes = dict.fromkeys(shards, content)
    pullbed.repo.commit(dict.fromkeys((FIRST, SECOND)))
    pullbed.commit({**changes, INDEX: index(*shards)})
    assert pullbed.pull("--dry-run").code == 0
    asked = [one for one in pullbed.hub.log.records() if one.operation == "cdn"]
    assert len(asked) == 41  # and a byte, to see whether it is given
    assert len({one.connection for one in asked}) > 4
    assert pullbed.hub.bytes_sent() < 40 * 300 * 1024 + 64 * 1024


def test_a_weight_without_a_format_is_no_defect(pullbed: PullBed) -> None:
    pullbed.repo.commit(dict.fromkeys((FIRST, SECOND)))
    pullbed.commit({"weights.npz": os.urandom(MIB)})
    pullbed.good()
