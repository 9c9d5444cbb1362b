"""``stager verify``."""

from __future__ import annotations

from dataclasses import replace

import click

from stager.cli.conduct import Output, conduct
from stager.cli.options import Parsed, option, with_output, with_selection
from stager.cli.pull_options import Streaming, with_streaming
from stager.cli.store_options import with_store_options
from stager.core.location import Location
from stager.jobs.options import VerifyOptions
from stager.store.opening import StoreOptions


@click.command("verify")
@click.argument("location", metavar="LOCATION", type=Parsed("LOCATION", Location.parse))
@option("--sha256", is_flag=True, help="Hash every file too, besides its CRC-64.")
@with_selection
@with_streaming
@with_store_options
@with_output
def command(
    location: Location,
    store: StoreOptions,
    streaming: Streaming,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    *,
    sha256: bool,
    output: Output,
) -> int:
    """Prove a model against its manifest: read every byte, at the speed of reading, and compare. Keeps and changes nothing.

    LOCATION is oss://BUCKET/PREFIX, or a folder. Exit 8 when a file is missing or wrong, or while the model is being updated; 3
    when nothing is wrong, but the manifest does not state the checksum of every file.

    \b
    Examples:
      stager verify oss://bucket/models/r1
      stager verify /mnt/nas/r1 --sha256 -P 32
    """
    from stager.jobs.verify import Verify

    options = VerifyOptions(
        location=location,
        store=replace(store, max_rate=streaming.max_rate),
        include=include,
        exclude=exclude,
        sha256=sha256,
        lanes=streaming.lanes,
        adapt=streaming.adapt,
        buffer=streaming.buffer,
        timeout=streaming.timeout,
        stall_timeout=streaming.stall_timeout,
    )
    return conduct(output, lambda reporter: Verify(options, reporter), query=True)
