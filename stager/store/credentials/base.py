"""What a request is signed with, and the interface to whatever gives it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from stager.core.errors import AccessDenied

_SOUGHT = (
    "looked for OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET; ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET; "
    "RRSA (ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN, ALIBABA_CLOUD_OIDC_TOKEN_FILE); the RAM role of an ECS instance. "
    "What is public can be read with `--anonymous`"
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key pair, perhaps with a security token. `expires` is in seconds since 1970; None: they do not run out.

    `source` says in words where they come from; it and `key_id` may be shown, the rest never is: neither repr nor str has it, and
    no dump to JSON should. Both `key_id` and `secret` are empty for anonymous requests.
    """

    key_id: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires: float | None = None
    source: str = ""

    @property
    def anonymous(self) -> bool:
        """Whether requests are to be sent without a signature."""
        return not self.key_id


class Source(Protocol):
    """Gives credentials for as long as a run takes. Any thread may call any method."""

    def get(self) -> Credentials:
        """Credentials that are valid now. Cheap when nothing has to be fetched; at most one thread fetches.

        Raises `AccessDenied` when there are none to be had, `RemoteError` when who gives them cannot be reached for now.
        """

    def invalidate(self, used: Credentials) -> bool:
        """Says that `used` were refused as expired: the next `get` fetches fresh ones, if it still has those.

        False when there are no others to be had.
        """

    def describe(self) -> str:
        """Where the credentials come from, in words and without a secret; asks nobody."""


class Provider(Protocol):
    """Fetches credentials once, in one attempt; `stager.store.credentials.refresh` decides when and how often."""

    def fetch(self) -> Credentials:
        """Fresh credentials. Raises `RemoteError` for what may pass, `AccessDenied` for what does not."""

    def describe(self) -> str:
        """As `Source.describe`."""


def not_found(why: str) -> AccessDenied:
    """The error for no credentials at all, with the places that were looked at; `why` is about the last one."""
    return AccessDenied(f"no credentials found: {why}", hint=_SOUGHT)
