"""Options that several commands share. Each is also an environment variable: ``--max-rate`` is ``STAGER_MAX_RATE``."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stager.cli.conduct import Output
from stager.core.errors import NotFound, UsageError
from stager.core.marker import DEFAULT_PATH
from stager.core.outcome import Mode
from stager.core.plan import Order, parse_span
from stager.core.units import (
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
    parse_size_or_percent,
    shown,
)
from stager.jobs.options import Hold, Memory, Selection, WarmOptions
from stager.net.health import check_url

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic since click 8.2 only


class Parsed(_ParamType):
    """A click type made of one of our parsers; a `UsageError`'s hint is kept."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; click's own error when it does not parse."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as exc:
            self.fail(f"{exc.message}; {exc.hint}" if exc.hint else exc.message, param, ctx)


SIZE = Parsed("SIZE", parse_size)
RATE = Parsed("SIZE", lambda text: _positive(parse_rate(text), text))
SIZE_OR_PERCENT = Parsed("SIZE|PERCENT", parse_size_or_percent)
PERCENT = Parsed("PERCENT", parse_percent)
DURATION = Parsed("DURATION", parse_duration)
SPAN = Parsed("SIZE|whole", parse_span)


def _positive(value: int, text: str) -> int:
    if value <= 0:
        raise UsageError(f"`{text}` must be more than 0")
    return value


def _some(seconds: float, text: str) -> float:
    if seconds <= 0:
        raise UsageError(f"`{text}` must be more than 0")
    return seconds


def _placed(text: str) -> str:
    """`text`, a name that can be looked up. Raises `NotFound` for a relative one in a working directory that is gone."""
    if not os.path.isabs(text):
        try:
            os.getcwd()
        except FileNotFoundError as exc:
            raise NotFound(
                f"`{shown(text)}`: the working directory no longer exists", hint="give an absolute path"
            ) from exc
    return text


# Not click.Path: it stats the name in the main thread, and on a mount that hangs no signal would end that.
PATH = Parsed("PATH", _placed)


def _hold(text: str) -> Hold:
    if text.startswith("until:"):
        return Hold(url=check_url(text.removeprefix("until:"), "--hold until:"))
    return Hold(seconds=parse_duration(text))


HOLD = Parsed("DURATION|until:URL", _hold)


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """``click.option`` that also reads ``STAGER_<LONG NAME>``."""
    long_name = next(name for name in names if name.startswith("--")).split("/")[0]
    settings.setdefault("envvar", f"STAGER_{long_name[2:].replace('-', '_').upper()}")
    return click.option(*names, **settings)


def _stack(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


PATHS = click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=PATH)

_selecting = _stack(
    option("--include", multiple=True, metavar="GLOB", help="Only files that match; repeatable."),
    option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="No files that match; repeatable, wins over --include.",
    ),
)
_reading = _stack(
    option("-P", "--lanes", default=16, type=click.IntRange(1, 256), show_default=True, help="At most so many files or spans at once; fewer when fewer are faster."),
    option("--no-adapt", is_flag=True, help="Always -P lanes, do not look for a better number."),
    option("--span", metavar="SIZE|whole", type=SPAN, help="Read files in pieces of so many bytes, each through a handle of its own. [default: as the filesystem likes it]"),
    option("--order", default=Order.AUTO.value, type=click.Choice([o.value for o in Order]), show_default=True, help="auto: largest first when all fits, else load order."),
    option("--max-rate", type=RATE, help="Bytes per second at most, all lanes together."),
    option("--fresh", is_flag=True, help="Drop resident pages first and read everything again."),
    option("--anyway", is_flag=True, help="Read even from a mount that drops pages (for daemons with a disk cache of their own)."),
    option("--protect", is_flag=True, help="Bring pages in so that they outlive later streams of reads; the kubelet counts them as used."),
)  # fmt: skip
_memory = _stack(
    option("--reserve", type=SIZE, help="Memory to keep back for the engine. [default: 8 GiB or a quarter of each limit]"),
    option("--limit", type=SIZE, help="A memory limit that cannot be seen from here, such as the pod's on cgroup v2."),
    option("--budget", type=SIZE_OR_PERCENT, help="At most so much of the model resident, in all."),
)  # fmt: skip
_judging = _stack(
    option("--strict", is_flag=True, help="Anything less than all verified resident is a failure."),
    option(
        "--fail-open",
        is_flag=True,
        help="Exit 0 and open the gate even if warming fails, but for a corrupt model.",
    ),
    option("--allow-incomplete", is_flag=True, help="Warm a model that is provably incomplete or corrupt."),
    option("--min-resident", type=PERCENT, help="Fail (3) when less of the model is resident."),
)
_gating = option(
    "--marker", default=DEFAULT_PATH, show_default=True, metavar="FILE", type=PATH, help="The ready marker."
)
_living = _stack(
    option("--hold", type=HOLD, help="Keep the pages populated for so long, or until a URL answers 2xx."),
    option("--hold-mlock", is_flag=True, help="mlock them while holding. The OOM killer may then choose the engine."),
    option("--idle", is_flag=True, help="Stay alive afterwards until SIGTERM (for a sidecar)."),
    option("--timeout", type=DURATION, help="Give up after so long."),
    option("--stall-timeout", type=DURATION, default="5m", show_default=True, help="Give up when no byte moves for so long."),
)  # fmt: skip
_outputting = _stack(
    option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, errors included."),
    option("--progress", default="auto", type=click.Choice(["auto", "bar", "lines", "none"]), show_default=True, help="How progress is shown on stderr."),
    option("--progress-every", metavar="DURATION", type=Parsed("DURATION", lambda text: _some(parse_duration(text), text)), help="How often, as lines or JSON. [default: 15s, JSON 1s]"),
    option("-q", "--quiet", is_flag=True, help="No progress, no remarks; results, warnings and errors only."),
    click.option("-v", "--verbose", count=True, help="-vv shows tracebacks."),
)  # fmt: skip


def with_output(function: F) -> F:
    """Adds the output options; the command gets them as one `Output` named ``output``."""

    @wraps(function)
    def command(
        *args: Any,
        as_json: bool,
        progress: str,
        progress_every: float | None,
        quiet: bool,
        verbose: int,
        **rest: Any,
    ) -> Any:
        output = Output(as_json, progress, quiet, verbose, progress_every)  # type: ignore[arg-type]
        return function(*args, output=output, **rest)

    return _outputting(command)  # type: ignore[return-value]


def with_selection(function: F) -> F:
    """Adds --include and --exclude; the command gets ``include`` and ``exclude``."""
    return _selecting(function)


def with_warm_options(function: F) -> F:
    """Adds everything that warming can be told but PATHs; the command gets ``warm``, a callable from paths to `WarmOptions`."""
    return _taking(function, _READING, (_living, _gating, _judging, _memory, _reading, _selecting))


def with_judging_options(function: F) -> F:
    """As `with_warm_options`, without the options that say how files are read: for commands that bring the files themselves."""
    return _taking(function, (), (_living, _gating, _judging, _memory, _selecting))


_READING = ("lanes", "no_adapt", "span", "order", "max_rate", "fresh", "anyway", "protect")
_JUDGING = (
    "include", "exclude", "reserve", "limit", "budget", "strict", "fail_open", "allow_incomplete", "min_resident", "marker",
    "hold", "hold_mlock", "idle", "timeout", "stall_timeout",
)  # fmt: skip
_UNSAID = {"lanes": 16, "no_adapt": False, "span": None, "order": Order.AUTO, "max_rate": None, "fresh": False, "anyway": False, "protect": False}  # fmt: skip


def _taking(function: F, reading: tuple[str, ...], groups: tuple[Callable[[F], F], ...]) -> F:
    @wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        settings = {**_UNSAID, **{name: given.pop(name) for name in (*_JUDGING, *reading)}}
        settings["marker_named"] = was_given("marker")
        return function(*args, warm=lambda paths, **more: _warm_options(paths, settings, **more), **given)

    for decorator in groups:
        command = decorator(command)  # type: ignore[assignment, arg-type]
    return command  # type: ignore[return-value]


def was_given(name: str) -> bool:
    """Whether the user gave the parameter `name`, on the command line or in the environment."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def _warm_options(
    paths: tuple[str, ...], given: dict[str, Any], *, engine_shares_own: bool = False, watch: bool = False
) -> WarmOptions:
    if given["strict"] and given["fail_open"]:
        raise UsageError("--strict and --fail-open contradict each other", hint="choose one")
    hold: Hold = given["hold"] or Hold()
    if given["hold_mlock"] and given["hold"] is None:
        raise UsageError("--hold-mlock needs --hold", hint="add `--hold 10m` or `--hold until:URL`")
    return WarmOptions(
        selection=Selection(paths=paths, include=given["include"], exclude=given["exclude"]),
        memory=Memory(
            reserve=given["reserve"],
            limit=given["limit"],
            budget=given["budget"],
            engine_shares_own=engine_shares_own,
        ),
        lanes=given["lanes"],
        adapt=not given["no_adapt"],
        span=given["span"],
        order=Order(given["order"]),
        max_rate=given["max_rate"],
        mode=Mode.STRICT if given["strict"] else Mode.FAIL_OPEN if given["fail_open"] else Mode.DEFAULT,
        allow_incomplete=given["allow_incomplete"],
        fresh=given["fresh"],
        anyway=given["anyway"],
        min_resident=given["min_resident"],
        protect=given["protect"],
        hold=Hold(
            seconds=hold.seconds, url=hold.url, lock=given["hold_mlock"], idle=given["idle"], watch=watch
        ),
        timeout=given["timeout"],
        stall_timeout=given["stall_timeout"],
        marker=given["marker"],
        marker_named=given["marker_named"],
    )


def with_marker(function: F) -> F:
    """Adds --marker."""
    return _gating(function)
