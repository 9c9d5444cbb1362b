"""Where a scene plays: models on a real disk, pods lifted from shipped manifests, and what can be asked about them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from scripts.pod import images
from scripts.pod.lift import container_of, lift, shipped
from scripts.pod.machine import REPO, Done, Podman
from tests.fuselab.fixtures import FuseMount
from tests.harness import cold, files_below, resident
from tests.models import Filler, make

MIB = 1 << 20
SIZE = 96 * MIB
USER = 65532  # of stager's containers
_HEALTH = "import urllib.request as r, sys; print(r.urlopen('http://127.0.0.1:8000' + sys.argv[1], timeout=20).read().decode())"
ENGINE = (Path(__file__).parent / "engine.py").read_text()


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
    return value


class Pod:
    """One pod, by its name; containers are named as in the manifest."""

    def __init__(self, podman: Podman, name: str, file: Path, room: Path) -> None:
        self._podman, self.name, self._file, self._room = podman, name, file, room

    def play(self) -> Done[str]:
        """Start it: returns when the init containers have ended and the others run, or one has failed."""
        return self._podman("kube", "play", "--network=none", str(self._file), check=False, timeout=120)

    def begin(self) -> subprocess.Popen[str]:
        """Start it in the background."""
        return self._podman.start("kube", "play", "--network=none", str(self._file))

    def inspect(self, container: str) -> dict[str, Any]:
        """What podman knows of `container`; empty before it exists."""
        done = self._podman("container", "inspect", f"{self.name}-{container}", check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return found[0] if found else {}

    def state(self, container: str) -> dict[str, Any]:
        """Its state: Status, ExitCode, OOMKilled, CgroupPath."""
        found: dict[str, Any] = self.inspect(container).get("State", {})
        return found

    def logs(self, container: str) -> str:
        """All that it printed."""
        done = self._podman("logs", f"{self.name}-{container}", check=False)
        return done.stdout + done.stderr

    def execute(self, container: str, *words: str, check: bool = True) -> Done[str]:
        """Run `words` in a running container."""
        return self._podman("exec", f"{self.name}-{container}", *words, check=check, timeout=60)

    def kill(self, container: str, signal: str = "TERM") -> None:
        """Send a signal to its PID 1."""
        self._podman("kill", f"--signal={signal}", f"{self.name}-{container}")

    def ask(self, path: str) -> Any:
        """What the stand-in for the engine answers at `path`, once it listens."""
        words = ("python3", "-c", _HEALTH, path)
        done = until(
            lambda: (d := self.execute("engine", *words, check=False)).returncode == 0 and d, "the engine"
        )
        return json.loads(done.stdout)

    def marker(self) -> dict[str, Any]:
        """The ready marker, as it lies on the shared volume; empty when there is none."""
        path = self._room / "gate" / "ready.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def cgroups(self, container: str) -> list[str]:
        """The control groups of `container` that exist."""
        identity = self.inspect(container)["Id"]
        done = subprocess.run(
            ["find", "/sys/fs/cgroup", "-type", "d", "-name", f"*{identity}*"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    def remove(self) -> None:
        """End it and take it away."""
        self._podman("pod", "rm", "--force", "--time=1", self.name, check=False)


class Bed:
    """Everything a scene needs."""

    def __init__(self, podman: Podman, room: Path) -> None:
        self.podman, self.room = podman, room
        self._count = 0

    @cached_property
    def _original(self) -> Path:
        folder = self.room / "original"
        make(str(folder), "safetensors", SIZE, 4, Filler(1))
        return folder

    def model(self, owner: int = USER) -> Path:
        """A model of 96 MiB in four shards that belongs to `owner`, none of it in memory."""
        self._count += 1
        folder = self.room / f"model{self._count}"
        shutil.copytree(self._original, folder)
        for path in (str(folder), *files_below(str(folder))):
            os.chown(path, owner, owner)
        self.chill(folder)
        return folder

    def chill(self, folder: Path) -> None:
        """Take all files below `folder` out of memory."""
        os.sync()
        cold(*files_below(str(folder)))

    def resident(self, folder: Path) -> int:
        """Bytes of the files below `folder` that are in memory, asked from outside."""
        return resident(*files_below(str(folder)))

    @contextmanager
    def mounted(self, source: Path, **habits: Any) -> Iterator[tuple[Path, FuseMount]]:
        """`source` behind a FUSE daemon with these habits."""
        mount = FuseMount(source=str(source), **habits)
        try:
            yield Path(mount.path), mount
        finally:
            mount.close()

    @contextmanager
    def pod(
        self,
        manifest: str,
        name: str,
        *,
        volumes: Mapping[str, Path] | None = None,
        image: str = images.WHOLE,
        command: Sequence[str] = ("python3", "-c", ENGINE),
        settings: Mapping[str, str] | None = None,
        memory: str | None = None,
        change: Callable[[dict[str, Any]], None] = lambda _spec: None,
    ) -> Iterator[Pod]:
        """The Deployment's pod of k8s/rendered/`manifest`.yaml, lifted and not yet played.

        `image` and `command` are of the stand-in for the engine, which runs as root like engines do. `change` gets the shipped spec before
        it is lifted.
        """
        spec = shipped(manifest)
        change(spec)
        engine = container_of(spec, "engine")
        security = {**engine.get("securityContext", {}), "runAsUser": 0}
        overlay = {"image": image, "command": list(command), "args": [], "securityContext": security}
        room = self.room / name
        room.mkdir()
        body = lift(
            spec,
            name,
            image=images.WHOLE,
            room=room,
            volumes=volumes or {},
            engine=overlay,
            settings=settings,
            memory=memory,
        )
        file = room / "pod.yaml"
        file.write_text(yaml.safe_dump(body))
        pod = Pod(self.podman, name, file, room)
        try:
            yield pod
        finally:
            pod.remove()


def run_in(
    podman: Podman, image: str, *words: str, options: Sequence[str] = (), network: str = "none"
) -> Done[str]:
    """`words` in a new container of `image` with a read-only root, and a network only if one is named."""
    limits = ("--rm", f"--network={network}", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all")
    return podman("run", *limits, *options, image, *words, check=False)


__all__ = ["MIB", "REPO", "SIZE", "USER", "Bed", "Pod", "run_in", "until"]
