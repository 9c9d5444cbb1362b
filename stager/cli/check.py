"""``stager check``."""

from __future__ import annotations

from collections.abc import Callable

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.options import PATHS, with_output, with_warm_options
from stager.jobs.options import WarmOptions


@click.command("check")
@PATHS
@with_warm_options
@with_output
def command(paths: tuple[str, ...], warm: Callable[[tuple[str, ...]], WarmOptions], output: Output) -> int:
    """Say what `stager warm` with the same options would do; exit as it would.

    Reads headers, one page for the canary, and at most 64 MiB to estimate the time. Writes nothing.

    \b
    Examples:
      stager check /models/r1
      stager check /mnt/oss/r1 --limit 700Gi --strict
    """
    from stager.jobs.check import check

    options = warm(paths)
    return conduct(output, lambda reporter: Plain(lambda: check(options, reporter)))
