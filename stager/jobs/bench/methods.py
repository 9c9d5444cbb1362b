"""The methods of a benchmark as processes: which command or loader each is, and what is read from its answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from stager.core.bench.evidence import Usage
from stager.core.bench.plan import (
    ENGINE,
    NAMES,
    RECIPE,
    SAFETENSORS,
    THEN_MMAP,
    VMTOUCH,
    WARM_ENGINE,
    WARMING,
)
from stager.core.bench.reports import BenchFile, BenchPace
from stager.core.errors import UsageError
from stager.core.units import format_size, shown
from stager.jobs.bench.children import failure_of, last_line
from stager.node.frozen import is_frozen, worker_command
from stager.node.syscalls import PAGE

if TYPE_CHECKING:
    from stager.core.bench.setting import Setting
    from stager.core.model import LocalFile
    from stager.jobs.bench.children import Children, Ended, Loaded
    from stager.jobs.bench.engine import Engine
    from stager.jobs.bench.ground import Ground, StoreGround

_LOADER = "stager.jobs.bench.loader"
# As vendors publish it, but that the names come from a list: every method reads the same files. The second `cat` is theirs.
_RECIPE = """xargs -0 -P16 -n1 sh -c 'cat "$0" && cat "$0"' >/dev/null"""
# `head` by itself says nothing of an order to the kernel, which then reads ahead half as far as for `cat`.
_RECIPE_PART = """xargs -0 -P16 -n1 sh -c 'cat "$0" | head -c {0} && head -c {0} "$0"' >/dev/null"""
_EVERY = "100ms"  # progress of a command, which becomes its timeline
_MOST_POINTS = 120  # of a timeline: enough for any chart
_FETCHED_WELL = ("resident", "unknown")

# Runs under any interpreter that has torch and safetensors, so it knows nothing of stager; it speaks as `loader` does.
_SAFETENSORS = """
import json, os, resource, sys, time
device = sys.argv[1]
def used():
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime, now.ru_inblock * 512
import torch
from safetensors import safe_open
torch.set_num_threads(1)  # threads that wait for each other at every tensor cost more than they copy; engines set this too
torch.zeros(1, device=device).clone()
job = json.loads(sys.stdin.readline())
print(json.dumps({"ready": used()}), flush=True)
sys.stdin.readline()
files, kept, at = [], [], time.monotonic()
for path, _ in job["files"]:
    size = 0
    with safe_open(path, framework="pt", device=device) as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if device == "cpu":
                tensor = tensor.clone()
            size += tensor.numel() * tensor.element_size()
            kept.append(tensor)
    if device == "cuda":
        torch.cuda.synchronize()
    now = time.monotonic()
    files.append([size, now - at])
    at = now
print(json.dumps({"done": at, "files": files, "used": used()}), flush=True)
os._exit(0)  # taking torch down would count as CPU of the load
"""
_ASK = """
import sys, torch, safetensors
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit(3)
    print(torch.cuda.mem_get_info()[0])
"""


class Disturbed(Exception):
    """Somebody else has changed which pages are resident; the text is one line that says what is wrong."""


@dataclass
class Took:
    """What one run took: see `BenchRun`. `failed` when it did not do what it is measured for; `brought` are the bytes that a fetch counted itself.

    `used` is what the kernel counted for all its processes, `loading` for its loaders alone (None without any), `read` what
    ``stager warm`` says that it has read. `disturbed` says why it was not even begun, or proves nothing, `caveat` what a reader must know of its time.
    `killed`: an engine that did not end when it was asked to.
    """

    seconds: float = 0.0
    each: tuple[float, ...] = ()
    cpu: float = 0.0
    size: int | None = None
    files: tuple[BenchFile, ...] = ()
    timeline: tuple[tuple[float, int, int], ...] = ()
    failed: str = ""
    brought: int | None = None
    pace: BenchPace | None = None
    before: float = 0.0
    used: Usage | None = None
    loading: Usage | None = None
    read: int | None = None
    disturbed: str = ""
    caveat: str = ""
    killed: bool = False

    def follows(self, before: Took) -> Took:
        """This run as the second step after `before`."""
        each = tuple(before.seconds + one for one in self.each)
        return replace(
            self,
            seconds=before.seconds + self.seconds,
            each=each,
            cpu=before.cpu + self.cpu,
            timeline=before.timeline,
            brought=before.brought,
            pace=before.pace,
            before=before.seconds,
            used=before.used + self.used if before.used and self.used else None,
            read=before.read,
            disturbed=before.disturbed or self.disturbed,
        )


@dataclass
class Methods:
    """Runs methods with `children`. `scratch` is a folder for markers; `to` and `python` are for safetensors' own loader, `gpu_free` the bytes free on the GPU at the start, None without one; `engine` is what the methods of an engine start."""

    children: Children
    scratch: str
    to: str = ""
    python: str = ""
    env: dict[str, str] = field(default_factory=lambda: clean_environment())
    engine: Engine | None = None
    gpu_free: int | None = None

    def check_safetensors(self) -> None:
        """Look at the interpreter, and at the GPU. Raises `UsageError` unless it has what `to` needs."""
        try:
            ended = self.children.command([self.python, "-c", _ASK, self.to], self.env)
        except OSError as exc:
            raise UsageError(
                f"`{shown(self.python)}` cannot be run: {exc.strerror}",
                hint="name an interpreter with --python",
            ) from exc
        if ended.code == 3:
            raise UsageError("--to cuda: torch finds no GPU here", hint="use --to cpu, or leave it out")
        if ended.code:
            raise UsageError(
                f"--to {self.to}: `{shown(self.python)}` cannot import torch and safetensors: {failure_of(ended)}",
                hint="name an interpreter that has them with --python, or leave --to out",
            )
        if self.to == "cuda":
            self.gpu_free = int(ended.out.split()[-1])

    def why_not(self, method: str, ground: Ground) -> str:
        """Why `method` cannot run on `ground`; empty when it can."""
        first = THEN_MMAP.get(method, method)
        if first == VMTOUCH and shutil.which("vmtouch") is None:
            return "vmtouch is not installed"
        if (first == WARMING or method == WARM_ENGINE) and ground.facts.keeps.hopeless:
            return "`stager warm` reads nothing here: this mount drops pages when a file is opened"
        if method == SAFETENSORS and ground.part is not None:
            return "it reads whole files, and --quick only a part of each"
        if method == SAFETENSORS and not _safetensors(ground.files):
            return "there is no safetensors file"
        return ""

    def on_mount(
        self,
        method: str,
        ground: Ground,
        loaders: int,
        until: float | None,
        *,
        setting: Setting | None = None,
    ) -> Took:
        """One run of `method` on a mount, ``warm`` with `setting`. Blocks. Raises as `Children`, and `Disturbed` from `ground`."""
        if method == RECIPE:
            script = _RECIPE if ground.part is None else _RECIPE_PART.format(ground.part)
            return self._plain(["sh", "-c", script], ground, until)
        if method == VMTOUCH:
            part = [] if ground.part is None else ["-p", f"0-{ground.part}"]
            # -f: a hub's cache is made of symlinks.
            return self._plain(["vmtouch", "-f", "-t", *part, "-0", "-b", "-"], ground, until)
        if method == WARMING:
            return self._warm(ground, until, setting)
        if method in THEN_MMAP:
            first = self.on_mount(THEN_MMAP[method], ground, 1, until)
            then = replace(ground, at_start=ground.between)
            return first if first.failed else self.load(NAMES, then, loaders, until).follows(first)
        if method == ENGINE:
            ground.at_start()
            return self.start(ground.storage.path, ground.total, until)
        if method == WARM_ENGINE:
            warmed = self._warm(ground, until)
            if warmed.failed:
                return warmed
            ground.between()
            return self.start(ground.storage.path, ground.total, until).follows(warmed)
        return self.load(method, ground, loaders, until)

    def start(self, path: str, size: int, until: float | None) -> Took:
        """A start of the engine on `path`, where `size` bytes lie. Blocks. Raises as `Children`."""
        assert self.engine is not None
        started = self.engine.start(path, until)
        took = Took(started.seconds, (started.seconds,), started.cpu, size)
        took.caveat, took.killed = started.caveat, started.killed
        return took

    def fetch(self, ground: StoreGround, folder: str, until: float | None) -> Took:
        """``stager fetch`` into `folder`. Blocks. Raises as `Children`."""
        words = ["fetch", str(ground.location), folder, *ground.words(), *self._judging("fetched.json")]
        ended = self.children.command([*own_program(), *words], self.env, until=until)
        took = Took(ended.seconds, (ended.seconds,), ended.cpu, ground.total, (), timeline(ended, "fetch"))
        brought = last_event(ended, "fetch_summary").get("fetched")
        took.brought, took.used = brought if isinstance(brought, int) else None, ended.used
        if ended.code:
            took.failed = failure_of(ended)
        return took

    def load(self, how: str, ground: Ground, loaders: int, until: float | None) -> Took:
        """Loaders, all at once. Blocks. Raises as `Children`."""
        files = read_by(how, ground).files
        job = {"how": how, "files": [[ground.name(file), ground.wanted(file)] for file in files]}
        argv = [self.python, "-c", _SAFETENSORS, self.to] if how == SAFETENSORS else worker_command(_LOADER)
        loaded = self.children.load(argv, self.env, job, loaders, ready=ground.at_start, until=until)
        took = Took(loaded.seconds, loaded.each, loaded.cpu, used=loaded.used, loading=loaded.used)
        took.size, took.files, took.failed = _files(files, loaded, ground, whole=how != SAFETENSORS)
        return took

    def _plain(self, argv: list[str], ground: Ground, until: float | None) -> Took:
        names = [ground.name(file) for file in ground.files]
        ground.at_start()
        ended = self.children.command(argv, self.env, names=names, until=until)
        failed = failure_of(ended) if ended.code else ""
        if argv[0] == VMTOUCH:
            failed = failed or _untouched(ended, ground.total)
        took = Took(ended.seconds, (ended.seconds,), ended.cpu, ground.total, failed=failed)
        took.used = ended.used
        return took

    def _warm(self, ground: Ground, until: float | None, setting: Setting | None = None) -> Took:
        words = ["warm", *ground.words(), *self._judging("warmed.json"), *(setting.words if setting else ())]
        ground.at_start()
        ended = self.children.command([*own_program(), *words], self.env, until=until)
        took = Took(ended.seconds, (ended.seconds,), ended.cpu, ground.total, (), timeline(ended, "warm"))
        took.used = ended.used
        summary = last_event(ended, "warm_summary")
        if summary:
            took.read = int(summary["read"]) + int(summary["brought_back"])
            took.pace = BenchPace(int(summary["lanes"]), int(summary["peak"]), bool(summary["split"]))
        if ended.code:
            took.failed = failure_of(ended)
        elif not _warmed_well(summary, ground.part):
            took.failed = str(summary.get("reason") or summary.get("outcome") or "it said nothing")
        return took

    def _judging(self, marker: str) -> list[str]:
        return [
            "--json",
            f"--progress-every={_EVERY}",
            "--allow-incomplete",
            "--marker",
            os.path.join(self.scratch, marker),
        ]


def own_program() -> list[str]:
    """The words that run stager itself."""
    return [sys.executable] if is_frozen() else worker_command("stager")


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer the commands: each runs as it is by default."""
    return {name: value for name, value in os.environ.items() if not name.startswith("STAGER_")}


def last_event(ended: Ended, kind: str) -> dict[str, Any]:
    """The last JSON line of `kind` that a command of stager printed; empty without one."""
    for line in reversed(ended.out.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and found.get("type") == kind:
                return found
    return {}


def timeline(ended: Ended, verb: str) -> tuple[tuple[float, int, int], ...]:
    """(seconds since the command was started, bytes so far, lanes) of the progress lines of a ``warm`` or ``fetch``, ascending.

    The first point is where the reading began, without bytes or lanes; of very many lines every second, third, ..., and the last.
    """
    found: list[tuple[float, int, int]] = []
    for line in ended.out.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            if event["type"] == "progress" and event["verb"] == verb:
                now = float(event["clock"]) - ended.began
                if not found:
                    found.append((now - float(event["elapsed"]), 0, 0))
                found.append((now, int(event["done"]), int(event["lanes"])))
    step = -(-len(found) // (_MOST_POINTS - 1))
    first, rest = found[:1], found[1:][::-1][::step][::-1] if found else []
    return tuple((round(when, 6), done, lanes) for when, done, lanes in (*first, *rest))


def _warmed_well(summary: Mapping[str, Any], part: int | None) -> bool:
    """Whether a ``warm`` did all that it was told: for it a `part` of each file is a part of the model, and resident it is all the same."""
    if summary.get("outcome") in _FETCHED_WELL:
        return True
    pages = summary.get("residency", {})
    return (
        part is not None
        and summary.get("outcome") == "partial"
        and pages.get("resident") == pages.get("total")
    )


def read_by(method: str, ground: Ground) -> Ground:
    """The part of `ground` that `method` reads: safetensors' own loader leaves all other files alone."""
    return replace(ground, files=tuple(_safetensors(ground.files))) if method == SAFETENSORS else ground


def _untouched(ended: Ended, size: int) -> str:
    """Why ``vmtouch``, which ends with 0 whatever it has skipped, did not touch all `size` bytes; empty when it did."""
    found = re.search(r"Touched Pages: (\d+)", ended.out)
    touched = int(found[1]) * PAGE if found else size
    if touched >= size and not ended.err.strip():
        return ""
    return f"it touched {format_size(min(touched, size))} of {format_size(size)}{last_line(ended.err)}"


def _safetensors(files: Sequence[LocalFile]) -> list[LocalFile]:
    return [file for file in files if file.entry.path.endswith(".safetensors")]


def _files(
    files: Sequence[LocalFile], loaded: Loaded, ground: Ground, *, whole: bool
) -> tuple[int, tuple[BenchFile, ...], str]:
    """(bytes that one loader read, each file with the median of its seconds, what was read otherwise than it should)."""
    rows, short = [], ""
    for index, file in enumerate(files):
        size = min(one[index][0] for one in loaded.files)
        wanted = ground.wanted(file) or file.size
        if whole and size != wanted and not short:
            short = f"{shown(file.entry.path)}: {format_size(size)} of {format_size(wanted)} were read"
        rows.append(BenchFile(file.entry.path, size, median(one[index][1] for one in loaded.files)))
    return sum(row.bytes for row in rows), tuple(rows), short
