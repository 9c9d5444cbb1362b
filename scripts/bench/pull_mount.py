"""Object-store mounts to pull into: rclone's and s3fs of Debian, on the store of the benchmark speaking S3.

On both, closing a file says that the store has it, and renaming one is a copy in the store, as with ossfs. rclone uploads while it is
written to; s3fs, of which ossfs 1 is a descendant, when it is closed, and until then buffers in memory here.
"""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass

from bench import process
from bench.data import Stop
from bench.pull_servers import BUCKET, Sink

RCLONE, S3FS = "rclone", "s3fs"
_START_S = 20
_END_S = 60
_ARRIVE_S = 120


@dataclass
class Mounted:
    """A mount at `point`, and the store behind it."""

    point: str
    sink: Sink

    def arrived(self, wanted):
        """Waits until the store has the objects `wanted` ({key: [size, CRC-64]}); gives the seconds. Raises `Stop` when one does not come."""
        began = time.monotonic()
        while True:
            there = self.sink.control("GET", "objects")
            differing = sorted(key for key, one in wanted.items() if there.get(key) != one)
            if not differing:
                return time.monotonic() - began
            if time.monotonic() > began + _ARRIVE_S:
                raise Stop(f"the store has not got {differing[0]} as it is")
            time.sleep(0.02)


def missing(kind):
    """What is not here for a mount, in words; empty when all is."""
    if not shutil.which(kind):
        return f"{kind} is not installed: `apt-get install {kind}`"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return ""


@contextmanager
def mounted(stager, folder, kind, *, away=None, discard=False):
    """A new, empty mount by `kind` in the new folder `folder`, which lies in memory; `away` and `discard` are the store's. Raises `Stop`."""
    if why := missing(kind):
        raise Stop(why)
    point = os.path.join(folder, "mount")
    os.makedirs(point)
    with Sink(stager, os.path.join(folder, "room"), s3=True, away=away, discard=discard) as sink:
        argv, more = (_rclone if kind == RCLONE else _s3fs)(sink.endpoint, folder, point)
        # Nothing else of the environment: what it says of certificates or proxies is meant for others.
        environment = {"PATH": os.environ["PATH"], "HOME": folder, **more}
        with open(f"{folder}/log", "wb") as log:
            daemon = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait(daemon, kind, point, f"{folder}/log")
            yield Mounted(point, sink)
        finally:
            _end(daemon, point)
    shutil.rmtree(folder, ignore_errors=True)


def _keys():
    return os.environ["OSS_ACCESS_KEY_ID"], os.environ["OSS_ACCESS_KEY_SECRET"]


def _rclone(endpoint, folder, point):
    """Its command and environment: its defaults, so bytes go to the store as they come and lie on no disk."""
    name, secret = _keys()
    remote = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": endpoint,
        "ACCESS_KEY_ID": name,
        "SECRET_ACCESS_KEY": secret,
        "NO_CHECK_BUCKET": "true",
    }
    told = {f"RCLONE_CONFIG_STORE_{option}": text for option, text in remote.items()}
    told |= {"RCLONE_CONFIG": f"{folder}/none", "RCLONE_CACHE_DIR": f"{folder}/cache"}
    return ["rclone", "mount", f"store:{BUCKET}", point], told


def _s3fs(endpoint, folder, point):
    """Its command and environment: its defaults, but for its buffers, which lie in memory."""
    buffers, keys = (os.path.join(folder, name) for name in ("buffers", "keys"))
    os.makedirs(buffers)
    with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{':'.join(_keys())}\n")
    options = f"url={endpoint},use_path_request_style,passwd_file={keys},tmpdir={buffers}"
    return ["s3fs", BUCKET, point, "-f", "-o", options], {}


def _wait(daemon, kind, point, log):
    end = time.monotonic() + _START_S
    while not os.path.ismount(point):
        if daemon.poll() is not None or time.monotonic() > end:
            with open(log, encoding="utf-8", errors="replace") as file:
                raise Stop(f"{kind} does not mount: {file.read()[-500:].strip()}")
        time.sleep(0.05)


def _end(daemon, point):
    end = time.monotonic() + _END_S
    while os.path.ismount(point) and time.monotonic() < end:
        process.run(["umount", point] if os.geteuid() == 0 else ["fusermount", "-u", point], check=False)
        time.sleep(0.05)
    daemon.terminate()
    daemon.wait()
