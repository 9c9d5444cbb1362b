"""What a machine must have to play pods, and podman as it is called here: with a store of its own, and nothing of the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
NEEDS = {
    "podman": "podman",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "busybox": "busybox-static",
    "iptables": "iptables",
    "newuidmap": "uidmap",
}
MORE = ("catatonit", "netavark", "aardvark-dns")  # what podman looks for in folders of its own
Done = subprocess.CompletedProcess

# Some machines let nobody raise a limit (no CAP_SYS_RESOURCE), and podman asks for more in every container.
_SHIM = """#!{python}
import json, os, sys
words = sys.argv[1:]
for at, word in enumerate(words):
    for option, name in (("--bundle", "config.json"), ("--process", "")):
        path = words[at + 1] if word == option else word[len(option) + 1:] if word.startswith(option + "=") else ""
        if path:
            path = os.path.join(path, name) if name else path
            with open(path) as file:
                told = json.load(file)
            told.get("process", told).pop("rlimits", None)
            with open(path, "w") as file:
                json.dump(told, file)
os.execv({runc!r}, ["runc", *words])
"""


class Cannot(Exception):
    """This machine cannot play pods; why, in a line."""


def which(command: str) -> str | None:
    """Where `command` is; the system folders count even where PATH leaves them out."""
    return shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def require() -> None:
    """Install what is missing, or raise `Cannot`."""
    if os.geteuid() != 0:
        raise Cannot("it needs root: cgroups, mounts and files of other owners")
    if not os.path.exists("/dev/fuse"):
        raise Cannot("there is no /dev/fuse")
    missing = sorted(package for command, package in NEEDS.items() if not which(command))
    if not missing:
        return
    if not which("apt-get"):
        raise Cannot(f"missing on this machine: {', '.join(missing)}")
    quiet = {"stdout": subprocess.DEVNULL, "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
    subprocess.run(["apt-get", "-qq", "update"], check=False, **quiet)
    install = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *missing, *MORE]
    if subprocess.run(install, check=False, **quiet).returncode:
        raise Cannot(f"could not install {' '.join(missing)}")


class Podman:
    """podman with images, containers and settings below `room`, and runc behind it."""

    def __init__(self, room: Path) -> None:
        runc, podman = which("runc"), which("podman")
        assert runc is not None
        assert podman is not None
        shim = room / "runc"
        shim.write_text(_SHIM.format(python=which("python3"), runc=runc))
        shim.chmod(0o755)
        self._room = room
        self._words = [
            podman,
            *("--root", str(room / "store"), "--runroot", str(room / "run"), "--tmpdir", str(room / "tmp")),
            *("--runtime", str(shim), "--cgroup-manager", "cgroupfs", "--events-backend", "file"),
            *("--log-level", "error"),
        ]

    def __str__(self) -> str:
        return " ".join(self._words)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """podman with `words`, running, both streams in its stdout."""
        return subprocess.Popen(
            [*self._words, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPO
        )

    def __call__(self, *words: str, check: bool = True, timeout: float = 300) -> Done[str]:
        """podman with `words`, ended; with `check` a failure is an AssertionError with what it said."""
        done = subprocess.run(
            [*self._words, *words], capture_output=True, text=True, timeout=timeout, cwd=REPO, check=False
        )
        assert not check or done.returncode == 0, f"podman {' '.join(words[:3])}: {done.stderr.strip()}"
        return done

    def prove(self, image: str) -> None:
        """Run a program in `image`. Raises `Cannot` with what podman says."""
        done = self("run", "--rm", "--network=none", image, "true", check=False)
        if done.returncode:
            said: Sequence[str] = done.stderr.strip().splitlines() or ["it says nothing"]
            raise Cannot(f"podman cannot run a container here: {said[-1]}")

    def close(self) -> None:
        """End every container and remove all there is, mounts too."""
        self("pod", "rm", "--all", "--force", "--time=0", check=False)
        self("rm", "--all", "--force", "--time=0", check=False)
        self("rmi", "--all", "--force", check=False)
        for mount in ("store/overlay", "tmp", "run"):
            subprocess.run(["umount", "--lazy", str(self._room / mount)], capture_output=True, check=False)
