"""An engine for tests of ``stager bench --engine``: loads files, then serves a port or says a line, and behaves as badly as it is told.

python tests/stand_in.py MODEL [--port N] [--say TEXT] ...
"""

import argparse
import http.server
import mmap
import os
import signal
import sys
import time


def load(folder: str, how: str) -> None:
    """Read or map every file below `folder`; ``evict``: read it, and drop its pages."""
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb", buffering=0) as file:
                if how == "map" and (size := os.fstat(file.fileno()).st_size):
                    with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
                        sum(mapped[:: mmap.PAGESIZE])
                    continue
                while file.read(1 << 20):
                    pass
                if how == "evict":
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def serve(port: int, status: int, early: float) -> None:
    """Answer every question with `status`; listen `early` seconds before the first is taken."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", port), Handler)  # with a queue of five
    time.sleep(early)
    server.serve_forever()


def step_aside(*, leave: bool) -> None:
    """Go on as a child in a process group of its own, or in a session (`leave`)."""
    if os.fork():
        os._exit(0)
    if leave:
        os.setsid()
    else:
        os.setpgid(0, 0)
    time.sleep(0.3)  # the parent is known to be gone


def end_early(given: argparse.Namespace) -> None:
    """End instead of serving, where that is wanted."""
    if given.crash:
        os.kill(os.getpid(), signal.SIGSEGV)
    if given.exit is not None:
        sys.exit(given.exit)


def main() -> None:
    """Behave as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--how", default="read", choices=["read", "map", "evict", "none"])
    parser.add_argument("--port", type=int)
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--early", type=float, default=0, help="seconds from listening to serving")
    parser.add_argument("--say", default="", help="on stdout, without the end of the line at first")
    parser.add_argument("--cry", default="", help="on stderr")
    parser.add_argument("--flood", type=int, default=0, help="so many MiB of lines on stdout before")
    parser.add_argument("--exit", type=int, help="end with this instead of serving")
    parser.add_argument("--crash", action="store_true", help="end with SIGSEGV instead of serving")
    parser.add_argument("--append", help="a file that grows at every start, or is made")
    parser.add_argument("--lives", help="a file: end with 9 when it is there already, else make it")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument(
        "--fork", action="store_true", help="leave all to a child in a process group of its own, and end"
    )
    parser.add_argument(
        "--leave", action="store_true", help="leave all to a child in a session of its own, and end"
    )
    parser.add_argument("--api-key")
    given = parser.parse_args()
    if given.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if given.fork or given.leave:
        step_aside(leave=given.leave)
    if given.lives:
        try:
            os.close(os.open(given.lives, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            sys.exit("no more lives")
    if given.how != "none":
        load(given.model, given.how)
    for _ in range(given.flood):
        sys.stdout.write("not yet there\n" * ((1 << 20) // 14))
    if given.say:
        sys.stdout.write(given.say[:3])
        sys.stdout.flush()
        time.sleep(0.05)
        print(given.say[3:], flush=True)
    if given.cry:
        print(given.cry, file=sys.stderr, flush=True)
    if given.append:
        with open(os.path.join(given.model, given.append), "ab") as file:
            file.write(b"x")
    end_early(given)
    if given.port:
        serve(given.port, given.status, given.early)
    time.sleep(600)


if __name__ == "__main__":
    main()
