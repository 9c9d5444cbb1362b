"""``stager warm``: survey, read, verify, say so, hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from stager.core.budget import binding_text
from stager.core.errors import (
    AccessDenied,
    DeadlineExceeded,
    IntegrityError,
    LocalIOError,
    NotFound,
    StagerError,
)
from stager.core.events import Failure, Note
from stager.core.model import Known, Residency, sum_residency
from stager.core.outcome import MarkerState, Mode, Result, Verdict, verdict, worst
from stager.core.reports import PathPages, Surveyed, WarmSummary
from stager.core.units import format_percent, format_size, shown
from stager.engine import runtime
from stager.jobs import leftout
from stager.jobs.explain import failure_of, note_defects, note_findings
from stager.jobs.gate import Gate
from stager.jobs.hold import hold
from stager.jobs.reading import Reading
from stager.jobs.stall import watched
from stager.jobs.survey import Survey, Surveyor
from stager.jobs.verifying import Verified, verify
from stager.jobs.vigil import Vigil, by_path
from stager.node import notify
from stager.node.files import Found
from stager.node.memory import Gauge

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.options import WarmOptions

_RESULTS: tuple[tuple[type[StagerError], Result], ...] = (
    (NotFound, Result.EMPTY),
    (AccessDenied, Result.UNREADABLE),
    (IntegrityError, Result.CORRUPT),
    (LocalIOError, Result.IO_ERROR),
    (DeadlineExceeded, Result.DEADLINE),
)


def result_of(error: StagerError) -> Result | None:
    """The result that an error which ended a run stands for; None for usage errors and bugs, which no mode forgives."""
    return next((result for kind, result in _RESULTS if isinstance(error, kind)), None)


class Warm:
    """One warm run. `run` gives the exit code; what it found stays in the attributes for whoever asks after an early end.

    `concluded` is called with the exit code once the gate has its answer, before pages are held.
    """

    def __init__(
        self, options: WarmOptions, reporter: Reporter, *, concluded: Callable[[int], None] | None = None
    ) -> None:
        self._options = options
        self._reporter = reporter
        self._concluded = concluded
        self._gate = Gate(options.marker, named=options.marker_named, reporter=reporter)
        self._gauge = Gauge(limit=options.memory.limit)
        self._survey: Survey | None = None
        self._reading: Reading | None = None
        self._verified: list[Verified] = []
        self._results: list[Result] = []
        self._error: StagerError | None = None
        self._started = time.monotonic()

    def withdraw(self, reason: str) -> None:
        """Close the gate now; safe at any moment."""
        self._gate.withdraw(reason)

    def stuck(self) -> list[str]:
        """Paths of files in which a read hangs."""
        return self._reading.stuck() if self._reading else []

    async def run(self) -> int:
        """Warm; the exit code. Raises `StagerError` for usage errors and a named marker that cannot be written."""
        await runtime.in_thread(f"reading {shown(self._options.marker)}", self._gate.load)
        self._gate.asks(self._options.selection)
        self._gate.withdraw("a warm run is under way")
        notify.sd_notify(status="warming")
        try:
            with runtime.deadline(self._options.timeout) as expired:
                async with watched(self._options.stall_timeout, self._reporter):
                    await self._warm()
            if expired():
                raise DeadlineExceeded("--timeout ran out", hint="give it longer, or see what was slow above")
        except StagerError as error:
            result = result_of(error)
            if result is None:
                self._gate.withdraw(error.message)
                raise
            self._results.append(result)
            self._error = error
        outcome = self._conclude()
        if outcome.state is not MarkerState.FAILED:
            notify.sd_notify(ready=True, status=f"{outcome.state.value}")
            if self._concluded is not None:
                self._concluded(outcome.exit_code)
            # After a failure that opened the gate all the same there is nothing to hold, and the mount may hang.
            warm = self._survey if outcome.state is not MarkerState.RELEASED else None
            found = [one.residency for one in self._verified] if warm else []
            vigil = Vigil(warm or Survey(Found()), self._options.selection.paths, found)
            await hold(warm or Survey(Found()), vigil, self._options.hold, self._gauge, self._reporter)
        return outcome.exit_code

    async def _warm(self) -> None:
        surveyor = Surveyor(self._options.selection, self._gate.before)
        survey = await surveyor.find()
        await surveyor.ask_mounts(survey)
        self._survey = survey
        await surveyor.look(survey, fresh=self._options.fresh)
        self._reporter.emit(Surveyed(self._by_path(survey, [look.residency for look in survey.looks])))
        surveyor.judge(survey, self._options, self._gauge)
        note_findings(survey, self._options, self._reporter)
        note_defects(survey, self._reporter)
        assert survey.plan is not None
        if survey.plan.partial:
            strict = self._options.mode is Mode.STRICT
            await leftout.forget(survey, keep=frozenset(() if strict else survey.plan.chosen))
        if self._refused(survey):
            return
        await surveyor.drop_stale(survey)
        note = partial(self._gate.surveyed, survey, self._options.selection)
        await runtime.in_thread("looking at the mounts", note)
        await self._read(survey)
        self._verified = await verify(survey, again=self._worth_another_read(survey))
        self._judge_files(survey)

    def _refused(self, survey: Survey) -> bool:
        """Findings that end the run before the first byte is read."""
        assert survey.plan is not None
        if survey.proven() and not self._options.allow_incomplete:
            self._results.append(Result.CORRUPT)
            return True
        if survey.dropping():
            self._results.append(Result.DROPPED)
        if survey.plan.partial:
            self._results.append(Result.PARTIAL)
        return self._options.mode is Mode.STRICT and bool(self._results)

    async def _read(self, survey: Survey) -> None:
        assert survey.plan is not None
        if survey.plan.read:
            self._reading = Reading(survey, self._options, self._gauge, self._reporter)
            await self._reading.run()
            if self._reading.stopped is not None:
                self._results.append(Result.PARTIAL)

    def _worth_another_read(self, survey: Survey) -> frozenset[int]:
        """Files whose holes are read once more: those chosen and not yet failed, unless memory ran short while reading."""
        assert survey.plan is not None
        if self._reading is None:
            return frozenset(survey.plan.chosen)
        return frozenset() if self._reading.stopped else frozenset(survey.plan.chosen) - self._reading.failed

    def _judge_files(self, survey: Survey) -> None:
        errors = [*survey.found.errors, *(look.problem for look in survey.looks if look.problem is not None)]
        for error in errors:
            self._results.append(result_of(error) or Result.IO_ERROR)
        problems = self._reading.problems if self._reading else []
        named = {problem.path for problem in problems}
        later = [one.problem for one in self._verified if one.problem and one.problem.path not in named]
        for problem in later:
            self._reporter.emit(problem)
        for problem in [*problems, *later]:
            denied = problem.errno in ("EACCES", "EPERM")
            self._results.append(Result.UNREADABLE if denied else Result.IO_ERROR)
        self._judge_residency()

    def _judge_residency(self) -> None:
        residency = self._residency()
        if not residency.known.exact:
            self._results.append(Result.UNKNOWN)
        elif not residency.complete:
            self._results.append(Result.LOST)
        survey = self._survey
        if survey is not None and survey.total < sum(file.size for file in survey.files):
            self._results.append(Result.PARTIAL)  # whatever is resident, it is no whole model
        least = self._options.min_resident
        if least is not None and (residency.resident is None or residency.resident < least * residency.total):
            self._results.append(Result.BELOW_MINIMUM)

    def _residency(self) -> Residency:
        """What is resident as far as it was looked at: after reading, else as it was found."""
        if self._verified:
            return sum_residency([one.residency for one in self._verified])
        if self._survey is None:
            return Residency(None, 0, Known.UNKNOWN)
        looked = len(self._survey.looks) == len(self._survey.files)
        # Stale pages count as missing in the survey, and are still there when the run is refused.
        if self._reading is not None or not looked or any(look.stale for look in self._survey.looks):
            return Residency.unknown(self._survey.total, "not verified")
        return self._survey.residency

    # The end

    def _conclude(self) -> Verdict:
        result = worst(self._results)
        outcome = verdict(result, self._options.mode)
        residency = self._residency()
        reason = self._reason(result)
        self._gate.open(outcome.state, reason, residency)
        failure = failure_of(result, outcome, reason, self._error)
        if failure is not None:
            self._reporter.emit(failure)
        if self._survey is None:
            return self._conclude_early(outcome, reason, failure)
        summary = self._summary(self._survey, result, outcome, reason, residency)
        self._reporter.emit(summary)
        return outcome

    def _conclude_early(self, outcome: Verdict, reason: str, failure: Failure | None) -> Verdict:
        """Nothing was found to speak of: the error is the last word, or that the gate opens in spite of it."""
        if failure is None:
            self._reporter.emit(Note("warning", outcome.state.value, f"{outcome.state.value}: {reason}"))
        return outcome

    def _reason(self, result: Result) -> str:
        if self._error is not None:
            return self._error.message
        survey = self._survey
        assert survey is not None
        if result is Result.CORRUPT:
            first = survey.proven()[0]
            return f"incomplete model: {shown(first.path)}: {first.what}"
        if result in (Result.IO_ERROR, Result.UNREADABLE):
            return f"{self._count_problems(survey)} could not be read"
        if result is Result.DROPPED:
            names = ", ".join(f"{shown(f.mount.point)} ({f.traits.name})" for f in survey.dropping())
            return f"{names} drops pages when a file is opened"
        if result is Result.BELOW_MINIMUM:
            residency = self._residency()
            have = (
                "unknown"
                if residency.resident is None
                else format_percent(residency.resident, residency.total)
            )
            return f"resident {have}, --min-resident asks for {100 * (self._options.min_resident or 0):g}%"
        if result is Result.PARTIAL:
            return self._why_partial(survey)
        if result is Result.UNKNOWN:
            inexact = (one.residency.why for one in self._verified if not one.residency.known.exact)
            return f"no exact count: {next(inexact, '')}"
        if result is Result.LOST:
            return "some pages did not stay after two reads"
        return ""

    def _why_partial(self, survey: Survey) -> str:
        assert survey.admission is not None
        stopped = self._reading.stopped if self._reading else None
        if stopped is not None:
            return f"stopped before evicting its own pages: {binding_text(stopped)}"
        if survey.first is not None and not survey.admission.shortfall:
            return f"only the first {format_size(survey.first)} of each file were asked for"
        short = format_size(survey.admission.shortfall)
        return (
            f"{short} do not fit: {binding_text(survey.admission.binding)}"
            if survey.admission.binding
            else short
        )

    def _count_problems(self, survey: Survey) -> str:
        paths = {p.path for p in (self._reading.problems if self._reading else [])}
        paths |= {one.problem.path for one in self._verified if one.problem is not None}
        paths |= {
            file.entry.path
            for file, look in zip(survey.files, survey.looks, strict=True)
            if look.problem is not None
        }
        count = len(paths) + len(survey.found.errors)
        return "1 file" if count == 1 else f"{count} files"

    def _summary(
        self, survey: Survey, result: Result, outcome: Verdict, reason: str, residency: Residency
    ) -> WarmSummary:
        reading = self._reading
        pace = reading.controller.report() if reading else None
        read = reading.lanes.done if reading else 0
        seconds = reading.seconds if reading else 0.0
        missing = [
            (file.entry.path, one.residency.missing or 0)
            for file, one in zip(survey.files, self._verified, strict=False)
            if one.residency.missing
        ]
        admission = survey.admission
        return WarmSummary(
            outcome=result.value,
            state=outcome.state.value,
            exit_code=outcome.exit_code,
            reason=reason,
            paths=self._options.selection.paths,
            files=len(survey.files),
            files_resident=sum(one.residency.complete for one in self._verified),
            residency=residency,
            read=read,
            already=sum(look.residency.resident or 0 for look in survey.looks if look.residency.known.exact),
            brought_back=sum(one.brought_back for one in self._verified),
            seconds=seconds,
            rate=read / seconds if seconds > 0 else 0.0,
            lanes=pace.lanes if pace else 0,
            peak=pace.peak if pace else 0,
            split=pace.split if pace else False,
            touch="+".join(sorted(reading.touches)) if reading else "",
            skipped=len(survey.plan.skipped) if survey.plan else 0,
            missing=tuple(missing),
            replaced=len(survey.replaced()) if survey.looks else 0,
            unknown_origin=sum(
                (look.residency.resident or 0) for look in survey.looks if not look.origin_known
            ),
            binding=binding_text(admission.binding) if admission and admission.binding else "",
            marker=self._gate.written,
            by_path=self._by_path(survey, [one.residency for one in self._verified]),
        )

    def _by_path(self, survey: Survey, residencies: list[Residency]) -> tuple[PathPages, ...]:
        """For each PATH; nothing where the run ended before all files were looked at."""
        if len(residencies) != len(survey.files):
            return ()
        return by_path(survey.files, residencies, self._options.selection.paths)
