"""Questions to a health URL while an engine starts: in a thread, one at a time, each waiting for its answer."""

from __future__ import annotations

import threading
import time

from stager.net.health import healthy
from stager.net.question import Question

_EVERY_S = 0.02  # from the end of a question to the next
_ANSWER_S = 60.0  # of one question: who loads while it keeps a client waiting answers as soon as it is ready
_END_S = 1.0


class Asking:
    """Asks `url` from now on; `event` is set as soon as it has answered 2xx.

    `ready` is when it did (monotonic), 0 before; `within` the seconds before in which nobody had a question open, so that it may have been ready
    earlier by as much. `status` is the last other answer, None without one.
    """

    def __init__(self, url: str, event: threading.Event) -> None:
        self.ready = 0.0
        self.within = 0.0
        self.status: int | None = None
        self._event = event
        self._over = threading.Event()
        self._question = Question(url)
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._over.set()
        self._question.drop()
        self._thread.join(_END_S)  # it may be looking for the host's name

    def _ask(self) -> None:
        not_ready = time.monotonic()
        while not self._over.is_set():
            began = time.monotonic()
            answer = self._question.ask(_ANSWER_S)
            if healthy(answer.status):
                self.within, self.ready = began - not_ready, time.monotonic()
                self._event.set()
                return
            self.status = answer.status
            # One that waits would have been answered; any other says only how it was when it was asked.
            not_ready = time.monotonic() if answer.waited else began
            self._over.wait(_EVERY_S)
