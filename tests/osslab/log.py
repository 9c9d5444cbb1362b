"""What the server was asked and what it gave, one record per request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass
class Record:
    """One request. `bytes_sent` counts the body of the answer as far as it was handed to the kernel, `bytes_received` the request's.

    `headers` are the request's, without authorization and token. `status` is 0 when no answer was sent.
    """

    number: int
    connection: int
    client: tuple[str, int]
    method: str
    operation: str = ""
    bucket: str = ""
    key: str = ""
    query: dict[str, str] = field(default_factory=dict)
    range: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    host: str = ""
    access_key: str = ""
    version: str = ""
    presigned: bool = False
    request_id: str = ""
    status: int = 0
    code: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    fault: str = ""
    begun: float = 0.0
    ended: float | None = None
    waiting: bool = False


class Log:
    """All records, oldest first. The accessors wait a moment for answers that are just being sent, but for stalled ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: list[Record] = []

    def begin(self, connection: int, client: tuple[str, int], method: str) -> Record:
        """A record for a request that came in."""
        with self._changed:
            record = Record(len(self._records) + 1, connection, client, method, begun=time.time())
            self._records.append(record)
            return record

    def end(self, record: Record) -> None:
        """That one is through."""
        with self._changed:
            record.ended = time.time()
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget all."""
        with self._changed:
            self._records.clear()

    def records(self, **wanted: Any) -> list[Record]:
        """Those whose fields are as given: ``records(operation="GetObject", status=206)``. `key` is a glob."""
        with self._changed:
            self._changed.wait_for(lambda: all(r.ended or r.waiting for r in self._records), 1.0)
            found = list(self._records)
        glob = wanted.pop("key", "*")
        return [
            record
            for record in found
            if fnmatchcase(record.key, glob) and all(getattr(record, k) == v for k, v in wanted.items())
        ]

    def count(self, **wanted: Any) -> int:
        """How many `records`."""
        return len(self.records(**wanted))

    def bytes_sent(self, key_glob: str = "*", operation: str = "GetObject") -> int:
        """Bytes of the bodies of those answers."""
        return sum(record.bytes_sent for record in self.records(key=key_glob, operation=operation))

    def wait(self, condition: Callable[[list[Record]], bool], timeout: float = 20.0) -> None:
        """Until the records so far, unfinished ones among them, satisfy `condition`; `TimeoutError` otherwise."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with self._changed:
                if condition(list(self._records)):
                    return
            time.sleep(0.002)
        raise TimeoutError("the server was not asked what the test waits for")

    def as_json(self) -> list[dict[str, Any]]:
        """All of them, for the control path."""
        return [asdict(record) for record in self.records()]
