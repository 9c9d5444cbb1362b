"""How a benchmark was made, told so that a reader can repeat every number by hand."""

from __future__ import annotations

from stager.core.bench import page_engine
from stager.core.bench.page_by_hand import by_hand
from stager.core.bench.page_parts import Block, Bullets, Heading, Mono, Prose
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
    THEN_MMAP,
    VMTOUCH,
    WARMING,
    repeats,
)
from stager.core.units import count, shown

_WHAT: dict[str, Prose] = {
    READ: (
        "every file from its beginning to its end, one after the other, by read(2) into one buffer of 4 MiB that is used again. As ",
        Mono("cat"),
        " and ",
        Mono("stager warm"),
        " do, it tells the kernel that it reads in order (POSIX_FADV_SEQUENTIAL), which then reads ahead twice as far. It ends with the files in the page cache, not with tensors in a process.",
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
    **{
        name: (Mono(first), ", then a load like ", Mono(NAMES), "; the time is that of both.")
        for name, first in THEN_MMAP.items()
    },
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
    (
        "Before all that, every file of a mount is read once; that read is in no number, and stands among the runs that were left out. Whatever caches behind the "
        "page cache (a FUSE daemon, a server, an accelerator) has been filled by it when the first cold run begins."
    ),
    "Every method reads the same files. Several loaders are processes that load them at the same time on one node; they share its page cache.",
    (
        "CPU is the time of all processes that a run has started, user and system; what a FUSE daemon, a server or the kernel's own threads spend for it is not in it. "
        "Bytes from below are what came from the device, the server or the store meanwhile, to "
        "anybody: by how much the counter grew that stands beside the storage below, or for a store what the fetch itself counted; ? where nothing counts them. "
        "Those beside a second load were read by others, or are the programs that were started, or the few pages that a run may lose and still count."
    ),
    (
        "Throughput is the bytes that one loader reads by the median of the seconds. st. dev. is that of a sample (n - 1), - of a single value; "
        "in the tables of several loaders it is over every loader of every round: how far loaders lie apart, not how well rounds repeat. "
        "Quartiles are interpolated between the two nearest values. Against read: the median of a cold read of the same bytes by as many loaders, "
        "divided by this median."
    ),
)
_ROUNDS = (
    "{} in each cell, fewer where more than {} had to be made again or where time ran out. Every second round goes through the methods backwards, so that what changes "
    "slowly falls on all of them alike."
)


def method(results: Results) -> list[Block]:
    """The section on the method."""
    summary = results.summary
    used = [name for name in summary.methods if name in _WHAT]
    rules = _RULES if summary.engine is None else (*_RULES, page_engine.RULE)
    blocks: list[Block] = [
        Heading(2, "How it was measured"),
        ("The command line was ", Mono(shown(summary.command)), *_where(summary.folder), "."),
        Bullets((*rules, _ROUNDS.format(count(summary.rounds, "round"), repeats(summary.rounds)))),
        Heading(3, "The methods"),
        Bullets(tuple(_item(name) for name in used)),
        Heading(3, "Each number by hand"),
    ]
    return [*blocks, *by_hand(results)]


def _where(folder: str) -> tuple[str | Mono, ...]:
    return (", run in ", Mono(folder), "; relative names begin there") if folder else ()


def _item(name: str) -> Prose:
    what = _WHAT[name]
    return (Mono(name), ": ", *(what if isinstance(what, tuple) else (what,)))
