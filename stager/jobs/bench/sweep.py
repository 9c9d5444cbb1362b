"""The sweep of a benchmark: fixed settings of ``stager warm`` from cold, beside what it does by itself, the best ones in turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stager.core.bench.plan import WARMING, Trial, in_round
from stager.core.bench.reports import COLD
from stager.core.bench.stats import make_cell, runs_of
from stager.core.bench.sweep import (
    first_pass,
    patience,
    quick_sweep_sample,
    runs_at_most,
    settings_of,
    worth_another,
)
from stager.core.bench.verdict import judge
from stager.jobs.bench.ground import Ground

if TYPE_CHECKING:
    from stager.core.bench.quick import Rates, Sample
    from stager.core.bench.reports import BenchCell
    from stager.core.bench.sweep import Grid
    from stager.core.bench.verdict import BenchSweep
    from stager.jobs.bench.ground import StoreGround
    from stager.jobs.bench.trial import Trials


@dataclass
class Sweep:
    """Sweeps the grounds of `trials` over `grid`; what is near the best is measured `rounds` times, with less patience when `quick`. Its cells are those of cold runs alone."""

    grid: Grid
    trials: Trials
    rounds: int
    quick: bool = False
    _tried: Counter[Trial] = field(default_factory=Counter)

    def plan(self) -> list[Trial]:
        """All trials: of each storage what warm does by itself, then its settings."""
        return [trial for at, ground in enumerate(self.trials.grounds) for trial in self._of(at, ground)]

    def _of(self, index: int, ground: Ground | StoreGround) -> list[Trial]:
        if not isinstance(ground, Ground):
            return []
        sizes = [ground.wanted(file) or file.size for file in ground.files]
        settings = settings_of(sizes, self.grid)
        return [Trial(index, WARMING, 1, setting=setting) for setting in (None, *settings)]

    def at_most(self) -> int:
        """About how many runs there will be, if none is thrown away."""
        grounds = range(len(self.trials.grounds))
        return sum(
            runs_at_most(len(self._of(at, self.trials.grounds[at])) - 1, self.rounds) for at in grounds
        )

    def quick_sample(self, sizes: Sequence[int], rates: Rates, seconds: float) -> Sample:
        """Which files of a storage, of these `sizes`, can be swept in so many seconds, at such `rates`."""
        settings = len(settings_of(sizes, self.grid))
        return quick_sweep_sample(sizes, settings, self.rounds, rates, seconds)

    async def measure(self) -> bool:
        """Every setting once, then those that are worth it and what warm does by itself again, in turns; whether there was time for all."""
        for at, ground in enumerate(self.trials.grounds):
            planned = {trial.setting: trial for trial in self._of(at, ground)}
            settings = [setting for setting in planned if setting is not None]
            await self._pass([planned[setting] for setting in first_pass(settings)] if planned else [], 1)
            number = 2
            while again := self._owed(list(planned.values())):
                await self._pass(in_round(again, number), number)
                number += 1
        return not self.trials.cut

    async def _pass(self, trials: Sequence[Trial], number: int) -> None:
        for trial in trials:
            self.trials.patience = self._patience(trial)
            await self.trials.run(trial, number, states=(COLD,))
            self._tried[trial] += 1

    def _patience(self, trial: Trial) -> float | None:
        """As long as the fastest run of its storage asks; without end for what warm does by itself."""
        storage = self.trials.grounds[trial.storage].storage.path
        took = [run.seconds for run in self.trials.runs if run.storage == storage and run.counts]
        return patience(min(took), quick=self.quick) if took and trial.setting is not None else None

    def _owed(self, planned: Sequence[Trial]) -> list[Trial]:
        """What is to be measured once more: settings that are near the best or even with it by what is known now, and what warm does by itself."""
        cells = [self._cell(trial) for trial in planned]
        near = worth_another(cells)
        if cells:
            found = judge(self.trials.grounds[planned[0].storage].storage, cells, self.trials.runs, ())
            near += [
                one.setting for one in (found.best, *found.even) if one and one.setting and not found.assumed
            ]
        wanted = [trial for trial in planned if trial.setting is None or trial.setting in near]
        return [trial for trial in wanted if self._tried[trial] < self.rounds]

    def _cell(self, trial: Trial) -> BenchCell:
        storage = self.trials.grounds[trial.storage].storage
        runs = runs_of(self.trials.runs, storage.path, trial.method, COLD, 1, "", trial.setting)
        return make_cell(
            storage.path,
            storage.filesystem,
            trial.method,
            COLD,
            1,
            file="",
            runs=runs,
            setting=trial.setting,
        )


def verdicts(trials: Trials, cells: Sequence[BenchCell]) -> tuple[BenchSweep, ...]:
    """What a sweep by `trials` has found of each storage, with `cells` made of its runs."""
    return tuple(
        judge(
            ground.storage,
            [cell for cell in cells if cell.storage == ground.storage.path],
            trials.runs,
            ["stager", "warm", *ground.selected_words()],
        )
        for ground in trials.grounds
        if isinstance(ground, Ground)
    )
