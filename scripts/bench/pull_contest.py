"""Runs of `stager pull` and of what it is compared with, in turn, on the same model between the same servers."""

import json
import os
import shutil
from dataclasses import dataclass, field

from bench import fetch_contest, process
from bench.data import MIB, Stop

CLIENT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "pull_client.py")
PULL, READ, WRITE, SHA = "stager pull", "reading alone", "writing alone", "sha256 alone"
VENDOR = "modelscope download, then oss2.resumable_upload"
OSS2_THREADS = 8
SHA_THREADS = 4
TIMEOUT_S = 3600.0


def client(stager, *words):
    """The command of one of the programs in `CLIENT`."""
    return [fetch_contest.interpreter(stager), "-P", CLIENT, *map(str, words)]


def pull(stager, place, repo, dest, *options):
    """The command of ``stager pull`` of the repository `repo` at a place's hub."""
    fixed = ["--json", "--progress", "none"]
    return ["env", *place.environment, stager, "pull", repo, dest, *fixed, *map(str, options)]


def proven(stager, sink, prefix, folder, *, how="crcs"):
    """Raises `Stop` unless the objects below `prefix` are the files of `folder`, by size and CRC-64, or byte for byte (``compare``)."""
    argv = client(stager, how, sink.endpoint, "bench", prefix, folder)
    differing = json.loads(process.run(argv, timeout=TIMEOUT_S).out)["differing"]
    if differing:
        raise Stop(f"{prefix}{differing[0]} is not what the hub has")


def sums(stager, folder):
    """{name: [size, CRC-64]} of the files of `folder`."""
    return json.loads(process.run(client(stager, "sums", folder), timeout=TIMEOUT_S).out)


def modelscope(stager):
    """The SDK's command, beside the interpreter of stager. Raises `Stop`."""
    beside = os.path.join(os.path.dirname(fetch_contest.interpreter(stager)), "modelscope")
    found = beside if os.access(beside, os.X_OK) else shutil.which("modelscope")
    if not found:
        raise Stop("modelscope is not installed: run scripts/test once, or `pip install modelscope`")
    return found


@dataclass
class Place:
    """A hub and a store, and the environment of their clients. `pace` is ``slow`` or ``fast``."""

    pace: str
    hub: object
    sink: object

    @property
    def environment(self):
        """For ``env``."""
        return [f"MODELSCOPE_ENDPOINT={self.hub.endpoint}", f"OSS_ENDPOINT={self.sink.endpoint}"]


@dataclass
class Contest:
    """Lets clients move the files of `source` (which the hub has as the repository `repo`) with `lanes` connections each way.

    `scratch` is a folder in memory, `disk` one on a disk, `homes` where SDKs keep their own things. Everything that went into a store is compared
    with the source by size and CRC-64.
    """

    stager: str
    repo: str
    source: str
    scratch: str
    disk: str
    rounds: int
    lanes: int
    say: object
    strangers: list = field(default_factory=list)
    runs: dict = field(default_factory=dict)
    number: int = 0

    def __post_init__(self):
        self.names = sorted(os.listdir(self.source))
        self.sizes = {name: os.path.getsize(os.path.join(self.source, name)) for name in self.names}
        self.size = sum(self.sizes.values())

    def pull(self, place, dest, *options):
        """The command of ``stager pull``."""
        return pull(self.stager, place, self.repo, dest, *options)

    def download(self, place, folder, *options):
        """The command of ``modelscope download``."""
        homes = os.path.join(self.scratch, "homes")
        own = [f"HOME={homes}", f"MODELSCOPE_CACHE={homes}/cache", *place.environment]
        return ["env", *own, modelscope(self.stager), "download", self.repo, "--local_dir", folder, *options]

    def once(self, name, place):
        """One run of the contender `name`; `reading` and `phase_cpu` are of its transfer alone."""
        self.number += 1
        prefix = f"run-{self.number:03}/"
        done = self.vendor(place, prefix) if name == VENDOR else self._plain(name, place, prefix)
        if name in (PULL, VENDOR):
            proven(self.stager, place.sink, prefix, self.source)
        self.strangers.append(done.strangers)
        self.say(f"    {name}: {self.size / MIB / done.wall:.0f} MiB/s, {done.cpu:.2f} CPU s")
        return done

    def _plain(self, name, place, prefix):
        done = process.run(self.command(name, place, prefix), timeout=TIMEOUT_S)
        if name == PULL:
            found = summary(done)
            if found["pulled"] != self.size or not found["complete"]:
                raise Stop(f"{name} pulled {found['pulled']} of {self.size} bytes: {found['reason']}")
            # The same command again has nothing to do: what it takes is start-up and looking, and not the transfer's.
            again = process.run(self.command(name, place, prefix), timeout=TIMEOUT_S)
            if summary(again)["pulled"]:
                raise Stop(f"{name} pulled {summary(again)['pulled']} bytes again")
            done.reading, done.phase_cpu = found["seconds"], done.cpu - again.cpu
            return done
        found = json.loads(done.out.splitlines()[-1])
        if found["bytes"] != self.size:
            raise Stop(f"{name} moved {found['bytes']} of {self.size} bytes")
        done.reading, done.phase_cpu = found["seconds"], found["cpu"]
        return done

    def command(self, name, place, prefix):
        """The argument list of a contender that is one process."""
        each = max(self.sizes.values())
        if name == PULL:
            return self.pull(place, f"oss://bench/{prefix}", "-P", self.lanes, "--no-adapt")
        if name == READ:
            listing = os.path.join(self.scratch, "urls")
            with open(listing, "w", encoding="utf-8") as file:
                file.writelines(f"{place.hub.url(self.repo, one)} {self.sizes[one]}\n" for one in self.names)
            return client(self.stager, "read", listing, self.lanes)
        if name == WRITE:
            words = [place.sink.endpoint, "bench", prefix, self.lanes, len(self.names), each]
            return client(self.stager, "write", *words)
        return client(self.stager, "sha", SHA_THREADS, len(self.names), each)

    def vendor(self, place, prefix):
        """The vendor's way over a disk, as one run: its two commands one after the other."""
        folder = os.path.join(self.disk, "model")
        try:
            first = process.run(self.download(place, folder), timeout=TIMEOUT_S)
            self.same(folder)
            paths = [os.path.join(folder, name) for name in self.names]
            words = ["upload", place.sink.endpoint, "bench", prefix, OSS2_THREADS, *paths]
            second = process.run(client(self.stager, *words), timeout=TIMEOUT_S)
        finally:
            for path in (folder, f"{folder}.oss2"):
                shutil.rmtree(path, ignore_errors=True)
        second.halves = first.wall, second.wall
        second.wall += first.wall
        second.cpu += first.cpu
        second.blocks_out += first.blocks_out
        second.strangers = max(first.strangers, second.strangers)
        return second

    def same(self, folder):
        """Raises `Stop` unless all files are in `folder` with their sizes."""
        for name, size in self.sizes.items():
            path = os.path.join(folder, name)
            if not os.path.exists(path) or os.path.getsize(path) != size:
                raise Stop(f"modelscope download left `{name}` out or incomplete")

    def turns(self, names, place):
        """Rounds of one run of each of `names`, in this order and backwards in turn; measured once, then kept. {name: run} a round."""
        key = (tuple(names), place.pace)
        if key not in self.runs:
            self.say(f"  {', '.join(names)} ({place.pace} servers)")
            rounds = []
            for number in range(self.rounds):
                order = names if number % 2 == 0 else names[::-1]
                rounds.append({name: self.once(name, place) for name in order})
            self.runs[key] = rounds
        return self.runs[key]


def summary(done):
    """The ``pull_summary`` that a stager run printed. Raises `Stop` when there is none."""
    return told(done.out, done.out + done.err)


def told(out, said):
    """The same in the lines `out`; `said` is for the error."""
    for line in out.splitlines():
        if line.startswith("{") and (found := json.loads(line))["type"] == "pull_summary":
            return found
    raise Stop(f"stager pull said nothing of its end:\n{said[-1000:]}")
