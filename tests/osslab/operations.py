"""What each request asks for, and the operations on single objects."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote

from tests.osslab import answers
from tests.osslab.errors import NotModified, OssError
from tests.osslab.storage import ARCHIVES, Bucket, Content, Storage, StoredObject, Written
from tests.osslab.wire import Answer, Request

PERMISSIONS: dict[str, str] = {  # operation -> what a key must be allowed
    "GetBucketInfo": "info", "GetBucketLocation": "info", "GetBucketStat": "info", "GetBucketAcl": "info",
    "PutBucket": "putbucket", "ListObjects": "list", "ListObjectsV2": "list", "GetObject": "get",
    "HeadObject": "get", "GetObjectMeta": "get", "PutObject": "put", "DeleteObject": "delete",
    "DeleteMultipleObjects": "delete", "RestoreObject": "restore", "InitiateMultipartUpload": "put",
    "UploadPart": "put", "CopyObject": "put", "UploadPartCopy": "put", "CompleteMultipartUpload": "put", "AbortMultipartUpload": "abort",
    "ListMultipartUploads": "listuploads", "ListParts": "listparts",
}  # fmt: skip
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


@dataclass
class Sent:
    """An answer whose body is a range of a content."""

    answer: Answer
    content: Content
    offset: int
    length: int


@dataclass
class Call:
    """One request, with what it is about."""

    request: Request
    storage: Storage
    bucket: Bucket
    key: str
    region: str
    host: str
    fault: str = ""

    def number(self, name: str, usual: int, most: int) -> int:
        """An integer of the query between 1 and `most`."""
        text = self.request.query.get(name) or str(usual)
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise OssError("InvalidArgument", f"Argument {name} must be an integer between 1 and {most}.",
                           ArgumentName=name, ArgumentValue=text)  # fmt: skip
        return int(text)

    def object(self) -> StoredObject:
        """The object the request is about."""
        found = self.bucket.objects.get(self.key)
        if found is None:
            raise OssError("NoSuchKey", Key=self.key)
        return found


Operation = Callable[[Call], Answer | Sent]


def named(request: Request, key: str) -> str:
    """The name of the operation. Raises `OssError` for one that is not known here."""
    query, method, copies = request.query, request.method, "x-oss-copy-source" in request.headers
    if key:
        table = {
            "GET": "ListParts" if "uploadId" in query else "GetObjectMeta" if "objectMeta" in query else "GetObject",
            "HEAD": "GetObjectMeta" if "objectMeta" in query else "HeadObject",
            "PUT": ("UploadPartCopy" if copies else "UploadPart") if {"partNumber", "uploadId"} & query.keys()
            else "CopyObject" if copies else "PutObject",
            "DELETE": "AbortMultipartUpload" if "uploadId" in query else "DeleteObject",
            "POST": "InitiateMultipartUpload" if "uploads" in query
            else "CompleteMultipartUpload" if "uploadId" in query
            else "RestoreObject" if "restore" in query else "",
        }  # fmt: skip
    else:
        listing = "ListObjectsV2" if query.get("list-type") == "2" else "ListObjects"
        special = {
            "uploads": "ListMultipartUploads", "bucketInfo": "GetBucketInfo", "location": "GetBucketLocation",
            "stat": "GetBucketStat", "acl": "GetBucketAcl",
        }  # fmt: skip
        table = {
            "GET": next((name for flag, name in special.items() if flag in query), listing),
            "PUT": "PutBucket",
            "POST": "DeleteMultipleObjects" if "delete" in query else "",
        }
    if not (name := table.get(method, "")):
        raise OssError("MethodNotAllowed", Method=method)
    return name


def check_md5(call: Call, written: Written) -> None:
    """What was received is what the client's Content-MD5 speaks of."""
    told = call.request.headers.get("content-md5")
    if told is not None and told != base64.b64encode(written.md5).decode():
        written.drop()
        raise OssError("InvalidDigest")


def receive(call: Call) -> Written:
    """The request's body, checked against its Content-MD5."""
    if not call.request.body.told:
        raise OssError("MissingContentLength")
    written = call.storage.incoming()
    try:
        for piece in call.request.body:
            written.add(piece)
    except BaseException:
        written.drop()
        raise
    check_md5(call, written)
    return written


def check_overwrite(call: Call) -> None:
    """Refuse where the client asked not to replace an object."""
    if (
        call.request.headers.get("x-oss-forbid-overwrite", "").lower() == "true"
        and call.key in call.bucket.objects
    ):
        raise OssError("FileAlreadyExists", ObjectName=call.key)


def made(
    call: Call, key: str, content: Content, etag: str, crc: int, headers: dict[str, str]
) -> StoredObject:
    """An object with what the request that began it said of it."""
    prefix = "x-oss-meta-"
    return StoredObject(
        key, content, etag, crc, time.time(),
        storage_class=headers.get("x-oss-storage-class", call.bucket.storage_class),
        content_type=headers.get("content-type", "application/octet-stream"),
        metadata={name[len(prefix) :]: value for name, value in headers.items() if name.startswith(prefix)},
    )  # fmt: skip


def put_object(call: Call) -> Answer:
    """PutObject."""
    written = receive(call)
    with call.bucket.lock:
        check_overwrite(call)
        found = made(
            call, call.key, Content((written.blob(),)), written.etag, written.crc, call.request.headers
        )
        found.md5 = written.md5
        call.bucket.set(found)
    headers = {"ETag": f'"{found.etag}"', "x-oss-hash-crc64ecma": str(found.crc)}
    return Answer(200, headers | {"Content-MD5": found.content_md5 or ""})


def copied(call: Call) -> StoredObject:
    """The object of this bucket that is to be copied. Raises `OssError`."""
    call.request.body.drain()
    name = unquote(call.request.headers["x-oss-copy-source"]).removeprefix("/").partition("/")[2]
    found = call.bucket.objects.get(name)
    if found is None:
        raise OssError("NoSuchKey", Key=name)
    return found


def copy_object(call: Call) -> Answer:
    """CopyObject within the bucket: the same bytes under another name, which takes no room."""
    headers, source = call.request.headers, copied(call)
    if source.key != call.key:  # onto itself only its metadata change
        call.storage.copying(source.size)
    with call.bucket.lock:
        check_overwrite(call)
        crc = call.storage.crc_of(source)
        found = made(call, call.key, source.content, source.etag, crc, headers)
        if headers.get("x-oss-metadata-directive", "").upper() != "REPLACE":
            found.metadata, found.content_type = source.metadata, source.content_type
        call.bucket.set(found)
    return copy_answer("CopyObjectResult", found.etag, crc, found.modified)


def copy_answer(root: str, etag: str, crc: int, modified: float) -> Answer:
    """What the copying operations say."""
    page = answers.Page(root)
    page.text("ETag", f'"{etag}"')
    page.text("LastModified", answers.stamp(modified))
    answer = page.answer()
    answer.headers |= {"ETag": f'"{etag}"', "x-oss-hash-crc64ecma": str(crc)}
    return answer


def _describe(call: Call, found: StoredObject) -> dict[str, str]:
    headers = {
        "Content-Type": found.content_type,
        "ETag": f'"{found.etag}"',
        "Last-Modified": answers.http_date(found.modified),
        "Accept-Ranges": "bytes",
        "x-oss-object-type": found.kind,
        "x-oss-hash-crc64ecma": str(call.storage.crc_of(found)),
        "x-oss-storage-class": found.storage_class,
        **{f"x-oss-meta-{name}": value for name, value in found.metadata.items()},
    }
    if found.content_md5:
        headers["Content-MD5"] = found.content_md5
    if found.restore:
        headers["x-oss-restore"] = answers.restore_info(found)
    for name, value in call.request.query.items():
        if name.startswith("response-"):
            headers[name[len("response-") :].title()] = value
    return headers


def _moment(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, TypeError):
        return None


def _conditions(call: Call, found: StoredObject) -> None:
    headers = call.request.headers
    changed = OssError("PreconditionFailed", Condition="If-Match")
    if (wanted := headers.get("if-match")) is not None:
        etags = [tag.strip().strip('"') for tag in wanted.split(",")]
        if call.fault == "changed" or ("*" not in etags and found.etag not in etags):
            raise changed
    if (unwanted := headers.get("if-none-match")) is not None:
        etags = [tag.strip().strip('"') for tag in unwanted.split(",")]
        if "*" in etags or found.etag in etags:
            raise NotModified
    since = _moment(headers.get("if-modified-since"))
    if since is not None and int(found.modified) <= since:
        raise NotModified
    until = _moment(headers.get("if-unmodified-since"))
    if until is not None and int(found.modified) > until:
        raise OssError("PreconditionFailed", Condition="If-Unmodified-Since")


def span(text: str, size: int, *, standard: bool) -> tuple[int, int] | None:
    """(first, count) of a Range header on an object of `size` bytes; None: the whole object is sent, with 200.

    That is what OSS does with ranges that it does not understand, and, without `standard`, also with those that reach beyond the end.
    Raises `OssError` for 416.
    """
    found = _RANGE.match(text.replace(" ", ""))
    if not found or found[0] == "bytes=-":
        return None
    refused = OssError("InvalidRange", ActualObjectSize=str(size), RangeRequested=text)
    if not found[1]:
        last = int(found[2])
        if last > size or last == 0:
            if not standard:
                return None
            if last == 0 or size == 0:
                raise refused
        return max(0, size - last), min(last, size)
    first, end = int(found[1]), int(found[2]) if found[2] else max(size - 1, int(found[1]))
    if end < first:
        return None
    if first >= size:
        if standard:
            raise refused
        return None
    if end >= size and not standard:
        return None
    return first, min(end, size - 1) - first + 1


def get_object(call: Call) -> Sent:
    """GetObject, ranges among it. A range carries the CRC of the whole object."""
    found = call.object()
    if not found.readable:
        raise OssError("InvalidObjectState", ObjectName=call.key)
    _conditions(call, found)
    headers = _describe(call, found)
    asked = call.request.headers.get("range")
    standard = call.request.headers.get("x-oss-range-behavior", "").lower() == "standard"
    part = span(asked, found.size, standard=standard) if asked is not None else None
    if part is None or call.fault == "whole":
        return Sent(Answer(200, headers), found.content, 0, found.size)
    first, count = part
    if call.fault == "other-version":
        headers["ETag"] = f'"{"0" * 32}"'
    shift = call.fault == "wrong-range"
    headers["Content-Range"] = f"bytes {first + shift}-{first + count - 1 + shift}/{found.size + shift}"
    return Sent(Answer(206, headers), found.content, first, count)


def head_object(call: Call) -> Answer:
    """HeadObject."""
    found = call.object()
    _conditions(call, found)
    return Answer(200, _describe(call, found), length=found.size)


def get_object_meta(call: Call) -> Answer:
    """GetObjectMeta: the little that it tells."""
    found = call.object()
    kept = ("ETag", "Last-Modified", "x-oss-hash-crc64ecma")
    headers = {name: value for name, value in _describe(call, found).items() if name in kept}
    return Answer(200, headers, length=found.size)


def delete_object(call: Call) -> Answer:
    """DeleteObject; one that is not there is as good as deleted."""
    call.bucket.remove(call.key)
    return Answer(204)


def restore_object(call: Call) -> Answer:
    """RestoreObject: begins; `OssServer.restored` ends it."""
    found = call.object()
    if found.storage_class not in ARCHIVES:
        raise OssError(
            "OperationNotSupported", "The operation is not supported for this resource", status=400
        )
    if found.restore == "ongoing":
        raise OssError("RestoreAlreadyInProgress")
    again = found.restore == "done"
    found.restore = found.restore or "ongoing"
    return Answer(200 if again else 202)


TABLE: dict[str, Operation] = {
    "PutObject": put_object, "GetObject": get_object, "HeadObject": head_object, "GetObjectMeta": get_object_meta,
    "CopyObject": copy_object, "DeleteObject": delete_object, "RestoreObject": restore_object,
}  # fmt: skip
