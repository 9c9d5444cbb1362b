"""The Kubernetes manifests: current, valid for three Kubernetes versions, and doing what stager's words and exit codes mean.

Every check runs on every rendered file, and is seen to complain about a manifest that somebody broke.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import all_versions

import stager
from tests import manifest_nodes, manifest_rules, manifests
from tests.harness import ROOT
from tests.manifests import Doc, pods, understood, words

K8S = ROOT / "k8s"
RENDERED = sorted((K8S / "rendered").glob("*.yaml"))
VERSIONS = ("1.29", "1.33", all_versions()[-1])
CHECKS: tuple[Callable[[list[Doc]], list[str]], ...] = (
    manifests.labels, manifests.images, manifests.quantities, manifests.enums, manifests.pod_settings, manifests.security,
    manifests.mounts, manifest_rules.arguments, manifest_rules.gates, manifest_rules.probes, manifest_rules.memory,
    manifest_rules.policies, manifest_rules.references, manifest_rules.selectors, manifest_nodes.volumes, manifest_nodes.folders,
    manifest_nodes.credentials, manifest_nodes.rollouts, manifest_nodes.starts, manifest_nodes.nodes,
)  # fmt: skip
EXAMPLES = {
    "pull", "pull-rrsa", "vllm-oss", "sglang-oss", "llama-cpp-oss", "vllm-nas", "vllm-nvme", "vllm-hugepage-tmpfs", "vllm-run",
    "warm-nodes", "stable-diffusion", "easyrec-pytorch", "kserve",
}  # fmt: skip


def load(path: Path) -> list[Doc]:
    return [doc for doc in yaml.safe_load_all(path.read_text()) if doc]


def test_everything_is_rendered() -> None:
    assert {path.stem for path in RENDERED} == EXAMPLES
    folders = {p.parent.name for p in (K8S / "examples").glob("*/kustomization.yaml")}
    assert folders == EXAMPLES - {"pull"}


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", VERSIONS)
def test_valid(path: Path, version: str) -> None:
    assert manifests.schema(load(path), version) == []


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sound(path: Path, check: Callable[[list[Doc]], list[str]]) -> None:
    assert check(load(path)) == []


# --- Every check seen to fail -----------------------------------------------------------------------------------------


def _container(docs: list[Doc], name: str) -> Doc:
    return next(c for pod in pods(docs) for c in pod.containers if c["name"] == name)


def _kind(docs: list[Doc], kind: str) -> Doc:
    return next(doc for doc in docs if doc["kind"] == kind)


def _spec(docs: list[Doc]) -> Doc:
    return pods(docs)[0].spec


def _word(docs: list[Doc], name: str, old: str, new: str | None) -> None:
    args = _container(docs, name)["args"]
    args[args.index(old) : args.index(old) + 1] = [new] if new else []


def _csi(docs: list[Doc]) -> Doc:
    csi: Doc = _kind(docs, "PersistentVolume")["spec"]["csi"]
    return csi


def _rule(docs: list[Doc]) -> Doc:
    return _kind(docs, "Job")["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]


BREAKS: list[tuple[str, str, Callable[[list[Doc]], Any], str]] = [  # the check, the file, how it is broken, the complaint
    ("schema", "vllm-oss", lambda d: _container(d, "warm").update(argz=[]), "argz"),
    ("schema", "pull", lambda d: _kind(d, "Job")["spec"].update(backoffLimit="6"), "backoffLimit"),
    ("schema", "kserve", lambda d: _kind(d, "ClusterStorageContainer")["spec"].pop("workloadType"), "workloadType"),
    ("schema", "sglang-oss", lambda d: _kind(d, "PodMonitor")["spec"].pop("podMetricsEndpoints"), "podMetricsEndpoints"),
    ("schema", "sglang-oss", lambda d: _kind(d, "PodMonitor")["spec"]["podMetricsEndpoints"][0].update(intervall="1s"), "intervall"),
    ("schema", "kserve", lambda d: _kind(d, "ClusterStorageContainer")["spec"]["container"].update(argz=[]), "argz"),
    ("schema", "kserve", lambda d: _kind(d, "InferenceService")["spec"]["predictor"]["model"].pop("storageUri"), "storageUri"),
    ("schema", "kserve", lambda d: _kind(d, "InferenceService")["spec"]["predictor"]["securityContext"].update(fsgroup=1), "fsgroup"),
    ("labels", "vllm-oss", lambda d: pods(d)[0].meta["labels"].popitem(), "no label"),
    ("labels", "pull", lambda d: _kind(d, "Job")["metadata"]["labels"].update({"app.kubernetes.io/version": "0.0.9"}), "0.0.9"),
    ("images", "vllm-oss", lambda d: _container(d, "engine").update(image="vllm/vllm-openai:latest"), "not pinned"),
    ("images", "vllm-oss", lambda d: _container(d, "engine").update(image="host:5000/vllm"), "not pinned"),
    ("images", "vllm-oss", lambda d: _container(d, "warm").update(image="registry/stager:0.0.9"), "0.0.9"),
    ("quantities", "vllm-oss", lambda d: _container(d, "warm")["resources"]["requests"].update(memory="1GB"), "1GB"),
    ("quantities", "vllm-oss", lambda d: _spec(d)["volumes"][0]["emptyDir"].update(sizeLimit="64 Mi"), "64 Mi"),
    ("quantities", "pull", lambda d: _container(d, "pull")["resources"]["limits"].update(memory="512Mi"), "more than its limit"),
    ("quantities", "pull", lambda d: _container(d, "pull")["resources"].pop("requests"), "no requests"),
    ("enums", "vllm-oss", lambda d: _container(d, "warm").update(terminationMessagePolicy="Logs"), "Logs"),
    ("enums", "vllm-nvme", lambda d: _spec(d)["volumes"][0]["hostPath"].update(type="Dir"), "Dir"),
    ("enums", "vllm-oss", lambda d: _kind(d, "PersistentVolume")["spec"].update(accessModes=["ROX"]), "ROX"),
    ("pod_settings", "vllm-oss", lambda d: _spec(d).pop("enableServiceLinks"), "enableServiceLinks"),
    ("pod_settings", "pull", lambda d: _spec(d).update(automountServiceAccountToken=True), "automount"),
    ("pod_settings", "pull", lambda d: _spec(d)["securityContext"].pop("fsGroup"), "fsGroup"),
    ("pod_settings", "pull", lambda d: _spec(d).update(terminationGracePeriodSeconds=5), "Grace"),
    ("security", "vllm-oss", lambda d: _container(d, "warm")["securityContext"].pop("readOnlyRootFilesystem"), "readOnly"),
    ("security", "vllm-oss", lambda d: _container(d, "warm")["securityContext"].update(runAsUser=0), "runAsUser"),
    ("security", "vllm-oss", lambda d: _container(d, "engine")["securityContext"].update(privileged=True), "privileged"),
    ("security", "vllm-nvme", lambda d: _container(d, "own-models")["securityContext"]["capabilities"]["add"].append("SYS_ADMIN"), "capabilities"),
    ("mounts", "vllm-oss", lambda d: _container(d, "warm")["volumeMounts"][0].pop("readOnly"), "not read-only"),
    ("mounts", "vllm-oss", lambda d: _container(d, "warm")["volumeMounts"][0].update(name="model"), "no volume"),
    ("mounts", "vllm-oss", lambda d: _spec(d)["volumes"].append({"name": "spare", "emptyDir": {}}), "not used"),
    ("arguments", "vllm-oss", lambda d: _word(d, "warm", "--fail-open", "--fail-closed"), "--fail-closed"),
    ("arguments", "vllm-oss", lambda d: _word(d, "warm", "20m", "20 min"), "20 min"),
    ("arguments", "vllm-oss", lambda d: _word(d, "warm", "warm", "heat"), "no command"),
    ("arguments", "vllm-nas", lambda d: _container(d, "warm")["env"][1].update(value="much"), "much"),
    ("arguments", "vllm-nas", lambda d: _container(d, "warm")["env"][1].update(name="STAGER_RESERV"), "STAGER_RESERV"),
    ("arguments", "vllm-nvme", lambda d: _container(d, "fetch")["env"].pop(0), "MODEL_SOURCE"),
    ("arguments", "sglang-oss", lambda d: _container(d, "warm")["startupProbe"]["exec"]["command"].__setitem__(-1, "partly"), "partly"),
    ("arguments", "kserve", lambda d: _kind(d, "ClusterStorageContainer")["spec"]["container"].update(command=["stager", "fetch", "--quick"]), "--quick"),
    ("gates", "vllm-oss", lambda d: _word(d, "warm", "/run/stager/ready.json", "/models/ready.json"), "not on a shared emptyDir"),
    ("gates", "vllm-oss", lambda d: _container(d, "engine")["volumeMounts"].pop(0), "nobody else"),
    ("gates", "vllm-oss", lambda d: _word(d, "warm", "--fail-open", None), "neither fails open"),
    ("gates", "sglang-oss", lambda d: _word(d, "warm", "--timeout=20m", None), "no --timeout"),
    ("probes", "sglang-oss", lambda d: _container(d, "warm")["startupProbe"].update(failureThreshold=240), "before --timeout"),
    ("probes", "sglang-oss", lambda d: _container(d, "warm")["startupProbe"]["exec"]["command"].__setitem__(-1, "partial"), "does not accept"),
    ("probes", "sglang-oss", lambda d: _container(d, "warm")["startupProbe"]["exec"]["command"].__setitem__(3, "/tmp/x"), "another marker"),
    ("probes", "sglang-oss", lambda d: _word(d, "warm", "--idle", None), "--idle"),
    ("probes", "sglang-oss", lambda d: _word(d, "warm", "--hold=until:http://localhost:8000/health", "--hold=until:http://localhost:30000/health"), "nothing listens"),
    ("probes", "sglang-oss", lambda d: _container(d, "warm").pop("ports"), "not declared"),
    ("probes", "vllm-oss", lambda d: _container(d, "engine")["readinessProbe"]["httpGet"].update(port="web"), "not there"),
    ("memory", "vllm-oss", lambda d: _container(d, "warm")["resources"].update(limits={"memory": "1Gi"}), "not told"),
    ("memory", "vllm-nas", lambda d: _container(d, "warm")["resources"]["limits"].update(memory="8Gi"), "lower limit"),
    ("memory", "vllm-nas", lambda d: _container(d, "engine")["resources"]["limits"].pop("cpu"), "Guaranteed"),
    ("memory", "easyrec-pytorch", lambda d: _container(d, "fetch")["env"].pop(1), "not told"),
    ("memory", "vllm-nas", lambda d: _container(d, "warm")["env"][1].update(value="240GiB"), "reserves all"),
    ("policies", "pull", lambda d: _rule(d)["values"].remove(4), "ends on"),
    ("policies", "pull", lambda d: _rule(d)["values"].append(10), "ends on"),
    ("policies", "pull", lambda d: _rule(d).update(containerName="stager"), "never matches"),
    ("policies", "pull", lambda d: _rule(d)["values"].reverse(), "refuses"),
    ("policies", "warm-nodes", lambda d: _kind(d, "Job")["spec"]["podFailurePolicy"]["rules"][1].update(action="FailIndex"), "other nodes"),
    ("policies", "pull", lambda d: _kind(d, "Job")["spec"]["podFailurePolicy"]["rules"][1].update(action="Count"), "at once"),
    ("policies", "warm-nodes", lambda d: _word(d, "warm", "--strict", None), "ends on"),
    ("policies", "warm-nodes", lambda d: _kind(d, "Job")["spec"]["podFailurePolicy"]["rules"].pop(0), "drained"),
    ("policies", "pull", lambda d: _spec(d).update(restartPolicy="OnFailure"), "restartPolicy"),
    ("policies", "pull", lambda d: _kind(d, "Job")["spec"].pop("ttlSecondsAfterFinished"), "ttl"),
    ("policies", "warm-nodes", lambda d: _kind(d, "Job")["spec"].pop("backoffLimitPerIndex"), "backoff"),
    ("policies", "vllm-oss", lambda d: _container(d, "warm").pop("terminationMessagePolicy"), "terminationMessagePolicy"),
    ("references", "vllm-oss", lambda d: _spec(d)["volumes"][1]["persistentVolumeClaim"].update(claimName="model"), "not here"),
    ("references", "vllm-oss", lambda d: _spec(d).update(serviceAccountName="stager"), "ServiceAccount/stager"),
    ("references", "pull", lambda d: _container(d, "pull")["env"][4]["valueFrom"]["secretKeyRef"].pop("optional"), "Secret/oss"),
    ("references", "vllm-nas", lambda d: _container(d, "warm")["env"][0]["valueFrom"]["resourceFieldRef"].update(containerName="vllm"), "no container vllm"),
    ("references", "vllm-oss", lambda d: _kind(d, "PersistentVolumeClaim")["spec"].update(volumeName="models"), "not here"),
    ("references", "vllm-oss", lambda d: _kind(d, "PersistentVolume")["spec"]["capacity"].update(storage="1Gi"), "storage"),
    ("references", "kserve", lambda d: d.remove(_kind(d, "ServiceAccount")), "no such service account"),
    ("selectors", "vllm-oss", lambda d: _kind(d, "Service")["spec"]["selector"].update({"app.kubernetes.io/name": "vlm"}), "selects no pod"),
    ("selectors", "vllm-oss", lambda d: _kind(d, "Service")["spec"]["ports"][0].update(targetPort="web"), "no port"),
    ("selectors", "sglang-oss", lambda d: _container(d, "warm")["ports"][0].update(name="prom"), "no port"),
    ("selectors", "warm-nodes", lambda d: [p.spec.pop("affinity", None) for p in pods(d)], "on one node"),
    ("selectors", "warm-nodes", lambda d: _kind(d, "Job")["spec"].update(parallelism=2), "at once"),
    ("volumes", "vllm-oss", lambda d: _csi(d).update(driver="ossplugin.csi.alibaba.com"), "no CSI driver"),
    ("volumes", "vllm-oss", lambda d: _csi(d)["volumeAttributes"].update(fuseType="ossfs"), "mounted by ossfs"),
    ("volumes", "vllm-oss", lambda d: _csi(d)["volumeAttributes"].pop("fuseType"), "not those of the driver"),
    ("volumes", "vllm-oss", lambda d: _csi(d)["volumeAttributes"].update(endpoint="x"), "not those of the driver"),
    ("volumes", "vllm-oss", lambda d: _csi(d)["volumeAttributes"].update(otherOpts="-o uid=65532"), "do not belong"),
    ("volumes", "vllm-oss", lambda d: _csi(d)["volumeAttributes"].update(otherOpts="-o uid=65532 -o gid=65532 -o umask=022"), "refuses"),
    ("volumes", "vllm-oss", lambda d: _csi(d)["volumeAttributes"].update(otherOpts="uid=65532,gid=65532"), "not a list"),
    ("volumes", "vllm-oss", lambda d: _csi(d).pop("nodePublishSecretRef"), "no Secret"),
    ("volumes", "vllm-oss", lambda d: _kind(d, "PersistentVolume")["spec"].update(mountOptions=["ro"]), "ignores"),
    ("volumes", "vllm-nas", lambda d: _kind(d, "PersistentVolume")["spec"].pop("mountOptions"), "NAS asks for"),
    ("folders", "vllm-nvme", lambda d: _container(d, "own-models")["command"].__setitem__(1, "0:0"), "65532:65532"),
    ("folders", "vllm-nvme", lambda d: _container(d, "own-models")["command"].__setitem__(2, "/model"), "/models"),
    ("folders", "vllm-nvme", lambda d: _spec(d)["initContainers"].reverse(), "before fetch"),
    ("folders", "vllm-nvme", lambda d: _spec(d)["initContainers"].remove(_container(d, "own-models")), "before fetch"),
    ("folders", "vllm-hugepage-tmpfs", lambda d: _container(d, "mount")["command"].__setitem__(2, "mount -t tmpfs models /mnt"), "huge=always"),
    ("credentials", "vllm-nvme", lambda d: _container(d, "fetch")["env"].append({"name": "OSS_ACCESS_KEY_ID", "value": "x"}), "keys besides"),
    ("credentials", "vllm-nvme", lambda d: pods(d)[0].meta["labels"].pop("pod-identity.alibabacloud.com/injection"), "label"),
    ("rollouts", "vllm-oss", lambda d: _kind(d, "Deployment")["spec"].pop("progressDeadlineSeconds"), "600, but up to 3600"),
    ("rollouts", "vllm-nvme", lambda d: _kind(d, "Deployment")["spec"].update(progressDeadlineSeconds=4199), "4200 s are normal"),
    ("rollouts", "sglang-oss", lambda d: _kind(d, "Deployment")["spec"].update(progressDeadlineSeconds=3600), "3750 s are normal"),
    ("rollouts", "vllm-run", lambda d: _container(d, "engine")["startupProbe"].update(failureThreshold=180), "wait for warming"),
    ("starts", "sglang-oss", lambda d: _container(d, "warm").pop("restartPolicy"), "no sidecar"),
    ("starts", "sglang-oss", lambda d: _container(d, "warm")["startupProbe"].update(timeoutSeconds=1), "less than 5 s"),
    ("nodes", "warm-nodes", lambda d: [_word(d, "warm", "--hold", None), _word(d, "warm", "60s", None)], "makes room"),
    ("nodes", "warm-nodes", lambda d: _word(d, "warm", "60s", "5s"), "makes room"),
    ("nodes", "warm-nodes", lambda d: d.remove(_kind(d, "DaemonSet")), "nobody holds"),
    ("nodes", "warm-nodes", lambda d: pods(d)[0].spec["volumes"][0]["persistentVolumeClaim"].update(claimName="other"), "nobody holds"),
    ("nodes", "warm-nodes", lambda d: pods(d)[0].spec.update(nodeSelector={"stager-pool": "cpu"}), "nodeSelector"),
    ("nodes", "warm-nodes", lambda d: pods(d)[0].spec.pop("tolerations"), "tolerations"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "file", "damage", "complaint"), BREAKS, ids=[f"{b[0]}-{i}" for i, b in enumerate(BREAKS)]
)
def test_a_broken_manifest_is_seen(
    check: str, file: str, damage: Callable[[list[Doc]], Any], complaint: str
) -> None:
    docs = copy.deepcopy(load(K8S / "rendered" / f"{file}.yaml"))
    damage(docs)
    found = manifests.schema(docs, VERSIONS[-1]) if check == "schema" else _check(check)(docs)
    assert [line for line in found if complaint in line], found


def _check(name: str) -> Callable[[list[Doc]], list[str]]:
    return next(check for check in CHECKS if check.__name__ == name)


def test_every_check_has_been_seen_to_fail() -> None:
    assert {b[0] for b in BREAKS} == {"schema", *(check.__name__ for check in CHECKS)}


# --- Files side by side -----------------------------------------------------------------------------------------------


def _files() -> dict[str, list[Doc]]:
    return {path.stem: load(path) for path in RENDERED}


def test_files_do_not_take_each_others_names() -> None:
    assert manifest_nodes.collisions(_files()) == []


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: _kind(f["vllm-nas"], "PersistentVolumeClaim")["metadata"].update(name="models-vllm-oss"), "another than"),
        (lambda f: _kind(f["warm-nodes"], "PersistentVolume")["spec"]["csi"]["volumeAttributes"].update(path="/m"), "another than"),
        (lambda f: _csi(f["vllm-nas"]).update(volumeHandle="models-vllm-oss"), "handle models-vllm-oss"),
        (lambda f: _kind(f["sglang-oss"], "PersistentVolumeClaim")["spec"].update(volumeName="models-vllm-oss"), "claim of"),
    ],
)  # fmt: skip
def test_a_name_for_two_things_is_seen(
    damage: Callable[[dict[str, list[Doc]]], None], complaint: str
) -> None:
    files = _files()
    damage(files)
    found = manifest_nodes.collisions(files)
    assert [line for line in found if complaint in line], found


def test_engines_find_what_warm_nodes_warmed() -> None:
    """The same PV, so the same mount on a node, so the same pages."""
    files = _files()
    mounted = [
        {v["persistentVolumeClaim"]["claimName"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v}
        for name in ("vllm-oss", "warm-nodes")
        for pod in pods(files[name])
    ]
    assert mounted == [{"models-vllm-oss"}] * 3
    assert _kind(files["vllm-oss"], "PersistentVolume") in files["warm-nodes"]


def test_a_second_model_beside_the_first(tmp_path: Path) -> None:
    """The two lines that vllm-oss/kustomization.yaml has in a comment make a copy that touches nothing of the first."""
    kustomize = _kustomize()
    copied = tmp_path / "k8s"
    for part in ("engines", "components", "examples"):
        shutil.copytree(K8S / part, copied / part)
    lines = copied / "examples/vllm-oss/kustomization.yaml"
    lines.write_text(re.sub(r"^# (nameSuffix|labels): ", r"\1: ", lines.read_text(), flags=re.M))
    made = subprocess.run([*kustomize, str(lines.parent)], capture_output=True, text=True, check=True).stdout
    first, second = load(K8S / "rendered/vllm-oss.yaml"), [d for d in yaml.safe_load_all(made) if d]
    assert {manifests.name_of(d) for d in first}.isdisjoint(manifests.name_of(d) for d in second)
    assert manifest_nodes.collisions({"first": first, "second": second}) == []
    assert [line for check in CHECKS for line in check(second)] == []
    for mine, theirs in ((first, second), (second, first)):
        chosen = _kind(mine, "Service")["spec"]["selector"]
        assert chosen.items() <= pods(mine)[0].meta["labels"].items()
        assert not chosen.items() <= pods(theirs)[0].meta["labels"].items()


def _kustomize() -> list[str]:
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            return command
    pytest.skip("neither kustomize nor kubectl is installed")


# --- Current, and what is not a manifest ------------------------------------------------------------------------------


def _sums(folder: Path) -> list[str]:
    """What of k8s/rendered/SHA256SUMS is not true of `folder`, a copy of k8s."""
    listed = dict(
        reversed(line.split("  ", 1)) for line in (folder / "rendered/SHA256SUMS").read_text().splitlines()
    )
    there = {
        str(p.relative_to(folder))
        for part in ("base", "engines", "components", "examples", "rendered")
        for p in (folder / part).rglob("*.yaml")
    }
    wrong = sorted(there ^ set(listed))
    return wrong + [name for name in there & set(listed) if hashlib.sha256((folder / name).read_bytes()).hexdigest() != listed[name]]  # fmt: skip


def test_rendered_is_current() -> None:
    """By checksums, which need no kustomize: what goes in and what came out are as `scripts/render` left them."""
    assert _sums(K8S) == [], "run scripts/render"


def test_a_change_that_was_not_rendered_is_seen(tmp_path: Path) -> None:
    copied = tmp_path / "k8s"
    for part in ("base", "engines", "components", "examples", "rendered"):
        shutil.copytree(K8S / part, copied / part)
    assert _sums(copied) == []
    for name in ("components/warm-init/warm.yaml", "rendered/vllm-oss.yaml"):
        with (copied / name).open("a") as file:
            file.write("# more\n")
    (copied / "examples/new.yaml").touch()
    assert sorted(_sums(copied)) == [
        "components/warm-init/warm.yaml",
        "examples/new.yaml",
        "rendered/vllm-oss.yaml",
    ]


def test_rendered_is_what_kustomize_makes(tmp_path: Path) -> None:
    """As documents: versions of kustomize differ in how they write them."""
    done = subprocess.run(
        ["scripts/render", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 9:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("*.yaml")} == {path.name for path in RENDERED}
    for path in RENDERED:
        made, here = ({manifests.name_of(d): d for d in load(p)} for p in (tmp_path / path.name, path))
        assert made == here, path.name


def test_every_yaml_can_be_read() -> None:
    paths = [
        p for part in ("base", "engines", "components", "examples") for p in (K8S / part).rglob("*.yaml")
    ]
    assert len(paths) > 40
    for path in paths:
        assert load(path), path


def test_three_words_make_it_yours() -> None:
    """Of the first example: registry, bucket and region are all that a reader must put in, and a text replacement does."""
    for name in ("pull", "vllm-oss"):
        text = (K8S / f"rendered/{name}.yaml").read_text()
        assert text.count("your-bucket") == 1
        for old, new in (
            ("image: stager:", "image: r.io/me/stager:"),
            ("your-bucket", "mine"),
            ("cn-hangzhou", "cn-beijing"),
        ):
            assert old in text
            text = text.replace(old, new)
        docs = [doc for doc in yaml.safe_load_all(text) if doc]
        assert not re.search("your|example|hangzhou", json.dumps(docs))
        assert [line for check in CHECKS for line in check(docs)] == []


def test_choices_in_comments_are_understood() -> None:
    found = []
    for path in K8S.rglob("*.yaml"):
        found += [yaml.safe_load(line) for line in re.findall(r"#\s+args: (\[.*\])", path.read_text())]
    assert found
    for line in found:
        understood(line)


def test_production_stack() -> None:
    values = yaml.safe_load((K8S / "examples/production-stack/values.yaml").read_text())["servingEngineSpec"]
    (model,) = values["modelSpec"]
    warm = model["initContainer"]
    context = understood(words(warm) or [])
    assert context.params["fail_open"]
    assert context.params["timeout"]
    assert warm["image"] == f"stager:{stager.__version__}"
    assert "limits" not in warm["resources"]
    volumes = {v["name"] for v in model["extraVolumes"]}
    assert {m["name"] for m in (*warm["extraVolumeMounts"], *model["extraVolumeMounts"])} == volumes


def test_places_without_init_containers() -> None:
    function = yaml.safe_load((K8S / "examples/function-compute/s.yaml").read_text())["resources"]["vllm"][
        "props"
    ]
    service = json.loads((K8S / "examples/pai-eas/service.json").read_text())
    container, mount = function["customContainerConfig"], function["ossMountConfig"]["mountPoints"][0]
    lines = [(container["entrypoint"], mount["mountDir"], container["image"])]
    (eas,) = service["containers"]
    lines.append((eas["script"].split(), service["storage"][0]["mount_path"], eas["image"]))
    for line, where, image in lines:
        assert line[0] == "/opt/stager/stager"
        context = understood(line[1:])
        assert context.params["paths"] == (where,)
        assert context.params["timeout"] <= 1200
        assert re.search(r":v?\d", image)


def test_the_version_is_the_packages() -> None:
    """Also where no rendered file shows it: kustomizations, values, Dockerfiles."""
    for path in K8S.rglob("*"):
        if path.suffix == ".yaml" or path.name == "Dockerfile":
            text = path.read_text()
            tags = {*re.findall(r"\bstager:(\d[\w.]*)", text), *re.findall(r"newTag: (\S+)", text)}
            assert tags <= {stager.__version__, f"{stager.__version__}-warm"}, path
