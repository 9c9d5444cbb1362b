"""``scripts/test-pod``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from scripts.pod import images
from scripts.pod.bed import Bed
from scripts.pod.images import CACHE, say
from scripts.pod.machine import Cannot, Podman, require
from scripts.pod.scenes import SCENES, Scene


def main(argv: list[str]) -> int:
    """0 when every scene is true, or this machine cannot play any; else 1."""
    options = argparse.ArgumentParser(prog="scripts/test-pod")
    options.add_argument("--only", default="", metavar="WORD")
    options.add_argument("--online", action="store_true")
    options.add_argument("--keep", action="store_true")
    asked = options.parse_args(argv)
    scenes = [scene for scene in SCENES if asked.only in scene.__name__]
    try:
        require()
    except Cannot as why:
        say(f"test-pod: skipped, {why}")
        return 0
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))  # and clean up on the way
    CACHE.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(dir=CACHE, prefix="room-"))
    room.chmod(0o755)  # stager's containers have a user of their own
    podman = Podman(room)
    try:
        images.load(podman)
        images.build(podman, online=asked.online)
        place = room / "bed"
        place.mkdir()
        bed = Bed(podman, place)
        failed = [scene for scene in scenes if not _play(scene, bed)]
    except Cannot as why:
        say(f"test-pod: skipped, {why}")
        return 0
    finally:
        if asked.keep:
            say(f"kept: {podman}")
        else:
            _clean(podman, room)
    say(f"{len(scenes) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


def _play(scene: Scene, bed: Bed) -> bool:
    began = time.monotonic()
    try:
        scene(bed)
    except Exception as exc:
        if not isinstance(exc, AssertionError) or not str(exc):
            traceback.print_exc()
        say(f"FAILED {scene.__name__}: {scene.__doc__}\n    {exc}")
        return False
    say(f"ok {scene.__name__} ({time.monotonic() - began:.1f} s)")
    return True


def _clean(podman: Podman, room: Path) -> None:
    podman.close()
    shutil.rmtree(room, ignore_errors=True)
    if room.exists():
        say(f"left behind: {os.path.relpath(room)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
