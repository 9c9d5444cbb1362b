"""``stager warm``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.metrics_options import gate_of, with_metrics
from stager.cli.options import PATHS, Parsed, option, with_output, with_warm_options
from stager.core.errors import UsageError
from stager.core.units import parse_size
from stager.engine.recording import Account
from stager.jobs.options import WarmOptions


def _first(text: str) -> int:
    """Bytes; 0 would be none of a file."""
    size = parse_size(text)
    if size <= 0:
        raise UsageError(f"`{text}` must be more than 0")
    return size


@click.command("warm")
@PATHS
@with_warm_options
@option(
    "--first",
    metavar="SIZE",
    type=Parsed("SIZE", _first),
    hidden=True,
    envvar=None,
    help="Only so many bytes of each file: for benchmarks of what a part of a model says.",
)
@option("--dry-run", is_flag=True, help="Say what would happen, like `stager check`.")
@with_metrics(listen=True)
@with_output
def command(
    paths: tuple[str, ...],
    warm: Callable[..., WarmOptions],
    account: Callable[..., Account],
    *,
    first: int | None,
    dry_run: bool,
    output: Output,
) -> int:
    """Read model files into the page cache, prove that they are resident, and write the ready marker.

    PATH is a folder or a file; a second run reads nothing. SIGUSR1 prints where it stands.

    \b
    Examples:
      stager warm /models/r1
      stager warm /mnt/oss/r1 -P 16 --fail-open --timeout 20m      as an init container
      stager warm /models/r1 --limit 700Gi --reserve 40GiB         the pod's limit, told by the downward API
      stager warm /models/r1 --hold until:http://localhost:8000/health
      stager warm /models/r1 --idle --metrics-listen 0.0.0.0:9105    as a sidecar that Prometheus asks
    """
    kept = account("warm", [os.path.abspath(path) for path in paths])
    options = warm(paths, watch=kept.wanted)
    if first is not None:
        options = replace(options, selection=replace(options.selection, first=first))
    if dry_run:
        from stager.jobs.check import check

        return conduct(output, lambda reporter: Plain(lambda: check(options, reporter)))
    from stager.jobs.warm import Warm

    kept = replace(kept, ready=gate_of(options.marker))
    return conduct(output, lambda reporter: Warm(options, reporter), account=kept)
