"""``stager fetch``."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.fetch_options import FOLDER, LOCATION, with_fetch_options
from stager.cli.metrics_options import with_metrics
from stager.cli.options import option, with_judging_options, with_output
from stager.cli.store_options import with_store_options
from stager.core.location import Location
from stager.engine.recording import Account
from stager.jobs.options import FetchOptions, WarmOptions
from stager.store.opening import StoreOptions


@click.command("fetch")
@click.argument("source", type=LOCATION)
@click.argument("folder", metavar="DIR", type=FOLDER)
@with_fetch_options(own_lanes=True)
@with_store_options
@with_judging_options
@option("--dry-run", is_flag=True, help="Say what would be fetched and removed; write nothing.")
@with_metrics()
@with_output
def command(
    source: Location,
    folder: str,
    fetch: Callable[..., FetchOptions],
    store: StoreOptions,
    warm: Callable[..., WarmOptions],
    account: Callable[..., Account],
    *,
    dry_run: bool,
    output: Output,
) -> int:
    """Download a model into DIR, prove every byte, and leave it warm with the ready marker written.

    SOURCE is oss://BUCKET/PREFIX, or a folder. A run that was cut short goes on where it was; a second run downloads
    nothing. A file has its final name only when it is whole. SIGUSR1 prints where it stands.

    \b
    Examples:
      stager fetch oss://bucket/models/r1 /models/r1
      stager fetch oss://bucket/models/r1 /dev/shm/r1 -P 128 --processes 4
      stager fetch oss://bucket/models/r1 /models/r1 --mirror --verify sha256
      stager fetch oss://bucket/models/sd /models/sd --include '*.fp16.safetensors' --include '*.json'
    """
    from stager.jobs.fetch import Fetch

    kept = account("fetch", [os.path.abspath(folder)], str(source))
    options = fetch(source, folder, store, warm((folder,), watch=kept.wanted))
    if dry_run:
        return conduct(output, lambda reporter: Plain(Fetch(options, reporter).forecast))
    return conduct(output, lambda reporter: Fetch(options, reporter), account=kept)
