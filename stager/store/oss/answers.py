"""What OSS's answers say: headers, ranges, and the parts of an upload with their CRC. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from stager.net.answers import seconds
from stager.store.base import StoredObject, UploadedPart

CRC_HEADER = "x-oss-hash-crc64ecma"
META = "x-oss-meta-"
MUST_RESTORE = ("ColdArchive", "DeepColdArchive")
ARCHIVE = ("Archive", *MUST_RESTORE)


def described(name: str, size: int, headers: Mapping[str, str]) -> StoredObject:
    """The object that the headers of an answer to GET, HEAD, PUT or a completion speak of.

    An object of the class Archive that was not restored is neither readable nor unreadable here: a bucket may allow reading such
    objects directly, and the answer does not say whether it does.
    """
    crc = headers.get(CRC_HEADER)
    storage_class = headers.get("x-oss-storage-class", "Standard")
    return StoredObject(
        name=name,
        size=size,
        etag=headers.get("ETag", "").strip('"'),
        crc64=int(crc) if crc else None,
        modified=seconds(headers.get("Last-Modified") or headers.get("Date")) or 0.0,
        storage_class=storage_class,
        readable=_readable(storage_class, headers.get("x-oss-restore")),
        metadata={
            key.lower().removeprefix(META): _text(value)
            for key, value in headers.items()
            if key.lower().startswith(META)
        },
    )


def age(headers: Mapping[str, str]) -> float | None:
    """How many seconds before this answer the object was modified, both by the clock of OSS; None where the answer does not tell."""
    now, modified = seconds(headers.get("Date")), seconds(headers.get("Last-Modified"))
    return None if now is None or modified is None else max(0.0, now - modified)


def readable_in_listing(storage_class: str, restore: str | None) -> bool | None:
    """What a listing tells of an object: of archived ones only that they were restored."""
    if storage_class not in ARCHIVE:
        return True
    return True if restore and 'ongoing-request="false"' in restore else None


def _readable(storage_class: str, restore: str | None) -> bool | None:
    if storage_class not in ARCHIVE:
        return True
    if restore:
        return 'ongoing-request="false"' in restore
    return False if storage_class in MUST_RESTORE else None


def _text(value: str) -> str:
    """A header's value as it was meant: http.client reads Latin-1, OSS and its clients send UTF-8."""
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class PartPage:
    """One page of an upload's parts; `more` is where the next one begins, None after the last."""

    parts: tuple[UploadedPart, ...]
    more: str | None


def part_page(body: bytes) -> PartPage:
    """A page of ListParts, with each part's CRC, which oss2 leaves out. Parts without one are not given.

    Raises ValueError for what is no such page.
    """
    try:
        root = ET.fromstring(body)  # noqa: S314  # expat expands no external entity, and bounds the others
    except ET.ParseError as exc:
        raise ValueError(str(exc)) from exc
    parts = []
    for node in root.findall("Part"):
        crc = node.findtext("HashCrc64ecma")
        if crc:
            etag = (node.findtext("ETag") or "").strip('"')
            number, size = int(node.findtext("PartNumber") or ""), int(node.findtext("Size") or "")
            parts.append(UploadedPart(number, size, etag, int(crc)))
    if (node_text := root.findtext("IsTruncated")) not in ("true", "false"):
        raise ValueError("IsTruncated is missing")
    marker = root.findtext("NextPartNumberMarker")
    if node_text == "true" and not marker:
        raise ValueError("NextPartNumberMarker is missing")
    return PartPage(tuple(parts), unquote(marker or "") if node_text == "true" else None)
