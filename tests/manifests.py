"""Checks of Kubernetes manifests beyond what schemas know. Each takes the documents of one file and gives a list of complaints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import click
import kubernetes_validate

import stager
from stager.cli.app import _stager
from stager.core import errors

Doc = dict[str, Any]
CRDS: dict[str, dict[str, set[str]]] = {  # kinds that no schema here knows: all that a path must have, after `?` what it may
    "PodMonitor": {"spec": {"selector", "podMetricsEndpoints"}, "spec.podMetricsEndpoints": {"port", "?interval", "?path"}},
    "ClusterStorageContainer": {
        "spec": {"container", "supportedUriFormats", "workloadType"},
        "spec.supportedUriFormats": {"?prefix", "?regex"},
    },
    "InferenceService": {
        "spec": {"predictor"},
        "spec.predictor": {"model", "?labels", "?serviceAccountName", "?securityContext"},
        "spec.predictor.model": {"modelFormat", "storageUri", "resources"},
        "spec.predictor.model.modelFormat": {"name", "?version"},
    },
}  # fmt: skip
ENUMS = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "mountPropagation": {"None", "HostToContainer", "Bidirectional"},
    "imagePullPolicy": {"Always", "Never", "IfNotPresent"},
    "persistentVolumeReclaimPolicy": {"Retain", "Delete"},
    "completionMode": {"NonIndexed", "Indexed"},
    "action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "operator": {"In", "NotIn", "Exists", "DoesNotExist", "Equal"},
    "medium": {"", "Memory"},
    "accessModes": {"ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"},
    "fuseType": {"ossfs", "ossfs2"},
}
OWN_TYPES = {
    "hostPath": {"Directory", "DirectoryOrCreate"},
    "seccompProfile": {"RuntimeDefault"},
}
# The containers of stager's image that may be root, and why: each does one thing that only root may.
ROOT = {
    "own-models": {
        "runAsNonRoot": False,
        "runAsUser": 0,
        "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
    },
    "mount": {"privileged": True, "runAsUser": 0},
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kMGTPE]|[KMGTPE]i)?")
_POWERS = "kMGTPE"


def quantity(text: str) -> Fraction:
    """What a Kubernetes quantity says, as a number. Raises `ValueError` for what is none; whole bytes and milli-CPUs only."""
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise ValueError(text)
    number, unit = Fraction(match[1]), match[2] or ""
    if unit == "m":
        return number / 1000
    power = _POWERS.index(unit[0].replace("K", "k")) + 1 if unit else 0
    return number * (1024 if unit.endswith("i") else 1000) ** power


@dataclass(frozen=True)
class Pod:
    """A pod template: where it is, its own metadata, its spec, and the document around it."""

    where: str
    meta: Doc
    spec: Doc
    owner: Doc

    @property
    def containers(self) -> list[Doc]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ours(self) -> list[Doc]:
        return [c for c in self.containers if of_stager(c)]


def pods(docs: list[Doc]) -> list[Pod]:
    """The pod templates of the documents."""
    found = []
    for doc in docs:
        if doc["kind"] in ("Deployment", "Job", "DaemonSet"):
            template = doc["spec"]["template"]
            found.append(Pod(name_of(doc), template["metadata"], template["spec"], doc))
    return found


def name_of(doc: Doc) -> str:
    return f"{doc['kind']}/{doc['metadata']['name']}"


def of_stager(container: Doc) -> bool:
    """Whether the container runs stager's image."""
    return container["image"].split(":")[0].split("/")[-1] == "stager"


def words(container: Doc) -> list[str] | None:
    """The words after `stager` that the container runs, or None when it runs another program."""
    line = [*container.get("command", []), *container.get("args", [])]
    if not container.get("command"):
        return line if of_stager(container) else None
    return line[1:] if line[0] in ("stager", "/opt/stager/stager") else None


def understood(line: list[str], env: Doc | None = None) -> click.Context:
    """The context of the real command for `line`, every option converted. Raises `ValueError` saying what is wrong."""
    variables = {name: str(value) for name, value in (env or {}).items()}

    def told(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"$({match[1]}) is not set")
        return variables[match[1]]

    name, *rest = (re.sub(r"\$\((\w+)\)", told, word) for word in line)
    command = _stager.get_command(click.Context(_stager), name)
    if command is None:
        raise ValueError(f"no command `{name}`")
    with _environment(variables):
        try:
            context = command.make_context(name, rest)
        except (click.ClickException, errors.StagerError) as exc:
            raise ValueError(f"{name}: {getattr(exc, 'message', exc)}") from exc
    known = {param.envvar for param in command.params}
    if strange := sorted(v for v in variables if v.startswith("STAGER_") and v not in known):
        raise ValueError(f"{name}: no option for {', '.join(strange)}")
    return context


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith("STAGER_")]:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def env_of(container: Doc) -> Doc:
    """The container's variables; what only the cluster knows is a plausible number of bytes, or a word."""
    return {e["name"]: e.get("value", "68719476736" if "resourceFieldRef" in e.get("valueFrom", {}) else "secret") for e in container.get("env", [])}  # fmt: skip


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, key, value) of everything below `node`."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{key}"
        yield here, str(key), value
        yield from _leaves(value, here)


def _dig(doc: Doc, path: str) -> Any:
    for key in path.split("."):
        doc = doc.get(key, {}) if isinstance(doc, dict) else {}
    return doc


def _unlike(doc: Doc) -> list[str]:
    """What a custom resource lacks, and what it has that nobody looks at."""
    bad = []
    for path, keys in CRDS[doc["kind"]].items():
        found = _dig(doc, path)
        for part in found if isinstance(found, list) else [found]:
            there, must = set(part), {key for key in keys if key[0] != "?"}
            bad += [f"{name_of(doc)}: {path}.{key} is missing" for key in sorted(must - there)]
            bad += [
                f"{name_of(doc)}: {path}.{key} is nothing"
                for key in sorted(there - {k.lstrip("?") for k in keys})
            ]
    return bad


def _as_pods(doc: Doc) -> list[Doc]:
    """The parts of a custom resource that are those of a pod, as one that the schemas know."""
    container = {
        "name": "model",
        "image": "model:1",
        "resources": _dig(doc, "spec.predictor.model.resources"),
    }
    if doc["kind"] == "ClusterStorageContainer":
        container = doc["spec"].get("container", {})
    more = {
        key: _dig(doc, f"spec.predictor.{key}") or None for key in ("serviceAccountName", "securityContext")
    }
    spec = {"containers": [container], **{key: value for key, value in more.items() if value}}
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": doc["metadata"], "spec": spec}]


def schema(docs: list[Doc], version: str) -> list[str]:
    """What the schemas of that Kubernetes version refuse, unknown fields included; the same of custom resources by `CRDS`."""
    bad = [line for doc in docs if doc["kind"] in CRDS for line in _unlike(doc)]
    for doc in [one for d in docs for one in (_as_pods(d) if d["kind"] in CRDS else [d])]:
        try:
            kubernetes_validate.validate(doc, version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            bad.append(f"{name_of(doc)}: {'.'.join(map(str, exc.path))}: {exc.message}")
    return bad


def labels(docs: list[Doc]) -> list[str]:
    """The four labels everywhere, on templates too; stager's own things carry its version, engines their image's."""
    wanted = [f"app.kubernetes.io/{key}" for key in ("name", "component", "part-of", "version")]
    metas = [(name_of(d), d["metadata"]) for d in docs] + [
        (f"{p.where} template", p.meta) for p in pods(docs)
    ]
    bad = [f"{where}: no label {key}" for where, meta in metas for key in wanted if key not in meta.get("labels", {})]  # fmt: skip
    for doc in docs:
        mine = doc["metadata"].get("labels", {})
        if mine.get(wanted[2]) == "stager" and mine.get(wanted[3]) != stager.__version__:
            bad.append(f"{name_of(doc)}: version is {mine.get(wanted[3])}")
    return bad


def images(docs: list[Doc]) -> list[str]:
    """Every image has a version as its tag; stager's is this version."""
    containers = [c for p in pods(docs) for c in p.containers]
    containers += [_dig(d, "spec.container") for d in docs if d["kind"] == "ClusterStorageContainer"]
    bad = []
    for container in containers:
        image = container.get("image", "")
        tag = image.rpartition("/")[2].partition(":")[2]
        if not re.search(r"\d", tag):
            bad.append(f"{container['name']}: image `{image}` is not pinned")
        elif of_stager(container) and tag != stager.__version__:
            bad.append(f"{container['name']}: image `{image}` is not {stager.__version__}")
    return bad


def quantities(docs: list[Doc]) -> list[str]:
    """Quantities can be read, and requests are within limits."""
    bad = []
    for doc in docs:
        for path, key, value in _leaves(doc):
            asked = (
                value
                if key in ("requests", "limits", "capacity")
                else {key: value}
                if key == "sizeLimit"
                else {}
            )
            for name, text in asked.items():
                try:
                    quantity(text)
                except (ValueError, TypeError):
                    bad.append(f"{name_of(doc)}{path}: `{text}` is no quantity of {name}")
    for pod in pods(docs):
        for container in pod.containers:
            resources = container.get("resources", {})
            if not resources.get("requests"):
                bad.append(f"{container['name']}: no requests")
            for name, limit in resources.get("limits", {}).items():
                if not bad and quantity(resources.get("requests", {}).get(name, "0")) > quantity(limit):
                    bad.append(f"{container['name']}: {name} asks for more than its limit")
    return bad


def enums(docs: list[Doc]) -> list[str]:
    """Words that schemas take as any string."""
    bad = []
    for doc in docs:
        for path, key, value in _leaves(doc):
            said = (value if isinstance(value, list) else [value]) if key in ENUMS else []
            bad += [f"{name_of(doc)}{path}: `{word}`" for word in said if word not in ENUMS[key]]
            if key in OWN_TYPES and value.get("type") not in OWN_TYPES[key]:
                bad.append(f"{name_of(doc)}{path}: type `{value.get('type')}`")
    return bad


def pod_settings(docs: list[Doc]) -> list[str]:
    """What every pod here is like."""
    bad = []
    for pod in pods(docs):
        security = pod.spec.get("securityContext", {})
        mounts_only = [c["name"] for c in pod.containers] in (["mount"], ["hold"])
        wanted = {
            "enableServiceLinks": pod.spec.get("enableServiceLinks") is False,
            "automountServiceAccountToken": pod.spec.get("automountServiceAccountToken") is False,
            "terminationGracePeriodSeconds": pod.spec.get("terminationGracePeriodSeconds", 0)
            >= (1 if mounts_only else 30),
            "fsGroup": mounts_only or security.get("fsGroup") == 65532,
            "fsGroupChangePolicy": mounts_only or security.get("fsGroupChangePolicy") == "OnRootMismatch",
            "seccompProfile": mounts_only or security.get("seccompProfile") == {"type": "RuntimeDefault"},
        }
        bad += [f"{pod.where}: {key}" for key, right in wanted.items() if not right]
    return bad


def security(docs: list[Doc]) -> list[str]:
    """What stager's containers may do: nothing; no container may gain rights. Exceptions are in `ROOT`."""
    nobody = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "capabilities": {"drop": ["ALL"]},
    }
    hosts = [c for p in pods(docs) for c in p.containers]
    hosts += [_dig(d, "spec.container") for d in docs if d["kind"] == "ClusterStorageContainer"]
    bad = []
    for container in hosts:
        context, name = container.get("securityContext", {}), container["name"]
        wanted: Doc = {"allowPrivilegeEscalation": False}
        if of_stager(container):
            wanted = {"readOnlyRootFilesystem": True, **ROOT.get(name, nobody)}
            if not wanted.get("privileged"):
                wanted |= {"allowPrivilegeEscalation": False, "seccompProfile": {"type": "RuntimeDefault"}}
        bad += [f"{name}: {key} is {context.get(key)}" for key, value in wanted.items() if context.get(key) != value]  # fmt: skip
        if context.get("privileged") and not wanted.get("privileged"):
            bad.append(f"{name}: privileged")
    return bad


def mounts(docs: list[Doc]) -> list[str]:
    """Models are mounted read-only but where they are written; what is mounted exists, and what exists is mounted."""
    bad = []
    for pod in pods(docs):
        volumes = [v["name"] for v in pod.spec.get("volumes", [])]
        used = [(c, m) for c in pod.containers for m in c.get("volumeMounts", [])]
        bad += [f"{pod.where}: no volume `{m['name']}`" for _, m in used if m["name"] not in volumes]
        bad += [f"{pod.where}: volume `{v}` is not used" for v in volumes if v not in {m["name"] for _, m in used}]  # fmt: skip
        for container, mount in used:
            writes = container["name"] in ("fetch", "own-models")
            if mount["name"] == "models" and mount.get("readOnly", False) is writes:
                bad.append(
                    f"{pod.where}: {container['name']} mounts models {'' if writes else 'not '}read-only"
                )
            if [m["mountPath"] for m in container["volumeMounts"]].count(mount["mountPath"]) > 1:
                bad.append(f"{pod.where}: {mount['mountPath']} is mounted twice")
    return bad
