"""Who the store is asked as: credentials from where users of Alibaba Cloud expect them, refreshed before they run out.

`find` picks the first of these that is set up:

1. ``OSS_ACCESS_KEY_ID``, ``OSS_ACCESS_KEY_SECRET``, ``OSS_SESSION_TOKEN``
2. ``ALIBABA_CLOUD_ACCESS_KEY_ID``, ``ALIBABA_CLOUD_ACCESS_KEY_SECRET``, ``ALIBABA_CLOUD_SECURITY_TOKEN``
3. RRSA: ``ALIBABA_CLOUD_ROLE_ARN``, ``ALIBABA_CLOUD_OIDC_PROVIDER_ARN``, ``ALIBABA_CLOUD_OIDC_TOKEN_FILE``; perhaps
   ``ALIBABA_CLOUD_ROLE_SESSION_NAME``, ``ALIBABA_CLOUD_STS_ENDPOINT``, ``ALIBABA_CLOUD_STS_REGION``, ``ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED``
4. the RAM role of the ECS instance, which ``ALIBABA_CLOUD_ECS_METADATA`` may name; ``ALIBABA_CLOUD_IMDSV1_DISABLED=true`` forbids version 1 of
   the metadata service, ``ALIBABA_CLOUD_ECS_METADATA_DISABLED=true`` all of it; ``STAGER_ECS_METADATA_URL`` is another address for it

The vendor's credentials library is not used: it is 20 MB and 180 ms of import, starts a thread, puts the OIDC token into a URL and the bodies of
refusals into errors, reads the environment at import, and does not know ``ALIBABA_CLOUD_STS_ENDPOINT``, which ACK sets in every pod.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from stager.store.credentials.base import Credentials, Source, not_found
from stager.store.credentials.ecs import OFF, from_ecs
from stager.store.credentials.environment import anonymous as _anonymous
from stager.store.credentials.environment import from_variables
from stager.store.credentials.refresh import Refreshed
from stager.store.credentials.rrsa import from_rrsa

__all__ = ["Credentials", "Source", "find"]


def find(*, anonymous: bool = False, environ: Mapping[str, str] = os.environ) -> Source:
    """The first source of credentials that is set up, without a request to anybody: its `get` asks.

    `anonymous` wants none at all. Raises `AccessDenied` when nothing is set up, or only half; whether an ECS instance has a role is not known
    before `get`, which raises the same then. `UsageError` for values that cannot be.
    """
    if anonymous:
        return _anonymous()
    fixed = from_variables(environ)
    if fixed is not None:
        return fixed
    provider = from_rrsa(environ) or from_ecs(environ)
    if provider is None:
        raise not_found(f"{OFF} switches the RAM role of the ECS instance off")
    return Refreshed(provider)
