"""``stager wait``."""

from __future__ import annotations

import click

from stager.cli.conduct import Output
from stager.cli.options import DURATION, option, with_marker, with_output
from stager.cli.quick import accepted
from stager.cli.ready import ACCEPT, LEAST, answer_with
from stager.jobs.ready import Question, wait


@click.command("wait")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@with_marker
@ACCEPT
@LEAST
@option("--timeout", type=DURATION, help="Give up (3) after so long. [default: never]")
@with_output
def command(
    paths: tuple[str, ...],
    marker: str,
    accept: str,
    min_resident: float | None,
    timeout: float | None,
    output: Output,
) -> int:
    """Wait until `stager ready` with the same options would say yes; 0 then, 3 when the time is over.

    \b
    Example:
      stager wait --timeout 20m && exec vllm serve /models/r1
    """
    question = Question(marker, paths=paths, accept=accepted(accept), min_resident=min_resident)
    return answer_with(wait(question, timeout), output)
