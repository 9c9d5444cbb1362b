"""Which address a bucket is asked at, and what that address says: region, style, inside or outside of Alibaba Cloud.

Pure: the caller gives the environment and asks the bucket where nothing else tells. The order is that of Alibaba's own tools:
``--endpoint``, ``OSS_ENDPOINT``, then the public endpoint of the region by ``--region``, ``OSS_REGION``,
``ALIBABA_CLOUD_REGION_ID``. The region in an endpoint's name counts more than that in the environment, which may be an
account's and not the bucket's; ``--region`` counts most.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import urlsplit

from stager.core.errors import UsageError
from stager.core.location import told
from stager.core.units import shown

ENDPOINT_VARIABLE = "OSS_ENDPOINT"
REGION_VARIABLES = ("OSS_REGION", "ALIBABA_CLOUD_REGION_ID")
ANYWHERE = "cn-hangzhou"
"""The region whose public endpoint is asked where a bucket lies when nothing else is known, as Alibaba's own tools do."""

_ALIYUN = ".aliyuncs.com"
_ACCELERATOR = ".oss-data-acc" + _ALIYUN
_REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+", re.ASCII)
_HOST = re.compile(r"[\w.-]+", re.ASCII)
_PATTERNS = (
    re.compile(r"(?:vpc100-)?oss-(?P<region>[a-z0-9-]+?)(?P<internal>-internal)?\.aliyuncs\.com"),
    re.compile(r"(?P<region>[a-z0-9-]+?)(?P<internal>-internal)?\.oss\.aliyuncs\.com"),  # IPv4 and IPv6
    re.compile(r"[a-z0-9.-]+\.oss\.(?P<region>[a-z0-9-]+)\.privatelink\.aliyuncs\.com"),
)
_ZONE = re.compile(r"(.+-\d+)[a-z]|(.+)-[a-z]")
_HINT = "write it like oss-cn-hangzhou-internal.aliyuncs.com or https://oss-cn-hangzhou.aliyuncs.com"


class Style(StrEnum):
    """Where the bucket's name goes: before the host, into the path, or nowhere for it is in the host already (CNAME)."""

    VIRTUAL = "virtual"
    PATH = "path"
    CNAME = "cname"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send requests. `url` is scheme, host and perhaps port, nothing more.

    `region` (``cn-hangzhou``) is None where the name does not tell: custom domains, addresses, ``oss-accelerate``. `internal`: only
    reached from inside Alibaba Cloud, without cost for traffic. `accelerator`: the OSS accelerator of a zone.
    """

    url: str
    region: str | None
    style: Style
    internal: bool = False
    accelerator: bool = False

    @property
    def https(self) -> bool:
        """Whether the bytes are encrypted, which costs CPU; CRC-64 proves them either way."""
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        """Host and port, without the bucket."""
        return self.url.partition("://")[2]

    def in_region(self, region: str) -> Endpoint:
        """The same endpoint, its region known now."""
        return replace(self, region=_region(region))

    @property
    def inside(self) -> str | None:
        """The host of the same region that only nodes inside Alibaba Cloud reach; None when this is one, or none is known."""
        if self.internal or self.style is not Style.VIRTUAL or not self.region:
            return None
        return f"oss-{self.region}-internal{_ALIYUN}"


def choose(
    endpoint: str | None, region: str | None, environ: Mapping[str, str], bucket: str = ""
) -> Endpoint | None:
    """The endpoint that the options or the environment name; None when nothing does, and the bucket has to be asked.

    Raises `UsageError` for one that is no endpoint.
    """
    said = _region(region) if region else None
    written = endpoint or environ.get(ENDPOINT_VARIABLE, "")
    around = next((environ[name] for name in REGION_VARIABLES if environ.get(name)), None)
    if written:
        found = parse(written, bucket)
        if said:
            return found.in_region(said)
        return found.in_region(around) if found.region is None and around else found
    if said or around:
        return of_region(said or around or "")
    return None


def of_region(region: str) -> Endpoint:
    """The public endpoint of a region, over https. Raises `UsageError` for what cannot be a region."""
    return parse(f"oss-{_region(region)}{_ALIYUN}")


def parse(text: str, bucket: str = "") -> Endpoint:
    """The endpoint that `text` names: a host with or without scheme and port. A host that begins with `bucket` loses it.

    The scheme is what the user wrote. Without one it is https for public names, and http for ``-internal``, for accelerators and for
    plain addresses: there the network is one's own, encryption costs more CPU than all the rest of a transfer, and CRC-64 proves the
    bytes. Addresses and localhost take the bucket in the path; names outside ``aliyuncs.com`` are custom domains, unless they begin
    with ``oss-`` as those of private clouds do. Raises `UsageError` for anything else.
    """
    scheme, host, port = _split(text.strip())
    if host.startswith("s3."):
        raise UsageError(f"`{told(text)}` speaks S3 and not OSS", hint=f"use `{host.removeprefix('s3.')}`")
    if bucket and host.startswith(f"{bucket}.") and host.endswith(_ALIYUN):
        host = host.removeprefix(f"{bucket}.")
    region, internal, accelerator = _meaning(host)
    plain = _is_address(host)
    scheme = scheme or ("http" if internal or plain else "https")
    known = host.endswith(_ALIYUN) or host.startswith("oss-")
    style = Style.PATH if plain else Style.VIRTUAL if known else Style.CNAME
    netloc = f"[{host}]" if ":" in host else host
    return Endpoint(f"{scheme}://{netloc}{port}", region, style, internal, accelerator)


def _split(text: str) -> tuple[str, str, str]:
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme.lower()
    if separator and scheme not in ("http", "https"):
        raise UsageError(f"`{told(text)}`: an endpoint speaks http or https", hint=_HINT)
    if ":" in rest and _is_address(rest):
        rest = f"[{rest}]"  # an IPv6 address alone
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    plain = not (parts.query or parts.fragment or "@" in parts.netloc) and parts.path in ("", "/")
    literal = "[" in parts.netloc
    named = _is_address(host) and "%" not in host if literal else _HOST.fullmatch(host)
    if not plain or not named:
        raise UsageError(f"`{told(text)}` is not an endpoint", hint=_HINT)
    return scheme, host, "" if port is None else f":{port}"


def _meaning(host: str) -> tuple[str | None, bool, bool]:
    """Region, internal, accelerator: what the name of the host tells."""
    if host.endswith(_ACCELERATOR):
        zone = (
            host.removesuffix(_ACCELERATOR).rpartition(".")[2].removesuffix("-internal").removeprefix("oss-")
        )
        match = _ZONE.fullmatch(zone)
        return (match[1] or match[2]) if match else zone, True, True
    for pattern in _PATTERNS:
        match = pattern.fullmatch(host)
        if match and not match["region"].startswith("accelerate"):
            internal = "privatelink" in host or match.groupdict().get("internal") is not None
            return match["region"], internal or host.startswith("vpc100-"), False
    return None, False, False


def _is_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _region(text: str) -> str:
    region = text.strip().lower().removeprefix("oss-").removesuffix("-internal")
    if not _REGION.fullmatch(region):
        raise UsageError(f"`{shown(text)}` is not a region", hint="write it like cn-hangzhou")
    return region
