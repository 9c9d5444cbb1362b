"""The options of pulling and of verifying: how bytes stream, what is chosen, and what SOURCE and DEST mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import click

from stager.cli.options import DURATION, RATE, SIZE_OR_PERCENT, Parsed, option, with_selection
from stager.core.engines import Engine
from stager.core.errors import UsageError
from stager.core.location import Location, Scheme
from stager.core.source import Hub, Source
from stager.core.units import MIB, parse_size, shown
from stager.jobs.options import Proof, PullOptions
from stager.store.opening import StoreOptions

F = TypeVar("F", bound=Callable[..., Any])

_LEAST = 64 * MIB  # of --buffer: a few parts, and what is being read


@dataclass(frozen=True, slots=True)
class Asked:
    """A source, and the words that named it."""

    source: Source
    text: str

    @staticmethod
    def parse(text: str) -> Asked:
        """As `Source.parse`."""
        return Asked(Source.parse(text), text)


@dataclass(frozen=True, slots=True)
class Streaming:
    """How bytes move: as `PullOptions` has it, and the rate limit."""

    lanes: int
    adapt: bool
    max_rate: int | None
    buffer: int
    timeout: float | None
    stall_timeout: float | None


def _buffer(text: str) -> int:
    size = parse_size(text)
    if size < _LEAST:
        raise UsageError(f"`{text}` is too little", hint="a buffer has at least 64MiB")
    return size


ASKED = Parsed("SOURCE", Asked.parse)
DEST = Parsed("DEST", Location.parse)
_STREAMING = (
    option("-P", "--lanes", default=16, type=click.IntRange(1, 128), show_default=True, help="At most so many connections at once; fewer when fewer are faster."),
    option("--no-adapt", is_flag=True, help="Always -P connections, do not look for a better number."),
    option("--max-rate", type=RATE, help="Bytes per second at most, all connections together."),
    option("--buffer", default="512MiB", show_default=True, type=Parsed("SIZE", _buffer), help="Memory for bytes on their way, in all."),
    option("--timeout", type=DURATION, help="Give up after so long."),
    option("--stall-timeout", type=DURATION, default="5m", show_default=True, help="Give up when no byte moves for so long."),
)  # fmt: skip
_CHOOSING = (
    option("--for", "engine", metavar="ENGINE", type=click.Choice([one.value for one in Engine]), help="Only the files that this engine loads: vllm, sglang, llama.cpp, diffusers."),
    option("--quant", metavar="NAME", help="Of several GGUF quantisations this one, as Q4_K_M."),
    option("--variant", metavar="NAME", help="Of several variants of the weights this one, as fp16."),
)  # fmt: skip
_PULLING = (
    option("--verify", default=Proof.SHA256.value, show_default=True, type=click.Choice([one.value for one in Proof]), help="sha256: all bytes against the hub's. crc: that what was sent arrived. none: and what is there counts by its size."),
    option("--restart", is_flag=True, help="Abort all unfinished uploads of these files, whoever began them, and send every file anew."),
    option("--wait", is_flag=True, help="Wait for another pull into DEST to end."),
    option("--allow-incomplete", is_flag=True, help="Pull a model that is provably incomplete or corrupt at the hub."),
    option("--keep-free", default="1GiB", show_default=True, type=SIZE_OR_PERCENT, help="Disk space to leave free, for a DEST on a disk."),
    option("--mirror", is_flag=True, help="Remove from DEST what the revision no longer has."),
)  # fmt: skip

_AS_THEY_ARE = (
    *("include", "exclude", "quant", "variant", "restart", "wait", "mirror"),
    *("allow_incomplete", "keep_free"),
)  # fmt: skip


def with_streaming(function: F) -> F:
    """Adds how bytes move; the command gets one `Streaming` named ``streaming``."""

    @wraps(function)
    def command(*args: Any, no_adapt: bool, **given: Any) -> Any:
        names = ("lanes", "max_rate", "buffer", "timeout", "stall_timeout")
        streaming = Streaming(adapt=not no_adapt, **{name: given.pop(name) for name in names})
        return function(*args, streaming=streaming, **given)

    return _added(command, _STREAMING)  # type: ignore[return-value]


def with_pull_options(function: F) -> F:
    """Adds everything that a pull can be told; the command gets ``pull``, a callable from (source, dest, store) to `PullOptions`."""

    @wraps(function)
    def command(*args: Any, streaming: Streaming, **given: Any) -> Any:
        settings = {name: given.pop(name) for name in _AS_THEY_ARE}
        engine, verify = given.pop("engine"), given.pop("verify")

        def pull(source: Source, dest: Location, store: StoreOptions) -> PullOptions:
            return PullOptions(
                source=source,
                dest=dest,
                store=replace(store, max_rate=streaming.max_rate),
                engine=Engine(engine) if engine else None,
                verify=Proof(verify),
                lanes=streaming.lanes,
                adapt=streaming.adapt,
                buffer=streaming.buffer,
                timeout=streaming.timeout,
                stall_timeout=streaming.stall_timeout,
                **settings,
            )

        return function(*args, pull=pull, **given)

    streamed = with_streaming(_added(command, _PULLING))
    return with_selection(_added(streamed, _CHOOSING))  # type: ignore[return-value]


def _added(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    for decorator in reversed(options):
        command = decorator(command)
    return command


def destination(asked: Asked, dest: Location | None) -> Location:
    """Where a pull of `asked` goes: to `dest`, else to the model's name below STAGER_DEST. Raises `UsageError` without either."""
    # A variable, or a pod's arguments, have no shell that would expand a ~; SOURCE means the home folder by it as well.
    if dest is not None:
        folder = dest.scheme is Scheme.FILE
        return replace(dest, prefix=os.path.expanduser(dest.prefix)) if folder else dest
    name, below = asked.source.name, os.path.expanduser(os.environ.get("STAGER_DEST", "").strip())
    if not below:
        line = f"`stager pull {shown(asked.text)} oss://BUCKET/models/{shown(name) or 'NAME'}`"
        raise UsageError(
            "where to? there is no DEST", hint=f"{line}, or set STAGER_DEST=oss://BUCKET/models once for all"
        )
    try:
        above = Location.parse(below)
    except UsageError as exc:
        raise UsageError(f"{exc.message} (from the environment: STAGER_DEST)", hint=exc.hint) from exc
    if not name:
        raise UsageError(
            f"`{shown(asked.text)}` does not say what the model is called below STAGER_DEST",
            hint=f"`stager pull {shown(asked.text)} {shown(str(above).rstrip('/'))}/NAME`",
        )
    return above.below(name)


def refuse_mistaken(asked: Asked, dest: Location) -> None:
    """Raise `UsageError` where SOURCE may be a folder here or a model on a hub, and where it and DEST lie within each other. Blocks."""
    source = asked.source
    if source.kind is Hub.MODELSCOPE and "://" not in asked.text and os.path.isdir(source.model):
        raise UsageError(
            f"`{shown(source.model)}` may be a model on ModelScope, or the folder of that name here",
            hint=f"write ms://{shown(asked.text)}, or ./{shown(source.model)}",
        )
    if source.kind is not Hub.DIRECTORY or dest.scheme is not Scheme.FILE:
        return
    ends = [os.path.realpath(os.path.expanduser(source.model)), os.path.realpath(dest.prefix)]
    if os.path.commonpath(ends) in ends:
        raise UsageError(
            f"`{shown(str(dest))}` and the source lie within each other",
            hint="choose a DEST outside of it",
        )
