"""The memory levels: on golden trees of many machines, and on real cgroups of this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stager.core.model import Level, LevelKind, MemorySnapshot
from stager.core.units import GIB, KIB, MIB
from stager.node import cgroups
from stager.node.memory import Gauge, snapshot

GOLDEN = Path(__file__).parent / "golden" / "memory"
V1_MEMORY = Path("/sys/fs/cgroup/memory")


def plant(name: str, top: Path) -> Path:
    """Make the files of a golden tree below `top`, and those of the node that all trees share."""
    for tree in ("system", name):
        for section in (GOLDEN / f"{tree}.tree").read_text().split("\n== ")[1:]:
            title, _, text = section.partition("\n")
            path, unreadable = top / title.split(" ")[0], title.endswith("(unreadable)")
            path.parent.mkdir(parents=True, exist_ok=True)
            if unreadable:
                path.mkdir()  # opens, but cannot be read: even for root, whom no mode stops
            else:
                path.write_text(text if text.endswith("\n") else text + "\n")
    return top


@pytest.fixture(autouse=True)
def outside_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def look(name: str, top: Path, *, limit: int | None = None, pid: str = "self") -> MemorySnapshot:
    return snapshot(root=str(plant(name, top)), limit=limit, pid=pid)


def brief(snap: MemorySnapshot) -> list[tuple[str, int | None, int, int, bool]]:
    """(name, limit, used, reclaimable, own) of every cgroup level, in MiB."""

    def mib(size: int) -> int:
        return size // MIB

    return [
        (
            level.name,
            None if level.limit is None else mib(level.limit),
            mib(level.used),
            mib(level.reclaimable),
            level.own,
        )
        for level in snap.levels
        if level.kind is not LevelKind.SYSTEM
    ]


def test_v2_host(tmp_path: Path) -> None:
    snap = look("v2-host", tmp_path)
    assert brief(snap) == [
        ("/system.slice/stager.service", 8192, 1024, 512, False),
        ("/system.slice", None, 6144, 3584, False),  # without 512 MiB dirty and writeback, and never shm
    ]
    assert snap.levels[0].source == "/sys/fs/cgroup/system.slice/stager.service/memory.max"
    assert snap.levels[0].protected == 256 * MIB
    assert snap.lru == "mglru"
    assert not snap.in_kubernetes


def test_the_system_level_is_free_above_the_watermarks_and_available_in_all(tmp_path: Path) -> None:
    level = look("v2-host", tmp_path).levels[-1]
    watermarks = 20_000 * os.sysconf("SC_PAGE_SIZE")
    assert (level.kind, level.name, level.source) == (LevelKind.SYSTEM, "system", "/proc/meminfo")
    assert level.limit == 64 * GIB
    assert level.free == 20 * GIB - watermarks
    assert level.free + level.reclaimable == 50 * GIB


def test_v2_private_namespace(tmp_path: Path) -> None:
    snap = look("v2-private", tmp_path)
    assert brief(snap) == [("/", 16384, 2048, 1536, True)]
    assert snap.lru == "classic"


def test_v2_nested_without_a_namespace(tmp_path: Path) -> None:
    snap = look("v2-nested", tmp_path)
    assert [row[1:] for row in brief(snap)] == [
        (24576, 3072, 2048, True),
        (32768, 10240, 6144, False),
        (None, 30720, 16384, False),
        (61440, 40960, 20480, False),
    ]
    assert snap.levels[1].name.endswith("/kubepods-burstable-pod0f1e.slice")
    assert snap.in_kubernetes


def test_v2_bind_mounted_cgroup(tmp_path: Path) -> None:
    snap = look("v2-bind", tmp_path)
    container = "/docker/" + "a1" * 32
    assert brief(snap) == [(f"{container}/job", None, 512, 256, True), (container, 4096, 1024, 512, True)]
    assert snap.levels[1].source == "/sys/fs/cgroup/memory.max"


def test_v2_mount_from_outside_the_namespace_is_searched_for_the_own_process(tmp_path: Path) -> None:
    snap = look("v2-outside", tmp_path, pid="4711")
    assert brief(snap) == [("/machines/two", 10240, 2048, 1024, True), ("/machines", 20480, 5120, 0, False)]


def test_v2_high_below_max_is_the_limit(tmp_path: Path) -> None:
    level = look("v2-high", tmp_path).levels[0]
    assert (level.limit, level.used) == (6 * GIB, 7 * GIB)
    assert level.source == "/sys/fs/cgroup/work/memory.high"
    assert level.free == 0


def test_v2_what_siblings_protect_is_not_reclaimable(tmp_path: Path) -> None:
    snap = look("v2-siblings", tmp_path)
    own, outer, system = snap.levels
    assert (own.reclaimable, own.protected) == (3 * GIB, 2 * GIB)
    assert outer.reclaimable == (10 - 2 - 1) * GIB  # min(current, low) of `database`, all of `small`
    assert system.free is not None
    assert system.free + system.reclaimable == (50 - 2) * GIB  # system.slice keeps what it holds


def test_v2_levels_that_cannot_be_read(tmp_path: Path) -> None:
    snap = look("v2-unreadable", tmp_path)
    # `c` has no readable limit and is left out; `b` has a limit without a usage; `a` has nothing reclaimable;
    # `o` holds at least what `a` does.
    assert brief(snap) == [
        ("/o/a/b", 10240, 0, 0, False),
        ("/o/a", 30720, 9216, 0, False),
        ("/o", 40960, 9216, 0, False),
    ]
    assert [level.blind for level in snap.levels] == [True, False, True, False]
    assert snap.levels[0].source == "/sys/fs/cgroup/o/a/b/memory.high"


def test_v1(tmp_path: Path) -> None:
    snap = look("v1", tmp_path)
    assert brief(snap) == [
        ("/system.slice/stager.service", 8192, 1024, 640, False),
        ("/system.slice", None, 6144, 3584, False),
    ]
    assert snap.levels[0].kind is LevelKind.V1
    assert snap.levels[0].source == "/sys/fs/cgroup/memory/system.slice/stager.service/memory.limit_in_bytes"
    assert snap.lru == "classic"  # sysfs is there, lru_gen is not


def test_v1_hidden_pod_limit(tmp_path: Path) -> None:
    snap = look("v1-hidden", tmp_path)
    assert [row[1:] for row in brief(snap)] == [(16384, 3072, 2048, True), (12288, 3072, 2048, False)]
    hidden = snap.levels[1]
    assert hidden.name == "hidden ancestor"
    assert hidden.source == "/sys/fs/cgroup/memory/memory.stat:hierarchical_memory_limit"
    assert hidden.blind


def test_v1_ancestors_that_do_not_count_their_children_do_not_bind(tmp_path: Path) -> None:
    assert [row[:2] for row in brief(look("v1-flat", tmp_path))] == [
        ("/outer/flat/inner/own", 5120),
        ("/outer/flat/inner", 6144),
    ]


def test_hybrid_takes_v1(tmp_path: Path) -> None:
    snap = look("hybrid", tmp_path)
    assert brief(snap) == [("/user.slice", 7168, 2048, 1024, False)]
    assert snap.levels[0].kind is LevelKind.V1
    assert snap.lru == "unknown"  # sysfs is out of sight


def test_a_given_limit_holds_at_least_what_is_seen_inside_it(tmp_path: Path) -> None:
    snap = look("v2-private", tmp_path, limit=12 * GIB)
    assert [level.kind for level in snap.levels] == [LevelKind.V2, LevelKind.GIVEN, LevelKind.SYSTEM]
    given = snap.levels[1]
    assert (given.limit, given.used, given.reclaimable) == (12 * GIB, 2 * GIB, 1536 * MIB)
    assert (given.source, given.own, given.blind) == ("--limit", False, True)


def test_a_given_limit_with_nothing_inside_it(tmp_path: Path) -> None:
    assert snapshot(root=str(tmp_path), limit=GIB).levels == (
        Level(LevelKind.GIVEN, "given limit", "--limit", GIB, 0, 0, blind=True),
    )


def test_nothing_can_be_read(tmp_path: Path) -> None:
    assert snapshot(root=str(tmp_path)) == MemorySnapshot((), in_kubernetes=False, lru="unknown")


def test_kubernetes_by_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert look("v2-private", tmp_path).in_kubernetes


def test_a_gauge_reads_new_figures_and_follows_the_process(tmp_path: Path) -> None:
    plant("v2-host", tmp_path)
    gauge = Gauge(root=str(tmp_path))
    own = tmp_path / "sys/fs/cgroup/system.slice/stager.service"
    (own / "memory.current").write_text(f"{2 * GIB}\n")
    assert gauge.read().levels[0].used == 2 * GIB
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice\n")
    assert gauge.read().levels[0].name == "/system.slice"


def test_a_level_that_vanishes_between_two_readings(tmp_path: Path) -> None:
    plant("v2-host", tmp_path)
    gauge = Gauge(root=str(tmp_path))
    shutil.rmtree(tmp_path / "sys/fs/cgroup/system.slice/stager.service")
    assert [row[0] for row in brief(gauge.read())] == ["/system.slice"]
    (tmp_path / "proc/meminfo").unlink()
    assert gauge.read().levels[-1].kind is LevelKind.V2


def test_a_mount_point_with_a_space_and_a_mount_on_top_of_another(tmp_path: Path) -> None:
    plant("v2-high", tmp_path)
    (tmp_path / "sys/fs/cgroup").rename(tmp_path / "sys/fs/c g")
    info = tmp_path / "proc/self/mountinfo"
    line = info.read_text().splitlines()[1]
    info.write_text("\n".join([line, line.replace("/sys/fs/cgroup", "/sys/fs/c\\040g"), "torn", ""]))
    assert snapshot(root=str(tmp_path)).levels[0].source == "/sys/fs/c g/work/memory.high"


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (f"/system.slice/docker-{'0' * 64}.scope", [True, False]),
        (f"/user.slice/libpod-{'0' * 64}.scope/container", [True, True, False]),
        (f"/system.slice/kubelet/kubepods-pod1.slice:cri-containerd:{'0' * 64}", [True, False, False]),
        (f"/docker/{'0' * 64}/kubepods/pod1/{'1' * 64}", [True, False, False, False, False]),
        ("/kubepods/burstable/pod1/short", [True, False, False, False]),
        ("/system.slice/docker.service", [False, False]),
        ("/user.slice", [False]),
    ],
)
def test_which_levels_are_a_containers_own(tmp_path: Path, path: str, own: list[bool]) -> None:
    plant("v2-high", tmp_path)
    (tmp_path / "proc/self/cgroup").write_text(f"0::{path}\n")
    (tmp_path / f"sys/fs/cgroup{path}").mkdir(parents=True)
    for folder in (tmp_path / f"sys/fs/cgroup{path}", *(tmp_path / f"sys/fs/cgroup{path}").parents):
        if folder.is_relative_to(tmp_path / "sys/fs/cgroup") and folder != tmp_path / "sys/fs/cgroup":
            (folder / "cgroup.type").write_text("domain\n")
    found = cgroups.find(root=str(tmp_path))
    assert [directory.own for directory in found.directories] == own


def test_psutils_path_is_put_back(tmp_path: Path) -> None:
    before = psutil.PROCFS_PATH
    look("v2-host", tmp_path)
    assert before == psutil.PROCFS_PATH


def test_this_machine_is_read_fast() -> None:
    gauge = Gauge()
    system = gauge.read().levels[-1]
    assert system.kind is LevelKind.SYSTEM
    assert system.limit == psutil.virtual_memory().total
    took = []
    for _ in range(20):
        started = time.perf_counter()
        gauge.read()
        took.append(time.perf_counter() - started)
    assert min(took) < 0.005


# On real cgroups. The child joins the cgroup, does its work, and prints what it sees.

CHILD = """
import dataclasses, json, mmap, os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
from stager.node.memory import snapshot
target = sys.argv[2]
def show(label):
    print(json.dumps([label, [dataclasses.asdict(level) for level in snapshot().levels]]), flush=True)
show("before")
"""


class RealCgroup:
    """A memory cgroup of the test's own at the top of the v1 hierarchy, with one below it."""

    def __init__(self, path: Path) -> None:
        self.outer, self.inner = path, path / "inner"
        self.inner.mkdir(parents=True)

    def limit(self, outer: int, inner: int) -> None:
        (self.outer / "memory.limit_in_bytes").write_text(str(outer))
        (self.inner / "memory.limit_in_bytes").write_text(str(inner))

    def run(self, body: str, target: Path, *wrap: str) -> dict[str, list[Level]]:
        done = subprocess.run(
            [*wrap, sys.executable, "-c", CHILD + textwrap.dedent(body), str(self.inner), str(target)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parent.parent,
        )
        assert done.returncode == 0, done.stderr
        return {
            label: [Level(**{**level, "kind": LevelKind(level["kind"])}) for level in levels]
            for label, levels in map(json.loads, done.stdout.splitlines())
        }

    def remove(self) -> None:
        for folder in (self.inner, self.outer):
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except OSError:  # a process that has just ended leaves it a moment later
                    time.sleep(0.05)
            else:
                folder.rmdir()


@pytest.fixture
def cgroup() -> Iterator[RealCgroup]:
    if not (V1_MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("this machine has no cgroup v1 memory controller; the test VM covers v2")
    real = RealCgroup(V1_MEMORY / f"stager-test-{uuid.uuid4().hex[:12]}")
    real.limit(400 * MIB, 300 * MIB)
    try:
        yield real
    finally:
        real.remove()


@pytest.fixture
def cold_file(tmp_path: Path) -> Path:
    """100 MiB on a disk, none of it in the page cache."""
    path = tmp_path / "cold"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(64 * KIB) * 16)
        file.flush()
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


READ = """
with open(target, "rb", buffering=0) as file:
    buffer = bytearray(1 << 20)
    while file.readinto(buffer):
        pass
"""


@pytest.mark.root
def test_real_v1_levels_and_reclaimable_cache(cgroup: RealCgroup, cold_file: Path) -> None:
    seen = cgroup.run(READ + 'show("read")', cold_file)
    inner, outer = seen["before"][:2]
    assert [level.limit for level in (inner, outer)] == [300 * MIB, 400 * MIB]
    assert inner.source == f"{cgroup.inner}/memory.limit_in_bytes"
    assert seen["before"][-1].kind is LevelKind.SYSTEM
    for before, after in zip(seen["before"][:2], seen["read"][:2], strict=True):
        assert 95 * MIB < after.reclaimable - before.reclaimable < 110 * MIB
        assert 95 * MIB < after.used - before.used < 120 * MIB
        assert after.reclaimable <= after.used


@pytest.mark.root
def test_real_v1_shared_memory_is_used_and_never_reclaimable(cgroup: RealCgroup, tmp_path: Path) -> None:
    name = Path(f"/dev/shm/stager-test-{uuid.uuid4().hex}")
    body = """
    with open(target, "wb", buffering=0) as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    show("shm")
    """
    try:
        seen = cgroup.run(body, name)
    finally:
        name.unlink(missing_ok=True)
    for before, after in zip(seen["before"][:2], seen["shm"][:2], strict=True):
        assert after.used - before.used > 60 * MIB
        assert after.reclaimable - before.reclaimable < 8 * MIB


@pytest.mark.root
def test_real_v1_dirty_pages_are_not_reclaimable(cgroup: RealCgroup, tmp_path: Path) -> None:
    body = """
    file = open(target, "wb", buffering=0)
    for _ in range(32):
        file.write(b"x" * (1 << 20))
    show("dirty")
    os.fdatasync(file.fileno())
    show("clean")
    """
    seen = cgroup.run(body, tmp_path / "dirty")
    before, dirty, clean = (seen[label][0].reclaimable for label in ("before", "dirty", "clean"))
    assert clean - before > 28 * MIB
    assert dirty - before < 16 * MIB  # the disk may have begun to write some of it


@pytest.mark.root
@pytest.mark.parametrize("grow", [0, 40], ids=["alone", "beside anonymous growth"])
def test_real_v1_the_margin_stops_before_warmed_pages_go(
    cgroup: RealCgroup, cold_file: Path, grow: int
) -> None:
    """Read 100 MiB where 80 are allowed, as far as the margin lets: every page read is still there at the end."""
    cgroup.limit(80 * MIB, 300 * MIB)
    body = f"""
    from stager.core.budget import Policy, margin
    from stager.node.memory import Gauge
    gauge, policy, warmed, step = Gauge(), Policy(reserve=8 << 20), 0, 1 << 20
    buffer, ballast = bytearray(step), []
    with open(target, "rb", buffering=0) as file:
        while margin(gauge.read(), policy, warmed)[0] >= step and file.readinto(buffer):
            warmed += step
            if warmed == 10 * step and {grow}:
                ballast.append(bytearray(b"x") * ({grow} << 20))
    print(json.dumps([str(warmed), []]), flush=True)
    """
    done = cgroup.run(body, cold_file)
    warmed = next(int(label) for label in done if label.isdigit())
    resident = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", str(cold_file)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 5 * MIB < warmed < 80 * MIB
    assert int(resident.stdout) >= warmed


@pytest.mark.root
def test_real_v1_private_namespace_shows_the_hidden_limit(cgroup: RealCgroup, tmp_path: Path) -> None:
    cgroup.limit(200 * MIB, 300 * MIB)
    script = f"""
    echo $$ > {cgroup.inner}/cgroup.procs
    exec unshare -C -m sh -c 'umount {V1_MEMORY} && mount -t cgroup -o memory none {V1_MEMORY} && exec "$@"' sh "$@"
    """
    body = CHILD.replace('sys.argv[1] + "/cgroup.procs"', '"/dev/null"')
    done = subprocess.run(
        ["sh", "-ec", script, "sh", sys.executable, "-c", body, "-", "-"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    own, hidden = json.loads(done.stdout)[1][:2]
    assert (own["name"], own["limit"], own["own"]) == ("/", 300 * MIB, True)
    assert (hidden["limit"], hidden["blind"], hidden["own"]) == (200 * MIB, True, False)
    assert hidden["source"] == f"{V1_MEMORY}/memory.stat:hierarchical_memory_limit"


@pytest.mark.root
def test_real_v1_namespace_over_the_machines_mount(cgroup: RealCgroup, tmp_path: Path) -> None:
    cgroup.limit(200 * MIB, 300 * MIB)
    script = f'echo $$ > {cgroup.inner}/cgroup.procs; exec unshare -C "$@"'
    body = CHILD.replace('sys.argv[1] + "/cgroup.procs"', '"/dev/null"')
    done = subprocess.run(
        ["sh", "-ec", script, "sh", sys.executable, "-c", body, "-", "-"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    own, outer = json.loads(done.stdout)[1][:2]
    assert (own["source"], own["own"]) == (f"{cgroup.inner}/memory.limit_in_bytes", True)
    assert (outer["limit"], outer["blind"], outer["own"]) == (200 * MIB, False, False)


@pytest.mark.parametrize(
    ("tree", "stat", "key"),
    [
        ("v2-high", "sys/fs/cgroup/work/memory.stat", "file_mapped"),
        ("v1", "sys/fs/cgroup/memory/system.slice/stager.service/memory.stat", "total_mapped_file"),
    ],
)
def test_pages_that_others_have_mapped_are_no_room(tree: str, stat: str, key: str, tmp_path: Path) -> None:
    before = look(tree, tmp_path).levels[0]
    path = tmp_path / stat
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key} ")]
    path.write_text("\n".join([*lines, f"{key} {64 * MIB}", ""]))
    after = snapshot(root=str(tmp_path)).levels[0]
    assert after.reclaimable == before.reclaimable - 64 * MIB


def test_mapped_pages_of_the_node_are_no_room(tmp_path: Path) -> None:
    before = look("v2-host", tmp_path).levels[-1]
    meminfo = tmp_path / "proc/meminfo"
    meminfo.write_text(meminfo.read_text() + "Mapped:         1048576 kB\n")
    after = snapshot(root=str(tmp_path)).levels[-1]
    assert after.reclaimable == before.reclaimable - GIB
