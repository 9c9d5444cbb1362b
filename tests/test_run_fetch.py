"""``stager run --fetch``: fetch, prove, warm, become the engine; and no engine without a whole model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fetchbed import Bed, same
from tests.harness import Done
from tests.osslab.faults import Fault

ENGINE = ("--", "sh", "-c", "echo engine $$")
AWAY = {"OSS_ENDPOINT": "http://127.0.0.1:9"}


def run(bed: Bed, *words: str, env: dict[str, str] | None = None) -> Done:
    settings = {**bed.oss.env(), **(env or {})}
    return bed.box.run("run", "--fetch", bed.url, bed.dir, *words, *ENGINE, env=settings)


def test_it_fetches_warms_and_becomes_the_engine(bed: Bed, source: str) -> None:
    bed.serve(source)
    running = bed.box.start("run", "--fetch", bed.url, bed.dir, *ENGINE, env=bed.oss.env())
    done = running.finish()
    assert done.code == 0, str(done)
    assert done.out == f"engine {running.pid}\n"
    assert "fetched: " in done.err
    assert "ready: " in done.err
    same(bed.dir, source)
    assert bed.box.ready(bed.dir)


def test_a_second_run_downloads_nothing(bed: Bed, source: str) -> None:
    bed.serve(source)
    run(bed)
    bed.forget()
    done = run(bed)
    assert done.out.startswith("engine ")
    assert bed.oss.bytes_sent("*.safetensors") == 0


def test_without_a_whole_model_no_engine_starts(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.oss.faults.add(Fault("corrupt", times=None, key_glob="r1/model-00002*"))
    for failure in ("start", "fail"):
        done = run(bed, "--on-failure", failure)
        assert done.code == 8, str(done)
        assert "engine" not in done.out
        assert "is not started" in done.err
    assert not bed.box.ready()


def test_when_time_runs_out_in_mid_fetch_no_engine_starts(bed: Bed, source: str) -> None:
    bed.serve(source)
    bed.oss.faults.add(Fault("stall", times=None, seconds=600, key_glob="r1/model-00002*"))
    done = run(bed, "--timeout", "5s")
    bed.oss.listener.cut()
    assert done.code == 10, str(done)
    assert "the model is not all there" in done.err
    assert "engine" not in done.out


def test_an_older_whole_copy_starts_when_the_store_is_away(bed: Bed, source: str) -> None:
    bed.serve(source)
    assert run(bed).code == 0
    done = run(bed, "--timeout", "4s", env=AWAY)
    assert done.out.startswith("engine "), str(done)
    assert "all the same" in done.err
    assert "may be older than what `oss://models/r1` holds now" in done.err
    done = run(bed, "--timeout", "4s", "--on-failure", "fail", env=AWAY)
    assert done.code in (5, 10), str(done)
    assert not done.out


@pytest.mark.parametrize("what", ["location", "selection", "missing", "truncated", "not ours"])
def test_a_copy_of_something_else_never_starts(bed: Bed, source: str, what: str) -> None:
    """With the store away, what is in DIR must be what was asked for, and all there."""
    bed.serve(source)
    words = ["--exclude", "*.bin"] if what == "selection" else []
    assert run(bed, *words).code == 0
    shard, manifest = (
        Path(bed.dir, "model-00002-of-00003.safetensors"),
        Path(bed.dir, ".stager/manifest.json"),
    )
    if what == "location":
        bed.url = bed.oss.url("r2")
    elif what == "missing":
        shard.unlink()
    elif what == "truncated":
        os.truncate(shard, 100)
    elif what == "not ours":
        told = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**told, "fetched": None}))
    done = run(bed, "--timeout", "3s", env=AWAY)
    assert done.code in (5, 10), str(done)
    assert "engine" not in done.out
    assert "the model is not all there" in done.err


def test_less_than_what_is_here_starts(bed: Bed, source: str) -> None:
    bed.serve(source)
    assert run(bed).code == 0
    done = run(bed, "--exclude", "*.bin", "--timeout", "3s", env=AWAY)
    assert done.out.startswith("engine "), str(done)


def test_what_contradicts_itself(bed: Bed) -> None:
    done = bed.box.run("run", "--fetch", bed.url, bed.dir, "--warm", bed.dir, *ENGINE, env=bed.oss.env())
    assert done.code == 2
    assert "exclude each other" in done.err
    assert not os.path.exists(bed.dir)
