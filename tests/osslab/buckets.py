"""The operations on buckets: what is in them, page by page."""

from __future__ import annotations

import base64
import binascii

from tests.osslab import answers
from tests.osslab.errors import OssError
from tests.osslab.operations import Call, Operation, check_md5
from tests.osslab.wire import Answer


def get_bucket_info(call: Call) -> Answer:
    """GetBucketInfo."""
    return answers.bucket_info(call.bucket, call.region, call.host)


def get_bucket_location(call: Call) -> Answer:
    """GetBucketLocation."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<LocationConstraint>oss-{call.region}</LocationConstraint>'
    )
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())


def get_bucket_stat(call: Call) -> Answer:
    """GetBucketStat."""
    page = answers.Page("BucketStat")
    with call.bucket.lock:
        page.text("Storage", sum(found.size for found in call.bucket.objects.values()))
        page.text("ObjectCount", len(call.bucket.objects))
        page.text("MultipartUploadCount", len(call.bucket.uploads))
    return page.answer()


def get_bucket_acl(call: Call) -> Answer:
    """GetBucketAcl."""
    page = answers.Page("AccessControlPolicy")
    page.open("AccessControlList")
    page.text("Grant", call.bucket.acl)
    page.close("AccessControlList")
    return page.answer()


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode("utf-8", "surrogateescape")).decode().replace("=", "-")


def _from_token(token: str) -> str:
    try:
        padded = token.rstrip("-")
        return base64.urlsafe_b64decode(padded + "=" * (-len(padded) % 4)).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        raise OssError("InvalidArgument", "The continuation token provided is incorrect.") from None


def list_objects_v2(call: Call) -> Answer:
    """ListObjectsV2."""
    query = call.request.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    token, first = query.get("continuation-token", ""), query.get("start-after", "")
    most = call.number("max-keys", 100, 1000)
    after = _from_token(token) if token else first
    if call.fault == "repeat-list":
        after = ""
    objects, folders, further = call.bucket.page(prefix, delimiter, after, most)
    if call.fault == "no-token" and objects:
        further = further or objects[-1].key
    page = answers.Page("ListBucketResult", query.get("encoding-type", ""))
    page.text("Name", call.bucket.name)
    page.name("Prefix", prefix)
    page.name("StartAfter", first)
    page.text("MaxKeys", most)
    page.name("Delimiter", delimiter)
    page.text("IsTruncated", str(bool(further)).lower())
    page.text("KeyCount", len(objects) + len(folders))
    if token:
        page.text("ContinuationToken", token)
    if further and call.fault != "no-token":
        page.text("NextContinuationToken", _token(further))
    answers.contents(page, objects, owner=query.get("fetch-owner") == "true")
    answers.folders(page, folders)
    return page.answer()


def list_objects(call: Call) -> Answer:
    """ListObjects, the older one."""
    query = call.request.query
    prefix, delimiter, marker = query.get("prefix", ""), query.get("delimiter", ""), query.get("marker", "")
    most = call.number("max-keys", 100, 1000)
    after = "" if call.fault == "repeat-list" else marker
    objects, folders, further = call.bucket.page(prefix, delimiter, after, most)
    page = answers.Page("ListBucketResult", query.get("encoding-type", ""))
    page.text("Name", call.bucket.name)
    page.name("Prefix", prefix)
    page.name("Marker", marker)
    page.text("MaxKeys", most)
    page.name("Delimiter", delimiter)
    page.text("IsTruncated", str(bool(further) or call.fault == "no-token").lower())
    if further and call.fault != "no-token":
        page.name("NextMarker", further)
    answers.contents(page, objects, owner=True)
    answers.folders(page, folders)
    return page.answer()


def delete_multiple_objects(call: Call) -> Answer:
    """DeleteMultipleObjects: at most 1000 keys."""
    data = call.request.body.whole()
    if "content-md5" not in call.request.headers:
        raise OssError("InvalidArgument", "Missing Some Required Arguments.", ArgumentName="Content-MD5")
    check_md5(call, call.storage.keep(data))
    wanted = answers.parse(data, "Delete")
    keys = [answers.told(entry, "Key") for entry in wanted.findall("Object")]
    if not 1 <= len(keys) <= 1000:
        raise OssError("MalformedXML")
    page = answers.Page("DeleteResult", call.request.query.get("encoding-type", ""))
    for key in keys:
        call.bucket.remove(key)
        if wanted.findtext("Quiet") != "true":
            page.open("Deleted")
            page.name("Key", key)
            page.close("Deleted")
    return Answer(200) if wanted.findtext("Quiet") == "true" else page.answer()


def put_bucket(call: Call) -> Answer:
    """PutBucket: `OssServer` has made it already."""
    call.bucket.acl = call.request.headers.get("x-oss-acl", call.bucket.acl)
    return Answer(200, {"Location": f"/{call.bucket.name}"})


TABLE: dict[str, Operation] = {
    "GetBucketInfo": get_bucket_info, "GetBucketLocation": get_bucket_location, "GetBucketStat": get_bucket_stat,
    "GetBucketAcl": get_bucket_acl, "ListObjects": list_objects, "ListObjectsV2": list_objects_v2,
    "DeleteMultipleObjects": delete_multiple_objects, "PutBucket": put_bucket,
}  # fmt: skip
