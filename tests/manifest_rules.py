"""Checks of what stager's manifests promise: command lines, probes, gates, memory, exit codes, names that exist."""

from __future__ import annotations

import re
from typing import Any

import click

from stager.cli.quick import accepted
from stager.core import errors
from tests.manifests import Doc, Pod, env_of, name_of, pods, quantity, understood, words

UNCURABLE = (
    errors.UsageError,
    errors.ResourceRefused,
    errors.AccessDenied,
    errors.NotFound,
    errors.IntegrityError,
)
NO = (errors.AnswerNo.exit_code, errors.MountDropsPages.exit_code)
"""What `--strict` ends with besides: this node cannot, and will not at the next try."""
STATES = {"partial", "unverified", "released"}


def _hosts(docs: list[Doc]) -> list[Doc]:
    """All containers that run stager; KServe appends two arguments to its own."""
    found = [c for p in pods(docs) for c in p.containers if words(c)]
    theirs = ["oss://bucket/models/r1", "/mnt/models"]
    return found + [
        {**d["spec"]["container"], "args": theirs} for d in docs if d["kind"] == "ClusterStorageContainer"
    ]


def _probes(container: Doc) -> list[tuple[str, Doc]]:
    return [(key, container[key]) for key in ("startupProbe", "readinessProbe", "livenessProbe") if key in container]  # fmt: skip


def arguments(docs: list[Doc]) -> list[str]:
    """The real commands understand every command line and every STAGER_ variable, those of probes too."""
    bad = []
    for container in _hosts(docs):
        lines = [words(container)]
        lines += [p["exec"]["command"][1:] for _, p in _probes(container) if "exec" in p]
        for number, line in enumerate(lines):
            try:
                context = understood(line or [], env_of(container) if number == 0 else None)
                if context.info_name == "ready":
                    accepted(context.params["accept"])
            except (ValueError, errors.StagerError) as exc:
                bad.append(f"{container['name']}: {exc}")
    return bad


def _contexts(pod: Pod) -> list[tuple[Doc, click.Context]]:
    return [(c, understood(line, env_of(c))) for c in pod.containers if (line := words(c))]


def gates(docs: list[Doc]) -> list[str]:
    """The marker lies on an emptyDir, the same for all; what warms ends by itself, and an engine starts in the end."""
    bad = []
    for pod in pods(docs):
        scratch = {v["name"] for v in pod.spec.get("volumes", []) if "emptyDir" in v}
        for container, context in _contexts(pod):
            if "marker" not in context.params:
                continue
            name = container["name"]
            folder = context.params["marker"].rpartition("/")[0]
            at = [
                m["name"]
                for c in pod.containers
                for m in c.get("volumeMounts", [])
                if m["mountPath"] == folder
            ]
            if not at or not set(at) <= scratch or len(set(at)) > 1:
                bad.append(f"{pod.where}: {name}: the marker is not on a shared emptyDir")
            if pod.owner["kind"] == "Deployment" and container in pod.spec.get("initContainers", []):
                if len(at) < 2:
                    bad.append(f"{pod.where}: nobody else sees the marker of {name}")
                if not (context.params["fail_open"] or context.params["strict"]):
                    bad.append(f"{pod.where}: {name} neither fails open nor is strict")
            if not context.params["timeout"]:
                bad.append(f"{pod.where}: {name} has no --timeout")
    return bad


def probes(docs: list[Doc]) -> list[str]:
    """A sidecar's startup probe outlasts its --timeout and takes all that opens the gate; --hold asks the engine; ports exist."""
    bad = []
    for pod in pods(docs):
        open_ports = {p["containerPort"] for c in pod.containers for p in c.get("ports", [])}
        for container in pod.containers:
            named = {p["name"] for p in container.get("ports", [])}
            for key, probe in _probes(container):
                if "httpGet" in probe and probe["httpGet"]["port"] not in named:
                    bad.append(f"{container['name']}: {key} asks at a port that is not there")
        for container, context in _contexts(pod):
            name, hold = container["name"], context.params.get("hold")
            if hold and hold.url and int(re.search(r":(\d+)/", hold.url)[1]) not in open_ports:  # type: ignore[index]
                bad.append(f"{name}: --hold asks {hold.url}, where nothing listens")
            listens = env_of(container).get("STAGER_METRICS_LISTEN")
            if listens and int(listens.rpartition(":")[2]) not in open_ports:
                bad.append(f"{name}: metrics at {listens}, a port that is not declared")
            if container.get("restartPolicy") == "Always":
                bad += [f"{name}: {what}" for what in _sidecar(container, context)]
    return bad


def _sidecar(container: Doc, context: click.Context) -> list[str]:
    probe = container.get("startupProbe", {})
    patience = probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)
    asked = understood(probe["exec"]["command"][1:]).params if "exec" in probe else {}
    wrong = {
        f"startupProbe gives up after {patience} s, before --timeout": patience <= context.params["timeout"],
        f"startupProbe does not accept {', '.join(sorted(STATES))}": set(asked.get("accept", "").split(","))
        != STATES,
        "startupProbe looks at another marker": asked.get("marker") != context.params["marker"],
        "a sidecar without --idle ends and is restarted": not context.params["idle"],
    }
    return [what for what, is_so in wrong.items() if is_so]


def memory(docs: list[Doc]) -> list[str]:
    """What warms has no memory limit; or all containers have limits, of at least the engine's, and stager is told the pod's."""
    bad = []
    for pod in pods(docs):
        limits = {c["name"]: c.get("resources", {}).get("limits", {}).get("memory") for c in pod.containers}
        for container, context in _contexts(pod):
            name = container["name"]
            if context.info_name not in ("warm", "fetch") or limits[name] is None:
                continue
            told = [e["valueFrom"]["resourceFieldRef"] for e in container.get("env", []) if e["name"] == "STAGER_LIMIT" and "valueFrom" in e]  # fmt: skip
            if (context.params.get("reserve") or 0) >= quantity(limits["engine"] or "1E"):
                bad.append(f"{pod.where}: {name} reserves all that there is, so nothing is ever warm")
            if told != [{"containerName": "engine", "resource": "limits.memory"}]:
                bad.append(f"{pod.where}: {name} has a limit and is not told the engine's")
            elif limits["engine"] is None or quantity(limits[name]) < quantity(limits["engine"]):
                bad.append(f"{pod.where}: {name} has a lower limit than the engine")
            if any(c["resources"].get("limits", {}).get(r) != c["resources"]["requests"].get(r) for c in pod.containers for r in ("cpu", "memory")):  # fmt: skip
                bad.append(f"{pod.where}: not Guaranteed")
    return bad


def _ends(rules: list[Doc], names: set[str]) -> list[str]:
    bad = []
    for rule in rules:
        on = rule.get("onExitCodes")
        if on is None:
            continue
        if (
            on["operator"] != "In"
            or on["containerName"] not in names
            or on["values"] != sorted(set(on["values"]))
        ):
            bad.append("a rule of podFailurePolicy that Kubernetes refuses, or that never matches")
        # What is wrong with one node must not end the others' runs; what is wrong with the command ends all.
        if rule["action"] == "FailIndex" and not {*on["values"]} <= {*NO, errors.ResourceRefused.exit_code}:
            bad.append("podFailurePolicy lets the other nodes try what cannot succeed")
        if rule["action"] not in ("FailJob", "FailIndex"):
            bad.append("podFailurePolicy does not fail at once")
    return bad


def policies(docs: list[Doc]) -> list[str]:
    """A Job fails at once by the exit codes that no retry cures, and by no others; it is cleaned up; nothing restarts in place."""
    codes = sorted(kind.exit_code for kind in UNCURABLE)
    bad = []
    for pod in pods(docs):
        ours = [c for c in pod.ours if words(c)]
        bad += [
            f"{pod.where}: {c['name']}: terminationMessagePolicy"
            for c in ours
            if c.get("terminationMessagePolicy") != "FallbackToLogsOnError"
        ]
        if pod.owner["kind"] != "Job":
            continue
        spec = pod.owner["spec"]
        rules = spec.get("podFailurePolicy", {}).get("rules", [])
        bad += [f"{pod.where}: {what}" for what in _ends(rules, {c["name"] for c in pod.containers})]
        strict = [c for c, context in _contexts(pod) if context.params.get("strict")]
        told = {code for r in rules for code in r.get("onExitCodes", {}).get("values", [])}
        if told != {*codes, *(NO if strict else ())}:
            bad.append(f"{pod.where}: podFailurePolicy ends on {sorted(told)}")
        if not any(r["action"] == "Ignore" and {"type": "DisruptionTarget"} in [{"type": c["type"]} for c in r["onPodConditions"]] for r in rules if "onPodConditions" in r):  # fmt: skip
            bad.append(f"{pod.where}: a drained node counts as a failure")
        if pod.spec.get("restartPolicy") != "Never":
            bad.append(f"{pod.where}: restartPolicy")
        if not spec.get("ttlSecondsAfterFinished"):
            bad.append(f"{pod.where}: ttlSecondsAfterFinished")
        if not spec.get("backoffLimit") and not spec.get("backoffLimitPerIndex"):
            bad.append(f"{pod.where}: no backoff limit")
    return bad


def references(docs: list[Doc]) -> list[str]:
    """Whatever is named is here: claims, volumes, service accounts, config maps, secrets that are not optional, containers."""
    here = {name_of(doc) for doc in docs}
    bad = []
    for pod in pods(docs):
        wanted = [f"PersistentVolumeClaim/{v['persistentVolumeClaim']['claimName']}" for v in pod.spec.get("volumes", []) if v.get("persistentVolumeClaim")]  # fmt: skip
        wanted += (
            [f"ServiceAccount/{pod.spec['serviceAccountName']}"] if "serviceAccountName" in pod.spec else []
        )
        names = {c["name"] for c in pod.containers}
        for container in pod.containers:
            for source in (e.get("valueFrom", {}) for e in container.get("env", [])):
                for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                    if key in source and not source[key].get("optional"):
                        wanted.append(f"{kind}/{source[key]['name']}")
                if source.get("resourceFieldRef", {}).get("containerName", container["name"]) not in names:
                    bad.append(f"{pod.where}: no container {source['resourceFieldRef']['containerName']}")
        bad += [f"{pod.where}: {name} is not here" for name in wanted if name not in here]
    for doc in docs:
        spec = doc.get("spec", {})
        if doc["kind"] == "PersistentVolumeClaim":
            bad += _claim(doc, docs)
        if (
            doc["kind"] == "InferenceService"
            and f"ServiceAccount/{spec['predictor']['serviceAccountName']}" not in here
        ):
            bad.append(f"{name_of(doc)}: no such service account")
    return bad


def _claim(doc: Doc, docs: list[Doc]) -> list[str]:
    volumes = [d for d in docs if name_of(d) == f"PersistentVolume/{doc['spec']['volumeName']}"]
    if not volumes:
        return [f"{name_of(doc)}: PersistentVolume/{doc['spec']['volumeName']} is not here"]
    volume, claim = volumes[0]["spec"], doc["spec"]
    same: dict[str, tuple[Any, Any]] = {
        "storageClassName": (volume["storageClassName"], claim["storageClassName"]),
        "accessModes": (volume["accessModes"], claim["accessModes"]),
        "storage": (volume["capacity"]["storage"], claim["resources"]["requests"]["storage"]),
        "volumeHandle": (volume["csi"]["volumeHandle"], volumes[0]["metadata"]["name"]),
    }
    return [f"{name_of(doc)}: {key}: {a} and {b}" for key, (a, b) in same.items() if a != b]


def selectors(docs: list[Doc]) -> list[str]:
    """Deployments, Services, monitors and anti-affinity select the pods that they mean, and name ports that those have."""
    bad = []

    def selected(chosen: Doc) -> list[Pod]:
        return [p for p in pods(docs) if chosen.items() <= p.meta["labels"].items()]

    for doc in docs:
        spec = doc.get("spec", {})
        if doc["kind"] == "Service":
            chosen, ports = spec["selector"], [p["targetPort"] for p in spec["ports"]]
        elif doc["kind"] == "PodMonitor":
            chosen, ports = spec["selector"]["matchLabels"], [e["port"] for e in spec["podMetricsEndpoints"]]
        elif doc["kind"] in ("Deployment", "DaemonSet"):
            chosen, ports = spec["selector"]["matchLabels"], []
        else:
            continue
        found = selected(chosen)
        if not found:
            bad.append(f"{name_of(doc)} selects no pod")
        there = {p["name"] for pod in found for c in pod.containers for p in c.get("ports", [])}
        bad += [f"{name_of(doc)}: no port `{port}`" for port in ports if port not in there]
    for pod in pods(docs):
        apart = pod.spec.get("affinity", {}).get("podAntiAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])  # fmt: skip
        if pod.owner["spec"].get("completionMode") == "Indexed":
            if [t["topologyKey"] for t in apart if pod in selected(t["labelSelector"]["matchLabels"])] != ["kubernetes.io/hostname"]:  # fmt: skip
                bad.append(f"{pod.where}: two of its pods may be on one node")
            if pod.owner["spec"]["parallelism"] != pod.owner["spec"]["completions"]:
                bad.append(f"{pod.where}: not all of its pods run at once")
    return bad
