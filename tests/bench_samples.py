"""Results of benchmarks as they could be, for trying out reports: three storages, four numbers of loaders, some trouble."""

from __future__ import annotations

import random
from dataclasses import replace

from stager.core.bench.plan import LOADED
from stager.core.bench.reports import (
    BenchCell,
    BenchFile,
    BenchMachine,
    BenchPace,
    BenchResults,
    BenchRun,
    BenchStorage,
    BenchSummary,
)
from stager.core.bench.stats import make_cell
from stager.core.bench.sweep import Grid, settings_of
from stager.core.bench.verdict import judge

GIB, MIB = 1 << 30, 1 << 20
METHODS = (
    "read",
    "mmap-offsets",
    "mmap-names",
    "recipe",
    "vmtouch",
    "warm",
    "warm+mmap",
    "fetch",
    "fetch+mmap",
)
LOADERS = (1, 4, 8, 16)
TOTAL = 2 * GIB + 35 * 1024
_WARM_RATE = {"read": 6.1, "mmap-offsets": 9.7, "mmap-names": 9.4}


def storage(
    path: str, filesystem: str, *, kind: str = "mount", keeps: str = "keeps", limits: tuple[str, ...] = ()
) -> BenchStorage:
    """One of the storages."""
    return BenchStorage(
        path=path,
        kind=kind,
        filesystem=filesystem,
        mount_source="/dev/vda" if filesystem == "ext4" else filesystem,
        mount_options="rw,relatime" if kind == "mount" else "",
        read_ahead_kb=128 if kind == "mount" else None,
        files=9,
        bytes=TOTAL,
        of_files=9,
        of_bytes=TOTAL,
        part=None,
        keeps=keeps if kind == "mount" else "",
        residency_by="cachestat" if kind == "mount" else "",
        device="vda" if filesystem == "ext4" else "",
        target="" if kind == "mount" else "/dev/shm/stager-bench (tmpfs)",
        limits=limits,
    )


STORAGES = (
    storage("/models/tiny-llama", "ext4"),
    storage(
        "/mnt/oss/tiny-llama",
        "fuse.ossfs2",
        limits=("what comes over the network: no block device is below this mount",),
    ),
    storage("oss://bucket/models/tiny-llama", "oss", kind="store"),
)
_COLD = {  # GiB/s of one loader
    "ext4": {"read": 1.6, "mmap-offsets": 0.42, "mmap-names": 0.31, "recipe": 1.9, "vmtouch": 1.75, "warm": 2.7, "warm+mmap": 2.1},
    "fuse.ossfs2": {"read": 0.35, "mmap-offsets": 0.11, "mmap-names": 0.08, "recipe": 0.9, "vmtouch": 0.3, "warm": 1.2, "warm+mmap": 1.05},
    "oss": {"fetch": 1.4, "fetch+mmap": 1.2},
}  # fmt: skip


class Maker:
    """Makes runs with numbers drawn from `seed`."""

    def __init__(self, seed: int = 1, rounds: int = 3) -> None:
        self._random = random.Random(seed)
        self.rounds = rounds
        self.runs: list[BenchRun] = []
        self.cells: list[BenchCell] = []

    def cell(
        self, place: BenchStorage, method: str, state: str, loaders: int, rate: float, file: str = ""
    ) -> None:
        """Every round of one cell; now and then one is disturbed and made again."""
        mine = []
        for number in range(1, self.rounds + 1):
            if self._random.random() < 0.04:
                mine.append(
                    self._run(
                        place,
                        method,
                        state,
                        loaders,
                        number,
                        rate,
                        file,
                        "512.0 MiB of its pages were gone at the end",
                    )
                )
            mine.append(self._run(place, method, state, loaders, number, rate, file, ""))
        self.runs += mine
        self.cells.append(
            make_cell(place.path, place.filesystem, method, state, loaders, file=file, runs=mine)
        )

    def _run(
        self,
        place: BenchStorage,
        method: str,
        state: str,
        loaders: int,
        number: int,
        rate: float,
        file: str,
        reason: str,
    ) -> BenchRun:
        size = 512 * MIB if file else TOTAL
        draw = self._random.lognormvariate
        slower = 1 + 0.05 * (loaders - 1)
        each = tuple(0.02 + size / GIB / rate * slower * draw(0, 0.09) for _ in range(loaders))
        wall = max(each) + 0.01
        cold = state == "cold"
        id_ = f"r{len(self.runs) + number + (100 if reason else 0):04}{self._random.randrange(16**3):03x}"
        shards = [(f"model-0000{at}-of-00004.safetensors", 512 * MIB, wall / 4) for at in range(1, 5)]
        return BenchRun(
            storage=place.path,
            filesystem=place.filesystem,
            method=method,
            state=state,
            loaders=loaders,
            round=number,
            run=id_,
            file=file,
            bytes=size,
            seconds=wall,
            loader_seconds=each,
            files=tuple(BenchFile(*one) for one in shards) if method == "read" and not file else (),
            cpu_seconds=wall * loaders * 0.4,
            device_bytes=(size + self._random.randrange(4 * MIB) if cold else 0) if place.device else None,
            resident_before=0 if cold else size,
            resident_after=size,
            residency_by="cachestat",
            disturbed=bool(reason),
            reason=reason,
            timeline=self._timeline(wall, size) if method in ("warm", "fetch") and cold else (),
        )

    def _timeline(self, wall: float, size: int) -> tuple[tuple[float, int, int], ...]:
        begins, ends = min(0.2, wall / 4), wall - min(0.12, wall / 5)
        points, done, lanes = [(round(begins, 3), 0, 0)], 0.0, 2
        steps = 14
        for at in range(1, steps + 1):
            lanes = (
                min(16, lanes + self._random.choice((0, 1, 2)))
                if at < 9
                else lanes + self._random.choice((0, 0, -1))
            )
            done = (
                size
                if at == steps
                else done + (size - done) * min(0.9, 0.5 * lanes / 8) / (steps - at + 1) * 2
            )
            points.append((round(begins + (ends - begins) * at / steps, 3), int(min(done, size)), lanes))
        return tuple(points)

    def results(self, storages: tuple[BenchStorage, ...], **other: object) -> BenchResults:
        """What was made so far."""
        body: dict[str, object] = {
            "machine": BenchMachine(
                "6.12.41-cloud-amd64", 4, 24 * GIB, 20 * GIB, "MGLRU", 0.12, "3.13.5", "0.1.0"
            ),
            "storages": storages,
            "methods": METHODS,
            "loaders": LOADERS,
            "rounds": self.rounds,
            "quick": False,
            "to": "",
            "began": "2026-11-21T12:00:00Z",
            "seconds": 1834.2,
            "runs": sum(run.counts for run in self.runs),
            "disturbed": sum(run.disturbed for run in self.runs),
            "failed": sum(bool(run.failed) for run in self.runs),
            "unmeasured": sum(cell.seconds is None for cell in self.cells),
            "limits": (
                "the network between this node and the storage, by itself",
                "the copy from the page cache to a GPU",
            ),
            "command": f"stager bench {' '.join(one.path for one in storages)} --report /tmp/report --yes",
        }
        return BenchResults(BenchSummary(**{**body, **other}), tuple(self.runs), tuple(self.cells))  # type: ignore[arg-type]


def realistic(seed: int = 1) -> BenchResults:
    """A whole benchmark of three storages."""
    made = Maker(seed)
    for place in STORAGES:
        for method, rate in _COLD[place.filesystem].items():
            for loaders in LOADERS if method in LOADED else (1,):
                made.cell(place, method, "cold", loaders, rate)
                if method in _WARM_RATE:
                    made.cell(place, method, "warm", loaders, _WARM_RATE[method])
    for at in range(1, 5):
        made.cell(STORAGES[0], "read", "cold", 1, 1.5, f"model-0000{at}-of-00004.safetensors")
    return made.results(STORAGES)


def awkward() -> BenchResults:
    """Paths that want to be markup, cells without a number, a failed run, one round, a storage far slower than the other."""
    evil = '/mnt/<script>alert(1)</script>&"|`*_[x](http://e.invalid)\x1b[31m\udcff/模型'
    first, second = storage(evil, "fuse.x"), storage("/fast", "ext4", limits=("<b>nothing</b> | `much`",))
    made = Maker(7, rounds=1)
    made.cell(first, "read", "cold", 1, 0.01)
    made.cell(second, "read", "cold", 1, 2.0)
    made.cell(second, "read", "warm", 1, 8.0)
    made.cell(second, "warm", "cold", 1, 3.0)
    why = "pages of a mount with direct I/O are never in the page cache, so that there is no second load and nothing to be proven"
    made.cell(first, "read", "cold", 4, 0.01)
    for loaders in (1, 4):
        made.cells.append(
            make_cell(evil, "fuse.x", "read", "warm", loaders, file="", runs=[], unmeasured=why)
        )
    for method in ("warm", "vmtouch"):
        made.cells.append(
            make_cell(evil, "fuse.x", method, "cold", 1, file="", runs=[], unmeasured="</td>no | way")
        )
    return made.results((first, second), quick=True)


def swept() -> BenchResults:
    """A sweep of two storages: one where lanes and pieces pay until the link is full, one that is as fast with any of them; and one without a number."""
    made = Maker(3)
    places = (STORAGES[1], STORAGES[0], storage("/mnt/drops", "fuse.x", keeps="drops"))
    draw = random.Random(5).lognormvariate
    sweeps = []
    for place in places:
        cells, mine = [], []
        settings = settings_of([512 * MIB] * 4, Grid())
        for setting in (None, *settings):
            lanes = setting.lanes if setting else 6
            steep = min(1.2, 0.09 * lanes) if place is STORAGES[1] else min(2.4, 1.6 + 0.2 * lanes)
            near = setting is None or (setting.lanes >= 16 and setting.span == 64 * MIB)
            runs = []
            for number in range(1, (3 if near else 1) + 1):
                wall = 0.35 + TOTAL / GIB / steep * draw(0, 0.03)
                run = replace(
                    realistic_run(), storage=place.path, filesystem=place.filesystem, run=f"r{len(made.runs) + len(mine) + len(runs):03}",
                    round=number, seconds=wall, loader_seconds=(wall,), disturbed=False, reason="", setting=setting,
                    pace=BenchPace(lanes, lanes, split=False),
                )  # fmt: skip
                runs.append(replace(run, disturbed=number == 2 and lanes == 16, reason="pages were gone"))
            mine += runs if place.keeps == "keeps" else []
            cells.append(
                make_cell(
                    place.path,
                    place.filesystem,
                    "warm",
                    "cold",
                    1,
                    file="",
                    setting=setting,
                    unmeasured="this mount drops pages",
                    runs=runs if place.keeps == "keeps" else [],
                )
            )
        made.runs += mine
        made.cells += cells
        sweeps.append(judge(place, cells, mine, ["stager", "warm", place.path]))
    whole = made.results(places, methods=("warm",), loaders=(1,), command="stager bench --sweep --yes")
    return replace(whole, sweeps=tuple(sweeps))


def empty() -> BenchResults:
    """A benchmark that could not measure anything."""
    made = Maker()
    why = "the kernel does not say which pages are resident"
    made.cells.append(make_cell("/models/x", "ext4", "read", "cold", 1, file="", runs=[], unmeasured=why))
    return made.results((storage("/models/x", "ext4"),), methods=("read",), loaders=(1,))


def realistic_run() -> BenchRun:
    """One run, to be changed."""
    made = Maker()
    made.cell(STORAGES[0], "warm", "cold", 1, 2.0)
    return made.runs[0]
