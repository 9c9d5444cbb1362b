"""Holding: for a time, until an engine answers, with the price said, and nothing locked unless asked."""

from __future__ import annotations

import http.server
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.jobs.vigil import without
from tests.harness import MIB, STRANGER, Box, cold, page_map, resident, until


def kib(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field))


@contextmanager
def health(status: list[int], log: list[int]) -> Iterator[str]:
    """An engine's health endpoint that answers with the last of `status`; 0: rubbish that is no HTTP. Each goes to `log`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            log.append(status[-1])
            if status[-1] == 0:
                self.wfile.write(b"rubbish\r\n\r\n")
                return
            self.send_response(status[-1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/health"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_hold_for_a_time(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    done = box.warm(path, "--hold", "1500ms")
    assert done.code == 0
    assert 1.5 <= done.seconds < 4
    held = done.event("hold_summary")
    assert (held["held"], held["brought_back"]) == (8 * MIB, 0)
    for row in (done.event("held")["by_path"][0], held["by_path"][0]):
        assert (row["path"], row["files"], row["lost"]) == (path, 1, 0)
        assert row["residency"]["resident"] == 8 * MIB
    assert 1.4 <= held["seconds"] < 3
    assert [event["type"] for event in done.events][-4:] == ["warm_summary", "note", "held", "hold_summary"]


def test_held_pages_cannot_be_evicted_from_outside_and_go_afterwards(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    running = box.start("warm", path, "--hold", "1h")
    running.await_text("holding 8.0 MiB")
    fd = os.open(path, os.O_RDONLY)
    for _ in range(3):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert resident(path) == 8 * MIB
    evict = box.run("evict", "--json", path).event("evict_summary")
    assert evict["after"] == 8 * MIB
    assert f"(pid {running.pid})" in evict["stayed"][0][2]
    assert kib(running.pid, "VmLck") == 0, "never locked unless asked"
    running.stop(signal.SIGTERM, 2)
    cold(path)


def test_hold_until_the_engine_answers(box: Box) -> None:
    path = box.file("weights.data", MIB)
    status, log = [503], list[int]()
    with health(status, log) as url:
        running = box.start("warm", path, "--hold", f"until:{url}")
        running.await_text("holding 1.0 MiB until http://")
        assert box.ready()
        for code in (302, 0):
            status.append(code)
            until(lambda: log[-1] == code, "the next question")  # noqa: B023
            time.sleep(0.2)
            assert running.process.poll() is None, f"{code} is no yes"
        status.append(204)
        done = running.finish(4)
    assert done.code == 0
    assert re.search(r"held 1.0 MiB for .*answered", done.err)


def test_a_proxy_of_the_environment_is_not_asked_for_the_engines_health(box: Box) -> None:
    path = box.file("weights.data", MIB)
    with health([200], []) as url:
        done = box.run(
            "warm", path, "--hold", f"until:{url}", env={"http_proxy": "http://127.0.0.1:9"}, seconds=6
        )
    assert done.code == 0


def test_nobody_listens_yet(box: Box) -> None:
    path = box.file("weights.data", MIB)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = box.start("warm", path, "--hold", f"until:http://127.0.0.1:{port}/health")
    running.await_text("holding")
    time.sleep(0.5)
    assert running.process.poll() is None
    running.stop(signal.SIGINT, 2)


def test_an_engine_that_takes_the_connection_and_says_nothing(box: Box) -> None:
    """The signal must not wait for the answer."""
    path = box.file("weights.data", MIB)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/health"
        running = box.start("warm", path, "--hold", f"until:{url}")
        connection, _ = listener.accept()
        assert running.stop(signal.SIGTERM, 2).code == 143
        connection.close()


@pytest.mark.root
def test_hold_mlock(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    running = box.start("warm", path, "--hold", "1h", "--hold-mlock")
    running.await_text("holding 8.0 MiB")
    assert kib(running.pid, "VmLck") == 8 * 1024
    running.stop(signal.SIGTERM, 2)
    box.open_marker_folder()
    few = ["prlimit", "--memlock=4096:4096"]
    refused = box.run("warm", path, "--hold", "100ms", "--hold-mlock", uid=STRANGER, before=few)
    assert refused.code == 0
    assert "weights.data is held, but not locked: RLIMIT_MEMLOCK is" in refused.err


def test_hold_mlock_needs_hold(box: Box) -> None:
    assert box.run("warm", box.folder, "--hold-mlock").code == 2


def test_what_comes_back_is_counted(box: Box) -> None:
    """A hole in a held file: truncated and written again by somebody, its pages dropped meanwhile."""
    path = box.file("weights.data", 8 * MIB)
    running = box.start("warm", "--json", path, "--hold", "2s")
    running.await_text('"code":"hold"')
    with open(path, "r+b") as file:  # a hole punched and filled: new pages on the disk, none in the cache
        os.truncate(path, 4 * MIB)
        os.truncate(path, 8 * MIB)
        os.fsync(file.fileno())
    assert sum(page_map(path)) * 4096 <= 4 * MIB
    done = running.finish(10)
    assert done.code == 0
    assert resident(path) == 8 * MIB
    held = done.event("hold_summary")
    assert held["brought_back"] == 4 * MIB
    assert (held["by_path"][0]["lost"], held["by_path"][0]["brought_back"]) == (4 * MIB, 4 * MIB)


def test_a_partial_model_is_held_as_it_is(box: Box) -> None:
    box.file("m/a.data", 4 * MIB)
    left_out = box.file("m/b.data", 4 * MIB)
    done = box.warm(box.path("m"), "--budget", "5MiB", "--hold", "500ms")
    assert (done.code, done.event("hold_summary")["held"]) == (0, 4 * MIB)
    assert resident(left_out) == 0, "holding is no way around the budget"


def test_a_failed_run_is_not_held(box: Box) -> None:
    done = box.warm(box.path("nothing"), "--hold", "30s", "--idle")
    assert done.code == 7
    assert done.seconds < 3


stretches = st.lists(st.integers(0, 60), unique=True).map(
    lambda cuts: [(a, b - a) for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)


@given(stretches, stretches)
def test_without_is_set_difference(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    def bytes_of(found: list[tuple[int, int]]) -> set[int]:
        return {at for offset, length in found for at in range(offset, offset + length)}

    left = without(some, others)
    assert bytes_of(left) == bytes_of(some) - bytes_of(others)
    assert left == sorted(left)
    assert all(length > 0 for _, length in left)
