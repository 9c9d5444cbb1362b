"""``stager install``."""

from __future__ import annotations

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.fetch_options import FOLDER
from stager.cli.options import with_output


@click.command("install")
@click.argument("folder", metavar="DIR", type=FOLDER)
@with_output
def command(folder: str, output: Output) -> int:
    """Copy the self-contained program into DIR: DIR/stager then runs in any container with glibc 2.35 or later, without Python.

    For an init container of stager's image and a volume that it shares with an engine. DIR/stager appears when all is there, and
    changes from an earlier copy to this one in one step.

    \b
    Example:
      stager install /opt/stager           then, in the engine's container with the same volume:
      /opt/stager/stager run --warm /models/r1 -- vllm serve /models/r1
    """
    from stager.jobs.install import install

    return conduct(output, lambda reporter: Plain(lambda: install(folder, reporter)))
