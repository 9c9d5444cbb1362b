"""Credentials: each place they come from, their order, when they are fetched again, and that no secret is ever told.

STS and the metadata service are look-alikes on loopback; the clock of the refresh tests is one that is set by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from stager.core.errors import AccessDenied, CredentialsExpired, RemoteError, StagerError, UsageError
from stager.core.location import Location
from stager.store.credentials import Credentials, Source, ecs, find
from stager.store.credentials.exchange import Silence, exchange
from stager.store.credentials.refresh import ATTEMPTS, MARGIN, Refreshed
from stager.store.opening import StoreOptions
from stager.store.oss import OssStore
from tests.osslab.fixtures import Oss
from tests.osslab.metadata import Metadata
from tests.osslab.sts import Sts

ROOT = Path(__file__).resolve().parent.parent
OSS = {"OSS_ACCESS_KEY_ID": "oss-id", "OSS_ACCESS_KEY_SECRET": "oss-secret"}
CLOUD = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "cloud-id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "cloud-secret"}
ROLE_ARN = "acs:ram::1234567890:role/models"
PROVIDER_ARN = "acs:ram::1234567890:oidc-provider/ack"
SECRETS = ("shh-secret", "shh-token", "shh-oidc", "shh-metadata", "oss-secret", "cloud-secret")


@dataclass
class Asked:
    """One request as the look-alike saw it."""

    method: str
    path: str
    query: dict[str, list[str]]
    form: dict[str, list[str]]
    headers: dict[str, str]


@dataclass
class Cloud:
    """STS and the metadata service on one port; what they answer is set by the test."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    lifetime: float = 3600.0
    v2: int = 200  # status of the token request of the metadata service
    hardened: bool = False
    role: str = "node-role"
    sts_refuses: list[tuple[int, dict[str, str], dict[str, str]]] = field(default_factory=list)
    metadata_refuses: list[int] = field(default_factory=list)
    garbage: bytes | None = None
    before_answer: Callable[[], None] = lambda: None

    def issued(self) -> dict[str, str]:
        end = datetime.fromtimestamp(time.time() + self.lifetime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        number = len(self.asked)
        return {
            "AccessKeyId": f"STS.{number}",
            "AccessKeySecret": f"shh-secret-{number}",
            "SecurityToken": f"shh-token-{number}",
            "Expiration": end,
        }

    def answer(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(asked)
        self.before_answer()
        if self.garbage is not None:
            return 200, {}, self.garbage
        if asked.path == "/":
            return self._sts(asked)
        return self._metadata(asked)

    def _sts(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if self.sts_refuses:
            status, headers, body = self.sts_refuses.pop(0)
            return status, headers, json.dumps(body).encode()
        assert asked.query["Action"] == ["AssumeRoleWithOIDC"]
        return 200, {}, json.dumps({"RequestId": "r", "Credentials": self.issued()}).encode()

    def _metadata(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if self.metadata_refuses:
            return self.metadata_refuses.pop(0), {}, b"shh-secret"
        if asked.path == "/latest/api/token":
            wanted = (
                asked.method == "PUT"
                and asked.headers.get("x-aliyun-ecs-metadata-token-ttl-seconds", "").isdigit()
            )
            return (self.v2 if wanted else 400), {}, b"shh-metadata"
        token = asked.headers.get("x-aliyun-ecs-metadata-token")
        if token != "shh-metadata" and (self.hardened or token is not None):
            return 403, {}, b""
        roles = "/latest/meta-data/ram/security-credentials/"
        if asked.path == roles and self.role:
            return 200, {}, self.role.encode()
        if self.role and asked.path == roles + self.role:
            return 200, {}, json.dumps({"Code": "Success", **self.issued()}).encode()
        return 404, {}, b"<html>404 shh-secret</html>"


class Handler(BaseHTTPRequestHandler):
    def _serve(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, parts.path, parse_qs(parts.query), parse_qs(body), headers)
        status, extra, data = self.server.cloud.answer(asked)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - the names that the library calls

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.cloud = found = Cloud(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def metadata_service(oss: Oss) -> Iterator[Metadata]:
    with Metadata(oss.keys) as service:
        yield service


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of somebody who accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def metadata(url: str, **more: str) -> dict[str, str]:
    return {"STAGER_ECS_METADATA_URL": url, **more}


@pytest.fixture
def rrsa(cloud: Cloud, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_text("shh-oidc-1\n")
    return {
        "ALIBABA_CLOUD_ROLE_ARN": ROLE_ARN,
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": PROVIDER_ARN,
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE": str(tmp_path / "token"),
        "ALIBABA_CLOUD_STS_ENDPOINT": cloud.url,
    }


def unpaused(source: Source) -> Source:
    assert isinstance(source, Refreshed)
    source._pause = lambda _seconds: None
    return source


# Variables


@pytest.mark.parametrize(
    ("pair", "token", "key_id"),
    [(OSS, "OSS_SESSION_TOKEN", "oss-id"), (CLOUD, "ALIBABA_CLOUD_SECURITY_TOKEN", "cloud-id")],
)
def test_a_key_pair_in_variables(pair: dict[str, str], token: str, key_id: str) -> None:
    without = find(environ=pair).get()
    assert (without.key_id, without.token, without.expires) == (key_id, None, None)
    assert without.secret == key_id.replace("id", "secret")
    source = find(environ={**pair, token: "t"})
    assert source.get().token == "t"
    assert source.describe() == f"environment variables {next(iter(pair))} and {next(reversed(pair))}"
    assert source.invalidate(source.get()) is False, "there are no others"
    assert source.get().key_id == key_id


@pytest.mark.parametrize("pair", [OSS, CLOUD])
def test_half_a_pair_is_no_fall_through(pair: dict[str, str]) -> None:
    for name in pair:
        other = next(key for key in pair if key != name)
        for lacking in ({name: "shh"}, {name: "shh", other: ""}):
            with pytest.raises(AccessDenied, match=rf"^{name} is set, {other} is not$") as caught:
                find(environ={**CLOUD, **dict.fromkeys(pair, ""), **lacking} if pair is OSS else lacking)
            assert "shh" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize(
    "value", ["shh\nshh", "shh shh", "shh\tshh", "shh\xfc", "shh\udcff", "shh\x7f", "shh\r\nshh"]
)
def test_values_that_no_header_can_hold_are_refused(value: str) -> None:
    for pair, token in ((OSS, "OSS_SESSION_TOKEN"), (CLOUD, "ALIBABA_CLOUD_SECURITY_TOKEN")):
        for name in (*pair, token):
            with pytest.raises(AccessDenied, match=f"^{name} holds ") as caught:
                find(environ={**pair, token: "t", name: value})
            assert "shh" not in f"{caught.value.message}{caught.value.hint}"
        for name in (
            *pair,
            token,
        ):  # a file's last line break, which `$(cat FILE)` takes off and others do not
            assert find(environ={**pair, token: "t", name: "x\n"}).get()


def test_a_token_alone_is_half_a_pair() -> None:
    with pytest.raises(AccessDenied, match="OSS_SESSION_TOKEN is set, OSS_ACCESS_KEY_ID is not"):
        find(environ={"OSS_SESSION_TOKEN": "t", **CLOUD})


def test_the_order(cloud: Cloud, rrsa: dict[str, str]) -> None:
    links = [OSS, CLOUD, rrsa, metadata(cloud.url)]
    expected = [
        "OSS_ACCESS_KEY_ID",
        "ALIBABA_CLOUD_ACCESS_KEY_ID",
        f"RRSA role {ROLE_ARN}",
        "the ECS RAM role",
    ]
    while links:
        environ = {name: value for link in links for name, value in link.items()}
        assert expected[0] in find(environ=environ).describe()
        empty = dict.fromkeys(links[0], "")  # an empty variable is one that is not set
        links, expected = links[1:], expected[1:]
        if links:
            environ = {**empty, **{name: value for link in links for name, value in link.items()}}
            assert expected[0] in find(environ=environ).describe()
    assert cloud.asked == [], "find asks nobody"


def test_anonymous_on_request_alone(cloud: Cloud) -> None:
    source = find(anonymous=True, environ={**OSS, **metadata(cloud.url)})
    assert source.get().anonymous
    assert source.describe() == "anonymous"
    assert not find(environ=OSS).get().anonymous


# RRSA


def test_rrsa(cloud: Cloud, rrsa: dict[str, str]) -> None:
    source = find(environ=rrsa)
    found = source.get()
    assert (found.key_id, found.secret, found.token) == ("STS.1", "shh-secret-1", "shh-token-1")
    assert found.expires == pytest.approx(time.time() + 3600, abs=30)
    assert found.source == source.describe() == f"RRSA role {ROLE_ARN}"
    [asked] = cloud.asked
    assert asked.method == "POST"
    assert asked.form["OIDCToken"] == ["shh-oidc-1"]
    assert asked.form["RoleArn"] == [ROLE_ARN]
    assert asked.form["OIDCProviderArn"] == [PROVIDER_ARN]
    assert asked.form["RoleSessionName"][0].startswith("stager-")
    assert "OIDCToken" not in asked.query, "a token in a URL is logged on its way"


def test_the_session_can_be_named(cloud: Cloud, rrsa: dict[str, str]) -> None:
    find(environ={**rrsa, "ALIBABA_CLOUD_ROLE_SESSION_NAME": "job-7"}).get()
    assert cloud.asked[0].form["RoleSessionName"] == ["job-7"]


def test_the_token_file_is_read_each_time(cloud: Cloud, rrsa: dict[str, str], tmp_path: Path) -> None:
    source = find(environ=rrsa)
    (tmp_path / "token").write_text("shh-oidc-2")
    first = source.get()
    (tmp_path / "token").write_text("shh-oidc-3")
    source.invalidate(first)
    source.get()
    assert [asked.form["OIDCToken"] for asked in cloud.asked] == [["shh-oidc-2"], ["shh-oidc-3"]]


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, "https://sts.aliyuncs.com"),
        ({"REGION": "cn-beijing"}, "https://sts.cn-beijing.aliyuncs.com"),
        ({"REGION": "cn-beijing", "VPC": "True"}, "https://sts-vpc.cn-beijing.aliyuncs.com"),
        ({"VPC": "true"}, "https://sts.aliyuncs.com"),
        (
            {"REGION": "cn-beijing", "ENDPOINT": "sts-vpc.cn-hangzhou.aliyuncs.com"},
            "https://sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        ({"ENDPOINT": "https://sts.example:8443/"}, "https://sts.example:8443"),
        ({"ENDPOINT": "http://localhost:1"}, "http://localhost:1"),
    ],
)
def test_where_sts_is_asked(rrsa: dict[str, str], environ: dict[str, str], endpoint: str) -> None:
    names = {
        "REGION": "ALIBABA_CLOUD_STS_REGION",
        "VPC": "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED",
        "ENDPOINT": "ALIBABA_CLOUD_STS_ENDPOINT",
    }
    del rrsa["ALIBABA_CLOUD_STS_ENDPOINT"]
    source = find(environ={**rrsa, **{names[name]: value for name, value in environ.items()}})
    assert source._provider.endpoint == endpoint  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "endpoint", ["http://sts.aliyuncs.com", "ftp://127.0.0.1", "https://", "a b", "https://u:shh@h", "h:x"]
)
def test_sts_endpoints_that_cannot_be(rrsa: dict[str, str], endpoint: str) -> None:
    with pytest.raises(UsageError, match="ALIBABA_CLOUD_STS_ENDPOINT") as caught:
        find(environ={**rrsa, "ALIBABA_CLOUD_STS_ENDPOINT": endpoint})
    assert "shh" not in caught.value.message


@pytest.mark.parametrize("name", ["ROLE_ARN", "OIDC_PROVIDER_ARN", "OIDC_TOKEN_FILE"])
def test_rrsa_with_a_part_missing(rrsa: dict[str, str], name: str) -> None:
    with pytest.raises(AccessDenied, match=rf"^ALIBABA_CLOUD_OIDC_.* is set, ALIBABA_CLOUD_{name} is not$"):
        find(environ={**rrsa, f"ALIBABA_CLOUD_{name}": ""})


def test_a_role_alone_is_not_rrsa(cloud: Cloud) -> None:
    found = find(environ={"ALIBABA_CLOUD_ROLE_ARN": ROLE_ARN, **metadata(cloud.url)})
    assert "ECS" in found.describe()


def test_no_token_file(cloud: Cloud, rrsa: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    with pytest.raises(AccessDenied, match=r"token` \(ALIBABA_CLOUD_OIDC_TOKEN_FILE\): .* \(ENOENT\)"):
        find(environ=rrsa).get()
    (tmp_path / "token").write_text("\n")
    with pytest.raises(RemoteError, match="is empty"):
        unpaused(find(environ=rrsa)).get()
    (tmp_path / "token").write_text("x" * 20_001)
    with pytest.raises(AccessDenied, match="does not hold an OIDC token"):
        find(environ=rrsa).get()
    assert cloud.asked == []


def test_sts_refuses(cloud: Cloud, rrsa: dict[str, str]) -> None:
    body = {"Code": "AuthenticationFail.NoPermission", "Message": "shh-oidc-1", "RequestId": "0A-1B"}
    cloud.sts_refuses = [(403, {}, body)]
    with pytest.raises(
        AccessDenied, match=r"403 AuthenticationFail.NoPermission \(request id 0A-1B\)"
    ) as caught:
        find(environ=rrsa).get()
    assert "shh" not in caught.value.message
    assert len(cloud.asked) == 1, "what does not pass is not asked again"


@pytest.mark.parametrize("code", ["shh-oidc-1", "x.shh-oidc-1", "shh-o", "a code\nwith a line", "x" * 81])
def test_a_code_that_is_none_is_not_told(cloud: Cloud, rrsa: dict[str, str], code: str) -> None:
    cloud.sts_refuses = [(400, {}, {"Code": code, "RequestId": code})]
    with pytest.raises(AccessDenied) as caught:
        find(environ=rrsa).get()
    assert caught.value.message == f"RRSA role {ROLE_ARN}: STS says 400 without a code (request id none)"


@pytest.mark.parametrize(
    ("status", "code"), [(503, "ServiceUnavailable"), (429, ""), (400, "Throttling.User")]
)
def test_what_passes_is_asked_again_a_few_times(
    cloud: Cloud, rrsa: dict[str, str], status: int, code: str
) -> None:
    refusal = (status, {"Retry-After": "3"}, {"Code": code})
    source = unpaused(find(environ=rrsa))
    waits: list[float] = []
    source._pause = waits.append
    cloud.sts_refuses = [refusal] * (ATTEMPTS - 1)
    assert source.get().key_id == f"STS.{ATTEMPTS}"
    assert waits == [3.0] * (ATTEMPTS - 1)
    source.invalidate(source.get())
    cloud.asked.clear()
    cloud.sts_refuses = [refusal] * 100
    with pytest.raises(RemoteError) as caught:
        source.get()
    assert caught.value.retry_after == 3
    assert len(cloud.asked) == ATTEMPTS


def test_a_long_wait_is_left_to_whoever_asked(cloud: Cloud, rrsa: dict[str, str]) -> None:
    cloud.sts_refuses = [(503, {"Retry-After": "60"}, {})] * ATTEMPTS
    with pytest.raises(RemoteError) as caught:
        find(environ=rrsa).get()
    assert caught.value.retry_after == 60
    assert len(cloud.asked) == 1


def test_redirects_are_not_followed(cloud: Cloud, rrsa: dict[str, str]) -> None:
    cloud.sts_refuses = [(307, {"Location": f"{cloud.url}/elsewhere"}, {})]
    with pytest.raises(AccessDenied, match="STS says 307"):
        find(environ=rrsa).get()
    assert len(cloud.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"Credentials": 1}',
        b'{"Credentials": {"AccessKeyId": "a"}}',
        b"\xff" * 70_000,
    ],
)
def test_answers_that_are_no_credentials(cloud: Cloud, rrsa: dict[str, str], body: bytes) -> None:
    cloud.garbage = body
    with pytest.raises(RemoteError, match=r"no credentials|too long"):
        unpaused(find(environ=rrsa)).get()


@pytest.mark.parametrize("field", ["AccessKeyId", "AccessKeySecret", "SecurityToken"])
def test_what_could_break_out_of_a_header_is_refused(cloud: Cloud, rrsa: dict[str, str], field: str) -> None:
    cloud.garbage = json.dumps({"Credentials": {**cloud.issued(), field: "shh\r\nX:y"}}).encode()
    with pytest.raises(RemoteError, match="no credentials"):
        unpaused(find(environ=rrsa)).get()


def test_an_answer_that_is_too_long(cloud: Cloud, rrsa: dict[str, str]) -> None:
    cloud.garbage = json.dumps({"pad": "x" * 70_000, "Credentials": cloud.issued()}).encode()
    with pytest.raises(RemoteError, match="too long"):
        unpaused(find(environ=rrsa)).get()


def test_an_answer_that_drips_in_comes_to_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
                for _ in range(600):
                    connection.sendall(b"x")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        with pytest.raises(Silence, match="takes too long"):
            exchange("GET", url, headers={}, timeout=0.25, proxies=False)
        thread.join()


def test_sts_goes_through_a_proxy(
    cloud: Cloud, rrsa: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", cloud.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert find(environ={**rrsa, "ALIBABA_CLOUD_STS_ENDPOINT": nobody()}).get().key_id == "STS.1"
    with pytest.raises(AccessDenied, match="no credentials found"):
        find(environ=metadata(nobody())).get()  # the metadata service is never asked through one


# The ECS instance's role


def test_ecs_by_version_2(cloud: Cloud) -> None:
    cloud.hardened = True
    source = find(environ=metadata(cloud.url))
    found = source.get()
    assert (found.key_id, found.secret, found.token) == ("STS.3", "shh-secret-3", "shh-token-3")
    assert found.source == source.describe() == "ECS RAM role node-role"
    assert [asked.method for asked in cloud.asked] == ["PUT", "GET", "GET"]


def test_ecs_with_the_role_named(cloud: Cloud) -> None:
    source = find(environ=metadata(cloud.url, ALIBABA_CLOUD_ECS_METADATA="node-role"))
    assert source.describe() == "ECS RAM role node-role"
    assert source.get().key_id == "STS.2"
    assert [asked.path.rsplit("/", 1)[1] for asked in cloud.asked] == ["token", "node-role"]
    with pytest.raises(AccessDenied, match="ECS RAM role other: the metadata service says 404"):
        find(environ=metadata(cloud.url, ALIBABA_CLOUD_ECS_METADATA="other")).get()


@pytest.mark.parametrize("status", [400, 404, 405, 500])
def test_version_1_where_version_2_gives_no_token(cloud: Cloud, status: int) -> None:
    cloud.v2 = status
    assert find(environ=metadata(cloud.url)).get().key_id == "STS.3"
    assert [asked.headers.get("x-aliyun-ecs-metadata-token") for asked in cloud.asked] == [None] * 3
    cloud.asked.clear()
    with pytest.raises(
        StagerError, match=f"a token for the ECS metadata service: the metadata service says {status}"
    ):
        unpaused(find(environ=metadata(cloud.url, ALIBABA_CLOUD_IMDSV1_DISABLED="true"))).get()
    assert {asked.method for asked in cloud.asked} == {"PUT"}


def test_version_1_where_a_token_never_arrives(cloud: Cloud) -> None:
    gone = threading.Event()

    def hang_on_put() -> None:
        if cloud.asked[-1].method == "PUT":
            gone.wait(5)

    cloud.before_answer = hang_on_put
    assert find(environ=metadata(cloud.url)).get().source == "ECS RAM role node-role"
    cloud.asked.clear()
    with pytest.raises(AccessDenied, match=r"does not answer \(timed out\)"):
        find(environ=metadata(cloud.url, ALIBABA_CLOUD_IMDSV1_DISABLED="true")).get()
    assert [asked.method for asked in cloud.asked] == ["PUT"]
    gone.set()


@pytest.mark.parametrize("value", ["True", "1", "yes", " ON "])
def test_the_off_switch(cloud: Cloud, value: str) -> None:
    with pytest.raises(
        AccessDenied, match="no credentials found: ALIBABA_CLOUD_ECS_METADATA_DISABLED switches the RAM role"
    ) as caught:
        find(
            environ=metadata(
                cloud.url, ALIBABA_CLOUD_ECS_METADATA_DISABLED=value, ALIBABA_CLOUD_ECS_METADATA="x"
            )
        )
    assert cloud.asked == []
    for name in (*OSS, *CLOUD, "RRSA", "ECS", "--anonymous"):
        assert name in (caught.value.hint or "")


@pytest.mark.parametrize("value", ["", "0", "false", "off", "no"])
def test_the_off_switch_left_alone(cloud: Cloud, value: str) -> None:
    environ = metadata(cloud.url, ALIBABA_CLOUD_ECS_METADATA_DISABLED=value)
    assert find(environ=environ).get().source == "ECS RAM role node-role"


def test_the_metadata_service_is_asked_without_a_proxy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", nobody())
    assert find(environ=metadata(cloud.url)).get().source == "ECS RAM role node-role"
    assert [asked.method for asked in cloud.asked] == ["PUT", "GET", "GET"]


def test_nobody_at_the_metadata_address(monkeypatch: pytest.MonkeyPatch) -> None:
    methods: list[str] = []
    monkeypatch.setattr(
        ecs, "exchange", lambda method, *a, **k: (methods.append(method), exchange(method, *a, **k))[1]
    )
    with pytest.raises(
        AccessDenied, match=r"no credentials found: the ECS metadata service .* does not answer"
    ):
        find(environ=metadata(nobody())).get()
    assert methods == ["PUT"], "one wait for a connection is enough"
    with pytest.raises(RemoteError, match=r"ECS RAM role r: .* does not answer"):
        unpaused(find(environ=metadata(nobody(), ALIBABA_CLOUD_ECS_METADATA="r"))).get()


def test_a_metadata_address_that_never_answers(silent: str) -> None:
    begun = time.monotonic()
    with pytest.raises(AccessDenied, match=r"no credentials found: .* does not answer \(timed out\)"):
        find(environ=metadata(silent, ALIBABA_CLOUD_IMDSV1_DISABLED="true")).get()
    assert time.monotonic() - begun >= ecs.TIMEOUT, "it was waited for"
    assert ecs.TIMEOUT == 1.0


def test_an_instance_without_a_role(cloud: Cloud) -> None:
    cloud.role = ""
    with pytest.raises(
        AccessDenied, match="no credentials found: no RAM role is attached to this ECS instance"
    ):
        find(environ=metadata(cloud.url)).get()


def test_something_else_at_the_metadata_address(cloud: Cloud) -> None:
    cloud.garbage = b"<html>please log in</html>"
    with pytest.raises(
        AccessDenied, match=r"no credentials found: what answers .* is not the ECS metadata service"
    ):
        find(environ=metadata(cloud.url)).get()


def test_a_metadata_service_in_trouble_is_asked_again(cloud: Cloud) -> None:
    cloud.metadata_refuses = [503, 503]
    assert unpaused(find(environ=metadata(cloud.url))).get().source == "ECS RAM role node-role"


@pytest.mark.parametrize(
    "environ",
    [
        {"ALIBABA_CLOUD_ECS_METADATA": "../token"},
        {"ALIBABA_CLOUD_ECS_METADATA": ROLE_ARN},
        {"STAGER_ECS_METADATA_URL": "x"},
    ],
)
def test_settings_that_cannot_be(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(environ))):
        find(environ=environ)


# Against the look-alike services whose keys the look-alike OSS accepts


def head(oss: Oss, source: Source) -> int:
    """The size of ``r1/a``, asked for with the credentials of `source`, once more where they were refused as expired."""
    location = Location.parse(oss.url("r1"))
    store = OssStore(location, StoreOptions(endpoint=oss.endpoint, region=oss.region), source=source)
    try:
        return store.head("a").size
    except CredentialsExpired:
        return store.head("a").size


def test_rrsa_opens_the_bucket(oss: Oss, sts: Sts, tmp_path: Path) -> None:
    oss.put("r1/a", b"12345")
    token = tmp_path / "token"
    token.write_text(sts.issue())
    environ = {
        "ALIBABA_CLOUD_ROLE_ARN": sts.role,
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": sts.provider,
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE": str(token),
        "ALIBABA_CLOUD_STS_ENDPOINT": sts.endpoint,
    }
    source = find(environ=environ)
    assert head(oss, source) == head(oss, source) == 5
    assert len(sts.given) == 1
    sts.revoke(token.read_text())
    token.write_text(sts.issue())
    oss.keys.find(sts.given[0]).expires = time.time()
    assert head(oss, source) == 5
    assert len(sts.given) == 2
    sts.revoke(token.read_text())
    source.invalidate(source.get())
    with pytest.raises(AccessDenied, match=r"AuthenticationFail\.OIDCToken\.Invalid") as caught:
        source.get()
    assert token.read_text() not in caught.value.message


def test_the_ecs_role_opens_the_bucket(oss: Oss, metadata_service: Metadata) -> None:
    oss.put("r1/a", b"12345")
    source = find(environ=metadata(metadata_service.endpoint))
    assert head(oss, source) == 5
    metadata_service.forget_sessions()
    metadata_service.rotate()
    oss.keys.find(metadata_service.given[0]).expires = time.time()
    assert head(oss, source) == 5
    assert len(metadata_service.given) == 2


# Refresh


class Hand:
    """A clock set by hand, and a provider whose credentials live `lifetime` seconds on it."""

    def __init__(self, lifetime: float = 3600.0) -> None:
        self.now = 1_000_000.0
        self.lifetime = lifetime
        self.fetched = 0
        self.failure: Exception | None = None
        self.during: Callable[[], None] = lambda: None
        self.source = Refreshed(self, clock=lambda: self.now, pause=lambda _seconds: None)

    def fetch(self) -> Credentials:
        self.fetched += 1
        self.during()
        if self.failure is not None:
            raise self.failure
        return Credentials(f"id-{self.fetched}", "shh-secret", "shh-token", self.now + self.lifetime, "hand")

    def describe(self) -> str:
        return "hand"

    def get(self) -> str:
        return self.source.get().key_id


def test_refreshed_before_they_run_out() -> None:
    hand = Hand()
    assert [hand.get(), hand.get()] == ["id-1", "id-1"]
    hand.now += 3600 - MARGIN - 1
    assert hand.get() == "id-1"
    hand.now += 1
    assert [hand.get(), hand.get()] == ["id-2", "id-2"]
    hand.now += 3600 - MARGIN
    assert hand.get() == "id-3"


def test_short_lives_are_refreshed_at_four_fifths() -> None:
    hand = Hand(100)
    assert hand.get() == "id-1"
    hand.now += 79
    assert hand.get() == "id-1"
    hand.now += 1
    assert hand.get() == "id-2"


@pytest.mark.parametrize("failure", [RemoteError("away"), AccessDenied("no")])
def test_a_failed_refresh_keeps_what_is_valid(failure: StagerError) -> None:
    hand = Hand()
    hand.get()
    hand.now += 3600 - MARGIN
    hand.failure = failure
    assert hand.get() == "id-1"
    tried = hand.fetched
    assert hand.get() == "id-1"
    assert hand.fetched == tried, "not again at once"
    gaps, last = [], hand.now
    while hand.now < 1_000_000 + 3599:
        hand.now += 0.25
        assert hand.get() == "id-1"
        if hand.fetched > tried:
            gaps.append(hand.now - last)
            tried, last = hand.fetched, hand.now
    assert gaps[0] <= 2.25
    assert max(gaps[-2:]) > 15, "later and later"
    hand.now += 1
    with pytest.raises(type(failure), match=failure.message):
        hand.get()
    hand.failure = None
    assert hand.get() == f"id-{hand.fetched}"
    assert hand.fetched == tried + (ATTEMPTS if failure.retryable else 1) + 1


def test_refused_credentials_are_fetched_again_once() -> None:
    hand = Hand()
    first = hand.source.get()
    hand.source.invalidate(first)
    second = hand.source.get()
    assert second.key_id == "id-2"
    hand.source.invalidate(first)  # of another thread, which had signed with the first
    assert hand.source.get() is second
    hand.source.invalidate(second)
    hand.failure = AccessDenied("no")
    with pytest.raises(AccessDenied):
        hand.get()


def test_fresh_credentials_that_have_run_out_point_at_the_clock() -> None:
    hand = Hand(-7200)
    with pytest.raises(RemoteError, match="fresh credentials ran out 7200s ago") as caught:
        hand.get()
    assert "clock" in (caught.value.hint or "")


def threads(count: int, work: Callable[[], object]) -> list[object]:
    """What each of `count` threads that begin together gets or raises."""
    gate, results = threading.Barrier(count), []

    def run() -> None:
        gate.wait()
        try:
            results.append(work())
        except StagerError as exc:
            results.append(exc)

    all_of_them = [threading.Thread(target=run) for _ in range(count)]
    for thread in all_of_them:
        thread.start()
    for thread in all_of_them:
        thread.join()
    return results


def waited_for(hand: Hand, count: int) -> None:
    """Returns once so many threads wait for the fetch under way; gives up after ten seconds."""
    until = time.monotonic() + 10
    while len(hand.source._flight.landed._cond._waiters) < count and time.monotonic() < until:  # type: ignore[union-attr,attr-defined]
        time.sleep(0.001)


def test_one_thread_fetches_and_all_get_it() -> None:
    hand = Hand()
    hand.during = lambda: waited_for(hand, 15)
    assert threads(16, hand.get) == ["id-1"] * 16
    assert hand.fetched == 1


def test_one_failure_is_shared_and_each_thread_has_its_own() -> None:
    hand = Hand()
    hand.failure = AccessDenied("no", hint="h")
    hand.during = lambda: waited_for(hand, 15)
    found = threads(16, hand.get)
    assert [(type(exc), exc.message, exc.hint) for exc in found] == [(AccessDenied, "no", "h")] * 16  # type: ignore[attr-defined]
    assert hand.fetched == 1
    assert len({id(exc) for exc in found}) == 16


def test_nobody_waits_while_the_old_ones_are_valid() -> None:
    hand = Hand()
    hand.get()
    hand.now += 3600 - MARGIN
    asked, go_on = threading.Event(), threading.Event()
    hand.during = lambda: (asked.set(), go_on.wait(10))[0]
    one = threading.Thread(target=hand.get)
    one.start()
    assert asked.wait(10)
    assert hand.get() == "id-1"
    go_on.set()
    one.join()
    assert hand.get() == "id-2"


def test_a_fetch_broken_off_lets_the_others_go_on() -> None:
    hand = Hand()
    begun = threading.Event()

    def interrupted() -> None:
        begun.set()
        waited_for(hand, 1)
        raise KeyboardInterrupt

    hand.during = interrupted
    found: list[object] = []
    other = threading.Thread(target=lambda: (begun.wait(10), found.extend(threads(1, hand.get))))
    other.start()
    with pytest.raises(KeyboardInterrupt):
        hand.get()
    other.join(10)
    [result] = found
    assert isinstance(result, RemoteError)
    assert result.message == "hand: fetching credentials was broken off"
    hand.during = lambda: None
    assert hand.get() == "id-2"


# Secrets


def test_neither_repr_nor_str_has_a_secret() -> None:
    credentials = Credentials("id", "shh-secret", "shh-token", 1.0, "somewhere")
    for text in (
        repr(credentials),
        str(credentials),
        f"{credentials}",
        repr([credentials]),
    ):
        assert "id" in text
        assert "shh" not in text
    with pytest.raises(TypeError):
        json.dumps(credentials)


CHILD = """
import logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from stager.store.credentials import find
try:
    source = find()
    for _ in range(3):
        print(source.describe(), repr(source), vars(source) if hasattr(source, "__dict__") else source)
        found = source.get()
        print(found, [found], f"{found}", vars(source) if hasattr(source, "__dict__") else source)
        source.invalidate(found)
except Exception as exc:
    traceback.print_exc()
    print(exc, repr(exc), vars(exc))
print(open("/proc/self/cmdline").read())
"""


def test_no_secret_in_anything_a_process_says(cloud: Cloud, rrsa: dict[str, str]) -> None:
    refusal = {"Code": "shh-oidc-1", "Message": "shh-oidc-1 shh-secret", "RequestId": "shh-oidc-1"}
    told = {"Code": "InvalidParameter.OIDCToken", "Message": "shh-oidc-1", "AccessKeySecret": "shh-secret"}
    cases: list[tuple[dict[str, str], Callable[[], None], str]] = [
        (OSS, lambda: None, "oss-id"),
        ({**OSS, "OSS_SESSION_TOKEN": "shh-token"}, lambda: None, "oss-id"),
        ({"OSS_ACCESS_KEY_SECRET": "oss-secret"}, lambda: None, "AccessDenied"),
        (rrsa, lambda: None, "STS."),
        (rrsa, lambda: cloud.sts_refuses.extend([(400, {}, refusal)]), "AccessDenied"),
        (rrsa, lambda: cloud.sts_refuses.extend([(500, {}, told)] * ATTEMPTS), "RemoteError"),
        (metadata(cloud.url), lambda: None, "STS."),
        (metadata(cloud.url, ALIBABA_CLOUD_ECS_METADATA="other"), lambda: None, "AccessDenied"),
        (metadata(nobody(), ALIBABA_CLOUD_IMDSV1_DISABLED="true"), lambda: None, "AccessDenied"),
    ]
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    for environ, prepare, expected in cases:
        prepare()
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            env={**plain, **environ},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert expected in said
        for secret in SECRETS:
            assert secret not in said


def test_no_secret_in_what_the_program_says(cloud: Cloud, rrsa: dict[str, str]) -> None:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    oidc = {"Code": "AuthenticationFail.NoPermission", "Message": "shh-oidc-1", "RequestId": "R-1"}
    cloud.sts_refuses = [(403, {}, oidc)]
    key_pair = {**OSS, "OSS_SESSION_TOKEN": "shh-token"}
    place = ["oss://bucket/x", "--endpoint", cloud.url, "--region", "cn-x"]
    for environ, form, expected in ((rrsa, "-v", oidc["Code"]), (key_pair, "--json", "bucket")):
        done = subprocess.run(
            [sys.executable, "-m", "stager", "ls", "-vv", form, *place],
            env={**plain, **environ}, cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode not in (0, 2), said
        assert expected in said
        for secret in SECRETS:
            assert secret not in said
