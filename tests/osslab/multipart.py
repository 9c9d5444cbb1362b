"""Multipart uploads: parts 1..10,000 of at least 100 KB but for the last, put together in ascending order."""

from __future__ import annotations

import hashlib
import time

from tests.osslab import answers, checksum
from tests.osslab.errors import OssError
from tests.osslab.operations import Call, Operation, check_overwrite, copied, copy_answer, made, receive, span
from tests.osslab.storage import Content, Part, Pending, assembled, read
from tests.osslab.wire import Answer

SMALLEST = 100 << 10
MOST = 10_000


def _pending(call: Call) -> Pending:
    upload_id = call.request.query.get("uploadId", "")
    found = call.bucket.uploads.get(upload_id)
    if found is None or found.key != call.key:
        raise OssError("NoSuchUpload", UploadId=upload_id)
    return found


def initiate(call: Call) -> Answer:
    """InitiateMultipartUpload."""
    check_overwrite(call)
    call.request.body.drain()
    found = Pending(call.key, call.storage.upload_id(), time.time(), dict(call.request.headers))
    with call.bucket.lock:
        call.bucket.uploads[found.id] = found
    page = answers.Page("InitiateMultipartUploadResult", call.request.query.get("encoding-type", ""))
    page.text("Bucket", call.bucket.name)
    page.name("Key", call.key)
    page.text("UploadId", found.id)
    return page.answer()


def _number(call: Call) -> int:
    text = call.request.query.get("partNumber", "")
    if not text.isdigit() or not 1 <= int(text) <= MOST:
        raise OssError("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive.",
                       ArgumentName="partNumber", ArgumentValue=text)  # fmt: skip
    return int(text)


def upload_part(call: Call) -> Answer:
    """UploadPart; a number sent again replaces the part."""
    number = _number(call)
    _pending(call)
    written = receive(call)
    part = Part(number, Content((written.blob(),)), written.etag, written.crc, time.time())
    with call.bucket.lock:
        _pending(call).parts[part.number] = part
    return Answer(200, {"ETag": f'"{part.etag}"', "x-oss-hash-crc64ecma": str(part.crc)})


def upload_part_copy(call: Call) -> Answer:
    """UploadPartCopy: bytes of another object of the bucket, which takes no room."""
    number, source = _number(call), copied(call)
    _pending(call)
    asked = call.request.headers.get("x-oss-copy-source-range", "")
    first, count = span(asked, source.size, standard=True) or (0, source.size)
    call.storage.copying(count)
    content, crc = source.content, call.storage.crc_of(source)
    if count < source.size:
        content, crc = content.cut(first, count), 0
        for piece in read(content, 0, count):
            crc = checksum.crc64(piece, crc)
    etag = hashlib.md5(f"{source.etag} {first} {count}".encode(), usedforsecurity=False).hexdigest().upper()
    part = Part(number, content, etag, crc, time.time())
    with call.bucket.lock:
        _pending(call).parts[part.number] = part
    return copy_answer("CopyPartResult", etag, crc, part.modified)


def _chosen(call: Call, pending: Pending, data: bytes) -> list[Part]:
    """The parts that the client names, checked against what is there."""
    if call.request.headers.get("x-oss-complete-all", "").lower() == "yes":
        chosen = [pending.parts[number] for number in sorted(pending.parts)]
    else:
        chosen, last = [], 0
        for entry in answers.parse(data, "CompleteMultipartUpload").findall("Part"):
            number = answers.told(entry, "PartNumber")
            if not number.isdigit():
                raise OssError("MalformedXML")
            if int(number) <= last:
                raise OssError("InvalidPartOrder")
            last = int(number)
            part = pending.parts.get(last)
            if part is None or part.etag != answers.told(entry, "ETag").strip('"').upper():
                raise OssError("InvalidPart", PartNumber=number, UploadId=pending.id)
            chosen.append(part)
    if not chosen:
        raise OssError("MalformedXML")
    for part in chosen[:-1]:
        if part.content.size < SMALLEST:
            raise OssError("EntityTooSmall", MinSizeAllowed=str(SMALLEST), ProposedSize=str(part.content.size),
                           PartNumber=str(part.number))  # fmt: skip
    return chosen


def complete(call: Call) -> Answer:
    """CompleteMultipartUpload."""
    data = call.request.body.whole()
    with call.bucket.lock:
        pending = _pending(call)
        chosen = _chosen(call, pending, data)
        check_overwrite(call)
        content, etag, crc = assembled(call.key, chosen)
        found = made(call, call.key, content, etag, crc, pending.headers)
        found.kind = "Multipart"
        call.bucket.set(found)
        del call.bucket.uploads[pending.id]
    page = answers.Page("CompleteMultipartUploadResult", call.request.query.get("encoding-type", ""))
    page.text("Location", f"http://{call.host}/{call.key}")
    page.text("Bucket", call.bucket.name)
    page.name("Key", call.key)
    page.text("ETag", f'"{etag}"')
    answer = page.answer()
    answer.headers |= {"x-oss-hash-crc64ecma": str(crc), "ETag": f'"{etag}"'}
    return answer


def abort(call: Call) -> Answer:
    """AbortMultipartUpload."""
    with call.bucket.lock:
        del call.bucket.uploads[_pending(call).id]
    return Answer(204)


def list_uploads(call: Call) -> Answer:
    """ListMultipartUploads, by key and then by id."""
    query = call.request.query
    prefix, most = query.get("prefix", ""), call.number("max-uploads", 1000, 1000)
    key_marker, id_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
    if call.fault == "repeat-list":
        key_marker = id_marker = ""

    def order(one: Pending) -> tuple[bytes, str]:
        return one.key.encode("utf-8", "surrogateescape"), one.id

    def after(one: Pending) -> bool:
        name = key_marker.encode("utf-8", "surrogateescape")
        return order(one) > (name, id_marker) if id_marker else order(one)[0] > name

    with call.bucket.lock:
        fitting = [one for one in call.bucket.uploads.values() if one.key.startswith(prefix)]
    found = sorted((one for one in fitting if not key_marker or after(one)), key=order)
    truncated, found = len(found) > most, found[:most]
    page = answers.Page("ListMultipartUploadsResult", query.get("encoding-type", ""))
    page.text("Bucket", call.bucket.name)
    page.name("KeyMarker", query.get("key-marker", ""))
    page.text("UploadIdMarker", query.get("upload-id-marker", ""))
    page.name("Delimiter", query.get("delimiter", ""))
    page.name("Prefix", prefix)
    page.text("MaxUploads", most)
    last = found[-1] if truncated and call.fault != "no-token" else None
    return answers.uploads(page, found, truncated=truncated or call.fault == "no-token",
                           key_marker=last.key if last else "", id_marker=last.id if last else "")  # fmt: skip


def list_parts(call: Call) -> Answer:
    """ListParts."""
    query = call.request.query
    most = call.number("max-parts", 1000, 1000)
    marker = int(query.get("part-number-marker") or 0)
    if call.fault == "repeat-list":
        marker = 0
    with call.bucket.lock:
        pending = _pending(call)
        found = [pending.parts[number] for number in sorted(pending.parts) if number > marker]
    truncated, found = len(found) > most, found[:most]
    page = answers.Page("ListPartsResult", query.get("encoding-type", ""))
    page.text("Bucket", call.bucket.name)
    page.name("Key", call.key)
    page.text("UploadId", pending.id)
    page.text("StorageClass", "Standard")
    page.text("PartNumberMarker", marker)
    page.text("MaxParts", most)
    last = found[-1].number if found and call.fault != "no-token" else 0
    return answers.parts(page, found, truncated=truncated or call.fault == "no-token", marker=last)


TABLE: dict[str, Operation] = {
    "InitiateMultipartUpload": initiate, "UploadPart": upload_part, "UploadPartCopy": upload_part_copy, "CompleteMultipartUpload": complete,
    "AbortMultipartUpload": abort, "ListMultipartUploads": list_uploads, "ListParts": list_parts,
}  # fmt: skip
