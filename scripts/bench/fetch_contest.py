"""Paired runs of clients that download the same objects."""

import json
import os
import shlex
import shutil
from dataclasses import dataclass, field
from statistics import median

from bench import process
from bench.data import MIB, Stop

CLIENT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "fetch_client.py")
STAGER, VERIFIED, UNVERIFIED = "stager fetch", "stager's lanes, CRC", "stager's lanes, no CRC"
CURL_NULL, CURL = "curl -o /dev/null", "curl"
OSS2, ARIA2 = "oss2.resumable_download", "aria2c"


def interpreter(stager):
    """The Python that runs `stager`, from the command's first line. Raises `Stop` when it names none."""
    with open(stager, encoding="utf-8", errors="replace") as file:
        words = shlex.split(file.readline().removeprefix("#!"))
    if not words or not os.access(words[0], os.X_OK):
        raise Stop(f"{stager} does not name its interpreter")
    return words[-1] if os.path.basename(words[0]) != "env" else words[1]


def client(stager, *words):
    """The command of one of the programs in `CLIENT`."""
    return [interpreter(stager), "-P", CLIENT, *words]


@dataclass
class Contest:
    """Lets clients download `keys` of `server`, `size` bytes in all, those that write into the new folder `into`, with `lanes` connections.

    Before every run that writes, a throw-away writer fills and frees as much memory: the pages that a run touches are then those that
    somebody has just given back, whoever's turn it is.
    """

    server: object
    keys: list
    source: str  # the folder that holds the same bytes
    stager: str
    into: str
    rounds: int
    lanes: int
    say: object
    strangers: list = field(default_factory=list)
    pairs: dict = field(default_factory=dict)
    best: dict = field(default_factory=dict)
    compared: set = field(default_factory=set)

    def __post_init__(self):
        self.size = sum(os.path.getsize(self.path(key)) for key in self.keys)

    def path(self, key):
        """The file that holds the object's bytes."""
        return os.path.join(self.source, os.path.basename(key))

    @property
    def where(self):
        """The objects' folder as stager is told."""
        return f"oss://bench/{os.path.dirname(self.keys[0])}"

    # The clients

    def fetch(self, *options, where=None, into=None, endpoint=None):
        """The command of ``stager fetch``; its marker lies beside the files."""
        return [
            *[self.stager, "fetch", where or self.where, into or self.into],
            *["--endpoint", endpoint or self.server.endpoint, "--region", "cn-test"],
            *["--json", "--progress", "none", "--marker", f"{into or self.into}.ready.json", *options],
        ]

    def command(self, name):
        """The argument list of the client `name`."""
        urls = [self.server.url(key) for key in self.keys]
        if name == STAGER:
            return self.fetch("-P", str(self.lanes), "--no-adapt", "--processes", "1", "--reserve", "512MiB")
        if name in (VERIFIED, UNVERIFIED):
            check = "crc" if name == VERIFIED else "nocrc"
            return client(self.stager, "discard", self.server.endpoint, self.where, str(self.lanes), check)
        if name in (CURL, CURL_NULL):
            return self._curl(urls, [None if name == CURL_NULL else self._target(key) for key in self.keys])
        if name == OSS2:
            words = [self.server.endpoint, "bench", self.into, str(self.lanes), str(self._together(name))]
            return client(self.stager, "oss2", *words, *self.keys)
        return self._aria2(urls, self._together(name))

    def _target(self, key):
        return os.path.join(self.into, os.path.basename(key))

    def _curl(self, urls, targets):
        """As many processes as lanes, each with its one kept connection: --parallel has one thread for all of them."""
        line = []
        for lane in range(self.lanes):
            mine = [
                word
                for url, target in list(zip(urls, targets, strict=True))[lane :: self.lanes]
                for word in ("-o", target or "/dev/null", url)
            ]
            if mine:
                line.append(shlex.join(["curl", "-q", "-sS", "-f", "--fail-early", "--noproxy", "*", *mine]))
        names = [f"p{at}" for at in range(len(line))]
        started = "\n".join(f"{one} & {name}=$!" for name, one in zip(names, line, strict=True))
        return ["sh", "-c", f"{started}\n" + " && ".join(f"wait ${name}" for name in names)]

    def _aria2(self, urls, together):
        each = str(max(1, self.lanes // together))
        return [
            *["aria2c", "--no-conf", "--quiet", "--file-allocation=none", "--auto-file-renaming=false"],
            *["--no-proxy=127.0.0.1", "-k", "1M", "-x", each, "-s", each, "-j", str(together)],
            *["-d", self.into, "-Z", *urls],
        ]

    def _together(self, name):
        return self.best.get(name, 1)

    # Runs

    def once(self, name):
        """One run of the client `name`; `reading` holds the seconds of its transfer alone, where it tells."""
        writes = name not in (VERIFIED, UNVERIFIED, CURL_NULL)
        self.clear()
        if writes:
            self._recycle()
        os.makedirs(self.into)
        done = process.run(self.command(name))
        if writes:
            self._check(name)
        self._note(name, done)
        self.strangers.append(done.strangers)
        alone = f", {self.size / MIB / done.reading:.0f} alone" if done.reading else ""
        self.say(f"    {name}: {self.size / MIB / done.wall:.0f} MiB/s{alone}, {done.cpu:.2f} CPU s")
        self.clear()
        return done

    def _note(self, name, done):
        done.phase_cpu = done.cpu
        if name == STAGER:
            found = summary(done)
            if found["fetched"] != self.size:
                raise Stop(f"{name} fetched {found['fetched']} of {self.size} bytes")
            done.reading = found["seconds"]
        elif name in (VERIFIED, UNVERIFIED):
            found = json.loads(done.out.splitlines()[-1])
            if found["bytes"] != self.size:
                raise Stop(f"{name} read {found['bytes']} of {self.size} bytes")
            done.reading, done.phase_cpu = found["seconds"], found["cpu"]
        elif name == OSS2:
            done.reading = json.loads(done.out.splitlines()[-1])["seconds"]

    def clear(self):
        """Removes what was downloaded, so that its memory is free."""
        for path in (self.into, f"{self.into}.oss2"):
            shutil.rmtree(path, ignore_errors=True)

    def _recycle(self):
        os.makedirs(self.into)
        process.run(["sh", "-c", 'head -c "$0" /dev/zero >"$1"', str(self.size), f"{self.into}/pages"])
        self.clear()

    def _check(self, name):
        """Raises `Stop` unless the files are there; their bytes are compared after the first run."""
        for key in self.keys:
            target = self._target(key)
            if not os.path.exists(target) or os.path.getsize(target) != os.path.getsize(self.path(key)):
                raise Stop(f"{name} left `{target}` out or incomplete")
        if name not in self.compared:
            self.compared.add(name)
            differing = different(self.source, self.into, map(os.path.basename, self.keys))
            if differing:
                raise Stop(f"{name} made {differing[0]} other than it is")

    def choose(self, name):
        """Whether the rival `name` is faster with its connections in one file at a time or spread over files; kept in `best`."""
        if name not in self.best:
            times = {}
            for together in (1, self.lanes):
                self.best[name] = together
                times[together] = self.once(name).wall
            self.best[name] = min(times, key=times.__getitem__)
        return self.best[name]

    def pair(self, name, rival):
        """Rounds of (run of `name`, run of `rival`) in ABBA order; measured once, then kept."""
        key = (name, rival)
        if key not in self.pairs:
            self.say(f"  {name} against {rival}")
            rounds = []
            for number in range(self.rounds):
                order = (rival, name) if number % 2 == 0 else (name, rival)
                done = {one: self.once(one) for one in order}
                rounds.append((done[name], done[rival]))
            self.pairs[key] = rounds
        return self.pairs[key]


def different(one, other, names):
    """Those of `names` whose bytes are not the same in the folders `one` and `other`."""
    return [name for name in names if not _same(os.path.join(one, name), os.path.join(other, name))]


def _same(one, other):
    if not os.path.exists(other) or os.path.getsize(one) != os.path.getsize(other):
        return False
    with open(one, "rb", buffering=0) as left, open(other, "rb", buffering=0) as right:
        while block := left.read(4 * MIB):
            if block != right.read(4 * MIB):
                return False
    return True


def summary(done):
    """The ``fetch_summary`` that a stager run printed. Raises `Stop` when there is none."""
    for line in done.out.splitlines():
        found = json.loads(line)
        if found["type"] == "fetch_summary":
            return found
    raise Stop(f"stager fetch said nothing of its end:\n{done.out}{done.err}")


def ratio(rounds, of):
    """The median over the rounds of rival's `of` divided by ours."""
    return median(of(theirs) / of(ours) for ours, theirs in rounds)


def middle(rounds, side, of):
    """The median of `of` over one side of the rounds."""
    return median(of(pair[side]) for pair in rounds)
