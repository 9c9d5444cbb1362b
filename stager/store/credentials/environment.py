"""Credentials that lie in environment variables, and none at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stager.core.errors import AccessDenied
from stager.store.credentials.base import Credentials

if TYPE_CHECKING:
    from stager.store.credentials.base import Source

TRIPLES = (
    ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"),
    ("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"),
)
"""Key id, secret and optional token, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A source that always gives the same credentials."""

    credentials: Credentials

    def get(self) -> Credentials:
        """The credentials."""
        return self.credentials

    def invalidate(self, used: Credentials) -> bool:  # noqa: ARG002  # they are the only ones
        """Changes nothing, and is false: there are no others."""
        return False

    def describe(self) -> str:
        """Where they come from."""
        return self.credentials.source


def from_variables(environ: Mapping[str, str]) -> Source | None:
    """The first key pair among `TRIPLES`, or None. An empty variable counts as not set.

    Raises `AccessDenied` for half a pair: to go on to the next place would mean to act as somebody else than was meant. And for values
    that no header can hold, as a secret has that was wrapped into lines: what a library says about such a header repeats it.
    """
    for id_name, secret_name, token_name in TRIPLES:
        key_id, secret, token = (environ.get(name, "").strip() for name in (id_name, secret_name, token_name))
        for name in (id_name, secret_name, token_name):
            _check(name, environ.get(name, "").strip())
        if key_id and secret:
            source = f"environment variables {id_name} and {secret_name}"
            return Fixed(Credentials(key_id, secret, token or None, None, source))
        if key_id or secret or token:
            is_set = next(
                name for name in (id_name, secret_name, token_name) if environ.get(name, "").strip()
            )
            missing = secret_name if key_id else id_name
            raise AccessDenied(
                f"{is_set} is set, {missing} is not", hint=f"set {missing} too, or unset {is_set}"
            )
    return None


def _check(name: str, value: str) -> None:
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise AccessDenied(
            f"{name} holds a space, a line break or another character that no credential has",
            hint=f"set {name} to the value alone, on one line",
        )


def anonymous() -> Source:
    """A source for requests without a signature."""
    return Fixed(Credentials("", "", source="anonymous"))
