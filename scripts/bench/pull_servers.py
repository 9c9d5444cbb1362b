"""The hub and the store of ``scripts/bench-pull`` as processes of their own, so that a client's CPU time is its alone."""

import json
import os
import subprocess
import urllib.request
from dataclasses import dataclass

from bench.data import Stop
from bench.fetch_contest import interpreter
from bench.fetch_server import DIRECT

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
SINK = os.path.join(os.path.dirname(os.path.realpath(__file__)), "pull_sink.py")
BUCKET = "bench"


class Server:
    """A server that prints one JSON line (`told`) and ends with its stdin; started by `__init__`, ended by `close`."""

    def __init__(self, argv):
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise Stop(f"`{' '.join(argv)}` does not start; stderr says why")
        self.told = json.loads(line)
        self.endpoint = self.told["endpoint"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends it. May be called twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def control(self, method, what, body=None):
        """One request on its control path: "faults", "log" or "counters"."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/_lab/{what}", data, method=method)
        with DIRECT.open(request, timeout=60) as answer:
            return json.loads(answer.read())


@dataclass(frozen=True)
class Away:
    """How far a server is: seconds before each answer, and bytes per second of each connection each way.

    With `copies`, a store copies at that rate too, each copy for itself; otherwise at once.
    """

    latency: float
    rate: float
    copies: bool = True

    @property
    def words(self):
        """For a server's command line."""
        return ["--latency", str(self.latency), "--connection-rate", str(int(self.rate))]


class Hub(Server):
    """The look-alike hub of the tests with `folders` (folder, owner/name) and `zeros` (owner/name/path, size, sha256).

    `rate` is that of all together, in bytes/s; `away` is how far it is.
    """

    def __init__(self, stager, *folders, zeros=(), rate=None, away=None):
        words = [word for folder, name in folders for word in ("--serve", f"{folder}={name}")]
        words += [word for path, size, sha in zeros for word in ("--zeros", f"{path}={size}:{sha}")]
        words += ["--rate", str(int(rate))] if rate else []
        words += away.words if away else []
        super().__init__([interpreter(stager), "-m", "tests.hublab", "--lifeline", *words])

    def url(self, repo, path):
        """Where a file is asked for."""
        return f"{self.endpoint}/api/v1/models/{repo}/repo?Revision=master&FilePath={path}"


class Sink(Server):
    """``pull_sink.py``; contents are kept in the new folder `room`, or thrown away with `discard`; `rate` and `away` as with `Hub`."""

    def __init__(self, stager, room, *, discard=False, rate=None, s3=False, away=None):
        words = [*(["--discard"] if discard else []), *(["--s3"] if s3 else [])]
        words += ["--rate", str(rate)] if rate else []
        words += [*away.words, *(["--copy-rate", str(int(away.rate))] if away.copies else [])] if away else []
        super().__init__([interpreter(stager), "-P", SINK, room, *words])

    def received(self, prefix):
        """Bytes of bodies that came in below `prefix` so far, those of requests that were cut short among them."""
        kinds = ("PutObject", "UploadPart")
        log = self.control("GET", "log")
        return sum(
            one["bytes_received"]
            for one in log
            if one["operation"] in kinds and one["key"].startswith(prefix) and "/.stager" not in one["key"]
        )
