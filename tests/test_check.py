"""``stager check``: what a run would do, and the exit code it would have; nothing is warmed, nothing is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.fuselab.fixtures import MountFactory
from tests.harness import MIB, ROOT, STRANGER, Box, cold, files_below, resident

GOLDEN = ROOT / "tests" / "golden" / "cli"


def normalised(text: str, box: Box) -> str:
    """`text` without what differs between machines and runs."""
    text = text.replace(box.folder, "BOX")
    text = re.sub(
        r"mount +.* is \S+ \(.*\), read as \S+", "mount     POINT is FSTYPE (SOURCE), read as FSTYPE", text
    )
    text = re.sub(r"\((cachestat|mincore)", "(EXACT", text)
    text = re.sub(r"\d+(\.\d+)? ([KMGT]i)?B(?=[ ,)/\n])", "SIZE", text)
    text = re.sub(r"\d+(\.\d+)?/SIZE", "SIZE/SIZE", text)
    text = re.sub(r"\d+(\.\d+)?s\b|\d+m\d\ds\b", "TIME", text)
    text = re.sub(r" = \d+ ", " = NUMBER ", text)
    return re.sub(
        r"(?m)^(memory|  +)( *)(system|cgroup|no cgroup|all SIZE|SIZE of other|this node).*\n", "", text
    )


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("STAGER_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"regenerate with STAGER_GOLDEN=1 if {name} changed on purpose"


def test_check_of_a_whole_model(box: Box) -> None:
    model = box.model()
    done = box.run("check", model)
    assert (done.code, done.err, box.state) == (0, "", "")
    golden("check-whole.txt", normalised(done.out, box))


def test_check_of_a_broken_model(box: Box) -> None:
    model = box.model(size=8 * MIB, shards=3)
    os.unlink(f"{model}/model-00002-of-00003.safetensors")
    with open(f"{model}/model-00003-of-00003.safetensors", "r+b") as file:
        file.truncate(MIB)
    done = box.run("check", model)
    assert done.code == 8
    golden("check-broken.txt", normalised(done.out, box))
    assert box.run("check", model, "--allow-incomplete").code == 0


def test_check_under_a_budget(box: Box) -> None:
    model = box.model()
    done = box.run("check", model, "--budget", "10MiB", "--reserve", "0")
    assert done.code == 0
    golden("check-partial.txt", normalised(done.out, box))


def test_check_reads_no_more_than_its_sample(box: Box) -> None:
    """The sample is for the estimate of time; the other files stay cold."""
    names = [box.file(f"m/{number}.data", 24 * MIB) for number in range(4)]
    assert box.run("check", box.path("m")).code == 0
    assert resident(*names) <= 64 * MIB
    assert sum(resident(name) > 0 for name in names) <= 1


def test_check_of_a_warm_model_reads_nothing(box: Box) -> None:
    model = box.model(size=4 * MIB, shards=1)
    box.warm(model)
    done = box.run("check", "--json", model)
    assert (done.event("forecast")["to_read"], done.event("forecast")["state"]) == (0, "ready")
    assert box.ready(), "the marker is not touched"


@pytest.mark.root
@pytest.mark.parametrize(
    "words", [(), ("--strict",), ("--fail-open",)], ids=lambda words: "".join(words) or "default"
)
@pytest.mark.parametrize("case", ["whole", "partial", "stranger", "unreadable", "drops", "corrupt", "empty"])
def test_check_forecasts_the_exit_code_of_the_run(
    box: Box, fuse_mount: MountFactory, case: str, words: tuple[str, ...]
) -> None:
    options: dict[str, int] = {}
    model = box.model(size=4 * MIB, shards=2)
    if case == "partial":
        words = (*words, "--budget", "3MiB")
    if case in ("stranger", "unreadable"):
        box.open_marker_folder()
        options["uid"] = STRANGER
    if case == "unreadable":
        os.chmod(f"{model}/model-00001-of-00002.safetensors", 0o600)
    if case == "drops":
        model = fuse_mount(synthetic={"config.json": 10, "a.data": MIB}).path
    if case == "corrupt":
        os.unlink(f"{model}/model-00001-of-00002.safetensors")
    if case == "empty":
        for path in files_below(model):
            os.unlink(path)
    check = box.run("check", model, *words, **options)
    warm = box.run("warm", model, *words, **options)
    assert check.code == warm.code, f"check: {check}\nwarm: {warm}"
    if case != "empty":
        ending = re.search(r"a run would end (\w+).*, exit (\d+)", check.out)
        assert ending is not None
        assert (ending[1], int(ending[2])) == (box.state, warm.code)


def test_check_leaves_no_pages_of_a_cold_model(box: Box) -> None:
    path = box.file("m/weights.data", 8 * MIB)
    cold(path)
    assert box.run("check", str(Path(path).parent)).code == 0
    assert resident(path) == 0


def test_check_sees_what_min_resident_asks(box: Box) -> None:
    path = box.file("m/weights.data", 8 * MIB)
    cold(path)
    assert box.run("check", path, "--budget", "1MiB", "--min-resident", "90%").code == 3


def test_check_under_fresh_counts_what_would_be_read(box: Box) -> None:
    path = box.file("m/weights.data", 8 * MIB)
    box.warm(path)
    assert "read 8.0 MiB in 1 file" in box.run("check", path, "--fresh").out
    assert resident(path) == 8 * MIB
