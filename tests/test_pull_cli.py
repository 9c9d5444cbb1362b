"""What ``stager pull`` and ``stager verify`` make of a command line: where to, from where, and what cannot be meant."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import pytest

from stager.cli import pull as pull_module
from stager.cli import verify as verify_module
from stager.cli.pull_options import Asked, refuse_mistaken
from stager.core.engines import Engine
from stager.core.errors import UsageError
from stager.core.location import Location
from stager.core.source import Source
from stager.jobs.options import Proof, PullOptions, VerifyOptions
from stager.store.opening import StoreOptions
from tests.harness import Box
from tests.pullbed import PullBed

MIB = 1 << 20
Parse = Callable[..., Any]


def parsed(monkeypatch: pytest.MonkeyPatch, module: Any, command: click.Command, *words: str) -> Any:
    """The job that a command line makes, not run."""
    jobs: list[Any] = []

    def conduct(output: object, make: Callable[[object], Any], **_: object) -> int:
        jobs.append(make(None))
        return 0

    monkeypatch.setattr(module, "conduct", conduct)
    assert command.main(args=list(words), standalone_mode=False) == 0
    return jobs[0]


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """The `PullOptions` of a command line."""
    for name in os.environ:
        if name.startswith("STAGER_"):
            monkeypatch.delenv(name)
    job = partial(parsed, monkeypatch, pull_module, pull_module.command)
    return lambda *words: job(*words)._options


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """The `VerifyOptions` of a command line."""
    job = partial(parsed, monkeypatch, verify_module, verify_module.command)
    return lambda *words: job(*words)._options


def at(text: str) -> Location:
    return Location.parse(text)


def test_what_is_not_said_is_as_the_options_have_it(pull: Parse, verify: Parse) -> None:
    found = pull("owner/r1", "oss://bucket/r1")
    assert found == PullOptions(
        source=Source.parse("owner/r1"), dest=at("oss://bucket/r1"), store=StoreOptions()
    )
    assert verify("oss://bucket/r1") == VerifyOptions(location=at("oss://bucket/r1"), store=StoreOptions())


def test_everything_that_is_said_arrives(pull: Parse, verify: Parse) -> None:
    streaming = ["-P", "128", "--no-adapt", "--max-rate", "1GiB", "--buffer", "64MiB", "--timeout", "2h"]
    streaming += ["--stall-timeout", "9s", "--region", "cn-hangzhou"]
    choosing = ["--include", "a", "--include", "b", "--exclude", "c"]
    more = ["--for", "llama.cpp", "--quant", "Q4_K_M", "--variant", "fp16", "--verify", "crc"]
    flags = ["--restart", "--wait", "--mirror"]
    store = StoreOptions(max_rate=1 << 30, region="cn-hangzhou")
    moving = {"lanes": 128, "adapt": False, "buffer": 64 * MIB, "timeout": 7200.0, "stall_timeout": 9.0}
    chosen = {"include": ("a", "b"), "exclude": ("c",)}
    found = pull("hf://owner/r1@v2", "/mnt/nas/r1", *streaming, *choosing, *more, *flags)
    assert found == PullOptions(
        source=Source.parse("hf://owner/r1@v2"),
        dest=at("/mnt/nas/r1"),
        store=store,
        engine=Engine.LLAMA_CPP,
        quant="Q4_K_M",
        variant="fp16",
        verify=Proof.CRC,
        restart=True,
        wait=True,
        mirror=True,
        **moving,
        **chosen,
    )
    found = verify("/mnt/nas/r1", "--sha256", *streaming, *choosing)
    assert found == VerifyOptions(location=at("/mnt/nas/r1"), store=store, sha256=True, **moving, **chosen)


@pytest.mark.parametrize(
    ("source", "above", "dest"),
    [
        ("owner/DeepSeek-R1", "oss://bucket/models", "oss://bucket/models/DeepSeek-R1"),
        ("ms://owner/r1@v2", "oss://bucket/a//b/", "oss://bucket/a//b/r1"),
        ("hf://gpt2", "oss://bucket", "oss://bucket/gpt2"),
        ("./tuned/r1/", "/mnt/nas/", "/mnt/nas/r1"),
        ("owner/r1", "file:///mnt/nas", "/mnt/nas/r1"),
        ("owner/r1", "models", "models/r1"),
    ],
)
def test_without_a_dest_the_name_goes_below_the_usual_one(
    pull: Parse, monkeypatch: pytest.MonkeyPatch, source: str, above: str, dest: str
) -> None:
    monkeypatch.setenv("STAGER_DEST", above)
    assert str(pull(source).dest) == dest
    assert str(pull(source, "oss://other/place").dest) == "oss://other/place", "one that is named wins"


def test_the_usual_dest_may_lie_in_the_home_folder(pull: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STAGER_DEST", " ~/models ")
    assert str(pull("owner/r1").dest) == "/home/me/models/r1"
    monkeypatch.setenv("STAGER_DEST", "  ")
    with pytest.raises(UsageError, match="no DEST"):
        pull("owner/r1")


@pytest.mark.parametrize(
    ("dest", "means"),
    [
        ("~/models/r1", "/home/me/models/r1"),
        ("./~/r1", "./~/r1"),
        ("file:///~/r1", "/~/r1"),
        ("oss://bucket/~/r1", "oss://bucket/~/r1"),
    ],
)
def test_a_dest_that_no_shell_has_seen_may_lie_in_the_home_folder(
    pull: Parse, monkeypatch: pytest.MonkeyPatch, dest: str, means: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(pull("owner/r1", dest).dest) == means


def test_the_options_are_variables_too(pull: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FOR": "vllm", "BUFFER": "1GiB", "WAIT": "1", "VERIFY": "none"}.items():
        monkeypatch.setenv(f"STAGER_{name}", value)
    found = pull("owner/r1", "/models/r1")
    assert (found.engine, found.buffer, found.wait, found.verify) == (
        Engine.VLLM,
        1 << 30,
        True,
        Proof.NONE,
    )


def refused(box: Box, *words: str, env: dict[str, str] | None = None, cwd: str = "") -> tuple[str, str]:
    """The error and the hint of a command line that is wrong."""
    before = ["sh", "-c", 'cd "$0" && exec "$@"', cwd] if cwd else []
    done = box.run(*words, env=env or {}, before=before)
    assert (done.code, done.out) == (2, ""), str(done)
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], str(done)
    return lines[0], lines[1]


def test_without_any_dest_the_line_to_type_is_told(box: Box) -> None:
    error, hint = refused(box, "pull", "owner/DeepSeek-R1@v2")
    assert "no DEST" in error
    assert "`stager pull owner/DeepSeek-R1@v2 oss://BUCKET/models/DeepSeek-R1`" in hint
    assert "STAGER_DEST=oss://BUCKET/models" in hint
    assert "oss://BUCKET/models/NAME`" in refused(box, "pull", ".")[1]


def test_a_usual_dest_that_is_wrong_is_named(box: Box) -> None:
    error, _ = refused(box, "pull", "owner/r1", env={"STAGER_DEST": "s3://bucket"})
    assert "STAGER_DEST" in error
    error, hint = refused(box, "pull", ".", env={"STAGER_DEST": "oss://bucket/"})
    assert "does not say what the model is called" in error
    assert "`stager pull . oss://bucket/NAME`" in hint


@pytest.mark.parametrize(
    "words",
    [
        ("pull",),
        ("pull", "r1", "/models/r1"),
        ("pull", "oss://bucket/r1", "/models/r1"),
        ("pull", "owner/r1", "s3://bucket/r1"),
        ("pull", "owner/r1", ""),
        ("pull", "owner/r1", "/models/r1", "more"),
        ("pull", "owner/r1", "/m", "-P", "0"),
        ("pull", "owner/r1", "/m", "-P", "129"),
        ("pull", "owner/r1", "/m", "--buffer", "63MiB"),
        ("pull", "owner/r1", "/m", "--buffer", "lots"),
        ("pull", "owner/r1", "/m", "--verify", "md5"),
        ("pull", "owner/r1", "/m", "--for", "pytorch"),
        ("pull", "owner/r1", "/m", "--max-rate", "0"),
        ("verify",),
        ("verify", "s3://bucket/r1"),
        ("verify", "/m", "-P", "129"),
        ("verify", "/m", "--buffer", "63MiB"),
    ],
    ids=" ".join,
)
def test_what_is_no_command_line(box: Box, words: tuple[str, ...]) -> None:
    refused(box, *words)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
@pytest.mark.parametrize("revision", ["", "@v2"])
def test_a_model_that_may_be_a_folder(box: Box, revision: str, dry: tuple[str, ...]) -> None:
    os.makedirs(box.path("owner/r1"))
    nowhere = {"MODELSCOPE_ENDPOINT": "http://127.0.0.1:9"}  # should it be asked all the same
    words = (f"owner/r1{revision}", box.path("to"), *dry)
    error, hint = refused(box, "pull", *words, env=nowhere, cwd=box.folder)
    assert "`owner/r1` may be a model on ModelScope, or the folder" in error
    assert f"ms://owner/r1{revision}," in hint
    assert "./owner/r1" in hint
    assert not os.path.exists(box.path("to"))


@pytest.mark.parametrize("dest", ["r1", "r1/sub", "", "link/sub", "file"])
def test_a_source_and_a_dest_within_each_other(box: Box, dest: str) -> None:
    os.makedirs(box.path("r1"))
    os.symlink(box.path("r1"), box.path("link"))
    to = f"file://{box.path('r1')}" if dest == "file" else os.path.join(box.folder, dest)
    error, _ = refused(box, "pull", box.path("r1"), to)
    assert "lie within each other" in error


def test_the_home_folder_is_no_way_around(box: Box) -> None:
    os.makedirs(box.path("r1"))
    home = box.folder
    error, _ = refused(box, "pull", "~/r1", box.path("r1/sub"), env={"HOME": home})
    assert "lie within each other" in error


@pytest.mark.parametrize(
    ("source", "dest"),
    [("ms://owner/r1", "oss://bucket/r1"), ("./owner/r1", "oss://bucket/owner/r1"), ("./owner/r1", "r10")],
)
def test_what_is_clear_is_not_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, source: str, dest: str
) -> None:
    (tmp_path / "owner" / "r1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refuse_mistaken(Asked.parse(source), at(dest))


@pytest.mark.parametrize(
    ("words", "said"), [(("--quant", "Q4_K_M"), "--quant"), (("--variant", "fp16"), "--variant")]
)
def test_a_choice_for_no_engine_is_refused(pullbed: PullBed, words: tuple[str, ...], said: str) -> None:
    line = pullbed.refused(2, *words)
    assert f"{said} says nothing without --for" in line
