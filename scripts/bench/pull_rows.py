"""The rows of the table of ``scripts/bench-pull``: what is compared with what, and the bar each must reach."""

import hashlib
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench import data, pull_contest, pull_mount, pull_trials
from bench.data import MIB, Stop
from bench.process import run
from bench.pull_contest import PULL, READ, SHA, TIMEOUT_S, VENDOR, WRITE, Contest, Place
from bench.pull_mount import RCLONE, S3FS
from bench.pull_servers import Away, Hub, Sink
from bench.rows import Row

HUB_RATE, STORE_RATE = 400 * 10**6, 350 * 10**6  # bytes per second of the slow servers, each in all
FAR = Away(
    0.03, 80e6
)  # hub and store of the mounts: seconds before an answer, bytes per second of a connection and of a copy
HUGE = 200 * 10**9
# sha256 of that many zeros, which takes minutes to compute
HUGE_SHA256 = "7b9359a4ac835afcfd69b7034e998b64bd5c6880595800c5037ac3eab3283483"
BUFFER, KILL_BUFFER = 512 * MIB, 128 * MIB
SLACK = 150 * MIB  # of anonymous memory beyond the buffer
FLAT = 1.05  # the second half of a pull may have so many times the memory of the first
DOWNLOAD = "modelscope download --local_dir"


@dataclass
class Sizes:
    """How much is moved. Bytes."""

    count: int = 8
    each: int = 10**9
    kill_each: int = 256 * 10**6
    mount_each: int = 256 * 10**6
    fault: int = 5 * MIB // 4  # more than what a hub gives out by itself
    parts: int = 20
    huge: int = HUGE
    kills: int = 20
    kill_rate: float = 400e6

    @classmethod
    def quick(cls):
        """Tiny ones."""
        return cls(8, 4 * MIB, 17 * MIB, 4 * MIB, 5 * MIB // 4, 0, 10**9, 2, 60e6)


class Rows:
    """Each method measures one entry of `NAMES` and gives its `Row`s. Servers are started when first needed; `close` ends them."""

    def __init__(self, stager, folder, disk, rounds, notes, say, *, sizes, lanes, seed):
        self.stager, self.folder, self.disk = stager, folder, disk
        self.rounds, self.notes, self.say = rounds, notes, say
        self.sizes, self.lanes, self.seed = sizes, lanes, seed
        self.stack = ExitStack()
        self._places, self._contest, self._mounted = {}, None, []

    def close(self):
        """Ends the servers."""
        self.stack.close()

    @property
    def strangers(self):
        """Cores' worth of user-mode CPU that others than the client took in the runs of the pairs."""
        return self._contest.strangers if self._contest else []

    def rounds_told(self):
        """Every run of every pair, fit for JSON."""
        pairs = [(pace, rounds) for (_, pace), rounds in self._contest.runs.items()] if self._contest else []
        pairs += self._mounted
        return [
            {"pace": pace, "rounds": [{name: _told(done) for name, done in one.items()} for one in rounds]}
            for pace, rounds in pairs
        ]

    # What is pulled, and between which servers

    @property
    def contest(self):
        """The model of the paired rows: two files under many names."""
        if self._contest is None:
            source = os.path.join(self.folder, "model")
            made = data.weights(f"{source}-files", 2, self.sizes.each)
            os.makedirs(source)
            for number in range(self.sizes.count):
                os.link(made[number % 2], os.path.join(source, f"weights-{number:02}.safetensors"))
            self._contest = self._contest_of("bench/model", source)
        return self._contest

    def _contest_of(self, repo, source):
        return Contest(self.stager, repo, source, self.folder, self.disk, self.rounds, self.lanes, self.say)

    def place(self, pace):
        """The hub and the discarding store of the paired rows: ``slow`` at `HUB_RATE` and `STORE_RATE`, or as fast as they can."""
        if pace not in self._places:
            rates = (HUB_RATE, STORE_RATE) if pace == "slow" else (None, None)
            contest = self.contest
            hub = self.stack.enter_context(Hub(self.stager, (contest.source, contest.repo), rate=rates[0]))
            room = os.path.join(self.folder, f"{pace}-store")
            sink = self.stack.enter_context(Sink(self.stager, room, discard=True, rate=rates[1]))
            self._places[pace] = Place(pace, hub, sink)
        return self._places[pace]

    def _what(self, contest):
        each = max(contest.sizes.values())
        text = f"{each / MIB:g} MiB" if each % 10**6 else f"{each / 10**6:g} MB"
        text = f"{each / 1e9:g} GB" if each >= 10**9 else text
        return f"{len(contest.names)} x {text}"

    # Pairs

    def row_throttled(self):
        """Hub to store, verified, both throttled, against the slower side alone with as many connections."""
        rounds = self.contest.turns((PULL, READ, WRITE), self.place("slow"))
        slower = max((READ, WRITE), key=lambda name: median(one[name].wall for one in rounds))
        share = median(one[slower].wall / one[PULL].wall for one in rounds)
        alone = median(one[slower].reading / one[PULL].reading for one in rounds)
        theirs, ours = (self._rate(rounds, name) for name in (slower, PULL))
        other = READ if slower == WRITE else WRITE
        self.notes.append(
            f"Throttled: the hub gives {HUB_RATE / 1e6:.0f} MB/s in all, the store takes {STORE_RATE / 1e6:.0f} MB/s; {other} "
            f"{self._rate(rounds, other):.0f} MB/s. Whole processes count; {alone:.2f}x when neither's start and end do."
        )
        what = f"{self._what(self.contest)}, verified, both sides throttled, {self.lanes} connections"
        figures = [f"{theirs:.0f} MB/s", f"{ours:.0f} MB/s"]
        return [Row(what, slower, *figures, f"{share:.2f}x", ">= 0.95x", share >= 0.95)]

    def _rate(self, rounds, name):
        return self.contest.size / 1e6 / median(one[name].wall for one in rounds)

    def row_cpu(self):
        """Client CPU per GB with sha256 and CRC-64, against reading, writing and sha256 alone together."""
        rounds = self.contest.turns((PULL, READ, WRITE, SHA), self.place("fast"))
        gb = self.contest.size / 1e9
        parts = {name: median(one[name].phase_cpu for one in rounds) / gb for name in (READ, WRITE, SHA)}
        sums = [sum(one[name].phase_cpu for name in parts) for one in rounds]
        shares = [one[PULL].phase_cpu / whole for one, whole in zip(rounds, sums, strict=True)]
        entire = median(one[PULL].cpu / whole for one, whole in zip(rounds, sums, strict=True))
        self.notes.append(
            f"CPU, seconds per GB: {', '.join(f'{name} {took:.2f}' for name, took in parts.items())}, each its transfer alone; of stager "
            f"without what the same command takes when all is there. Its whole process: {entire:.2f}x."
        )
        ours = median(one[PULL].phase_cpu for one in rounds) / gb
        figures = [f"{sum(parts.values()):.2f} CPU s/GB", f"{ours:.2f} CPU s/GB"]
        share, what = median(shares), "client CPU, both directions, sha256 and CRC-64"
        rival = f"{READ} + {WRITE} + {SHA}"
        return [Row(what, rival, *figures, f"{share:.2f}x", "<= 1.3x", share <= 1.3)]

    def row_vendor(self):
        """End to end against the SDK's download to a disk and oss2's upload of that."""
        rounds = self.contest.turns((PULL, VENDOR), self.place("fast"))
        share = median(one[VENDOR].wall / one[PULL].wall for one in rounds)
        halves = [median(one[VENDOR].halves[at] for one in rounds) for at in (0, 1)]
        self.notes.append(
            f"The vendor's way: {halves[0]:.1f} s for the download, {halves[1]:.1f} s for the upload (its CRC on, "
            f"parts of 16 MiB), which reads from the page cache."
        )
        what = f"{self._what(self.contest)}, hub to store, verified"
        figures = [f"{self._rate(rounds, name):.0f} MB/s" for name in (VENDOR, PULL)]
        disk = [max(one[name].blocks_out for one in rounds) * 512 for name in (VENDOR, PULL)]
        texts = [f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size} bytes" for size in disk]
        return [
            Row(what, VENDOR, *figures, f"{share:.1f}x", ">= 8x", share >= 8),
            Row("written to a disk meanwhile", VENDOR, *texts, "", "0 bytes", disk[1] == 0),
        ]

    # A mount

    def row_mount(self):
        """Into FUSE mounts of an object store, against the SDK's download into them."""
        if why := pull_mount.missing(RCLONE) or pull_mount.missing(S3FS):
            raise Stop(why)
        many = self._mount_contest("mounted", 8, self.sizes.mount_each)
        few = self._mount_contest("mounted-few", 2, self.sizes.each)
        free = Away(FAR.latency, FAR.rate, copies=False)
        self.notes.append(
            f"The mounts are as their daemons make them by default; what s3fs buffers lies in memory. Far: hub and store answer after "
            f"{FAR.latency * 1000:.0f} ms, each connection takes and gives {FAR.rate / 1e6:.0f} MB/s, and so fast goes each copy that the "
            "store makes by itself: a rename on such a mount is one, and the kernel lets those in one folder wait for each other. Near: as "
            "fast as the machine. A run ends when the store has all bytes, by its own CRC-64."
        )
        rows = [
            self._mount_row(many, RCLONE, FAR, "an rclone mount, far", 5),
            self._mount_row(few, RCLONE, FAR, "an rclone mount, far", 5),
            self._mount_row(many, RCLONE, free, "an rclone mount, far, copies for nothing"),
            self._mount_row(many, S3FS, FAR, "an s3fs mount, far"),
            self._mount_row(many, S3FS, None, "an s3fs mount, near, copies for nothing"),
        ]
        for contest in (many, few):
            for source in (contest.source, f"{contest.source}-files"):
                shutil.rmtree(source)
        return rows

    def _mount_contest(self, name, count, each):
        """The contest of `count` files, two under many names."""
        source = os.path.join(self.folder, name)
        made = data.weights(f"{source}-files", 2, each)
        os.makedirs(source)
        for number in range(count):
            os.link(made[number % 2], os.path.join(source, f"weights-{number:02}.safetensors"))
        return self._contest_of(f"bench/{name}", source)

    def _mount_row(self, contest, kind, away, where, bar=None):
        self.say(f"  {self._what(contest)} into {where}")
        wanted = {
            f"model/{name}": one for name, one in pull_contest.sums(self.stager, contest.source).items()
        }
        rounds = []
        with Hub(self.stager, (contest.source, contest.repo), away=away) as hub:
            place = Place(where, hub, hub)
            for number in range(self.rounds):
                order = (PULL, DOWNLOAD) if number % 2 == 0 else (DOWNLOAD, PULL)
                rounds.append(
                    {name: self._into_mount(contest, name, place, kind, away, wanted) for name in order}
                )
        self._mounted.append((f"mount: {self._what(contest)} into {where}", rounds))
        share = median(one[DOWNLOAD].wall / one[PULL].wall for one in rounds)
        speeds = [
            f"{contest.size / 1e6 / median(one[name].wall for one in rounds):.0f} MB/s"
            for name in (DOWNLOAD, PULL)
        ]
        verdict = (f">= {bar:g}x", share >= bar) if bar else ("", None)
        return Row(f"{self._what(contest)} into {where}", DOWNLOAD, *speeds, f"{share:.1f}x", *verdict)

    def _into_mount(self, contest, name, place, kind, away, wanted):
        """One run, its end when the store has all bytes. What is not copied in parts can be thrown away."""
        fuse = os.path.join(self.folder, "fuse")
        with pull_mount.mounted(self.stager, fuse, kind, away=away, discard=kind == RCLONE) as mount:
            into = os.path.join(mount.point, "model")
            argv = contest.pull(place, into) if name == PULL else contest.download(place, into)
            done = run(argv, timeout=TIMEOUT_S)
            done.wall += mount.arrived(wanted)
        self.say(f"    {name}: {contest.size / 1e6 / done.wall:.0f} MB/s, {done.cpu:.2f} CPU s")
        return done

    # One pull alone

    def row_memory(self):
        """The anonymous memory of a pull of one huge file."""
        size = self.sizes.huge
        sha = HUGE_SHA256 if size == HUGE else _sha256_of_zeros(size)
        with (
            Hub(self.stager, zeros=[("bench/huge/weights.bin", size, sha)]) as hub,
            Sink(self.stager, os.path.join(self.folder, "huge"), discard=True) as sink,
        ):
            place, options = Place("fast", hub, sink), ["--buffer", f"{BUFFER // MIB}MiB"]
            argv = pull_contest.pull(self.stager, place, "bench/huge", "oss://bench/huge/", *options)
            found = pull_trials.memory(argv, timeout=TIMEOUT_S)
        most = max(found.first, found.second)
        flat = found.second <= FLAT * found.first
        self.notes.append(
            f"RssAnon, sampled 20 times a second: at most {found.first / MIB:.0f} MiB in the first half of {found.done['seconds']:.0f} s, "
            f"{found.second / MIB:.0f} MiB in the second; verified by {found.done['verified'] or 'nothing'}."
        )
        what, bar = f"RssAnon, one file of {size / 1e9:g} GB", BUFFER + SLACK
        limit = f"<= {bar / MIB:.0f} MiB, flat"
        return [Row(what, "-", "-", f"{most / MIB:.0f} MiB", "-", limit, 0 < most <= bar and flat)]

    def row_kills(self):
        """kill -9 at random moments, then the same command again."""
        sizes, source = self.sizes, os.path.join(self.folder, "killed")
        data.weights(source, 8, sizes.kill_each)
        contest = self._contest_of("bench/killed", source)
        rate = sizes.kill_rate
        with (
            Hub(self.stager, (source, contest.repo), rate=rate) as hub,
            Sink(self.stager, os.path.join(self.folder, "kept"), rate=rate) as sink,
        ):
            options = ["-P", self.lanes, "--buffer", f"{KILL_BUFFER // MIB}MiB"]
            found = pull_trials.kills(contest, Place("slow", hub, sink), sizes.kills, self.seed, *options)
        shutil.rmtree(source)
        worst, most = max(one.again for one in found), contest.size // 20 + KILL_BUFFER
        self.notes.append(
            f"Kills: both servers at {rate / 1e6:.0f} MB/s, --buffer {KILL_BUFFER // MIB}MiB, all its processes killed at once; --seed "
            f"{self.seed}. Bytes as the store received them, those of requests that were cut short among them."
        )
        what = f"kill -9 at {sizes.kills} random moments of {contest.size / MIB:.0f} MiB"
        ours = f"identical, at most {worst / MIB:.0f} MiB sent again"
        bar = f"identical, <= {most / MIB:.0f} MiB"
        return [Row(what, "-", "-", ours, f"{worst / contest.size:.1%}", bar, worst <= most)]

    def row_faults(self):
        """Every kind of fault on each side in one pull."""
        sizes = self.sizes
        found = pull_trials.faulty(self.stager, os.path.join(self.folder, "faulty"), sizes.fault, sizes.parts)
        hub, store = (sum(found.faults[side].values()) for side in ("hub", "store"))
        self.notes.append(
            f"Faults, at least {pull_trials.TIMES} of each: at the hub {', '.join(pull_trials.HUB_KINDS)}; at the store "
            f"{', '.join(pull_trials.STORE_KINDS)}. Of {found.model / MIB:.0f} MiB the hub sent {found.sent / MIB:.0f}, the store got "
            f"{found.got / MIB:.0f}."
        )
        what = f"{hub} faults at the hub and {store} at the store in one pull"
        return [Row(what, "-", "-", "identical", "-", "identical", passed=True)]


def _told(done):
    return {"wall": done.wall, "cpu": done.cpu, "transfer": done.reading, "blocks_out": done.blocks_out}


def _sha256_of_zeros(size):
    digest, block = hashlib.sha256(), bytes(MIB)
    for at in range(0, size, MIB):
        digest.update(block[: min(MIB, size - at)])
    return digest.hexdigest()


NAMES = {
    "throttled": Rows.row_throttled,
    "cpu": Rows.row_cpu,
    "vendor": Rows.row_vendor,
    "mount": Rows.row_mount,
    "memory": Rows.row_memory,
    "kills": Rows.row_kills,
    "faults": Rows.row_faults,
}
