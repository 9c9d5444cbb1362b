"""The access keys that the server knows, what each may do, and until when."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass
class AccessKey:
    """One key. With a `token` it is temporary (STS) and every request must bring that token.

    `denied` holds permissions that it lacks (see `tests.osslab.operations.PERMISSIONS`), each for all keys ("put") or for those that
    match ("get:secret/*"). `expires` is in seconds since 1970.
    """

    id: str
    secret: str
    token: str | None = None
    expires: float | None = None
    denied: frozenset[str] = frozenset()

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and time.time() >= self.expires

    def may(self, permission: str, key: str) -> bool:
        """Whether it may do that with that object."""
        for entry in self.denied:
            name, _, glob = entry.partition(":")
            if name == permission and fnmatchcase(key, glob or "*"):
                return False
        return True


class Keyring:
    """All keys by id. Safe for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, AccessKey] = {}

    def add(self, key: AccessKey) -> AccessKey:
        """Accept this key from now on, in place of an older one with its id."""
        with self._lock:
            self._keys[key.id] = key
        return key

    def new(self, *, denied: frozenset[str] | set[str] = frozenset()) -> AccessKey:
        """A fresh lasting key."""
        return self.add(
            AccessKey("LTAI" + secrets.token_hex(8), secrets.token_hex(15), denied=frozenset(denied))
        )

    def temporary(
        self, seconds: float = 3600, *, denied: frozenset[str] | set[str] = frozenset()
    ) -> AccessKey:
        """A fresh key as STS gives it: with a token, good for `seconds`."""
        return self.add(
            AccessKey(
                "STS." + secrets.token_hex(8),
                secrets.token_hex(15),
                "CAIS" + secrets.token_urlsafe(60) + "+/==",
                time.time() + seconds,
                frozenset(denied),
            )
        )

    def find(self, key_id: str) -> AccessKey | None:
        """The key with that id."""
        with self._lock:
            return self._keys.get(key_id)

    def forget(self, key_id: str) -> None:
        """From now on that key does not exist."""
        with self._lock:
            self._keys.pop(key_id, None)
