"""A run in Prometheus' text format, version 0.0.4: every family that stager writes, and how a `Record` fills them.

Labels: ``model`` is the PATH or destination, or what the user calls it; ``command`` is what ran. What belongs to a stage has ``stage`` too; a run
over several PATHs reads them together, so there ``model`` names them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stager.core.record import State
from stager.core.units import shown

if TYPE_CHECKING:
    from stager.core.record import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[str, Labels, float]  # the family's name, labels, value


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name, what kind it is, and what it means."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str


FAMILIES = tuple(
    Family(f"stager_{name}", kind, text)  # type: ignore[arg-type]
    for name, kind, text in (
        ("run_info", "gauge", "Always 1; the source of the model, and the version of stager."),
        ("run_started_timestamp_seconds", "gauge", "When the run began, seconds since 1970."),
        ("run_ended_timestamp_seconds", "gauge", "When the run ended, seconds since 1970; absent until then."),
        ("run_seconds", "gauge", "How long the run took, or has taken so far."),
        ("run_exit_code", "gauge", "The exit code; absent until it is known. Pages may still be held then."),
        ("state", "gauge", "1 for the state that the run is in or has ended with, 0 for all others."),
        ("file_errors_total", "counter", "Files that could not be read."),
        ("model_bytes", "gauge", "Size of the model."),
        ("model_files", "gauge", "Files of the model."),
        ("resident_bytes", "gauge", "Bytes of the model in the page cache when last counted; absent where that is unknown."),
        ("resident_exact", "gauge", "1 where the kernel has counted the resident pages, 0 for an estimate or nothing."),
        ("resident_checked_timestamp_seconds", "gauge", "When residency was last counted, seconds since 1970."),
        ("held_bytes", "gauge", "Bytes of the model whose pages are being held."),
        ("evicted_bytes_total", "counter", "Bytes of the model that were dropped from the page cache since warming, as far as was seen."),
        ("brought_back_bytes_total", "counter", "Bytes of those that were dropped and read again while holding."),
        ("stage_bytes", "gauge", "Bytes that the stage has to move."),
        ("stage_done_bytes", "gauge", "Bytes that the stage has done."),
        ("stage_done_files", "gauge", "Files that the stage has done."),
        ("stage_seconds", "gauge", "How long the stage took, or has taken so far."),
        ("stage_lanes", "gauge", "Lanes that the stage uses, or has settled on."),
        ("throughput_bytes_per_second", "gauge", "The stage's rate: of the last seconds while it runs, afterwards of the whole."),
        ("read_bytes_total", "counter", "Bytes that the stage has read from where the model lay; of a pull only once it has ended."),
    )
)  # fmt: skip
"""Every metric, in the order in which they are written."""


def render(record: Record, now: float, *, version: str, name: str = "") -> str:
    """All that is known of `record` at `now` (seconds since 1970) in the text format. `name` stands for all models, if given."""
    rows: dict[str, list[str]] = {family.name: [] for family in FAMILIES}
    for metric, labels, value in _samples(record, now, version, name):
        rows[f"stager_{metric}"].append(f"stager_{metric}{_braces(labels)} {_number(value)}\n")
    return "".join(
        f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n{''.join(rows[family.name])}"
        for family in FAMILIES
        if rows[family.name]
    )


def escape(value: str) -> str:
    """`value` as it stands between the quotes of a label: printable, with backslash and quote escaped."""
    return shown(value).replace("\\", r"\\").replace('"', r"\"")


def _samples(record: Record, now: float, version: str, name: str) -> Iterator[Sample]:
    models = [shown(name)] if name else list(dict.fromkeys(shown(model) for model in record.models))
    for model in models:
        yield from _run(record, now, {"command": record.command, "model": model}, version)
    yield from _pages(record, models)
    together = {"command": record.command, "model": ",".join(models)}
    yield "file_errors_total", together, record.file_errors
    for verb, stage in record.stages.items():
        labels = {**together, "stage": verb}
        yield "stage_bytes", labels, stage.total
        yield "stage_done_bytes", labels, stage.done
        yield "stage_done_files", labels, stage.files
        yield "stage_seconds", labels, stage.seconds
        yield "stage_lanes", labels, stage.lanes
        yield "throughput_bytes_per_second", labels, stage.rate
        if stage.read is not None:
            yield "read_bytes_total", labels, stage.read


def _run(record: Record, now: float, labels: Labels, version: str) -> Iterator[Sample]:
    yield "run_info", {**labels, "source": record.source, "version": version}, 1
    yield "run_started_timestamp_seconds", labels, record.started
    yield "run_seconds", labels, (now if record.ended is None else record.ended) - record.started
    if record.ended is not None:
        yield "run_ended_timestamp_seconds", labels, record.ended
    if record.exit_code is not None:
        yield "run_exit_code", labels, record.exit_code
    for state in State:
        yield "state", {**labels, "state": state.value}, state is record.state


def _pages(record: Record, models: list[str]) -> Iterator[Sample]:
    """What is known of each model's size and pages."""
    of_models: dict[str, list[str]] = {}
    for path in record.pages:
        # One PATH is the model, whatever it is called; of several each goes by its own path.
        model = shown(path) if len(models) > 1 else models[0]
        of_models.setdefault(model, []).append(path)
    for model, paths in of_models.items():
        labels = {"command": record.command, "model": model}
        rows = [record.pages[path] for path in paths]
        yield "model_bytes", labels, sum(row.residency.total for row in rows)
        yield "model_files", labels, sum(row.files for row in rows)
        resident = [row.residency.resident for row in rows]
        if None not in resident:
            yield "resident_bytes", labels, sum(one or 0 for one in resident)
        yield "resident_exact", labels, all(row.residency.known.exact for row in rows)
        if record.looked is not None:
            yield "resident_checked_timestamp_seconds", labels, record.looked
        yield "held_bytes", labels, sum(row.held for row in rows)
        yield "evicted_bytes_total", labels, sum(row.lost for row in rows)
        yield "brought_back_bytes_total", labels, sum(row.brought_back for row in rows)
    if not of_models and record.size is not None:
        labels = {"command": record.command, "model": ",".join(models)}
        yield "model_bytes", labels, record.size
        yield "model_files", labels, record.files or 0


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels.items()) + "}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)
