"""The look-alike itself, with oss2 as the client: every operation, signed in every way."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlsplit

import oss2
import pytest
import requests

from tests.osslab import checksum
from tests.osslab.fixtures import Oss
from tests.osslab.keys import AccessKey
from tests.osslab.throttle import NEAR, Link

KIB, MIB = 1 << 10, 1 << 20
REGION = "cn-hangzhou"
ODD = (
    "ü 漢字/🤗.bin", " leading and trailing ", "a+b %41%2F&c=d?e#f", "..hidden/.x", "new\nline\ttab", "a//b/", "~!*'()",
    "x" * 1023,
)  # fmt: skip


def bucket_for(oss: Oss, key: AccessKey | None, version: str, name: str = "models") -> oss2.Bucket:
    """A client with that key; None: anonymous."""
    if key is None:
        auth = oss2.AnonymousAuth()
    elif key.token:
        auth = oss2.StsAuth(key.id, key.secret, key.token, auth_version=version)
    else:
        auth = oss2.make_auth(key.id, key.secret, version)
    return oss2.Bucket(auth, oss.endpoint, name, region=REGION)


@pytest.fixture(params=["v1", "v4", "v1-sts", "v4-sts"])
def bucket(oss: Oss, request: pytest.FixtureRequest) -> oss2.Bucket:
    version, _, sts = request.param.partition("-")
    return bucket_for(oss, oss.keys.temporary() if sts else oss.key, version)


def code_of(call: Callable[[], object]) -> tuple[int, str]:
    """Status and code of the refusal that `call` must meet."""
    with pytest.raises(oss2.exceptions.OssError) as caught:
        call()
    assert caught.value.request_id
    assert caught.value.details.get("RequestId") == caught.value.request_id
    assert caught.value.ec == caught.value.headers["x-oss-ec"]
    return caught.value.status, caught.value.code


def raw(oss: Oss, method: str, target: str, **headers: str) -> http.client.HTTPResponse:
    """One request as it stands, without a signature."""
    connection = http.client.HTTPConnection(oss.host, oss.port, timeout=10)
    connection.request(
        method, target, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    answer.body = answer.read()
    connection.close()
    return answer


def test_the_server_is_an_independent_witness() -> None:
    code = "import sys, tests.osslab.__main__; print([m for m in sys.modules if m.split('.')[0] in ('oss2', 'stager')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_crc_is_the_one_of_the_definition() -> None:
    rng = random.Random(7)
    for size in (0, 1, 7, 63, 64, 65, 1000, 5000):
        data = rng.randbytes(size)
        assert checksum.crc64(data) == checksum.slow_crc64(data)
        cut = rng.randint(0, size)
        first, second = checksum.crc64(data[:cut]), checksum.crc64(data[cut:])
        assert checksum.join(first, second, size - cut) == checksum.crc64(data)
        assert checksum.zeros(size) == checksum.slow_crc64(bytes(size))
    assert checksum.slow_crc64(b"123456789") == 0x995DC9BBDF1939FA


def test_put_head_get_delete(oss: Oss, bucket: oss2.Bucket) -> None:
    data = random.Random(1).randbytes(200 * KIB)
    put = bucket.put_object("a/b.bin", data, headers={"x-oss-meta-who": "me", "Content-Type": "x/y"})
    assert put.crc == checksum.crc64(data)  # oss2 compared it with its own as well
    assert put.etag == hashlib.md5(data).hexdigest().upper()
    head = bucket.head_object("a/b.bin")
    assert (head.content_length, head.etag, head.server_crc) == (len(data), put.etag, put.crc)
    assert (head.object_type, head.content_type, head.headers["x-oss-meta-who"]) == ("Normal", "x/y", "me")
    assert head.headers["x-oss-storage-class"] == "Standard"
    got = bucket.get_object("a/b.bin")
    assert (got.status, got.read(), got.server_crc) == (200, data, put.crc)
    part = bucket.get_object("a/b.bin", byte_range=(1000, 1999), headers={"If-Match": f'"{put.etag}"'})
    assert (part.status, part.headers["Content-Range"]) == (206, f"bytes 1000-1999/{len(data)}")
    assert part.read() == data[1000:2000]
    assert part.server_crc == put.crc  # that of the whole object
    meta = bucket.get_object_meta("a/b.bin")
    assert (meta.content_length, meta.etag) == (len(data), put.etag)
    assert bucket.delete_object("a/b.bin").status == 204
    assert bucket.delete_object("a/b.bin").status == 204
    assert code_of(lambda: bucket.get_object("a/b.bin")) == (404, "NoSuchKey")
    assert code_of(lambda: bucket.head_object("a/b.bin")) == (404, "NoSuchKey")
    assert not bucket.object_exists("a/b.bin")


def test_bucket_calls(oss: Oss, bucket: oss2.Bucket) -> None:
    oss.put("a", b"12345")
    info = bucket.get_bucket_info()
    assert (info.name, info.location, info.acl.grant) == ("models", "oss-cn-hangzhou", "private")
    assert info.intranet_endpoint == "oss-cn-hangzhou-internal.aliyuncs.com"
    assert bucket.get_bucket_location().location == "oss-cn-hangzhou"
    assert bucket.get_bucket_stat().storage_size_in_bytes == 5
    assert bucket.get_bucket_acl().acl == "private"
    other = oss2.Bucket(bucket.auth, oss.endpoint, "nowhere", region=REGION)
    assert code_of(other.get_bucket_info) == (404, "NoSuchBucket")
    assert code_of(lambda: list(oss2.ObjectIteratorV2(other))) == (404, "NoSuchBucket")
    oss2.Bucket(bucket.auth, oss.endpoint, "fresh-one", region=REGION).create_bucket()
    assert "fresh-one" in oss.storage.buckets


@pytest.mark.parametrize("name", ODD)
def test_odd_names(oss: Oss, bucket: oss2.Bucket, name: str) -> None:
    bucket.put_object(name, name.encode())
    assert oss.get(name) == name.encode()
    assert bucket.get_object(name).read() == name.encode()
    assert [entry.key for entry in oss2.ObjectIteratorV2(bucket)] == [name]
    assert [entry.key for entry in oss2.ObjectIterator(bucket)] == [name]
    assert [entry.key for entry in oss2.ObjectIteratorV2(bucket, prefix=name[:5])] == [name]
    upload = bucket.init_multipart_upload(name).upload_id
    assert [(u.key, u.upload_id) for u in oss2.MultipartUploadIterator(bucket)] == [(name, upload)]
    bucket.abort_multipart_upload(name, upload)
    for slash_safe in (False, True):
        url = bucket.sign_url("GET", name, 60, slash_safe=slash_safe)
        assert requests.get(url, timeout=10).content == name.encode()
    assert bucket.batch_delete_objects([name]).deleted_keys == [name]
    assert oss.names() == []


def test_names_that_oss_does_not_take(oss: Oss) -> None:
    bucket = bucket_for(oss, oss.key, "v4")
    for name in ("\\a", "y" * 1024):
        assert code_of(lambda name=name: bucket.put_object(name, b"")) == (400, "InvalidObjectName")
    assert raw(oss, "PUT", "/models/a%FF", Content_Length="0").status == 400


def test_listing_in_pages(oss: Oss, bucket: oss2.Bucket) -> None:
    names = sorted(
        {f"m/{n:04}.bin" for n in range(1203)} | {"m/Ü", "m/a/1", "m/a/2", "n", "l"}, key=str.encode
    )
    for name in names:
        oss.put(name, name.encode())
    wanted = [name for name in names if name.startswith("m/")]
    for size in (1000, 7):
        found = list(oss2.ObjectIteratorV2(bucket, prefix="m/", max_keys=size))
        assert [entry.key for entry in found] == wanted
        assert [entry.key for entry in oss2.ObjectIterator(bucket, prefix="m/", max_keys=size)] == wanted
    assert {(entry.size, entry.type, entry.storage_class) for entry in found[:3]} == {
        (10, "Normal", "Standard")
    }
    assert found[0].etag == bucket.head_object(found[0].key).etag
    assert found[0].last_modified == bucket.head_object(found[0].key).last_modified
    page = bucket.list_objects_v2(prefix="m/", max_keys=1000)
    assert (len(page.object_list), page.is_truncated) == (1000, True)
    rest = bucket.list_objects_v2(
        prefix="m/", max_keys=1000, continuation_token=page.next_continuation_token, fetch_owner=True
    )
    assert (len(rest.object_list), rest.is_truncated, rest.object_list[0].owner.id) == (len(wanted) - 1000, False,
                                                                                      "0022012345678901")  # fmt: skip
    after = bucket.list_objects_v2(start_after="m/1201.bin", max_keys=3)
    assert [entry.key for entry in after.object_list] == ["m/1202.bin", "m/a/1", "m/a/2"]
    assert code_of(lambda: bucket.list_objects_v2(max_keys=1001)) == (400, "InvalidArgument")
    assert code_of(lambda: bucket.list_objects_v2(encoding_type="gzip")) == (400, "InvalidArgument")


def test_listing_by_folders(oss: Oss, bucket: oss2.Bucket) -> None:
    for name in ("a/1", "a/2", "b", "c/x/1", "c/y", "d/1"):
        oss.put(name, b"")
    for size in (1, 2, 3, 100):
        found = [(e.key, e.is_prefix()) for e in oss2.ObjectIteratorV2(bucket, delimiter="/", max_keys=size)]
        assert found == [("a/", True), ("b", False), ("c/", True), ("d/", True)], size
        found = [(e.key, e.is_prefix()) for e in oss2.ObjectIterator(bucket, delimiter="/", max_keys=size)]
        assert found == [("a/", True), ("b", False), ("c/", True), ("d/", True)], size
    assert [e.key for e in oss2.ObjectIteratorV2(bucket, prefix="c/", delimiter="/")] == ["c/x/", "c/y"]


@pytest.mark.parametrize(
    ("asked", "standard", "wanted"),
    [
        ("bytes=0-0", False, (206, 0, 1)),
        ("bytes=10-", False, (206, 10, 90)),
        ("bytes=-10", False, (206, 90, 10)),
        ("bytes=0-99", True, (206, 0, 100)),
        ("bytes=50-150", False, (200, 0, 100)),
        ("bytes=50-150", True, (206, 50, 50)),
        ("bytes=100-", False, (200, 0, 100)),
        ("bytes=100-", True, (416, 0, 0)),
        ("bytes=100-200", False, (200, 0, 100)),
        ("bytes=100-200", True, (416, 0, 0)),
        ("bytes=-101", False, (200, 0, 100)),
        ("bytes=-101", True, (206, 0, 100)),
        ("bytes=9-3", True, (200, 0, 100)),
        ("bytes=0-1,3-4", True, (200, 0, 100)),
        ("lines=0-1", True, (200, 0, 100)),
    ],
)
def test_ranges(oss: Oss, asked: str, standard: bool, wanted: tuple[int, int, int]) -> None:
    oss.bucket.acl = "public-read"
    data = bytes(range(100))
    oss.put("r", data)
    extra = {"x_oss_range_behavior": "standard"} if standard else {}
    answer = raw(oss, "GET", "/models/r", Range=asked, **extra)
    status, first, count = wanted
    assert answer.status == status
    if status == 416:
        assert b"<Code>InvalidRange</Code>" in answer.body
        return
    assert answer.body == data[first : first + count]
    told = f"bytes {first}-{first + count - 1}/100" if status == 206 else None
    assert answer.headers["Content-Range"] == told


def test_conditions(oss: Oss, bucket: oss2.Bucket) -> None:
    found = oss.put("c", b"abc")
    get = bucket.get_object
    assert get("c", headers={"If-Match": found.etag}).read() == b"abc"
    assert code_of(lambda: get("c", headers={"If-Match": '"0"'})) == (412, "PreconditionFailed")
    with pytest.raises(oss2.exceptions.NotModified):
        get("c", headers={"If-None-Match": f'"{found.etag}"'})
    assert get("c", headers={"If-None-Match": '"0"'}).read() == b"abc"
    with pytest.raises(oss2.exceptions.NotModified):
        get("c", headers={"If-Modified-Since": oss2.utils.http_date(int(time.time()) + 10)})
    before = oss2.utils.http_date(int(found.modified) - 10)
    assert code_of(lambda: get("c", headers={"If-Unmodified-Since": before})) == (412, "PreconditionFailed")


def test_not_overwriting(oss: Oss, bucket: oss2.Bucket) -> None:
    forbid = {"x-oss-forbid-overwrite": "true"}
    bucket.put_object("once", b"1", headers=forbid)
    upload = bucket.init_multipart_upload("twice", headers=forbid).upload_id
    part = bucket.upload_part("twice", upload, 1, b"x")
    oss.put("twice", b"was faster")
    parts = [oss2.models.PartInfo(1, part.etag, size=1, part_crc=part.crc)]
    refused = (409, "FileAlreadyExists")
    assert code_of(lambda: bucket.put_object("once", b"2" * MIB, headers=forbid)) == refused
    assert code_of(lambda: bucket.init_multipart_upload("once", headers=forbid)) == refused
    assert (
        code_of(lambda: bucket.complete_multipart_upload("twice", upload, parts, headers=forbid)) == refused
    )
    assert (oss.get("once"), oss.get("twice")) == (b"1", b"was faster")
    bucket.complete_multipart_upload("twice", upload, parts)
    assert oss.get("twice") == b"x"


def test_not_overwriting_what_came_meanwhile(oss: Oss) -> None:
    oss.bucket.acl = "public-read-write"
    connection = http.client.HTTPConnection(oss.host, oss.port, timeout=10)
    connection.putrequest("PUT", "/models/once")
    for name, value in (("x-oss-forbid-overwrite", "true"), ("Content-Length", "10")):
        connection.putheader(name, value)
    connection.endheaders(b"12345")
    oss.log.wait(lambda records: bool(records))
    oss.put("once", b"was faster")
    connection.send(b"67890")
    assert connection.getresponse().status == 409
    connection.close()
    assert oss.get("once") == b"was faster"


def test_content_md5(oss: Oss, bucket: oss2.Bucket) -> None:
    md5 = base64.b64encode(hashlib.md5(b"data").digest()).decode()
    bucket.put_object("m", b"data", headers={"Content-MD5": md5})
    wrong = {"Content-MD5": md5}
    assert code_of(lambda: bucket.put_object("n", b"other", headers=wrong)) == (400, "InvalidDigest")
    assert oss.names() == ["m"]


def test_bodies_in_chunks(oss: Oss, bucket: oss2.Bucket) -> None:
    pieces = [os.urandom(n) for n in (1, 70_000, 3 * MIB)]
    bucket.put_object("chunked", iter(pieces))
    assert oss.get("chunked") == b"".join(pieces)


def test_clients_that_ask_before_they_send(oss: Oss) -> None:
    def ask(length: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(oss.host, oss.port, timeout=10)
        connection.putrequest("PUT", "/models/asked")
        connection.putheader("Content-Length", str(length))
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        return connection

    refused = ask(1 << 40)
    answer = refused.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (403, "close")
    refused.close()
    oss.bucket.acl = "public-read-write"
    welcome = ask(5)
    line = welcome.sock.recv(100)
    assert line.startswith(b"HTTP/1.1 100 ")
    welcome.send(b"12345")
    assert welcome.getresponse().status == 200
    welcome.close()
    assert oss.get("asked") == b"12345"


def upload(bucket: oss2.Bucket, key: str, pieces: dict[int, bytes]) -> tuple[str, list[oss2.models.PartInfo]]:
    found = bucket.init_multipart_upload(key, headers={"x-oss-meta-a": "b"}).upload_id
    parts = []
    for number, data in pieces.items():
        sent = bucket.upload_part(key, found, number, data)
        parts.append(oss2.models.PartInfo(number, sent.etag, size=len(data), part_crc=sent.crc))
    return found, parts


def test_multipart(oss: Oss, bucket: oss2.Bucket) -> None:
    pieces = {
        number: os.urandom(size) for number, size in {1: 100 * KIB, 7: MIB, 3: 300_001, 10_000: 5}.items()
    }
    found, parts = upload(bucket, "big", pieces)
    again = bucket.upload_part("big", found, 3, pieces[3])
    assert again.etag == parts[2].etag
    listed = [(p.part_number, p.size, p.etag) for p in oss2.PartIterator(bucket, "big", found, max_parts=2)]
    assert listed == sorted((p.part_number, p.size, p.etag) for p in parts)
    assert oss.names() == []
    done = bucket.complete_multipart_upload("big", found, parts)  # oss2 sorts them, and compares the CRC
    data = b"".join(pieces[number] for number in sorted(pieces))
    assert done.crc == checksum.crc64(data)
    assert done.etag.endswith("-4")
    head = bucket.head_object("big")
    assert (head.object_type, head.etag, head.server_crc) == ("Multipart", done.etag, done.crc)
    assert (head.content_length, head.headers["x-oss-meta-a"]) == (len(data), "b")
    assert bucket.get_object("big").read() == data
    cut = 100 * KIB - 3
    assert bucket.get_object("big", byte_range=(cut, cut + 400_000)).read() == data[cut : cut + 400_001]
    assert code_of(lambda: bucket.list_parts("big", found)) == (404, "NoSuchUpload")
    assert code_of(lambda: bucket.complete_multipart_upload("big", found, parts)) == (404, "NoSuchUpload")
    assert code_of(lambda: bucket.abort_multipart_upload("big", found)) == (404, "NoSuchUpload")


def test_copies(oss: Oss, bucket: oss2.Bucket) -> None:
    """Of objects and of stretches of them; what was copied from may go."""
    data = random.randbytes(3 * MIB)
    bucket.put_object("a", data, headers={"x-oss-meta-kept": "yes"})
    assert bucket.copy_object("models", "a", "ü b").etag == bucket.head_object("a").etag
    upload = bucket.init_multipart_upload("c").upload_id
    pieces = [(MIB + 5, 2 * MIB + 7), (0, 3 * MIB - 1), (10, 99)]
    parts = [
        oss2.models.PartInfo(at, bucket.upload_part_copy("models", "a", span, "c", upload, at).etag)
        for at, span in enumerate(pieces, 1)
    ]
    bucket.complete_multipart_upload("c", upload, parts)
    bucket.delete_object("a")
    assert bucket.get_object("ü b").read() == data
    assert bucket.head_object("ü b").headers["x-oss-meta-kept"] == "yes"
    found = bucket.get_object("c")
    joined = b"".join(data[first : last + 1] for first, last in pieces)
    assert (found.read(), found.server_crc) == (joined, checksum.crc64(joined))
    assert bucket.get_object("c", byte_range=(5, MIB + 99)).read() == joined[5 : MIB + 100]
    assert code_of(lambda: bucket.copy_object("models", "a", "d")) == (404, "NoSuchKey")


def test_a_link_has_a_latency_and_rates() -> None:
    """Lower bounds alone: a slow machine adds to all of them. Each rate is four megabytes in 0.4 s."""
    data = bytes(4 * 10**6)
    with Oss(link=Link(latency=0.2, rate=10e6, copying=20e6)) as far:
        bucket = bucket_for(far, far.key, "v4")

        def seconds(call: Callable[[], object]) -> float:
            began = time.monotonic()
            call()
            return time.monotonic() - began

        assert seconds(lambda: bucket.put_object("a", data)) >= 0.2 + 0.3  # some comes at once after a pause
        assert seconds(lambda: bucket.get_object("a").read()) >= 0.2 + 0.3
        assert seconds(lambda: bucket.head_object("a")) >= 0.2
        assert seconds(lambda: bucket.copy_object("models", "a", "b")) >= 0.2 + 0.2
        upload = bucket.init_multipart_upload("c").upload_id
        assert seconds(lambda: bucket.upload_part_copy("models", "a", (0, 10**6 - 1), "c", upload, 1)) >= 0.25
        far.log.clear()
        far.storage.copying = None  # type: ignore[assignment]  # a copy onto itself is none
        bucket.copy_object("models", "a", "a")


def test_each_connection_has_a_rate_of_its_own() -> None:
    stopping = threading.Event()
    link = Link(rate=1.0)
    assert link.throttle(stopping) is not link.throttle(stopping)
    assert NEAR.throttle(stopping) is None


def test_parts_tell_their_crc(oss: Oss) -> None:
    found, _ = upload(bucket_for(oss, oss.key, "v4"), "k", {1: b"abc"})
    oss.keys.add(AccessKey("id", "secret"))
    url = oss2.Bucket(oss2.Auth("id", "secret"), oss.endpoint, "models").sign_url(
        "GET", "k", 60, params={"uploadId": found}
    )
    body = requests.get(url, timeout=10).text
    assert f"<HashCrc64ecma>{checksum.slow_crc64(b'abc')}</HashCrc64ecma>" in body
    assert "<IsTruncated>false</IsTruncated>" in body


def test_multipart_rules(oss: Oss) -> None:
    bucket = bucket_for(oss, oss.key, "v4")
    found, parts = upload(bucket, "k", {1: b"small", 2: b"end"})

    def complete(text: str) -> tuple[int, str]:
        url = bucket.sign_url("POST", "k", 60, params={"uploadId": found})
        body = requests.post(url, data=text, timeout=10).text
        return body.partition("<Code>")[2].partition("<")[0]

    def xml(*chosen: tuple[int, str]) -> str:
        inside = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in chosen)
        return f"<CompleteMultipartUpload>{inside}</CompleteMultipartUpload>"

    one, two = ((part.part_number, part.etag) for part in parts)
    assert complete(xml(one, two)) == "EntityTooSmall"
    assert complete(xml(two, one)) == "InvalidPartOrder"
    assert complete(xml(one, one)) == "InvalidPartOrder"
    assert complete(xml(one, (3, two[1]))) == "InvalidPart"
    assert complete(xml((1, two[1]))) == "InvalidPart"
    assert complete(xml()) == "MalformedXML"
    assert complete("<Complete") == "MalformedXML"
    for number in (0, 10_001):
        assert code_of(lambda n=number: bucket.upload_part("k", found, n, b"")) == (400, "InvalidArgument")
    assert code_of(lambda: bucket.upload_part("other", found, 1, b"")) == (404, "NoSuchUpload")
    assert complete(xml((2, f'"{two[1]}"'))) == ""
    assert oss.get("k") == b"end"


def test_uploads_in_pages(oss: Oss, bucket: oss2.Bucket) -> None:
    begun = [(key, bucket.init_multipart_upload(key).upload_id) for key in ("b", "a", "b", "c", "b", "d/1")]
    for size in (1, 2, 4, 100):
        found = [(u.key, u.upload_id) for u in oss2.MultipartUploadIterator(bucket, max_uploads=size)]
        assert found == sorted(begun), size
    assert [u.key for u in oss2.MultipartUploadIterator(bucket, prefix="d/")] == ["d/1"]
    empty = bucket.list_multipart_uploads(prefix="zzz")
    assert (empty.is_truncated, empty.next_key_marker, empty.next_upload_id_marker) == (False, "", "")
    bucket.abort_multipart_upload(*begun[1])
    assert "a" not in [u.key for u in oss2.MultipartUploadIterator(bucket)]


def test_deleting_many(oss: Oss, bucket: oss2.Bucket) -> None:
    names = [f"k & <{n}>" for n in range(1000)]
    for name in names[:500]:
        oss.put(name, b"")
    oss.put("stays", b"")
    assert bucket.batch_delete_objects(names).deleted_keys == names
    assert oss.names() == ["stays"]
    assert code_of(lambda: bucket.batch_delete_objects([*names, "one more"])) == (400, "MalformedXML")


def test_archived_objects(oss: Oss, bucket: oss2.Bucket) -> None:
    oss.put("old", b"dusty", storage_class="ColdArchive")
    assert [entry.storage_class for entry in oss2.ObjectIteratorV2(bucket)] == ["ColdArchive"]
    assert code_of(lambda: bucket.get_object("old")) == (403, "InvalidObjectState")
    head = bucket.head_object("old").headers
    assert (head["x-oss-storage-class"], head.get("x-oss-restore")) == ("ColdArchive", None)
    assert bucket.restore_object("old").status == 202
    assert bucket.head_object("old").headers["x-oss-restore"] == 'ongoing-request="true"'
    assert code_of(lambda: bucket.restore_object("old")) == (409, "RestoreAlreadyInProgress")
    assert code_of(lambda: bucket.get_object("old")) == (403, "InvalidObjectState")
    oss.restored("old")
    assert (
        bucket.head_object("old")
        .headers["x-oss-restore"]
        .startswith('ongoing-request="false", expiry-date="')
    )
    assert bucket.get_object("old").read() == b"dusty"
    bucket.put_object("new", b"1", headers={"x-oss-storage-class": "Archive"})
    assert code_of(lambda: bucket.get_object("new")) == (403, "InvalidObjectState")


# who asks


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_keys_and_secrets(oss: Oss, version: str) -> None:
    oss.put("a", b"1")
    unknown = bucket_for(oss, AccessKey("LTAInobody", "x"), version)
    assert code_of(lambda: unknown.get_object("a")) == (403, "InvalidAccessKeyId")
    wrong = bucket_for(oss, AccessKey(oss.key.id, "not the secret"), version)
    assert code_of(lambda: wrong.get_object("a")) == (403, "SignatureDoesNotMatch")
    assert code_of(lambda: wrong.head_object("a")) == (403, "SignatureDoesNotMatch")
    assert code_of(lambda: wrong.put_object("b", b"1" * MIB)) == (403, "SignatureDoesNotMatch")
    assert code_of(lambda: list(oss2.ObjectIteratorV2(wrong))) == (403, "SignatureDoesNotMatch")
    assert oss.names() == ["a"]


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_temporary_keys(oss: Oss, version: str) -> None:
    oss.put("a", b"1")
    key = oss.keys.temporary(3600)
    assert bucket_for(oss, key, version).get_object("a").read() == b"1"
    bare = AccessKey(key.id, key.secret)
    assert code_of(lambda: bucket_for(oss, bare, version).get_object("a")) == (403, "InvalidAccessKeyId")
    other = AccessKey(key.id, key.secret, "CAISother")
    assert code_of(lambda: bucket_for(oss, other, version).get_object("a")) == (403, "InvalidSecurityToken")
    url = bucket_for(oss, key, version).sign_url("GET", "a", 60)
    key.expires = time.time() - 1
    assert code_of(lambda: bucket_for(oss, key, version).get_object("a")) == (403, "SecurityTokenExpired")
    assert requests.get(url, timeout=10).status_code == 403


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_presigned_urls(oss: Oss, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = bucket_for(oss, oss.key, version)
    put = requests.put(bucket.sign_url("PUT", "p q", 60), data=b"abcdef", timeout=10)
    assert put.status_code == 200
    url = bucket.sign_url("GET", "p q", 60)
    assert requests.get(url, headers={"Range": "bytes=2-3"}, timeout=10).content == b"cd"
    assert requests.put(url, data=b"x", timeout=10).status_code == 403  # signed for GET
    other = requests.get(url.replace("p%20q", "other"), timeout=10)
    assert (other.status_code, "<Code>SignatureDoesNotMatch</Code>" in other.text) == (403, True)
    extra = requests.get(url + "&response-content-type=x", timeout=10)
    assert extra.status_code == 403  # what the URL asks for is signed as well
    typed = bucket.sign_url("GET", "p q", 60, params={"response-content-type": "text/x"})
    assert requests.get(typed, timeout=10).headers["Content-Type"] == "text/x"
    soon = bucket.sign_url("GET", "p q", 1)
    real = time.time
    monkeypatch.setattr("tests.osslab.signing.time.time", lambda: real() + 3)
    expired = requests.get(soon, timeout=10)
    assert (expired.status_code, "Request has expired." in expired.text) == (403, True)
    monkeypatch.undo()
    assert {record.presigned for record in oss.log.records()} == {True}


@pytest.mark.parametrize("version", ["v1", "v4"])
@pytest.mark.parametrize("minutes", [16, -16])
def test_clocks_that_differ(oss: Oss, version: str, minutes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    oss.put("a", b"1")
    bucket = bucket_for(oss, oss.key, version)
    real = time.time
    monkeypatch.setattr("tests.osslab.signing.time", _Clock(lambda: real() + 60 * minutes))
    assert code_of(lambda: bucket.get_object("a")) == (403, "RequestTimeTooSkewed")
    monkeypatch.setattr("tests.osslab.signing.time", _Clock(lambda: real() + 56 * minutes))
    assert bucket.get_object("a").read() == b"1"


class _Clock:
    """The time module, with another time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.time = now

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


def test_additional_headers_are_signed(oss: Oss) -> None:
    oss.put("a", b"0123456789")
    auth = oss2.AuthV4(oss.key.id, oss.key.secret)

    def get(signed: str, sent: str) -> requests.Response:
        url = f"{oss.endpoint}/models/a"
        asked = oss2.http.Request("GET", url, headers={"Range": signed}, region=REGION, product="oss")
        auth._sign_request(asked, "models", "a", {"range"})
        return requests.get(
            url, headers={**asked.headers, "Range": sent, "Accept-Encoding": None}, timeout=10
        )

    assert get("bytes=0-1", "bytes=0-1").content == b"01"
    assert get("bytes=0-1", "bytes=0-2").status_code == 403


def test_the_region_is_part_of_a_v4_signature(oss: Oss) -> None:
    bucket = oss2.Bucket(oss2.AuthV4(oss.key.id, oss.key.secret), oss.endpoint, "models", region="cn-beijing")
    assert code_of(lambda: bucket.get_object("a")) == (400, "InvalidArgument")
    assert code_of(lambda: bucket.get_bucket_info()) == (400, "InvalidArgument")


def test_permissions(oss: Oss) -> None:
    oss.put("a", b"1")
    oss.put("secret/a", b"1")
    denied = {"put", "delete", "listuploads", "abort", "get:secret/*"}
    bucket = bucket_for(oss, oss.keys.new(denied=denied), "v4")
    no = (403, "AccessDenied")
    assert bucket.get_object("a").read() == b"1"
    assert len(list(oss2.ObjectIteratorV2(bucket))) == 2
    assert code_of(lambda: bucket.get_object("secret/a")) == no
    assert code_of(lambda: bucket.head_object("secret/a")) == no
    assert code_of(lambda: bucket.put_object("b", b"1")) == no
    assert code_of(lambda: bucket.init_multipart_upload("b")) == no
    assert code_of(lambda: bucket.delete_object("a")) == no
    assert code_of(lambda: bucket.batch_delete_objects(["a"])) == no
    assert code_of(lambda: bucket.list_multipart_uploads()) == no
    blind = bucket_for(oss, oss.keys.new(denied={"list", "info"}), "v4")
    assert code_of(lambda: blind.list_objects_v2()) == no
    assert code_of(lambda: blind.get_bucket_info()) == no
    assert oss.names() == ["a", "secret/a"]


def test_anonymous(oss: Oss) -> None:
    oss.put("a", b"1")
    bucket = bucket_for(oss, None, "")
    assert code_of(lambda: bucket.get_object("a")) == (403, "AccessDenied")
    oss.bucket.acl = "public-read"
    assert bucket.get_object("a").read() == b"1"
    assert [entry.key for entry in oss2.ObjectIteratorV2(bucket)] == ["a"]
    oss.bucket.listable = False
    assert code_of(lambda: bucket.list_objects_v2()) == (403, "AccessDenied")
    assert code_of(lambda: bucket.put_object("b", b"")) == (403, "AccessDenied")
    assert code_of(lambda: bucket.delete_object("a")) == (403, "AccessDenied")
    oss.bucket.acl = "public-read-write"
    bucket.put_object("b", b"")
    assert oss.names() == ["a", "b"]


# addresses, files, the log


def test_virtual_hosted_and_custom_domains(oss: Oss) -> None:
    oss.bucket.acl = "public-read"
    oss.cnames["cdn.example"] = "models"
    oss.put("a/b", b"1")
    assert raw(oss, "GET", "/a/b", Host="models.oss-cn-hangzhou.aliyuncs.com").body == b"1"
    assert raw(oss, "GET", "/a/b", Host=f"models.localhost:{oss.port}").body == b"1"
    assert raw(oss, "GET", "/a/b", Host="cdn.example").body == b"1"
    assert raw(oss, "GET", "/models/a/b", Host=f"localhost:{oss.port}").body == b"1"
    refused = raw(oss, "GET", "/models/a/b", Host="oss-cn-hangzhou.aliyuncs.com")
    assert (refused.status, b"SecondLevelDomainForbidden" in refused.body) == (403, True)
    assert b"NoSuchBucket" in raw(oss, "GET", "/a/b", Host="nobody.example").body


def test_signed_requests_to_names(oss: Oss, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes requests as a proxy would, so clients reach names that no DNS knows."""
    monkeypatch.setenv("http_proxy", oss.endpoint)
    monkeypatch.delenv("no_proxy", raising=False)
    for auth in (oss2.Auth(oss.key.id, oss.key.secret), oss2.AuthV4(oss.key.id, oss.key.secret)):
        endpoint = "http://oss-cn-hangzhou-internal.aliyuncs.com"
        bucket = oss2.Bucket(auth, endpoint, "models", region=REGION)
        bucket.put_object("via/proxy", b"1")
        assert bucket.get_object("via/proxy").read() == b"1"
    assert {record.host for record in oss.log.records()} == {"models.oss-cn-hangzhou-internal.aliyuncs.com"}


def test_contents_in_files(oss: Oss, tmp_path: os.PathLike[str]) -> None:
    data = random.Random(3).randbytes(5 * MIB + 3)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    assert oss.serve_folder(str(tmp_path), "r1/") == 2
    bucket = bucket_for(oss, oss.key, "v4")
    assert [(e.key, e.size) for e in oss2.ObjectIteratorV2(bucket)] == [
        ("r1/empty", 0),
        ("r1/sub/w.bin", len(data)),
    ]
    got = bucket.get_object("r1/sub/w.bin")
    assert (got.read(), got.server_crc) == (data, checksum.crc64(data))
    assert bucket.get_object("r1/empty").read() == b""
    sparse = oss.put_zeros("zeros", 40 << 40)
    assert bucket.head_object("zeros").content_length == 40 << 40
    assert bucket.get_object("zeros", byte_range=(39 << 40, (39 << 40) + 9)).read() == bytes(10)
    assert sparse.crc == checksum.zeros(40 << 40)
    bucket.put_object("big", data)
    kept = os.listdir(oss.storage.room)
    bucket.delete_object("big")
    assert len(os.listdir(oss.storage.room)) == len(kept) - 1


def test_replacing_leaves_running_reads_alone(oss: Oss) -> None:
    old, new = b"o" * 4 * MIB, b"n" * 4 * MIB
    oss.put("w", old)
    got = bucket_for(oss, oss.key, "v4").get_object("w")
    begin = got.read(10)
    oss.put("w", new)
    assert begin + got.read() == old


def test_the_log(oss: Oss) -> None:
    oss.put("a/x", b"0123456789")
    bucket = bucket_for(oss, oss.key, "v4")
    bucket.get_object("a/x", byte_range=(2, 4)).read()
    bucket.get_object("a/x").read()
    requests.get(bucket.sign_url("GET", "a/x", 60), timeout=10)
    assert code_of(lambda: bucket.get_object("b")) == (404, "NoSuchKey")
    first, second, third, fourth = oss.log.records()
    assert (first.method, first.operation, first.bucket, first.key) == ("GET", "GetObject", "models", "a/x")
    assert (first.range, first.status, first.bytes_sent, first.version) == ("bytes=2-4", 206, 3, "v4")
    assert first.connection == second.connection != third.connection
    assert first.client[0] == "127.0.0.1"
    assert (second.presigned, third.presigned, third.query["x-oss-expires"]) == (False, True, "60")
    assert (fourth.status, fourth.code, len(fourth.request_id)) == (404, "NoSuchKey", 24)
    assert "authorization" not in first.headers
    assert (oss.bytes_sent(), oss.bytes_sent("a/*"), oss.bytes_sent("b")) == (23 + fourth.bytes_sent, 23,
                                                                             fourth.bytes_sent)  # fmt: skip
    assert oss.log.count(status=200) == 2
    assert parsedate_to_datetime(raw(oss, "GET", "/models/a").headers["Date"]).timestamp() > time.time() - 60


def test_unknown_requests(oss: Oss) -> None:
    assert raw(oss, "PATCH", "/models/a").status == 405
    assert raw(oss, "POST", "/models/a").status == 405
    url = urlsplit(bucket_for(oss, oss.key, "v4").sign_url("GET", "a", 60))
    both = raw(oss, "GET", f"{url.path}?{url.query}", Authorization="OSS a:b")
    assert (both.status, b"InvalidArgument" in both.body) == (400, True)
    assert raw(oss, "GET", "/models/" + quote("ä"), Authorization="Bearer x").status == 400


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
