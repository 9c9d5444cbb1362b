"""What must be true of the shipped manifests when they are played. Each scene asserts; its docstring is what it shows."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from scripts.pod import images
from scripts.pod.bed import ENGINE, MIB, SIZE, USER, Bed, Pod, run_in, until
from scripts.pod.lift import container_of, shipped
from tests.osslab.process import OssProcess

Scene = Callable[[Bed], None]


def never_started(pod: Pod, container: str) -> bool:
    """Whether `container` was made and not started, or not even made."""
    return pod.state(container).get("StartedAt", "0001").startswith("0001")


def assert_same(source: Path, dest: Path) -> None:
    """The files of both folders are the same, but for what stager keeps there for itself."""
    words = ["diff", "-r", "-x", ".stager*", str(source), str(dest)]
    same = subprocess.run(words, capture_output=True, text=True, check=False)
    assert same.returncode == 0, same.stdout


def images_hold_what_they_should(bed: Bed) -> None:
    """Both images: stager is the entry point, uid 65532, a read-only root suffices; no pip, no compiler; the smaller one names the other."""
    for image in (images.WHOLE, images.WARM):
        done = run_in(bed.podman, image, "--version")
        assert done.stdout.startswith("stager "), done
        told = bed.podman(
            "image", "inspect", "--format", "{{.User}} {{.Config.Entrypoint}} {{.Labels}}", image
        ).stdout
        assert told.startswith("65532:65532 [stager] map["), told
        assert "org.opencontainers.image.version:" in told, told
    names = "-name pip -o -name pip3 -o -name gcc -o -name cc -o -name ld -o -name objdump -o -name *.whl -o -name ca.pem"
    found = run_in(
        bed.podman,
        images.WHOLE,
        "/",
        "-xdev",
        "-type",
        "f",
        "(",
        *names.split(),
        ")",
        options=["--entrypoint=find"],
    )
    assert found.stdout.strip() == "", found.stdout
    done = run_in(bed.podman, images.WHOLE, "pull", "owner/name", "/dev/shm/x", "--timeout", "2s")
    assert done.returncode == 10, done  # there is no network; the libraries are, and write nowhere
    done = run_in(bed.podman, images.WHOLE, "pull", "hf://owner/name", "/dev/shm/x", "--timeout", "2s")
    assert done.returncode == 10, done
    done = run_in(bed.podman, images.WARM, "pull", "owner/name", "/dev/shm/x")
    assert done.returncode == 2, done
    assert "hint: the image stager:" in done.stderr, done
    assert len(done.stderr.splitlines()) == 2, done


def both_images_speak_to_the_store(bed: Bed) -> None:
    """The look-alike of OSS: the one image pulls a folder there, the other, without Python, fetches it with worker processes, the same to the last byte."""
    source, dest = bed.model(), bed.room / "from-store"
    dest.mkdir()
    os.chown(dest, USER, USER)
    store = OssProcess()
    try:
        there = store.url("model")
        options = [f"--env={name}={value}" for name, value in store.env().items()]
        options += [
            f"--volume={source}:/source:ro",
            f"--volume={dest}:/dest",
            "--tmpfs=/run/stager:mode=1777",
        ]
        speak = partial(run_in, bed.podman, options=options, network="host")
        done = speak(images.WHOLE, "pull", "/source", there)
        assert done.returncode == 0, done.stderr
        marker = "--marker=/run/stager/ready.json"
        done = speak(images.WARM, "fetch", there, "/dest", "--processes=2", marker)
        assert done.returncode == 0, done.stderr
    finally:
        store.stop()
    assert_same(source, dest)


def init_container_warms_and_is_gone(bed: Bed) -> None:
    """An init container warms a hostPath, ends, its control group is gone, and the server proves that every page is there."""
    model = bed.model()
    with bed.pod("vllm-oss", "warm", volumes={"models": model}) as pod:
        played = pod.play()
        assert played.returncode == 0, played.stderr + pod.logs("warm")
        assert pod.state("warm")["ExitCode"] == 0
        assert pod.cgroups("engine"), "this test does not see control groups"
        assert not pod.cgroups("warm")
        assert pod.ask("/health") == "ok"
        here, every = pod.ask("/resident")
        assert here == every > SIZE // os.sysconf("SC_PAGESIZE"), (here, every)
        assert pod.marker()["state"] == "ready", pod.marker()
        assert pod.marker()["known"] in ("cachestat", "mincore"), pod.marker()
        probe = ("stager", "ready", "--marker", "/run/stager/ready.json")
        assert (told := pod.execute("engine", *probe, check=False)).stdout == "ready\n", told
        assert "\r" not in pod.logs("warm")
    assert bed.resident(model) >= SIZE, "the pages are the node's, not the pod's"


def mount_that_drops_pages(bed: Bed) -> None:
    """A FUSE mount that forgets pages at every open: the server starts all the same, and the marker says why nothing is warm."""
    with ExitStack() as held:
        mount, _ = held.enter_context(bed.mounted(bed.model(), keep_cache="never"))
        pod = held.enter_context(bed.pod("vllm-oss", "drops", volumes={"models": mount}))
        played = pod.play()
        assert played.returncode == 0, played.stderr + pod.logs("warm")
        assert pod.ask("/health") == "ok"
        here, every = pod.ask("/resident")
        assert here < every
        marker = pod.marker()
        assert marker["state"] != "ready", marker
        assert "open" in marker["reason"], marker


def limit_below_the_model(bed: Bed) -> None:
    """A memory limit smaller than the model: part of it is warm, the limit is named, nobody is killed."""
    limit = 72 * MIB
    settings = {"STAGER_RESERVE": "8MiB"}
    with bed.pod(
        "vllm-nas", "limit", volumes={"models": bed.model()}, settings=settings, memory=str(limit)
    ) as pod:
        played = pod.play()
        assert played.returncode == 0, played.stderr + pod.logs("warm")
        state = pod.state("warm")
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False), state
        marker = pod.marker()
        assert marker["state"] == "partial", marker
        assert 0 < marker["resident"] < limit < marker["total"], marker
        assert "limit" in marker["reason"] + pod.logs("warm"), marker
        assert pod.ask("/health") == "ok"


def files_of_another_owner(bed: Bed) -> None:
    """uid 65532 on files of root: the kernel tells nothing exact, so nothing exact is claimed."""
    with bed.pod("vllm-oss", "stranger", volumes={"models": bed.model(owner=0)}) as pod:
        played = pod.play()
        assert played.returncode == 0, played.stderr + pod.logs("warm")
        marker = pod.marker()
        assert marker["state"] == "unverified", marker
        assert marker["known"] in ("unknown", "sampled", "timed"), marker
        assert (marker["resident"] or 0) < marker["total"], marker
        summary = next(line for line in pod.logs("warm").splitlines() if "resident" in line)
        assert summary.startswith("unverified: "), summary
        assert pod.ask("/health") == "ok"


def sidecar_holds_until_the_engine_is_up(bed: Bed) -> None:
    """A native sidecar: its startup probe says yes when it has warmed, it gives metrics, stays when the engine answers, and ends when told."""
    probe = container_of(shipped("sglang-oss"), "warm")["startupProbe"]["exec"]["command"]
    with bed.pod("sglang-oss", "sidecar", volumes={"models": bed.model()}) as pod:
        played = pod.play()
        assert played.returncode == 0, played.stderr
        until(lambda: pod.execute("warm", *probe, check=False).returncode == 0, "the startup probe")
        here, every = pod.ask("/resident")
        assert here == every
        read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9105/metrics').read().decode())"
        until(
            lambda: "stager_" in pod.execute("engine", "python3", "-c", read, check=False).stdout, "metrics"
        )
        assert pod.state("warm")["Status"] == "running"
        pod.kill("warm")
        until(lambda: pod.state("warm")["Status"] == "exited", "its end", seconds=30)
        assert pod.state("warm")["ExitCode"] in (0, 143), pod.logs("warm")


def corrupt_shard(bed: Bed) -> None:
    """A shard that is cut short: exit 8, and the server does not start, although the manifest fails open."""
    model = bed.model()
    shard = next(model.glob("*2-of-*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 4096)
    with bed.pod("vllm-oss", "corrupt", volumes={"models": model}) as pod:
        assert pod.play().returncode != 0
        assert pod.state("warm")["ExitCode"] == 8, pod.logs("warm")
        assert shard.name in pod.logs("warm")
        assert never_started(pod, "engine")
        assert pod.marker()["state"] == "failed"


def stop_in_the_middle(bed: Bed) -> None:
    """SIGTERM while it warms: 143 well within the grace period, no claim left, the server does not start."""
    with ExitStack() as held:
        mount, daemon = held.enter_context(bed.mounted(bed.model(), keep_cache="always", total_rate=2 * MIB))
        pod = held.enter_context(bed.pod("vllm-oss", "stopped", volumes={"models": mount}))
        playing = pod.begin()
        until(lambda: daemon.counters()["served"] > MIB, "the first bytes")
        pod.kill("warm")
        playing.communicate(timeout=60)
        assert pod.state("warm")["ExitCode"] == 143, pod.logs("warm")
        assert never_started(pod, "engine")
        assert pod.marker().get("state") != "ready"


def stopped_fetch_goes_on(bed: Bed) -> None:
    """SIGTERM while it fetches onto the node's disk: 143, and the next pod fetches what is missing, not all again."""
    dest = bed.room / "fetched"
    dest.mkdir()
    source = bed.model()

    def add_source(spec: dict[str, Any]) -> None:
        spec["volumes"].append({"name": "source"})
        mounts = container_of(spec, "fetch")["volumeMounts"]
        mounts.append({"name": "source", "mountPath": "/source", "readOnly": True})

    def pod(name: str, mount: Path) -> Any:
        volumes = {"models": dest, "source": mount}
        return bed.pod(
            "vllm-nvme", name, volumes=volumes, settings={"MODEL_SOURCE": "/source"}, change=add_source
        )

    with (
        bed.mounted(source, keep_cache="always", total_rate=12 * MIB) as (mount, daemon),
        pod("cut", mount) as cut,
    ):
        playing = cut.begin()
        until(lambda: daemon.counters()["served"] > 40 * MIB, "40 MiB")
        cut.kill("fetch")
        playing.communicate(timeout=60)
        assert cut.state("fetch")["ExitCode"] == 143, cut.logs("fetch")
        assert never_started(cut, "engine")
    with bed.mounted(source, keep_cache="always") as (mount, daemon), pod("again", mount) as again:
        played = again.play()
        assert played.returncode == 0, played.stderr + again.logs("fetch")
        assert again.ask("/health") == "ok"
        here, every = again.ask("/resident")
        assert here == every
        read = daemon.counters()["served"]
        assert read < SIZE - 16 * MIB, f"{read} bytes were read again"
    assert_same(source, dest)


def _baked(bed: Bed, base: str, name: str) -> str:
    """An engine's image with a model in it."""
    image = f"localhost/{name}:1"
    with tempfile.TemporaryDirectory(dir=bed.room) as folder:
        subprocess.run(["cp", "-a", str(bed.model(owner=0)), f"{folder}/models"], check=True)
        Path(folder, "Dockerfile").write_text(f"FROM {base}\nCOPY models /models\n")
        bed.podman("build", "--quiet", "--tag", image, folder)
    return image


def _run_command(*engine: str) -> list[str]:
    """The command that the manifest ships, with `engine` in vLLM's place."""
    command: list[str] = container_of(shipped("vllm-run"), "engine")["command"]
    return [*command[: command.index("--") + 1], *engine]


def _first_process(pod: Pod) -> tuple[str, str]:
    """Command line and environment of PID 1 in the engine's container."""
    words = [
        pod.execute("engine", "cat", f"/proc/1/{what}").stdout.replace("\0", "\n")
        for what in ("cmdline", "environ")
    ]
    return words[0], words[1]


def run_becomes_the_server(bed: Bed) -> None:
    """`stager run -- python -m http.server` in an engine's image: PID 1 is the server, its environment its own, the model in memory."""
    image = _baked(bed, images.WHOLE, "engine")
    with bed.pod(
        "vllm-run", "run", image=image, command=_run_command("python3", "-m", "http.server", "8000")
    ) as pod:
        played = pod.play()
        assert played.returncode == 0, played.stderr + pod.logs("engine")
        until(lambda: _first_process(pod)[0].endswith("http.server\n8000\n"), "the server to be PID 1")
        _, environment = _first_process(pod)
        assert "_PYI_" not in environment, environment
        assert "LD_LIBRARY_PATH" not in environment, environment
        until(lambda: "GET" in pod.logs("engine") or _fetched(pod), "an answer")
        here, every = json.loads(pod.execute("engine", "python3", "-c", ENGINE, "census").stdout)
        assert here == every > SIZE // os.sysconf("SC_PAGESIZE"), (here, every)
        assert pod.marker()["state"] == "ready", pod.marker()


def _fetched(pod: Pod) -> bool:
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/models/config.json').status)"
    return pod.execute("engine", "python3", "-c", ask, check=False).stdout == "200\n"


def no_python_in_the_container(bed: Bed) -> None:
    """The bundle in a container of a C library and busybox: it warms, fetches with worker processes, and becomes the server."""
    image = _baked(bed, images.GLIBC, "bare")
    found = run_in(bed.podman, image, "find", "/", "-xdev", "-iname", "*python*")
    assert found.returncode == 0, found
    assert found.stdout == "", found.stdout
    server = _run_command("busybox", "httpd", "-f", "-p", "8000", "-h", "/models")
    with bed.pod("vllm-run", "bare", image=image, command=server) as pod:
        played = pod.play()
        assert played.returncode == 0, played.stderr + pod.logs("stager-bundle")
        until(lambda: _first_process(pod)[0].startswith("busybox\nhttpd"), "the server to be PID 1")
        answer = pod.execute("engine", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/config.json")
        assert "hidden_size" in answer.stdout
        assert pod.marker()["state"] == "ready", pod.logs("engine")
        own = "/opt/stager/stager"
        done = pod.execute("engine", own, "fetch", "/models", "/tmp/copy", "--processes", "2", check=False)
        assert done.returncode == 0, done.stderr
        done = pod.execute("engine", own, "pull", "owner/name", "/tmp/x", check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 2), done.stderr


SCENES: tuple[Scene, ...] = (
    images_hold_what_they_should,
    both_images_speak_to_the_store,
    init_container_warms_and_is_gone,
    mount_that_drops_pages,
    limit_below_the_model,
    files_of_another_owner,
    sidecar_holds_until_the_engine_is_up,
    corrupt_shard,
    stop_in_the_middle,
    stopped_fetch_goes_on,
    run_becomes_the_server,
    no_python_in_the_container,
)
