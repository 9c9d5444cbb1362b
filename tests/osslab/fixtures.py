"""The `oss` fixture (a server in a thread of the test process, on a free port, with a bucket and a key) and its companions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.osslab.keys import AccessKey
from tests.osslab.metadata import Metadata
from tests.osslab.process import OssProcess
from tests.osslab.server import OssServer
from tests.osslab.sts import Sts
from tests.osslab.tls import Certificates, certificates


class Oss(OssServer):
    """The server, with what a test hands to its clients."""

    def url(self, name: str = "", *, bucket: str | None = None) -> str:
        """``oss://BUCKET/NAME``."""
        return f"oss://{bucket or self.bucket.name}/{name}"

    def env(self, key: AccessKey | None = None) -> dict[str, str]:
        """The environment of a child process that uses this key (default: the one that may do all)."""
        used = key or self.key
        found = {
            "OSS_ACCESS_KEY_ID": used.id,
            "OSS_ACCESS_KEY_SECRET": used.secret,
            "OSS_ENDPOINT": self.endpoint,
            "OSS_REGION": self.region,
        }
        if used.token:
            found["OSS_SESSION_TOKEN"] = used.token
        return found


@pytest.fixture
def oss() -> Iterator[Oss]:
    """A fresh `Oss`: ``oss.put("r1/a.bin", b"...")``, ``oss.endpoint``, ``oss.env()``, ``oss.faults.add(Fault("reset"))``, ``oss.log``."""
    with Oss() as server:
        yield server


@pytest.fixture
def sts(oss: Oss) -> Iterator[Sts]:
    """A look-alike STS whose keys `oss` accepts: ``sts.issue()`` gives an OIDC token, ``sts.endpoint`` where to bring it."""
    with Sts(oss.keys) as service:
        yield service


@pytest.fixture
def metadata(oss: Oss) -> Iterator[Metadata]:
    """A look-alike metadata service of ECS whose keys `oss` accepts."""
    with Metadata(oss.keys) as service:
        yield service


@pytest.fixture
def oss_process() -> Iterator[Callable[..., OssProcess]]:
    """``oss_process(serve=DIR, faults=JSON)``: the server as a process, ended with the test."""
    started: list[OssProcess] = []

    def start(**options: Any) -> OssProcess:
        started.append(OssProcess(**options))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="session")
def oss_certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """For https: ``OssServer(tls=oss_certificates.context)``; clients must trust ``oss_certificates.ca``."""
    return certificates(str(tmp_path_factory.mktemp("tls")))


@pytest.fixture
def oss_tls(oss_certificates: Certificates) -> Iterator[Oss]:
    """`oss` with https."""
    with Oss(tls=oss_certificates.context) as server:
        yield server
