"""``stager evict``."""

from __future__ import annotations

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.options import PATHS, with_marker, with_output, with_selection
from stager.jobs.options import Selection


@click.command("evict")
@PATHS
@with_selection
@with_marker
@with_output
def command(
    paths: tuple[str, ...], include: tuple[str, ...], exclude: tuple[str, ...], marker: str, output: Output
) -> int:
    """Give the pages of files back to the system, for instance once the engine has copied its weights to the GPU.

    Pages that a process has mapped or locked stay, and are named. A ready marker for these files is withdrawn.

    \b
    Example:
      stager evict /models/r1
    """
    from stager.jobs.evict import evict

    selection = Selection(paths=paths, include=include, exclude=exclude)
    return conduct(output, lambda reporter: Plain(lambda: evict(selection, reporter, marker=marker)))
