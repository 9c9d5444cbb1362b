"""One run of an engine on a new, cold mount: by itself, after the recipe, by ``stager run``."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from bench import engine_room, machine, process
from bench.data import Stop
from bench.engine_child import Child
from bench.engine_mounts import Mounted

COLD, RECIPE, STAGER, HELD = "cold", "recipe", "stager run", "stager run --hold"
WAYS = (COLD, RECIPE, STAGER)
LIMIT_S = 900  # for any one run
MOST_DISTURBED = 8
MOST_TAKEN = 64 << 10  # bytes, on a node that pages out by itself: at 30 ms a page, half a second
_SMALL, _USE_S = 100_000_000, 6
_LOST = "some pages did not stay"
_ASK_EVERY_S = 0.02
_HOLD_ENDS_S = 30


class Disturbed(Stop):
    """This node pages out memory that nobody touches for a while, and did so to the model: nobody's fault, measured again."""


@dataclass
class Turn:
    """One run: seconds until the first token (or until all is loaded) from the start of whatever came first.

    `warming` seconds passed before the engine itself was started. `fetched` bytes were asked of the store in all, `late` of
    the mount after the engine was started. `answer` must be the same whichever way the weights came.
    """

    seconds: float
    warming: float
    fetched: int
    late: int
    answer: str
    holder: float = 0.0  # seconds that a holder outlived the first token


class Server:
    """``python -m llama_cpp.server`` as it comes, but for a small context and half the cores: the mount's daemon needs some.

    The weights come by mmap.
    """

    what = "llama.cpp server, first token"
    holds = engine_room.SERVER.holds[:1]

    def __init__(self, python):
        self._python = python
        self._port = 0

    @property
    def health(self):
        """A URL that answers 200 once the server serves."""
        return f"http://127.0.0.1:{self._port}/v1/models"

    def command(self, folder):
        """What starts it on the model in `folder`, on a port that is free now."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        words = ["-m", "llama_cpp.server", "--model", engine_room.weights(folder)]
        words += ["--host", "127.0.0.1", "--port", str(self._port), "--n_ctx", "256", "--use_mlock", "False"]
        words += [
            "--n_threads_batch",
            str(max(1, (os.cpu_count() or 1) // 2)),
        ]  # as many as --n_threads is by itself
        return [self._python, *words]

    def answer(self, child):
        """Its first token, as soon as it gives one. Raises `Stop` when it gives none."""
        end = time.monotonic() + LIMIT_S
        while True:
            child.alive()
            try:
                return self._token()
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise Stop(f"no server after {LIMIT_S} s:\n{child.said()}") from None
                time.sleep(_ASK_EVERY_S)

    def _token(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT_S)
        body = {"prompt": "word7", "max_tokens": 4, "temperature": 0, "stream": True}
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            if answer.status != 200:
                raise Stop(f"the server answered {answer.status}: {answer.read()[:500]!r}")
            for line in answer:
                if line.startswith(b"data: {"):
                    text = json.loads(line[6:])["choices"][0]["text"]
                    if text:
                        return text
            raise Stop("the server answered without a token")
        finally:
            connection.close()


class Loader:
    """safetensors' own ``safe_open`` with numpy: every tensor into memory of its own, every byte looked at."""

    what = "safetensors `safe_open`, all tensors"
    holds = engine_room.LOADER.holds

    def __init__(self, python):
        self._python = python

    def command(self, folder):
        """What loads the model in `folder`."""
        return [self._python, os.path.join(engine_room.HERE, "engine_load.py"), folder]

    def answer(self, child):
        """The sum of all bytes. Raises `Stop` when there were none."""
        last = child.wait(LIMIT_S).splitlines()[-1]
        found = json.loads(last)
        if not found["bytes"]:
            raise Stop("it loaded nothing")
        return f"{found['bytes']} bytes, sum {found['sum']:016x}"


def recipe(folder):
    """What the vendors' documents have one do before the engine starts."""
    return ["sh", "-c", """find "$0" -type f | xargs -P16 -n1 sh -c 'cat "$0" >/dev/null'""", folder]


def undisturbed(way, engine, storage, folder, stager, say):
    """`once`, repeated while the node takes pages away that were just warmed; the run, and how many were thrown away."""
    for thrown in range(MOST_DISTURBED):
        _use_memory(folder)
        try:
            return once(way, engine, storage, folder, stager), thrown
        except Disturbed as disturbed:
            say(f"    {disturbed}: thrown away")
    raise Stop(f"{way}: pages keep getting lost, {MOST_DISTURBED} times now")


def _use_memory(folder):
    """Where idle memory is paged out, have the memory that the model will get in use first; see engine_memory.py."""
    size = sum(map(os.path.getsize, engine_room.files(folder)))
    if machine.pages_out() and size > _SMALL:
        script = os.path.join(engine_room.HERE, "engine_memory.py")
        process.run([sys.executable, script, str(2 * size), str(_USE_S)])


def once(way, engine, storage, folder, stager):
    """One run of `engine` on the model in `folder`, by `way`. Raises `Stop` when anything is not as it must be."""
    size = engine_room.heat(folder)
    with (
        tempfile.TemporaryDirectory(prefix="test-engines-") as room,
        Mounted(storage, folder) as mount,
    ):
        marker = os.path.join(room, "ready.json")
        command, prefix, spent = engine.command(mount.path), [], 0.0
        if way == RECIPE:
            spent = process.run(recipe(mount.path), timeout=LIMIT_S).wall
        if way in (STAGER, HELD):
            hold = ["--hold", f"until:{engine.health}"] if way == HELD else []
            prefix = [stager, "run", "--warm", mount.path, "--marker", marker, *hold, "--"]
        child = Child(prefix, command, room)
        try:
            turn = _follow(child, engine, mount, marker if prefix else None, spent)
            if way == HELD:
                turn.holder = _outlived(child)
            if prefix:
                _still_ready(stager, mount.path, marker)
        finally:
            child.end()
        _check(way, turn, size)
        return turn


def _follow(child, engine, mount, marker, spent):
    """From the start of the child to the engine's answer."""
    child.at_the_door(LIMIT_S)
    warming = time.perf_counter() - child.began
    if marker:
        _marker_is_ready(marker, child)
    before = mount.served()
    child.let_in()
    answer = engine.answer(child)
    seconds = time.perf_counter() - child.began
    return Turn(spent + seconds, spent + warming, mount.fetched(), mount.served() - before, answer)


def _marker_is_ready(marker, child):
    """The engine has not begun: what does the marker say? Raises `Stop` unless it is that all is there."""
    try:
        with open(marker, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise Stop(f"no marker before the engine started ({error}):\n{child.said()}") from None
    if (found["state"], found["resident"]) != ("ready", found["total"]):
        lost = found["state"] == "partial" and found["reason"].startswith(_LOST)
        kind = Disturbed if lost and machine.pages_out() else Stop
        raise kind(f"the marker says {found['state']}, {found['reason']}, before the engine started")


def _still_ready(stager, folder, marker):
    """``stager ready`` while the engine runs. Raises `Stop` when it says no."""
    words = [stager, "ready", folder, "--marker", marker]
    asked = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if asked.returncode:
        raise Stop(f"`stager ready` said {asked.returncode} beside the engine: {asked.stdout}{asked.stderr}")


def _outlived(child):
    """Seconds until nothing of stager is left beside the engine, which goes on. Raises `Stop` when something stays."""
    began = time.perf_counter()
    while child.others():
        child.alive()
        if time.perf_counter() - began > _HOLD_ENDS_S:
            raise Stop(f"the holder did not end with the engine's health:\n{child.said()}")
        time.sleep(_ASK_EVERY_S)
    child.alive()
    return time.perf_counter() - began


def _check(way, turn, size):
    """What must be true of a run, else its figures mean something else. Raises `Stop`, or `Disturbed`."""
    if turn.fetched < 0.99 * size:
        raise Stop(f"{way}: only {turn.fetched} of {size} bytes came from the store: it was not cold")
    if way == COLD or not turn.late:
        return
    text = f"{way}: the engine read {turn.late} bytes of the store although it was to find them in memory"
    if machine.pages_out():
        if turn.late > MOST_TAKEN:
            raise Disturbed(text)
    elif way != RECIPE:  # what the recipe leaves to the engine is the recipe's, and in the table
        raise Stop(text)
