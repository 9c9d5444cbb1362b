"""The server as a process of its own: for clients whose CPU time and threads are looked at, and for killing it."""

from __future__ import annotations

import http.client
import json
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """``python -m MODULE`` with these options (underscores for dashes; True is a bare flag, a list repeats).

    `told` is the line of JSON that it began with.
    """

    module: str
    patience = 20.0  # seconds until it has to be up

    def __init__(self, **options: Any) -> None:
        words = [sys.executable, "-m", self.module, "--lifeline"]
        for name, value in options.items():
            for one in value if isinstance(value, list | tuple) else [value]:
                words += ["--" + name.replace("_", "-"), *([] if one is True else [str(one)])]
        self._process = subprocess.Popen(words, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], self.patience)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self.stop()
            raise RuntimeError(f"{self.module} did not come up; its stderr says why")
        self.told: dict[str, Any] = json.loads(line)
        self.endpoint: str = self.told["endpoint"]
        self.pid: int = self.told["pid"]

    def control(self, method: str, what: str, body: Any = None) -> Any:
        """One request on the control path: "faults", "log" or "counters". Only over http."""
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, f"/_lab/{what}", None if body is None else json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End it. May be called twice."""
        if self._process.poll() is None:
            self._process.send_signal(signum)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class OssProcess(ServerProcess):
    """``python -m tests.osslab``."""

    module = "tests.osslab"

    @property
    def bucket(self) -> str:
        """The bucket that is there from the start."""
        return str(self.told["bucket"])

    def url(self, name: str = "") -> str:
        """``oss://BUCKET/NAME``."""
        return f"oss://{self.bucket}/{name}"

    def env(self) -> dict[str, str]:
        """The environment of its clients."""
        return {
            "OSS_ACCESS_KEY_ID": self.told["access_key_id"],
            "OSS_ACCESS_KEY_SECRET": self.told["access_key_secret"],
            "OSS_ENDPOINT": self.endpoint,
            "OSS_REGION": self.told["region"],
        }
