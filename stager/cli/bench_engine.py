"""The options of ``stager bench --engine``, and the command after ``--``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stager.cli.options import DURATION, Parsed, option
from stager.cli.store_options import refuse_given
from stager.cli.words import switched_on
from stager.core.bench.plan import ENGINES, FETCH, WARMING
from stager.core.bench.starting import PLACE, check_words, parse_pattern, pieces
from stager.core.errors import UsageError
from stager.core.location import is_remote
from stager.net.health import check_url

if TYPE_CHECKING:
    from stager.jobs.bench.engine import EngineOptions

F = TypeVar("F", bound=Callable[..., Any])

_KEY = "stager.bench.engine"  # in the context's meta: the words after `--`
_READY = ("--ready-url", "--ready-log")
_ALONE = ("ready_url", "ready_log", "engine_timeout")
_EXAMPLE = (
    "stager bench /models/r1 --engine --ready-url http://localhost:8000/health --yes -- vllm serve /models/r1"
)


class WithCommand(click.Command):
    """A command whose words after ``--`` are a command of their own when ``--engine`` is given; else they are PATHs, as ever."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps the words after ``--`` out of click's hands."""
        if "--" in args:
            at = args.index("--")
            if "--engine" in args[:at] or switched_on("STAGER_ENGINE"):
                ctx.meta[_KEY] = tuple(args[at + 1 :])
                args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The usage line, with the command at its end."""
        return [*super().collect_usage_pieces(ctx), "[-- CMD ARG...]"]


def with_engine(function: F) -> F:
    """Adds --engine and what belongs to it; the command gets ``engine``, None without --engine. It must be a `WithCommand`."""

    @wraps(function)
    def command(
        *args: Any, engine: bool, ready_url: str | None, ready_log: Any, engine_timeout: float, **rest: Any
    ) -> Any:
        if not engine:
            _refuse_alone()
            return function(*args, engine=None, **rest)
        if set(rest["methods"]) <= {WARMING, FETCH, *ENGINES}:
            hint = "leave it out, or add a method of stager's own to --methods"
            refuse_given(("loaders", "per_file"), "means nothing to an engine", hint)
        options = _options(rest["paths"], rest["methods"], ready_url, ready_log, engine_timeout)
        return function(*args, engine=options, **rest)

    for one in reversed(
        (
            option("--engine", is_flag=True, help="Time the start of CMD, a real engine: cold, with warmed files, and after `stager warm`."),
            option(_READY[0], metavar="URL", type=Parsed("URL", lambda text: check_url(text, "--ready-url ")), help="CMD is ready when URL answers 2xx."),
            option(_READY[1], metavar="REGEX", type=Parsed("REGEX", parse_pattern), help="CMD is ready when a line of its stdout or stderr matches REGEX. Many programs keep lines back when no terminal reads them: PYTHONUNBUFFERED=1, or `stdbuf -oL CMD`."),
            option("--engine-timeout", type=DURATION, default="30m", show_default=True, help="A start that takes longer has failed."),
        )
    ):  # fmt: skip
        command = one(command)
    return command  # type: ignore[return-value]


def _refuse_alone() -> None:
    """Options of the engine on a command line without it are a mistake; in the environment they may wait for another run."""
    refuse_given(_ALONE, "needs --engine", f"as in `{_EXAMPLE}`")
    methods = click.get_current_context().params.get("methods") or ()
    if wrong := [name for name in methods if name in ENGINES]:
        raise UsageError(f"--methods {wrong[0]} needs --engine and a command", hint=f"as in `{_EXAMPLE}`")


def _options(
    paths: Sequence[str], methods: Sequence[str], url: str | None, log: Any, patience: float
) -> EngineOptions:
    from stager.jobs.bench.engine import EngineOptions

    words: tuple[str, ...] = click.get_current_context().meta.get(_KEY, ())
    if not words:
        raise UsageError("--engine: no command to start", hint=f"write it after `--`: `{_EXAMPLE}`")
    if (url is None) == (log is None):
        what = "exclude each other" if url else "are both missing"
        raise UsageError(f"{_READY[0]} and {_READY[1]} {what}", hint="say by one of them when CMD is ready")
    if methods and not any(name in ENGINES for name in methods):
        raise UsageError(
            f"--engine: --methods names none of {', '.join(ENGINES)}", hint="leave --methods or --engine out"
        )
    if patience <= 0:
        raise UsageError("--engine-timeout must be more than 0")
    check_words(words)
    if not any(len(pieces(word)) > 1 for word in words):
        if len(paths) > 1:
            raise UsageError(
                f"several PATHs, and CMD does not say `{PLACE}`",
                hint=f"write `{PLACE}` where CMD names the model",
            )
        if is_remote(paths[0]):
            raise UsageError(
                f"CMD does not say `{PLACE}`",
                hint=f"write `{PLACE}` where CMD names the folder that the model is fetched to",
            )
    return EngineOptions(words, url or "", log, patience)


def words_before(argv: list[str], engine: EngineOptions | None) -> list[str]:
    """`argv` without the engine's command, which is told apart."""
    return argv[: argv.index("--")] if engine is not None and "--" in argv else argv
