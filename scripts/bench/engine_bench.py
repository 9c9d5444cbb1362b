"""`stager bench --engine` with a real engine: a llama.cpp server on a model on this disk, and on the same behind a slow mount."""

import dataclasses
import os
import shutil
import subprocess
import tempfile

from bench import engine_mounts, engine_room, engine_runs
from bench.data import Stop

_ENDS_S = 30


def report(given, stager, say):
    """Writes the report, and the table as ``table.txt``, into ``given.bench``. Raises `Stop` when the benchmark fails."""
    model = engine_room.gguf(given.dir, given.size, 1, say)
    # Of its own: the mount's files stay in memory, and these are evicted.
    disk = engine_room.kept(
        given.dir, f"{os.path.basename(model)}-copy", lambda into: _copy(model, into), say
    )
    server = engine_runs.Server(engine_room.SERVER.python(say))
    engine_room.heat(model)
    with tempfile.TemporaryDirectory(prefix="test-engines-") as room:
        asked = os.path.join(room, "asked")  # the bytes that the mount's daemon asks of its store
        table = _measured(given, stager, server, (model, disk), asked)
    print(table, end="")
    with open(os.path.join(given.bench, "table.txt"), "w", encoding="utf-8") as file:
        file.write(table)


def _measured(given, stager, server, folders, asked):
    """The table."""
    model, disk = folders
    storage = dataclasses.replace(
        engine_mounts.AHEAD, options={**engine_mounts.AHEAD.options, "live_file": asked}
    )
    with engine_mounts.Mounted(storage, model) as mount:
        command = [word.replace(model, "{}") for word in server.command(model)]
        words = [stager, "bench", disk, mount.path, "--engine", "--ready-url", server.health]
        words += ["--counter", f"{mount.path}={asked}", "--rounds", str(given.rounds)]
        return _run([*words, "--yes", "--report", given.bench, "--", *command])


def _copy(model, into):
    shutil.copytree(model, into, dirs_exist_ok=True)


def _run(words):
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = child.communicate()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait(_ENDS_S)
    if child.returncode:
        raise Stop(f"stager bench ended with {child.returncode}")
    return said
