"""How a benchmark was made, told so that a reader can repeat every number by hand."""

from __future__ import annotations

import shlex

from stager.core.bench import page_engine
from stager.core.bench.page_parts import Block, Bullets, Code, Heading, Mono, Prose
from stager.core.bench.page_proof import PROOF
from stager.core.bench.page_tables import Results
from stager.core.bench.plan import (
    FETCH,
    FETCH_MMAP,
    NAMES,
    OFFSETS,
    READ,
    RECIPE,
    SAFETENSORS,
    VMTOUCH,
    WARM_MMAP,
    WARMING,
)
from stager.core.units import count, shown

_WHAT: dict[str, Prose] = {
    READ: (
        "every file from its beginning to its end, one after the other, by read(2) into one buffer of 4 MiB that is used again. As ",
        Mono("cat"),
        " and ",
        Mono("stager warm"),
        " do, it tells the kernel that it reads in order (POSIX_FADV_SEQUENTIAL), which then reads ahead twice as far.",
    ),
    OFFSETS: "every file is mapped, its safetensors header parsed, and one byte of every page of every tensor touched, tensors in the order in which they lie. "
    "Files without such a header are touched from the beginning to the end.",
    NAMES: "the same with the tensors in the order of their names, as an engine that asks for them by name does.",
    RECIPE: "the command line below: sixteen processes, each file read twice.",
    VMTOUCH: (
        "the command ",
        Mono("vmtouch -f -t"),
        ". It ends with 0 whatever it skips, so a run counts only if it says that it touched every page.",
    ),
    WARMING: ("the command ", Mono("stager warm"), ": it reads, and proves that every page is resident."),
    WARM_MMAP: (Mono("stager warm"), ", then a load like ", Mono(NAMES), "; the time is that of both."),
    SAFETENSORS: (
        "safetensors' own loader, every tensor copied to where ",
        Mono("--to"),
        " says and kept, on one thread of torch. It reads the .safetensors files alone.",
    ),
    FETCH: (
        "the command ",
        Mono("stager fetch"),
        " into an empty folder; the second load is one into the folder that the first has filled.",
    ),
    FETCH_MMAP: (
        Mono("stager fetch"),
        ", then a load of what came like ",
        Mono(NAMES),
        "; the time is that of both.",
    ),
    **page_engine.WHAT,
}
_RULES: tuple[Prose, ...] = (
    (
        "Every run is made of fresh processes. Loaders have started before the clock does, which runs until the last of them has ended; "
        "of a command its start counts too."
    ),
    *PROOF,
    "Every method reads the same files. Several loaders are processes that load them at the same time on one node; they share its page cache.",
    (
        "CPU is the time of all processes of a run, user and system. Bytes from below are what came from the device, the server or the store meanwhile, to "
        "anybody: by how much the counter grew that stands beside the storage below, or for a store what the fetch itself counted; ? where nothing counts them."
    ),
    (
        "Throughput is the bytes that one loader reads by the median of the seconds. st. dev. is that of a sample (n - 1), 0 of a single value. "
        "Quartiles are interpolated between the two nearest values. Against read: the median of a cold read of the same bytes by as many loaders, "
        "divided by this median."
    ),
)
_ROUNDS = "{} in each cell, unless time ran out. Every second round goes through the methods backwards, so that what changes slowly falls on all of them alike."


def method(results: Results) -> list[Block]:
    """The section on the method."""
    summary = results.summary
    mounts = [storage.path for storage in summary.storages if storage.kind == "mount"]
    stores = [storage.path for storage in summary.storages if storage.kind != "mount"]
    used = [name for name in summary.methods if name in _WHAT]
    rules = _RULES if summary.engine is None else (*_RULES, page_engine.RULE)
    blocks: list[Block] = [
        Heading(2, "How it was measured"),
        ("The command line was ", Mono(shown(summary.command)), "."),
        Bullets((*rules, _ROUNDS.format(count(summary.rounds, "round")))),
        Heading(3, "The methods"),
        Bullets(tuple(_item(name) for name in used)),
        Heading(3, "Each number by hand"),
    ]
    if mounts:
        blocks += _by_hand(mounts[0], used)
    if mounts and summary.engine is not None:
        blocks += page_engine.by_hand(shlex.quote(shown(mounts[0])), summary.engine)
    if stores:
        blocks += _store_by_hand(stores[0])
    return blocks


def _item(name: str) -> Prose:
    what = _WHAT[name]
    return (Mono(name), ": ", *(what if isinstance(what, tuple) else (what,)))


def _by_hand(path: str, used: list[str]) -> list[Block]:
    """The commands for a mount or a disk."""
    name = shlex.quote(shown(path))
    commands = {
        READ: f"find {name} -type f -print0 | xargs -0 cat > /dev/null",
        RECIPE: f"""find {name} -type f -print0 | xargs -0 -P16 -n1 sh -c 'cat "$0" && cat "$0"' > /dev/null""",
        VMTOUCH: f"vmtouch -q -t {name}",
        WARMING: f"stager warm {name} --fresh",
    }
    return [
        (
            "With nothing but the model in the folder, make it cold, and look: ",
            Mono("stager status"),
            " must say 0 % by cachestat or mincore, ",
            Mono("fincore"),
            " 0 bytes.",
        ),
        Code(
            (
                f"stager evict {name}",
                f"stager status {name}",
                f"find {name} -type f -exec fincore --bytes {{}} +",
            )
        ),
        "Then one of these (in bash), which is the cold run; the same again without making it cold is the second load.",
        Code(tuple(f"time {line}" for key, line in commands.items() if key in used)),
        (
            "A load by mapping is the process below. It takes the line of JSON on its stdin and begins when an empty line follows; its last line has the "
            "bytes and seconds of each file."
        ),
        Code(("python -m stager.jobs.bench.loader", f'{{"how": "{OFFSETS}", "files": [["FILE", null]]}}')),
        "Or the same by stager bench:",
        Code((f"stager bench {name} --methods {OFFSETS},{NAMES} --loaders 1 --rounds 1 --json --yes",)),
        "Without stager, files are made cold one by one and counted by:",
        Code(("dd if=FILE iflag=nocache count=0", "vmtouch FILE")),
    ]


def _store_by_hand(path: str) -> list[Block]:
    """The commands for an object store."""
    name = shlex.quote(shown(path))
    return [
        "A store is fetched into an empty folder, and what came is loaded:",
        Code((f"time stager fetch {name} /dev/shm/model", "rm -r /dev/shm/model")),
    ]
