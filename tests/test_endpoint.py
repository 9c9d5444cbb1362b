"""What an endpoint's name says, and which of the places that name one is believed."""

from __future__ import annotations

import pytest

from stager.core.errors import UsageError
from stager.core.location import Location
from stager.store.oss.endpoint import Endpoint, Style, choose, of_region, parse

HANGZHOU = "https://oss-cn-hangzhou.aliyuncs.com"


@pytest.mark.parametrize(
    ("text", "url", "region", "style", "internal", "accelerator"),
    [
        ("oss-cn-hangzhou.aliyuncs.com", HANGZHOU, "cn-hangzhou", "virtual", False, False),
        (
            "oss-cn-hangzhou-internal.aliyuncs.com",
            "http://oss-cn-hangzhou-internal.aliyuncs.com",
            "cn-hangzhou",
            "virtual",
            True,
            False,
        ),
        (
            "https://oss-us-west-1-internal.aliyuncs.com/",
            "https://oss-us-west-1-internal.aliyuncs.com",
            "us-west-1",
            "virtual",
            True,
            False,
        ),
        (
            "HTTP://OSS-cn-shanghai.aliyuncs.com",
            "http://oss-cn-shanghai.aliyuncs.com",
            "cn-shanghai",
            "virtual",
            False,
            False,
        ),
        (
            "cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com",
            "http://cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com",
            "cn-hangzhou",
            "virtual",
            True,
            True,
        ),
        (
            "ap-southeast-1a-internal.oss-data-acc.aliyuncs.com",
            "http://ap-southeast-1a-internal.oss-data-acc.aliyuncs.com",
            "ap-southeast-1",
            "virtual",
            True,
            True,
        ),
        (
            "cn-hangzhou.oss.aliyuncs.com",
            "https://cn-hangzhou.oss.aliyuncs.com",
            "cn-hangzhou",
            "virtual",
            False,
            False,
        ),
        (
            "vpc100-oss-cn-beijing.aliyuncs.com",
            "http://vpc100-oss-cn-beijing.aliyuncs.com",
            "cn-beijing",
            "virtual",
            True,
            False,
        ),
        (
            "ep-bp1.oss.cn-hangzhou.privatelink.aliyuncs.com",
            "http://ep-bp1.oss.cn-hangzhou.privatelink.aliyuncs.com",
            "cn-hangzhou",
            "virtual",
            True,
            False,
        ),
        (
            "oss-accelerate.aliyuncs.com",
            "https://oss-accelerate.aliyuncs.com",
            None,
            "virtual",
            False,
            False,
        ),
        (
            "oss-accelerate-overseas.aliyuncs.com",
            "https://oss-accelerate-overseas.aliyuncs.com",
            None,
            "virtual",
            False,
            False,
        ),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", None, "path", False, False),
        ("localhost:9000", "http://localhost:9000", None, "path", False, False),
        ("models.example.com", "https://models.example.com", None, "cname", False, False),
        (
            "oss-cn-x1.cloud.example.com",
            "https://oss-cn-x1.cloud.example.com",
            None,
            "virtual",
            False,
            False,
        ),
    ],
)
def test_the_name_tells(text, url, region, style, internal, accelerator) -> None:
    assert parse(text) == Endpoint(url, region, Style(style), internal, accelerator)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("::1", "http://[::1]"),
        ("[::1]:21801", "http://[::1]:21801"),
        ("http://[::1]:21801", "http://[::1]:21801"),
        ("https://[2001:db8::7]", "https://[2001:db8::7]"),
        ("2001:DB8::7", "http://[2001:db8::7]"),
    ],
)
def test_ipv6_addresses_take_the_bucket_in_the_path(text: str, url: str) -> None:
    assert parse(text) == Endpoint(url, None, Style.PATH)


def test_a_bucket_before_the_host_is_taken_off() -> None:
    assert parse("https://models.oss-cn-hangzhou.aliyuncs.com", "models") == parse(HANGZHOU)
    assert parse("models.cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com", "models").host.startswith("cn-")
    # A custom domain may begin with the bucket's name and mean it.
    assert parse("models.example.com", "models").host == "models.example.com"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://oss-cn-hangzhou.aliyuncs.com",
        "",
        "https://",
        "user:secret@oss-cn-hangzhou.aliyuncs.com",
        "oss-cn-hangzhou.aliyuncs.com/bucket",
        "oss-cn-hangzhou.aliyuncs.com?x=1",
        "host:port",
        "[::1",
        "::1]",
        "[fe80::1%eth0]:80",
        "[v1.x]",
        "::g",
        "two words",
        "s3.oss-cn-hangzhou.aliyuncs.com",
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.parametrize(
    ("endpoint", "region", "environ", "url", "found"),
    [
        (HANGZHOU, None, {"OSS_ENDPOINT": "other.example.com"}, HANGZHOU, "cn-hangzhou"),
        (None, None, {"OSS_ENDPOINT": HANGZHOU, "OSS_REGION": "cn-beijing"}, HANGZHOU, "cn-hangzhou"),
        (HANGZHOU, "cn-beijing", {}, HANGZHOU, "cn-beijing"),
        ("10.0.0.1", None, {"OSS_REGION": "oss-cn-beijing"}, "http://10.0.0.1", "cn-beijing"),
        ("10.0.0.1", None, {}, "http://10.0.0.1", None),
        (None, "cn-hangzhou", {"OSS_REGION": "cn-beijing"}, HANGZHOU, "cn-hangzhou"),
        (
            None,
            None,
            {"OSS_REGION": "cn-hangzhou", "ALIBABA_CLOUD_REGION_ID": "cn-beijing"},
            HANGZHOU,
            "cn-hangzhou",
        ),
        (None, None, {"OSS_REGION": "", "ALIBABA_CLOUD_REGION_ID": "cn-hangzhou"}, HANGZHOU, "cn-hangzhou"),
    ],
)
def test_whoever_is_nearer_to_the_user_is_believed(endpoint, region, environ, url, found) -> None:
    chosen = choose(endpoint, region, environ)
    assert chosen is not None
    assert (chosen.url, chosen.region) == (url, found)


def test_nothing_said_is_nothing_chosen() -> None:
    assert choose(None, None, {}) is None
    with pytest.raises(UsageError):
        choose(None, "Hang zhou", {})


def test_the_way_inside_is_named_for_public_endpoints_only() -> None:
    assert of_region("cn-hangzhou").inside == "oss-cn-hangzhou-internal.aliyuncs.com"
    assert parse("oss-cn-hangzhou-internal.aliyuncs.com").inside is None
    assert parse("10.0.0.1").in_region("cn-hangzhou").inside is None
    assert parse("oss-accelerate.aliyuncs.com").inside is None


@pytest.mark.parametrize(
    "text",
    [
        "http://usr:PASS@oss-cn-hangzhou.aliyuncs.com",
        "usr:PASS@10.0.0.1",
        "http://usr:PA?SS@10.0.0.1",
        "http://usr:PA@SS@10.0.0.1",
        "http://usr:PA://SS@10.0.0.1",
        "ftp://usr:PASS@10.0.0.1",
        "http://usr:PASS@s3.oss-cn-hangzhou.aliyuncs.com",
        "http://b.oss-cn-hangzhou.aliyuncs.com/k?Signature=PASS&x=1@SS",
    ],
)
def test_a_password_in_an_endpoint_is_not_told(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(None, None, {"OSS_ENDPOINT": text})
    told = f"{caught.value.message} {caught.value.hint}"
    assert not any(part in told for part in ("usr", "PA", "SS@", "Signature"))


@pytest.mark.parametrize(
    "text",
    [
        "oss://bucket/x?Expires=1&Signature=PASS",
        "oss://bucket?Signature=PASS",
        "oss://usr:PASS@bucket/x",
        "oss://bucket/x?a=@b&Signature=PASS",
        "https://bucket.oss-cn-hangzhou.aliyuncs.com/x?Expires=1&Signature=PASS",
        "https://usr:PASS@bucket.oss-cn-hangzhou.aliyuncs.com/x",
    ],
)
def test_a_signature_in_a_location_is_not_told(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Location.parse(text)
    assert "PASS" not in f"{caught.value.message} {caught.value.hint}"
    assert "`oss://" in caught.value.message or "`https://" in caught.value.message


def test_an_accelerator_with_the_full_name_of_its_region() -> None:
    found = parse("oss-cn-hangzhou-internal.oss-data-acc.aliyuncs.com")
    assert (found.region, found.accelerator, found.internal) == ("cn-hangzhou", True, True)
