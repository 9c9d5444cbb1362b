"""A look-alike STS: AssumeRoleWithOIDC, as pods with RRSA call it. Its keys are accepted by the OSS server until they expire."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from xml.sax.saxutils import escape

from tests.osslab.keys import Keyring
from tests.osslab.service import Service
from tests.osslab.wire import Answer, Request, parse_query

ROLE = "acs:ram::1234567890123456:role/stager"
PROVIDER = "acs:ram::1234567890123456:oidc-provider/ack-rrsa-c1"
_SHORTEST, _LONGEST = 900, 3600


class Sts(Service):
    """Gives keys to whoever shows an OIDC token that `issue` made, for the role and provider set here.

    Keys live as long as asked for (900 s to 3600 s), or `lifetime` seconds where a test sets it. `denied` is what they may not do.
    """

    def __init__(
        self, keys: Keyring, *, role: str = ROLE, provider: str = PROVIDER, host: str = "127.0.0.1", port: int = 0
    ) -> None:  # fmt: skip
        super().__init__(host=host, port=port)
        self.keys, self.role, self.provider = keys, role, provider
        self.lifetime: float | None = None
        self.denied: frozenset[str] = frozenset()
        self.tokens: set[str] = set()
        self.given: list[str] = []  # ids of keys, oldest first

    def issue(self, seconds: float = 3600) -> str:
        """A new OIDC token as the cluster writes it into the pod's token file; good for so long."""
        claims = {
            "aud": ["sts.aliyuncs.com"],
            "exp": int(time.time() + seconds),
            "iat": int(time.time()),
            "iss": "https://oidc-ack.example/c1",
            "sub": "system:serviceaccount:default:stager",
            "jti": secrets.token_hex(8),
        }
        parts = (json.dumps({"alg": "RS256", "kid": "1"}), json.dumps(claims), secrets.token_hex(32))
        token = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)
        self.tokens.add(token)
        return token

    def revoke(self, token: str) -> None:
        """From now on that token is worth nothing."""
        self.tokens.discard(token)

    def parameters(self, request: Request) -> dict[str, str]:
        """Query and form together."""
        form = request.body.whole().decode("utf-8", "surrogateescape")
        return request.query | (parse_query(form) if "=" in form else {})

    def answer(self, request: Request, parameters: Mapping[str, str]) -> Answer:
        """Keys, or a refusal in STS's words."""
        as_json = parameters.get("Format", "XML").upper() == "JSON"
        refused = self._refused(request, parameters)
        if refused is not None:
            status, code, message = refused
            told = {
                "RequestId": _request_id(),
                "HostId": request.headers.get("host", ""),
                "Code": code,
                "Message": message,
            }
            return _said(status, "Error", told, as_json=as_json)
        return _said(200, "AssumeRoleWithOIDCResponse", self._given(parameters), as_json=as_json)

    def _refused(self, request: Request, parameters: Mapping[str, str]) -> tuple[int, str, str] | None:
        if request.method not in ("GET", "POST") or request.path != "/":
            return 404, "InvalidAction.NotFound", "Specified api is not found."
        if parameters.get("Action") != "AssumeRoleWithOIDC" or parameters.get("Version") != "2015-04-01":
            return (
                404,
                "InvalidAction.NotFound",
                "Specified api is not found, please check your url and method.",
            )
        for name in ("RoleArn", "OIDCProviderArn", "OIDCToken", "RoleSessionName"):
            if not parameters.get(name):
                return 400, f"Missing{name}", f"{name} is mandatory for this action."
        seconds = parameters.get("DurationSeconds", "3600")
        if not seconds.isdigit() or not _SHORTEST <= int(seconds) <= _LONGEST:
            return (
                400,
                "InvalidParameter.DurationSeconds",
                "The Min/Max value of DurationSeconds is 15min/1hr.",
            )
        if parameters["RoleArn"] != self.role:
            return 404, "EntityNotExist.Role", "The specified Role not exists."
        if parameters["OIDCProviderArn"] != self.provider:
            return 404, "EntityNotExist.OIDCProvider", "The OIDC Provider does not exist."
        return self._token_refused(parameters["OIDCToken"])

    def _token_refused(self, token: str) -> tuple[int, str, str] | None:
        if token not in self.tokens:
            return 400, "AuthenticationFail.OIDCToken.Invalid", "OIDC Token is invalid."
        claims = token.split(".")[1]
        if json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"] <= time.time():
            return 400, "AuthenticationFail.OIDCToken.Expired", "This JSON Web Token has expired."
        return None

    def _given(self, parameters: Mapping[str, str]) -> dict[str, object]:
        asked = float(parameters.get("DurationSeconds", "3600"))
        key = self.keys.temporary(asked if self.lifetime is None else self.lifetime, denied=self.denied)
        self.given.append(key.id)
        session = parameters["RoleSessionName"]
        return {
            "RequestId": _request_id(),
            "OIDCTokenInfo": {
                "Subject": "system:serviceaccount:default:stager",
                "Issuer": "https://oidc-ack.example/c1",
                "ClientIds": "sts.aliyuncs.com",
            },
            "AssumedRoleUser": {
                "AssumedRoleId": f"33157794895460:{session}",
                "Arn": f"{self.role.replace(':role/', ':assumed-role/')}/{session}",
            },
            "Credentials": {
                "AccessKeyId": key.id,
                "AccessKeySecret": key.secret,
                "SecurityToken": key.token,
                "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(key.expires)),
            },
        }


def _request_id() -> str:
    raw = secrets.token_hex(16).upper()
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def _said(status: int, root: str, fields: Mapping[str, object], *, as_json: bool) -> Answer:
    if as_json:
        return Answer(status, {"Content-Type": "application/json;charset=utf-8"}, json.dumps(fields).encode())
    body = f"<?xml version='1.0' encoding='UTF-8'?><{root}>{_elements(fields)}</{root}>"
    return Answer(status, {"Content-Type": "text/xml;charset=utf-8"}, body.encode())


def _elements(fields: Mapping[str, object]) -> str:
    return "".join(
        f"<{name}>{_elements(value) if isinstance(value, Mapping) else escape(str(value))}</{name}>"
        for name, value in fields.items()
    )
