"""One start of the engine on each storage before anything is measured: it shows that the command works, and fills the engine's own caches.

An engine's program, its libraries, and what it compiles and keeps are not the storage's: without this the first run would pay for them alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from stager.core.bench.plan import ENGINES
from stager.core.bench.reports import COLD, WARM
from stager.core.errors import AnswerNo
from stager.core.events import Note
from stager.core.units import format_duration, shown
from stager.engine import runtime
from stager.jobs.bench.engine import GRACE_S
from stager.jobs.bench.ground import StoreGround, new_folder
from stager.jobs.bench.trial import tried

if TYPE_CHECKING:
    from stager.core.bench.plan import Trial
    from stager.engine.report import Reporter
    from stager.jobs.bench.ground import Ground
    from stager.jobs.bench.methods import Methods, Took
    from stager.jobs.bench.trial import Trials


_FAILED = "try the command by itself, or give it longer with --engine-timeout"
_CHANGED = "measure files that CMD only reads"


async def rehearse(trials: Trials, planned: Sequence[Trial], reporter: Reporter) -> None:
    """Start the engine of `planned` once for each storage; where it fails, `trials` start it no more.

    Raises `AnswerNo` where it fails for every storage.
    """
    there = {one.storage: one for one in planned if one.method in ENGINES}
    able = [
        index for index, one in there.items() if not all(trials.why_not(one, now) for now in (COLD, WARM))
    ]
    last, hint = "", ""
    for index in able:
        if trials.over:
            return
        ground = trials.grounds[index]
        took = await _once(trials.methods, ground, trials.until)
        where = shown(ground.storage.path)
        why = f"the engine could not be started there: {took.failed}" if took.failed else ""
        hint = _FAILED
        if not why and index in trials.inventories:
            changed = await runtime.in_thread(f"looking at {where}", trials.inventories[index].changed)
            why = f"the engine changes what is to be measured there: {changed}" if changed else ""
            hint = _CHANGED
        if why and not trials.over:
            trials.refused[index] = last = why
            if len(able) > 1:
                reporter.emit(Note("warning", "engine", f"{where}: {last}"))
        elif not why:
            text = f"{where}: a first start, which is not counted, took {format_duration(took.seconds)}"
            reporter.emit(Note("info", "engine", text))
            if took.killed:
                text = f"the engine did not end within {format_duration(GRACE_S)} of SIGTERM and was killed: so long goes by after each start"
                reporter.emit(Note("warning", "engine", text))
    if able and all(index in trials.refused for index in able):
        raise AnswerNo(last.replace(" there:", ":"), hint=hint)


async def _once(methods: Methods, ground: Ground | StoreGround, until: float | None) -> Took:
    where = shown(ground.storage.path)
    if not isinstance(ground, StoreGround):
        start = partial(tried, partial(methods.start, ground.storage.path, ground.total, until))
        return await runtime.in_thread(f"starting the engine on {where}", start)
    folder = new_folder(ground.into)
    methods.children.remove(folder)
    try:
        fetch = partial(tried, partial(methods.fetch, ground, folder, until))
        fetched = await runtime.in_thread(f"fetching {where}", fetch)
        if fetched.failed:
            return fetched
        start = partial(tried, partial(methods.start, folder, ground.total, until))
        return await runtime.in_thread("starting the engine", start)
    finally:
        with runtime.sheltered(10.0):
            remove = partial(shutil.rmtree, folder, ignore_errors=True)
            await runtime.in_thread("removing what was fetched", remove)
