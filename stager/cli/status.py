"""``stager status``."""

from __future__ import annotations

import math

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.options import PATHS, PERCENT, option, with_output, with_selection
from stager.jobs.options import Selection


@click.command("status")
@PATHS
@with_selection
@option("--min-resident", type=PERCENT, help="Exit 3 when less is resident, or when it cannot be known.")
@with_output
def command(
    paths: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    min_resident: float | None,
    output: Output,
) -> int:
    """Show how much of each file is in the page cache, and how that is known.

    cachestat and mincore are exact; sampled and timed are estimates, lower bounds; unknown is said to be so. On a FUSE mount
    one small file (1 MiB at most) is opened first, to learn whether pages outlive an open; where they do not, no other is.

    \b
    Examples:
      stager status /models/r1
      stager status /models/r1 --min-resident 95% -q
    """
    from stager.jobs.status import status

    selection = Selection(paths=paths, include=include, exclude=exclude)
    return conduct(
        output,
        lambda reporter: Plain(lambda: status(selection, reporter, min_resident=min_resident)),
        patience=math.inf,
        query=True,
    )
