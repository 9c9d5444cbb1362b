"""``stager ready`` where `stager.cli.quick` passes: help, JSON, and what is wrong with the command line."""

from __future__ import annotations

import click

from stager.cli.conduct import Output
from stager.cli.options import PERCENT, option, with_marker, with_output
from stager.cli.quick import accepted
from stager.core.reports import Readiness
from stager.engine.report import make_reporter
from stager.jobs.ready import Answer, Question

ACCEPT = option(
    "--accept",
    default="",
    metavar="STATES",
    help="States that count beside ready: partial,unverified,released.",
)
LEAST = option("--min-resident", type=PERCENT, help="And so much is resident now, counted exactly.")


@click.command("ready")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@with_marker
@ACCEPT
@LEAST
@with_output
def command(
    paths: tuple[str, ...], marker: str, accept: str, min_resident: float | None, output: Output
) -> int:
    """Exit 0 when the marker says ready and nothing on this node contradicts it, else 3.

    A reboot, a remounted volume, a restarted FUSE daemon and a replaced model contradict it. With PATH, the marker must
    speak of that model, and of every file that lies there now. After `warm --include` or `--exclude` the answer is about
    what they selected.

    \b
    Examples:
      stager ready
      stager ready --accept partial,unverified,released      for a startupProbe after --fail-open
    """
    question = Question(marker, paths=paths, accept=accepted(accept), min_resident=min_resident)
    return answer_with(question.ask(), output)


def answer_with(answer: Answer, output: Output) -> int:
    """Print the answer; its exit code."""
    reporter = make_reporter(json=output.json, progress="none", quiet=output.quiet)
    reporter.emit(Readiness(answer.ready, answer.state, answer.why))
    reporter.close()
    return 0 if answer.ready else 3
