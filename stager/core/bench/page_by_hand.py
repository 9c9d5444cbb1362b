"""The commands that make every number of a benchmark again by hand, each to be copied as it stands into one bash."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from stager.core.bench.page_parts import Block, Code, Mono
from stager.core.bench.page_tables import Results
from stager.core.bench.plan import (
    ENGINE,
    FETCH_ENGINE,
    FETCH_MMAP,
    NAMES,
    OFFSETS,
    READ,
    RECIPE,
    SAFETENSORS,
    THEN_MMAP,
    VMTOUCH,
    WARM_ENGINE,
    WARMING,
)
from stager.core.bench.starting import pieces
from stager.core.units import count

if TYPE_CHECKING:
    from stager.core.bench.reports import BenchEngine, BenchStorage

_MOST_NAMES = 64  # more files than these are looked for, not listed
_PRINTED = """awk '{n += $1} END {printf "%d files, %.0f bytes\\n", NR, n}'"""
_RESIDENT = """resident() { xargs -0 fincore -b -n -o RES,SIZE < "$D/files" | awk '{n += $1 < $2 ? $1 : $2} END {printf "%.0f bytes resident\\n", n}'; }"""
_COLD = 'cold() { xargs -0 stager evict < "$D/files" > /dev/null; resident; }'
_DD = """xargs -0 -I{} dd if={} iflag=nocache count=0 status=none < "$D/files"; resident"""
_FIRST = {**THEN_MMAP, WARM_ENGINE: WARMING}
_EXACTLY = '--allow-incomplete --marker "$D/ready.json"'
_FOR_BASH = "All of this is for one bash, as root or as the owner of the files, to whom alone the kernel tells which pages are resident."
_OWN = "stager bench has them begin together. "
_FETCHED = """find "$S/model" -name .stager -prune -o -type f -print0 > "$D/files\""""

_LOAD = """\
import json, mmap, sys, time
order, names = sys.argv[1], open(sys.argv[2], "rb").read().split(b"\\0")[:-1]
began, total = time.monotonic(), 0
for name in names:
    with open(name, "rb") as file:
        if not file.seek(0, 2):
            continue
        view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)){part}
    spans = [(0, len(view))]
    if name.endswith(b".safetensors"):
        head = 8 + int.from_bytes(view[:8], "little")
        tensors = json.loads(bytes(view[8:head]))
        tensors.pop("__metadata__", None)
        places = [[head + at for at in tensors[tensor]["data_offsets"]] for tensor in sorted(tensors)]
        spans = [(0, head), *(places if order == "names" else sorted(places))]
    for start, end in spans:
        bytes(view[start - start % mmap.PAGESIZE : end : mmap.PAGESIZE])
        total += min(end, len(view)) - min(start, len(view))
sys.stdout.write(f"{total} bytes in {time.monotonic() - began:.3f} seconds\\n")"""

_TO = """\
import sys, time
import torch
from safetensors import safe_open
torch.set_num_threads(1)
torch.zeros(1, device=sys.argv[1]).clone()
began, kept = time.monotonic(), []
for name in open(sys.argv[2]).read().split("\\0")[:-1]:
    if name.endswith(".safetensors"):
        with safe_open(name, framework="pt", device=sys.argv[1]) as file:
            kept += [file.get_tensor(tensor).clone() for tensor in file.keys()]
if sys.argv[1] == "cuda":
    torch.cuda.synchronize()
sys.stdout.write(f"{sum(one.nbytes for one in kept)} bytes in {time.monotonic() - began:.3f} seconds\\n")"""


def bash_word(text: str) -> str:
    """`text` as one word for bash that can be printed: control characters and bytes that are no text as escapes."""
    if text.isprintable():
        return shlex.quote(text)
    raw = text.encode("utf-8", "surrogateescape")
    body = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in raw)
    return f"$'{body}'"


def by_hand(results: Results) -> list[Block]:
    """The commands for every method that was used, on each storage."""
    mounts = [storage for storage in results.storages if storage.kind == "mount"]
    stores = [storage for storage in results.storages if storage.kind != "mount"]
    blocks: list[Block] = []
    for at, storage in enumerate(mounts):
        again = at > 0 and storage.part == mounts[at - 1].part
        blocks += _another(results, storage, again=again) if at else _first(results, storage)
        blocks += [] if again else _lines(results, storage)
    if stores and not mounts:
        blocks.append(Code(("D=$(mktemp -d)",)))
    if (
        stores
        and results.summary.engine is None
        and not (_loads(results) and mounts and mounts[-1].part is None)
    ):
        blocks += _programs(part=None, to="")
    for storage in stores:
        blocks += _of_store(storage, results.summary.engine)
    return [*blocks, "At the end:", Code(('rm -r "$D"',))] if blocks else []


def _first(results: Results, storage: BenchStorage) -> list[Block]:
    """The list of the files, and how they are made cold and counted."""
    return [
        f"{_FOR_BASH} First the files, in the order in which they are read; the last line must say {_count(storage)}.",
        Code(("D=$(mktemp -d)", *_list(results, storage))),
        (
            Mono("cold"),
            " must say 0 bytes. The last line is another way to the same, without stager.",
        ),
        Code((_RESIDENT, _COLD, _DD)),
        *_below(storage),
    ]


def _loads(results: Results) -> bool:
    """Whether the lines for mounts have a load by mapping in them."""
    return not results.sweeps and bool({OFFSETS, NAMES, *THEN_MMAP} & set(results.summary.methods))


def _another(results: Results, storage: BenchStorage, *, again: bool) -> list[Block]:
    swept = _best_lines(results, storage) if again and results.sweeps else ()
    again = again and not swept
    then = "and then the last lines above again" if again else "and then"
    text = (Mono(storage.path), f": these files ({_count(storage)}), {then}{'.' if again else ':'}")
    engine = results.summary.engine
    start = (_start(engine, bash_word(storage.path)),) if engine else ()
    return [text, Code((*_list(results, storage), *start, *swept)), *_below(storage)]


def _count(storage: BenchStorage) -> str:
    whole = "" if storage.part is not None else f", {storage.bytes} bytes"
    return f"{count(storage.files, 'file')}{whole}"


def _list(results: Results, storage: BenchStorage) -> tuple[str, ...]:
    """What writes the names of the files, a NUL behind each, and counts them."""
    counted = f'xargs -0 stat -L -c %s < "$D/files" | {_PRINTED}'
    runs = (
        run
        for run in results.all_runs
        if run.storage == storage.path and not run.file and run.method != SAFETENSORS
    )
    names = next((files for files in ([one.path for one in run.files] for run in runs) if files), [])
    if not storage.root or len(names) != storage.files or len(names) > _MOST_NAMES:
        return (f'find -L {bash_word(storage.path)} -type f -print0 > "$D/files"', counted)
    words = [bash_word(f"{storage.root.rstrip('/')}/{name}") for name in names]
    listed = [f"  {word} \\" for word in words[:-1]]
    return ("printf '%s\\0' > \"$D/files\" \\", *listed, f"  {words[-1]}", counted)


def _below(storage: BenchStorage) -> list[Block]:
    """What counts the bytes from below, where something does."""
    where, _, what = storage.counter.partition(", ")
    if not where:
        return []
    ways = {
        "/proc/diskstats": f"""awk -v disk={bash_word(what)} '$3 == disk {{printf "%.0f\\n", $6 * 512}}' {where}""",
        "/proc/self/mountstats": f"""awk -v point={bash_word(what)} '$1 == "device" {{here = $5 == point}} here && $1 == "bytes:" {{print $6}}' {where}""",
    }
    way = ways.get(where, f"cat {bash_word(storage.counter)}")
    return [
        (
            "The bytes from below so far, for anybody: by how much ",
            Mono("below"),
            " grows over one of the lines further down.",
        ),
        Code((f"below() {{ {way}; }}",)),
    ]


def _programs(*, part: int | None, to: str) -> list[Block]:
    """What loads as the loaders do, in Python without any of stager's code."""
    some = "" if part is None else f"[:{part}]"
    programs = {"load.py": _LOAD.replace("{part}", some), **({"to.py": _TO} if to else {})}
    lines = [f"cat > \"$D/{name}\" <<'END'\n{text}\nEND" for name, text in programs.items()]
    lines += [
        'load() { python3 "$D/load.py" "$1" "$D/files"; }',
        'several() { (for ((i = 0; i < $1; i++)); do load "$2" & done; wait); }',
        *([f'load_to() {{ python3 "$D/to.py" {to} "$D/files"; }}'] if to else []),
    ]
    text = "A load by mapping, in plain Python. It says what it touched, and how long that took without the start of the interpreter, as in the report."
    return [text, Code(tuple("\n".join(lines).split("\n")))]


def _commands(part: int | None) -> dict[str, str]:
    """What is timed as one command."""
    read, twice, stretch, first = "cat", 'cat "$0" && cat "$0"', "", ""
    if part is not None:
        # `cat` tells the kernel that it reads in order, `head` does not.
        read, stretch, first = (
            f"""-n1 sh -c 'cat "$0" | head -c {part}'""",
            f"-p 0-{part} ",
            f" --first={part}",
        )
        twice = f'cat "$0" | head -c {part} && head -c {part} "$0"'
    return {
        READ: f'xargs -0 {read} < "$D/files" > /dev/null',
        RECIPE: f"""xargs -0 -P16 -n1 sh -c '{twice}' < "$D/files" > /dev/null""",
        VMTOUCH: f'vmtouch -f -t {stretch}-0 -b "$D/files"',
        WARMING: f'xargs -0 stager warm {_EXACTLY}{first} < "$D/files"',
    }


def _swept(results: Results, storage: BenchStorage) -> list[Block]:
    """What warming does by itself, and the best setting."""
    text = (
        "Each line makes the files cold and warms them: without a setting, and with one; any other setting likewise. Their seconds are those of the report. "
        "On a FUSE mount wait some seconds between the lines, for its daemon may still be fetching."
    )
    warm = f'by_warm() {{ xargs -0 stager warm {_EXACTLY} "$@" < "$D/files"; }}'
    return [text, Code((warm, *_best_lines(results, storage)))]


def _best_lines(results: Results, storage: BenchStorage) -> tuple[str, ...]:
    """Warming by itself, and with the best setting of `storage`."""
    best = next((sweep.best for sweep in results.sweeps if sweep.storage == storage.path), None)
    words = shlex.join(best.setting.words) if best and best.setting else "-P 16 --span 64MiB --no-adapt"
    return ("cold; time by_warm", f"cold; time by_warm {words}")


def _lines(results: Results, storage: BenchStorage) -> list[Block]:
    """Every method's line: made cold, then run twice, which are the cold run and the second load; for a sweep cold runs alone."""
    if results.sweeps:
        return _swept(results, storage)
    used, most = results.summary.methods, max(results.summary.loaders, default=1)
    to = results.summary.to if SAFETENSORS in used else ""
    first = {_FIRST.get(name, name) for name in used}
    commands = {name: text for name, text in _commands(storage.part).items() if name in first}
    lines = [f"by_{name}() {{ {text}; }}" for name, text in commands.items()]
    lines += [f"cold; time by_{name}; time by_{name}" for name in commands if name in used]
    for name, order in ((OFFSETS, "offsets"), (NAMES, "names")):
        if name in used:
            lines.append(f"cold; load {order}; load {order}")
            if most > 1:
                lines.append(f"cold; several {most} {order}; several {most} {order}")
    lines += [
        f"cold; time by_{one}; load names; time by_{one}; load names"
        for name, one in THEN_MMAP.items()
        if name in used
    ]
    lines += ["cold; load_to; load_to"] if to else []
    engine = results.summary.engine
    if engine:
        lines.append(_start(engine, bash_word(storage.path)))
        lines += ["cold; start; start"] if ENGINE in used else []
        lines += ["cold; time by_warm; start; time by_warm; start"] if WARM_ENGINE in used else []
    if not lines:
        return []
    text = "Every line makes the files cold, loads them, and loads them once more, which is the second load. Where a command and a load stand one behind the other, "
    more = (
        f"the report has the time of both together. Loaders that the shell starts begin some ms apart; {_OWN}"
    )
    return [
        *(_programs(part=storage.part, to=to) if _loads(results) or to else []),
        (
            f"{text}{more}",
            Mono("real"),
            " is the time of a command, ",
            Mono("user"),
            " and ",
            Mono("sys"),
            " are its CPU.",
        ),
        Code(tuple(lines)),
    ]


def _start(engine: BenchEngine, place: str) -> str:
    """A function of bash that starts the engine on `place` (as bash is to read it), waits until it is ready, and ends it."""
    split = [[bash_word(piece) if piece else "" for piece in pieces(word)] for word in engine.command]
    words = [place.join(word) or bash_word("") for word in split]
    ready = f"curl -fs -o /dev/null {bash_word(engine.url)}"
    if engine.log:
        ready = f'grep -qP {bash_word(engine.log)} "$D/log"'
    wait = f"time until {ready} || ! kill -0 $engine; do sleep 0.02; done"
    return f'start() {{ {" ".join(words)} > "$D/log" 2>&1 & engine=$!; {wait}; kill $engine; wait $engine || true; }}'


def _of_store(storage: BenchStorage, engine: BenchEngine | None) -> list[Block]:
    """A fetch, one into the same folder, and loads or starts on what came."""
    where = bash_word(storage.target or "/dev/shm")  # noqa: S108 - a new folder in it
    words = "".join(f" {bash_word(word)}" for word in storage.words)
    fetch = f'time stager fetch {bash_word(storage.path)} "$S/model"{words} {_EXACTLY}'
    lines = [fetch, _FETCHED, "load names", fetch, "load names"]
    if engine is not None:
        lines = [_start(engine, '"$S/model"'), fetch, "start", fetch, "start"]
    return [
        (
            Mono(storage.path),
            ": it is fetched into an empty folder, and once more into the same, which is the second load. What follows on either counts in the report for ",
            Mono(FETCH_ENGINE if engine else FETCH_MMAP),
            " alone. Credentials, and an endpoint that is not named here, come from the environment.",
        ),
        Code((f"S=$(mktemp -d -p {where})", *lines, 'rm -r "$S"')),
    ]
