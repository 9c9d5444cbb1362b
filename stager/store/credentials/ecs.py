"""The RAM role of the ECS instance this runs on, from the instance's metadata service.

Version 2 of the service is asked first: a token, then with it the credentials. Version 1, which gives them to any request, only when
somebody is there but gives no token, as from within a container whose packets live one hop too short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from stager.core.errors import AccessDenied, RemoteError, StagerError, UsageError
from stager.core.units import shown
from stager.store.credentials.base import Credentials, not_found
from stager.store.credentials.exchange import Answer, Silence, exchange, issued

ROLE = "ALIBABA_CLOUD_ECS_METADATA"
OFF = "ALIBABA_CLOUD_ECS_METADATA_DISABLED"
ONLY_V2 = "ALIBABA_CLOUD_IMDSV1_DISABLED"
URL = "STAGER_ECS_METADATA_URL"  # for tests, and for what stands in for the service
ADDRESS = "http://100.100.100.200"
TIMEOUT = 1.0  # seconds; the service is on the same host, and where there is none this is what a start costs

_ROLES = "/latest/meta-data/ram/security-credentials/"
_TOKEN_LIFE = 300  # seconds; it is used at once
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class EcsRole:
    """A provider that asks the metadata service at the URL `address` for the credentials of `role`, or of whichever is attached."""

    def __init__(self, role: str | None, address: str = ADDRESS, *, only_v2: bool = False) -> None:
        """With `only_v2` version 1 of the service is never asked."""
        self._role = role
        self._address = address
        self._only_v2 = only_v2
        self._expected = role is not None  # that there is a service; without a hint it is only tried

    def describe(self) -> str:
        """The role, once it is known."""
        return (
            f"ECS RAM role {shown(self._role)}"
            if self._role
            else f"the ECS RAM role that {self._address} names"
        )

    def fetch(self) -> Credentials:
        """The role's credentials. `AccessDenied` when there is no service and no role was named either."""
        try:
            headers = self._entitled()
            role = self._role or self._attached(headers)
            answer = self._get(_ROLES + role, headers)
        except Silence as exc:
            message = f"the ECS metadata service {self._address} does not answer ({exc})"
            raise (
                RemoteError(f"{self.describe()}: {message}") if self._expected else not_found(message)
            ) from None
        if answer.status != 200:
            raise self._refused(answer, f"ECS RAM role {shown(role)}")
        fields = answer.json()
        if fields.get("Code", "Success") != "Success":
            raise RemoteError(
                f"ECS RAM role {shown(role)}: the metadata service has no credentials for it now"
            )
        found = issued(fields, f"ECS RAM role {role}")
        self._expected, self._role = True, role
        return found

    def _entitled(self) -> dict[str, str]:
        """The header that version 2 asks for; none when version 1 is to be asked."""
        life = {"X-aliyun-ecs-metadata-token-ttl-seconds": str(_TOKEN_LIFE)}
        try:
            answer = exchange(
                "PUT", f"{self._address}/latest/api/token", headers=life, timeout=TIMEOUT, proxies=False
            )
        except Silence as exc:
            if self._only_v2 or not exc.connected:
                raise
            return {}
        token = answer.text
        if answer.status == 200 and token.isascii() and token.isprintable() and 0 < len(token) <= 1024:
            return {"X-aliyun-ecs-metadata-token": token}
        if self._only_v2:
            raise self._refused(answer, "a token for the ECS metadata service")
        return {}

    def _attached(self, headers: Mapping[str, str]) -> str:
        answer = self._get(_ROLES, headers)
        if answer.status == 404:
            raise not_found("no RAM role is attached to this ECS instance")
        if answer.status != 200:
            raise self._refused(answer, "the name of this ECS instance's RAM role")
        name = answer.text.split("\n", 1)[0].strip()
        if not _NAME.fullmatch(name):
            raise not_found(f"what answers at {self._address} is not the ECS metadata service")
        return name

    def _get(self, path: str, headers: Mapping[str, str]) -> Answer:
        return exchange("GET", self._address + path, headers=headers, timeout=TIMEOUT, proxies=False)

    def _refused(self, answer: Answer, subject: str) -> StagerError:
        message = f"{subject}: the metadata service says {answer.status}"
        if answer.status >= 500 or answer.status == 429:
            return RemoteError(message, retry_after=answer.retry_after)
        if answer.status == 404:
            return AccessDenied(
                message, hint=f"is the role attached to this instance? {ROLE} must be its name, or not set"
            )
        return AccessDenied(
            message,
            hint="the instance may ask for version 2 of the service, and its tokens may not reach this far",
        )


def from_ecs(environ: Mapping[str, str]) -> EcsRole | None:
    """The provider as the environment sets it up, which asks nobody yet; None when it is switched off.

    Raises `UsageError` for a role's name or an address that cannot be one.
    """
    if _true(environ, OFF):
        return None
    role = environ.get(ROLE, "").strip() or None
    if role and not _NAME.fullmatch(role):
        raise UsageError(f"{ROLE} is not the name of a RAM role", hint="give the name alone, not its ARN")
    address = environ.get(URL, "").strip().rstrip("/") or ADDRESS
    if not re.fullmatch(r"http://[A-Za-z0-9.\[\]:-]+", address):
        raise UsageError(f"{URL} is not a URL", hint=f"write it like {ADDRESS}")
    return EcsRole(role, address, only_v2=_true(environ, ONLY_V2))


def _true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in ("true", "1", "yes", "on")
