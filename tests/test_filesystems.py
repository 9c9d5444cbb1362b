"""FUSE mounts with known habits: what is read, what stays, and what is said of mounts that cannot hold warm pages."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from stager.node.filesystems import object_store_at, traits_of
from stager.node.mounts import Mount
from tests.fuselab.fixtures import FuseMount, MountFactory
from tests.fuselab.trees import synthetic_bytes
from tests.harness import MIB, Box, Done, cold, files_below, resident

pytestmark = pytest.mark.root

FILES = {"config.json": 100, "a.data": 8 * MIB, "b.data": 4 * MIB}
TOTAL = sum(FILES.values())


def served(mount: FuseMount) -> int:
    return int(mount.counters()["served"])


def opens(mount: FuseMount, name: str) -> int:
    return int(mount.counters()["files"].get(name, {}).get("opens", 0))


def note(done: Done, code: str) -> dict[str, object]:
    found = [one for one in done.all("note") if one["code"] == code]
    assert len(found) == 1, str(done)
    return found[0]


# Pages are dropped at every open


@pytest.mark.parametrize("habit", [{}, {"direct_io": True}], ids=["drops", "direct-io"])
def test_nothing_is_read_from_a_mount_that_cannot_hold_pages(
    box: Box, fuse_mount: MountFactory, habit: dict[str, bool]
) -> None:
    mount = fuse_mount(synthetic=FILES, **habit)
    done = box.warm(mount.path)
    assert (done.code, done.summary["state"], done.summary["read"]) == (0, "released", 0)
    assert mount.path in done.summary["reason"]
    assert "kernel_cache" in str(note(done, "mount_drops_pages")["hint"])
    assert served(mount) <= MIB, "headers and the canary's page, no weights"
    assert not box.ready()
    assert box.ready("--accept", "released")


def test_strict_refuses_a_mount_that_drops_pages(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic=FILES)
    done = box.warm(mount.path, "--strict")
    assert (done.code, done.summary["state"], done.summary["read"]) == (11, "failed", 0)
    assert done.event("error")["slug"] == "mount_drops_pages"
    assert served(mount) <= MIB


def test_anyway_reads_for_daemons_with_a_cache_of_their_own(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic=FILES)
    done = box.warm(mount.path, "--anyway")
    assert (done.code, done.summary["state"]) == (0, "released")
    assert served(mount) >= TOTAL
    assert not box.ready()


def test_only_the_smallest_file_is_spent_on_the_canary(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic=FILES)
    done = box.run("status", "--json", mount.path)
    assert done.code == 0
    assert done.event("status_total")["residency"]["resident"] is None
    assert (opens(mount, "config.json"), opens(mount, "a.data"), opens(mount, "b.data")) == (2, 0, 0)


def test_status_costs_an_engine_none_of_its_pages(box: Box, fuse_mount: MountFactory) -> None:
    """An engine has the weights mapped; one open() by somebody else would drop them under it."""
    mount = fuse_mount(synthetic=FILES)
    fd = os.open(f"{mount.path}/a.data", os.O_RDONLY)
    engine = mmap.mmap(fd, FILES["a.data"], mmap.MAP_SHARED, mmap.PROT_READ)
    assert engine[:] == synthetic_bytes(0, FILES["a.data"])
    before = served(mount)
    assert box.run("status", mount.path).code == 0
    assert engine[:] == synthetic_bytes(0, FILES["a.data"])
    assert served(mount) - before <= 100 * 3
    engine.close()
    os.close(fd)


def test_status_opens_nothing_when_no_small_file_can_be_spared(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic={"a.data": 8 * MIB, "b.data": 4 * MIB})
    done = box.run("status", "--json", mount.path)
    assert done.code == 0
    assert mount.counters()["opens"] == 0
    assert "no small file" in str(note(done, "mount")["message"])
    assert box.run("status", mount.path, "--min-resident", "1%").code == 3


# Pages stay


def test_a_mount_that_keeps_pages_becomes_warm_and_stays(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(synthetic=FILES, keep_cache="always")
    done = box.warm(mount.path)
    assert (done.code, done.summary["state"]) == (0, "ready"), str(done)
    assert resident(*files_below(mount.path)) == TOTAL
    before = served(mount)
    for name, size in FILES.items():
        assert Path(mount.path, name).read_bytes() == synthetic_bytes(0, size)
    assert served(mount) == before, "the engine's reads come from memory"
    again = box.warm(mount.path)
    assert (again.summary["read"], again.summary["state"]) == (0, "ready")
    assert box.ready()


def test_what_stager_itself_read_is_not_of_unknown_origin(box: Box, fuse_mount: MountFactory) -> None:
    """The index and the canary's page are resident before pages are counted, and they are this run's own."""
    mount = fuse_mount(source=box.model(size=8 * MIB, shards=2), keep_cache="always")
    done = box.warm(mount.path)
    assert (done.summary["state"], done.summary["unknown_origin"]) == ("ready", 0)
    assert [one["code"] for one in done.all("note") if one["level"] == "warning"] == []


def test_one_handle_a_file_on_an_ossfs_mount(box: Box, fuse_mount: MountFactory) -> None:
    files = {"config.json": 100, "a.data": 160 * MIB}
    mount = fuse_mount(synthetic=files, keep_cache="always", subtype="ossfs2")
    done = box.warm(mount.path, "-P", "8")
    assert (done.code, done.summary["state"], done.summary["split"]) == (0, "ready", False)
    assert opens(mount, "a.data") == 3, "to look, to read, to verify"
    assert mount.counters()["max_reads_at_once"] <= 16


@pytest.mark.parametrize(
    ("subtype", "remedy"),
    [
        ("ossfs", "auto_cache"),
        ("ossfs2", "direct_io"),
        ("s3fs", "use_cache"),
        ("rclone", "vfs-cache-mode"),
        ("bindfs", "kernel_cache"),
        ("nobodyknows", "kernel_cache"),
    ],
)
def test_the_remedy_is_that_of_the_filesystem(
    box: Box, fuse_mount: MountFactory, subtype: str, remedy: str
) -> None:
    mount = fuse_mount(synthetic={"config.json": 100, "a.data": MIB}, subtype=subtype)
    done = box.run("check", mount.path)
    assert done.code == 0
    assert "canary: pages after a second open: drops" in done.out
    assert remedy in done.out
    assert "a run would end released" in done.out
    assert box.run("check", mount.path, "--strict").code == 11


# A model replaced under the same name


def replace(path: Path, content: bytes, *, keep_mtime: bool = False) -> None:
    before = path.stat()
    path.write_bytes(content)
    if keep_mtime:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def keeping(fuse_mount: MountFactory, source: str) -> FuseMount:
    """A daemon that keeps pages whatever happens behind it, as with `-o kernel_cache`."""
    return fuse_mount(source=source, keep_cache="always", attr_timeout=0, entry_timeout=0)


def test_a_replaced_model_is_dropped_and_read_again(box: Box, fuse_mount: MountFactory) -> None:
    source = Path(box.file("source/weights.data", 8 * MIB))
    mount = keeping(fuse_mount, str(source.parent))
    there = Path(mount.path, "weights.data")
    assert box.warm(mount.path).summary["state"] == "ready"
    old, new = source.read_bytes(), os.urandom(8 * MIB)
    replace(source, new)
    assert there.read_bytes() == old, "this mount serves old pages: nothing is proven otherwise"
    assert not box.ready(), "the marker speaks of the old file"
    done = box.warm(mount.path)
    assert (done.code, done.summary["state"], done.summary["replaced"]) == (0, "ready", 1)
    assert done.summary["read"] == 8 * MIB
    assert "weights.data" in str(note(done, "replaced")["message"])
    assert there.read_bytes() == new
    assert box.ready()


def test_old_pages_that_cannot_be_dropped_are_never_ready(box: Box, fuse_mount: MountFactory) -> None:
    """A process has the old pages mapped, so the kernel does not let them go."""
    source = Path(box.file("source/weights.data", 8 * MIB))
    mount = keeping(fuse_mount, str(source.parent))
    there = Path(mount.path, "weights.data")
    assert box.warm(mount.path).summary["state"] == "ready"
    fd = os.open(there, os.O_RDONLY)
    engine = mmap.mmap(fd, 8 * MIB, mmap.MAP_SHARED, mmap.PROT_READ)
    old = engine[:]
    replace(source, os.urandom(8 * MIB))
    for words in ((), ("--fresh",)):
        done = box.warm(mount.path, *words)
        assert there.read_bytes() == old, "the kernel still serves the old file"
        assert done.summary["state"] != "ready", str(done)
        assert done.code == 9
        assert "weights.data" in done.out
        assert not box.ready()
    engine.close()
    os.close(fd)
    done = box.warm(mount.path)
    assert (done.code, done.summary["state"]) == (0, "ready")
    assert there.read_bytes() == source.read_bytes()


def test_pages_of_unknown_origin_are_said_to_be_so(box: Box, fuse_mount: MountFactory) -> None:
    source = Path(box.file("source/weights.data", 8 * MIB))
    mount = keeping(fuse_mount, str(source.parent))
    there = Path(mount.path, "weights.data")
    old, new = there.read_bytes(), os.urandom(8 * MIB)
    replace(source, new)
    done = box.warm(mount.path)
    assert done.code == 0
    assert done.summary["unknown_origin"] == 8 * MIB
    assert "--fresh" in str(note(done, "unknown_origin")["hint"])
    assert there.read_bytes() == old
    again = box.warm(mount.path)
    assert again.summary["unknown_origin"] == 8 * MIB, "a second look does not make them known"
    fresh = box.warm(mount.path, "--fresh")
    assert (fresh.summary["unknown_origin"], fresh.summary["read"]) == (0, 8 * MIB)
    assert there.read_bytes() == new
    assert box.warm(mount.path).summary["unknown_origin"] == 0
    assert "unknown origin" not in box.run("check", mount.path).out


def test_check_says_that_files_were_replaced_and_drops_nothing(box: Box, fuse_mount: MountFactory) -> None:
    source = Path(box.file("source/weights.data", 4 * MIB))
    mount = keeping(fuse_mount, str(source.parent))
    box.warm(mount.path)
    old = source.read_bytes()
    replace(source, os.urandom(4 * MIB))
    assert "1 file replaced since the last run" in box.run("check", mount.path).out
    assert Path(mount.path, "weights.data").read_bytes() == old


# Read errors


def test_a_read_error_names_file_offset_and_errno_and_the_others_go_on(
    box: Box, fuse_mount: MountFactory
) -> None:
    files = {"a.data": 8 * MIB, "b.data": 4 * MIB, "c.data": 4 * MIB}
    mount = fuse_mount(synthetic=files, keep_cache="always", error_at="a.data:5242881:EIO")
    done = box.warm(mount.path)
    assert (done.code, done.summary["state"], done.summary["outcome"]) == (9, "failed", "io_error")
    problems = done.all("file_problem")
    assert len(problems) == 1, "one file, one line"
    assert problems[0]["path"] == "a.data"
    assert problems[0]["errno"] == "EIO"
    assert 4 * MIB <= problems[0]["offset"] <= 5242881
    assert resident(f"{mount.path}/b.data", f"{mount.path}/c.data") == 8 * MIB
    assert "1 file could not be read" in done.event("error")["message"]
    assert done.summary["missing"][0][0] == "a.data"
    text = box.run("warm", mount.path)
    assert "error: a.data: input/output error at offset " in text.err
    assert "(EIO)" in text.err


def test_a_read_error_under_protect_names_the_same(box: Box, fuse_mount: MountFactory) -> None:
    files = {"a.data": 8 * MIB, "b.data": 4 * MIB}
    mount = fuse_mount(synthetic=files, keep_cache="always", error_at="a.data:5242881:EIO")
    done = box.warm(mount.path, "--protect")
    assert done.code == 9
    problems = done.all("file_problem")
    assert [(one["path"], one["errno"]) for one in problems] == [("a.data", "EIO")]
    assert 4 * MIB <= problems[0]["offset"] <= 5242881
    assert resident(f"{mount.path}/b.data") == 4 * MIB


def test_a_read_error_in_a_header_names_the_file(box: Box, fuse_mount: MountFactory) -> None:
    model = box.model(size=8 * MIB, shards=2)
    name = "model-00001-of-00002.safetensors"
    mount = fuse_mount(source=model, keep_cache="always", error_at=f"{name}:0:EIO")
    done = box.warm(mount.path)
    assert (done.code, done.summary["outcome"]) == (9, "io_error")
    assert name in done.out
    assert "EIO" in done.out
    assert "1 file could not be read" in done.event("error")["message"]
    other = f"{mount.path}/model-00002-of-00002.safetensors"
    assert resident(other) == os.path.getsize(other)


def test_a_file_that_ends_before_its_size_is_a_read_error(box: Box, fuse_mount: MountFactory) -> None:
    mount = fuse_mount(
        synthetic={"a.data": 8 * MIB, "b.data": MIB}, keep_cache="always", shrink="a.data:3MiB"
    )
    done = box.warm(mount.path)
    assert done.code in (0, 9)
    if done.code == 0:  # the kernel fills what a daemon leaves out with zeros: then that is what is resident
        assert resident(f"{mount.path}/a.data") == 8 * MIB


def test_two_mounts_in_one_run(box: Box, fuse_mount: MountFactory) -> None:
    """One holds pages and one does not: what can be warmed is, and the run does not claim the rest."""
    disk = box.file("disk/weights.data", 4 * MIB)
    mount = fuse_mount(synthetic={"config.json": 100, "a.data": 4 * MIB})
    done = box.warm(os.path.dirname(disk), mount.path)
    assert (done.code, done.summary["state"]) == (0, "released")
    assert resident(disk) == 4 * MIB
    cold(disk)
    strict = box.warm(os.path.dirname(disk), mount.path, "--strict")
    assert (strict.code, resident(disk)) == (11, 0)


# Where objects lie behind a mount


@pytest.mark.parametrize(
    ("subtype", "objects"),
    [
        ("ossfs", True),
        ("ossfs2", True),
        ("s3fs", True),
        ("rclone", True),
        ("goofys", True),
        ("geesefs", True),
        ("gcsfuse", True),
        ("cosfs", True),
        ("obsfs", True),
        ("tosfs", True),
        ("jindofs-fuse", True),
        ("mountpoint-s3", True),
        ("bindfs", False),
        ("sshfs", False),
        ("juicefs", False),
        ("fuse-overlayfs", False),
        ("something", False),
        ("", False),
    ],
)
def test_the_subtype_says_whether_objects_lie_behind(subtype: str, objects: bool) -> None:
    kind = f"fuse.{subtype}" if subtype else "fuse"
    assert traits_of(mount_of(kind, "somewhere")).object_store is objects


def mount_of(kind: str, source: str, options: str = "rw", number: int = 1, point: str = "/") -> Mount:
    return Mount(number, f"0:{number}", "/", point, kind, source, options)


def test_a_mount_without_a_subtype_is_known_by_its_source() -> None:
    assert traits_of(mount_of("fuse", "mountpoint-s3")).object_store
    assert not traits_of(mount_of("fuse", "/data")).object_store
    for kind in ("ext4", "nfs4", "tmpfs", "virtiofs"):
        assert not traits_of(mount_of(kind, "mountpoint-s3")).object_store


def test_what_is_written_to_an_overlay_over_objects_is_no_object(tmp_path: Path) -> None:
    below = mount_of("fuse.ossfs2", "bucket", number=1, point=str(tmp_path))
    above = mount_of("overlay", "overlay", f"rw,lowerdir={tmp_path},upperdir=/u", number=2)
    traits = traits_of(above, {1: below, 2: above})
    assert traits.name == "overlayfs over ossfs 2"
    assert not traits.object_store


def test_the_nearest_folder_that_is_there_decides(
    fuse_mount: MountFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    there = fuse_mount(source=str(tmp_path), subtype="ossfs2").path
    for name in ("", "/", "/sub", "/sub/", "/not/there/yet", "/not/", "/file/below"):
        assert object_store_at(there + name), name
    for path in (
        str(tmp_path),
        str(tmp_path / "not/there"),
        "/",
        "/not/there",
        "relative/not/there",
        "",
        ".",
    ):
        assert not object_store_at(path), path
    (tmp_path / "link").symlink_to(there + "/sub")
    assert object_store_at(str(tmp_path / "link/not/there"))
    monkeypatch.chdir(there)
    for path in ("", "not/there", "sub", "."):
        assert object_store_at(path), path
