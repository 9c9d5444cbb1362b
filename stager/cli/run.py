"""``stager run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import click

from stager.cli.conduct import Job, Output, conduct
from stager.cli.fetch_options import FETCH, with_fetch_options
from stager.cli.metrics_options import with_metrics
from stager.cli.options import PATH, option, with_output, with_warm_options
from stager.cli.store_options import with_store_options
from stager.core.errors import UsageError
from stager.core.location import Location
from stager.engine.recording import Account, Recorder
from stager.engine.report import Reporter, make_reporter
from stager.jobs.options import FetchOptions, WarmOptions
from stager.store.opening import StoreOptions

_PATIENCE_S = 0.2  # for a stderr that nobody reads; the engine is waiting


@click.command("run")
@option(
    "--warm",
    "paths",
    multiple=True,
    metavar="PATH",
    type=PATH,
    help="Folder or file to warm; repeatable.",
)
@FETCH
@with_warm_options
@with_fetch_options(own_lanes=False)
@with_store_options
@option(
    "--on-failure",
    type=click.Choice(["start", "fail"]),
    default="start",
    show_default=True,
    help="Whether CMD starts when warming failed. Never for a missing, incomplete or corrupt model, or one not all fetched.",
)
@with_metrics()
@with_output
@click.argument("command_line", nargs=-1, required=True, metavar="-- CMD ARG...", type=click.UNPROCESSED)
def command(
    paths: tuple[str, ...],
    fetched: tuple[Location, str] | None,
    warm: Callable[..., WarmOptions],
    fetch: Callable[..., FetchOptions],
    store: StoreOptions,
    account: Callable[..., Account],
    command_line: tuple[str, ...],
    *,
    on_failure: str,
    output: Output,
) -> int:
    """Warm, or fetch and warm, then become CMD: the same process, its stdin and stdout untouched.

    CMD starts when the pages are warm, and at the latest when --timeout is over, even if a read hangs so that it cannot be
    killed. By default it starts even if warming was partial or failed. Everything stager says goes to stderr. With --hold,
    CMD starts while a process of ours goes on holding the pages.

    \b
    Examples:
      stager run --warm /models/r1 -- vllm serve /models/r1
      stager run --warm /mnt/oss/r1 --timeout 20m -- python3 -m sglang.launch_server --model-path /mnt/oss/r1
      stager run --warm /models/r1 --strict --on-failure fail -- ./serve.sh
      stager run --fetch oss://bucket/models/r1 /models/r1 -- vllm serve /models/r1
      stager run --warm /models/r1 --hold until:http://localhost:8000/health -- vllm serve /models/r1
    """
    if not paths and fetched is None:
        raise UsageError("nothing to warm", hint="name the model: stager run --warm PATH -- CMD ARG...")
    if paths and fetched is not None:
        raise UsageError("--warm and --fetch exclude each other", hint="--fetch warms what it has fetched")
    models = paths or (fetched[1] if fetched else "",)
    options = warm(models, engine_shares_own=True)
    if options.hold.idle:
        raise UsageError(
            "--idle is for `stager warm`", hint="CMD itself keeps the container alive; leave --idle out"
        )
    from stager.jobs.run import RunOptions, run

    source = fetch(*fetched, store, options) if fetched is not None else None
    kept = account("run", [os.path.abspath(path) for path in models], str(fetched[0]) if fetched else "")
    wanted = RunOptions(
        account=kept,
        warm=options,
        fetched=source,
        command=command_line,
        start_anyway=on_failure == "start",
    )
    child = _Child(command_line, output, source, kept)
    return run(wanted, child.warm, child.make_reporter)


class _Child:
    """What the warming process does and how both processes speak: on stderr alone."""

    def __init__(
        self, command_line: tuple[str, ...], output: Output, source: FetchOptions | None, account: Account
    ) -> None:
        self._command_line = command_line
        self._account = account
        self._output = output
        self._source = source

    def warm(self, options: WarmOptions, release: Callable[[int], None]) -> int:
        """Warm, after fetching where that was asked for; the exit code. `release` lets CMD start beside a process that holds."""
        from stager.jobs.run import note_bypass
        from stager.jobs.warm import Warm

        def make(reporter: Reporter) -> Job:
            note_bypass(self._command_line, reporter)
            holds = options.hold.seconds is not None or options.hold.url is not None
            concluded = partial(_let_go, reporter, release) if holds else None
            if self._source is None:
                return Warm(options, reporter, concluded=concluded)
            from stager.jobs.fetch import Fetch

            return Fetch(replace(self._source, warm=options), reporter, concluded=concluded)

        return conduct(self._output, make, account=self._account)

    def make_reporter(self) -> Reporter:
        """A reporter for what is said of the warming process from outside."""
        output = self._output
        return make_reporter(
            json=output.json, progress="none", quiet=output.quiet, stdout=sys.stderr, patience=_PATIENCE_S
        )


def _let_go(reporter: Reporter, release: Callable[[int], None], code: int) -> None:
    """CMD starts now, and the container's last words are its own."""
    if isinstance(reporter, Recorder):
        reporter.hand_over()
    release(code)
