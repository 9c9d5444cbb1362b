"""OSS as a store: errors, faults on the wire, proxies, certificates, source addresses, uploads, against a server that speaks OSS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import itertools
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from stager.core.checksum import crc64
from stager.core.errors import (
    AccessDenied,
    CredentialsExpired,
    IntegrityError,
    Interrupted,
    MustRestore,
    NotFound,
    ObjectChanged,
    ObjectExists,
    RemoteError,
    StagerError,
    UsageError,
)
from stager.core.location import Location
from stager.core.ranges import SMALLEST as PART_FLOOR
from stager.net.answers import content_range, retry_after
from stager.net.failures import unreachable
from stager.net.route import Origin, Route
from stager.store.base import BLOCK
from stager.store.credentials import Credentials
from stager.store.opening import StoreOptions
from stager.store.oss import OssStore
from stager.store.oss.answers import part_page
from stager.store.oss.failures import garbled, refused
from stager.store.oss.upload import part_of as part_size
from stager.store.retry import Retrying
from tests.osslab.faults import Fault
from tests.osslab.fixtures import Oss
from tests.osslab.keys import AccessKey

DATA = os.urandom(4 * BLOCK + 77)


class Keys:
    """A source of credentials that gives one key after the other, as they are refused."""

    def __init__(self, *keys: AccessKey) -> None:
        self.keys = [Credentials(key.id, key.secret, key.token) for key in keys]
        self.refused: list[Credentials] = []

    def get(self) -> Credentials:
        return self.keys[min(len(self.refused), len(self.keys) - 1)]

    def invalidate(self, used: Credentials) -> bool:
        self.refused.append(used)
        return True

    def describe(self) -> str:
        return "the test"


def store_of(oss: Oss, prefix: str = "r1", *keys: AccessKey, **options: object) -> OssStore:
    given = {"endpoint": oss.endpoint, "region": oss.region} | options
    return OssStore(
        Location.parse(f"oss://{oss.bucket.name}/{prefix}"),
        StoreOptions(**given),  # type: ignore[arg-type]
        source=None if options.get("anonymous") else Keys(*(keys or (oss.key,))),
        environ={},
    )


def everything(store: OssStore, name: str = "a", size: int = len(DATA), **options: str) -> bytes:
    got: list[bytes] = []
    reader = store.reader()
    reader.read(name, 0, size, lambda view: got.append(bytes(view)), **options)
    reader.close()
    return b"".join(got)


def send(store: OssStore, name: str, data: bytes, **options: bool) -> object:
    upload = store.upload(name, len(data), **options)
    for number, start in enumerate(range(0, len(data), upload.part_size), 1):
        upload.part(number, memoryview(data)[start : start + upload.part_size])
    return upload.complete()


Script = Callable[[int], Iterable[bytes]]
"""What a server sends for its n-th request, piece by piece."""


@contextmanager
def scripted(script: Script, host: str = "127.0.0.1") -> Iterator[str]:
    """The endpoint of a server that does not look at what it is asked."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    asked = itertools.count()

    def serve(client: socket.socket) -> None:
        with suppress(OSError), client:
            head = b""
            while more := client.recv(1 << 16):
                head += more
                if b"\r\n\r\n" in head:
                    head = b""
                    for piece in script(next(asked)):
                        client.sendall(piece)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server((host, 0), family=family) as listening:
        threading.Thread(target=accept, daemon=True).start()
        port = listening.getsockname()[1]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


def said(body: bytes | str, status: str = "200 OK", **headers: object) -> bytes:
    """An answer. `headers` are written with underscores; None leaves one out."""
    data = body.encode() if isinstance(body, str) else body
    given = {"x-oss-request-id": "REQ", "Content-Length": len(data)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + data


def elsewhere(endpoint: str, **options: object) -> OssStore:
    """A store at `endpoint`, which looks at no signature."""
    given = {"endpoint": endpoint, "region": "cn-x"} | options
    keys = Keys(AccessKey("key-id", "s3cret", "CAISt0ken"))
    return OssStore(Location.parse("oss://models/r1"), StoreOptions(**given), source=keys, environ={})  # type: ignore[arg-type]


def listed(*keys: str, size: object = 1, token: str = "") -> str:
    """A page of a listing, truncated where there is a `token`."""
    objects = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>0</ETag>"
        f"<Type>Normal</Type><Size>{size}</Size><StorageClass>Standard</StorageClass></Contents>"
        for key in keys
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    truncated = "true" if token else "false"
    return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{objects}</ListBucketResult>"


# faults while reading


@pytest.mark.parametrize(
    ("fault", "error", "given"),
    [
        (
            Fault("reset", after_bytes=2 * BLOCK + 5),
            RemoteError,
            None,
        ),  # a reset takes back what waits in the kernel
        (Fault("close", after_bytes=2 * BLOCK + 5), RemoteError, True),
        (Fault("close", after_bytes=0), RemoteError, False),
        (Fault("drop"), RemoteError, False),
        (Fault("unavailable", seconds=7), RemoteError, False),
        (Fault("error"), RemoteError, False),
        (Fault("error", status=429, code="TooManyRequests"), RemoteError, False),
        (Fault("expired"), CredentialsExpired, False),
        (Fault("whole"), RemoteError, False),
        (Fault("wrong-range"), RemoteError, False),
        (Fault("changed"), ObjectChanged, False),
        (Fault("stall", after_bytes=BLOCK, seconds=60), RemoteError, True),
        (Fault("hang", seconds=60), RemoteError, False),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_fault_is_an_error_and_only_bytes_of_the_range_come_before_it(
    oss: Oss, fault: Fault, error: type[Exception], given: bool | None
) -> None:
    oss.put("r1/a", DATA)
    timeout = 2 if fault.kind in ("stall", "hang") else 60
    store = store_of(oss, read_timeout=timeout, connect_timeout=60)
    etag, reader, got = store.head("a").etag, store.reader(), []
    reader.read("a", 0, 1, lambda view: None)
    fault = replace(fault, connections=set())  # it counts, and this test may be run twice
    oss.faults.add(fault)
    offset, length = 3, len(DATA) - 10
    with pytest.raises(error) as caught:
        reader.read("a", offset, length, lambda view: got.append(bytes(view)), etag=etag)
    assert fault.fired == 1
    assert type(caught.value) is error
    assert DATA[offset : offset + length].startswith(b"".join(got))
    assert given is None or bool(got) is given
    assert getattr(caught.value, "retry_after", None) == (7 if fault.kind == "unavailable" else None)
    # The connection is not used again: what is left on it would be taken for the next answer.
    got.clear()
    reader.read("a", offset, length, lambda view: got.append(bytes(view)), etag=etag)
    assert b"".join(got) == DATA[offset : offset + length]
    used = [record.connection for record in oss.log.records(operation="GetObject")]
    assert len(used) == 3
    assert used[0] == used[1] != used[2]


def test_an_answer_of_another_version_is_not_used_though_the_condition_was_ignored(
    oss: Oss, monkeypatch: pytest.MonkeyPatch
) -> None:
    oss.put("r1/a", DATA)
    monkeypatch.setattr("tests.osslab.operations._conditions", lambda call, found: None)
    with pytest.raises(ObjectChanged):
        store_of(oss).reader().read("a", 0, 10, lambda view: pytest.fail("another version"), etag="0123")


@pytest.mark.parametrize(
    ("status", "given", "length", "match"),
    [
        ("200 OK", "bytes 0-9/100", 10, "status 200"),
        ("206 Partial Content", "bytes 0-9/100", 11, "asked for the bytes"),
        ("206 Partial Content", "bytes 0-9/100", None, "asked for the bytes"),
        ("206 Partial Content", "bytes 0-10/100", 10, "asked for the bytes"),
        ("206 Partial Content", None, 10, "does not say"),
    ],
)
def test_an_answer_that_contradicts_itself_is_not_used(
    status: str, given: str | None, length: int | None, match: str
) -> None:
    answer = said(b"0123456789", status, ETag='"0"', Content_Range=given, Content_Length=length)
    with scripted(lambda n: [answer]) as endpoint:
        reader = elsewhere(endpoint).reader()
        with pytest.raises(RemoteError, match=match):
            reader.read("a", 0, 10, lambda view: pytest.fail("used"))
        reader.close()


def test_one_connection_serves_all_reads_and_signs_in_the_header(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    reader = store_of(oss).reader()
    for offset in range(0, 10 * 1000, 1000):
        reader.read("a", offset, 1000, lambda view: None)
    records = oss.log.records(operation="GetObject")
    assert len({record.connection for record in records}) == 1
    assert all(record.headers["x-oss-range-behavior"] == "standard" for record in records)
    assert not any(record.query or record.presigned for record in records)


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_without_an_error(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    store = store_of(oss)
    reader = store.reader()
    reader.read("a", 0, 1000, lambda view: None)
    store.head("a")
    assert oss.listener.cut() == 2
    time.sleep(0.05)  # for the FINs to arrive
    reader.read("a", 0, 1000, lambda view: None)
    store.head("a")


def interrupted_while(reader: object, seen: threading.Event, read: object) -> BaseException | None:
    """What ends `read` in another thread when the reader is interrupted after `seen`."""
    found: list[BaseException | None] = []

    def work() -> None:
        try:
            read()  # type: ignore[operator]
            found.append(None)
        except BaseException as exc:
            found.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    assert seen.wait(20)
    time.sleep(0.05)  # so that it waits in the kernel by now
    reader.interrupt()  # type: ignore[attr-defined]
    thread.join(20)
    assert not thread.is_alive()
    return found[0]


def test_an_interrupt_ends_a_read_that_waits_for_bytes(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    oss.faults.add(Fault("stall", after_bytes=2 * BLOCK, seconds=60))
    reader, got, first = store_of(oss, read_timeout=60).reader(), [], threading.Event()

    def sink(view: memoryview) -> None:
        got.append(bytes(view))
        first.set()

    found = interrupted_while(reader, first, lambda: reader.read("a", 0, len(DATA), sink))
    assert type(found) is Interrupted
    assert DATA.startswith(b"".join(got))
    assert reader.read("a", 0, 10, lambda view: None).size == len(DATA)


def test_an_interrupt_ends_a_read_that_waits_for_a_connection() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fill = [socket.socket() for _ in range(3)]
        for sock in fill:
            sock.setblocking(False)
            sock.connect_ex(deaf.getsockname())
        options = StoreOptions(
            endpoint=f"127.0.0.1:{deaf.getsockname()[1]}", region="cn-x", connect_timeout=60
        )
        keys = Keys(AccessKey("id", "secret"))
        reader = OssStore(Location.parse("oss://models/r1"), options, source=keys, environ={}).reader()
        begun = threading.Event()
        line = reader._line.connection
        hold = line._hold
        line._hold = lambda sock: (hold(sock), begun.set())  # type: ignore[method-assign, assignment]
        found = interrupted_while(reader, begun, lambda: reader.read("a", 0, 1, lambda view: None))
        assert type(found) is Interrupted
        for sock in fill:
            sock.close()


def test_an_interrupt_before_the_first_byte_is_not_lost(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    reader = store_of(oss).reader()
    connection = reader._line.connection
    hold = connection._hold

    def late(sock: socket.socket) -> None:
        reader.interrupt()  # comes between two sockets
        connection._sock = None
        hold(sock)

    connection._hold = late  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        reader.read("a", 0, 10, lambda view: pytest.fail("interrupted"))


def test_an_interrupt_between_reads_costs_no_connection(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    reader = store_of(oss).reader()
    for _ in range(3):
        reader.read("a", 0, 10, lambda view: None)
        reader.interrupt()
    assert len({record.connection for record in oss.log.records(operation="GetObject")}) == 1


# refusals


def test_what_oss_says_stays_in_the_message_and_secrets_do_not(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    key = oss.keys.temporary(denied={"get"})
    store = store_of(oss, "r1", key)
    with pytest.raises(AccessDenied) as caught:
        everything(store)
    record = oss.log.records(operation="GetObject")[0]
    for word in ("oss://models/r1/a", "AccessDenied", record.request_id, "EC "):
        assert word in caught.value.message
    wrong = AccessKey(key.id, "another-secret", key.token)
    with pytest.raises(AccessDenied, match="SignatureDoesNotMatch") as other:
        store_of(oss, "r1", wrong).head("a")
    assert "--region" in (other.value.hint or "")
    for shown in (caught, other):
        text = repr(shown.getrepr(style="long", chain=True)) + str(shown.value)
        assert key.secret not in text
        assert (key.token or "") not in text


def test_debug_logs_hold_no_token(oss: Oss, caplog: pytest.LogCaptureFixture) -> None:
    oss.put("r1/a", DATA)
    key = oss.keys.temporary()
    with caplog.at_level(logging.DEBUG):
        for signature in ("v4", "v1"):
            everything(store_of(oss, "r1", key, signature=signature))
    assert (key.token or "") not in caplog.text
    assert key.secret not in caplog.text


def test_expired_credentials_are_reported_to_their_source(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    old, new = oss.keys.temporary(seconds=-1), oss.keys.temporary()
    store = store_of(oss, "r1", old, new)
    keys = store.credentials
    assert isinstance(keys, Keys)
    with pytest.raises(CredentialsExpired):
        everything(store)
    assert [one.key_id for one in keys.refused] == [old.id]
    assert everything(store) == DATA
    # A key that is denied is no key that expired.
    denied = store_of(oss, "r1", oss.keys.new(denied={"get"}))
    with pytest.raises(AccessDenied):
        denied.head("a")
    assert isinstance(denied.credentials, Keys)
    assert denied.credentials.refused == []


def test_what_a_server_said_before_it_hung_up_is_heard(oss: Oss) -> None:
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message><RequestId>REQ</RequestId></Error>"
    head = f"HTTP/1.1 403 Forbidden\r\nx-oss-request-id: REQ\r\nContent-Length: {len(body)}\r\n\r\n"

    def hang_up() -> None:
        client, _ = server.accept()
        client.recv(1000)
        client.sendall(head.encode() + body)
        client.close()  # with most of the request unread, so the client is reset

    large = bytes(16 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, daemon=True).start()
        store = store_of(oss, endpoint=f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(AccessDenied, match="REQ"):
            send(store, "a", large)


@pytest.mark.parametrize("storage_class", ["Archive", "ColdArchive"])
def test_an_archived_object_is_named_with_the_command_that_restores_it(oss: Oss, storage_class: str) -> None:
    oss.put("r1/a", DATA, storage_class=storage_class)
    store = store_of(oss)
    assert store.head("a").readable is (None if storage_class == "Archive" else False)
    assert next(store.list()).readable is None
    with pytest.raises(MustRestore) as caught:
        everything(store)
    assert "ossutil restore oss://models/r1/a" in (caught.value.hint or "")
    oss.restored("r1/a")
    assert store.head("a").readable is True
    assert next(store.list()).storage_class == storage_class
    assert everything(store) == DATA


def test_a_bucket_that_is_not_there(oss: Oss) -> None:
    options = StoreOptions(endpoint=oss.endpoint, region=oss.region)
    store = OssStore(Location.parse("oss://nobody/r1"), options, source=Keys(oss.key), environ={})
    for call in (lambda: list(store.list()), lambda: store.head("a"), lambda: everything(store)):
        with pytest.raises(NotFound):
            call()


def answer(status: int, code: str = "", headers: dict[str, str] | None = None, **details: str) -> StagerError:
    import oss2

    known = {"x-oss-request-id": "REQ", **(headers or {})}
    details = {"Code": code, "Message": details.pop("message", "words"), **details}
    exc = oss2.exceptions.ServerError(status, known, b"", details)
    used = Credentials("STS.x", "s3cret", "CAISt0ken")
    return refused(exc, "`oss://b/k`", used=used, restore="oss://b/k", now=1_700_000_000)


@pytest.mark.parametrize(
    ("found", "error", "hint"),
    [
        (answer(403, "RequestTimeTooSkewed"), AccessDenied, "chrony"),
        (answer(404, "NoSuchKey", headers={"x-oss-request-id": ""}), RemoteError, "no_proxy"),
        (answer(301, headers={"x-oss-request-id": ""}), RemoteError, "in between"),
        (answer(412, headers={"x-oss-request-id": ""}), RemoteError, "in between"),
        (answer(403, "SecurityTokenExpired"), CredentialsExpired, ""),
        (answer(403, "AccessDenied", message="Request has expired."), CredentialsExpired, ""),
        (answer(403, "InvalidAccessKeyId"), CredentialsExpired, ""),
        (answer(403, "AccessDenied", Endpoint="oss-cn-beijing.aliyuncs.com"), AccessDenied, "--endpoint oss-cn-beijing"),
        (answer(403, headers={"x-oss-request-id": ""}), AccessDenied, "no_proxy"),
        (answer(407, headers={"x-oss-request-id": ""}), AccessDenied, "proxy"),
        (answer(400, "InvalidArgument", message="Invalid signing region in Authorization header."), UsageError, "--region"),
        (answer(400, "InvalidBucketName"), UsageError, ""),
        (answer(400, "InvalidPart"), IntegrityError, ""),
        (answer(400, "RequestTimeout"), RemoteError, ""),
        (answer(404, "NoSuchBucket"), NotFound, "bucket's name"),
        (answer(409, "FileAlreadyExists"), ObjectExists, ""),
        (answer(409, "OperationAborted"), RemoteError, ""),
        (answer(416, "InvalidRange"), ObjectChanged, ""),
        (answer(301, "PermanentRedirect", Endpoint="oss-cn-beijing.aliyuncs.com"), UsageError, "--endpoint"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_error_and_a_hint(
    found: StagerError, error: type[StagerError], hint: str
) -> None:
    assert type(found) is error
    assert hint in (found.hint or "")
    assert "`oss://b/k`" in found.message


def test_a_clock_that_differs_is_told_by_how_much() -> None:
    ahead = answer(403, "RequestTimeTooSkewed", {"Date": "Tue, 14 Nov 2023 22:43:20 GMT"})
    assert "the clock of this node is 1800 s behind that of OSS" in ahead.message
    behind = answer(403, "RequestTimeTooSkewed", {"Date": "Tue, 14 Nov 2023 21:43:20 GMT"})
    assert "1800 s ahead of" in behind.message
    assert "the clock of this node differs" in answer(403, "RequestTimeTooSkewed").message


def test_an_ingress_that_knows_nothing_is_not_the_bucket() -> None:
    page = said("<html>not found</html>", "404 Not Found", x_oss_request_id=None, Retry_After=7)
    with scripted(lambda n: [page]) as endpoint:
        for call in (elsewhere(endpoint).list, lambda: [elsewhere(endpoint).head("a")]):
            with pytest.raises(RemoteError) as caught:
                list(call())
            assert type(caught.value) is RemoteError
            assert "in between" in (caught.value.hint or "")
            assert caught.value.retry_after == 7


def test_a_portal_that_says_yes_to_everything_has_no_objects() -> None:
    page = said("", x_oss_request_id=None, Content_Length=500)
    with scripted(lambda n: [page]) as endpoint, pytest.raises(RemoteError, match="no answer of OSS"):
        elsewhere(endpoint).head("a")


@pytest.mark.parametrize("region", ["cn-hangzhou", None])
def test_expired_credentials_that_nothing_renews_are_named(oss: Oss, region: str | None) -> None:
    oss.put("r1/a", DATA)
    key = oss.keys.temporary(seconds=-1)
    environ = {
        "OSS_ACCESS_KEY_ID": key.id,
        "OSS_ACCESS_KEY_SECRET": key.secret,
        "OSS_SESSION_TOKEN": key.token or "",
    }
    options = StoreOptions(endpoint=oss.endpoint, region=region)
    store = OssStore(Location.parse("oss://models/r1"), options, environ=environ)
    for call in (lambda: store.head("a"), lambda: list(store.list()), lambda: everything(store)):
        with pytest.raises(AccessDenied, match="run out") as caught:
            call()
        assert "OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET" in (caught.value.hint or "")


def test_a_secret_that_a_server_repeats_is_hidden() -> None:
    found = answer(400, "InvalidArgument", message="x-oss-security-token: CAISt0ken; key: s3cret")
    assert "x-oss-security-token: ***; key: ***" in found.message


@pytest.mark.parametrize(
    "echoed",
    [
        "x-oss-security-token=CAIS%2Bt0%2Fken%3D",
        "x-oss-security-token=CAIS%2bt0%2fken%3d",
        "/?t=CAIS%2Bt0/ken%3D",
        "url=%3Ft%3DCAIS%252Bt0%252Fken%253D",
        "Authorization: OSS key-id:c2lnbmF0dXJlPT0=",
        "OSS4-HMAC-SHA256 Credential=key-id/20240101/cn-x/oss/aliyun_v4_request,Signature=c2lnbmF0dXJlPT0=",
        "&x-oss-signature=c2lnbmF0dXJlPT0=&x-oss-date=1",
        "<SignatureProvided>c2lnbmF0dXJlPT0=</SignatureProvided>",
        "'SignatureProvided': 'c2lnbmF0dXJlPT0='",
    ],
)
def test_a_token_in_a_url_and_a_signature_are_hidden_too(echoed: str) -> None:
    import oss2

    headers = {"x-oss-request-id": "REQ"}
    exc = oss2.exceptions.ServerError(400, headers, b"", {"Code": "InvalidArgument", "Message": echoed})
    used = Credentials("STS.x", "s3cret", "CAIS+t0/ken=")
    message = refused(exc, "`oss://b/k`", used=used, now=0).message
    assert "***" in message
    for secret in ("c2lnbmF0dXJl", "t0", "ken%", "/ken="):
        assert secret not in message


def test_what_a_library_says_about_a_request_is_not_told() -> None:
    for exc in (
        ValueError("Invalid header value b't0ken'"),
        UnicodeEncodeError("ascii", "t0ken\xfc", 5, 6, "no"),
    ):
        assert "t0ken" not in garbled(exc, "it").message
        assert type(exc).__name__ in garbled(exc, "it").message


@pytest.mark.parametrize("part", ["id", "secret", "token"])
@pytest.mark.parametrize("value", ["wrapped\nt0ken", "t0kenf\xfcr", "t0ken\udcff"])
@pytest.mark.parametrize("signature", ["v4", "v1"])
def test_credentials_that_no_header_can_hold_are_not_told(part: str, value: str, signature: str) -> None:
    with scripted(lambda n: [said("<Error/>", "403 Forbidden")]) as endpoint:
        store = elsewhere(endpoint, signature=signature)
        key = {"id": "key-id", "secret": "s3cret", "token": "CAISt0ken"} | {part: value}
        store.credentials.keys = [Credentials(key["id"], key["secret"], key["token"])]  # type: ignore[attr-defined]
        for call in (lambda: store.head("a"), lambda: list(store.list()), lambda: everything(store)):
            with pytest.raises(StagerError) as caught:
                call()
            told = f"{caught.value.message} {caught.value.hint}"
            for secret in ("t0ken", "wrapped", "s3cret", "CAIS", "Signature="):
                assert secret not in told
            if "\n" in value and part != "secret":
                assert type(caught.value) is UsageError, "it cannot pass, so it is not to be retried"


def test_the_wait_that_a_server_asks_for() -> None:
    assert retry_after("3", 0) == 3
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20) == 40
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 90) == 0
    assert retry_after("soon", 0) is None
    assert retry_after(None, 0) is None


@pytest.mark.parametrize(
    "text", [None, "", "bytes 0-1", "bytes */7", "bytes 0-1/*", "bytes=0-1/2", "bytes 0-1/2 "]
)
def test_a_strange_content_range_is_none(text: str | None) -> None:
    assert content_range(text) is None


# listings


@pytest.mark.parametrize("kind", ["cut-list", "repeat-list", "no-token", "close", "error"])
def test_a_listing_that_breaks_off_is_an_error_and_not_an_end(oss: Oss, kind: str) -> None:
    given = [f"{n:05}" for n in range(2500)]
    for name in given:
        oss.put(f"r1/{name}", b"")
    oss.faults.add(Fault(kind, skip=1, operation="ListObjectsV2"))
    found: list[str] = []
    listing = store_of(oss).list()
    with pytest.raises(RemoteError):  # noqa: PT012  # what came before the error counts
        while True:
            found.append(next(listing).name)
    assert found == given[: len(found)]
    assert len(found) >= 1000


def test_a_listing_has_only_what_was_asked_for() -> None:
    with scripted(lambda n: [said(listed("r1/a", "r2/b"))]) as endpoint:
        listing = elsewhere(endpoint).list()
        assert next(listing).name == "a"
        with pytest.raises(RemoteError, match="out of order at `r2/b`"):
            next(listing)


def test_a_listing_that_goes_on_where_it_was_is_an_error() -> None:
    # The names go on, so that only the token tells.
    with scripted(lambda n: [said(listed(f"r1/{n:03}", token="same"))]) as endpoint:
        listing = elsewhere(endpoint).list()
        assert [next(listing).name, next(listing).name] == ["000", "001"]
        with pytest.raises(RemoteError, match="does not go on"):
            next(listing)


def test_empty_pages_come_to_an_end() -> None:
    def pages(n: int) -> list[bytes]:
        # So many in a row are taken, twice; then they do not end.
        return [said(listed(*([f"r1/{n:03}"] if n in (10, 21) else []), token=f"t{n}" if n < 50 else ""))]

    with scripted(pages) as endpoint:
        listing = elsewhere(endpoint).list()
        assert [next(listing).name, next(listing).name] == ["010", "021"]
        with pytest.raises(RemoteError, match="does not go on"):
            next(listing)


def test_empty_pages_of_uploads_and_of_parts_come_to_an_end(large: bytes) -> None:
    def page(n: int) -> list[bytes]:
        return [
            said(
                f"<ListMultipartUploadsResult><IsTruncated>{'true' if n < 50 else 'false'}</IsTruncated>"
                f"<NextKeyMarker>k{n}</NextKeyMarker><NextUploadIdMarker>u{n}</NextUploadIdMarker></ListMultipartUploadsResult>"
            )
        ]

    with scripted(page) as endpoint, pytest.raises(RemoteError, match="does not go on"):
        list(elsewhere(endpoint).unfinished())

    def parts(n: int) -> list[bytes]:
        upload = "<Upload><Key>r1/a</Key><UploadId>u</UploadId><Initiated>2024-01-01T00:00:00.000Z</Initiated></Upload>"
        first = f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><NextKeyMarker/><NextUploadIdMarker/>{upload}</ListMultipartUploadsResult>"
        page = f"<R><IsTruncated>{'true' if n < 50 else 'false'}</IsTruncated><NextPartNumberMarker>{n}</NextPartNumberMarker></R>"
        return [said(page if n else first)]

    with scripted(parts) as endpoint, pytest.raises(RemoteError, match="does not go on"):
        elsewhere(endpoint).upload("a", len(large), resume=True)


@pytest.mark.parametrize("size", [-1, 10_000 * (5 << 30) + 1, 10**30, "9" * 5000, "x"])
def test_sizes_that_no_object_has_are_refused(size: object) -> None:
    with scripted(lambda n: [said(listed("r1/a", size=size))]) as endpoint, pytest.raises(RemoteError):
        list(elsewhere(endpoint).list())
    with scripted(lambda n: [said(listed("r1/a", size=10_000 * (5 << 30)))]) as endpoint:
        assert len(list(elsewhere(endpoint).list())) == 1


def test_an_answer_that_never_ends_is_not_kept() -> None:
    def flood(n: int) -> Iterator[bytes]:
        yield said(b"", Content_Length=None)
        for _ in range(65):  # it could be more, but a client that keeps all of it shall come to an end too
            yield bytes(1 << 20)
        raise OSError("that is all")

    with scripted(flood) as endpoint, pytest.raises(RemoteError, match="longer"):
        list(elsewhere(endpoint).list())


def dripping(status: str) -> Script:
    def drip(n: int) -> Iterator[bytes]:
        yield said(b"", status, Content_Length=100)
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    return drip


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
def test_an_answer_that_drips_in_comes_to_an_end(status: str) -> None:
    with scripted(dripping(status)) as endpoint:
        store = elsewhere(endpoint, read_timeout=0.3)  # each wait is shorter than this
        with pytest.raises(RemoteError, match="no answer in time"):
            list(store.list())
        with pytest.raises(RemoteError, match="no answer in time"):
            send(store, "a", b"x")


def test_an_answer_that_is_cut_is_an_error() -> None:
    def cut(n: int) -> Iterator[bytes]:
        yield said(b"<ListBucketResult>", Content_Length=1000)
        raise OSError("the connection ends")

    with scripted(cut) as endpoint, pytest.raises(RemoteError, match="ended early"):
        list(elsewhere(endpoint).list())


# where and as whom


@pytest.mark.parametrize("signature", ["v4", "v1"])
def test_temporary_keys_sign_both_ways(oss: Oss, signature: str) -> None:
    oss.put("r1/a", DATA)
    store = store_of(oss, "r1", oss.keys.temporary(), signature=signature)
    assert everything(store) == DATA
    send(store, "b", DATA)
    assert {record.version for record in oss.log.records()} == {signature}


def test_nobody_needs_no_key_for_what_is_public(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    oss.bucket.acl = "public-read"
    store = store_of(oss, anonymous=True, region=None)
    assert everything(store) == DATA
    assert {record.access_key for record in oss.log.records()} == {""}
    assert oss.log.count(operation="GetBucketLocation") == 0
    with pytest.raises(AccessDenied):
        send(store, "b", b"x")


def test_a_region_that_nothing_names_is_asked_for_once() -> None:
    with Oss(region="cn-beijing") as oss:
        oss.put("r1/a", DATA)
        store = store_of(oss, region=None)
        assert everything(store) == DATA
        assert store.head("a").size == len(DATA)
        assert store.endpoint.region == "cn-beijing"
        assert oss.log.count(operation="GetBucketLocation") == 1
        assert everything(store_of(oss, region=None, signature="v1")) == DATA  # which needs none
        assert oss.log.count(operation="GetBucketLocation") == 1
        shy = store_of(oss, "r1", oss.keys.new(denied={"info"}), region=None)
        with pytest.raises(AccessDenied) as caught:
            shy.head("a")
        assert "--region" in (caught.value.hint or "")


def test_source_addresses_take_turns(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    store = store_of(oss, source_ips=("127.0.0.2", "127.0.0.3"))
    for _ in range(4):
        everything(store)
    seen = [record.client[0] for record in oss.log.records(operation="GetObject")]
    assert sorted(seen) == ["127.0.0.2"] * 2 + ["127.0.0.3"] * 2
    assert seen[0] != seen[1]
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        everything(store_of(oss, source_ips=("192.0.2.1",)))
    with pytest.raises(UsageError):
        store_of(oss, source_ips=("eth0",))


@contextmanager
def bridged(port: int) -> Iterator[int]:
    """A port of ::1 that leads to `port` of 127.0.0.1; skips where there is no IPv6."""
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as exc:
        pytest.skip(f"no IPv6 on loopback: {exc}")

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("signature", ["v4", "v1"])
def test_an_endpoint_that_is_an_ipv6_address(
    oss: Oss, monkeypatch: pytest.MonkeyPatch, signature: str
) -> None:
    monkeypatch.setattr("tests.osslab.server._is_address", lambda host: True)  # of what is in the Host header
    oss.put("r1/a b", DATA)
    with bridged(oss.port) as port:
        store = store_of(oss, endpoint=f"http://[::1]:{port}", signature=signature)
        assert everything(store, "a b") == DATA
        assert [one.name for one in store.list()] == ["a b"]
        send(store, "b", DATA)
        assert oss.get("r1/b") == DATA
        assert everything(store_of(oss, endpoint=f"[::1]:{port}", source_ips=("::1",)), "b") == DATA


def test_a_source_address_of_the_wrong_family_is_refused() -> None:
    for endpoint, source in (("http://[::1]:1", "127.0.0.1"), ("http://127.0.0.1:1", "::1")):
        store = elsewhere(endpoint, source_ips=(source,))
        for call in (lambda store=store: store.head("a"), lambda store=store: everything(store)):
            with pytest.raises(UsageError, match="cannot send from") as caught:
                call()
            assert "--source-ip" in (caught.value.hint or "")


def test_nobody_there_and_nobody_known_are_worth_a_retry() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        options = StoreOptions(endpoint=f"127.0.0.1:{free.getsockname()[1]}", region="cn-x")
        store = OssStore(
            Location.parse("oss://models/r1"), options, source=Keys(AccessKey("i", "s")), environ={}
        )
        with pytest.raises(RemoteError, match="refused"):
            store.head("a")


def test_a_forked_process_does_not_use_its_parents_connections(oss: Oss) -> None:
    oss.put("r1/a", DATA)
    store = store_of(oss)
    store.head("a")
    child = os.fork()
    if not child:
        status = 1
        with suppress(BaseException):
            store.head("a")
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    store.head("a")
    first, second, third = [record.connection for record in oss.log.records(operation="HeadObject")]
    assert first == third != second


# proxies and certificates


class Proxy:
    """An HTTP proxy that sends whatever it is asked for to one place. `asked` has the request lines and credentials."""

    def __init__(self, port: int, refuse: int = 0) -> None:
        self.asked: list[tuple[str, str]] = []
        self._to, self._refuse = port, refuse
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._sock.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        first, *lines = head.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        auth = next((line for line in lines if line.lower().startswith("proxy-authorization:")), "")
        self.asked.append((first, auth.partition(":")[2].strip()))
        if self._refuse:
            client.sendall(f"HTTP/1.1 {self._refuse} No\r\nContent-Length: 0\r\n\r\n".encode())
            return
        server = socket.create_connection(("127.0.0.1", self._to))
        if first.startswith("CONNECT"):
            client.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
        else:
            method, url, version = first.split(" ")
            path = "/" + url.split("/", 3)[3]
            server.sendall(head.replace(first.encode(), f"{method} {path} {version}".encode(), 1))
        threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
        self._pump(server, client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch, port: int, refuse: int = 0, user: str = "") -> Iterator[Proxy]:
    proxy = Proxy(port, refuse)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{user}127.0.0.1:{proxy.port}")
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name in bundles]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("signature", ["v4", "v1"])
@pytest.mark.parametrize("host", ["oss-cn-hangzhou.aliyuncs.com", "weights.example.com"])
def test_names_of_buckets_and_domains_through_a_proxy(
    oss: Oss, monkeypatch: pytest.MonkeyPatch, host: str, signature: str
) -> None:
    oss.put("r1/a b", DATA)
    oss.cnames["weights.example.com"] = "models"
    with proxied(monkeypatch, oss.port, user="me:p%40ss@") as proxy:
        store = store_of(oss, endpoint=f"http://{host}", signature=signature)
        assert everything(store, "a b") == DATA
        assert [one.name for one in store.list()] == ["a b"]
        send(store, "b", DATA)
    named = host if host.startswith("weights") else f"models.{host}"
    assert {record.host for record in oss.log.records()} == {named}
    assert {auth for _, auth in proxy.asked} == {"Basic bWU6cEBzcw=="}
    assert all(f" http://{named}/" in line and "ignature" not in line for line, _ in proxy.asked)


def test_a_proxy_is_left_out_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", ".internal.example.com,oss-cn-hangzhou-internal.aliyuncs.com")
    route = Route(environ={})

    def asked(url: str) -> str | None:
        found = route.proxy(Origin.of(url))
        return found.host if found else None

    assert asked("http://models.oss-cn-beijing.aliyuncs.com/k") == "proxy"
    assert asked("http://models.oss-cn-hangzhou-internal.aliyuncs.com/k") is None
    assert asked("http://oss.internal.example.com:80/k") is None
    assert asked("https://models.oss-cn-beijing.aliyuncs.com/k") is None  # https has a variable of its own
    for here in ("localhost:1", "127.0.0.1:1", "127.9.9.9"):
        assert asked(f"http://{here}/k") is None
    monkeypatch.setenv("all_proxy", "proxy2:8080")
    assert asked("https://models.oss-cn-beijing.aliyuncs.com/k") == "proxy2"


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_a_network_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv(variable, "example.com, 10.0.0.0/8,192.168.7.1/24,[fd00::]/8,not/a/net,")
    route = Route(environ={})
    for inside in ("10.0.0.1", "10.255.3.4:8080", "192.168.7.200", "[fd12::1]", "[fd12::1]:8080"):
        assert route.proxy(Origin.of(f"http://{inside}/k")) is None
    for outside in ("11.0.0.1", "192.168.8.1", "[2001:db8::1]:80", "10.example.org"):
        assert route.proxy(Origin.of(f"http://{outside}/k")) is not None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        port = free.getsockname()[1]
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://me:hidden@127.0.0.1:{port}")
        store = elsewhere(f"{scheme}://oss-cn-hangzhou.aliyuncs.com")
        for call in (lambda: store.head("a"), lambda: everything(store)):
            with pytest.raises(
                RemoteError, match=f"refused.*, through the proxy 127.0.0.1:{port}$"
            ) as caught:
                call()
            assert "no_proxy" in (caught.value.hint or "")
            assert "hidden" not in f"{caught.value.message}{caught.value.hint}"


def test_a_proxy_that_hangs_up_or_has_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(n: int) -> Iterator[bytes]:
        raise OSError("nothing is said")
        yield b""

    with scripted(hang_up) as endpoint:
        monkeypatch.setenv("http_proxy", endpoint)
        with pytest.raises(RemoteError, match=r"through the proxy 127\.0\.0\.1:"):
            elsewhere("http://oss-cn-hangzhou.aliyuncs.com").head("a")
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert "the endpoint's name is not known" in unreachable(unknown, "it").message
    unknown.add_note("through the proxy p:1")
    found = unreachable(unknown, "it")
    assert found.message.startswith("it: the proxy's name is not known")
    assert found.message.endswith(", through the proxy p:1")


@pytest.mark.parametrize(
    "text", ["socks5://me:hidden@127.0.0.1:1", "https://me:hidden@proxy", "http://:80", "a:b:c"]
)
def test_a_proxy_of_another_kind_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("http_proxy", text)
    with pytest.raises(UsageError) as caught:
        Route(environ={}).proxy(Origin.of("http://models.example.com/k"))
    assert "hidden" not in str(caught.value)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and the names used here, which is its own authority, and the file with its key as well."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "oss")])
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("*.oss-cn-hangzhou.aliyuncs.com"),
    ]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("ca")
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.pem").write_bytes(public)
    (folder / "both.pem").write_bytes(public + private)
    return folder / "ca.pem", folder / "both.pem"


@pytest.fixture
def secure(authority: tuple[Path, Path]) -> Iterator[Oss]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority[1])
    with Oss(tls=context) as oss:
        oss.put("r1/a", DATA)
        yield oss


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_are_checked_against_what_the_environment_names(
    secure: Oss, authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(authority[0]))
    options = StoreOptions(endpoint=secure.endpoint, region=secure.region)
    store = OssStore(Location.parse("oss://models/r1"), options, source=Keys(secure.key))
    assert everything(store) == DATA
    assert store.head("a").crc64 == crc64(DATA)
    send(store, "b", DATA)
    assert secure.get("r1/b") == DATA


def test_a_certificate_that_nobody_vouches_for_is_refused(secure: Oss, authority: tuple[Path, Path]) -> None:
    for call in (everything, lambda store: store.head("a")):
        with pytest.raises(AccessDenied, match="certificate") as caught:
            call(store_of(secure))
        assert "SSL_CERT_FILE" in (caught.value.hint or "")
    options = StoreOptions(endpoint=secure.endpoint, region=secure.region)
    environ = {"REQUESTS_CA_BUNDLE": "/nothing.pem"}
    store = OssStore(Location.parse("oss://models/r1"), options, source=Keys(secure.key), environ=environ)
    with pytest.raises(UsageError, match=r"nothing\.pem"):
        store.head("a")


def test_https_to_a_server_that_speaks_http_is_named(oss: Oss) -> None:
    def answer_in_plain() -> None:
        client, _ = plain.accept()
        client.recv(1 << 16)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=answer_in_plain, daemon=True).start()
        with pytest.raises(UsageError) as caught:
            store_of(oss, endpoint=f"https://127.0.0.1:{plain.getsockname()[1]}").head("a")
    assert "http://" in (caught.value.hint or "")


def trusting(secure: Oss, authority: tuple[Path, Path], **options: object) -> OssStore:
    given = {"endpoint": secure.endpoint, "region": secure.region} | options
    environ = {"CURL_CA_BUNDLE": str(authority[0])}
    source = Keys(secure.key)
    return OssStore(Location.parse("oss://models/r1"), StoreOptions(**given), source=source, environ=environ)  # type: ignore[arg-type]


def test_https_goes_through_a_tunnel(
    secure: Oss, authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = "https://oss-cn-hangzhou.aliyuncs.com"
    with proxied(monkeypatch, secure.port, user="me:p%40ss@") as proxy:
        store = trusting(secure, authority, endpoint=endpoint)
        assert everything(store) == DATA
        send(store, "b", DATA)
    assert secure.get("r1/b") == DATA
    assert set(proxy.asked) == {
        ("CONNECT models.oss-cn-hangzhou.aliyuncs.com:443 HTTP/1.1", "Basic bWU6cEBzcw==")
    }
    for status, error in ((407, AccessDenied), (502, RemoteError)):
        with proxied(monkeypatch, secure.port, refuse=status), pytest.raises(error, match=str(status)):
            everything(trusting(secure, authority, endpoint=endpoint))


def test_an_interrupt_under_tls_never_gives_ciphertext(secure: Oss, authority: tuple[Path, Path]) -> None:
    secure.put("r1/a", DATA)
    reader, got = trusting(secure, authority).reader(), []

    def sink(view: memoryview) -> None:
        got.append(bytes(view))
        if len(got) == 2:
            reader.interrupt()
            sock = reader._line.connection._sock
            assert isinstance(sock, ssl.SSLSocket)
            assert sock.version()  # still TLS: what comes next is decrypted or an error

    with pytest.raises(Interrupted):
        reader.read("a", 0, len(DATA), sink)
    assert DATA.startswith(b"".join(got))
    secure.faults.add(Fault("stall", after_bytes=2 * BLOCK, seconds=60))
    first = threading.Event()
    got.clear()

    def wait(view: memoryview) -> None:
        got.append(bytes(view))
        first.set()

    found = interrupted_while(reader, first, lambda: reader.read("a", 0, len(DATA), wait))
    assert type(found) is Interrupted
    assert DATA.startswith(b"".join(got))
    assert reader.read("a", 0, 10, lambda view: None).size == len(DATA)


# uploads


@pytest.mark.parametrize(
    "size", [1, PART_FLOOR, 10_000 * PART_FLOOR, 10_000 * PART_FLOOR + 1, 48_800_000_000_000]
)
def test_parts_suffice_for_any_object(size: int) -> None:
    part = part_size(size)
    assert part >= PART_FLOOR
    assert part % (1 << 20) == 0
    assert -(-size // part) <= 10_000
    assert part <= 5 << 30


def test_an_object_larger_than_oss_takes_is_refused() -> None:
    with pytest.raises(UsageError):
        part_size(60_000_000_000_000)


@pytest.fixture(scope="module")
def large() -> bytes:
    return os.urandom(1 << 20) * 17


def test_a_part_that_arrives_damaged_can_be_sent_again(oss: Oss, large: bytes) -> None:
    upload = store_of(oss).upload("a", len(large))
    view, size = memoryview(large), upload.part_size
    for fault in (Fault("wrong-crc", operation="UploadPart"), Fault("reset", operation="UploadPart")):
        oss.faults.add(fault)
        with pytest.raises(RemoteError):
            upload.part(1, view[:size])
        assert fault.fired == 1
    upload.part(1, view[:size])
    upload.part(2, view[size:])
    upload.complete()
    assert oss.get("r1/a") == large


def test_a_crc_that_the_caller_has_is_what_must_arrive(oss: Oss, large: bytes) -> None:
    """What changed in memory since its CRC was taken is not what was to be sent."""
    view = memoryview(large)
    upload = store_of(oss).upload("a", len(large))
    with pytest.raises(RemoteError, match="CRC"):
        upload.part(1, view[: upload.part_size], crc=1)
    small = store_of(oss).upload("b", len(DATA))
    small.part(1, memoryview(DATA), crc=1)
    with pytest.raises(RemoteError, match="CRC"):
        small.complete()


def test_a_small_object_that_arrives_damaged_can_be_sent_again(oss: Oss) -> None:
    upload = store_of(oss).upload("a", len(DATA))
    upload.part(1, memoryview(DATA))
    oss.faults.add(Fault("wrong-crc", operation="PutObject"))
    with pytest.raises(RemoteError, match="CRC"):
        upload.complete()
    upload.complete()
    assert oss.get("r1/a") == DATA


def test_the_crc_of_the_whole_is_compared_too(oss: Oss, large: bytes) -> None:
    oss.faults.add(Fault("wrong-crc", operation="CompleteMultipartUpload", times=2))
    send(store_of(oss), "a", large)  # only the answer was damaged: the object says what it has
    oss.faults.add(Fault("wrong-crc", operation="HeadObject"))
    with pytest.raises(IntegrityError):
        send(store_of(oss), "b", large)


def test_a_refusal_is_heard_although_the_body_is_still_being_sent(oss: Oss, large: bytes) -> None:
    store = store_of(oss, "r1", oss.keys.new(denied={"put"}))
    with pytest.raises(AccessDenied, match="AccessDenied"):
        send(store, "a", DATA)
    with pytest.raises(AccessDenied):
        send(store, "a", large)


def test_the_newest_upload_of_that_very_key_goes_on_and_parts_that_do_not_fit_are_sent_again(
    oss: Oss, large: bytes
) -> None:
    store, view = store_of(oss), memoryview(large)
    older = store.upload("a", len(large))
    older.part(1, view[: older.part_size])
    time.sleep(1.1)  # OSS tells the time of a beginning in seconds
    newer = store.upload("a", len(large))
    time.sleep(1.1)
    near = store.upload("a2", len(large))
    near.part(1, view[: near.part_size])
    assert store.upload("a", len(large), resume=True).parts == ()
    newer.part(2, view[newer.part_size :])
    found = store.upload("a", len(large), resume=True)
    assert [part.number for part in found.parts] == [2]
    # For a longer object the last part of the shorter one is too short.
    assert store.upload("a", len(large) + (1 << 20), resume=True).parts == ()


def test_the_very_upload_that_was_listed_goes_on_whatever_was_begun_since(oss: Oss, large: bytes) -> None:
    store, view = store_of(oss), memoryview(large)
    store.upload("a", len(large)).part(1, view[: store.upload("b", len(large)).part_size])
    [mine] = [one for one in store.unfinished() if one.name == "a"]
    time.sleep(1.1)
    other = store.upload("a", len(large))
    other.part(2, view[other.part_size :])
    found = store.upload("a", len(large), resume=mine.upload_id)
    assert [part.number for part in found.parts] == [1]
    found.abort()
    assert store.upload("a", len(large), resume=mine.upload_id).parts == ()


def test_unfinished_uploads_are_listed_below_the_root(oss: Oss, large: bytes) -> None:
    store, view = store_of(oss), memoryview(large)
    uploads = [store.upload(name, len(large)) for name in ("a", "sub/b")]
    store_of(oss, "r10").upload("c", len(large))
    found = list(store.unfinished())
    assert [(one.name, one.upload_id) for one in found] == [
        (name, upload.upload_id) for name, upload in zip(("a", "sub/b"), uploads, strict=True)
    ]
    assert all(abs(one.begun - time.time()) < 60 for one in found)
    uploads[0].part(1, view[: uploads[0].part_size])
    same = store.upload("a", len(large), resume=True)
    uploads[0].abort()
    same.abort()  # somebody else did it
    assert [one.name for one in store.unfinished()] == ["sub/b"]


def in_threads(calls: Iterable[Callable[[], object]]) -> None:
    """Runs them at the same time. What they raise is the test's failure."""
    calls = list(calls)
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result(60)


def test_each_part_on_its_way_has_a_connection_and_the_next_ones_use_them_again(oss: Oss) -> None:
    content = os.urandom(1 << 20) * 81  # six parts
    upload = store_of(oss).upload("a", len(content))
    before = oss.listener.open_connections
    view, size, together = memoryview(content), upload.part_size, threading.Barrier(3)

    def part(number: int, pace: Callable[[int], None] | None = None) -> object:
        return upload.part(number, view[(number - 1) * size : number * size], pace=pace)

    def meet(first: set[int], number: int) -> Callable[[int], None]:
        """A pace that lets nobody begin before all have."""

        def pace(_: int) -> None:
            if number not in first:
                first.add(number)
                together.wait(30)

        return pace

    met: set[int] = set()
    in_threads([lambda n=n: part(n, meet(met, n)) for n in (5, 1, 3)])  # type: ignore[misc]
    assert met == {1, 3, 5}
    assert oss.listener.open_connections == before + 3, "kept alive"
    in_threads([lambda n=n: part(n, meet(met, n)) for n in (2, 4, 6)])  # type: ignore[misc]
    used = [one.connection for one in oss.log.records(operation="UploadPart")]
    assert len(used) == 6
    assert len(set(used)) == 3
    assert set(used[:3]) == set(used[3:])
    upload.complete()
    assert oss.get("r1/a") == content
    assert oss.listener.open_connections == before + 3, "they outlive the upload"


def test_a_connection_does_not_outlive_an_error_and_the_others_do(oss: Oss, large: bytes) -> None:
    upload = store_of(oss).upload("a", len(large))
    view, size, together = memoryview(large), upload.part_size, threading.Barrier(2)
    mine = OSError(5, "mine")

    def stopped(_: int) -> None:
        together.wait(30)
        raise mine

    def failing() -> None:
        with pytest.raises(OSError) as caught:
            upload.part(1, view[:size], pace=stopped)
        assert caught.value is mine, "another part's pace is not taken for this one's"

    paced: list[int] = []

    def beside(block: int) -> None:
        if not paced:
            together.wait(30)
        paced.append(block)

    in_threads([failing, lambda: upload.part(2, view[size:], pace=beside)])
    assert sum(paced) == len(large) - size
    upload.part(1, view[:size])
    used = [one.connection for one in oss.log.records(operation="UploadPart", status=200)]
    assert used == [used[0]] * 2, "the one whose part arrived goes on, and no other"
    oss.faults.add(Fault("error", operation="UploadPart"))
    with pytest.raises(RemoteError):
        upload.part(1, view[:size])
    upload.part(1, view[:size])
    assert oss.log.records(operation="UploadPart", status=200)[-1].connection not in used
    upload.abort()
    assert not oss.bucket.uploads


def test_uploads_of_one_store_share_their_connections(oss: Oss, large: bytes) -> None:
    store = store_of(oss)
    for name in ("a", "b", "c"):
        upload = store.upload(name, len(large))
        for number, start in enumerate(range(0, len(large), upload.part_size), 1):
            upload.part(number, memoryview(large)[start : start + upload.part_size])
        upload.complete()
        small = store.upload(f"{name}.json", 2)
        small.part(1, memoryview(b"{}"))
        small.complete()
    bulk = [one.connection for one in oss.log.records() if one.operation in ("UploadPart", "PutObject")]
    assert len(bulk) > 6
    assert len(set(bulk)) == 1


def test_parts_at_once_survive_faults_of_each_kind(oss: Oss) -> None:
    content = os.urandom(1 << 20) * 130  # nine parts
    for kind in ("reset", "lost", "drop", "wrong-crc", "unavailable", "error"):
        oss.faults.add(Fault(kind, operation="UploadPart", times=2, nth=2, seconds=0))
    store = Retrying(store_of(oss), give_up_after=60, pause=lambda _: None)
    upload = store.upload("a", len(content))
    assert upload.concurrent
    view, size, numbers, lock = memoryview(content), upload.part_size, iter(range(1, 10)), threading.Lock()

    def lane() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            upload.part(number, view[(number - 1) * size : number * size])

    in_threads([lane] * 4)
    assert oss.faults.pending == 0
    assert upload.complete().crc64 == crc64(content)
    assert oss.get("r1/a") == content


@pytest.mark.parametrize("size", [0, 1000, 17 << 20])
def test_old_uploads_of_that_very_key_are_aborted_where_that_is_asked_for(
    oss: Oss, large: bytes, size: int
) -> None:
    store = store_of(oss)
    old = [store.upload(name, len(large)) for name in ("a", "a", "a2", "sub/a")]
    old[0].part(1, memoryview(large)[: old[0].part_size])
    kept = {one.upload_id for one in old[2:]}  # type: ignore[union-attr]
    send(store, "a", large[:size], discard=True, resume=True)
    assert oss.get("r1/a") == large[:size]
    assert {one.upload_id for one in store.unfinished()} == kept


def test_the_age_is_by_the_clock_of_oss_whatever_the_clock_here_says(
    oss: Oss, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = {"Last_Modified": "Fri, 01 Mar 2024 12:00:00 GMT", "Date": "Fri, 01 Mar 2024 12:01:40 GMT"}
    head = said("", ETag='"E"', **stamps)
    with scripted(lambda n: [head]) as endpoint:
        assert elsewhere(endpoint).head("a").age == 100.0
    with scripted(lambda n: [said("", ETag='"E"', Last_Modified=stamps["Last_Modified"])]) as endpoint:
        assert elsewhere(endpoint).head("a").age is None
    swapped = said("", ETag='"E"', Last_Modified=stamps["Date"], Date=stamps["Last_Modified"])
    with scripted(lambda n: [swapped]) as endpoint:
        assert elsewhere(endpoint).head("a").age == 0.0, "never negative"


@pytest.mark.parametrize(
    ("key", "value"), [("", "x"), ("sp ace", "x"), ("a", "two\nlines"), ("a", " x"), ("a:", "x")]
)
def test_metadata_that_no_header_can_hold_is_refused(oss: Oss, key: str, value: str) -> None:
    with pytest.raises(UsageError):
        store_of(oss).upload("a", 1, metadata={key: value})


def test_a_name_that_no_object_can_have_is_refused(oss: Oss) -> None:
    store = store_of(oss)
    for name in ("\udcff", "x" * 1021, ""):
        with pytest.raises(UsageError):
            store.head(name)


def test_names_with_control_characters_are_deleted_too(oss: Oss) -> None:
    for name in ("a\x01b", "c\nd", "e"):
        oss.put(f"r1/{name}", b"x")
    store_of(oss).delete(["a\x01b", "c\nd", "e"])
    assert oss.names() == []


def test_a_page_of_parts_that_is_cut_is_no_page() -> None:
    whole = b"<R><IsTruncated>true</IsTruncated><NextPartNumberMarker>7</NextPartNumberMarker></R>"
    assert part_page(whole).more == "7"
    for broken in (whole[:-4], b"<R></R>", b"<R><IsTruncated>true</IsTruncated></R>"):
        with pytest.raises(ValueError):
            part_page(broken)
