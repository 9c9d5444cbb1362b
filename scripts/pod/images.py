"""The images under test: a small Debian to stand on, made once and kept, and what k8s/Dockerfile makes of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.pod.machine import REPO, Cannot, Podman, which
from stager import __version__

CACHE = REPO / ".cache" / "pod"
WHOLE, WARM = f"localhost/stager:{__version__}", f"localhost/stager:{__version__}-warm"
GLIBC = "localhost/glibc:1"  # the C library and busybox, nothing else
_PYTHON, _TOOLS = "localhost/base:python", "localhost/base:tools"
_SUITE, _SUITE_PYTHON, _SUITE_GLIBC = "bookworm", (3, 11), "2.36"
_PACKAGES = ("python3", "python3-venv", "ca-certificates")
_BUILDERS = ("binutils", "libpython3.11")
_RECIPE = "1"  # raise it when the bases are made otherwise
_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
)
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def say(text: str) -> None:
    """A line about the run itself."""
    print(text, flush=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Cannot(f"{words[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def _tar(root: Path, target: Path) -> None:
    left_out = ("./dev", "./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*")
    words = ["tar", "-C", str(root), *(f"--exclude={one}" for one in left_out), "-cf", str(target), "."]
    subprocess.run(words, check=True)


def _archive() -> str:
    """The Debian archive that this machine's own apt uses."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for uri, codename in (line.split() for line in told.splitlines() if len(line.split()) == 2):
        if "-" not in codename and uri.rstrip("/").endswith("/debian"):
            return uri
    return "http://deb.debian.org/debian"


def _bases() -> Path:
    """The folder with the three bases as tar files, made now if it is not there."""
    parts = [_RECIPE, _SUITE, *_PACKAGES, *_BUILDERS]
    place = CACHE / f"bases-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"
    if place.exists():
        return place
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as name:
        root, done = Path(name, "root"), Path(name, "done")
        done.mkdir()
        include = f"--include={','.join(_PACKAGES)}"
        _run(str(which("debootstrap")), "--variant=minbase", include, _SUITE, str(root), _archive())
        _tar(root, done / "python.tar")
        _glibc(root, Path(name, "glibc"))
        _tar(Path(name, "glibc"), done / "glibc.tar")
        script = "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "
        _run("chroot", str(root), "sh", "-ec", script + " ".join(_BUILDERS))
        _tar(root, done / "tools.tar")
        done.rename(place)
    say(f"made {place.relative_to(REPO)} in {time.monotonic() - began:.0f} s")
    return place


def _glibc(root: Path, target: Path) -> None:
    """A system of a C library and busybox: what a program must bring itself is not there."""
    folder = f"lib/{os.uname().machine}-linux-gnu"
    for name in (folder, "bin", "etc", "tmp", "lib64", "proc", "sys", "dev"):
        (target / name).mkdir(parents=True)
    for name in _LIBRARIES:
        shutil.copy(root / folder / name, target / folder / name)
    for loader in (*root.glob("lib64/ld-linux*"), *root.glob("lib/ld-linux*")):
        copy = target / loader.relative_to(root)
        shutil.copy(loader, copy)
    shutil.copy(str(which("busybox")), target / "bin" / "busybox")
    for name in ("sh", "true", "ls", "cat", "find", "httpd", "wget", "tr", "env", "sleep", "chown"):
        (target / "bin" / name).symlink_to("busybox")


def _wheelhouse() -> Path:
    """What the locks name, for the bases' Python, downloaded once."""
    locks = sorted((REPO / "k8s").glob("requirements*.lock"))
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:12]
    place = CACHE / f"wheelhouse-{digest}"
    if not place.exists():
        for old in CACHE.glob("wheelhouse-*"):
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as name:
            _run(sys.executable, str(REPO / "scripts" / "lock"), "--wheelhouse", f"{name}/done")
            Path(name, "done").rename(place)
    return place


def _context(place: Path, *, wheels: Path | None) -> None:
    """The working tree as it is, as a builder would be given it, in `place`."""
    words = ["git", "-C", str(REPO), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (REPO / name).is_file():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target)
    for wheel in wheels.iterdir() if wheels else ():
        shutil.copy2(wheel, place / "k8s" / "wheelhouse" / wheel.name)


def load(podman: Podman) -> None:
    """Import the bases. Raises `Cannot` when they cannot be made, or podman cannot run them."""
    CACHE.mkdir(parents=True, exist_ok=True)
    place = _bases()
    for name, image in (("python", _PYTHON), ("tools", _TOOLS), ("glibc", GLIBC)):
        podman("import", "--quiet", str(place / f"{name}.tar"), image)
    podman.prove(GLIBC)


def build(podman: Podman, *, online: bool) -> None:
    """Build both targets of k8s/Dockerfile: from a wheelhouse without any network, or `online`, from the package index."""
    online = online or sys.version_info[:2] != _SUITE_PYTHON  # wheels are for one Python
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="context-") as name:
        _context(Path(name), wheels=None if online else _wheelhouse())
        words = ["build", "--quiet", "--file", f"{name}/k8s/Dockerfile"]
        words += ["--network=host" if online else "--network=none"]
        words += ["--secret", f"id=ca,src={_CERTIFICATES}"] if online else []
        for arg in (
            f"BASE={_PYTHON}",
            f"BUNDLE_BASE={_TOOLS}",
            f"WARM_BASE={GLIBC}",
            f"BUNDLE_GLIBC={_SUITE_GLIBC}",
        ):
            words += ["--build-arg", arg]
        for target, image in (("everything", WHOLE), ("warm", WARM)):
            began = time.monotonic()
            podman(*words, "--target", target, "--tag", image, name, timeout=580)
            size = int(podman("image", "inspect", "--format", "{{.Size}}", image).stdout)
            say(f"built {image}: {size / 1e6:.0f} MB, {time.monotonic() - began:.0f} s")
