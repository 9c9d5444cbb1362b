"""What is asked of one pull alone: its memory, and how it stands faults and being killed."""

import os
import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

from bench import fetch_trials, process
from bench.data import MIB, Stop
from bench.pull_contest import Place, client, proven, pull, summary, told
from bench.pull_servers import BUCKET, Hub

TIMES = 20
READ_TIMEOUT_S = 1
PART = 16 * MIB  # of an object that is sent in parts, as stager cuts it
_SAMPLE_S = 0.05
_SILENT = {"seconds": 3 * READ_TIMEOUT_S}  # longer than --read-timeout

# What happens to one answer with a file's bytes, at the hub's CDN; `rate` None is twice the file's size a second.
HUB_KINDS = {
    "reset": {},
    "close": {},
    "drop": {},
    "unavailable": {"seconds": 1},
    "limited": {"seconds": 1},
    "error": {},
    "expired": {},
    "corrupt": {},
    "slow": {"rate": None},
    "stall": _SILENT,
    "hang": _SILENT,
    "whole": {},
    "wrong-range": {},
}
# What happens to one request that sends bytes to the store.
STORE_KINDS = {
    "reset": {},
    "close": {},
    "drop": {},
    "lost": {},
    "unavailable": {"seconds": 1},
    "error": {},
    "expired": {},
    "wrong-crc": {},
    "hang": _SILENT,
}


# Memory


@dataclass
class Memory:
    """The most RssAnon of all of a pull's processes in the first and in the second half of its time, bytes; and what it said of its end."""

    first: int
    second: int
    done: dict


def memory(argv, *, timeout):
    """`Memory` of one pull. Raises `Stop` when it fails or takes longer than `timeout` seconds."""
    samples = []
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0)
        try:
            while child.poll() is None:
                samples.append((time.monotonic() - began, fetch_trials.anonymous(child.pid)))
                if samples[-1][0] > timeout:
                    raise Stop(f"`{' '.join(argv)}` took longer than {timeout:g} s")
                time.sleep(_SAMPLE_S)
        finally:
            fetch_trials.kill_group(child)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    if child.returncode:
        raise Stop(f"the pull ended with {child.returncode}:\n{text[-1000:]}")
    half = samples[-1][0] / 2
    first = max(anon for at, anon in samples if at <= half)
    return Memory(first, max(anon for at, anon in samples if at > half), told(text, text))


# Kills


@dataclass
class Killed:
    """One pull killed `after` seconds and run again: bytes that came to the store in both runs beyond the model's."""

    after: float
    again: int


def kills(contest, place, times, seed, *options):
    """`Killed` of `times` pulls, each killed at a random moment of its transfer and then run to its end; all end byte-identical, else `Stop`."""
    chance, found, missed = random.Random(seed), [], 0
    span = _transfer(contest, place, options)
    while len(found) < times:
        moment = chance.uniform(*span)
        contest.number += 1
        one = _killed(contest, place, f"killed-{contest.number:03}/", moment, options)
        if one is None:
            missed += 1
            if missed > 3 * times:
                raise Stop("most pulls were over before they could be killed")
            continue
        found.append(one)
        contest.say(f"    killed after {moment:.2f} s: {one.again / MIB:.0f} MiB again")
    return found


def _transfer(contest, place, options):
    """The seconds after its start in which a pull sends bytes, as the store saw one: (first, last)."""
    prefix = "whole/"
    began = time.time()
    process.run(contest.pull(place, f"oss://{BUCKET}/{prefix}", *options))
    log = place.sink.control("GET", "log")
    sent = [one for one in log if one["operation"] in ("PutObject", "UploadPart") and _model(one, prefix)]
    _emptied(contest, place, prefix)
    return min(one["begun"] for one in sent) - began, max(one["ended"] for one in sent) - began


def _model(record, prefix):
    return record["key"].startswith(prefix) and not record["key"].startswith(f"{prefix}.stager")


def _killed(contest, place, prefix, moment, options):
    """One trial; None when the pull was over before `moment`."""
    argv = contest.pull(place, f"oss://{BUCKET}/{prefix}", *options)
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
        fetch_trials.kill_group(child)
    try:
        if over:
            return None
        done = process.run(argv)
        if not summary(done)["complete"]:
            raise Stop(f"the pull after a kill is not complete: {summary(done)['reason']}")
        proven(contest.stager, place.sink, prefix, contest.source, how="compare")
        return Killed(moment, place.sink.received(prefix) - contest.size)
    finally:
        _emptied(contest, place, prefix)


def _emptied(contest, place, prefix):
    """Nothing is left of a trial at the store, nor in its log."""
    process.run(client(contest.stager, "remove", place.sink.endpoint, BUCKET, prefix))
    place.sink.control("DELETE", "log")


# Faults


@dataclass
class Faulty:
    """One pull that met `faults`, by side and kind; byte-identical afterwards. `model` bytes, of which the hub sent `sent`, the store got `got`."""

    faults: dict = field(default_factory=dict)
    model: int = 0
    sent: int = 0
    got: int = 0


def script(size):
    """{file name: (size, faults at the hub, faults at the store)}: one file for each small fault, one large file for each kind at the store."""
    found = {}
    for kind, settings in HUB_KINDS.items():
        own = {key: size * 2 if value is None else value for key, value in settings.items()}
        for number in range(TIMES):
            name = f"hub-{kind}-{number:02}.bin"
            fault = {"kind": kind, "host": "cdn", "operation": "cdn", "key_glob": name, "times": 1, **own}
            found[name] = (size, [fault], [])
    for kind, settings in STORE_KINDS.items():
        for number in range(TIMES):
            name = f"store-{kind}-{number:02}.bin"
            fault = {"kind": kind, "operation": "PutObject", "key_glob": f"*/{name}", "times": 1, **settings}
            found[name] = (size, [], [fault])
    return found


def parted(parts):
    """The same for objects of `parts` parts: every second request for a part goes wrong, and the one that puts them together."""
    found = {}
    for kind, settings in STORE_KINDS.items():
        name = f"parts-{kind}.bin"
        fault = {"kind": kind, "key_glob": f"*/{name}", **settings}
        end = {**fault, "operation": "CompleteMultipartUpload", "times": 1}
        times = (
            1 if kind == "expired" else TIMES
        )  # new keys that have run out as well are no fault but a refusal
        each = {**fault, "operation": "UploadPart", "times": times, "nth": 2}
        found[name] = (parts * PART - 1, [], [each, end])
    return found


def faulty(stager, folder, size, parts):
    """`Faulty` of one pull in which every fault of `script` and `parted` struck. Raises `Stop` otherwise."""
    plan = script(size) | (parted(parts) if parts else {})
    source = os.path.join(folder, "source")
    os.makedirs(source)
    try:
        large = os.path.join(folder, "large")
        _made(large, parts * PART - 1)
        for name, (length, _, _) in plan.items():
            if length > PART:
                os.link(large, os.path.join(source, name))
            else:
                _made(os.path.join(source, name), length)
        with Hub(stager, (source, "bench/faulty")) as hub, fetch_trials.Lab(stager) as lab:
            hub.control("POST", "faults", [one for _, some, _ in plan.values() for one in some])
            lab.control("POST", "faults", [one for _, _, some in plan.values() for one in some])
            options = ["-P", "32", "--no-adapt", "--read-timeout", f"{READ_TIMEOUT_S}s"]
            argv = pull(stager, Place("", hub, lab), "bench/faulty", f"oss://{BUCKET}/faulty/", *options)
            with lab.role():
                done = process.run(argv, check=False)
            return _judged(stager, done, plan, source, hub, lab)
    finally:
        shutil.rmtree(folder)


def _made(path, length):
    with open(path, "wb") as file:
        while length > 0:
            length -= file.write(os.urandom(min(length, 4 * MIB)))


def _judged(stager, done, plan, source, hub, lab):
    if done.code:
        lines = [*done.err.splitlines(), *done.out.splitlines()]
        raise Stop(f"the pull ended with {done.code}: {lines[-1] if lines else 'it said nothing'}")
    found = Faulty({"hub": hub.control("GET", "counters")["faults"]})
    found.faults["store"] = lab.control("GET", "counters")["faults"]
    for side, kinds in (("hub", HUB_KINDS), ("store", STORE_KINDS)):
        for kind in kinds:
            if found.faults[side].get(kind, 0) < TIMES:
                raise Stop(
                    f"only {found.faults[side].get(kind, 0)} of {TIMES} faults `{kind}` struck at the {side}"
                )
    proven(stager, lab, "faulty/", source, how="compare")
    found.model = sum(length for length, _, _ in plan.values())
    found.sent = hub.control("GET", "counters")["bytes_sent"]
    log = lab.control("GET", "log")
    found.got = sum(one["bytes_received"] for one in log if one["operation"] in ("PutObject", "UploadPart"))
    return found
