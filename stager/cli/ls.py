"""``stager ls``."""

from __future__ import annotations

import math

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.options import DURATION, Parsed, option, with_output
from stager.cli.store_options import with_store_options
from stager.core.location import Location
from stager.store.opening import StoreOptions


@click.command("ls")
@click.argument("source", metavar="SOURCE", type=Parsed("SOURCE", Location.parse))
@with_store_options
@option("--timeout", type=DURATION, help="Give up after so long.")
@with_output
def command(source: Location, store: StoreOptions, output: Output, *, timeout: float | None) -> int:
    """List a model in a store: sizes, whether it is complete, and what its manifest says.

    SOURCE is oss://BUCKET/PREFIX, or a folder. Completeness is judged by the manifest, by names and by indexes; `stager check`
    reads the weights' headers too.

    \b
    Examples:
      stager ls oss://bucket/models/r1
      stager ls oss://bucket/models/r1 --endpoint oss-cn-hangzhou-internal.aliyuncs.com --json
    """
    from stager.jobs.ls import ls

    return conduct(
        output,
        lambda reporter: Plain(lambda: ls(source, store, reporter, timeout)),
        patience=math.inf,
        query=True,
    )
