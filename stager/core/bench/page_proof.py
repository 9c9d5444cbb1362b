"""What a run must show to count, told on the report."""

from __future__ import annotations

from stager.core.bench.page_parts import Mono, Prose

PROOF: tuple[Prose, ...] = (
    (
        "A cold run begins with nothing of the files in the page cache, a second load with all of it. The kernel is asked about every page when all loaders "
        "stand ready, right before they begin, and right before a command is started; where it does not answer, the cell is not measured. What went "
        "while loaders started is read once more before a second load. On a mount that drops pages at every open nothing needs to be dropped, and a "
        "second load is as cold as the first."
    ),
    (
        "What a FUSE daemon is still fetching when a cold run has ended would slow down the next: before that, as long as the last one took is waited, or where bytes "
        "from below are counted until they have stood still for half a second; at most 10 s. That is in nobody's seconds."
    ),
    (
        "When a run has ended at least 99 % must be resident. The rest may have gone after it was read, which has cost the run no time: ",
        Mono("resident_after"),
        " tells how much.",
    ),
    (
        "Pages that come or go in the middle show in what the kernel charges the run's own processes for (",
        Mono("charged_bytes"),
        (
            ", ru_inblock of getrusage(2)). In a second load that is at most 0.1 % of the bytes, or 1 MiB (8 MiB for a command, which reads its program too). "
            "In a cold run it is at least 95 % of the bytes, or somebody else has read for it, and at most 110 % and 16 MiB, or pages were read twice. That of cold runs "
            "holds where the storage has once charged a cold run for all it read; that is so on block devices."
        ),
    ),
    (
        (
            "FUSE daemons and servers charge nobody. There the pages are counted every 20 ms while a second load runs, less often where that takes long, and 99 % "
            "must be resident at each look ("
        ),
        Mono("resident_least"),
        "); of ",
        Mono("stager warm"),
        (
            " its own count of what it read must be as small as a charge. Not noticed there are pages that went and came between two looks, and what "
            "somebody else reads while a cold run is under way, which makes it look faster: no other reader may use those files then."
        ),
    ),
    (
        "A run that does not show this was disturbed: it is thrown away, counted with the reason, and made again, at most as often as there are rounds, or twice "
        "with one round. Runs of an engine may drop and leave out pages themselves: they are held only against what was resident before."
    ),
)
