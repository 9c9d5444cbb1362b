"""The options of a sweep, ``stager bench --sweep``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from stager.cli.options import Parsed, option
from stager.cli.store_options import refuse_given
from stager.core.bench.sweep import QUICK_GRID, Grid, parse_lanes, parse_spans
from stager.core.errors import UsageError
from stager.core.location import is_remote, told
from stager.core.units import shown

F = TypeVar("F", bound=Callable[..., Any])

_OTHER_WAYS = frozenset(("methods", "loaders", "per_file", "to", "into", "engine"))
_GRID = ("sweep_lanes", "sweep_spans")


def with_sweep(function: F) -> F:
    """Adds --sweep, --sweep-lanes and --sweep-spans; the command gets ``sweep``, a `Grid`, or None without --sweep."""

    @wraps(function)
    def command(
        *args: Any,
        paths: tuple[str, ...],
        quick: bool,
        sweep: bool,
        sweep_lanes: tuple[int, ...] | None,
        sweep_spans: tuple[int, ...] | None,
        **rest: Any,
    ) -> Any:
        grid = _grid(paths, sweep_lanes, sweep_spans, quick=quick) if sweep else None
        if not sweep:
            refuse_given(_GRID, "is for --sweep", "add --sweep, or leave it out")
        return function(*args, paths=paths, quick=quick, sweep=grid, **rest)

    for decorator in reversed(_OPTIONS):
        command = decorator(command)
    return command  # type: ignore[return-value]


_OPTIONS = (
    option("--sweep", is_flag=True, help="Instead: find the best -P and --span for `stager warm`, and how far from it is what it does by itself."),
    option("--sweep-lanes", metavar="N,...", type=Parsed("N,...", parse_lanes), help="Values of -P that --sweep tries. [default: 1,2,4,8,16,32]"),
    option("--sweep-spans", metavar="SIZE,...", type=Parsed("SIZE,...", parse_spans), help="Values of --span that --sweep tries. [default: whole,256MiB,64MiB,16MiB]"),
)  # fmt: skip


def _grid(
    paths: tuple[str, ...],
    lanes: tuple[int, ...] | None,
    spans: tuple[int, ...] | None,
    *,
    quick: bool,
) -> Grid:
    """What is to be tried. Raises `UsageError` for what has no sweep."""
    for path in paths:
        if is_remote(path):
            raise UsageError(
                f"--sweep is for mounts and disks, and `{shown(told(path))}` is a store",
                hint="`stager bench` without --sweep measures a store; `stager fetch` finds its lanes by itself",
            )
    refuse_given(
        _OTHER_WAYS, "does not go with --sweep", "a sweep measures `stager warm` from cold, and nothing else"
    )
    usual = QUICK_GRID if quick else Grid()
    return Grid(lanes or usual.lanes, spans or usual.spans)
