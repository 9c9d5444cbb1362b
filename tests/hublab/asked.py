"""One request to the hub, who sent it, and refusals."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.hublab.repos import File, Repo
from tests.osslab.log import Record
from tests.osslab.operations import Sent
from tests.osslab.wire import Answer, Request


class Refused(Exception):
    """The request is answered by this and nothing else."""

    def __init__(self, answer: Answer, code: str = "") -> None:
        super().__init__(code)
        self.answer, self.code = answer, code


class Hub(Protocol):
    """What the two APIs need of the server."""

    listing_limit: int
    page_size: int
    direct_below: int
    unknown_revision: str
    private_status: int
    gated_status: int
    region: str | None
    tokens: set[str]
    moved: dict[str, str]

    def find(self, name: str) -> Repo | None:
        """The repository of that name."""

    def version(self, key: str) -> tuple[Repo, File] | None:
        """The version of a file with that `File.id`."""

    def signed(self, file: File, *, internal: bool) -> str:
        """A URL at the CDN that works for a while."""

    def query_address(self) -> str:
        """Where a client in the cloud learns in which region it is."""


@dataclass
class Asked:
    """A request on its way through the server. The log's record takes operation, repository (`bucket`) and path (`key`)."""

    hub: Hub
    request: Request
    record: Record
    token: str = ""
    request_id: str = field(default_factory=lambda: secrets.token_hex(16))

    def told(self, operation: str, repo: str = "", path: str = "") -> None:
        """Note what is asked for, before anything can go wrong."""
        self.record.operation, self.record.bucket, self.record.key = operation, repo, path

    @property
    def valid(self) -> bool:
        """The sender has a token that the hub knows."""
        return self.token in self.hub.tokens

    @property
    def bare(self) -> bool:
        """Only the head is wanted."""
        return self.request.method == "HEAD"


def bearer(headers: Mapping[str, str]) -> str:
    """The token of the Authorization header, or ""."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def cookies(headers: Mapping[str, str]) -> dict[str, str]:
    """The cookies that a client sent."""
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    return {name: value.strip('"') for name, _, value in pairs if name}


def bytes_of(
    file: File, status: int, headers: dict[str, str], offset: int = 0, length: int | None = None
) -> Sent:
    """A file, or a range of it, as an answer."""
    answer = Answer(status, {"Content-Type": "application/octet-stream", **headers})
    return Sent(answer, file.content, offset, file.size - offset if length is None else length)


def span(text: str, size: int) -> tuple[int, int] | None:
    """(first, one past the last) of a Range header; None when it is not one that a server has to follow.

    Raises `ValueError` for a range outside the file.
    """
    unit, _, wanted = text.partition("=")
    first, dash, last = wanted.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not (first + last).isdigit():
        return None
    if not first:
        start, end = max(0, size - int(last)), size
        if not int(last):
            raise ValueError(text)
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise ValueError(text)
    return start, end


Json = dict[str, Any] | list[Any]
