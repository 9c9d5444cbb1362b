"""Hubs, each by what is special to it: who learns a credential, addresses that expire, servers that ignore ranges, long lists, refusals."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from stager.core.errors import (
    AccessDenied,
    CannotServe,
    IntegrityError,
    Interrupted,
    NotFound,
    ObjectChanged,
    RemoteError,
    StagerError,
    UsageError,
)
from stager.core.manifest import PATH, Manifest
from stager.core.model import FileEntry
from stager.core.source import Source
from stager.hub import http
from stager.hub.base import Hub, HubFile
from stager.hub.directory import DirectoryHub
from stager.hub.http import Address, HttpReader, Shelf
from stager.hub.listing import Listed, snapshot
from stager.hub.modelscope import ModelScopeHub
from stager.hub.opening import HubOptions, adapter, open_hub
from stager.net.route import Route
from stager.store.base import BLOCK, Reader
from stager.store.opening import StoreOptions
from tests.harness import ROOT
from tests.hublab.faults import Fault
from tests.hublab.fixtures import HubLab
from tests.osslab.log import Record
from tests.rawserver import RawServer, answer

BIG = os.urandom(3 * BLOCK + 4321)
SMALL = os.urandom(5000)
SCHEMES = ("ms", "hf")
REGION = "x-aliyun-region-id"


@pytest.fixture
def env(hub: HubLab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the environment of a client of the hub; without a call there is no token."""

    def use(*, token: bool | str = False) -> None:
        for name in ("MODELSCOPE_API_TOKEN", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in hub.env(token=token).items():
            monkeypatch.setenv(name, value)

    use()
    return use


@pytest.fixture
def stocked(hub: HubLab, env: Callable[..., None]) -> HubLab:
    hub.repo("o/m").commit({"big.bin": BIG, "small.bin": SMALL})
    return hub


def bare(text: str, **options: float) -> Hub:
    return adapter(Source.parse(text), HubOptions(**{"read_timeout": 5.0, **options}))  # type: ignore[arg-type]


def patient(text: str, **options: float) -> Hub:
    return open_hub(Source.parse(text), HubOptions(**{"read_timeout": 1.0, "give_up_after": 20.0, **options}))  # type: ignore[arg-type]


def read(hub: Hub, path: str = "big.bin", offset: int = 0, length: int | None = None) -> bytes:
    got = bytearray()
    size = {"big.bin": len(BIG), "small.bin": len(SMALL)}[path]
    hub.reader().read(path, offset, size - offset if length is None else length, got.extend)
    return bytes(got)


def snapshot_and_read(hub: Hub) -> None:
    """Hugging Face lists for all, and refuses the bytes."""
    hub.snapshot()
    read(hub, "small.bin")


def records(hub: HubLab, *operations: str) -> list[Record]:
    return [one for one in hub.log.records() if one.operation in operations]


def said(error: BaseException) -> str:
    """All that could ever be printed of an error, with what caused it."""
    return "".join(traceback.format_exception(error)) + str(getattr(error, "hint", ""))


# Credentials


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nobody_but_the_hub_gets_credentials(hub: HubLab, env: Callable[..., None], scheme: str) -> None:
    hub.repo("o/m", private=True).commit({"big.bin": BIG, "small.bin": SMALL})
    hub.region = "cn-test"
    env(token=True)
    model = bare(f"{scheme}://o/m")
    assert "TOKEN" in model.credentials
    assert hub.token not in model.credentials
    model.snapshot()
    assert read(model) == BIG
    assert read(model, "small.bin") == SMALL
    outside = records(hub, "cdn", "internal")
    assert outside
    for record in outside:
        assert not {"authorization", "cookie", REGION} & set(record.headers), record
        assert hub.token not in str(record)
    asked = records(hub, "repo", "hf-resolve")
    assert len(asked) == 2  # which were refused without a token
    # The server keeps no tokens in its log: that it gave the file of a private model says that it got one.
    assert all(one.status in (200, 206, 302) for one in asked)


def test_no_secret_gets_into_an_error(hub: HubLab, env: Callable[..., None]) -> None:
    hub.repo("o/m", private=True).commit({"big.bin": BIG, "small.bin": SMALL})
    env(token=True)
    for scheme in SCHEMES:
        model = bare(f"{scheme}://o/m", read_timeout=0.3)
        model.snapshot()
        for fault in (
            Fault("expired", times=1), Fault("drop", host="cdn"), Fault("reset"), Fault("close"), Fault("unavailable", host="cdn"),
            Fault("error", host="hub", status=500, code=f"bad {hub.token}"), Fault("wrong-range"), Fault("stall", seconds=2),
            Fault("limited", host="cdn"), Fault("error", host="cdn", status=418),
        ):  # fmt: skip
            hub.faults.clear()
            hub.faults.add(fault)
            with pytest.raises(StagerError) as caught:
                read(model)
            for secret in (hub.token, "Signature=", "Expires=", "OSSAccessKeyId"):
                assert secret not in said(caught.value), (fault.kind, said(caught.value))


def test_the_token_in_an_answer_is_hidden() -> None:
    with RawServer() as server:
        server.answers["/f"] = answer(
            "403 No", "Content-Type: application/json", body=b'{"Message": "token SeSaMe is bad"}'
        )
        with pytest.raises(AccessDenied, match=r"token \*\*\* is bad") as caught:
            HttpReader(shelf(server, token="SeSaMe")).read("f", 0, 4, pytest.fail)
        assert caught.value.hint == "a hint"


# Presigned addresses


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_address_is_asked_for_once_and_shared(stocked: HubLab, scheme: str) -> None:
    model = bare(f"{scheme}://o/m")
    model.snapshot()
    for offset in range(0, 3 * BLOCK, BLOCK):
        assert read(model, offset=offset, length=BLOCK) == BIG[offset : offset + BLOCK]
    assert len(records(stocked, "repo", "hf-resolve")) == 1
    assert len(records(stocked, "cdn")) == 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_address_that_expired_is_asked_for_again(stocked: HubLab, scheme: str) -> None:
    stocked.url_lifetime = 0.2
    model = bare(f"{scheme}://o/m")
    model.snapshot()
    assert read(model, length=BLOCK) == BIG[:BLOCK]
    time.sleep(0.25)
    stocked.url_lifetime = 60
    assert read(model, offset=BLOCK) == BIG[BLOCK:]  # one attempt: nothing here retries
    assert [one.status for one in records(stocked, "cdn")] == [206, 403, 206]
    assert len(records(stocked, "repo", "hf-resolve")) == 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_address_that_expires_within_a_file_is_asked_for_again(stocked: HubLab, scheme: str) -> None:
    """The transfer breaks, the address has expired meanwhile, and the rest comes from a new one."""
    stocked.url_lifetime = 0.3
    stocked.faults.add(Fault("reset", host="cdn", times=1, after_bytes=BLOCK))
    model = patient(f"{scheme}://o/m")
    model.snapshot()
    got = bytearray()

    def sink(view: memoryview) -> None:
        if not got:
            time.sleep(0.35)
            stocked.url_lifetime = 60
        got.extend(view)

    model.reader().read("big.bin", 0, len(BIG), sink)
    assert bytes(got) == BIG


def test_a_fresh_address_that_is_refused_is_asked_for_again(stocked: HubLab) -> None:
    """A hub may hand out addresses from a cache of its own."""
    stocked.faults.add(Fault("expired", times=None))
    model = bare("o/m")
    model.snapshot()
    with pytest.raises(RemoteError) as caught:
        read(model)
    assert "HTTP 403 from 127.0.0.2, AccessDenied" in caught.value.message
    assert "has just given" in caught.value.message
    assert len(records(stocked, "cdn")) == 1
    stocked.faults.clear()
    stocked.faults.add(Fault("expired", times=3))
    again = patient("o/m")
    again.snapshot()
    assert read(again) == BIG


# Servers and ranges


@pytest.mark.parametrize("host", ["hub", "cdn"])
@pytest.mark.parametrize(
    ("kind", "hint"),
    [("hang", "`--read-timeout`"), ("stall", "`--read-timeout`"), ("drop", "can be reached"), ("reset", "can be reached"),
     ("limited", "run it again later"), ("unavailable", "run it again later"), ("error", "run it again later")],
)  # fmt: skip
def test_what_may_be_done_about_trouble_is_said(stocked: HubLab, host: str, kind: str, hint: str) -> None:
    model = bare("o/m", read_timeout=0.2)
    model.snapshot()
    path = "small.bin" if host == "hub" else "big.bin"
    stocked.faults.add(Fault(kind, host=host, times=None, seconds=20))
    with pytest.raises(RemoteError) as caught:
        read(model, path)
    assert hint in (caught.value.hint or "")


def test_a_hub_of_an_unknown_name(stocked: HubLab, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    for scheme in SCHEMES:
        with pytest.raises(RemoteError, match="name is not known") as caught:
            bare(f"{scheme}://o/m").snapshot()
        assert "MODELSCOPE_ENDPOINT, HF_ENDPOINT" in (caught.value.hint or "")
        assert "bucket" not in (caught.value.hint or "")


def test_a_server_that_ignores_ranges_is_noticed(stocked: HubLab) -> None:
    model = bare("o/m")
    model.snapshot()
    for offset, length in ((0, 5000), (10, 100), (4999, 1), (0, 1)):
        assert read(model, "small.bin", offset, length) == SMALL[offset : offset + length]
    assert {one.status for one in records(stocked, "repo")} == {200}
    stocked.faults.add(Fault("whole", times=None))
    assert read(model, offset=BLOCK + 5, length=BLOCK) == BIG[BLOCK + 5 : 2 * BLOCK + 5]


def test_a_reader_takes_no_memory_of_its_own_where_it_is_given_some(stocked: HubLab) -> None:
    model = bare("o/m")
    model.snapshot()
    into = memoryview(bytearray(len(BIG)))
    model.reader().read("big.bin", 0, len(BIG), lambda _: None, into=into)  # what is only made once is made
    tracemalloc.start()
    try:
        reader = model.reader()
        reader.read("big.bin", 0, len(BIG), lambda _: None, into=into)
        here = tracemalloc.Filter(inclusive=True, filename_pattern=http.__file__)
        found = tracemalloc.take_snapshot().filter_traces([here])
    finally:
        tracemalloc.stop()
    assert bytes(into) == BIG
    assert sum(one.size for one in found.traces) < BLOCK // 2


def test_what_comes_before_is_not_read_without_end(stocked: HubLab) -> None:
    from tests.hublab.repos import Zeros

    stocked.repo("o/z").commit({"zeros": Zeros((64 << 20) + 2, sha256="0" * 64)})
    stocked.faults.add(Fault("whole", times=None))
    model = bare("o/z")
    model.snapshot()
    got = bytearray()
    model.reader().read("zeros", 64 << 20, 2, got.extend)
    assert bytes(got) == bytes(2)
    with pytest.raises(CannotServe, match=r"this server ignores ranges, and a file of 64\.0 MiB") as caught:
        model.reader().read("zeros", (64 << 20) + 1, 1, pytest.fail)
    assert "or take the model from another hub" in (caught.value.hint or "")


def shelf(server: RawServer, *, size: int = 4, token: str = "", region: str = "") -> Shelf:
    """The file ``f`` of `size` bytes at ``/f`` of the server."""
    private = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    return Shelf(
        "ms://o/m",
        Route(connect_timeout=2, read_timeout=1),
        [HubFile(FileEntry("f", size), "v")],
        lambda path: Address(f"{server.url}/{path}", private),
        denied="a hint",
        token=token,
        region=region,
    )


def get(shelf: Shelf, offset: int = 0, length: int = 4) -> bytes:
    got = bytearray()
    HttpReader(shelf).read("f", offset, length, got.extend)
    return bytes(got)


PARTIAL = "206 Partial Content"
WRONG: list[tuple[bytes, type[StagerError], str]] = [
    (answer(PARTIAL, "Content-Range: bytes 1-2/5", body=b"bc"), ObjectChanged, "5 bytes, the hub listed 4"),
    (answer(PARTIAL, "Content-Range: bytes 0-1/4", body=b"ab"), RemoteError, "the answer has 0-1"),
    (answer(PARTIAL, "Content-Range: bytes 1-2/4", body=b"bcd"), RemoteError, "asked for the bytes 1-2"),
    (answer(PARTIAL, body=b"bc"), RemoteError, "does not say which bytes"),
    (answer(PARTIAL, "Content-Range: bytes 1-2/4", "Content-Encoding: gzip", body=b"bc"), RemoteError, "encoded"),
    (answer("200 OK", body=b"abcde"), ObjectChanged, "5 bytes, the hub listed 4"),
    (answer("200 OK", "Content-Type: text/html", body=b"<html>"), RemoteError, "a page and not the file"),
    (answer("200 OK", body=b"ab")[:-2] + b"", ObjectChanged, "2 bytes"),
    (answer("204 No Content"), RemoteError, "HTTP 204"),
    (answer("416 Range", body=b""), ObjectChanged, "fewer bytes"),
    (answer("404 Not Found", body=b'{"Message": "no file"}'), NotFound, "no file"),
    (answer("404 Not Found", body=b'{"Code": 10010200001, "Message": "x"}'), AccessDenied, "denied"),
    (answer("410 Gone"), NotFound, "HTTP 410"),
    (answer("401 Who", "X-Error-Message: who are you"), AccessDenied, "who are you"),
    (answer("407 Proxy"), AccessDenied, "proxy"),
    (answer("503 Later", "Retry-After: 7"), RemoteError, "HTTP 503"),
    (answer("302 Found"), RemoteError, "leads nowhere"),
    (answer("302 Found", "Location: ftp://x/f"), RemoteError, "leads nowhere"),
    (answer("302 Found", "Location: http://user:secret@x/f"), RemoteError, "leads nowhere"),
    (answer("302 Found", "Location: http://[x/f"), RemoteError, "leads nowhere"),
    (answer("302 Found", "Location: /f"), RemoteError, "more than 5 redirects"),
    (b"SSH-2.0-OpenSSH\r\n", RemoteError, "not HTTP"),
    (b"", RemoteError, "f"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "kind", "words"), WRONG, ids=range(len(WRONG)))
def test_an_answer_that_is_not_what_was_asked_for_gives_nothing(
    sent: bytes, kind: type[StagerError], words: str
) -> None:
    with RawServer() as server:
        server.answers["/f"] = sent
        with pytest.raises(kind, match=words) as caught:
            HttpReader(shelf(server)).read("f", 1, 2, pytest.fail)
        assert type(caught.value) is kind
        assert "secret" not in said(caught.value)
        if kind is RemoteError and b"Retry-After" in sent:
            assert getattr(caught.value, "retry_after", None) == 7


CHUNKED = "Transfer-Encoding: chunked"
RIGHT = [
    answer("200 OK", body=b"abcd"),
    answer("200 OK", "Content-Encoding: identity", body=b"abcd"),
    answer("200 OK", length=False) + b"abcd",
    answer("200 OK", CHUNKED, length=False) + b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
    answer("206 Partial", CHUNKED, "Content-Range: bytes 0-3/4", length=False) + b"4\r\nabcd\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("sent", RIGHT, ids=range(len(RIGHT)))
def test_bodies_of_every_form(sent: bytes) -> None:
    with RawServer() as server:
        server.answers["/f"] = sent
        assert get(shelf(server)) == b"abcd"
        if sent.startswith(b"HTTP/1.1 200"):
            assert get(shelf(server), 1, 2) == b"bc"


@pytest.mark.parametrize(
    "sent",
    [
        answer("200 OK", length=False) + b"abcde",
        answer("200 OK", CHUNKED, length=False) + b"5\r\nabcde\r\n0\r\n\r\n",
    ],
    ids=["to the end", "chunked"],
)
def test_more_bytes_than_listed_are_another_file(sent: bytes) -> None:
    with RawServer() as server:
        server.answers["/f"] = sent
        with pytest.raises(ObjectChanged, match="more bytes than the hub listed"):
            get(shelf(server))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_forget_who_asked(status: int) -> None:
    with RawServer() as server, RawServer("127.0.0.2") as other:
        server.answers["/f"] = answer(f"{status} There", "Location: below/g?a=b", body=b"moved")
        server.answers["/below/g?a=b"] = answer(f"{status} There", f"Location: {other.url}/h")
        other.answers["/h"] = answer(f"{status} There", f"Location: {server.url}/i")
        server.answers["/i"] = answer("200 OK", body=b"abcd")
        assert get(shelf(server, token="SeSaMe", region="cn-x")) == b"abcd"
        assert [("SeSaMe" in one, REGION in one) for one in server.asked] == [(True, True), (True, True), (False, False)]  # fmt: skip
        assert not any("SeSaMe" in one or REGION in one for one in other.asked)


# Faults

KINDS = (
    "reset",
    "close",
    "drop",
    "unavailable",
    "limited",
    "error",
    "stall",
    "hang",
    "whole",
    "wrong-range",
)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_faults_change_no_byte(stocked: HubLab, scheme: str, kind: str) -> None:
    model = patient(f"{scheme}://o/m", read_timeout=0.3)
    model.snapshot()
    for host in ("hub", "cdn"):
        stocked.faults.add(
            Fault(
                kind,
                host=host,
                times=1 if kind in ("stall", "hang") else 2,
                seconds=0.0 if kind in ("unavailable", "limited") else 2.0,
            )
        )
    assert read(model) == BIG
    assert read(model, "small.bin") == SMALL
    assert stocked.faults.counts[kind] >= 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["cut-list", "garbled", "unavailable"])
def test_faulty_lists_are_asked_for_again(stocked: HubLab, scheme: str, kind: str) -> None:
    told: list[tuple[str, Exception]] = []
    source = Source.parse(f"{scheme}://o/m")
    model = open_hub(source, HubOptions(give_up_after=20.0), on_retry=lambda *one: told.append(one))
    stocked.faults.add(Fault(kind, times=1, operation="files" if scheme == "ms" else "hf-model", seconds=0.0))
    assert len(model.snapshot().files) == 2
    assert stocked.faults.counts[kind] == 1
    assert kind == "unavailable" or [what for what, _ in told] == [f"list of {scheme}://o/m"]


LISTS = {"ms": ("files", 2), "hf": ("hf-tree", 1)}  # who lists, and how often the library itself asks


@pytest.mark.parametrize("kind", ["hang", "drop", "error", "unavailable", "limited"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_libraries_leave_trying_again_to_us(stocked: HubLab, scheme: str, kind: str) -> None:
    operation, tries = LISTS[scheme]
    # They would wait out a minute of their own, or the half hour that the hub asks for.
    stocked.faults.add(Fault(kind, times=None, operation=operation, seconds=20 if kind == "hang" else 1800))
    model = bare(f"{scheme}://o/m", read_timeout=0.2)
    with pytest.raises(RemoteError) as caught:
        model.snapshot()
    assert len(records(stocked, operation)) == tries
    assert ("no answer in time" in caught.value.message) == (kind == "hang")
    said = {"hang": "`--read-timeout`", "drop": "can be reached"}.get(kind, "run it again later")
    assert said in (caught.value.hint or "")
    assert caught.value.retry_after == (1800 if kind in ("unavailable", "limited") else None)
    stocked.faults.clear()
    assert len(model.snapshot().files) == 2


def test_what_comes_before_a_list_is_not_waited_for(stocked: HubLab) -> None:
    stocked.faults.add(Fault("hang", times=None, operation="hf-model", seconds=20))
    with pytest.raises(RemoteError, match="no answer in time"):
        bare("hf://o/m", read_timeout=0.2).snapshot()
    stocked.faults.clear()
    stocked.unknown_revision = "404"
    stocked.faults.add(Fault("hang", times=None, operation="revisions", seconds=20))
    with pytest.raises(RemoteError, match="no answer in time"):
        bare("ms://o/m@v9", read_timeout=0.2).snapshot()


def test_no_library_waits_longer_than_it_is_told(stocked: HubLab, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.utils
    import requests

    real, waits = requests.Session.send, []

    def send(self: object, request: object, **more: object) -> object:
        waits.append(more["timeout"])
        return real(self, request, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "send", send)
    stocked.unknown_revision = "404"
    with pytest.raises(NotFound):
        bare("ms://o/m@v9", connect_timeout=1.25, read_timeout=2.5).snapshot()
    assert waits == [(1.25, 2.5)] * 2, "the list, and the revisions"
    bare("hf://o/m", connect_timeout=1.25, read_timeout=2.5).snapshot()
    [hook] = huggingface_hub.utils.get_session().event_hooks["request"][-1:]
    for given in (None, {}, dict.fromkeys(("connect", "read", "write", "pool"), 60.0)):
        request = SimpleNamespace(extensions={"timeout": given})
        hook(request)
        assert request.extensions["timeout"] == {"connect": 1.25, "read": 2.5, "write": 2.5, "pool": 2.5}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nobody_listens(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODELSCOPE_ENDPOINT", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    if scheme == "ms":  # its SDK waits 1 + 2 + 4 s before it says so
        monkeypatch.setattr("modelscope_hub._legacy_api.time.sleep", lambda _: None)
    with pytest.raises(RemoteError, match="the connection failed") as caught:
        bare(f"{scheme}://o/m").snapshot()
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("opened", [bare, patient])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_interrupt_ends_a_stalled_read(stocked: HubLab, scheme: str, opened: Callable[..., Hub]) -> None:
    stocked.faults.add(Fault("stall", times=None, seconds=60, after_bytes=BLOCK))
    model = opened(f"{scheme}://o/m", read_timeout=60.0)
    model.snapshot()
    reader, begun, failed = model.reader(), threading.Event(), []

    def run() -> None:
        try:
            reader.read("big.bin", 0, len(BIG), lambda _: begun.set())
        except Interrupted as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(20)
    reader.interrupt()
    thread.join(20)
    assert not thread.is_alive()
    assert len(failed) == 1
    stocked.faults.clear()
    got = bytearray()
    reader.read("small.bin", 0, 5000, got.extend)
    assert bytes(got) == SMALL


def test_an_interrupt_ends_a_read_that_has_no_answer_yet(stocked: HubLab) -> None:
    model = bare("o/m", read_timeout=60.0)
    model.snapshot()
    for host, operation in (("hub", "repo"), ("cdn", "cdn")):
        stocked.faults.add(Fault("hang", host=host, operation=operation, times=1, seconds=60))
        reader, failed = model.reader(), []

        def run(reader: Reader = reader, failed: list[BaseException] = failed) -> None:
            try:
                reader.read("big.bin", 0, len(BIG), pytest.fail)
            except Exception as exc:
                failed.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        stocked.log.wait(lambda all_, operation=operation: any(one.operation == operation for one in all_))  # type: ignore[misc]
        reader.interrupt()
        thread.join(20)
        assert [type(one) for one in failed] == [Interrupted]


# Lists and revisions


def test_a_long_list_is_walked(hub: HubLab, env: Callable[..., None]) -> None:
    files = {f"{folder}/{at:04}": b"x" for folder in ("a", "b/c", "b/d", "e") for at in range(900)}
    commit = hub.repo("o/m").commit(files)
    found = bare("o/m").snapshot()
    assert [one.entry.path for one in found.files] == sorted(files)
    assert found.revision == commit


def test_a_folder_that_the_hub_cannot_list_whole_is_refused(hub: HubLab, env: Callable[..., None]) -> None:
    hub.repo("o/m").commit({f"shards/{at:04}": b"x" for at in range(3100)})
    with pytest.raises(CannotServe, match=r"its folder `shards` has 3000 entries or more"):
        bare("o/m").snapshot()


def test_an_endpoint_of_hugging_face_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.example")
    with pytest.raises(UsageError, match=r"HF_ENDPOINT: `hf-mirror\.example`") as caught:
        bare("hf://o/m")
    assert "https://" in (caught.value.hint or "")


def test_huggingface_goes_through_all_pages(hub: HubLab, env: Callable[..., None]) -> None:
    hub.page_size = 7
    files = {f"{at % 3}/{at}": b"%d" % at for at in range(50)}
    hub.repo("o/m").commit(files)
    assert [one.entry.path for one in bare("hf://o/m").snapshot().files] == sorted(files)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_pull_is_of_one_commit(hub: HubLab, env: Callable[..., None], scheme: str) -> None:
    repo = hub.repo("o/m")
    first = repo.commit({"big.bin": BIG, "small.bin": SMALL})
    repo.tag("v1")
    model = bare(f"{scheme}://o/m")
    assert model.snapshot().revision == first
    second = repo.commit({"big.bin": b"other", "small.bin": None, "new": b"new"})
    assert read(model) == BIG
    assert read(model, "small.bin") == SMALL
    assert bare(f"{scheme}://o/m").snapshot().revision == second
    for revision in ("v1", first):
        old = bare(f"{scheme}://o/m@{revision}")
        assert old.snapshot().revision == first
        assert read(old) == BIG


def test_a_commit_of_modelscope_is_listed_once(hub: HubLab, env: Callable[..., None]) -> None:
    commit = hub.repo("o/m").commit({"small.bin": SMALL})
    bare(f"o/m@{commit}").snapshot()
    assert len(records(hub, "files")) == 1


def test_a_push_in_between_is_seen(
    hub: HubLab, env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.repo("o/m")
    repo.commit({"a": b"1", "b": b"2"})
    model = bare("o/m")
    assert isinstance(model, ModelScopeHub)
    sdk, commits = model._sdk, []
    real = sdk.files

    def files(name: str, revision: str) -> object:
        rows = real(name, revision)
        if not commits:
            commits.append(repo.commit({"a": b"3"}))
            rows = [
                row for row in rows if row.path != "b"
            ]  # as if the list had been made in the middle of it
        return rows

    monkeypatch.setattr(sdk, "files", files)
    found = model.snapshot()
    assert found.revision == commits[0]
    assert [one.entry.path for one in found.files] == ["a", "b"]


def test_a_commit_that_only_removes_is_named_by_the_one_before(hub: HubLab, env: Callable[..., None]) -> None:
    """Such a commit is in no list of ModelScope's. All that is left is in the one before, as it is."""
    repo = hub.repo("o/m")
    before = repo.commit({"small.bin": SMALL, "gone": b"gone"})
    repo.commit({"gone": None})
    model = bare("o/m")
    found = model.snapshot()
    assert found.revision == before
    assert [one.entry.path for one in found.files] == ["small.bin"]
    repo.commit({"small.bin": BIG})
    assert read(model, "small.bin") == SMALL


def test_where_no_commit_has_what_the_branch_has_its_list_names_it(
    hub: HubLab, env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.repo("o/m")
    repo.commit({"small.bin": SMALL})
    model = bare("o/m")
    assert isinstance(model, ModelScopeHub)
    sdk = model._sdk
    real = sdk.files
    monkeypatch.setattr(
        sdk, "files", lambda name, revision: real(name, revision) if revision == "master" else []
    )
    first = model.snapshot()
    assert first.revision.startswith("master~")
    assert model.snapshot().revision == first.revision
    assert read(model, "small.bin") == SMALL
    repo.commit({"other": b"1"})
    assert model.snapshot().revision != first.revision


def test_names_that_no_folder_can_hold() -> None:
    def made(*paths: str) -> list[str]:
        rows = [Listed(path, 1, "v") for path in paths]
        return [one.entry.path for one in snapshot("ms://o/m", "c", rows).files]

    assert made("b", "a/B", "a/b", ".git/x", "x.part") == ["a/B", "a/b", "b"]
    for paths in (
        ("../x",),
        ("/x",),
        ("a/../x",),
        ("a\0b",),
        ("a//b",),
        ("a", "a"),
        ("a/b/c", "a"),
        ("x" * 300,),
    ):
        with pytest.raises(IntegrityError) as caught:
            made("fine", *paths)
        assert caught.value.exit_code == 8
        assert "ms://o/m" in caught.value.message
    with pytest.raises(IntegrityError):
        snapshot("ms://o/m", "c", [Listed("a", -1, "v")])
    with pytest.raises(NotFound):
        made(".git/x")


# Refusals


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_unknown_model(stocked: HubLab, env: Callable[..., None], scheme: str) -> None:
    name = "MODELSCOPE_API_TOKEN" if scheme == "ms" else "HF_TOKEN"
    with pytest.raises(NotFound, match=r"o/none does not exist, or is private") as caught:
        bare(f"{scheme}://o/none").snapshot()
    assert name in (caught.value.hint or "")
    env(token=True)
    with pytest.raises(NotFound) as caught:
        bare(f"{scheme}://o/none").snapshot()
    assert name not in (caught.value.hint or "")
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("unknown", ["null", "404"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_unknown_revision_names_the_nearest(stocked: HubLab, scheme: str, unknown: str) -> None:
    stocked.unknown_revision = unknown
    for tag in ("v1.0", "v1.1", "stable"):
        stocked.repo("o/m").tag(tag)
    with pytest.raises(NotFound, match=r"no revision `v1\.2`") as caught:
        bare(f"{scheme}://o/m@v1.2").snapshot()
    assert "`v1.1`" in (caught.value.hint or "")
    assert "stable" not in (caught.value.hint or "")
    with pytest.raises(NotFound, match="no revision"):
        bare(f"{scheme}://o/m@{'0' * 40}").snapshot()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_private_on_modelscope(hub: HubLab, env: Callable[..., None], status: int) -> None:
    hub.repo("o/p", private=True).commit({"small.bin": SMALL})
    hub.private_status = status
    for token in (False, hub.new_token(known=False)):
        env(token=token)
        with pytest.raises(AccessDenied) as caught:
            bare("o/p").snapshot()
        assert "MODELSCOPE_API_TOKEN" in (caught.value.hint or "")
        assert caught.value.exit_code == 6
        assert not token or str(token) not in said(caught.value)
    env(token=True)
    model = bare("o/p")
    model.snapshot()
    assert model.credentials == "MODELSCOPE_API_TOKEN"
    assert read(model, "small.bin") == SMALL


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gated(hub: HubLab, env: Callable[..., None], scheme: str) -> None:
    hub.repo("o/g", gated=True).commit({"small.bin": SMALL})
    for token in (False, hub.new_token()):
        env(token=token)
        with pytest.raises(AccessDenied) as caught:
            snapshot_and_read(bare(f"{scheme}://o/g"))
        assert "TOKEN" in (caught.value.hint or "")
        assert "conditions" in (caught.value.hint or "")
    env(token=True)
    model = bare(f"{scheme}://o/g")
    model.snapshot()
    assert read(model, "small.bin") == SMALL


def test_private_on_huggingface(hub: HubLab, env: Callable[..., None]) -> None:
    hub.repo("o/p", private=True).commit({"small.bin": SMALL})
    with pytest.raises(NotFound, match="or is private") as caught:
        bare("hf://o/p").snapshot()
    assert "HF_TOKEN" in (caught.value.hint or "")
    env(token=hub.new_token(known=False))
    with pytest.raises(AccessDenied) as denied:
        bare("hf://o/p").snapshot()
    assert "HF_TOKEN" in (denied.value.hint or "")
    env(token=True)
    model = bare("hf://o/p")
    model.snapshot()
    assert model.credentials == "HF_TOKEN"
    assert read(model, "small.bin") == SMALL


def test_a_model_of_huggingface_that_moved(stocked: HubLab, env: Callable[..., None]) -> None:
    stocked.moved["old/m"] = "o/m"
    model = bare("hf://old/m")
    model.snapshot()
    assert read(model) == BIG
    assert read(model, "small.bin", 5, 50) == SMALL[5:55]


# The region


def test_in_the_cloud_bytes_come_from_inside(stocked: HubLab) -> None:
    stocked.region = "cn-test"
    model = bare("o/m")
    model.snapshot()
    assert read(model) == BIG
    assert not records(stocked, "cdn")
    assert len(records(stocked, "internal")) == 1
    assert [one.headers.get(REGION) for one in records(stocked, "repo")] == ["cn-test"]


def test_the_region_can_be_named_and_switched_off(stocked: HubLab, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked.region = "cn-test"
    for name in ("MODELSCOPE_DOWNLOAD_INTRA_CLOUD_REGION", "INTRA_CLOUD_ACCELERATION_REGION"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "cn-test")
            model = bare("o/m")
            model.snapshot()
            assert read(model) == BIG
    assert len(records(stocked, "internal")) == 2
    monkeypatch.setenv("MODELSCOPE_DOWNLOAD_INTRA_CLOUD", "false")
    model = bare("o/m")
    model.snapshot()
    assert read(model) == BIG
    assert len(records(stocked, "cdn")) == 1
    assert not records(stocked, "acceleration")


def test_an_inside_that_cannot_be_reached_is_left(stocked: HubLab) -> None:
    stocked.region = "cn-test"
    stocked.internal.stop()
    model = bare("o/m")
    model.snapshot()
    assert read(model) == BIG  # in one attempt
    assert read(model, "small.bin") == SMALL
    assert len(records(stocked, "cdn")) == 1
    assert [REGION in one.headers for one in records(stocked, "repo")] == [True, False, False]


@pytest.mark.parametrize("kind", ["error", "drop", "hang", "garbled"])
def test_without_a_region_it_goes_on(stocked: HubLab, kind: str) -> None:
    stocked.region = "cn-test"
    stocked.faults.add(Fault(kind, operation="region" if kind != "garbled" else None, times=None, seconds=30))
    model = bare("o/m")
    if kind == "garbled":
        stocked.faults.clear()
        stocked.region = "no region at all"
    model.snapshot()
    assert read(model) == BIG
    assert len(records(stocked, "cdn")) == 1


# The folder


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFound) as caught:
            bare(str(path)).snapshot()
        assert str(path) in caught.value.message
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotFound):
        bare(str(tmp_path / "file")).snapshot()


def test_a_folder_that_is_being_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / PATH).parent.mkdir()
    for state, refused in (("updating", True), ("complete", False)):
        manifest = Manifest("ms://o/m", "c", state, (FileEntry("a", 1),))
        (tmp_path / PATH).write_bytes(manifest.dump(time=0, version="0"))
        if refused:
            with pytest.raises(IntegrityError, match="being updated"):
                bare(str(tmp_path)).snapshot()
        else:
            assert [one.entry.path for one in bare(str(tmp_path)).snapshot().files] == ["a"]
    (tmp_path / PATH).write_bytes(b"{")
    with pytest.raises(IntegrityError):
        bare(str(tmp_path)).snapshot()


@pytest.mark.parametrize("states", [("updating", "complete"), ("complete", "updating")])
def test_a_folder_that_is_written_while_it_is_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: tuple[str, str]
) -> None:
    def says(state: str) -> None:
        manifest = Manifest("ms://o/m", "c", state, (FileEntry("a", 1),))
        (tmp_path / PATH).write_bytes(manifest.dump(time=0, version="0"))

    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / PATH).parent.mkdir()
    says(states[0])
    model = bare(str(tmp_path))
    assert isinstance(model, DirectoryHub)
    real = model._store.list

    def listed(*args: str, **more: str) -> object:
        says(states[1])
        return real(*args, **more)

    monkeypatch.setattr(model._store, "list", listed)
    with pytest.raises(IntegrityError, match="being updated"):
        model.snapshot()


def test_a_file_of_a_folder_that_changes_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"before")
    (tmp_path / "link").symlink_to(file)
    model = patient(str(tmp_path))
    found = {one.entry.path: one for one in model.snapshot().files}
    assert sorted(found) == ["a", "link"]
    file.write_bytes(b"afterwards")
    with pytest.raises(ObjectChanged, match="was changed while it was being pulled") as caught:
        model.reader().read("a", 0, 6, pytest.fail, etag=found["a"].version)
    assert caught.value.hint == "run it again once nobody writes there any more"


def test_links_of_a_folder_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "below").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"1")
    (model / "a").symlink_to("../blobs/1")
    (model / "other").symlink_to("../blobs")
    (model / "below" / "up").symlink_to("..")
    assert [one.entry.path for one in bare(str(model)).snapshot().files] == ["a", "other/1"]


@pytest.mark.parametrize(
    ("name", "to"), [("a", "gone"), ("below/a", "../b/gone"), ("a", "a"), ("other/a", "b/c"), ("a", "b/c")]
)
def test_a_link_that_leads_nowhere_is_no_file_that_was_never_there(
    tmp_path: Path, name: str, to: str
) -> None:
    model, outside = tmp_path / "model", tmp_path / "outside"
    (model / "below").mkdir(parents=True)
    outside.mkdir()
    (model / "b").write_bytes(b"b")
    (model / "other").symlink_to(outside)
    (model / "below" / "up").symlink_to("..")
    (model / "x.part").symlink_to("gone")  # never taken, wherever it leads
    assert [one.entry.path for one in bare(str(model)).snapshot().files] == ["b"]
    (model / name).symlink_to(to)
    with pytest.raises(IntegrityError, match=f"`{name}` in .* is a link that leads nowhere") as caught:
        bare(str(model)).snapshot()
    assert "remove the link" in (caught.value.hint or "")


def test_a_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"a")
    assert bare("~/model").snapshot().source == str(tmp_path / "model")


# Surroundings

PROBE = """
import os, sys
from stager.core.source import Source
from stager.hub.opening import HubOptions, open_hub
{before}
for text in sys.argv[1:]:
    model = open_hub(Source.parse(text), HubOptions(give_up_after=1))
    got = bytearray()
    files = model.snapshot().files
    model.reader().read("small.bin", 0, 5000, got.extend)
    print(model.source, model.credentials, len(files), len(got))
"""


def probe(hub: HubLab, *sources: str, before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        **hub.env(),
        **env,
    }
    code = PROBE.format(before=before)
    return subprocess.run(
        [sys.executable, "-c", code, *sources],
        env=variables,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_nothing_is_printed_or_written(stocked: HubLab, tmp_path: Path) -> None:
    for home in (str(tmp_path), "/proc/nowhere"):
        done = probe(stocked, "ms://o/m", HOME=home)
        assert (done.stdout, done.stderr) == ("ms://o/m  2 5000\n", "")
    assert list(tmp_path.iterdir()) == []
    # Of a list that is cut short the SDK has much to say.
    stocked.repo("o/long").commit({**{f"{at % 4}/{at}": b"" for at in range(3100)}, "small.bin": SMALL})
    done = probe(stocked, "ms://o/long", HOME=str(tmp_path))
    assert (done.stdout, done.stderr) == ("ms://o/long  3101 5000\n", "")
    done = probe(stocked, "hf://o/m", HOME="/proc/nowhere")
    assert (done.stdout, done.stderr) == ("hf://o/m  2 5000\n", "")


def test_a_user_that_the_system_does_not_know(stocked: HubLab) -> None:
    """As in a pod with ``runAsUser``: there is no HOME, and nobody can say where it would be."""
    unknown = "import pwd\ndef none(uid): raise KeyError(uid)\npwd.getpwuid = none\nassert os.path.expanduser('~') == '~'"
    done = probe(stocked, "ms://o/m", "hf://o/m", before=unknown)
    assert (done.stdout, done.stderr) == ("ms://o/m  2 5000\nhf://o/m  2 5000\n", "")


def test_the_login_of_the_sdk_is_used(hub: HubLab, tmp_path: Path) -> None:
    hub.repo("o/p", private=True).commit({"small.bin": SMALL})
    login = (
        "from modelscope_hub.config import HubConfig\n"
        f"HubConfig().save_token({hub.token!r})"
    )  # fmt: skip
    done = probe(hub, "ms://o/p", before=login, HOME=str(tmp_path))
    assert done.stdout == f"ms://o/p the login in {tmp_path}/.modelscope/credentials 1 5000\n", done.stderr
    (tmp_path / ".modelscope/credentials/cookies").write_bytes(b"\x80garbage")
    done = probe(hub, "ms://o/p", HOME=str(tmp_path))
    assert "AccessDenied" in done.stderr


def test_a_folder_is_one_model_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ft").mkdir()
    (tmp_path / "ft" / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to("ft")
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path)
    for path in (f"{folder}/ft", f"{folder}/ft/", f"{folder}/./ft", "./ft", f"{folder}/link"):
        assert bare(path).snapshot().source == os.path.realpath(tmp_path / "ft")


def test_offline_is_said(stocked: HubLab) -> None:
    done = probe(stocked, "hf://o/m", HF_HUB_OFFLINE="1")
    assert "UsageError: hf://o/m: huggingface_hub is told to stay offline" in done.stderr


def test_a_missing_library_is_said(stocked: HubLab) -> None:
    done = probe(stocked, "hf://o/m", before="sys.modules['huggingface_hub'] = None")
    assert "UsageError: models of Hugging Face need the library huggingface_hub" in done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(UsageError) as caught:
            bare("hf://o/m")
        assert caught.value.hint.startswith("pip install 'stager[huggingface]'; stager's image")


def test_options_of_a_store_hold_for_a_hub() -> None:
    given = StoreOptions(connect_timeout=1, read_timeout=2, source_ips=("127.0.0.1",), give_up_after=3)
    assert HubOptions.of(given) == HubOptions(
        connect_timeout=1, read_timeout=2, source_ips=("127.0.0.1",), give_up_after=3
    )
    with pytest.raises(UsageError):
        bare("o/m", source_ips=("nonsense",))  # type: ignore[arg-type]
