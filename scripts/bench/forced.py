"""A stager whose lanes are forced, for the sweep of `scripts/bench-adaptive`. Runs in a process of its own.

forced.py SETTING warm ARGS...           the command `stager warm ARGS...` at that setting
forced.py SETTING loop SECONDS FILE...   the same lanes and touch over FILEs again and again, evicting behind each span

SETTING is `adaptive`, `N` or `N+split`. `loop` prints one JSON object: bytes, seconds, lanes, peak, split, epochs; it is how a disk
that fills the memory within seconds is read for half a minute.
"""

import json
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
sys.dont_write_bytecode = True

from stager.engine.pace import Controller  # noqa: E402  only the folder above makes it importable


def controller(setting, ceiling, start, *, adapt=True, may_split=False, ramp=False):
    """The controller that `setting` asks for."""
    if setting == "adaptive":
        return Controller(ceiling, start, adapt=adapt, may_split=may_split, ramp=ramp)
    lanes, _, split = setting.partition("+")
    return Controller(int(lanes), int(lanes), adapt=False, may_split=bool(split))


def warm(setting, arguments):
    """`stager ARGUMENTS...` in this process."""
    from stager.cli import main
    from stager.jobs import reading

    def forced(ceiling, start, **more):
        return controller(setting, ceiling, start, **more)

    reading.Controller = forced
    sys.argv = ["stager", *arguments]
    sys.exit(main())


def loop(setting, seconds, paths):
    """Reads `paths` in stager's pieces with stager's touch until time is up."""
    import anyio

    from stager.core.model import Span
    from stager.core.plan import PIECE
    from stager.engine.lanes import Lanes
    from stager.node.touch import STEP, SpliceKit

    pieces = [
        Span(index, at, min(PIECE, size - at))
        for index, size in enumerate(map(os.path.getsize, paths))
        for at in range(0, size, PIECE)
    ]

    def read(lease, kit, checkpoint):
        fd = os.open(paths[lease.span.index], os.O_RDONLY)
        first = lease.position
        try:
            while block := lease.take(4 * STEP):
                moved = kit.touch(fd, lease.position, block)
                lease.advance(moved)
                checkpoint(moved)
        finally:
            os.posix_fadvise(fd, first, lease.position - first, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    pace = controller(setting, 16, 2, ramp=True)
    lanes = Lanes(pieces * 1000, read=read, kit=SpliceKit, controller=pace)
    timer = threading.Timer(seconds, lanes.stop, ["time is up"])
    timer.start()
    began = time.monotonic()
    anyio.run(lanes.run)
    passed = time.monotonic() - began
    timer.cancel()
    report = pace.report()
    epochs = [[round(e.at, 1), e.lanes, e.split, round(e.rate / 1e6)] for e in report.epochs]
    found = {"bytes": lanes.done, "seconds": passed, "lanes": report.lanes, "peak": report.peak}
    print(json.dumps({**found, "split": report.split, "epochs": epochs}))


if __name__ == "__main__":
    if sys.argv[2] == "warm":
        warm(sys.argv[1], sys.argv[2:])
    else:
        loop(sys.argv[1], float(sys.argv[3]), sys.argv[4:])
