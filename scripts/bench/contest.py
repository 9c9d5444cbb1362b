"""Cold, undisturbed, paired runs."""

import json
import os
import time
from dataclasses import dataclass, field
from statistics import median

from bench import data, machine, process, rivals
from bench.data import Stop

MOST_DISTURBED = 8
STAGER, PROTECT, FIO = "stager warm", "stager warm --protect", "fio O_DIRECT"
IDLE, RECYCLED, ANY = "idle", "just freed", "any"


@dataclass
class Contest:
    """Runs the contenders. Counts what it had to throw away in `disturbed`.

    A run's memory matters as much as its files. In a virtual machine that gives free memory back to its host, pages that were
    free for some seconds must be fetched again by whoever touches them, and pages that the last run has just freed need
    not: right after another `cat`, `cat` took 0.2 to 0.4 CPU seconds for 4 GiB; after a run that copies nothing, or a few
    seconds later, 2 to 7. So before every run, whoever's it is, the recipe reads the same bytes, which touches every page,
    and they are dropped again; the run follows after `settle` seconds (`IDLE`) or at once (`RECYCLED`).
    `ANY` is for choosing among settings of fio, which needs no memory to speak of.
    """

    folder: str
    stager: str
    rounds: int
    quick: bool
    settle: float
    say: object
    disturbed: int = 0
    strangers: list = field(default_factory=list)
    pairs: dict = field(default_factory=dict)
    best: dict = field(default_factory=dict)

    @property
    def marker(self):
        """Where stager writes its marker: beside the data, never among it."""
        return os.path.join(self.folder, "ready.json")

    def warm(self, folder, *options):
        """The stager command over `folder`."""
        return [
            self.stager,
            "warm",
            folder,
            "--json",
            "--progress",
            "none",
            "--marker",
            self.marker,
            *options,
        ]

    def once(self, name, paths, memory=IDLE):
        """One cold run of the contender `name` over `paths` (a folder's files), repeated while somebody disturbs it."""
        for _ in range(MOST_DISTURBED):
            self._prepare(paths, memory)
            before = machine.cache_drops()
            done = self._run(name, paths)
            if machine.cache_drops() == before and self._worked(name, paths, done):
                self.strangers.append(done.strangers)
                self.say(f"    {name}: {rivals.rate(paths, done.wall):.0f} MiB/s, {done.cpu:.2f} CPU s")
                return done
            self.disturbed += 1
        raise Stop(f"{name}: pages keep getting lost; too little memory, or somebody drops the page cache")

    def _prepare(self, paths, memory):
        data.evict(paths)
        if memory == ANY:
            return
        process.run(rivals.command(rivals.ONE_PASS, os.path.dirname(paths[0])))
        data.evict(paths)
        if memory == IDLE:
            time.sleep(self.settle)
            data.evict(paths)

    def _run(self, name, paths):
        folder = os.path.dirname(paths[0])
        if name == FIO:
            return rivals.run_fio(self.best[folder], paths)
        if name == STAGER:
            return process.run(self.warm(folder))
        if name == PROTECT:
            return process.run(self.warm(folder, "--protect"))
        return process.run(rivals.command(name, folder))

    def _worked(self, name, paths, done):
        """Whether everything that was read is still there. Raises `Stop` for a contender that did not read everything."""
        total = sum(os.path.getsize(path) for path in paths)
        if name in (STAGER, PROTECT) and summary(done)["read"] != total:
            raise Stop(f"{name} read {summary(done)['read']} of {total} bytes")
        return name == FIO or data.resident_sum(paths) == total

    def pair(self, name, rival, paths, memory=IDLE):
        """Rounds of (run of `name`, run of `rival`) in ABBA order; measured once, then kept. Every run has its throw-away run before it."""
        key = (name, rival, paths[0], memory)
        if key not in self.pairs:
            self.say(f"  {name} against {rival}")
            rounds = []
            for number in range(self.rounds):
                order = (rival, name) if number % 2 == 0 else (name, rival)
                done = {one: self.once(one, paths, memory) for one in order}
                rounds.append((done[name], done[rival]))
            self.pairs[key] = rounds
        return self.pairs[key]

    def find_best_fio(self, paths):
        """Choose fio's best setting for `paths`; (setting, median seconds of each by setting)."""
        folder = os.path.dirname(paths[0])
        self.say("  the best of fio's settings")

        def attempt(setting):
            self.best[folder] = setting
            seconds = self.once(FIO, paths, ANY).reading
            self.say(f"      {setting.text}: {rivals.rate(paths, seconds):.0f} MiB/s")
            return seconds

        best, medians = rivals.fastest(rivals.QUICK if self.quick else rivals.SETTINGS, attempt)
        self.best[folder] = best
        return best, medians


def summary(done):
    """The ``warm_summary`` that a stager run printed."""
    lines = [json.loads(line) for line in done.out.splitlines()]
    return next(line for line in lines if line["type"] == "warm_summary")


def ratio(rounds, of):
    """The median over the rounds of rival's `of` divided by ours."""
    return median(of(theirs) / of(ours) for ours, theirs in rounds)


def middle(runs, of):
    """The median of `of` over `runs`."""
    return median(map(of, runs))
