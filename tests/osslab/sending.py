"""Answers on their way out, and what happens to them there."""

from __future__ import annotations

import os
import threading
import time

from tests.osslab.faults import Fault
from tests.osslab.log import Record
from tests.osslab.operations import Sent
from tests.osslab.storage import Content
from tests.osslab.throttle import NEAR, Link, Throttle
from tests.osslab.wire import Answer, Connection, Gone


class Sender:
    """Sends answers over one connection, bodies no faster than `throttle`, which all share, and `link`; waits end when the server stops.

    What comes in over the connection comes no faster than `link` either.
    """

    def __init__(
        self,
        connection: Connection,
        stopping: threading.Event,
        throttle: Throttle | None = None,
        link: Link = NEAR,
    ) -> None:
        self._connection, self._stopping, self._latency = connection, stopping, link.latency
        self._throttles = [one for one in (throttle, link.throttle(stopping)) if one is not None]
        connection.incoming = link.throttle(stopping)

    def wait(self, seconds: float, record: Record) -> None:
        """Say nothing for so long. Raises `Gone` when the server stops meanwhile."""
        record.waiting = True
        if self._stopping.wait(seconds):
            raise Gone("stopping")
        record.waiting = False

    def send(self, answer: Answer | Sent, record: Record, fault: Fault | None, *, bare: bool) -> None:
        """Head and body; `bare` leaves out the body, as for HEAD. Raises `Gone` when nothing more can be sent."""
        head = answer.answer if isinstance(answer, Sent) else answer
        record.status = head.status
        length = answer.length if isinstance(answer, Sent) else len(head.body)
        told = head.length if head.length is not None else length
        if head.status not in (204, 304):
            head.headers["Content-Length"] = str(told)
        silent = bare or head.status in (204, 304) or not length
        if self._latency:
            self.wait(self._latency, record)
        self._connection.send_head(head.status, head.headers, more=not silent)
        if silent:
            return
        if isinstance(answer, Sent):
            self._body(answer.content, answer.offset, answer.length, record, fault)
        else:
            record.bytes_sent += len(head.body)
            self._connection.send(head.body)

    def _body(self, content: Content, offset: int, length: int, record: Record, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if fault is None or kind not in ("reset", "close", "stall", "slow", "corrupt"):
            self._pieces(content, offset, length, record)
            return
        at = length // 2 if fault.after_bytes is None else min(fault.after_bytes, length - 1)
        if kind == "slow":
            self._slowly(content, offset, length, record, fault)
            return
        self._pieces(content, offset, at, record)
        if kind == "stall":
            self.wait(fault.seconds, record)
            self._pieces(content, offset + at, length - at, record)
        elif kind == "corrupt":
            self._other_byte(content, offset + at, record)
            self._pieces(content, offset + at + 1, length - at - 1, record)
        else:
            self.end(kind)

    def end(self, kind: str) -> None:
        """Close the connection, hard for "reset". Always raises `Gone`."""
        if kind == "reset":
            self._connection.reset()
        else:
            self._connection.close()
        raise Gone(kind)

    def _pieces(self, content: Content, offset: int, length: int, record: Record) -> None:
        def sent(count: int) -> None:
            record.bytes_sent += count
            for throttle in self._throttles:
                throttle.take(count)

        for blob, start, count in content.pieces(offset, length):
            if blob.path:
                fd = os.open(blob.path, os.O_RDONLY)
                try:
                    self._connection.send_file(fd, start, count, sent)
                finally:
                    os.close(fd)
            else:
                sent(count)
                self._connection.send(memoryview(blob.data)[start : start + count])

    def _slowly(self, content: Content, offset: int, length: int, record: Record, fault: Fault) -> None:
        began, done = time.monotonic(), 0
        step = max(1, min(fault.rate // 20, 1 << 20))
        while done < length:
            count = min(step, length - done)
            self._pieces(content, offset + done, count, record)
            done += count
            early = began + done / fault.rate - time.monotonic()
            if early > 0:
                self.wait(early, record)

    def _other_byte(self, content: Content, offset: int, record: Record) -> None:
        for blob, start, _ in content.pieces(offset, 1):
            if blob.path:
                with open(blob.path, "rb", buffering=0) as file:
                    byte = os.pread(file.fileno(), 1, start)
            else:
                byte = blob.data[start : start + 1]
            record.bytes_sent += 1
            self._connection.send(bytes([byte[0] ^ 1]))
