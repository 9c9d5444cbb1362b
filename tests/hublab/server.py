"""The server: a hub on one address, its CDN on a second, and the CDN's door for clients in the cloud on a third."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Self

from tests.hublab import cdn, huggingface, modelscope
from tests.hublab.asked import Asked, Refused, bearer, cookies
from tests.hublab.faults import BODIES, Fault, Faults
from tests.hublab.repos import File, Repo
from tests.osslab.answers import http_date
from tests.osslab.log import Log, Record
from tests.osslab.operations import Sent
from tests.osslab.sending import Sender
from tests.osslab.server import memory_folder
from tests.osslab.throttle import NEAR, Link, Throttle
from tests.osslab.wire import Answer, Connection, Listener, Request

CONTROL = "/_lab/"
_REGION = "/latest/meta-data/region-id"


class HubServer:
    """A hub of one's own. Everything public may be used and changed from any thread while it runs.

    Settings: `listing_limit` entries at most in a list of ModelScope's, said to nobody; `page_size` entries on a page of Hugging Face's;
    files of `direct_below` bytes and more are LFS files and lie at the CDN; its URLs work for `url_lifetime` seconds; with `region`, clients
    that say they are there are sent to the internal address. ModelScope answers an unknown revision with a list of nothing ("null", as the
    real one does) or with 404 ("404"), and who may not see a private or gated repository gets `private_status` or `gated_status`; the real
    one is known to say 404 in both cases, with another code than for what is not there.
    `moved` has the old names of repositories, which Hugging Face redirects. `rate` limits all bodies together, in bytes per second;
    `link` is how far away all three addresses are.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        cdn_host: str = "127.0.0.2",
        internal_host: str = "127.0.0.3",
        port: int = 0,
        rate: float | None = None,
        link: Link = NEAR,
    ) -> None:
        self.room = memory_folder()
        self._clean = weakref.finalize(self, shutil.rmtree, self.room, ignore_errors=True)
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.faults, self.log = Faults(), Log()
        self.token = self.new_token(known=False)
        self.tokens = {self.token}
        self.listing_limit, self.page_size, self.direct_below = 3000, 1000, 1 << 20
        self.url_lifetime = 3600.0
        self.region: str | None = None
        self.unknown_revision, self.private_status, self.gated_status = "null", 404, 404
        self._signer = cdn.Signer()
        self.hub = Listener(partial(self._serve, "hub"), host=host, port=port)
        self.cdn = Listener(partial(self._serve, "cdn"), host=cdn_host)
        self.internal = Listener(partial(self._serve, "internal"), host=internal_host)
        self._listeners = (self.hub, self.cdn, self.internal)
        self._throttle = Throttle(rate, self.hub.stopping) if rate else None
        self._link = link

    def start(self) -> Self:
        """Begin to serve."""
        for listener in self._listeners:
            listener.start()
        return self

    def stop(self) -> None:
        """End all connections and remove what was stored. May be called twice."""
        for listener in self._listeners:
            listener.stop()
        self._clean()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # for tests

    @property
    def endpoint(self) -> str:
        """Where clients find the hub."""
        return _address(self.hub)

    @property
    def cdn_endpoint(self) -> str:
        """Where they are sent for large files."""
        return _address(self.cdn)

    @property
    def internal_endpoint(self) -> str:
        """Where clients in `region` are sent instead."""
        return _address(self.internal)

    def repo(self, name: str, *, private: bool = False, gated: bool = False) -> Repo:
        """The repository ``OWNER/NAME``, made when it is not there. Of a gated one, `token` gets the files."""
        found = self.repos.get(name)
        if found is None:
            found = self.repos[name] = Repo(name, self.room, private, gated, {self.token})
        return found

    def serve_folder(self, folder: str, name: str) -> Repo:
        """The files below `folder`, where they lie, are a repository, with their checksums."""
        repo = self.repo(name)
        repo.serve_folder(folder)
        self.hash(repo)
        return repo

    def hash(self, repo: Repo) -> None:
        """Compute all checksums now, on all cores, so that no client waits for them."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda file: file.sha256, repo.files.values()))

    def new_token(self, *, known: bool = True) -> str:
        """A token: one that the hub knows, though it was not granted anything gated."""
        token = f"ms-{secrets.token_hex(16)}"
        if known:
            self.tokens.add(token)
        return token

    def bytes_sent(self, path_glob: str = "*", *, operation: str | None = None) -> int:
        """Bytes of the bodies of all answers that held such files, from anywhere or by this operation only."""
        operations = BODIES if operation is None else {operation}
        return sum(self.log.bytes_sent(path_glob, one) for one in operations)

    # for the two APIs

    def find(self, name: str) -> Repo | None:
        """The repository of that name; as at both hubs, upper and lower case are one."""
        found = self.repos.get(name)
        if found is None:
            found = next((repo for known, repo in self.repos.items() if known.lower() == name.lower()), None)
        return found

    def version(self, key: str) -> tuple[Repo, File] | None:
        """The version of a file with that `File.id`, and where it belongs."""
        for repo in list(self.repos.values()):
            if key in repo.versions:
                return repo, repo.versions[key]
        return None

    def signed(self, file: File, *, internal: bool) -> str:
        """A URL at the CDN that works for a while."""
        base = self.internal_endpoint if internal else self.cdn_endpoint
        return self._signer.url(base, file, self.url_lifetime)

    def query_address(self) -> str:
        """Where a client in the cloud learns in which region it is."""
        return self.endpoint + _REGION

    # requests

    def _serve(self, where: str, connection: Connection) -> None:
        listener: Listener = getattr(self, where)
        sender = Sender(connection, listener.stopping, self._throttle, self._link)
        while (request := connection.read_request()) is not None:
            if where == "hub" and request.path.startswith(CONTROL):
                self._control(connection, request)
                continue
            record = self.log.begin(connection.number, connection.address, request.method)
            try:
                self._one(where, sender, request, record)
            finally:
                record.bytes_received = request.body.got
                self.log.end(record)
            if request.body.unasked or request.headers.get("connection", "").lower() == "close":
                return

    def _one(self, where: str, sender: Sender, request: Request, record: Record) -> None:
        record.query, record.host, record.headers = request.query, request.host, dict(request.headers)
        record.range = request.headers.get("range")
        asked = Asked(self, request, record, bearer(request.headers))
        record.request_id = asked.request_id
        try:
            answer = self._answer(where, asked)
        except Refused as refusal:
            answer, record.code = refusal.answer, refusal.code
        request.body.drain()
        body = isinstance(answer, Sent) and answer.length > 0 and not asked.bare
        head = answer.answer if isinstance(answer, Sent) else answer
        fault = self.faults.strike(record, ranged=head.status == 206, body=body)
        if fault is not None:
            record.fault = fault.kind
            answer = _struck(sender, answer, record, fault)
        head = answer.answer if isinstance(answer, Sent) else answer
        head.headers = {
            "Server": "hublab" if where == "hub" else "AliyunOSS",
            "Date": http_date(record.begun),
            "Connection": "keep-alive",
            **({} if where == "hub" else {"x-oss-request-id": record.request_id[:24].upper()}),
            **head.headers,
        }
        sender.send(answer, record, fault, bare=asked.bare)

    def _answer(self, where: str, asked: Asked) -> Answer | Sent:
        request = asked.request
        if where != "hub":
            return cdn.answer(asked, where, self._signer)
        if request.path == _REGION:
            asked.told("region")
            return Answer(200, {"Content-Type": "text/plain"}, (self.region or "").encode())
        path = request.path.removeprefix("/")
        if path.startswith("api/v1/"):
            asked.token = asked.token or cookies(request.headers).get("m_session_id", "")
            return modelscope.answer(asked, request.plain_path.removeprefix("/api/v1/"))
        if path.startswith("api/models/"):
            return huggingface.api(asked, path.removeprefix("api/models/"))
        if "resolve" in path.split("/")[1:3]:
            return huggingface.resolve(asked, path)
        asked.told("unknown")
        return Answer(404, {"Content-Type": "application/json"}, b'{"error":"nothing here"}')

    # the control path, for whoever runs the server as a process

    def _control(self, connection: Connection, request: Request) -> None:
        found = self._controlled(request.method, request.path[len(CONTROL) :], request.body.whole())
        status = 200 if found is not None else 404
        data = json.dumps({"error": "nothing here"} if found is None else found).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        connection.send_head(status, headers, more=True)
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
                "connections": {name: getattr(self, name).accepted for name in ("hub", "cdn", "internal")},
                "open": {name: getattr(self, name).open_connections for name in ("hub", "cdn", "internal")},
                "faults": dict(self.faults.counts),
                "pid": os.getpid(),
                "threads": threading.active_count(),
            }
        return None


def _address(listener: Listener) -> str:
    return f"http://{listener.host}:{listener.port}"


def _struck(sender: Sender, answer: Answer | Sent, record: Record, fault: Fault) -> Answer | Sent:
    """What a fault makes of an answer; those that strike in the middle of a body are left to the sender. Raises `Gone`."""
    kind = fault.kind
    if kind == "drop" or (kind in ("reset", "close") and not isinstance(answer, Sent)):
        sender.end("reset" if kind == "reset" else "close")
    if kind == "hang":
        sender.wait(fault.seconds, record)
    if kind in ("unavailable", "limited"):
        status = 503 if kind == "unavailable" else 429
        return Answer(
            status, {"Retry-After": f"{fault.seconds:g}", "Content-Type": "text/plain"}, b"try again later"
        )
    if kind == "error":
        return Answer(
            fault.status, {"Content-Type": "text/plain"}, (fault.code or "something went wrong").encode()
        )
    if kind == "expired":
        return cdn.refused("AccessDenied").answer
    if kind == "garbled":
        return Answer(
            200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html><body>Please sign in</body></html>"
        )
    if kind == "cut-list" and isinstance(answer, Answer):
        return replace(answer, body=answer.body[: len(answer.body) // 2])
    if isinstance(answer, Sent) and answer.answer.status == 206:
        return _other_range(answer, kind)
    return answer


def _other_range(answer: Sent, kind: str) -> Sent:
    """For 206: everything instead, or the range under a wrong name."""
    headers = dict(answer.answer.headers)
    told = headers.get("Content-Range", "")
    if kind == "whole":
        headers.pop("Content-Range", None)
        return Sent(Answer(200, headers), answer.content, 0, answer.content.size)
    if kind == "wrong-range":
        first, last = (int(word) for word in told.removeprefix("bytes ").partition("/")[0].split("-"))
        headers["Content-Range"] = f"bytes {first + 1}-{last + 1}/{answer.content.size}"
        return replace(answer, answer=Answer(206, headers))
    return answer
