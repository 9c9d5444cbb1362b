"""What is said about findings: notes on the way, the error at the end. Words only; decisions are made elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stager.core.errors import (
    AccessDenied,
    AnswerNo,
    IntegrityError,
    LocalIOError,
    MountDropsPages,
    ResourceRefused,
    StagerError,
)
from stager.core.events import Failure, Note
from stager.core.outcome import Result, Verdict
from stager.core.units import count, format_size, shown
from stager.node import reclaim

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.options import WarmOptions
    from stager.jobs.survey import Survey

_KINDS: dict[Result, tuple[type[StagerError], str]] = {
    Result.UNKNOWN: (AnswerNo, "run stager as the files' owner, or without --strict"),
    Result.LOST: (AnswerNo, "something else needs this memory; see `stager check` for the limits"),
    Result.PARTIAL: (
        ResourceRefused,
        "see `stager check` for what to write in the YAML, or run without --strict",
    ),
    Result.BELOW_MINIMUM: (AnswerNo, "see `stager check` for what limits it"),
    Result.DROPPED: (MountDropsPages, "mount it differently, or run without --strict"),
    Result.UNREADABLE: (
        AccessDenied,
        "run stager as a user who may read them, or leave them out with --exclude",
    ),
    Result.IO_ERROR: (LocalIOError, "see the errors above; what could be read was warmed"),
    Result.CORRUPT: (IntegrityError, "download it again; `--allow-incomplete` warms it as it is"),
}


def failure_of(result: Result, outcome: Verdict, reason: str, error: StagerError | None) -> Failure | None:
    """The last error line of a run that ended with `result`; None when its exit code is 0."""
    if outcome.exit_code == 0:
        return None
    if error is not None:
        return Failure.of(error)
    kind, hint = _KINDS[result]
    return Failure.of(kind(reason or result.value.replace("_", " "), hint=hint))


def note_defects(survey: Survey, reporter: Reporter) -> None:
    """Name what is wrong with the checkpoint."""
    for defect in survey.defects[:20]:
        code = "incomplete" if defect.proven else "checkpoint"
        reporter.emit(Note("warning", code, f"{shown(defect.path)}: {defect.what}"))
    if len(survey.defects) > 20:
        reporter.emit(
            Note("warning", "checkpoint", f"and {len(survey.defects) - 20} more findings of this kind")
        )


def note_findings(survey: Survey, options: WarmOptions, reporter: Reporter) -> None:
    """Say what the survey found that a person should know before bytes are read."""
    for error in survey.found.errors:
        reporter.emit(Note("warning", "unreadable", error.message, error.hint))
    for look in survey.looks:
        if look.problem is not None:
            reporter.emit(Note("warning", "unreadable", look.problem.message, look.problem.hint))
    _note_mounts(survey, options, reporter)
    _note_origin(survey, reporter)
    _note_memory(survey, options, reporter)
    _note_reclaim(reporter)


def _note_mounts(survey: Survey, options: WarmOptions, reporter: Reporter) -> None:
    for facts in survey.mounts.values():
        where = f"`{shown(facts.mount.point)}` ({facts.traits.name})"
        if facts.keeps.hopeless:
            read = "it is read all the same (--anyway)" if options.anyway else "nothing is read from it"
            message = f"{where} drops a file's pages when the file is opened; {read}"
            reporter.emit(Note("warning", "mount_drops_pages", message, facts.traits.remedy or None))
        elif facts.keeps.value == "unknown":
            why = f" ({facts.why})" if facts.why else ""
            reporter.emit(Note("warning", "mount_unknown", f"whether {where} keeps pages is unknown{why}"))


def _note_origin(survey: Survey, reporter: Reporter) -> None:
    replaced = survey.replaced()
    if replaced:
        names = ", ".join(shown(file.entry.path) for file in replaced[:3]) + (
            " ..." if len(replaced) > 3 else ""
        )
        message = (
            f"{count(len(replaced), 'file')} replaced since the last run, old pages are dropped: {names}"
        )
        reporter.emit(Note("info", "replaced", message))
    unknown = sum((look.residency.resident or 0) for look in survey.looks if not look.origin_known)
    if unknown:
        reporter.emit(
            Note(
                "warning",
                "unknown_origin",
                f"{format_size(unknown)} were resident before this run on a mount that never checks its pages: if the "
                "model was replaced under the same names they may be the old model's",
                "`--fresh` drops them and reads the files again",
            )
        )


def _note_reclaim(reporter: Reporter) -> None:
    shown_by = reclaim.proactive()
    if shown_by is not None:
        message = (
            f"this node pages out memory that nobody touches ({shown_by}): warmed pages go by themselves"
        )
        reporter.emit(
            Note(
                "info", "proactive_reclaim", message, "`--hold` brings them back until the engine has loaded"
            )
        )


def _note_memory(survey: Survey, options: WarmOptions, reporter: Reporter) -> None:
    admission = survey.admission
    assert admission is not None
    if not admission.fits:
        message = f"only {format_size(admission.granted)} of {format_size(admission.need)} fit in memory"
        reporter.emit(Note("warning", "partial", message, admission.advice or None))
    elif admission.displaces:
        message = f"{format_size(admission.displaces)} of other files' clean cache will go"
        reporter.emit(Note("info", "displaces", message))
    if options.protect:
        message = (
            f"--protect: {format_size(admission.granted)} enter as used pages, which outlive later streams of reads; "
            "the kubelet counts such pages as used memory, so the node's memory.available falls by as much"
        )
        reporter.emit(Note("info", "protect", message))
