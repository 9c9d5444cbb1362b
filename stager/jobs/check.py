"""``stager check`` and ``--dry-run``: what would happen, and how it would end; nothing is warmed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stager.core.budget import describe
from stager.core.errors import DeadlineExceeded, StagerError
from stager.core.events import Note
from stager.core.outcome import Result, verdict, worst
from stager.core.plan import WHOLE, Order, span_text
from stager.core.reports import Forecast, resident_text
from stager.core.units import MIB, count, format_duration, format_size, shown
from stager.engine import runtime
from stager.jobs import leftout
from stager.jobs.stall import watched
from stager.jobs.survey import MountFacts, Survey, Surveyor
from stager.jobs.warm import result_of
from stager.node import filesystems, reclaim
from stager.node import marker as marker_file
from stager.node.files import opened
from stager.node.filesystems import Pattern
from stager.node.memory import Gauge
from stager.node.touch import SpliceKit

if TYPE_CHECKING:
    from stager.core.marker import ReadyMarker
    from stager.engine.report import Reporter
    from stager.jobs.options import WarmOptions

_SAMPLE = 64 * MIB
_SAMPLE_S = 0.5

Sections = list[tuple[str, tuple[str, ...]]]


async def check(options: WarmOptions, reporter: Reporter) -> int:
    """Survey and say what a warm run would do; the exit code it would have.

    Reads headers, the canary's page, and at most 64 MiB for the estimate of time. Raises `StagerError` as the run would.
    """
    try:
        with runtime.deadline(options.timeout):
            async with watched(options.stall_timeout, reporter):
                return await _check(options, reporter)
        raise DeadlineExceeded("--timeout ran out", hint="give it longer; `--stall-timeout` names what hangs")
    except StagerError as error:
        result = result_of(error)
        outcome = verdict(result, options.mode) if result is not None else None
        if outcome is None or outcome.exit_code:
            raise
        message = f"a run would end {outcome.state.value}: {error.message}"
        reporter.emit(Note("warning", outcome.state.value, message))
        return 0


async def _check(options: WarmOptions, reporter: Reporter) -> int:
    surveyor = Surveyor(options.selection, _marker(options.marker))
    survey = await surveyor.find()
    await surveyor.ask_mounts(survey)
    await surveyor.look(survey, fresh=options.fresh)
    gauge = Gauge(limit=options.memory.limit)
    surveyor.judge(survey, options, gauge)
    seconds = await runtime.in_thread("sampling", lambda: _sample(survey))
    await leftout.forget(survey, keep=frozenset())
    result = forecast_result(survey, options)
    outcome = verdict(result, options.mode)
    assert survey.plan is not None
    reporter.emit(
        Forecast(
            outcome=result.value,
            state=outcome.state.value,
            exit_code=outcome.exit_code,
            formats=survey.format_names,
            files=len(survey.files),
            total=survey.total,
            to_read=survey.plan.read,
            residency=survey.residency,
            defects=tuple(f"{shown(defect.path)}: {defect.what}" for defect in survey.defects),
            sections=tuple(_sections(survey, options, result, seconds)),
        )
    )
    return outcome.exit_code


def _marker(path: str) -> ReadyMarker | None:
    try:
        return marker_file.read(path)
    except StagerError:
        return None


def forecast_result(survey: Survey, options: WarmOptions) -> Result:
    """How a warm run would end as far as can be told before reading."""
    results = [result_of(error) or Result.IO_ERROR for error in survey.found.errors]
    results += [
        result_of(look.problem) or Result.IO_ERROR for look in survey.looks if look.problem is not None
    ]
    if survey.proven() and not options.allow_incomplete:
        results.append(Result.CORRUPT)
    if survey.dropping():
        results.append(Result.DROPPED)
    assert survey.plan is not None
    if survey.plan.partial:
        results.append(Result.PARTIAL)
    if any(not look.residency.known.exact for look in survey.looks):
        results.append(Result.UNKNOWN)
    there = sum(look.residency.resident or 0 for look in survey.looks)
    if options.min_resident is not None and there + survey.plan.read < options.min_resident * survey.total:
        results.append(Result.BELOW_MINIMUM)
    return worst(results)


def _sections(survey: Survey, options: WarmOptions, result: Result, seconds: float | None) -> Sections:
    sections: Sections = [("model", tuple(_model_lines(survey)))]
    sections.append(("complete", tuple(_complete_lines(survey))))
    sections.append(("resident", (resident_text(survey.residency), *_origin_lines(survey))))
    sections += [("mount", tuple(_mount_lines(facts, survey, options))) for facts in survey.mounts.values()]
    if survey.admission is not None:
        lines = [
            *describe(survey.admission),
            *([f"hint: {survey.admission.advice}"] if survey.admission.advice else []),
        ]
        if (shown_by := reclaim.proactive()) is not None:
            lines.append(f"this node pages out memory that nobody touches ({shown_by}), see --hold")
        sections.append(("memory", tuple(lines)))
    sections.append(("plan", tuple(_plan_lines(survey, options, seconds))))
    outcome = verdict(result, options.mode)
    told = result is Result.RESIDENT or result.value == outcome.state.value
    because = "" if told else f" ({result.value.replace('_', ' ')})"
    sections.append(
        ("verdict", (f"a run would end {outcome.state.value}{because}, exit {outcome.exit_code}",))
    )
    return sections


def _model_lines(survey: Survey) -> list[str]:
    names = ", ".join(survey.format_names).replace("unknown", "no known format")
    skipped = survey.found.skipped
    passed_over = f"; {count(len(skipped), 'name')} left out" if skipped else ""
    return [f"{names}: {count(len(survey.files), 'file')}, {format_size(survey.total)}{passed_over}"]


def _complete_lines(survey: Survey) -> list[str]:
    if survey.defects:
        lines = [f"{shown(defect.path)}: {defect.what}" for defect in survey.defects[:20]]
        head = "no" if survey.proven() else "nothing proves it incomplete, but"
        return [head, *lines]
    judged_by = "manifest, index and headers" if survey.manifest else "index and headers; no manifest"
    unread = [*survey.found.errors, *(look.problem for look in survey.looks if look.problem is not None)]
    if unread:
        return ["unknown: not everything could be read", *(error.message for error in unread[:20])]
    if "pytorch" in survey.format_names and not survey.manifest:
        return ["nothing speaks against it, but a pickle has no header to judge; no manifest"]
    known = survey.manifest or any(name != "unknown" for name in survey.format_names)
    return [f"yes, by {judged_by}" if known else "unknown: no manifest, and no format that could tell"]


def _origin_lines(survey: Survey) -> list[str]:
    replaced = count(len(survey.replaced()), "file")
    lines = (
        [f"{replaced} replaced since the last run, which would drop the old pages"]
        if survey.replaced()
        else []
    )
    unknown = sum((look.residency.resident or 0) for look in survey.looks if not look.origin_known)
    if unknown:
        lines.append(
            f"{format_size(unknown)} of it of unknown origin: this mount never checks its pages, see --fresh"
        )
    return lines


def _mount_lines(facts: MountFacts, survey: Survey, options: WarmOptions) -> list[str]:
    mount, traits = facts.mount, facts.traits
    lines = [f"{shown(mount.point)} is {mount.fstype} ({shown(mount.source)}), read as {traits.name}"]
    if traits.pattern is Pattern.MEMORY:
        return [*lines, "the files are memory already: nothing to do"]
    if traits.canary:
        why = f" ({facts.why})" if facts.why else ""
        lines.append(f"canary: pages after a second open: {facts.keeps.value}{why}")
    if facts.keeps.hopeless:
        lines.append(f"hint: {traits.remedy}" if traits.remedy else "hint: warming it is useless")
    how = _how(traits.pattern, options.span)
    touch = "populate" if options.protect else "splice"
    lines.append(f"{how}; {traits.start} lanes at first, {options.lanes} at most; touch {touch}")
    buffers = filesystems.daemon_buffers(
        traits, options.lanes, max((file.size for file in survey.files), default=0)
    )
    if buffers:
        lines.append(f"its daemon may buffer up to {format_size(buffers)}, counted at the system level")
    return [*lines, *(f"hint: {line}" for line in (*traits.advice, *filesystems.endpoint_advice(mount)))]


def _how(pattern: Pattern, span: int | None) -> str:
    """How files are read: as the filesystem likes it, or as --span says."""
    if span is None:
        return "pieces of big files" if pattern is Pattern.SPANS else "one handle a file, ascending"
    return "one handle a file, ascending" if span == WHOLE else f"pieces of {span_text(span)}, a handle each"


def _plan_lines(survey: Survey, options: WarmOptions, seconds: float | None) -> list[str]:
    plan = survey.plan
    assert plan is not None
    by_load = options.order is Order.LOAD or (options.order is Order.AUTO and plan.partial)
    order = "in load order" if by_load else "largest first"
    if plan.partial:
        order = f"whole files {order} until one does not fit"
    files = count(len({span.index for span in plan.spans}), "file")
    lines = [f"read {format_size(plan.read)} in {files}, {order}" if plan.read else "read nothing"]
    if plan.skipped:
        lines.append(
            f"{count(len(plan.skipped), 'file')} left out for want of room, first {shown(plan.skipped[0].path)}"
        )
    if not plan.read:
        return lines
    if options.max_rate:
        lines.append(f"about {format_duration(plan.read / options.max_rate)} at --max-rate")
    elif seconds:
        lines.append(
            f"about {format_duration(seconds)} on one lane, by a sample of at most 64 MiB; less with more lanes"
        )
    return lines


def _sample(survey: Survey) -> float | None:
    """Seconds that one lane would need for the plan, from a short real read of what the plan reads first."""
    assert survey.plan is not None
    if not survey.plan.spans:
        return None
    span = max(survey.plan.spans, key=lambda one: one.length)
    kit = SpliceKit()
    try:
        with opened(survey.files[span.index].path) as fd:
            moved, started = 0, time.monotonic()
            while moved < min(_SAMPLE, span.length) and time.monotonic() - started < _SAMPLE_S:
                step = kit.touch(fd, span.offset + moved, span.length - moved)
                if not step:
                    break
                moved += step
            took = time.monotonic() - started
    except OSError:
        return None
    finally:
        kit.close()
    return survey.plan.read * took / moved if moved else None
