"""Which files a run takes, and files that are odd or change under its hands."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness import MIB, STRANGER, Box, Running, cold, resident, until


def statuses(box: Box, *words: str) -> dict[str, int]:
    """The files that ``stager status`` lists, by name, with their sizes."""
    done = box.run("status", "--json", *words)
    assert done.code == 0, str(done)
    found = [(one["path"], one["residency"]["total"]) for one in done.all("file_residency")]
    assert len(dict(found)) == len(found), "no name twice"
    return dict(found)


# Once each


def test_links_and_repeated_names_count_once(box: Box) -> None:
    path = box.file("m/weights.data", 4 * MIB)
    os.link(path, box.path("m/hard.data"))
    os.symlink("weights.data", box.path("m/soft.data"))
    os.symlink(box.path("m"), box.path("m/loop"))
    os.symlink(box.path("m"), box.path("other"))
    done = box.warm(box.path("m"), box.path("m"), box.path("m") + "/", path, box.path("other"), "--fresh")
    assert done.code == 0
    assert (done.summary["files"], done.summary["residency"]["total"], done.summary["read"]) == (
        1,
        4 * MIB,
        4 * MIB,
    )


def test_a_shard_named_beside_its_folder_counts_once(box: Box) -> None:
    model = box.model(size=8 * MIB, shards=2)
    done = box.warm(model, f"{model}/model-00001-of-00002.safetensors")
    assert (done.code, done.summary["files"]) == (0, 8 - 1)


def test_the_hub_cache(box: Box) -> None:
    """snapshots/<revision>/<name> -> ../../blobs/<hash>; two revisions share most blobs."""
    model = box.model("plain", size=8 * MIB, shards=2)
    cache = box.path("models--org--name")
    os.makedirs(f"{cache}/blobs")
    for revision in ("one", "two"):
        os.makedirs(f"{cache}/snapshots/{revision}")
    os.makedirs(f"{cache}/refs")
    Path(f"{cache}/refs/main").write_text("one")
    for number, name in enumerate(sorted(os.listdir(model))):
        os.rename(f"{model}/{name}", f"{cache}/blobs/{number:040x}")
        for revision in ("one", "two"):
            os.symlink(f"../../blobs/{number:040x}", f"{cache}/snapshots/{revision}/{name}")
    snapshot = f"{cache}/snapshots/one"
    check = box.run("check", "--json", snapshot).event("forecast")
    assert (check["formats"], check["defects"], check["files"]) == (["safetensors"], [], 7)
    done = box.warm(snapshot)
    assert (done.code, done.summary["state"], done.summary["files"]) == (0, "ready", 7)
    assert box.ready(snapshot)
    whole = box.warm(cache)
    assert whole.code == 0
    assert whole.summary["files"] == 7 + 1, "blobs once, and the ref"
    os.unlink(next(Path(f"{cache}/blobs").iterdir()))
    assert os.path.lexists(f"{snapshot}/config.json")


def test_a_snapshot_with_a_link_to_nothing_is_incomplete(box: Box) -> None:
    model = box.model(size=8 * MIB, shards=2)
    shard = f"{model}/model-00001-of-00002.safetensors"
    os.unlink(shard)
    os.symlink("../blobs/gone", shard)
    done = box.warm(model)
    assert done.code == 8
    assert "model-00001-of-00002.safetensors" in done.event("error")["message"]


# Left out


def test_what_is_left_out(box: Box) -> None:
    keep = ["model.data", "deep/er/model.data", ".hidden.data"]
    drop = [".stager/manifest.data", ".git/objects/x", "._____temp/model.data", "a.incomplete", "b.part", "c.lock",
            ".cache/huggingface/download/x.metadata", ".locks/y", "lost+found/z"]  # fmt: skip
    for name in (*keep, *drop):
        os.makedirs(os.path.dirname(box.path("m", name)), exist_ok=True)
        Path(box.path("m", name)).write_bytes(b"x" * 100)
    os.symlink("nowhere", box.path("m/broken"))
    os.mkfifo(box.path("m/fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(box.path("m/socket"))
        assert sorted(statuses(box, box.path("m"))) == sorted(keep)
        assert box.run("warm", box.path("m")).code == 0


def test_include_and_exclude(box: Box) -> None:
    for name in ("a.safetensors", "b.bin", "sub/c.bin"):
        box.file(f"m/{name}", 1000, chill=False)
    model = box.path("m")
    assert sorted(statuses(box, model, "--include", "*.bin")) == ["b.bin", "sub/c.bin"]
    assert sorted(statuses(box, model, "--include", "*.bin", "--exclude", "sub/*")) == ["b.bin"]
    none = box.run("warm", model, "--include", "*.gguf")
    assert none.code == 7
    assert "--include" in none.err


# Names


NAMES = [b"new\nline.data", b"\xff\xfe.data", b"tab\tbell\a.data", "übergröße 模型.data".encode(), b"-n.data", b" .data",
         b"quote'\"$(id)`id`.data", b"\xc2\x9b31m\xe2\x80\xae.data"]  # fmt: skip


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_names_of_any_bytes(box: Box, locale: str) -> None:
    os.mkdir(box.path("m"))
    names = [os.fsdecode(raw) for raw in NAMES]
    for name in names:
        Path(box.path("m"), name).write_bytes(b"x" * 10_000)
    env = {"LC_ALL": locale}
    done = box.warm(box.path("m"), env=env)
    assert (done.code, done.summary["state"], done.summary["files"]) == (0, "ready", len(names)), str(done)
    text = box.run("status", box.path("m"), env=env)
    assert text.code == 0
    lines = text.out.splitlines()
    assert len(lines) == len(names) + 1, "a newline in a name does not make a line"
    assert all(line.isprintable() for line in lines), "nor does a name steer a terminal"
    paths = [os.path.join(box.path("m"), name) for name in names]
    assert box.ready(*paths)
    for verb in ("check", "warm", "evict"):
        done = box.run(verb, *paths, env=env)
        assert done.code == 0
        assert all(line.isprintable() for line in (done.out + done.err).splitlines())
    assert set(statuses(box, box.path("m"))) == set(names)


# Sizes


def test_empty_files_sparse_files_and_odd_sizes(box: Box) -> None:
    for name, size in (("empty.data", 0), ("one.data", 1), ("page.data", 4096), ("odd.data", 3 * MIB + 4097)):
        box.file(f"m/{name}", size)
    sparse = box.sparse("m/sparse.data", 32 * MIB)
    with open(sparse, "r+b") as file:
        file.seek(20 * MIB)
        file.write(b"data")
        os.fsync(file.fileno())
    cold(sparse)
    done = box.warm(box.path("m"))
    assert (done.code, done.summary["state"], done.summary["files"]) == (0, "ready", 5)
    assert resident(sparse) == 32 * MIB
    assert resident(box.path("m/odd.data")) == 3 * MIB + 4097
    assert box.warm(box.path("m")).summary["read"] == 0


@pytest.mark.parametrize("content", ["", "empty", "left out", "broken link"])
def test_nothing_there(box: Box, content: str) -> None:
    os.mkdir(box.path("m"))
    if content == "empty":
        os.mkdir(box.path("m/sub"))
    if content == "left out":
        Path(box.path("m/x.part")).write_text("x")
    if content == "broken link":
        os.symlink("nowhere", box.path("m/link"))
    for verb in ("warm", "check", "status", "evict"):
        done = box.run(verb, box.path("m"))
        assert done.code == 7, str(done)
        assert done.err.startswith("error: no files in ")
        assert "hint: " in done.err


def test_a_path_that_is_not_there_or_not_a_file(box: Box) -> None:
    done = box.run("warm", box.path("nothing"))
    assert (done.code, box.state) == (7, "failed")
    assert "ENOENT" in done.err
    os.mkfifo(box.path("fifo"))
    assert box.run("warm", box.path("fifo")).code == 2
    os.symlink(box.path("loop"), box.path("loop"))
    assert box.run("warm", box.path("loop")).code == 9


def test_a_model_of_empty_files_is_resident(box: Box) -> None:
    box.file("m/a.data", 0)
    done = box.warm(box.path("m"))
    assert (done.code, done.summary["residency"]["total"]) == (0, 0)


def test_twenty_thousand_files(box: Box) -> None:
    """Not many bytes, but a walk, two looks and a marker row each."""
    os.mkdir(box.path("m"))
    for number in range(20_000):
        if number % 1000 == 0:
            os.mkdir(box.path(f"m/{number:05}"))
        with open(box.path(f"m/{number // 1000 * 1000:05}/{number:05}.data"), "wb") as file:
            file.write(b"x")
    done = box.warm(box.path("m"))
    assert (done.code, done.summary["files"], done.summary["state"]) == (0, 20_000, "ready")
    assert done.seconds < 20
    ready = box.run("ready")
    assert ready.code == 0
    assert ready.seconds < 3


# Permissions


@pytest.mark.root
def test_unreadable_files_are_named_and_the_rest_is_warmed(box: Box) -> None:
    box.open_marker_folder()
    box.file("m/secret.data", 4 * MIB, mode=0o600)
    readable = box.file("m/weights.data", 4 * MIB)
    done = box.warm(box.path("m"), uid=STRANGER)
    assert (done.code, done.summary["state"], done.summary["outcome"]) == (6, "failed", "unreadable")
    assert "1 file could not be read" in done.event("error")["message"]
    assert any("secret.data" in note["message"] and "EACCES" in note["message"] for note in done.all("note"))
    assert resident(readable) == 4 * MIB
    assert resident(box.path("m/secret.data")) == 0
    without = box.warm(box.path("m"), "--exclude", "secret*", uid=STRANGER)
    assert (without.code, without.summary["state"]) == (0, "unverified")


@pytest.mark.root
def test_an_unreadable_index_is_one_file(box: Box) -> None:
    box.open_marker_folder()
    model = box.model(size=8 * MIB, shards=2)
    os.chmod(f"{model}/model.safetensors.index.json", 0o600)
    done = box.warm(model, uid=STRANGER)
    assert done.code == 6
    assert "model.safetensors.index.json" in done.out
    assert "1 file could not be read" in done.event("error")["message"]


@pytest.mark.root
def test_an_unreadable_folder_is_named(box: Box) -> None:
    box.open_marker_folder()
    box.file("m/weights.data", MIB)
    box.file("m/closed/more.data", MIB)
    os.chmod(box.path("m/closed"), 0o700)
    done = box.warm(box.path("m"), uid=STRANGER)
    assert done.code == 6
    assert "/m/closed" in done.out
    assert resident(box.path("m/weights.data")) == MIB
    alone = box.run("warm", box.path("m/closed"), uid=STRANGER)
    assert alone.code == 6


# Files that change while they are read


def reading(running: Running, name: str) -> None:
    """Wait until the process has `name` open."""

    def there() -> bool:
        try:
            links = [
                os.readlink(f"/proc/{running.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{running.pid}/fd")
            ]
        except FileNotFoundError:
            return False
        return any(link.endswith(name) for link in links)

    until(there, f"{name} open")
    time.sleep(0.1)


@pytest.mark.parametrize("change", ["shrinks", "grows", "is replaced", "vanishes", "is touched"])
def test_a_file_changes_while_it_is_read(box: Box, change: str) -> None:
    path, other = box.file("m/a.data", 12 * MIB), box.file("m/b.data", 2 * MIB)
    running = box.start("warm", "--json", box.path("m"), "--max-rate", "24MiB", "-P", "2")
    reading(running, "a.data")
    if change == "shrinks":
        os.truncate(path, 3 * MIB)
    elif change == "grows":
        with open(path, "ab") as file:
            file.write(b"x" * MIB)
    elif change == "is replaced":
        Path(path + ".new").write_bytes(b"x" * 12 * MIB)
        os.rename(path + ".new", path)
    elif change == "vanishes":
        os.unlink(path)
    else:
        os.utime(path)
    done = running.finish(20)
    assert (done.code, done.summary["state"], done.summary["outcome"]) == (9, "failed", "io_error"), str(done)
    problems = done.all("file_problem")
    assert [one["path"] for one in problems] == ["a.data"], "one file, one line"
    assert problems[0]["errno"] in ("ENODATA", "ESTALE", "ENOENT")
    assert "1 file could not be read" in done.event("error")["message"]
    assert resident(other) == 2 * MIB
    assert "Traceback" not in done.err
    assert not box.ready("--accept", "partial,unverified,released")


def test_a_file_that_shrinks_under_protect_raises_no_sigbus(box: Box) -> None:
    path = box.file("a.data", 12 * MIB)
    running = box.start("warm", "--json", path, "--max-rate", "24MiB", "--protect")
    reading(running, "a.data")
    os.truncate(path, 1 * MIB)
    done = running.finish(20)
    assert done.code == 9
    assert done.all("file_problem")[0]["path"] == "a.data"


def test_files_that_vanish_before_their_turn(box: Box) -> None:
    first = box.file("m/a.data", 8 * MIB)
    for number in range(3):
        box.file(f"m/z{number}.data", MIB)
    running = box.start("warm", "--json", box.path("m"), "--max-rate", "24MiB", "-P", "1")
    reading(running, "a.data")
    for number in range(3):
        os.unlink(box.path(f"m/z{number}.data"))
    done = running.finish(20)
    assert done.code == 9
    problems = done.all("file_problem")
    assert sorted((one["path"], one["errno"], one["offset"]) for one in problems) == [
        (f"z{number}.data", "ENOENT", None) for number in range(3)
    ]
    assert resident(first) == 8 * MIB


# Much


def test_memory_stays_small_with_many_lanes_and_a_huge_plan(box: Box) -> None:
    """600 GB of sparse files planned, 16 lanes, warmed to a small budget."""
    for number in range(60):
        box.sparse(f"m/{number:02}.data", 10 * 10**9)
    box.sparse("m/z-small.data", 48 * MIB)
    running = box.start(
        "warm", "--json", box.path("m"), "-P", "16", "--no-adapt", "--order", "largest", "--max-rate", "64MiB"
    )
    until(lambda: "warm" in running.out, "progress")
    peak = 0
    for _ in range(20):
        text = Path(f"/proc/{running.pid}/status").read_text()
        peak = max(
            peak, next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))
        )
        time.sleep(0.05)
    running.kill()
    assert peak <= 100 * 1024, f"{peak} KiB"
    done = box.warm(box.path("m"), "-P", "16", "--budget", "64MiB", "--include", "*")
    assert (done.code, done.summary["state"]) == (0, "partial")
    subprocess.run(["sh", "-c", f"rm -r {box.path('m')}"], check=True)


def test_an_empty_path_is_not_the_working_directory(box: Box) -> None:
    done = box.run("warm", "")
    assert done.code == 2
    assert "a PATH is empty" in done.err


def test_a_glob_may_choose_any_name_of_a_file(box: Box) -> None:
    first = Path(box.file("hub/snapshots/a/weights.data", 2 * MIB))
    second = first.parent.parent / "b"
    second.mkdir()
    (second / "weights.data").symlink_to(first)
    done = box.warm(str(first.parent.parent.parent), "--include", "snapshots/b/*")
    assert (done.code, done.summary["files"]) == (0, 1)
    assert done.summary["residency"]["total"] == 2 * MIB
    latest = first.parent.parent / "latest"
    latest.symlink_to(second)
    again = box.warm(str(first.parent.parent), "--include", "b/*")
    assert again.summary["files"] == 1
