"""Checks of what lies between pods: volumes and their mounts, nodes that are warmed, names in more than one file, time to roll out."""

from __future__ import annotations

import re

from tests.manifests import Doc, Pod, env_of, name_of, pods, understood, words

USER = 65532
DRIVERS = {  # the CSI drivers of ACK, and what their volumes here say, no more and no less
    "ossplugin.csi.alibabacloud.com": {"fuseType", "bucket", "path", "url", "otherOpts"},
    "nasplugin.csi.alibabacloud.com": {"server", "path"},
}
OSSFS2 = {"uid", "gid", "prefetch_chunks", "memory_data_cache_size"}
"""The options used here: one that ossfs 2 does not know, and nothing is mounted."""
IMAGES_S = 600
LOADING_S = 1800
PLACING_S = 60


def volumes(docs: list[Doc]) -> list[str]:
    """Volumes are mounted by ossfs 2 or as NFS, with attributes that the driver knows, and files that stager's user may count."""
    bad = []
    for doc in (d for d in docs if d["kind"] == "PersistentVolume"):
        spec, where = doc["spec"], name_of(doc)
        said = spec["csi"].get("volumeAttributes", {})
        wanted = DRIVERS.get(spec["csi"]["driver"])
        if wanted is None:
            bad.append(f"{where}: no CSI driver `{spec['csi']['driver']}`")
        elif set(said) != wanted:
            bad.append(f"{where}: attributes that are not those of the driver: {sorted(set(said) ^ wanted)}")
        if "fuseType" in said:
            bad += [f"{where}: {what}" for what in _ossfs2(said, spec)]
        elif not {"nolock", "vers=3"} <= set(spec.get("mountOptions", [])):
            bad.append(f"{where}: not mounted as NAS asks for")
    return bad


def _ossfs2(said: Doc, spec: Doc) -> list[str]:
    options = re.findall(r"-o (\w+)=(\S+)", said.get("otherOpts", ""))
    whole = " ".join(f"-o {key}={value}" for key, value in options) == said.get("otherOpts")
    wrong = {
        f"mounted by {said['fuseType']}": said["fuseType"] != "ossfs2",
        "otherOpts is not a list of -o key=value": not whole,
        "an option that ossfs 2 refuses": not {key for key, _ in options} <= OSSFS2,
        "its files do not belong to stager's user": not {("uid", str(USER)), ("gid", str(USER))}
        <= set(options),
        "mountOptions, which the driver ignores for ossfs 2": "mountOptions" in spec,
        "no Secret with the keys": "name" not in spec["csi"].get("nodePublishSecretRef", {}),
    }
    return [what for what, is_so in wrong.items() if is_so]


def folders(docs: list[Doc]) -> list[str]:
    """A folder of the node that stager fetches into belongs to its user: by `own-models` before, or by the mount's options."""
    bad = []
    for pod in pods(docs):
        named = {c["name"]: c for c in pod.containers}
        node = [
            v["hostPath"] for v in pod.spec.get("volumes", []) if v["name"] == "models" and "hostPath" in v
        ]
        if "fetch" not in named or not node:
            continue
        into = (words(named["fetch"]) or [])[2]
        user, group = (named["fetch"]["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
        if node[0]["type"] == "DirectoryOrCreate":
            before = [c["name"] for c in pod.spec["initContainers"]]
            if before.index("fetch") != before.index("own-models") + 1 if "own-models" in before else True:
                bad.append(f"{pod.where}: nobody gives the folder to stager's user before fetch")
            elif named["own-models"]["command"] != ["chown", f"{user}:{group}", into]:
                bad.append(f"{pod.where}: own-models does not give {into} to {user}:{group}")
        else:
            mounting = " ".join(w for p in pods(docs) for c in p.containers if c["name"] == "mount" for w in c["command"])  # fmt: skip
            wanted = (f"uid={user},gid={group}", "huge=always", f"models {node[0]['path']} ")
            bad += [f"{pod.where}: `{p.strip()}` is not what is mounted" for p in wanted if p not in mounting]
    return bad


def credentials(docs: list[Doc]) -> list[str]:
    """Keys in the environment come before RRSA, so who has the service account has no keys, and the label that the webhook reads."""
    bad = []
    for pod in pods(docs):
        if "serviceAccountName" not in pod.spec:
            continue
        if pod.meta["labels"].get("pod-identity.alibabacloud.com/injection") != "on":
            bad.append(f"{pod.where}: no label for the webhook")
        bad += [f"{pod.where}: {c['name']} has keys besides" for c in pod.containers if "OSS_ACCESS_KEY_ID" in env_of(c)]  # fmt: skip
    return bad


def _patience(container: Doc) -> int:
    probe = container.get("startupProbe", {})
    return int(probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)) if probe else 0


def _seconds(container: Doc) -> float:
    """How long the container may take until the next one starts, or the pod is ready."""
    line = words(container)
    if line is None or line[0] == "run" or container.get("restartPolicy") == "Always":
        return _patience(container)
    return float(understood(line, env_of(container)).params.get("timeout") or 0)


def rollouts(docs: list[Doc]) -> list[str]:
    """A rollout is not called failed while everything in it is within its own time."""
    bad = []
    for pod in (p for p in pods(docs) if p.owner["kind"] == "Deployment"):
        needed = IMAGES_S + sum(_seconds(c) for c in pod.containers)
        given = pod.owner["spec"].get("progressDeadlineSeconds", 600)
        if given < needed:
            bad.append(f"{pod.where}: progressDeadlineSeconds {given}, but up to {needed:.0f} s are normal")
        for container in pod.containers:
            line = words(container)
            if line and line[0] == "run":
                warming = understood(line, env_of(container)).params["timeout"]
                if _patience(container) < warming + LOADING_S:
                    bad.append(
                        f"{pod.where}: the startup probe of {container['name']} does not wait for warming"
                    )
    return bad


def starts(docs: list[Doc]) -> list[str]:
    """An init container ends by itself unless it is a sidecar; a probe that runs stager has the time to start it."""
    bad = []
    for pod in pods(docs):
        for container in pod.spec.get("initContainers", []):
            line = words(container)
            params = understood(line, env_of(container)).params if line and container.get("restartPolicy") != "Always" else {}  # fmt: skip
            if params.get("idle") or params.get("hold"):
                bad.append(
                    f"{pod.where}: {container['name']} is no sidecar, and the engine waits for its end"
                )
        for container in pod.containers:
            for key in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(key, {})
                if "exec" in probe and probe.get("timeoutSeconds", 1) < 5:
                    bad.append(f"{pod.where}: {key} of {container['name']} has less than 5 s to run")
    return bad


def _claims(pod: Pod) -> set[str]:
    return {v["persistentVolumeClaim"]["claimName"] for v in pod.spec.get("volumes", []) if v.get("persistentVolumeClaim")}  # fmt: skip


def nodes(docs: list[Doc]) -> list[str]:
    """A Job that warms nodes keeps its first pods while the last are placed, and a DaemonSet on the same nodes holds the mount."""
    bad = []
    for job in (p for p in pods(docs) if p.owner["spec"].get("completionMode") == "Indexed"):
        for container in job.containers:
            hold = understood(words(container) or [], env_of(container)).params.get("hold")
            if not hold or (hold.seconds or 0) < PLACING_S:
                bad.append(f"{job.where}: the first pod to finish makes room for another on its node")
        holders = [p for p in pods(docs) if p.owner["kind"] == "DaemonSet" and _claims(job) <= _claims(p)]
        if not holders:
            bad.append(f"{job.where}: nobody holds the mount of {', '.join(sorted(_claims(job)))}")
        bad += [
            f"{job.where}: the holder is on other nodes, by {key}"
            for key in ("nodeSelector", "tolerations")
            if any(p.spec.get(key) != job.spec.get(key) for p in holders)
        ]
    return bad


def collisions(files: dict[str, list[Doc]]) -> list[str]:
    """Files that are applied side by side: one name is one thing, and no two volumes share a handle, a claim or a PV.

    The Deployment of an engine is the exception: the same engine on another storage takes its place.
    """
    bad, seen, owners = [], dict[str, tuple[str, Doc]](), dict[str, str]()
    for file, docs in files.items():
        for doc in docs:
            name = name_of(doc)
            other, known = seen.setdefault(name, (file, doc))
            if known != doc and doc["kind"] != "Deployment":
                bad.append(f"{name} of {file} is another than that of {other}")
            if doc["kind"] == "PersistentVolume":
                key = f"handle {doc['spec']['csi']['volumeHandle']}"
            elif doc["kind"] == "PersistentVolumeClaim":
                key = f"claim of {doc['spec']['volumeName']}"
            else:
                continue
            if owners.setdefault(key, name) != name:
                bad.append(f"{key}: {name} and {owners[key]}")
    return bad
