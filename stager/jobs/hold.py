"""Keeping pages after warming: populated mappings, looked at and populated again until the engine has loaded."""

from __future__ import annotations

import math
import os
import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stager.core.budget import Policy, margin
from stager.core.events import Note
from stager.core.model import LocalFile
from stager.core.reports import HoldSummary
from stager.core.units import format_duration, format_size, shown
from stager.engine import runtime
from stager.jobs.vigil import without
from stager.net.health import asked, healthy
from stager.node.files import opened
from stager.node.filesystems import Pattern
from stager.node.syscalls import Mapping

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.options import Hold
    from stager.jobs.survey import Survey
    from stager.jobs.vigil import Vigil
    from stager.node.memory import Gauge

_LOOK_EVERY_S = 5.0
_ASK_EVERY_S = 1.0
_IDLE_LOOK_EVERY_S = 30.0
_IDLE_SHARE = 20  # looking takes at most a twentieth of the time, however many files there are
_TELL_EVERY_S = 15.0
_CHUNK = 16 << 20


@dataclass
class _Held:
    """One mapped file; no descriptor stays open, for a model may have more files than a process may have descriptors.

    `left_out` are the stretches that were not resident when holding began: not held, not brought in.
    """

    file: LocalFile
    mapping: Mapping
    left_out: list[tuple[int, int]]


class _Holder:
    """Populated read-only mappings of the files of a survey. Without privilege; mlock only when asked."""

    def __init__(self, survey: Survey, vigil: Vigil, gauge: Gauge, reporter: Reporter, *, lock: bool) -> None:
        self._survey = survey
        self._vigil = vigil
        self._gauge = gauge
        self._reporter = reporter
        self._lock = lock
        self.held: list[_Held] = []
        self.bytes = 0
        self.brought_back = 0

    def take(self) -> None:
        """Map what is resident now, and mark it used. Files that cannot be mapped are named."""
        for file in self._survey.files:
            facts = self._survey.facts(file)
            if not file.size or facts.keeps.hopeless or facts.traits.pattern is Pattern.MEMORY:
                continue
            try:
                self._map(file)
            except OSError as exc:
                message = f"cannot hold {shown(file.entry.path)}: {os.strerror(exc.errno or 0).lower()}"
                self._reporter.emit(Note("warning", "not_held", message))

    def _map(self, file: LocalFile) -> None:
        with opened(file.path) as fd:
            mapping = Mapping(fd, 0, file.size)
        resident, missing = self._vigil.look(file)
        one = _Held(file, mapping, missing if resident is not None else [])
        self.held.append(one)
        self._populate(one, _complement(one.left_out, file.size))
        kept = file.size - sum(length for _, length in one.left_out)
        self.bytes += kept
        self._vigil.keeps(file, kept)
        if self._lock:
            self._mlock(one)

    def _mlock(self, one: _Held) -> None:
        try:
            one.mapping.lock()
        except OSError as exc:
            most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            why = (
                f"RLIMIT_MEMLOCK is {format_size(most)}" if most >= 0 else os.strerror(exc.errno or 0).lower()
            )
            message = f"{shown(one.file.entry.path)} is held, but not locked: {why}"
            self._reporter.emit(Note("warning", "not_locked", message))

    def refresh(self) -> None:
        """Bring back what has been dropped since, as far as memory has room for it."""
        for one in self.held:
            with suppress(OSError):  # gone or unreadable by now: its mapping holds what it can
                before, gone = self._vigil.look(one.file)
                missing = without(gone, one.left_out)
                if not missing:
                    continue
                # What is held is mapped, and mapped pages are never counted as room: nothing more to subtract.
                room, _ = margin(self._gauge.read(), Policy(), 0)
                if room <= 0:
                    return
                self._populate(one, missing)
                if before is not None:
                    back = max(0, (self._vigil.look(one.file)[0] or 0) - before)
                    self.brought_back += back
                    self._vigil.came_back(one.file, back)

    def _populate(self, one: _Held, stretches: list[tuple[int, int]]) -> None:
        for offset, length in stretches:
            for at in range(offset, offset + length, _CHUNK):
                with suppress(OSError):  # a file that shrank, a read that failed: the next look names it
                    one.mapping.populate(at, min(_CHUNK, offset + length - at))

    def release(self) -> None:
        """Unmap everything; the pages stay in the cache as ordinary ones."""
        for one in self.held:
            one.mapping.close()
            self._vigil.keeps(one.file, 0)
        self.held.clear()


def _complement(missing: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The stretches of a file of `size` bytes that are not `missing`."""
    there, at = [], 0
    for offset, length in missing:
        if offset > at:
            there.append((at, offset - at))
        at = offset + length
    if at < size:
        there.append((at, size - at))
    return there


async def hold(survey: Survey, vigil: Vigil, options: Hold, gauge: Gauge, reporter: Reporter) -> None:
    """Hold the pages of `survey` as `options` says, tell what that took, then idle if asked. Cancelled by a signal.

    `vigil` counts what becomes of the pages; the figures go out as `Held` events.
    """
    telling = _Telling(vigil, reporter)
    if options.seconds is not None or options.url is not None:
        holder = _Holder(survey, vigil, gauge, reporter, lock=options.lock)
        started = time.monotonic()
        await runtime.in_thread("holding", holder.take)
        until = (
            f"until {options.url} answers" if options.url else f"for {format_duration(options.seconds or 0)}"
        )
        reporter.emit(Note("info", "hold", f"holding {format_size(holder.bytes)} {until}"))
        telling.tell()
        why = await _wait(holder, options, f"holding {until}", telling)
        # Not when cancelled: the process ends then, and closing a file waits for the daemon behind it.
        await runtime.in_thread("letting go", holder.release)
        seconds = time.monotonic() - started
        reporter.emit(HoldSummary(seconds, holder.bytes, holder.brought_back, why, vigil.rows()))
    if options.idle:
        reporter.emit(Note("info", "idle", "idle until SIGTERM"))
        await _idle(vigil, telling, watch=options.watch)


async def _wait(holder: _Holder, options: Hold, label: str, telling: _Telling) -> str:
    started = time.monotonic()
    end = started + options.seconds if options.seconds is not None else math.inf
    next_look = started + _LOOK_EVERY_S
    while (now := time.monotonic()) < end:
        if options.url is not None and await runtime.in_thread(
            f"asking {options.url}", partial(_answers, options.url)
        ):
            return f"{options.url} answered"
        if now >= next_look:
            await runtime.in_thread("holding", holder.refresh)
            telling.tell()
            next_look = time.monotonic() + _LOOK_EVERY_S
        await runtime.sleep(min(_ASK_EVERY_S, max(0.0, end - time.monotonic())), label)
    await runtime.in_thread("holding", holder.refresh)
    return "the time is over"


async def _idle(vigil: Vigil, telling: _Telling, *, watch: bool) -> None:
    """For ever; `watch`: with a look at the pages now and then, for whoever reads the figures."""
    while watch:
        started = time.monotonic()
        await runtime.in_thread("counting resident pages", vigil.look_at_all)
        telling.tell()
        took = time.monotonic() - started
        await runtime.sleep(max(_IDLE_LOOK_EVERY_S, _IDLE_SHARE * took), "idle until SIGTERM")
    await runtime.sleep(math.inf, "idle until SIGTERM")


class _Telling:
    """Gives each look of `vigil` to `reporter`; losses are news at most every `_TELL_EVERY_S` seconds."""

    def __init__(self, vigil: Vigil, reporter: Reporter) -> None:
        self._vigil = vigil
        self._reporter = reporter
        self._told = -math.inf

    def tell(self) -> None:
        """Say what the last look has found."""
        now = time.monotonic()
        event = self._vigil.report(tell=now - self._told >= _TELL_EVERY_S)
        if event.news:
            self._told = now
        self._reporter.emit(event)


def _answers(url: str) -> bool:
    """Whether `url` answers 2xx now."""
    return healthy(asked(url))
