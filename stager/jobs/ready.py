"""``stager ready`` and ``stager wait``: the gate's answer. Imports no SDK and no event loop: probes run it every second."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

from stager.core.errors import NotFound, StagerError
from stager.core.marker import ReadyMarker
from stager.core.outcome import MarkerState
from stager.core.units import format_duration, shown
from stager.node import marker as marker_file
from stager.node import mounts

_PATIENCE_S = 10.0  # a name on a hung FUSE mount can take for ever to look up


class Answer:
    """Whether the gate is open, the marker's state, and why not."""

    def __init__(self, state: str, why: str) -> None:
        self.state = state
        self.why = why

    @property
    def ready(self) -> bool:
        """True when nothing speaks against it."""
        return not self.why


class Question:
    """What the marker at `marker` is worth, asked as often as one likes.

    `accept` widens the states that count beside ``ready``; `paths` must all be covered by the marker; `min_resident` (0..1) is
    held against what is resident now, on this node, counted exactly or not at all. Without it only a reboot speaks against
    ``released``, for that promises nothing of any file.
    """

    def __init__(
        self,
        marker: str,
        *,
        paths: tuple[str, ...] = (),
        accept: frozenset[str] = frozenset(),
        min_resident: float | None = None,
    ) -> None:
        self._marker = marker
        self._paths = paths
        self._accept = accept
        self._min_resident = min_resident
        self._thread: threading.Thread | None = None
        self._answers: list[Answer] = []
        self._state, self._where = "", marker

    def ask(self, patience: float = _PATIENCE_S) -> Answer:
        """The answer now; no when there is none after `patience` seconds, for then a mount hangs.

        The look-up goes on in a daemon thread, which does not keep the process; it is not asked twice at once.
        """
        if self._thread is None or not self._thread.is_alive():
            self._answers.clear()
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._thread.join(patience)
        if self._answers:
            return self._answers[0]
        return Answer(self._state, f"no answer from {self._where} within {format_duration(patience)}")

    def _work(self) -> None:
        try:
            self._answers.append(self._answer())
        except Exception as exc:  # whatever a marker or a mount says: a probe gets an answer
            self._answers.append(Answer(self._state, f"it cannot be told ({type(exc).__name__}: {exc})"))

    def _answer(self) -> Answer:
        try:
            found = marker_file.read(self._marker)
        except NotFound:
            return Answer("", f"no marker at `{shown(self._marker)}`")
        except StagerError as error:
            return Answer("", error.message)
        self._state = found.state.value
        self._where = ", ".join(f"`{shown(path)}`" for path in found.asked[:4]) or self._where
        return Answer(self._state, _objection(found, self._paths, self._accept, self._min_resident) or "")


def _objection(
    found: ReadyMarker, paths: tuple[str, ...], accept: frozenset[str], min_resident: float | None
) -> str | None:
    if found.state is not MarkerState.READY and found.state.value not in accept:
        because = f": {found.reason}" if found.reason else ""
        return f"the marker says `{found.state.value}`{because}"
    if found.state is MarkerState.RELEASED and min_resident is None:
        return _against_released(found, paths)
    if (why := marker_file.contradiction(found)) is not None:
        return why
    for path in paths:
        if not _covers(found, os.path.realpath(path)):
            return f"the marker does not speak of `{shown(path)}`"
        if (why := _unknown_file(found, os.path.realpath(path))) is not None:
            return why
    claims_pages = found.state in (MarkerState.READY, MarkerState.PARTIAL)
    if min_resident is None and not (claims_pages and _remount_is_possible(found)):
        return None
    return _too_little(found, min_resident)


def _against_released(found: ReadyMarker, paths: tuple[str, ...]) -> str | None:
    """`released` claims nothing of any page, and may stand for a model that cannot be read or hangs: no file is looked at."""
    if (why := marker_file.reboot(found)) is not None:
        return why
    for path in paths:
        # As it is spelled first: to follow links is to ask the mount.
        if not (_below(os.path.abspath(path), found.asked) or _really_below(path, found.asked)):
            return f"the marker does not speak of `{shown(path)}`"
    return None


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def _really_below(path: str, roots: tuple[str, ...]) -> bool:
    return _below(os.path.realpath(path), tuple(os.path.realpath(root) for root in roots))


def _covers(found: ReadyMarker, real: str) -> bool:
    """Whether all of `real` was warmed: it is a PATH of the run, one of its files, or a folder of files inside a PATH."""
    if real in found.asked or any(file.path == real for file in found.files):
        return True
    inside = any(real.startswith(path.rstrip("/") + "/") for path in found.asked)
    return inside and any(file.path.startswith(real + "/") for file in found.files)


def _unknown_file(found: ReadyMarker, real: str) -> str | None:
    """Say so when a file at or below `real` is wanted by the run's own selection, and was not there to be warmed."""
    from stager.core.select import selected
    from stager.node.files import walk

    names = {file.path for file in found.files}
    if real in names:
        return None
    try:
        there = walk([real])
    except StagerError as error:
        return error.message
    links = {
        (file.inode, file.size, file.mtime_ns) for file in found.files
    }  # another name of a file counts once
    inside = next((root for root in found.asked if real.startswith(root.rstrip("/") + "/")), real)
    for file in there.files:
        name = os.path.relpath(os.path.join(real, file.entry.path), inside)
        one = file.identity
        known = file.path in names or (one.inode, one.size, one.mtime_ns) in links
        if not known and selected(name, found.include, found.exclude):
            return f"`{shown(file.path)}` was not warmed"
    return there.errors[0].message if there.errors else None


def _remount_is_possible(found: ReadyMarker) -> bool:
    """Whether a remount could go unnoticed by ids: without unique ids, or seen from another mount namespace."""
    with suppress(OSError):
        here = mounts.namespace()
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


def wait(question: Question, timeout: float | None, every: float = 0.5) -> Answer:
    """Ask until the answer is yes or `timeout` seconds have passed; the last answer."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        # At the end there is still time for one look at a healthy mount.
        left = _PATIENCE_S if end is None else max(0.2, end - time.monotonic())
        answer = question.ask(min(_PATIENCE_S, left))
        if answer.ready or (end is not None and time.monotonic() >= end):
            return answer
        time.sleep(every if end is None else max(0.0, min(every, end - time.monotonic())))
