"""A bucket served by nginx: objects with sendfile, and lists by a small handler behind it.

To a client it looks like OSS with an endpoint that is an address: ``/bucket/key``. No signature is verified.
"""

import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

from bench.data import Stop

BUCKET = "bench"
WORKERS = 4
DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # whatever the environment says of proxies
_START_S = 10
_POLL_S = 0.02  # between two looks whether the handler shall end
_TRIES = 5

_CONF = """
{user}
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    aio threads;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 10000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    map_hash_max_size 4096;
    map_hash_bucket_size 256;
    map $uri $crc {{
{crcs}
    }}
    add_header x-oss-request-id $request_id always;
    add_header x-oss-object-type Normal;
    add_header x-oss-storage-class Standard;
    add_header x-oss-hash-crc64ecma $crc;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/root;
{alike}
        location / {{ }}
        location = /{bucket} {{ proxy_pass http://127.0.0.1:{behind}; }}
        location = /{bucket}/ {{ proxy_pass http://127.0.0.1:{behind}; }}
        location = /.status {{ stub_status; }}
    }}
}}
"""


def binary():
    """The path of nginx; None when it is not installed."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Object:
    """What the listing says of one object, and the CRC-64 that comes with its bytes."""

    key: str
    size: int
    modified: int  # seconds since 1970
    crc: int

    @property
    def etag(self):
        """As nginx makes it of a file."""
        return f'"{self.modified:x}-{self.size:x}"'


class Server:
    """nginx and the handler behind it, from ``__enter__`` to ``__exit__``. `folder` is new and empty, best in memory.

    `objects` are files below ``root/bench`` of `folder`. `alike` maps a prefix to (file name below ``root``, objects): every key of that
    prefix is that one file. `asked` counts the requests that reached the handler, by what they were.
    """

    def __init__(self, folder, objects, alike=None):
        self.folder = folder
        self.objects = sorted(
            [*objects, *(one for _, some in (alike or {}).values() for one in some)],
            key=lambda one: one.key.encode(),
        )
        self.asked = Counter()
        self._alike = alike or {}
        self._nginx = None
        self._behind = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._behind.daemon_threads = True

    def url(self, key):
        """The address of one object."""
        return f"http://127.0.0.1:{self.port}/{BUCKET}/{quote(key)}"

    @property
    def endpoint(self):
        """What ``--endpoint`` wants."""
        return f"http://127.0.0.1:{self.port}"

    def connections(self):
        """Connections open at nginx now, but for the one that asks."""
        with DIRECT.open(f"{self.endpoint}/.status", timeout=5) as answer:
            return int(answer.readline().split()[-1]) - 1

    def __enter__(self):
        threading.Thread(target=self._behind.serve_forever, args=(_POLL_S,), daemon=True).start()
        try:
            for _ in range(_TRIES):
                if self._start():
                    return self
            raise Stop(f"nginx does not start:\n{self._said()}")
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        if self._nginx is not None and self._nginx.poll() is None:
            self._nginx.terminate()
            self._nginx.wait()
        self._behind.shutdown()
        self._behind.server_close()

    def _start(self):
        """Whether nginx listens; not when somebody else took the port that was free a moment ago."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        path = os.path.join(self.folder, "nginx.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self._conf())
        argv = [binary(), "-p", self.folder, "-e", f"{self.folder}/error.log", "-c", path]
        with open(f"{self.folder}/output", "ab") as output:
            self._nginx = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._nginx.poll() is None:
            try:
                self.connections()
            except (OSError, ValueError):
                time.sleep(0.02)
            else:
                return self._nginx.poll() is None
        if self._nginx.poll() is None:
            self._nginx.kill()
            self._nginx.wait()
        return False

    def _conf(self):
        crcs = "\n".join(
            f'        "/{BUCKET}/{one.key}" {one.crc};' for one in self.objects if not self._shared(one)
        )
        alike = "\n".join(
            f"        location ^~ /{BUCKET}/{prefix} {{ rewrite ^ /{name} break;\n"
            f"            add_header x-oss-hash-crc64ecma {some[0].crc}; add_header x-oss-request-id $request_id always; }}"
            for prefix, (name, some) in self._alike.items()
        )
        return _CONF.format(
            user="user root;" if os.geteuid() == 0 else "",
            workers=WORKERS,
            folder=self.folder,
            crcs=crcs,
            alike=alike,
            port=self.port,
            behind=self._behind.server_address[1],
            bucket=BUCKET,
        )

    def _shared(self, one):
        return any(one.key.startswith(prefix) for prefix in self._alike)

    def _said(self):
        texts = []
        for name in ("error.log", "output"):
            try:
                with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as file:
                    texts.append(file.read()[-2000:])
            except OSError:
                continue
        return "\n".join(texts)


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        """Lists the bucket."""

        protocol_version = "HTTP/1.1"

        def do_GET(self):
            """ListObjectsV2."""
            query = {
                name: values[0]
                for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()
            }
            if "list-type" in query:
                server.asked["list"] += 1
                self._answer(200, _page(server.objects, query))
            else:
                server.asked["other"] += 1
                self._answer(501, "<Error><Code>NotImplemented</Code><Message>not here</Message></Error>")

        def _answer(self, status, text):
            body = b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Nothing."""

    return Handler


def _page(objects, query):
    prefix, most = query.get("prefix", ""), int(query.get("max-keys", "100"))
    after = max(query.get("start-after", ""), query.get("continuation-token", ""), key=str.encode)
    found = [one for one in objects if one.key.startswith(prefix) and one.key.encode() > after.encode()]
    shown, more = found[:most], len(found) > most
    token = f"<NextContinuationToken>{escape(shown[-1].key)}</NextContinuationToken>" if more else ""
    url = query.get("encoding-type") == "url"
    contents = "".join(_entry(one, url) for one in shown)
    return (
        f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(quote(prefix) if url else prefix)}</Prefix>"
        f"<MaxKeys>{most}</MaxKeys><Delimiter></Delimiter>{'<EncodingType>url</EncodingType>' if url else ''}"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}<KeyCount>{len(shown)}</KeyCount>{contents}</ListBucketResult>"
    )


def _entry(one, url):
    key = quote(one.key) if url else escape(one.key)
    modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(one.modified))
    return (
        f"<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><ETag>{escape(one.etag)}</ETag>"
        f"<Type>Normal</Type><Size>{one.size}</Size><StorageClass>Standard</StorageClass></Contents>"
    )
