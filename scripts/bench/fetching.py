"""The rows of the table of ``scripts/bench-fetch``: what is compared with what, and the bar each must reach."""

import os
import shutil
from statistics import median

from bench import data, fetch_trials
from bench.data import MIB, Stop
from bench.fetch_contest import (
    ARIA2,
    CURL,
    CURL_NULL,
    OSS2,
    STAGER,
    UNVERIFIED,
    VERIFIED,
    middle,
    ratio,
)
from bench.rows import Row

HUGE = 10**9  # bytes of one object of the vast model
VAST = 1000  # objects of the vast model


def _wall(run):
    return run.wall


def _cpu(run):
    return run.cpu


def _phase(run):
    return run.reading or run.wall


def _phase_cpu(run):
    return run.phase_cpu


class Rows:
    """Each method measures one entry of `NAMES` and gives its `Row`s."""

    def __init__(self, contest, folder, notes, *, quick, seed):
        self.contest = contest
        self.folder = folder
        self.notes = notes
        self.quick = quick
        self.seed = seed

    # Pairs

    def _speed(self, what, name, rival, least, of=_wall):
        rounds = self.contest.pair(name, rival)
        share = ratio(rounds, of)
        theirs, ours = (self.contest.size / 1e9 / middle(rounds, side, of) for side in (1, 0))
        bar, passed = (f">= {least:g}x", share >= least) if least else ("", None)
        return Row(what, rival, f"{theirs:.2f} GB/s", f"{ours:.2f} GB/s", f"{share:.2f}x", bar, passed)

    def _cost(self, what, name, rival, most, of=_cpu):
        rounds = self.contest.pair(name, rival)
        share = median(of(ours) / of(theirs) for ours, theirs in rounds)
        gb = self.contest.size / 1e9
        theirs, ours = (middle(rounds, side, of) / gb for side in (1, 0))
        bar, passed = (f"<= {most:g}x", share <= most) if most else ("", None)
        return Row(
            what, rival, f"{theirs:.2f} CPU s/GB", f"{ours:.2f} CPU s/GB", f"{share:.2f}x", bar, passed
        )

    def _lanes(self):
        return f"{self.contest.lanes} connections"

    def row_discard(self):
        """stager's readers and lanes into nothing, against curl -o /dev/null."""
        rows = []
        for name, what, least in ((VERIFIED, "CRC verified", 0.9), (UNVERIFIED, "not verified", None)):
            rows.append(self._speed(f"discard, {self._lanes()}, {what}", name, CURL_NULL, least, of=_phase))
            whole = ratio(self.contest.pair(name, CURL_NULL), _wall)
            self.notes.append(
                f"Discard, {what}: the transfer alone counts, as a small program does it with stager's store and lanes; "
                f"{whole:.2f}x with its interpreter's start and listing."
            )
        return rows

    def row_tmpfs(self):
        """stager fetch into a tmpfs, verified, against curl writing the same files."""
        rounds = self.contest.pair(STAGER, CURL)
        gb = self.contest.size / 1e9
        alone = gb / median(ours.reading for ours, _ in rounds)
        share = median(theirs.wall / ours.reading for ours, theirs in rounds)
        self.notes.append(
            f"Into tmpfs: whole processes; stager's transfer alone, as its summary says, {alone:.2f} GB/s ({share:.2f}x)."
        )
        return [self._speed(f"into tmpfs, {self._lanes()}, verified", STAGER, CURL, 0.9)]

    def row_cpu(self):
        """Client CPU per GB, verified, against curl unverified."""
        return [
            self._cost("CPU into tmpfs, verified, whole process", STAGER, CURL, 1.5),
            self._cost("CPU discard, verified, transfer alone", VERIFIED, CURL_NULL, 1.5, of=_phase_cpu),
            self._cost(
                "CPU discard, not verified, transfer alone", UNVERIFIED, CURL_NULL, None, of=_phase_cpu
            ),
        ]

    def row_rivals(self):
        """stager fetch, verified, against oss2 and aria2c with as many connections, unverified."""
        rows = []
        for rival, least in ((OSS2, 1.5), (ARIA2, 1.0)):
            what = f"into tmpfs, {self._lanes()}, verified"
            if rival == ARIA2 and not shutil.which(ARIA2):
                self.notes.append(f"{rival} is not installed (`apt-get install aria2`).")
                rows.append(Row(what, rival, "not installed", "", "", f">= {least:g}x"))
                continue
            together = self.contest.choose(rival)
            how = f"{together} files at once" if together > 1 else "one file at a time"
            self.notes.append(f"{rival}: {how}, which was the faster of both ways here.")
            rows.append(self._speed(what, STAGER, rival, least))
        return rows

    # One fetch alone

    def row_memory(self):
        """The anonymous memory of all of stager's processes with a vast model."""
        seconds = 1 if self.quick else 20
        with fetch_trials.vast(self.folder, VAST * HUGE) as into:
            argv = self.contest.fetch(
                *("-P", "64", "--no-adapt", "--processes", "2"),
                *("--max-rate", "64MiB" if self.quick else "128MiB"),
                where="oss://bench/huge",
                into=os.path.join(into, "model"),
            )
            found = fetch_trials.memory(argv, seconds, 64, self.contest.server.connections)
        self.contest.say(f"    {found}")
        if found.processes < 3:
            raise Stop(f"only {found.processes} processes, two workers were wanted")
        self.notes.append(
            f"RssAnon: the sum over {found.processes} processes ({found.connections} connections seen), the most from the start until "
            f"{seconds} s after all connections were there, with --max-rate; then it was stopped."
        )
        what = f"RssAnon, 64 connections, 2 workers, {VAST * HUGE / 1e12:g} TB listed"
        return [
            Row(what, "-", "-", f"{found.anon / MIB:.0f} MiB", "-", "<= 250 MiB", 0 < found.anon <= 250 * MIB)
        ]

    def row_faults(self):
        """Every kind of fault in one fetch."""
        size = MIB // 4 if self.quick else 4 * MIB
        found = fetch_trials.faulty(self.contest, os.path.join(self.folder, "faulty"), size)
        most = found.model + found.faults * size
        self.notes.append(
            f"Faults, {fetch_trials.TIMES} of each, on objects of one range of {size / MIB:g} MiB: {', '.join(fetch_trials.KINDS)}."
        )
        ours = f"{'identical' if found.identical else 'DIFFERENT'}, {found.sent / MIB:.0f} of {found.model / MIB:.0f} MiB read"
        bar = f"identical, <= {most / MIB:.0f} MiB"
        passed = found.identical and found.sent <= most
        return [
            Row(
                f"{found.faults} faults in one fetch",
                "-",
                "-",
                ours,
                f"{found.sent / found.model:.2f}x",
                bar,
                passed,
            )
        ]

    def row_kills(self):
        """kill -9 at random moments, then the same command again."""
        times = 2 if self.quick else 20
        rate = f"{2 * self.contest.size}B" if self.quick else None
        found = fetch_trials.kills(self.contest, times, self.seed, most_rate=rate)
        size, one = self.contest.size, self._range()
        most = size // 20 + self.contest.lanes * one
        worst = max(trial.again for trial in found)
        same = all(trial.identical for trial in found)
        self.notes.append(
            f"Kills: {self._lanes()}, ranges of {one // MIB} MiB, every second run with two worker processes, all its processes "
            f"killed at once; --seed {self.seed}. Bytes as the server sent them."
        )
        ours = f"{'identical' if same else 'DIFFERENT'}, at most {worst / MIB:.0f} MiB fetched again"
        what = f"kill -9 at {times} random moments of {size / MIB:.0f} MiB"
        bar = f"identical, <= {most / MIB:.0f} MiB"
        return [Row(what, "-", "-", ours, f"{worst / size:.1%}", bar, same and worst <= most)]

    def _range(self):
        """Bytes of one range, as stager cuts this model; as `stager.core.ranges` has it."""
        even = self.contest.size // (self.contest.lanes * 8)
        return max(16 * MIB, min(64 * MIB, even - even % MIB))


NAMES = {
    "discard": Rows.row_discard,
    "tmpfs": Rows.row_tmpfs,
    "cpu": Rows.row_cpu,
    "rivals": Rows.row_rivals,
    "memory": Rows.row_memory,
    "faults": Rows.row_faults,
    "kills": Rows.row_kills,
}


def model(folder, *, quick):
    """The files that are served, in `folder`; their paths.

    In full they are 8 GiB under 16 names, of four files: long enough that a client's start is little of it, and memory is left for
    what is downloaded.
    """
    if quick:
        return data.weights(folder, 8, 4 * MIB)
    sources = data.weights(f"{folder}-sources", 4, 512 * MIB)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    paths = [os.path.join(folder, f"weights-{number:02}.safetensors") for number in range(16)]
    for number, path in enumerate(paths):
        os.link(sources[number % len(sources)], path)
    return paths
