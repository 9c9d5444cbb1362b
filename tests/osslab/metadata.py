"""A look-alike of the metadata service of ECS: the keys of the instance's RAM role, by IMDSv2 and, unless hardened, without a token."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping

from tests.osslab.keys import AccessKey, Keyring
from tests.osslab.service import Service
from tests.osslab.wire import Answer, Request

TTL = "x-aliyun-ecs-metadata-token-ttl-seconds"
TOKEN = "x-aliyun-ecs-metadata-token"
_KEYS = "/latest/meta-data/ram/security-credentials/"


class Metadata(Service):
    """Tells the keys of `role` (None: the instance has none). The same ones until they expire or `rotate` is called.

    `hardened`: 403 without a session token. `lifetime` is how long new keys are good, in seconds.
    """

    def __init__(
        self, keys: Keyring, *, role: str | None = "stager-node", hardened: bool = True, lifetime: float = 6 * 3600,
        host: str = "127.0.0.1", port: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(host=host, port=port)
        self.keys, self.role, self.hardened, self.lifetime = keys, role, hardened, lifetime
        self.region = "cn-hangzhou"
        self.zone = "cn-hangzhou-k"
        self.denied: frozenset[str] = frozenset()
        self.given: list[str] = []  # ids of keys, oldest first
        self._sessions: dict[str, float] = {}
        self._key: AccessKey | None = None
        self._since = 0.0

    def rotate(self) -> None:
        """The next answer has new keys; the old ones stay good until they expire."""
        with self._lock:
            self._key = None

    def forget_sessions(self) -> None:
        """All session tokens are over, as after a restart of the service."""
        with self._lock:
            self._sessions.clear()

    def answer(self, request: Request, parameters: Mapping[str, str]) -> Answer:
        """A session token, the role's name, or its keys."""
        if request.path == "/latest/api/token":
            return self._session(request)
        if request.method != "GET":
            return _text(405, "Method Not Allowed")
        if self._locked_out(request):
            return _text(403, "Forbidden")
        known = {
            "/latest/meta-data/region-id": self.region,
            "/latest/meta-data/zone-id": self.zone,
            "/latest/meta-data/instance-id": "i-osslab",
        }
        if request.path in known:
            return _text(200, known[request.path])
        if self.role is not None and request.path in (_KEYS, _KEYS.rstrip("/")):
            return _text(200, self.role)
        if self.role is not None and request.path == _KEYS + self.role:
            return Answer(
                200, {"Content-Type": "application/json"}, json.dumps(self._current(), indent=2).encode()
            )
        return _text(404, "Not Found")

    def _session(self, request: Request) -> Answer:
        if request.method != "PUT":
            return _text(405, "Method Not Allowed")
        seconds = request.headers.get(TTL, "")
        if not seconds.isdigit() or not 1 <= int(seconds) <= 21600:
            return _text(400, "Bad Request")
        token = secrets.token_urlsafe(40)
        with self._lock:
            self._sessions[token] = time.time() + int(seconds)
        return _text(200, token)

    def _locked_out(self, request: Request) -> bool:
        token = request.headers.get(TOKEN)
        if token is None:
            return self.hardened
        with self._lock:
            return self._sessions.get(token, 0.0) <= time.time()

    def _current(self) -> dict[str, str]:
        with self._lock:
            if self._key is None or self._key.expired:
                self._key = self.keys.temporary(self.lifetime, denied=self.denied)
                self._since = time.time()
                self.given.append(self._key.id)
            key, since = self._key, self._since
        stamp = "%Y-%m-%dT%H:%M:%SZ"
        return {
            "AccessKeyId": key.id,
            "AccessKeySecret": key.secret,
            "Expiration": time.strftime(stamp, time.gmtime(key.expires)),
            "SecurityToken": key.token or "",
            "LastUpdated": time.strftime(stamp, time.gmtime(since)),
            "Code": "Success",
        }


def _text(status: int, text: str) -> Answer:
    return Answer(status, {"Content-Type": "text/plain"}, text.encode())
