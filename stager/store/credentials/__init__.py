"""Who the store is asked as: credentials from where users of Alibaba Cloud expect them, refreshed before they run out.

`find` picks the first of these places that is set up:

1. ``OSS_ACCESS_KEY_ID``, ``OSS_ACCESS_KEY_SECRET``, ``OSS_SESSION_TOKEN``
2. ``ALIBABA_CLOUD_ACCESS_KEY_ID``, ``ALIBABA_CLOUD_ACCESS_KEY_SECRET``, ``ALIBABA_CLOUD_SECURITY_TOKEN``
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from stager.core.errors import AccessDenied
from stager.store.credentials.base import Credentials, Source
from stager.store.credentials.environment import anonymous as _anonymous
from stager.store.credentials.environment import from_variables

__all__ = ["Credentials", "Source", "find"]


def find(*, anonymous: bool = False, environ: Mapping[str, str] = os.environ) -> Source:
    """The first source of credentials that is set up, without a request to anybody.

    `anonymous` asks for none at all. Raises `AccessDenied` when nothing is set up, or only half.
    """
    if anonymous:
        return _anonymous()
    found = from_variables(environ)
    if found is None:
        raise AccessDenied("no credentials found", hint="set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET")
    return found
