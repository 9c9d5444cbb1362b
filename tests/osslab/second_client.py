"""What scripts/test-osslab runs: alibabacloud-oss-v2 against the look-alike that the variable OSSLAB describes.

It is a program of its own, in an environment of its own; nothing else imports it.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import alibabacloud_oss_v2 as oss
import requests

TOLD = json.loads(os.environ["OSSLAB"])
BUCKET = TOLD["bucket"]
DATA = random.Random(11).randbytes(3_000_000)
ODD = ("ü 漢字/🤗.bin", "a+b %41%2F&c=d?e#f", "..hidden/.x", "new\nline", "~!*'()")
Check = Callable[[oss.Client], None]
CHECKS: list[Check] = []


def client(version: str, secret: str | None = None) -> oss.Client:
    """A client with the server's key, signing by "v1" or "v4"."""
    config = oss.config.load_default()
    secret = secret or TOLD["access_key_secret"]
    config.credentials_provider = oss.credentials.StaticCredentialsProvider(TOLD["access_key_id"], secret)
    config.region, config.endpoint = TOLD["region"], TOLD["endpoint"]
    config.signature_version = version
    config.use_path_style = True
    return oss.Client(config)


def check(function: Check) -> Check:
    """Mark a function as one of the checks."""
    CHECKS.append(function)
    return function


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    """Status and code of the refusal that `call` must meet."""
    try:
        call()
    except oss.exceptions.OperationError as error:
        found = error.unwrap()
        assert isinstance(found, oss.exceptions.ServiceError), repr(found)
        assert found.request_id
        assert found.ec
        return found.status_code, found.code
    raise AssertionError("it was not refused")


def put(c: oss.Client, key: str, data: bytes, **more: Any) -> Any:
    """PutObject."""
    return c.put_object(oss.PutObjectRequest(bucket=BUCKET, key=key, body=data, **more))


def get(c: oss.Client, key: str, **more: Any) -> Any:
    """GetObject."""
    return c.get_object(oss.GetObjectRequest(bucket=BUCKET, key=key, **more))


def names(c: oss.Client, **more: Any) -> list[str]:
    """ListObjectsV2, all pages."""
    pages = c.list_objects_v2_paginator().iter_page(oss.ListObjectsV2Request(bucket=BUCKET, **more))
    return [entry.key for page in pages for entry in page.contents or []]


def clear(c: oss.Client) -> None:
    """DeleteMultipleObjects of everything."""
    while found := names(c, max_keys=1000)[:1000]:
        objects = [oss.DeleteObject(key=key) for key in found]
        gone = c.delete_multiple_objects(
            oss.DeleteMultipleObjectsRequest(bucket=BUCKET, encoding_type="url", objects=objects)
        )
        assert [entry.key for entry in gone.deleted_objects] == found


@check
def the_bucket(c: oss.Client) -> None:
    """GetBucketInfo, GetBucketLocation, GetBucketStat."""
    info = c.get_bucket_info(oss.GetBucketInfoRequest(bucket=BUCKET)).bucket_info
    assert (info.name, info.location, info.acl) == (BUCKET, "oss-" + TOLD["region"], "private")
    where = c.get_bucket_location(oss.GetBucketLocationRequest(bucket=BUCKET))
    assert where.location == "oss-" + TOLD["region"]
    assert c.get_bucket_stat(oss.GetBucketStatRequest(bucket=BUCKET)).object_count == 0


@check
def put_head_get_delete(c: oss.Client) -> None:
    """One object, whole and in ranges; the SDK compares the CRC by itself."""
    sent = put(c, "a/b", DATA, metadata={"who": "me"})
    head = c.head_object(oss.HeadObjectRequest(bucket=BUCKET, key="a/b"))
    assert (head.content_length, head.etag, head.metadata["who"]) == (len(DATA), sent.etag, "me")
    assert head.hash_crc64 == sent.hash_crc64
    assert get(c, "a/b").body.content == DATA
    part = get(c, "a/b", range_header="bytes=1000-1999", range_behavior="standard", if_match=sent.etag)
    assert (part.status_code, part.content_range) == (206, f"bytes 1000-1999/{len(DATA)}")
    assert (part.body.content, part.hash_crc64) == (DATA[1000:2000], sent.hash_crc64)
    assert get(c, "a/b", range_header="bytes=5000000-").status_code == 200
    beyond = refused(lambda: get(c, "a/b", range_header="bytes=5000000-", range_behavior="standard"))
    assert beyond == (416, "InvalidRange")
    assert refused(lambda: get(c, "a/b", if_match='"0"')) == (412, "PreconditionFailed")
    assert refused(lambda: put(c, "a/b", b"", forbid_overwrite=True)) == (409, "FileAlreadyExists")
    assert c.delete_object(oss.DeleteObjectRequest(bucket=BUCKET, key="a/b")).status_code == 204
    assert refused(lambda: get(c, "a/b")) == (404, "NoSuchKey")
    assert refused(lambda: c.head_object(oss.HeadObjectRequest(bucket=BUCKET, key="a/b"))) == (
        404,
        "NoSuchKey",
    )


@check
def odd_names(c: oss.Client) -> None:
    """Every byte of a name survives, in paths and in listings."""
    for name in ODD:
        put(c, name, name.encode())
        assert get(c, name).body.content == name.encode()
    assert names(c) == sorted(ODD, key=str.encode)


@check
def listing_in_pages(c: oss.Client) -> None:
    """More than 1000 keys, prefixes and folders."""
    wanted = [f"m/{n:04}" for n in range(1005)]
    for name in wanted:
        put(c, name, b"")
    assert names(c, prefix="m/", max_keys=1000) == wanted
    assert names(c, prefix="m/100", max_keys=2) == wanted[1000:]
    assert names(c, start_after="m/1002") == wanted[1003:]
    pages = c.list_objects_paginator().iter_page(
        oss.ListObjectsRequest(bucket=BUCKET, prefix="m/", max_keys=999)
    )
    assert [entry.key for page in pages for entry in page.contents or []] == wanted
    page = c.list_objects_v2(oss.ListObjectsV2Request(bucket=BUCKET, delimiter="/"))
    assert [entry.prefix for entry in page.common_prefixes] == ["m/"]
    assert page.contents is None


@check
def multipart(c: oss.Client) -> None:
    """Initiate, parts, lists of both, complete, abort."""
    upload = c.initiate_multipart_upload(
        oss.InitiateMultipartUploadRequest(bucket=BUCKET, key="big")
    ).upload_id
    parts = []
    for number, start in enumerate(range(0, len(DATA), 1 << 20), 1):
        sent = c.upload_part(
            oss.UploadPartRequest(
                bucket=BUCKET,
                key="big",
                upload_id=upload,
                part_number=number,
                body=DATA[start : start + (1 << 20)],
            )
        )
        parts.append(oss.UploadPart(part_number=number, etag=sent.etag))
    listed = [
        part
        for page in c.list_parts_paginator().iter_page(
            oss.ListPartsRequest(bucket=BUCKET, key="big", upload_id=upload, max_parts=2)
        )
        for part in page.parts
    ]
    assert [(p.part_number, p.etag) for p in listed] == [(p.part_number, p.etag) for p in parts]
    assert all(int(part.hash_crc64) for part in listed)
    other = c.initiate_multipart_upload(
        oss.InitiateMultipartUploadRequest(bucket=BUCKET, key="b\n")
    ).upload_id
    pages = c.list_multipart_uploads_paginator().iter_page(
        oss.ListMultipartUploadsRequest(bucket=BUCKET, max_uploads=1, encoding_type="url")
    )
    assert [(u.key, u.upload_id) for page in pages for u in page.uploads] == [("b\n", other), ("big", upload)]
    c.abort_multipart_upload(oss.AbortMultipartUploadRequest(bucket=BUCKET, key="b\n", upload_id=other))

    def complete(chosen: list[Any]) -> Any:
        body = oss.CompleteMultipartUpload(parts=chosen)
        return c.complete_multipart_upload(
            oss.CompleteMultipartUploadRequest(
                bucket=BUCKET, key="big", upload_id=upload, complete_multipart_upload=body
            )
        )

    assert refused(lambda: complete(parts[::-1])) == (400, "InvalidPartOrder")
    done = complete(parts)
    assert done.etag.strip('"').endswith(f"-{len(parts)}")
    found = get(c, "big")
    assert (found.body.content, found.hash_crc64) == (DATA, done.hash_crc64)
    assert refused(lambda: complete(parts)) == (404, "NoSuchUpload")


@check
def transfers(c: oss.Client) -> None:
    """The SDK's own uploader and downloader, several connections each."""
    with tempfile.TemporaryDirectory() as room:
        path = os.path.join(room, "up")
        with open(path, "wb") as out:
            out.write(DATA)
        c.uploader(part_size=500_000, parallel_num=3).upload_file(
            oss.PutObjectRequest(bucket=BUCKET, key="t"), filepath=path
        )
        down = os.path.join(room, "down")
        c.downloader(part_size=400_000, parallel_num=3).download_file(
            oss.GetObjectRequest(bucket=BUCKET, key="t"), filepath=down
        )
        with open(down, "rb") as file:
            assert file.read() == DATA


@check
def content_md5(c: oss.Client) -> None:
    """A body that is not what Content-MD5 says is refused."""
    told = base64.b64encode(hashlib.md5(b"1").digest()).decode()
    put(c, "m", b"1", content_md5=told)
    assert refused(lambda: put(c, "m", b"2", content_md5=told)) == (400, "InvalidDigest")


@check
def presigned(c: oss.Client) -> None:
    """URLs that carry their signature, used by another HTTP client."""
    for name in ("p", ODD[0], ODD[1]):
        url = c.presign(oss.PutObjectRequest(bucket=BUCKET, key=name), expires=dt.timedelta(seconds=60))
        assert requests.put(url.url, data=b"abc", headers=url.signed_headers, timeout=20).status_code == 200
        url = c.presign(oss.GetObjectRequest(bucket=BUCKET, key=name), expires=dt.timedelta(seconds=60))
        assert requests.get(url.url, timeout=20).content == b"abc"
        assert requests.delete(url.url, timeout=20).status_code == 403


@check
def archived(c: oss.Client) -> None:
    """An archived object must be restored before it is read."""
    put(c, "old", b"1", storage_class="ColdArchive")
    assert refused(lambda: get(c, "old")) == (403, "InvalidObjectState")
    assert c.restore_object(oss.RestoreObjectRequest(bucket=BUCKET, key="old")).status_code == 202
    head = c.head_object(oss.HeadObjectRequest(bucket=BUCKET, key="old"))
    assert (head.storage_class, head.restore) == ("ColdArchive", 'ongoing-request="true"')


@check
def wrong_secret(c: oss.Client) -> None:
    """A signature made with another secret is refused."""
    version = "v1" if "V1" in type(c._client._options.signer).__name__ else "v4"
    assert refused(lambda: put(client(version, "guess"), "x", b"")) == (403, "SignatureDoesNotMatch")


def main() -> int:
    """Every check with both signatures; gives the exit code."""
    passed = failed = 0
    for version in ("v1", "v4"):
        c = client(version)
        for one in CHECKS:
            name = f"{version} {one.__name__}"
            try:
                clear(c)
                one(c)
            except Exception:
                failed += 1
                print(f"FAILED {name}\n{traceback.format_exc()}")
            else:
                passed += 1
                print(f"passed {name}")
        clear(c)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
