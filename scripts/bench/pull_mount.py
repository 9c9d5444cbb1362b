"""An object-store mount to pull into: s3fs of Debian, of which ossfs 1 is a descendant, on the store of the benchmark speaking S3.

Closing a file uploads it, renaming one is a copy in the store (which costs this store nothing), as with ossfs. What s3fs buffers lies in memory.
"""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager

from bench import process
from bench.data import Stop
from bench.pull_servers import BUCKET, Sink

_START_S = 20
_END_S = 60


def missing():
    """What is not here for a mount, in words; empty when all is."""
    if not shutil.which("s3fs"):
        return "s3fs is not installed: `apt-get install s3fs`"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return ""


@contextmanager
def mounted(stager, folder):
    """A new, empty mount in the new folder `folder`, which lies in memory; gives its path. Raises `Stop`."""
    if why := missing():
        raise Stop(why)
    point, buffers, keys = (os.path.join(folder, name) for name in ("mount", "buffers", "keys"))
    os.makedirs(point)
    os.makedirs(buffers)
    with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{os.environ['OSS_ACCESS_KEY_ID']}:{os.environ['OSS_ACCESS_KEY_SECRET']}\n")
    with Sink(stager, os.path.join(folder, "room"), s3=True) as sink, open(f"{folder}/log", "wb") as log:
        options = f"url={sink.endpoint},use_path_request_style,passwd_file={keys},tmpdir={buffers}"
        daemon = subprocess.Popen(
            ["s3fs", BUCKET, point, "-f", "-o", options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            _wait(daemon, point, f"{folder}/log")
            yield point
        finally:
            _end(daemon, point)
    shutil.rmtree(folder, ignore_errors=True)


def _wait(daemon, point, log):
    end = time.monotonic() + _START_S
    while not os.path.ismount(point):
        if daemon.poll() is not None or time.monotonic() > end:
            with open(log, encoding="utf-8", errors="replace") as file:
                raise Stop(f"s3fs does not mount: {file.read()[-500:].strip()}")
        time.sleep(0.05)


def _end(daemon, point):
    end = time.monotonic() + _END_S
    while os.path.ismount(point) and time.monotonic() < end:
        process.run(["umount", point] if os.geteuid() == 0 else ["fusermount", "-u", point], check=False)
        time.sleep(0.05)
    daemon.terminate()
    daemon.wait()
