"""Each fault of the look-alike strikes as it says, as often as it says, and is counted."""

from __future__ import annotations

import http.client
import json
import random
import signal
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from urllib.parse import urlencode

import oss2
import pytest

from stager.core.errors import ObjectChanged
from stager.core.location import Location
from stager.store.opening import StoreOptions
from stager.store.oss import OssStore
from tests.osslab import checksum
from tests.osslab.faults import KINDS, Fault
from tests.osslab.fixtures import Oss
from tests.osslab.process import OssProcess
from tests.osslab.test_osslab import bucket_for, code_of

MIB = 1 << 20
DATA = random.Random(5).randbytes(8 * MIB)


class Got:
    """What one plain GET or PUT met: status, headers, body as far as it came, and the error that ended it."""

    def __init__(
        self, oss: Oss, method: str, target: str, body: bytes | None, headers: dict[str, str]
    ) -> None:
        self.status, self.headers, self.body, self.error = 0, {}, b"", None
        connection = http.client.HTTPConnection(oss.host, oss.port, timeout=20)
        self.began = time.monotonic()
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            self.status, self.headers = answer.status, answer.headers
            while piece := answer.read1(MIB):
                self.body += piece
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        finally:
            self.seconds = time.monotonic() - self.began
            connection.close()


@pytest.fixture
def get(oss: Oss) -> Callable[..., Got]:
    oss.bucket.acl = "public-read-write"
    oss.put("big", DATA)
    oss.put("small", b"0123456789")

    def ask(target: str = "big", method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return Got(oss, method, f"/models/{target}", body, sent)

    return ask


def test_reset_in_the_middle(oss: Oss, get: Callable[..., Got]) -> None:
    fault = oss.faults.add(Fault("reset", after_bytes=3 * MIB + 1))
    got = get()
    assert isinstance(got.error, ConnectionResetError)
    assert got.status == 200
    assert DATA[: 3 * MIB + 1].startswith(got.body)
    assert (fault.fired, oss.bytes_sent("big")) == (1, 3 * MIB + 1)
    assert get().body == DATA
    assert oss.faults.counts == {"reset": 1}
    assert [record.fault for record in oss.log.records()] == ["reset", ""]


def test_close_in_the_middle(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("close", after_bytes=MIB))
    got = get(Range="bytes=100-4000099")
    assert got.body == DATA[100 : 100 + MIB]
    assert got.error is None  # read1 knows only the end; the length tells
    assert got.headers["Content-Length"] == "4000000"
    assert oss.bytes_sent("big") == MIB


def test_half_of_the_body_is_the_usual_place(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("close"))
    assert get(Range="bytes=0-999").body == DATA[:500]
    oss.faults.add(Fault("close", after_bytes=10 * MIB))
    assert get("small").body == b"012345678"


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_uploads_that_break_off(oss: Oss, get: Callable[..., Got], kind: str) -> None:
    oss.faults.add(Fault(kind, method="PUT", after_bytes=MIB))
    got = get("new", "PUT", DATA)
    assert got.error is not None
    assert "new" not in oss.names()
    record = oss.log.records(key="new")[0]
    assert record.status == 0
    assert record.bytes_received >= MIB
    assert get("new", "PUT", DATA).status == 200
    assert oss.get("new") == DATA


def test_no_answer(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("drop", operation="PutObject"))
    oss.faults.add(Fault("lost", operation="PutObject"))
    assert isinstance(get("dropped", "PUT", b"x").error, http.client.RemoteDisconnected)
    assert isinstance(get("lost", "PUT", b"x").error, http.client.RemoteDisconnected)
    assert "dropped" not in oss.names()
    assert oss.get("lost") == b"x"


def test_refusals(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("unavailable", seconds=2))
    got = get()
    assert (got.status, got.headers["Retry-After"], b"ServiceUnavailable" in got.body) == (503, "2", True)
    oss.faults.add(Fault("error"))
    got = get()
    assert (got.status, b"<Code>InternalError</Code>" in got.body) == (500, True)
    oss.faults.add(Fault("error", status=429, code="RequestLimitExceeded"))
    got = get()
    assert (got.status, b"<Code>RequestLimitExceeded</Code>" in got.body) == (429, True)
    oss.faults.add(Fault("expired"))
    bucket = bucket_for(oss, oss.key, "v4")
    assert code_of(lambda: bucket.get_object("big")) == (403, "SecurityTokenExpired")
    assert bucket.get_object("small").read() == b"0123456789"


def test_wrong_crc(oss: Oss, get: Callable[..., Got]) -> None:
    right = str(checksum.crc64(DATA))
    oss.faults.add(Fault("wrong-crc", times=2))
    assert get("big", Range="bytes=0-1").headers["x-oss-hash-crc64ecma"] != right
    got = get()
    assert (got.headers["x-oss-hash-crc64ecma"] != right, got.body == DATA) == (True, True)
    assert get().headers["x-oss-hash-crc64ecma"] == right
    oss.faults.add(Fault("wrong-crc", operation="UploadPart"))
    bucket = bucket_for(oss, oss.key, "v4")
    upload = bucket.init_multipart_upload("m").upload_id
    with pytest.raises(oss2.exceptions.InconsistentError):
        bucket.upload_part("m", upload, 1, b"abc")
    bucket.upload_part("m", upload, 1, b"abc")


def test_a_byte_that_is_another(oss: Oss, get: Callable[..., Got]) -> None:
    for key, data in (("big", DATA), ("small", b"0123456789")):
        oss.faults.add(Fault("corrupt", after_bytes=7))
        got = get(key)
        assert len(got.body) == len(data)
        assert [at for at in range(len(data)) if got.body[at] != data[at]] == [7]
        assert get(key).body == data


def test_a_slow_body(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("slow", rate=MIB, sticky=True))
    got = get(Range="bytes=0-314572")
    assert got.body == DATA[:314573]
    assert got.seconds > 0.25


def test_a_slow_connection_stays_slow(oss: Oss, get: Callable[..., Got]) -> None:
    fault = oss.faults.add(Fault("slow", rate=100 * MIB, sticky=True))
    one = http.client.HTTPConnection(oss.host, oss.port)
    for _ in range(3):
        one.request("GET", "/models/small")
        assert one.getresponse().read() == b"0123456789"
    one.close()
    get("small")
    assert [record.fault for record in oss.log.records()] == ["slow"] * 3 + [""]
    assert fault.fired == 1


def test_a_body_that_stalls(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("stall", after_bytes=MIB, seconds=0.3))
    got = get()
    assert (got.body == DATA, got.seconds >= 0.3) == (True, True)
    oss.faults.add(Fault("stall", after_bytes=5, seconds=3600))
    connection = http.client.HTTPConnection(oss.host, oss.port)
    connection.request("GET", "/models/small")
    assert connection.getresponse().read(5) == b"01234"
    oss.log.wait(lambda records: records[-1].waiting)
    assert oss.bytes_sent("small") == 5  # and asking does not wait for the stalled one
    connection.close()  # the server's end is undone by the fixture, an hour early


def test_an_answer_that_hangs(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("hang", method="HEAD", seconds=0.2))
    got = get("small", "HEAD")
    assert (got.status, got.seconds >= 0.2) == (200, True)


def test_everything_instead_of_a_range(oss: Oss, get: Callable[..., Got]) -> None:
    fault = oss.faults.add(Fault("whole"))
    assert get("small").status == 200
    assert fault.seen == 0  # it is for ranges
    got = get("small", Range="bytes=2-3")
    assert (got.status, got.body, got.headers["Content-Range"]) == (200, b"0123456789", None)
    oss.faults.add(Fault("wrong-range"))
    got = get("small", Range="bytes=2-3")
    assert (got.status, got.body, got.headers["Content-Range"]) == (206, b"23", "bytes 3-4/11")


def test_another_version_in_spite_of_if_match_is_refused(oss: Oss) -> None:
    """The client must look at what came: a proxy on the way may not know conditions."""
    oss.put("r1/big", DATA)
    store = OssStore(Location.parse(oss.url("r1")), StoreOptions(), environ=oss.env())
    etag, reader = store.head("big").etag, store.reader()
    fault = oss.faults.add(Fault("other-version"))
    reader.read("big", 0, 10, lambda view: None)
    assert fault.fired == 0, "only where a version was asked for"
    with pytest.raises(ObjectChanged):
        reader.read("big", 0, 10, lambda view: pytest.fail("of another version"), etag=etag)
    assert fault.fired == 1
    assert oss.log.records(operation="GetObject")[-1].status == 206
    reader.read("big", 0, 10, lambda view: None, etag=etag)
    reader.close()


def test_a_change_that_was_none(oss: Oss, get: Callable[..., Got]) -> None:
    oss.faults.add(Fault("changed"))
    etag = oss.bucket.objects["small"].etag
    assert get("small").status == 200
    assert get("small", If_Match=etag).status == 412
    assert get("small", If_Match=etag).status == 200


@pytest.mark.parametrize("version", ["2", "1"])
def test_listings_that_lie(oss: Oss, get: Callable[..., Got], version: str) -> None:
    for n in range(10):
        oss.put(f"l/{n}", b"")
    query = {"prefix": "l/", "max-keys": "4", "list-type": version}

    def page(**more: str) -> ET.Element:
        return ET.fromstring(
            get("?" + urlencode(query | {n.replace("_", "-"): v for n, v in more.items()})).body
        )

    first = page()
    further = (
        {"continuation_token": first.findtext("NextContinuationToken")}
        if version == "2"
        else {"marker": first.findtext("NextMarker")}
    )
    names = [entry.findtext("Key") for entry in page(**further).findall("Contents")]
    assert names == ["l/4", "l/5", "l/6", "l/7"]
    oss.faults.add(Fault("repeat-list", key_glob="l/*"))
    assert [e.findtext("Key") for e in page(**further).findall("Contents")] == ["l/0", "l/1", "l/2", "l/3"]
    oss.faults.add(Fault("no-token"))
    lame = page()
    assert (lame.findtext("IsTruncated"), lame.find("NextContinuationToken"), lame.find("NextMarker")) == (
        "true",
        None,
        None,
    )
    oss.faults.add(Fault("cut-list"))
    with pytest.raises(ET.ParseError):
        page()
    assert [e.findtext("Key") for e in page(**further).findall("Contents")] == names


def test_who_is_struck(oss: Oss, get: Callable[..., Got]) -> None:
    statuses = lambda count, key="small": [get(key).status for _ in range(count)]  # noqa: E731
    oss.faults.add(Fault("error", times=2, skip=1, nth=2, key_glob="sm*"))
    assert statuses(2, "big") == [200, 200]
    assert statuses(7) == [200, 500, 200, 500, 200, 200, 200]
    assert oss.faults.pending == 0
    oss.faults.add(Fault("error", times=None, operation="HeadObject"))
    assert (statuses(2), get("small", "HEAD").status, get("small", "HEAD").status) == ([200, 200], 500, 500)
    oss.faults.clear()
    assert get("small", "HEAD").status == 200
    oss.faults.add(Fault("error", times=20))
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.extend(statuses(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [200] * 20 + [500] * 20
    with pytest.raises(ValueError, match="no fault is called 'explode'"):
        Fault("explode")


def test_every_kind_is_tried_here() -> None:
    with open(__file__, encoding="utf-8") as source:
        text = source.read()
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


def test_cutting_all_connections(oss: Oss, get: Callable[..., Got]) -> None:
    connection = http.client.HTTPConnection(oss.host, oss.port)
    connection.request("GET", "/models/small")
    assert connection.getresponse().read() == b"0123456789"
    assert oss.listener.cut() == 1
    connection.request("GET", "/models/small")
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected, BrokenPipeError)):
        connection.getresponse()
    assert get("small").status == 200


def test_as_a_process(oss_process: Callable[..., OssProcess], tmp_path: object) -> None:
    (tmp_path / "w.bin").write_bytes(DATA)
    script = json.dumps([{"kind": "unavailable", "seconds": 0}])
    server = oss_process(serve=f"{tmp_path}=r1/", zeros="z=3G", faults=script, metadata=True, sts=True)
    told = server.told
    assert told["objects"] == 2
    assert {"sts", "metadata", "oidc_token"} <= told.keys()
    auth = oss2.AuthV4(told["access_key_id"], told["access_key_secret"])
    bucket = oss2.Bucket(auth, server.endpoint, server.bucket, region=told["region"])
    assert code_of(lambda: bucket.get_object("r1/w.bin")) == (503, "ServiceUnavailable")
    assert bucket.get_object("r1/w.bin").read() == DATA
    server.control("POST", "faults", [{"kind": "error", "key_glob": "z"}])
    assert code_of(lambda: bucket.head_object("z")) == (500, "InternalError")
    assert bucket.head_object("z").content_length == 3 << 30
    assert server.control("GET", "counters")["faults"] == {"unavailable": 1, "error": 1}
    records = server.control("GET", "log")
    assert [record["status"] for record in records] == [503, 200, 500, 200]
    assert records[1]["bytes_sent"] == len(DATA)
    server.stop(signal.SIGTERM)
    with pytest.raises(oss2.exceptions.RequestError):
        bucket.head_object("z")
