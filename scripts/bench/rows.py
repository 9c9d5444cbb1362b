"""The rows of the table: what is compared with what, and the bar each must reach."""

import os
import shlex
from dataclasses import dataclass
from statistics import median

from bench import contest, data, machine, process, rivals, survival
from bench.contest import FIO, PROTECT, STAGER
from bench.data import MIB, Stop
from bench.rivals import ONE_PASS, TWO_PASS, VMTOUCH


@dataclass
class Row:
    """One line of the table; `passed` is None for lines without a bar and for what could not be measured."""

    what: str
    rival: str
    theirs: str
    ours: str
    ratio: str
    bar: str = ""
    passed: bool | None = None


def _wall(run):
    return run.wall


def _cpu(run):
    return run.cpu


def _reading(run):
    return run.reading


def _speed(what, rival, rounds, paths, *, bar="", passed=None):
    theirs, ours = (
        rivals.rate(paths, contest.middle([pair[side] for pair in rounds], _wall)) for side in (1, 0)
    )
    ratio = contest.ratio(rounds, _wall)
    verdict = passed(ratio) if passed else None
    return Row(what, rival, f"{theirs:.0f} MiB/s", f"{ours:.0f} MiB/s", f"{ratio:.2f}x", bar, verdict)


def _cost(what, rival, rounds, *, most=None):
    theirs, ours = (contest.middle([pair[side] for pair in rounds], _cpu) for side in (1, 0))
    share = median(ours.cpu / theirs.cpu for ours, theirs in rounds)
    bar, passed = (f"<= {most:g}x", share <= most) if most else ("", None)
    return Row(f"{what}: CPU", rival, f"{theirs:.2f} s", f"{ours:.2f} s", f"{share:.2f}x", bar, passed)


class Rows:
    """Each method measures one entry of `NAMES` and gives its `Row`s."""

    def __init__(self, ring, notes):
        self.ring = ring
        self.notes = notes
        self.unit = 64 * MIB if ring.quick else 512 * MIB
        self._fio = {}

    # The data

    @property
    def eight(self):
        return data.weights(os.path.join(self.ring.folder, "eight"), 8, self.unit)

    @property
    def one(self):
        return data.weights(os.path.join(self.ring.folder, "one"), 1, 8 * self.unit)

    def _label(self, paths):
        size = os.path.getsize(paths[0]) // MIB
        return f"{len(paths)} x {size // 1024} GiB" if size >= 1024 else f"{len(paths)} x {size} MiB"

    # Cold reads

    def row_eight(self):
        """Eight files, default touch, against the one-pass recipe."""
        rows = self._default(self.eight, 1.5, only_saturated=True)
        pair = self.ring.pair(STAGER, ONE_PASS, self.eight)
        return [*rows, _cost(self._label(self.eight), ONE_PASS, pair, most=0.4)]

    def row_one(self):
        """One big file, default touch, against the one-pass recipe."""
        rows = self._default(self.one, 2.5, only_saturated=False)
        return [*rows, _cost(self._label(self.one), ONE_PASS, self.ring.pair(STAGER, ONE_PASS, self.one))]

    def _default(self, paths, least, *, only_saturated):
        """Passes at `least` times the recipe, or at 0.95 of fio's best (`only_saturated`: where `least` times the recipe
        is more than fio can get out of this disk, so that the recipe saturates it already)."""
        rounds = self.ring.pair(STAGER, ONE_PASS, paths)
        ratio = contest.ratio(rounds, _wall)
        bar, passed = f">= {least:g}x", ratio >= least
        if not passed and (disk := self._against_fio(paths)):
            share, reach = disk
            bar = f">= {least:g}x or >= 0.95x fio's best (is {share:.2f}x)"
            saturated = contest.middle([theirs for _, theirs in rounds], _wall) < least * reach
            passed = share >= 0.95 and (saturated or not only_saturated)
        return [_speed(self._label(paths), ONE_PASS, rounds, paths, bar=bar, passed=lambda _: passed)]

    def _against_fio(self, paths):
        """(stager's share of fio's best throughput, fio's seconds for its reading phase); None without fio."""
        if not rivals.have_fio():
            return None
        folder = os.path.dirname(paths[0])
        if folder not in self.ring.best:
            best, medians = self.ring.find_best_fio(paths)
            listed = ", ".join(
                f"{one.text} {rivals.rate(paths, taken):.0f}" for one, taken in medians.items()
            )
            self.notes.append(
                f"fio on {self._label(paths)}, MiB/s while reading: {listed}. Best: {best.text}."
            )
        rounds = self.ring.pair(STAGER, FIO, paths)
        share = median(theirs.reading / ours.wall for ours, theirs in rounds)
        return share, contest.middle([theirs for _, theirs in rounds], _reading)

    def row_direct(self):
        """Both against O_DIRECT fio: its reading phase alone against the whole stager process."""
        return [self._direct(paths) for paths in (self.eight, self.one)]

    def _direct(self, paths):
        what = f"{self._label(paths)}, against the disk"
        if not rivals.have_fio():
            self.notes.append("fio is not installed (`apt-get install fio`).")
            return Row(what, FIO, "not installed", "", "")
        share, seconds = self._against_fio(paths)
        rounds = self.ring.pair(STAGER, FIO, paths)
        ours = contest.middle([pair[0] for pair in rounds], _wall)
        whole = contest.ratio(rounds, _wall)
        phase = median(theirs.reading / contest.summary(ours)["seconds"] for ours, theirs in rounds)
        self.notes.append(
            f"{what}: {whole:.2f}x when fio's start and end count too, as stager's do; {phase:.2f}x when neither's do."
        )
        figures = [f"{rivals.rate(paths, taken):.0f} MiB/s" for taken in (seconds, ours)]
        name = f"{FIO}, {self.ring.best[os.path.dirname(paths[0])].text}"
        return Row(what, name, *figures, f"{share:.2f}x", ">= 0.95x", share >= 0.95)

    def row_protect(self):
        """Both with --protect against the one-pass recipe."""
        rows = []
        for paths in (self.eight, self.one):
            rounds = self.ring.pair(PROTECT, ONE_PASS, paths)
            what = f"{self._label(paths)} --protect"
            bar = {"bar": ">= 1.1x", "passed": lambda ratio: ratio >= 1.1}
            rows += [_speed(what, ONE_PASS, rounds, paths, **bar), _cost(what, ONE_PASS, rounds)]
        return rows

    def row_recycled(self):
        """The default touch against the one-pass recipe in memory that was freed just before."""
        rows = []
        for paths in (self.eight, self.one):
            rounds = self.ring.pair(STAGER, ONE_PASS, paths, contest.RECYCLED)
            what = f"{self._label(paths)}, memory just freed"
            rows += [_speed(what, ONE_PASS, rounds, paths), _cost(what, ONE_PASS, rounds)]
        return rows

    def row_rivals(self):
        """The recipe that reads twice, and vmtouch."""
        rows = []
        for paths in (self.eight, self.one):
            for rival in (TWO_PASS, VMTOUCH):
                if rivals.command(rival, "") is None:
                    self.notes.append(f"{rival} is not installed (`apt-get install vmtouch`).")
                    continue
                rounds = self.ring.pair(STAGER, rival, paths)
                rows += [_speed(self._label(paths), rival, rounds, paths)]
                rows += [_cost(self._label(paths), rival, rounds)]
        return rows

    # Survival

    def row_survival(self):
        """What a stream of reads leaves of a warmed file."""
        what = "survives a stream of reads"
        if why := survival.possible():
            return [Row(what, "", "", f"not run: {why}", "")]
        kept = data.weights(os.path.join(self.ring.folder, "kept"), 1, self.unit // 2)
        stream, folder = self.eight, os.path.dirname(kept[0])
        contenders = [
            (ONE_PASS, rivals.command(ONE_PASS, folder)),
            (TWO_PASS, rivals.command(TWO_PASS, folder)),
            (STAGER, self.ring.warm(folder)),
            (PROTECT, self.ring.warm(folder, "--protect")),
        ]
        limit, size = max(2 * self.unit, 256 * MIB), os.path.getsize(kept[0])
        self.notes.append(
            f"Survival: {size // MIB} MiB are warmed in a memory cgroup of {limit // MIB} MiB, then {8 * self.unit // MIB} MiB "
            f"are read through it; medians; reclaim is {machine.lru()}."
        )
        left = {}
        for name, argv in contenders:
            each = [survival.survivors(argv, kept, stream, limit) for _ in range(self.ring.rounds)]
            left[name] = int(median(survivors for _, survivors in each))
            self.ring.say(
                f"    {name}: {', '.join(str(survivors // MIB) for _, survivors in each)} MiB survive"
            )
            if (least := min(after for after, _ in each)) < size:
                raise Stop(f"{name} left only {least // MIB} MiB resident in its cgroup")
        return [self._surviving(what, left, name, size) for name in (STAGER, PROTECT)]

    def _surviving(self, what, left, name, size):
        figures = [f"{left[one] // MIB} of {size // MIB} MiB" for one in (ONE_PASS, name)]
        rival = f"{ONE_PASS} (read twice: {left[TWO_PASS] // MIB} MiB)"
        bar, passed = "", None
        if name == PROTECT:
            bar, passed = ">= 90 % survive", left[name] >= 0.9 * size
        return Row(f"{name} {what}", rival, *figures, f"{left[name] / size:.0%}", bar, passed)

    # Nothing to read

    def row_resident(self):
        """Everything resident: what is left is looking."""
        want = (1 if self.ring.quick else 15) * 10**9
        # A quarter of what is available stays free, else looking would evict what is looked at.
        size = min(want, int(0.75 * machine.available() + data.resident_sum([*self.eight, *self.one])))
        real = [*self.eight, *self.one]
        rest = max(0, size - sum(map(os.path.getsize, real)))
        count = 8
        filler = data.sparse(os.path.join(self.ring.folder, "resident"), count, rest // count) if rest else []
        paths = [*real, *filler]
        total = sum(map(os.path.getsize, paths))
        if size < want:
            self.notes.append(f"Everything resident: memory allows {total / 1e9:.1f} of {want / 1e9:.0f} GB.")
        if rest:
            self.notes.append(
                f"Everything resident: {rest / 1e9:.1f} of the {total / 1e9:.1f} GB are sparse files."
            )
        folders = sorted({os.path.dirname(path) for path in paths})
        argv = [*self.ring.warm(folders[0]), *folders[1:]]
        bare = [self._interpreter(), "-c", "pass"]
        try:
            pairs = [self._look(argv, bare, number, paths) for number in range(self.ring.rounds + 1)][1:]
        finally:
            data.evict(paths)
        more = median(ours.wall - theirs.wall for ours, theirs in pairs)
        figures = [
            f"{contest.middle([pair[side] for pair in pairs], _wall) * 1000:.0f} ms" for side in (1, 0)
        ]
        what = f"{total / 1e9:.1f} GB resident, nothing read"
        return [Row(what, "bare interpreter", *figures, f"+{more * 1000:.0f} ms", "<= +500 ms", more <= 0.5)]

    def _look(self, argv, bare, number, paths):
        """One round: (stager's run over `paths`, all resident, the bare interpreter's), in ABBA order."""
        for _ in range(contest.MOST_DISTURBED):
            _make_resident(paths)
            done = {one[1]: process.run(one) for one in ((bare, argv) if number % 2 else (argv, bare))}
            ours = done[argv[1]]
            if not contest.summary(ours)["read"]:
                return ours, done[bare[1]]
            self.ring.disturbed += 1
        raise Stop("stager reads although all is resident")

    def row_memory(self):
        """stager's own anonymous memory with a huge plan."""
        count, size = (24, 10**8) if self.ring.quick else (600, 10**9)
        paths = data.sparse(os.path.join(self.ring.folder, "huge"), count, size)
        folder, budget = os.path.dirname(paths[0]), f"{256 if self.ring.quick else 2048}MiB"
        try:
            data.evict(paths)
            argv = self.ring.warm(folder, "-P", "16", "--no-adapt", "--budget", budget)
            done = process.run(argv, sample=True, check=False)
            if not contest.summary(done)["read"]:
                raise Stop(f"nothing was read within --budget {budget}:\n{done.out}{done.err}")
        finally:
            data.evict(paths)
        self.ring.say(f"    RssAnon {done.anon / MIB:.0f} MiB, VmHWM {done.peak / MIB:.0f} MiB")
        read = contest.summary(done)["read"] / MIB
        what = f"RssAnon, {count * size / 1e9:.0f} GB planned, -P 16, {read:.0f} MiB read"
        ours = f"{done.anon / MIB:.0f} MiB (VmHWM {done.peak / MIB:.0f} MiB)"
        return [Row(what, "-", "-", ours, "-", "<= 100 MiB", 0 < done.anon <= 100 * MIB)]

    # Start-up

    def _interpreter(self):
        """The Python that runs stager, from the command's first line."""
        with open(self.ring.stager, encoding="utf-8", errors="replace") as file:
            words = shlex.split(file.readline().removeprefix("#!"))
        if not words or not os.access(words[0], os.X_OK):
            raise Stop(f"{self.ring.stager} does not name its interpreter")
        return words[-1] if os.path.basename(words[0]) != "env" else words[1]

    def row_start(self):
        """``stager --help`` and ``stager ready`` against the same interpreter doing nothing."""
        small = data.weights(os.path.join(self.ring.folder, "small"), 1, MIB)
        process.run(self.ring.warm(os.path.dirname(small[0])))
        bare = [self._interpreter(), "-c", "pass"]
        ready = [self.ring.stager, "ready", "--marker", self.ring.marker]
        commands = [bare, [self.ring.stager, "--help"], ready]
        times = {index: [] for index in range(3)}
        for number in range(1 + (3 if self.ring.quick else 15)):
            for index in (0, 1, 2) if number % 2 else (2, 1, 0):
                taken = process.run(commands[index]).wall
                if number:
                    times[index].append(taken)
        self.notes.append(
            f"Bare interpreter: `{' '.join(map(shlex.quote, bare))}`, site packages included, as stager's own."
        )
        rows = []
        for index, what, most in ((1, "stager --help", 100), (2, "stager ready", 40)):
            more = median(1000 * (ours - theirs) for ours, theirs in zip(times[index], times[0], strict=True))
            figures = [f"{1000 * median(times[one]):.0f} ms" for one in (0, index)]
            rows.append(
                Row(what, "bare interpreter", *figures, f"+{more:.0f} ms", f"<= +{most} ms", more <= most)
            )
        return rows


def _make_resident(paths):
    """Read what is missing of `paths`. Raises `Stop` when it does not stay."""
    for _ in range(contest.MOST_DISTURBED):
        missing = [path for path in paths if data.resident(path) < os.path.getsize(path)]
        if not missing:
            return
        for path in missing:
            process.run(["sh", "-c", 'cat "$0" >/dev/null', path])
    raise Stop("too little memory: pages do not stay")


NAMES = {
    "eight": Rows.row_eight,
    "one": Rows.row_one,
    "protect": Rows.row_protect,
    "survival": Rows.row_survival,
    "direct": Rows.row_direct,
    "recycled": Rows.row_recycled,
    "rivals": Rows.row_rivals,
    "resident": Rows.row_resident,
    "memory": Rows.row_memory,
    "start": Rows.row_start,
}
