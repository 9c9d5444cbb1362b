"""The look-alike STS and metadata services, TLS, and the proxy."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET

import oss2
import pytest
import requests

from tests.osslab.fixtures import Oss
from tests.osslab.metadata import TOKEN, TTL, Metadata
from tests.osslab.proxy import Proxy
from tests.osslab.sts import PROVIDER, ROLE, Sts
from tests.osslab.test_osslab import REGION, bucket_for, code_of
from tests.osslab.tls import Certificates
from tests.osslab.wire import Answer

CREDENTIALS = "/latest/meta-data/ram/security-credentials/"


def assume(sts: Sts, **changes: str) -> requests.Response:
    asked = {
        "Action": "AssumeRoleWithOIDC", "Version": "2015-04-01", "Format": "JSON", "RoleArn": ROLE,
        "OIDCProviderArn": PROVIDER, "RoleSessionName": "stager", "OIDCToken": changes.pop("token", ""),
    }  # fmt: skip
    return requests.post(
        sts.endpoint + "/", data={n: v for n, v in (asked | changes).items() if v}, timeout=10
    )


def test_sts_gives_keys_that_oss_accepts(oss: Oss, sts: Sts) -> None:
    oss.put("a", b"1")
    given = assume(sts, token=sts.issue()).json()
    keys = given["Credentials"]
    assert given["AssumedRoleUser"]["Arn"] == "acs:ram::1234567890123456:assumed-role/stager/stager"
    ends = time.strptime(keys["Expiration"], "%Y-%m-%dT%H:%M:%SZ")
    assert 3500 < time.mktime(ends) - time.mktime(time.gmtime()) <= 3600
    auth = oss2.StsAuth(
        keys["AccessKeyId"], keys["AccessKeySecret"], keys["SecurityToken"], auth_version="v4"
    )
    bucket = oss2.Bucket(auth, oss.endpoint, "models", region=REGION)
    assert bucket.get_object("a").read() == b"1"
    oss.keys.find(keys["AccessKeyId"]).expires = time.time()
    assert code_of(lambda: bucket.get_object("a")) == (403, "SecurityTokenExpired")
    assert sts.given == [keys["AccessKeyId"]]


def test_sts_answers_in_xml_unless_asked(sts: Sts) -> None:
    answer = requests.get(sts.endpoint, params=dict(sts_request(sts.issue())), timeout=10)
    root = ET.fromstring(answer.text)
    assert root.tag == "AssumeRoleWithOIDCResponse"
    assert root.findtext("Credentials/AccessKeyId").startswith("STS.")
    refused = requests.get(sts.endpoint, params=dict(sts_request("bad")), timeout=10)
    assert ET.fromstring(refused.text).findtext("Code") == "AuthenticationFail.OIDCToken.Invalid"


def sts_request(token: str) -> list[tuple[str, str]]:
    return [
        ("Action", "AssumeRoleWithOIDC"), ("Version", "2015-04-01"), ("RoleArn", ROLE), ("OIDCToken", token),
        ("OIDCProviderArn", PROVIDER), ("RoleSessionName", "x"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"token": "x.y.z"}, 400, "AuthenticationFail.OIDCToken.Invalid"),
        ({"token": ""}, 400, "MissingOIDCToken"),
        ({"RoleArn": "acs:ram::1:role/other"}, 404, "EntityNotExist.Role"),
        ({"OIDCProviderArn": "acs:ram::1:oidc-provider/x"}, 404, "EntityNotExist.OIDCProvider"),
        ({"RoleSessionName": ""}, 400, "MissingRoleSessionName"),
        ({"DurationSeconds": "60"}, 400, "InvalidParameter.DurationSeconds"),
        ({"Action": "AssumeRole"}, 404, "InvalidAction.NotFound"),
        ({"Version": "2014"}, 404, "InvalidAction.NotFound"),
    ],
)
def test_sts_refuses(sts: Sts, changes: dict[str, str], status: int, code: str) -> None:
    answer = assume(sts, **({"token": sts.issue()} | changes))
    assert (answer.status_code, answer.json()["Code"]) == (status, code)
    assert answer.json()["RequestId"]
    assert sts.given == []


def test_oidc_tokens_end(sts: Sts) -> None:
    expired, revoked = sts.issue(-1), sts.issue()
    sts.revoke(revoked)
    assert assume(sts, token=expired).json()["Code"] == "AuthenticationFail.OIDCToken.Expired"
    assert assume(sts, token=revoked).json()["Code"] == "AuthenticationFail.OIDCToken.Invalid"


def test_services_fail_on_request(sts: Sts) -> None:
    sts.failures.append(Answer(503, {}, b"busy"))
    assert assume(sts, token=sts.issue()).status_code == 503
    sts.lifetime = 2.0
    assert assume(sts, token=sts.issue()).status_code == 200
    assert 0 < sts.keys.find(sts.given[0]).expires - time.time() <= 2
    assert [asked.status for asked in sts.asked] == [503, 200]


def session(metadata: Metadata, seconds: str = "60") -> dict[str, str]:
    url = metadata.endpoint + "/latest/api/token"
    answer = requests.put(url, headers={TTL: seconds}, timeout=10)
    assert answer.status_code == 200
    return {TOKEN: answer.text}


def test_metadata_gives_keys_that_oss_accepts(oss: Oss, metadata: Metadata) -> None:
    oss.put("a", b"1")
    headers = session(metadata)
    base = metadata.endpoint + CREDENTIALS
    role = requests.get(base, headers=headers, timeout=10).text
    assert role == "stager-node"
    keys = requests.get(base + role, headers=headers, timeout=10).json()
    assert keys["Code"] == "Success"
    auth = oss2.StsAuth(keys["AccessKeyId"], keys["AccessKeySecret"], keys["SecurityToken"])
    assert oss2.Bucket(auth, oss.endpoint, "models").get_object("a").read() == b"1"
    assert requests.get(base + role, headers=headers, timeout=10).json() == keys  # the same until rotated
    metadata.rotate()
    new = requests.get(base + role, headers=headers, timeout=10).json()["AccessKeyId"]
    assert metadata.given == [keys["AccessKeyId"], new]
    metadata.keys.find(new).expires = time.time()
    assert (
        requests.get(base + role, headers=headers, timeout=10).json()["AccessKeyId"] not in metadata.given[:2]
    )
    assert requests.get(base + "other", headers=headers, timeout=10).status_code == 404
    metadata.role = None
    assert requests.get(base, headers=headers, timeout=10).status_code == 404


def test_metadata_wants_a_session(metadata: Metadata) -> None:
    base = metadata.endpoint + CREDENTIALS
    assert requests.get(base, timeout=10).status_code == 403
    assert requests.get(base, headers={TOKEN: "guess"}, timeout=10).status_code == 403
    headers = session(metadata)
    metadata.forget_sessions()
    assert requests.get(base, headers=headers, timeout=10).status_code == 403
    for seconds in ("", "0", "21601", "x"):
        url = metadata.endpoint + "/latest/api/token"
        assert requests.put(url, headers={TTL: seconds}, timeout=10).status_code == 400
    assert requests.get(metadata.endpoint + "/latest/api/token", timeout=10).status_code == 405
    metadata.hardened = False
    assert requests.get(base, timeout=10).text == "stager-node"
    region = requests.get(metadata.endpoint + "/latest/meta-data/region-id", timeout=10)
    assert region.text == "cn-hangzhou"


def test_https(oss_tls: Oss, oss_certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 20_000
    oss_tls.put("a", data)
    bucket = bucket_for(oss_tls, oss_tls.key, "v4")
    with pytest.raises(oss2.exceptions.RequestError, match="CERTIFICATE_VERIFY_FAILED"):
        bucket.get_object("a")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", oss_certificates.ca)
    bucket = bucket_for(oss_tls, oss_tls.key, "v4")
    assert bucket.get_object("a").read() == data
    bucket.put_object("b", data)
    assert oss_tls.get("b") == data


def test_proxy_for_http(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with Proxy((oss.host, oss.port), credentials="me:secret") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        bucket = oss2.Bucket(
            oss2.AuthV4(oss.key.id, oss.key.secret), "http://oss-x.example", "models", region=REGION
        )
        bucket.put_object("a", b"1" * 100_000)
        assert bucket.get_object("a").read() == b"1" * 100_000
        assert proxy.asked == ["PUT http://models.oss-x.example/a"]  # one connection
        monkeypatch.setenv("http_proxy", proxy.url.replace("secret", "guess"))
        fresh = oss2.Bucket(bucket.auth, "http://oss-x.example", "models", region=REGION)
        with pytest.raises(oss2.exceptions.ServerError) as caught:
            fresh.get_object("a")
        assert caught.value.status == 407


def test_proxy_for_https(
    oss_tls: Oss, oss_certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", oss_certificates.ca)
    with Proxy((oss_tls.host, oss_tls.port)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        endpoint = "https://oss-cn-hangzhou.aliyuncs.com"
        auth = oss2.AuthV4(oss_tls.key.id, oss_tls.key.secret)
        oss2.Bucket(auth, endpoint, "models", region=REGION).put_object("a", b"1")
        assert proxy.asked == ["CONNECT models.oss-cn-hangzhou.aliyuncs.com:443"]
    assert oss_tls.get("a") == b"1"
