"""``stager pull`` end to end: from the look-alike hubs into the look-alike store, as processes.

What goes wrong on the way, what is killed, and mounts have suites of their own.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from stager import __version__
from tests.fetchbed import same
from tests.harness import MIB, Done, Running
from tests.hublab.faults import Fault as HubFault
from tests.osslab.log import Record
from tests.pullbed import (
    LEASE,
    MANIFEST,
    PART,
    PullBed,
    contents,
    files_in,
    refusal,
    row_of,
    rows_of,
    weights,
)

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def mine(bed: PullBed) -> str:
    """The line that names the model's commit."""
    return bed.repo.branches["master"]


def another(path: str, size: int) -> bytes:
    """New content for a file of the model."""
    return weights(size) if path.endswith(".safetensors") else os.urandom(size)


# From beginning to end


def test_a_pull_and_what_it_leaves(pullbed: PullBed) -> None:
    before = time.time()
    found = pullbed.good()
    pullbed.complete()
    files = contents(pullbed.repo)
    total = sum(map(len, files.values()))
    assert (found["files"], found["total"], found["pulled"]) == (len(files), total, total)
    assert (found["source"], found["revision"]) == ("ms://acme/tiny", pullbed.repo.branches["master"])
    assert (found["already"], found["read_back"], found["verified"]) == (0, 0, "sha256")
    manifest = pullbed.manifest()
    assert (manifest["source"], manifest["revision"]) == (found["source"], found["revision"])
    assert before <= manifest["time"] <= time.time()
    assert manifest["stager"] == __version__
    assert "unproven" not in manifest
    for path, row in rows_of(manifest).items():
        assert pullbed.oss.bucket.objects[pullbed.prefix + path].metadata["sha256"] == row["sha256"]
    # Marked before the first byte of the model, and again after the last.
    order = [
        one.key.removeprefix(pullbed.prefix) for one in pullbed.written() if one.operation == "PutObject"
    ]
    model = [at for at, path in enumerate(order) if path in files]
    assert [at for at, path in enumerate(order) if path == MANIFEST] == [model[0] - 1, model[-1] + 1]

    pullbed.forget()
    done = pullbed.pull()  # a second one finds all there, and does not even take the lease
    assert done.code == 0
    assert done.err == ""
    assert "nothing pulled, all there, verified by sha256" in done.out
    assert pullbed.written() == []
    assert pullbed.oss.bytes_sent("*.safetensors") == 0
    assert pullbed.hub.bytes_sent() == 0


def test_the_name_of_the_model_below_the_usual_destination(pullbed: PullBed) -> None:
    pullbed.dest = None
    pullbed.good(env={"STAGER_DEST": pullbed.oss.url("m")})
    pullbed.complete()
    folder = pullbed.box.path("models")
    pullbed.good("--include", "*.json", env={"STAGER_DEST": folder})
    assert sorted(os.listdir(os.path.join(folder, "tiny"))) == [".stager", "config.json", "tokenizer.json"]


def test_a_dry_run_writes_nothing(pullbed: PullBed) -> None:
    done = pullbed.pull("--json", "--dry-run", "--exclude", "*.txt")
    assert done.code == 0, str(done)
    found = done.event("pull_forecast")
    files = {path: data for path, data in contents(pullbed.repo).items() if not path.endswith(".txt")}
    assert (found["files"], found["to_pull"]) == (len(files), sum(map(len, files.values())))
    assert [path for path, _ in found["left_out"]] == sorted(contents(pullbed.repo).keys() - files.keys())
    assert found["verdict"] == "a run would begin"
    assert pullbed.written() == []
    assert pullbed.hub.bytes_sent() == 1 + 2 * 256 * 1024, (
        "one byte, to see whether the hub gives what it lists, and two headers"
    )
    assert pullbed.oss.names() == []
    pullbed.dest = pullbed.dir
    assert pullbed.pull("--dry-run").code == 0
    assert not os.path.exists(pullbed.dir)


# Revisions


def test_branches_tags_and_commits(pullbed: PullBed) -> None:
    old = contents(pullbed.repo)
    first = pullbed.repo.branches["master"]
    pullbed.repo.tag("v1.0")
    pullbed.commit({"config.json": b'{"v": 2}', SECOND: weights(2 * MIB, "b"), "extra/notes.txt": None})
    second = pullbed.commit({"tokenizer.json": os.urandom(5000)}, branch="dev", base=first)

    pullbed.source = "acme/tiny@v1.0"
    assert pullbed.good()["revision"] == first
    pullbed.complete(old)

    pullbed.source = "ms://acme/tiny"  # the default branch now: what differs is sent, and nothing else
    pullbed.forget()
    done = pullbed.pull("--json")
    assert done.code == 0, str(done)
    assert pullbed.sent() == [
        "config.json",
        SECOND,
    ]  # the latter of the same size as before: not read to find that out
    assert done.event("pull_summary")["read_back"] == 0
    [note] = [one for one in done.all("note") if one["code"] == "obsolete"]
    assert "extra/notes.txt" in note["message"]
    assert "--mirror" in note["hint"]
    pullbed.complete(besides=["extra/notes.txt"])
    assert done.event("pull_summary")["removed"] == 0

    pullbed.source = f"acme/tiny@{second}"
    pullbed.forget()
    assert pullbed.good("--mirror")["revision"] == second
    assert pullbed.sent() == ["config.json", SECOND, "tokenizer.json"]
    pullbed.complete(contents(pullbed.repo, second))


def test_another_revision_into_a_folder(pullbed: PullBed) -> None:
    pullbed.dest = pullbed.dir
    pullbed.good()
    pullbed.commit({SECOND: weights(2 * MIB, "b"), "config.json": b"{}", "extra/notes.txt": None})
    found = pullbed.good("--mirror")
    assert (found["pulled"], found["read_back"], found["removed"]) == (2 * MIB + 2, 0, 1)
    pullbed.complete_folder()
    Path(pullbed.dir, "config.json").write_bytes(b"[]")  # since the manifest was written
    found = pullbed.good()
    assert (found["pulled"], found["read_back"]) == (2, 2)
    pullbed.complete_folder()


def test_a_branch_that_moves_meanwhile(pullbed: PullBed) -> None:
    before, commit = contents(pullbed.repo), mine(pullbed)
    with pullbed.held(key_glob=FIRST, host="cdn") as gate:
        running = pullbed.start("--json", "-P", "1", "--no-adapt")
        gate.reached()
        pullbed.commit({path: another(path, len(data)) for path, data in before.items()})
    done = running.finish()
    assert done.code == 0, str(done)
    assert done.event("pull_summary")["revision"] == commit
    pullbed.complete(before)
    pullbed.good()
    pullbed.complete()


def test_hugging_face(pullbed: PullBed) -> None:
    pullbed.source = "hf://acme/tiny"
    pullbed.commit({"README.md": b"# tiny\n"}, branch="dev", base=mine(pullbed))
    found = pullbed.good()
    assert (found["source"], found["revision"]) == ("hf://acme/tiny", mine(pullbed))
    assert (found["verified"], found["unproven"]) == ("sha256", 0)
    pullbed.complete()
    pullbed.forget()
    assert pullbed.good()["pulled"] == 0
    assert pullbed.written() == []

    # A small file is proven by what git calls its content, also one that another tool has put there.
    pullbed.oss.put(pullbed.prefix + "extra/notes.txt", b"netos\n")
    pullbed.oss.put(pullbed.prefix + "tokenizer.json", contents(pullbed.repo)["tokenizer.json"])
    pullbed.oss.remove(pullbed.prefix + MANIFEST)
    pullbed.hub.faults.add(HubFault("corrupt", key_glob="README.md"))
    pullbed.source = "hf://acme/tiny@dev"
    found = pullbed.good()
    assert pullbed.sent() == ["README.md", "extra/notes.txt"]
    assert found["mended"] == 1
    pullbed.complete(contents(pullbed.repo, "dev"))


# A folder as the source


def fine_tune(folder: str) -> dict[str, bytes]:
    """A model that was made here; one file is sent in parts."""
    files = {
        "config.json": b"{}",
        "model.safetensors": weights(3 * PART + 5),
        "deep/er/adapter.safetensors": weights(MIB),
        "empty": b"",
    }
    for path, data in files.items():
        place = Path(folder, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return files


def is_part(record: Record) -> bool:
    """Whether it is an uploaded part that is at the store."""
    return record.operation == "UploadPart" and record.status == 200 and record.ended is not None


def test_a_folder_is_gone_on_with_part_by_part(pullbed: PullBed) -> None:
    folder = pullbed.source = pullbed.box.path("tuned")
    files = fine_tune(folder)
    with pullbed.held_at_store(operation="UploadPart", skip=2):
        running = pullbed.start("-P", "1", "--no-adapt")
        pullbed.oss.log.wait(lambda records: sum(map(is_part, records)) == 2)
        running.kill()
    assert pullbed.unfinished() == ["model.safetensors"]
    assert pullbed.manifest()["state"] == "updating"

    changed = Path(folder, "model.safetensors")  # meanwhile somebody trains on: one byte of the second part
    data = bytearray(files["model.safetensors"])
    data[PART + 1] ^= 1
    changed.write_bytes(data)
    files["model.safetensors"] = bytes(data)
    pullbed.forget()
    found = pullbed.good()
    pullbed.complete(files)
    assert found["resumed"] == PART
    assert found["read_back"] == 0
    assert (found["verified"], found["unproven"]) == ("crc64", 0), (
        "a folder states no checksums, and lacks none"
    )
    again = [one.query["partNumber"] for one in pullbed.oss.log.records(operation="UploadPart")]
    assert sorted(again) == ["2", "3", "4"]
    assert pullbed.unfinished() == []
    assert pullbed.manifest()["source"] == folder

    Path(folder, "config.json").write_bytes(b"[]")
    pullbed.forget()
    pullbed.good()  # it reads the folder and compares; what is the same is not sent
    assert pullbed.sent() == ["config.json"]
    pullbed.complete({**files, "config.json": b"[]"})


# Which files


def pulls(bed: PullBed, *runs: tuple[str, ...], **options: Any) -> list[Done]:
    """Several pulls side by side, each (name of the model, words...) to a prefix of its own; what each did."""
    started: list[Running] = []
    for name, *words in runs:
        bed.source, bed.dest = name, bed.oss.url(f"{len(started)}")
        started.append(bed.start(*words, **options))
    return [one.finish() for one in started]


def below(bed: PullBed, prefix: str) -> list[str]:
    """Names of the model's files below a prefix."""
    names = [name.removeprefix(f"{prefix}/") for name in bed.oss.names() if name.startswith(f"{prefix}/")]
    return [name for name in names if not name.startswith(".stager/")]


def test_what_an_engine_needs(pullbed: PullBed) -> None:
    as_it_is = "--allow-incomplete"  # for only the names are those of a model
    weights = {
        "config.json": b"{}",
        "model.safetensors": b"s" * 99,
        "pytorch_model.bin": b"b" * 99,
        "a.png": b"p",
    }
    pullbed.hub.repo("acme/both").commit({**weights, "original/consolidated.00.pth": b"o"})
    quants = {f"tiny-{name}.gguf": b"GGUF" + name.encode() for name in ("Q4_K_M", "Q8_0", "BF16")}
    pullbed.hub.repo("acme/tiny-GGUF").commit({**quants, "mmproj-F16.gguf": b"GGUF", "README.md": b"#"})
    pipeline = {
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": b"u",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"h",
        "unet/diffusion_pytorch_model.bin": b"b",
        "all-in-one.safetensors": b"a",
    }
    pullbed.hub.repo("acme/pipe").commit(pipeline)
    done = pulls(
        pullbed,
        ("acme/both", "--for", "vllm", as_it_is),
        ("acme/tiny-GGUF", "--for", "llama.cpp", "--quant", "q4_k_m", as_it_is),
        ("acme/pipe", "--for", "diffusers", as_it_is),
        ("acme/tiny-GGUF", "--for", "llama.cpp"),
        ("acme/both", "--for", "vllm", as_it_is, "--include", "*.json", "--include", "*.safetensors", "--exclude", "c*"),
        ("acme/both", "--include", "*.onnx"),
    )  # fmt: skip
    assert [one.code for one in done] == [0, 0, 0, 2, 0, 7], "\n".join(map(str, done))
    assert below(pullbed, "0") == ["config.json", "model.safetensors"]
    assert "3 files left out" in done[0].out
    assert below(pullbed, "1") == ["README.md", "mmproj-F16.gguf", "tiny-Q4_K_M.gguf"]
    assert below(pullbed, "2") == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert below(pullbed, "4") == ["model.safetensors"]
    several = refusal(done[3], 2)
    assert "Q4_K_M" in several
    assert "Q8_0" in several
    assert "--quant" in several
    assert "--include" in refusal(done[5], 7)
    assert not [name for name in pullbed.oss.names() if name.startswith(("3/", "5/"))]


# What is there already


def test_a_part_of_the_model_does_not_forget_the_rest(pullbed: PullBed) -> None:
    pullbed.good("--include", "*.safetensors")
    files = contents(pullbed.repo)
    assert sorted(rows_of(pullbed.manifest())) == [FIRST, SECOND]
    pullbed.oss.put(pullbed.prefix + "config.json", files["config.json"])
    pullbed.forget()
    pullbed.good("--include", "*.json", "--restart")
    assert pullbed.sent() == ["config.json", "tokenizer.json"]
    pullbed.complete({path: data for path, data in files.items() if not path.startswith("extra/")})


def test_what_is_gone_or_damaged_is_brought_again(pullbed: PullBed) -> None:
    pullbed.good()
    pullbed.oss.remove(pullbed.prefix + "extra/notes.txt")
    pullbed.oss.put(pullbed.prefix + FIRST, b"?" * (3 * MIB + 11))
    pullbed.forget()
    pullbed.good()
    assert pullbed.sent() == ["extra/notes.txt", FIRST]
    pullbed.complete()  # though the manifest says just what it said before
    pullbed.oss.put(pullbed.prefix + MANIFEST, b"{")
    pullbed.forget()
    found = pullbed.good()
    assert pullbed.sent() == []
    assert found["read_back"] == found["total"]
    pullbed.complete()


def test_what_another_tool_has_put_there(pullbed: PullBed) -> None:
    files = contents(pullbed.repo)
    right = (FIRST, "tokenizer.json", "extra/notes.txt")
    for path in right:
        pullbed.oss.put(pullbed.prefix + path, files[path])
    pullbed.oss.put(pullbed.prefix + SECOND, os.urandom(2 * MIB))  # the right size, and another content
    pullbed.oss.put(pullbed.prefix + "config.json", b"{}")
    found = pullbed.good()
    assert pullbed.sent() == sorted(files.keys() - set(right))
    assert found["already"] == sum(len(files[path]) for path in right)
    assert found["read_back"] == found["already"] + len(files[SECOND])
    pullbed.complete()


def test_what_counts_as_there(pullbed: PullBed) -> None:
    files = contents(pullbed.repo)
    for prefix in ("0/", "1/"):
        pullbed.oss.put(prefix + FIRST, files[FIRST])
        pullbed.oss.put(prefix + SECOND, b"!" * len(files[SECOND]))
    done = pulls(pullbed, ("acme/tiny", "--verify", "none"), ("acme/tiny", "--verify", "crc"))
    assert [one.code for one in done] == [0, 0], "\n".join(map(str, done))
    assert pullbed.oss.get(f"0/{SECOND}") == b"!" * len(files[SECOND])  # its size is right
    assert "not verified" in done[0].out
    assert pullbed.oss.get(f"1/{SECOND}") == files[SECOND]
    assert "verified by crc64" in done[1].out
    assert not pullbed.oss.log.count(operation="GetObject", key="*.safetensors")
    told = json.loads(pullbed.oss.get(f"1/{MANIFEST}"))
    assert rows_of(told) == {path: row_of(path, data) for path, data in files.items()}
    assert sorted(told["unproven"]) == sorted(files)

    pullbed.dest = pullbed.oss.url("0")  # and whoever wants it proven gets it proven, and mended
    pullbed.prefix = "0/"
    pullbed.forget()
    found = pullbed.good()
    assert pullbed.sent() == [SECOND]
    assert found["read_back"] == found["total"]
    pullbed.complete()


def test_another_model_lies_there(pullbed: PullBed) -> None:
    told = {"v": 1, "source": "ms://acme/tiny", "revision": "1", "state": "complete", "files": []}
    pullbed.oss.put(pullbed.prefix + MANIFEST, json.dumps(told).encode())
    other = pullbed.hub.repo("acme/other")
    other.commit({"config.json": b"other", "x.safetensors": weights(1000)})
    pullbed.source = "acme/other"
    pullbed.forget()
    said = pullbed.refused(2)
    assert "ms://acme/tiny" in said
    assert "--mirror" in said
    assert pullbed.written() == []
    pullbed.good("--mirror")
    pullbed.complete(contents(other))


def test_mirror_leaves_other_models_alone(pullbed: PullBed) -> None:
    """Whoever forgets the model's name in DEST names the folder of all models."""
    theirs = dict.fromkeys(("r1/config.json", "r1/w.safetensors", f"r1/{MANIFEST}"), b"another model's")
    for name, data in theirs.items():
        pullbed.oss.put(pullbed.prefix + name, data)
    pullbed.oss.put(pullbed.prefix + "r1.txt", b"no model's")
    line = pullbed.refused(2, "--mirror")
    assert "which no pull has filled so far" in line
    pullbed.commit({"r1/gone.txt": b"of an earlier revision", "gone.txt": b"as well"})
    pullbed.good()
    pullbed.commit({"r1/gone.txt": None, "gone.txt": None})
    done = pullbed.pull("--json", "--dry-run", "--mirror")
    assert done.event("pull_forecast")["removes"] == ["gone.txt"]
    assert pullbed.good("--mirror")["removed"] == 1
    pullbed.complete(
        besides=["r1/config.json", "r1/w.safetensors", f"r1/{MANIFEST}", "r1/gone.txt", "r1.txt"]
    )


def test_mirror_removes_what_pulls_have_brought_and_nothing_else(pullbed: PullBed) -> None:
    bed = pullbed
    bed.oss.put(bed.prefix + "thesis.txt", b"nobody else has it")
    bed.commit({"first.txt": b"1", "second.txt": b"2"})
    bed.good()
    bed.commit({"first.txt": None})
    told = bed.pull("--json").all("note")
    hints = {one["code"]: one["hint"] for one in told}
    assert "--mirror` removes them" in hints["obsolete"]
    assert "only what a pull has brought" in hints["foreign"]
    bed.commit({"second.txt": None})
    bed.good("--include", "*.json")
    assert (
        bed.good("--mirror")["removed"] == 2
    )  # though the manifest before last was the last to name one of them
    bed.complete(besides=["thesis.txt"])
    assert not bed.manifest().get("former")


def test_what_a_former_revision_had_is_not_taken_for_what_the_next_has(pullbed: PullBed) -> None:
    pullbed.commit({"again.txt": b"one"})
    pullbed.good()
    pullbed.commit({"again.txt": None})
    pullbed.good()
    pullbed.commit({"again.txt": b"two"})
    pullbed.good("--verify", "none")
    assert pullbed.objects()["again.txt"] == b"two"


# While it is under way


def test_two_at_once(pullbed: PullBed) -> None:
    with pullbed.held(key_glob=FIRST, host="cdn") as gate:
        first = pullbed.start("--json")
        gate.reached()
        told = pullbed.refused(5)
        assert f"pid {first.pid}" in told
        assert os.uname().nodename in told
        assert "--wait" in told
        waiting = pullbed.start("--wait")
        waiting.await_text(f"waiting for another pull.*pid {first.pid}")
    assert first.finish().code == 0
    done = waiting.finish()
    assert done.code == 0, str(done)
    assert "nothing pulled, all there" in done.out
    pullbed.complete()


def test_nobody_takes_what_is_being_updated(pullbed: PullBed) -> None:
    pullbed.good()
    into = pullbed.box.path("fetched")
    pullbed.commit({SECOND: weights(2 * MIB, "b")})
    with pullbed.held(key_glob=SECOND, host="cdn") as gate:
        running = pullbed.start()
        gate.reached()
        assert pullbed.manifest()["state"] == "updating"
        assert pullbed.prefix + LEASE in pullbed.oss.names()
        others = [
            pullbed.box.start(*words, env=pullbed.env())
            for words in (
                ("fetch", pullbed.url, into, "--keep-free", "0"),
                ("check", pullbed.url),
                ("ls", pullbed.url),
                ("verify", pullbed.url),
            )
        ]
        fetch, check, ls, verify = (one.finish() for one in others)
        assert "being updated" in refusal(fetch, 8)
        assert check.code == 8, str(check)
        assert "a writer is at it, its manifest says `updating`" in check.out, str(check)
        assert "being updated" in refusal(verify, 8)
        assert ls.code == 0, str(ls)
        assert "updating" in ls.out
    assert running.finish().code == 0
    pullbed.complete()


# What is made of it


def test_a_pulled_model_is_fetched_and_warmed(pullbed: PullBed) -> None:
    pullbed.good()
    into = pullbed.box.path("fetched")
    done = pullbed.run("fetch", "--json", pullbed.url, into, "--keep-free", "0", "--verify", "sha256")
    assert done.code == 0, str(done)
    assert files_in(into) == contents(pullbed.repo)
    assert done.event("warm_summary")["state"] == "ready"
    assert pullbed.box.ready()


def test_into_a_folder_that_is_warmed(pullbed: PullBed) -> None:
    source = pullbed.box.model()
    pullbed.hub.serve_folder(source, "acme/real")
    pullbed.source, pullbed.dest = "acme/real", pullbed.dir
    with pullbed.held(key_glob="*.safetensors", host="cdn") as gate:
        running = pullbed.start("--json")
        gate.reached()
        told = refusal(pullbed.run("warm", pullbed.dir), 8)
        assert "updat" in told or "another program" in told
        gate.release()
        assert running.finish().code == 0
    same(pullbed.dir, source)
    pullbed.complete_folder(contents(pullbed.hub.repos["acme/real"]))
    done = pullbed.box.warm(pullbed.dir)
    assert done.code == 0, str(done)
    assert done.summary["state"] == "ready"
    assert pullbed.box.ready()
    pullbed.forget()
    assert pullbed.good()["pulled"] == 0
    assert pullbed.hub.bytes_sent() == 0


# Refusals


def test_models_that_may_not_be_read(pullbed: PullBed) -> None:
    for name in ("private", "gated"):
        repo = pullbed.hub.repo(f"acme/{name}", private=name == "private", gated=name == "gated")
        repo.commit({"config.json": b"{}", "w.safetensors": weights(2 * MIB)})
    pullbed.repo.tag("v1.0")
    pullbed.repo.tag("v1.1")
    done = pulls(
        pullbed,
        ("acme/private",),
        ("hf://acme/gated",),
        ("acme/nothing",),
        ("acme/tiny@v1",),
        ("hf://acme/tiny@mein",),
    )  # fmt: skip
    private, gated, nothing, revision, branch = map(refusal, done, (6, 6, 7, 7, 7))
    assert "ms://acme/private: access is denied" in private
    assert "MODELSCOPE_API_TOKEN" in private
    assert "hf://acme/gated" in gated
    assert "HF_TOKEN" in gated
    assert "ms://acme/nothing does not exist" in nothing
    assert "`v1.0`" in revision
    assert "`v1.1`" in revision
    assert "hf://acme/tiny has no revision `mein`\nhint: its revisions: `main`" in branch
    assert pullbed.written() == []

    done = pulls(pullbed, ("acme/private",), ("acme/gated",), ("hf://acme/gated",), token=True)
    assert [one.code for one in done] == [0, 0, 0], "\n".join(map(str, done))
    [known] = pulls(pullbed, ("acme/gated",), token=pullbed.hub.new_token())
    assert "the token may not read it" in refusal(known, 6)


def test_buckets_that_may_not_be_written(pullbed: PullBed) -> None:
    started = []
    for number, denied in enumerate(("put", "list", "put:*/model-00002*", "listuploads", "delete")):
        pullbed.dest = pullbed.oss.url(f"{number}")
        started.append(pullbed.start(key=pullbed.oss.keys.new(denied={denied})))
    pullbed.dest = "oss://nowhere/m"
    started.append(pullbed.start())
    *denied, lasting, elsewhere = (one.finish() for one in started)
    told = [refusal(one, 6) for one in denied]
    assert all("oss:PutObject" in one and "OSS_ACCESS_KEY_ID" in one for one in told), told
    assert SECOND in told[2]
    assert json.loads(pullbed.oss.get(f"2/{MANIFEST}"))["state"] == "updating"
    assert not [name for name in pullbed.oss.names() if name.startswith(("0/", "1/", "3/"))]
    assert lasting.code == 0, str(lasting)
    assert "NoSuchBucket" in refusal(elsewhere, 7)
