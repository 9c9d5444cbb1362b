"""What the image is made of: locks that say what pyproject.toml asks for, one version everywhere, pods that are the shipped ones."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from scripts.pod.lift import RENDERED, container_of, lift, shipped
from stager import __version__
from tests.harness import ROOT

K8S = ROOT / "k8s"
DOCKERFILE = (K8S / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    """scripts/lock as a module."""
    loader = importlib.machinery.SourceFileLoader("lock", str(ROOT / "scripts" / "lock"))
    spec = importlib.util.spec_from_loader("lock", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_locks_are_of_this_pyproject(lock: ModuleType) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/lock", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text.replace("#   click>=8.1", "#   click>=7"),
            "was not made from this pyproject.toml",
        ),
        (lambda text: re.sub(r"^click==", "clack==", text, flags=re.M), "lacks click"),
        (
            lambda text: re.sub(r"(^tqdm==[^\\]*)\\\n( +--hash[^\n]*\n)+", r"\1\n", text, flags=re.M),
            "no hash for tqdm",
        ),
    ],
)
def test_a_lock_that_is_not_is_named(
    lock: ModuleType, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    for path in K8S.glob("*.lock"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "requirements.lock"
    path.write_text(change(path.read_text()))
    assert [one for one in lock.stale(tmp_path) if one.startswith("requirements.lock ") and said in one]


def test_the_self_contained_program_has_no_hub(lock: ModuleType) -> None:
    text = (K8S / "requirements-bundle.lock").read_text()
    assert not re.search(r"^(modelscope|huggingface)", text, re.M)
    assert re.search(r"^oss2==", text, re.M)


def test_the_image_has_the_version_of_the_package() -> None:
    assert set(re.findall(r"^ARG VERSION=(.*)", DOCKERFILE, re.M)) == {__version__}
    assert set(re.findall(r"stager:(\d[\w.]*?)(?:-warm)? ", DOCKERFILE)) == {__version__}


def test_the_glibc_that_is_promised_is_the_one_that_is_checked() -> None:
    (checked,) = re.findall(r"^ARG BUNDLE_GLIBC=(.*)", DOCKERFILE, re.M)
    assert f"glibc {checked} or later" in DOCKERFILE
    assert f"glibc {checked} or later" in " ".join(
        (ROOT / "tests/golden/cli/help-install.txt").read_text().split()
    )


@pytest.mark.parametrize("manifest", sorted(path.stem for path in RENDERED.glob("vllm-*.yaml")))
def test_a_lifted_pod_says_what_the_manifest_says(manifest: str, tmp_path: Path) -> None:
    spec = shipped(manifest)
    volumes = {one["name"]: tmp_path for one in spec["volumes"] if "emptyDir" not in one}
    engine = {"image": "localhost/x", "command": ["true"]}
    pod = lift(spec, "one", image="localhost/stager", room=tmp_path, volumes=volumes, engine=engine)["spec"]
    for one in spec["initContainers"]:
        played = container_of(pod, one["name"])
        assert played["image"] == "localhost/stager"
        for key in ("securityContext", "volumeMounts"):
            assert played[key] == one[key]
        for key in ("args", "command"):
            assert len(played.get(key, ())) == len(one.get(key, ()))
    assert pod["securityContext"] == spec["securityContext"]
    assert {one["name"] for one in pod["volumes"]} == {one["name"] for one in spec["volumes"]}
    assert not [name for name in ("nodeSelector", "serviceAccountName") if name in pod]


def test_settings_and_sizes_of_a_test_take_the_place_of_the_manifest_s(tmp_path: Path) -> None:
    spec = shipped("vllm-nvme")
    volumes = {one["name"]: tmp_path for one in spec["volumes"] if "emptyDir" not in one}
    lifted = lift(
        spec,
        "one",
        image="x",
        room=tmp_path,
        volumes=volumes,
        engine={},
        settings={"MODEL_SOURCE": "/source"},
        memory="1Mi",
    )["spec"]
    assert container_of(lifted, "fetch")["args"][:3] == ["fetch", "/source", "/models"]
    assert container_of(lifted, "own-models")["resources"] == {"limits": {"memory": "1Mi"}}
    assert "MODEL_SOURCE" in str(container_of(spec, "fetch")["args"]), "the manifest itself is left as it is"


def test_a_machine_that_cannot_play_pods_says_so_in_one_line() -> None:
    script = (
        "import os, sys; os.geteuid = lambda: 1\nfrom scripts.pod.__main__ import main\nsys.exit(main([]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "test-pod: skipped, it needs root: cgroups, mounts and files of other owners\n"
