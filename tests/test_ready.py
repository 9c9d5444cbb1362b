"""The gate: what opens it, what closes it, and that no mount can hold up the answer for ever."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from stager.jobs.ready import Question
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, STRANGER, Box, cold, until


def why(box: Box, *words: str) -> str:
    """What ``stager ready`` says, which must be no."""
    done = box.run("ready", *words)
    assert done.code == 3, str(done)
    assert done.out.startswith("not ready: ")
    return done.out.removeprefix("not ready: ").strip()


def alter(box: Box, **fields: object) -> None:
    """Change fields of the marker, as another boot or version would have written them."""
    Path(box.marker).write_text(json.dumps({**box.read_marker(), **fields}))


def test_no_marker_is_not_ready(box: Box) -> None:
    assert "no marker" in why(box)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"v":1}', '{"v":99}', "\xff\xfe", '{"v":1,"state":"ready"}', "[" * 100_000],
    ids=lambda content: content[:30],
)
def test_a_broken_marker_is_not_ready(box: Box, content: str) -> None:
    os.makedirs(os.path.dirname(box.marker))
    Path(box.marker).write_bytes(content.encode("latin-1"))
    why(box)


def test_ready_and_why_not(box: Box) -> None:
    folder, other = os.path.dirname(box.file("m/weights.data", MIB)), box.file("other.data", MIB)
    assert box.warm(folder).code == 0
    assert box.run("ready").out == "ready\n"
    assert box.ready(folder)
    assert box.ready(folder, "--min-resident", "100%")
    assert "does not speak of" in why(box, other)
    assert "does not speak of" in why(box, box.folder), "a folder around the model holds more than the model"
    answer = box.run("ready", "--json", other).event("readiness")
    assert (answer["ready"], answer["state"]) == (False, "ready")


def test_a_marker_that_says_too_little_is_not_ready(box: Box) -> None:
    path = box.file("weights.data", MIB)
    box.warm(path)
    whole = box.read_marker()
    for fields in ({"boot_id": ""}, {"files": []}, {"paths": []}, {"files": [], "paths": [], "asked": []}):
        alter(box, **{**whole, **fields})
        assert ("cannot be known" if "boot_id" in fields else "no files") in why(box)
    alter(box, **{**whole, "files": [["/m\0", 1, 2, 3, 4, None, True]]})
    assert "not a file name" in why(box)
    alter(box, **whole)
    assert box.ready()


def test_what_was_never_warmed_is_not_ready(box: Box) -> None:
    """New shards copied in later; the marker's own files are all as they were."""
    folder = os.path.dirname(box.file("m/weights.data", MIB))
    assert box.warm(folder).code == 0
    assert box.ready(folder)
    os.link(box.path("m/weights.data"), box.path("m/other-name.data"))
    box.file("m/copy.incomplete", 10)
    assert box.ready(folder), "another name of a file, and what no run ever takes"
    late = box.file("m/deep/er/late.data", MIB)
    assert why(box, folder) == f"`{late}` was not warmed"
    assert why(box, os.path.dirname(box.path("m/weights.data")), "--accept", "partial")
    assert box.ready(), "without PATH: what was warmed is as it was"


def test_ready_is_about_what_was_selected(box: Box) -> None:
    folder = os.path.dirname(box.file("m/weights.data", MIB))
    config, _ = box.file("m/sub/config.json", 10), box.file("m/sub/note.txt", 10)
    assert box.warm(folder, "--include", "sub/*.json").code == 0
    assert box.ready(folder)
    assert box.ready(os.path.dirname(config)), "globs are about names below the PATH of the run"
    assert "does not speak of" in why(box, box.path("m/weights.data"))
    late = box.file("m/sub/late.json", 10)
    for path in (folder, os.path.dirname(late)):
        assert why(box, path) == f"`{late}` was not warmed"
    os.unlink(late)
    assert box.warm(folder, "--exclude", "*.txt").code == 0
    assert box.ready(folder)


def test_one_warm_file_is_not_its_folder(box: Box) -> None:
    path, _ = box.file("m/a.data", MIB), box.file("m/b.data", MIB)
    assert box.warm(path).code == 0
    assert box.ready(path)
    assert "does not speak of" in why(box, os.path.dirname(path))


def test_a_folder_of_symlinks_is_spoken_of(box: Box) -> None:
    """The hub cache: snapshots hold symlinks into blobs."""
    blob = box.file("blobs/0123", MIB)
    os.makedirs(box.path("snapshots/main"))
    os.symlink(blob, box.path("snapshots/main/weights.data"))
    assert box.warm(box.path("snapshots/main")).code == 0
    assert box.ready(box.path("snapshots/main"))
    assert box.ready(box.path("snapshots/main/weights.data"))


def test_reboot(box: Box) -> None:
    path = box.file("weights.data", MIB)
    box.warm(path)
    alter(box, boot_id="00000000-0000-0000-0000-000000000000")
    assert "rebooted" in why(box)


def test_replaced_grown_or_gone_files(box: Box) -> None:
    path = box.file("m/weights.data", MIB)
    box.warm(os.path.dirname(path))
    before = os.stat(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert "not the file that was warmed" in why(box)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert box.ready()
    os.rename(path, path + ".away")
    assert "no such file" in why(box)
    Path(path).write_bytes(b"\0" * MIB)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "not the file that was warmed" in why(box), "same name, size and time, another inode"


def test_min_resident_counts_now(box: Box) -> None:
    a, b = box.file("m/a.data", 3 * MIB), box.file("m/b.data", MIB)
    assert box.warm(os.path.dirname(a)).code == 0
    cold(b)
    assert box.ready(), "the marker speaks of then"
    assert why(box, "--min-resident", "90%") == "75.0% resident, 90% asked for"
    assert box.ready("--min-resident", "75%")


def test_every_state_needs_its_own_word(box: Box) -> None:
    path = box.file("weights.data", MIB)
    box.warm(path)
    for state in ("partial", "unverified", "released"):
        alter(box, state=state, reason="the reason")
        assert "the reason" in why(box)
        assert why(box, "--accept", ",".join({"partial", "unverified", "released"} - {state}))
        assert box.ready("--accept", state)
        done = box.run("ready", env={"STAGER_ACCEPT": state})
        assert done.code == 0
    alter(box, state="failed")
    assert why(box, "--accept", "partial,unverified,released")
    assert box.run("ready", "--accept", "failed").code == 2


RELEASED = ("--accept", "partial,unverified,released")


@pytest.mark.root
def test_released_after_a_restart_is_what_it_was_at_the_first_time(box: Box) -> None:
    """The gate's folder outlives the container: what the run before saw of the model must not close the gate again."""
    folder, other = os.path.dirname(box.file("m/weights.data", MIB)), box.file("other/a.data", MIB)
    box.open_marker_folder()
    assert box.warm(folder, "--fail-open", uid=STRANGER).code == 0
    files = box.read_marker()["files"]
    assert files
    os.chmod(folder, 0o700)
    for seen in (files, []):
        assert box.warm(folder, "--fail-open", uid=STRANGER).code == 0
        marker = box.read_marker()
        assert (marker["state"], marker["files"]) == ("released", seen), (
            "whose pages they are is not forgotten"
        )
        for paths in ([], [folder], [os.path.join(folder, "weights.data")]):
            done = box.run("ready", *RELEASED, *paths, uid=STRANGER)
            assert (done.code, done.out) == (0, "ready (accepted: released)\n"), str(done)
        assert "does not speak of" in why(box, *RELEASED, os.path.dirname(other))
        assert why(box, *RELEASED, "--min-resident", "0%") == "the marker names no files"
        os.unlink(box.marker)


def test_released_speaks_of_what_its_own_run_was_asked(box: Box) -> None:
    """The run before had another model: it is none of this marker's, though the same file."""
    first, second = os.path.dirname(box.file("a/a.data", MIB)), box.path("gone")
    assert box.warm(first, "--include", "*.data").code == 0
    assert box.warm(second, "--fail-open").code == 0
    assert (box.state, box.read_marker()["include"]) == ("released", [])
    assert box.ready(*RELEASED, second)
    os.symlink(second, box.path("link"))
    assert box.ready(*RELEASED, box.path("link", "sub"))
    assert "does not speak of" in why(box, *RELEASED, first)
    alter(box, boot_id="00000000-0000-0000-0000-000000000000")
    assert "rebooted" in why(box, *RELEASED)


@pytest.mark.root
def test_released_for_a_mount_that_hangs_is_told_without_asking_it(
    box: Box, fuse_mount: MountFactory
) -> None:
    mount = fuse_mount(synthetic={"weights.data": MIB}, keep_cache="always", attr_timeout=0, entry_timeout=0)
    assert box.warm(mount.path).code == 0
    os.kill(mount.pid, 19)  # SIGSTOP
    try:
        assert box.warm(mount.path, "--fail-open", "--timeout", "500ms").code == 0
        assert (box.state, len(box.read_marker()["files"])) == ("released", 1)
        for paths in ((), (mount.path,), (f"{mount.path}/weights.data",)):
            assert Question(box.marker, paths=paths, accept=frozenset({"released"})).ask().ready
    finally:
        os.kill(mount.pid, 18)


@pytest.mark.root
def test_a_remounted_or_dead_daemon_is_not_ready(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"weights.data": MIB}, keep_cache="always")
    assert box.warm(mount.path).code == 0
    assert box.ready()
    mount.kill()
    assert "not connected" in why(box)
    mount.remount()
    assert os.path.getsize(f"{mount.path}/weights.data") == MIB
    why(box)


@pytest.mark.root
def test_a_remount_with_the_same_files_is_not_ready(box: Box, fuse_mount: MountFactory) -> None:
    """Inode, size and mtime are all the same, and device and mount ids may be used again; the pages are gone."""
    path = box.file("source/weights.data", MIB)
    mount = fuse_mount(source=os.path.dirname(path), keep_cache="always")
    assert box.warm(mount.path).code == 0
    before = os.stat(f"{mount.path}/weights.data")
    mount.remount()
    after = os.stat(f"{mount.path}/weights.data")
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (
        after.st_ino,
        after.st_size,
        after.st_mtime_ns,
    )
    assert "mounted again" in why(box)


@pytest.mark.root
def test_an_engine_s_namespace_may_have_the_number_of_the_init_container_s(box: Box) -> None:
    """The number is free when the init container has ended. Mount ids of the two namespaces have nothing in common all the same."""
    path = box.file("weights.data", MIB)
    apart = ("unshare", "-m", "sh", "-c", 'readlink /proc/self/ns/mnt >&2; exec "$@"', "sh")
    warmed = box.run("warm", path, before=apart)
    assert warmed.code == 0
    for _ in range(20):
        asked = box.run("ready", before=apart)
        if asked.err == warmed.err.splitlines(keepends=True)[0]:
            assert (asked.code, asked.out) == (0, "ready\n")
            return
    pytest.skip("the kernel gave no namespace the number of the first")


@pytest.mark.root
def test_an_unmounted_volume_is_not_ready(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"weights.data": MIB}, keep_cache="always")
    assert box.warm(mount.path).code == 0
    mount.stop()
    why(box)


@pytest.mark.root
def test_a_hung_mount_cannot_hold_up_the_answer(box: Box, fuse_mount: MountFactory) -> None:
    """The daemon lives and answers nothing: every look-up hangs. The answer is no, with a reason, in the time given."""
    mount = fuse_mount(synthetic={"weights.data": MIB}, keep_cache="always", attr_timeout=0, entry_timeout=0)
    assert box.warm(mount.path).code == 0
    os.kill(mount.pid, 19)  # SIGSTOP
    try:
        started = time.monotonic()
        question = Question(box.marker)
        for _ in range(2):
            answer = question.ask(patience=0.3)
            assert (answer.ready, answer.state) == (False, "ready")
            assert mount.path in answer.why
        assert time.monotonic() - started < 1
        done = box.run("wait", "--timeout", "1s")
        assert (done.code, mount.path in done.out) == (3, True)
        assert done.seconds < 3
    finally:
        os.kill(mount.pid, 18)
    until(lambda: box.ready(), "the daemon to answer again")


def test_wait_returns_when_the_gate_opens(box: Box) -> None:
    path = box.file("weights.data", MIB)
    waiting = box.start("wait", "--timeout", "30s", path)
    time.sleep(0.3)
    assert waiting.process.poll() is None
    box.warm(path)
    done = waiting.finish(5)
    assert (done.code, done.out) == (0, "ready\n")


def test_wait_gives_up(box: Box) -> None:
    done = box.run("wait", "--timeout", "600ms")
    assert done.code == 3
    assert 0.6 <= done.seconds < 2
    assert done.out.startswith("not ready: ")


def test_wait_ends_with_a_signal(box: Box) -> None:
    waiting = box.start("wait")
    time.sleep(0.5)
    assert waiting.stop(15, within=1).code == 143


def test_ready_imports_little(box: Box) -> None:
    done = box.run("ready", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.code == 3
    for module in ("click", "anyio", "asyncio", "psutil", "tqdm"):
        assert f" {module}\n" not in done.err, f"{module} was imported"
