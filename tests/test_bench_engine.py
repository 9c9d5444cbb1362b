"""``stager bench --engine``: a real command is started cold and with warmed files, timed until it is ready, and ended with all that it started."""

from __future__ import annotations

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.bench.starting import Lines, check_words, placed
from stager.jobs.bench import asking
from stager.jobs.bench import engine as bench_engine
from stager.jobs.bench.children import ChildFailed, Children
from stager.jobs.bench.engine import Engine, EngineOptions, Started
from stager.net.question import Answer, Question
from stager.node.processes import is_alive, members
from tests.fetchbed import Bed
from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, ROOT, Box, Done, files_below, resident, until
from tests.test_bench_cmd import cell, good, with_word

STAND_IN = [sys.executable, str(ROOT / "tests" / "stand_in.py")]


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/health"


def timed(done: Done) -> list[dict[str, Any]]:
    """The runs, without the first read of everything."""
    return [run for run in done.all("bench_run") if run["state"] != "first"]


def words_for(model: str, port: int, *more: str, own: tuple[str, ...] = ()) -> list[str]:
    """The command line for a stand-in that serves `port`; `own` are words for stager."""
    return [
        model,
        "--engine",
        "--ready-url",
        url(port),
        "--rounds",
        "1",
        *own,
        "--",
        *STAND_IN,
        "{}",
        "--port",
        str(port),
        *more,
    ]


def sizes(model: str) -> int:
    return sum(os.path.getsize(path) for path in files_below(model))


def one_error(done: Done) -> str:
    """The only error line."""
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, str(done)
    assert "Traceback" not in done.err
    return errors[0]


# What it measures


def test_a_start_cold_with_warmed_files_and_after_warming(box: Box, port: int) -> None:
    model = box.model()
    size = sizes(model)
    done = good(
        box,
        *words_for(model, port, "--how", "map", "--api-key", "hush", own=("--report", box.path("report"))),
    )
    runs = timed(done)
    assert {(run["method"], run["state"], run["loaders"]) for run in runs} == {
        (method, state, 1) for method in ("warm", "engine", "warm+engine") for state in ("cold", "warm")
    }
    for run in runs:
        assert run["resident_before"] == (0 if run["state"] == "cold" else size)
        assert run["resident_after"] == run["bytes"] == size
        assert run["loader_seconds"] == [run["seconds"]]
        assert run["cpu_seconds"] > 0
        assert (run["before_seconds"] > 0) == (run["method"] == "warm+engine")
        assert run["before_seconds"] < run["seconds"]
        one = cell(done, run["method"], run["state"])
        assert one["before_seconds"] == (run["before_seconds"] or None)
    told = done.event("bench")
    assert told["engine"]["url"] == url(port)
    assert told["engine"]["command"][-2:] == ["--api-key", "***"]
    page = Path(box.path("report", "report.html")).read_text()
    assert "Starts of the engine" in page
    assert "time until curl" in page
    assert "against engine" in page
    everything = done.out + "".join(Path(path).read_text() for path in files_below(box.path("report")))
    assert "hush" not in everything
    assert resident(*files_below(model)) == 0


@pytest.mark.root
def test_on_a_slow_mount_a_start_with_warmed_files_reads_nothing(
    box: Box, fuse_mount: MountFactory, port: int
) -> None:
    size = 12 * MIB
    slow = fuse_mount(synthetic={"a.bin": size}, keep_cache="always", stream_rate=8 * MIB, latency=5)
    done = good(box, *words_for(slow.path, port, own=("--methods", "engine")))
    assert cell(done, "engine")["seconds"]["min"] > 1
    assert cell(done, "engine", "warm")["rounds"] == 1
    # One read that is thrown away and one cold start; the start before it all, and the one with warmed files, found everything.
    assert 2 * size <= slow.counters()["served"] < 2 * size + MIB  # stager looks at some pages before


@pytest.mark.parametrize("stream", ["--say", "--cry"])
def test_a_line_of_what_it_says_makes_it_ready(box: Box, stream: str) -> None:
    model = box.model(size=MIB)
    words = [model, "--engine", "--ready-log", "up and run+ing$", "--rounds", "1", "--methods", "engine"]
    done = good(box, *words, "--", *STAND_IN, model, stream, "it is up and running")
    assert cell(done, "engine")["rounds"] == cell(done, "engine", "warm")["rounds"] == 1


def test_a_program_that_ends_once_it_has_said_the_line_was_ready(box: Box) -> None:
    model = box.model(size=MIB)
    words = [model, "--engine", "--ready-log", "loaded", "--rounds", "1", "--methods", "engine"]
    done = good(box, *words, "--", *STAND_IN, model, "--say", "loaded", "--exit", "0")
    assert cell(done, "engine")["cpu_seconds"] > 0


def test_one_that_listens_before_it_serves_is_told_at_once(box: Box, port: int, children: Children) -> None:
    """A question that waits is answered first; others beside it would fill the queue of whoever listens, and the kernel would wait for seconds."""
    command = (*STAND_IN, box.folder, "--how", "none", "--port", str(port), "--early", "1")
    started = Engine(children, EngineOptions(command, url(port))).start(box.folder, None)
    assert started.seconds > 1
    assert started.within < 0.25
    assert started.caveat == ""


def test_a_connection_that_nobody_takes_is_given_up_long_before_the_question(port: int) -> None:
    """The queue is full: the kernel would repeat the first packet after 1, 3, 7, 15 s."""
    with ExitStack() as opened:
        opened.enter_context(socket.create_server(("127.0.0.1", port), backlog=1))
        for _ in range(4):
            one = opened.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        began = time.monotonic()
        assert Question(url(port)).ask(30) == Answer(None, waited=False)
        assert time.monotonic() - began < 15


def test_one_that_is_slow_to_say_that_it_is_not_ready_is_known_less_well(box: Box, port: int) -> None:
    """What it was asked a second ago says how it was a second ago."""
    opened = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = not opened.is_set()
            opened.set()
            time.sleep(0.5 if first else 0)
            self.send_response(503 if first else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", port), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        heard = threading.Event()
        asked = asking.Asking(url(port), heard)
        assert heard.wait(30)
        asked.close()
        server.shutdown()
    assert asked.status == 503
    assert asked.within >= 0.5
    assert "may have been ready" in Started(2.0, 0.1, asked.within).caveat
    assert Started(20.0, 0.1, asked.within).caveat == ""


@pytest.mark.parametrize("lines", [1, 20000])
def test_an_expression_that_takes_for_ever_ends_with_the_time_for_a_start(box: Box, lines: int) -> None:
    """The same when the search is so far behind that nothing more is read of what the engine says."""
    model = box.model(size=MIB)
    words = [model, "--engine", "--engine-timeout", "3s", "--ready-log", "^(a+)+$|ready", "--rounds", "1"]
    script = f"import time\nfor _ in range({lines}): print('a' * 60 + '!', flush=True)\nprint('ready', flush=True)\ntime.sleep(600)"
    done = box.run("bench", "--yes", *words, "--", sys.executable, "-c", script)
    assert done.code == 3, str(done)
    assert "not ready after 3" in one_error(done)
    assert lines == 1 or "write a simpler one" in one_error(done)


def test_one_that_becomes_a_daemon_is_timed_and_ended_too(box: Box, port: int) -> None:
    model = box.model(size=MIB)
    done = good(box, *words_for(model, port, "--leave", own=("--methods", "engine")))
    for state in ("cold", "warm"):
        assert cell(done, "engine", state)["cpu_seconds"] > 0
    assert not accepts(port)


def test_a_flood_of_output_fills_nothing(box: Box) -> None:
    model = box.model(size=MIB)
    words = [model, "--engine", "--ready-log", "^ready", "--rounds", "1", "--methods", "engine"]
    done = good(box, *words, "--", *STAND_IN, model, "--flood", "64", "--say", "ready")
    assert cell(done, "engine")["rounds"] == 1


def test_every_path_is_put_where_the_command_says(box: Box, port: int) -> None:
    models = [box.model("one", size=MIB), box.model("two", size=2 * MIB)]
    done = good(box, models[0], *words_for(models[1], port, own=("--methods", "engine")))
    for run in timed(done):
        assert run["resident_after"] == sizes(run["storage"])  # each start has read its own
    assert {run["storage"] for run in timed(done)} == set(models)


def test_a_store_is_fetched_and_the_engine_started_on_what_came(bed: Bed, source: str, port: int) -> None:
    bed.serve(source)
    into = bed.box.path("into")
    os.mkdir(into)
    done = good(bed.box, *words_for(bed.url, port, own=("--into", into)), env=bed.oss.env())
    run = next(
        run for run in done.all("bench_run") if (run["method"], run["state"]) == ("fetch+engine", "cold")
    )
    assert 0 < run["before_seconds"] < run["seconds"]
    assert cell(done, "fetch+engine", "warm")["rounds"] == cell(done, "fetch")["rounds"] == 1
    assert os.listdir(into) == []


def test_pages_that_the_engine_drops_itself_are_said_and_nobody_else_is_blamed(box: Box, port: int) -> None:
    model = box.model(size=8 * MIB)
    done = good(box, *words_for(model, port, "--how", "evict", own=("--methods", "engine")))
    for run in timed(done):
        assert not run["disturbed"]
        assert run["resident_after"] < run["bytes"]
        assert "were not resident" in run["caveat"]
    shown = box.run("bench", "--yes", *words_for(model, port, "--how", "evict", own=("--methods", "engine")))
    assert re.search(r"engine second: when the engine was ready .* were not resident", shown.out), str(shown)


# What fails


@pytest.mark.parametrize(
    ("more", "texts"),
    [
        (["--cry", "out of memory", "--exit", "3"], ["exit 3 before it was ready", "out of memory"]),
        (["--exit", "0"], ["exit 0 before it was ready", "foreground"]),
        (["--status", "503"], ["not ready after", "answers 503"]),
        (["--deaf", "--fork", "--exit", "1"], ["exit 0 before it was ready"]),
    ],
)
def test_a_start_that_fails_is_said_before_anything_is_measured(
    box: Box, port: int, more: list[str], texts: list[str]
) -> None:
    model = box.model(size=MIB)
    done = box.run("bench", "--yes", *words_for(model, port, *more, own=("--engine-timeout", "1s")))
    assert done.code == 3, str(done)
    line = one_error(done)
    assert all(text in line for text in texts), line
    assert "r002" not in done.err  # r001 is the first read


@pytest.mark.parametrize(
    ("more", "text"), [(["--exit", "3"], "exit 3"), (["--crash"], f"signal {signal.SIGSEGV:d}")]
)
def test_one_that_says_that_it_is_ready_and_dies_was_not(box: Box, more: list[str], text: str) -> None:
    """Engines say so, and then find that their port is taken."""
    model = box.model(size=MIB)
    words = [model, "--engine", "--ready-log", "^ready", "--rounds", "1", "--methods", "engine"]
    done = box.run("bench", "--yes", *words, "--", *STAND_IN, model, "--say", "ready", *more)
    assert done.code == 3, str(done)
    assert f"ended with {text}" in one_error(done)
    assert "before it was ready" not in one_error(done)


def test_one_that_is_ready_and_dies_a_moment_later_was_not(box: Box, port: int, children: Children) -> None:
    script = f"""
import http.server, os, time
http.server.HTTPServer(("127.0.0.1", {port}), http.server.SimpleHTTPRequestHandler).handle_request()
time.sleep(0.1)
os._exit(3)
"""
    options = EngineOptions((sys.executable, "-c", script), f"http://127.0.0.1:{port}/")
    with pytest.raises(ChildFailed, match="it was ready, and ended with exit 3 right after"):
        Engine(children, options).start(box.folder, None)


def test_a_start_that_fails_later_is_a_failed_run(box: Box, port: int) -> None:
    model = box.model(size=MIB)
    done = good(box, *words_for(model, port, "--lives", box.path("life"), own=("--methods", "warm,engine")))
    one = cell(done, "engine")
    assert (one["failed"], one["seconds"]) == (1, None)
    assert one["unmeasured"] == "it ended with exit 1 before it was ready: no more lives"
    assert cell(done, "warm")["rounds"] == 1


def test_no_secret_of_an_engine_is_told(box: Box, port: int) -> None:
    """Neither in an error nor in the report: not of its words, its URL, its environment, nor in its last words."""
    model = box.model(size=MIB)
    report = box.path("report")
    life = box.path("life")
    cry = "echo hush-word hush-key hush-url hush-variable password=hush-own >&2; exit 3"
    line = f"export HF_TOKEN=hush-word; [ -e {life} ] && {{ {cry}; }}; touch {life}; exec {' '.join(STAND_IN)} {model} --port {port} --api-key hush-key"
    asked = [f"--ready-url={url(port)}?api_key=hush-url"]
    words = [model, "--engine", *asked, "--rounds", "1", "--methods", "warm,engine", "--report", report]
    script = ["--", "sh", "-c", line]
    env = {"OSS_ACCESS_KEY_SECRET": "hush-variable"}
    first = box.run("bench", "--yes", "--json", *words, *script, env=env)
    assert first.code == 0, str(first)
    assert cell(first, "engine")["failed"] == 1  # the rehearsal had its only life
    assert "password=***" in cell(first, "engine")["unmeasured"]
    second = box.run("bench", "--yes", *words, *script, env=env)
    assert "password=***" in one_error(second)
    files = [Path(report, name).read_text() for name in sorted(os.listdir(report))]
    assert len(files) == 3
    assert all("exec" in text and "hush" not in text for text in files)
    assert not [text for text in (first.out, first.err, second.out, second.err) if "hush" in text]


def test_one_that_changes_the_files_is_refused_after_its_first_start(box: Box, port: int) -> None:
    model = box.model(size=MIB)
    name = os.path.basename(files_below(model)[0])
    done = box.run("bench", "--yes", *words_for(model, port, "--append", name))
    assert done.code == 3, str(done)
    assert f"the engine changes what is to be measured: {name} has changed" in one_error(done)


def test_one_that_changes_the_files_later_has_failed(box: Box, port: int) -> None:
    model = box.model(size=MIB)
    path = files_below(model)[0]
    words = words_for(model, port, own=("--methods", "warm,engine"))
    at, mark = words.index("--") + 1, box.path("mark")
    spoil = ["sh", "-c", f'if test -e {mark}; then printf x >> {path}; fi; touch {mark}; exec "$@"', "sh"]
    done = good(box, *words[:at], *spoil, *words[at:])
    assert cell(done, "engine")["unmeasured"].startswith(f"{os.path.basename(path)} has changed")


def test_what_it_writes_beside_the_files_is_said_and_made_cold_too(box: Box, port: int) -> None:
    model = box.model(size=MIB)
    words = words_for(model, port, "--append", "compiled.bin", own=("--methods", "engine"))
    at, log, new = words.index("--") + 1, box.path("log"), os.path.join(model, "compiled.bin")
    look = ["sh", "-c", f'fincore -b -n -o RES {new} >> {log}; cat {new}; exec "$@"', "sh"]
    done = good(box, *words[:at], *look, *words[at:])
    assert Path(log).read_text().split() == ["0", "4096"]  # there was none at the first start
    for run in timed(done):
        assert "compiled.bin came into the folder" in run["caveat"]
        assert not run["disturbed"]


@pytest.mark.parametrize("method", ["engine", "warm+engine"])
def test_a_time_that_stager_itself_was_stopped_in_is_thrown_away(box: Box, port: int, method: str) -> None:
    model = box.model(size=MIB)
    words = words_for(model, port, "--early", "1", own=("--methods", method, "--json"))
    at, log = words.index("--") + 1, box.path("log")
    note = ["sh", "-c", f'echo start >> {log}; exec "$@"', "sh"]
    running = box.start("bench", "--yes", *words[:at], *note, *words[at:])
    until(lambda: os.path.exists(log) and Path(log).read_text().count("start") == 2, "the first timed start")
    running.signal(signal.SIGSTOP)
    time.sleep(1.5)
    running.signal(signal.SIGCONT)
    done = running.finish()
    assert done.code == 0, str(done)
    first, *others = timed(done)
    assert first["disturbed"]
    assert "stager itself did not run for" in first["reason"]
    assert (others[0]["state"], others[0]["disturbed"]) == ("cold", False)


@pytest.mark.root
def test_a_quick_benchmark_that_cannot_start_the_engine_has_not_done_what_was_asked(
    box: Box, fuse_mount: MountFactory, port: int
) -> None:
    slow = fuse_mount(synthetic={"a.bin": 256 * MIB}, keep_cache="always", total_rate=8 * MIB)
    own = ("--quick", "--timeout", "20s", "--methods", "read,engine")
    done = box.run("bench", "--yes", *words_for(slow.path, port, own=own))
    assert done.code == 3, str(done)
    assert "the engine was not started" in one_error(done)
    assert "--quick has time for a part" in done.err


def test_where_somebody_else_listens_nothing_is_started_or_evicted(box: Box, port: int) -> None:
    model = box.model(size=MIB)
    assert box.warm(model).code == 0
    with socket.create_server(("127.0.0.1", port)):
        done = box.run("bench", "--yes", *words_for(model, port, "--lives", box.path("life")))
    assert done.code == 3, str(done)
    assert "somebody listens" in one_error(done)
    assert not os.path.exists(box.path("life"))
    assert resident(*files_below(model)) == sizes(model)


def test_a_program_that_is_not_there(box: Box, port: int) -> None:
    model = box.model(size=MIB)
    words = [model, "--engine", "--ready-url", url(port), "--", "no-such-engine", model]
    done = box.run("bench", "--yes", *words)
    assert done.code == 7, str(done)
    assert "no-such-engine" in one_error(done)


ENGINE = ["MODEL", "--engine"]
READY = ["--ready-url", "http://127.0.0.1:1/"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([*ENGINE, *READY], "no command"),
        ([*ENGINE, *READY, "--"], "no command"),
        ([*ENGINE, "--", "x"], "both missing"),
        ([*ENGINE, *READY, "--ready-log", "up", "--", "x"], "exclude each other"),
        ([*ENGINE, "--ready-url", "localhost:1", "--", "x"], "not an http URL"),
        ([*ENGINE, "--ready-url", "http://u:p@127.0.0.1:1/", "--", "x"], "a user or a password in it"),
        ([*ENGINE, "--ready-log", "(up", "--", "x"], "regular expression"),
        ([*ENGINE, "--ready-log", ".*", "--", "x"], "empty line"),
        ([*ENGINE, *READY, "--engine-timeout", "0s", "--", "x"], "more than 0"),
        ([*ENGINE, *READY, "--methods", "read", "--", "x"], "--methods names none"),
        ([*ENGINE, "OTHER", *READY, "--", "x"], "several PATHs"),
        (["oss://bucket/r1", "--engine", *READY, "--", "x"], "does not say"),
        ([*ENGINE, *READY, "--loaders", "4", "--", "x"], "--loaders means nothing"),
        ([*ENGINE, *READY, "--per-file", "--", "x"], "--per-file means nothing"),
        ([*ENGINE, *READY, "--", "x", '{"rope": {}}'], "stands for PATH"),
        ([*ENGINE, "OTHER", *READY, "--", "x", "{{}}"], "several PATHs"),
        (["MODEL", *READY], "--ready-url needs --engine"),
        (["MODEL", "--methods", "warm+engine"], "needs --engine"),
    ],
)
def test_what_cannot_be_meant_is_one_line(box: Box, words: list[str], text: str) -> None:
    model = box.model(size=MIB)
    done = box.run(
        "bench", "--yes", *[{"MODEL": model, "OTHER": box.folder}.get(word, word) for word in words]
    )
    assert done.code == 2, str(done)
    assert text in one_error(done)


def test_the_help_names_the_number_of_loaders_with_an_engine(box: Box) -> None:
    text = " ".join(box.run("bench", "--help").out.split())
    assert "an engine is always one. [default: 1,4,8,16; 1,4 with --quick; 1 with --engine]" in text


def test_without_engine_the_words_after_the_dashes_are_paths(box: Box) -> None:
    model = box.model(size=MIB)
    done = good(box, "--methods", "read", "--loaders", "1", "--rounds", "1", "--", model)
    assert cell(done, "read")["rounds"] == 1


# What it leaves behind


@pytest.mark.parametrize(
    ("number", "before", "how"),
    [
        (signal.SIGINT, [], "--fork"),
        (signal.SIGTERM, [], "--leave"),
        (signal.SIGTERM, ["sh", "-c", 'setsid "$@" & wait', "sh"], "--deaf"),
        (signal.SIGKILL, [], "--fork"),
        (signal.SIGKILL, [], "--leave"),
        (signal.SIGKILL, ["sh", "-c", 'setsid "$@" & wait', "sh"], "--deaf"),
    ],
)
def test_the_engine_and_its_children_end_with_the_benchmark(
    box: Box, port: int, number: int, before: list[str], how: str
) -> None:
    """Also where they have a process group or a session of their own, have lost their parent, and do not listen."""
    model = box.model(size=MIB)
    word = f"BENCH_TEST={os.path.basename(box.folder)}"
    name, _, value = word.partition("=")
    words = words_for(model, port, "--deaf", how, "--status", "503")
    at = words.index("--") + 1
    running = box.start("bench", "--yes", *words[:at], *before, *words[at:], env={name: value})
    until(lambda: accepts(port), "the engine")
    assert len(with_word(word)) >= 2
    if number == signal.SIGKILL:
        time.sleep(1)  # somebody has looked since it became a daemon
    running.signal(number)
    done = running.finish(15)
    assert done.code == (-9 if number == signal.SIGKILL else 128 + number), str(done)
    until(lambda: not with_word(word), "the end of the engine", 5)


@pytest.mark.parametrize("number", [0, signal.SIGKILL])
def test_children_of_the_shell_that_became_the_benchmark_stay(box: Box, port: int, number: int) -> None:
    """As in ``sh -c 'tail -f log & exec stager bench ...'``: they are its children, and none of its business."""
    model = box.model(size=MIB)
    own = box.path("own")
    words = words_for(model, port, "--leave", own=("--methods", "engine"))
    shell = ["sh", "-c", f'sleep 600 & echo $! >{own}; exec "$@"', "sh"]
    running = box.start("bench", "--yes", *words, before=shell)
    if number:
        until(lambda: accepts(port), "the engine")
        time.sleep(1)  # somebody has looked
        running.signal(number)
    done = running.finish(60)
    assert done.code == -number, str(done)
    until(lambda: not accepts(port), "the end of the engine", 5)
    left = int(Path(own).read_text())
    assert is_alive(left, 0.0)
    os.kill(left, signal.SIGKILL)


def accepts(port: int) -> bool:
    """Whether anybody listens."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def test_one_that_does_not_listen_is_killed_with_all_its_children(
    box: Box, port: int, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_engine, "GRACE_S", 0.3)
    word = f"--api-key={os.path.basename(box.folder)}"
    command = (*STAND_IN, box.folder, "--how", "none", "--deaf", "--fork", "--port", str(port), word)
    started = Engine(children, EngineOptions(command, url(port))).start(box.folder, None)
    assert started.seconds > 0
    assert started.cpu > 0
    assert not accepts(port)
    assert not [pid for pid in filter(str.isdigit, os.listdir("/proc")) if word in words_of(pid)]


def words_of(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_the_last_words_of_one_that_has_ended_are_heard(
    box: Box, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by somebody who reads slowly; and what it used counts, though it is gone."""

    class Slow(Lines):
        def feed(self, stream: int, data: bytes) -> None:
            time.sleep(0.3)
            super().feed(stream, data)

    monkeypatch.setattr(bench_engine, "Lines", Slow)
    command = (*STAND_IN, box.folder, "--how", "none", "--say", "loaded", "--exit", "0")
    started = Engine(children, EngineOptions(command, log=re.compile("loaded"))).start(box.folder, None)
    assert started.cpu > 0
    failing = (*command[:-1], "3")
    with pytest.raises(ChildFailed, match="said that it was ready, and ended with exit 3"):
        Engine(children, EngineOptions(failing, log=re.compile("loaded"))).start(box.folder, None)


def test_one_that_does_not_listen_is_said_to_cost_time(
    box: Box, port: int, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_engine, "GRACE_S", 0.3)
    command = (*STAND_IN, box.folder, "--how", "none", "--port", str(port))
    for deaf in ([], ["--deaf"]):
        started = Engine(children, EngineOptions((*command, *deaf), url(port))).start(box.folder, None)
        assert started.killed == bool(deaf)


def test_one_that_listens_is_let_end_by_itself(box: Box, port: int, children: Children) -> None:
    """SIGKILL would leave the file."""
    mark = box.path("mark")
    script = f"trap 'kill $!; rm {mark}; exit' TERM; touch {mark}; {' '.join(STAND_IN)} {box.folder} --how none --port {port} & wait"
    Engine(children, EngineOptions(("sh", "-c", script), url(port))).start(box.folder, None)
    assert not os.path.exists(mark)


def test_members_are_the_live_ones_of_a_group_or_session() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & exec sleep 60"], start_new_session=True)
    until(lambda: len(members(child.pid)) == 2, "both")
    child.kill()
    until(lambda: len(members(child.pid)) == 1, "the first to be a zombie")
    os.killpg(child.pid, signal.SIGKILL)
    until(lambda: not members(child.pid), "nobody")
    child.wait()


# Decisions

PIECES = st.lists(st.integers(0, 40), max_size=8)


@given(st.text("ready\n\r é", max_size=40), PIECES)
def test_lines_match_however_they_are_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    ends = sorted({min(cut, len(data)) for cut in (*cuts, len(data))})
    lines, at = Lines(re.compile("^ready$")), 0
    for end in ends:
        if end > at:
            lines.feed(1, data[at:end])
        at = end
    lines.feed(1, b"")
    assert lines.matched == ("ready" in re.split("[\r\n]", text))
    assert lines.end == text


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("{}", "/m"),
        ("--model={}/a:{}", "--model=/m/a:/m"),
        ("{{}}", "{}"),
        ('{"rope": {{}}, "model": "{}"}', '{"rope": {}, "model": "/m"}'),
        ('{"a":{"b":{{}}}}', '{"a":{"b":{}}}'),
        ("${HOME} {a}", "${HOME} {a}"),
    ],
)
def test_the_place_of_the_path_and_how_it_is_escaped(word: str, told: str) -> None:
    check_words([word])
    assert placed([word], "/m") == [told]


def test_lines_of_two_streams_are_kept_apart_and_only_the_end_of_all_is_kept() -> None:
    lines = Lines(re.compile("ready"))
    lines.feed(1, b"rea")
    lines.feed(2, b"dy\n")
    assert not lines.matched
    for _ in range(64):
        lines.feed(1, b"x" * MIB)
    assert len(lines.end) == 64 << 10
    lines.feed(1, b"ready\n")
    assert lines.matched
