"""Metrics of real runs: a file that can be read at any moment, a port that answers meanwhile, and what becomes of pages afterwards."""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stager.core.errors import StagerError
from stager.engine.exposition import MetricsFile, MetricsServer, _Server
from tests.harness import MIB, Box, Running, cold, environment, until
from tests.test_metrics import Samples, read, value


def metrics_at(url: str) -> Samples:
    status, text, kind = ask(url)
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return read(text)[1]


def ask(url: str, method: str = "GET") -> tuple[int, str, str]:
    """(status, body, type) of `url`."""
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, f"/{path}")
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.getheader("Content-Type", "")
    finally:
        connection.close()


def url_of(running: Running) -> str:
    return running.await_text(r"metrics at http://\S+").removeprefix("metrics at ")


# The file


def test_a_warm_run_leaves_its_metrics_in_a_file_for_everybody(box: Box) -> None:
    model, path = box.model(), box.path("metrics", "r1.prom")
    os.mkdir(box.path("metrics"))
    done = box.run("warm", model, "--metrics", path, before=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    assert done.code == 0, str(done)
    found = read(Path(path).read_text())[1]
    size = sum(file.stat().st_size for file in Path(model).iterdir())
    assert value(found, "state", state="ready", model=model, command="warm") == 1
    assert value(found, "model_bytes") == value(found, "resident_bytes") == size
    assert 0 < (value(found, "read_bytes_total", stage="warm") or 0) <= size
    assert (value(found, "run_exit_code"), value(found, "resident_exact")) == (0, 1)
    assert (value(found, "run_ended_timestamp_seconds") or 0) - time.time() < 60
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert os.listdir(box.path("metrics")) == ["r1.prom"], "nothing is left beside it"


def test_the_file_is_whole_at_any_moment_and_written_again_and_again(tmp_path: Path) -> None:
    numbers = iter(range(10**9))
    path = tmp_path / "x.prom"
    text = "stager_x {0}\n" + "# filler\n" * 5000 + "stager_y {0}\n"
    file = MetricsFile(
        str(path),
        lambda: text.format(next(numbers)),
        lambda error: pytest.fail(error.message),
        interval=0.001,
    )
    file.start()
    seen = set()
    try:
        until(path.exists, "the first write")
        end = time.monotonic() + 10
        while len(seen) < 20:
            content = path.read_text()
            first, last = content.split("\n", 1)[0].split()[1], content.split()[-1]
            assert first == last
            assert content.endswith(f"stager_y {last}\n")
            seen.add(last)
            assert time.monotonic() < end
    finally:
        file.close()
    assert os.listdir(tmp_path) == ["x.prom"]


@pytest.mark.parametrize("kind", ["no folder", "folder", "fifo", "device"])
def test_a_file_that_cannot_be_had_costs_a_warning_and_nothing_else(box: Box, kind: str) -> None:
    weights = box.file("weights.data", MIB)
    place = {
        "no folder": box.path("no", "x.prom"),
        "folder": box.path("x"),
        "fifo": box.path("x"),
        "device": "/dev/null",
    }[kind]
    if kind == "folder":
        os.mkdir(place)
    elif kind == "fifo":
        os.mkfifo(place)
    before = os.stat(place) if kind != "no folder" else None
    done = box.run("warm", weights, "--metrics", place)
    assert done.code == 0
    assert done.err.count("no metrics: `") == 1
    assert "hint: choose a FILE in a writable folder with --metrics" in done.err
    if before is not None:
        assert os.stat(place).st_ino == before.st_ino, "a device is not replaced by a file"


def test_run_writes_it_before_it_becomes_the_engine(box: Box) -> None:
    path, weights = box.path("x.prom"), box.file("weights.data", MIB)
    done = box.run(
        "run", "--warm", weights, "--metrics", path, "--metrics-model", 'r1 "x"', "--", "cat", path
    )
    assert done.code == 0, str(done)
    found = read(done.out)[1]
    assert value(found, "state", state="ready", model='r1 "x"', command="run") == 1
    assert value(found, "run_exit_code") == 0


def test_several_models_under_one_budget(box: Box) -> None:
    sizes = {box.file(f"{name}/weights.data", size * MIB): size * MIB for name, size in (("a", 1), ("b", 3))}
    folders = [os.path.dirname(path) for path in sizes]
    path = box.path("x.prom")
    assert box.run("warm", *folders, "--metrics", path).code == 0
    found = read(Path(path).read_text())[1]
    assert [value(found, "resident_bytes", model=folder) for folder in folders] == list(sizes.values())
    assert value(found, "read_bytes_total", model=",".join(folders)) == sum(sizes.values())


def test_fetch_and_pull_say_it_of_their_stages(box: Box) -> None:
    source, path = box.model("source"), box.path("x.prom")
    size = sum(file.stat().st_size for file in Path(source).iterdir())
    dest = box.path("pulled")
    assert box.run("pull", source, dest, "--metrics", path).code == 0
    found = read(Path(path).read_text())[1]
    assert value(found, "state", state="complete", command="pull", model=dest) == 1
    assert value(found, "read_bytes_total", stage="pull") == value(found, "model_bytes") == size
    folder = box.path("fetched")
    assert box.run("fetch", dest, folder, "--metrics", path, "--metrics-model", "r1").code == 0
    found = read(Path(path).read_text())[1]
    assert value(found, "state", state="ready", command="fetch", model="r1") == 1
    assert value(found, "read_bytes_total", stage="fetch") == size
    assert value(found, "resident_bytes") == value(found, "model_bytes") == size


def test_a_run_that_failed_says_so(box: Box) -> None:
    path = box.path("x.prom")
    assert box.run("warm", box.path("nothing"), "--metrics", path).code == 7
    found = read(Path(path).read_text())[1]
    assert (value(found, "state", state="failed"), value(found, "run_exit_code")) == (1, 7)


# The port


def test_scrapes_during_warming_show_progress_and_the_gate(box: Box) -> None:
    path = box.file("weights.data", 24 * MIB)
    running = box.start("warm", path, "--max-rate", "8MiB", "--idle", "--metrics-listen", "127.0.0.1:0")
    url = url_of(running)
    base = url.removesuffix("/metrics")
    assert ask(f"{base}/healthz")[0] == 200
    status, answer, _ = ask(f"{base}/ready")
    assert (status, answer.startswith("not ready: ")) == (503, True)
    seen: list[float] = []

    def moved() -> bool:
        found = metrics_at(url)
        if value(found, "state", state="running"):
            seen.append(value(found, "stage_done_bytes", stage="warm") or 0)
        return len({one for one in seen if 0 < one < 24 * MIB}) >= 2

    until(moved, "progress in two scrapes")
    assert seen == sorted(seen)
    until(lambda: value(metrics_at(url), "state", state="ready") == 1, "ready")
    assert value(metrics_at(url), "resident_bytes") == 24 * MIB
    assert ask(f"{base}/ready")[:2] == (200, "ready\n")
    assert ask(f"{base}/ready?accept=partial,released")[0] == 200
    assert ask(f"{base}/ready?accept=nonsense")[0] == 503
    assert ask(f"{base}/else")[0] == 404
    assert ask(url, "HEAD")[1] == ""
    assert ask(url, "POST")[0] == 501
    assert running.stop(signal.SIGTERM, 2).code == 143


@pytest.mark.parametrize(
    "wrong",
    [
        "9105",
        "nohost:9105",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "::1:9105",
        "[::1",
        "[127.0.0.1]:1",
        "",
    ],
)
def test_what_is_no_address_is_refused_at_once(box: Box, wrong: str) -> None:
    done = box.run("warm", box.folder, "--metrics-listen", wrong)
    assert done.code == 2
    assert f"`{wrong}` is not ADDR:PORT; write an IP address and a port" in done.err


def test_a_port_that_cannot_be_had_ends_the_run_before_it_begins(box: Box) -> None:
    path = box.file("weights.data", MIB)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = box.run("warm", path, "--metrics-listen", f"127.0.0.1:{port}")
    assert (done.code, done.out) == (9, "")
    assert (
        done.err
        == f"error: cannot listen on `127.0.0.1:{port}` for metrics: the port is in use\nhint: choose another with --metrics-listen\n"
    )
    elsewhere = box.run("warm", path, "--metrics-listen", "192.0.2.1:9105")
    assert elsewhere.code == 9
    assert "`192.0.2.1:9105` for metrics: not an address of this machine" in elsewhere.err
    assert box.state == "", "nothing was begun"


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[], str]], str]]:
    made: list[MetricsServer] = []

    def make(render: Callable[[], str]) -> str:
        made.append(MetricsServer(("127.0.0.1", 0), render, lambda _accept: (False, "no")))
        made[-1].start()
        return made[-1].url

    yield make
    for one in made:
        one.close()


def connect(url: str, count: int) -> list[socket.socket]:
    """Clients that say nothing."""
    port = int(url.split(":")[2].split("/")[0])
    return [socket.create_connection(("127.0.0.1", port), 10) for _ in range(count)]


def gone(clients: list[socket.socket]) -> int:
    """How many of them the server has let go."""
    waiting = [client for client in clients if not select.select([client], [], [], 0)[0]]
    return len(clients) - len(waiting)


def test_no_more_than_a_few_clients_at_once(
    server: Callable[[Callable[[], str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Server, "patience", 3600)
    clients = connect(server(lambda: "x 1\n"), 40)
    until(lambda: gone(clients) == 40 - 16, "an end for those that are too many")
    for one in clients:
        one.close()


def test_a_client_that_says_nothing_is_let_go(
    server: Callable[[Callable[[], str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 < _Server.patience < 60
    monkeypatch.setattr(_Server, "patience", 0.3)
    url = server(lambda: "x 1\n")
    clients = connect(url, 16)
    until(lambda: gone(clients) == 16, "an end for all")
    assert ask(url)[1] == "x 1\n"
    for one in clients:
        one.close()


def test_clients_that_say_a_byte_now_and_then_shut_nobody_out(
    server: Callable[[Callable[[], str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Server, "patience", 0.5)
    url = server(lambda: "x 1\n")
    clients = connect(url, 16)

    def said_one_more() -> bool:
        for client in clients:
            with suppress(OSError):
                client.sendall(b"G")
        return gone(clients) == 16

    until(said_one_more, "an end for all")
    assert ask(url)[1] == "x 1\n"
    for one in clients:
        one.close()


def test_a_client_that_takes_no_answer_is_let_go(
    server: Callable[[Callable[[], str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Server, "patience", 0.5)
    answers = ["x 1\n"] + ["x" * (32 * MIB)] * 16
    url = server(lambda: answers.pop())
    clients = connect(url, 16)
    for client in clients:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")

    def answered() -> bool:
        try:
            return ask(url)[1] == "x 1\n"
        except (OSError, http.client.HTTPException):
            return False

    until(answered, "a place")
    for one in clients:
        one.close()


def test_an_answer_may_take_longer_than_a_client(
    server: Callable[[Callable[[], str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that hangs holds up /ready for as long as its own patience lasts."""
    monkeypatch.setattr(_Server, "patience", 0.3)

    def slow() -> str:
        time.sleep(1)
        return "x 1\n"

    assert ask(server(slow))[1] == "x 1\n"


def test_it_can_be_asked_by_ipv6() -> None:
    try:
        server = MetricsServer(("::1", 0), lambda: "x 1\n", lambda _accept: (True, "ready"))
    except StagerError:
        pytest.skip("no IPv6 on this machine")
    server.start()
    try:
        assert server.url.startswith("http://[::1]:")
        with socket.create_connection(("::1", int(server.url.rsplit(":", 1)[1].split("/")[0])), 5) as client:
            client.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.0 200 ")
    finally:
        server.close()


# Afterwards


def test_what_is_lost_while_holding_is_counted(box: Box) -> None:
    path = box.file("weights.data", 8 * MIB)
    running = box.start("warm", path, "--hold", "1h", "--metrics-listen", "127.0.0.1:0")
    running.await_text("holding 8.0 MiB")
    url = url_of(running)
    until(lambda: value(metrics_at(url), "held_bytes") == 8 * MIB, "held")
    _lose_half(path)
    until(lambda: value(metrics_at(url), "evicted_bytes_total") == 4 * MIB, "the loss")
    until(lambda: value(metrics_at(url), "brought_back_bytes_total") == 4 * MIB, "its return")
    assert value(metrics_at(url), "resident_bytes") == 8 * MIB
    assert "4.0 MiB were dropped from the page cache, now 8.0/8.0 MiB resident" in running.err
    running.stop(signal.SIGTERM, 2)


def test_what_is_lost_while_idle_is_counted_where_somebody_asks(box: Box) -> None:
    """The interval is 30 s; here it is shorter."""
    path = box.file("weights.data", 8 * MIB)
    code = "import stager.jobs.hold as hold, stager.cli; hold._IDLE_LOOK_EVERY_S = 0.1; stager.cli.main()"
    words = [sys.executable, "-c", code, "warm", path, "--idle", "--metrics-listen", "127.0.0.1:0"]
    running = Running(words, environment(STAGER_MARKER=box.marker))
    box.runs.append(running)
    running.await_text("idle until SIGTERM")
    url = url_of(running)
    first = metrics_at(url)
    assert value(first, "evicted_bytes_total") == 0
    until(lambda: _checked(metrics_at(url)) > _checked(first), "another look")
    cold(path)
    until(lambda: value(metrics_at(url), "evicted_bytes_total") == 8 * MIB, "the loss")
    lost = metrics_at(url)
    until(lambda: _checked(metrics_at(url)) > _checked(lost), "another look")
    found = metrics_at(url)
    assert value(found, "evicted_bytes_total") == 8 * MIB, "what is gone is lost once"
    assert (
        value(found, "resident_bytes"),
        value(found, "held_bytes"),
        value(found, "brought_back_bytes_total"),
    ) == (0, 0, 0)
    assert value(found, "state", state="ready") == 1, "how the run ended is another question"
    os.unlink(path)
    until(lambda: value(metrics_at(url), "resident_exact") == 0, "no answer for a file that is gone")
    assert value(metrics_at(url), "resident_bytes") is None
    running.stop(signal.SIGTERM, 2)


def _checked(found: Samples) -> float:
    return value(found, "resident_checked_timestamp_seconds") or 0


def _lose_half(path: str) -> None:
    """Mapped pages are not dropped on request: a hole is punched, and filled on the disk."""
    with open(path, "r+b") as file:
        os.truncate(path, 4 * MIB)
        os.truncate(path, 8 * MIB)
        os.fsync(file.fileno())
