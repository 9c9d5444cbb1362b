"""A pull that is killed goes on where it was, believes nothing that it has not read, and disturbs nobody else."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import oss2
import pytest

from tests.harness import MIB, Running, until
from tests.hublab.faults import Fault as HubFault
from tests.hublab.repos import Zeros
from tests.osslab import checksum
from tests.osslab.faults import Fault
from tests.osslab.log import Record
from tests.osslab.storage import Blob, Content, Part, Pending, Written, read
from tests.pullbed import HEADER, LEASE, MANIFEST, PART, PullBed, contents, files_in, row_of, rows_of

LANES = 2
FEW = ("-P", str(LANES), "--no-adapt")


@pytest.fixture
def large(pullbed: PullBed) -> PullBed:
    """A bed whose model has two files of three parts each besides."""
    pullbed.commit({f"large-{at}.bin": os.urandom(2 * PART + 5 * MIB + at) for at in range(2)})
    return pullbed


def total(bed: PullBed) -> int:
    return sum(one.size for one in bed.repo.files.values())


def parts(bed: PullBed, name: str = "*") -> list[Record]:
    """Parts that have arrived at the store whole."""
    return bed.oss.log.records(operation="UploadPart", key=f"*/{name}", status=200)


def uploaded(bed: PullBed) -> int:
    """Bytes of model files that were sent to the store, those of requests that were cut off among them."""
    kinds = ("UploadPart", "PutObject")
    records = [one for one in bed.oss.log.records() if one.operation in kinds and "/.stager/" not in one.key]
    return sum(one.bytes_received for one in records)


def kill(running: Running) -> None:
    running.signal(signal.SIGKILL)
    assert running.process.wait(10) == -signal.SIGKILL, running.err


def interrupted(bed: PullBed, *words: str) -> None:
    """A pull that is killed once two parts of one large file and one of the other have arrived. Its lease is as if it had run out."""
    faults = [
        Fault(
            "hang", times=None, operation="UploadPart", key_glob=f"*/large-{at}.bin", skip=1 + at, seconds=60
        )
        for at in range(2)
    ]
    for fault in faults:
        bed.oss.faults.add(fault)
    running = bed.start(*FEW, *words)
    until(lambda: len(parts(bed)) == 3 and faults[0].fired, "three parts")
    kill(running)
    bed.oss.listener.cut()
    bed.oss.faults.clear()
    bed.oss.remove(bed.prefix + LEASE)


def the_upload(bed: PullBed, name: str) -> Pending:
    [found] = [one for one in bed.oss.bucket.uploads.values() if one.key == bed.prefix + name]
    return found


# Killed


def test_killed_at_random_moments_it_ends_byte_identical(large: PullBed) -> None:
    dice = random.Random(1)
    kills = 0
    for at in range(4):
        threshold = dice.randrange(2 * PART)
        before = large.hub.bytes_sent("large-*")
        running = large.start(*FEW, "--max-rate", "60MiB")
        until(
            lambda: (
                large.hub.bytes_sent("large-*") - before > threshold  # noqa: B023  # called at once
                or running.process.poll() is not None  # noqa: B023
            ),
            "bytes",
        )
        running.signal(signal.SIGKILL)
        if running.process.wait(10) == 0:
            break
        kills += 1
        assert large.manifest().get("state") != "complete"
        if at % 3:  # as if it had run out: a second less to wait
            large.oss.remove(large.prefix + LEASE)
    assert kills >= 2
    done = large.good()
    large.complete()
    assert large.unfinished() == []
    # Each kill costs at most the part that each lane had in hand, here and on the way.
    assert uploaded(large) <= total(large) + kills * LANES * PART
    assert done["already"] + done["resumed"] + done["pulled"] == done["total"]


def test_parts_that_arrived_are_not_sent_again_and_the_file_is_read_back(large: PullBed) -> None:
    interrupted(large)
    kept = {one.key.removeprefix(large.prefix) for one in parts(large)}
    large.forget()
    done = large.good(*FEW)
    assert done["resumed"] == 3 * PART
    assert len(parts(large)) == 3
    assert done["pulled"] == done["total"] - done["already"] - 3 * PART
    assert (
        large.hub.bytes_sent("large-*")
        == sum(large.repo.files[f"large-{at}.bin"].size for at in (0, 1))
        - 3 * PART
        + 1  # and one, to see whether the hub gives them
        + 2 * HEADER
    )
    # What was finished had not been noted when it was killed.
    assert done["read_back"] == done["already"] + sum(large.repo.files[name].size for name in kept)
    large.complete()
    large.forget()
    assert large.good()["pulled"] == 0
    assert large.written() == []


def test_what_was_finished_and_noted_is_not_read_back(large: PullBed) -> None:
    fault = Fault("hang", times=None, operation="UploadPart", seconds=60)
    large.oss.faults.add(fault)
    running = large.start("-P", "8", "--no-adapt")
    small = sorted(path for path in large.repo.files if not path.startswith("large-"))
    until(lambda: sorted(large.objects()) == small and fault.fired, "the small files")
    assert running.stop(signal.SIGTERM, within=6).code == 143
    large.oss.faults.clear()
    files = large.objects()
    rows = {path: row for path, row in rows_of(large.manifest()).items() if "crc64" in row}
    assert rows == {path: row_of(path, files[path]) for path in rows}
    assert len(rows) >= len(small) - 1, "the last answer may have been on its way"
    large.forget()
    done = large.good(*FEW)
    assert done["read_back"] == sum(len(files[path]) for path in files.keys() - rows.keys())
    assert not set(large.sent()) & set(small)
    large.complete()


def test_what_was_read_back_is_noted_before_more_is_pulled(large: PullBed) -> None:
    interrupted(large)
    small = large.objects().keys()
    fault = Fault("hang", times=None, operation="UploadPart", seconds=60)
    large.oss.faults.add(fault)
    running = large.start(*FEW)
    until(lambda: fault.fired, "a part")
    kill(running)
    large.oss.listener.cut()
    large.oss.faults.clear()
    large.oss.remove(large.prefix + LEASE)
    assert small <= {path for path, row in rows_of(large.manifest()).items() if "crc64" in row}
    done = large.good(*FEW)
    later = large.objects().keys() - small
    assert done["read_back"] <= sum(large.repo.files[path].size for path in later)
    large.complete()


def test_what_went_on_and_was_read_back_is_noted_as_proven(large: PullBed) -> None:
    interrupted(large)
    tamper(large, "large-0.bin")  # which has one part
    fault = Fault("hang", times=None, operation="UploadPart", key_glob="*/large-0.bin", skip=2, seconds=60)
    large.oss.faults.add(fault)
    running = large.start(*FEW)
    until(lambda: fault.fired, "the wrong file on its way again", 30)
    assert running.stop(signal.SIGTERM, within=6).code == 143
    large.oss.faults.clear()
    assert large.manifest()["unproven"] == ["large-0.bin"]
    assert "crc64" in rows_of(large.manifest())["large-1.bin"]
    large.good()
    large.complete()


def test_what_went_on_and_was_not_read_back_is_noted_as_not_proven(large: PullBed) -> None:
    interrupted(large)
    large.oss.faults.add(Fault("hang", times=None, operation="GetObject", key_glob="*/large-*", seconds=60))
    running = large.start(*FEW)
    large.oss.log.wait(
        lambda records: any(one.fault == "hang" and one.operation == "GetObject" for one in records)
    )
    assert running.stop(signal.SIGTERM, within=6).code == 143
    large.oss.faults.clear()
    rows = rows_of(large.manifest())
    assert large.manifest()["unproven"] == ["large-0.bin", "large-1.bin"]
    assert all("crc64" in rows[path] for path in large.manifest()["unproven"])
    done = large.good()
    assert (done["pulled"], done["read_back"]) == (0, sum(rows[f"large-{at}.bin"]["size"] for at in (0, 1)))
    large.complete()


def test_what_was_pulled_unhashed_is_noted_as_not_proven(large: PullBed) -> None:
    fault = Fault("hang", times=None, operation="UploadPart", seconds=60)
    large.oss.faults.add(fault)
    running = large.start("-P", "8", "--no-adapt", "--verify", "crc")
    until(lambda: len(large.objects()) == len(large.repo.files) - 2 and fault.fired, "the small files")
    running.stop(signal.SIGTERM, within=6)
    assert set(large.manifest()["unproven"]) == set(large.repo.files)
    assert any("crc64" in row for row in large.manifest()["files"])


def test_what_was_finished_and_not_noted_is_read_back_whatever_its_metadata_say(large: PullBed) -> None:
    interrupted(large)
    names = [path for path, data in large.objects().items() if data]
    wrong = large.oss.bucket.objects[large.prefix + names[0]]
    data = bytearray(large.objects()[names[0]])
    data[-1] ^= 1
    large.oss.put(large.prefix + names[0], bytes(data), metadata=dict(wrong.metadata))
    there = sum(map(len, large.objects().values()))
    large.forget()
    done = large.good(*FEW)
    assert done["read_back"] >= there
    assert names[0] in large.sent()
    assert names[1] not in large.sent()
    large.complete()


def test_without_sha256_nothing_is_read_back(large: PullBed) -> None:
    interrupted(large, "--verify", "crc")
    done = large.good(*FEW, "--verify", "crc")
    assert (done["resumed"], done["read_back"]) == (3 * PART, 0)
    assert large.objects()["large-1.bin"]
    assert large.manifest()["unproven"]
    done = large.good()
    assert done["read_back"] > 0
    assert done["pulled"] == 0
    large.complete()
    assert not large.manifest().get("unproven")


def test_what_was_pulled_unhashed_is_read_back_by_who_wants_a_sha256(large: PullBed) -> None:
    interrupted(large, "--verify", "crc")
    assert set(large.manifest()["unproven"]) == set(large.repo.files)
    there = large.objects()
    done = large.good()
    assert done["read_back"] >= sum(map(len, there.values()))
    large.complete()


def test_killed_before_it_was_read_back_the_next_run_does_that(large: PullBed) -> None:
    interrupted(large)
    large.oss.faults.add(Fault("hang", times=None, operation="GetObject", key_glob="*/large-*", seconds=60))
    running = large.start(*FEW)
    large.oss.log.wait(
        lambda records: any(one.fault == "hang" and one.operation == "GetObject" for one in records)
    )
    kill(running)
    large.oss.listener.cut()
    large.oss.faults.clear()
    assert "large-0.bin" in large.objects()
    assert large.manifest()["state"] == "updating"
    large.forget()
    done = large.good()
    assert done["pulled"] == 0
    assert done["read_back"] >= total(large) - 6 * MIB
    large.complete()


def tamper(bed: PullBed, name: str) -> None:
    """A part of an unfinished upload becomes another, with everything that the store says of it."""
    pending = the_upload(bed, name)
    number, part = next(iter(sorted(pending.parts.items())))
    data = bytearray(b"".join(read(part.content, 0, part.content.size)))
    data[1000] ^= 1
    content = Content((Blob(len(data), data=bytes(data)),))
    pending.parts[number] = Part(number, content, part.etag, checksum.crc64(bytes(data)), part.modified)


def test_an_object_that_is_wrong_after_all_is_removed_and_pulled_anew(large: PullBed) -> None:
    interrupted(large)
    name = parts(large)[0].key.removeprefix(large.prefix)
    tamper(large, name)
    large.forget()
    done = large.good(*FEW)
    assert done["mended"] == 1
    assert name in large.sent()
    assert large.oss.log.count(operation="DeleteMultipleObjects") >= 2  # the object, and the lease
    large.complete()


def test_an_object_that_is_wrong_and_comes_wrong_again_is_gone(large: PullBed) -> None:
    interrupted(large)
    name = parts(large)[0].key.removeprefix(large.prefix)
    tamper(large, name)
    large.hub.faults.add(HubFault("corrupt", times=None, host="cdn", key_glob=name))
    assert name in large.refused(8)
    assert name not in large.objects()
    assert large.manifest()["state"] == "updating"
    assert name not in large.unfinished()


def test_restart_aborts_what_was_begun(large: PullBed) -> None:
    interrupted(large)
    begun = {one.id for one in large.oss.bucket.uploads.values()}
    assert begun
    large.forget()
    done = large.good("--restart")
    assert (done["resumed"], done["read_back"]) == (0, 0)
    aborted = {one.query["uploadId"] for one in large.oss.log.records(operation="AbortMultipartUpload")}
    assert aborted == begun
    assert done["pulled"] == done["total"]
    large.complete()


def test_uploads_that_others_have_begun_are_let_alone(large: PullBed) -> None:
    auth = oss2.AuthV4(large.oss.key.id, large.oss.key.secret)
    bucket = oss2.Bucket(auth, large.oss.endpoint, large.oss.bucket.name, region=large.oss.region)
    for name in ("large-0.bin", "elsewhere.bin"):
        key = large.prefix + name
        upload = bucket.init_multipart_upload(key).upload_id
        bucket.upload_part(key, upload, 1, b"x" * PART)
    begun = {one.id for one in large.oss.bucket.uploads.values()}
    done = large.good()
    assert done["resumed"] == 0
    assert begun == {one.id for one in large.oss.bucket.uploads.values()}
    large.complete()


def test_an_upload_that_others_begin_meanwhile_is_not_taken_for_ours(large: PullBed) -> None:
    interrupted(large)
    ours = {one.id for one in large.oss.bucket.uploads.values()}
    auth = oss2.AuthV4(large.oss.key.id, large.oss.key.secret)
    bucket = oss2.Bucket(auth, large.oss.endpoint, large.oss.bucket.name, region=large.oss.region)
    with large.held_at_store(operation="PutObject", key_glob=f"*/{MANIFEST}") as gate:
        running = large.start("--json", *FEW)
        gate.reached()  # what is unfinished has been listed
        for name in ("large-0.bin", "large-1.bin"):
            key = large.prefix + name
            bucket.upload_part(key, bucket.init_multipart_upload(key).upload_id, 1, b"x" * PART)
    done = running.finish()
    assert done.code == 0, str(done)
    assert done.event("pull_summary")["resumed"] == 3 * PART
    assert len(large.unfinished()) == 2
    assert not ours & {one.id for one in large.oss.bucket.uploads.values()}
    large.complete()


def test_another_revision_does_not_go_on_with_the_parts_of_the_last(large: PullBed) -> None:
    interrupted(large)
    name = parts(large)[0].key.removeprefix(large.prefix)
    large.commit({name: os.urandom(large.repo.files[name].size)})
    large.forget()
    done = large.good()
    assert done["resumed"] < 3 * PART
    assert len(parts(large, name)) == 3
    large.complete()


def test_parts_of_another_revision_are_not_taken_for_this_ones_after_two_kills(large: PullBed) -> None:
    """The second run dies before it comes to the file: the manifest promises the new content then, and the parts are those of the old."""
    interrupted(large)
    old = {one.key.removeprefix(large.prefix) for one in parts(large)}
    large.commit({name: os.urandom(large.repo.files[name].size) for name in old})
    fault = HubFault("hang", times=None, host="cdn", seconds=60)
    large.hub.faults.add(fault)
    second = large.start(*FEW)
    until(lambda: large.manifest().get("begun") and fault.fired, "the manifest of the second run")
    kill(second)
    large.oss.remove(large.prefix + LEASE)
    large.hub.faults.clear()
    large.forget()
    done = large.good("--verify", "crc")  # nothing else would tell
    assert done["resumed"] == 0
    large.complete()


# Without a proof


@pytest.mark.parametrize("dest", ["bucket", "folder"])
def test_what_was_promised_before_the_kill_is_no_proof_for_anybody(pullbed: PullBed, dest: str) -> None:
    """The next revision has a file of the same size, and the pull of it is killed before it comes to that."""
    bed = pullbed
    if dest == "folder":
        bed.dest = bed.dir
    bed.commit({"same.bin": os.urandom(3 * MIB)})
    bed.good()
    bed.commit({"same.bin": os.urandom(3 * MIB)})
    with bed.held(key_glob="same.bin", host="cdn") as gate:
        running = bed.start()
        gate.reached()
        kill(running)
    if dest == "bucket":
        bed.oss.remove(bed.prefix + LEASE)
    told = bed.pull("--json", "--verify", "none", "--include", "config.json")
    assert told.code == 0, str(told)
    for words in (("--verify", "none"), ("--verify", "crc"), ()):
        bed.good(*words)
        found = bed.objects() if dest == "bucket" else files_in(bed.dir)
        assert found["same.bin"] == contents(bed.repo)["same.bin"], words


# Stopped


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_arrived_and_gives_the_lease_back(large: PullBed, number: int, code: int) -> None:
    fault = Fault("hang", times=None, operation="UploadPart", skip=2, seconds=60)
    large.oss.faults.add(fault)
    running = large.start(*FEW)
    until(lambda: len(parts(large)) == 2 and fault.fired, "two parts")
    done = running.stop(number, within=4)
    assert done.code == code, str(done)
    assert "run it again to go on" in done.out
    assert "Traceback" not in done.err
    assert "Fatal" not in done.err
    assert large.prefix + LEASE not in large.oss.names()
    assert large.manifest()["state"] == "updating"
    large.oss.faults.clear()
    assert large.good()["resumed"] == 2 * PART
    large.complete()


def test_a_signal_while_it_waits_for_another_pull(large: PullBed) -> None:
    large.hub.faults.add(HubFault("hang", times=None, host="cdn", seconds=60))
    first = large.start()
    until(lambda: large.prefix + LEASE in large.oss.names(), "the lease")
    second = large.start("--wait")
    second.await_text("waiting for another pull")
    done = second.stop(signal.SIGTERM, within=4)
    assert done.code == 143, str(done)
    assert large.prefix + LEASE in large.oss.names(), "which is the first one's"
    assert first.stop(signal.SIGTERM, within=4).code == 143


# Memory


class Void(Written):
    """Takes bytes in and keeps the CRC alone; what is kept of them is zeros, which they are."""

    def add(self, piece: memoryview | bytes) -> None:
        self.crc, self.size = checksum.crc64(piece, self.crc), self.size + len(piece)
        if self.size <= 1 << 16:
            self.keep(piece)

    def blob(self) -> Blob:
        return Blob(self.size, path="/dev/zero") if self.size > 1 << 16 else super().blob()


def test_memory_is_bounded_and_nothing_is_written_to_disk(pullbed: PullBed) -> None:
    pullbed.repo.commit({"w.bin": Zeros(1 << 30)})
    pullbed.oss.storage.incoming = lambda: Void(pullbed.oss.storage.room)
    words = ("--buffer", "64MiB", "--include", "w.bin")
    running = pullbed.start(*words)
    peak, written = 0, 0

    def watch() -> None:
        nonlocal peak, written
        while running.process.poll() is None:
            try:
                status = Path(f"/proc/{running.pid}/status").read_text()
                written = int(
                    Path(f"/proc/{running.pid}/io").read_text().split("\nwrite_bytes: ")[1].split()[0]
                )
                peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) << 10)
            except (OSError, IndexError):
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = running.finish()
    watcher.join()
    assert done.code == 0, str(done)
    assert 0 < peak <= (64 + 150) * MIB
    assert written < MIB
