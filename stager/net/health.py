"""An engine's health URL: whether it is one, and what it answers now."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from stager.core.errors import UsageError
from stager.core.units import shown

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

_ANSWER_S = 5.0
_USERINFO = re.compile(r"^([a-z]*:)?(//)?[^/?#]*@", re.IGNORECASE)


def check_url(url: str, option: str) -> str:
    """`url`, an http or https URL without a user or password. Raises `UsageError` for anything else; `option` is what it is written after, for the hint."""
    from urllib.parse import urlsplit  # slow to import, as all that speaks HTTP, and a probe does without

    if _USERINFO.search(url):  # urllib takes it for a part of the host's name; and it is told nowhere
        raise UsageError(
            "a URL with a user or a password in it cannot be asked",
            hint=f"write it like {option}http://localhost:8000/health",
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port beyond 65535 or no number, a broken bracket
        usable = False
    if not usable or not url.isprintable() or " " in url:
        from stager.core.hiding import Secrets

        raise UsageError(
            f"`{shown(Secrets.of((url,)).hide(url))}` is not an http URL",
            hint=f"write it like {option}http://localhost:8000/health",
        )
    return url


def asked(url: str, patience: float = _ANSWER_S) -> int | None:
    """The status that `url` answers with now, None where nobody answers in HTTP within `patience` seconds."""
    from http.client import HTTPException
    from urllib.error import HTTPError

    try:
        with _opener().open(url, timeout=patience) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code
    except (HTTPException, OSError, ValueError):
        return None


def listens(url: str) -> bool:
    """Whether anybody accepts connections at the host and port of `url`."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    try:
        place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        with socket.create_connection(place, timeout=_ANSWER_S):
            return True
    except OSError:
        return False


def healthy(status: int | None) -> bool:
    """Whether a status from `asked` says that the engine serves: 2xx."""
    return status is not None and 200 <= status < 300


@cache
def _opener() -> OpenerDirector:
    """Asks directly: a proxy of the environment knows nothing of an engine beside us."""
    from urllib.request import ProxyHandler, build_opener

    return build_opener(ProxyHandler({}))
