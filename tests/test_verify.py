"""``stager verify`` end to end: a model against its manifest, in a bucket and in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fetchbed import manifest_of, random_file
from tests.harness import MIB, Box, Done
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss
from tests.pullbed import MANIFEST, PullBed, refusal

A, B, C, D = "a.safetensors", "b/b.safetensors", "b/c.json", "empty"
SIZES = {A: 17 * MIB + 3, B: MIB, C: 40, D: 0}
TOTAL = sum(SIZES.values())


class VerifyBed:
    """A model in a folder and in a bucket, both with a manifest, and ``stager verify``."""

    def __init__(self, box: Box, oss: Oss) -> None:
        self.box, self.oss = box, oss
        self.url, self.dir = oss.url("m"), box.path("m")
        for name, size in SIZES.items():
            random_file(os.path.join(self.dir, name), size)
        self.declare(manifest_of(self.dir))
        oss.serve_folder(self.dir, "m/")
        for name in SIZES:  # not served in place: tests change files in one of both
            oss.put(f"m/{name}", Path(self.dir, name).read_bytes())

    def declare(self, raw: bytes) -> None:
        """A manifest for both."""
        Path(self.dir, ".stager").mkdir(exist_ok=True)
        Path(self.dir, MANIFEST).write_bytes(raw)
        self.oss.put(f"m/{MANIFEST}", raw)

    def both(self, *words: str, **options: Any) -> tuple[Done, Done]:
        """Two proofs side by side: of the bucket and of the folder."""
        started = [
            self.box.start("verify", where, *words, env=self.oss.env(), **options)
            for where in (self.url, self.dir)
        ]
        in_bucket, in_folder = (one.finish() for one in started)
        return in_bucket, in_folder


@pytest.fixture
def bed(box: Box, oss: Oss) -> VerifyBed:
    """A `VerifyBed`."""
    return VerifyBed(box, oss)


def told(done: Done, code: int) -> dict[str, Any]:
    """The summary of a proof with --json that ended with `code`."""
    assert done.code == code, str(done)
    found = done.event("verify_summary")
    assert found["ok"] == (code == 0), str(done)
    return found


def test_what_is_as_the_manifest_says(bed: VerifyBed) -> None:
    for done in bed.both("--json"):
        found = told(done, 0)
        assert (found["files"], found["total"], found["read"]) == (len(SIZES), TOTAL, TOTAL)
        assert (found["by"], found["wrong"], found["unproven"]) == ("crc64", [], 0)
    for done in bed.both("--sha256"):
        assert done.code == 0, str(done)
        assert done.out.startswith("verified: 18.0 MiB in 4 files of ")
        assert " by sha256 in " in done.out
    assert {one.operation for one in bed.oss.log.records()} <= {"ListObjectsV2", "GetObject", "HeadObject"}


def test_every_kind_of_wrong_at_once(bed: VerifyBed) -> None:
    """One flipped byte, a file that is gone, one that is cut short, and one that nobody promised."""
    data = bytearray(Path(bed.dir, A).read_bytes())
    data[16 * MIB + 1] ^= 1
    Path(bed.dir, A).write_bytes(data)
    bed.oss.put(f"m/{A}", bytes(data))
    os.unlink(os.path.join(bed.dir, C))
    bed.oss.remove(f"m/{C}")
    os.truncate(os.path.join(bed.dir, B), 99)
    bed.oss.put(f"m/{B}", b"." * 99)
    Path(bed.dir, "more").write_bytes(b"more")
    bed.oss.put("m/more", b"more")
    for words, by in (((), "CRC-64 "), (("--sha256",), "CRC-64 ")):
        for done in bed.both("--json", *words):
            wrong = dict(told(done, 8)["wrong"])
            assert sorted(wrong) == [A, B, C]
            assert wrong[A].startswith(by)
            assert wrong[B] == f"99 bytes, the manifest says {MIB}"
            assert wrong[C] == "missing"
    for done in bed.both("--include", "*.safetensors", "--exclude", "b/*"):
        assert done.code == 8, str(done)
        assert done.out.splitlines()[-1].startswith("not verified: 1 of 1 file is wrong in ")
        assert A in done.out.splitlines()[0]


def test_sha256_where_the_crc_is_not_known_or_says_nothing(bed: VerifyBed) -> None:
    """A file without a CRC in the manifest is proven by its sha256 in any case; one with a CRC that fits only when asked to."""
    other = {"sha256": "0" * 64}
    body = json.loads(manifest_of(bed.dir, **{A: other, B: other, C: {}}))
    for row in body["files"]:
        if row["path"] == B:
            del row["crc64"]
        if row["path"] == C:
            del row["sha256"]
    bed.declare(json.dumps(body).encode())
    for words, wrong, unproven in (((), [B], 0), (("--sha256",), [A, B], 1)):
        for done in bed.both("--json", *words):
            found = told(done, 8)
            assert [path for path, _ in found["wrong"]] == wrong
            assert all(why.startswith("sha256 ") for _, why in found["wrong"])
            assert found["unproven"] == unproven


def test_what_could_not_be_proven_is_no_yes(bed: VerifyBed) -> None:
    body = json.loads(manifest_of(bed.dir, **{C: {}}))
    for row in body["files"]:
        if row["path"] == A:
            del row["sha256"]
        if row["path"] == C:
            row.pop("sha256", None)
            row.pop("crc64", None)
    bed.declare(json.dumps(body).encode())
    for done in bed.both():
        assert done.code == 3, str(done)
        assert "1 of 4 files has no checksum in the manifest: only its size was compared" in done.out
        assert "crc64, which" not in done.out
    for done in bed.both("--sha256"):
        assert done.code == 3, str(done)
        assert "1 of 4 files has no checksum" in done.out
        assert "of 4 files was proven by crc64, which is all that the manifest states" in done.out
    for done in bed.both("--json", "--include", A):
        assert told(done, 0)["bare"] == 0


def test_nothing_to_hold_it_against(bed: VerifyBed) -> None:
    for raw, code, line, hint in (
        (manifest_of(bed.dir, state="updating"), 8, "is being updated", "wait until the writer"),
        (b"{", 8, "is not a manifest", "pull the model again"),
    ):
        bed.declare(raw)
        for done in bed.both():
            assert line in refusal(done, code)
            assert hint in refusal(done, code)
    os.unlink(os.path.join(bed.dir, MANIFEST))
    bed.oss.remove(f"m/{MANIFEST}")
    for done in bed.both():
        assert "has no manifest to be held against" in refusal(done, 7)
        assert "stager check" in refusal(done, 7)
    bed.url, bed.dir = bed.oss.url("nothing"), bed.box.path("nothing")
    for done in bed.both():
        refusal(done, 7)


def test_what_comes_wrong_over_the_network_is_read_again(bed: VerifyBed) -> None:
    fault = bed.oss.faults.add(Fault("corrupt", key_glob=f"m/{A}"))
    done = bed.box.run("verify", bed.url, "--json", env=bed.oss.env())
    assert fault.fired == 1
    assert told(done, 0)["read"] == TOTAL + SIZES[A]


def test_what_a_pull_left(pullbed: PullBed) -> None:
    pullbed.good("--verify", "crc")
    done = pullbed.run("verify", pullbed.url, "--sha256", "--json")
    told(done, 0)
    [note] = done.all("note")
    assert note["code"] == "unproven"
    assert pullbed.written()[-1].operation in ("DeleteObject", "DeleteMultipleObjects")  # of the pull's lease
