"""The memory guard against a real cgroup: never past the limit, never at the price of its own pages, never an OOM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.harness import MIB, Box, Cgroup, cold, environment, files_below, page_map, resident, until

pytestmark = pytest.mark.root

# Room for the interpreter (45 MiB) and its allowance (64 MiB and a MiB a lane) beside some pages.
LIMIT = 200 * MIB
CONTAINER = (
    "0123456789abcdef" * 4
)  # the name of a container's own cgroup: its engine lives elsewhere, no reserve

MakeCgroup = Callable[..., Cgroup]


def shards_of(model: str) -> list[str]:
    return sorted(path for path in files_below(model) if path.endswith(".safetensors"))


def whole(paths: list[str]) -> list[bool]:
    return [resident(path) == os.path.getsize(path) for path in paths]


def test_a_limit_smaller_than_the_model(box: Box, make_cgroup: MakeCgroup) -> None:
    model = box.model(size=256 * MIB, shards=16)
    shards = shards_of(model)
    cgroup = make_cgroup(CONTAINER)
    cgroup.limit(LIMIT)
    done = box.warm(model, "-P", "4", before=cgroup.inside())
    assert (done.code, done.summary["state"], done.summary["outcome"]) == (0, "partial", "partial"), str(done)
    assert done.summary["binding"] == f"{cgroup.path}/memory.limit_in_bytes = {LIMIT} (200.0 MiB)"
    note = next(one for one in done.all("note") if one["code"] == "partial")
    assert f"{cgroup.path}/memory.limit_in_bytes" in note["hint"]
    assert cgroup.oom_kills == 0
    assert cgroup.number("memory.failcnt") == 0, "the limit was never reached: nothing had to be reclaimed"
    assert cgroup.number("memory.max_usage_in_bytes") <= LIMIT
    warmed = whole(shards)
    assert 3 <= sum(warmed) < 16
    assert warmed == sorted(warmed, reverse=True), "the head of the load order"
    assert resident(*shards[sum(warmed) :]) == 0, "and nothing of the rest"
    assert cgroup.stat("total_cache") >= sum(map(os.path.getsize, shards[: sum(warmed)]))


def test_strict_refuses_at_a_limit(box: Box, make_cgroup: MakeCgroup) -> None:
    model = box.model(size=256 * MIB, shards=4)
    cgroup = make_cgroup(CONTAINER)
    cgroup.limit(LIMIT)
    done = box.warm(model, "--strict", before=cgroup.inside())
    assert (done.code, done.summary["read"]) == (4, 0)
    assert resident(*shards_of(model)) == 0
    assert f"{cgroup.path}/memory.limit_in_bytes = {LIMIT}" in done.event("error")["message"]


def test_the_engines_reserve_counts_where_the_engine_lives(box: Box, make_cgroup: MakeCgroup) -> None:
    """A level that is no container's own is shared with the engine: a quarter of it stays free, or what is asked for."""
    path = box.file("weights.data", 80 * MIB)
    cgroup = make_cgroup()
    cgroup.limit(LIMIT)
    assert box.warm(path, "-P", "2", "--strict", before=cgroup.inside()).code == 4
    assert box.warm(path, "-P", "2", "--strict", "--reserve", "8MiB", before=cgroup.inside()).code == 0
    assert resident(path) == 80 * MIB


def grower(cgroup: Cgroup, size: int) -> subprocess.Popen[bytes]:
    """A process in `cgroup` that takes `size` bytes of anonymous memory when it is told to."""
    script = f"import sys; sys.stdin.read(1); ballast = b'x' * {size}; print('grown', flush=True); sys.stdin.read()"
    return subprocess.Popen(
        [*cgroup.inside(), sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment(),
    )


def test_anonymous_growth_while_warming_stops_it_before_its_own_pages_go(
    box: Box, make_cgroup: MakeCgroup
) -> None:
    """Admitted, for there was room; then the engine beside it grows. What was warmed until then stays, whole."""
    names = [box.file(f"m/{number:02}.data", 8 * MIB) for number in range(20)]
    cgroup = make_cgroup(CONTAINER)
    limit = 360 * MIB
    cgroup.limit(limit)
    engine = grower(cgroup, 210 * MIB)
    try:
        running = box.start(
            "warm", "--json", box.path("m"), "-P", "2", "--no-adapt", "--max-rate", "40MiB", "--order", "load",
            before=cgroup.inside(),
        )  # fmt: skip
        until(lambda: resident(names[2]) > 0, "the third file")
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdin.write(b"x")
        assert engine.stdout.readline() == b"grown\n"
        done = running.finish(30)
        assert (done.code, done.summary["outcome"], done.summary["state"]) == (0, "partial", "partial"), str(
            done
        )
        assert "stopped before evicting its own pages" in done.summary["reason"]
        assert f"{cgroup.path}/memory.limit_in_bytes = {limit}" in done.summary["reason"]
        assert cgroup.oom_kills == 0
        got = resident(*names)
        assert 24 * MIB < got < 150 * MIB
        assert cgroup.number("memory.failcnt") == 0, "the limit was never reached"
        # A busy machine may reclaim a few pages by itself; at the price of its own head it would be all of the first files.
        assert got >= 0.95 * done.summary["read"]
        assert resident(*names[:3]) >= 0.9 * 24 * MIB
    finally:
        engine.kill()
        engine.wait()
        for pipe in (engine.stdin, engine.stdout):
            assert pipe is not None
            pipe.close()


def test_pages_stay_when_the_init_containers_cgroup_is_removed(box: Box, make_cgroup: MakeCgroup) -> None:
    path = box.file("weights.data", 48 * MIB)
    pod = make_cgroup()
    child = make_cgroup(CONTAINER, parent=pod.path)
    child.limit(400 * MIB)
    pod.limit(600 * MIB)
    done = box.warm(path, "--reserve", "16MiB", before=child.inside())
    assert (done.code, done.summary["state"]) == (0, "ready"), str(done)
    child.remove()
    assert resident(path) == 48 * MIB
    assert pod.number("memory.usage_in_bytes") >= 48 * MIB
    assert box.ready("--min-resident", "100%")
    again = box.warm(path, before=pod.inside())
    assert again.summary["read"] == 0


def test_warm_pages_of_an_earlier_run_are_not_paid_twice(box: Box, make_cgroup: MakeCgroup) -> None:
    """What is resident needs no room: a limit below the model is no reason to refuse when nothing must be read."""
    path = box.file("weights.data", 96 * MIB)
    assert box.warm(path).code == 0
    cgroup = make_cgroup(CONTAINER)
    cgroup.limit(100 * MIB)
    done = box.warm(path, "--strict", before=cgroup.inside())
    assert (done.code, done.summary["read"]) == (0, 0)


def test_check_forecasts_the_same(box: Box, make_cgroup: MakeCgroup) -> None:
    model = box.model(size=256 * MIB, shards=16)
    cgroup = make_cgroup(CONTAINER)
    cgroup.limit(LIMIT)
    for words, code in (((), 0), (("--strict",), 4)):
        done = box.run("check", "--json", model, "-P", "4", *words, before=cgroup.inside())
        assert done.code == code
        forecast = done.event("forecast")
        assert forecast["outcome"] == "partial"
        memory = "\n".join(next(lines for label, lines in forecast["sections"] if label == "memory"))
        assert f"{cgroup.path}/memory.limit_in_bytes = {LIMIT} (200.0 MiB) binds" in memory


# Holding under pressure


def test_hold_brings_back_what_was_evicted(box: Box, make_cgroup: MakeCgroup) -> None:
    """Anonymous growth in the same cgroup pushes held pages out; when it is over they come back, and that is told."""
    path = box.file("weights.data", 64 * MIB)
    cgroup = make_cgroup(CONTAINER)
    limit = 220 * MIB
    cgroup.limit(limit)
    running = box.start("warm", "--json", path, "-P", "2", "--hold", "20s", before=cgroup.inside())
    running.await_text('"code":"hold"')
    assert resident(path) == 64 * MIB
    engine = grower(cgroup, 0)
    try:
        # Push in steps until pages go: how much else the kernel finds to reclaim first is its business.
        lost = 0
        engines = []
        for _ in range(12):
            more = grower(cgroup, 16 * MIB)
            engines.append(more)
            assert more.stdin is not None
            assert more.stdout is not None
            more.stdin.write(b"x")
            until(lambda: more.poll() is not None or more.stdout.readline(), "growth")  # noqa: B023
            lost = 64 * MIB - resident(path)
            if lost > 8 * MIB:
                break
        assert lost > 8 * MIB, "nothing was evicted: nothing is proven"
        for more in engines:
            more.kill()
            more.wait()
        until(lambda: resident(path) == 64 * MIB, "the pages", 12)
        running.signal(signal.SIGKILL)
        running.finish(5)
    finally:
        for process in (engine, *engines):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
    cold(path)
    assert not any(page_map(path))
