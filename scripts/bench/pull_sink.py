"""The store of ``scripts/bench-pull``: the tests' look-alike of OSS without its MD5, at a total rate, what comes in kept or thrown away.

pull_sink.py ROOM [--discard] [--rate BYTES_PER_S] [--s3]
             [--latency SECONDS] [--connection-rate BYTES_PER_S] [--copy-rate BYTES_PER_S]

It prints one JSON line and serves until its stdin ends. Signatures, the order of parts and CRC-64 are as in the tests' server; an ETag is
made of the CRC. With ``--discard``, what is larger than `KEPT` bytes reads as zeros, so that whoever reads it back sees that it is not there.
With ``--s3`` the names of headers are S3's, nobody's signature is looked at, and GET ``/_lab/objects`` tells the size and CRC-64 of all.
``--connection-rate`` is that of each connection each way, ``--copy-rate`` of each copy that it makes by itself; without it they cost nothing.
Run by the interpreter that runs stager, with -P.
"""

import argparse
import hashlib
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, ROOT)

from tests.osslab import checksum, operations  # noqa: E402
from tests.osslab.errors import OssError  # noqa: E402
from tests.osslab.keys import AccessKey  # noqa: E402
from tests.osslab.operations import Call  # noqa: E402
from tests.osslab.server import OssServer  # noqa: E402
from tests.osslab.signing import Caller  # noqa: E402
from tests.osslab.storage import Blob, Written  # noqa: E402
from tests.osslab.throttle import Link, Throttle  # noqa: E402

KEPT = 1 << 20
BUCKET, REGION = "bench", "cn-test"
_VOID = 1 << 42  # bytes of the file of zeros that every discarded blob is the beginning of


class Taken(Written):
    """The body of one request: CRC-64, and MD5 of small ones alone."""

    def __init__(self, room, throttle):
        super().__init__(room)
        self._throttle = throttle

    def add(self, piece):
        """Some more bytes."""
        if self._throttle:
            self._throttle.take(len(piece))
        self.crc = checksum.crc64(piece, self.crc)
        self.size += len(piece)
        if self.size <= KEPT:
            self._md5.update(piece)
        self.keep(piece)

    @property
    def md5(self):
        """Of large ones none: computing it would take more time than all the rest."""
        if self.size <= KEPT:
            return self._md5.digest()
        return hashlib.md5(str(self.crc).encode(), usedforsecurity=False).digest()

    @property
    def etag(self):
        """With the look of an ETag."""
        return self.md5.hex().upper()


class Discarded(Taken):
    """One of which nothing is kept beyond `KEPT` bytes."""

    def keep(self, piece):
        """Kept while all of it is small."""
        self._small = self._small + piece if self.size <= KEPT else bytearray()

    def blob(self):
        """The bytes, or as many zeros."""
        return Blob(self.size, path=os.path.join(self._room, "void")) if self.size > KEPT else super().blob()


class S3Server(OssServer):
    """The same to clients that speak S3; every one of them may do all."""

    def _serve(self, connection):
        send = connection.send_head

        def renamed(status, headers, **more):
            send(status, {name.replace("x-oss-", "x-amz-"): text for name, text in headers.items()}, **more)

        connection.send_head = renamed
        super()._serve(connection)

    def _call(self, request, bucket, key, record):
        headers = {name.replace("x-amz-", "x-oss-"): text for name, text in request.headers.items()}
        if request.body.length is None or request.body.length > KEPT:
            headers.pop("content-md5", None)
        request.headers.clear()
        request.headers.update(headers)
        record.bucket, record.key, record.query, record.headers = bucket, key, request.query, headers
        record.operation = operations.named(request, key)
        found = self.storage.buckets.get(bucket)
        if found is None:
            raise OssError("NoSuchBucket", BucketName=bucket)
        call = Call(request, self.storage, found, key, self.region, headers.get("host", ""))
        return call, Caller(self.key, "")

    def _controlled(self, method, what, body):
        if what != "objects":
            return super()._controlled(method, what, body)
        with self.bucket.lock:
            return {key: [one.size, one.crc] for key, one in self.bucket.objects.items()}


def serve(given):
    """The server, not yet started."""
    os.makedirs(given.room, exist_ok=True)
    link = Link(given.latency, given.connection_rate, given.copy_rate)
    server = (S3Server if given.s3 else OssServer)(room=given.room, bucket=BUCKET, region=REGION, link=link)
    server.keys.forget(server.key.id)
    key = AccessKey(os.environ["OSS_ACCESS_KEY_ID"], os.environ["OSS_ACCESS_KEY_SECRET"])
    server.key = server.keys.add(key)
    throttle = Throttle(given.rate, server.listener.stopping) if given.rate else None
    if given.discard:
        with open(os.path.join(given.room, "void"), "wb") as file:
            file.truncate(_VOID)
    kind = Discarded if given.discard else Taken
    server.storage.incoming = lambda: kind(given.room, throttle)
    return server


def main():
    """Serve, say so on stdout, end with stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("room")
    parser.add_argument("--discard", action="store_true")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--connection-rate", type=float)
    parser.add_argument("--copy-rate", type=float)
    with serve(parser.parse_args()) as server:
        print(json.dumps({"endpoint": server.endpoint, "pid": os.getpid()}), flush=True)
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
