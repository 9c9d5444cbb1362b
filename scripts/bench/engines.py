"""Measure a real engine's start on a slow FUSE mount: cold, after the vendors' recipe, by `stager run`; print one Markdown table.

scripts/test-engines                           all rows, three rounds: about 20 minutes
scripts/test-engines --only safetensors        one of them; this one builds nothing
scripts/test-engines --quick                   tiny models, one round: shows that it works, says nothing about speed
scripts/test-engines --bench DIR               instead, `stager bench --engine` with llama.cpp on this disk and on the mount, its report in DIR

Before every run the mount is made anew and proven empty of pages (mincore); the files behind it are in memory, so that the
mount alone is slow. All times count from the start of the first process: the recipe's own time is in its column, and all
of `stager run` in its. Columns are medians, ratios medians of the rounds' own. The three ways take turns, each first once.

Exit code 1: a run was not as it must be. Each must give a token (safetensors: the sum of its bytes), the same by every way;
stager's marker must say ready before the engine starts, and the engine must then read nothing of the store.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
from statistics import median

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [os.path.dirname(HERE), os.path.dirname(os.path.dirname(HERE))]

from bench import engine_bench, engine_child, engine_mounts, engine_room, engine_runs, machine  # noqa: E402  only the folders above make them importable
from bench.data import Stop  # noqa: E402
from bench.engine_runs import HELD, RECIPE, STAGER, WAYS  # noqa: E402
from stager.core.errors import StagerError  # noqa: E402
from stager.core.units import parse_size  # noqa: E402

SIZE, BARE_SIZE, QUICK_SIZE = 1_500_000_000, 300_000_000, 24_000_000
PARTS = 4
EVEN = 1.05  # a ratio below this is called no faster


@dataclasses.dataclass
class Row:
    """A line of the table: the engine, its model, the mount it lies on, and the ways to be measured."""

    model: str
    engine: object
    folder: str
    storage: engine_mounts.Storage
    ways: tuple = WAYS
    rounds: list = dataclasses.field(default_factory=list)
    disturbed: int = 0


def say(text):
    """To stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def _gigabytes(size):
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _llama(given, parts, storage, ways=WAYS, size=None):
    size = size or given.size
    folder = engine_room.gguf(given.dir, size, parts, say)
    model = f"GGUF of {_gigabytes(size)}" + (f" in {parts} parts" if parts > 1 else "")
    return Row(model, engine_runs.Server(engine_room.SERVER.python(say)), folder, storage, ways)


def single(given):
    """llama.cpp, one file."""
    return _llama(given, 1, engine_mounts.AHEAD)


def split(given):
    """llama.cpp, four parts."""
    return _llama(given, PARTS, engine_mounts.AHEAD)


def bare(given):
    """llama.cpp, one smaller file on a daemon that does not read ahead."""
    return _llama(given, 1, engine_mounts.BARE, size=min(given.size, BARE_SIZE))


def hold(given):
    """llama.cpp, four parts, held until the server is healthy; once."""
    return _llama(given, PARTS, engine_mounts.AHEAD, (HELD,))


def safetensors(given):
    """safetensors' own loader, four shards."""
    folder = engine_room.safetensors(given.dir, given.size, PARTS, say)
    engine = engine_runs.Loader(engine_room.LOADER.python(say))
    return Row(
        f"safetensors of {_gigabytes(given.size)} in {PARTS} shards", engine, folder, engine_mounts.AHEAD
    )


ROWS = {"single": single, "split": split, "bare": bare, "safetensors": safetensors, "hold": hold}


def names(text):
    """The rows of ``--only``, in the table's order."""
    given = set(text.split(","))
    if wrong := given - set(ROWS):
        raise argparse.ArgumentTypeError(f"no row `{sorted(wrong)[0]}`; choose from {', '.join(ROWS)}")
    return [name for name in ROWS if name in given]


def size(text):
    """The bytes of ``--size``."""
    try:
        return max(QUICK_SIZE, parse_size(text))
    except StagerError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def arguments():
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/test-engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = os.path.join(engine_room.CACHE, "models")
    parser.add_argument(
        "--dir",
        default=default,
        help="where the models are kept between runs (default .cache/engines/models)",
    )
    parser.add_argument("--size", type=size, default=SIZE, help="bytes of each model, about (default 1.5GB)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default 3)")
    parser.add_argument("--only", type=names, default=list(ROWS), metavar="ROW,...", help=", ".join(ROWS))
    parser.add_argument("--json", metavar="FILE", help="also write every run to FILE")
    parser.add_argument("--quick", action="store_true", help="tiny models and one round")
    parser.add_argument(
        "--bench", metavar="DIR", help="instead: the report of `stager bench --engine` into DIR"
    )
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.quick:
        given.rounds, given.size = 1, QUICK_SIZE
    given.dir = os.path.realpath(given.dir)
    return given


def find_stager():
    """The stager to measure: $STAGER, else the one of this Python's environment."""
    found = os.environ.get("STAGER") or shutil.which("stager", path=os.path.dirname(sys.executable))
    if not found or not os.access(found, os.X_OK):
        raise Stop("no stager to measure: run scripts/test once, or name one with STAGER=PATH")
    return found


def measure(row, rounds, stager):
    """All runs of a row, the ways in turn, each first once. Raises `Stop` when one is not as it must be."""
    for number in range(1 if row.ways == (HELD,) else rounds):
        first = number % len(row.ways)
        done = {}
        for way in row.ways[first:] + row.ways[:first]:
            turn, thrown = engine_runs.undisturbed(way, row.engine, row.storage, row.folder, stager, say)
            done[way], row.disturbed = turn, row.disturbed + thrown
            say(
                f"    {way}: {turn.seconds:.1f} s, {turn.warming:.1f} of them before the engine started; "
                f"{engine_mounts.mib(turn.fetched)} fetched, {engine_mounts.mib(turn.late)} of them by the engine"
            )
        row.rounds.append({way: done[way] for way in row.ways})
    answers = {turn.answer for done in row.rounds for turn in done.values()}
    if len(answers) > 1:
        raise Stop(f"the same model gave different answers: {sorted(answers)}")


def of(row, way, what):
    """The median over the rounds of `what` of a turn."""
    return median(what(done[way]) for done in row.rounds)


def cells(row):
    """A row of the table."""
    ratio = median(done[RECIPE].seconds / done[STAGER].seconds for done in row.rounds)
    seconds = [f"{of(row, way, lambda turn: turn.seconds):.1f} s" for way in WAYS]
    fetched = " / ".join(
        engine_mounts.mib(of(row, way, lambda turn: turn.fetched)) for way in (RECIPE, STAGER)
    )
    late = " / ".join(engine_mounts.mib(of(row, way, lambda turn: turn.late)) for way in (RECIPE, STAGER))
    mount = "reads ahead" if row.storage is engine_mounts.AHEAD else "does not"
    verdict = f"{ratio:.2f}x" + ("" if ratio >= EVEN else ", no faster")
    return row.engine.what, row.model, mount, *seconds, verdict, fetched, late


HEAD = ("engine", "model", "daemon", "cold", "recipe", "stager run", "recipe / stager")
HEAD += ("fetched, recipe / stager", "of that by the engine")


def markdown(rows):
    """The table of all rows that were compared."""
    lines = [HEAD, tuple("---" for _ in HEAD), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(given, rows, missed):
    """What a reader must know besides."""
    for storage, name in ((engine_mounts.AHEAD, "reads ahead"), (engine_mounts.BARE, "does not")):
        if any(row.storage is storage for row in rows):
            yield f"daemon {name}: {storage.words}. Pages stay over a re-open (kernel_cache)."
    for row in rows:
        for way in row.ways:
            answer = row.rounds[0][way].answer.strip()
            if way == HELD:
                turn = row.rounds[0][way]
                yield (
                    f"`stager run --hold until:URL`, {row.model}: {turn.seconds:.1f} s; the holder was gone "
                    f"{turn.holder:.1f} s after the first token, the server went on. Its answer: `{answer}`."
                )
        if row.ways == WAYS:
            spent = " / ".join(f"{of(row, way, lambda turn: turn.warming):.1f} s" for way in (RECIPE, STAGER))
            yield f"{row.engine.what}, {row.model}: {spent} passed before the engine started; every way answered `{answer}`."
    if thrown := sum(row.disturbed for row in rows):
        yield f"{thrown} of the runs had to be thrown away: this node paged out what had just been read ({machine.pages_out()})."
    yield from missed
    if given.quick:
        yield "WARNING: --quick. Models are far too small to say anything about speed."
    if busy := machine.busy():
        yield f"WARNING: a busy machine. {busy.split(' before')[0]} at the end."


def main():
    """Measure, print, exit."""
    given = arguments()
    os.makedirs(given.dir, exist_ok=True)
    if busy := machine.busy():
        say(f"warning: {busy}")
    stager, rows, missed = find_stager(), [], []
    if given.bench:
        engine_bench.report(given, stager, say)
        return
    for name in given.only:
        say(f"{name}: {ROWS[name].__doc__}")
        try:
            row = ROWS[name](given)
            measure(row, given.rounds, stager)
            rows.append(row)
        except Stop as stop:
            say(f"error: {stop}")
            missed.append(f"ERROR: {name} was not measured: {str(stop).splitlines()[0]}")
    holds = {one for row in rows for one in row.engine.holds}
    facts = [
        *machine.facts(given.dir),
        ("engines", ", ".join(sorted(holds)).replace("==", " ")),
        ("rounds", str(given.rounds)),
    ]
    print("\n".join(f"* {label}: {text}" for label, text in facts))
    print(f"\n{markdown([row for row in rows if row.ways == WAYS])}\n")
    told = list(notes(given, rows, missed))
    print("\n".join(f"* {note}" for note in told))
    if given.json:
        write(given.json, facts, rows, told)
    sys.exit(bool(missed))


def write(path, facts, rows, told):
    """Every run, for whoever wants to calculate with it."""
    measured = [
        {
            "engine": row.engine.what,
            "model": row.model,
            "mount": row.storage.options,
            "rounds": [{way: dataclasses.asdict(turn) for way, turn in done.items()} for done in row.rounds],
        }
        for row in rows
    ]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"facts": dict(facts), "rows": measured, "notes": told}, file, indent=1)


def stopped(number, _frame):
    """A signal: what is open is closed on the way out, and a second signal does not disturb that."""
    for one in engine_child.STOPS:
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    for one in engine_child.STOPS:
        signal.signal(one, stopped)
    try:
        main()
    except Stop as stop:
        sys.exit(f"error: {stop}")
    finally:
        engine_child.end_all()
