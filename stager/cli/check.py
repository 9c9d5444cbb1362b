"""``stager check``."""

from __future__ import annotations

from collections.abc import Callable

import click

from stager.cli.conduct import Output, Plain, conduct
from stager.cli.options import PATHS, option, with_output, with_warm_options
from stager.cli.store_options import STORE_OPTIONS, refuse_given, with_store_options
from stager.core.errors import UsageError
from stager.core.location import Location, Scheme, is_remote
from stager.jobs.options import WarmOptions
from stager.store.opening import StoreOptions

# Of what `warm` can be told: how a node reads and keeps files. A store has only a selection, timeouts and completeness.
_NOT_IN_A_STORE = frozenset(
    (
        "lanes", "no_adapt", "span", "order", "max_rate", "fresh", "anyway", "protect", "reserve", "limit", "budget", "strict",
        "fail_open", "min_resident", "marker", "hold", "hold_mlock", "idle",
    )
)  # fmt: skip


@click.command("check")
@PATHS
@with_store_options
@option(
    "--put",
    is_flag=True,
    help="In a store: try writing too, with a small object that is removed again.",
)
@with_warm_options
@with_output
def command(
    paths: tuple[str, ...],
    warm: Callable[[tuple[str, ...]], WarmOptions],
    store: StoreOptions,
    output: Output,
    *,
    put: bool,
) -> int:
    """Say what `stager warm` with the same options would do; exit as it would. Or, of oss://, whether a fetch would succeed.

    Reads headers, one page for the canary, and at most 64 MiB to estimate the time. Writes nothing. In a store: tries the
    permissions, names a better endpoint, archived objects and unfinished uploads, and judges the model by its manifest,
    indexes and headers; exit 5 unreachable, 6 not permitted or archived, 7 nothing there, 8 incomplete or being updated.

    \b
    Examples:
      stager check /models/r1
      stager check /mnt/oss/r1 --limit 700Gi --strict
      stager check oss://bucket/models/r1 --endpoint oss-cn-hangzhou-internal.aliyuncs.com
    """
    from stager.jobs.check import check

    if any(map(is_remote, paths)):
        refuse_given(_NOT_IN_A_STORE, "says nothing of a store", "it is for a PATH on this node")
        return _reach(paths, warm(paths), store, output, put=put)
    if put:
        raise UsageError("--put is for stores", hint="give oss://BUCKET/PREFIX")
    refuse_given(STORE_OPTIONS, "is for stores", "give oss://BUCKET/PREFIX")
    options = warm(paths)
    return conduct(output, lambda reporter: Plain(lambda: check(options, reporter)), query=True)


def _reach(
    paths: tuple[str, ...], options: WarmOptions, store: StoreOptions, output: Output, *, put: bool
) -> int:
    from stager.jobs.reach import reach

    if len(paths) > 1:
        raise UsageError("a store is checked alone", hint="give one oss://BUCKET/PREFIX and no other PATH")
    location = Location.parse(paths[0])
    if location.scheme is Scheme.FILE:
        refuse_given(STORE_OPTIONS, "is for oss://", "a folder needs none of it")
    return conduct(
        output, lambda reporter: Plain(lambda: reach(location, options, store, reporter, put=put)), query=True
    )
