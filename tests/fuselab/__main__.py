"""``python -m tests.fuselab MOUNTPOINT --source DIR | --synthetic NAME=SIZE ...``: mount and serve until SIGTERM."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import signal
import sys
import threading
import time

from stager.core.units import parse_size
from tests.fuselab import wire
from tests.fuselab.habits import Habits
from tests.fuselab.pacing import PoolShape
from tests.fuselab.server import Server
from tests.fuselab.trees import SourceTree, SyntheticTree

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


def _named_size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=" if "=" in text else ":")
    return name, parse_size(size)


def _error_at(text: str) -> tuple[bytes, int, int]:
    name, offset, code = text.rsplit(":", 2)
    return os.fsencode(name), parse_size(offset), int(code) if code.isdigit() else getattr(errno, code)


def _counted_error(text: str) -> tuple[int, int]:
    code, _, times = text.partition(":")
    return getattr(errno, code), int(times or -1)


def _append_error(text: str) -> tuple[str, int]:
    when, _, code = text.partition(":")
    return when, getattr(errno, code)


def _windows(text: str) -> tuple[int, int]:
    first, _, most = text.partition(":")
    return parse_size(first), parse_size(most or first)


def _octal(text: str) -> int:
    return int(text, 8)


def parser() -> argparse.ArgumentParser:
    """The options; each says what a real daemon's habit it stands for."""
    p = argparse.ArgumentParser(prog="python -m tests.fuselab", description=__doc__)
    add = p.add_argument
    add("mountpoint")
    add("--source", metavar="DIR", help="serve this directory as it is at each request")
    add(
        "--synthetic",
        metavar="NAME=SIZE",
        action="append",
        type=_named_size,
        help="a file that needs no disk",
    )
    add("--fsname", default="fuselab", help="mount source, as in mountinfo")
    add("--subtype", default="fuselab", help="type is fuse.SUBTYPE")
    add(
        "--keep-cache",
        choices=("never", "always", "auto"),
        default="never",
        help="pages at re-open; auto: kept while mtime and size are as at the last open",
    )
    add("--auto-inval", action="store_true", help="let the kernel drop pages when it sees a new mtime")
    add("--direct-io", action="store_true", help="no page cache at all")
    add("--attr-timeout", type=float, default=1.0, metavar="S")
    add("--entry-timeout", type=float, default=1.0, metavar="S")
    add("--latency", type=float, default=0.0, metavar="MS", help="per read request")
    add("--meta-latency", type=float, default=0.0, metavar="MS", help="per lookup, stat, open, listing")
    add("--stream-rate", type=parse_size, metavar="BYTES/S", help="per open handle")
    add("--total-rate", type=parse_size, metavar="BYTES/S", help="whole daemon")
    add(
        "--crowd",
        type=int,
        metavar="N",
        help="more open handles than this lower the total rate; default: as many"
        " as the pool can hold full, never without a pool; 0: never",
    )
    add("--serial", action="store_true", help="one read at a time; --latency is its service time")
    add(
        "--pool",
        type=int,
        metavar="N",
        help="prefetch chunks shared by all handles (see tests/fuselab/pacing.py)",
    )
    add("--pool-chunk", type=parse_size, default=8 << 20, metavar="BYTES")
    add("--pool-window", type=_windows, default=(32 << 20, 1 << 30), metavar="FIRST:MOST")
    add("--pool-hold", type=int, default=192, metavar="N", help="most chunks of one handle")
    add("--pool-crawl", type=parse_size, default=32_000_000, metavar="BYTES/S", help="handle without a chunk")
    add("--hang-after", type=parse_size, metavar="BYTES", help="then no read is answered any more")
    add("--hang-file", action="append", default=[], metavar="NAME", help="its reads are never answered")
    add(
        "--error-at",
        action="append",
        default=[],
        type=_error_at,
        metavar="NAME:OFFSET:ERRNO",
        help="reads that contain this offset fail",
    )
    add(
        "--shrink",
        action="append",
        default=[],
        type=_named_size,
        metavar="NAME:SIZE",
        help="reads end here, whatever stat says",
    )
    add("--writes", choices=("ossfs2",), help="takes writes, in the manner of that daemon")
    add(
        "--close-error",
        type=_counted_error,
        default=(0, -1),
        metavar="ERRNO[:TIMES]",
        help="of what was written",
    )
    add(
        "--write-error-at",
        action="append",
        default=[],
        type=_error_at,
        metavar="NAME:OFFSET:ERRNO",
        help="writes that contain this offset fail",
    )
    add(
        "--append-error",
        action="append",
        default=[],
        type=_append_error,
        metavar="open|write:ERRNO",
        help="what is there cannot be added to",
    )
    add("--inodes", type=int, default=0, metavar="N", help="added to every inode's number")
    add("--uid", type=int)
    add("--gid", type=int)
    add("--mode", type=_octal, help="octal permissions of files; folders get x where they have r")
    add("--max-pages", type=int, default=256, help="pages per request (256: 1 MiB)")
    add("--max-readahead", type=parse_size, metavar="BYTES", help="default: what the kernel offers")
    add(
        "--read-ahead-kb",
        type=int,
        metavar="KB",
        help="set the mount's bdi afterwards; default: leave it at 128",
    )
    add("--max-background", type=int, default=0, metavar="N", help="default: the kernel's, 12")
    add("--threads", type=int, default=4, help="to start with; more come when these wait")
    add("--count-file", metavar="PATH", help="JSON counters, written at SIGUSR1 and at the end")
    add("--live-file", metavar="PATH", help="bytes asked of the store behind so far, always up to date")
    add("--lifetime", type=float, metavar="S", help="give up after this long, hung readers included")
    add(
        "--lifeline",
        action="store_true",
        help="end when stdin ends, so that a killed test run leaves no mount",
    )
    return p


def _habits(o: argparse.Namespace) -> Habits:
    pool = None
    if o.pool is not None:
        first, most = o.pool_window
        pool = PoolShape(
            chunks=o.pool,
            chunk=o.pool_chunk,
            window=first,
            max_window=most,
            hold=o.pool_hold,
            crawl=o.pool_crawl,
            stream_rate=o.stream_rate or math.inf,
            total_rate=o.total_rate or math.inf,
        )
    crowd = o.crowd if o.crowd is not None else max(1, o.pool // o.pool_hold) if o.pool else 0
    errors: dict[bytes, list[tuple[int, int]]] = {}
    for name, offset, code in o.error_at:
        errors.setdefault(name, []).append((offset, code))
    write_errors: dict[bytes, list[tuple[int, int]]] = {}
    for name, offset, code in o.write_error_at:
        write_errors.setdefault(name, []).append((offset, code))
    same = ("keep_cache", "direct_io", "auto_inval", "attr_timeout", "entry_timeout", "stream_rate", "total_rate",
            "serial", "hang_after", "uid", "gid", "mode", "max_pages", "max_readahead", "max_background", "writes")  # fmt: skip
    return Habits(
        **{name: getattr(o, name) for name in same},
        latency=o.latency / 1000,
        meta_latency=o.meta_latency / 1000,
        pool=pool,
        crowd=crowd,
        hang_files=frozenset(os.fsencode(name) for name in o.hang_file),
        errors=errors,
        close_error=o.close_error[0],
        close_errors=o.close_error[1],
        write_errors=write_errors,
        append_errors=dict(o.append_error),
        inodes=o.inodes,
        shrink={os.fsencode(name): size for name, size in o.shrink},
    )


def _wait(server: Server, count_file: str | None, lifetime: float | None) -> None:
    end = time.monotonic() + (lifetime or 1e8)
    while (left := end - time.monotonic()) > 0:
        got = signal.sigtimedwait(_SIGNALS, left)
        if got is None or got.si_signo != signal.SIGUSR1:
            return
        if count_file:
            server.dump(count_file)


def main() -> None:
    """Mount, say so on stdout as one line of JSON, serve, unmount."""
    p = parser()
    o = p.parse_args()
    if bool(o.source) == bool(o.synthetic):
        p.error("give either --source or --synthetic")
    if o.writes and not o.source:
        p.error("--writes needs --source")
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # workers inherit this; the main thread waits for them
    mountpoint = os.path.realpath(o.mountpoint)
    tree = SourceTree(o.source) if o.source else SyntheticTree(dict(o.synthetic))
    main_thread = threading.get_ident()

    def stop() -> None:
        signal.pthread_kill(main_thread, signal.SIGTERM)

    def watch() -> None:
        os.read(0, 1)
        stop()

    if o.lifeline:
        threading.Thread(target=watch, daemon=True).start()
    device = wire.mount(mountpoint, o.fsname, o.subtype, writable=bool(o.writes))
    server = Server(device, tree, _habits(o), stop, source=o.source, live=o.live_file)
    try:
        server.run(o.threads)
        minor = wire.mount_minor(mountpoint)
        if o.read_ahead_kb is not None:
            with open(f"/sys/class/bdi/0:{minor}/read_ahead_kb", "w") as knob:
                knob.write(str(o.read_ahead_kb))
        print(json.dumps({"ready": mountpoint, "pid": os.getpid(), "minor": minor}), flush=True)
        _wait(server, o.count_file, o.lifetime)
    finally:
        try:
            wire.umount(mountpoint)
        except OSError:
            wire.umount_lazily(mountpoint)  # busy: readers get ENOTCONN when this process is gone
        if o.count_file:
            server.dump(o.count_file)
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.exc_info()[0] is None:
            os._exit(0)  # threads may be deep in a wait; closing the device ends the connection


if __name__ == "__main__":
    main()
