"""RRSA: a pod's service account token against the credentials of a RAM role, by AssumeRoleWithOIDC."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

from stager.core.errors import AccessDenied, RemoteError, StagerError, UsageError, from_oserror
from stager.core.units import shown
from stager.store.credentials.base import Credentials
from stager.store.credentials.exchange import Answer, Silence, exchange, issued

ROLE = "ALIBABA_CLOUD_ROLE_ARN"
PROVIDER = "ALIBABA_CLOUD_OIDC_PROVIDER_ARN"
TOKEN_FILE = "ALIBABA_CLOUD_OIDC_TOKEN_FILE"  # noqa: S105 - a path
TIMEOUT = 5.0  # seconds
LIFETIME = 3600  # seconds; what every role allows unless somebody lowered it, and what STS gives by default

_TOKEN_LIMIT = 20_000  # characters, by STS
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_PASSING = ("Throttling", "ServiceUnavailable", "InternalError")


@dataclass(frozen=True, slots=True)
class Rrsa:
    """A provider that assumes `role` with the token in `token_file`, asking STS at the URL `endpoint`."""

    role: str
    oidc_provider: str
    token_file: str
    session: str
    endpoint: str

    def describe(self) -> str:
        """The role."""
        return f"RRSA role {shown(self.role)}"

    def fetch(self) -> Credentials:
        """Credentials for `LIFETIME` seconds. The token file is read each time, for the kubelet replaces it."""
        token = self._token()
        query = {
            "Action": "AssumeRoleWithOIDC",
            "Format": "JSON",
            "Version": "2015-04-01",
            "Timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        # In the body and not in the URL, which servers and proxies log.
        form = {
            "RoleArn": self.role,
            "OIDCProviderArn": self.oidc_provider,
            "OIDCToken": token,
            "RoleSessionName": self.session,
            "DurationSeconds": str(LIFETIME),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        url = f"{self.endpoint}/?{urlencode(query)}"
        body = urlencode(form).encode()
        try:
            answer = exchange("POST", url, headers=headers, body=body, timeout=TIMEOUT, proxies=True)
        except Silence as exc:
            raise RemoteError(
                f"{self.describe()}: {self.endpoint} does not answer ({exc})",
                hint="ALIBABA_CLOUD_STS_ENDPOINT names another one, for instance sts-vpc.REGION.aliyuncs.com within a VPC",
            ) from None
        if answer.status != 200:
            raise self._refused(answer, token)
        fields = answer.json().get("Credentials")
        return issued(fields if isinstance(fields, dict) else {}, self.describe())

    def _token(self) -> str:
        subject = f"`{shown(self.token_file)}` ({TOKEN_FILE})"
        try:
            with open(self.token_file, "rb") as file:
                data = file.read(_TOKEN_LIMIT + 1)
        except OSError as exc:
            found = from_oserror(exc, subject)
            raise AccessDenied(
                found.message, hint="is the service account's token mounted in this pod?"
            ) from exc
        if not data.strip():
            raise RemoteError(f"{subject} is empty")  # between two tokens, perhaps
        if len(data) > _TOKEN_LIMIT or not data.isascii():
            raise AccessDenied(f"{subject} does not hold an OIDC token")
        return data.decode("ascii").strip()

    def _refused(self, answer: Answer, token: str) -> StagerError:
        """The error for an answer that is none. Of the body only what looks like a code and an id is told."""
        fields = answer.json()
        code, request_id = (_told(fields.get(name), token) for name in ("Code", "RequestId"))
        message = f"{self.describe()}: STS says {answer.status} {code or 'without a code'} (request id {request_id or 'none'})"
        if answer.status >= 500 or answer.status == 429 or code.startswith(_PASSING):
            return RemoteError(message, retry_after=answer.retry_after)
        if "Expired" in code:
            return AccessDenied(
                message, hint=f"the token in `{shown(self.token_file)}` was not renewed in time"
            )
        return AccessDenied(
            message,
            hint=f"the role's trust policy must allow this cluster's OIDC provider and this service account; check {ROLE} and {PROVIDER}",
        )


def _told(value: object, secret: str) -> str:
    """`value` when it is a code or an id and nothing of `secret`."""
    if not isinstance(value, str) or not _CODE.fullmatch(value) or value in secret or secret in value:
        return ""
    return value


def from_rrsa(environ: Mapping[str, str]) -> Rrsa | None:
    """RRSA as the environment sets it up, or None. A role's ARN alone is not RRSA: other tools use it with a key pair.

    STS is asked at ``ALIBABA_CLOUD_STS_ENDPOINT`` (a host, or a URL), else at the one of the region ``ALIBABA_CLOUD_STS_REGION``, by its address
    within VPCs where ``ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED`` is true, else at sts.aliyuncs.com. Raises `AccessDenied` when a part is missing,
    `UsageError` for an endpoint that is none, or that is neither https nor on this machine.
    """
    role, provider, token_file = (environ.get(name, "").strip() for name in (ROLE, PROVIDER, TOKEN_FILE))
    if not provider and not token_file:
        return None
    if not (role and provider and token_file):
        missing = ROLE if not role else TOKEN_FILE if not token_file else PROVIDER
        is_set = PROVIDER if provider else TOKEN_FILE
        raise AccessDenied(
            f"{is_set} is set, {missing} is not", hint=f"RRSA needs {ROLE}, {PROVIDER} and {TOKEN_FILE}"
        )
    node = re.sub(r"[^A-Za-z0-9.@_-]", "-", os.uname().nodename)  # the audit log then says which pod it was
    session = environ.get("ALIBABA_CLOUD_ROLE_SESSION_NAME", "").strip() or f"stager-{node}"[:64]
    return Rrsa(role, provider, token_file, session, _endpoint(environ))


def _endpoint(environ: Mapping[str, str]) -> str:
    text = environ.get("ALIBABA_CLOUD_STS_ENDPOINT", "").strip()
    if not text:
        region = environ.get("ALIBABA_CLOUD_STS_REGION", "").strip()
        vpc = environ.get("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "").strip().lower() == "true"
        text = f"{'sts-vpc' if vpc else 'sts'}.{region}.aliyuncs.com" if region else "sts.aliyuncs.com"
    url = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if (
        not host
        or parts.scheme not in ("http", "https")
        or not re.fullmatch(r"[A-Za-z0-9.:\[\]_-]+", parts.netloc)
    ):
        raise UsageError(
            "ALIBABA_CLOUD_STS_ENDPOINT is not a host or a URL",
            hint="write it like sts-vpc.cn-hangzhou.aliyuncs.com",
        )
    if parts.scheme == "http" and not _here(host):
        raise UsageError(
            f"ALIBABA_CLOUD_STS_ENDPOINT: a token is not sent to `{shown(host)}` over http",
            hint="write it with https:// or without a scheme",
        )
    return f"{parts.scheme}://{parts.netloc}"


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
