"""``stager bench``."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from stager.cli.bench_engine import WithCommand, with_engine, words_before
from stager.cli.conduct import Output, Plain, conduct
from stager.cli.options import (
    DURATION,
    PATH,
    PATHS,
    Parsed,
    option,
    was_given,
    with_marker,
    with_output,
    with_selection,
)
from stager.cli.store_options import with_store_options
from stager.cli.sweep_options import with_sweep
from stager.core.bench.counting import counter_files
from stager.core.bench.plan import METHODS, WARMING, parse_loaders, parse_methods
from stager.core.bench.sweep import QUICK_ROUNDS
from stager.core.errors import AnswerNo, UsageError
from stager.core.location import Location, is_remote, told
from stager.jobs.options import Selection

if TYPE_CHECKING:
    from stager.core.bench.sweep import Grid
    from stager.jobs.bench.benchmark import BenchOptions
    from stager.jobs.bench.engine import EngineOptions

_QUICK_LOADERS = (1, 4)


@click.command("bench", cls=WithCommand)
@PATHS
@option("--methods", metavar="NAME,...", default="", type=Parsed("NAME,...", lambda text: parse_methods(text) if text else ()), help=f"Only these ways: {', '.join(METHODS)}. [default: all that apply]")  # fmt: skip
@option("--loaders", metavar="N,...", default="1,4,8,16", type=Parsed("N,...", parse_loaders), help="So many loaders at once; an engine is always one. [default: 1,4,8,16; 1,4 with --quick; 1 with --engine]")  # fmt: skip
@option("--rounds", default=3, type=click.IntRange(1, 100), show_default=True, help="Runs of each kind.")
@option(
    "--quick", is_flag=True, help="Under two minutes: one round, 1 and 4 loaders, and of large models a part."
)
@option("--per-file", is_flag=True, help="Read and map each file by itself too.")
@option("--to", type=click.Choice(["cpu", "cuda"]), help="Measure safetensors' own loader into memory or onto the GPU too; needs torch.")  # fmt: skip
@option("--python", metavar="PROGRAM", default=sys.executable, help="The interpreter that has torch and safetensors. [default: stager's own]")  # fmt: skip
@option("--counter", "counter", multiple=True, metavar="[PATH=]FILE", help="A file with a growing number of bytes, such as a network card's, for mounts that the kernel counts nothing of; repeatable.")  # fmt: skip
@option("--into", metavar="DIR", type=PATH, help="Where models from a store are fetched to, and removed from again. [default: /dev/shm]")  # fmt: skip
@with_sweep
@option("--report", metavar="DIR", type=PATH, help="Write a report with charts, and every number, into DIR.")
@option("--timeout", type=DURATION, help="Start nothing more after so long.")
@option("--yes", is_flag=True, help="Evict the pages of these files without asking.")
@with_engine
@with_selection
@with_store_options
@with_marker
@with_output
def command(paths: tuple[str, ...], *, yes: bool, output: Output, **given: Any) -> int:
    """Measure how fast a storage loads a model: cold and again, by several ways, with several loaders at once.

    PATH is a folder or file on any mount, or oss://BUCKET/PREFIX. Before each cold run the files are evicted and proven to
    have no page resident, so whoever uses them now loses them: not for a model that is in service. Nothing is written to the storage.

    With --engine, CMD is started again and again, timed until it is ready, and ended: by itself on cold and on warmed files, and after
    `stager warm` or `stager fetch`. Every {} in CMD stands for PATH, or for the folder that a store is fetched into; {{}} for {} itself.
    CMD must stay in the foreground.

    \b
    Examples:
      stager bench /models/r1 --quick --yes
      stager bench /mnt/nas/r1 /mnt/oss/r1 oss://bucket/models/r1 --report bench-r1
      stager bench /mnt/oss/r1 --counter /sys/class/net/eth0/statistics/rx_bytes --yes
      stager bench /models/r1 --methods read,warm+mmap --loaders 1,8 --rounds 5 --yes --json
      stager bench /mnt/oss/r1 --sweep --report sweep-r1
      stager bench /models/r1 --engine --ready-url http://localhost:8000/health -- vllm serve /models/r1
      stager bench /mnt/nas/r1 /mnt/oss/r1 --engine --ready-log "startup complete" -- ./serve.sh {}
    """
    from stager.jobs.bench.benchmark import Bench
    from stager.jobs.bench.paths import look_for

    for path in paths:
        if is_remote(path):
            Location.parse(path)
    options = _options(paths, **given)
    if not yes:
        if missing := conduct(output, lambda _reporter: Plain(partial(look_for, paths))):
            return missing
        _ask([path for path in paths if not is_remote(path)])
    return conduct(output, lambda reporter: Bench(options, reporter))


def _options(
    paths: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    *,
    quick: bool,
    methods: tuple[str, ...],
    loaders: tuple[int, ...],
    rounds: int,
    sweep: Grid | None,
    to: str | None,
    counter: tuple[str, ...],
    into: str | None,
    engine: EngineOptions | None,
    **rest: Any,
) -> BenchOptions:
    """What the user asked for; a quick benchmark does less of what was left open."""
    from stager.jobs.bench.benchmark import BenchOptions

    if sweep is not None:
        methods, loaders = (WARMING,), (1,)
    elif not was_given("loaders"):
        loaders = (1,) if engine is not None else _QUICK_LOADERS if quick else loaders
    if quick and not was_given("rounds"):
        rounds = QUICK_ROUNDS if sweep else 1
    words = [told(word) if is_remote(word) else word for word in words_before(sys.argv[1:], engine)]
    if engine is not None:
        words = [*map(engine.secrets.hide, words), "--", *engine.told.command]
    return BenchOptions(
        selection=Selection(paths=paths, include=include, exclude=exclude),
        methods=methods,
        loaders=loaders,
        rounds=rounds,
        quick=quick,
        sweep=sweep,
        to=to or "",
        counters=counter_files(counter, paths),
        into=os.path.abspath(into) if into else None,
        command=shlex.join(["stager", *words]),
        engine=engine,
        **rest,
    )


def _ask(paths: list[str]) -> None:
    """Raises unless a person agrees that the pages of `paths` go; without a terminal nobody can."""
    if not paths:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            "a benchmark evicts the files' pages from memory, and there is no terminal to ask on",
            hint="add --yes when nobody is being served from these files",
        )
    if not click.confirm(
        "This evicts the files' pages from memory, again and again. Is nobody served from them?", err=True
    ):
        raise AnswerNo("not confirmed, nothing was done")
