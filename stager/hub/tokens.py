"""A token as a header can carry it. Secrets are kept in files, and files end in a newline."""

from __future__ import annotations

import re

from stager.core.errors import UsageError

_FIT = re.compile(r"[!-~]+")  # printable ASCII without the space


def fit(token: str | None, where: str) -> str:
    """`token` without the blanks around it; empty where there is none.

    Raises `UsageError`, naming `where` it comes from and never the token, for one that no request can carry.
    """
    bare = (token or "").strip()
    if bare and _FIT.fullmatch(bare) is None:
        raise UsageError(
            f"the token from {where} has characters that no token has (blanks within, control or non-ASCII ones)",
            hint="copy it again from the hub's page, alone and on one line",
        )
    return bare
