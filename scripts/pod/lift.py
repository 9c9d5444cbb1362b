"""A Pod for podman out of a shipped manifest: the pod's own spec, less what podman does not know, with small sizes and folders of a test.

podman knows Pods only, no claims, no native sidecars (they run beside the others from the start), no startup and readiness probes (the
scenes ask themselves), and gives an emptyDir to root alone; a kubelet makes it writable for all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.pod.machine import REPO

RENDERED = REPO / "k8s" / "rendered"
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_LEFT_OUT = (*_PROBES, "ports", "terminationMessagePolicy", "restartPolicy", "lifecycle")
_OF_A_CLUSTER = ("nodeSelector", "tolerations", "affinity", "serviceAccountName")
_KEEP_INIT = {"io.podman.annotations.init.container.type": "always"}  # and with it its log


def shipped(manifest: str, kind: str = "Deployment") -> dict[str, Any]:
    """The pod's spec of the `kind` in k8s/rendered/`manifest`.yaml, as it is."""
    with (RENDERED / f"{manifest}.yaml").open() as file:
        for document in yaml.safe_load_all(file):
            if document["kind"] == kind:
                spec: dict[str, Any] = document["spec"]["template"]["spec"]
                return spec
    raise LookupError(f"{manifest} has no {kind}")


def container_of(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The container `name` of a pod's spec."""
    every = [*spec.get("initContainers", ()), *spec["containers"]]
    found: dict[str, Any] = next(one for one in every if one["name"] == name)
    return found


def lift(
    spec: Mapping[str, Any],
    name: str,
    *,
    image: str,
    room: Path,
    volumes: Mapping[str, Path],
    engine: Mapping[str, Any],
    settings: Mapping[str, str] | None = None,
    memory: str | None = None,
) -> dict[str, Any]:
    """The Pod `name` made of `spec`.

    stager's containers get `image`; the container ``engine`` is overlaid with `engine`, for vLLM is not here. `volumes` are the folders
    to use for volumes by name, all others are new ones below `room`. `settings` replace values in the environments, or come to
    them. `memory` stands for every memory limit of the manifest: models are small here.
    """
    pod = {key: copy.deepcopy(value) for key, value in spec.items() if key not in _OF_A_CLUSTER}
    sidecars = [one for one in pod.get("initContainers", ()) if one.get("restartPolicy") == "Always"]
    pod["initContainers"] = [one for one in pod.get("initContainers", ()) if one not in sidecars]
    pod["containers"] = [*sidecars, *pod["containers"]]
    for one in (*pod["initContainers"], *pod["containers"]):
        if one["name"] == "engine":
            one.update(copy.deepcopy(dict(engine)))
        else:
            assert one["image"].startswith("stager:"), one["image"]
            one["image"] = image
        _fit(one, settings or {}, memory)
    pod["volumes"] = [_volume(one, volumes, room) for one in pod.get("volumes", ())]
    pod["restartPolicy"] = "Never"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": _KEEP_INIT},
        "spec": pod,
    }


def _fit(container: dict[str, Any], settings: Mapping[str, str], memory: str | None) -> None:
    for key in _LEFT_OUT:
        container.pop(key, None)
    limit = container.pop("resources", {}).get("limits", {}).get("memory")
    if limit is not None:
        container["resources"] = {"limits": {"memory": memory or limit}}
    environment = []
    for one in container.get("env", ()):
        if one["name"] in settings:
            environment.append({"name": one["name"], "value": settings[one["name"]]})
        elif not one.get("valueFrom", {}).get("secretKeyRef"):
            environment.append(one)
    container["env"] = environment
    for key in ("args", "command"):  # as a kubelet does it; this podman does not
        for number, word in enumerate(container.get(key, ())):
            for one in environment:
                word = word.replace(f"$({one['name']})", str(one.get("value", "")))
            container[key][number] = word


def _volume(volume: Mapping[str, Any], volumes: Mapping[str, Path], room: Path) -> dict[str, Any]:
    folder = volumes.get(volume["name"])
    if folder is None:
        assert "emptyDir" in volume, f"no folder is named for the volume {volume['name']}"
        folder = room / volume["name"]
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    return {"name": volume["name"], "hostPath": {"path": str(folder), "type": "Directory"}}
