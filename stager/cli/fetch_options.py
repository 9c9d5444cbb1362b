"""The options of fetching, for ``stager fetch`` and ``stager run --fetch``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

import click

from stager.cli.options import PATH, RATE, SIZE_OR_PERCENT, Parsed, option, was_given
from stager.core.errors import UsageError
from stager.core.location import Location
from stager.jobs.options import FetchOptions, Verify, WarmOptions
from stager.store.opening import StoreOptions

F = TypeVar("F", bound=Callable[..., Any])

LOCATION = Parsed("SOURCE", Location.parse)
_LANES = 64


def _processes(text: str) -> int | None:
    if text.strip().lower() == "auto":
        return None
    if not text.strip().isdigit() or not 1 <= int(text) <= 64:
        raise UsageError(f"`{text}` is not a number of processes", hint="write auto, or 1 to 64")
    return int(text)


def _folder(text: str) -> str:
    if not text:
        raise UsageError(
            "DIR is empty", hint="is a variable unset? name the folder to fetch into, `.` for this one"
        )
    return str(PATH.convert(text, None, None))


FOLDER = Parsed("DIR", _folder)

_OPTIONS = (
    option("--processes", default="auto", show_default=True, type=Parsed("N|auto", _processes), metavar="N|auto", help="Worker processes; more than one pays above several GB/s."),
    option("--verify", default=Verify.CRC64.value, show_default=True, type=click.Choice([one.value for one in Verify]), help="crc: CRC-64, while the bytes come in. sha256: the manifest's, one more read from memory."),
    option("--keep-free", default="1GiB", show_default=True, type=SIZE_OR_PERCENT, help="Disk space to leave free."),
    option("--mirror", is_flag=True, help="Remove from DIR what the source no longer has."),
    option("--no-cache", is_flag=True, help="Drop the pages as it goes; nothing is warm afterwards."),
)  # fmt: skip
_OWN_LANES = (
    option("-P", "--lanes", default=_LANES, type=click.IntRange(1, 256), show_default=True, help="At most so many connections at once; fewer when fewer are faster."),
    option("--no-adapt", is_flag=True, help="Always -P connections, do not look for a better number."),
    option("--max-rate", type=RATE, help="Bytes per second at most, all connections together."),
)  # fmt: skip
FETCH = option(
    "--fetch",
    "fetched",
    nargs=2,
    metavar="SOURCE DIR",
    type=click.Tuple([LOCATION, FOLDER]),
    help="Fetch a model into DIR first, then warm DIR.",
)


def with_fetch_options(*, own_lanes: bool) -> Callable[[F], F]:
    """Adds the options of fetching; the command gets ``fetch``, a callable from (source, folder, store, warm) to `FetchOptions`.

    `own_lanes` adds -P and --no-adapt too; without, the command has them for warming already, and they count for both.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            settings = {
                name: given.pop(name) for name in ("processes", "verify", "keep_free", "mirror", "no_cache")
            }
            lanes = {name: given.pop(name) for name in ("lanes", "no_adapt", "max_rate")} if own_lanes else {}

            def fetch(source: Location, folder: str, store: StoreOptions, warm: WarmOptions) -> FetchOptions:
                many = lanes.get("lanes") or (warm.lanes if was_given("lanes") else _LANES)
                return FetchOptions(
                    source=source,
                    folder=os.path.abspath(folder),
                    store=replace(store, max_rate=lanes["max_rate"] if own_lanes else warm.max_rate),
                    warm=warm,
                    lanes=many,
                    adapt=not lanes["no_adapt"] if own_lanes else warm.adapt,
                    processes=settings["processes"],
                    verify=Verify(settings["verify"]),
                    keep_free=settings["keep_free"],
                    mirror=settings["mirror"],
                    cache=not settings["no_cache"],
                )

            return function(*args, fetch=fetch, **given)

        for decorator in reversed((*(_OWN_LANES if own_lanes else ()), *_OPTIONS)):
            command = decorator(command)
        return command  # type: ignore[return-value]

    return decorate
