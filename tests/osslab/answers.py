"""The XML that OSS answers with, and reading the XML that it is sent."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from email.utils import formatdate
from urllib.parse import quote
from xml.sax.saxutils import escape

from tests.osslab.errors import OssError
from tests.osslab.storage import Bucket, Part, Pending, StoredObject
from tests.osslab.wire import Answer

OWNER = ("0022012345678901", "osslab")


def stamp(moment: float) -> str:
    """Seconds since 1970 as OSS writes them in XML: whole ones, with three zeros."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(moment))


def http_date(moment: float) -> str:
    """The same in headers."""
    return formatdate(moment, usegmt=True)


class Page:
    """An XML document under way. Names of objects go through `name`, which encodes them where that was asked for."""

    def __init__(self, root: str, encoding: str = "") -> None:
        if encoding not in ("", "url"):
            raise OssError("InvalidArgument", "Invalid Encoding Method specified in Request",
                           ArgumentName="encoding-type", ArgumentValue=encoding)  # fmt: skip
        self._root, self._url = root, encoding == "url"
        self._lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<{root}>"]
        if self._url:
            self.text("EncodingType", "url")

    def text(self, tag: str, value: object) -> None:
        """One element."""
        self._lines.append(f"<{tag}>{escape(str(value))}</{tag}>")

    def name(self, tag: str, value: str) -> None:
        """One element that holds the name of an object, or a piece of one."""
        self.text(tag, quote(value, safe="", errors="surrogateescape") if self._url else value)

    def open(self, tag: str) -> None:
        """Elements inside another one begin."""
        self._lines.append(f"<{tag}>")

    def close(self, tag: str) -> None:
        """... and end."""
        self._lines.append(f"</{tag}>")

    def answer(self) -> Answer:
        """The finished document."""
        body = "\n".join([*self._lines, f"</{self._root}>"]).encode("utf-8", "surrogateescape")
        return Answer(200, {"Content-Type": "application/xml"}, body)


def _owner(page: Page) -> None:
    page.open("Owner")
    page.text("ID", OWNER[0])
    page.text("DisplayName", OWNER[1])
    page.close("Owner")


def contents(page: Page, found: Iterable[StoredObject], *, owner: bool) -> None:
    """The objects of a listing."""
    for one in found:
        page.open("Contents")
        page.name("Key", one.key)
        page.text("LastModified", stamp(one.modified))
        page.text("ETag", f'"{one.etag}"')
        page.text("Type", one.kind)
        page.text("Size", one.size)
        page.text("StorageClass", one.storage_class)
        if one.restore:
            page.text("RestoreInfo", restore_info(one))
        if owner:
            _owner(page)
        page.close("Contents")


def folders(page: Page, found: Iterable[str]) -> None:
    """The common prefixes of a listing."""
    for one in found:
        page.open("CommonPrefixes")
        page.name("Prefix", one)
        page.close("CommonPrefixes")


def restore_info(found: StoredObject) -> str:
    """What x-oss-restore says."""
    if found.restore == "ongoing":
        return 'ongoing-request="true"'
    return f'ongoing-request="false", expiry-date="{http_date(time.time() + 86400)}"'


def bucket_info(bucket: Bucket, region: str, host: str) -> Answer:
    """GetBucketInfo."""
    page = Page("BucketInfo")
    page.open("Bucket")
    for tag, value in (
        ("CreationDate", stamp(bucket.created)),
        ("ExtranetEndpoint", f"oss-{region}.aliyuncs.com"),
        ("IntranetEndpoint", f"oss-{region}-internal.aliyuncs.com"),
        ("Location", f"oss-{region}"),
        ("Name", bucket.name),
        ("StorageClass", bucket.storage_class),
        ("Region", region),
        ("TransferAcceleration", "Disabled"),
        ("CrossRegionReplication", "Disabled"),
        ("DataRedundancyType", "LRS"),
        ("AccessMonitor", "Disabled"),
        ("ResourceGroupId", "rg-osslab"),
        ("Comment", host),
    ):
        page.text(tag, value)
    _owner(page)
    page.open("AccessControlList")
    page.text("Grant", bucket.acl)
    page.close("AccessControlList")
    page.close("Bucket")
    return page.answer()


def uploads(
    page: Page, found: Iterable[Pending], *, truncated: bool, key_marker: str, id_marker: str
) -> Answer:
    """The rest of ListMultipartUploads."""
    page.name("NextKeyMarker", key_marker)
    page.text("NextUploadIdMarker", id_marker)
    page.text("IsTruncated", str(truncated).lower())
    for one in found:
        page.open("Upload")
        page.name("Key", one.key)
        page.text("UploadId", one.id)
        page.text("StorageClass", "Standard")
        page.text("Initiated", stamp(one.begun))
        page.close("Upload")
    return page.answer()


def parts(page: Page, found: Iterable[Part], *, truncated: bool, marker: int) -> Answer:
    """The rest of ListParts."""
    page.text("NextPartNumberMarker", marker)
    page.text("IsTruncated", str(truncated).lower())
    for one in found:
        page.open("Part")
        page.text("PartNumber", one.number)
        page.text("LastModified", stamp(one.modified))
        page.text("ETag", f'"{one.etag}"')
        page.text("HashCrc64ecma", one.crc)
        page.text("Size", one.content.size)
        page.close("Part")
    return page.answer()


def parse(data: bytes, root: str) -> ET.Element:
    """A document that a client sent, its names without a namespace. Raises `OssError` when it is none, or another one."""
    try:
        found = ET.fromstring(data)
    except ET.ParseError:
        raise OssError("MalformedXML") from None
    for element in found.iter():
        element.tag = element.tag.rpartition("}")[2]
    if found.tag != root:
        raise OssError("MalformedXML")
    return found


def told(element: ET.Element, tag: str) -> str:
    """The text of a child."""
    found = element.findtext(tag)
    if found is None:
        raise OssError("MalformedXML")
    return found
