"""What is asked of one fetch alone: its memory, and how it stands faults and being killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from bench import process
from bench.data import MIB, Stop
from bench.fetch_contest import different, interpreter, summary
from bench.fetch_server import DIRECT

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
_SAMPLE_S = 0.05
_START_S = 60
_END_S = 30

TIMES = 20
READ_TIMEOUT_S = 1
# What happens to one GET of an object, given the object's size. Those after which the connection is silent outlast --read-timeout.
KINDS = {
    "reset": {},
    "close": {},
    "drop": {},
    "unavailable": {"seconds": 1},
    "error": {},
    "expired": {},
    "wrong-crc": {},
    "corrupt": {},
    "slow": {"rate": None},
    "stall": {"seconds": 3 * READ_TIMEOUT_S},
    "hang": {"seconds": 3 * READ_TIMEOUT_S},
    "whole": {},
    "wrong-range": {},
    "changed": {},
}


class Lab:
    """The look-alike server of the tests as a process, with `folders` (folder, prefix) as objects of the bucket ``bench``."""

    def __init__(self, stager, *folders):
        key = os.environ["OSS_ACCESS_KEY_ID"], os.environ["OSS_ACCESS_KEY_SECRET"]
        words = [
            "--bucket",
            "bench",
            "--region",
            "cn-test",
            "--access-key-id",
            key[0],
            "--access-key-secret",
            key[1],
            "--metadata",
        ]
        for folder, prefix in folders:
            words += ["--serve", f"{folder}={prefix}"]
        self._process = subprocess.Popen(
            [interpreter(stager), "-m", "tests.osslab", "--lifeline", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        line = self._process.stdout.readline()
        if not line:
            self.__exit__()
            raise Stop("the look-alike server (tests/osslab) does not start; stderr says why")
        told = json.loads(line)
        self.endpoint, self._metadata = told["endpoint"], told["metadata"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    @contextmanager
    def role(self):
        """Processes started meanwhile have the keys of an instance's role, which can be renewed, and no others."""
        before = dict(os.environ)
        os.environ.pop("OSS_ACCESS_KEY_ID")
        os.environ.pop("OSS_ACCESS_KEY_SECRET")
        os.environ["STAGER_ECS_METADATA_URL"] = self._metadata
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def control(self, method, what, body=None):
        """One request on its control path."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/_lab/{what}", data, method=method)
        with DIRECT.open(request, timeout=60) as answer:
            return json.loads(answer.read())

    def sent(self):
        """Bytes of objects that it has handed to the kernel."""
        return self.control("GET", "counters")["bytes_sent"]


# Memory


@dataclass
class Memory:
    """The most that was seen at once: bytes of RssAnon of all processes, processes, connections."""

    anon: int = 0
    processes: int = 0
    connections: int = 0

    def see(self, pid, connections):
        """One more look at the processes of `pid`."""
        self.anon = max(self.anon, anonymous(pid))
        self.processes = max(self.processes, len(family(pid)))
        self.connections = max(self.connections, connections)


@contextmanager
def vast(folder, size):
    """A new folder with room for `size` bytes, most of which nobody writes: ext4 on a loop device over a file with holes.

    Raises `Stop` where that cannot be had.
    """
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        raise Stop("needs root and mkfs.ext4 for a filesystem with room for the model")
    image, point = os.path.join(folder, "vast.img"), os.path.join(folder, "vast")
    with open(image, "wb") as file:
        file.truncate(size + size // 8)
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    # No journal, few inodes, nothing initialised: a second instead of minutes.
    make = ["-q", "-F", "-m", "0", "-N", "8192", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"]
    os.makedirs(point)
    mounted = False
    try:
        process.run(["env", f"PATH={path}", "mkfs.ext4", *make, image])
        process.run(["mount", "-o", "loop,noinit_itable", image, point])
        mounted = True
        yield point
    finally:
        end = time.monotonic() + _END_S
        while mounted and time.monotonic() < end:  # what was killed a moment ago may still have files open
            mounted = process.run(["umount", point], check=False).code != 0
            time.sleep(_SAMPLE_S if mounted else 0)
        os.unlink(image)
        with suppress(OSError):
            os.rmdir(point)


def memory(argv, seconds, wanted, connections):
    """`Memory` of `argv` and what it starts, from its start until `seconds` after `connections()` first gave `wanted`; then it is stopped."""
    found = Memory()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0)
        try:
            started, first = time.monotonic(), None
            while child.poll() is None and (first is None or time.monotonic() - first < seconds):
                found.see(child.pid, connections())
                if first is None and found.connections >= wanted:
                    first = time.monotonic()
                elif first is None and time.monotonic() - started > _START_S:
                    raise Stop(f"only {found.connections} of {wanted} connections after {_START_S} s")
                time.sleep(_SAMPLE_S)
            if child.poll() is not None:
                said.seek(0)
                raise Stop(
                    f"the fetch ended by itself with {child.returncode}:\n{said.read().decode('utf-8', 'replace')}"
                )
            child.terminate()
            child.wait(_END_S)
        finally:
            kill_group(child)
    return found


def family(pid):
    """`pid` and all its descendants."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                parents.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
    found, new = [], [pid]
    while new:
        found += new
        new = [child for parent in new for child in parents.get(parent, [])]
    return found


def anonymous(pid):
    """Bytes of RssAnon of `pid` and all its descendants now."""
    return sum(map(_anon, family(pid)))


def _anon(pid):
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def kill_group(child):
    """Ends the process group of `child`, and waits for it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


# Faults


@dataclass
class Faulty:
    """One fetch that met `faults`: bytes of the model, bytes sent, whether the result is byte for byte the source."""

    faults: int
    model: int
    sent: int
    identical: bool
    done: object


def objects(folder, size):
    """One file of `size` random bytes for each fault; their names."""
    os.makedirs(folder)
    names = [f"{kind}-{number:02}.bin" for kind in KINDS for number in range(TIMES)]
    for name in names:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(os.urandom(size))
    return names


def script(names, size):
    """One fault for each object, of the kind that its name tells."""
    faults = []
    for name in names:
        kind = name.rpartition("-")[0]
        settings = {key: size * 2 if value is None else value for key, value in KINDS[kind].items()}
        faults.append(
            {"kind": kind, "times": 1, "operation": "GetObject", "key_glob": f"*/{name}", **settings}
        )
    return faults


def faulty(contest, folder, size):
    """`Faulty` of one fetch of objects of `size` bytes, each of which goes wrong once. Raises `Stop` when a fault did not strike."""
    names = objects(folder, size)
    try:
        with Lab(contest.stager, (folder, "faulty/")) as lab:
            lab.control("POST", "faults", script(names, size))
            contest.clear()
            argv = contest.fetch(
                *("-P", "64", "--no-adapt", "--processes", "1", "--reserve", "512MiB"),
                *("--read-timeout", f"{READ_TIMEOUT_S}s"),
                where="oss://bench/faulty",
                endpoint=lab.endpoint,
            )
            with lab.role():
                done = process.run(argv, check=False)
            struck, sent = lab.control("GET", "counters")["faults"], lab.sent()
        if done.code:
            raise Stop(f"the fetch ended with {done.code}: {_last(done)}")
        if short := [kind for kind in KINDS if struck.get(kind) != TIMES]:
            raise Stop(f"only {struck.get(short[0], 0)} of {TIMES} faults of the kind {short[0]} struck")
        same = not different(folder, contest.into, names)
        return Faulty(sum(struck.values()), size * len(names), sent, same, done)
    finally:
        contest.clear()
        shutil.rmtree(folder)


def _last(done):
    lines = [*done.err.splitlines(), *done.out.splitlines()]
    return lines[-1] if lines else "it said nothing"


# Kills


@dataclass
class Killed:
    """One fetch killed `after` seconds and run again: bytes sent in both runs beyond the model's."""

    after: float
    processes: int
    again: int
    identical: bool


def kills(contest, times, seed, *, most_rate=None):
    """`Killed` of `times` fetches, each killed at a random moment of its transfer and then run to its end; every second has two processes."""
    chance, found, missed = random.Random(seed), [], 0
    limit = ["--max-rate", most_rate] if most_rate else []
    with Lab(contest.stager, (contest.source, f"{os.path.dirname(contest.keys[0])}/")) as lab:

        def argv(processes):
            fixed = [
                "-P",
                str(contest.lanes),
                "--no-adapt",
                "--reserve",
                "512MiB",
                "--processes",
                str(processes),
            ]
            return contest.fetch(*fixed, *limit, endpoint=lab.endpoint)

        # The first run at full speed is for nothing: the server has to find out the CRC of its files.
        runs = (1, 2) if most_rate else (1, 1, 2)
        spans = {processes: _transfer(contest, lab, argv(processes)) for processes in runs}
        while len(found) < times:
            processes = 1 + len(found) % 2
            moment = chance.uniform(*spans[processes])
            one = _killed(contest, lab, argv(processes), moment, processes)
            if one is None:
                missed += 1
                if missed > 3 * times:
                    raise Stop("most fetches were over before they could be killed")
                continue
            found.append(one)
            contest.say(
                f"    killed after {moment:.2f} s, {processes} processes: {one.again / MIB:.0f} MiB again"
            )
    return found


def _transfer(contest, lab, argv):
    """The seconds after its start in which a fetch transfers, as the server saw one: (first, last)."""
    contest.clear()
    lab.control("DELETE", "log")
    began = time.time()
    process.run(argv)
    contest.clear()
    gets = [one for one in lab.control("GET", "log") if one["operation"] == "GetObject"]
    return min(one["begun"] for one in gets) - began, max(one["ended"] for one in gets) - began


def _killed(contest, lab, argv, moment, processes):
    """One trial; None when the fetch was over before `moment`."""
    contest.clear()
    before = lab.sent()
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        over = True
        try:
            child.wait(moment)
        except subprocess.TimeoutExpired:
            over = False
    finally:
        kill_group(child)
    if over:
        return None
    done = process.run(argv)
    names = list(map(os.path.basename, contest.keys))
    same = not different(contest.source, contest.into, names) and summary(done)["complete"]
    again = lab.sent() - before - contest.size
    contest.clear()
    return Killed(moment, processes, again, same)
