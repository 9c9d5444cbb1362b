"""The server: finds out what a request is about, who sent it and whether he may, and what is to go wrong."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import re
import secrets
import shutil
import ssl
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any, Self

from tests.osslab import buckets, multipart, operations
from tests.osslab.answers import http_date
from tests.osslab.errors import NotModified, OssError
from tests.osslab.faults import Fault, Faults
from tests.osslab.keys import AccessKey, Keyring
from tests.osslab.log import Log, Record
from tests.osslab.operations import PERMISSIONS, Call, Sent
from tests.osslab.sending import Sender
from tests.osslab.signing import Caller, identify
from tests.osslab.storage import Bucket, Content, Storage, StoredObject, read
from tests.osslab.throttle import NEAR, Link
from tests.osslab.wire import Answer, Connection, Listener, Request

CONTROL = "/_lab/"
_TABLE = operations.TABLE | buckets.TABLE | multipart.TABLE
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")


def memory_folder() -> str:
    """A new folder, in memory where there is enough of it for files."""
    parent = "/dev/shm"
    with contextlib.suppress(OSError):
        found = os.statvfs(parent)
        if found.f_bavail * found.f_frsize > 1 << 30:
            return tempfile.mkdtemp(prefix="osslab-", dir=parent)
    return tempfile.mkdtemp(prefix="osslab-")


class OssServer:
    """An OSS region of one's own. `keys`, `faults`, `log` and `storage` may be used from any thread while it runs.

    The bucket `bucket` and the key `key` are there from the start. `room` is the folder for contents (default: one of its own, in memory if
    possible, removed by `stop`). `cnames` maps a Host header to a bucket. `link` is how far away it is.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        room: str | None = None,
        region: str = "cn-hangzhou",
        bucket: str = "models",
        tls: ssl.SSLContext | None = None,
        link: Link = NEAR,
    ) -> None:
        self.region, self.secure = region, tls is not None
        self.storage = Storage(room if room is not None else memory_folder())
        self._clean = weakref.finalize(self, shutil.rmtree, self.storage.room, ignore_errors=True)
        if room is not None:
            self._clean.detach()
        self.bucket = self.storage.bucket(bucket)
        self.keys, self.faults, self.log = Keyring(), Faults(), Log()
        self.key: AccessKey = self.keys.new()
        self.cnames: dict[str, str] = {}
        self.listener = Listener(self._serve, host=host, port=port, tls=tls)
        self.host, self.port = self.listener.host, self.listener.port
        self._link, stopping = link, self.listener.stopping
        self.storage.copying = lambda count: link.copy(count, stopping)

    def start(self) -> Self:
        """Begin to serve."""
        self.listener.start()
        return self

    def stop(self) -> None:
        """End all connections and remove what was stored. May be called twice."""
        self.listener.stop()
        self.storage.buckets.clear()
        self._clean()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # for tests

    @property
    def endpoint(self) -> str:
        """Where clients find it; an address, so they use path style."""
        return f"{'https' if self.secure else 'http'}://{self.host}:{self.port}"

    def put(
        self, key: str, data: bytes, *, bucket: str | None = None, metadata: Mapping[str, str] | None = None,
        storage_class: str = "Standard",
    ) -> StoredObject:  # fmt: skip
        """Make an object without asking over the network."""
        written = self.storage.keep(data)
        found = StoredObject(
            key, Content((written.blob(),)), written.etag, written.crc, time.time(),
            storage_class=storage_class, metadata=dict(metadata or {}), md5=written.md5,
        )  # fmt: skip
        self._bucket(bucket).set(found)
        return found

    def put_zeros(self, key: str, size: int, *, bucket: str | None = None) -> StoredObject:
        """An object of that many zero bytes, which takes no room."""
        found = self.storage.sparse(key, size)
        self._bucket(bucket).set(found)
        return found

    def serve_folder(self, folder: str, prefix: str = "", *, bucket: str | None = None) -> int:
        """The files below `folder` become objects, where they lie. Gives their number."""
        count = 0
        for place, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(place, name)
                if os.path.isfile(path):
                    self._bucket(bucket).set(
                        self.storage.place(prefix + os.path.relpath(path, folder), os.path.abspath(path))
                    )
                    count += 1
        return count

    def get(self, key: str, *, bucket: str | None = None) -> bytes:
        """An object's bytes. `KeyError` when it is not there."""
        found = self._bucket(bucket).objects[key]
        return b"".join(read(found.content, 0, found.size))

    def names(self, *, bucket: str | None = None) -> list[str]:
        """All keys, ascending."""
        return [name.decode("utf-8", "surrogateescape") for name in self._bucket(bucket).names()]

    def remove(self, key: str, *, bucket: str | None = None) -> None:
        """Remove an object."""
        self._bucket(bucket).remove(key)

    def restored(self, key: str, *, bucket: str | None = None) -> None:
        """An archived object is readable now."""
        self._bucket(bucket).objects[key].restore = "done"

    def bytes_sent(self, key_glob: str = "*") -> int:
        """Bytes of the bodies of all GetObject answers for such keys."""
        return self.log.bytes_sent(key_glob)

    def _bucket(self, name: str | None) -> Bucket:
        return self.bucket if name is None else self.storage.buckets[name]

    # requests

    def _serve(self, connection: Connection) -> None:
        sender = Sender(connection, self.listener.stopping, link=self._link)
        while (request := connection.read_request()) is not None:
            if request.path.startswith(CONTROL):
                self._control(connection, request)
                continue
            record = self.log.begin(connection.number, connection.address, request.method)
            record.request_id = secrets.token_hex(12).upper()
            try:
                self._one(sender, request, record)
            finally:
                record.bytes_received = request.body.got
                self.log.end(record)
            if request.body.unasked or request.headers.get("connection", "").lower() == "close":
                return

    def _one(self, sender: Sender, request: Request, record: Record) -> None:
        fault: Fault | None = None
        try:
            bucket, key = self._place(request)
            call, caller = self._call(request, bucket, key, record)
            fault = self.faults.pick(
                request.method, record.operation, key or request.query.get("prefix", ""), record.connection,
                ranged="range" in request.headers, conditional="if-match" in request.headers,
            )  # fmt: skip
            record.fault = call.fault = fault.kind if fault else ""
            self._allow(caller, record.operation, call)
            self._before(sender, request, record, fault)
            answer: Answer | Sent = _TABLE[record.operation](call)
            if fault is not None:
                answer = _spoiled(answer, fault)
        except NotModified:
            answer = Answer(304)
        except OssError as error:
            record.code = error.code
            answer = self._refusal(request, record, error)
        request.body.drain()
        if fault is not None and fault.kind == "lost":
            sender.end("close")
        head = answer.answer if isinstance(answer, Sent) else answer
        head.headers = {
            "Server": "AliyunOSS",
            "Date": http_date(time.time()),
            "Connection": "close" if request.body.unasked else "keep-alive",
            "x-oss-request-id": record.request_id,
            **head.headers,
            "x-oss-server-time": "1",
        }
        sender.send(answer, record, fault, bare=request.method == "HEAD")

    def _place(self, request: Request) -> tuple[str, str]:
        """(bucket, key) by the Host header or by the path. Raises `OssError` for keys that OSS does not take."""
        path = request.plain_path.removeprefix("/")
        host = request.host.lower()
        if host in self.cnames:
            bucket, key = self.cnames[host], path
        elif host == "localhost" or _is_address(host):
            bucket, _, key = path.partition("/")
        else:
            bucket, key = host.partition(".")[0], path
            if bucket not in self.storage.buckets and bucket.startswith("oss-") and path:
                raise OssError("SecondLevelDomainForbidden")
        raw = key.encode("utf-8", "surrogateescape")
        if key.startswith(("/", "\\")) or len(raw) > 1023:
            raise OssError("InvalidObjectName", ObjectName=key)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            raise OssError("InvalidObjectName") from None
        return bucket, key

    def _call(self, request: Request, bucket: str, key: str, record: Record) -> tuple[Call, Caller]:
        """What is asked for, and who asks. Raises `OssError`."""
        record.bucket, record.key, record.query, record.host = bucket, key, request.query, request.host
        record.range = request.headers.get("range")
        hidden = ("authorization", "x-oss-security-token")
        record.headers = {name: value for name, value in request.headers.items() if name not in hidden}
        record.operation = operations.named(request, key)
        record.presigned = bool({"x-oss-signature", "Signature"} & request.query.keys())
        caller = identify(request, bucket, key, self.keys, self.region)
        record.version = caller.version
        record.access_key = caller.key.id if caller.key else ""
        if record.operation == "PutBucket" and bucket not in self.storage.buckets:
            if not _BUCKET_NAME.match(bucket):
                raise OssError("InvalidBucketName", BucketName=bucket)
            self.storage.bucket(bucket, acl=request.headers.get("x-oss-acl", "private"))
        found = self.storage.buckets.get(bucket)
        if found is None:
            raise OssError("NoSuchBucket", BucketName=bucket)
        return Call(request, self.storage, found, key, self.region, request.headers.get("host", "")), caller

    def _allow(self, caller: Caller, operation: str, call: Call) -> None:
        permission = PERMISSIONS[operation]
        if caller.key is not None:
            if not caller.key.may(permission, call.key):
                raise OssError("AccessDenied")
            return
        reads = permission == "get" or (permission == "list" and call.bucket.listable)
        public = call.bucket.acl == "public-read-write" and permission in ("get", "put", "list")
        if not public and not (call.bucket.acl == "public-read" and reads):
            raise OssError("AccessDenied", "Anonymous user has no right to access this bucket.")

    def _before(self, sender: Sender, request: Request, record: Record, fault: Fault | None) -> None:
        """Faults that strike before the operation. Raises `OssError` or `Gone`."""
        if fault is None:
            return
        if fault.kind == "drop":
            sender.end("close")
        elif fault.kind == "hang":
            sender.wait(fault.seconds, record)
        elif fault.kind == "unavailable":
            headers = {"Retry-After": f"{fault.seconds:g}"}
            raise OssError(fault.code or "ServiceUnavailable", status=503, headers=headers)
        elif fault.kind == "error":
            raise OssError(fault.code or "InternalError", status=fault.status)
        elif fault.kind == "expired":
            raise OssError("SecurityTokenExpired")
        elif fault.kind in ("reset", "close") and request.method in ("PUT", "POST"):
            length = request.body.length or 0
            most = length // 2 if fault.after_bytes is None else fault.after_bytes
            while request.body.got < min(most, length) and next(iter(request.body), None):
                pass
            sender.end(fault.kind)
        elif fault.kind in ("reset", "close") and record.operation != "GetObject":
            sender.end(fault.kind)

    def _refusal(self, request: Request, record: Record, error: OssError) -> Answer:
        body = error.xml(record.request_id, request.headers.get("host", ""))
        headers = {"Content-Type": "application/xml", "x-oss-ec": error.ec, **error.headers}
        if request.method != "HEAD":
            return Answer(error.status, headers, body)
        return Answer(error.status, headers | {"x-oss-err": base64.b64encode(body).decode()})

    # the control path, for whoever runs the server as a process

    def _control(self, connection: Connection, request: Request) -> None:
        what = request.path[len(CONTROL) :]
        body = request.body.whole()
        status, found = 200, self._controlled(request.method, what, body)
        if found is None:
            status, found = 404, {"error": "nothing here"}
        data = json.dumps(found).encode()
        connection.send_head(
            status, {"Content-Type": "application/json", "Content-Length": str(len(data))}, more=True
        )
        connection.send(data)

    def _controlled(self, method: str, what: str, body: bytes) -> Any:
        if what == "faults":
            if method == "POST":
                self.faults.load(json.loads(body))
            elif method == "DELETE":
                self.faults.clear()
            return self.faults.as_json()
        if what == "log":
            if method == "DELETE":
                self.log.clear()
            return self.log.as_json()
        if what == "counters":
            return {
                "requests": self.log.count(),
                "bytes_sent": self.bytes_sent(),
                "connections": self.listener.accepted,
                "open": self.listener.open_connections,
                "faults": dict(self.faults.counts),
                "pid": os.getpid(),
                "threads": threading.active_count(),
            }
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _spoiled(answer: Answer | Sent, fault: Fault) -> Answer | Sent:
    """Faults that change a finished answer."""
    head = answer.answer if isinstance(answer, Sent) else answer
    crc = head.headers.get("x-oss-hash-crc64ecma")
    if fault.kind == "wrong-crc" and crc is not None:
        head.headers["x-oss-hash-crc64ecma"] = str(int(crc) ^ 1)
    if fault.kind == "cut-list":
        head.body = head.body[: len(head.body) // 2]
    return answer
