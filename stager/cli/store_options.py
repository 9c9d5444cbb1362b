"""How a store is reached, for every command that takes ``oss://``."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, TypeVar

import click

from stager.cli.options import Parsed, option
from stager.core.errors import UsageError
from stager.core.units import parse_duration
from stager.store.opening import StoreOptions

F = TypeVar("F", bound=Callable[..., Any])


def _addresses(text: str) -> tuple[str, ...]:
    found = []
    for word in text.split(","):
        try:
            found.append(str(ipaddress.ip_address(word.strip())))
        except ValueError as exc:
            raise UsageError(
                f"`{word.strip()}` is not an IP address", hint="write them like 10.0.0.4,10.0.1.4"
            ) from exc
    return tuple(dict.fromkeys(found))


def _patience(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError(f"`{text}` must be more than 0")
    return seconds


_PATIENCE = Parsed("DURATION", _patience)
_OPTIONS = (
    option("--endpoint", metavar="HOST|URL", help="The store's address. [default: OSS_ENDPOINT, else from the region, else found from the bucket]"),
    option("--region", metavar="ID", help="The bucket's region, as cn-hangzhou. [default: OSS_REGION, else from the endpoint, else found from the bucket]"),
    option("--signature", default="v4", type=click.Choice(["v4", "v1"]), show_default=True, help="How requests are signed; v1 where an endpoint knows no other."),
    option("--anonymous", is_flag=True, help="Sign nothing: for buckets that anybody may read."),
    option("--source-ip", "source_ips", default="", metavar="IP[,IP]", type=Parsed("IP[,IP]", lambda text: _addresses(text) if text else ()), help="Connect from these addresses in turn: one for each network card."),
    option("--connect-timeout", default="10s", type=_PATIENCE, show_default=True, help="Give up a connection attempt after so long."),
    option("--read-timeout", default="20s", type=_PATIENCE, show_default=True, help="Give up an answer that brings no byte for so long, and ask again."),
)  # fmt: skip
STORE_OPTIONS = (
    "endpoint", "region", "signature", "anonymous", "source_ips", "connect_timeout", "read_timeout",
)  # fmt: skip
"""The names of these parameters."""


def refuse_given(names: Collection[str], why: str, hint: str) -> None:
    """Raises `UsageError` for the first of the parameters `names` that is on the command line, where it would do nothing.

    The environment is set for many commands at once: what it says is passed over where it means nothing.
    """
    context = click.get_current_context()
    for name in context.params:  # in the order of the command line
        source = context.get_parameter_source(name)
        if name in names and source is click.core.ParameterSource.COMMANDLINE:
            given = next(one for one in context.command.params if one.name == name)
            raise UsageError(f"{max(given.opts, key=len)} {why}", hint=hint)


def with_store_options(function: F) -> F:
    """Adds how a store is reached; the command gets one `StoreOptions` named ``store``.

    Its `max_rate` is the command's business. Secrets are no options: they would show in the list of processes.
    """

    @wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        store = StoreOptions(**{name: given.pop(name) for name in STORE_OPTIONS})
        return function(*args, store=store, **given)

    for decorator in reversed(_OPTIONS):
        command = decorator(command)
    return command  # type: ignore[return-value]
