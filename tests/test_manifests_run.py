"""The command lines of the shipped manifests, run as processes: arguments, variables and probes are taken out of the YAML.

Only what a cluster would provide is put in its place: paths for volumes, a look-alike for OSS and the hub, a free port.
"""

from __future__ import annotations

import http.server
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from tests.fetchbed import Bed, same
from tests.harness import ROOT, Box, Done, Running, files_below, page_map, until
from tests.manifest_rules import UNCURABLE
from tests.manifests import Doc, pods
from tests.pullbed import PullBed

GATE = "/run/stager"


def container(file: str, name: str) -> Doc:
    """One container of a rendered file."""
    docs = [doc for doc in yaml.safe_load_all((ROOT / f"k8s/rendered/{file}.yaml").read_text()) if doc]
    return next(c for pod in pods(docs) for c in pod.containers if c["name"] == name)


class Played:
    """A container of the YAML, with folders in the place of its volumes."""

    def __init__(self, box: Box, models: str, described: Doc, **env: str) -> None:
        self.box, self.described = box, described
        self._swap = {"/models": models, GATE: os.path.dirname(box.marker)}
        box.open_marker_folder()
        literal = {e["name"]: e["value"] for e in described.get("env", []) if "value" in e}
        self.env = {**literal, **env}

    def words(self, line: list[str], **swap: str) -> list[str]:
        """A command line as it runs here: $(NAME) expanded, volumes' paths replaced, and `swap`."""

        def placed(word: str) -> str:
            for old, new in {**self._swap, **swap}.items():
                word = re.sub(
                    rf"(^|=|//){re.escape(old)}(?=/|$)", lambda match, new=new: match[1] + new, word
                )
            return re.sub(r"\$\((\w+)\)", lambda match: self.env[match[1]], word)

        return [placed(word) for word in line]

    def start(self, **swap: str) -> Running:
        # A marker by variable would hide that the command line names one.
        return self.box.start(
            *self.words(self.described["args"], **swap), env={**self.env, "STAGER_MARKER": ""}
        )

    def run(self) -> Done:
        return self.start().finish()

    def probe(self) -> int:
        """The exit code of its startup probe, now."""
        return self.box.run(*self.words(self.described["startupProbe"]["exec"]["command"])[1:]).code


def spoil(folder: str) -> None:
    """One shard is cut short, as by a copy that broke off."""
    shard = next(path for path in files_below(folder) if path.endswith(".safetensors"))
    os.truncate(shard, os.path.getsize(shard) // 2)


def test_warm_init(box: Box) -> None:
    model = box.model()
    played = Played(box, model, container("vllm-oss", "warm"))
    done = played.run()
    assert done.code == 0, str(done)
    assert box.state == "ready"
    assert all(page_map(path).count(1) == len(page_map(path)) for path in files_below(model))


def test_warm_init_opens_the_gate_when_the_model_cannot_be_read(box: Box) -> None:
    """The engine starts; the log's last line and the marker say why it will be slow."""
    played = Played(box, box.path("not", "mounted"), container("vllm-oss", "warm"))
    done = played.run()
    assert done.code == 0, str(done)
    assert box.state == "released"
    assert "no such file or directory" in done.err


def test_warm_init_never_opens_it_for_a_corrupt_model(box: Box) -> None:
    model = box.model()
    spoil(model)
    done = Played(box, model, container("vllm-oss", "warm")).run()
    assert done.code == 8, str(done)
    assert box.state == "failed"


def test_warm_nodes(box: Box) -> None:
    """Done means resident; what does not fit this node's memory is one of the codes by which the Job gives up on the node."""
    model = box.model()
    described, shorter = container("warm-nodes", "warm"), {"60s": "100ms"}
    assert Played(box, model, described).start(**shorter).finish().code == 0
    assert box.state == "ready"
    small = Played(box, model, described, STAGER_BUDGET="1MiB", STAGER_FRESH="1")
    assert small.start(**shorter).finish().code == 4
    assert box.state == "failed"


@contextmanager
def engine() -> Iterator[tuple[int, list[int], list[str]]]:
    """A server that answers with the last of a list; its port, the list, and the paths that it was asked for."""
    status, asked = [503], list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status[-1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, status, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sidecar(box: Box) -> None:
    """Its probe opens the gate, it holds until the engine answers, stays, gives metrics, and ends when it is told to."""
    described = container("sglang-oss", "warm")
    metrics = f"127.0.0.1:{free_port()}"
    played = Played(box, box.model(), described, STAGER_METRICS_LISTEN=metrics)
    assert played.probe() == 3, "nothing is warm yet"
    with engine() as (port, status, asked):
        running = played.start(**{"localhost:8000": f"127.0.0.1:{port}"})
        running.await_text("holding")
        assert played.probe() == 0
        until(lambda: asked, "a question to the engine")
        assert set(asked) == {"/health"}
        assert "idle until SIGTERM" not in running.err
        status.append(200)
        running.await_text("idle until SIGTERM")
    host, _, number = metrics.partition(":")
    with socket.create_connection((host, int(number)), 5) as asking:
        asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: asking.recv(65536), b""))
    assert answer.startswith(b"HTTP/1."), answer
    assert b"stager_" in answer
    assert played.probe() == 0
    # Kubernetes ends a sidecar with SIGTERM once the engine has ended: no failure.
    assert running.stop(signal.SIGTERM, 10).code in (0, 143)


def test_the_sidecars_probe_stays_shut_for_a_corrupt_model(box: Box) -> None:
    model = box.model()
    spoil(model)
    played = Played(
        box, model, container("sglang-oss", "warm"), STAGER_METRICS_LISTEN=f"127.0.0.1:{free_port()}"
    )
    assert played.start().finish().code == 8
    assert played.probe() == 3


def test_fetch_init(bed: Bed, source: str) -> None:
    bed.serve(source)
    played = Played(
        bed.box, bed.dir, container("vllm-nvme", "fetch"), **{**bed.oss.env(), "MODEL_SOURCE": bed.url}
    )
    done = played.run()
    assert done.code == 0, str(done)
    assert bed.box.state == "ready"
    same(bed.dir, source)
    again = played.run()
    assert again.code == 0
    assert "nothing downloaded" in again.out


def test_fetch_init_fails_for_a_model_that_is_not_there(bed: Bed) -> None:
    """--fail-open or not: the engine would find nothing."""
    played = Played(
        bed.box, bed.dir, container("vllm-nvme", "fetch"), **{**bed.oss.env(), "MODEL_SOURCE": bed.url}
    )
    assert played.run().code == 7


def played_pull(pullbed: PullBed, *, timeout: str = "1m", **env: str) -> Done:
    variables = {**pullbed.env(), "MODEL_SOURCE": pullbed.source, "MODEL_DEST": pullbed.url, **env}
    played = Played(pullbed.box, pullbed.box.path("none"), container("pull", "pull"), **variables)
    return played.start(**{"4h": timeout}).finish()


def test_pull_job(pullbed: PullBed) -> None:
    pullbed.commit({"config.json": b"{}", "notes.txt": b"notes\n"})
    done = played_pull(pullbed)
    assert done.code == 0, str(done)
    pullbed.complete()


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"MODEL_SOURCE": "acme/nothing"}, "no such model"),
        ({"MODEL_DEST": "oss://no-such-bucket/m"}, "no such bucket"),
        ({"OSS_ACCESS_KEY_SECRET": "wrong"}, "a wrong key"),
        ({"MODEL_DEST": "s3://bucket/m"}, "not an address"),
        ({"STAGER_BUFFER": "1Mi"}, "an option that cannot be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_retry_cures_ends_the_job(pullbed: PullBed, env: dict[str, str], why: str) -> None:
    pullbed.commit({"config.json": b"{}"})
    assert played_pull(pullbed, **env).code in {kind.exit_code for kind in UNCURABLE}, why


def test_what_a_retry_may_cure_does_not(pullbed: PullBed) -> None:
    pullbed.commit({"config.json": b"{}"})
    done = played_pull(pullbed, timeout="2s", OSS_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert done.code not in {kind.exit_code for kind in UNCURABLE}, str(done)
    assert done.code in (5, 10)
