"""``stager ready`` and ``stager wait``: the gate's answer. Imports no SDK and no event loop: probes run it every second."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from stager.core.errors import NotFound, StagerError
from stager.core.marker import ReadyMarker
from stager.core.outcome import MarkerState
from stager.node import marker as marker_file

_PATIENCE_S = 10  # a name on a dead FUSE mount can take for ever to look up; SIGALRM's default action then ends the probe


class Answer:
    """Whether the gate is open, the marker's state, and why not."""

    def __init__(self, state: str, why: str) -> None:
        self.state = state
        self.why = why

    @property
    def ready(self) -> bool:
        """True when nothing speaks against it."""
        return not self.why


def ask(
    marker: str,
    *,
    paths: tuple[str, ...] = (),
    accept: frozenset[str] = frozenset(),
    min_resident: float | None = None,
) -> Answer:
    """What the marker at `marker` is worth now.

    `accept` widens the states that count beside ``ready``; `paths` must all be covered by the marker; `min_resident` (0..1) is
    held against what is resident now, on this node, counted exactly or not at all.
    """
    signal.alarm(_PATIENCE_S)
    try:
        try:
            found = marker_file.read(marker)
        except NotFound:
            return Answer("", f"no marker at `{marker}`")
        except StagerError as error:
            return Answer("", error.message)
        return Answer(found.state.value, _objection(found, paths, accept, min_resident) or "")
    finally:
        signal.alarm(0)


def _objection(
    found: ReadyMarker, paths: tuple[str, ...], accept: frozenset[str], min_resident: float | None
) -> str | None:
    if found.state is not MarkerState.READY and found.state.value not in accept:
        because = f": {found.reason}" if found.reason else ""
        return f"the marker says `{found.state.value}`{because}"
    if (why := marker_file.contradiction(found)) is not None:
        return why
    for path in paths:
        if not _covers(found, os.path.realpath(path)):
            return f"the marker does not speak of `{path}`"
    claims_pages = found.state in (MarkerState.READY, MarkerState.PARTIAL)
    if min_resident is None and not (claims_pages and _remount_is_possible(found)):
        return None
    return _too_little(found, min_resident)


def _covers(found: ReadyMarker, real: str) -> bool:
    """Whether all of `real` was warmed: it is a PATH of the run, one of its files, or a folder of files inside a PATH."""
    if real in found.asked or any(file.path == real for file in found.files):
        return True
    inside = any(real.startswith(path.rstrip("/") + "/") for path in found.asked)
    return inside and any(file.path.startswith(real + "/") for file in found.files)


def _remount_is_possible(found: ReadyMarker) -> bool:
    """Whether a remount could go unnoticed by ids: without unique ids, or seen from another mount namespace."""
    with suppress(OSError):
        here = os.readlink("/proc/self/ns/mnt")
        return any(path.unique_id is None or path.namespace != here for path in found.paths)
    return True


def _too_little(found: ReadyMarker, min_resident: float | None) -> str | None:
    """Count what is resident now: less than asked, or nothing at all of a model that was warm."""
    from stager.node.residence import resident_now

    resident, total = resident_now(found)
    if min_resident is None:
        return "nothing of it is resident any more" if resident == 0 and found.resident else None
    if resident is None:
        return "what is resident now cannot be counted here"
    if resident < min_resident * total:
        return f"{100 * resident / max(1, total):.1f}% resident, {100 * min_resident:g}% asked for"
    return None


def wait(ask_once: Callable[[], Answer], timeout: float | None, every: float = 0.5) -> Answer:
    """Ask until the answer is yes or `timeout` seconds have passed; the last answer."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        answer = ask_once()
        if answer.ready or (end is not None and time.monotonic() >= end):
            return answer
        time.sleep(every if end is None else max(0.0, min(every, end - time.monotonic())))
