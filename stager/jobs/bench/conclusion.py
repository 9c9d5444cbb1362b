"""The end of a benchmark, also of one that was cut short: from its runs to its cells and the whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stager.core.bench.plan import ENGINES, LOADED, SAFETENSORS
from stager.core.bench.reports import COLD, WARM, BenchCell, BenchResults, BenchSummary
from stager.core.bench.stats import make_cell, runs_of
from stager.core.bench.sweep_table import sweep_table
from stager.core.bench.table import table
from stager.jobs.bench.sweep import verdicts

if TYPE_CHECKING:
    from stager.core.bench.plan import Trial
    from stager.core.bench.reports import BenchMachine
    from stager.jobs.bench.benchmark import BenchOptions
    from stager.jobs.bench.trial import Trials

_LIMITS = (
    "caches behind this node's page cache (a FUSE daemon's, a server's, a hypervisor's): cold means that no page was resident here",
    "copies into a GPU, or into an engine's own memory: loaders touch or read every byte and keep none",
)
_LIMITS_TO = {
    "cpu": (
        _LIMITS[0],
        "copies into a GPU; into an engine's own memory only `safetensors` copies: other loaders touch or read every byte and keep none",
    ),
    "cuda": (_LIMITS[0],),
}
_LIMITS_ENGINE = (
    "how soon an engine that says it is ready gives its first token; files that it reads besides these"
)
_UNPROVEN = "the cold run before it did not count"


def conclusion(
    options: BenchOptions,
    trials: Trials,
    planned: Sequence[Trial],
    machine: BenchMachine,
    *,
    began: str,
    seconds: float,
    ended: str,
) -> BenchResults:
    """What `trials` have measured of what was `planned`. `ended` says why that is not all, empty when it is; `seconds` is how long it took."""
    runs = tuple(trials.runs)
    states = (COLD,) if options.sweep is not None else (COLD, WARM)
    cells = tuple(_cell(trials, one, state, ended) for one in planned for state in states)
    sweeps = verdicts(trials, cells) if options.sweep is not None else ()
    storages = tuple(ground.storage for ground in trials.grounds)
    methods = tuple(dict.fromkeys(one.method for one in planned))
    summary = BenchSummary(
        machine=machine,
        storages=storages,
        methods=methods,
        loaders=options.loaders,
        rounds=options.rounds,
        quick=options.quick,
        to=options.to,
        began=began,
        seconds=seconds,
        runs=sum(run.counts for run in runs),
        disturbed=sum(run.disturbed for run in runs),
        failed=sum(bool(run.failed) for run in runs),
        unmeasured=sum(cell.seconds is None for cell in cells),
        limits=_limits(methods, options.to),
        command=options.command,
        folder=_here(),
        report=os.path.abspath(options.report) if options.report else "",
        ended=ended,
        engine=options.engine.told if options.engine is not None else None,
        table=table(storages, cells) if options.sweep is None else sweep_table(storages, cells, sweeps),
    )
    return BenchResults(summary, runs, cells, sweeps)


def _limits(methods: Sequence[str], to: str) -> tuple[str, ...]:
    """What no cell of a benchmark by `methods` can say."""
    usual = _LIMITS_TO.get(to, _LIMITS) if SAFETENSORS in methods else _LIMITS
    if not any(method in ENGINES for method in methods):
        return usual
    loads = any(method in LOADED for method in methods)
    return (*(usual if loads else _LIMITS[:1]), _LIMITS_ENGINE)


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""  # it was removed meanwhile


def _cell(trials: Trials, trial: Trial, state: str, ended: str) -> BenchCell:
    storage = trials.grounds[trial.storage].storage
    kind = (storage.path, trial.method, state, trial.loaders, trial.file, trial.setting)
    runs = runs_of(trials.runs, *kind)
    why = trials.why_not(trial, state)
    if not runs and not why:
        why = ended or _UNPROVEN
    return make_cell(
        storage.path,
        storage.filesystem,
        trial.method,
        state,
        trial.loaders,
        file=trial.file,
        runs=runs,
        unmeasured=why,
        setting=trial.setting,
    )
