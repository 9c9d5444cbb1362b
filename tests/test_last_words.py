"""The termination message: one JSON object whatever happened, never longer than the kubelet reads, from the process whose word it is."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.errors import IntegrityError
from stager.core.events import Failure, Progress
from stager.core.last_words import LIMIT, failed, last_words
from stager.core.record import Record
from tests.harness import MIB, Box, Done, until
from tests.test_events import SAMPLES, WARMED

texts = (
    st.text(max_size=200)
    | st.integers(0, 6000).map(lambda n: "\udcff" * n)
    | st.integers(0, 6000).map(lambda n: "ü€😀"[n % 3] * n)
)


@given(texts, texts, st.lists(texts, min_size=1, max_size=3), texts)
def test_it_is_json_and_fits_however_long_the_texts_are(
    reason: str, hint: str, models: list[str], source: str
) -> None:
    record = Record("fetch", tuple(models), source, 0.0)
    record.note(Failure.of(IntegrityError(reason, hint=hint)), 1.0)
    record.end(8, 2.0)
    for words in (last_words(record), failed("fetch", 8, "integrity", reason, hint)):
        assert words.isascii()
        assert len(words) <= LIMIT
        body = json.loads(words)
        assert list(body)[:5] == ["v", "command", "result", "exit", "reason"]
        assert (body["v"], body["command"], body["result"], body["exit"]) == (1, "fetch", "failed", 8)
        whole = len(json.dumps([reason, hint, source, ", ".join(models)])) < LIMIT - 400
        if whole:
            assert body["reason"] == reason
        else:
            assert reason.startswith(body["reason"].removesuffix("..."))


@pytest.mark.parametrize("letter", ["x", "ü", "😀"])
def test_only_the_longest_text_is_cut_and_as_little_as_need_be(letter: str) -> None:
    record = Record("warm", ("/m",), "", 0.0)
    record.note(Failure.of(IntegrityError(letter * 9000, hint="look at it")), 1.0)
    words = last_words(record)
    assert LIMIT - 40 < len(words) <= LIMIT
    body = json.loads(words)
    assert body["reason"].endswith(f"{letter}...")
    assert body["hint"] == "look at it"


def test_bytes_and_seconds_of_every_stage() -> None:
    record = Record("fetch", ("/m",), "oss://b/m", 100.0)
    for event in (SAMPLES["fetch"], WARMED):
        record.note(event, 101.0)
    record.end(0, 103.5)
    body = json.loads(last_words(record))
    assert (body["result"], body["exit"], body["source"], body["seconds"]) == ("ready", 0, "oss://b/m", 3.5)
    for verb in ("fetch", "warm"):
        assert body[f"{verb}_bytes"] > 0
        assert body[f"{verb}_seconds"] > 0
    assert body["bytes"] > 0
    assert "hint" not in body
    assert "error" not in body


def test_what_is_not_known_is_null() -> None:
    record = Record("pull", ("oss://b/m",), "ms://a/b", 0.0)
    record.note(Progress("pull", 5, 10, 1.0, None, 0, 1, 1, None, 2.0), 1.0)
    body = json.loads(last_words(record))
    assert (body["result"], body["exit"], body["bytes"], body["pull_bytes"]) == ("running", None, None, 5)
    assert "resident" not in body


# In a container's place


class Kubelet:
    """A /dev of its own for the program, with a termination log in it."""

    def __init__(self, box: Box) -> None:
        self.log = Path(box.file("log", 10))
        dev = box.path("dev")
        os.mkdir(dev)
        script = f"""
        mount -t tmpfs none {dev}
        for name in null zero urandom; do touch {dev}/$name; mount --bind /dev/$name {dev}/$name; done
        touch {dev}/termination-log
        mount --bind {self.log} {dev}/termination-log
        mount --rbind {dev} /dev
        exec "$@"
        """
        self.before = ["unshare", "-m", "sh", "-ec", script, "sh"]
        self.box = box

    def run(self, *words: str, **options: Any) -> Done:
        return self.box.run(*words, before=self.before, **options)

    @property
    def words(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.log.read_text())
        return found


@pytest.fixture
def kubelet(box: Box) -> Kubelet:
    if os.getuid() != 0:
        pytest.skip("needs root for a mount of its own")
    return Kubelet(box)


@pytest.mark.root
def test_a_warm_run(kubelet: Kubelet, box: Box) -> None:
    path = box.file("weights.data", MIB)
    done = kubelet.run("warm", path)
    assert done.code == 0, str(done)
    assert done.out.startswith("ready: "), "the log's last line stays one for people"
    words = kubelet.words
    assert {name: words[name] for name in ("v", "command", "result", "exit", "reason", "model")} == {
        "v": 1,
        "command": "warm",
        "result": "ready",
        "exit": 0,
        "reason": "",
        "model": path,
    }
    assert (words["files"], words["bytes"], words["warm_bytes"], words["resident"]) == (1, MIB, MIB, MIB)
    assert words["seconds"] > 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["warm", "/nowhere"], 7, "not_found"),
        (["warm", "--no-such-option", "/nowhere"], 2, "usage"),
        (["warm", "/nowhere", "--strict", "--fail-open"], 2, "usage"),
        (["fetch", "/nowhere", "DIR"], 7, "not_found"),
        (["fetch", "oss://bucket/m", "DIR", "--keep-free", "x"], 2, "usage"),
        (["pull", "./nowhere", "DIR"], 7, "not_found"),
        (["run", "--warm", "/nowhere", "--", "true"], 7, "not_found"),
        (["run", "--warm", "/nowhere", "--", "no-such-engine"], 7, "not_found"),
    ],
)
def test_how_a_run_that_failed_is_told(
    kubelet: Kubelet, box: Box, argv: list[str], code: int, error: str
) -> None:
    done = kubelet.run(*(box.path("dir") if word == "DIR" else word for word in argv))
    words = kubelet.words
    assert (done.code, words["exit"], words["result"], words["error"]) == (code, code, "failed", error), str(
        done
    )
    assert words["command"] == argv[0]
    assert words["reason"] in done.err


@pytest.mark.root
def test_a_probe_leaves_the_containers_last_words_alone(kubelet: Kubelet) -> None:
    kubelet.log.write_text("the engine's")
    assert kubelet.run("ready").code == 3
    assert kubelet.run("ready", "--accept", "nonsense").code == 2
    assert kubelet.run("status", "/nowhere").code == 7
    assert kubelet.log.read_text() == "the engine's"


@pytest.mark.root
def test_the_last_words_of_a_sidecar_are_there_while_it_holds_and_when_it_is_stopped(
    kubelet: Kubelet, box: Box
) -> None:
    path = box.file("weights.data", MIB)
    running = box.start("warm", path, "--hold", "1h", before=kubelet.before)
    running.await_text("holding 1.0 MiB")
    held = kubelet.words
    assert (held["result"], held["exit"]) == ("ready", 0)
    assert "seconds" not in held
    done = running.stop(signal.SIGTERM, 2)
    assert done.code == 143
    assert (kubelet.words["result"], kubelet.words["exit"], kubelet.words["resident"]) == (
        "stopped",
        143,
        MIB,
    )


@pytest.mark.root
def test_an_engine_has_its_own_last_words(kubelet: Kubelet, box: Box) -> None:
    """Nothing is left of the warm run's, and a holder that ends beside the engine writes none."""
    path = box.file("weights.data", MIB)
    engine = ["sh", "-c", "wc -c < /dev/termination-log >&2; echo mine > /dev/termination-log; sleep 2.5"]
    running = box.start("run", "--warm", path, "--hold", "1s", "--", *engine, before=kubelet.before)
    running.await_text("held 1.0 MiB")
    done = running.finish()
    assert done.code == 0, str(done)
    assert "\n0\n" in "\n" + done.err, "empty when the engine began"
    assert kubelet.log.read_text() == "mine\n"


@pytest.mark.root
def test_of_a_warm_run_that_was_killed_another_speaks(kubelet: Kubelet, box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    metrics = box.path("x.prom")
    how = ["--metrics", metrics, "--max-rate", "1MiB", "--on-failure", "fail"]
    started = box.start("run", "--warm", path, *how, "--", "true", before=kubelet.before)
    until(lambda: os.path.exists(metrics), "the metrics file")
    worker = int(until(lambda: _worker_of(started.pid), "the worker"))
    os.kill(worker, signal.SIGKILL)
    done = started.finish(10)
    assert done.code == 137, str(done)
    assert (kubelet.words["command"], kubelet.words["result"], kubelet.words["exit"]) == (
        "run",
        "stopped",
        137,
    )
    assert 'state="stopped"} 1' in Path(metrics).read_text()


def _worker_of(pid: int) -> int | None:
    """The child of the only child of `pid`."""
    for _ in range(2):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if len(children) != 1:
            return None
        pid = int(children[0])
    return pid
